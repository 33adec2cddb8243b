//! Helpers by which rules build terms: one function an op.

use super::analysis::Block;
use super::language::Node;
use egg::Id;
use weft_ir::dtype::DType;
use weft_ir::graph::Op;
use weft_ir::scalar::Binary;
use weft_ir::shape::{Dim, Shape};

/// Adds an op.
pub fn op(g: &mut Block, op: Op, children: &[Id]) -> Id {
    g.add(Node::op(op, children.to_vec()))
}

/// Shape of a class.
pub fn shape(g: &Block, id: Id) -> Shape {
    g[id].data.ty.shape.clone()
}

/// Element type of a class.
pub fn dtype(g: &Block, id: Id) -> DType {
    g[id].data.ty.dtype()
}

/// Constant extents of a class; `None` when one is symbolic.
pub fn extents(g: &Block, id: Id) -> Option<Vec<usize>> {
    g[id].data.ty.shape.iter().map(|d| d.as_const()).collect()
}

/// Reshape.
pub fn reshape(g: &mut Block, x: Id, to: Shape) -> Id {
    if shape(g, x) == to { x } else { op(g, Op::Reshape(to), &[x]) }
}

/// Reshape to constant extents.
pub fn reshape_const(g: &mut Block, x: Id, to: &[usize]) -> Id {
    reshape(g, x, to.iter().map(|&n| Dim::Const(n)).collect())
}

/// Transpose.
pub fn transpose(g: &mut Block, x: Id, perm: &[usize]) -> Id {
    op(g, Op::Transpose(perm.to_vec()), &[x])
}

/// Elements `start..start + len` of an axis.
pub fn slice(g: &mut Block, x: Id, axis: usize, start: usize, len: usize) -> Id {
    let whole = shape(g, x).get(axis).and_then(|d| d.as_const()) == Some(len);
    if whole { x } else { op(g, Op::Slice { axis, start, len }, &[x]) }
}

/// Broadcast.
pub fn broadcast(g: &mut Block, x: Id, to: Shape) -> Id {
    if shape(g, x) == to { x } else { op(g, Op::Broadcast(to), &[x]) }
}

/// Product.
pub fn mul(g: &mut Block, a: Id, b: Id) -> Id {
    op(g, Op::Binary(Binary::Mul), &[a, b])
}

/// Cast.
pub fn cast(g: &mut Block, x: Id, to: DType) -> Id {
    if dtype(g, x) == to { x } else { op(g, Op::Cast(to), &[x]) }
}

/// Linear layer: x · wᵀ, stored as `out`.
pub fn linear(g: &mut Block, x: Id, w: Id, out: DType) -> Id {
    op(g, Op::MatMul { transpose_b: true, out }, &[x, w])
}

/// Ops of a class with this property, in the e-graph's order.
pub fn find<T>(g: &Block, id: Id, f: impl Fn(&Op, &[Id]) -> Option<T>) -> Option<T> {
    g[id].nodes.iter().find_map(|n| n.as_op().and_then(|op| f(op, &n.children)))
}
