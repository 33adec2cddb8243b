//! Elementwise chains and casts.

use super::{Fusion, Site, View};
use crate::numerics::Numerics;
use weft_ir::graph::Op;
use weft_ir::ids::NodeId;

/// Elementwise ops of one shape in one loop nest.
pub const ELEMENTWISE: Fusion = Fusion {
    name: "elementwise",
    numerics: Numerics::Exact,
    summary: "a chain of elementwise ops, each used once, in one loop nest or a larger kernel",
    patterns: &[
        "(add ?a ?b)",
        "(sub ?a ?b)",
        "(mul ?a ?b)",
        "(div ?a ?b)",
        "(min ?a ?b)",
        "(max ?a ?b)",
        "(pow ?a ?b)",
        "(neg ?a)",
        "(exp ?a)",
        "(log ?a)",
        "(sqrt ?a)",
        "(rsqrt ?a)",
        "(recip ?a)",
        "(sin ?a)",
        "(cos ?a)",
        "(tanh ?a)",
        "(erf ?a)",
        "(sigmoid ?a)",
        "(silu ?a)",
        "(abs ?a)",
        "(select ?a ?b ?c)",
    ],
    find: |v, at, _| {
        let joins = |n: NodeId| elementwise(v, n) && v.computes(n) && !v.is_constant(n);
        // Chains are counted at their ends.
        let ends = v.is_root(at) || !matches!(v.users[at.index()][..], [u] if joins(u));
        if !joins(at) || !ends {
            return None;
        }
        // A chain belongs to one linear layer's epilogue at most.
        let linear = |n: NodeId| v.linear_below(n).map(|(l, _)| l);
        let own = linear(at);
        let mut chain = vec![at];
        let mut i = 0;
        while i < chain.len() {
            let inputs = v.graph.node(chain[i]).inputs.iter().copied();
            chain.extend(inputs.filter(|&x| {
                let single = v.users[x.index()].len() == 1 && !v.is_root(x);
                joins(x) && single && linear(x).is_none_or(|l| own == Some(l))
            }));
            i += 1;
        }
        let cut = chain[1..].to_vec();
        (chain.len() > 1).then(|| Site::new(at, chain, cut))
    },
};

/// Changes of type in the kernel of a neighbour.
pub const CAST: Fusion = Fusion {
    name: "fold-cast",
    numerics: Numerics::Exact,
    summary: "a change of type in the kernel that makes the value or one that uses it",
    patterns: &["(cast ?x)"],
    find: |v, at, vars| {
        let x = vars.get("?x")?;
        let float = |n: NodeId| v.graph.ty(n).dtype().is_float();
        if v.load[at.index()] || v.is_constant(at) || !float(at) || !float(x) {
            return None;
        }
        let neighbour = |n: NodeId| v.computes(n) || matches!(v.op(n), Op::Gather);
        let makes = made_by(v, x).into_iter().filter(|n| neighbour(*n));
        let uses = users(v, at);
        let any: Vec<Vec<NodeId>> =
            makes.chain(uses.into_iter().filter(|n| neighbour(*n))).map(|n| vec![at, n]).collect();
        (!any.is_empty()).then_some(Site {
            at,
            any,
            instead: None,
            cut: vec![x, at],
            never: None,
            hint: None,
        })
    },
};

fn elementwise(v: &View<'_>, id: NodeId) -> bool {
    matches!(v.op(id), Op::Unary(_) | Op::Binary(_) | Op::Select)
}

/// What makes a value, below movement.
fn made_by(v: &View<'_>, x: NodeId) -> Vec<NodeId> {
    let below = v.below(x);
    match v.op(below) {
        Op::Concat { .. } => v.graph.node(below).inputs.iter().flat_map(|i| made_by(v, *i)).collect(),
        _ => vec![below],
    }
}

/// Users above movement.
fn users(v: &View<'_>, id: NodeId) -> Vec<NodeId> {
    let mut found = Vec::new();
    for &u in &v.users[id.index()] {
        match v.op(u) {
            Op::Reshape(_) | Op::Transpose(_) | Op::Slice { .. } | Op::Broadcast(_) => {
                found.extend(users(v, u))
            }
            _ => found.push(u),
        }
    }
    found
}
