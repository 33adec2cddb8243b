//! Routers: the choice of experts and their weights, as steps on each row.
//!
//! Below level 2 a `top_k` is a work of one step. At level 2, all that leads from a router's logits to its
//! choices, and from these to the weights, is one work: each value is small and of one row (a token). The
//! product that makes the logits is a step of it too, in steps of few tokens and where its weight is small
//! enough for one block to read.

use super::emit::{Emitter, Made, coords, finish};
use super::inline::Inliner;
use super::{Rule, Stop, forms};
use std::collections::{BTreeSet, HashSet};
use weft_ir::dtype::DType;
use weft_ir::graph::{Graph, Op, ValueType};
use weft_ir::ids::NodeId;
use weft_ir::plan::{Compute, Scalar, Step, StepKind, Steps};
use weft_ir::scalar::{Binary, Reduce, Unary};
use weft_ir::shape::{Dim, Shape, Sym};

/// Most bytes of a router's weight that one block reads for each row.
const WEIGHT_BYTES: usize = 256 * 1024;

/// Longest row that the product keeps in shared memory.
const ROW: usize = 8192;

/// A router.
#[derive(Clone, Debug)]
pub struct RoutingSite {
    /// All nodes inside, in topological order.
    pub nodes: BTreeSet<NodeId>,
    /// Those that others use.
    pub outputs: Vec<NodeId>,
    /// The product that makes the logits, where it is inside.
    pub product: Option<NodeId>,
}

impl RoutingSite {
    /// A choice by itself.
    fn alone(choice: NodeId) -> RoutingSite {
        RoutingSite { nodes: BTreeSet::from([choice]), outputs: vec![choice], product: None }
    }
}

/// All routers, in order.
pub fn find(
    graph: &Graph,
    users: &[Vec<NodeId>],
    load: &[bool],
    kept: &HashSet<NodeId>,
    few_rows: bool,
) -> Vec<RoutingSite> {
    let finder = Finder { graph, users, load, kept, few_rows };
    let mut sites: Vec<RoutingSite> = Vec::new();
    // From the last choice: those before it (of groups) belong to it.
    for id in graph.ids().rev() {
        let choice = matches!(graph.node(id).op, Op::TopK { .. });
        if choice && !sites.iter().any(|s| s.nodes.contains(&id)) {
            sites.push(finder.site(id));
        }
    }
    sites.reverse();
    sites
}

struct Finder<'a> {
    graph: &'a Graph,
    users: &'a [Vec<NodeId>],
    load: &'a [bool],
    kept: &'a HashSet<NodeId>,
    few_rows: bool,
}

impl Finder<'_> {
    /// The router around its last choice.
    fn site(&self, choice: NodeId) -> RoutingSite {
        let graph = self.graph;
        let elements = |id: NodeId| small_row(graph.ty(id)).unwrap_or(usize::MAX);
        let experts = graph.ty(graph.node(choice).inputs[0]).shape.last().and_then(|d| d.as_const());
        let limit = experts
            .unwrap_or(0)
            .saturating_mul(graph.ty(choice).shape.last().and_then(|d| d.as_const()).unwrap_or(1));
        let inside = |id: NodeId| {
            !self.load[id.index()]
                && !self.kept.contains(&id)
                && row_local(&graph.node(id).op)
                && elements(id) <= limit
        };
        let mut nodes = BTreeSet::from([choice]);
        let mut product = None;
        let mut todo = vec![choice];
        while let Some(id) = todo.pop() {
            for &x in &graph.node(id).inputs {
                if inside(x) && nodes.insert(x) {
                    todo.push(x);
                }
                if self.is_own_product(x, experts.unwrap_or(0)) {
                    product = Some(x);
                }
            }
        }
        // Movement of what comes from elsewhere stays there: it may be another work's epilogue.
        for id in nodes.clone() {
            let node = graph.node(id);
            let mine = |x: &NodeId| nodes.contains(x) || product == Some(*x);
            if is_movement(&node.op) && !node.inputs.iter().any(mine) {
                nodes.remove(&id);
            }
        }
        if let Some(p) = product {
            let private = !self.kept.contains(&p) && self.users[p.index()].iter().all(|u| nodes.contains(u));
            if private {
                nodes.insert(p);
            } else {
                product = None;
            }
        }
        let mut below = nodes.clone();
        let first = nodes.first().map_or(0, |n| n.index());
        // What is inside has its users within these bounds.
        let bound = |id: NodeId| self.users[id.index()].iter().map(|u| u.index() + 1).max().unwrap_or(0);
        let mut end = nodes.iter().map(|n| bound(*n)).max().unwrap_or(0);
        let mut at = first;
        while at < end {
            let id = NodeId::new(at);
            at += 1;
            let inputs = &graph.node(id).inputs;
            if !inputs.iter().any(|x| below.contains(x)) {
                continue;
            }
            let late = inputs.iter().any(|x| below.contains(x) && !nodes.contains(x));
            if nodes.contains(&id) && late {
                // What is inside would wait for what is outside and waits for it.
                return RoutingSite::alone(choice);
            }
            below.insert(id);
            if !late && inside(id) {
                nodes.insert(id);
                end = end.max(bound(id));
            }
        }
        loop {
            let used = |id: &NodeId| {
                let users = &self.users[id.index()];
                self.kept.contains(id) || users.iter().any(|u| !nodes.contains(u))
            };
            let outputs: Vec<NodeId> = nodes.iter().copied().filter(used).collect();
            // What others read is stored; a comparison is made again where they do.
            let Some(id) = outputs.iter().copied().find(|o| stored(graph.ty(*o).dtype()).is_none()) else {
                return RoutingSite { nodes, outputs, product };
            };
            if self.users[id.index()].iter().any(|u| nodes.contains(u)) {
                return RoutingSite::alone(choice);
            }
            nodes.remove(&id);
        }
    }

    /// Whether a value is a product of logits that the router's work makes itself.
    fn is_own_product(&self, id: NodeId, experts: usize) -> bool {
        if !self.few_rows || !forms::is_linear(self.graph, self.load, id) {
            return false;
        }
        let weight = self.graph.ty(self.graph.node(id).inputs[1]);
        let elements: Option<usize> = weight.shape.iter().map(|d| d.as_const()).product();
        let columns = weight.shape.first().and_then(|d| d.as_const());
        let short = weight.shape.get(1).and_then(|d| d.as_const()).is_some_and(|k| k <= ROW);
        short
            && columns.is_some_and(|n| n <= experts)
            && elements.is_some_and(|n| n * weight.dtype().size() <= WEIGHT_BYTES)
    }
}

/// Type of a router's value of this type in memory; `None` for those that are not stored.
fn stored(dtype: DType) -> Option<DType> {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => Some(DType::F32),
        DType::I32 => Some(DType::I32),
        DType::I64 | DType::U32 | DType::Bool => None,
    }
}

/// Elements of a row of a value of the step's tokens.
fn small_row(ty: &ValueType) -> Option<usize> {
    let (first, rest) = ty.shape.split_first()?;
    let tokens = *first == Dim::Sym(Sym::Tokens) && !rest.is_empty();
    rest.iter().map(|d| d.as_const()).product::<Option<usize>>().filter(|_| tokens)
}

/// Ops whose result's row depends on one row of each operand.
fn row_local(op: &Op) -> bool {
    match op {
        Op::Unary(_)
        | Op::Binary(_)
        | Op::Compare(_)
        | Op::Select
        | Op::Cast(_)
        | Op::Reshape(_)
        | Op::Broadcast(_)
        | Op::Slice { .. }
        | Op::Concat { .. }
        | Op::Reduce(_)
        | Op::Softmax
        | Op::TopK { .. } => true,
        Op::Transpose(perm) => perm.first() == Some(&0),
        Op::Input(_)
        | Op::Weight { .. }
        | Op::Constant { .. }
        | Op::Iota { .. }
        | Op::State { .. }
        | Op::Decode
        | Op::MatMul { .. }
        | Op::RoutedMatMul { .. }
        | Op::Gather
        | Op::Scatter
        | Op::Penalize
        | Op::Sample => false,
    }
}

fn is_movement(op: &Op) -> bool {
    matches!(op, Op::Slice { .. } | Op::Reshape(_) | Op::Cast(_) | Op::Transpose(_) | Op::Broadcast(_))
}

impl Emitter<'_> {
    /// A choice by itself.
    pub(super) fn top_k(&mut self, id: NodeId) -> Result<Made, Stop> {
        self.routing(&RoutingSite::alone(id))
    }

    /// The work of a router.
    pub(super) fn routing(&mut self, site: &RoutingSite) -> Result<Made, Stop> {
        let (graph, forms) = (self.graph, self.forms);
        let writes = site.outputs.iter().map(|&o| self.write(o)).collect::<Result<Vec<_>, Stop>>()?;
        let scope = site.nodes.iter().rev().find(|n| matches!(graph.node(**n).op, Op::TopK { .. }));
        let scope = scope.map(|n| graph.node(*n).scope.clone()).unwrap_or_default();
        let rows = site.nodes.first().map(|n| graph.ty(*n).shape[0]);
        let rows = rows.ok_or_else(|| Stop::Fault("a router without nodes".into()))?;
        let mut made = Maker { inl: self.inliner(vec![rows]), rows, steps: Vec::new() };
        for &id in &site.nodes {
            let node = graph.node(id);
            let output = site.outputs.iter().position(|o| *o == id).map(|o| o as u8);
            let shape = row_shape(graph, id)?;
            match &node.op {
                Op::MatMul { .. } => {
                    let left = node.inputs[0];
                    if !forms.of[left.index()].is_buffer() && forms::has_reduction(graph, forms, left) {
                        return Err(Stop::Materialise(left));
                    }
                    made.product(id, shape, output)?;
                }
                Op::TopK { .. } => made.top_k(id, shape, output)?,
                Op::Reduce(op) => made.reduce(id, *op, shape, output)?,
                Op::Softmax => made.softmax(id, shape, output)?,
                // Other ops are computed where they are used, unless they are results.
                _ if output.is_some() => made.map(id, shape, output)?,
                _ => {}
            }
        }
        let Maker { mut inl, steps, .. } = made;
        inl.ops.sort_unstable();
        inl.ops.dedup();
        let (reads, ops) = finish(inl);
        let rules = if site.nodes.len() > 1 { vec![Rule::FusedRouter] } else { vec![] };
        Ok(Made { compute: Compute::Steps(Steps { rows, steps }), reads, writes, ops, rules, scope })
    }
}

/// Extents of a value's row.
fn row_shape(graph: &Graph, id: NodeId) -> Result<Vec<usize>, Stop> {
    let node = graph.node(id);
    let rest = node.ty.shape.iter().skip(1).map(|d| d.as_const()).collect::<Option<Vec<usize>>>();
    rest.filter(|r| !r.is_empty()).ok_or_else(|| {
        Stop::Fault(format!("{id} = {} ({}): rows of unknown size", node.op.name(), node.scope))
    })
}

/// Makes steps, one after the other.
struct Maker<'a> {
    inl: Inliner<'a>,
    rows: Dim,
    steps: Vec<Step>,
}

impl Maker<'_> {
    /// Coordinates of a step of this shape, with further extents.
    fn coords(&mut self, shape: &[usize], more: &[usize]) -> Vec<Scalar> {
        let constant = shape.iter().chain(more).map(|&n| Dim::Const(n));
        let domain: Shape = std::iter::once(self.rows).chain(constant).collect();
        let at = coords(domain.len());
        self.inl.domain = domain;
        at
    }

    fn push(&mut self, id: Option<NodeId>, step: Step) -> Result<u8, Stop> {
        let number = u8::try_from(self.steps.len());
        let number = number.map_err(|_| Stop::Fault("a router of more than 256 steps".into()))?;
        self.steps.push(step);
        if let Some(id) = id {
            self.inl.ops.push(id);
            self.inl.locals.insert(id, number);
        }
        Ok(number)
    }

    fn map(&mut self, id: NodeId, shape: Vec<usize>, output: Option<u8>) -> Result<(), Stop> {
        let dtype = self.inl.graph.ty(id).dtype();
        let dtype =
            stored(dtype).ok_or_else(|| Stop::Fault(format!("{id}: a router does not store {dtype}")))?;
        let at = self.coords(&shape, &[]);
        let value = self.inl.define(id, &at)?;
        self.push(Some(id), Step { shape, dtype, kind: StepKind::Map(value), output })?;
        Ok(())
    }

    fn product(&mut self, id: NodeId, shape: Vec<usize>, output: Option<u8>) -> Result<(), Stop> {
        let (left, right) = (self.inl.graph.node(id).inputs[0], self.inl.graph.node(id).inputs[1]);
        let k = row_shape(self.inl.graph, left)?.iter().product();
        let at = self.coords(&[k], &[]);
        let a = self.inl.value(left, &at)?;
        let b = self.inl.operand(right)?;
        let kind = StepKind::Product { k, a, b };
        self.push(Some(id), Step { shape, dtype: DType::F32, kind, output })?;
        Ok(())
    }

    fn top_k(&mut self, id: NodeId, shape: Vec<usize>, output: Option<u8>) -> Result<(), Stop> {
        let input = self.inl.graph.node(id).inputs[0];
        let over = row_shape(self.inl.graph, input)?;
        let at = self.coords(&over, &[]);
        let value = self.inl.value(input, &at)?;
        let kind = StepKind::TopK { extent: over.last().copied().unwrap_or(1), value };
        self.push(Some(id), Step { shape, dtype: DType::I32, kind, output })?;
        Ok(())
    }

    /// Coordinates of the reduced values of a step of this shape, whose last extent is 1.
    fn along(&mut self, shape: &[usize], extent: usize) -> Vec<Scalar> {
        let mut at = self.coords(shape, &[extent]);
        if let Some(position) = at.pop()
            && let Some(last) = at.last_mut()
        {
            *last = position;
        }
        at
    }

    fn reduce(&mut self, id: NodeId, op: Reduce, shape: Vec<usize>, output: Option<u8>) -> Result<(), Stop> {
        let input = self.inl.graph.node(id).inputs[0];
        let extent = row_shape(self.inl.graph, input)?.last().copied().unwrap_or(1);
        let at = self.along(&shape, extent);
        let value = self.inl.value(input, &at)?;
        let kind = StepKind::Reduce { op, extent, value };
        self.push(Some(id), Step { shape, dtype: DType::F32, kind, output })?;
        Ok(())
    }

    fn softmax(&mut self, id: NodeId, shape: Vec<usize>, output: Option<u8>) -> Result<(), Stop> {
        let input = self.inl.graph.node(id).inputs[0];
        let extent = shape.last().copied().unwrap_or(1);
        let mut one = shape.clone();
        if let Some(last) = one.last_mut() {
            *last = 1;
        }
        let at = self.along(&one, extent);
        let value = self.inl.value(input, &at)?;
        let step =
            |kind, shape: &[usize]| Step { shape: shape.to_vec(), dtype: DType::F32, kind, output: None };
        let of_row = |step: u8, at: &[Scalar]| {
            let mut at = at[1..].to_vec();
            if let Some(last) = at.last_mut() {
                *last = Scalar::Int(0);
            }
            Scalar::Local(step, at)
        };
        // Where all is −∞ the result is 0: a finite maximum and, as any other row has one e⁰, a sum of 1.
        let shifted = |x: Scalar, max: Scalar| {
            let max = Scalar::binary(Binary::Max, max, Scalar::Float(f32::MIN));
            Scalar::unary(Unary::Exp, Scalar::binary(Binary::Sub, x, max))
        };
        let max =
            self.push(None, step(StepKind::Reduce { op: Reduce::Max, extent, value: value.clone() }, &one))?;
        let value = shifted(value, of_row(max, &at));
        let sum = self.push(None, step(StepKind::Reduce { op: Reduce::Sum, extent, value }, &one))?;
        let at = self.coords(&shape, &[]);
        let x = self.inl.value(input, &at)?;
        let total = Scalar::binary(Binary::Max, of_row(sum, &at), Scalar::Float(1.0));
        let value = Scalar::binary(Binary::Div, shifted(x, of_row(max, &at)), total);
        let kind = StepKind::Map(value);
        self.push(Some(id), Step { shape, dtype: DType::F32, kind, output })?;
        Ok(())
    }
}
