//! Attention of one token with keys taken one by one.
//!
//! A group of lanes takes a key at a time, each lane a slice of it; the groups keep their own online
//! softmax (running maximum, sum, weighted values), joined at the end by shuffles and shared memory.

use super::attention_decode::{Attended, Block, Cache, NO_SCORE, Queries, Reader, Wanted};
use super::attention_join::{Place, Warps};
use super::attention_prologue::OwnKey;
use super::warp::{Threads, shuffle_reduce, vector_lanes};
use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::ids::{OperandId, SharedId, VarId};
use weft_ir::kernel::{CacheHint, Expr, MathFn, Mem, Stmt, Unroll};
use weft_ir::plan::Attention;
use weft_ir::scalar::Reduce;

/// Layout of a warp over keys.
#[derive(Clone)]
struct Layout {
    block: Block,
    /// Lanes that share a key.
    lanes: i64,
    /// Keys a warp takes at a time.
    keys: i64,
    /// Elements of a key and of a value that a lane holds.
    key_slice: u32,
    value_slice: u32,
}

impl Layout {
    fn new(a: &Attention, block: Block) -> Layout {
        let lanes = a.row_lanes();
        Layout {
            block,
            lanes: lanes as i64,
            keys: 32 / lanes as i64,
            key_slice: (a.head_dim / lanes) as u32,
            value_slice: (a.value_dim / lanes) as u32,
        }
    }

    /// Keys between two of a lane.
    fn stride(&self) -> i64 {
        self.block.warps * self.keys
    }

    /// Keys that a block takes at a time.
    fn step(&self) -> i64 {
        self.stride() * i64::from(self.block.depth)
    }
}

/// Running state of the online softmax: registers.
struct Online {
    max: VarId,
    sum: VarId,
    out: VarId,
}

/// What a lane reads where a group of lanes takes a key: its part of some keys and values.
pub(super) struct Rows<'e> {
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
    /// Keys that a block takes at a time.
    pub fn step(a: &Attention, block: &Block) -> i64 {
        Layout::new(a, *block).step()
    }

    pub fn declare(b: &mut Body<'_>, cache: Cache<'e>, block: Block, t: &Threads) -> Rows<'e> {
        let l = Layout::new(cache.a, block);
        let part = b.k.let_("part", DType::I32, t.lane.clone() % l.lanes);
        let first_key = cache.first.clone() + t.warp.clone() * l.keys + t.lane.clone() / l.lanes;
        let first_key = b.k.let_("first_key", DType::I32, first_key);
        let stored = |o: OperandId| (o, b.work.reads[o.index()].dtype);
        let (keys, values) = (stored(cache.a.keys), stored(cache.a.values));
        let keys = Slices::declare(b, "key", keys, l.key_slice, block.depth);
        let values = Slices::declare(b, "value", values, l.value_slice, block.depth);
        Rows { cache, l, t: t.clone(), first_key, part, keys, values }
    }

    /// Loads the lane's slice of a row of keys or values as the u-th.
    fn load(
        &self,
        b: &mut Body<'_>,
        slices: &Slices,
        (slot, u): (Expr, Expr),
        hint: CacheHint,
    ) -> Result<(), String> {
        slices.load(b, [slot, self.cache.kv_head.clone()], &self.part, u, hint)
    }

    /// Loads all slices of a later round; past `last`, those of it.
    fn load_next(&self, b: &mut Body<'_>, slices: &Slices, first: &Expr, last: Expr) -> Result<(), String> {
        b.unrolled("u", self.l.block.depth, |b, u| {
            let key = first.clone() + u.clone() * self.l.stride();
            let slot = self.cache.slot(b, key, &last)?;
            self.load(b, slices, (slot, u), CacheHint::Default)
        })
    }

    /// Takes the own key from shared memory where the lane has it in the round of its key `j`, or one behind it.
    fn take_own(&self, b: &mut Body<'_>, own: &OwnKey, j: &Expr) -> Result<(), String> {
        b.unrolled("u", self.l.block.depth, |b, u| {
            let here = (j.clone() + u.clone() * self.l.stride()).ge(own.key.clone());
            let row = (Expr::int(0), self.cache.a.head_dim);
            b.if_then(here, |b| self.keys.load_shared(b, own.row, row, &self.part, u))
        })
    }

    /// The u-th of the lane's first keys.
    fn key(&self, u: &Expr) -> Expr {
        self.first_key.clone() + u.clone() * self.l.stride()
    }
}

impl Reader for Rows<'_> {
    fn load_first(
        &self,
        b: &mut Body<'_>,
        wanted: Wanted,
        last: &Expr,
        hint: CacheHint,
    ) -> Result<(), String> {
        b.unrolled("u", self.l.block.depth, |b, u| {
            let slot = self.cache.slot(b, self.key(&u), last)?;
            if wanted.keys() {
                self.load(b, &self.keys, (slot.clone(), u.clone()), hint)?;
            }
            if wanted.values() {
                self.load(b, &self.values, (slot, u), hint)?;
            }
            Ok(())
        })
    }

    fn load_one(&self, b: &mut Body<'_>, key: &Expr) -> Result<(), String> {
        let slot = self.cache.slot_of(b, key.clone())?;
        b.unrolled("u", self.l.block.depth, |b, u| {
            b.if_then(self.key(&u).eq_(key.clone()), |b| {
                self.load(b, &self.keys, (slot.clone(), u.clone()), CacheHint::Default)?;
                self.load(b, &self.values, (slot, u), CacheHint::Default)
            })
        })
    }

    fn attend(&self, b: &mut Body<'_>, mut of: Attended<'_, '_>, to: &Warps) -> Result<(), String> {
        let (a, end, l) = (self.cache.a, &self.cache.end, &self.l);
        let queries = of.queries(b, &self.cache.kv_head)?;
        let place = of.place;
        let q = load_queries(b, (a, l), place, &self.part, &queries)?;
        of.fresh(b)?;
        let state = Online {
            max: b.k.array("best", DType::F32, l.block.heads, Some(Expr::float(NO_SCORE))),
            sum: b.k.array("total", DType::F32, l.block.heads, Some(Expr::float(0.0))),
            out: b.k.array("out_acc", DType::F32, l.block.heads * l.value_slice, Some(Expr::float(0.0))),
        };
        // Every lane takes part in every round, so that shuffles stay whole.
        let step = l.step();
        let (rounds, trigger) = of.rounds(b, &self.cache, step);
        b.for_loop("round", (Expr::int(0), rounds.clone(), Expr::int(1)), Unroll::Never, |b, round| {
            let j = b.k.let_("j", DType::I32, self.first_key.clone() + round.clone() * step);
            let more = b.k.let_("more", DType::Bool, (round.clone() + 1).lt(rounds));
            if let Some((own, here)) =
                self.cache.takes_own(self.cache.first.clone() + (round.clone() + 1) * step)
            {
                b.if_then(here, |b| self.take_own(b, own, &j))?;
            }
            let scores = b.k.array("scores", DType::F32, l.block.heads * l.block.depth, None);
            b.unrolled("h", l.block.heads, |b, h| {
                b.unrolled("u", l.block.depth, |b, u| {
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
                    b.k.assign_elem(scores, h * i64::from(l.block.depth) + u, score);
                    Ok(())
                })
            })?;
            let next = b.k.let_("next", DType::I32, j + step);
            b.if_then(more.clone(), |b| self.load_next(b, &self.keys, &next, self.cache.last_stored()))?;
            b.unrolled("h", l.block.heads, |b, h| update(b, &state, l, h, scores, &self.values))?;
            b.if_then(more, |b| {
                self.load_next(b, &self.values, &next, self.cache.last())?;
                trigger.loaded(b, round)
            })
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
    (a, l): (&Attention, &Layout),
    place: &Place,
    part: &Expr,
    from: &Queries,
) -> Result<VarId, String> {
    let dtype = match from {
        Queries::Stored => b.work.reads[a.q.index()].dtype,
        Queries::Made(_, dtype, _) => *dtype,
    };
    let q = Slices::declare(b, "q_slice", (a.q, dtype), l.key_slice, l.block.heads);
    b.unrolled("h", l.block.heads, |b, h| match from {
        Queries::Stored => {
            let at = [place.token.clone(), place.first_head.clone() + h.clone()];
            q.load(b, at, part, h, CacheHint::Default)
        }
        Queries::Made(shared, _, pitch) => {
            q.load_shared(b, *shared, (h.clone() * *pitch, *pitch as usize), part, h)
        }
    })?;
    Ok(q.raw)
}

/// A lane's slices of some rows of an operand, or of what is made of it, in registers as stored.
struct Slices {
    operand: OperandId,
    dtype: DType,
    raw: VarId,
    slice: u32,
}

impl Slices {
    fn declare(
        b: &mut Body<'_>,
        name: &str,
        (operand, dtype): (OperandId, DType),
        slice: u32,
        rows: u32,
    ) -> Slices {
        Slices { operand, dtype, raw: b.k.array(name, dtype, slice * rows, None), slice }
    }

    /// Loads the slice of a row of the operand as the u-th.
    fn load(
        &self,
        b: &mut Body<'_>,
        [row, head]: [Expr; 2],
        part: &Expr,
        u: Expr,
        hint: CacheHint,
    ) -> Result<(), String> {
        let at = self.operand.index();
        let (shape, mem) = (b.work.reads[at].shape.clone(), b.reads[at]);
        // Rows may be longer than what is read of them.
        let len = shape.last().and_then(|d| d.as_const()).unwrap_or(1);
        let start = b.flat(&shape, &[row, head, part.clone() * i64::from(self.slice)]);
        let at = |b: &Body<'_>, offset: Expr| b.flat_offset(&shape, start, offset);
        self.vectors(b, mem, (len, at), u, hint)
    }

    /// Takes the slice of a row of so many elements in shared memory as the u-th.
    fn load_shared(
        &self,
        b: &mut Body<'_>,
        shared: SharedId,
        (row, len): (Expr, usize),
        part: &Expr,
        u: Expr,
    ) -> Result<(), String> {
        let start = row + part.clone() * i64::from(self.slice);
        let at = |_: &Body<'_>, offset: Expr| start + offset;
        self.vectors(b, Mem::Shared(shared), (len, at), u, CacheHint::Default)
    }

    /// Loads with the widest loads that fit rows of this length.
    fn vectors(
        &self,
        b: &mut Body<'_>,
        mem: Mem,
        (len, at): (usize, impl FnOnce(&Body<'_>, Expr) -> Expr),
        u: Expr,
        hint: CacheHint,
    ) -> Result<(), String> {
        let lanes = vector_lanes(self.dtype, self.slice as usize).min(vector_lanes(self.dtype, len));
        b.unrolled("v", self.slice / lanes, |b, v| {
            let dst_at = v.clone() * i64::from(lanes);
            let index = at(b, dst_at.clone());
            let dst_at = u * i64::from(self.slice) + dst_at;
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
    let first = h.clone() * i64::from(l.block.depth);
    b.unrolled("u", l.block.depth, |b, u| {
        b.k.assign(best, Expr::Var(best).max(Expr::elem(scores, first.clone() + u)));
        Ok(())
    })?;
    let scale = Expr::math(MathFn::Exp, old - Expr::Var(best));
    let scale = b.k.let_("scale", DType::F32, scale);
    b.k.assign_elem(s.max, h.clone(), best.into());
    let sum = b.k.let_mut("sum", DType::F32, Expr::elem(s.sum, h.clone()) * scale.clone());
    b.unrolled("u", l.block.depth, |b, u| {
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
        b.unrolled("u", l.block.depth, |b, u| {
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
    b.unrolled("h", l.block.heads, |b, h| {
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

/// Writes a warp's softmax state to shared memory.
fn publish(
    b: &mut Body<'_>,
    s: &Online,
    l: &Layout,
    t: &Threads,
    part: &Expr,
    a: &Attention,
    to: &Warps,
) -> Result<(), String> {
    b.unrolled("h", l.block.heads, |b, h| {
        let row = b.k.let_("row", DType::I32, t.warp.clone() * i64::from(l.block.heads) + h.clone());
        b.if_then(part.clone().eq_(Expr::int(0)), |b| {
            b.k.store(Mem::Shared(to.max), row.clone(), Expr::elem(s.max, h.clone()));
            b.k.store(Mem::Shared(to.sum), row.clone(), Expr::elem(s.sum, h.clone()));
            Ok(())
        })?;
        b.unrolled("e", l.value_slice, |b, e| {
            let column = part.clone() * i64::from(l.value_slice) + e.clone();
            let value = Expr::elem(s.out, h * i64::from(l.value_slice) + e);
            b.k.store(Mem::Shared(to.out), row * a.value_dim as i64 + column, value);
            Ok(())
        })
    })
}
