//! Tiled matrix product on tensor cores: acc[m, n] = Σₖ a[m, k] · b[n, k].
//!
//! A block makes a tile; both operands go through shared memory in stages that `cp.async` fills ahead of
//! use. Rows are padded by 8 elements, so that the eight rows of an `ldmatrix` lie in different banks. Each
//! warp holds its part of the tile as `mma.sync` m16n8k16 accumulators (PTX ISA 9.7.14.5). The left operand may be
//! computed from what is copied ([`super::gemm_left`]). Where the tile has few rows, warps share the k of a stage
//! ([`super::gemm_join`]). Copies of weights start before the dependency wait.

use super::draw::{Drawing, Site};
use super::gemm_left::{Left, Place};
use super::warp::{Threads, threads};
use super::{Body, Point, gemm_join, gemm_row};
use weft_ir::dtype::DType;
use weft_ir::ids::{SharedId, VarId};
use weft_ir::kernel::{Axis, Expr, MatrixCount, Stmt, Unroll};
use weft_ir::plan::{MatMul, Scalar};

/// Tile of a block, its warps, and stages in flight.
pub(super) struct Tile {
    pub m: u32,
    pub n: u32,
    pub k: u32,
    pub warps_m: u32,
    pub warps_n: u32,
    pub warps_k: u32,
    pub stages: u32,
}

impl Tile {
    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        self.warps_m * self.warps_n * self.warps_k * 32
    }
}

/// Elements of 16 bits in a 16-byte copy.
pub(super) const CHUNK: u32 = 8;

/// An array's way to shared memory: [stages, rows, tile.k], rows padded.
pub(super) struct Copied {
    operand: usize,
    /// Index of element (row, k) of the tile, by Coord 0 = row of the operand and Coord 1 = k.
    index: Vec<Scalar>,
    pub shared: SharedId,
    /// Rows of the tile.
    pub rows: u32,
    /// First row of the tile in the operand.
    first: Expr,
    /// Rows of the operand.
    count: Expr,
}

impl Copied {
    /// Declares its shared memory; `rows`: those of the tile, its first one, and those there are.
    pub fn declare(
        b: &mut Body<'_>,
        (name, operand, index): (&str, usize, Vec<Scalar>),
        tile: &Tile,
        (rows, first, count): (u32, Expr, Expr),
    ) -> Copied {
        let dtype = b.work.reads[operand].dtype;
        let shared = b.k.shared(name, dtype, tile.stages * rows * (tile.k + CHUNK));
        Copied { operand, index, shared, rows, first, count }
    }

    /// Starts the copies of a step of k into a stage. Rows and columns past the end are filled with zeros.
    fn start(&self, b: &mut Body<'_>, tile: &Tile, k: usize, step: Expr, stage: Expr) -> Result<(), String> {
        let operand = &b.work.reads[self.operand];
        let (shape, piece) = (operand.shape.clone(), 16 / operand.dtype.size() as u32);
        let threads = tile.threads();
        let across = tile.k / piece;
        let chunks = self.rows * across;
        let pitch = i64::from(tile.k + CHUNK);
        b.each_chunk((chunks, threads), |b, chunk| {
            let row = b.k.let_("row", DType::I32, chunk.clone() / i64::from(across));
            let column = chunk.clone() % i64::from(across) * i64::from(piece);
            let column = b.k.let_("column", DType::I32, column);
            let from = b.k.let_("from", DType::I32, self.first.clone() + row.clone());
            let at_k = b.k.let_("at_k", DType::I32, step * i64::from(tile.k) + column.clone());
            let valid = from.clone().lt(self.count.clone()).and(at_k.clone().lt(Expr::int(k as i64)));
            let shared_index = (stage * i64::from(self.rows) + row) * pitch + column;
            // Where a row is looked up, the last one stands for those past the end.
            let looked_up = self.index.iter().any(|i| !matches!(i, Scalar::Coord(_) | Scalar::Int(_)));
            let from = if looked_up { from.min(self.count.clone() - 1) } else { from };
            let point = Point::at(vec![from, at_k]);
            let at: Result<Vec<Expr>, String> = self.index.iter().map(|i| b.lower(i, &point)).collect();
            let global_index = b.flat(&shape, &at?);
            b.k.push(Stmt::CpAsync {
                shared: self.shared,
                shared_index,
                global: b.reads[self.operand],
                global_index,
                bytes: 16,
                valid: Some(valid),
            });
            Ok(())
        })
    }
}

pub(super) fn build(b: &mut Body<'_>, m: &MatMul, tile: &Tile) -> Result<(), String> {
    let w = m.b.index();
    let dtype = b.work.reads[w].dtype;
    let (wm, wn) = (tile.m / tile.warps_m, tile.n / tile.warps_n);
    let (mt, nt) = (wm / 16, wn / 8);
    let fragments = tile.k / 16;
    if wm % 16 != 0 || wn % 16 != 0 || !tile.k.is_multiple_of(16) || !fragments.is_multiple_of(tile.warps_k) {
        return Err(format!(
            "a warp's tile of {wm}×{wn}×{} by {} is not whole fragments",
            tile.k, tile.warps_k
        ));
    }
    let steps = (m.k as u32).div_ceil(tile.k);
    // Where all of k is on its way at once, no stage is filled again.
    let refilled = steps > tile.stages;
    let ahead = if refilled { tile.stages.saturating_sub(1) } else { steps };
    if ahead == 0 {
        return Err(format!("one stage of {} for k = {}", tile.k, m.k));
    }
    b.launch_dependents();

    let t = threads(b);
    let first_row = b.k.let_("first_row", DType::I32, Expr::BlockIdx(Axis::Y) * i64::from(tile.m));
    let first_column = b.k.let_("first_column", DType::I32, Expr::BlockIdx(Axis::X) * i64::from(tile.n));
    let (mut left, mut copies) = Left::declare(b, m, tile, &first_row)?;
    let columns = (tile.n, first_column.clone(), Expr::int(m.columns() as i64));
    let right = Copied::declare(b, ("b_tile", w, vec![Scalar::Coord(0), Scalar::Coord(1)]), tile, columns);
    let b_shared = right.shared;
    let site = Site {
        rows: tile.m,
        warps: tile.threads() / 32,
        blocks: (m.columns() as u32).div_ceil(tile.n),
        block: Expr::BlockIdx(Axis::X),
        row_block: Expr::BlockIdx(Axis::Y),
        groups: tile.threads() / 32,
        each: gemm_join::LANES_OF_ROW,
        bests: mt * 2,
    };
    let drawing = Drawing::declare(b, m, site)?;
    if drawing.is_some() {
        if tile.warps_m > 1 {
            return Err("draws from tiles of several warps along the rows".into());
        }
        // Told nothing, ptxas leaves the passes over a row too few registers, and spills.
        b.k.min_blocks(1);
    }
    let pitch = tile.k + CHUNK;
    let acc = b.k.array("acc", DType::F32, mt * nt * 4, Some(Expr::float(0.0)));
    left.start(b, m, mt);

    let constant = b.work.reads[w].constant;
    // A tile of few rows is a step of few: its first copies are not to wait. Elsewhere unrolled code only compiles longer.
    let unroll = if tile.m > 16 { Unroll::Never } else { Unroll::Full };
    let stages = || (Expr::int(0), Expr::int(i64::from(ahead)), Expr::int(1));
    if constant {
        b.k.comment("Weights are constant: their copies start before the wait.");
        b.for_loop("stage", stages(), unroll, |b, stage| right.start(b, tile, m.k, stage.clone(), stage))?;
    }
    b.wait();
    b.for_loop("stage", stages(), unroll, |b, stage| {
        let rest = copies.iter().chain((!constant).then_some(&right));
        rest.into_iter().try_for_each(|c| c.start(b, tile, m.k, stage.clone(), stage.clone()))?;
        b.k.push(Stmt::CpAsyncCommit);
        Ok(())
    })?;
    copies.push(right);
    let warps = tile.warps_m * tile.warps_n;
    let (part, warp) = match tile.warps_k {
        1 => (Expr::int(0), t.warp.clone()),
        _ => {
            let part = b.k.let_("part", DType::I32, t.warp.clone() / i64::from(warps));
            (part, if warps == 1 { Expr::int(0) } else { t.warp.clone() % i64::from(warps) })
        }
    };
    let warp_m = b.k.let_("warp_m", DType::I32, warp.clone() / i64::from(tile.warps_n) * i64::from(wm));
    let warp_n = b.k.let_("warp_n", DType::I32, warp.clone() % i64::from(tile.warps_n) * i64::from(wn));
    let range = (Expr::int(0), Expr::int(i64::from(steps)), Expr::int(1));
    b.for_loop("step", range, Unroll::Never, |b, step| {
        b.k.push(Stmt::CpAsyncWait { pending: ahead - 1 });
        b.k.push(Stmt::Barrier);
        if refilled {
            let next = b.k.let_("next", DType::I32, step.clone() + i64::from(ahead));
            let into = next.clone() % i64::from(tile.stages);
            copies.iter().try_for_each(|c| c.start(b, tile, m.k, next.clone(), into.clone()))?;
        }
        b.k.push(Stmt::CpAsyncCommit);
        let stage = if refilled { step.clone() % i64::from(tile.stages) } else { step.clone() };
        let stage = b.k.let_("stage", DType::I32, stage);
        let b_base = (stage.clone() * i64::from(tile.n) + warp_n.clone()) * i64::from(pitch);
        let b_base = b.k.let_("b_base", DType::I32, b_base);
        let own = fragments / tile.warps_k;
        let along = (Expr::int(0), Expr::int(i64::from(own)), Expr::int(1));
        // So many products of one step keep the tensor cores busy.
        let unroll = if mt * nt >= 32 { Unroll::By(2) } else { left.unroll() };
        b.for_loop("kk", along, unroll, |b, kk| {
            let kk = if tile.warps_k == 1 { kk } else { part.clone() * i64::from(own) + kk };
            let (stage, step, warp_row, first_row) = (&stage, &step, &warp_m, &first_row);
            let place = Place { stage, step, kk: kk.clone(), warp_row, first_row };
            let a_regs = left.fragments(b, m, (&t, tile), mt, &place)?;
            let b_regs = load_b(b, &t, b_shared, b_base + kk * 16, nt, pitch)?;
            multiply(b, dtype, acc, a_regs, b_regs, mt, nt)
        })
    })?;
    b.k.push(Stmt::CpAsyncWait { pending: 0 });
    if tile.warps_k > 1 || drawing.is_some() {
        if m.row.is_some() {
            return Err("a row epilogue of warps that share k".into());
        }
        let (local_row, column) = (warp_m, first_column + warp_n);
        let (parts, fragments) = (tile.warps_k, (mt, nt));
        let part =
            gemm_join::Part { parts, part, warps, warp, t, fragments, acc, first_row, local_row, column };
        return gemm_join::store(b, m, &left, &part, drawing.as_ref());
    }
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
    let reduced = left.reduced(b, m, mt)?;
    store_tile(b, m, &t, (acc, &reduced), (mt, nt), first_row + warp_m, first_column + warp_n)
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
    (acc, reduced): (VarId, &[VarId]),
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
                let first = (mi.clone() * i64::from(nt) + ni) * 4 + i.clone() * m.group as i64;
                let acc = (0..m.group as i64).map(|g| Expr::elem(acc, first.clone() + g)).collect();
                let slot = mi * 2 + i / points;
                let reduced = reduced.iter().map(|&v| Expr::elem(v, slot.clone())).collect();
                let at = Point { coords: vec![r, point], acc, reduced, ..Point::default() };
                b.if_then(inside, |b| b.stores(&m.stores, &at))
            })
        })
    })
}
