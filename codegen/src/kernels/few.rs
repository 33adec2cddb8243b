//! The few tokens that a filter keeps, sorted in shared memory.
//!
//! Each thread knows the largest of its own logits. The r-th largest of these is reached by at least r tokens, and
//! hardly by more where a row has many: so one pass collects the r largest and a few others, and what filters ask is
//! answered from them. They come in any order, and are sorted by rank: larger first, then smaller ids; so the result
//! does not depend on the order. Where too many tokens are as large (equal logits), or the nucleus is larger than what
//! was collected, there is no answer, and [`super::thresholds`] searches the whole row.

use super::Body;
use super::gumbel::gumbel;
use super::sampling::{Best, Request, Row, bin, cmp};
use super::thresholds::{key, nucleus_weight};
use weft_ir::dtype::DType;
use weft_ir::ids::{SharedId, VarId};
use weft_ir::kernel::{BinaryOp, CompareOp, Expr, MathFn, Mem, Stmt, UnaryOp, Unroll};
use weft_ir::scalar::Reduce;

/// Most tokens that are collected.
const MOST: u32 = 512;
/// Largest rank that is asked for: it leaves room for tokens that are collected beside.
const MOST_RANK: u32 = 256;

/// Shared memory of a block for it.
pub(super) struct Few {
    threads: u32,
    /// Key of the largest logit of each thread.
    own: SharedId,
    /// The least key that is collected.
    bound: SharedId,
    /// Tokens collected.
    count: SharedId,
    keys: SharedId,
    tokens: SharedId,
    weights: SharedId,
}

/// What filters ask of the row.
pub(super) struct Asked {
    /// Tokens that top-k keeps, and whether it limits.
    pub k: Expr,
    pub limits: Expr,
    /// The fraction of top-p, and whether it cuts.
    pub p: Expr,
    pub cuts: Expr,
}

pub(super) fn not(e: Expr) -> Expr {
    Expr::Unary(UnaryOp::Not, Box::new(e))
}

fn at(s: SharedId, index: Expr) -> Expr {
    Expr::load(Mem::Shared(s), index)
}

/// The number of a key (`sampling::key`).
fn number(key: Expr) -> Expr {
    let positive = cmp(CompareOp::Ne, bin(BinaryOp::Shr, key.clone(), Expr::uint(31)), Expr::uint(0));
    let plain = bin(BinaryOp::And, key.clone(), Expr::uint(0x7FFF_FFFF));
    let bits = positive.select(plain, Expr::Unary(UnaryOp::BitNot, Box::new(key)));
    Expr::Bitcast(DType::F32, Box::new(bits))
}

impl Few {
    /// Declares what it takes, for blocks of so many threads.
    pub fn declare(b: &mut Body<'_>, threads: u32) -> Few {
        Few {
            threads,
            own: b.k.shared("key_of_thread", DType::U32, threads),
            bound: b.k.shared("least_collected", DType::U32, 1),
            count: b.k.shared("collected", DType::I32, 1),
            keys: b.k.shared("key_of_few", DType::U32, MOST),
            tokens: b.k.shared("token_of_few", DType::I32, MOST),
            weights: b.k.shared("weight_of_few", DType::F32, MOST),
        }
    }

    /// Turns over the collected tokens in which each thread has one.
    fn turns(&self) -> u32 {
        MOST.div_ceil(self.threads)
    }

    /// Runs for the thread's tokens among the `total` collected: their turn and place.
    fn each(
        &self,
        b: &mut Body<'_>,
        total: &Expr,
        mut fill: impl FnMut(&mut Body<'_>, usize, Expr) -> Result<(), String>,
    ) -> Result<(), String> {
        for turn in 0..self.turns() {
            let place = Expr::ThreadIdx + i64::from(turn * self.threads);
            let place = b.k.let_("place", DType::I32, place);
            b.if_then(place.clone().lt(total.clone()), |b| fill(b, turn as usize, place))?;
        }
        Ok(())
    }

    /// Raises `least` by top-k and top-p, and sets `found`; or leaves both where there is no answer. `own` and `max`
    /// are the largest logits of the thread and of the row. The result is the number collected.
    pub fn threshold(
        &self,
        b: &mut Body<'_>,
        r: &Row,
        asked: &Asked,
        (own, max): (VarId, VarId),
        (least, found): (VarId, VarId),
    ) -> Result<(), String> {
        let most = MOST_RANK.min(self.threads / 2).max(1);
        let few = Expr::int(i64::from(most));
        let rank = asked.limits.clone().select(asked.k.clone(), few.clone());
        let rank = b.k.let_("rank", DType::I32, rank);
        let filters = bin(BinaryOp::Or, asked.limits.clone(), asked.cuts.clone());
        let possible = filters.and(cmp(CompareOp::Le, rank.clone(), few));
        b.if_then(possible, |b| {
            self.collect(b, r, &rank, own)?;
            let total = b.k.let_("total", DType::I32, at(self.count, Expr::int(0)));
            b.if_then(cmp(CompareOp::Le, total.clone(), Expr::int(i64::from(MOST))), |b| {
                self.sort(b, &total, max)?;
                self.answer(b, r, asked, &total, max, (least, found))
            })
        })
    }

    /// Collects the tokens that reach the `rank`-th largest of the threads' largest.
    fn collect(&self, b: &mut Body<'_>, r: &Row, rank: &Expr, own: VarId) -> Result<(), String> {
        let mine = key(b, own.into());
        b.k.store(Mem::Shared(self.own), Expr::ThreadIdx, mine.clone());
        b.if_then(Expr::ThreadIdx.eq_(Expr::int(0)), |b| {
            b.k.store(Mem::Shared(self.count), Expr::int(0), Expr::int(0));
            Ok(())
        })?;
        b.k.push(Stmt::Barrier);
        let above = b.k.let_mut("above", DType::I32, Expr::int(0));
        let range = (Expr::int(0), Expr::int(i64::from(self.threads)), Expr::int(1));
        b.for_loop("other", range, Unroll::By(8), |b, other| {
            let theirs = b.k.let_("theirs", DType::U32, at(self.own, other.clone()));
            let higher = cmp(CompareOp::Gt, theirs.clone(), mine.clone());
            let equal = theirs.eq_(mine.clone()).and(other.lt(Expr::ThreadIdx));
            let one = bin(BinaryOp::Or, higher, equal).select(Expr::int(1), Expr::int(0));
            b.k.assign(above, Expr::Var(above) + one);
            Ok(())
        })?;
        b.if_then((Expr::Var(above) + 1).eq_(rank.clone()), |b| {
            b.k.store(Mem::Shared(self.bound), Expr::int(0), mine);
            Ok(())
        })?;
        b.k.push(Stmt::Barrier);
        let bound = b.k.let_("bound", DType::U32, at(self.bound, Expr::int(0)));
        r.reaching(b, &bound, |b, id, key| {
            let place = b.k.atomic_add("place", Mem::Shared(self.count), Expr::int(0), Expr::int(1));
            b.if_then(place.clone().lt(Expr::int(i64::from(MOST))), |b| {
                b.k.store(Mem::Shared(self.keys), place.clone(), key);
                b.k.store(Mem::Shared(self.tokens), place, id);
                Ok(())
            })
        })?;
        b.k.push(Stmt::Barrier);
        Ok(())
    }

    /// Sorts what was collected, and adds the weights.
    fn sort(&self, b: &mut Body<'_>, total: &Expr, max: VarId) -> Result<(), String> {
        let mut own = Vec::new();
        for _ in 0..self.turns() {
            own.push((
                b.k.let_mut("key_here", DType::U32, Expr::uint(0)),
                b.k.let_mut("token_here", DType::I32, Expr::int(0)),
                b.k.let_mut("rank_here", DType::I32, Expr::int(0)),
            ));
        }
        self.each(b, total, |b, turn, place| {
            let (key, token, rank) = own[turn];
            b.k.assign(key, at(self.keys, place.clone()));
            b.k.assign(token, at(self.tokens, place));
            // Seldom are more collected than there are threads.
            let unroll = if turn == 0 { Unroll::By(4) } else { Unroll::Never };
            b.for_loop("other", (Expr::int(0), total.clone(), Expr::int(1)), unroll, |b, other| {
                let theirs = b.k.let_("theirs", DType::U32, at(self.keys, other.clone()));
                let higher = cmp(CompareOp::Gt, theirs.clone(), key.into());
                let earlier = at(self.tokens, other).lt(token.into());
                let equal = theirs.eq_(key.into()).and(earlier);
                let one = bin(BinaryOp::Or, higher, equal).select(Expr::int(1), Expr::int(0));
                b.k.assign(rank, Expr::Var(rank) + one);
                Ok(())
            })
        })?;
        b.k.push(Stmt::Barrier);
        self.each(b, total, |b, turn, _| {
            let (key, token, rank) = own[turn];
            b.k.store(Mem::Shared(self.keys), rank.into(), key.into());
            b.k.store(Mem::Shared(self.tokens), rank.into(), token.into());
            let weight = nucleus_weight(number(key.into()), max);
            b.k.store(Mem::Shared(self.weights), rank.into(), weight);
            Ok(())
        })?;
        b.k.push(Stmt::Barrier);
        Ok(())
    }

    /// Top-k and top-p from the sorted tokens. All threads go over them together.
    fn answer(
        &self,
        b: &mut Body<'_>,
        r: &Row,
        asked: &Asked,
        total: &Expr,
        max: VarId,
        (least, found): (VarId, VarId),
    ) -> Result<(), String> {
        let kth = b.k.let_mut("kth", DType::U32, Expr::uint(0));
        b.if_then(asked.limits.clone(), |b| {
            b.k.assign(kth, at(self.keys, asked.k.clone() - 1));
            Ok(())
        })?;
        b.k.assign(found, not(asked.cuts.clone()));
        b.if_then(asked.cuts.clone(), |b| {
            let mass = b.k.let_mut("mass", DType::F32, Expr::float(0.0));
            let range = || (Expr::int(0), total.clone(), Expr::int(1));
            b.if_then(asked.limits.clone(), |b| {
                b.for_loop("place", range(), Unroll::By(2), |b, place| {
                    let kept = cmp(CompareOp::Ge, at(self.keys, place.clone()), kth.into());
                    let weight = kept.select(at(self.weights, place), Expr::float(0.0));
                    b.k.assign(mass, Expr::Var(mass) + weight);
                    Ok(())
                })
            })?;
            b.if_then(not(asked.limits.clone()), |b| {
                let sum = (Reduce::Sum, Unroll::By(2));
                let [all] = r.reduce_all(b, ["mass_of_row"], sum, |_, x| [nucleus_weight(x, max)])?;
                b.k.assign(mass, all.into());
                Ok(())
            })?;
            let wanted = b.k.let_("wanted_mass", DType::F32, asked.p.clone() * Expr::Var(mass));
            let sum = b.k.let_mut("mass_so_far", DType::F32, Expr::float(0.0));
            let cut = b.k.let_mut("cut", DType::U32, Expr::uint(0));
            // The largest key whose tokens have enough mass together, equal ones included.
            b.for_loop("place", range(), Unroll::By(2), |b, place| {
                b.k.assign(sum, Expr::Var(sum) + at(self.weights, place.clone()));
                let here = b.k.let_("key_at", DType::U32, at(self.keys, place));
                let enough = cmp(CompareOp::Ge, sum.into(), wanted.clone());
                let first = enough.and(not(found.into()));
                let first = first.and(cmp(CompareOp::Ge, here.clone(), kth.into()));
                let first = b.k.let_("first", DType::Bool, first);
                b.k.assign(cut, first.clone().select(here, cut.into()));
                b.k.assign(found, bin(BinaryOp::Or, found.into(), first));
                Ok(())
            })?;
            b.k.assign(kth, Expr::Var(kth).max(cut.into()));
            Ok(())
        })?;
        b.if_then(found.into(), |b| {
            b.k.assign(least, kth.into());
            Ok(())
        })
    }

    /// Draws among the tokens that were collected.
    pub fn draw(&self, b: &mut Body<'_>, q: &Request, least: VarId, best: Best) -> Result<(), String> {
        let total = b.k.let_("total", DType::I32, at(self.count, Expr::int(0)));
        self.each(b, &total, |b, _, place| {
            let key = b.k.let_("key_here", DType::U32, at(self.keys, place.clone()));
            b.if_then(cmp(CompareOp::Ge, key.clone(), least.into()), |b| {
                let id = b.k.let_("id", DType::I32, at(self.tokens, place));
                let noise = gumbel(b, q, &id)?;
                best.keep(b, number(key) + noise, id);
                Ok(())
            })
        })
    }
}

/// Raises `least` by min-p.
pub(super) fn min_p(b: &mut Body<'_>, min_p: Expr, max: VarId, least: VarId) -> Result<(), String> {
    b.if_then(cmp(CompareOp::Gt, min_p.clone(), Expr::float(0.0)), |b| {
        let log = Expr::math(MathFn::Log, min_p.min(Expr::float(1.0)));
        let floor = key(b, Expr::Var(max) + log);
        b.k.assign(least, Expr::Var(least).max(floor));
        Ok(())
    })
}
