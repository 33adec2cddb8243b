//! Graphs of other sizes.

use weft_ir::graph::{Graph, Literal, Node, Op, ValueType, infer};
use weft_ir::shape::{Dim, Shape};

/// The graph with every constant extent mapped, where that still types.
pub fn resized(graph: &Graph, map: &dyn Fn(usize) -> usize) -> Option<Graph> {
    let shape = |s: &Shape| -> Shape {
        let one = |d: &Dim| d.as_const().map_or(*d, |n| Dim::Const(map(n)));
        s.iter().map(one).collect()
    };
    let mut out =
        Graph { outputs: graph.outputs.clone(), state_out: graph.state_out.clone(), ..Graph::default() };
    for node in &graph.nodes {
        let typed = |ty: &ValueType| ValueType { encoding: ty.encoding, shape: shape(&ty.shape) };
        let op = match &node.op {
            Op::Weight { tensor, ty } => Op::Weight { tensor: tensor.clone(), ty: typed(ty) },
            Op::State { name, ty } => Op::State { name: name.clone(), ty: typed(ty) },
            Op::Constant { literal, shape: s } => {
                let to = shape(s);
                let n: usize = to.iter().map(|d| d.as_const().unwrap_or(1)).product();
                let literal = match literal {
                    Literal::F32(v) => Literal::F32(v.iter().copied().cycle().take(n).collect()),
                    Literal::I32(v) => Literal::I32(v.iter().copied().cycle().take(n).collect()),
                };
                Op::Constant { literal, shape: to }
            }
            Op::Iota { axis, shape: s } => Op::Iota { axis: *axis, shape: shape(s) },
            Op::Reshape(s) => Op::Reshape(shape(s)),
            Op::Broadcast(s) => Op::Broadcast(shape(s)),
            Op::Slice { axis, start, len } => {
                let extent = out.ty(*node.inputs.first()?).shape.get(*axis)?.as_const()?;
                let len = map(*len).min(extent);
                Op::Slice { axis: *axis, start: (*start).min(extent - len), len }
            }
            Op::Input(_)
            | Op::Decode
            | Op::Unary(_)
            | Op::Binary(_)
            | Op::Compare(_)
            | Op::Select
            | Op::Cast(_)
            | Op::Transpose(_)
            | Op::Concat { .. }
            | Op::Reduce(_)
            | Op::Softmax
            | Op::TopK { .. }
            | Op::RoutedMatMul { .. }
            | Op::MatMul { .. }
            | Op::Gather
            | Op::Scatter
            | Op::Penalize
            | Op::Sample => node.op.clone(),
        };
        let types: Vec<&ValueType> = node.inputs.iter().map(|&i| out.ty(i)).collect();
        let ty = infer(&op, &types).ok()?;
        out.nodes.push(Node { op, ty, ..node.clone() });
    }
    Some(out)
}
