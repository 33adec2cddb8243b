//! Tiled matrix product that groups of four warps multiply out of shared memory (`wgmma`, PTX ISA 9.7.15).
//!
//! A block makes a tile of 64 rows for each group, by all of its columns. Stages of 64 along k, whose rows of 128 bytes are
//! swizzled, are filled by `cp.async`. One step's products are in flight while the copies of a later one start: so a stage
//! is filled again two steps behind its use, when all groups have waited for its products.

use super::Body;
use super::gemm::{Copied, Tile};
use super::tile_rows;
use super::warp::threads;
use weft_ir::dtype::DType;
use weft_ir::kernel::{Axis, Expr, SWIZZLED_ROW, Stmt, Unroll};
use weft_ir::plan::{EXCHANGED_BYTES, MatMul, Scalar, TiledLeft};

/// Stages that are not on their way while one is used: that one, and the one before.
const USED: u32 = 2;
/// Shared memory of two blocks on a multiprocessor.
const TWO_BLOCKS: u32 = 226 * 1024;
/// Elements along k of an instruction.
const DEPTH: i64 = 16;

/// The tile of so many groups of warps.
///
/// # Errors
/// Groups, columns or stages that no block has.
pub(super) fn tile(groups: u32, columns: u32, stages: u32) -> Result<Tile, String> {
    if !(1..=4).contains(&groups)
        || ![64, 128, 192, 256].contains(&columns)
        || !(USED + 1..=16).contains(&stages)
    {
        return Err(format!("{groups} groups of warps, {columns} columns and {stages} stages"));
    }
    let (m, warps_m) = (groups * 64, groups * 4);
    Ok(Tile { m, n: columns, k: SWIZZLED_ROW, warps_m, warps_n: 1, warps_k: 1, stages })
}

pub(super) fn build(b: &mut Body<'_>, m: &MatMul, tile: &Tile) -> Result<(), String> {
    if m.row.is_some() || m.draw.is_some() || !m.stages.is_empty() {
        return Err("rows, draws or reductions of a product by groups of warps".into());
    }
    let (TiledLeft::Stored(_), Scalar::Load(operand, index)) = (m.tiled_left(&b.work.reads)?, &m.a) else {
        return Err("a computed left operand of a product by groups of warps".into());
    };
    let (a, w) = (operand.index(), m.b.index());
    let (dtype, constant) = (b.work.reads[w].dtype, b.work.reads[w].constant);
    let (steps, ahead) = ((m.k as u32).div_ceil(tile.k), tile.stages - USED);
    let row = i64::from(SWIZZLED_ROW);
    let staged = tile.stages * (tile.m + tile.n) * SWIZZLED_ROW * dtype.size() as u32;
    let bytes = staged + tile.m / 64 * EXCHANGED_BYTES;
    b.k.min_blocks(if 2 * bytes <= TWO_BLOCKS { 2 } else { 1 });
    b.launch_dependents();

    let t = threads(b);
    let first_row = b.k.let_("first_row", DType::I32, Expr::BlockIdx(Axis::X) * i64::from(tile.m));
    let first_column = b.k.let_("first_column", DType::I32, Expr::BlockIdx(Axis::Y) * i64::from(tile.n));
    let rows = (tile.m, first_row.clone(), b.extent(m.m));
    let left = Copied::swizzled(b, ("a_tile", a, index.clone()), tile, rows);
    let columns = (tile.n, first_column.clone(), Expr::int(m.columns() as i64));
    let right = Copied::swizzled(b, ("b_tile", w, vec![Scalar::Coord(0), Scalar::Coord(1)]), tile, columns);
    let acc = b.k.array("acc", DType::F32, tile.n / 2, Some(Expr::float(0.0)));
    let group = b.k.let_("group", DType::I32, t.warp.clone() / 4);

    let stages = || (Expr::int(0), Expr::int(i64::from(ahead)), Expr::int(1));
    if constant {
        b.k.comment("Weights are constant: their copies start before the wait.");
        b.for_loop("stage", stages(), Unroll::Never, |b, stage| {
            right.start(b, tile, m.k, stage.clone(), stage)
        })?;
    }
    b.wait();
    b.for_loop("stage", stages(), Unroll::Never, |b, stage| {
        left.start(b, tile, m.k, stage.clone(), stage.clone())?;
        if !constant {
            right.start(b, tile, m.k, stage.clone(), stage)?;
        }
        b.k.push(Stmt::CpAsyncCommit);
        Ok(())
    })?;
    let range = (Expr::int(0), Expr::int(i64::from(steps)), Expr::int(1));
    b.for_loop("step", range, Unroll::Never, |b, step| {
        b.k.push(Stmt::CpAsyncWait { pending: ahead - 1 });
        b.k.push(Stmt::AsyncProxyFence);
        b.k.push(Stmt::Barrier);
        let stage = b.k.let_("stage", DType::I32, step.clone() % i64::from(tile.stages));
        let a_row = stage.clone() * i64::from(tile.m) + group.clone() * 64;
        let a_base = b.k.let_("a_base", DType::I32, a_row * row);
        let b_base = b.k.let_("b_base", DType::I32, stage * i64::from(tile.n) * row);
        b.k.push(Stmt::WgmmaFence);
        for kk in 0..row / DEPTH {
            let (a_at, b_at) = (a_base.clone() + kk * DEPTH, b_base.clone() + kk * DEPTH);
            let (a, b_) = (left.shared, right.shared);
            b.k.push(Stmt::Wgmma { dtype, acc, columns: tile.n, a, a_at, b: b_, b_at });
        }
        b.k.push(Stmt::WgmmaCommit);
        let next = b.k.let_("next", DType::I32, step + i64::from(ahead));
        let into = b.k.let_("into", DType::I32, next.clone() % i64::from(tile.stages));
        left.start(b, tile, m.k, next.clone(), into.clone())?;
        right.start(b, tile, m.k, next, into)?;
        b.k.push(Stmt::CpAsyncCommit);
        b.k.push(Stmt::WgmmaWait { pending: 1, acc });
        Ok(())
    })?;
    b.k.push(Stmt::WgmmaWait { pending: 0, acc });
    b.k.push(Stmt::CpAsyncWait { pending: 0 });
    let row = first_row + t.warp.clone() * 16;
    let ragged = !m.columns().is_multiple_of(tile.n as usize);
    tile_rows::store(b, m, &t, (acc, tile.n / 8), (row, first_column), ragged)
}
