//! Chains of reductions over the same rows become one loop: a mean, the variance of what it centres, and what
//! both normalise.
//!
//! A value with several uses is stored unless it is cheap. Where all its uses end in one loop over rows,
//! storing it would make a kernel and a round trip of what that loop can compute again in each of its
//! stages, the reductions below it once. Where they end in a product that makes such reductions of its left
//! operand's rows, a norm is part of that product: each block makes it again, which is less than a kernel.

use super::forms::{Form, Forms};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use weft_ir::graph::{Graph, Op};
use weft_ir::ids::NodeId;
use weft_ir::shape::{Dim, Shape};

/// Float operations an element that may be spent on not storing it: about what a GPU does in the time of a
/// store and a load (60 TFLOP/s at 4.5 TB/s, 6 bytes).
const AGAIN_LIMIT: u32 = 64;

/// Turns roots that one loop over rows alone uses into values computed there.
pub(super) fn merge(graph: &Graph, forms: &mut Forms, kept: &HashSet<NodeId>) {
    // Users first: what ends in a loop by way of a merged value ends there itself.
    for id in graph.ids().collect::<Vec<_>>().into_iter().rev() {
        if forms.of[id.index()] == Form::Root && !kept.contains(&id) && fits(graph, forms, id) {
            forms.of[id.index()] = Form::Inline;
        }
    }
}

/// Whether a root can be computed in the one loop that uses it, or in the products that do.
fn fits(graph: &Graph, forms: &Forms, id: NodeId) -> bool {
    if !is_loop(graph, forms, id) {
        return false;
    }
    let Some(sinks) = sinks(graph, forms, id) else { return false };
    if forms.users[id.index()].iter().any(|&u| forms.reads_buffer(graph, u, id)) {
        return false;
    }
    sinks.into_iter().all(|sink| fits_sink(graph, forms, sink, id))
}

fn fits_sink(graph: &Graph, forms: &Forms, sink: NodeId, id: NodeId) -> bool {
    let inside = inside(graph, forms, sink, id);
    // The rows: all reductions are of one shape.
    let reductions = inside.iter().filter(|n| matches!(graph.node(**n).op, Op::Reduce(_) | Op::Softmax));
    let rows: BTreeSet<&[Dim]> = reductions.map(|n| &graph.ty(graph.node(*n).inputs[0]).shape[..]).collect();
    let mut rows = rows.into_iter();
    let (Some(row), None) = (rows.next(), rows.next()) else { return false };
    let left = forms.regions.get(&sink).map(|r| graph.node(r.product).inputs[0]);
    if left.is_some_and(|left| graph.ty(left).shape[..] != *row) {
        return false;
    }
    let own_ops = left.is_none() && !is_write(graph, forms, sink);
    let above = inside.iter().filter(|n| **n != sink || own_ops);
    let fits = |n: &NodeId| is_aligned(graph, row, *n) || stays_in_row(graph, row, *n);
    let aligned = above.filter(|n| reduces(graph, &inside, **n)).all(fits);
    let again = evaluations(graph, forms, &inside, sink, id) - 1;
    aligned && again.saturating_mul(operations(graph, &inside, id)) <= AGAIN_LIMIT
}

/// Whether a root is a loop of elementwise ops and reductions.
fn is_loop(graph: &Graph, forms: &Forms, id: NodeId) -> bool {
    let mixture = forms.experts.contains_key(&id) || forms.routing_of(id).is_some();
    let other = mixture || forms.product_of.contains_key(&id) || forms.attention.contains_key(&id);
    forms.of[id.index()] == Form::Root && !other && own(&graph.node(id).op).is_some()
}

/// Whether a root is a loop that writes rows of a state.
fn is_write(graph: &Graph, forms: &Forms, id: NodeId) -> bool {
    matches!(graph.node(id).op, Op::Scatter)
        && forms.of[id.index()] == Form::Root
        && !forms.product_of.contains_key(&id)
}

/// The one root that all uses of a value end in, a loop or a write; or the products that take it, each of which
/// can compute it. (Not both: a sum of norms that the next sum uses, too, would be made again all the way up.)
fn sinks(graph: &Graph, forms: &Forms, id: NodeId) -> Option<BTreeSet<NodeId>> {
    let mut found = BTreeSet::new();
    let (mut todo, mut seen) = (vec![id], BTreeSet::new());
    while let Some(n) = todo.pop() {
        for &u in &forms.users[n.index()] {
            if let Some(product) = forms.normed(graph, u, n) {
                found.insert(product);
                continue;
            }
            match forms.of[u.index()] {
                Form::Inline if seen.insert(u) => todo.push(u),
                Form::Inline => {}
                Form::Root if !forms.regions.contains_key(&u) => {
                    found.insert(u);
                }
                Form::Root => return None,
                Form::LoadPart | Form::Weight | Form::Source | Form::Alias | Form::Covered => return None,
            }
        }
    }
    let products = found.iter().all(|s| forms.regions.contains_key(s));
    let loops = |s: &NodeId| is_loop(graph, forms, *s) || is_write(graph, forms, *s);
    let together = if products { !found.is_empty() } else { found.len() == 1 && found.iter().all(loops) };
    together.then_some(found)
}

/// What the loop of `sink` would compute, with `id` in it.
fn inside(graph: &Graph, forms: &Forms, sink: NodeId, id: NodeId) -> BTreeSet<NodeId> {
    let region = forms.regions.get(&sink);
    let mut todo = region.map_or(vec![sink], |r| r.nodes().collect());
    let mut inside = BTreeSet::from([sink]);
    while let Some(n) = todo.pop() {
        for &x in &graph.node(n).inputs {
            if (x == id || forms.of[x.index()] == Form::Inline) && inside.insert(x) {
                todo.push(x);
            }
        }
    }
    inside
}

/// Whether a reduction is computed for a value.
fn reduces(graph: &Graph, inside: &BTreeSet<NodeId>, id: NodeId) -> bool {
    let node = graph.node(id);
    matches!(node.op, Op::Reduce(_) | Op::Softmax)
        || node.inputs.iter().any(|x| inside.contains(x) && reduces(graph, inside, *x))
}

/// Whether a value's elements are made from those of the same row: it has the rows' shape, or one element of
/// each.
pub(super) fn is_aligned(graph: &Graph, row: &[Dim], id: NodeId) -> bool {
    let node = graph.node(id);
    let one: Shape = row[..row.len().saturating_sub(1)].iter().copied().chain([Dim::Const(1)]).collect();
    let shape = &node.ty.shape;
    let keeps_coordinates = match &node.op {
        Op::Unary(_)
        | Op::Binary(_)
        | Op::Compare(_)
        | Op::Select
        | Op::Cast(_)
        | Op::Broadcast(_)
        | Op::Reduce(_)
        | Op::Softmax => true,
        Op::Input(_)
        | Op::Weight { .. }
        | Op::Constant { .. }
        | Op::Iota { .. }
        | Op::State { .. }
        | Op::Decode
        | Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Slice { .. }
        | Op::Concat { .. }
        | Op::TopK { .. }
        | Op::MatMul { .. }
        | Op::RoutedMatMul { .. }
        | Op::Gather
        | Op::Scatter
        | Op::Penalize
        | Op::Sample => false,
    };
    keeps_coordinates && (shape[..] == *row || *shape == one)
}

/// Whether a value's elements are made from those of the same row, but not only from the same place in it: a
/// rotation of what a norm has scaled. The row's elements may have several axes there, as heads have. No reduction is
/// over such a value.
fn stays_in_row(graph: &Graph, row: &[Dim], id: NodeId) -> bool {
    let node = graph.node(id);
    let last = row.len().saturating_sub(1);
    let in_rows = |shape: &[Dim]| shape.len() > last && shape[..last] == row[..last];
    let within = match &node.op {
        Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select | Op::Cast(_) | Op::Broadcast(_) => true,
        Op::Slice { axis, .. } | Op::Concat { axis } => *axis >= last,
        Op::Reshape(_) => in_rows(&graph.ty(node.inputs[0]).shape),
        Op::Transpose(perm) => perm.iter().take(last).enumerate().all(|(i, p)| *p == i),
        Op::Input(_)
        | Op::Weight { .. }
        | Op::Constant { .. }
        | Op::Iota { .. }
        | Op::State { .. }
        | Op::Decode
        | Op::Reduce(_)
        | Op::Softmax
        | Op::MatMul { .. }
        | Op::TopK { .. }
        | Op::RoutedMatMul { .. }
        | Op::Gather
        | Op::Scatter
        | Op::Penalize
        | Op::Sample => false,
    };
    in_rows(&node.ty.shape) && within
}

/// How often a value is evaluated for an element: once in each stage, and wherever an expression has it.
fn evaluations(graph: &Graph, forms: &Forms, inside: &BTreeSet<NodeId>, sink: NodeId, id: NodeId) -> u32 {
    let mut times: BTreeMap<NodeId, u32> = BTreeMap::from([(sink, 1)]);
    for &n in inside.iter().rev().filter(|&&n| n != sink) {
        let users: BTreeSet<NodeId> =
            forms.users[n.index()].iter().copied().filter(|u| inside.contains(u)).collect();
        let of = |u: &NodeId| {
            let by = times.get(u).copied().unwrap_or(0);
            match graph.node(*u).op {
                Op::Reduce(_) => 1,
                Op::Softmax => by.saturating_add(2),
                _ => by,
            }
        };
        let total = users.iter().map(of).fold(0, u32::saturating_add);
        times.insert(n, total);
    }
    times.get(&id).copied().unwrap_or(1).max(1)
}

/// Float operations of an element, without those of reductions.
fn operations(graph: &Graph, inside: &BTreeSet<NodeId>, id: NodeId) -> u32 {
    let node = graph.node(id);
    if matches!(node.op, Op::Reduce(_)) {
        return 0;
    }
    let inputs = node.inputs.iter().filter(|x| inside.contains(x));
    let below = inputs.map(|&x| operations(graph, inside, x)).fold(0, u32::saturating_add);
    below.saturating_add(own(&node.op).unwrap_or(0))
}

/// Float operations of an op, where a loop can compute it.
fn own(op: &Op) -> Option<u32> {
    match op {
        Op::Unary(u) => Some(if u.is_costly() { 8 } else { 1 }),
        Op::Binary(_) => Some(1),
        Op::Softmax => Some(8),
        Op::Gather => Some(2),
        Op::Constant { .. }
        | Op::Iota { .. }
        | Op::Compare(_)
        | Op::Select
        | Op::Cast(_)
        | Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Broadcast(_)
        | Op::Slice { .. }
        | Op::Concat { .. }
        | Op::Reduce(_) => Some(0),
        Op::Input(_)
        | Op::Weight { .. }
        | Op::State { .. }
        | Op::Decode
        | Op::TopK { .. }
        | Op::MatMul { .. }
        | Op::RoutedMatMul { .. }
        | Op::Scatter
        | Op::Penalize
        | Op::Sample => None,
    }
}
