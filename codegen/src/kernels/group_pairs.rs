//! Pairs by the matrix they chose: one block a matrix, which finds its pairs in their order.
//!
//! Each thread looks at a run of pairs: it counts those of smaller matrices and of its own; the sums over all
//! threads and over those before it are where its own pairs go.

use super::Body;
use super::warp::threads;
use weft_ir::dtype::DType;
use weft_ir::kernel::{Axis, Expr, Mem, Stmt, Unroll};
use weft_ir::plan::Grouping;
use weft_ir::shape::Dim;

pub(super) fn build(b: &mut Body<'_>, g: &Grouping, block: u32) -> Result<(), String> {
    let shape = [g.tokens, Dim::Const(g.picks)];
    if b.max_elements(&shape) >= i32::MAX as usize - block as usize {
        return Err(format!("{} pairs are too many", b.max_elements(&shape)));
    }
    let less_shared = b.k.shared("less_shared", DType::I32, block);
    let own_shared = b.k.shared("own_shared", DType::I32, block);
    b.wait_for_dependencies();
    threads(b);
    let (index, order, begins) = (b.reads[0], b.writes[0], b.writes[1]);
    let expert = b.k.let_("expert", DType::I32, Expr::BlockIdx(Axis::X));
    let total = b.extent(g.tokens) * g.picks as i64;
    let total = b.k.let_("total", DType::I32, total);
    let each = (total.clone() + i64::from(block - 1)) / i64::from(block);
    let each = b.k.let_("each", DType::I32, each);
    let first = b.k.let_("first", DType::I32, Expr::ThreadIdx * each.clone());
    let end = b.k.let_("end", DType::I32, (first.clone() + each).min(total));
    let less = b.k.let_mut("less", DType::I32, Expr::int(0));
    let own = b.k.let_mut("own", DType::I32, Expr::int(0));
    let one = |c: Expr| c.select(Expr::int(1), Expr::int(0));
    let run = (first, end, Expr::int(1));
    b.for_loop("p", run.clone(), Unroll::By(4), |b, p| {
        let e = b.k.let_("e", DType::I32, Expr::load(index, p));
        b.k.assign(less, Expr::Var(less) + one(e.clone().lt(expert.clone())));
        b.k.assign(own, Expr::Var(own) + one(e.eq_(expert.clone())));
        Ok(())
    })?;
    b.k.store(Mem::Shared(less_shared), Expr::ThreadIdx, less.into());
    b.k.store(Mem::Shared(own_shared), Expr::ThreadIdx, own.into());
    b.k.push(Stmt::Barrier);
    let begin = b.k.let_mut("begin", DType::I32, Expr::int(0));
    let before = b.k.let_mut("before", DType::I32, Expr::int(0));
    let all = b.k.let_mut("all", DType::I32, Expr::int(0));
    b.for_loop("i", (Expr::int(0), Expr::int(block.into()), Expr::int(1)), Unroll::By(8), |b, i| {
        b.k.assign(begin, Expr::Var(begin) + Expr::load(Mem::Shared(less_shared), i.clone()));
        let theirs = b.k.let_("theirs", DType::I32, Expr::load(Mem::Shared(own_shared), i.clone()));
        let earlier = i.lt(Expr::ThreadIdx).select(theirs.clone(), Expr::int(0));
        b.k.assign(before, Expr::Var(before) + earlier);
        b.k.assign(all, Expr::Var(all) + theirs);
        Ok(())
    })?;
    let at = b.k.let_mut("at", DType::I32, Expr::Var(begin) + Expr::Var(before));
    b.for_loop("p", run, Unroll::Never, |b, p| {
        let mine = Expr::load(index, p.clone()).eq_(expert.clone());
        b.if_then(mine, |b| {
            b.k.store(order, at.into(), p);
            b.k.assign(at, Expr::Var(at) + 1);
            Ok(())
        })
    })?;
    b.if_then(Expr::ThreadIdx.eq_(Expr::int(0)), |b| {
        b.k.store(begins, expert.clone(), begin.into());
        b.if_then(expert.eq_(Expr::int(g.experts as i64 - 1)), |b| {
            b.k.store(begins, Expr::int(g.experts as i64), Expr::Var(begin) + Expr::Var(all));
            Ok(())
        })
    })
}
