//! Every equality that saturation found, as a graph that can be evaluated: what proves rules.

use super::analysis::Block;
use super::explore;
use super::extract::{self, Chosen, CostModel};
use super::language::{Kind, Node};
use super::segment::segments;
use crate::numerics::Selection;
use egg::Id;
use std::collections::HashMap;
use weft_ir::graph::{Graph, GraphBuilder, Op};
use weft_ir::ids::NodeId;

/// For a graph of one segment: a graph with two outputs for each alternative of each class, `a…` computed by
/// the alternative and `b…` by the form that was taken, and the number of such pairs. Equal values of all pairs
/// mean that all equalities hold on these inputs.
///
/// # Errors
/// A graph of several segments, or a rule that builds what does not type.
pub fn equalities(graph: &Graph, model: &CostModel, selection: &Selection) -> Result<(Graph, usize), String> {
    let all = segments(graph);
    let [s] = &all[..] else { return Err(format!("{} segments", all.len())) };
    let explored = explore(graph, s, selection)?;
    let g = &explored.g;
    let outputs: Vec<Id> = s.outputs.iter().map(|o| explored.class_of[o]).collect();
    let chosen = extract::extract(g, model, &outputs).chosen;
    let mut maker =
        Maker { graph, leaves: &s.leaves, g, chosen: &chosen, b: GraphBuilder::new(), made: HashMap::new() };
    let mut pairs = 0;
    let mut classes: Vec<Id> = g.classes().map(|c| c.id).collect();
    classes.sort();
    for class in classes {
        let Some(taken) = chosen.get(&class) else { continue };
        let mut nodes: Vec<&Node> = g[class].nodes.iter().filter(|n| *n != taken).collect();
        nodes.sort();
        for node in nodes {
            let operands = node.children.iter().map(|c| g.find(*c));
            if g[class].data.load {
                continue;
            }
            let Some(op) = node.as_op() else { continue };
            let inputs: Vec<NodeId> =
                operands.map(|c| maker.value(c)).collect::<Option<_>>().unwrap_or_default();
            if inputs.len() != node.children.len() {
                continue;
            }
            let other = maker.b.add(op.clone(), &inputs);
            let Some(own) = maker.value(class) else { continue };
            maker.b.output(&format!("a{pairs}"), other);
            maker.b.output(&format!("b{pairs}"), own);
            pairs += 1;
        }
    }
    let out = maker.b.finish()?;
    Ok((out, pairs))
}

struct Maker<'a> {
    graph: &'a Graph,
    leaves: &'a [NodeId],
    g: &'a Block,
    chosen: &'a Chosen,
    b: GraphBuilder,
    made: HashMap<Id, NodeId>,
}

impl Maker<'_> {
    /// The taken form of a class.
    fn value(&mut self, class: Id) -> Option<NodeId> {
        if let Some(done) = self.made.get(&class) {
            return Some(*done);
        }
        let node = self.chosen.get(&class)?;
        let id = match &node.kind {
            Kind::Leaf { index, .. } => {
                let leaf = self.graph.node(self.leaves[*index as usize]);
                match &leaf.op {
                    Op::Weight { tensor, .. } => self.b.weight(tensor, leaf.ty.clone()),
                    Op::State { name, .. } => self.b.state(name, leaf.ty.clone()),
                    Op::Input(input) => self.b.input(*input),
                    _ => return None,
                }
            }
            Kind::Op(op) => {
                let inputs: Option<Vec<NodeId>> =
                    node.children.iter().map(|c| self.value(self.g.find(*c))).collect();
                self.b.add((**op).clone(), &inputs?)
            }
            Kind::Any => return None,
        };
        self.made.insert(class, id);
        Some(id)
    }
}
