//! What is known of every e-class: its type, and whether it is made at load.

use super::language::{Kind, Node};
use crate::numerics::Numerics;
use egg::{Analysis, DidMerge, EGraph, Id};
use weft_ir::dtype::DType;
use weft_ir::graph::{Op, ValueType, infer};

/// Facts of an e-class.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Type of the value; equal for all e-nodes of the class.
    pub ty: ValueType,
    /// Whether it is computed once, at load.
    pub load: bool,
}

/// The analysis. A rule that builds an ill-typed node, or joins classes of different types, is a fault of
/// Weft; it is kept and reported.
#[derive(Clone, Debug, Default)]
pub struct Types {
    /// First fault.
    pub fault: Option<String>,
    /// What rules added.
    pub log: Vec<Record>,
}

/// An equality that a rule added.
#[derive(Clone, Debug)]
pub struct Record {
    /// Rule.
    pub rule: &'static str,
    /// Its class.
    pub numerics: Numerics,
    /// Class of the value.
    pub class: Id,
    /// The added form.
    pub node: Node,
}

/// An e-graph of a block.
pub type Block = EGraph<Node, Types>;

impl Analysis<Node> for Types {
    type Data = Facts;

    fn make(egraph: &mut Block, node: &Node, _id: Id) -> Facts {
        match &node.kind {
            Kind::Leaf { ty, load, .. } => Facts { ty: ty.clone(), load: *load },
            Kind::Op(op) => {
                let types: Vec<ValueType> =
                    node.children.iter().map(|c| egraph[*c].data.ty.clone()).collect();
                let refs: Vec<&ValueType> = types.iter().collect();
                let ty = infer(op, &refs).unwrap_or_else(|why| {
                    egraph.analysis.fault.get_or_insert(why);
                    ValueType::plain(DType::F32, Vec::new())
                });
                let movable = matches!(
                    **op,
                    Op::Decode
                        | Op::Reshape(_)
                        | Op::Transpose(_)
                        | Op::Slice { .. }
                        | Op::Concat { .. }
                        | Op::Cast(_)
                );
                let load = movable && node.children.iter().all(|c| egraph[*c].data.load);
                Facts { ty, load }
            }
            Kind::Any => Facts { ty: ValueType::plain(DType::F32, Vec::new()), load: false },
        }
    }

    fn merge(&mut self, a: &mut Facts, b: Facts) -> DidMerge {
        if a.ty != b.ty {
            let (x, y) = (weft_ir::graph::type_text(&a.ty), weft_ir::graph::type_text(&b.ty));
            self.fault.get_or_insert(format!("a rule joined {x} and {y}"));
        }
        let load = a.load || b.load;
        let (grew_a, grew_b) = (load != a.load, load != b.load);
        a.load = load;
        DidMerge(grew_a, grew_b)
    }
}
