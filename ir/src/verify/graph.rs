//! Verifier of tensor graphs.
//!
//! Beyond types, it enforces that state is linear. A state has *versions*: its value as the step begins
//! (`Op::State`), then the result of each `Op::Scatter` that consumes a version. The rule:
//!
//! - a version is consumed by at most one scatter, so versions form a chain;
//! - a version, or a movement of it (reshape, transpose, broadcast, slice: they may be views), is read by
//!   nodes that come before the scatter that consumes it in the graph's order, never after;
//! - the state ends with the last version of its chain, and every state has an end.

use crate::graph::{Graph, Op, ValueType, infer, type_text};
use crate::ids::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Something wrong with a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Node, where it is about one.
    pub node: Option<NodeId>,
    /// Where in the model.
    pub scope: String,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(node) = self.node {
            write!(f, "{node}")?;
            if !self.scope.is_empty() {
                write!(f, " in {}", self.scope)?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.what)
    }
}

/// A state's chain of versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateFacts {
    /// Name.
    pub name: String,
    /// Versions, from the value as the step begins to the one it ends with.
    pub versions: Vec<NodeId>,
}

/// What later stages use of a graph that verifies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// For each node, the nodes that use it (once for each use), in order.
    pub users: Vec<Vec<NodeId>>,
    /// For each node, whether it is computed once, at load ([`Graph::load_time`]).
    pub load_time: Vec<bool>,
    /// For each node, whether an output or a state depends on it.
    pub live: Vec<bool>,
    /// States, in the order of their nodes.
    pub states: Vec<StateFacts>,
}

/// Checks a graph.
///
/// # Errors
/// All faults, in the graph's order. When ids are out of range or out of order, the rest is not checked.
pub fn verify(graph: &Graph) -> Result<Facts, Vec<Fault>> {
    let mut check = Check { graph, faults: Vec::new() };
    check.ids();
    if !check.faults.is_empty() {
        return Err(check.faults);
    }
    check.types();
    check.names();
    let users = graph.users();
    let states = check.states(&users);
    if check.faults.is_empty() {
        Ok(Facts { load_time: graph.load_time(), live: graph.live(), users, states })
    } else {
        Err(check.faults)
    }
}

struct Check<'a> {
    graph: &'a Graph,
    faults: Vec<Fault>,
}

impl Check<'_> {
    fn at(&mut self, node: NodeId, what: String) {
        let scope = self.graph.nodes.get(node.index()).map_or(String::new(), |n| n.scope.clone());
        self.faults.push(Fault { node: Some(node), scope, what });
    }

    fn whole(&mut self, what: String) {
        self.faults.push(Fault { node: None, scope: String::new(), what });
    }

    fn ids(&mut self) {
        let n = self.graph.nodes.len();
        for id in self.graph.ids() {
            for &input in &self.graph.node(id).inputs {
                if input.index() >= n {
                    self.at(id, format!("input {input} does not exist: the graph has {n} nodes"));
                } else if input >= id {
                    self.at(id, format!("input {input} does not come before its use"));
                }
            }
        }
        for o in &self.graph.outputs {
            if o.value.index() >= n {
                self.whole(format!("output {:?}: {} does not exist", o.name, o.value));
            }
        }
        for s in &self.graph.state_out {
            if s.value.index() >= n {
                self.whole(format!("state {:?} ends with {}, which does not exist", s.name, s.value));
            }
        }
    }

    fn types(&mut self) {
        for id in self.graph.ids() {
            let node = self.graph.node(id);
            let inputs: Vec<&ValueType> = node.inputs.iter().map(|&i| self.graph.ty(i)).collect();
            match infer(&node.op, &inputs) {
                Err(why) => self.at(id, why),
                Ok(ty) if ty != node.ty => {
                    let (stored, wanted) = (type_text(&node.ty), type_text(&ty));
                    self.at(id, format!("{} gives {wanted}, stored as {stored}", node.op.name()));
                }
                Ok(_) => {}
            }
        }
    }

    fn names(&mut self) {
        let mut seen = BTreeSet::new();
        for o in &self.graph.outputs {
            if !seen.insert(&o.name) {
                self.whole(format!("output {:?} is declared twice", o.name));
            }
        }
    }

    fn states(&mut self, users: &[Vec<NodeId>]) -> Vec<StateFacts> {
        let graph = self.graph;
        let mut chains: Vec<StateFacts> = Vec::new();
        // For each version, its chain; for each version or movement of one, the version.
        let mut chain_of: BTreeMap<NodeId, usize> = BTreeMap::new();
        let mut consumer: BTreeMap<NodeId, NodeId> = BTreeMap::new();
        for id in graph.ids() {
            let node = graph.node(id);
            if let Op::State { name, .. } = &node.op {
                if chains.iter().any(|c| &c.name == name) {
                    self.at(id, format!("state {name:?} is declared twice"));
                    continue;
                }
                chain_of.insert(id, chains.len());
                chains.push(StateFacts { name: name.clone(), versions: vec![id] });
            } else if let (Op::Scatter, Some(&state)) = (&node.op, node.inputs.first()) {
                let Some(&chain) = chain_of.get(&state) else {
                    self.at(id, format!("scatter consumes {state}, which is no state"));
                    continue;
                };
                if let Some(first) = consumer.get(&state) {
                    self.at(id, format!("scatter consumes {state}, which {first} already consumed"));
                    continue;
                }
                consumer.insert(state, id);
                chain_of.insert(id, chain);
                if let Some(c) = chains.get_mut(chain) {
                    c.versions.push(id);
                }
            }
        }
        for (&version, &scatter) in &consumer {
            self.late_reads(version, scatter, users);
        }
        self.ends(&chains);
        chains
    }

    /// Reads of a version, or of movements of it, after the scatter that consumes it.
    fn late_reads(&mut self, version: NodeId, scatter: NodeId, users: &[Vec<NodeId>]) {
        let mut work = vec![version];
        while let Some(value) = work.pop() {
            for &user in &users[value.index()] {
                if user > scatter || (user == scatter && value != version) {
                    self.at(user, format!("reads {version} after {scatter} has consumed it"));
                } else if is_movement(&self.graph.node(user).op) {
                    work.push(user);
                }
            }
            for o in &self.graph.outputs {
                if o.value == value {
                    self.whole(format!("output {:?} is {version}, which {scatter} consumes", o.name));
                }
            }
        }
        // The consumed version may be the state operand of its scatter only.
        let scattered = &self.graph.node(scatter).inputs;
        if scattered.iter().filter(|&&i| i == version).count() > 1 {
            self.at(scatter, format!("scatters {version} into itself"));
        }
    }

    fn ends(&mut self, chains: &[StateFacts]) {
        let mut ended = BTreeSet::new();
        for s in &self.graph.state_out {
            if !ended.insert(&s.name) {
                self.whole(format!("state {:?} ends twice", s.name));
            }
            match chains.iter().find(|c| c.name == s.name) {
                None => self.whole(format!("state {:?} ends with {} but never begins", s.name, s.value)),
                Some(c) if c.versions.last() != Some(&s.value) => {
                    let last = c.versions.last().map_or(String::new(), NodeId::to_string);
                    self.whole(format!(
                        "state {:?} ends with {}, not with its last version {last}",
                        s.name, s.value
                    ));
                }
                Some(_) => {}
            }
        }
        for c in chains {
            if !ended.contains(&c.name) {
                self.whole(format!("state {:?} has no end", c.name));
            }
        }
    }
}

/// Ops whose result may be a view of their input.
fn is_movement(op: &Op) -> bool {
    match op {
        Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast(_) | Op::Slice { .. } => true,
        Op::Input(_)
        | Op::Weight { .. }
        | Op::Constant { .. }
        | Op::Iota { .. }
        | Op::State { .. }
        | Op::Decode
        | Op::Unary(_)
        | Op::Binary(_)
        | Op::Compare(_)
        | Op::Select
        | Op::Cast(_)
        | Op::Concat { .. }
        | Op::Reduce(_)
        | Op::Softmax
        | Op::TopK { .. }
        | Op::RoutedMatMul { .. }
        | Op::MatMul { .. }
        | Op::Gather
        | Op::Scatter
        | Op::Penalize
        | Op::Sample => false,
    }
}
