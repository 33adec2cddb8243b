//! Tiles of products with a row epilogue: a block makes 16, 32 or 64 whole rows.
//!
//! The columns of a warp follow from the row's length alone, so that a row's reductions have the same order
//! in every bucket.

use weft_ir::dtype::DType;
use weft_ir::plan::Schedule;
use weft_ir::target::Target;

/// Warps along a row.
const WARPS: usize = 8;
/// Most reductions over a row.
pub(crate) const REDUCTIONS: usize = 8;
/// Rows of a block: fewer while blocks are fewer than multiprocessors. With 64 a row epilogue shares the right
/// operand about as well as the plain tiles do.
const ROWS: [usize; 3] = [16, 32, 64];
/// Elements that pad a row in shared memory.
const PAD: usize = 8;

/// Whether a block of this target can make whole rows of a product [m, n] of such operands, and should: each
/// block reads the whole right operand, where tiles share it.
pub(crate) fn takes(dtype: DType, n: usize, k: usize, target: &Target) -> bool {
    let worth = n * k * dtype.size() <= target.row_bytes as usize;
    worth
        && super::no_mma(dtype, k, target).is_none()
        && n <= target.row_columns as usize
        && stages(n, k, ROWS[0], target).is_some()
}

/// Columns of a warp, and warps.
fn warps(n: usize) -> (usize, usize) {
    let columns = n.div_ceil(WARPS).next_multiple_of(16);
    (columns, n.div_ceil(columns))
}

/// Depth of a stage, and stages in flight, that fit shared memory beside the partial sums of a block's rows.
fn stages(n: usize, k: usize, rows: usize, target: &Target) -> Option<(u32, u32)> {
    // Each of a row's reductions has a partial sum for each warp.
    let sums = REDUCTIONS * WARPS * rows * 4;
    let (columns, warps) = warps(n);
    let bytes = |depth: usize, stages: usize| stages * (rows + columns * warps) * (depth + PAD) * 2;
    let fits = |&(depth, stages): &(usize, usize)| {
        (depth == 32 || k.is_multiple_of(depth))
            && bytes(depth, stages) + sums <= target.shared_bytes as usize
    };
    let found = [(64, 3), (32, 4), (32, 3), (32, 2)].into_iter().find(fits);
    found.map(|(depth, stages)| (depth as u32, stages as u32))
}

/// The schedule of a product [m, n] of this length with a row epilogue, for a bucket of `rows` rows.
pub(super) fn schedule(n: usize, k: usize, rows: usize, target: &Target) -> Option<Schedule> {
    let (columns, warps_n) = warps(n);
    // The tallest tile of which there are enough.
    let enough = |tile: &usize| *tile == ROWS[0] || rows.div_ceil(tile / 2) > target.profile.sms as usize;
    let tiles = ROWS.into_iter().rev().filter(enough);
    let (tile_m, (tile_k, stages)) =
        tiles.filter_map(|tile| Some((tile, stages(n, k, tile, target)?))).next()?;
    Some(Schedule::Gemm {
        tile_m: tile_m as u32,
        tile_n: (columns * warps_n) as u32,
        tile_k,
        warps_m: (tile_m / 16) as u32,
        warps_n: warps_n as u32,
        warps_k: 1,
        stages,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_ir::target::TARGETS;

    #[test]
    fn rows_that_fit_every_target() {
        for target in TARGETS {
            let on = |dtype, n, k| takes(dtype, n, k, target);
            assert!(on(DType::BF16, 384, 1536) && on(DType::F16, 512, 384) && on(DType::BF16, 72, 40));
            // Longer than a tile; not on tensor cores; rows that are not whole copies; a weight to stream.
            assert!(!on(DType::BF16, 520, 64) && !on(DType::F32, 64, 64));
            assert!(!on(DType::BF16, 64, 100) && !on(DType::BF16, 512, 2048));
        }
    }

    /// Whatever the number of rows, the columns of a warp are the same.
    #[test]
    fn the_order_of_sums_does_not_follow_the_bucket() {
        let target = Target::parse("sm_90").expect("sm_90");
        for n in [16, 100, 384, 512] {
            let (columns, count) = warps(n);
            assert!(columns % 16 == 0 && columns * count >= n && columns * (count - 1) < n && count <= WARPS);
            let shape = |rows| match schedule(n, 64, rows, target) {
                Some(Schedule::Gemm { tile_m, tile_n, warps_n, .. }) => (tile_m, [tile_n, warps_n]),
                other => panic!("{other:?}"),
            };
            let [few, some, many] = [16, 4096, 32768].map(shape);
            assert_eq!([few.0, some.0, many.0], [16, 32, 64]);
            assert!(few.1 == some.1 && some.1 == many.1);
        }
    }
}
