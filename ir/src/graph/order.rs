//! Order and reachability, on petgraph.

use super::Graph;
use crate::ids::NodeId;
use petgraph::graph::DiGraph;
use petgraph::visit::{Dfs, Reversed};

impl Graph {
    fn petgraph(&self) -> DiGraph<(), ()> {
        let mut g = DiGraph::with_capacity(self.nodes.len(), self.nodes.len() * 2);
        let at: Vec<_> = self.nodes.iter().map(|_| g.add_node(())).collect();
        for id in self.ids() {
            for input in &self.node(id).inputs {
                g.add_edge(at[input.index()], at[id.index()], ());
            }
        }
        g
    }

    /// For each node, whether a root depends on it.
    pub fn live(&self) -> Vec<bool> {
        let g = self.petgraph();
        let mut live = vec![false; self.nodes.len()];
        let mut dfs = Dfs::empty(Reversed(&g));
        for root in self.roots() {
            dfs.move_to((root.index() as u32).into());
            while let Some(n) = dfs.next(Reversed(&g)) {
                live[n.index()] = true;
            }
        }
        live
    }

    /// The graph without nodes that no root depends on, and for each old node its new id.
    pub fn without_dead(&self) -> (Graph, Vec<Option<NodeId>>) {
        let live = self.live();
        let mut map = vec![None; self.nodes.len()];
        let mut out = Graph::default();
        for id in self.ids().filter(|id| live[id.index()]) {
            let mut node = self.node(id).clone();
            for input in &mut node.inputs {
                if let Some(new) = map[input.index()] {
                    *input = new;
                }
            }
            map[id.index()] = Some(NodeId::new(out.nodes.len()));
            out.nodes.push(node);
        }
        let moved = |id: NodeId| map[id.index()].unwrap_or(id);
        out.outputs = self.outputs.clone();
        out.outputs.iter_mut().for_each(|o| o.value = moved(o.value));
        out.state_out = self.state_out.clone();
        out.state_out.iter_mut().for_each(|s| s.value = moved(s.value));
        (out, map)
    }
}
