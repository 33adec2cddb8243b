//! Tiled matrix product that groups of four warps multiply out of shared memory (`wgmma`, PTX ISA 9.7.15).
//!
//! A block makes a tile of 64 rows for each group, by all of its columns. Stages of 64 along k, whose rows of 128 bytes are
//! swizzled, are filled by copies of tiles in the background ([`Stmt::FillStage`]). One step's products are in flight while
//! the next one is awaited: so a stage is filled again one step behind its use, when all groups have waited for its products.

use super::Body;
use super::gemm::Tile;
use super::tile_rows;
use super::warp::threads;
use weft_ir::dtype::DType;
use weft_ir::kernel::{Axis, Expr, SWIZZLED_ROW, ShuffleMode, Stmt, TileCopy, Unroll};
use weft_ir::plan::{EXCHANGED_BYTES, MatMul};

/// Shared memory of two blocks on a multiprocessor, besides their rings and what is reserved.
const TWO_BLOCKS: u32 = 224 * 1024;
/// Elements along k of an instruction.
const DEPTH: i64 = 16;

/// The tile of so many groups of warps.
///
/// # Errors
/// Groups, columns or stages that no block has.
pub(super) fn tile(groups: u32, columns: u32, stages: u32) -> Result<Tile, String> {
    if !(1..=4).contains(&groups) || ![64, 128, 192, 256].contains(&columns) || !(2..=16).contains(&stages) {
        return Err(format!("{groups} groups of warps, {columns} columns and {stages} stages"));
    }
    let (m, warps_m) = (groups * 64, groups * 4);
    Ok(Tile { m, n: columns, k: SWIZZLED_ROW, warps_m, warps_n: 1, warps_k: 1, stages })
}

pub(super) fn build(b: &mut Body<'_>, m: &MatMul, tile: &Tile) -> Result<(), String> {
    if m.row.is_some() || m.draw.is_some() || !m.stages.is_empty() {
        return Err("rows, draws or reductions of a product by groups of warps".into());
    }
    let Some(operand) = m.plain_left() else {
        return Err("a left operand that is no matrix in a product by groups of warps".into());
    };
    let (a, w) = (operand.index(), m.b.index());
    let (dtype, constant) = (b.work.reads[w].dtype, b.work.reads[w].constant);
    if b.work.reads[a].dtype != dtype {
        return Err("operands of two types in a product by groups of warps".into());
    }
    let (steps, ahead) = ((m.k as u32).div_ceil(tile.k), tile.stages - 1);
    let row = i64::from(SWIZZLED_ROW);
    let bytes = (tile.m + tile.n) * SWIZZLED_ROW * dtype.size() as u32;
    let all = tile.stages * bytes + tile.m / 64 * EXCHANGED_BYTES;
    b.k.min_blocks(if 2 * all <= TWO_BLOCKS { 2 } else { 1 });
    b.launch_dependents();

    let t = threads(b);
    let first_row = b.k.let_("first_row", DType::I32, Expr::BlockIdx(Axis::X) * i64::from(tile.m));
    let first_column = b.k.let_("first_column", DType::I32, Expr::BlockIdx(Axis::Y) * i64::from(tile.n));
    let a_tile = b.k.swizzled("a_tile", dtype, tile.stages * tile.m);
    let b_tile = b.k.swizzled("b_tile", dtype, tile.stages * tile.n);
    let (left, right) = (b.reads[a], b.reads[w]);
    let of = |to, from, (rows, row): (u32, &Expr), stage: &Expr, step: &Expr| TileCopy {
        to,
        to_row: stage.clone() * i64::from(rows),
        from,
        row: row.clone(),
        column: step.clone() * i64::from(tile.k),
    };
    let of_left = |stage: &Expr, step: &Expr| of(a_tile, left, (tile.m, &first_row), stage, step);
    let of_right = |stage: &Expr, step: &Expr| of(b_tile, right, (tile.n, &first_column), stage, step);
    let ring = b.k.ring("full", tile.stages);
    b.k.push(Stmt::MakeRing { ring });
    let acc = b.k.array("acc", DType::F32, tile.n / 2, Some(Expr::float(0.0)));
    // Of a lane, so that the compiler sees that all have the same: places of operands are made once a warp.
    let group = Expr::Shuffle(ShuffleMode::Index, Box::new(t.warp.clone() / 4), Box::new(Expr::int(0)));
    let group = b.k.let_("group", DType::I32, group);
    b.k.push(Stmt::Barrier);

    let stages = || (Expr::int(0), Expr::int(i64::from(ahead.min(steps))), Expr::int(1));
    if constant {
        b.k.comment("Weights are constant: their copies start before the wait.");
        b.for_loop("stage", stages(), Unroll::Never, |b, stage| {
            let tiles = vec![of_right(&stage, &stage)];
            b.k.push(Stmt::FillStage { ring, stage, bytes, tiles });
            Ok(())
        })?;
    }
    b.wait();
    b.for_loop("stage", stages(), Unroll::Never, |b, stage| {
        let (bytes, tiles) = match constant {
            true => (0, vec![of_left(&stage, &stage)]),
            false => (bytes, vec![of_left(&stage, &stage), of_right(&stage, &stage)]),
        };
        b.k.push(Stmt::FillStage { ring, stage, bytes, tiles });
        Ok(())
    })?;
    let range = (Expr::int(0), Expr::int(i64::from(steps)), Expr::int(1));
    b.for_loop("step", range, Unroll::Never, |b, step| {
        let of_ring = |step: Expr| step % i64::from(tile.stages);
        let stage = b.k.let_("stage", DType::I32, of_ring(step.clone()));
        let round = step.clone() / i64::from(tile.stages);
        b.k.push(Stmt::AwaitStage { ring, stage: stage.clone(), round });
        let a_row = stage.clone() * i64::from(tile.m) + group.clone() * 64;
        let a_base = b.k.let_("a_base", DType::I32, a_row * row);
        let b_base = b.k.let_("b_base", DType::I32, stage * i64::from(tile.n) * row);
        b.k.push(Stmt::WgmmaFence);
        for kk in 0..row / DEPTH {
            let (a_at, b_at, k) = (a_base.clone(), b_base.clone(), (kk * DEPTH) as u32);
            b.k.push(Stmt::Wgmma { dtype, acc, columns: tile.n, a: a_tile, a_at, b: b_tile, b_at, k });
        }
        b.k.push(Stmt::WgmmaCommit);
        b.k.push(Stmt::WgmmaWait { pending: 1, acc });
        b.k.push(Stmt::Barrier);
        let next = b.k.let_("next", DType::I32, step + i64::from(ahead));
        b.if_then(next.clone().lt(Expr::int(i64::from(steps))), |b| {
            let into = b.k.let_("into", DType::I32, of_ring(next.clone()));
            let tiles = vec![of_left(&into, &next), of_right(&into, &next)];
            b.k.push(Stmt::FillStage { ring, stage: into, bytes, tiles });
            Ok(())
        })
    })?;
    b.k.push(Stmt::WgmmaWait { pending: 0, acc });
    let row = first_row + t.warp.clone() * 16;
    let ragged = !m.columns().is_multiple_of(tile.n as usize);
    tile_rows::store(b, m, &t, (acc, tile.n / 8), (row, first_column), ragged)
}
