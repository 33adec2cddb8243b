//! How far roundings may move a graph's results: Monte Carlo arithmetic (Parker 1997) on the graph itself.
//!
//! [`noisy`] gives a graph whose every rounded result is multiplied with 1 + δ, |δ| at most a unit of its
//! type's roundoff, another δ for each element. The distance of its f64 results to those of the graph says
//! what that many roundings do to this graph on these inputs, cancellation and jumps included.

use super::rng::Rng;
use half::{bf16, f16};
use std::collections::HashMap;
use weft_ir::dtype::DType;
use weft_ir::graph::{Graph, Literal, Node, Op, ValueType, infer};
use weft_ir::ids::NodeId;
use weft_ir::scalar::{Binary, Reduce, Unary};
use weft_ir::shape::{Dim, Shape};

/// Size of the noise that stands for rounding to a stored type, relative to the value. For f32 it is the unit roundoff;
/// for 16 bits half of it, which is as far as values next to a power of two from below are rounded: waves of this height
/// have about the mean square of roundings.
pub fn roundoff(d: DType) -> f64 {
    match d {
        DType::BF16 => 2f64.powi(-9),
        DType::F16 => 2f64.powi(-12),
        DType::F32 => 2f64.powi(-24),
        DType::I64 | DType::I32 | DType::U32 | DType::Bool => 0.0,
    }
}

/// The graph with noise of `unit(stored type)`; another `phase` gives other noise.
pub fn noisy(graph: &Graph, unit: &dyn Fn(DType) -> f64, phase: usize) -> Graph {
    let rng = Rng::new(phase as u64);
    let mut n = Noise { out: Graph::default(), phases: Vec::new(), unit, rng };
    let users = graph.users();
    let mut map: Vec<NodeId> = Vec::with_capacity(graph.nodes.len());
    // Values that a kernel may compute again, where another has them rounded from memory: each use has its own
    // noise.
    let mut again: HashMap<NodeId, (NodeId, f64)> = HashMap::new();
    for (id, node) in graph.ids().zip(&graph.nodes) {
        let mut input = |i: &NodeId| match again.get(i) {
            Some(&(exact, unit)) => n.shaken(exact, unit),
            None => map[i.index()],
        };
        let mut inputs: Vec<NodeId> = node.inputs.iter().map(&mut input).collect();
        let sums = matches!(
            node.op,
            Op::MatMul { .. }
                | Op::RoutedMatMul { .. }
                | Op::Softmax
                | Op::Reduce(Reduce::Sum)
                | Op::Reduce(Reduce::Mean)
        );
        if let (true, Some(first)) = (sums, inputs.first_mut()) {
            // What is summed is rounded, too: in f32.
            *first = n.shaken(*first, 2.0 * unit(DType::F32));
        }
        let mut made = n.push(node.op.clone(), &inputs, &node.scope);
        if is_rounded(node) && !is_exact(graph, node) {
            let (exact, unit) = (made, unit(node.ty.dtype()).max(unit(DType::F32)));
            made = n.shaken(exact, unit);
            let cheap = matches!(node.op, Op::Unary(_) | Op::Binary(_) | Op::Cast(_));
            if cheap && node.ty.dtype().is_half() && users[id.index()].len() > 1 {
                again.insert(id, (exact, unit));
            }
        }
        map.push(made);
    }
    let mut out = n.out;
    out.outputs = graph.outputs.clone();
    out.outputs.iter_mut().for_each(|o| o.value = map[o.value.index()]);
    out.state_out = graph.state_out.clone();
    out.state_out.iter_mut().for_each(|s| s.value = map[s.value.index()]);
    out
}

/// Whether a node is a cast of literals that its type holds as they are: without a rounding, noise would only make of an
/// exponent of 2 one that negative values have no power of.
fn is_exact(graph: &Graph, node: &Node) -> bool {
    let holds = |d: DType, x: f32| match d {
        DType::F16 => f16::from_f32(x).to_f32() == x,
        DType::BF16 => bf16::from_f32(x).to_f32() == x,
        DType::F32 | DType::I64 | DType::I32 | DType::U32 | DType::Bool => true,
    };
    let (Op::Cast(d), [of]) = (&node.op, &node.inputs[..]) else { return false };
    let mut from = &graph.nodes[of.index()];
    while let (Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast(_), [of]) = (&from.op, &from.inputs[..]) {
        from = &graph.nodes[of.index()];
    }
    match &from.op {
        Op::Constant { literal: Literal::F32(all), .. } => all.iter().all(|&x| holds(*d, x)),
        _ => false,
    }
}

/// Whether an op's result is rounded (movement and choice are exact).
fn is_rounded(node: &Node) -> bool {
    if !node.ty.dtype().is_float() {
        return false;
    }
    match &node.op {
        Op::Unary(u) => !matches!(u, Unary::Neg | Unary::Abs),
        Op::Binary(b) => !matches!(b, Binary::Min | Binary::Max),
        Op::Reduce(r) => *r != Reduce::Max,
        Op::Softmax | Op::MatMul { .. } | Op::RoutedMatMul { .. } | Op::Cast(_) => true,
        Op::Input(_)
        | Op::Weight { .. }
        | Op::Constant { .. }
        | Op::Iota { .. }
        | Op::State { .. }
        | Op::Decode
        | Op::TopK { .. }
        | Op::Compare(_)
        | Op::Select
        | Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Broadcast(_)
        | Op::Slice { .. }
        | Op::Concat { .. }
        | Op::Gather
        | Op::Scatter
        | Op::Penalize
        | Op::Sample => false,
    }
}

struct Noise<'a> {
    out: Graph,
    /// For each shape, a value that is another one at each of its elements.
    phases: Vec<(Shape, NodeId)>,
    unit: &'a dyn Fn(DType) -> f64,
    rng: Rng,
}

impl Noise<'_> {
    fn push(&mut self, op: Op, inputs: &[NodeId], scope: &str) -> NodeId {
        let types: Vec<&ValueType> = inputs.iter().map(|&i| self.out.ty(i)).collect();
        // The graph verified, and noise keeps types.
        let ty = infer(&op, &types).unwrap_or_else(|_| ValueType::plain(DType::F32, Vec::new()));
        self.out.nodes.push(Node { op, inputs: inputs.to_vec(), ty, scope: scope.into() });
        NodeId::new(self.out.nodes.len() - 1)
    }

    fn constant(&mut self, x: f32, shape: &Shape) -> NodeId {
        let one: Shape = vec![Dim::Const(1); shape.len()];
        let c = self.push(Op::Constant { literal: Literal::F32(vec![x]), shape: one }, &[], "");
        self.push(Op::Broadcast(shape.clone()), &[c], "")
    }

    fn binary(&mut self, op: Binary, a: NodeId, b: NodeId) -> NodeId {
        self.push(Op::Binary(op), &[a, b], "")
    }

    /// Σ index · factor along the axes.
    fn phases(&mut self, shape: &Shape) -> NodeId {
        if let Some((_, id)) = self.phases.iter().find(|(s, _)| s == shape) {
            return *id;
        }
        let mut sum = None;
        for axis in 0..shape.len() {
            let i = self.push(Op::Iota { axis, shape: shape.clone() }, &[], "");
            let i = self.push(Op::Cast(DType::F32), &[i], "");
            let factor = self.constant(1.7 + 2.3 * axis as f32, shape);
            let part = self.binary(Binary::Mul, i, factor);
            sum = Some(sum.map_or(part, |s| self.binary(Binary::Add, s, part)));
        }
        let id = sum.unwrap_or(NodeId::new(0));
        self.phases.push((shape.clone(), id));
        id
    }

    /// x · (1 + unit · sin(phase of the element · frequency of the node + phase of the node)).
    fn shaken(&mut self, x: NodeId, unit: f64) -> NodeId {
        let ty = self.out.ty(x).clone();
        if ty.shape.is_empty() || unit == 0.0 || (self.unit)(DType::F32) == 0.0 {
            return x;
        }
        let at = self.phases(&ty.shape);
        let (frequency, own) = (4.0 + 3.0 * self.rng.signed(), 100.0 * self.rng.signed());
        let frequency = self.constant(frequency, &ty.shape);
        let at = self.binary(Binary::Mul, at, frequency);
        let own = self.constant(own, &ty.shape);
        let at = self.binary(Binary::Add, at, own);
        let wave = self.push(Op::Unary(Unary::Sin), &[at], "");
        let unit = self.constant(unit as f32, &ty.shape);
        let small = self.binary(Binary::Mul, wave, unit);
        let one = self.constant(1.0, &ty.shape);
        let factor = self.binary(Binary::Add, one, small);
        let factor =
            if ty.dtype() == DType::F32 { factor } else { self.push(Op::Cast(ty.dtype()), &[factor], "") };
        self.binary(Binary::Mul, x, factor)
    }
}
