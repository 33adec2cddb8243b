//! Passes over a row of logits by one block, as `weft_ir::sampling` defines them.
//!
//! Thresholds of top-k and top-p are read from the few largest tokens ([`super::few`]) or, where these do not say, found
//! by searches on the 32 bits of an order-preserving key, each step one pass over the row. The draw is an arg-max of
//! logit + Gumbel number, so it needs no prefix sum.

use super::Body;
use super::few::{self, Asked, Few};
use super::warp::{Threads, block_reduce, neutral, vector_lanes};
use weft_ir::dtype::DType;
use weft_ir::ids::{SharedId, VarId};
use weft_ir::kernel::{
    BinaryOp, CacheHint, CompareOp, Const, Expr, MathFn, Mem, ShuffleMode, Stmt, UnaryOp, Unroll,
};
use weft_ir::sampling;
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
    /// Divides the logits.
    pub temperature: Expr,
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
    /// Logits of a vector access.
    fn lanes(&self) -> u32 {
        if self.dtype == DType::F32 { vector_lanes(DType::F32, self.vocab as usize) } else { 1 }
    }

    /// How a pass without much arithmetic is unrolled: 16 loads of a thread are on the way.
    pub fn unroll(&self) -> Unroll {
        Unroll::By(if self.lanes() > 1 { 4 } else { 16 })
    }

    /// Runs over the row's tokens; the closure receives the token and its logit over the temperature.
    pub fn each(
        &self,
        b: &mut Body<'_>,
        unroll: Unroll,
        fill: impl FnOnce(&mut Body<'_>, Expr, Expr) -> Result<(), String>,
    ) -> Result<(), String> {
        let lanes = self.lanes();
        let wide = i64::from(lanes);
        let along =
            (Expr::ThreadIdx * wide, Expr::int(self.vocab), Expr::int(i64::from(self.threads) * wide));
        b.for_loop("token", along, unroll, |b, token| {
            if lanes == 1 {
                let index = b.flat_offset(&self.shape, self.start.clone(), token.clone());
                let logit = Expr::load(self.logits, index);
                let logit = if self.dtype.is_half() { logit.cast(DType::F32) } else { logit };
                let scaled = b.k.let_("scaled", DType::F32, logit / self.temperature.clone());
                return fill(b, token, scaled);
            }
            let some = self.load(b, &token, lanes);
            b.unrolled("e", lanes, |b, e| {
                let logit = Expr::elem(some, e.clone());
                let scaled = b.k.let_("scaled", DType::F32, logit / self.temperature.clone());
                let id = b.k.let_("id", DType::I32, token + e);
                fill(b, id, scaled)
            })
        })
    }

    /// Runs over the row's tokens four at a time: the closure receives the first and an array of the four logits over
    /// the temperature. For rows whose vectors have four.
    fn quads(
        &self,
        b: &mut Body<'_>,
        fill: impl FnOnce(&mut Body<'_>, Expr, VarId) -> Result<(), String>,
    ) -> Result<(), String> {
        let along = (Expr::ThreadIdx * 4, Expr::int(self.vocab), Expr::int(i64::from(self.threads) * 4));
        b.for_loop("token", along, Unroll::By(2), |b, token| {
            let four = self.load(b, &token, 4);
            b.unrolled("e", 4, |b, e| {
                let scaled = Expr::elem(four, e.clone()) / self.temperature.clone();
                b.k.assign_elem(four, e, scaled);
                Ok(())
            })?;
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

    /// Reduces a value of every token over the row.
    pub fn reduce(
        &self,
        b: &mut Body<'_>,
        name: &str,
        op: Reduce,
        value: impl FnOnce(&mut Body<'_>, Expr) -> Expr,
    ) -> Result<VarId, String> {
        let [var] = self.reduce_all(b, [name], op, |b, x| [value(b, x)])?;
        Ok(var)
    }

    /// Reduces several values of every token in one pass.
    fn reduce_all<const N: usize>(
        &self,
        b: &mut Body<'_>,
        names: [&str; N],
        op: Reduce,
        values: impl FnOnce(&mut Body<'_>, Expr) -> [Expr; N],
    ) -> Result<[VarId; N], String> {
        let vars = names.map(|name| b.k.let_mut(name, DType::F32, neutral(op)));
        self.each(b, self.unroll(), |b, _, scaled| {
            for (var, value) in vars.into_iter().zip(values(b, scaled)) {
                b.k.assign(var, super::warp::combine(op, var.into(), value));
            }
            Ok(())
        })?;
        for var in vars {
            block_reduce(b, &self.t, var, op, self.threads / 32, self.partial)?;
        }
        Ok(vars)
    }
}

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
fn filter(
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
        let own = b.k.let_mut("largest_of_thread", DType::F32, neutral(Reduce::Max));
        r.each(b, r.unroll(), |b, _, scaled| {
            b.k.assign(own, Expr::Var(own).max(scaled));
            Ok(())
        })?;
        let max = b.k.let_mut("largest", DType::F32, own.into());
        block_reduce(b, &r.t, max, Reduce::Max, r.threads / 32, r.partial)?;
        let asked = Asked { k: k.clone(), limits: limits.clone(), p: p.clone(), cuts: cuts.clone() };
        few.threshold(b, r, &asked, (own, max), (least, collected))?;
        let searched = Expr::Unary(UnaryOp::Not, Box::new(collected.into()));
        b.if_then(searched, |b| {
            b.if_then(limits, |b| top_k(b, r, k, least))?;
            b.if_then(cuts, |b| top_p(b, r, p, max, least))
        })?;
        few::min_p(b, m, max, least)
    })
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

/// `least` becomes the k-th largest key: the largest that at least k tokens reach. Two bits a pass.
fn top_k(b: &mut Body<'_>, r: &Row, k: Expr, least: VarId) -> Result<(), String> {
    let wanted = b.k.let_("wanted_tokens", DType::F32, k.cast(DType::F32));
    let bits = (Expr::int(0), Expr::int(32), Expr::int(2));
    b.for_loop("bit", bits, Unroll::Never, |b, bit| {
        let shift = b.k.let_("shift", DType::U32, (Expr::int(30) - bit).cast(DType::U32));
        let candidates = [1, 2, 3].map(|i| {
            let digit = bin(BinaryOp::Shl, Expr::uint(i), shift.clone());
            b.k.let_("candidate", DType::U32, bin(BinaryOp::Or, least.into(), digit))
        });
        let names = ["reaching1", "reaching2", "reaching3"];
        let reaching = r.reduce_all(b, names, Reduce::Sum, |b, x| {
            let key = key(b, x);
            let counts = |c: &Expr| cmp(CompareOp::Ge, key.clone(), c.clone());
            candidates.each_ref().map(|c| counts(c).select(Expr::float(1.0), Expr::float(0.0)))
        })?;
        // The fewer, the larger the candidate: the last that is enough stays.
        for (candidate, reaching) in candidates.into_iter().zip(reaching) {
            let enough = cmp(CompareOp::Ge, reaching.into(), wanted.clone());
            b.k.assign(least, enough.select(candidate, least.into()));
        }
        Ok(())
    })
}

/// Weight of a logit for top-p. The maximum has weight 1 even when it is infinite.
pub(super) fn nucleus_weight(x: Expr, max: VarId) -> Expr {
    let at_max = cmp(CompareOp::Eq, x.clone(), max.into());
    at_max.select(Expr::float(1.0), Expr::math(MathFn::Exp, x - Expr::Var(max)))
}

/// `least` becomes the largest key, up to that of the maximum, whose tokens have the fraction p of the mass at
/// `least`. A pass quarters what is left.
fn top_p(b: &mut Body<'_>, r: &Row, p: Expr, max: VarId, least: VarId) -> Result<(), String> {
    let all = r.reduce(b, "mass", Reduce::Sum, |b, x| {
        let key = key(b, x.clone());
        cmp(CompareOp::Ge, key, least.into()).select(nucleus_weight(x, max), Expr::float(0.0))
    })?;
    let wanted = b.k.let_("wanted_mass", DType::F32, p * Expr::Var(all));
    let top = key(b, max.into());
    let high = b.k.let_mut("high", DType::U32, top);
    // Invariant: the mass at `least` is enough; keys above `high` are not needed or not enough.
    let range = (Expr::int(0), Expr::int(16), Expr::int(1));
    b.for_loop("quartering", range, Unroll::Never, |b, _| {
        b.if_then(cmp(CompareOp::Lt, least.into(), high.into()), |b| {
            let gap = bin(BinaryOp::Sub, high.into(), least.into());
            let quarter = bin(BinaryOp::Shr, gap, Expr::uint(2));
            let part = b.k.let_("part", DType::U32, bin(BinaryOp::Add, quarter, Expr::uint(1)));
            let from = b.k.let_("from", DType::U32, least.into());
            let end = b.k.let_("end", DType::U32, high.into());
            let keys = [1, 2, 3].map(|i| {
                let offset = bin(BinaryOp::Mul, part.clone(), Expr::uint(i));
                let at = bin(BinaryOp::Add, from.clone(), offset);
                b.k.let_("at", DType::U32, at.min(end.clone()))
            });
            let names = ["mass1", "mass2", "mass3"];
            let masses = r.reduce_all(b, names, Reduce::Sum, |b, x| {
                let key = key(b, x.clone());
                let weight = b.k.let_("weight", DType::F32, nucleus_weight(x, max));
                keys.each_ref().map(|at| {
                    cmp(CompareOp::Ge, key.clone(), at.clone()).select(weight.clone(), Expr::float(0.0))
                })
            })?;
            // From the largest key on: the first that is not enough ends the range, the last that is begins it.
            for (at, mass) in keys.into_iter().zip(masses).rev() {
                let enough = cmp(CompareOp::Ge, mass.into(), wanted.clone());
                let enough = b.k.let_("enough", DType::Bool, enough);
                let below = bin(BinaryOp::Sub, at.clone(), Expr::uint(1));
                b.k.assign(high, enough.clone().select(high.into(), below));
                let larger = Expr::Var(least).max(at);
                b.k.assign(least, enough.select(larger, least.into()));
            }
            Ok(())
        })
    })
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

/// Gumbel number of a seed, a position and a token (`sampling::gumbel` of `sampling::uniform`).
pub(super) fn gumbel(b: &mut Body<'_>, q: &Request, id: &Expr) -> Result<Expr, String> {
    let words = random_words(b, (id.clone() / 4).cast(DType::U32), q, None)?;
    let which = b.k.let_("word", DType::I32, id.clone() % 4);
    Ok(gumbel_of_bits(word(&words, &which)))
}

/// One of four words.
fn word(words: &[VarId; 4], which: &Expr) -> Expr {
    let of = |i: usize, rest: Expr| which.clone().eq_(Expr::int(i as i64)).select(words[i].into(), rest);
    of(0, of(1, of(2, words[3].into())))
}

/// Random bits of four tokens (`sampling::bits`), unless they are not wanted.
fn random_words(
    b: &mut Body<'_>,
    quad: Expr,
    q: &Request,
    wanted: Option<&Expr>,
) -> Result<[VarId; 4], String> {
    let start = [quad, q.position.clone().cast(DType::U32), Expr::uint(0), Expr::uint(0)];
    let mut i = 0;
    let c = start.map(|v| {
        i += 1;
        b.k.let_mut(&format!("c{}", i - 1), DType::U32, v)
    });
    match wanted {
        None => philox(b, q, c)?,
        Some(wanted) => b.if_then(wanted.clone(), |b| philox(b, q, c))?,
    }
    Ok(c)
}

fn philox(b: &mut Body<'_>, q: &Request, c: [VarId; 4]) -> Result<(), String> {
    let k0 = b.k.let_mut("k0", DType::U32, q.seed.clone());
    let k1 = b.k.let_mut("k1", DType::U32, Expr::uint(sampling::KEY));
    b.k.comment("Philox4x32-10 (Salmon et al. 2011).");
    b.unrolled("round", 10, |b, _| {
        let var = |i: usize| Expr::Var(c[i]);
        let (m0, m1) = (Expr::uint(0xD251_1F53), Expr::uint(0xCD9E_8D57));
        let hi0 = b.k.let_("hi0", DType::U32, bin(BinaryOp::MulHi, m0.clone(), var(0)));
        let lo0 = b.k.let_("lo0", DType::U32, bin(BinaryOp::Mul, m0, var(0)));
        let hi1 = b.k.let_("hi1", DType::U32, bin(BinaryOp::MulHi, m1.clone(), var(2)));
        let lo1 = b.k.let_("lo1", DType::U32, bin(BinaryOp::Mul, m1, var(2)));
        let xor = |x, y, z| bin(BinaryOp::Xor, bin(BinaryOp::Xor, x, y), z);
        b.k.assign(c[0], xor(hi1, var(1), k0.into()));
        b.k.assign(c[1], lo1);
        b.k.assign(c[2], xor(hi0, var(3), k1.into()));
        b.k.assign(c[3], lo0);
        b.k.assign(k0, bin(BinaryOp::Add, k0.into(), Expr::uint(0x9E37_79B9)));
        b.k.assign(k1, bin(BinaryOp::Add, k1.into(), Expr::uint(0xBB67_AE85)));
        Ok(())
    })
}

/// Gumbel number of random bits.
fn gumbel_of_bits(bits: Expr) -> Expr {
    let whole = bin(BinaryOp::Shr, bits, Expr::uint(8)).cast(DType::F32);
    let scale = 1.0 / 16_777_216.0_f32;
    let u = ((whole + Expr::float(0.5)) * Expr::float(scale)).min(Expr::float(1.0 - scale));
    let neg = |e| Expr::Unary(UnaryOp::Neg, Box::new(e));
    let log = |e| Expr::math(MathFn::Log, e);
    neg(log(neg(log(u))))
}
