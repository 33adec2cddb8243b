//! How the softmax states of attention are joined: those of a block's warps through shared memory, those of the
//! blocks that share a token's keys through the kernel's scratch, by the block that arrives last. Both in a fixed
//! order, so that the bits do not depend on timing (flash-decoding, Dao et al. 2023, with its second kernel inside).

use super::attention_decode::{Block, Seen};
use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::ids::{SharedId, VarId};
use weft_ir::kernel::{Axis, BinaryOp, CacheHint, Expr, MathFn, Mem, Stmt, Unroll};
use weft_ir::plan::{Attention, SPLIT_KEYS};

/// Parts in global memory whose loads are in flight together.
const TOGETHER: u32 = 8;

/// What a block computes: a token and its first head.
pub(super) struct Place {
    pub token: Expr,
    pub first_head: Expr,
}

/// States of a block's warps in shared memory: row `warp · heads + h`.
pub(super) struct Warps {
    pub max: SharedId,
    pub sum: SharedId,
    pub out: SharedId,
}

impl Warps {
    pub fn declare(b: &mut Body<'_>, a: &Attention, block: &Block) -> Warps {
        let rows = block.warps as u32 * block.heads;
        Warps {
            max: b.k.shared("warp_max", DType::F32, rows),
            sum: b.k.shared("warp_sum", DType::F32, rows),
            out: b.k.shared("warp_out", DType::F32, rows * a.value_dim as u32),
        }
    }

    fn parts(&self, block: &Block, h: &Expr) -> Parts {
        let [max, sum, out] = [self.max, self.sum, self.out].map(Mem::Shared);
        let (count, stride) = (Count::Fixed(block.warps as u32), i64::from(block.heads));
        Parts { count, max, sum, out, first: h.clone(), stride }
    }
}

/// The share of the keys that a token sees, which a block takes: one of `active` of equal length but for the last. It
/// follows from the token's number of keys alone, so a result does not depend on what else is in the step.
pub(super) struct Split {
    /// Blocks that have keys.
    active: Expr,
    pub first: Expr,
    pub end: Expr,
    splits: i64,
}

impl Split {
    /// Shares of whole steps of the block's warps, at least [`SPLIT_KEYS`] keys each: blocks that find none left
    /// are done at once.
    pub fn new(b: &mut Body<'_>, splits: u32, step: i64, keys: &Seen) -> Split {
        let splits = i64::from(splits);
        let share = ((keys.count.clone() + (splits - 1)) / splits).max(Expr::int(SPLIT_KEYS as i64));
        let share = b.k.let_("share", DType::I32, (share + (step - 1)) / step * step);
        let active = b.k.let_("active", DType::I32, (keys.count.clone() + share.clone() - 1) / share.clone());
        let first = keys.first.clone() + Expr::BlockIdx(Axis::Z) * share.clone();
        let first = b.k.let_("first", DType::I32, first);
        let end = b.k.let_("end", DType::I32, (first.clone() + share).min(keys.end.clone()));
        Split { active, first, end, splits }
    }

    /// Whether this block is one of the active ones.
    pub fn has_keys(&self) -> Expr {
        Expr::BlockIdx(Axis::Z).lt(self.active.clone())
    }
}

/// How many parts there are.
enum Count {
    Fixed(u32),
    Counted(Expr),
}

/// Softmax states of one head: rows `first + part · stride` of three arrays.
struct Parts {
    count: Count,
    max: Mem,
    sum: Mem,
    out: Mem,
    first: Expr,
    stride: i64,
}

impl Parts {
    fn row(&self, part: Expr) -> Expr {
        part * self.stride + self.first.clone()
    }

    /// For each part from a number on, in order, and whether there is such a part: of those that are counted some are
    /// taken together, so that their loads are in flight together.
    fn each(
        &self,
        b: &mut Body<'_>,
        from: u32,
        fill: impl FnOnce(&mut Body<'_>, Expr, Option<Expr>) -> Result<(), String>,
    ) -> Result<(), String> {
        let from_part = i64::from(from);
        match &self.count {
            Count::Fixed(n) => b.unrolled("w", n - from, |b, w| fill(b, w + from_part, None)),
            Count::Counted(n) => {
                let range = (Expr::int(from_part), n.clone(), Expr::int(i64::from(TOGETHER)));
                b.for_loop("s", range, Unroll::Never, |b, s| {
                    b.unrolled("u", TOGETHER, |b, u| {
                        let part = b.k.let_("part", DType::I32, s + u);
                        fill(b, part.clone().min(n.clone() - 1), Some(part.lt(n.clone())))
                    })
                })
            }
        }
    }
}

/// A joined state: largest score, sum of weights, weighted sums of some elements of the values.
struct Joined {
    best: VarId,
    total: VarId,
    acc: VarId,
}

/// Elements of a value that a thread joins at a time: neighbours where there are more elements than threads.
fn together(a: &Attention, block: &Block) -> u32 {
    let many = i64::from(block.heads) * a.value_dim as i64 > block.warps * 32;
    if many && a.value_dim.is_multiple_of(4) { 4 } else { 1 }
}

/// Joins the parts of a head for some elements from d on, in order, with a score that no key belongs to.
///
/// Parts in shared memory are read twice, first for the largest score. Those in global memory are read once, so that
/// all loads are in flight together: the sums are scaled as a larger score is found.
fn join(
    b: &mut Body<'_>,
    parts: &Parts,
    (d, n, dim): (Expr, u32, i64),
    sink: Option<Expr>,
) -> Result<Joined, String> {
    let best = b.k.let_mut("best_of_all", DType::F32, Expr::load(parts.max, parts.row(Expr::int(0))));
    let once = matches!(parts.count, Count::Counted(_));
    if !once {
        parts.each(b, 1, |b, part, _| {
            let other = Expr::load(parts.max, parts.row(part));
            b.k.assign(best, Expr::Var(best).max(other));
            Ok(())
        })?;
    }
    let mut total = Expr::float(0.0);
    if let Some(sink) = sink {
        b.k.assign(best, Expr::Var(best).max(sink.clone()));
        total = Expr::math(MathFn::Exp, sink - Expr::Var(best));
    }
    let total = b.k.let_mut("total_of_all", DType::F32, total);
    let acc = b.k.array("acc", DType::F32, n, Some(Expr::float(0.0)));
    parts.each(b, 0, |b, part, there| {
        let row = b.k.let_("row", DType::I32, parts.row(part));
        let other = Expr::load(parts.max, row.clone());
        let other = match there {
            // What is not there weighs nothing.
            Some(there) => there.select(other, Expr::float(f32::NEG_INFINITY)),
            None => other,
        };
        let other = b.k.let_("part_max", DType::F32, other);
        let sum = b.k.let_("part_sum", DType::F32, Expr::load(parts.sum, row.clone()));
        let out = b.k.array("part_out", DType::F32, n, None);
        load_some(b, out, parts.out, row * dim + d, n);
        if once {
            let larger = b.k.let_("larger", DType::F32, Expr::Var(best).max(other.clone()));
            let shrink = Expr::math(MathFn::Exp, Expr::Var(best) - larger.clone());
            let shrink = b.k.let_("shrink", DType::F32, shrink);
            b.k.assign(best, larger);
            b.k.assign(total, Expr::Var(total) * shrink.clone());
            b.unrolled("e", n, |b, e| {
                b.k.assign_elem(acc, e.clone(), Expr::elem(acc, e) * shrink);
                Ok(())
            })?;
        }
        let scale = Expr::math(MathFn::Exp, other - Expr::Var(best));
        let scale = b.k.let_("scale", DType::F32, scale);
        b.k.assign(total, Expr::fma(sum, scale.clone(), total.into()));
        b.unrolled("e", n, |b, e| {
            let joined = Expr::fma(Expr::elem(out, e.clone()), scale, Expr::elem(acc, e.clone()));
            b.k.assign_elem(acc, e, joined);
            Ok(())
        })
    })?;
    Ok(Joined { best, total, acc })
}

/// Loads some neighbouring f32.
fn load_some(b: &mut Body<'_>, dst: VarId, mem: Mem, index: Expr, n: u32) {
    if n == 1 {
        return b.k.assign_elem(dst, Expr::int(0), Expr::load(mem, index));
    }
    let (dst_at, hint) = (Expr::int(0), CacheHint::Default);
    b.k.push(Stmt::LoadVec { dst, dst_at, mem, index, lanes: n, hint });
}

/// Stores some neighbouring f32.
fn store_some(b: &mut Body<'_>, mem: Mem, index: Expr, src: VarId, n: u32) {
    if n == 1 {
        return b.k.store(mem, index, Expr::elem(src, Expr::int(0)));
    }
    b.k.push(Stmt::StoreVec { mem, index, src, src_at: Expr::int(0), lanes: n });
}

/// Each thread takes some neighbouring elements (h, d…) of the block's heads at a time.
fn elements(
    b: &mut Body<'_>,
    a: &Attention,
    block: &Block,
    fill: impl FnOnce(&mut Body<'_>, Expr, Expr) -> Result<(), String>,
) -> Result<(), String> {
    let n = i64::from(together(a, block));
    let (heads, across) = (i64::from(block.heads), a.value_dim as i64 / n);
    let along = (Expr::ThreadIdx, Expr::int(heads * across), Expr::int(block.warps * 32));
    b.for_loop("i", along, Unroll::Never, |b, i| {
        let h = b.k.let_("h", DType::I32, i.clone() / across);
        let d = b.k.let_("d", DType::I32, i % across * n);
        fill(b, h, d)
    })
}

/// Joins parts with the sink, divides by the sum of weights, and stores.
fn finish(
    b: &mut Body<'_>,
    (a, block): (&Attention, &Block),
    parts: &Parts,
    place: &Place,
    (h, d): (Expr, Expr),
) -> Result<(), String> {
    let n = together(a, block);
    let head = place.first_head.clone() + h;
    let sink = match &a.sink {
        Some(sink) => {
            let sink = b.lower(sink, &Point::at(vec![place.token.clone(), head.clone()]))?;
            Some(b.k.let_("sink", DType::F32, sink))
        }
        None => None,
    };
    let joined = join(b, parts, (d.clone(), n, a.value_dim as i64), sink)?;
    // The best key has weight 1; where every key is hidden the result is 0.
    let total = b.k.let_("weights", DType::F32, Expr::Var(joined.total).max(Expr::float(1.0)));
    b.unrolled("e", n, |b, e| {
        let acc = Expr::elem(joined.acc, e.clone());
        let result = Expr::Binary(BinaryOp::Div, Box::new(acc), Box::new(total));
        let result = b.k.let_("result", DType::F32, result);
        b.stores(&a.stores, &Point::with_acc(vec![place.token.clone(), head, d + e], result))
    })
}

/// Joins the warps of a block that has all keys of the token; each thread makes some elements of the result.
pub(super) fn join_warps(
    b: &mut Body<'_>,
    a: &Attention,
    block: &Block,
    place: &Place,
    states: &Warps,
) -> Result<(), String> {
    elements(b, a, block, |b, h, d| finish(b, (a, block), &states.parts(block, &h), place, (h, d)))
}

/// Joins the warps, and then, in the block that arrives last, the blocks that share the token's keys. A block that
/// is alone stores its result at once.
pub(super) fn join_splits(
    b: &mut Body<'_>,
    a: &Attention,
    block: &Block,
    place: &Place,
    states: &Warps,
    split: &Split,
) -> Result<(), String> {
    let [max, sum, out] = b.partials[..] else { return Err("splits of keys need three arrays".into()) };
    let heads = (a.kv_heads * a.group) as i64;
    // Row of a head's first part in the scratch.
    let row = |h: Expr| (place.token.clone() * heads + place.first_head.clone() + h) * split.splits;
    b.if_then(split.active.clone().eq_(Expr::int(1)), |b| join_warps(b, a, block, place, states))?;
    b.if_then(split.active.clone().ge(Expr::int(2)), |b| {
        let dim = a.value_dim as i64;
        elements(b, a, block, |b, h, d| {
            let n = together(a, block);
            let joined = join(b, &states.parts(block, &h), (d.clone(), n, dim), None)?;
            let own = b.k.let_("own", DType::I32, row(h) + Expr::BlockIdx(Axis::Z));
            b.if_then(d.clone().eq_(Expr::int(0)), |b| {
                b.k.store(max, own.clone(), joined.best.into());
                b.k.store(sum, own.clone(), joined.total.into());
                Ok(())
            })?;
            store_some(b, out, own * dim + d, joined.acc, n);
            Ok(())
        })?;
        let group = place.token.clone() * (heads / i64::from(block.heads)) + Expr::BlockIdx(Axis::Y);
        let last = b.last_block(group, split.active.clone().cast(DType::U32))?;
        b.if_then(last, |b| {
            elements(b, a, block, |b, h, d| {
                let count = Count::Counted(split.active.clone());
                let parts = Parts { count, max, sum, out, first: row(h.clone()), stride: 1 };
                finish(b, (a, block), &parts, place, (h, d))
            })
        })
    })
}
