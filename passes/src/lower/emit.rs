//! One work for each computed buffer, in topological order; equal works are shared.

use super::attention::AttentionSite;
use super::buffers::Buffers;
use super::forms::{Form, Forms};
use super::inline::Inliner;
use super::{Lowered, Stop, index, order};
use std::collections::HashMap;
use weft_ir::graph::{Graph, Input, Op};
use weft_ir::ids::{BufferId, NodeId, OperandId};
use weft_ir::plan::{
    Attention, BufferKind, Compute, Dispatch, Loop, Operand, Penalize, Sample, Scalar, Stage, Store, Work,
};
use weft_ir::scalar::{Binary, Compare, Reduce};
use weft_ir::shape::{Dim, Shape, Sym};

/// Lowers all roots of a graph: adds its dispatches as a body; works and buffers are shared with the bodies
/// already there. Returns the nodes that each dispatch computes.
pub(super) fn emit(graph: &Graph, forms: &Forms, lowered: &mut Lowered) -> Result<Vec<Vec<NodeId>>, Stop> {
    let out = std::mem::take(lowered);
    let known = out.works.iter().enumerate().map(|(i, w)| (key(&w.compute, &w.reads, &w.writes), i as u32));
    let known = known.collect();
    let mut buffers = Buffers::default();
    buffers.list = out.buffers;
    let mut e = Emitter {
        graph,
        forms,
        buffers,
        works: out.works,
        dispatches: Vec::new(),
        ops: Vec::new(),
        known,
        grouped: HashMap::new(),
    };
    for id in graph.ids().filter(|id| forms.of[id.index()] == Form::Root) {
        // An epilogue with several results is emitted once, at the last of them.
        let region = forms.product_of.get(&id).and_then(|p| forms.regions.get(p));
        let routing = forms.routing_of(id);
        if region.is_some_and(|r| r.outputs.last() != Some(&id))
            || routing.is_some_and(|r| r.outputs.last() != Some(&id))
        {
            continue;
        }
        let made = e.root(id)?;
        e.add(id, made);
    }
    for root in graph.roots() {
        if forms.of[root.index()] != Form::Root {
            let why = format!("output {root} ({}) is not computed by the step", graph.node(root).scope);
            return Err(Stop::Fault(why));
        }
    }
    let mut bodies = out.bodies;
    let order = order::sort(graph, &e.buffers.list, &e.dispatches, &e.ops)?;
    bodies.push(order.iter().map(|&i| e.dispatches[i].clone()).collect());
    let ops = order.iter().map(|&i| e.ops[i].clone()).collect();
    *lowered = Lowered { buffers: e.buffers.list, works: e.works, bodies };
    Ok(ops)
}

/// What makes two works equal.
fn key(compute: &Compute, reads: &[Operand], writes: &[Operand]) -> String {
    format!("{compute:?} {reads:?} {writes:?}")
}

/// A work before it has a name.
pub(super) struct Made {
    pub compute: Compute,
    pub reads: Vec<(Operand, BufferId)>,
    pub writes: Vec<(Operand, BufferId)>,
    pub ops: Vec<NodeId>,
    pub rules: Vec<&'static str>,
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
    /// Works by their content.
    known: HashMap<String, u32>,
}

pub(super) fn coords(n: usize) -> Vec<Scalar> {
    (0..n).map(|i| Scalar::Coord(i as u8)).collect()
}

impl Emitter<'_> {
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
            rules.push("pointwise-group");
            if !stages.is_empty() {
                rules.push("row-reduction");
            }
        }
        let compute = Compute::Loop(Loop { domain, reduced, stages, element_stores, row_stores });
        Ok(Made { compute, reads, writes: vec![write], ops, rules, scope: self.graph.node(id).scope.clone() })
    }

    /// Whether several ops were put together (a literal operand is not one).
    fn is_group(&self, ops: &[NodeId]) -> bool {
        ops.iter().filter(|&&n| !matches!(self.graph.node(n).op, Op::Constant { .. })).count() > 1
    }

    /// A reduction among the ops computed in place for `id`: its extent and node.
    fn reduction_below(&self, id: NodeId) -> Option<(Dim, NodeId)> {
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

    /// A state write: computed rows stored at the slots of their tokens.
    fn scatter(&mut self, id: NodeId) -> Result<Made, Stop> {
        let node = self.graph.node(id);
        let (rows, shape) = (node.inputs[1], self.graph.ty(node.inputs[1]).shape.clone());
        let inline = self.forms.of[rows.index()] == Form::Inline;
        let extent = if inline { self.reduction_below(rows) } else { None };
        let write = self.write(id)?;
        // The domain, the reduced extent, and whether parts of the rows are stored each by itself.
        let (domain, reduced, apart) = match (extent, shape.split_last()) {
            (Some((extent, _)), Some((last, rows))) if *last == extent => {
                (rows.to_vec(), Some(extent), false)
            }
            (Some((extent, below)), _) => match self.rows_of(&shape, below) {
                Some(domain) => (domain, Some(extent), false),
                None => {
                    let domain = self.rows_of_parts(rows, extent, below).ok_or(Stop::Materialise(below))?;
                    (domain, Some(extent), true)
                }
            },
            (None, _) => (shape.clone(), None, false),
        };
        let points = domain.len();
        // Axes of one element may be left out of the domain.
        let mut next = 0u8;
        let mut at: Vec<Scalar> = shape.iter().map(|d| place(*d, &domain, &mut next)).collect();
        let mut inl = self.inliner(domain.iter().copied().chain(reduced).collect());
        inl.rows = points;
        inl.reduced = reduced;
        inl.ops.push(id);
        if !apart {
            at = in_row(&domain, reduced, &shape);
        } else if let Some(last) = at.last_mut() {
            *last = Scalar::Coord(points as u8);
        }
        let slot = inl.value(node.inputs[2], &at[..1])?;
        let mut element_stores = match apart {
            true => parts(&mut inl, rows, &at)?,
            false => vec![Store { output: 0, index: at.clone(), value: inl.value(rows, &at)?, guard: None }],
        };
        for s in &mut element_stores {
            let used = Scalar::Compare(Compare::Le, Box::new(Scalar::Int(0)), Box::new(slot.clone()));
            s.guard = Some(match s.guard.take() {
                Some(inside) => Scalar::binary(Binary::And, used, inside),
                None => used,
            });
            s.index[0] = slot.clone();
        }
        let stages = std::mem::take(&mut inl.stages);
        let (reads, ops) = finish(inl);
        let mut rules = if self.is_group(&ops) { vec!["pointwise-group"] } else { vec![] };
        if !stages.is_empty() {
            rules.push("row-reduction");
        }
        let compute = Compute::Loop(Loop { domain, reduced, stages, element_stores, row_stores: vec![] });
        Ok(Made { compute, reads, writes: vec![write], ops, rules, scope: node.scope.clone() })
    }

    fn penalize(&mut self, id: NodeId) -> Result<Made, Stop> {
        let names = ["logits", "history", "base", "position", "prompt", "repetition", "presence"];
        self.row_of_logits(id, names, |rows, vocab| Compute::Penalize(Penalize { rows, vocab }))
    }

    /// The rows of the reduction `below`, where a value of this shape has the elements of each of them, on several axes.
    fn rows_of(&self, shape: &[Dim], below: NodeId) -> Option<Shape> {
        let (extent, rows) = self.graph.ty(self.graph.node(below).inputs[0]).shape.split_last()?;
        let inner = shape.strip_prefix(rows)?;
        let elements: Option<usize> = inner.iter().map(|d| d.as_const()).product();
        (elements == extent.as_const()).then(|| rows.to_vec())
    }

    /// The rows of a loop along `extent` that stores a concatenation part by part: those of the reduction `below`,
    /// where the rows are the same but for axes of one element.
    fn rows_of_parts(&self, rows: NodeId, extent: Dim, below: NodeId) -> Option<Shape> {
        let node = self.graph.node(rows);
        let longest = extent.as_const()?;
        let last = node.ty.shape.len().checked_sub(1)?;
        let fits = |x: &NodeId| {
            let n = self.graph.ty(*x).shape.get(last).and_then(|d| d.as_const());
            n.is_some_and(|n| n <= longest)
        };
        let parted = matches!(node.op, Op::Concat { axis } if axis == last) && node.inputs.iter().all(fits);
        let (_, domain) = self.graph.ty(self.graph.node(below).inputs[0]).shape.split_last()?;
        let whole =
            |shape: &[Dim]| -> Shape { shape.iter().copied().filter(|d| *d != Dim::Const(1)).collect() };
        let same = domain.iter().all(|d| *d != Dim::Const(1)) && whole(&node.ty.shape[..last]) == domain;
        (parted && same).then(|| domain.to_vec())
    }

    fn sample(&mut self, id: NodeId) -> Result<Made, Stop> {
        let names = ["logits", "position", "temperature", "top_k", "top_p", "min_p", "seed"];
        self.row_of_logits(id, names, |rows, vocab| Compute::Sample(Sample { rows, vocab }))
    }

    /// The work of an op on whole rows of logits, its first input.
    fn row_of_logits(
        &mut self,
        id: NodeId,
        names: [&str; 7],
        compute: impl FnOnce(Dim, usize) -> Compute,
    ) -> Result<Made, Stop> {
        let node = self.graph.node(id);
        let op = node.op.name();
        let write = self.write(id)?;
        let vocab = self.graph.ty(node.inputs[0]).shape.get(1).and_then(|d| d.as_const());
        let vocab = vocab.ok_or_else(|| Stop::Fault(format!("{id}: {op} needs a known vocabulary")))?;
        let mut inl = self.inliner(node.ty.shape.clone());
        for &x in &node.inputs {
            inl.operand(x)?;
        }
        inl.ops.push(id);
        let (mut reads, ops) = finish(inl);
        if reads.len() != node.inputs.len() {
            return Err(Stop::Fault(format!("{id}: {op} reads a value twice")));
        }
        reads.iter_mut().zip(names).for_each(|((o, _), name)| o.name = name.into());
        let compute = compute(Dim::Sym(Sym::Rows), vocab);
        Ok(Made { compute, reads, writes: vec![write], ops, rules: vec![], scope: op.into() })
    }

    fn attention(&mut self, site: &AttentionSite) -> Result<Made, Stop> {
        let shape = self.graph.ty(site.out).shape.clone();
        let known = |d: Dim| d.as_const().ok_or_else(|| Stop::Fault(format!("{}: symbolic head", site.out)));
        // Heads are counted over both axes; the keys say how many of them share one.
        let (heads, inner, value_dim) =
            (known(shape[1])? * known(shape[2])?, known(shape[2])?, known(shape[3])?);
        let keys = &self.graph.ty(site.keys).shape;
        let (kv_heads, head_dim) = (known(keys[1])?, known(keys[2])?);
        let group = heads / kv_heads.max(1);
        let write = self.write(site.out)?;
        let (context, decode) = (Dim::Sym(Sym::Context), self.forms.decode);
        let mut inl = self.inliner(vec![shape[0], Dim::Const(heads), context]);
        let queries = vec![shape[0], Dim::Const(heads), Dim::Const(head_dim)];
        let q = inl.operand_as(site.q, queries)?;
        let (keys, values) = (inl.operand(site.keys)?, inl.operand(site.values)?);
        inl.ops.extend(site.covered.iter().copied());
        inl.ops.push(site.out);
        let head = |domain: &Shape| index::div_rem(&Scalar::Coord(1), inner as i64, domain);
        let (outer, rest) = head(&inl.domain);
        let at = vec![Scalar::Coord(0), outer, rest, Scalar::Coord(2)];
        inl.known.insert(site.scores, (at.clone(), Scalar::Acc(0)));
        let masked = inl.value(site.masked, &at)?;
        let sink = site.sink.map(|s| {
            let mut at = at.clone();
            at[3] = Scalar::Int(0);
            inl.value(s, &at)
        });
        let sink = sink.transpose()?;
        let kinds: Vec<_> = inl.reads.iter().map(|b| inl.buffers.list[b.index()].kind.clone()).collect();
        let (length, score) = causal(masked, &kinds);
        // A decode step has one token a sequence.
        let is_state = |o: OperandId| matches!(kinds.get(o.index()), Some(BufferKind::State(_)));
        let grows = matches!(&length, Scalar::Binary(Binary::Add, ..));
        let settled = decode && is_state(keys) && is_state(values) && grows;
        inl.domain = vec![shape[0], context];
        let slot = inside(inl.value(site.index, &coords(2))?, &length);
        inl.ops.sort_unstable();
        inl.ops.dedup();
        // The epilogue's coordinates are (t, head, element).
        let (outer, rest) = head(&vec![shape[0], Dim::Const(heads), Dim::Const(value_dim)]);
        let out = vec![Scalar::Coord(0), outer, rest, Scalar::Coord(2)];
        let stores = vec![Store { output: 0, index: out, value: Scalar::Acc(0), guard: None }];
        let (mut reads, ops) = finish(inl);
        for (operand, name) in [(q, "q"), (keys, "keys"), (values, "values")] {
            if let Some((o, _)) = reads.get_mut(operand.index()).filter(|(o, _)| o.name == "x") {
                o.name = name.into();
            }
        }
        let compute = Compute::Attention(Attention {
            settled,
            tokens: shape[0],
            kv_heads,
            group,
            head_dim,
            value_dim,
            q,
            keys,
            values,
            slot,
            length,
            score,
            sink,
            stores,
        });
        let scope = self.graph.node(site.out).scope.clone();
        Ok(Made { compute, reads, writes: vec![write], ops, rules: vec!["attention"], scope })
    }

    /// Adds a work (or finds its equal) and its dispatch.
    pub(super) fn add(&mut self, root: NodeId, mut made: Made) {
        made.ops.sort_unstable();
        made.ops.dedup();
        let ops: Vec<String> = made.ops.iter().map(|&n| self.graph.node(n).op.name().to_string()).collect();
        let (reads, read_buffers): (Vec<_>, Vec<_>) = made.reads.into_iter().unzip();
        let (writes, write_buffers): (Vec<_>, Vec<_>) = made.writes.into_iter().unzip();
        let key = key(&made.compute, &reads, &writes);
        let work = match self.known.get(&key) {
            Some(&w) => w,
            None => {
                let name = self.unique_name(&made.scope, root, &ops);
                let rules = made.rules.iter().map(|r| r.to_string()).collect();
                let work = Work { name, compute: made.compute, reads, writes, in_place: vec![], ops, rules };
                self.works.push(work);
                let w = (self.works.len() - 1) as u32;
                self.known.insert(key, w);
                w
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
fn in_row(domain: &Shape, reduced: Option<Dim>, shape: &Shape) -> Vec<Scalar> {
    let own: Shape = domain.iter().copied().chain(reduced).collect();
    match own.len() == shape.len() {
        true => coords(shape.len()),
        false => index::reshape(&coords(own.len()), &own, shape, &own),
    }
}

/// Coordinate of an axis: the domain's next, or 0 where the axis has one element.
fn place(d: Dim, domain: &Shape, next: &mut u8) -> Scalar {
    if d == Dim::Const(1) || usize::from(*next) >= domain.len() {
        return Scalar::Int(0);
    }
    *next += 1;
    Scalar::Coord(*next - 1)
}

/// Stores of a concatenation along the last axis, part by part: at the coordinates of a part that begins at 0, where
/// the part has such an element. The last coordinate runs over the longest part.
pub(super) fn parts(inl: &mut Inliner<'_>, id: NodeId, at: &[Scalar]) -> Result<Vec<Store>, Stop> {
    let (graph, last) = (inl.graph, at.len().saturating_sub(1));
    let node = graph.node(id);
    let length = |x: &NodeId| graph.ty(*x).shape.get(last).and_then(|d| d.as_const()).unwrap_or(0) as i64;
    let longest = node.inputs.iter().map(length).max().unwrap_or(0);
    inl.ops.push(id);
    let (mut stores, mut start) = (Vec::new(), 0);
    for x in &node.inputs {
        let n = length(x);
        let mut index = at.to_vec();
        index[last] = index::add(at[last].clone(), Scalar::Int(start));
        let inside = || Scalar::Compare(Compare::Lt, Box::new(at[last].clone()), Box::new(Scalar::Int(n)));
        let guard = (n < longest).then(inside);
        stores.push(Store { output: 0, index, value: inl.value(*x, at)?, guard });
        start += n;
    }
    Ok(stores)
}

pub(super) fn finish(inl: Inliner<'_>) -> (Vec<(Operand, BufferId)>, Vec<NodeId>) {
    (inl.operands.into_iter().zip(inl.reads).collect(), inl.ops)
}

/// Splits `select(j <= p, x, −∞)` for positions p, which are in the context, into the number of keys p + 1
/// and the score x, and `select(j < n, x, −∞)` for lengths n of the tokens' sequences into n and x; other
/// masks stay in the score and all keys of the context are visited.
fn causal(masked: Scalar, reads: &[BufferKind]) -> (Scalar, Scalar) {
    if let Scalar::Select(c, x, hidden) = &masked
        && let Scalar::Compare(op, j, p) = c.as_ref()
        && **j == Scalar::Coord(2)
        && **hidden == Scalar::Float(f32::NEG_INFINITY)
        && let Scalar::Load(o, at) = p.as_ref()
    {
        let is = |o: &OperandId, input| reads.get(o.index()) == Some(&BufferKind::Input(input));
        let token = [Scalar::Coord(0)];
        match (op, &at[..]) {
            (Compare::Le, at) if is(o, Input::Positions) && *at == token => {
                return (index::add((**p).clone(), Scalar::Int(1)), (**x).clone());
            }
            (Compare::Lt, [Scalar::Load(s, at)])
                if is(o, Input::Lengths) && is(s, Input::Sequences) && at[..] == token =>
            {
                return ((**p).clone(), (**x).clone());
            }
            _ => {}
        }
    }
    (Scalar::Dim(Sym::Context), masked)
}

/// A slot expression where key j (Coord 1) is below `length`: `min(j, length − 1)` is j.
fn inside(slot: Scalar, length: &Scalar) -> Scalar {
    let last = |e: &Scalar| match e {
        Scalar::Binary(Binary::Sub, a, b) => a.as_ref() == length && **b == Scalar::Int(1),
        _ => false,
    };
    if let Scalar::Binary(Binary::Min, a, b) = &slot
        && ((**a == Scalar::Coord(1) && last(b)) || (**b == Scalar::Coord(1) && last(a)))
    {
        return Scalar::Coord(1);
    }
    slot.map_children(&mut |part| inside(part.clone(), length))
}
