//! Attention of one token: a block for some query heads of one key head, its warps splitting the keys.
//!
//! A group of lanes takes a key at a time, each lane a slice of it; the groups keep their own online
//! softmax (running maximum, sum, weighted values), joined at the end by shuffles and shared memory.
//! For decode, where keys are read once and arithmetic is little.

use super::attention_join::{Place, Split, Warps, join_splits, join_warps, publish};
use super::warp::{Threads, shuffle_reduce, threads, vector_lanes};
use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::ids::{OperandId, VarId};
use weft_ir::kernel::{Axis, CacheHint, Expr, MathFn, Stmt, Unroll};
use weft_ir::plan::Attention;
use weft_ir::scalar::Reduce;

/// A maximum below any score, finite so that differences are defined.
const NO_SCORE: f32 = -1.0e30;

/// Layout of a warp over keys.
pub(super) struct Layout {
    /// Lanes that share a key.
    pub lanes: i64,
    /// Keys a warp takes at a time.
    keys: i64,
    /// Elements of a key and of a value that a lane holds.
    key_slice: u32,
    pub value_slice: u32,
    pub warps: i64,
    pub heads: u32,
    /// Keys of a lane whose loads are in flight together.
    depth: u32,
}

impl Layout {
    fn new(a: &Attention, warps: u32, heads: u32, depth: u32) -> Layout {
        let lanes = a.row_lanes();
        Layout {
            lanes: lanes as i64,
            keys: 32 / lanes as i64,
            key_slice: (a.head_dim / lanes) as u32,
            value_slice: (a.value_dim / lanes) as u32,
            warps: i64::from(warps),
            heads,
            depth,
        }
    }

    /// Keys that a block takes at a time.
    fn step(&self) -> i64 {
        self.warps * self.keys * i64::from(self.depth)
    }
}

/// Running state of the online softmax: registers.
pub(super) struct Online {
    pub max: VarId,
    pub sum: VarId,
    pub out: VarId,
}

pub(super) fn build(
    b: &mut Body<'_>,
    a: &Attention,
    (warps, heads, depth, splits): (u32, u32, u32, u32),
) -> Result<(), String> {
    let l = Layout::new(a, warps, heads, depth);
    let states = Warps::declare(b, a, &l);
    b.wait_for_dependencies();
    let t = threads(b);
    let token = b.k.let_("token", DType::I32, Expr::BlockIdx(Axis::X));
    let first_head = Expr::BlockIdx(Axis::Y) * i64::from(heads);
    let first_head = b.k.let_("first_head", DType::I32, first_head);
    let place = Place { token: token.clone(), first_head };
    let length = b.lower(&a.length, &Point::at(vec![token]))?;
    let length = b.k.let_("length", DType::I32, length);
    if splits == 1 {
        attend(b, a, &l, &t, &place, (Expr::int(0), length), &states)?;
        return join_warps(b, a, &l, &place, &states);
    }
    let split = Split::new(b, splits, l.step(), &length);
    b.if_then(split.has_keys(), |b| {
        attend(b, a, &l, &t, &place, (split.first.clone(), split.end.clone()), &states)?;
        join_splits(b, a, &l, &place, &states, &split)
    })
}

/// The softmax of each warp over its share of keys `first..end`, left in shared memory behind a barrier.
fn attend(
    b: &mut Body<'_>,
    a: &Attention,
    l: &Layout,
    t: &Threads,
    place: &Place,
    (first, end): (Expr, Expr),
    states: &Warps,
) -> Result<(), String> {
    let Place { token, first_head } = place;
    let kv_head = b.k.let_("kv_head", DType::I32, first_head.clone() / a.group as i64);
    let part = b.k.let_("part", DType::I32, t.lane.clone() % l.lanes);
    let q = load_queries(b, a, l, token, first_head, &part)?;
    let state = Online {
        max: b.k.array("best", DType::F32, l.heads, Some(Expr::float(NO_SCORE))),
        sum: b.k.array("total", DType::F32, l.heads, Some(Expr::float(0.0))),
        out: b.k.array("out_acc", DType::F32, l.heads * l.value_slice, Some(Expr::float(0.0))),
    };
    let stride = l.warps * l.keys;
    let own = first.clone() + t.warp.clone() * l.keys + t.lane.clone() / l.lanes;
    let own = b.k.let_("first_key", DType::I32, own);
    // Where the keys of a token follow each other, their base is the same for all.
    let base = match a.slot_base() {
        Some(base) => {
            let base = b.lower(base, &Point::at(vec![token.clone()]))?;
            Some(b.k.let_("base", DType::I32, base))
        }
        None => None,
    };
    // Every lane takes part in every round, so that shuffles stay whole.
    let step = l.step();
    let rounds = (end.clone() - first + (step - 1)) / step;
    let rounds = b.k.let_("rounds", DType::I32, rounds);
    b.for_loop("round", (Expr::int(0), rounds, Expr::int(1)), Unroll::Never, |b, round| {
        let j = b.k.let_("j", DType::I32, own + round * step);
        let keys = Slices::declare(b, "key", a.keys, l.key_slice, l.depth);
        let values = Slices::declare(b, "value", a.values, l.value_slice, l.depth);
        b.unrolled("u", l.depth, |b, u| {
            let safe = (j.clone() + u.clone() * stride).min(end.clone() - 1);
            let safe = b.k.let_("safe_key", DType::I32, safe);
            let slot = match base {
                Some(base) => base + safe,
                None => b.lower(&a.slot, &Point::at(vec![token.clone(), safe]))?,
            };
            let slot = b.k.let_("slot", DType::I32, slot);
            keys.load(b, [slot.clone(), kv_head.clone()], &part, u.clone())?;
            values.load(b, [slot, kv_head], &part, u)
        })?;
        b.unrolled("h", l.heads, |b, h| {
            let scores = b.k.array("scores", DType::F32, l.depth, None);
            b.unrolled("u", l.depth, |b, u| {
                let dot = b.k.let_mut("dot", DType::F32, Expr::float(0.0));
                b.unrolled("e", l.key_slice, |b, e| {
                    let qe = Expr::elem(q, h.clone() * i64::from(l.key_slice) + e.clone());
                    b.k.assign(dot, Expr::fma(qe, keys.element(u.clone(), e), dot.into()));
                    Ok(())
                })?;
                shuffle_reduce(b, dot, Reduce::Sum, 1, l.lanes);
                let at = b.k.let_("key_at", DType::I32, j.clone() + u.clone() * stride);
                let safe = at.clone().min(end.clone() - 1);
                let coords = vec![token.clone(), first_head.clone() + h.clone(), safe];
                let score = b.lower(&a.score, &Point::with_acc(coords, dot.into()))?;
                let inside = at.lt(end.clone());
                b.k.assign_elem(scores, u, inside.select(score, Expr::float(f32::NEG_INFINITY)));
                Ok(())
            })?;
            update(b, &state, l, h, scores, &values)
        })
    })?;
    join_lanes(b, &state, l)?;
    let first_lanes = t.lane.clone().lt(Expr::int(l.lanes));
    b.if_then(first_lanes, |b| publish(b, &state, l, t, &part, a, states))?;
    b.k.push(Stmt::Barrier);
    Ok(())
}

/// The block's queries, each lane its slice of every head.
fn load_queries(
    b: &mut Body<'_>,
    a: &Attention,
    l: &Layout,
    token: &Expr,
    first_head: &Expr,
    part: &Expr,
) -> Result<VarId, String> {
    let q = b.k.array("q_slice", DType::F32, l.heads * l.key_slice, None);
    b.unrolled("h", l.heads, |b, h| {
        b.unrolled("e", l.key_slice, |b, e| {
            let element = part.clone() * i64::from(l.key_slice) + e.clone();
            let value = b.load(a.q, &[token.clone(), first_head.clone() + h.clone(), element]);
            b.k.assign_elem(q, h * i64::from(l.key_slice) + e, value);
            Ok(())
        })
    })?;
    Ok(q)
}

/// A lane's slices of some cached rows, in registers as stored.
struct Slices {
    operand: OperandId,
    raw: VarId,
    slice: u32,
}

impl Slices {
    fn declare(b: &mut Body<'_>, name: &str, operand: OperandId, slice: u32, rows: u32) -> Slices {
        let dtype = b.work.reads[operand.index()].dtype;
        Slices { operand, raw: b.k.array(name, dtype, slice * rows, None), slice }
    }

    /// Loads the slice of a row as the u-th, with the widest loads that fit.
    fn load(&self, b: &mut Body<'_>, [slot, head]: [Expr; 2], part: &Expr, u: Expr) -> Result<(), String> {
        let operand = &b.work.reads[self.operand.index()];
        let (dtype, shape, mem) = (operand.dtype, operand.shape.clone(), b.reads[self.operand.index()]);
        let slice = i64::from(self.slice);
        // Rows may be longer than what is read of them.
        let row = shape.last().and_then(|d| d.as_const()).unwrap_or(1);
        let lanes = vector_lanes(dtype, self.slice as usize).min(vector_lanes(dtype, row));
        let start = b.flat(&shape, &[slot, head, part.clone() * slice]);
        b.unrolled("v", self.slice / lanes, |b, v| {
            let dst_at = v.clone() * i64::from(lanes);
            let index = b.flat_offset(&shape, start, dst_at.clone());
            let dst_at = u * slice + dst_at;
            if lanes == 1 {
                b.k.assign_elem(self.raw, dst_at, Expr::load(mem, index));
            } else {
                b.k.push(Stmt::LoadVec {
                    dst: self.raw,
                    dst_at,
                    mem,
                    index,
                    lanes,
                    hint: CacheHint::Default,
                });
            }
            Ok(())
        })
    }

    /// Element e of the u-th slice, as f32.
    fn element(&self, u: Expr, e: Expr) -> Expr {
        Expr::elem(self.raw, u * i64::from(self.slice) + e).cast(DType::F32)
    }
}

/// Adds some keys' scores and values to a head's running softmax.
fn update(
    b: &mut Body<'_>,
    s: &Online,
    l: &Layout,
    h: Expr,
    scores: VarId,
    values: &Slices,
) -> Result<(), String> {
    let old = Expr::elem(s.max, h.clone());
    let best = b.k.let_mut("new_best", DType::F32, old.clone());
    b.unrolled("u", l.depth, |b, u| {
        b.k.assign(best, Expr::Var(best).max(Expr::elem(scores, u)));
        Ok(())
    })?;
    let scale = Expr::math(MathFn::Exp, old - Expr::Var(best));
    let scale = b.k.let_("scale", DType::F32, scale);
    b.k.assign_elem(s.max, h.clone(), best.into());
    let sum = b.k.let_mut("sum", DType::F32, Expr::elem(s.sum, h.clone()) * scale.clone());
    b.unrolled("u", l.depth, |b, u| {
        let weight = Expr::math(MathFn::Exp, Expr::elem(scores, u.clone()) - Expr::Var(best));
        b.k.assign_elem(scores, u.clone(), weight);
        b.k.assign(sum, Expr::Var(sum) + Expr::elem(scores, u));
        Ok(())
    })?;
    b.k.assign_elem(s.sum, h.clone(), sum.into());
    b.unrolled("e", l.value_slice, |b, e| {
        let at = h * i64::from(l.value_slice) + e.clone();
        b.k.assign_elem(s.out, at.clone(), Expr::elem(s.out, at.clone()) * scale);
        b.unrolled("u", l.depth, |b, u| {
            let value = values.element(u.clone(), e);
            let sum = Expr::fma(Expr::elem(scores, u), value, Expr::elem(s.out, at.clone()));
            b.k.assign_elem(s.out, at, sum);
            Ok(())
        })
    })
}

/// Joins the lane groups of a warp, which saw different keys.
fn join_lanes(b: &mut Body<'_>, s: &Online, l: &Layout) -> Result<(), String> {
    if l.lanes == 32 {
        return Ok(());
    }
    b.unrolled("h", l.heads, |b, h| {
        let best = b.k.let_mut("joint", DType::F32, Expr::elem(s.max, h.clone()));
        shuffle_reduce(b, best, Reduce::Max, l.lanes, 32);
        let scale = Expr::math(MathFn::Exp, Expr::elem(s.max, h.clone()) - Expr::Var(best));
        let scale = b.k.let_("scale", DType::F32, scale);
        b.k.assign_elem(s.max, h.clone(), best.into());
        let sum = b.k.let_mut("sum", DType::F32, Expr::elem(s.sum, h.clone()) * scale.clone());
        shuffle_reduce(b, sum, Reduce::Sum, l.lanes, 32);
        b.k.assign_elem(s.sum, h.clone(), sum.into());
        b.unrolled("e", l.value_slice, |b, e| {
            let at = h * i64::from(l.value_slice) + e;
            let x = b.k.let_mut("x", DType::F32, Expr::elem(s.out, at.clone()) * scale);
            shuffle_reduce(b, x, Reduce::Sum, l.lanes, 32);
            b.k.assign_elem(s.out, at, x.into());
            Ok(())
        })
    })
}
