//! Penalties on rows of logits: one block a row, as `weft_ir::sampling::penalize_row` defines them.
//!
//! Each thread copies some logits, and then takes the sequence's tokens that are its own: those whose id is
//! its number modulo the block's threads. So no two threads write one logit, and none is written by chance.

use super::Body;
use super::sampling::{bin, cmp};
use super::warp::vector_lanes;
use weft_ir::dtype::DType;
use weft_ir::kernel::{Axis, BinaryOp, CacheHint, CompareOp, Expr, Mem, Stmt, Unroll};
use weft_ir::plan::Penalize;

/// Earlier tokens that a thread loads together.
const AHEAD: u32 = 8;

/// A row's tokens and what they cost.
pub(super) struct Past {
    /// i32 tokens by slot.
    pub history: Mem,
    /// First slot of the row's sequence.
    pub base: Expr,
    /// Position of the row's token: the last that counts.
    pub position: Expr,
    pub prompt: Expr,
    pub repetition: Expr,
    pub presence: Expr,
}

impl Past {
    /// Whether a row has penalties.
    pub fn costs(&self) -> Expr {
        let divides = cmp(CompareOp::Ne, self.repetition.clone(), Expr::float(1.0));
        let takes = cmp(CompareOp::Ne, self.presence.clone(), Expr::float(0.0));
        bin(BinaryOp::Or, divides, takes)
    }
}

/// A row of logits and the place of its copy: arrays, and the flat index of the first in each.
pub(super) struct Copies {
    pub from: (Mem, Expr),
    pub to: (Mem, Expr),
    pub vocab: i64,
    pub threads: u32,
    /// What the copy is divided by, once and for all: a division is long code, and a draw has many passes.
    pub divisor: Option<Expr>,
}

impl Copies {
    fn scaled(&self, value: Expr) -> Expr {
        match &self.divisor {
            None => value,
            Some(divisor) => value / divisor.clone(),
        }
    }

    /// Logit `token` of the row.
    fn logit(&self, token: Expr) -> Expr {
        Expr::load(self.from.0, self.from.1.clone() + token)
    }

    fn keep(&self, b: &mut Body<'_>, token: Expr, value: Expr) {
        b.k.store(self.to.0, self.to.1.clone() + token, value);
    }
}

/// Copies a row of f32 logits, with the penalties of its tokens where it has any.
pub(super) fn copy_row(b: &mut Body<'_>, c: &Copies, past: &Past) -> Result<(), String> {
    let threads = i64::from(c.threads);
    let lanes = vector_lanes(DType::F32, c.vocab as usize);
    let wide = i64::from(lanes);
    let along = (Expr::ThreadIdx * wide, Expr::int(c.vocab), Expr::int(threads * wide));
    b.for_loop("token", along, Unroll::By(4), |b, token| {
        if lanes == 1 {
            let logit = c.scaled(c.logit(token.clone()));
            c.keep(b, token, logit);
            return Ok(());
        }
        let (some, zero) = (b.k.array("logits_of_lane", DType::F32, lanes, None), || Expr::int(0));
        let (from, to) = (c.from.1.clone() + token.clone(), c.to.1.clone() + token);
        let (mem, hint) = (c.from.0, CacheHint::Default);
        b.k.push(Stmt::LoadVec { dst: some, dst_at: zero(), mem, index: from, lanes, hint });
        if c.divisor.is_some() {
            b.unrolled("e", lanes, |b, e| {
                let scaled = c.scaled(Expr::elem(some, e.clone()));
                b.k.assign_elem(some, e, scaled);
                Ok(())
            })?;
        }
        b.k.push(Stmt::StoreVec { mem: c.to.0, index: to, src: some, src_at: zero(), lanes });
        Ok(())
    })?;
    b.if_then(past.costs(), |b| {
        // Another thread may have copied a thread's own tokens.
        b.k.push(Stmt::Barrier);
        // The tokens behind the prompt come last, so that what they cost is what stays.
        let count = b.k.let_("count", DType::I32, past.position.clone() + 1);
        let range = (Expr::int(0), count.clone(), Expr::int(AHEAD.into()));
        b.for_loop("first", range, Unroll::Never, |b, first| {
            // Loaded together, since the compiler does not move loads over the stores below.
            let ids = b.k.array("ids", DType::I32, AHEAD, Some(Expr::int(-1)));
            b.unrolled("u", AHEAD, |b, u| {
                let at = b.k.let_("at", DType::I32, first.clone() + u.clone());
                b.if_then(at.clone().lt(count.clone()), |b| {
                    b.k.assign_elem(ids, u, Expr::load(past.history, past.base.clone() + at));
                    Ok(())
                })
            })?;
            b.unrolled("u", AHEAD, |b, u| {
                let id = b.k.let_("id", DType::I32, Expr::elem(ids, u.clone()));
                let known =
                    cmp(CompareOp::Ge, id.clone(), Expr::int(0)).and(id.clone().lt(Expr::int(c.vocab)));
                let own = (id.clone() % threads).eq_(Expr::ThreadIdx);
                b.if_then(known.and(own), |b| {
                    let logit = b.k.let_("logit", DType::F32, c.logit(id.clone()));
                    let below = logit.clone().lt(Expr::float(0.0));
                    let multiplied = logit.clone() * past.repetition.clone();
                    let value = below.select(multiplied, logit / past.repetition.clone());
                    let answered = cmp(CompareOp::Ge, first + u, past.prompt.clone());
                    let taken = answered.select(past.presence.clone(), Expr::float(0.0));
                    c.keep(b, id, c.scaled(value - taken));
                    Ok(())
                })
            })
        })
    })
}

pub(super) fn build(b: &mut Body<'_>, p: &Penalize, block: u32) -> Result<(), String> {
    b.wait_for_dependencies();
    let row = b.k.let_("row", DType::I32, Expr::BlockIdx(Axis::X));
    let at_row = |b: &mut Body<'_>, i: usize, name: &str, dtype: DType| {
        let value = Expr::load(b.reads[i], row.clone());
        b.k.let_(name, dtype, value)
    };
    let history = b.reads[1];
    let base = at_row(b, 2, "first_slot", DType::I32);
    let position = at_row(b, 3, "position_of_row", DType::I32);
    let prompt = at_row(b, 4, "prompt_of_row", DType::I32);
    let repetition = at_row(b, 5, "repetition_of_row", DType::F32);
    let presence = at_row(b, 6, "presence_of_row", DType::F32);
    let past = Past { history, base, position, prompt, repetition, presence };
    let shape = b.work.reads[0].shape.clone();
    let start = b.flat(&shape, &[row, Expr::int(0)]);
    let start = b.k.let_("start", b.index_type(&shape), start);
    if b.index_type(&shape) == DType::I64 {
        return Err("rows of logits beyond 32-bit indices".into());
    }
    let (from, to) = ((b.reads[0], start.clone()), (b.writes[0], start));
    copy_row(b, &Copies { from, to, vocab: p.vocab as i64, threads: block, divisor: None }, &past)
}
