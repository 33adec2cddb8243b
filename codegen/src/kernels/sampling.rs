//! Passes over a row of logits by one block, as `weft_ir::sampling` defines them.
//!
//! The draw is an arg-max of logit + Gumbel number ([`super::gumbel`]), so it needs no prefix sum; what is drawn from
//! is what [`super::thresholds`] leave.

use super::Body;
use super::few::Few;
use super::gumbel::{gumbel, gumbel_of_bits, random_words, word};
use super::thresholds::{filter, key};
use super::warp::{Threads, block_reduce, neutral, vector_lanes};
use weft_ir::dtype::DType;
use weft_ir::ids::{SharedId, VarId};
use weft_ir::kernel::{BinaryOp, CacheHint, CompareOp, Const, Expr, Mem, ShuffleMode, Stmt, UnaryOp, Unroll};
use weft_ir::scalar::Reduce;
use weft_ir::shape::Shape;

/// What every pass over the row needs.
pub(super) struct Row {
    pub logits: Mem,
    /// Type and shape of the array of logits.
    pub dtype: DType,
    pub shape: Shape,
    /// Flat index of the row's first logit.
    pub start: Expr,
    pub vocab: i64,
    pub threads: u32,
    /// Divides the logits, unless that is done.
    pub temperature: Option<Expr>,
    pub t: Threads,
    pub partial: SharedId,
}

/// What decides a draw, besides the temperature.
pub(super) struct Request {
    pub position: Expr,
    pub top_k: Expr,
    pub top_p: Expr,
    pub min_p: Expr,
    pub seed: Expr,
}

pub(super) fn bin(op: BinaryOp, a: Expr, b: Expr) -> Expr {
    Expr::Binary(op, Box::new(a), Box::new(b))
}

pub(super) fn cmp(op: CompareOp, a: Expr, b: Expr) -> Expr {
    Expr::cmp(op, a, b)
}

impl Row {
    /// A logit over the temperature.
    fn scaled(&self, logit: Expr) -> Expr {
        match &self.temperature {
            None => logit,
            Some(divisor) => logit / divisor.clone(),
        }
    }

    /// Logits of a vector access.
    fn lanes(&self) -> u32 {
        if self.dtype == DType::F32 { vector_lanes(DType::F32, self.vocab as usize) } else { 1 }
    }

    /// First tokens of the thread's vectors of so many: from, to, step.
    fn along(&self, lanes: u32) -> (Expr, Expr, Expr) {
        let wide = i64::from(lanes);
        (Expr::ThreadIdx * wide, Expr::int(self.vocab), Expr::int(i64::from(self.threads) * wide))
    }

    /// How a pass without much arithmetic is unrolled: 16 loads of a thread are on the way, or eight in large blocks.
    pub fn unroll(&self) -> Unroll {
        let loads = if self.threads > 512 { 8 } else { 16 };
        Unroll::By(loads / self.lanes())
    }

    /// Runs over the row's tokens; the closure receives the token and its logit over the temperature.
    pub fn each(
        &self,
        b: &mut Body<'_>,
        unroll: Unroll,
        fill: impl FnOnce(&mut Body<'_>, Expr, Expr) -> Result<(), String>,
    ) -> Result<(), String> {
        let lanes = self.lanes();
        b.for_loop("token", self.along(lanes), unroll, |b, token| {
            if lanes == 1 {
                let logit = self.logit(b, &token);
                let scaled = b.k.let_("scaled", DType::F32, self.scaled(logit));
                return fill(b, token, scaled);
            }
            let some = self.load(b, &token, lanes);
            b.unrolled("e", lanes, |b, e| {
                let logit = Expr::elem(some, e.clone());
                let scaled = b.k.let_("scaled", DType::F32, self.scaled(logit));
                let id = b.k.let_("id", DType::I32, token + e);
                fill(b, id, scaled)
            })
        })
    }

    /// The largest of the thread's logits, over the temperature. It divides once: a quotient is no smaller than that of
    /// a smaller number.
    pub fn largest(&self, b: &mut Body<'_>) -> Result<VarId, String> {
        let own = b.k.let_mut("largest_of_thread", DType::F32, neutral(Reduce::Max));
        self.vectors(b, self.unroll(), |b, _, some| {
            b.k.assign(own, Expr::Var(own).max(some));
            Ok(())
        })?;
        if self.temperature.is_some() {
            b.k.assign(own, self.scaled(own.into()));
        }
        Ok(own)
    }

    /// Runs over the row's tokens whose key is at least `bound`: the closure receives the token and its key. For few of
    /// them: a vector is searched when its largest logit is among them, and its logits are loaded again.
    pub fn reaching(
        &self,
        b: &mut Body<'_>,
        bound: &Expr,
        fill: impl FnOnce(&mut Body<'_>, Expr, Expr) -> Result<(), String>,
    ) -> Result<(), String> {
        self.vectors(b, Unroll::By(4), |b, token, largest| {
            let highest = key(b, self.scaled(largest));
            b.if_then(cmp(CompareOp::Ge, highest.clone(), bound.clone()), |b| {
                let lanes = self.lanes();
                if lanes == 1 {
                    return fill(b, token, highest);
                }
                let of_vector = (Expr::int(0), Expr::int(lanes.into()), Expr::int(1));
                b.for_loop("e", of_vector, Unroll::Never, |b, e| {
                    let id = b.k.let_("id", DType::I32, token + e);
                    let key = key(b, self.scaled(self.logit(b, &id)));
                    b.if_then(cmp(CompareOp::Ge, key.clone(), bound.clone()), |b| fill(b, id, key))
                })
            })
        })
    }

    /// Runs over the row's vectors: the closure receives the first token of each and its largest logit.
    fn vectors(
        &self,
        b: &mut Body<'_>,
        unroll: Unroll,
        fill: impl FnOnce(&mut Body<'_>, Expr, Expr) -> Result<(), String>,
    ) -> Result<(), String> {
        let lanes = self.lanes();
        b.for_loop("token", self.along(lanes), unroll, |b, token| {
            let largest = if lanes == 1 {
                self.logit(b, &token)
            } else {
                let some = self.load(b, &token, lanes);
                let each = (0..lanes).map(|e| Expr::elem(some, Expr::int(e.into())));
                each.reduce(Expr::max).unwrap_or_else(|| neutral(Reduce::Max))
            };
            let largest = b.k.let_("largest_here", DType::F32, largest);
            fill(b, token, largest)
        })
    }

    /// A logit as an f32.
    fn logit(&self, b: &Body<'_>, token: &Expr) -> Expr {
        let index = b.flat_offset(&self.shape, self.start.clone(), token.clone());
        let logit = Expr::load(self.logits, index);
        if self.dtype.is_half() { logit.cast(DType::F32) } else { logit }
    }

    /// Runs over the row's tokens four at a time: the closure receives the first and an array of the four logits over
    /// the temperature. For rows whose vectors have four.
    fn quads(
        &self,
        b: &mut Body<'_>,
        fill: impl FnOnce(&mut Body<'_>, Expr, VarId) -> Result<(), String>,
    ) -> Result<(), String> {
        b.for_loop("token", self.along(4), Unroll::Never, |b, token| {
            let four = self.load(b, &token, 4);
            if self.temperature.is_some() {
                b.unrolled("e", 4, |b, e| {
                    let scaled = self.scaled(Expr::elem(four, e.clone()));
                    b.k.assign_elem(four, e, scaled);
                    Ok(())
                })?;
            }
            fill(b, token, four)
        })
    }

    /// Loads the logits of some tokens from `token` on.
    fn load(&self, b: &mut Body<'_>, token: &Expr, lanes: u32) -> VarId {
        let index = b.flat_offset(&self.shape, self.start.clone(), token.clone());
        let some = b.k.array("logits_of_lane", DType::F32, lanes, None);
        let (mem, dst_at, hint) = (self.logits, Expr::int(0), CacheHint::Default);
        b.k.push(Stmt::LoadVec { dst: some, dst_at, mem, index, lanes, hint });
        some
    }

    /// Reduces a variable of every thread. Rolled: a draw has many, and none is where time goes.
    pub fn join(&self, b: &mut Body<'_>, var: VarId, op: Reduce) -> Result<(), String> {
        block_reduce(b, &self.t, var, op, (self.threads / 32, self.partial), Unroll::Never)
    }

    /// Reduces a value of every token over the row.
    pub fn reduce(
        &self,
        b: &mut Body<'_>,
        name: &str,
        op: Reduce,
        value: impl FnOnce(&mut Body<'_>, Expr) -> Expr,
    ) -> Result<VarId, String> {
        let [var] = self.reduce_all(b, [name], (op, self.unroll()), |b, x| [value(b, x)])?;
        Ok(var)
    }

    /// Reduces several values of every token in one pass.
    pub fn reduce_all<const N: usize>(
        &self,
        b: &mut Body<'_>,
        names: [&str; N],
        (op, unroll): (Reduce, Unroll),
        values: impl FnOnce(&mut Body<'_>, Expr) -> [Expr; N],
    ) -> Result<[VarId; N], String> {
        let vars = names.map(|name| b.k.let_mut(name, DType::F32, neutral(op)));
        self.each(b, unroll, |b, _, scaled| {
            for (var, value) in vars.into_iter().zip(values(b, scaled)) {
                b.k.assign(var, super::warp::combine(op, var.into(), value));
            }
            Ok(())
        })?;
        for var in vars {
            self.join(b, var, op)?;
        }
        Ok(vars)
    }
}

/// The best of a thread's tokens: score and id.
#[derive(Clone, Copy)]
pub(super) struct Best {
    pub score: VarId,
    pub token: VarId,
}

impl Best {
    /// None yet.
    pub fn declare(b: &mut Body<'_>) -> Best {
        let score = b.k.let_mut("score", DType::F32, Expr::float(f32::NEG_INFINITY));
        let token = b.k.let_mut("chosen", DType::I32, Expr::int(i64::from(i32::MAX)));
        Best { score, token }
    }

    /// Takes (score, id) when it is better: a higher score, or the same and a smaller id.
    pub fn keep(self, b: &mut Body<'_>, score: Expr, id: Expr) {
        let score = b.k.let_("other_score", DType::F32, score);
        let id = b.k.let_("other_token", DType::I32, id);
        let higher = cmp(CompareOp::Gt, score.clone(), self.score.into());
        let equal = score.clone().eq_(self.score.into()).and(id.clone().lt(self.token.into()));
        let better = b.k.let_("better", DType::Bool, bin(BinaryOp::Or, higher, equal));
        b.k.assign(self.score, better.clone().select(score, self.score.into()));
        b.k.assign(self.token, better.select(id, self.token.into()));
    }

    /// Joins the threads of a block: the best of all, known to each.
    pub fn join(
        self,
        b: &mut Body<'_>,
        (t, warps): (&Threads, u32),
        (scores, tokens): (SharedId, SharedId),
    ) -> Result<Best, String> {
        let shuffled = |v: VarId, by: i64| {
            Expr::Shuffle(ShuffleMode::Xor, Box::new(Expr::Var(v)), Box::new(Expr::int(by)))
        };
        for by in [16, 8, 4, 2, 1] {
            self.keep(b, shuffled(self.score, by), shuffled(self.token, by));
        }
        b.if_then(t.lane.clone().eq_(Expr::int(0)), |b| {
            b.k.store(Mem::Shared(scores), t.warp.clone(), self.score.into());
            b.k.store(Mem::Shared(tokens), t.warp.clone(), self.token.into());
            Ok(())
        })?;
        b.k.push(Stmt::Barrier);
        let of = |s: SharedId, w: Expr| Expr::load(Mem::Shared(s), w);
        let score = b.k.let_mut("best_of_block", DType::F32, of(scores, Expr::int(0)));
        let token = b.k.let_mut("token_of_block", DType::I32, of(tokens, Expr::int(0)));
        let all = Best { score, token };
        let warps = (Expr::int(1), Expr::int(i64::from(warps)), Expr::int(1));
        b.for_loop("w", warps, Unroll::Never, |b, w| {
            all.keep(b, of(scores, w.clone()), of(tokens, w));
            Ok(())
        })?;
        Ok(all)
    }
}

/// The row's token, for all threads of the block: the draw, or where nothing is drawn the largest. `scores` and
/// `tokens` have an element for each warp.
pub(super) fn pick(
    b: &mut Body<'_>,
    r: &Row,
    q: &Request,
    draws: &Expr,
    few: &Few,
    (scores, tokens): (SharedId, SharedId),
) -> Result<Expr, String> {
    // What was joined before, or of another row, may still be read.
    b.k.push(Stmt::Barrier);
    let least = b.k.let_mut("least", DType::U32, Expr::uint(0));
    let collected = b.k.let_mut("collected", DType::Bool, Expr::Const(Const::Bool(false)));
    b.if_then(draws.clone(), |b| filter(b, r, q, few, (least, collected)))?;
    let best = Best::declare(b);
    b.if_then(collected.into(), |b| few.draw(b, q, least, best))?;
    let whole = Expr::Unary(UnaryOp::Not, Box::new(collected.into()));
    b.if_then(whole, |b| draw_row(b, r, q, draws, least, best))?;
    Ok(best.join(b, (&r.t, r.threads / 32), (scores, tokens))?.token.into())
}

/// Draws among the tokens of a row whose key is at least `least`, or takes the largest where nothing is drawn.
fn draw_row(
    b: &mut Body<'_>,
    r: &Row,
    q: &Request,
    draws: &Expr,
    least: VarId,
    best: Best,
) -> Result<(), String> {
    if r.lanes() < 4 {
        // Few tokens are kept, and the random bits take many registers.
        return r.each(b, Unroll::Never, |b, id, scaled| {
            let key = key(b, scaled.clone());
            b.if_then(cmp(CompareOp::Ge, key, least.into()), |b| {
                let noisy = b.k.let_mut("noisy", DType::F32, scaled);
                b.if_then(draws.clone(), |b| {
                    let noise = gumbel(b, q, &id)?;
                    b.k.assign(noisy, Expr::Var(noisy) + noise);
                    Ok(())
                })?;
                best.keep(b, noisy.into(), id);
                Ok(())
            })
        });
    }
    // Four tokens share their random bits.
    r.quads(b, |b, token, four| {
        let kept = b.k.let_mut("some_kept", DType::Bool, Expr::Const(Const::Bool(false)));
        b.unrolled("e", 4, |b, e| {
            let key = key(b, Expr::elem(four, e));
            b.k.assign(kept, bin(BinaryOp::Or, kept.into(), cmp(CompareOp::Ge, key, least.into())));
            Ok(())
        })?;
        b.if_then(kept.into(), |b| {
            let words = random_words(b, (token.clone() / 4).cast(DType::U32), q, Some(draws))?;
            b.unrolled("e", 4, |b, e| {
                let x = b.k.let_("x", DType::F32, Expr::elem(four, e.clone()));
                let key = key(b, x.clone());
                b.if_then(cmp(CompareOp::Ge, key, least.into()), |b| {
                    let bits = b.k.let_("bits_of_token", DType::U32, word(&words, &e));
                    let noisy = b.k.let_mut("noisy", DType::F32, x.clone());
                    b.if_then(draws.clone(), |b| {
                        b.k.assign(noisy, x + gumbel_of_bits(bits));
                        Ok(())
                    })?;
                    best.keep(b, noisy.into(), token + e);
                    Ok(())
                })
            })
        })
    })
}
