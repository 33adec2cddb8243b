//! Tiles of matrix products on tensor cores.

use weft_ir::dtype::DType;
use weft_ir::plan::{MatMul, Scalar, Schedule, TiledLeft, Work};
use weft_ir::target::Target;

/// Most shared memory of a block: what every target has, but for what they reserve.
const SHARED_BYTES: usize = 96 * 1024;
/// Elements that pad a row in shared memory.
const PAD: usize = 8;
/// Deepest stage whose depth need not divide k.
const DEPTH: u32 = 32;

/// What a tile's left operand brings to shared memory.
pub(super) struct Left {
    /// Bytes of an element of a row, over all its arrays.
    of_row: usize,
    /// Bytes of an element of the arrays that all rows share.
    of_all: usize,
}

impl Left {
    /// Bytes of a stage.
    fn stage(&self, tile_m: u32, tile_n: u32, tile_k: u32) -> usize {
        let rows = tile_m as usize * self.of_row + self.of_all + tile_n as usize * 2;
        rows * (tile_k as usize + PAD)
    }

    /// Whether a row is more than its 16-bit elements.
    fn is_wide(&self) -> bool {
        self.of_row > 2
    }
}

/// Why no tile can take a product of this length, if so.
pub(crate) fn no_tiles(k: usize) -> Option<String> {
    (!k.is_multiple_of(8)).then(|| format!("k = {k} is not a multiple of 8 (16-byte rows)"))
}

/// Why tensor cores cannot take a product of this length of such operands, if so.
pub(super) fn no_mma(dtype: DType, k: usize, target: &Target) -> Option<String> {
    if !target.features.mma_sync || !target.features.cp_async {
        Some(format!("{} has no mma.sync or cp.async", target.name))
    } else if !dtype.is_half() {
        Some(format!("tensor cores take f16 and bf16, not {dtype}"))
    } else {
        no_tiles(k)
    }
}

/// The left operand of a product on tensor cores.
///
/// # Errors
/// Why they cannot take the product.
pub(super) fn left(work: &Work, m: &MatMul, target: &Target) -> Result<Left, String> {
    let dtype = work.reads[m.b.index()].dtype;
    if let Some(why) = no_mma(dtype, m.k, target) {
        return Err(why);
    }
    let loads = match m.tiled_left(&work.reads)? {
        TiledLeft::Stored(_) => return Ok(Left { of_row: dtype.size(), of_all: 0 }),
        TiledLeft::Computed(loads) => loads,
    };
    let mut left = Left { of_row: 0, of_all: 0 };
    for load in &loads {
        let Scalar::Load(o, _) = load else { continue };
        let mut of_row = false;
        load.visit(&mut |part| of_row |= *part == Scalar::Coord(0));
        let bytes = if of_row { &mut left.of_row } else { &mut left.of_all };
        *bytes += work.reads[o.index()].dtype.size();
    }
    let least = left.stage(16, 16, DEPTH) * 2;
    if least > SHARED_BYTES {
        return Err(format!("two stages of the arrays of the left operand take {least} bytes"));
    }
    Ok(left)
}

/// The tiles of a product with this left operand.
pub(super) fn schedule(m: &MatMul, left: &Left, rows: usize, target: &Target) -> Schedule {
    let blocks = |tm: usize, tn: usize| rows.div_ceil(tm) * m.columns().div_ceil(tn);
    let sms = target.profile.sms as usize;
    if rows <= 16 {
        return short_prompt(m, left, &|tn| blocks(16, tn), sms);
    }
    let (tile_m, tile_n, warps_m, warps_n) = if rows <= 32 || blocks(64, 64) < sms {
        (32, 64, 2, 2)
    } else if blocks(128, 128) >= sms {
        (128, 128, 2, 4)
    } else {
        (64, 64, 2, 2)
    };
    let wider = left.is_wide() && 2 * blocks(tile_m as usize, 128) >= sms;
    let (tile_n, warps_n) = if wider { (128, 4) } else { (tile_n, warps_n) };
    let deep = tile_m < 128 && m.k.is_multiple_of(64);
    let choices = [(64, 3), (DEPTH, 4), (DEPTH, 3), (DEPTH, 2)];
    let fits = |&(depth, stages): &(u32, u32)| {
        (depth == DEPTH || deep) && left.stage(tile_m, tile_n, depth) * stages as usize <= SHARED_BYTES
    };
    let (tile_k, stages) = choices.into_iter().find(fits).unwrap_or((DEPTH, 2));
    Schedule::Gemm { tile_m, tile_n, tile_k, warps_m, warps_n, stages }
}

/// Tiles of at most 16 rows stream the weight like a decode step: as many multiprocessors as there are must take part,
/// and each must keep some 24 KB of it on the way. A row that is wider than its 16-bit elements is read from L2 by half
/// as many blocks, which take twice the columns: the tiles read no more than those of a stored operand.
fn short_prompt(m: &MatMul, left: &Left, blocks: &dyn Fn(usize) -> usize, sms: usize) -> Schedule {
    let (widest, enough): (&[u32], _) =
        if left.is_wide() { (&[128, 64, 32], sms.div_ceil(2)) } else { (&[64, 32], sms) };
    let tile_n = widest.iter().copied().find(|&n| blocks(n as usize) >= enough).unwrap_or(16);
    // Deep stages, since a stage costs a barrier; as many as make 24 KB.
    let (mut tile_k, mut stages) = match (tile_n, m.k) {
        (64 | 128, k) if k.is_multiple_of(128) => (128, 3),
        (32, k) if k.is_multiple_of(256) => (256, 3),
        (16, k) if k.is_multiple_of(256) => (256, 4),
        (64 | 128, k) if k.is_multiple_of(64) => (64, 5),
        (32, k) if k.is_multiple_of(64) => (64, 8),
        (16, k) if k.is_multiple_of(64) => (64, 10),
        _ => (DEPTH, 8),
    };
    // What does not fit takes shallower stages first, then fewer.
    while left.stage(16, tile_n, tile_k) * stages as usize > SHARED_BYTES && stages > 2 {
        (tile_k, stages) = if tile_k > 64 { (tile_k / 2, stages * 2) } else { (tile_k, stages - 1) };
    }
    Schedule::Gemm { tile_m: 16, tile_n, tile_k, warps_m: 1, warps_n: (tile_n / 16).min(4), stages }
}
