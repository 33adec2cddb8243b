//! Row epilogues of the tiled matrix product: a block that holds whole rows of the result reduces over them
//! before it stores.
//!
//! The tile stays in the accumulators. A lane has two rows of each fragment, of which four neighbouring lanes
//! have the columns; so a row is summed in the lane, over the four by shuffles, and over the warps through
//! shared memory, in the order of the columns' warps.

use super::warp::{Threads, combine, neutral};
use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::ids::VarId;
use weft_ir::kernel::{Expr, Mem, Stmt};
use weft_ir::plan::{MatMul, RowEpilogue, Scalar, Stage};

/// A block's tile in its accumulators, as a warp sees it.
pub(super) struct Tile {
    pub acc: VarId,
    /// Fragments of a warp along m and n.
    pub fragments: (u32, u32),
    /// Rows of the block, and warps along n.
    pub rows: u32,
    pub warps_n: u32,
    /// Columns of the block.
    pub columns: u32,
    /// First row of the block in the result; first row and column of the warp in the block.
    pub first_row: Expr,
    pub warp_row: Expr,
    pub warp_column: Expr,
}

/// A row of a lane.
#[derive(Clone)]
struct Row {
    /// Position in arrays of the lane's rows: 2 · fragment + half.
    slot: Expr,
    /// Row of the block.
    local: Expr,
    /// Row of the result; past the end, its last one.
    row: Expr,
    /// Whether it is not past the end.
    inside: Expr,
    /// Position of its first accumulator.
    first: Expr,
}

pub(super) fn store(
    b: &mut Body<'_>,
    m: &MatMul,
    epilogue: &RowEpilogue,
    t: &Threads,
    tile: &Tile,
) -> Result<(), String> {
    if m.group != 1 || (tile.columns as usize) < m.n {
        return Err(format!("a tile of {} columns does not hold whole rows of {}", tile.columns, m.n));
    }
    let (mt, _) = tile.fragments;
    let lane_row = b.k.let_("lane_row", DType::I32, tile.warp_row.clone() + t.lane.clone() / 4);
    let column = b.k.let_("column", DType::I32, tile.warp_column.clone() + t.lane.clone() % 4 * 2);
    let lane = Lane { m, tile, lane_row, column };
    if epilogue.value != Scalar::Acc(0) {
        b.k.comment("What the rows are reduced over takes the accumulators' place.");
        lane.rows(b, |b, row| {
            lane.columns(b, row, |b, c, at| {
                let value = b.lower(&epilogue.value, &lane.point(row, c, &at, &[]))?;
                b.k.assign_elem(tile.acc, at, value);
                Ok(())
            })
        })?;
    }
    let stages = epilogue.stages.len() as u32;
    let length = tile.warps_n * tile.rows;
    let partial = (tile.warps_n > 1).then(|| b.k.shared("row_partial", DType::F32, stages * length));
    let mut done: Vec<VarId> = Vec::new();
    for (i, stage) in epilogue.stages.iter().enumerate() {
        let sums = b.k.array(&format!("reduced{i}"), DType::F32, mt * 2, Some(neutral(stage.op)));
        lane.rows(b, |b, row| lane.partial(b, row, stage, sums, &done))?;
        if let Some(shared) = partial {
            let from = i64::from(i as u32 * length);
            let place = |warp: Expr, row: &Row| warp * i64::from(tile.rows) + row.local.clone() + from;
            b.if_then((t.lane.clone() % 4).eq_(Expr::int(0)), |b| {
                lane.rows(b, |b, row| {
                    let warp = t.warp.clone() % i64::from(tile.warps_n);
                    let sum = Expr::elem(sums, row.slot.clone());
                    b.k.store(Mem::Shared(shared), place(warp, row), sum);
                    Ok(())
                })
            })?;
            b.k.push(Stmt::Barrier);
            lane.rows(b, |b, row| {
                let first = Expr::load(Mem::Shared(shared), place(Expr::int(0), row));
                b.k.assign_elem(sums, row.slot.clone(), first);
                b.unrolled("w", tile.warps_n - 1, |b, w| {
                    let other = Expr::load(Mem::Shared(shared), place(w + 1, row));
                    let sum = combine(stage.op, Expr::elem(sums, row.slot.clone()), other);
                    b.k.assign_elem(sums, row.slot.clone(), sum);
                    Ok(())
                })
            })?;
        }
        done.push(sums);
    }
    lane.rows(b, |b, row| {
        b.if_then(row.inside.clone(), |b| {
            lane.columns(b, row, |b, c, at| b.stores(&m.stores, &lane.point(row, c, &at, &done)))
        })
    })
}

/// A lane's part of the tile.
struct Lane<'a> {
    m: &'a MatMul,
    tile: &'a Tile,
    /// Its first row in the block, and its first column.
    lane_row: Expr,
    column: Expr,
}

impl Lane<'_> {
    /// Each row of the lane.
    fn rows(
        &self,
        b: &mut Body<'_>,
        each: impl FnOnce(&mut Body<'_>, &Row) -> Result<(), String>,
    ) -> Result<(), String> {
        let (mt, nt) = self.tile.fragments;
        let count = b.extent(self.m.m);
        b.unrolled("slot", mt * 2, |b, slot| {
            // Accumulator i of a fragment is in row lane/4 + 8·(i/2).
            let local = self.lane_row.clone() + slot.clone() * 8;
            let local = b.k.let_("local", DType::I32, local);
            let row = self.tile.first_row.clone() + local.clone();
            let row = b.k.let_("r", DType::I32, row);
            let inside = row.clone().lt(count.clone());
            let row = b.k.let_("safe_row", DType::I32, row.min(count - 1));
            let first = slot.clone() / 2 * i64::from(nt * 4) + slot.clone() % 2 * 2;
            each(b, &Row { slot, local, row, inside, first })
        })
    }

    /// Each column of a row: with the position of its accumulator.
    fn columns(
        &self,
        b: &mut Body<'_>,
        row: &Row,
        each: impl FnOnce(&mut Body<'_>, Expr, Expr) -> Result<(), String>,
    ) -> Result<(), String> {
        let (_, nt) = self.tile.fragments;
        b.unrolled("ni", nt, |b, ni| {
            b.unrolled("i", 2, |b, i| {
                let c = self.column.clone() + ni.clone() * 8 + i.clone();
                let c = b.k.let_("c", DType::I32, c);
                let at = row.first.clone() + ni * 4 + i;
                if self.tile.columns as usize == self.m.n {
                    return each(b, c, at);
                }
                b.if_then(c.clone().lt(Expr::int(self.m.n as i64)), |b| each(b, c, at))
            })
        })
    }

    fn point(&self, row: &Row, c: Expr, at: &Expr, done: &[VarId]) -> Point {
        Point {
            coords: vec![row.row.clone(), c],
            reduced: done.iter().map(|&v| Expr::elem(v, row.slot.clone())).collect(),
            acc: vec![Expr::elem(self.tile.acc, at.clone())],
            ..Point::default()
        }
    }

    /// A row's reduction over the columns of its warp.
    fn partial(
        &self,
        b: &mut Body<'_>,
        row: &Row,
        stage: &Stage,
        sums: VarId,
        done: &[VarId],
    ) -> Result<(), String> {
        let sum = || Expr::elem(sums, row.slot.clone());
        self.columns(b, row, |b, c, at| {
            let value = b.lower(&stage.value, &self.point(row, c, &at, done))?;
            b.k.assign_elem(sums, row.slot.clone(), combine(stage.op, sum(), value));
            Ok(())
        })?;
        for mask in [2, 1] {
            b.k.assign_elem(sums, row.slot.clone(), combine(stage.op, sum(), sum().shuffle_xor(mask)));
        }
        Ok(())
    }
}
