//! Costs of attention's two products, which one kernel makes: rows of the cache are read where they lie, and what is
//! between the products is not in memory.

use super::analysis::Block;
use super::extract::{Choice, CostModel};
use super::language::Node;
use crate::schedule;
use egg::Id;
use std::collections::{BTreeSet, HashMap};
use weft_ir::graph::Op;

/// Launches that an attention costs more when it is no one kernel: its products, the mask, the softmax.
const APART: f64 = 4.0;
/// Transfers of its scores then.
const PASSES: f64 = 6.0;

/// Rows that a product reads.
#[derive(Clone, Copy, PartialEq)]
struct Read {
    /// What is gathered from.
    rows: Id,
    /// The gathered rows.
    gathered: Id,
    /// Whether all heads read the same.
    shared: bool,
}

/// Seconds that a product with gathered rows adds; `None` for other products.
pub(super) fn product(
    g: &Block,
    m: &CostModel,
    best: &HashMap<Id, Choice>,
    class: Id,
    node: &Node,
) -> Option<f64> {
    let Some(Op::MatMul { transpose_b, .. }) = node.as_op() else { return None };
    let &[a, b] = &node.children[..] else { return None };
    let read = read(g, best, b)?;
    let elements = |id: Id| m.bind.elements(&g[id].data.ty.shape) as f64;
    let bytes = |id: Id| elements(id) * g[id].data.ty.dtype().size() as f64;
    let last = |id: Id| g[id].data.ty.shape.last().map_or(1, |d| d.eval(&m.bind));
    let k = last(a);
    let [key, value] = schedule::TILE_HEAD;
    let (width, most) = if *transpose_b { (k, key) } else { (last(class), value) };
    let half = g[b].data.ty.dtype().is_half();
    // Decode's kernel, and that of long heads, does not use tensor cores.
    let tiles = !m.products.decode() && half && width.is_multiple_of(16) && width <= most;
    let rate = if tiles { m.profile.tensor_flops } else { m.profile.f32_flops };
    // Tokens of a sequence share the rows that they read.
    let moved = bytes(read.gathered).min(bytes(read.rows)) / m.profile.bandwidth;
    let own = (2.0 * elements(class) * k as f64 / rate).max(moved);
    if *transpose_b {
        return Some(own);
    }
    let apart = scores(g, best, a).is_some_and(|keys| keys.shared != read.shared);
    let split = APART * m.profile.launch + PASSES * 4.0 * elements(a) / m.profile.bandwidth;
    Some(own + m.profile.launch + if apart { split } else { 0.0 })
}

/// What a value is gathered from, below movement.
fn read(g: &Block, best: &HashMap<Id, Choice>, id: Id) -> Option<Read> {
    let (mut at, mut shared) = (g.find(id), false);
    loop {
        let node = &best.get(&at)?.node;
        let below = g.find(*node.children.first()?);
        match node.as_op()? {
            Op::Gather => return Some(Read { rows: below, gathered: at, shared }),
            Op::Broadcast(_) => shared = true,
            Op::Transpose(_) | Op::Slice { .. } => {}
            _ => return None,
        }
        at = below;
    }
}

/// The keys of the scores that weights are made from.
fn scores(g: &Block, best: &HashMap<Id, Choice>, weights: Id) -> Option<Read> {
    let (mut seen, mut todo) = (BTreeSet::new(), vec![g.find(weights)]);
    while let Some(id) = todo.pop() {
        if !seen.insert(id) {
            continue;
        }
        let node = &best.get(&id)?.node;
        match node.as_op() {
            Some(Op::MatMul { transpose_b: true, .. }) => return read(g, best, node.children[1]),
            Some(Op::Softmax | Op::Cast(_) | Op::Unary(_) | Op::Binary(_) | Op::Select) => {
                let same = |c: &&Id| g[**c].data.ty.shape == g[id].data.ty.shape;
                todo.extend(node.children.iter().filter(same).map(|c| g.find(*c)));
            }
            _ => {}
        }
    }
    None
}
