//! From a decode step to the next: one block, a thread a row, as `weft_ir::generation` defines it.
//!
//! The cancel word lies in host memory, so a read of it crosses the bus: it is read before the wait, while the
//! step's last kernels still run. The token goes to host memory as one word, which is its own signal: the host
//! waits for that word to change, so no count and no fence stand between a token and the host.

use super::Body;
use weft_ir::dtype::DType;
use weft_ir::kernel::{BinaryOp, CompareOp, Expr, Mem, Stmt, Unroll};
use weft_ir::plan::Advance;

/// What is read and changed, in the order of `Advance::reads` and `Advance::writes`.
struct Arrays {
    tokens: Mem,
    stop: Mem,
    cancel: Mem,
    token_ids: Mem,
    positions: Mem,
    slots: Mem,
    remaining: Mem,
    step: Mem,
    stream: Mem,
}

fn arrays(b: &Body<'_>) -> Result<Arrays, String> {
    let ([tokens, stop, cancel], [token_ids, positions, slots, remaining, step, stream]) =
        (&b.reads[..], &b.writes[..])
    else {
        return Err(format!("an advance with {} and {} operands", b.reads.len(), b.writes.len()));
    };
    Ok(Arrays {
        tokens: *tokens,
        stop: *stop,
        cancel: *cancel,
        token_ids: *token_ids,
        positions: *positions,
        slots: *slots,
        remaining: *remaining,
        step: *step,
        stream: *stream,
    })
}

pub(super) fn build(b: &mut Body<'_>, a: &Advance) -> Result<(), String> {
    let m = arrays(b)?;
    let condition = b.k.condition("loop");
    let live = Mem::Shared(b.k.shared("live", DType::I32, 1));
    let (zero, one) = (|| Expr::int(0), || Expr::int(1));
    let rows = b.extent(a.rows);
    b.launch_dependents();
    let row = b.k.let_("row", DType::I32, Expr::ThreadIdx);
    let inside = row.clone().lt(rows.clone());
    let cancelled = inside.clone().select(Expr::load(m.cancel, row.clone()), zero());
    let cancelled = b.k.let_("cancelled", DType::I32, cancelled);
    let first = b.k.let_("first", DType::Bool, row.clone().eq_(zero()));
    b.if_then(first.clone(), |b| {
        b.k.store(live, zero(), zero());
        Ok(())
    })?;
    b.wait();
    let step = b.k.let_("step_done", DType::I32, Expr::load(m.step, zero()));
    let remaining = inside.select(Expr::load(m.remaining, row.clone()), zero());
    let remaining = b.k.let_("remaining_of_row", DType::I32, remaining);
    b.k.push(Stmt::Barrier);
    b.if_then(Expr::cmp(CompareOp::Gt, remaining.clone(), zero()), |b| {
        let token = b.k.let_("token", DType::I32, Expr::load(m.tokens, row.clone()));
        let position = b.k.let_("position", DType::I32, Expr::load(m.positions, row.clone()));
        b.k.store(m.stream, step.clone() * rows + row.clone(), token.clone());
        let left = b.k.let_("left", DType::I32, remaining - 1);
        let next = b.k.let_("next_position", DType::I32, position + 1);
        let context = i64::try_from(a.context).map_err(|_| "a context beyond 64 bits".to_owned())?;
        let or = |a: Expr, b: Expr| Expr::Binary(BinaryOp::Or, Box::new(a), Box::new(b));
        let over = [
            left.clone().eq_(zero()),
            next.clone().ge(Expr::int(context)),
            Expr::cmp(CompareOp::Ne, cancelled, zero()),
        ];
        let over = over.into_iter().fold(token.clone().lt(zero()), or);
        let ends = b.k.let_mut("ends", DType::Bool, over);
        let count = b.k.let_("stop_count", DType::I32, Expr::load(m.stop, zero()));
        b.for_loop("i", (zero(), count, one()), Unroll::By(4), |b, i| {
            let stops = token.clone().eq_(Expr::load(m.stop, i + 1));
            b.k.assign(ends, or(Expr::Var(ends), stops));
            Ok(())
        })?;
        let slot = b.k.let_("slot", DType::I32, Expr::load(m.slots, row.clone()));
        let ends = || Expr::Var(ends);
        b.k.store(m.token_ids, row.clone(), ends().select(zero(), token));
        b.k.store(m.positions, row.clone(), ends().select(zero(), next));
        b.k.store(m.slots, row.clone(), ends().select(Expr::int(-1), slot + 1));
        b.k.store(m.remaining, row.clone(), ends().select(zero(), left));
        let rest = ends().select(zero(), one());
        b.k.push(Stmt::AtomicAdd { mem: live, index: zero(), value: rest, old: None });
        Ok(())
    })?;
    b.k.push(Stmt::Barrier);
    b.if_then(first, |b| {
        b.k.store(m.step, zero(), step + 1);
        let value = Expr::load(live, zero()).cast(DType::U32);
        b.k.push(Stmt::SetCondition { condition, value });
        Ok(())
    })
}
