//! Elementwise loops: one thread an element of the domain.

use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::kernel::{Axis, Const, Expr};
use weft_ir::plan::Loop;

pub(super) fn build(b: &mut Body<'_>, l: &Loop, threads: u32) -> Result<(), String> {
    if !l.stages.is_empty() || l.reduced.is_some() || !l.row_stores.is_empty() {
        return Err("an elementwise kernel has no reductions".into());
    }
    b.wait_for_dependencies();
    // The last block may reach past the domain by one block, so its size counts too.
    let wide = b.max_elements(&l.domain) + threads as usize > i32::MAX as usize;
    let ty = if wide { DType::I64 } else { DType::I32 };
    let typed = |e: Expr| match (wide, e.as_int()) {
        (false, _) => e,
        (true, Some(v)) => Expr::Const(Const::I64(v)),
        (true, None) => e.cast(DType::I64),
    };
    let index =
        typed(Expr::BlockIdx(Axis::X)) * typed(Expr::int(i64::from(threads))) + typed(Expr::ThreadIdx);
    let index = b.k.let_("index", ty, index);
    let mut total = typed(Expr::int(1));
    for d in &l.domain {
        let extent = typed(b.extent(*d));
        total = if total == typed(Expr::int(1)) { extent } else { total * extent };
    }
    b.if_then(index.clone().lt(total), |b| {
        let coords = b.unflatten(index, ty, &l.domain);
        b.stores(&l.element_stores, &Point::at(coords))
    })
}
