//! How many rows the tables have that step inputs index: what a value of the input must stay below.

use weft_ir::graph::{Graph, Input, Op};
use weft_ir::ids::NodeId;
use weft_ir::plan::{BufferKind, Plan, Scalar};

/// Rows of the smallest table that a plan indexes by an input; `None` when it indexes none.
pub fn plan_rows(plan: &Plan, input: Input) -> Option<usize> {
    let mut least: Option<usize> = None;
    for dispatch in plan.bodies.iter().flat_map(|b| &b.dispatches) {
        let Some(work) = plan.works.get(dispatch.work as usize) else { continue };
        let is_input = |operand: usize| {
            let buffer = dispatch.reads.get(operand).and_then(|b| plan.buffers.get(b.index()));
            buffer.is_some_and(|b| b.kind == BufferKind::Input(input))
        };
        for scalar in work.scalars() {
            scalar.visit(&mut |e| {
                if let Scalar::Load(table, at) = e
                    && let Some(Scalar::Load(index, _)) = at.first()
                    && is_input(index.index())
                    && let Some(table) = work.reads.get(table.index())
                    && let Some(rows) = table.shape.first().and_then(|d| d.as_const())
                {
                    least = Some(least.map_or(rows, |n| n.min(rows)));
                }
            });
        }
    }
    least
}

/// The same of a graph.
pub fn graph_rows(graph: &Graph, input: Input) -> Option<usize> {
    let is_input = |mut id: NodeId| loop {
        let node = graph.node(id);
        match (&node.op, node.inputs.first()) {
            (Op::Reshape(_), Some(&x)) => id = x,
            (op, _) => return *op == Op::Input(input),
        }
    };
    let rows = graph.nodes.iter().filter_map(|node| match (&node.op, node.inputs.as_slice()) {
        (Op::Gather, &[table, index]) if is_input(index) => graph.ty(table).shape.first()?.as_const(),
        _ => None,
    });
    rows.min()
}
