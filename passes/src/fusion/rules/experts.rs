//! Mixtures of experts: routers, and the products with chosen matrices.

use super::{Fusion, Site, View};
use crate::numerics::Numerics;
use weft_ir::graph::Op;
use weft_ir::ids::NodeId;

/// A router in one kernel.
pub const ROUTER: Fusion = Fusion {
    name: "router",
    numerics: Numerics::Reassociates,
    summary: "the choice of experts and the weights of the chosen: scores, groups, top-k, normalisation; with few tokens and a small weight the logits, too",
    patterns: &["(top_k ?x)"],
    find: |v, at, _| {
        let weights = reductions(v, at);
        let first = *weights.first()?;
        Some(Site::new(at, weights.iter().copied().chain([at]).collect(), vec![first]))
    },
};

/// Experts in grouped kernels.
pub const EXPERTS: Fusion = Fusion {
    name: "grouped-experts",
    numerics: Numerics::Exact,
    summary: "products with chosen matrices: gate, up and activation in one kernel, down and weighting in one; pairs of token and expert sorted on the device where tokens are many",
    patterns: &["(routed_matmul ?a ?b ?i)"],
    find: |v, at, _| {
        let siblings = siblings(v, at);
        if siblings.first() != Some(&at) {
            return None;
        }
        let mut group = siblings.clone();
        let mut last = at;
        while let [user] = v.users[last.index()][..]
            && matches!(v.op(user), Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Cast(_))
            && v.graph.ty(user).shape == v.graph.ty(at).shape
        {
            group.push(user);
            last = user;
        }
        // A product by itself is one kernel whatever is on.
        (group.len() > 1).then(|| Site::new(at, group, siblings))
    },
};

/// Sums and softmaxes that a choice leads to, through comparisons and movement alone.
fn reductions(v: &View<'_>, choice: NodeId) -> Vec<NodeId> {
    let mut found = Vec::new();
    let mut todo = v.users[choice.index()].clone();
    while let Some(id) = todo.pop() {
        match v.op(id) {
            Op::Reduce(_) | Op::Softmax if !found.contains(&id) => found.push(id),
            Op::Reshape(_) | Op::Broadcast(_) | Op::Compare(_) | Op::Select | Op::Cast(_) => {
                todo.extend(&v.users[id.index()]);
            }
            _ => {}
        }
    }
    found.sort_unstable();
    found
}

/// Routed products of the same rows, index and shape, in order: at most two make a kernel.
fn siblings(v: &View<'_>, at: NodeId) -> Vec<NodeId> {
    let (rows, index) = (v.input(at, 0), v.input(at, 2));
    let same = |u: &NodeId| {
        matches!(v.op(*u), Op::RoutedMatMul { .. })
            && (v.input(*u, 0), v.input(*u, 2)) == (rows, index)
            && v.graph.ty(*u) == v.graph.ty(at)
    };
    let mut all: Vec<NodeId> = v.users[rows.index()].iter().copied().filter(same).collect();
    all.sort_unstable();
    all.dedup();
    let mine = all.iter().position(|u| *u == at).unwrap_or(0) / 2 * 2;
    all.into_iter().skip(mine).take(2).collect()
}
