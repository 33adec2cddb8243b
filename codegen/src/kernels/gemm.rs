//! Tiled matrix product on tensor cores: acc[m, n] = Σₖ a[m, k] · b[n, k].
//!
//! A block makes a tile; both operands go through shared memory in stages that `cp.async` fills ahead of
//! use. Rows are padded by 16 bytes, so that the eight rows of an `ldmatrix` lie in different banks. Each
//! warp holds its part of the tile as `mma.sync` m16n8k16 accumulators (PTX ISA 9.7.14.5).

use super::warp::{Threads, threads};
use super::{Body, Point, gemm_row};
use weft_ir::dtype::DType;
use weft_ir::ids::{SharedId, VarId};
use weft_ir::kernel::{Axis, Expr, MatrixCount, Mem, Stmt, Unroll};
use weft_ir::plan::MatMul;
use weft_ir::shape::Shape;

/// Tile of a block, its warps, and stages in flight.
pub(super) struct Tile {
    pub m: u32,
    pub n: u32,
    pub k: u32,
    pub warps_m: u32,
    pub warps_n: u32,
    pub stages: u32,
}

/// Elements of 16 bits in a 16-byte copy.
pub(super) const CHUNK: u32 = 8;

/// One operand's way to shared memory.
struct Operand {
    mem: Mem,
    shape: Shape,
    shared: SharedId,
    /// Rows of the tile.
    rows: u32,
    /// First row of the tile in the operand.
    first: Expr,
    /// Rows of the operand.
    count: Expr,
}

pub(super) fn build(b: &mut Body<'_>, m: &MatMul, tile: &Tile) -> Result<(), String> {
    let a = m.plain_left().ok_or("the left operand is not an array")?;
    if !m.stages.is_empty() {
        return Err("row reductions beside the product".into());
    }
    let (a, w) = (a.index(), m.b.index());
    let dtype = b.work.reads[w].dtype;
    let (wm, wn) = (tile.m / tile.warps_m, tile.n / tile.warps_n);
    let (mt, nt) = (wm / 16, wn / 8);
    if wm % 16 != 0 || wn % 16 != 0 || !tile.k.is_multiple_of(16) {
        return Err(format!("a warp's tile of {wm}×{wn}×{} is not whole fragments", tile.k));
    }
    let pitch = tile.k + CHUNK;
    let a_shared = b.k.shared("a_tile", dtype, tile.stages * tile.m * pitch);
    let b_shared = b.k.shared("b_tile", dtype, tile.stages * tile.n * pitch);
    b.wait_for_dependencies();

    let t = threads(b);
    let first_row = b.k.let_("first_row", DType::I32, Expr::BlockIdx(Axis::Y) * i64::from(tile.m));
    let first_column = b.k.let_("first_column", DType::I32, Expr::BlockIdx(Axis::X) * i64::from(tile.n));
    let operands = [
        Operand {
            mem: b.reads[a],
            shape: b.work.reads[a].shape.clone(),
            shared: a_shared,
            rows: tile.m,
            first: first_row.clone(),
            count: b.extent(m.m),
        },
        Operand {
            mem: b.reads[w],
            shape: b.work.reads[w].shape.clone(),
            shared: b_shared,
            rows: tile.n,
            first: first_column.clone(),
            count: Expr::int(m.columns() as i64),
        },
    ];
    let steps = (m.k as u32).div_ceil(tile.k);
    let ahead = tile.stages - 1;
    let acc = b.k.array("acc", DType::F32, mt * nt * 4, Some(Expr::float(0.0)));

    b.k.comment("Fill all stages but one.");
    b.unrolled("stage", ahead, |b, stage| {
        for o in &operands {
            copy_tile(b, o, tile, m.k, stage.clone(), stage.clone())?;
        }
        b.k.push(Stmt::CpAsyncCommit);
        Ok(())
    })?;
    let warp_m = b.k.let_("warp_m", DType::I32, t.warp.clone() / i64::from(tile.warps_n) * i64::from(wm));
    let warp_n = b.k.let_("warp_n", DType::I32, t.warp.clone() % i64::from(tile.warps_n) * i64::from(wn));
    let range = (Expr::int(0), Expr::int(i64::from(steps)), Expr::int(1));
    b.for_loop("step", range, Unroll::Never, |b, step| {
        b.k.push(Stmt::CpAsyncWait { pending: ahead - 1 });
        b.k.push(Stmt::Barrier);
        let next = b.k.let_("next", DType::I32, step.clone() + i64::from(ahead));
        for o in &operands {
            let stage = next.clone() % i64::from(tile.stages);
            copy_tile(b, o, tile, m.k, next.clone(), stage)?;
        }
        b.k.push(Stmt::CpAsyncCommit);
        let stage = b.k.let_("stage", DType::I32, step % i64::from(tile.stages));
        let (pm, pn) = (i64::from(tile.m * pitch), i64::from(tile.n * pitch));
        let a_base = stage.clone() * pm + warp_m.clone() * i64::from(pitch);
        let a_base = b.k.let_("a_base", DType::I32, a_base);
        let b_base = stage * pn + warp_n.clone() * i64::from(pitch);
        let b_base = b.k.let_("b_base", DType::I32, b_base);
        b.unrolled("kk", tile.k / 16, |b, kk| {
            let a_regs = load_a(b, &t, a_shared, a_base + kk.clone() * 16, mt, pitch)?;
            let b_regs = load_b(b, &t, b_shared, b_base + kk * 16, nt, pitch)?;
            multiply(b, dtype, acc, a_regs, b_regs, mt, nt)
        })
    })?;
    b.k.push(Stmt::CpAsyncWait { pending: 0 });
    if let Some(epilogue) = &m.row {
        let tile = gemm_row::Tile {
            acc,
            fragments: (mt, nt),
            rows: tile.m,
            warps_n: tile.warps_n,
            columns: tile.n,
            first_row,
            warp_row: warp_m,
            warp_column: warp_n,
        };
        return gemm_row::store(b, m, epilogue, &t, &tile);
    }
    store_tile(b, m, &t, acc, (mt, nt), first_row + warp_m, first_column + warp_n)
}

/// Starts the copies of one operand's rows for a step of k into a stage. Rows and columns past the end
/// are filled with zeros.
fn copy_tile(
    b: &mut Body<'_>,
    o: &Operand,
    tile: &Tile,
    k: usize,
    step: Expr,
    stage: Expr,
) -> Result<(), String> {
    let threads = tile.warps_m * tile.warps_n * 32;
    let across = tile.k / CHUNK;
    let chunks = o.rows * across;
    let pitch = i64::from(tile.k + CHUNK);
    b.unrolled("i", chunks.div_ceil(threads), |b, i| {
        let chunk = i * i64::from(threads) + Expr::ThreadIdx;
        let chunk = b.k.let_("chunk", DType::I32, chunk);
        let copy = |b: &mut Body<'_>| -> Result<(), String> {
            let row = b.k.let_("row", DType::I32, chunk.clone() / i64::from(across));
            let column = chunk.clone() % i64::from(across) * i64::from(CHUNK);
            let column = b.k.let_("column", DType::I32, column);
            let from = b.k.let_("from", DType::I32, o.first.clone() + row.clone());
            let at_k = b.k.let_("at_k", DType::I32, step * i64::from(tile.k) + column.clone());
            let valid = from.clone().lt(o.count.clone()).and(at_k.clone().lt(Expr::int(k as i64)));
            let shared_index = (stage * i64::from(o.rows) + row) * pitch + column;
            let global_index = b.flat(&o.shape, &[from, at_k]);
            b.k.push(Stmt::CpAsync {
                shared: o.shared,
                shared_index,
                global: o.mem,
                global_index,
                bytes: 16,
                valid: Some(valid),
            });
            Ok(())
        };
        if chunks.is_multiple_of(threads) {
            copy(b)
        } else {
            b.if_then(chunk.clone().lt(Expr::int(i64::from(chunks))), copy)
        }
    })
}

/// Loads `mt` 16×16 fragments of A: the four matrices of an `ldmatrix.x4` are its quarters.
pub(super) fn load_a(
    b: &mut Body<'_>,
    t: &Threads,
    shared: SharedId,
    base: Expr,
    mt: u32,
    pitch: u32,
) -> Result<VarId, String> {
    let regs = b.k.array("a", DType::U32, mt * 4, None);
    b.unrolled("mi", mt, |b, mi| {
        let row = mi.clone() * 16 + t.lane.clone() % 16;
        let index = base.clone() + row * i64::from(pitch) + t.lane.clone() / 16 * 8;
        b.k.push(Stmt::LdMatrix {
            dst: regs,
            dst_at: mi * 4,
            shared,
            index,
            count: MatrixCount::X4,
            transpose: false,
        });
        Ok(())
    })?;
    Ok(regs)
}

/// Loads `nt` 16×8 fragments of B, two an `ldmatrix.x4`: B is stored as [n, k], which is the column-major
/// order that the instruction wants.
pub(super) fn load_b(
    b: &mut Body<'_>,
    t: &Threads,
    shared: SharedId,
    base: Expr,
    nt: u32,
    pitch: u32,
) -> Result<VarId, String> {
    let regs = b.k.array("b", DType::U32, nt * 2, None);
    b.unrolled("nj", nt / 2, |b, nj| {
        let row = nj.clone() * 16 + t.lane.clone() / 16 * 8 + t.lane.clone() % 8;
        let index = base.clone() + row * i64::from(pitch) + t.lane.clone() / 8 % 2 * 8;
        b.k.push(Stmt::LdMatrix {
            dst: regs,
            dst_at: nj * 4,
            shared,
            index,
            count: MatrixCount::X4,
            transpose: false,
        });
        Ok(())
    })?;
    Ok(regs)
}

pub(super) fn multiply(
    b: &mut Body<'_>,
    dtype: DType,
    acc: VarId,
    a_regs: VarId,
    b_regs: VarId,
    mt: u32,
    nt: u32,
) -> Result<(), String> {
    b.unrolled("mi", mt, |b, mi| {
        b.unrolled("ni", nt, |b, ni| {
            b.k.push(Stmt::Mma {
                dtype,
                acc,
                acc_at: (mi.clone() * i64::from(nt) + ni.clone()) * 4,
                a: a_regs,
                a_at: mi * 4,
                b: b_regs,
                b_at: ni * 2,
            });
            Ok(())
        })
    })
}

/// Epilogue: accumulator i of a fragment is row lane/4 + 8·(i/2), column lane%4·2 + i%2. The points of a
/// group of two are the halves of such a pair.
fn store_tile(
    b: &mut Body<'_>,
    m: &MatMul,
    t: &Threads,
    acc: VarId,
    (mt, nt): (u32, u32),
    row: Expr,
    column: Expr,
) -> Result<(), String> {
    let rows = b.extent(m.m);
    let row = b.k.let_("row", DType::I32, row + t.lane.clone() / 4);
    let column = b.k.let_("column", DType::I32, column + t.lane.clone() % 4 * 2);
    b.unrolled("mi", mt, |b, mi| {
        b.unrolled("ni", nt, |b, ni| {
            // A lane has two neighbouring columns of a row: two points, or both accumulators of one.
            let points = 2 / m.group as i64;
            b.unrolled("i", 2 * points as u32, |b, i| {
                let r = row.clone() + mi.clone() * 16 + i.clone() / points * 8;
                let r = b.k.let_("r", DType::I32, r);
                let c = column.clone() + ni.clone() * 8;
                let point = if points == 2 { c + i.clone() % 2 } else { c / 2 };
                let point = b.k.let_("c", DType::I32, point);
                let inside = r.clone().lt(rows).and(point.clone().lt(Expr::int(m.n as i64)));
                let first = (mi.clone() * i64::from(nt) + ni) * 4 + i * m.group as i64;
                let acc = (0..m.group as i64).map(|g| Expr::elem(acc, first.clone() + g)).collect();
                let at = Point { coords: vec![r, point], acc, ..Point::default() };
                b.if_then(inside, |b| b.stores(&m.stores, &at))
            })
        })
    })
}
