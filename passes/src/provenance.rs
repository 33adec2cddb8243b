//! Where each work came from: the nodes of the graph, their places in the model, the weights, the rules.
//!
//! `weft compile` writes it beside the plan as `explain.json`; `weft inspect --explain` prints it. Nodes are
//! named by two ids: that of the graph that was lowered (the last `eqsat` dump of `--dump-passes`), and, where a
//! node of the graph as the frontend built it has the same value, that of the built graph (the `build` dump).

use crate::eqsat::{History, rules};
use crate::fusion::{self, Sites};
use crate::lower::{Lowered, Placed, Rule};
use crate::numerics::Selection;
use crate::siblings;
use crate::{attention_projection, attention_prologue};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use weft_ir::graph::{Graph, Op, line};
use weft_ir::ids::NodeId;
use weft_ir::plan::Work;

/// Version of this layout.
pub const VERSION: u32 = 2;

/// Where the works of a plan came from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Layout version: [`VERSION`].
    pub version: u32,
    /// One entry for each work, in the plan's order.
    pub works: Vec<WorkSource>,
}

/// Where a work came from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkSource {
    /// Name of the work.
    pub work: String,
    /// Ops of its first site, in topological order.
    pub ops: Vec<OpSource>,
    /// Dispatches of the work, in launch order, body by body.
    pub sites: Vec<Site>,
    /// Fusions that are one kernel at its first site, in the order of reports.
    pub fusions: Vec<RuleUse>,
    /// Lowering's rules that made it, in order; behind them that of merged loops.
    pub lowering: Vec<RuleUse>,
    /// Rewrites before lowering, in order.
    pub rewrites: Vec<Rewrite>,
    /// What was not chosen.
    pub alternatives: Vec<Alternative>,
}

/// A node of the lowered graph.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OpSource {
    /// Its line in the text of the lowered graph.
    pub text: String,
    /// Where in the model: `model.layers.0.self_attn.q_proj`.
    pub scope: String,
    /// Id of the node of the built graph with the same value; none where rules made it.
    pub built: Option<u32>,
    /// Tensors of the checkpoint among its operands.
    pub weights: Vec<String>,
}

/// A dispatch of a work.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Site {
    /// Position in the plan's bodies.
    pub body: u32,
    /// Position in the body's dispatches.
    pub dispatch: u32,
    /// Where in the model.
    pub scope: String,
    /// Ids of the nodes of the built graph whose values it computes, sorted.
    pub built: Vec<u32>,
    /// Nodes that rules made.
    pub made: u32,
    /// Tensors of the checkpoint that it reads, in order of first use.
    pub weights: Vec<String>,
}

/// A rule that was used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RuleUse {
    /// Its name.
    pub rule: String,
    /// What it does to the numbers: `exact`, `reassociate`, `full`.
    pub numerics: String,
}

/// A rewrite of the graph before lowering.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rewrite {
    /// Name of the rule.
    pub rule: String,
    /// What it does to the numbers.
    pub numerics: String,
    /// Where in the model.
    pub site: String,
    /// What was there.
    pub before: String,
    /// What it became.
    pub after: String,
}

/// A form that was considered and not chosen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Alternative {
    /// What it is.
    pub what: String,
    /// Its cost, in seconds of a step.
    pub cost_s: f64,
    /// Cost of what was chosen instead.
    pub chosen_cost_s: f64,
}

/// Numerics class of a rewrite rule, a fusion, a pass that merges works or a rule of lowering, by its name.
pub fn numerics(name: &str) -> Option<&'static str> {
    let rule = rules::all().into_iter().find(|r| r.name == name).map(|r| r.numerics);
    let fusion = || fusion::all().into_iter().find(|f| f.name == name).map(|f| f.numerics);
    let merging = || match name {
        attention_prologue::NAME => Some(attention_prologue::NUMERICS),
        attention_projection::NAME => Some(attention_projection::NUMERICS),
        siblings::NAME => Some(siblings::NUMERICS),
        _ => None,
    };
    let lowering = || Rule::ALL.into_iter().find(|r| r.name() == name).map(Rule::numerics);
    rule.or_else(fusion).or_else(merging).or_else(lowering).map(|n| n.name())
}

/// What is known of a body of the plan.
pub struct Body<'a> {
    /// What became of the graph's nodes.
    pub placed: &'a Placed,
    /// For each node, the node of the built graph with the same value.
    pub origins: &'a [Option<NodeId>],
    /// For each node, what rules did to it.
    pub histories: &'a [Option<Arc<History>>],
    /// Sites of the fusions.
    pub sites: &'a Sites,
}

/// What lowering and fusion know of the works, body by body.
pub fn gather(lowered: &Lowered, bodies: &[Body<'_>], selection: &Selection) -> Provenance {
    let used =
        |rule: &String| RuleUse { rule: rule.clone(), numerics: numerics(rule).unwrap_or_default().into() };
    let source = |w: &Work| WorkSource {
        work: w.name.clone(),
        lowering: w.rules.iter().map(used).collect(),
        ..WorkSource::default()
    };
    let mut works: Vec<WorkSource> = lowered.works.iter().map(source).collect();
    for (at, (body, dispatches)) in bodies.iter().zip(&lowered.bodies).enumerate() {
        let reader = Reader { body, load: body.placed.graph.load_time() };
        for (i, (dispatch, nodes)) in dispatches.iter().zip(&body.placed.dispatches).enumerate() {
            let Some(work) = works.get_mut(dispatch.work as usize) else { continue };
            let nodes: BTreeSet<NodeId> = nodes.iter().copied().collect();
            if work.sites.is_empty() {
                work.ops = nodes.iter().map(|&n| reader.op(n)).collect();
                work.fusions = reader.fusions(&nodes, selection);
                reader.rewrites(&nodes, work);
            }
            work.sites.push(reader.site(at, i, &dispatch.scope, &nodes));
        }
    }
    Provenance { version: VERSION, works }
}

struct Reader<'a> {
    body: &'a Body<'a>,
    load: Vec<bool>,
}

impl Reader<'_> {
    fn graph(&self) -> &Graph {
        &self.body.placed.graph
    }

    fn built(&self, id: NodeId) -> Option<u32> {
        self.body.origins.get(id.index()).copied().flatten().map(|n| n.0)
    }

    /// Fusions that are on and have a site among these nodes.
    fn fusions(&self, nodes: &BTreeSet<NodeId>, selection: &Selection) -> Vec<RuleUse> {
        let inside = |group: &fusion::Group| group.iter().all(|n| nodes.contains(n));
        let here = |f: &fusion::Fusion| {
            let sites = self.body.sites.of.get(f.name).map_or(&[][..], Vec::as_slice);
            selection.allows(f.name, f.numerics) && sites.iter().any(|s| s.any.iter().any(inside))
        };
        let all = fusion::all().into_iter().filter(here);
        all.map(|f| RuleUse { rule: f.name.into(), numerics: f.numerics.name().into() }).collect()
    }

    /// What rules did to these nodes, and what they need at load.
    fn rewrites(&self, nodes: &BTreeSet<NodeId>, work: &mut WorkSource) {
        let mut rewrites: Vec<(usize, Rewrite)> = Vec::new();
        for id in nodes {
            let Some(history) = self.body.histories.get(id.index()).and_then(|h| h.as_deref()) else {
                continue;
            };
            let site = self.graph().node(*id).scope.clone();
            for a in &history.applied {
                let (rule, numerics) = (a.rule.into(), a.numerics.name().into());
                let (before, after) = (a.before.clone(), a.after.clone());
                rewrites.push((a.step, Rewrite { rule, numerics, site: site.clone(), before, after }));
            }
            for l in &history.lost {
                let (cost_s, chosen_cost_s) = (l.cost_s, l.chosen_cost_s);
                work.alternatives.push(Alternative { what: l.what.clone(), cost_s, chosen_cost_s });
            }
        }
        rewrites.sort_by_key(|(step, _)| *step);
        work.rewrites = rewrites.into_iter().map(|(_, r)| r).collect();
    }

    fn op(&self, id: NodeId) -> OpSource {
        let mut weights = Vec::new();
        self.weights(id, &mut weights);
        let scope = self.graph().node(id).scope.clone();
        OpSource { text: line(self.graph(), id), scope, built: self.built(id), weights }
    }

    fn site(&self, body: usize, dispatch: usize, scope: &str, nodes: &BTreeSet<NodeId>) -> Site {
        let built: BTreeSet<u32> = nodes.iter().filter_map(|&n| self.built(n)).collect();
        let mut weights = Vec::new();
        nodes.iter().for_each(|&n| self.weights(n, &mut weights));
        Site {
            body: body as u32,
            dispatch: dispatch as u32,
            scope: scope.into(),
            made: nodes.iter().filter(|&&n| self.built(n).is_none()).count() as u32,
            built: built.into_iter().collect(),
            weights,
        }
    }

    /// Adds the tensors that the load-time operands of a node are made of.
    fn weights(&self, id: NodeId, into: &mut Vec<String>) {
        for &input in &self.graph().node(id).inputs {
            if !self.load[input.index()] {
                continue;
            }
            self.weights(input, into);
            if let Op::Weight { tensor, .. } = &self.graph().node(input).op
                && !into.contains(tensor)
            {
                into.push(tensor.clone());
            }
        }
    }
}
