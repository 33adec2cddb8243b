//! Tiles of products with a row epilogue: a block makes 16 or 32 whole rows.
//!
//! The columns of a warp follow from the row's length alone, so that a row's reductions have the same order
//! in every bucket.

use weft_ir::dtype::DType;
use weft_ir::plan::{MatMul, Schedule};
use weft_ir::target::Target;

/// Warps along a row.
const WARPS: usize = 8;
/// Elements that pad a row in shared memory.
const PAD: usize = 8;

/// Whether a block of this target can make whole rows of a product [m, n] of such operands.
pub(crate) fn takes(dtype: DType, n: usize, k: usize, target: &Target) -> bool {
    super::no_mma(dtype, k, target).is_none()
        && n <= target.row_columns as usize
        && stages(n, k, target).is_some()
}

/// Columns of a warp, and warps.
fn warps(n: usize) -> (usize, usize) {
    let columns = n.div_ceil(WARPS).next_multiple_of(16);
    (columns, n.div_ceil(columns))
}

/// Depth of a stage, and stages in flight, that fit shared memory beside the partial sums.
fn stages(n: usize, k: usize, target: &Target) -> Option<(u32, u32)> {
    const SUMS: usize = 16 * 1024;
    let (columns, warps) = warps(n);
    let bytes = |depth: usize, stages: usize| stages * (ROWS.1 + columns * warps) * (depth + PAD) * 2;
    let fits = |&(depth, stages): &(usize, usize)| {
        (depth == 32 || k.is_multiple_of(depth))
            && bytes(depth, stages) + SUMS <= target.shared_bytes as usize
    };
    let found = [(64, 3), (32, 4), (32, 3), (32, 2)].into_iter().find(fits);
    found.map(|(depth, stages)| (depth as u32, stages as u32))
}

/// Rows of a block: fewer while blocks are fewer than multiprocessors.
const ROWS: (usize, usize) = (16, 32);

/// The schedule of a product with a row epilogue, for a bucket of `rows` rows.
pub(super) fn schedule(m: &MatMul, rows: usize, target: &Target) -> Option<Schedule> {
    let (tile_k, stages) = stages(m.n, m.k, target)?;
    let (columns, warps_n) = warps(m.n);
    let many = rows.div_ceil(ROWS.0) > target.profile.sms as usize;
    let tile_m = if many { ROWS.1 } else { ROWS.0 };
    Some(Schedule::Gemm {
        tile_m: tile_m as u32,
        tile_n: (columns * warps_n) as u32,
        tile_k,
        warps_m: (tile_m / 16) as u32,
        warps_n: warps_n as u32,
        stages,
    })
}
