//! Attention of one token: a block for some query heads of one key head, its warps splitting the keys.
//!
//! A group of lanes takes a key at a time, each lane a slice of it; the groups keep their own online
//! softmax (running maximum, sum, weighted values), joined at the end by shuffles and shared memory.
//! For decode, where keys are read once and arithmetic is little.

use super::warp::{Threads, shuffle_reduce, threads, vector_lanes};
use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::ids::{OperandId, SharedId, VarId};
use weft_ir::kernel::{Axis, BinaryOp, CacheHint, Expr, MathFn, Mem, Stmt, Unroll};
use weft_ir::plan::Attention;
use weft_ir::scalar::Reduce;

/// A maximum below any score, finite so that differences are defined.
const NO_SCORE: f32 = -1.0e30;

/// Layout of a warp over keys.
struct Layout {
    /// Lanes that share a key.
    lanes: i64,
    /// Keys a warp takes at a time.
    keys: i64,
    /// Elements of a key and of a value that a lane holds.
    key_slice: u32,
    value_slice: u32,
    warps: i64,
    heads: u32,
    /// Keys of a lane whose loads are in flight together.
    depth: u32,
}

impl Layout {
    fn new(a: &Attention, warps: u32, heads: u32, depth: u32) -> Result<Layout, String> {
        let fits = |l: &usize| a.head_dim.is_multiple_of(*l) && a.value_dim.is_multiple_of(*l);
        // 16 bytes of a 16-bit key for each lane where the sizes allow it.
        let wish = (a.head_dim / 8).clamp(1, 32);
        let lanes = [1usize, 2, 4, 8, 16, 32].into_iter().filter(fits).rfind(|l| *l <= wish);
        let lanes = lanes.ok_or("no lane layout")?;
        Ok(Layout {
            lanes: lanes as i64,
            keys: 32 / lanes as i64,
            key_slice: (a.head_dim / lanes) as u32,
            value_slice: (a.value_dim / lanes) as u32,
            warps: i64::from(warps),
            heads,
            depth,
        })
    }
}

/// Running state of the online softmax: registers.
struct Online {
    max: VarId,
    sum: VarId,
    out: VarId,
}

pub(super) fn build(
    b: &mut Body<'_>,
    a: &Attention,
    (warps, heads, depth): (u32, u32, u32),
) -> Result<(), String> {
    let l = Layout::new(a, warps, heads, depth)?;
    let per_warp = heads * a.value_dim as u32;
    let max_shared = b.k.shared("warp_max", DType::F32, warps * heads);
    let sum_shared = b.k.shared("warp_sum", DType::F32, warps * heads);
    let out_shared = b.k.shared("warp_out", DType::F32, warps * per_warp);
    b.wait_for_dependencies();
    let t = threads(b);
    let token = b.k.let_("token", DType::I32, Expr::BlockIdx(Axis::X));
    let first_head = Expr::BlockIdx(Axis::Y) * i64::from(heads);
    let first_head = b.k.let_("first_head", DType::I32, first_head);
    let kv_head = b.k.let_("kv_head", DType::I32, first_head.clone() / a.group as i64);
    let part = b.k.let_("part", DType::I32, t.lane.clone() % l.lanes);
    let length = b.lower(&a.length, &Point::at(vec![token.clone()]))?;
    let length = b.k.let_("length", DType::I32, length);

    let q = load_queries(b, a, &l, &token, &first_head, &part)?;
    let state = Online {
        max: b.k.array("best", DType::F32, heads, Some(Expr::float(NO_SCORE))),
        sum: b.k.array("total", DType::F32, heads, Some(Expr::float(0.0))),
        out: b.k.array("out_acc", DType::F32, heads * l.value_slice, Some(Expr::float(0.0))),
    };
    let stride = l.warps * l.keys;
    let first = b.k.let_("first_key", DType::I32, t.warp.clone() * l.keys + t.lane.clone() / l.lanes);
    // Where the keys of a token follow each other, their base is the same for all.
    let base = match a.slot_base() {
        Some(base) => {
            let base = b.lower(base, &Point::at(vec![token.clone()]))?;
            Some(b.k.let_("base", DType::I32, base))
        }
        None => None,
    };
    // Every lane takes part in every round, so that shuffles stay whole.
    let step = stride * i64::from(l.depth);
    let rounds = (length.clone() + (step - 1)) / step;
    let rounds = b.k.let_("rounds", DType::I32, rounds);
    b.for_loop("round", (Expr::int(0), rounds, Expr::int(1)), Unroll::Never, |b, round| {
        let j = b.k.let_("j", DType::I32, first + round * step);
        let keys = Slices::declare(b, "key", a.keys, l.key_slice, l.depth);
        let values = Slices::declare(b, "value", a.values, l.value_slice, l.depth);
        b.unrolled("u", l.depth, |b, u| {
            let safe = (j.clone() + u.clone() * stride).min(length.clone() - 1);
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
                let safe = at.clone().min(length.clone() - 1);
                let coords = vec![token.clone(), first_head.clone() + h.clone(), safe];
                let score = b.lower(&a.score, &Point::with_acc(coords, dot.into()))?;
                let inside = at.lt(length.clone());
                b.k.assign_elem(scores, u, inside.select(score, Expr::float(f32::NEG_INFINITY)));
                Ok(())
            })?;
            update(b, &state, &l, h, scores, &values)
        })
    })?;
    join_lanes(b, &state, &l)?;
    let first_lanes = t.lane.clone().lt(Expr::int(l.lanes));
    b.if_then(first_lanes, |b| publish(b, &state, &l, &t, &part, a, (max_shared, sum_shared, out_shared)))?;
    b.k.push(Stmt::Barrier);
    combine_warps(b, a, &l, token, first_head, (max_shared, sum_shared, out_shared))
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

/// Writes a warp's softmax state to shared memory.
fn publish(
    b: &mut Body<'_>,
    s: &Online,
    l: &Layout,
    t: &Threads,
    part: &Expr,
    a: &Attention,
    (max, sum, out): (SharedId, SharedId, SharedId),
) -> Result<(), String> {
    b.unrolled("h", l.heads, |b, h| {
        let row = b.k.let_("row", DType::I32, t.warp.clone() * i64::from(l.heads) + h.clone());
        b.if_then(part.clone().eq_(Expr::int(0)), |b| {
            b.k.store(Mem::Shared(max), row.clone(), Expr::elem(s.max, h.clone()));
            b.k.store(Mem::Shared(sum), row.clone(), Expr::elem(s.sum, h.clone()));
            Ok(())
        })?;
        b.unrolled("e", l.value_slice, |b, e| {
            let column = part.clone() * i64::from(l.value_slice) + e.clone();
            let value = Expr::elem(s.out, h * i64::from(l.value_slice) + e);
            b.k.store(Mem::Shared(out), row * a.value_dim as i64 + column, value);
            Ok(())
        })
    })
}

/// Joins the warps in a fixed order; each thread makes some elements of the result.
fn combine_warps(
    b: &mut Body<'_>,
    a: &Attention,
    l: &Layout,
    token: Expr,
    first_head: Expr,
    (max, sum, out): (SharedId, SharedId, SharedId),
) -> Result<(), String> {
    let (heads, dim) = (i64::from(l.heads), a.value_dim as i64);
    let along = (Expr::ThreadIdx, Expr::int(heads * dim), Expr::int(l.warps * 32));
    b.for_loop("i", along, Unroll::Never, |b, i| {
        let h = b.k.let_("h", DType::I32, i.clone() / dim);
        let d = b.k.let_("d", DType::I32, i % dim);
        let load = |s, at| Expr::load(Mem::Shared(s), at);
        let best = b.k.let_mut("best_of_all", DType::F32, load(max, h.clone()));
        b.unrolled("w", (l.warps - 1) as u32, |b, w| {
            let other = load(max, (w + 1) * heads + h.clone());
            b.k.assign(best, Expr::Var(best).max(other));
            Ok(())
        })?;
        let mut total = Expr::float(0.0);
        if let Some(sink) = &a.sink {
            let coords = vec![token.clone(), first_head.clone() + h.clone()];
            let sink = b.lower(sink, &Point::at(coords))?;
            let sink = b.k.let_("sink", DType::F32, sink);
            b.k.assign(best, Expr::Var(best).max(sink.clone()));
            total = Expr::math(MathFn::Exp, sink - Expr::Var(best));
        }
        let total = b.k.let_mut("total_of_all", DType::F32, total);
        let acc = b.k.let_mut("acc", DType::F32, Expr::float(0.0));
        b.unrolled("w", l.warps as u32, |b, w| {
            let row = b.k.let_("row", DType::I32, w * heads + h.clone());
            let scale = Expr::math(MathFn::Exp, load(max, row.clone()) - Expr::Var(best));
            let scale = b.k.let_("scale", DType::F32, scale);
            b.k.assign(total, Expr::fma(load(sum, row.clone()), scale.clone(), total.into()));
            b.k.assign(acc, Expr::fma(load(out, row * dim + d.clone()), scale, acc.into()));
            Ok(())
        })?;
        // The best key has weight 1; where every key is hidden the result is 0.
        let total = Expr::Var(total).max(Expr::float(1.0));
        let result = Expr::Binary(BinaryOp::Div, Box::new(acc.into()), Box::new(total));
        let result = b.k.let_("result", DType::F32, result);
        b.stores(&a.stores, &Point::with_acc(vec![token, first_head + h, d], result))
    })
}
