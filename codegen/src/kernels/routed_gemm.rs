//! Products with chosen matrices on tensor cores: a block takes a tile of columns of one matrix, and tiles of the
//! pairs that chose it, which a grouping on the device put next to each other.
//!
//! Rows of the left operand are gathered by `cp.async` as they are copied to shared memory; for the rest a tile is
//! made as in [`super::gemm`], with one set of accumulators for each weight. Where a matrix has no pairs, its
//! blocks end at once.

use super::gemm::{self, CHUNK, Tile};
use super::warp::{Threads, threads};
use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::ids::{SharedId, VarId};
use weft_ir::kernel::{Axis, Expr, Mem, Stmt, Unroll};
use weft_ir::plan::{Grouped, Routed};
use weft_ir::shape::{Dim, Shape};

/// What copies and products of a tile need.
struct Kernel<'a> {
    r: &'a Routed,
    tile: &'a Tile,
    /// The tile's pairs; past the end, pair 0.
    pairs: SharedId,
    a: SharedId,
    weights: Vec<SharedId>,
    a_shape: Shape,
    b_shape: Shape,
    expert: Expr,
    first_column: Expr,
    t: Threads,
}

pub(super) fn build(b: &mut Body<'_>, r: &Routed, tile: &Tile, split: u32) -> Result<(), String> {
    let Grouped { order, begins } = r.grouped.ok_or("pairs are not sorted")?;
    let weight = r.weights.first().ok_or("no weights")?.index();
    let dtype = b.work.reads[weight].dtype;
    if b.work.reads[r.a.index()].dtype != dtype {
        return Err("operands of different types".into());
    }
    let (wm, wn) = (tile.m / tile.warps_m, tile.n / tile.warps_n);
    if wm % 16 != 0 || wn % 16 != 0 || !tile.k.is_multiple_of(16) {
        return Err(format!("a warp's tile of {wm}×{wn}×{} is not whole fragments", tile.k));
    }
    let pitch = tile.k + CHUNK;
    let a = b.k.shared("a_tile", dtype, tile.stages * tile.m * pitch);
    let weights = r.weights.iter().map(|_| b.k.shared("b_tile", dtype, tile.stages * tile.n * pitch));
    let weights = weights.collect();
    let pairs = b.k.shared("pairs", DType::I32, tile.m);
    b.wait_for_dependencies();
    let t = threads(b);
    let expert = b.k.let_("expert", DType::I32, Expr::BlockIdx(Axis::Y));
    let first_column = b.k.let_("first_column", DType::I32, Expr::BlockIdx(Axis::X) * i64::from(tile.n));
    let begins = b.reads[begins.index()];
    let begin = b.k.let_("begin", DType::I32, Expr::load(begins, expert.clone()));
    let end = b.k.let_("end", DType::I32, Expr::load(begins, expert.clone() + 1));
    let k = Kernel {
        r,
        tile,
        pairs,
        a,
        weights,
        a_shape: b.work.reads[r.a.index()].shape.clone(),
        b_shape: b.work.reads[weight].shape.clone(),
        expert,
        first_column,
        t,
    };
    let from = begin + Expr::BlockIdx(Axis::Z) * i64::from(tile.m);
    let along = (from, end.clone(), Expr::int(i64::from(split * tile.m)));
    let order = b.reads[order.index()];
    b.for_loop("first_pair", along, Unroll::Never, |b, first| {
        b.k.push(Stmt::Barrier);
        let threads = i64::from(tile.warps_m * tile.warps_n * 32);
        let rows = (Expr::ThreadIdx, Expr::int(tile.m.into()), Expr::int(threads));
        b.for_loop("i", rows, Unroll::Never, |b, i| {
            let at = b.k.let_("at", DType::I32, first.clone() + i.clone());
            let pair = at.clone().lt(end.clone()).select(Expr::load(order, at), Expr::int(0));
            b.k.store(Mem::Shared(pairs), i, pair);
            Ok(())
        })?;
        b.k.push(Stmt::Barrier);
        let count = b.k.let_("count", DType::I32, end.clone() - first);
        k.tile(b, dtype, count)
    })
}

impl Kernel<'_> {
    /// One tile: `count` of its pairs are there.
    fn tile(&self, b: &mut Body<'_>, dtype: DType, count: Expr) -> Result<(), String> {
        let tile = self.tile;
        let (wm, wn) = (tile.m / tile.warps_m, tile.n / tile.warps_n);
        let (mt, nt) = (wm / 16, wn / 8);
        let pitch = tile.k + CHUNK;
        let steps = (self.r.k as u32).div_ceil(tile.k);
        let ahead = tile.stages - 1;
        let zero = Some(Expr::float(0.0));
        let acc: Vec<VarId> =
            self.weights.iter().map(|_| b.k.array("acc", DType::F32, mt * nt * 4, zero.clone())).collect();
        b.unrolled("stage", ahead, |b, stage| {
            self.copy(b, stage.clone(), stage, &count)?;
            b.k.push(Stmt::CpAsyncCommit);
            Ok(())
        })?;
        let warp = self.t.warp.clone();
        let warp_m = warp.clone() / i64::from(tile.warps_n) * i64::from(wm);
        let warp_m = b.k.let_("warp_m", DType::I32, warp_m);
        let warp_n = b.k.let_("warp_n", DType::I32, warp % i64::from(tile.warps_n) * i64::from(wn));
        let range = (Expr::int(0), Expr::int(i64::from(steps)), Expr::int(1));
        b.for_loop("step", range, Unroll::Never, |b, step| {
            b.k.push(Stmt::CpAsyncWait { pending: ahead - 1 });
            b.k.push(Stmt::Barrier);
            let next = b.k.let_("next", DType::I32, step.clone() + i64::from(ahead));
            self.copy(b, next.clone(), next % i64::from(tile.stages), &count)?;
            b.k.push(Stmt::CpAsyncCommit);
            let stage = b.k.let_("stage", DType::I32, step % i64::from(tile.stages));
            let base = |rows: u32, warp: &Expr| {
                stage.clone() * i64::from(rows * pitch) + warp.clone() * i64::from(pitch)
            };
            let a_base = b.k.let_("a_base", DType::I32, base(tile.m, &warp_m));
            let b_base = b.k.let_("b_base", DType::I32, base(tile.n, &warp_n));
            b.unrolled("kk", tile.k / 16, |b, kk| {
                let a_regs = gemm::load_a(b, &self.t, self.a, a_base + kk.clone() * 16, mt, pitch)?;
                for (&shared, &acc) in self.weights.iter().zip(&acc) {
                    let at = b_base.clone() + kk.clone() * 16;
                    let b_regs = gemm::load_b(b, &self.t, shared, at, nt, pitch)?;
                    gemm::multiply(b, dtype, acc, a_regs, b_regs, mt, nt)?;
                }
                Ok(())
            })
        })?;
        b.k.push(Stmt::CpAsyncWait { pending: 0 });
        self.store(b, &acc, (mt, nt), (warp_m, warp_n), count)
    }

    /// Starts the copies of a step of k into a stage: gathered rows of the left operand, and rows of the
    /// expert's matrices. What is past the end is filled with zeros.
    fn copy(&self, b: &mut Body<'_>, step: Expr, stage: Expr, count: &Expr) -> Result<(), String> {
        let one_row = self.a_shape.get(1) == Some(&Dim::Const(1));
        let picks = self.r.picks as i64;
        let left = (b.reads[self.r.a.index()], self.a, self.tile.m);
        self.copy_rows(b, left, &step, &stage, |b, row, at_k| {
            let pair = Expr::load(Mem::Shared(self.pairs), row.clone());
            let pair = b.k.let_("pair", DType::I32, pair);
            let pick = if one_row { Expr::int(0) } else { pair.clone() % picks };
            (b.flat(&self.a_shape, &[pair / picks, pick, at_k]), row.lt(count.clone()))
        })?;
        for (o, &shared) in self.r.weights.iter().zip(&self.weights) {
            let right = (b.reads[o.index()], shared, self.tile.n);
            self.copy_rows(b, right, &step, &stage, |b, row, at_k| {
                let column = b.k.let_("from", DType::I32, self.first_column.clone() + row);
                let index = b.flat(&self.b_shape, &[self.expert.clone(), column.clone(), at_k]);
                (index, column.lt(Expr::int(self.r.n as i64)))
            })?;
        }
        Ok(())
    }

    /// Copies rows of a tile; `place` gives the element that a row's part begins with, and whether it is there.
    fn copy_rows(
        &self,
        b: &mut Body<'_>,
        (mem, shared, rows): (Mem, SharedId, u32),
        step: &Expr,
        stage: &Expr,
        place: impl Fn(&mut Body<'_>, Expr, Expr) -> (Expr, Expr),
    ) -> Result<(), String> {
        let tile = self.tile;
        let threads = tile.warps_m * tile.warps_n * 32;
        let across = tile.k / CHUNK;
        let chunks = rows * across;
        let pitch = i64::from(tile.k + CHUNK);
        b.unrolled("i", chunks.div_ceil(threads), |b, i| {
            let chunk = b.k.let_("chunk", DType::I32, i * i64::from(threads) + Expr::ThreadIdx);
            let copy = |b: &mut Body<'_>| -> Result<(), String> {
                let row = b.k.let_("row", DType::I32, chunk.clone() / i64::from(across));
                let column = chunk.clone() % i64::from(across) * i64::from(CHUNK);
                let column = b.k.let_("column", DType::I32, column);
                let at_k = step.clone() * i64::from(tile.k) + column.clone();
                let at_k = b.k.let_("at_k", DType::I32, at_k);
                let (global_index, there) = place(b, row.clone(), at_k.clone());
                let valid = there.and(at_k.lt(Expr::int(self.r.k as i64)));
                let shared_index = (stage.clone() * i64::from(rows) + row) * pitch + column;
                let (global, valid) = (mem, Some(valid));
                b.k.push(Stmt::CpAsync { shared, shared_index, global, global_index, bytes: 16, valid });
                Ok(())
            };
            if chunks.is_multiple_of(threads) {
                copy(b)
            } else {
                b.if_then(chunk.clone().lt(Expr::int(i64::from(chunks))), copy)
            }
        })
    }

    /// Epilogue, element by element: accumulator i of a fragment is row lane/4 + 8·(i/2), column
    /// lane%4·2 + i%2.
    fn store(
        &self,
        b: &mut Body<'_>,
        acc: &[VarId],
        (mt, nt): (u32, u32),
        (warp_m, warp_n): (Expr, Expr),
        count: Expr,
    ) -> Result<(), String> {
        let (lane, picks) = (self.t.lane.clone(), self.r.picks as i64);
        let row = b.k.let_("row", DType::I32, warp_m + lane.clone() / 4);
        let column = self.first_column.clone() + warp_n + lane % 4 * 2;
        let column = b.k.let_("column", DType::I32, column);
        b.unrolled("mi", mt, |b, mi| {
            b.unrolled("half", 2, |b, half| {
                let r = b.k.let_("r", DType::I32, row + mi.clone() * 16 + half.clone() * 8);
                b.if_then(r.clone().lt(count), |b| {
                    let pair = b.k.let_("pair", DType::I32, Expr::load(Mem::Shared(self.pairs), r));
                    let token = b.k.let_("token", DType::I32, pair.clone() / picks);
                    let pick = b.k.let_("pick", DType::I32, pair % picks);
                    b.unrolled("ni", nt, |b, ni| {
                        b.unrolled("i", 2, |b, i| {
                            let c = column + ni.clone() * 8 + i.clone();
                            let c = b.k.let_("c", DType::I32, c);
                            let at = (mi * i64::from(nt) + ni) * 4 + half * 2 + i;
                            let acc = acc.iter().map(|&a| Expr::elem(a, at.clone())).collect();
                            let coords = vec![token, pick, c.clone()];
                            let point = Point { coords, acc, ..Point::default() };
                            b.if_then(c.lt(Expr::int(self.r.n as i64)), |b| b.stores(&self.r.stores, &point))
                        })
                    })
                })
            })
        })
    }
}
