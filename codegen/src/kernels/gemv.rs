//! Skinny matrix product: acc[m, n] = Σₖ a[m, k] · b[n, k] for a few rows m.
//!
//! Each warp streams `columns` rows of b with 16-byte loads, every lane a different part of k, and keeps
//! `rows` × `columns` sums; a shuffle reduction joins the lanes. Bound by reading b once.

use super::warp::{shuffle_reduce, threads, vector_lanes};
use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::ids::VarId;
use weft_ir::kernel::{Axis, CacheHint, Expr, Stmt, Unroll};
use weft_ir::plan::{MatMul, Scalar};
use weft_ir::scalar::Reduce;

/// Parameters of the schedule.
pub(super) struct Shape {
    pub rows: u32,
    pub warps: u32,
    pub columns: u32,
}

pub(super) fn build(b: &mut Body<'_>, m: &MatMul, s: &Shape) -> Result<(), String> {
    b.wait_for_dependencies();
    let (rows, columns) = (i64::from(s.rows), i64::from(s.columns));
    let (n, k) = (m.n as i64, m.k as i64);
    let weight = &b.work.reads[m.b.index()];
    let (w_type, w_mem) = (weight.dtype, b.reads[m.b.index()]);
    let lanes = vector_lanes(w_type, m.k);
    let v = i64::from(lanes);

    let t = threads(b);
    let group = Expr::BlockIdx(Axis::X) * i64::from(s.warps) + t.warp.clone();
    let first_column = b.k.let_("first_column", DType::I32, group * columns);
    let first_row = b.k.let_("first_row", DType::I32, Expr::BlockIdx(Axis::Y) * rows);
    let count = b.extent(m.m);
    let acc = b.k.array("acc", DType::F32, s.rows * s.columns, Some(Expr::float(0.0)));
    let along = (t.lane.clone() * v, Expr::int(k), Expr::int(32 * v));
    let w_shape = weight.shape.clone();
    // Loads in flight against registers: more rows leave less room.
    let unroll = Unroll::By(if rows * columns <= 4 { 4 } else { 2 });
    b.for_loop("k", along, unroll, |b, kk| {
        let w = b.k.array("w", w_type, lanes * s.columns, None);
        b.unrolled("c", s.columns, |b, c| {
            // Columns past the end repeat the last one and are not stored.
            let column = (first_column.clone() + c.clone()).min(Expr::int(n - 1));
            let index = b.flat(&w_shape, &[column, kk.clone()]);
            b.k.push(Stmt::LoadVec {
                dst: w,
                dst_at: c * v,
                mem: w_mem,
                index,
                lanes,
                hint: CacheHint::Streaming,
            });
            Ok(())
        })?;
        b.unrolled("r", s.rows, |b, r| {
            let row = (first_row.clone() + r.clone()).min(count.clone() - 1);
            let x = left(b, m, lanes, row, kk.clone())?;
            b.unrolled("c", s.columns, |b, c| {
                b.unrolled("e", lanes, |b, e| {
                    let at = r.clone() * columns + c.clone();
                    let product = Expr::fma(
                        Expr::elem(x, e.clone()),
                        Expr::elem(w, c.clone() * v + e).cast(DType::F32),
                        Expr::elem(acc, at.clone()),
                    );
                    b.k.assign_elem(acc, at, product);
                    Ok(())
                })
            })
        })
    })?;
    b.unrolled("r", s.rows, |b, r| {
        b.unrolled("c", s.columns, |b, c| {
            let at = r.clone() * columns + c.clone();
            let sum = b.k.let_mut("sum", DType::F32, Expr::elem(acc, at.clone()));
            shuffle_reduce(b, sum, Reduce::Sum, 1, 32);
            let row = b.k.let_("row", DType::I32, first_row.clone() + r.clone());
            let column = b.k.let_("column", DType::I32, first_column.clone() + c.clone());
            // Spread the epilogues over the lanes.
            let mine = t.lane.clone().eq_(at % 32);
            let inside = row.clone().lt(count.clone()).and(column.clone().lt(Expr::int(n)));
            b.if_then(mine.and(inside), |b| {
                b.stores(&m.stores, &Point::with_acc(vec![row, column], sum.into()))
            })
        })
    })
}

/// `lanes` elements of the left operand from (row, k), as f32.
fn left(b: &mut Body<'_>, m: &MatMul, lanes: u32, row: Expr, k: Expr) -> Result<VarId, String> {
    let x = b.k.array("x", DType::F32, lanes, None);
    if let Scalar::Load(o, at) = &m.a
        && *at == [Scalar::Coord(0), Scalar::Coord(1)]
    {
        let operand = &b.work.reads[o.index()];
        let (dtype, shape, mem) = (operand.dtype, operand.shape.clone(), b.reads[o.index()]);
        if dtype.size() * lanes as usize <= 16 {
            let raw = b.k.array("x_raw", dtype, lanes, None);
            let index = b.flat(&shape, &[row, k]);
            let dst_at = Expr::int(0);
            b.k.push(Stmt::LoadVec { dst: raw, dst_at, mem, index, lanes, hint: CacheHint::Default });
            b.unrolled("e", lanes, |b, e| {
                b.k.assign_elem(x, e.clone(), Expr::elem(raw, e).cast(DType::F32));
                Ok(())
            })?;
            return Ok(x);
        }
    }
    b.unrolled("e", lanes, |b, e| {
        let value = b.lower(&m.a, &Point::at(vec![row, k + e.clone()]))?;
        b.k.assign_elem(x, e, value);
        Ok(())
    })?;
    Ok(x)
}
