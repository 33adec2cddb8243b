//! Tiles of matrix products on tensor cores.

use weft_ir::dtype::DType;
use weft_ir::ids::OperandId;
use weft_ir::kernel::SWIZZLED_ROW;
use weft_ir::plan::{EXCHANGED_BYTES, MatMul, Scalar, Schedule, TiledLeft, Work};
use weft_ir::shape::Dim;
use weft_ir::target::Target;

/// Most shared memory of a block: what every target has, but for what they reserve.
const SHARED_BYTES: usize = 96 * 1024;
/// Elements that pad a row in shared memory.
const PAD: usize = 8;
/// Deepest stage whose depth need not divide k.
const DEPTH: u32 = 32;

/// What a tile's left operand brings to shared memory.
pub(super) struct Left {
    /// Whether it is copied as it is stored, and both operands are matrices of k columns that the epilogue does not read:
    /// tiles are all that is taken of them.
    matrices: bool,
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
        TiledLeft::Stored(a) => {
            let whole = |o: &OperandId| work.reads[o.index()].shape.last() == Some(&Dim::Const(m.k));
            let mut matrices = [a, m.b].iter().all(whole);
            for s in &m.stores {
                s.index.iter().chain([&s.value]).chain(&s.guard).for_each(|part| {
                    part.visit(&mut |x| matrices &= !matches!(x, Scalar::Load(o, _) if [a, m.b].contains(o)));
                });
            }
            return Ok(Left { matrices, of_row: dtype.size(), of_all: 0 });
        }
        TiledLeft::Computed(loads) => loads,
    };
    let mut left = Left { matrices: false, of_row: 0, of_all: 0 };
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
        return short_rows(m, left, target);
    }
    if let Some(schedule) = warpgroups(m, left, rows, target) {
        return schedule;
    }
    if rows > 32 && rows <= 64 {
        return one_tile_of_rows(m, left, target);
    }
    let (tile_m, tile_n, warps_m, warps_n) = if rows <= 32 || blocks(64, 64) < sms {
        (32, 64, 2, 2)
    } else if blocks(128, 128) >= sms {
        // Fragments of 64 × 64: each is read from shared memory for four products, not two or three. Where points go to
        // several arrays, the epilogue of so many of a thread is long code: NVRTC takes 2.5 times as long.
        if m.stores.len() > 1 { (128, 128, 2, 4) } else { (128, 128, 2, 2) }
    } else {
        (64, 64, 2, 2)
    };
    // Small tiles need more of them on the way.
    let most = if tile_m < 128 { 6 } else { 3 };
    let deep = (3..=most).rev().map(|stages| (LINE, stages)).filter(|_| m.k.is_multiple_of(LINE as usize));
    let choices = deep.chain([(DEPTH, 4), (DEPTH, 3), (DEPTH, 2)]);
    // Two blocks an SM, where the target has room for them.
    let room = SHARED_BYTES.max(target.shared_bytes as usize / 2 - 1024);
    let fits = |&(depth, stages): &(u32, u32)| left.stage(tile_m, tile_n, depth) * stages as usize <= room;
    let (tile_k, stages) = choices.into_iter().find(fits).unwrap_or((DEPTH, 2));
    Schedule::Gemm { tile_m, tile_n, tile_k, warps_m, warps_n, warps_k: 1, stages }
}

/// Tiles that groups of four warps multiply out of shared memory, where there are enough of them: those that leave the
/// busiest multiprocessor done first, by what its tensor cores and its shared memory take.
fn warpgroups(m: &MatMul, left: &Left, rows: usize, target: &Target) -> Option<Schedule> {
    let tiles_alone = left.matrices && m.stages.is_empty();
    if !target.features.wgmma
        || !target.features.tma
        || !tiles_alone
        || m.row.is_some()
        || m.draw.is_some()
        || rows <= 32
    {
        return None;
    }
    let sms = target.profile.sms as usize;
    let tiles = |groups: usize, n: usize| rows.div_ceil(64 * groups) * m.columns().div_ceil(n);
    let steps = m.k.div_ceil(SWIZZLED_ROW as usize);
    let cycles = |&(groups, n): &(usize, usize)| {
        // A stage: 64·n·64 products a group at 2048 a cycle, or 128 bytes a cycle of what is copied and what is read.
        let products = 2 * groups * n;
        let bytes = (64 * groups + n) + groups * (64 + n);
        tiles(groups, n).div_ceil(sms) * (steps * products.max(bytes).max(LEAST) + BEGIN + EACH * groups * n)
    };
    let all = [2, 1].into_iter().flat_map(|groups| [256, 192, 128, 64].map(|n| (groups, n)));
    let (groups, n) = all.min_by_key(cycles)?;
    if ENOUGH * tiles(groups, n) < sms {
        return None;
    }
    let stage = (64 * groups + n) * 2 * SWIZZLED_ROW as usize;
    let stages = |blocks: usize| {
        ((target.shared_bytes as usize + 1024) / blocks - 2048 - groups * EXCHANGED_BYTES as usize) / stage
    };
    let two = tiles(groups, n) > sms && stages(2) >= 4;
    let stages = stages(if two { 2 } else { 1 });
    Some(Schedule::WarpgroupGemm { groups: groups as u32, tile_n: n as u32, stages: stages.min(8) as u32 })
}

/// Cycles until a tile's first stage is there, and of its epilogue for each group and column: estimated, not measured.
const BEGIN: usize = 2000;
const EACH: usize = 8;
/// Cycles of a step of narrow tiles: its barriers and the start of its copies.
const LEAST: usize = 300;
/// Multiprocessors to one tile, at most.
const ENOUGH: usize = 5;

/// Tiles of at most 16 rows stream the weight like a decode step: the bytes that the busiest multiprocessor reads are to
/// be few, those of the left operand among them, which every block reads; and each must keep much of them on the way.
/// The warps of a block share k, so few of them make the same element of a computed left operand.
fn short_rows(m: &MatMul, left: &Left, target: &Target) -> Schedule {
    let sms = target.profile.sms as usize;
    let blocks = |tile_n: u32| m.columns().div_ceil(tile_n as usize);
    // Bytes of a step of k: those of the left operand come from L2, and count half.
    let bytes = |tile_n: u32| tile_n as usize * 2 + 16 * left.of_row / 2;
    let busiest = |tile_n: &u32| blocks(*tile_n).div_ceil(sms) * bytes(*tile_n);
    let tile_n = WIDTHS.into_iter().min_by_key(busiest).unwrap_or(16);
    let warps_n = match tile_n {
        0..=48 => 1,
        49..=96 => 2,
        _ => 4,
    };
    let Share { tile_k, stages, parts } = share(m, left, (tile_n, warps_n), room(blocks(tile_n), target));
    Schedule::Gemm { tile_m: 16, tile_n, tile_k, warps_m: 1, warps_n, warps_k: parts, stages }
}

/// Tiles of 64 rows, where there are no more: every block reads all of the left operand, so tiles are as wide as leaves
/// two thirds of the multiprocessors a block. Narrow ones have little to do between two stages, and as many warps share k.
fn one_tile_of_rows(m: &MatMul, left: &Left, target: &Target) -> Schedule {
    let (tile_m, sms) = (64, target.profile.sms as usize);
    let enough = |tile_n: &u32| 3 * m.columns().div_ceil(*tile_n as usize) >= 2 * sms;
    let tile_n = [128, 64].into_iter().find(enough).unwrap_or(32);
    let (warps_m, warps_n) = if tile_n == 32 { (2, 1) } else { (2, 2) };
    // Two blocks of the wide ones are on a multiprocessor, one of the others.
    let (all, two) = (target.shared_bytes as usize, target.shared_bytes as usize / 2 - 1024);
    let room = if tile_n == 128 { two } else { all - all / 20 }.max(SHARED_BYTES.min(all));
    let most = if tile_n == 128 { 1 } else { WARPS / (warps_m * warps_n) };
    let choices = [most, most / 2, 1].into_iter().filter(|parts| *parts > 0).flat_map(|parts| {
        let deepest = if parts > 1 { 2 * LINE } else { LINE };
        [(parts, deepest), (parts, DEPTH)]
    });
    // What the warps leave for each other: accumulators and row sums of all lanes.
    let joined = |parts: u32| {
        if parts > 1 { parts * tile_m * (tile_n + 4 * warps_n * m.stages.len() as u32) * 4 } else { 0 }
    };
    let stages = |(parts, tile_k): (u32, u32)| {
        (room.saturating_sub(joined(parts) as usize) / left.stage(tile_m, tile_n, tile_k)).min(8) as u32
    };
    let fits =
        |&(parts, tile_k): &(u32, u32)| (tile_k / 16).is_multiple_of(parts) && stages((parts, tile_k)) >= 3;
    let (warps_k, tile_k) = choices.into_iter().find(fits).unwrap_or((1, DEPTH));
    let stages = stages((warps_k, tile_k)).clamp(2, (m.k as u32).div_ceil(tile_k).max(2));
    Schedule::Gemm { tile_m, tile_n, tile_k, warps_m, warps_n, warps_k, stages }
}

/// Columns of a tile of at most 16 rows, the most first.
const WIDTHS: [u32; 6] = [128, 96, 64, 48, 32, 16];

/// How a block goes through k.
struct Share {
    tile_k: u32,
    stages: u32,
    /// Warps that share a stage.
    parts: u32,
}

/// Most warps of a block of such a tile.
const WARPS: u32 = 8;
/// Shared memory of a block that draws.
const DRAW_BYTES: usize = 14 * 1024;
/// Elements of a line of the cache.
const LINE: u32 = 64;
/// Fewest stages where not all of k is on its way at once: four are copied while one is used.
const STAGES: u32 = 5;

/// Shared memory of a block, where there are so many: nearly all where a multiprocessor has one, since it is what the
/// block has on the way; what is left is for the first block of the next kernel, if that is small.
fn room(blocks: usize, target: &Target) -> usize {
    let all = target.shared_bytes as usize;
    let most = if blocks <= target.profile.sms as usize { all - all / 20 } else { all / 2 - 1024 };
    most.max(SHARED_BYTES.min(all))
}

/// All of k in one stage where that fits, so that a block waits once; else the deepest stages of which enough fit.
fn share(m: &MatMul, left: &Left, (tile_n, warps_n): (u32, u32), room: usize) -> Share {
    let most = (WARPS / warps_n).max(1);
    let parts = |tile_k: u32| (1..=most).rev().find(|p| (tile_k / 16).is_multiple_of(*p)).unwrap_or(1);
    // What the warps leave for each other: accumulators and row sums of 32 lanes.
    let joined = |parts: u32| {
        let sums = parts * (tile_n / 2 + 2 * warps_n * m.stages.len() as u32) * 128;
        sums as usize + if m.draw.is_some() { DRAW_BYTES } else { 0 }
    };
    let stages = |tile_k: u32| {
        let room = room.saturating_sub(joined(parts(tile_k)));
        (room / left.stage(16, tile_n, tile_k)) as u32
    };
    let whole = (m.k as u32).next_multiple_of(16);
    if stages(whole) >= 1 {
        return Share { tile_k: whole, stages: 1, parts: parts(whole) };
    }
    // Rows of whole lines of the cache come first.
    let deepest = |&tile_k: &u32| {
        let enough = if tile_k <= LINE { 3 } else { STAGES };
        (whole.is_multiple_of(tile_k) || tile_k <= LINE)
            && 2 * parts(tile_k) > most
            && stages(tile_k) >= enough
    };
    let depths = (1..=32).rev().map(|fragments| fragments * 16);
    let tile_k = depths.into_iter().find(deepest).unwrap_or(DEPTH);
    let stages = stages(tile_k).max(2).min(whole.div_ceil(tile_k));
    Share { tile_k, stages, parts: parts(tile_k) }
}
