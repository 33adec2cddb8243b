//! What lowering must respect of states and outputs, whatever the rules before it made of the graph.

use std::collections::{BTreeSet, HashMap, HashSet};
use weft_ir::graph::{Graph, Node, Op};
use weft_ir::ids::NodeId;

/// The graph with one buffer for each output: an output that another one is too, or that is a state, becomes
/// a copy.
pub(super) fn distinct_outputs(graph: &Graph) -> Graph {
    let mut g = graph.clone();
    let mut taken: BTreeSet<NodeId> = g.state_out.iter().map(|s| s.value).collect();
    for i in 0..g.outputs.len() {
        let value = g.outputs[i].value;
        if taken.insert(value) {
            continue;
        }
        let ty = g.ty(value).clone();
        let (op, scope) = (Op::Cast(ty.dtype()), g.node(value).scope.clone());
        g.nodes.push(Node { op, inputs: vec![value], ty, scope });
        g.outputs[i].value = NodeId::new(g.nodes.len() - 1);
    }
    g
}

/// Values that must be in memory before a state is written: what reads a version that a write consumes.
/// Computed where it is used, such a value would be read from the state after the write.
pub(super) fn early_reads(graph: &Graph) -> HashSet<NodeId> {
    // For each consumed version, and each movement of one, the write.
    let mut until: HashMap<NodeId, NodeId> = HashMap::new();
    for id in graph.ids().filter(|&id| matches!(graph.node(id).op, Op::Scatter)) {
        until.insert(graph.node(id).inputs[0], id);
    }
    let mut forced = HashSet::new();
    for id in graph.ids() {
        let node = graph.node(id);
        let Some(&write) = node.inputs.iter().filter_map(|x| until.get(x)).min() else { continue };
        match node.op {
            _ if write == id => {}
            Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast(_) | Op::Slice { .. } => {
                until.insert(id, write);
            }
            _ => {
                forced.insert(id);
            }
        }
    }
    forced
}
