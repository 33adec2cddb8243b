//! Thresholds of a draw: top-k, top-p and min-p, as the key below which a row's tokens are dropped.
//!
//! They are read from the few largest tokens ([`super::few`]) or, where these do not say, found by searches on the 32
//! bits of an order-preserving key, each step one pass over the row.

use super::Body;
use super::few::{self, Asked, Few, not};
use super::sampling::{Request, Row, bin, cmp};
use weft_ir::dtype::DType;
use weft_ir::ids::VarId;
use weft_ir::kernel::{BinaryOp, CompareOp, Expr, MathFn, UnaryOp, Unroll};
use weft_ir::scalar::Reduce;

/// Order-preserving key of an f32 (`sampling::key`), as a variable.
pub(super) fn key(b: &mut Body<'_>, x: Expr) -> Expr {
    // The sum with 0 turns −0 into +0; it must not be folded away.
    let plus = bin(BinaryOp::Add, x, Expr::float(0.0));
    let bits = b.k.let_("bits", DType::U32, Expr::Bitcast(DType::U32, Box::new(plus)));
    let negative = cmp(CompareOp::Ne, bin(BinaryOp::Shr, bits.clone(), Expr::uint(31)), Expr::uint(0));
    let flipped = Expr::Unary(UnaryOp::BitNot, Box::new(bits.clone()));
    let key = negative.select(flipped, bin(BinaryOp::Or, bits, Expr::uint(0x8000_0000)));
    b.k.let_("key", DType::U32, key)
}

/// Raises `least`, the key below which tokens are dropped: by top-k, then top-p of what is left, then min-p. Sets
/// `collected` where all that is left is in `few`.
pub(super) fn filter(
    b: &mut Body<'_>,
    r: &Row,
    q: &Request,
    few: &Few,
    (least, collected): (VarId, VarId),
) -> Result<(), String> {
    let k = b.k.let_("k", DType::I32, q.top_k.clone());
    let limits = cmp(CompareOp::Gt, k.clone(), Expr::int(0)).and(k.clone().lt(Expr::int(r.vocab)));
    let limits = b.k.let_("limits", DType::Bool, limits);
    let p = b.k.let_("p", DType::F32, q.top_p.clone());
    let cuts = b.k.let_("cuts", DType::Bool, p.clone().lt(Expr::float(1.0)));
    let m = b.k.let_("m", DType::F32, q.min_p.clone());
    let floors = cmp(CompareOp::Gt, m.clone(), Expr::float(0.0));
    let asks = bin(BinaryOp::Or, bin(BinaryOp::Or, limits.clone(), cuts.clone()), floors);
    b.if_then(asks, |b| {
        let own = r.largest(b)?;
        let max = b.k.let_mut("largest", DType::F32, own.into());
        r.join(b, max, Reduce::Max)?;
        let asked = Asked { k: k.clone(), limits: limits.clone(), p: p.clone(), cuts: cuts.clone() };
        few.threshold(b, r, &asked, (own, max), (least, collected))?;
        let searched = not(collected.into());
        b.if_then(searched, |b| search(b, r, &asked, max, least))?;
        few::min_p(b, m, max, least)
    })
}

/// Weight of a logit for top-p. The maximum has weight 1 even when it is infinite.
pub(super) fn nucleus_weight(x: Expr, max: VarId) -> Expr {
    let at_max = cmp(CompareOp::Eq, x.clone(), max.into());
    at_max.select(Expr::float(1.0), Expr::math(MathFn::Exp, x - Expr::Var(max)))
}

/// `least` becomes the largest key, up to that of the maximum, that enough tokens reach: k of them, then those with
/// the fraction p of the mass that this leaves. A pass over the row quarters the keys in question. Both filters are
/// the same code: it is seldom run, and unrolled code takes long to compile.
fn search(b: &mut Body<'_>, r: &Row, asked: &Asked, max: VarId, least: VarId) -> Result<(), String> {
    b.for_loop("filter", (Expr::int(0), Expr::int(2), Expr::int(1)), Unroll::Never, |b, filter| {
        let counts = b.k.let_("counts", DType::Bool, filter.eq_(Expr::int(0)));
        let wants = counts.clone().select(asked.limits.clone(), asked.cuts.clone());
        b.if_then(wants, |b| {
            let wanted = b.k.let_mut("wanted", DType::F32, asked.k.clone().cast(DType::F32));
            let top = key(b, max.into());
            let high = b.k.let_mut("high", DType::U32, top);
            // Invariant: enough reach `least`; keys above `high` are not needed, or not enough reach them.
            b.for_loop("pass", (Expr::int(0), Expr::int(17), Expr::int(1)), Unroll::Never, |b, pass| {
                let weighs = b.k.let_("weighs", DType::Bool, pass.eq_(Expr::int(0)));
                let open = cmp(CompareOp::Lt, least.into(), high.into());
                let goes = weighs.clone().select(not(counts.clone()), open);
                b.if_then(goes, |b| {
                    let gap = bin(BinaryOp::Sub, high.into(), least.into());
                    let quarter = bin(BinaryOp::Shr, gap, Expr::uint(2));
                    let part = bin(BinaryOp::Add, quarter, Expr::uint(1));
                    // The first pass of a mass tells how much there is.
                    let part = b.k.let_("part", DType::U32, weighs.clone().select(Expr::uint(0), part));
                    let from = b.k.let_("from", DType::U32, least.into());
                    let end = b.k.let_("end", DType::U32, high.into());
                    let keys = [1, 2, 3].map(|i| {
                        let offset = bin(BinaryOp::Mul, part.clone(), Expr::uint(i));
                        let at = bin(BinaryOp::Add, from.clone(), offset);
                        b.k.let_("at", DType::U32, at.min(end.clone()))
                    });
                    let names = ["reaching1", "reaching2", "reaching3"];
                    let reaching = r.reduce_all(b, names, (Reduce::Sum, Unroll::Never), |b, x| {
                        let key = key(b, x.clone());
                        let weight = counts.clone().select(Expr::float(1.0), nucleus_weight(x, max));
                        let weight = b.k.let_("weight", DType::F32, weight);
                        keys.each_ref().map(|at| {
                            let reaches = cmp(CompareOp::Ge, key.clone(), at.clone());
                            reaches.select(weight.clone(), Expr::float(0.0))
                        })
                    })?;
                    let fraction = asked.p.clone() * Expr::Var(reaching[0]);
                    b.k.assign(wanted, weighs.clone().select(fraction, wanted.into()));
                    // From the largest key on: the first that is not enough ends the range, the last that is begins it.
                    for (at, reaching) in keys.into_iter().zip(reaching).rev() {
                        let enough = cmp(CompareOp::Ge, reaching.into(), wanted.into());
                        let enough = b.k.let_("enough", DType::Bool, enough);
                        let below = bin(BinaryOp::Sub, at.clone(), Expr::uint(1));
                        b.k.assign(high, enough.clone().select(high.into(), below));
                        let larger = Expr::Var(least).max(at);
                        b.k.assign(least, enough.select(larger, least.into()));
                    }
                    Ok(())
                })
            })
        })
    })
}
