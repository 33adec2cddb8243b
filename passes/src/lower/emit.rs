//! One work for each computed buffer, in topological order; equal works are shared.

use super::buffers::Buffers;
use super::forms::{Form, Forms};
use super::inline::Inliner;
use super::{Lowered, Rule, Stop, index, order};
use std::collections::HashMap;
use weft_ir::graph::{Graph, Op};
use weft_ir::ids::{BufferId, NodeId};
use weft_ir::plan::{BufferKind, Compute, Dispatch, Loop, Operand, Scalar, Stage, Store, Work};
use weft_ir::scalar::{Binary, Reduce};
use weft_ir::shape::{Dim, Shape};

/// Lowers all roots of a graph: adds its dispatches as a body; works and buffers are shared with the bodies
/// already there. Returns the nodes that each dispatch computes. What stops it leaves all as it was.
pub(super) fn emit(graph: &Graph, forms: &Forms, lowered: &mut Lowered) -> Result<Vec<Vec<NodeId>>, Stop> {
    let out = std::mem::take(lowered);
    let (before, works) = (out.buffers.len(), out.works.len());
    let mut e = Emitter {
        graph,
        forms,
        buffers: Buffers::new(out.buffers),
        works: out.works,
        dispatches: Vec::new(),
        ops: Vec::new(),
        grouped: HashMap::new(),
    };
    let body = e.body();
    *lowered = Lowered { buffers: e.buffers.list, works: e.works, bodies: out.bodies };
    match body {
        Ok((dispatches, ops)) => {
            lowered.bodies.push(dispatches);
            Ok(ops)
        }
        Err(stop) => {
            lowered.buffers.truncate(before);
            lowered.works.truncate(works);
            Err(stop)
        }
    }
}

/// A work before it has a name.
pub(super) struct Made {
    pub compute: Compute,
    pub reads: Vec<(Operand, BufferId)>,
    pub writes: Vec<(Operand, BufferId)>,
    pub ops: Vec<NodeId>,
    pub rules: Vec<Rule>,
    pub scope: String,
}

pub(super) struct Emitter<'a> {
    pub graph: &'a Graph,
    pub forms: &'a Forms,
    pub(super) buffers: Buffers,
    /// For the index of routed products, where its pairs are in order.
    pub(super) grouped: HashMap<NodeId, [BufferId; 2]>,
    works: Vec<Work>,
    dispatches: Vec<Dispatch>,
    /// For each dispatch, the nodes it computes.
    ops: Vec<Vec<NodeId>>,
}

pub(super) fn coords(n: usize) -> Vec<Scalar> {
    (0..n).map(|i| Scalar::Coord(i as u8)).collect()
}

impl Emitter<'_> {
    /// The graph's dispatches in launch order, and the nodes of each.
    fn body(&mut self) -> Result<(Vec<Dispatch>, Vec<Vec<NodeId>>), Stop> {
        let (graph, forms) = (self.graph, self.forms);
        for id in graph.ids().filter(|id| forms.of[id.index()] == Form::Root) {
            // An epilogue with several results is emitted once, at the last of them.
            let region = forms.product_of.get(&id).and_then(|p| forms.regions.get(p));
            let routing = forms.routing_of(id);
            if region.is_some_and(|r| r.outputs.last() != Some(&id))
                || routing.is_some_and(|r| r.outputs.last() != Some(&id))
            {
                continue;
            }
            let made = self.root(id)?;
            self.add(id, made);
        }
        for root in graph.roots() {
            if forms.of[root.index()] != Form::Root {
                let why = format!("output {root} ({}) is not computed by the step", graph.node(root).scope);
                return Err(Stop::Fault(why));
            }
        }
        let order = order::sort(graph, &self.buffers.list, &self.dispatches, &self.ops)?;
        let dispatches = order.iter().map(|&i| self.dispatches[i].clone()).collect();
        Ok((dispatches, order.iter().map(|&i| self.ops[i].clone()).collect()))
    }

    fn root(&mut self, id: NodeId) -> Result<Made, Stop> {
        if let Some(site) = self.forms.attention.get(&id) {
            return self.attention(site);
        }
        if let Some(region) = self.forms.product_of.get(&id).and_then(|p| self.forms.regions.get(p)) {
            return self.linear(region);
        }
        if let Some(site) = self.forms.experts.get(&id) {
            return self.experts(site);
        }
        if let Some(site) = self.forms.routing_of(id) {
            return self.routing(site);
        }
        match &self.graph.node(id).op {
            Op::MatMul { .. } => self.matmul_loop(id),
            Op::TopK { .. } => self.top_k(id),
            Op::RoutedMatMul { .. } => self.routed_loop(id),
            Op::Scatter => self.scatter(id),
            Op::Penalize => self.penalize(id),
            Op::Sample => self.sample(id),
            Op::Input(_) | Op::Weight { .. } | Op::State { .. } | Op::Decode => {
                Err(Stop::Fault(format!("{id} is not computed by the step")))
            }
            Op::Constant { .. }
            | Op::Iota { .. }
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
            | Op::Gather => self.pointwise(id),
        }
    }

    pub fn inliner(&mut self, domain: Shape) -> Inliner<'_> {
        Inliner::new(self.graph, self.forms, &mut self.buffers, domain)
    }

    /// Where the result of a root goes: operand, buffer.
    pub fn write(&mut self, id: NodeId) -> Result<(Operand, BufferId), Stop> {
        let buffer = self.buffers.of(self.graph, self.forms, id)?;
        let ty = self.graph.ty(id);
        let name = match self.buffers.list[buffer.index()].kind {
            BufferKind::Temp => "out".into(),
            _ => self.buffers.operand_name(buffer),
        };
        let operand = Operand { name, dtype: ty.dtype(), shape: ty.shape.clone(), constant: false };
        Ok((operand, buffer))
    }

    /// Elementwise ops, movement, reductions.
    fn pointwise(&mut self, id: NodeId) -> Result<Made, Stop> {
        let shape = self.graph.ty(id).shape.clone();
        let extent = self.reduction_below(id);
        let write = self.write(id)?;
        let (domain, reduced) = match (extent, shape.split_last()) {
            (Some((extent, _)), Some((last, rows))) if *last == extent || *last == Dim::Const(1) => {
                (rows.to_vec(), Some(extent))
            }
            (Some((extent, node)), _) => {
                (self.rows_of(&shape, node).ok_or(Stop::Materialise(node))?, Some(extent))
            }
            (None, _) => (shape.clone(), None),
        };
        let rows = domain.len();
        let mut inl = self.inliner(domain.iter().copied().chain(reduced).collect());
        inl.rows = rows;
        inl.reduced = reduced;
        let one_a_row = reduced.is_some() && shape.last() == Some(&Dim::Const(1));
        let at = if one_a_row {
            coords(rows).into_iter().chain([Scalar::Int(0)]).collect()
        } else {
            in_row(&domain, reduced, &shape)
        };
        let value = inl.define(id, &at)?;
        let store = vec![Store { output: 0, index: at, value, guard: None }];
        let (row_stores, element_stores) = if one_a_row { (store, vec![]) } else { (vec![], store) };
        let stages = std::mem::take(&mut inl.stages);
        let (reads, ops) = finish(inl);
        let mut rules = Vec::new();
        if self.is_group(&ops) {
            rules.push(Rule::PointwiseGroup);
            if !stages.is_empty() {
                rules.push(Rule::RowReduction);
            }
        }
        let compute = Compute::Loop(Loop { domain, reduced, stages, element_stores, row_stores });
        Ok(Made { compute, reads, writes: vec![write], ops, rules, scope: self.graph.node(id).scope.clone() })
    }

    /// Whether several ops were put together (a literal operand is not one).
    pub(super) fn is_group(&self, ops: &[NodeId]) -> bool {
        ops.iter().filter(|&&n| !matches!(self.graph.node(n).op, Op::Constant { .. })).count() > 1
    }

    /// A reduction among the ops computed in place for `id`: its extent and node.
    pub(super) fn reduction_below(&self, id: NodeId) -> Option<(Dim, NodeId)> {
        let node = self.graph.node(id);
        if matches!(node.op, Op::Reduce(_) | Op::Softmax) {
            let extent = *self.graph.ty(node.inputs[0]).shape.last()?;
            return Some((extent, id));
        }
        let inline = |x: &&NodeId| self.forms.of[x.index()] == Form::Inline;
        node.inputs.iter().filter(inline).find_map(|&x| self.reduction_below(x))
    }

    /// A batched matrix product as a loop with a sum: no kernel family of its own.
    fn matmul_loop(&mut self, id: NodeId) -> Result<Made, Stop> {
        let node = self.graph.node(id);
        let (a, b) = (node.inputs[0], node.inputs[1]);
        let Op::MatMul { transpose_b, .. } = node.op else {
            return Err(Stop::Fault(format!("{id} is not a matmul")));
        };
        let domain = node.ty.shape.clone();
        let rank = domain.len();
        let k = self.graph.ty(a).shape[rank - 1];
        let write = self.write(id)?;
        let mut inl = self.inliner(domain.iter().copied().chain([k]).collect());
        inl.ops.push(id);
        let at = coords(rank);
        let batch = &at[..rank - 2];
        let (m, n, kk) = (&at[rank - 2], &at[rank - 1], Scalar::Coord(rank as u8));
        let a_at: Vec<Scalar> = batch.iter().cloned().chain([m.clone(), kk.clone()]).collect();
        let b_ends = if transpose_b { [n.clone(), kk] } else { [kk, n.clone()] };
        let b_at: Vec<Scalar> = batch.iter().cloned().chain(b_ends).collect();
        let (x, y) = (inl.value(a, &a_at)?, inl.value(b, &b_at)?);
        let stages = vec![Stage { op: Reduce::Sum, value: Scalar::binary(Binary::Mul, x, y) }];
        let row_stores = vec![Store { output: 0, index: at, value: Scalar::Reduced(0), guard: None }];
        let (reads, ops) = finish(inl);
        let compute =
            Compute::Loop(Loop { domain, reduced: Some(k), stages, element_stores: vec![], row_stores });
        Ok(Made { compute, reads, writes: vec![write], ops, rules: vec![], scope: node.scope.clone() })
    }

    /// The rows of the reduction `below`, where a value of this shape has the elements of each of them, on several axes.
    pub(super) fn rows_of(&self, shape: &[Dim], below: NodeId) -> Option<Shape> {
        let (extent, rows) = self.graph.ty(self.graph.node(below).inputs[0]).shape.split_last()?;
        let inner = shape.strip_prefix(rows)?;
        let elements: Option<usize> = inner.iter().map(|d| d.as_const()).product();
        (elements == extent.as_const()).then(|| rows.to_vec())
    }

    /// Adds a work (or finds its equal) and its dispatch.
    pub(super) fn add(&mut self, root: NodeId, mut made: Made) {
        made.ops.sort_unstable();
        made.ops.dedup();
        let (reads, read_buffers): (Vec<_>, Vec<_>) = made.reads.into_iter().unzip();
        let (writes, write_buffers): (Vec<_>, Vec<_>) = made.writes.into_iter().unzip();
        let same = |w: &Work| w.reads == reads && w.writes == writes && w.compute == made.compute;
        let work = match self.works.iter().position(same) {
            Some(w) => w as u32,
            None => {
                let ops: Vec<String> =
                    made.ops.iter().map(|&n| self.graph.node(n).op.name().to_string()).collect();
                let name = self.unique_name(&made.scope, root, &ops);
                let rules = made.rules.iter().map(|r| r.name().to_string()).collect();
                let work = Work { name, compute: made.compute, reads, writes, in_place: vec![], ops, rules };
                self.works.push(work);
                (self.works.len() - 1) as u32
            }
        };
        self.dispatches.push(Dispatch {
            work,
            reads: read_buffers,
            writes: write_buffers,
            scope: made.scope,
        });
        self.ops.push(made.ops);
    }

    /// Innermost part of the scope that is a word; a kernel of one op is named after the op.
    fn unique_name(&self, scope: &str, root: NodeId, ops: &[String]) -> String {
        let word = |p: &&str| !p.is_empty() && !p.starts_with(|c: char| c.is_ascii_digit());
        let part = scope.rsplit('.').find(word).unwrap_or(self.graph.node(root).op.name());
        let mut base: String =
            part.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        if let [op] = ops
            && op.as_str() != "matmul"
            && *op != base
        {
            base = format!("{base}_{op}");
        }
        let taken = |n: &str| self.works.iter().any(|w| w.name == n);
        let mut name = base.clone();
        let mut i = 1;
        while taken(&name) {
            i += 1;
            name = format!("{base}_{i}");
        }
        name
    }
}

/// Coordinates in a value of this shape: a loop's own, or, where it reduces, those of its rows and of the elements of
/// one, which may lie on several axes.
pub(super) fn in_row(domain: &Shape, reduced: Option<Dim>, shape: &Shape) -> Vec<Scalar> {
    let own: Shape = domain.iter().copied().chain(reduced).collect();
    match own.len() == shape.len() {
        true => coords(shape.len()),
        false => index::reshape(&coords(own.len()), &own, shape, &own),
    }
}

pub(super) fn finish(inl: Inliner<'_>) -> (Vec<(Operand, BufferId)>, Vec<NodeId>) {
    (inl.operands.into_iter().zip(inl.reads).collect(), inl.ops)
}
