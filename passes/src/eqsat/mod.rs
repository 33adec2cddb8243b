//! Equality saturation: each distinct block of the graph is rewritten by rules, and the cheapest equal
//! block is taken (Willsey et al. 2021, egg).
//!
//! Before: the graph of primitives. After: an equal graph of primitives that lowers to fewer kernels:
//! linear layers merged, rows paired for the epilogues that combine them, scales moved behind products.
//! A block is saturated once, and extracted for each form of the step, whose costs differ. Tests: `passes/tests/eqsat.rs`.

mod analysis;
mod assemble;
mod attention;
mod build;
mod equalities;
mod extract;
mod history;
pub(crate) mod language;
pub mod rules;
mod segment;

pub use equalities::equalities;
pub use extract::CostModel;
pub use history::{Applied, History, Lost};

use crate::numerics::Selection;
use analysis::{Block, Types};
use egg::{BackoffScheduler, EGraph, Id, Runner, StopReason};
use language::Node;
use rayon::prelude::*;
use rules::Rule;
use segment::{Segment, segments};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use weft_ir::graph::{Graph, Op};
use weft_ir::ids::NodeId;

/// E-nodes of a block at which saturation stops.
const NODE_LIMIT: usize = 20_000;
/// Iterations at which saturation stops.
const ITERATION_LIMIT: usize = 12;

/// What saturation did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Segments, and distinct ones among them.
    pub segments: usize,
    /// Distinct segments.
    pub distinct: usize,
    /// Sites of the whole graph at which each rule added something.
    pub applied: BTreeMap<&'static str, usize>,
    /// Segments whose saturation hit a limit.
    pub limited: Vec<String>,
    /// For each node of the result, the node of the graph before with the same value; none where rules made a
    /// value that was not there.
    pub origins: Vec<Option<NodeId>>,
    /// For each node of the result, what rules did to it.
    pub histories: Vec<Option<Arc<History>>>,
}

/// An optimised block in terms of its leaves: nodes in topological order, then its outputs.
struct Template {
    nodes: Vec<Made>,
    outputs: Vec<Source>,
}

/// A node of a template.
struct Made {
    op: Op,
    inputs: Vec<Source>,
    /// Position in the segment of a node with the same value, if there was one.
    was: Option<usize>,
    /// Its class.
    class: Id,
    /// What rules did to it.
    history: Option<Arc<History>>,
}

/// An operand within a template.
#[derive(Clone, Copy)]
enum Source {
    Leaf(u32),
    Node(u32),
}

/// Rewrites a graph with the rules that are on, for each of some cost models.
///
/// # Errors
/// A rule that builds what does not type: a fault of Weft.
pub fn run(
    graph: &Graph,
    models: &[CostModel],
    selection: &Selection,
) -> Result<Vec<(Graph, Report)>, String> {
    let segments = segments(graph);
    let mut seen = HashSet::new();
    let distinct: Vec<&Segment> = segments.iter().filter(|s| seen.insert(s.signature.as_str())).collect();
    let explored = distinct.par_iter().map(|s| Ok((s.signature.as_str(), explore(graph, s, selection)?)));
    let explored: HashMap<&str, Explored> = explored.collect::<Result<_, String>>()?;
    let of_model = |model: &CostModel| {
        let mut templates: HashMap<&str, Template> = HashMap::new();
        let mut report = Report { segments: segments.len(), ..Report::default() };
        for s in &segments {
            let e = &explored[s.signature.as_str()];
            templates.entry(&s.signature).or_insert_with(|| choose(graph, s, e, model));
            for (rule, n) in &e.applied {
                *report.applied.entry(rule).or_default() += n;
            }
            if e.limited {
                report.limited.push(s.name.clone());
            }
        }
        report.distinct = templates.len();
        let (rewritten, origins) = assemble::assemble(graph, &segments, &templates);
        (report.origins, report.histories) = origins.into_iter().unzip();
        (rewritten, report)
    };
    Ok(models.par_iter().map(of_model).collect())
}

/// The e-graph of a saturated segment.
struct Explored {
    g: Block,
    class_of: HashMap<NodeId, Id>,
    applied: BTreeMap<&'static str, usize>,
    limited: bool,
}

fn explore(graph: &Graph, s: &Segment, selection: &Selection) -> Result<Explored, String> {
    let mut g: Block = EGraph::new(Types::default());
    let mut class_of: HashMap<NodeId, Id> = HashMap::new();
    let load = graph.load_time();
    for (i, &leaf) in s.leaves.iter().enumerate() {
        let id = g.add(Node::leaf(i as u32, graph.ty(leaf).clone(), load[leaf.index()]));
        class_of.insert(leaf, id);
    }
    for &n in &s.nodes {
        let node = graph.node(n);
        let children = node.inputs.iter().map(|x| class_of[x]).collect();
        let id = g.add(Node::op(node.op.clone(), children));
        class_of.insert(n, id);
    }
    g.rebuild();
    let mut applied: BTreeMap<&'static str, usize> = BTreeMap::new();
    let mut limited = false;
    for stage in selection.order(rules::stages()) {
        let active: Vec<Rule> = stage.into_iter().filter(|r| r.is_on(selection)).collect();
        let rewrites = active.iter().map(Rule::rewrites).collect::<Result<Vec<_>, String>>()?.concat();
        // No wall-clock limit: it would make the result depend on the machine.
        let runner: Runner<Node, Types> = Runner::new(Types::default())
            .with_egraph(g)
            .with_node_limit(NODE_LIMIT)
            .with_iter_limit(ITERATION_LIMIT)
            .with_time_limit(std::time::Duration::from_secs(3600))
            .with_scheduler(BackoffScheduler::default())
            .run(&rewrites);
        limited |= !matches!(runner.stop_reason, Some(StopReason::Saturated));
        for rule in &active {
            let names: Vec<egg::Symbol> = (0..rule.patterns.len()).map(|i| rule.egg_name(i).into()).collect();
            let of = |i: &egg::Iteration<()>| names.iter().filter_map(|n| i.applied.get(n)).sum::<usize>();
            let n: usize = runner.iterations.iter().map(of).sum();
            if n > 0 {
                *applied.entry(rule.name).or_default() += n;
            }
        }
        g = runner.egraph;
    }
    if let Some(why) = g.analysis.fault.take() {
        return Err(format!("equality saturation of '{}': {why}", s.name));
    }
    Ok(Explored { g, class_of, applied, limited })
}

/// The cheapest form of a saturated segment.
fn choose(graph: &Graph, s: &Segment, e: &Explored, model: &CostModel) -> Template {
    let outputs: Vec<Id> = s.outputs.iter().map(|o| e.class_of[o]).collect();
    let extracted = extract::extract(&e.g, model, &outputs);
    let histories = history::histories(graph, s, &e.g, model, &extracted, &e.class_of);
    let mut t = template(&e.g, &extracted.chosen, s, &e.class_of);
    for made in &mut t.nodes {
        made.history = histories.get(&made.class).cloned().map(Arc::new);
    }
    t
}

fn template(g: &Block, chosen: &extract::Chosen, s: &Segment, class_of: &HashMap<NodeId, Id>) -> Template {
    let mut t = Template { nodes: Vec::new(), outputs: Vec::new() };
    let mut done: HashMap<Id, Source> = HashMap::new();
    let mut was: HashMap<Id, usize> = HashMap::new();
    for (i, n) in s.nodes.iter().enumerate() {
        was.entry(g.find(class_of[n])).or_insert(i);
    }
    // In the block's own order, so that launches keep the order of the model.
    for n in s.nodes.iter().filter(|n| s.outputs.contains(n)) {
        let source = emit(g, chosen, g.find(class_of[n]), &was, &mut done, &mut t);
        t.outputs.push(source);
    }
    t
}

fn emit(
    g: &Block,
    chosen: &extract::Chosen,
    class: Id,
    was: &HashMap<Id, usize>,
    done: &mut HashMap<Id, Source>,
    t: &mut Template,
) -> Source {
    if let Some(s) = done.get(&class) {
        return *s;
    }
    let node = &chosen[&class];
    let source = match &node.kind {
        language::Kind::Leaf { index, .. } => Source::Leaf(*index),
        language::Kind::Op(op) => {
            let inputs = node.children.iter().map(|c| emit(g, chosen, g.find(*c), was, done, t)).collect();
            let was = was.get(&class).copied();
            t.nodes.push(Made { op: (**op).clone(), inputs, was, class, history: None });
            Source::Node(t.nodes.len() as u32 - 1)
        }
        // Only patterns have it.
        language::Kind::Any => Source::Leaf(0),
    };
    done.insert(class, source);
    source
}
