//! Sampling: one block a row, as `weft_ir::sampling` defines it.

use super::Body;
use super::few::Few;
use super::sampling::{Request, Row, cmp, pick};
use super::warp::threads;
use weft_ir::dtype::DType;
use weft_ir::kernel::{Axis, CompareOp, Expr};
use weft_ir::plan::Sample;
use weft_ir::scalar::Reduce;

pub(super) fn build(b: &mut Body<'_>, s: &Sample, block: u32) -> Result<(), String> {
    let warps = block / 32;
    // One block an SM is enough: two would halve the registers.
    b.k.min_blocks(1);
    let partial = b.k.shared("partial", DType::F32, warps);
    let scores = b.k.shared("best_score", DType::F32, warps);
    let tokens = b.k.shared("best_token", DType::I32, warps);
    let few = Few::declare(b, block);
    b.wait_for_dependencies();
    let t = threads(b);
    let row = b.k.let_("row", DType::I32, Expr::BlockIdx(Axis::X));
    let at_row = |b: &Body<'_>, i: usize| Expr::load(b.reads[i], row.clone());
    let position = b.k.let_("position_of_row", DType::I32, at_row(b, 1));
    let temperature = b.k.let_("temperature_of_row", DType::F32, at_row(b, 2));
    let draws = b.k.let_("draws", DType::Bool, cmp(CompareOp::Gt, temperature.clone(), Expr::float(0.0)));
    let divisor = b.k.let_("divisor", DType::F32, draws.clone().select(temperature, Expr::float(1.0)));
    let (dtype, shape) = (b.work.reads[0].dtype, b.work.reads[0].shape.clone());
    let start = b.flat(&shape, &[row.clone(), Expr::int(0)]);
    let start = b.k.let_("start", b.index_type(&shape), start);
    let (logits, vocab) = (b.reads[0], s.vocab as i64);
    let r =
        Row { logits, dtype, shape, start, vocab, threads: block, temperature: Some(divisor), t, partial };

    let not_numbers = r.reduce(b, "not_numbers", Reduce::Sum, |_, x| {
        cmp(CompareOp::Ne, x.clone(), x).select(Expr::float(1.0), Expr::float(0.0))
    })?;
    let seed = b.k.let_("seed_of_row", DType::U32, at_row(b, 6));
    let (top_k, top_p, min_p) = (at_row(b, 3), at_row(b, 4), at_row(b, 5));
    let request = Request { position, top_k, top_p, min_p, seed };
    let token = pick(b, &r, &request, &draws, &few, (scores, tokens))?;
    b.if_then(Expr::ThreadIdx.eq_(Expr::int(0)), |b| {
        let bad = cmp(CompareOp::Gt, not_numbers.into(), Expr::float(0.0));
        let result = bad.select(Expr::int(-1), token);
        b.k.store(b.writes[0], row, result);
        Ok(())
    })
}
