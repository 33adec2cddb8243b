//! The e-graph's language: the graph's primitives, and leaves for what a block takes from outside.

use egg::{Id, Language, Symbol};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use weft_ir::graph::{Op, ValueType};

/// What an e-node is.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A value from outside the block (or a source op of it), by its number.
    Leaf {
        /// Number within the block.
        index: u32,
        /// Type.
        ty: ValueType,
        /// Whether it is made at load.
        load: bool,
    },
    /// An op of the graph. (egg copies its nodes often.)
    Op(Arc<Op>),
    /// In patterns: any op of this name, whatever its attributes.
    Any,
}

/// An e-node.
#[derive(Clone)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Operands.
    pub children: Vec<Id>,
    /// Name of the op, by which patterns find it.
    name: Symbol,
    /// Name with attributes: equal for equal ops. (Literals have no total order of their own.)
    key: Arc<str>,
}

/// Name of an op in patterns.
fn name_of(op: &Op) -> &'static str {
    match op {
        Op::MatMul { transpose_b: true, .. } => "matmul.t",
        other => other.name(),
    }
}

impl Node {
    /// An op on operands.
    pub fn op(op: Op, children: Vec<Id>) -> Node {
        let (name, key) = (name_of(&op).into(), format!("{op:?}").into());
        Node { kind: Kind::Op(Arc::new(op)), children, name, key }
    }

    /// A leaf.
    pub fn leaf(index: u32, ty: ValueType, load: bool) -> Node {
        let key = format!("leaf{index}").into();
        Node { kind: Kind::Leaf { index, ty, load }, children: Vec::new(), name: "leaf".into(), key }
    }

    /// The op, if it is one.
    pub fn as_op(&self) -> Option<&Op> {
        match &self.kind {
            Kind::Op(op) => Some(op),
            Kind::Leaf { .. } | Kind::Any => None,
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.key, self.children)
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name.as_str())
    }
}

impl PartialEq for Node {
    fn eq(&self, other: &Node) -> bool {
        self.key == other.key && self.children == other.children
    }
}

impl Eq for Node {}

impl PartialOrd for Node {
    fn partial_cmp(&self, other: &Node) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Node {
    fn cmp(&self, other: &Node) -> std::cmp::Ordering {
        (&self.key, &self.children).cmp(&(&other.key, &other.children))
    }
}

impl Hash for Node {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.key, &self.children).hash(state);
    }
}

impl Language for Node {
    type Discriminant = (Symbol, usize);

    fn discriminant(&self) -> Self::Discriminant {
        (self.name, self.children.len())
    }

    fn matches(&self, other: &Node) -> bool {
        let any = matches!(self.kind, Kind::Any) || matches!(other.kind, Kind::Any);
        self.name == other.name
            && self.children.len() == other.children.len()
            && (any || self.key == other.key)
    }

    fn children(&self) -> &[Id] {
        &self.children
    }

    fn children_mut(&mut self) -> &mut [Id] {
        &mut self.children
    }
}

// egg looks a subpattern whose variables are all bound up by its key, which no op has: patterns must not
// repeat variables so. (`(mul ?x ?x)` is fine, a second `(mul ?x ?y)` is not.)
impl egg::FromOp for Node {
    type Error = std::convert::Infallible;

    fn from_op(op: &str, children: Vec<Id>) -> Result<Node, Self::Error> {
        Ok(Node { kind: Kind::Any, children, name: op.into(), key: format!("any {op}").into() })
    }
}
