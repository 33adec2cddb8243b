//! The tensor graph: what a model computes in one step, in primitives.
//!
//! Nodes are kept in a topological order (an op is added after its inputs) and have one result each, so a
//! [`NodeId`] names a value too. State is explicit: [`Op::State`] is its value as the step begins,
//! [`Op::Scatter`] consumes it, and [`Graph::state_out`] says which value it ends with.

mod build;
mod infer;
mod lex;
pub mod op;
mod order;
mod parse;
mod print;

pub use build::GraphBuilder;
pub use infer::{infer, text as type_text};
pub use lex::ParseError;
pub use op::{Input, Literal, Op, ValueType};
pub use parse::parse;
pub use print::line;

use crate::ids::NodeId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// One operation and its result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// What it computes.
    pub op: Op,
    /// Inputs, in the op's order.
    pub inputs: Vec<NodeId>,
    /// Type of the result.
    pub ty: ValueType,
    /// Where in the model it comes from: `model.layers.0.self_attn.q_proj`.
    pub scope: String,
}

/// A state that persists between steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateOut {
    /// Name of the state.
    pub name: String,
    /// Its value as the step ends.
    pub value: NodeId,
}

/// A result of the step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// `logits`, `tokens`, `last_hidden_state`.
    pub name: String,
    /// Value.
    pub value: NodeId,
}

/// A tensor graph.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Graph {
    /// Nodes in topological order; a [`NodeId`] is a position in it.
    pub nodes: Vec<Node>,
    /// Results.
    pub outputs: Vec<Output>,
    /// Final values of states.
    pub state_out: Vec<StateOut>,
}

impl Graph {
    /// The node of an id.
    ///
    /// # Panics
    /// When the id belongs to another graph.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// Type of a value.
    pub fn ty(&self, id: NodeId) -> &ValueType {
        &self.node(id).ty
    }

    /// Ids of all nodes, in topological order.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = NodeId> + use<> {
        (0..self.nodes.len()).map(NodeId::new)
    }

    /// For each node, the nodes that use it (once for each use), in order.
    pub fn users(&self) -> Vec<Vec<NodeId>> {
        let mut users = vec![Vec::new(); self.nodes.len()];
        for id in self.ids() {
            for input in &self.node(id).inputs {
                users[input.index()].push(id);
            }
        }
        users
    }

    /// Whether a value is another one or computed from it.
    pub fn depends(&self, id: NodeId, on: NodeId) -> bool {
        let mut seen = BTreeSet::new();
        let mut todo = vec![id];
        while let Some(id) = todo.pop() {
            if id == on {
                return true;
            }
            // Nodes are in topological order: what is earlier does not depend on it.
            todo.extend(self.node(id).inputs.iter().copied().filter(|x| *x >= on && seen.insert(*x)));
        }
        false
    }

    /// Whether this is an encoder: every sequence lies in one step, and none continues in the next.
    pub fn is_encoder(&self) -> bool {
        self.nodes.iter().any(|n| n.op == Op::Input(Input::Lengths))
    }

    /// Values that outlive the step: outputs, then final states.
    pub fn roots(&self) -> Vec<NodeId> {
        self.outputs.iter().map(|o| o.value).chain(self.state_out.iter().map(|s| s.value)).collect()
    }

    /// For each node, whether it is computed once, at load: a checkpoint tensor, or decoding, movement and
    /// casts of such values (what [`crate::plan::Pack`] can express).
    pub fn load_time(&self) -> Vec<bool> {
        let mut load: Vec<bool> = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            load.push(match &node.op {
                Op::Weight { .. } => true,
                Op::Decode
                | Op::Reshape(_)
                | Op::Transpose(_)
                | Op::Slice { .. }
                | Op::Concat { .. }
                | Op::Cast(_) => node.inputs.iter().all(|i| load[i.index()]),
                Op::Input(_)
                | Op::State { .. }
                | Op::Constant { .. }
                | Op::Iota { .. }
                | Op::Unary(_)
                | Op::Binary(_)
                | Op::Compare(_)
                | Op::Select
                | Op::Broadcast(_)
                | Op::Reduce(_)
                | Op::Softmax
                | Op::TopK { .. }
                | Op::RoutedMatMul { .. }
                | Op::MatMul { .. }
                | Op::Gather
                | Op::Scatter
                | Op::Penalize
                | Op::Sample => false,
            });
        }
        load
    }
}
