//! How the softmax states of attention are joined: those of a block's warps through shared memory; those of the
//! blocks that share a token's keys by the cluster that they form ([`super::attention_cluster`]), or where they are
//! more, through the kernel's scratch, by the block that arrives last. All in a fixed order, so that the bits do not
//! depend on timing (flash-decoding, Dao et al. 2023, with its second kernel inside).

use super::attention_cluster::Exchange;
use super::attention_decode::{Block, Seen};
use super::attention_projection::Projection;
use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::ids::{SharedId, VarId};
use weft_ir::kernel::{Axis, BinaryOp, CacheHint, Expr, MathFn, Mem, Stmt, UnaryOp, Unroll};
use weft_ir::plan::{Attention, CLUSTER_KEYS, SPLIT_KEYS};

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

    pub(super) fn parts(&self, block: &Block, h: &Expr) -> Parts {
        let [max, sum, out] = [self.max, self.sum, self.out].map(Mem::Shared);
        let (count, stride) = (Count::Fixed(block.warps as u32), i64::from(block.heads));
        Parts { count, max, sum, out, first: h.clone(), stride }
    }
}

/// The share of the keys that a token sees, which a block takes: one of `active` of equal length but for the last. It
/// follows from the token's number of keys alone, so a result does not depend on what else is in the step.
pub(super) struct Split {
    /// Blocks that have keys.
    pub active: Expr,
    pub first: Expr,
    pub end: Expr,
    splits: i64,
    cluster: i64,
}

impl Split {
    /// Shares of whole steps of the block's warps, at least [`SPLIT_KEYS`] keys each: blocks that find none left
    /// are done at once. One cluster takes all keys while their shares are at most [`CLUSTER_KEYS`].
    pub fn new(b: &mut Body<'_>, block: &Block, step: i64, keys: &Seen) -> Split {
        let (splits, cluster) = (i64::from(block.splits), i64::from(block.cluster));
        let share = |blocks: i64| (keys.count.clone() + (blocks - 1)) / blocks;
        let share = if 1 < cluster && cluster < splits {
            let few = keys.count.clone().lt(Expr::int(cluster * CLUSTER_KEYS as i64 + 1));
            few.select(share(cluster), share(splits))
        } else {
            share(splits)
        };
        let share = share.max(Expr::int(SPLIT_KEYS as i64));
        let share = b.k.let_("share", DType::I32, (share + (step - 1)) / step * step);
        let active = b.k.let_("active", DType::I32, (keys.count.clone() + share.clone() - 1) / share.clone());
        let first = keys.first.clone() + Expr::BlockIdx(Axis::Z) * share.clone();
        let first = b.k.let_("first", DType::I32, first);
        let end = b.k.let_("end", DType::I32, (first.clone() + share).min(keys.end.clone()));
        Split { active, first, end, splits, cluster }
    }

    /// Most steps that a share takes of so many keys.
    pub fn most_steps(block: &Block, step: i64, keys: i64) -> i64 {
        let (splits, cluster) = (i64::from(block.splits), i64::from(block.cluster));
        let steps = |keys: i64, blocks: i64| {
            let share = (keys + (blocks - 1)) / blocks;
            (share.max(SPLIT_KEYS as i64) + (step - 1)) / step
        };
        match (splits, cluster) {
            (1, _) => (keys + (step - 1)) / step,
            _ if 1 < cluster && cluster < splits => {
                let few = keys.min(cluster * CLUSTER_KEYS as i64);
                steps(keys, splits).max(steps(few, cluster))
            }
            _ => steps(keys, splits),
        }
    }

    /// Whether this block is one of the active ones.
    pub fn has_keys(&self) -> Expr {
        Expr::BlockIdx(Axis::Z).lt(self.active.clone())
    }

    /// Whether this block is one of those that join their results in a cluster, with keys or without.
    pub fn joins(&self) -> Expr {
        match self.cluster < self.splits {
            true => self.in_cluster().and(Expr::BlockIdx(Axis::Z).lt(Expr::int(self.cluster))),
            false => self.in_cluster(),
        }
    }

    /// Whether several blocks join their results, all of one cluster.
    pub fn in_cluster(&self) -> Expr {
        let several = self.active.clone().ge(Expr::int(2));
        match self.cluster < self.splits {
            true => several.and(self.active.clone().lt(Expr::int(self.cluster + 1))),
            false => several,
        }
    }
}

/// How many parts there are.
pub(super) enum Count {
    Fixed(u32),
    /// So many of at most this number.
    UpTo(u32, Expr),
    Counted(Expr),
}

/// Softmax states of one head: rows `first + part · stride` of three arrays.
pub(super) struct Parts {
    pub count: Count,
    pub max: Mem,
    pub sum: Mem,
    pub out: Mem,
    pub first: Expr,
    pub stride: i64,
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
            Count::UpTo(most, n) => b.unrolled("u", most - from, |b, u| {
                let part = u + from_part;
                fill(b, part.clone(), Some(part.lt(n.clone())))
            }),
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
pub(super) struct Joined {
    pub best: VarId,
    pub total: VarId,
    pub acc: VarId,
}

/// Threads that join: a warp for each scheduler of a multiprocessor. Each makes every part's weight for itself, an
/// exponential, of which a scheduler makes one a warp in eight cycles; so more warps take longer.
const JOINING: usize = 128;

/// Neighbouring elements of a value that a thread joins at a time, parts of `row` of them in memory: as few as leave
/// [`JOINING`] threads.
pub(super) fn together(block: &Block, elements: usize, row: usize) -> u32 {
    let threads = |n: usize| block.heads as usize * elements / n;
    let fits = |n: &usize| row.is_multiple_of(*n);
    let sizes = [1, 2, 4];
    let few = sizes.into_iter().filter(fits).find(|n| threads(*n) <= JOINING);
    few.or(sizes.into_iter().rfind(fits)).unwrap_or(1) as u32
}

/// The same where parts are whole values.
fn of_whole(a: &Attention, block: &Block) -> u32 {
    together(block, a.value_dim, a.value_dim)
}

/// Joins the parts of a head for some elements from d on, in order, with a score that no key belongs to.
///
/// Parts in shared memory are read twice, first for the largest score. Those in global memory are read once, so that
/// all loads are in flight together: the sums are scaled as a larger score is found.
pub(super) fn join(
    b: &mut Body<'_>,
    parts: &Parts,
    (d, n, dim): (Expr, u32, i64),
    sink: Option<Expr>,
) -> Result<Joined, String> {
    let best = b.k.let_mut("best_of_all", DType::F32, Expr::load(parts.max, parts.row(Expr::int(0))));
    let once = matches!(parts.count, Count::Counted(_));
    // A part that may be missing is not read where it is; of those that are counted, the last is read again.
    let read = |there: &Option<Expr>, value: Expr, missing: f32| match (&parts.count, there) {
        (Count::UpTo(..), Some(there)) => there.clone().select(value, Expr::float(missing)),
        (Count::Fixed(_) | Count::UpTo(..) | Count::Counted(_), _) => value,
    };
    if !once {
        parts.each(b, 1, |b, part, there| {
            let other = read(&there, Expr::load(parts.max, parts.row(part)), f32::NEG_INFINITY);
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
        let other = match &there {
            // What is not there weighs nothing.
            Some(there) => there.clone().select(other, Expr::float(f32::NEG_INFINITY)),
            None => other,
        };
        let other = b.k.let_("part_max", DType::F32, other);
        let sum = read(&there, Expr::load(parts.sum, row.clone()), 0.0);
        let sum = b.k.let_("part_sum", DType::F32, sum);
        let out = b.k.array("part_out", DType::F32, n, None);
        match (&parts.count, n) {
            (Count::UpTo(..), 1) => {
                let value = read(&there, Expr::load(parts.out, row * dim + d), 0.0);
                b.k.assign_elem(out, Expr::int(0), value);
            }
            (Count::UpTo(..), _) => return Err(format!("{n} elements of parts that may be missing")),
            (Count::Fixed(_) | Count::Counted(_), _) => load_some(b, out, parts.out, row * dim + d, n),
        }
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

/// Each thread takes n neighbouring elements (h, d…) of the block's heads at a time, of so many for each.
pub(super) fn elements(
    b: &mut Body<'_>,
    (elements, n): (usize, u32),
    block: &Block,
    fill: impl FnOnce(&mut Body<'_>, Expr, Expr) -> Result<(), String>,
) -> Result<(), String> {
    let n = i64::from(n);
    let (heads, across) = (i64::from(block.heads), elements as i64 / n);
    let along = (Expr::ThreadIdx, Expr::int(heads * across), Expr::int(block.warps * 32));
    b.for_loop("i", along, Unroll::Never, |b, i| {
        let h = b.k.let_("h", DType::I32, i.clone() / across);
        let d = b.k.let_("d", DType::I32, i % across * n);
        fill(b, h, d)
    })
}

/// Some neighbouring elements of a head that a thread finishes.
pub(super) struct Elements {
    /// Head of the block.
    pub h: Expr,
    /// The first, in the head's value and in a row of the parts, which has so many.
    pub d: Expr,
    pub in_row: Expr,
    pub row: usize,
    /// How many.
    pub n: u32,
}

impl Elements {
    /// Of rows that are whole values.
    fn whole(a: &Attention, block: &Block, h: Expr, d: Expr) -> Elements {
        Elements { h, in_row: d.clone(), d, row: a.value_dim, n: of_whole(a, block) }
    }
}

/// Joins parts with the sink, divides by the sum of weights, and stores, or leaves it to be projected.
pub(super) fn finish(
    b: &mut Body<'_>,
    a: &Attention,
    parts: &Parts,
    place: &Place,
    elements: Elements,
    projection: Option<&Projection<'_>>,
) -> Result<(), String> {
    let sink = match &a.sink {
        Some(sink) => {
            let head = place.first_head.clone() + elements.h.clone();
            let sink = b.lower(sink, &Point::at(vec![place.token.clone(), head]))?;
            Some(b.k.let_("sink", DType::F32, sink))
        }
        None => None,
    };
    let joined = join(b, parts, (elements.in_row.clone(), elements.n, elements.row as i64), sink)?;
    store(b, a, place, &joined, elements, projection)
}

/// Divides what was joined by the sum of weights, and stores, or leaves it to be projected.
fn store(
    b: &mut Body<'_>,
    a: &Attention,
    place: &Place,
    joined: &Joined,
    Elements { h, d, n, .. }: Elements,
    projection: Option<&Projection<'_>>,
) -> Result<(), String> {
    let head = place.first_head.clone() + h.clone();
    // The best key has weight 1; where every key is hidden the result is 0.
    let total = b.k.let_("weights", DType::F32, Expr::Var(joined.total).max(Expr::float(1.0)));
    b.unrolled("e", n, |b, e| {
        let acc = Expr::elem(joined.acc, e.clone());
        let result = Expr::Binary(BinaryOp::Div, Box::new(acc), Box::new(total));
        let result = b.k.let_("result", DType::F32, result);
        if let Some(projection) = projection {
            return projection.put(b, place, (&h, &(d + e)), result);
        }
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
    elements(b, (a.value_dim, of_whole(a, block)), block, |b, h, d| {
        let parts = states.parts(block, &h);
        finish(b, a, &parts, place, Elements::whole(a, block, h, d), None)
    })
}

/// Joins the warps, and has the blocks that share the token's keys joined. A block that is alone stores its result at
/// once.
pub(super) fn join_splits(
    b: &mut Body<'_>,
    (a, block): (&Attention, &Block),
    place: &Place,
    states: &Warps,
    split: &Split,
    exchange: Option<&Exchange>,
) -> Result<(), String> {
    let counted = block.cluster < block.splits;
    // A sink takes part in the last join alone, which is one of its own then.
    let alone = split.active.clone().eq_(Expr::int(1));
    if a.projection.is_none() && (a.sink.is_some() || !counted) {
        b.if_then(alone.clone(), |b| join_warps(b, a, block, place, states))?;
    }
    if let (Some(_), Some(exchange)) = (&a.projection, exchange) {
        return exchange.send(b, a, block, states);
    }
    if let Some(exchange) = exchange {
        b.if_then(split.in_cluster(), |b| exchange.send(b, a, block, states))?;
    }
    if !counted {
        return Ok(());
    }
    let several = split.active.clone().ge(Expr::int(split.cluster + 1));
    let several = b.k.let_("several", DType::Bool, several);
    match a.sink {
        Some(_) => b.if_then(several.clone(), |b| leave(b, (a, block), place, states, (split, None)))?,
        None => {
            let alone = b.k.let_("alone", DType::Bool, alone);
            let either = Expr::Binary(BinaryOp::Or, Box::new(alone.clone()), Box::new(several.clone()));
            b.if_then(either, |b| leave(b, (a, block), place, states, (split, Some(alone))))?;
        }
    }
    b.if_then(several, |b| join_by_counter(b, (a, block), place, split))
}

/// Row of a head's first part in the scratch.
fn scratch_row(a: &Attention, place: &Place, split: &Split, h: Expr) -> Expr {
    let heads = (a.kv_heads * a.group) as i64;
    (place.token.clone() * heads + place.first_head.clone() + h) * split.splits
}

/// The arrays of the scratch: largest scores, sums of weights, weighted values.
fn scratch(b: &Body<'_>) -> Result<[Mem; 3], String> {
    b.partials[..].try_into().map_err(|_| "splits of keys need three arrays".to_owned())
}

/// Joins the warps, and leaves the block's part in the scratch, or stores it as the result where the block is `alone`.
fn leave(
    b: &mut Body<'_>,
    (a, block): (&Attention, &Block),
    place: &Place,
    states: &Warps,
    (split, alone): (&Split, Option<Expr>),
) -> Result<(), String> {
    let [max, sum, out] = scratch(b)?;
    let (n, dim) = (of_whole(a, block), a.value_dim as i64);
    elements(b, (a.value_dim, n), block, |b, h, d| {
        let joined = join(b, &states.parts(block, &h), (d.clone(), n, dim), None)?;
        let part = |b: &mut Body<'_>| {
            let own = scratch_row(a, place, split, h.clone()) + Expr::BlockIdx(Axis::Z);
            let own = b.k.let_("own", DType::I32, own);
            b.if_then(d.clone().eq_(Expr::int(0)), |b| {
                b.k.store(max, own.clone(), joined.best.into());
                b.k.store(sum, own.clone(), joined.total.into());
                Ok(())
            })?;
            store_some(b, out, own * dim + d.clone(), joined.acc, n);
            Ok(())
        };
        let Some(alone) = alone else { return part(b) };
        let not = Expr::Unary(UnaryOp::Not, Box::new(alone.clone()));
        b.if_then(not, part)?;
        b.if_then(alone, |b| {
            store(b, a, place, &joined, Elements::whole(a, block, h.clone(), d.clone()), None)
        })
    })
}

/// Joins, in the block that arrives last, the blocks that are more than a cluster.
fn join_by_counter(
    b: &mut Body<'_>,
    (a, block): (&Attention, &Block),
    place: &Place,
    split: &Split,
) -> Result<(), String> {
    let [max, sum, out] = scratch(b)?;
    let heads = (a.kv_heads * a.group) as i64;
    let group = place.token.clone() * (heads / i64::from(block.heads)) + Expr::BlockIdx(Axis::Y);
    let last = b.last_block(group, split.active.clone().cast(DType::U32))?;
    b.if_then(last, |b| {
        elements(b, (a.value_dim, of_whole(a, block)), block, |b, h, d| {
            let (count, first) =
                (Count::Counted(split.active.clone()), scratch_row(a, place, split, h.clone()));
            let parts = Parts { count, max, sum, out, first, stride: 1 };
            finish(b, a, &parts, place, Elements::whole(a, block, h, d), None)
        })
    })
}
