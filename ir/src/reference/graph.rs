//! Interpreter of tensor graphs.

use super::error::{OpError, ReferenceError};
use super::precision::{Precision, Real};
use super::state::{Outputs, States, StepInputs};
use super::tensor::{Data, Tensor};
use super::weights::{WeightBytes, scaled_weight, weight};
use super::{elementwise, index, matmul, movement, reduce, routed, sample};
use crate::graph::{Graph, Literal, Op};
use crate::ids::NodeId;
use crate::shape::{Bindings, Dim};
use crate::verify::graph::{StateFacts, verify};
use rayon::prelude::*;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A graph made ready for steps: values that no step changes, and the order of the rest.
#[derive(Clone, Debug)]
pub struct Loaded<R> {
    precision: Precision,
    /// Values computed at load, where a step needs them.
    values: Vec<Option<Tensor<R>>>,
    /// Nodes that a step computes.
    order: Vec<NodeId>,
    /// For each node, its uses by these nodes, outputs and states.
    uses: Vec<u32>,
    states: Vec<StateFacts>,
}

impl<R> Loaded<R> {
    /// Precision it was loaded for.
    pub fn precision(&self) -> Precision {
        self.precision
    }
}

/// Makes a graph ready: verifies it and evaluates what depends on weights and literals alone, in parallel.
///
/// Values that only others of these need are dropped. Weights are kept as `R`, whatever their storage.
///
/// # Errors
/// [`ReferenceError::Faults`] when the graph does not verify, [`ReferenceError::Precision`] when `R` is
/// not the precision's number type, [`ReferenceError::Node`] when a weight is missing or an op fails.
pub fn load<R: Real>(
    graph: &Graph,
    weights: &dyn WeightBytes,
    precision: Precision,
) -> Result<Loaded<R>, ReferenceError> {
    if !R::serves(precision) {
        return Err(ReferenceError::Precision(precision));
    }
    let facts = verify(graph).map_err(ReferenceError::Faults)?;
    let fixed = fixed(graph);
    let mut uses = vec![0u32; graph.nodes.len()];
    let mut wanted = vec![false; graph.nodes.len()];
    let order: Vec<NodeId> = graph.ids().filter(|id| facts.live[id.index()] && !fixed[id.index()]).collect();
    let inputs = order.iter().flat_map(|&id| graph.node(id).inputs.iter().copied());
    for id in inputs.chain(graph.roots()) {
        uses[id.index()] += 1;
        wanted[id.index()] |= fixed[id.index()];
    }
    let mut values: Vec<Option<Tensor<R>>> = vec![None; graph.nodes.len()];
    let parts = components(graph, &fixed, &facts.live);
    let made = parts.par_iter().map(|part| evaluate(graph, weights, precision, part, &wanted));
    for (id, value) in made.collect::<Result<Vec<_>, ReferenceError>>()?.into_iter().flatten() {
        values[id.index()] = Some(value);
    }
    Ok(Loaded { precision, values, order, uses, states: facts.states })
}

/// For each node, whether every step gives it the same value: it depends on weights and literals alone,
/// and all extents are constant.
fn fixed(graph: &Graph) -> Vec<bool> {
    let mut fixed: Vec<bool> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let source = match &node.op {
            Op::Input(_) | Op::State { .. } | Op::Penalize | Op::Sample => false,
            Op::Weight { .. }
            | Op::Constant { .. }
            | Op::Iota { .. }
            | Op::Decode
            | Op::Unary(_)
            | Op::Binary(_)
            | Op::Compare(_)
            | Op::Select
            | Op::Cast(_)
            | Op::Reshape(_)
            | Op::Transpose(_)
            | Op::Broadcast(_)
            | Op::Slice { .. }
            | Op::Concat { .. }
            | Op::Reduce(_)
            | Op::Softmax
            | Op::TopK { .. }
            | Op::MatMul { .. }
            | Op::RoutedMatMul { .. }
            | Op::Gather
            | Op::Scatter => true,
        };
        let known = node.ty.shape.iter().all(|d| matches!(d, Dim::Const(_)));
        fixed.push(source && known && node.inputs.iter().all(|i| fixed[i.index()]));
    }
    fixed
}

/// Fixed live nodes in parts that do not depend on each other; each part in topological order. A literal
/// joins nothing: it is in each part that uses it.
fn components(graph: &Graph, fixed: &[bool], live: &[bool]) -> Vec<Vec<NodeId>> {
    fn root(parent: &mut [usize], mut i: usize) -> usize {
        while parent[i] != i {
            parent[i] = parent[parent[i]];
            i = parent[i];
        }
        i
    }
    let is_literal = |id: NodeId| matches!(graph.node(id).op, Op::Constant { .. });
    let mut parent: Vec<usize> = (0..graph.nodes.len()).collect();
    let nodes: Vec<NodeId> = graph.ids().filter(|id| fixed[id.index()] && live[id.index()]).collect();
    for &id in &nodes {
        for &input in graph.node(id).inputs.iter().filter(|&&i| !is_literal(i)) {
            let (a, b) = (root(&mut parent, id.index()), root(&mut parent, input.index()));
            parent[a] = b;
        }
    }
    let mut parts: BTreeMap<usize, Vec<NodeId>> = BTreeMap::new();
    for &id in &nodes {
        let part = root(&mut parent, id.index());
        let members = parts.entry(part).or_default();
        for &input in graph.node(id).inputs.iter().filter(|&&i| is_literal(i)) {
            if !members.contains(&input) {
                members.push(input);
            }
        }
        members.push(id);
    }
    parts.into_values().collect()
}

/// Evaluates a part; gives the values that steps want.
fn evaluate<R: Real>(
    graph: &Graph,
    weights: &dyn WeightBytes,
    precision: Precision,
    part: &[NodeId],
    wanted: &[bool],
) -> Result<Vec<(NodeId, Tensor<R>)>, ReferenceError> {
    let none = Bindings { tokens: 0, seqs: 0, rows: 0, context: 0, slots: 0 };
    let mut uses: BTreeMap<NodeId, u32> = BTreeMap::new();
    for &id in part {
        for &input in &graph.node(id).inputs {
            *uses.entry(input).or_default() += 1;
        }
    }
    let mut values: BTreeMap<NodeId, Tensor<R>> = BTreeMap::new();
    let mut out = Vec::new();
    for &id in part {
        let node = graph.node(id);
        let at = |e| ReferenceError::at(graph, id, e);
        let value = match (&node.op, node.inputs.first()) {
            // An encoded weight has no value of its own: its decoding has.
            (Op::Weight { ty, .. }, _) if !ty.is_plain() => continue,
            (Op::Weight { tensor, ty }, _) => weight(weights, tensor, ty).map_err(at)?,
            (Op::Decode, Some(&of)) if node.inputs.len() == 2 => {
                scaled(graph, weights, of, node.inputs[1]).map_err(at)?
            }
            (Op::Decode, Some(&of)) if !values.contains_key(&of) => match &graph.node(of).op {
                Op::Weight { tensor, ty } => weight(weights, tensor, ty).map_err(at)?,
                other => return Err(at(OpError::Unsupported(format!("decoding a {}", other.name())))),
            },
            _ => {
                let inputs = node.inputs.iter().map(|i| values.get(i).cloned().ok_or_else(|| missing(*i)));
                let inputs = inputs.collect::<Result<Vec<_>, OpError>>().map_err(at)?;
                eval(graph, id, inputs, &none, precision).map_err(at)?
            }
        };
        for input in &node.inputs {
            if let Some(n) = uses.get_mut(input) {
                *n -= 1;
                if *n == 0 {
                    values.remove(input);
                }
            }
        }
        if wanted[id.index()] {
            // A part of something would keep all of it, and other orders would be packed in every step.
            let kept = match value.data().len().cmp(&value.len()) {
                Ordering::Less => value.clone(),
                Ordering::Equal => value.packed(),
                Ordering::Greater => value.compact(),
            };
            out.push((id, kept));
        }
        values.insert(id, value);
    }
    Ok(out)
}

/// The values of the elements `of` with their scales.
fn scaled<R: Real>(
    graph: &Graph,
    weights: &dyn WeightBytes,
    of: NodeId,
    scales: NodeId,
) -> Result<Tensor<R>, OpError> {
    match (&graph.node(of).op, &graph.node(scales).op) {
        (Op::Weight { tensor, ty }, Op::Weight { tensor: scales, ty: scale }) => {
            let shape: Option<Vec<usize>> = ty.shape.iter().map(|d| d.as_const()).collect();
            let shape =
                shape.ok_or_else(|| OpError::Unsupported("a checkpoint tensor of symbolic shape".into()))?;
            scaled_weight(weights, (tensor, ty.encoding), &shape, (scales, scale.encoding))
        }
        (a, b) => Err(OpError::Unsupported(format!("decoding a {} by a {}", a.name(), b.name()))),
    }
}

fn missing(id: NodeId) -> OpError {
    OpError::Unsupported(format!("{id} has no value (an encoded tensor that is not decoded?)"))
}

/// Runs a step: computes outputs, and moves states to their next version in place.
///
/// # Errors
/// [`ReferenceError::Input`] when an input that the graph uses has another length than its binding says,
/// [`ReferenceError::Node`] when an op fails. After an error each state holds one of its versions of this
/// step: rows may have been replaced, none is half written.
pub fn step<R: Real>(
    graph: &Graph,
    loaded: &Loaded<R>,
    bind: &Bindings,
    inputs: &StepInputs,
    states: &mut States<R>,
) -> Result<Outputs<R>, ReferenceError> {
    if loaded.values.len() != graph.nodes.len() {
        let (l, g) = (loaded.values.len(), graph.nodes.len());
        return Err(ReferenceError::Mismatch(format!("{l} nodes, the graph has {g}")));
    }
    let mut run =
        Run { graph, loaded, bind, values: vec![None; graph.nodes.len()], left: loaded.uses.clone() };
    let done = run.nodes(inputs, states);
    for s in &loaded.states {
        let last = s.versions.iter().rev().find_map(|v| run.values[v.index()].take());
        if let Some(value) = last {
            states.put(&s.name, value);
        }
    }
    let outputs = done?;
    Ok(Outputs::new(outputs))
}

struct Run<'a, R> {
    graph: &'a Graph,
    loaded: &'a Loaded<R>,
    bind: &'a Bindings,
    values: Vec<Option<Tensor<R>>>,
    left: Vec<u32>,
}

impl<R: Real> Run<'_, R> {
    fn nodes(
        &mut self,
        inputs: &StepInputs,
        states: &mut States<R>,
    ) -> Result<Vec<(String, Tensor<R>)>, ReferenceError> {
        for &id in &self.loaded.order {
            let at = |e| ReferenceError::at(self.graph, id, e);
            let node = self.graph.node(id);
            let value = match &node.op {
                Op::Input(input) => inputs.tensor(*input, self.bind)?,
                Op::State { name, ty } => states.take(name, &self.bind.shape(&ty.shape)).map_err(at)?,
                _ => {
                    if let Op::Scatter = node.op {
                        // Before the state is taken, so that an error loses nothing.
                        let parts = node.inputs.iter().map(|&i| self.peek(i));
                        let parts = parts.collect::<Result<Vec<_>, OpError>>().map_err(at)?;
                        if let [state, rows, index] = parts[..] {
                            index::check_scatter(state, rows, index).map_err(at)?;
                        }
                    }
                    let taken = node.inputs.iter().map(|&i| self.take(i)).collect::<Result<Vec<_>, _>>();
                    let at = |e| ReferenceError::at(self.graph, id, e);
                    let taken = taken.map_err(at)?;
                    eval(self.graph, id, taken, self.bind, self.loaded.precision).map_err(at)?
                }
            };
            self.values[id.index()] = Some(value);
        }
        let outputs = self.graph.outputs.iter().map(|o| match self.peek(o.value) {
            Ok(value) => Ok((o.name.clone(), value.clone())),
            Err(e) => Err(ReferenceError::at(self.graph, o.value, e)),
        });
        outputs.collect()
    }

    fn peek(&self, id: NodeId) -> Result<&Tensor<R>, OpError> {
        let computed = self.values[id.index()].as_ref();
        computed.or(self.loaded.values[id.index()].as_ref()).ok_or_else(|| missing(id))
    }

    /// A use of a value; the last one takes it.
    fn take(&mut self, id: NodeId) -> Result<Tensor<R>, OpError> {
        let left = &mut self.left[id.index()];
        *left = left.saturating_sub(1);
        if *left == 0
            && let Some(value) = self.values[id.index()].take()
        {
            return Ok(value);
        }
        self.peek(id).cloned()
    }
}

/// Evaluates an op on its inputs; the result is rounded to its stored type where the precision asks for it.
fn eval<R: Real>(
    graph: &Graph,
    id: NodeId,
    inputs: Vec<Tensor<R>>,
    bind: &Bindings,
    precision: Precision,
) -> Result<Tensor<R>, OpError> {
    let node = graph.node(id);
    let shape = || bind.shape(&node.ty.shape);
    let dtype = node.ty.dtype();
    let rounded = |x: Tensor<R>| elementwise::round(x, dtype, precision);
    let out = match (&node.op, inputs.as_slice()) {
        (Op::Constant { literal, .. }, []) => match literal {
            Literal::F32(v) => Tensor::real(R::from_f32s(v.clone()), shape()),
            Literal::I32(v) => Tensor::int(v.clone(), shape()),
        },
        (Op::Iota { axis, .. }, []) => iota(*axis, shape()),
        (Op::Decode, [x]) => Ok(x.clone()),
        (Op::Unary(op), [x]) => elementwise::unary(*op, x).map(rounded),
        (Op::Binary(op), [a, b]) => elementwise::binary(*op, a, b).map(rounded),
        (Op::Compare(op), [a, b]) => elementwise::compare(*op, a, b),
        (Op::Select, [c, a, b]) => elementwise::select(c, a, b),
        (Op::Cast(d), [x]) => elementwise::cast(x, *d).map(rounded),
        (Op::Reshape(_), [x]) => movement::reshape(x, shape()),
        (Op::Transpose(perm), [x]) => movement::transpose(x, perm),
        (Op::Broadcast(_), [x]) => movement::broadcast(x, shape()),
        (Op::Slice { axis, start, len }, [x]) => movement::slice(x, *axis, *start, *len),
        (Op::Concat { axis }, xs) => movement::concat(xs, *axis),
        (Op::Reduce(op), [x]) => reduce::reduce(*op, x).map(rounded),
        (Op::Softmax, [x]) => reduce::softmax(x).map(rounded),
        (Op::MatMul { transpose_b, .. }, [a, b]) => matmul::matmul(a, b, *transpose_b).map(rounded),
        (Op::TopK { k }, [x]) => routed::top_k(x, *k),
        (Op::RoutedMatMul { .. }, [a, b, picks]) => routed::routed_matmul(a, b, picks).map(rounded),
        (Op::Gather, [table, picks]) => index::gather(table, picks),
        (Op::Penalize, xs) => sample::penalize(xs),
        (Op::Sample, xs) => sample::sample(xs),
        (Op::Scatter, _) => {
            let [state, rows, picks] = <[Tensor<R>; 3]>::try_from(inputs)
                .map_err(|xs| OpError::Shape(format!("scatter takes 3 operands, got {}", xs.len())))?;
            index::scatter(state, &rows, &picks)
        }
        (Op::Input(_) | Op::Weight { .. } | Op::State { .. }, _) => {
            Err(OpError::Unsupported(format!("{} out of its place", node.op.name())))
        }
        (
            Op::Constant { .. }
            | Op::Iota { .. }
            | Op::Decode
            | Op::Unary(_)
            | Op::Binary(_)
            | Op::Compare(_)
            | Op::Select
            | Op::Cast(_)
            | Op::Reshape(_)
            | Op::Transpose(_)
            | Op::Broadcast(_)
            | Op::Slice { .. }
            | Op::Reduce(_)
            | Op::Softmax
            | Op::TopK { .. }
            | Op::MatMul { .. }
            | Op::RoutedMatMul { .. }
            | Op::Gather,
            xs,
        ) => Err(OpError::Shape(format!("{} does not take {} operands", node.op.name(), xs.len()))),
    }?;
    if out.shape() == shape() {
        Ok(out)
    } else {
        Err(OpError::Shape(format!("result {:?} is not the {:?} of its type", out.shape(), shape())))
    }
}

fn iota<R: Real>(axis: usize, shape: Vec<usize>) -> Result<Tensor<R>, OpError> {
    let Some(&extent) = shape.get(axis) else {
        return Err(OpError::Shape(format!("no axis {axis} in {shape:?}")));
    };
    let mut line = vec![1; shape.len()];
    line[axis] = extent;
    let counts = Tensor::new(Data::Int(Arc::new((0..extent as i32).collect())), line)?;
    movement::broadcast(&counts, shape)
}
