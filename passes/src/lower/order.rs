//! Order of dispatches: each after what it reads, otherwise as the model has them.

use super::Stop;
use std::collections::{BTreeMap, BTreeSet};
use weft_ir::graph::{Graph, Op};
use weft_ir::ids::{BufferId, NodeId};
use weft_ir::plan::{Buffer, BufferKind, Dispatch};

/// Order of dispatches, with the nodes that each computes. A temporary has one writer, which comes first; a
/// version of a state is read after the write that makes it and before the write that consumes it.
pub(super) fn sort(
    graph: &Graph,
    buffers: &[Buffer],
    dispatches: &[Dispatch],
    ops: &[Vec<NodeId>],
) -> Result<Vec<usize>, Stop> {
    let is_state = |b: &BufferId| matches!(buffers[b.index()].kind, BufferKind::State(_));
    let mut writer: BTreeMap<BufferId, usize> = BTreeMap::new();
    for (i, d) in dispatches.iter().enumerate() {
        for b in d.writes.iter().filter(|b| !is_state(b)) {
            writer.entry(*b).or_insert(i);
        }
    }
    let mut before: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); dispatches.len()];
    for (i, d) in dispatches.iter().enumerate() {
        before[i].extend(d.reads.iter().chain(&d.writes).filter_map(|b| writer.get(b)).filter(|&&e| e != i));
    }
    let versions = versions(graph);
    let mut made: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut readers: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
    for (i, nodes) in ops.iter().enumerate() {
        for &n in nodes {
            let node = graph.node(n);
            let is_write = matches!(node.op, Op::Scatter);
            if is_write {
                made.insert(n, i);
            }
            let read = node.inputs.iter().skip(usize::from(is_write));
            for v in read.filter_map(|x| versions.get(x)) {
                readers.entry(*v).or_default().push(i);
            }
        }
    }
    for (v, all) in &readers {
        all.iter().filter(|&i| made.get(v) != Some(i)).for_each(|&i| before[i].extend(made.get(v)));
    }
    for (&write, &i) in &made {
        let consumed = graph.node(write).inputs[0];
        let earlier = readers.get(&consumed).into_iter().flatten().chain(made.get(&consumed));
        before[i].extend(earlier.filter(|&&e| e != i));
    }
    let mut after: Vec<Vec<usize>> = vec![Vec::new(); dispatches.len()];
    let mut waits: Vec<usize> = before.iter().map(BTreeSet::len).collect();
    for (i, all) in before.iter().enumerate() {
        all.iter().for_each(|&b| after[b].push(i));
    }
    // Of those that wait for nothing, the first in the model goes first.
    let mut ready: BTreeSet<usize> = (0..waits.len()).filter(|&i| waits[i] == 0).collect();
    let mut order = Vec::with_capacity(dispatches.len());
    while let Some(next) = ready.pop_first() {
        order.push(next);
        for &i in &after[next] {
            waits[i] -= 1;
            if waits[i] == 0 {
                ready.insert(i);
            }
        }
    }
    if order.len() < dispatches.len() {
        let stuck: Vec<&str> =
            (0..waits.len()).filter(|&i| waits[i] > 0).map(|i| &*dispatches[i].scope).collect();
        return Err(Stop::Fault(format!("the works of {} wait for each other", stuck.join(", "))));
    }
    Ok(order)
}

/// For each version of a state, and each movement of one, the version.
fn versions(graph: &Graph) -> BTreeMap<NodeId, NodeId> {
    let mut versions: BTreeMap<NodeId, NodeId> = BTreeMap::new();
    for id in graph.ids() {
        let node = graph.node(id);
        match &node.op {
            Op::State { .. } | Op::Scatter => {
                versions.insert(id, id);
            }
            Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast(_) | Op::Slice { .. } => {
                if let Some(&v) = versions.get(&node.inputs[0]) {
                    versions.insert(id, v);
                }
            }
            _ => {}
        }
    }
    versions
}
