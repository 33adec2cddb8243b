//! Equality saturation: each distinct block of the graph is rewritten by rules, and the cheapest equal
//! block is taken (Willsey et al. 2021, egg).
//!
//! Before: the graph of primitives. After: an equal graph of primitives that lowers to fewer kernels:
//! linear layers merged, rows paired for the epilogues that combine them, scales moved behind products.
//! Runs for decode and for the other steps, whose costs differ. Tests: `passes/tests/eqsat.rs`.

mod analysis;
mod build;
mod extract;
pub(crate) mod language;
pub mod rules;
mod segment;

pub use extract::CostModel;

use crate::numerics::Selection;
use analysis::{Block, Types};
use egg::{BackoffScheduler, EGraph, Id, Runner, StopReason};
use language::Node;
use rules::Rule;
use segment::{Segment, segments};
use std::collections::{BTreeMap, HashMap};
use weft_ir::graph::{Graph, Node as GraphNode, Op};
use weft_ir::ids::NodeId;

/// E-nodes of a block at which saturation stops.
const NODE_LIMIT: usize = 20_000;
/// Iterations at which saturation stops.
const ITERATION_LIMIT: usize = 12;

/// What saturation did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Segments, and distinct ones among them.
    pub segments: usize,
    /// Distinct segments.
    pub distinct: usize,
    /// Sites of the whole graph at which each rule added something.
    pub applied: BTreeMap<&'static str, usize>,
    /// Segments whose saturation hit a limit.
    pub limited: Vec<String>,
}

/// An optimised block in terms of its leaves: nodes in topological order, then its outputs.
struct Template {
    nodes: Vec<Made>,
    outputs: Vec<Source>,
    applied: BTreeMap<&'static str, usize>,
    limited: bool,
}

/// A node of a template.
struct Made {
    op: Op,
    inputs: Vec<Source>,
    /// Position in the segment of a node with the same value, if there was one.
    was: Option<usize>,
}

/// An operand within a template.
#[derive(Clone, Copy)]
enum Source {
    Leaf(u32),
    Node(u32),
}

/// Rewrites a graph with the rules that are on.
///
/// # Errors
/// A rule that builds what does not type: a fault of Weft.
pub fn run(graph: &Graph, model: &CostModel, selection: &Selection) -> Result<(Graph, Report), String> {
    let segments = segments(graph);
    let mut templates: HashMap<&str, Template> = HashMap::new();
    let mut report = Report { segments: segments.len(), ..Report::default() };
    for s in &segments {
        if !templates.contains_key(s.signature.as_str()) {
            templates.insert(&s.signature, saturate(graph, s, model, selection)?);
        }
        let t = &templates[s.signature.as_str()];
        for (rule, n) in &t.applied {
            *report.applied.entry(rule).or_default() += n;
        }
        if t.limited {
            report.limited.push(s.name.clone());
        }
    }
    report.distinct = templates.len();
    Ok((assemble(graph, &segments, &templates), report))
}

fn saturate(
    graph: &Graph,
    s: &Segment,
    model: &CostModel,
    selection: &Selection,
) -> Result<Template, String> {
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
    for stage in rules::stages() {
        let active: Vec<Rule> = stage.into_iter().filter(|r| selection.allows(r.name, r.numerics)).collect();
        let rewrites = active.iter().map(Rule::rewrite).collect::<Result<Vec<_>, String>>()?;
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
            let n: usize =
                runner.iterations.iter().filter_map(|i| i.applied.get(&egg::Symbol::from(rule.name))).sum();
            if n > 0 {
                *applied.entry(rule.name).or_default() += n;
            }
        }
        g = runner.egraph;
    }
    if let Some(why) = g.analysis.fault.take() {
        return Err(format!("equality saturation of '{}': {why}", s.name));
    }
    let outputs: Vec<Id> = s.outputs.iter().map(|o| class_of[o]).collect();
    let chosen = extract::extract(&g, model, &outputs);
    Ok(template(&g, &chosen, s, &class_of, applied, limited))
}

fn template(
    g: &Block,
    chosen: &extract::Chosen,
    s: &Segment,
    class_of: &HashMap<NodeId, Id>,
    applied: BTreeMap<&'static str, usize>,
    limited: bool,
) -> Template {
    let mut t = Template { nodes: Vec::new(), outputs: Vec::new(), applied, limited };
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
            t.nodes.push(Made { op: op.clone(), inputs, was: was.get(&class).copied() });
            Source::Node(t.nodes.len() as u32 - 1)
        }
        // Only patterns have it.
        language::Kind::Any => Source::Leaf(0),
    };
    done.insert(class, source);
    source
}

/// Puts the optimised blocks together.
fn assemble(graph: &Graph, segments: &[Segment], templates: &HashMap<&str, Template>) -> Graph {
    // New nodes may need values of several segments; a topological sort of all of them follows.
    let mut pending: Vec<Pending> = Vec::new();
    let mut value: HashMap<NodeId, usize> = HashMap::new();
    for id in graph.ids() {
        let node = graph.node(id);
        if matches!(node.op, Op::Input(_) | Op::Weight { .. } | Op::State { .. }) {
            value.insert(id, pending.len());
            pending.push(Pending { node: node.clone(), inputs: Vec::new() });
        }
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
            pending.push(Pending { node, inputs });
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

struct Pending {
    node: GraphNode,
    inputs: Vec<Operand>,
}

#[derive(Clone, Copy)]
enum Operand {
    Old(NodeId),
    New(usize),
}

/// Scopes of a template's nodes: that of the node it was, else of what it is made from: its weight, if it is
/// a product, else its first operand. Joined weights join their names.
fn scopes(graph: &Graph, s: &Segment, t: &Template) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for made in &t.nodes {
        let of = |i: &Source| match i {
            Source::Leaf(l) => graph.node(s.leaves[*l as usize]).scope.clone(),
            Source::Node(n) => out[*n as usize].clone(),
        };
        let scope = match (made.was, &made.op) {
            (Some(i), _) => graph.node(s.nodes[i]).scope.clone(),
            (None, Op::MatMul { .. }) => made.inputs.last().map(of).unwrap_or_default(),
            (None, Op::Concat { .. }) => {
                let parts: Vec<String> = made.inputs.iter().map(of).collect();
                let last = |p: &String| p.rsplit('.').next().unwrap_or_default().to_string();
                let parent = parts.first().and_then(|p| p.rsplit_once('.')).map_or("", |(parent, _)| parent);
                let names: Vec<String> = parts.iter().map(last).filter(|n| !n.is_empty()).collect();
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

fn sort(graph: &Graph, pending: Vec<Pending>, value: &HashMap<NodeId, usize>) -> Graph {
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
    let mut stack: Vec<usize> = Vec::new();
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
            node.inputs = inputs[at].iter().filter_map(|i| place[*i]).collect();
            let types: Vec<_> = node.inputs.iter().map(|i| out.ty(*i)).collect();
            if let Ok(ty) = weft_ir::graph::infer(&node.op, &types) {
                node.ty = ty;
            }
            place[at] = Some(NodeId::new(out.nodes.len()));
            out.nodes.push(node);
        }
    }
    let moved = |id: NodeId| value.get(&id).and_then(|i| place[*i]).unwrap_or(id);
    out.outputs = graph.outputs.clone();
    out.outputs.iter_mut().for_each(|o| o.value = moved(o.value));
    out.state_out = graph.state_out.clone();
    out.state_out.iter_mut().for_each(|s| s.value = moved(s.value));
    out.without_dead().0
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
