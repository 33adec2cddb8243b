//! Putting the optimised blocks together: one graph again, in an order that states allow.

use super::segment::{Segment, apart};
use super::{History, Made, Source, Template};
use std::collections::HashMap;
use std::sync::Arc;
use weft_ir::graph::{Graph, Node as GraphNode, Op};
use weft_ir::ids::NodeId;

/// Puts the optimised blocks together; with each node, where it comes from.
pub(super) fn assemble(
    graph: &Graph,
    segments: &[Segment],
    templates: &HashMap<&str, Template>,
) -> (Graph, Vec<Origin>) {
    // New nodes may need values of several segments; a topological sort of all of them follows.
    let mut pending: Vec<Pending> = Vec::new();
    let mut value: HashMap<NodeId, usize> = HashMap::new();
    let apart = apart(graph);
    for id in graph.ids().filter(|id| apart[id.index()]) {
        let node = graph.node(id);
        value.insert(id, pending.len());
        let inputs = node.inputs.iter().map(|x| Operand::Old(*x)).collect();
        pending.push(Pending { node: node.clone(), inputs, origin: (Some(id), None) });
    }
    for s in segments {
        let t = &templates[s.signature.as_str()];
        let first = pending.len();
        let scopes = scopes(graph, s, t);
        for (made, scope) in t.nodes.iter().zip(scopes) {
            let node = GraphNode {
                op: made.op.clone(),
                inputs: Vec::new(),
                ty: weft_ir::graph::ValueType::plain(weft_ir::dtype::DType::F32, Vec::new()),
                scope,
            };
            let inputs = made
                .inputs
                .iter()
                .map(|i| match i {
                    Source::Leaf(l) => Operand::Old(s.leaves[*l as usize]),
                    Source::Node(n) => Operand::New(first + *n as usize),
                })
                .collect();
            let origin = (made.was.map(|i| s.nodes[i]), made.history.clone());
            pending.push(Pending { node, inputs, origin });
        }
        for (o, source) in s.outputs.iter().zip(&t.outputs) {
            match source {
                Source::Node(n) => {
                    value.insert(*o, first + *n as usize);
                }
                Source::Leaf(l) => {
                    if let Some(v) = value.get(&s.leaves[*l as usize]).copied() {
                        value.insert(*o, v);
                    }
                }
            }
        }
    }
    sort(graph, pending, &value)
}

/// The node of the same value before, and what rules did to it.
pub(super) type Origin = (Option<NodeId>, Option<Arc<History>>);

struct Pending {
    node: GraphNode,
    inputs: Vec<Operand>,
    origin: Origin,
}

#[derive(Clone, Copy)]
enum Operand {
    Old(NodeId),
    New(usize),
}

/// Scopes of a template's nodes: that of the node it was, else of what it is made from: its weight, if it is
/// a product with one, else its first operand. Joined weights join their names.
fn scopes(graph: &Graph, s: &Segment, t: &Template) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for made in &t.nodes {
        let of = |i: &Source| match i {
            Source::Leaf(l) => graph.node(s.leaves[*l as usize]).scope.clone(),
            Source::Node(n) => out[*n as usize].clone(),
        };
        let scope = match (made.was, &made.op) {
            (Some(i), _) => graph.node(s.nodes[i]).scope.clone(),
            // Attention's product with values is the attention's.
            (None, Op::MatMul { transpose_b, .. }) => {
                let own = if *transpose_b { made.inputs.last() } else { made.inputs.first() };
                own.map(of).unwrap_or_default()
            }
            (None, Op::RoutedMatMul { .. }) => made.inputs.get(1).map(of).unwrap_or_default(),
            (None, Op::Concat { .. }) => {
                let parts: Vec<String> = made.inputs.iter().map(of).collect();
                let last = |p: &String| p.rsplit('.').next().unwrap_or_default().to_string();
                let parent = parts.first().and_then(|p| p.rsplit_once('.')).map_or("", |(parent, _)| parent);
                let mut names: Vec<String> = parts.iter().map(last).filter(|n| !n.is_empty()).collect();
                names.dedup();
                let joined = names.join("+");
                if parent.is_empty() { joined } else { format!("{parent}.{joined}") }
            }
            (None, _) => made.inputs.first().map(of).unwrap_or_default(),
        };
        out.push(scope);
    }
    // A product whose scale moved behind it is that of the scaled result.
    for (j, made) in t.nodes.iter().enumerate() {
        let (Some(i), Op::Binary(_)) = (made.was, &made.op) else { continue };
        for input in &made.inputs {
            if let Source::Node(n) = input
                && let Made { op: Op::MatMul { .. }, was: None, .. } = &t.nodes[*n as usize]
            {
                out[*n as usize] = graph.node(s.nodes[i]).scope.clone();
            }
        }
        out[j] = graph.node(s.nodes[i]).scope.clone();
    }
    out
}

fn sort(graph: &Graph, pending: Vec<Pending>, value: &HashMap<NodeId, usize>) -> (Graph, Vec<Origin>) {
    let inputs: Vec<Vec<usize>> = pending
        .iter()
        .map(|p| {
            let index = |o: &Operand| match o {
                Operand::Old(n) => value.get(n).copied(),
                Operand::New(i) => Some(*i),
            };
            p.inputs.iter().filter_map(index).collect()
        })
        .collect();
    let before = early_readers(&pending, &inputs);
    let mut place: Vec<Option<NodeId>> = vec![None; pending.len()];
    let mut out = Graph::default();
    let mut origins: Vec<Origin> = Vec::with_capacity(pending.len());
    let mut stack: Vec<usize> = Vec::new();
    // Counts that rules made are one for all segments.
    let mut counts: HashMap<String, NodeId> = HashMap::new();
    for start in 0..pending.len() {
        stack.push(start);
        while let Some(&at) = stack.last() {
            if place[at].is_some() {
                stack.pop();
                continue;
            }
            let height = stack.len();
            let first = inputs[at].iter().chain(&before[at]).rev();
            stack.extend(first.filter(|i| place[**i].is_none()));
            if stack.len() > height {
                continue;
            }
            stack.pop();
            let mut node = pending[at].node.clone();
            if let Op::Iota { .. } = node.op {
                let next = NodeId::new(out.nodes.len());
                let one = *counts.entry(format!("{:?}", node.op)).or_insert(next);
                place[at] = Some(one);
                if one != next {
                    continue;
                }
            }
            node.inputs = inputs[at].iter().filter_map(|i| place[*i]).collect();
            let types: Vec<_> = node.inputs.iter().map(|i| out.ty(*i)).collect();
            if let Ok(ty) = weft_ir::graph::infer(&node.op, &types) {
                node.ty = ty;
            }
            place[at] = Some(NodeId::new(out.nodes.len()));
            out.nodes.push(node);
            origins.push(pending[at].origin.clone());
        }
    }
    let moved = |id: NodeId| value.get(&id).and_then(|i| place[*i]).unwrap_or(id);
    out.outputs = graph.outputs.clone();
    out.outputs.iter_mut().for_each(|o| o.value = moved(o.value));
    out.state_out = graph.state_out.clone();
    out.state_out.iter_mut().for_each(|s| s.value = moved(s.value));
    let (live, place) = out.without_dead();
    let origins = origins.into_iter().zip(place).filter_map(|(origin, kept)| kept.map(|_| origin)).collect();
    (live, origins)
}

/// For each state write, the other readers of the version that it consumes, and of views of it: they come
/// before the write.
fn early_readers(pending: &[Pending], inputs: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); pending.len()];
    for (at, list) in inputs.iter().enumerate() {
        for &i in list {
            users[i].push(at);
        }
    }
    let below = |from: usize| {
        let mut seen = std::collections::BTreeSet::from([from]);
        let mut todo = vec![from];
        while let Some(at) = todo.pop() {
            todo.extend(users[at].iter().copied().filter(|u| seen.insert(*u)));
        }
        seen
    };
    let is_view = |at: usize| {
        matches!(pending[at].node.op, Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast(_) | Op::Slice { .. })
    };
    let mut before = vec![Vec::new(); pending.len()];
    for write in (0..pending.len()).filter(|&at| matches!(pending[at].node.op, Op::Scatter)) {
        // What reads the version, but for the write, is rare.
        let version = inputs[write].first();
        if version.is_none_or(|v| users[*v].iter().all(|u| *u == write)) {
            continue;
        }
        let after = below(write);
        let mut todo: Vec<usize> = inputs[write].first().copied().into_iter().collect();
        while let Some(version) = todo.pop() {
            for &reader in users[version].iter().filter(|r| !after.contains(r)) {
                before[write].push(reader);
                if is_view(reader) {
                    todo.push(reader);
                }
            }
        }
    }
    before
}
