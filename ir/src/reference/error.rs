//! What can go wrong while a graph or a plan is interpreted.

use crate::decode::DecodeError;
use crate::graph::Graph;
use crate::ids::NodeId;
use crate::shape::Sym;
use crate::verify::graph::Fault;
use thiserror::Error;

/// What is wrong with an op's operands, without saying which op.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum OpError {
    /// Shapes do not fit.
    #[error("shapes do not fit: {0}")]
    Shape(String),
    /// Element types do not fit.
    #[error("element types do not fit: {0}")]
    Type(String),
    /// An index is outside its axis.
    #[error("index {index} (element {at} of the indices) is outside an axis of {extent}")]
    Index {
        /// The index.
        index: i64,
        /// Its position among the indices.
        at: usize,
        /// Extent of the axis.
        extent: usize,
    },
    /// A row of logits to sample from holds NaN.
    #[error("row {0} of the logits holds NaN")]
    NanLogits(usize),
    /// Stored bytes could not be decoded.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A checkpoint tensor is missing.
    #[error("the weights have no tensor {0:?}")]
    NoTensor(String),
    /// A state is missing or of another shape.
    #[error("state {name:?}: {why}")]
    State {
        /// Name.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// The reference does not do this.
    #[error("not supported by the reference: {0}")]
    Unsupported(String),
}

/// Why an interpretation stopped.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ReferenceError {
    /// A node failed.
    #[error("{node} ({op}) in {scope:?}: {error}")]
    Node {
        /// Node.
        node: NodeId,
        /// Its op.
        op: &'static str,
        /// Where in the model.
        scope: String,
        /// What happened.
        error: OpError,
    },
    /// A dispatch of a plan failed.
    #[error("dispatch {dispatch} ({work}) in {scope:?}: {error}")]
    Dispatch {
        /// Position in the body.
        dispatch: usize,
        /// Name of the work.
        work: String,
        /// Where in the model.
        scope: String,
        /// What happened.
        error: OpError,
    },
    /// A buffer of a plan could not be made.
    #[error("buffer {buffer} ({name}): {error}")]
    Buffer {
        /// Position in the plan.
        buffer: usize,
        /// Its name.
        name: String,
        /// What happened.
        error: OpError,
    },
    /// The graph does not verify.
    #[error("the graph has {} faults, the first: {}", .0.len(), .0.first().map_or(String::new(), Fault::to_string))]
    Faults(Vec<Fault>),
    /// A step input has the wrong number of elements.
    #[error("input {name}: expected {expected} elements ({sym} = {expected}), got {got}")]
    Input {
        /// Name of the input.
        name: &'static str,
        /// Symbol of its extent.
        sym: &'static str,
        /// Elements wanted.
        expected: usize,
        /// Elements given.
        got: usize,
    },
    /// The number type does not compute at this precision (f64 for the oracle, f32 for the others).
    #[error("precision {0:?} is computed in another number type than the one chosen")]
    Precision(super::Precision),
    /// What was loaded belongs to something else.
    #[error("what was loaded does not belong to this graph or plan: {0}")]
    Mismatch(String),
}

impl ReferenceError {
    /// An op's error with its node.
    pub(super) fn at(graph: &Graph, node: NodeId, error: OpError) -> ReferenceError {
        let n = graph.node(node);
        ReferenceError::Node { node, op: n.op.name(), scope: n.scope.clone(), error }
    }

    /// A wrong length of an input.
    pub(super) fn input(name: &'static str, sym: Sym, expected: usize, got: usize) -> ReferenceError {
        ReferenceError::Input { name, sym: sym.name(), expected, got }
    }
}
