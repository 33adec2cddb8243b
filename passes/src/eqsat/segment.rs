//! Block detection: the graph is cut into segments by the layer that nodes belong to, and equal segments
//! are found, so that saturation runs once for each distinct one.
//!
//! A segment's *sources* (weights, inputs, states, literals of the segment and values from outside it) are
//! numbered in order of appearance and become leaves; two segments are equal when their nodes are equal in
//! these terms.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write;
use weft_ir::graph::{Graph, Op, type_text};
use weft_ir::ids::NodeId;

/// A run of nodes that are optimised together.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Layer, or empty for what is in none.
    pub name: String,
    /// Nodes that compute, in topological order.
    pub nodes: Vec<NodeId>,
    /// Leaves, in order of appearance.
    pub leaves: Vec<NodeId>,
    /// Nodes whose values are used outside.
    pub outputs: Vec<NodeId>,
    /// Text that equal segments share.
    pub signature: String,
}

/// Scope up to and including its first number: `model.layers.3`.
fn layer(scope: &str) -> &str {
    let mut end = 0;
    for part in scope.split('.') {
        end += part.len();
        if !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) {
            return &scope[..end];
        }
        end += 1;
    }
    ""
}

/// For each node, whether it is in no segment: inputs, weights and states, and what is made at load for routed
/// products alone, whose hundreds of matrices no rule looks into.
pub fn apart(graph: &Graph) -> Vec<bool> {
    let (users, load) = (graph.users(), graph.load_time());
    let mut apart = vec![false; graph.nodes.len()];
    for id in graph.ids().rev() {
        let routed = |u: &NodeId| apart[u.index()] || matches!(graph.node(*u).op, Op::RoutedMatMul { .. });
        let used = &users[id.index()];
        apart[id.index()] = match graph.node(id).op {
            Op::Input(_) | Op::Weight { .. } | Op::State { .. } => true,
            _ => load[id.index()] && !used.is_empty() && used.iter().all(routed),
        };
    }
    apart
}

/// Cuts a graph into segments, in the order of their first nodes.
pub fn segments(graph: &Graph) -> Vec<Segment> {
    let mut order: Vec<&str> = Vec::new();
    let mut by_name: HashMap<&str, Vec<NodeId>> = HashMap::new();
    let apart = apart(graph);
    for id in graph.ids().filter(|id| !apart[id.index()]) {
        let name = layer(&graph.node(id).scope);
        by_name.entry(name).or_insert_with(|| {
            order.push(name);
            Vec::new()
        });
        if let Some(list) = by_name.get_mut(name) {
            list.push(id);
        }
    }
    let users = graph.users();
    let roots: HashSet<NodeId> = graph.roots().into_iter().collect();
    let scalar = scalars(graph);
    order
        .into_iter()
        .map(|name| {
            let own = with_scalars(graph, by_name.remove(name).unwrap_or_default(), &scalar);
            segment(graph, name, own, &users, &roots, &scalar)
        })
        .collect()
}

/// Whether a value is one literal number, or that everywhere: every segment makes its own, so that rules see it
/// and the layer that has it first is equal to the others.
fn scalars(graph: &Graph) -> Vec<bool> {
    let mut scalar: Vec<bool> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        scalar.push(match &node.op {
            Op::Constant { shape, .. } => shape.iter().all(|d| d.as_const() == Some(1)),
            Op::Broadcast(_) => scalar[node.inputs[0].index()],
            _ => false,
        });
    }
    scalar
}

/// Nodes with the scalars that they use.
fn with_scalars(graph: &Graph, nodes: Vec<NodeId>, scalar: &[bool]) -> Vec<NodeId> {
    let mut all: BTreeSet<NodeId> = nodes.iter().copied().collect();
    let mut todo = nodes;
    while let Some(id) = todo.pop() {
        for &x in graph.node(id).inputs.iter().filter(|x| scalar[x.index()]) {
            if all.insert(x) {
                todo.push(x);
            }
        }
    }
    all.into_iter().collect()
}

fn segment(
    graph: &Graph,
    name: &str,
    nodes: Vec<NodeId>,
    users: &[Vec<NodeId>],
    roots: &HashSet<NodeId>,
    scalar: &[bool],
) -> Segment {
    let place: HashMap<NodeId, usize> = nodes.iter().enumerate().map(|(i, &n)| (n, i)).collect();
    let load = graph.load_time();
    let mut leaves: Vec<NodeId> = Vec::new();
    let mut leaf_of: HashMap<NodeId, usize> = HashMap::new();
    let mut signature = String::new();
    for &id in &nodes {
        let node = graph.node(id);
        // Writing to a string does not fail.
        let _ = write!(signature, "{:?}(", node.op);
        for &x in &node.inputs {
            let _ = match place.get(&x) {
                Some(i) => write!(signature, "%{i} "),
                None => {
                    let next = leaf_of.len();
                    let leaf = *leaf_of.entry(x).or_insert_with(|| {
                        leaves.push(x);
                        next
                    });
                    let kind = if load[x.index()] { "load" } else { "leaf" };
                    write!(signature, "{kind}{leaf}:{} ", type_text(graph.ty(x)))
                }
            };
        }
        signature.push_str(")\n");
    }
    let used = |id: &NodeId| users[id.index()].iter().any(|u| !place.contains_key(u));
    let outside = |id: &NodeId| roots.contains(id) || (used(id) && !scalar[id.index()]);
    let outputs: Vec<NodeId> = nodes.iter().copied().filter(outside).collect();
    for o in &outputs {
        let _ = write!(signature, "out %{} ", place[o]);
    }
    Segment { name: name.to_string(), nodes, leaves, outputs, signature }
}

#[cfg(test)]
mod tests {
    use super::layer;

    #[test]
    fn a_layer_is_the_scope_up_to_its_number() {
        assert_eq!(layer("model.layers.12.mlp.gate_proj"), "model.layers.12");
        assert_eq!(layer("h.0"), "h.0");
        assert_eq!(layer("model.norm"), "");
    }
}
