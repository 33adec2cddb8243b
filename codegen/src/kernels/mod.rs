//! From a kernel spec of the plan to kernel IR: one builder a schedule family.
//!
//! Builders share [`Body`]: it declares the parameters in launch order (reads, writes, symbols), turns
//! scalar expressions into kernel expressions, and emits stores.

mod advance;
mod ahead;
mod attention_cluster;
mod attention_decode;
mod attention_fragments;
mod attention_group;
mod attention_join;
mod attention_projection;
mod attention_prologue;
mod attention_row;
mod attention_runs;
mod attention_tile;
mod attention_tile_step;
mod body;
mod draw;
mod elementwise;
mod few;
mod gemm;
mod gemm_join;
mod gemm_left;
mod gemm_row;
mod gemm_warpgroup;
mod gemv;
mod gemv_copy;
mod gemv_left;
mod gemv_pass;
mod gemv_sums;
mod gemv_vectors;
mod group_pairs;
mod gumbel;
mod header;
mod made_row;
mod neighbours;
mod penalize;
mod routed_gemm;
mod routed_gemv;
mod rows;
mod rows_ahead;
mod sample;
mod sampling;
mod scalar;
mod steps;
mod stream;
mod thresholds;
mod tile_rows;
mod warp;

use crate::error::Error;
use weft_ir::kernel::Kernel;
use weft_ir::plan::{Compute, KernelSpec, Plan, Schedule};

pub(crate) use body::{Body, Point};
pub use stream::{
    STREAM_THREADS, STREAM_VECTOR, StreamLaunch, emit_stream, stream, stream_launch, stream_sums,
};

/// Builds the kernel of a spec.
///
/// # Errors
/// A schedule of another kind of work, or an expression that has no kernel form.
pub fn build(plan: &Plan, spec: &KernelSpec) -> Result<Kernel, Error> {
    let fail = |why: String| Error::Build { kernel: spec.name.clone(), why };
    let work = plan
        .works
        .get(spec.work as usize)
        .ok_or_else(|| fail(format!("work {} does not exist", spec.work)))?;
    let mut body = Body::new(plan, spec, work);
    header::write(&mut body);
    let built = match (&spec.schedule, &work.compute) {
        (Schedule::Elementwise { threads }, Compute::Loop(l)) => elementwise::build(&mut body, l, *threads),
        (Schedule::WarpRow { warps }, Compute::Loop(l)) => rows::warp_row(&mut body, l, *warps),
        (Schedule::BlockRow { threads }, Compute::Loop(l)) => rows::block_row(&mut body, l, *threads),
        (
            Schedule::Gemv {
                rows,
                warps,
                lanes,
                split,
                columns,
                depth,
                blocks,
                staged,
                resident,
                behind,
                ahead,
                late,
            },
            Compute::MatMul(m),
        ) => {
            let shape = gemv::Shape {
                rows: *rows,
                warps: *warps,
                lanes: *lanes,
                split: *split,
                columns: *columns,
                depth: *depth,
                blocks: *blocks,
                staged: *staged,
                resident: *resident,
                behind: *behind,
                ahead: *ahead,
                late: *late,
            };
            gemv::build(&mut body, m, &shape)
        }
        (
            Schedule::Gemm { tile_m, tile_n, tile_k, warps_m, warps_n, warps_k, stages },
            Compute::MatMul(m),
        ) => {
            let tile = gemm::Tile {
                m: *tile_m,
                n: *tile_n,
                k: *tile_k,
                warps_m: *warps_m,
                warps_n: *warps_n,
                warps_k: *warps_k,
                stages: *stages,
            };
            gemm::build(&mut body, m, &tile)
        }
        (Schedule::WarpgroupGemm { groups, tile_n, stages }, Compute::MatMul(m)) => {
            gemm_warpgroup::tile(*groups, *tile_n, *stages)
                .and_then(|tile| gemm_warpgroup::build(&mut body, m, &tile))
        }
        (
            Schedule::AttentionRow { warps, heads, depth, splits, cluster, late }
            | Schedule::AttentionGroup { warps, heads, depth, splits, cluster, late },
            Compute::Attention(a),
        ) => {
            let block = attention_decode::Block {
                warps: i64::from(*warps),
                heads: *heads,
                depth: *depth,
                splits: *splits,
                cluster: *cluster,
                late: *late,
            };
            let tensor_cores = matches!(spec.schedule, Schedule::AttentionGroup { .. });
            attention_decode::build(&mut body, a, block, tensor_cores)
        }
        (Schedule::AttentionTile { tile_q, tile_k, stages }, Compute::Attention(a)) => {
            attention_tile::build(&mut body, a, (*tile_q, *tile_k, *stages))
        }
        (Schedule::RowSteps { threads }, Compute::Steps(s)) => steps::build(&mut body, s, *threads),
        (Schedule::RoutedGemv { warps, columns }, Compute::Routed(r)) => {
            routed_gemv::build(&mut body, r, *warps, *columns)
        }
        (
            Schedule::RoutedGemm { tile_m, tile_n, tile_k, warps_m, warps_n, stages, split },
            Compute::Routed(r),
        ) => {
            let tile = gemm::Tile {
                m: *tile_m,
                n: *tile_n,
                k: *tile_k,
                warps_m: *warps_m,
                warps_n: *warps_n,
                warps_k: 1,
                stages: *stages,
            };
            routed_gemm::build(&mut body, r, &tile, *split)
        }
        (Schedule::GroupPairs { threads }, Compute::Grouping(g)) => {
            group_pairs::build(&mut body, g, *threads)
        }
        (Schedule::AdvanceRows { .. }, Compute::Advance(a)) => advance::build(&mut body, a),
        (Schedule::SampleRow { threads }, Compute::Sample(s)) => sample::build(&mut body, s, *threads),
        (Schedule::SampleRow { threads }, Compute::Penalize(p)) => penalize::build(&mut body, p, *threads),
        (schedule, _) => Err(format!("{schedule:?} does not fit the work {}", work.name)),
    };
    built.map_err(fail)?;
    Ok(body.k.finish())
}
