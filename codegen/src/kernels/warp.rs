//! Pieces that several kernels share: thread coordinates, warp and block reductions.

use super::Body;
use weft_ir::dtype::DType;
use weft_ir::ids::{SharedId, VarId};
use weft_ir::kernel::{BinaryOp, Expr, Mem, Stmt, Unroll};
use weft_ir::scalar::Reduce;

/// Named thread coordinates of a block.
#[derive(Clone)]
pub(super) struct Threads {
    /// `threadIdx.x / 32`.
    pub warp: Expr,
    /// `threadIdx.x % 32`.
    pub lane: Expr,
}

/// Declares `warp` and `lane`.
pub(super) fn threads(b: &mut Body<'_>) -> Threads {
    let warp = b.k.let_("warp", DType::I32, Expr::ThreadIdx / 32);
    let lane = b.k.let_("lane", DType::I32, Expr::ThreadIdx % 32);
    Threads { warp, lane }
}

/// Neutral element of a reduction.
pub(super) fn neutral(op: Reduce) -> Expr {
    match op {
        Reduce::Sum | Reduce::Mean => Expr::float(0.0),
        Reduce::Max => Expr::float(f32::NEG_INFINITY),
    }
}

/// `a ⊕ b`.
pub(super) fn combine(op: Reduce, a: Expr, b: Expr) -> Expr {
    match op {
        Reduce::Sum | Reduce::Mean => Expr::Binary(BinaryOp::Add, Box::new(a), Box::new(b)),
        Reduce::Max => a.max(b),
    }
}

/// Reduces a variable over groups of lanes `from..to` apart (powers of two): every lane gets the result.
pub(super) fn shuffle_reduce(b: &mut Body<'_>, var: VarId, op: Reduce, from: i64, to: i64) {
    let mut mask = to / 2;
    while mask >= from {
        let value = Expr::Var(var);
        b.k.assign(var, combine(op, value.clone(), value.shuffle_xor(mask)));
        mask /= 2;
    }
}

/// Adds up some values over groups of `lanes` lanes (a power of two): lane i of a group gets the sum of the i-th, of at
/// most so many. Each step halves the values that a lane has, sending the others to a lane that keeps them, so n values
/// take n − 1 shuffles and few more, where one by one they would take log₂(lanes) each. The order of a sum does not
/// depend on how many there are.
pub(super) fn sums_by_lane(b: &mut Body<'_>, lane: &Expr, values: Vec<Expr>, lanes: i64) -> Expr {
    let mut values = values;
    let mut mask = 1;
    while mask < lanes {
        let mut next = Vec::new();
        let upper = (values.len() > 1).then(|| {
            let bit = lane.clone() / mask % 2;
            b.k.let_("upper", DType::Bool, bit.eq_(Expr::int(1)))
        });
        for pair in values.chunks(2) {
            let (kept, sent) = match (&upper, pair) {
                (Some(upper), [first, second]) => (
                    upper.clone().select(second.clone(), first.clone()),
                    upper.clone().select(first.clone(), second.clone()),
                ),
                (Some(_) | None, _) => (pair[0].clone(), pair[0].clone()),
            };
            let sum = combine(Reduce::Sum, kept, sent.shuffle_xor(mask));
            next.push(b.k.let_("sum", DType::F32, sum));
        }
        values = next;
        mask *= 2;
    }
    values.swap_remove(0)
}

/// Reduces a variable over a block of `warps` warps through shared memory; every thread gets the result.
pub(super) fn block_reduce(
    b: &mut Body<'_>,
    t: &Threads,
    var: VarId,
    op: Reduce,
    (warps, partial): (u32, SharedId),
    unroll: Unroll,
) -> Result<(), String> {
    shuffle_reduce(b, var, op, 1, 32);
    if warps == 1 {
        return Ok(());
    }
    b.if_then(t.lane.clone().eq_(Expr::int(0)), |b| {
        b.k.store(Mem::Shared(partial), t.warp.clone(), var.into());
        Ok(())
    })?;
    b.k.push(Stmt::Barrier);
    b.k.assign(var, Expr::load(Mem::Shared(partial), Expr::int(0)));
    let others = (Expr::int(0), Expr::int(i64::from(warps) - 1), Expr::int(1));
    b.for_loop("w", others, unroll, |b, w| {
        let other = Expr::load(Mem::Shared(partial), w + 1);
        b.k.assign(var, combine(op, var.into(), other));
        Ok(())
    })?;
    b.k.push(Stmt::Barrier);
    Ok(())
}

/// Elements of one vector access: the widest of 16 bytes or less that divides `elements`.
pub(super) fn vector_lanes(dtype: DType, elements: usize) -> u32 {
    let most = 16 / dtype.size();
    (1..=most).rev().find(|l| l.is_power_of_two() && elements.is_multiple_of(*l)).unwrap_or(1) as u32
}
