//! Row epilogues: where one block makes whole rows of a product, what follows over rows belongs to it too.
//!
//! The region of a product ends where a value is needed in memory, or is reduced. If that value has the
//! product's own elements, reductions over its rows are followed further, and what is computed from them: a
//! residual sum's norm. Values inside that others need as well are stored on the way.

use super::region::{Limits, Region};
use super::rows;
use crate::schedule;
use std::collections::BTreeSet;
use weft_ir::graph::{Graph, Op};
use weft_ir::ids::NodeId;

/// What a product makes of its whole rows.
#[derive(Clone, Debug)]
pub struct RowChain {
    /// The value that is reduced: of the product's shape, known at the product's own coordinates.
    pub source: NodeId,
    /// What follows: values of the same shape, or of one element a row.
    pub inside: BTreeSet<NodeId>,
}

/// Lets a region go on over rows, where it can.
pub(super) fn extend(graph: &Graph, region: &mut Region, limits: &Limits<'_>) {
    let [source] = region.outputs[..] else { return };
    let row = &graph.ty(region.product).shape;
    if region.group != 1 || limits.forced.contains(&source) || !region.is_whole(graph, source) {
        return;
    }
    let mut inside = BTreeSet::new();
    let free = |id: &NodeId| !limits.taken.contains(id) && !limits.forced.contains(id);
    // Nodes are in topological order, so the next one has its inputs behind it.
    let mut next: BTreeSet<NodeId> = limits.users[source.index()].iter().copied().collect();
    while let Some(id) = next.pop_first() {
        let known = |x: &NodeId| *x == source || inside.contains(x);
        // What comes from elsewhere must not wait for the product.
        let waits = |x: &NodeId| !known(x) && *x >= region.product && graph.depends(*x, region.product);
        if free(&id) && rows::is_aligned(graph, row, id) && !graph.node(id).inputs.iter().any(waits) {
            inside.insert(id);
            next.extend(&limits.users[id.index()]);
        }
    }
    keep_reduced(graph, limits, &mut inside);
    end_at_stored(graph, limits, source, &mut inside);
    let reductions = inside.iter().map(|id| match graph.node(*id).op {
        Op::Reduce(_) => 1,
        Op::Softmax => 2,
        _ => 0,
    });
    if reductions.sum::<usize>() > schedule::ROW_REDUCTIONS {
        return;
    }
    let stored = |id: &NodeId| is_stored(limits, &inside, *id);
    let outputs: Vec<NodeId> =
        std::iter::once(&source).chain(&inside).copied().filter(|n| stored(n)).collect();
    // A row's one result has no store here, and a block stores elements of its rows' shape alone.
    if inside.is_empty() || outputs.iter().any(|&o| graph.ty(o).shape != *row) {
        return;
    }
    region.outputs = outputs;
    region.row = Some(RowChain { source, inside });
}

/// Whether something outside needs a value.
fn is_stored(limits: &Limits<'_>, inside: &BTreeSet<NodeId>, id: NodeId) -> bool {
    let users = &limits.users[id.index()];
    limits.kept.contains(&id) || users.is_empty() || users.iter().any(|u| !inside.contains(u))
}

/// Drops what follows a stored value elementwise: who needs it computes it from what is in memory.
fn end_at_stored(graph: &Graph, limits: &Limits<'_>, source: NodeId, inside: &mut BTreeSet<NodeId>) {
    for id in inside.clone() {
        if !is_stored(limits, inside, id) {
            continue;
        }
        let mut after = BTreeSet::from([id]);
        for &x in inside.range(id..).filter(|&&x| x != id) {
            if graph.node(x).inputs.iter().any(|i| after.contains(i)) {
                after.insert(x);
            }
        }
        let elsewhere = |i: &NodeId| *i != source && !inside.contains(i);
        let from_memory = |x: &NodeId| {
            *x == id
                || !matches!(graph.node(*x).op, Op::Reduce(_) | Op::Softmax)
                    && graph.node(*x).inputs.iter().all(|i| after.contains(i) || elsewhere(i))
        };
        if after.iter().all(from_memory) {
            inside.retain(|x| *x == id || !after.contains(x));
        }
    }
}

/// Leaves what a reduction needs, or what needs one.
fn keep_reduced(graph: &Graph, limits: &Limits<'_>, inside: &mut BTreeSet<NodeId>) {
    let reduces = |id: &NodeId| matches!(graph.node(*id).op, Op::Reduce(_) | Op::Softmax);
    let mut after: BTreeSet<NodeId> = BTreeSet::new();
    for id in inside.iter() {
        if reduces(id) || graph.node(*id).inputs.iter().any(|x| after.contains(x)) {
            after.insert(*id);
        }
    }
    let mut needed: BTreeSet<NodeId> = BTreeSet::new();
    for id in inside.iter().rev() {
        if after.contains(id) || limits.users[id.index()].iter().any(|u| needed.contains(u)) {
            needed.insert(*id);
        }
    }
    *inside = needed;
}
