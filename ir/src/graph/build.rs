//! Construction of graphs: one method an op, types inferred, equal nodes shared.

use super::{Graph, Input, Literal, Node, Op, Output, StateOut, ValueType, infer};
use crate::dtype::DType;
use crate::ids::NodeId;
use crate::scalar::{Binary, Compare, Reduce, Unary};
use crate::shape::{Dim, Shape};
use std::collections::HashMap;

/// Builds a graph. The first misfit is kept and reported by [`GraphBuilder::finish`], so that builders of
/// models read as formulas; later ops on a misfit have no meaning and are not reported.
#[derive(Debug, Default)]
pub struct GraphBuilder {
    graph: Graph,
    scope: Vec<String>,
    known: HashMap<String, NodeId>,
    fault: Option<String>,
}

impl GraphBuilder {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a part to the scope of the nodes made from here to [`GraphBuilder::leave`].
    pub fn enter(&mut self, part: impl Into<String>) {
        self.scope.push(part.into());
    }

    /// Removes the innermost part of the scope.
    pub fn leave(&mut self) {
        self.scope.pop();
    }

    /// Adds a node; an equal node (same op, same inputs) is shared.
    pub fn add(&mut self, op: Op, inputs: &[NodeId]) -> NodeId {
        let key = format!("{op:?}{inputs:?}");
        // A scatter consumes its state, and is never shared.
        if let (Some(&id), false) = (self.known.get(&key), matches!(op, Op::Scatter)) {
            return id;
        }
        let types: Vec<&ValueType> = inputs.iter().map(|&i| self.graph.ty(i)).collect();
        let ty = infer(&op, &types).unwrap_or_else(|why| {
            let scope = self.scope.join(".");
            self.fault.get_or_insert(format!("{scope}: {why}"));
            ValueType::plain(DType::F32, Vec::new())
        });
        let id = NodeId::new(self.graph.nodes.len());
        self.graph.nodes.push(Node { op, inputs: inputs.to_vec(), ty, scope: self.scope.join(".") });
        self.known.insert(key, id);
        id
    }

    /// The graph, or the first misfit with its scope.
    pub fn finish(self) -> Result<Graph, String> {
        match self.fault {
            Some(why) => Err(why),
            None => Ok(self.graph.without_dead().0),
        }
    }

    /// Shape of a value.
    pub fn shape(&self, x: NodeId) -> Shape {
        self.graph.ty(x).shape.clone()
    }

    /// Element type of a value.
    pub fn dtype(&self, x: NodeId) -> DType {
        self.graph.ty(x).dtype()
    }

    /// Declares a result of the step.
    pub fn output(&mut self, name: &str, value: NodeId) {
        self.graph.outputs.push(Output { name: name.into(), value });
    }

    /// Declares the final value of a state.
    pub fn state_out(&mut self, name: &str, value: NodeId) {
        self.graph.state_out.push(StateOut { name: name.into(), value });
    }

    /// A step input.
    pub fn input(&mut self, input: Input) -> NodeId {
        self.add(Op::Input(input), &[])
    }

    /// A checkpoint tensor as stored.
    pub fn weight(&mut self, tensor: &str, ty: ValueType) -> NodeId {
        self.add(Op::Weight { tensor: tensor.into(), ty }, &[])
    }

    /// A state as the step begins.
    pub fn state(&mut self, name: &str, ty: ValueType) -> NodeId {
        self.add(Op::State { name: name.into(), ty }, &[])
    }

    /// f32 literal elements.
    pub fn constant(&mut self, values: Vec<f32>, shape: Shape) -> NodeId {
        self.add(Op::Constant { literal: Literal::F32(values), shape }, &[])
    }

    /// One value, repeated to the shape and type of `like`.
    pub fn scalar_like(&mut self, value: f32, like: NodeId) -> NodeId {
        let shape = self.shape(like);
        let dtype = self.dtype(like);
        let one = self.constant(vec![value], vec![Dim::Const(1); shape.len()]);
        let one = self.cast(one, dtype);
        self.broadcast(one, shape)
    }

    /// Indices along an axis.
    pub fn iota(&mut self, axis: usize, shape: Shape) -> NodeId {
        self.add(Op::Iota { axis, shape }, &[])
    }

    /// Decoded values of an encoded tensor.
    pub fn decode(&mut self, x: NodeId) -> NodeId {
        self.add(Op::Decode, &[x])
    }

    /// Decoded values of elements whose scales are another tensor.
    pub fn decode_scaled(&mut self, x: NodeId, scales: NodeId) -> NodeId {
        self.add(Op::Decode, &[x, scales])
    }

    /// Elementwise unary operation.
    pub fn unary(&mut self, op: Unary, x: NodeId) -> NodeId {
        self.add(Op::Unary(op), &[x])
    }

    /// Elementwise binary operation; extents of 1 are broadcast.
    pub fn binary(&mut self, op: Binary, a: NodeId, b: NodeId) -> NodeId {
        let (a, b) = self.unify(a, b);
        self.add(Op::Binary(op), &[a, b])
    }

    /// Elementwise comparison; extents of 1 are broadcast.
    pub fn compare(&mut self, op: Compare, a: NodeId, b: NodeId) -> NodeId {
        let (a, b) = self.unify(a, b);
        self.add(Op::Compare(op), &[a, b])
    }

    /// Elementwise choice on equal shapes.
    pub fn select(&mut self, condition: NodeId, a: NodeId, b: NodeId) -> NodeId {
        self.add(Op::Select, &[condition, a, b])
    }

    /// Conversion; nothing when the type is already right.
    pub fn cast(&mut self, x: NodeId, dtype: DType) -> NodeId {
        if self.dtype(x) == dtype { x } else { self.add(Op::Cast(dtype), &[x]) }
    }

    /// Other shape; nothing when the shape is already right.
    pub fn reshape(&mut self, x: NodeId, shape: Shape) -> NodeId {
        if self.shape(x) == shape { x } else { self.add(Op::Reshape(shape), &[x]) }
    }

    /// Permuted axes.
    pub fn transpose(&mut self, x: NodeId, perm: &[usize]) -> NodeId {
        self.add(Op::Transpose(perm.to_vec()), &[x])
    }

    /// Extents of 1 repeated.
    pub fn broadcast(&mut self, x: NodeId, shape: Shape) -> NodeId {
        if self.shape(x) == shape { x } else { self.add(Op::Broadcast(shape), &[x]) }
    }

    /// Part of an axis.
    pub fn slice(&mut self, x: NodeId, axis: usize, start: usize, len: usize) -> NodeId {
        self.add(Op::Slice { axis, start, len }, &[x])
    }

    /// Joined along an axis.
    pub fn concat(&mut self, xs: &[NodeId], axis: usize) -> NodeId {
        self.add(Op::Concat { axis }, xs)
    }

    /// Reduction along the last axis, which becomes 1.
    pub fn reduce(&mut self, op: Reduce, x: NodeId) -> NodeId {
        self.add(Op::Reduce(op), &[x])
    }

    /// Softmax along the last axis.
    pub fn softmax(&mut self, x: NodeId) -> NodeId {
        self.add(Op::Softmax, &[x])
    }

    /// Matrix product with b stored as `[batch…, k, n]`.
    pub fn matmul(&mut self, a: NodeId, b: NodeId, out: DType) -> NodeId {
        self.add(Op::MatMul { transpose_b: false, out }, &[a, b])
    }

    /// Matrix product with b stored as `[batch…, n, k]` (a linear layer's weight).
    pub fn matmul_t(&mut self, a: NodeId, b: NodeId, out: DType) -> NodeId {
        self.add(Op::MatMul { transpose_b: true, out }, &[a, b])
    }

    /// Indices of the k largest elements along the last axis.
    pub fn top_k(&mut self, x: NodeId, k: usize) -> NodeId {
        self.add(Op::TopK { k }, &[x])
    }

    /// Rows a `[t, picks or 1, i]` times the matrices of b `[experts, n, i]` that the index `[t, picks]` names.
    pub fn routed_matmul(&mut self, a: NodeId, b: NodeId, index: NodeId, out: DType) -> NodeId {
        self.add(Op::RoutedMatMul { out }, &[a, b, index])
    }

    /// Rows of a table.
    pub fn gather(&mut self, table: NodeId, index: NodeId) -> NodeId {
        self.add(Op::Gather, &[table, index])
    }

    /// A state with rows replaced.
    pub fn scatter(&mut self, state: NodeId, rows: NodeId, index: NodeId) -> NodeId {
        self.add(Op::Scatter, &[state, rows, index])
    }

    fn unify(&mut self, a: NodeId, b: NodeId) -> (NodeId, NodeId) {
        let (sa, sb) = (self.shape(a), self.shape(b));
        if sa == sb || sa.len() != sb.len() {
            return (a, b);
        }
        let wide: Shape =
            sa.iter().zip(&sb).map(|(x, y)| if *x == Dim::Const(1) { *y } else { *x }).collect();
        (self.broadcast(a, wide.clone()), self.broadcast(b, wide))
    }
}
