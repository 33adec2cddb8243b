//! Sampling behind the head: in decode, the product that makes the logits also draws the tokens.
//!
//! Each block keeps the largest logit of its columns; the block that is done last joins them. Where a row is
//! drawn, or has penalties, that block goes over the stored logits.

use super::region::{Limits, Region};
use weft_ir::graph::{Graph, Op};
use weft_ir::ids::NodeId;

/// The sampling that a region ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrawChain {
    /// The logits that the product stores.
    pub logits: NodeId,
    /// Penalties on them.
    pub penalize: Option<NodeId>,
    /// The sampling.
    pub sample: NodeId,
}

impl DrawChain {
    /// What follows the logits.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.penalize.into_iter().chain([self.sample])
    }
}

/// Lets a region go on to the sampling of its rows, where it can.
pub(super) fn extend(graph: &Graph, region: &mut Region, limits: &Limits<'_>) {
    if region.group != 1 || region.row.is_some() {
        return;
    }
    let users = |id: NodeId| limits.users[id.index()].iter().copied();
    let found = region.outputs.iter().copied().find_map(|logits| {
        let direct = users(logits).map(|s| DrawChain { logits, penalize: None, sample: s });
        let behind = users(logits).flat_map(|p| users(p).map(move |s| (p, s)));
        let behind = behind.map(|(p, s)| DrawChain { logits, penalize: Some(p), sample: s });
        direct.chain(behind).find(|chain| takes(graph, region, limits, chain))
    });
    if let Some(chain) = found {
        region.outputs.push(chain.sample);
        region.draw = Some(chain);
    }
}

/// Whether the region can take a chain, which waits for nothing else that follows the product.
fn takes(graph: &Graph, region: &Region, limits: &Limits<'_>, chain: &DrawChain) -> bool {
    let DrawChain { logits, penalize, sample } = *chain;
    let is = |id: NodeId, op: &Op, of: NodeId| {
        let node = graph.node(id);
        node.op == *op && node.inputs.first() == Some(&of)
    };
    // Only the sampling takes what the penalties make.
    let inside = penalize.is_none_or(|p| {
        is(p, &Op::Penalize, logits)
            && limits.users[p.index()] == [sample]
            && !limits.kept.contains(&p)
            && graph.ty(p).dtype() == graph.ty(logits).dtype()
    });
    let free = |id: NodeId| !limits.taken.contains(&id) && !limits.forced.contains(&id);
    inside
        && is(sample, &Op::Sample, penalize.unwrap_or(logits))
        && chain.nodes().all(free)
        && !limits.forced.contains(&logits)
        && region.is_whole(graph, logits)
        && chain.nodes().all(|id| given(graph, region, id))
}

/// Whether all inputs of a node but the first are there before the product: step inputs and states, or places
/// computed from them.
fn given(graph: &Graph, region: &Region, id: NodeId) -> bool {
    let node = graph.node(id);
    let places = if node.op == Op::Penalize { 2..4 } else { 1..2 };
    node.inputs.iter().enumerate().skip(1).all(|(i, x)| {
        let source = matches!(graph.node(*x).op, Op::Input(_) | Op::State { .. } | Op::Scatter);
        (source || places.contains(&i)) && !graph.depends(*x, region.product)
    })
}
