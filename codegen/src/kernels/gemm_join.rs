//! The end of a tiled product whose warps share k: sums are joined through shared memory, and the tile's points are
//! shared out over the same warps for the epilogue.
//!
//! Each warp leaves its accumulators, and the reductions of its rows, as its lanes have them; whoever runs a point's
//! epilogue adds them up in the order of k.

use super::draw::Drawing;
use super::gemm_left::Left;
use super::warp::{Threads, combine, neutral};
use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::ids::VarId;
use weft_ir::kernel::{Expr, Mem, Stmt, Unroll};
use weft_ir::plan::MatMul;
use weft_ir::scalar::Reduce;

/// A warp's place among those of its block, and what it holds.
pub(super) struct Part {
    /// Warps that share k, and which of them it is.
    pub parts: u32,
    pub part: Expr,
    /// Warps along m and n together, and which of them it is.
    pub warps: u32,
    pub warp: Expr,
    pub t: Threads,
    /// Its fragments along m and n, and their accumulators.
    pub fragments: (u32, u32),
    pub acc: VarId,
    /// First row of the block in the result, and of the warp's fragments in the block.
    pub first_row: Expr,
    pub local_row: Expr,
    /// First column of its fragments in the result.
    pub column: Expr,
}

/// Lanes of a warp that have columns of the same row.
pub(super) const LANES_OF_ROW: u32 = 4;

/// Joins the parts of k and runs the epilogue, and the draw of a product that draws.
pub(super) fn store(
    b: &mut Body<'_>,
    m: &MatMul,
    left: &Left,
    p: &Part,
    drawing: Option<&Drawing<'_>>,
) -> Result<(), String> {
    let (mt, nt) = p.fragments;
    let (accs, sums) = (mt * nt * 4, left.sums());
    // A slot has a value of each lane.
    let slots = i64::from(accs + mt * 2 * sums.len() as u32);
    let joined = b.k.shared("sums_by_part", DType::F32, p.parts * p.warps * slots as u32 * 32);
    let of = |part: Expr| ((part * i64::from(p.warps) + p.warp.clone()) * slots) * 32 + p.t.lane.clone();
    let own = b.k.let_("own_sums", DType::I32, of(p.part.clone()));
    let leave = |b: &mut Body<'_>, from: VarId, count: u32, first: u32| {
        b.unrolled("i", count, |b, i| {
            let at = own.clone() + (i.clone() + i64::from(first)) * 32;
            b.k.store(Mem::Shared(joined), at, Expr::elem(from, i));
            Ok(())
        })
    };
    leave(b, p.acc, accs, 0)?;
    for (stage, &sum) in (0..).zip(sums) {
        left.join_lanes(b, m, mt, stage)?;
        leave(b, sum, mt * 2, accs + stage as u32 * mt * 2)?;
    }
    b.k.push(Stmt::Barrier);

    let first = b.k.let_("first_sums", DType::I32, of(Expr::int(0)));
    let next = i64::from(p.warps) * slots * 32;
    let join = |b: &mut Body<'_>, name: &str, op: Reduce, slot: Expr| {
        let at = b.k.let_("at", DType::I32, first.clone() + slot * 32);
        let var = b.k.let_mut(name, DType::F32, neutral(op));
        b.unrolled("w", p.parts, |b, w| {
            let other = Expr::load(Mem::Shared(joined), at.clone() + w * next);
            b.k.assign(var, combine(op, var.into(), other));
            Ok(())
        })?;
        Ok::<Expr, String>(var.into())
    };
    let rows = b.extent(m.m);
    let row = p.first_row.clone() + p.local_row.clone();
    let group = m.group as u32;
    if !(1..=2).contains(&group) {
        return Err(format!("points of {group} columns"));
    }
    // A lane has two neighbouring columns of a row: two points, or both accumulators of one.
    let of_row = 2 / group;
    let points = mt * nt * 2 * of_row;
    let each = points.div_ceil(p.parts);
    // What the points load is to be on its way together; those that draw load nothing, and are long code.
    let unroll = if drawing.is_some() { Unroll::Never } else { Unroll::Full };
    b.for_loop("i", (Expr::int(0), Expr::int(i64::from(each)), Expr::int(1)), unroll, |b, i| {
        let point = b.k.let_("point", DType::I32, p.part.clone() * i64::from(each) + i);
        let take = |b: &mut Body<'_>| {
            let fragment = b.k.let_("fragment", DType::I32, point.clone() / i64::from(2 * of_row));
            let (mi, ni) = (fragment.clone() / i64::from(nt), fragment.clone() % i64::from(nt));
            let half = point.clone() / i64::from(of_row) % 2;
            let half = b.k.let_("half", DType::I32, half);
            let r = row.clone() + mi.clone() * 16 + half.clone() * 8 + p.t.lane.clone() / 4;
            let r = b.k.let_("r", DType::I32, r);
            let c = p.column.clone() + ni * 8 + p.t.lane.clone() % 4 * 2;
            let c = if group == 2 { c / 2 } else { c + point.clone() % 2 };
            let c = b.k.let_("c", DType::I32, c);
            let inside = r.clone().lt(rows.clone()).and(c.clone().lt(Expr::int(m.n as i64)));
            b.if_then(inside, |b| {
                let mut at = Point::at(vec![r, c]);
                let slot = fragment * 4 + half.clone() * 2;
                let slot = if group == 2 { slot } else { slot + point.clone() % 2 };
                for g in 0..i64::from(group) {
                    at.acc.push(join(b, "value", Reduce::Sum, slot.clone() + g)?);
                }
                for (stage, first) in m.stages.iter().zip((accs..).step_by(2 * mt as usize)) {
                    let slot = mi.clone() * 2 + half.clone() + i64::from(first);
                    let value = join(b, "reduced", stage.op, slot)?;
                    at.reduced.push(match stage.op {
                        Reduce::Mean => value / Expr::float(m.k as f32),
                        Reduce::Sum | Reduce::Max => value,
                    });
                }
                b.stores(&m.stores, &at)?;
                let Some(drawing) = drawing else { return Ok(()) };
                for best in 0..mt * 2 {
                    let here = (mi.clone() * 2 + half.clone()).eq_(Expr::int(i64::from(best)));
                    b.if_then(here, |b| drawing.take(b, best as usize, &at))?;
                }
                Ok(())
            })
        };
        if points.is_multiple_of(p.parts) {
            take(b)
        } else {
            b.if_then(point.clone().lt(Expr::int(i64::from(points))), take)
        }
    })?;
    let Some(drawing) = drawing else { return Ok(()) };
    for best in 0..mt * 2 {
        let row = p.local_row.clone() + i64::from(best) * 8 + p.t.lane.clone() / 4;
        let all = i64::from(mt * 16 * LANES_OF_ROW);
        let lane = p.t.lane.clone() % i64::from(LANES_OF_ROW);
        let slot = p.t.warp.clone() * all + row * i64::from(LANES_OF_ROW) + lane;
        drawing.leave(b, best as usize, slot)?;
    }
    drawing.finish(b, &p.t, &p.first_row)
}
