//! Finds a small graph that fails in the same way.

use super::check::{Check, Failure, Stage};
use super::resize::resized;
use std::time::{Duration, Instant};
use weft_ir::dtype::DType;
use weft_ir::graph::{Graph, Literal, Node, Op, Output, ValueType, infer};
use weft_ir::ids::NodeId;
use weft_ir::shape::Dim;
use weft_ir::verify;

/// How long shrinking may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// The smallest graph found that `fails`, by steps that each keep it failing.
pub fn shrink(graph: &Graph, fails: &dyn Fn(&Graph) -> bool) -> Graph {
    let start = Instant::now();
    let mut best = without_scopes(graph);
    if !fails(&best) {
        best = graph.clone();
    }
    loop {
        let before = measure(&best);
        for stage in [roots, replacements, sizes] {
            let mut i = 0;
            // Candidates are made one at a time: after a success the same position is tried again.
            while let Some(candidate) = stage(&best, i) {
                if start.elapsed() > PATIENCE {
                    return best;
                }
                let candidate = candidate.map(|g| g.without_dead().0);
                match candidate {
                    Some(g)
                        if measure(&g) < measure(&best) && verify::graph::verify(&g).is_ok() && fails(&g) =>
                    {
                        best = g;
                    }
                    _ => i += 1,
                }
            }
        }
        if measure(&best) >= before {
            return best;
        }
    }
}

/// What fails in the same way as a failure.
pub fn same_failure<'a>(check: &Check, failure: &'a Failure) -> impl Fn(&Graph) -> bool + use<'a> {
    let only = check.only(failure.variant, failure.stage);
    // Messages are compared without their numbers and names, where they are all there is.
    let words = |what: &str| -> String {
        what.split(|c: char| !c.is_ascii_alphabetic())
            .filter(|w| w.len() > 3)
            .take(12)
            .collect::<Vec<_>>()
            .join(" ")
    };
    let wanted = words(&failure.what);
    move |graph| match only.run(graph) {
        Ok(_) => false,
        Err(f) if f.stage != failure.stage => false,
        Err(f) => match f.stage {
            Stage::F64 | Stage::F32 | Stage::Rounded | Stage::Text | Stage::PlanText => true,
            Stage::Verify | Stage::Reference => false,
            Stage::Compile | Stage::Run | Stage::Emulator | Stage::Panic => {
                let got = words(&f.what);
                got.split(' ').take(4).eq(wanted.split(' ').take(4))
            }
        },
    }
}

/// Nodes, then elements: what shrinking makes smaller.
fn measure(graph: &Graph) -> (usize, usize, usize) {
    let roots = graph.outputs.len() + graph.state_out.len();
    let elements = |n: &Node| n.ty.shape.iter().map(|d| d.as_const().unwrap_or(8)).product::<usize>();
    let wide = graph.nodes.iter().filter(|n| n.ty.dtype().is_half()).count();
    (graph.nodes.len() + roots, graph.nodes.iter().map(elements).sum(), wide)
}

fn without_scopes(graph: &Graph) -> Graph {
    let mut g = graph.clone();
    g.nodes.iter_mut().for_each(|n| n.scope = String::new());
    g
}

/// Candidate `i` of those that change the results: an output less, a state less, or an output's operands
/// instead of it. `None` past the last one; `Some(None)` where there is nothing to try.
fn roots(graph: &Graph, i: usize) -> Option<Option<Graph>> {
    let (outputs, states) = (graph.outputs.len(), graph.state_out.len());
    let mut g = graph.clone();
    if i < outputs {
        if outputs + states == 1 {
            return Some(None);
        }
        g.outputs.remove(i);
        return Some(Some(g));
    }
    let i = i - outputs;
    if i < states {
        // A state that still begins is not dropped: the verifier says so, and the candidate falls.
        g.state_out.remove(i);
        return Some(Some(g));
    }
    let mut at = i - states;
    for o in 0..outputs {
        let inputs = &graph.node(graph.outputs[o].value).inputs;
        if at < inputs.len() {
            g.outputs[o].value = inputs[at];
            return Some(Some(g));
        }
        at -= inputs.len();
    }
    // A state's end instead of the state: its rows become an output.
    for s in 0..states {
        let end = graph.node(graph.state_out[s].value);
        if at == 0 && matches!(end.op, Op::Scatter) {
            g.outputs.push(Output { name: format!("rows{s}"), value: end.inputs[1] });
            g.state_out.remove(s);
            return Some(Some(g));
        }
        at = at.checked_sub(1)?;
    }
    None
}

/// Candidate `i` of those that replace a node, the last ones first: by an input, by an input's input, or by
/// a constant.
fn replacements(graph: &Graph, i: usize) -> Option<Option<Graph>> {
    const WAYS: usize = 8;
    let (back, way) = (i / WAYS, i % WAYS);
    let id = NodeId::new(graph.nodes.len().checked_sub(back + 1)?);
    let node = graph.node(id);
    if node.op.is_source() && !matches!(node.op, Op::State { .. }) {
        return Some(None);
    }
    let made = match way {
        0..4 => node.inputs.get(way).filter(|&&x| graph.ty(x) == &node.ty).map(|&x| redirected(graph, id, x)),
        4..7 => {
            let deep = node.inputs.iter().flat_map(|&x| graph.node(x).inputs.clone());
            let fits: Vec<NodeId> = deep.filter(|&x| graph.ty(x) == &node.ty).collect();
            fits.get(way - 4).map(|&x| redirected(graph, id, x))
        }
        _ => simplified(graph, id),
    };
    Some(made)
}

/// All uses of a node moved to an earlier one.
fn redirected(graph: &Graph, from: NodeId, to: NodeId) -> Graph {
    let mut g = graph.clone();
    g.nodes.iter_mut().flat_map(|n| &mut n.inputs).filter(|i| **i == from).for_each(|i| *i = to);
    g.outputs.iter_mut().filter(|o| o.value == from).for_each(|o| o.value = to);
    g.state_out.iter_mut().filter(|s| s.value == from).for_each(|s| s.value = to);
    g
}

/// A node replaced by a source: a weight where its extents are known and it is a float, else one value that
/// is repeated.
fn simplified(graph: &Graph, id: NodeId) -> Option<Graph> {
    let node = graph.node(id);
    let is_leaf = |x: NodeId| matches!(graph.node(x).op, Op::Constant { .. });
    let already = match &node.op {
        Op::Broadcast(_) | Op::Cast(_) => node.inputs.iter().all(|&x| is_leaf(x)),
        Op::Scatter | Op::State { .. } => true,
        _ => false,
    };
    if already || node.ty.shape.is_empty() {
        return None;
    }
    let known = node.ty.shape.iter().all(|d| d.as_const().is_some());
    let mut new: Vec<(Op, Vec<usize>)> = Vec::new();
    if known && node.ty.dtype().is_float() {
        new.push((Op::Weight { tensor: format!("w{}", 900 + id.index()), ty: node.ty.clone() }, vec![]));
    } else {
        let shape = vec![Dim::Const(1); node.ty.shape.len()];
        let literal =
            if node.ty.dtype().is_float() { Literal::F32(vec![0.75]) } else { Literal::I32(vec![1]) };
        new.push((Op::Constant { literal, shape }, vec![]));
        if !matches!(node.ty.dtype(), DType::F32 | DType::I32) {
            new.push((Op::Cast(node.ty.dtype()), vec![0]));
        }
        if !node.ty.shape.iter().all(|d| *d == Dim::Const(1)) {
            new.push((Op::Broadcast(node.ty.shape.clone()), vec![new.len() - 1]));
        }
    }
    // The new nodes come in its place, so later ids move.
    let (at, more) = (id.index(), new.len() - 1);
    let moved = |x: NodeId| if x.index() < at { x } else { NodeId::new(x.index() + more) };
    let mut g = Graph { nodes: graph.nodes[..at].to_vec(), ..Graph::default() };
    for (op, inputs) in new {
        let inputs: Vec<NodeId> = inputs.into_iter().map(|i| NodeId::new(at + i)).collect();
        let types: Vec<&ValueType> = inputs.iter().map(|&i| g.ty(i)).collect();
        let ty = infer(&op, &types).ok()?;
        g.nodes.push(Node { op, inputs, ty, scope: String::new() });
    }
    for node in &graph.nodes[at + 1..] {
        let inputs = node.inputs.iter().map(|&x| moved(x)).collect();
        g.nodes.push(Node { inputs, ..node.clone() });
    }
    g.outputs = graph.outputs.iter().map(|o| Output { value: moved(o.value), ..o.clone() }).collect();
    g.state_out = graph.state_out.clone();
    g.state_out.iter_mut().for_each(|s| s.value = moved(s.value));
    Some(g)
}

/// Candidate `i` of those that change sizes and types.
fn sizes(graph: &Graph, i: usize) -> Option<Option<Graph>> {
    let mut extents: Vec<usize> = graph
        .nodes
        .iter()
        .flat_map(|n| &n.ty.shape)
        .filter_map(|d| d.as_const())
        .filter(|&n| n > 1)
        .collect();
    extents.sort_unstable();
    extents.dedup();
    const WAYS: usize = 6;
    if let Some(&n) = extents.iter().rev().nth(i / WAYS) {
        let to = match i % WAYS {
            0 | 3 => 1,
            1 | 4 => n.div_ceil(2),
            _ => n - 1,
        };
        // Of all that are equal, or of all multiples.
        return Some(resized(graph, &|x| {
            if i % WAYS < 3 {
                if x == n { to } else { x }
            } else if x % n == 0 {
                x / n * to
            } else {
                x
            }
        }));
    }
    match i - extents.len() * WAYS {
        0 => Some(Some(all_f32(graph))),
        _ => None,
    }
}

/// Everything in f32.
fn all_f32(graph: &Graph) -> Graph {
    let wide = |d: DType| if d.is_half() { DType::F32 } else { d };
    let mut g = graph.clone();
    for node in &mut g.nodes {
        let widen = |ty: &ValueType| match ty.is_plain() {
            true => ValueType::plain(wide(ty.dtype()), ty.shape.clone()),
            false => ty.clone(),
        };
        node.ty = widen(&node.ty);
        match &mut node.op {
            Op::Weight { ty, .. } | Op::State { ty, .. } => *ty = widen(ty),
            Op::Cast(d) | Op::MatMul { out: d, .. } => *d = wide(*d),
            _ => {}
        }
    }
    g
}
