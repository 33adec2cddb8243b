//! A graph as fusion rules see it: ways from a value down to what it is made from.

use std::collections::HashSet;
use weft_ir::graph::{Graph, Op};
use weft_ir::ids::NodeId;
use weft_ir::scalar::{Binary, Unary};

/// A graph with what rules ask of it.
pub struct View<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// Uses of each value.
    pub users: Vec<Vec<NodeId>>,
    /// Whether a value is made at load.
    pub load: Vec<bool>,
    /// Whether a value needs no step: literals and weights, and what is made of them alone.
    constant: Vec<bool>,
    /// Values that outlive the step.
    roots: HashSet<NodeId>,
}

impl<'a> View<'a> {
    /// Looks at a graph.
    pub fn new(graph: &'a Graph) -> View<'a> {
        let mut constant: Vec<bool> = Vec::with_capacity(graph.nodes.len());
        for node in &graph.nodes {
            constant.push(match node.op {
                Op::Constant { .. } | Op::Weight { .. } | Op::Iota { .. } => true,
                Op::Input(_) | Op::State { .. } => false,
                _ => node.inputs.iter().all(|x| constant[x.index()]),
            });
        }
        View {
            graph,
            users: graph.users(),
            load: graph.load_time(),
            constant,
            roots: graph.roots().into_iter().collect(),
        }
    }

    /// Op of a value.
    pub fn op(&self, id: NodeId) -> &'a Op {
        &self.graph.node(id).op
    }

    /// Operand of a value.
    pub fn input(&self, id: NodeId, i: usize) -> NodeId {
        self.graph.node(id).inputs[i]
    }

    /// Whether a value is an output or a final state.
    pub fn is_root(&self, id: NodeId) -> bool {
        self.roots.contains(&id)
    }

    /// Whether a value is a linear layer: a product [m, k] · [n, k]ᵀ with a weight.
    pub fn is_linear(&self, id: NodeId) -> bool {
        crate::lower::is_linear(self.graph, &self.load, id)
    }

    /// Whether an op computes floats, rather than moving or making them.
    pub fn computes(&self, id: NodeId) -> bool {
        match self.op(id) {
            Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select | Op::Cast(_) => {
                !self.load[id.index()] && self.graph.ty(id).dtype().is_float() && !self.is_constant(id)
            }
            Op::Reduce(_)
            | Op::Softmax
            | Op::TopK { .. }
            | Op::MatMul { .. }
            | Op::RoutedMatMul { .. }
            | Op::Scatter
            | Op::Penalize
            | Op::Sample => true,
            Op::Input(_)
            | Op::Weight { .. }
            | Op::Constant { .. }
            | Op::Iota { .. }
            | Op::State { .. }
            | Op::Decode
            | Op::Reshape(_)
            | Op::Transpose(_)
            | Op::Broadcast(_)
            | Op::Slice { .. }
            | Op::Concat { .. }
            | Op::Gather => false,
        }
    }

    /// Whether a value needs no step: literals and weights, and what is made of them alone.
    pub fn is_constant(&self, id: NodeId) -> bool {
        self.constant[id.index()]
    }

    /// What a value is, below reshapes, transposes, slices, broadcasts and casts.
    pub fn below(&self, mut id: NodeId) -> NodeId {
        while let Op::Reshape(_) | Op::Transpose(_) | Op::Slice { .. } | Op::Broadcast(_) | Op::Cast(_) =
            self.op(id)
        {
            id = self.input(id, 0);
        }
        id
    }

    /// Whether a choice of the largest is made from a value, by a few elementwise ops and movement.
    pub fn chooses(&self, id: NodeId) -> bool {
        let (mut seen, mut todo) = (HashSet::new(), vec![id]);
        while let Some(id) = todo.pop() {
            // A router is small; the residual stream goes on to the end.
            if !seen.insert(id) || seen.len() > 64 {
                continue;
            }
            for &u in &self.users[id.index()] {
                match self.op(u) {
                    Op::TopK { .. } => return true,
                    Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Cast(_) | Op::Reshape(_) => todo.push(u),
                    _ => {}
                }
            }
        }
        false
    }

    /// The linear layer that elementwise ops and movement make a value of, and the ops between that compute,
    /// the layer first. Of two operands the one that is nearer to its layer is followed; residuals of earlier
    /// layers are farther.
    pub fn linear_below(&self, id: NodeId) -> Option<(NodeId, Vec<NodeId>)> {
        self.walk(id, 24).map(|(mut path, _)| {
            let linear = path[0];
            path.retain(|n| self.computes(*n));
            (linear, path)
        })
    }

    /// Path from a linear layer up to a value, and its length.
    fn walk(&self, id: NodeId, budget: usize) -> Option<(Vec<NodeId>, usize)> {
        if self.is_linear(id) {
            return Some((vec![id], 0));
        }
        if budget == 0 || self.load[id.index()] {
            return None;
        }
        let step = |x: NodeId| self.walk(x, budget - 1);
        let nearest = |all: &[NodeId]| all.iter().filter_map(|x| step(*x)).min_by_key(|(_, n)| *n);
        let inputs = &self.graph.node(id).inputs;
        let (mut path, n) = match self.op(id) {
            Op::Unary(_) | Op::Cast(_) | Op::Reshape(_) | Op::Transpose(_) | Op::Slice { .. } => {
                step(inputs[0])?
            }
            Op::Binary(_) => {
                let whole: Vec<NodeId> =
                    inputs.iter().copied().filter(|x| !matches!(self.op(*x), Op::Broadcast(_))).collect();
                let found = nearest(&whole)?;
                // A norm of the layer's own result needs whole rows: what follows it is no epilogue.
                if inputs.iter().any(|x| !whole.contains(x) && self.graph.depends(*x, found.0[0])) {
                    return None;
                }
                found
            }
            Op::Penalize => step(inputs[0])?,
            Op::Select => nearest(&inputs[1..])?,
            // What is of several origins is no layer's result.
            Op::Concat { .. } if inputs.iter().any(|x| step(*x).is_none()) => return None,
            Op::Concat { .. } => nearest(inputs)?,
            Op::Input(_)
            | Op::Weight { .. }
            | Op::Constant { .. }
            | Op::Iota { .. }
            | Op::State { .. }
            | Op::Decode
            | Op::Compare(_)
            | Op::Broadcast(_)
            | Op::Reduce(_)
            | Op::Softmax
            | Op::TopK { .. }
            | Op::RoutedMatMul { .. }
            | Op::MatMul { .. }
            | Op::Gather
            | Op::Scatter
            | Op::Sample => return None,
        };
        path.push(id);
        Some((path, n + 1))
    }

    /// What an activation is computed from: SiLU, both GELUs and their sigmoid form, ReLU and its square.
    pub fn activation(&self, id: NodeId) -> Option<NodeId> {
        let inputs = &self.graph.node(id).inputs;
        match self.op(id) {
            Op::Unary(Unary::Silu) => Some(inputs[0]),
            Op::Binary(Binary::Max) if self.is_constant(inputs[1]) => Some(inputs[0]),
            Op::Binary(Binary::Mul) if inputs[0] == inputs[1] => {
                let relu = matches!(self.op(inputs[0]), Op::Binary(Binary::Max));
                relu.then(|| self.activation(inputs[0])).flatten()
            }
            Op::Binary(Binary::Mul) => {
                let (a, b) = (inputs[0], inputs[1]);
                self.gelu(a, b).or_else(|| self.gelu(b, a))
            }
            _ => None,
        }
    }

    /// x of x · σ(… x …), or of c·x · (1 + tanh(… x …)) and the like with erf.
    fn gelu(&self, scaled: NodeId, gate: NodeId) -> Option<NodeId> {
        let x = match self.op(scaled) {
            Op::Binary(Binary::Mul) if self.is_constant(self.input(scaled, 1)) => self.input(scaled, 0),
            _ => scaled,
        };
        let inner = match self.op(gate) {
            Op::Binary(Binary::Add) if self.is_constant(self.input(gate, 1)) => self.input(gate, 0),
            _ => gate,
        };
        let Op::Unary(Unary::Tanh | Unary::Erf | Unary::Sigmoid) = self.op(inner) else { return None };
        self.made_of(self.input(inner, 0), x, 8).then_some(x)
    }

    /// Whether a value is elementwise arithmetic on x and constants.
    fn made_of(&self, id: NodeId, x: NodeId, budget: usize) -> bool {
        id == x
            || budget > 0
                && matches!(self.op(id), Op::Unary(_) | Op::Binary(_))
                && self
                    .graph
                    .node(id)
                    .inputs
                    .iter()
                    .all(|i| self.is_constant(*i) || self.made_of(*i, x, budget - 1))
    }
}
