//! Products with chosen matrices, pair by pair: acc[t, j, n] = Σₖ a[t, j, k] · b[index[t, j], n, k].
//!
//! A block takes one pair and some rows of its matrices; each warp streams `columns` rows of each weight at a
//! time. So a step of few tokens reads the chosen matrices only. Shuffles join the lanes in a fixed order.

use super::steps::load_vector;
use super::warp::{shuffle_reduce, threads, vector_lanes};
use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::kernel::{Axis, CacheHint, Expr, Stmt, Unroll};
use weft_ir::plan::Routed;
use weft_ir::scalar::Reduce;
use weft_ir::shape::Dim;

pub(super) fn build(b: &mut Body<'_>, r: &Routed, warps: u32, columns: u32) -> Result<(), String> {
    let weight = r.weights.first().ok_or("no weights")?.index();
    let (dtype, shape) = (b.work.reads[weight].dtype, b.work.reads[weight].shape.clone());
    let (a_shape, index_shape) =
        (b.work.reads[r.a.index()].shape.clone(), b.work.reads[r.index.index()].shape.clone());
    if b.work.reads[r.a.index()].dtype != dtype {
        return Err("operands of different types".into());
    }
    let (vector, count) = (vector_lanes(dtype, r.k), r.weights.len() as u32);
    b.wait_for_dependencies();
    let t = threads(b);
    let pair = b.k.let_("pair", DType::I32, Expr::BlockIdx(Axis::Y));
    let token = b.k.let_("token", DType::I32, pair.clone() / r.picks as i64);
    let pick = b.k.let_("pick", DType::I32, pair % r.picks as i64);
    let at = b.flat(&index_shape, &[token.clone(), pick.clone()]);
    let expert = b.k.let_("expert", DType::I32, Expr::load(b.reads[r.index.index()], at));
    let first = (Expr::BlockIdx(Axis::X) * i64::from(warps) + t.warp.clone()) * i64::from(columns);
    let first = b.k.let_("first", DType::I32, first);
    let row = if a_shape[1] == Dim::Const(1) { Expr::int(0) } else { pick.clone() };
    let index_type = b.index_type(&shape);
    // Rows past the end repeat the last one and are not stored.
    let starts: Vec<Expr> = (0..i64::from(columns))
        .map(|c| {
            let column = (first.clone() + c).min(Expr::int(r.n as i64 - 1));
            let start = b.flat(&shape, &[expert.clone(), column, Expr::int(0)]);
            b.k.let_("start", index_type, start)
        })
        .collect();
    let rows = count * columns;
    let sums = b.k.array("sums", DType::F32, rows, Some(Expr::float(0.0)));
    let along =
        (t.lane.clone() * i64::from(vector), Expr::int(r.k as i64), Expr::int(i64::from(32 * vector)));
    b.for_loop("k", along, Unroll::By(2), |b, k| {
        let w = b.k.array("w", dtype, rows * vector, None);
        for (g, o) in r.weights.iter().enumerate() {
            for (c, start) in starts.iter().enumerate() {
                let (mem, at) = (b.reads[o.index()], (g * columns as usize + c) as i64 * i64::from(vector));
                let index = b.flat_offset(&shape, start.clone(), k.clone());
                if vector == 1 {
                    b.k.assign_elem(w, Expr::int(at), Expr::load(mem, index));
                } else {
                    let (dst_at, hint) = (Expr::int(at), CacheHint::Streaming);
                    b.k.push(Stmt::LoadVec { dst: w, dst_at, mem, index, lanes: vector, hint });
                }
            }
        }
        let x = b.k.array("x", dtype, vector, None);
        let index = b.flat(&a_shape, &[token.clone(), row.clone(), k]);
        load_vector(b, x, Expr::int(0), (b.reads[r.a.index()], index, vector));
        let wide = |e: Expr| if dtype.is_half() { e.cast(DType::F32) } else { e };
        b.unrolled("e", vector, |b, e| {
            let x = b.k.let_("x_wide", DType::F32, wide(Expr::elem(x, e.clone())));
            b.unrolled("i", rows, |b, i| {
                let w = wide(Expr::elem(w, i.clone() * i64::from(vector) + e));
                b.k.assign_elem(sums, i.clone(), Expr::fma(x, w, Expr::elem(sums, i)));
                Ok(())
            })
        })
    })?;
    b.unrolled("i", rows, |b, i| {
        let sum = b.k.let_mut("sum", DType::F32, Expr::elem(sums, i.clone()));
        shuffle_reduce(b, sum, Reduce::Sum, 1, 32);
        b.k.assign_elem(sums, i, sum.into());
        Ok(())
    })?;
    // Each lane takes one column, so that their epilogues run together.
    let acc = (0..i64::from(count)).map(|g| {
        let of = |c: i64| Expr::elem(sums, Expr::int(g * i64::from(columns) + c));
        let value = b.k.let_mut("value", DType::F32, of(0));
        for c in 1..i64::from(columns) {
            let mine = t.lane.clone().eq_(Expr::int(c));
            b.k.assign(value, mine.select(of(c), value.into()));
        }
        Expr::Var(value)
    });
    let acc = acc.collect();
    let column = b.k.let_("column", DType::I32, first + t.lane.clone());
    let inside = t.lane.clone().lt(Expr::int(columns.into())).and(column.clone().lt(Expr::int(r.n as i64)));
    let at = Point { coords: vec![token, pick, column], acc, ..Point::default() };
    b.if_then(inside, |b| b.stores(&r.stores, &at))
}
