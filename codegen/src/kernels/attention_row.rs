//! Attention of one token: a block for some query heads of one key head, its warps splitting the keys.
//!
//! A group of lanes takes a key at a time, each lane a slice of it; the groups keep their own online
//! softmax (running maximum, sum, weighted values), joined at the end by shuffles and shared memory.
//! For decode, where keys are read once and arithmetic is little. There the kernel's time is that of a few loads
//! after one another, so the first keys and values are loaded while the kernels before this one still run.

use super::attention_group::Tiles;
use super::attention_join::{Place, Split, Warps, join_splits, join_warps, publish};
use super::warp::{Threads, shuffle_reduce, threads, vector_lanes};
use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::ids::{OperandId, VarId};
use weft_ir::kernel::{Axis, CacheHint, Expr, MathFn, Stmt, Unroll};
use weft_ir::plan::Attention;
use weft_ir::scalar::Reduce;

/// A maximum below any score, finite so that differences are defined.
pub(super) const NO_SCORE: f32 = -1.0e30;

/// Layout of a warp over keys.
#[derive(Clone)]
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
    /// Keys of a lane (or tiles of a warp) whose loads are in flight together.
    pub depth: u32,
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

    /// Keys between two of a lane.
    fn stride(&self) -> i64 {
        self.warps * self.keys
    }

    /// Keys that a block takes at a time.
    fn step(&self) -> i64 {
        self.stride() * i64::from(self.depth)
    }
}

/// Running state of the online softmax: registers.
pub(super) struct Online {
    pub max: VarId,
    pub sum: VarId,
    pub out: VarId,
}

/// Where the keys of a share of a token's keys are.
pub(super) struct Cache<'e> {
    pub a: &'e Attention,
    token: Expr,
    /// First key of the share, and its end.
    pub first: Expr,
    pub end: Expr,
    pub kv_head: Expr,
    /// Where the keys of a token follow each other, their base is the same for all.
    base: Option<Expr>,
}

impl<'e> Cache<'e> {
    fn declare(
        b: &mut Body<'_>,
        a: &'e Attention,
        place: &Place,
        (first, end): (Expr, Expr),
    ) -> Result<Cache<'e>, String> {
        let kv_head = b.k.let_("kv_head", DType::I32, place.first_head.clone() / a.group as i64);
        let base = match a.slot_base() {
            Some(base) => {
                let base = b.lower(base, &Point::at(vec![place.token.clone()]))?;
                Some(b.k.let_("base", DType::I32, base))
            }
            None => None,
        };
        Ok(Cache { a, token: place.token.clone(), first, end, kv_head, base })
    }

    /// Slot of a key; past the end, that of the last.
    pub fn slot(&self, b: &mut Body<'_>, key: Expr) -> Result<Expr, String> {
        let safe = b.k.let_("safe_key", DType::I32, key.min(self.end.clone() - 1));
        let slot = match &self.base {
            Some(base) => base.clone() + safe,
            None => b.lower(&self.a.slot, &Point::at(vec![self.token.clone(), safe]))?,
        };
        Ok(b.k.let_("slot", DType::I32, slot))
    }

    /// Rounds of so many keys that the share takes.
    pub fn rounds(&self, b: &mut Body<'_>, step: i64) -> Expr {
        let rounds = (self.end.clone() - self.first.clone() + (step - 1)) / step;
        b.k.let_("rounds", DType::I32, rounds)
    }
}

/// Loads what is not there yet of the first keys.
pub(super) type Fresh<'f> = dyn FnMut(&mut Body<'_>) -> Result<(), String> + 'f;

/// How the warps of a block read keys and values, and what they make of them.
pub(super) trait Reader {
    /// Loads those of the first keys, and their values, that a condition holds for.
    fn load_first(
        &self,
        b: &mut Body<'_>,
        hint: CacheHint,
        which: Option<&dyn Fn(Expr) -> Expr>,
    ) -> Result<(), String>;

    /// Leaves each warp's softmax state in shared memory, behind a barrier. A round's keys and values are loaded
    /// during the round before; `fresh` loads the rest of the first.
    fn attend(
        &self,
        b: &mut Body<'_>,
        place: &Place,
        fresh: &mut Fresh<'_>,
        to: &Warps,
    ) -> Result<(), String>;
}

/// A block for some query heads of one key head: `(warps, heads, depth, splits)`; on tensor cores or not.
pub(super) fn build(
    b: &mut Body<'_>,
    a: &Attention,
    (warps, heads, depth, splits): (u32, u32, u32, u32),
    tensor_cores: bool,
) -> Result<(), String> {
    let l = Layout::new(a, warps, heads, depth);
    let states = Warps::declare(b, a, &l);
    b.launch_dependents();
    let early = a.settled && a.sequential_slots();
    if !early {
        b.wait();
    }
    let t = threads(b);
    let token = b.k.let_("token", DType::I32, Expr::BlockIdx(Axis::X));
    let first_head = Expr::BlockIdx(Axis::Y) * i64::from(heads);
    let first_head = b.k.let_("first_head", DType::I32, first_head);
    let place = Place { token: token.clone(), first_head };
    let length = b.lower(&a.length, &Point::at(vec![token]))?;
    let length = b.k.let_("length", DType::I32, length);
    let step = if tensor_cores { i64::from(warps * 16 * depth) } else { l.step() };
    let split = (splits > 1).then(|| Split::new(b, splits, step, &length));
    let share = match &split {
        Some(split) => (split.first.clone(), split.end.clone()),
        None => (Expr::int(0), length.clone()),
    };
    let cache = Cache::declare(b, a, &place, share)?;
    let reader: Box<dyn Reader + '_> = match tensor_cores {
        true => Box::new(Tiles::declare(b, cache, &l, &t)),
        false => Box::new(Rows::declare(b, cache, &l, &t)),
    };
    let own = length - 1;
    if early {
        b.k.comment("Earlier steps wrote all keys but the token's own: their loads start before the wait.");
        reader.load_first(b, CacheHint::Settled, Some(&|key| key.lt(own.clone())))?;
        b.wait();
    }
    let mut fresh = |b: &mut Body<'_>| match early {
        true => reader.load_first(b, CacheHint::Default, Some(&|key| key.ge(own.clone()))),
        false => reader.load_first(b, CacheHint::Default, None),
    };
    match &split {
        None => {
            reader.attend(b, &place, &mut fresh, &states)?;
            join_warps(b, a, &l, &place, &states)
        }
        Some(split) => b.if_then(split.has_keys(), |b| {
            reader.attend(b, &place, &mut fresh, &states)?;
            join_splits(b, a, &l, &place, &states, split)
        }),
    }
}

/// What a lane reads where a group of lanes takes a key: its part of some keys and values.
struct Rows<'e> {
    cache: Cache<'e>,
    l: Layout,
    t: Threads,
    /// The lane's first key.
    first_key: Expr,
    part: Expr,
    keys: Slices,
    values: Slices,
}

impl<'e> Rows<'e> {
    fn declare(b: &mut Body<'_>, cache: Cache<'e>, l: &Layout, t: &Threads) -> Rows<'e> {
        let part = b.k.let_("part", DType::I32, t.lane.clone() % l.lanes);
        let first_key = cache.first.clone() + t.warp.clone() * l.keys + t.lane.clone() / l.lanes;
        let first_key = b.k.let_("first_key", DType::I32, first_key);
        let keys = Slices::declare(b, "key", cache.a.keys, l.key_slice, l.depth);
        let values = Slices::declare(b, "value", cache.a.values, l.value_slice, l.depth);
        Rows { cache, l: l.clone(), t: t.clone(), first_key, part, keys, values }
    }

    /// Loads the lane's slice of a key (or its value) as the u-th; past the end, that of the last key.
    fn load(
        &self,
        b: &mut Body<'_>,
        slices: &Slices,
        (key, u): (Expr, Expr),
        hint: CacheHint,
    ) -> Result<(), String> {
        let slot = self.cache.slot(b, key)?;
        slices.load(b, [slot, self.cache.kv_head.clone()], &self.part, u, hint)
    }

    /// Loads all slices of a later round.
    fn load_next(&self, b: &mut Body<'_>, slices: &Slices, first: &Expr) -> Result<(), String> {
        b.unrolled("u", self.l.depth, |b, u| {
            let key = first.clone() + u.clone() * self.l.stride();
            self.load(b, slices, (key, u), CacheHint::Default)
        })
    }
}

impl Reader for Rows<'_> {
    fn load_first(
        &self,
        b: &mut Body<'_>,
        hint: CacheHint,
        which: Option<&dyn Fn(Expr) -> Expr>,
    ) -> Result<(), String> {
        b.unrolled("u", self.l.depth, |b, u| {
            let key = self.first_key.clone() + u.clone() * self.l.stride();
            let key = b.k.let_("key_at", DType::I32, key);
            let all = |b: &mut Body<'_>| {
                self.load(b, &self.keys, (key.clone(), u.clone()), hint)?;
                self.load(b, &self.values, (key.clone(), u), hint)
            };
            match which {
                Some(which) => b.if_then(which(key.clone()), all),
                None => all(b),
            }
        })
    }

    fn attend(
        &self,
        b: &mut Body<'_>,
        place: &Place,
        fresh: &mut Fresh<'_>,
        to: &Warps,
    ) -> Result<(), String> {
        let (a, end, l) = (self.cache.a, &self.cache.end, &self.l);
        let q = load_queries(b, a, l, place, &self.part)?;
        fresh(b)?;
        let state = Online {
            max: b.k.array("best", DType::F32, l.heads, Some(Expr::float(NO_SCORE))),
            sum: b.k.array("total", DType::F32, l.heads, Some(Expr::float(0.0))),
            out: b.k.array("out_acc", DType::F32, l.heads * l.value_slice, Some(Expr::float(0.0))),
        };
        // Every lane takes part in every round, so that shuffles stay whole.
        let step = l.step();
        let rounds = self.cache.rounds(b, step);
        b.for_loop("round", (Expr::int(0), rounds.clone(), Expr::int(1)), Unroll::Never, |b, round| {
            let j = b.k.let_("j", DType::I32, self.first_key.clone() + round.clone() * step);
            let more = b.k.let_("more", DType::Bool, (round + 1).lt(rounds));
            let scores = b.k.array("scores", DType::F32, l.heads * l.depth, None);
            b.unrolled("h", l.heads, |b, h| {
                b.unrolled("u", l.depth, |b, u| {
                    let dot = b.k.let_mut("dot", DType::F32, Expr::float(0.0));
                    b.unrolled("e", l.key_slice, |b, e| {
                        let qe = Expr::elem(q, h.clone() * i64::from(l.key_slice) + e.clone());
                        let sum = Expr::fma(qe.cast(DType::F32), self.keys.element(u.clone(), e), dot.into());
                        b.k.assign(dot, sum);
                        Ok(())
                    })?;
                    shuffle_reduce(b, dot, Reduce::Sum, 1, l.lanes);
                    let at = b.k.let_("key_at", DType::I32, j.clone() + u.clone() * l.stride());
                    let safe = at.clone().min(end.clone() - 1);
                    let coords = vec![place.token.clone(), place.first_head.clone() + h.clone(), safe];
                    let score = b.lower(&a.score, &Point::with_acc(coords, dot.into()))?;
                    let score = at.lt(end.clone()).select(score, Expr::float(f32::NEG_INFINITY));
                    b.k.assign_elem(scores, h * i64::from(l.depth) + u, score);
                    Ok(())
                })
            })?;
            let next = b.k.let_("next", DType::I32, j + step);
            b.if_then(more.clone(), |b| self.load_next(b, &self.keys, &next))?;
            b.unrolled("h", l.heads, |b, h| update(b, &state, l, h, scores, &self.values))?;
            b.if_then(more, |b| self.load_next(b, &self.values, &next))
        })?;
        join_lanes(b, &state, l)?;
        let first_lanes = self.t.lane.clone().lt(Expr::int(l.lanes));
        b.if_then(first_lanes, |b| publish(b, &state, l, &self.t, &self.part, a, to))?;
        b.k.push(Stmt::Barrier);
        Ok(())
    }
}

/// The block's queries, each lane its slice of every head, as stored.
fn load_queries(
    b: &mut Body<'_>,
    a: &Attention,
    l: &Layout,
    place: &Place,
    part: &Expr,
) -> Result<VarId, String> {
    let q = Slices::declare(b, "q_slice", a.q, l.key_slice, l.heads);
    b.unrolled("h", l.heads, |b, h| {
        let at = [place.token.clone(), place.first_head.clone() + h.clone()];
        q.load(b, at, part, h, CacheHint::Default)
    })?;
    Ok(q.raw)
}

/// A lane's slices of some rows, in registers as stored.
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
    fn load(
        &self,
        b: &mut Body<'_>,
        [row, head]: [Expr; 2],
        part: &Expr,
        u: Expr,
        hint: CacheHint,
    ) -> Result<(), String> {
        let operand = &b.work.reads[self.operand.index()];
        let (dtype, shape, mem) = (operand.dtype, operand.shape.clone(), b.reads[self.operand.index()]);
        let slice = i64::from(self.slice);
        // Rows may be longer than what is read of them.
        let len = shape.last().and_then(|d| d.as_const()).unwrap_or(1);
        let lanes = vector_lanes(dtype, self.slice as usize).min(vector_lanes(dtype, len));
        let start = b.flat(&shape, &[row, head, part.clone() * slice]);
        b.unrolled("v", self.slice / lanes, |b, v| {
            let dst_at = v.clone() * i64::from(lanes);
            let index = b.flat_offset(&shape, start, dst_at.clone());
            let dst_at = u * slice + dst_at;
            if lanes == 1 {
                b.k.assign_elem(self.raw, dst_at, Expr::load(mem, index));
            } else {
                b.k.push(Stmt::LoadVec { dst: self.raw, dst_at, mem, index, lanes, hint });
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
    let first = h.clone() * i64::from(l.depth);
    b.unrolled("u", l.depth, |b, u| {
        b.k.assign(best, Expr::Var(best).max(Expr::elem(scores, first.clone() + u)));
        Ok(())
    })?;
    let scale = Expr::math(MathFn::Exp, old - Expr::Var(best));
    let scale = b.k.let_("scale", DType::F32, scale);
    b.k.assign_elem(s.max, h.clone(), best.into());
    let sum = b.k.let_mut("sum", DType::F32, Expr::elem(s.sum, h.clone()) * scale.clone());
    b.unrolled("u", l.depth, |b, u| {
        let at = first.clone() + u;
        let weight = Expr::math(MathFn::Exp, Expr::elem(scores, at.clone()) - Expr::Var(best));
        b.k.assign_elem(scores, at.clone(), weight);
        b.k.assign(sum, Expr::Var(sum) + Expr::elem(scores, at));
        Ok(())
    })?;
    b.k.assign_elem(s.sum, h.clone(), sum.into());
    b.unrolled("e", l.value_slice, |b, e| {
        let at = h * i64::from(l.value_slice) + e.clone();
        b.k.assign_elem(s.out, at.clone(), Expr::elem(s.out, at.clone()) * scale);
        b.unrolled("u", l.depth, |b, u| {
            let value = values.element(u.clone(), e);
            let weight = Expr::elem(scores, first.clone() + u);
            let sum = Expr::fma(weight, value, Expr::elem(s.out, at.clone()));
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
