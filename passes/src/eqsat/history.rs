//! What saturation and extraction did to a value: rules in the order they were applied, and forms that lost.
//!
//! egg's explanations do not cover appliers that look at the whole e-graph, so every applier records its rule
//! and the e-node it added ([`Types::log`](super::analysis::Types)); a record counts where extraction took that
//! e-node.

use super::analysis::Block;
use super::extract::{CostModel, Extracted};
use super::language::{Kind, Node};
use super::segment::Segment;
use crate::numerics::Numerics;
use egg::{Id, Language};
use std::collections::HashMap;
use weft_ir::graph::{Graph, Op};
use weft_ir::ids::NodeId;

/// A rule that made the form of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// When, among all that was applied to the block.
    pub step: usize,
    /// Rule.
    pub rule: &'static str,
    /// Its class.
    pub numerics: Numerics,
    /// Term of the value before.
    pub before: String,
    /// Term that was taken.
    pub after: String,
}

/// A form of a value that was not taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Lost {
    /// Its term.
    pub what: String,
    /// Seconds of a step with it and all it needs; what other values have paid for is free.
    pub cost_s: f64,
    /// The same of the form that was taken.
    pub chosen_cost_s: f64,
}

/// What was done to a value.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// Rules, in order.
    pub applied: Vec<Applied>,
    /// Forms that lost.
    pub lost: Vec<Lost>,
}

/// Forms that lost, of one value: the nearest.
const NEAREST: usize = 2;

/// Depth of printed terms.
const DEPTH: usize = 4;

/// The histories of a segment's classes that rules changed.
pub(super) fn histories(
    graph: &Graph,
    s: &Segment,
    g: &Block,
    model: &CostModel,
    extracted: &Extracted,
    class_of: &HashMap<NodeId, Id>,
) -> HashMap<Id, History> {
    let mut was: HashMap<Id, NodeId> = HashMap::new();
    for n in &s.nodes {
        was.entry(g.find(class_of[n])).or_insert(*n);
    }
    let terms = Terms { graph, s, g, extracted };
    let canonical = |n: &Node| n.clone().map_children(|c| g.find(c));
    let mut out: HashMap<Id, History> = HashMap::new();
    for (step, record) in g.analysis.log.iter().enumerate() {
        let class = g.find(record.class);
        let Some(taken) = extracted.chosen.get(&class) else { continue };
        if canonical(taken) != canonical(&record.node) {
            continue;
        }
        let before = was
            .get(&class)
            .map_or_else(|| "a form that another rule made".into(), |n| terms.original(*n, DEPTH));
        let after = terms.term(class, DEPTH);
        let applied = Applied { step, rule: record.rule, numerics: record.numerics, before, after };
        let history = out.entry(class).or_default();
        if !history.applied.iter().any(|a| a.rule == applied.rule) {
            history.applied.push(applied);
        }
    }
    for (class, history) in &mut out {
        let Some(taken) = extracted.chosen.get(class) else { continue };
        let Some(chosen_cost_s) = extracted.price(g, model, *class, taken) else { continue };
        let mut others: Vec<&Node> =
            g[*class].nodes.iter().filter(|n| canonical(n) != canonical(taken)).collect();
        others.sort();
        for node in others {
            let Some(cost_s) = extracted.price(g, model, *class, node) else { continue };
            history.lost.push(Lost { what: terms.node(node, DEPTH), cost_s, chosen_cost_s });
        }
        history.lost.sort_by(|a, b| a.cost_s.total_cmp(&b.cost_s));
        history.lost.truncate(NEAREST);
    }
    out
}

struct Terms<'a> {
    graph: &'a Graph,
    s: &'a Segment,
    g: &'a Block,
    extracted: &'a Extracted,
}

impl Terms<'_> {
    /// Term of a class as it was taken.
    fn term(&self, class: Id, depth: usize) -> String {
        match self.extracted.chosen.get(&class) {
            Some(node) => self.node(node, depth),
            None => "…".into(),
        }
    }

    fn node(&self, node: &Node, depth: usize) -> String {
        match &node.kind {
            Kind::Leaf { index, .. } => self.leaf(self.s.leaves[*index as usize]),
            Kind::Op(op) => {
                let name = name(op);
                if depth == 0 || node.children.is_empty() {
                    return name;
                }
                let inputs: Vec<String> =
                    node.children.iter().map(|c| self.term(self.g.find(*c), depth - 1)).collect();
                format!("{name}({})", inputs.join(", "))
            }
            Kind::Any => "…".into(),
        }
    }

    /// Term of a node of the graph before.
    fn original(&self, id: NodeId, depth: usize) -> String {
        let node = self.graph.node(id);
        if self.s.leaves.contains(&id) {
            return self.leaf(id);
        }
        if depth == 0 || node.inputs.is_empty() {
            return name(&node.op);
        }
        let inputs: Vec<String> = node.inputs.iter().map(|x| self.original(*x, depth - 1)).collect();
        format!("{}({})", name(&node.op), inputs.join(", "))
    }

    /// A value from outside: by its tensor, or where it comes from.
    fn leaf(&self, id: NodeId) -> String {
        let node = self.graph.node(id);
        let last = |s: &str| s.rsplit('.').next().unwrap_or(s).to_string();
        match &node.op {
            Op::Weight { tensor, .. } => last(tensor.trim_end_matches(".weight")),
            Op::Input(input) => input.name().into(),
            Op::State { name, .. } => name.clone(),
            op => format!("{} of {}", op.name(), last(&node.scope)),
        }
    }
}

/// An op with what tells it from others of its kind.
fn name(op: &Op) -> String {
    match op {
        Op::MatMul { transpose_b: true, .. } => "matmul.t".into(),
        Op::Slice { axis, start, len } => format!("slice[{axis}: {start}..{}]", start + len),
        Op::Transpose(perm) => format!("transpose{perm:?}"),
        other => other.name().into(),
    }
}
