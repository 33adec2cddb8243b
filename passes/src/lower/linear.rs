//! Works of linear layers: a product, what is computed before it, and its epilogue.

use super::draw::DrawChain;
use super::emit::{Emitter, Made, coords, finish};
use super::inline::Inliner;
use super::region::{Known, Origin, Region};
use super::row_region::RowChain;
use super::{Rule, Stop, forms};
use crate::schedule;
use weft_ir::graph::Op;
use weft_ir::ids::NodeId;
use weft_ir::plan::{Compute, Draw, DrawPenalties, MatMul, Operand, RowEpilogue, Scalar, Store};
use weft_ir::scalar::{Binary, Compare};
use weft_ir::shape::Dim;

impl Emitter<'_> {
    /// The work of a region.
    pub fn linear(&mut self, region: &Region) -> Result<Made, Stop> {
        let (graph, forms) = (self.graph, self.forms);
        let node = graph.node(region.product);
        let (left, right) = (node.inputs[0], node.inputs[1]);
        let (Dim::Const(columns), Dim::Const(k)) = (node.ty.shape[1], graph.ty(left).shape[1]) else {
            let why = format!("{} ({}): a linear layer has symbolic sizes", region.product, node.scope);
            return Err(Stop::Fault(why));
        };
        let (m, n) = (node.ty.shape[0], columns / region.group);
        let writes = region.outputs.iter().map(|&o| self.write(o)).collect::<Result<Vec<_>, Stop>>()?;
        // The left operand and the sums beside the product are over (m, k), the epilogue over (m, point).
        let over_k = vec![m, Dim::Const(k)];
        let mut inl = self.inliner(over_k);
        if forms.products.compute_left() {
            inl.rows = 1;
            inl.reduced = Some(Dim::Const(k));
            inl.beside_product = true;
        }
        let a = if forms.of[left.index()].is_buffer() {
            Scalar::Load(inl.operand(left)?, coords(2))
        } else {
            if !forms.norm_prologues && forms::has_reduction(graph, forms, left) {
                return Err(Stop::Materialise(left));
            }
            inl.value(left, &coords(2)).map_err(|stop| match stop {
                // Reductions over other rows than the product's.
                Stop::Materialise(_) => Stop::Materialise(left),
                Stop::Fault(_) => stop,
            })?
        };
        let b = inl.operand(right)?;
        inl.ops.push(region.product);
        inl.domain = vec![m, Dim::Const(n)];
        let mut stores = Vec::new();
        let mut writes_state = false;
        let row = region.row.as_ref().map(|chain| over_rows(&mut inl, region, chain, n)).transpose()?;
        let stored = |id: &NodeId| row.is_none() && region.draw.is_none_or(|d| d.sample != *id);
        for (output, &id) in region.outputs.iter().enumerate().filter(|(_, id)| stored(id)) {
            for (i, known) in region.known[&id].iter().enumerate() {
                let mut store = self_store(&mut inl, region, id, i, known)?;
                store.output = output as u8;
                if known.from > 0 || known.to < n as i64 {
                    store.guard = Some(within(known, n as i64, store.guard));
                }
                stores.push(store);
            }
            writes_state |= matches!(graph.node(id).op, Op::Scatter);
        }
        let mut rules = Vec::new();
        match (inl.stages.is_empty(), &a) {
            (false, _) => rules.push(Rule::NormPrologue),
            (true, Scalar::Load(..)) => {}
            (true, _) => rules.push(Rule::Prologue),
        }
        if region.group > 1 {
            rules.push(Rule::PairedColumns);
        }
        if region.known.len() > 1 {
            rules.push(Rule::LinearEpilogue);
        }
        if writes_state {
            rules.push(Rule::CacheWriteEpilogue);
        }
        let draw = region.draw.map(|chain| draw(&mut inl, region, chain)).transpose()?;
        if draw.is_some() {
            rules.push(Rule::DrawEpilogue);
        }
        let row = row.map(|(epilogue, over)| {
            rules.push(Rule::RowEpilogue);
            stores = over;
            epilogue
        });
        let stages = std::mem::take(&mut inl.stages);
        let (reads, ops) = finish(inl);
        let mut product = MatMul { m, n, group: region.group, k, a, b, stages, row, stores, draw };
        if forms.products.short_tiles() {
            let operands: Vec<Operand> = reads.iter().map(|(o, _)| o.clone()).collect();
            if !fits_tiles(&mut product, &operands) {
                let stored = forms.of[left.index()].is_buffer();
                let sum = ops.iter().copied().find(|n| matches!(graph.node(*n).op, Op::Reduce(_)));
                return Err(Stop::Materialise(sum.filter(|_| stored).unwrap_or(left)));
            }
        }
        let compute = Compute::MatMul(product);
        Ok(Made { compute, reads, writes, ops, rules, scope: node.scope.clone() })
    }
}

/// Rounds a computed left operand to the type that tensor cores take; whether their tiles can make it, and should.
/// Where no tile can make the product at all, its kernel takes what it is given.
fn fits_tiles(product: &mut MatMul, reads: &[Operand]) -> bool {
    let dtype = reads[product.b.index()].dtype;
    if !dtype.is_half() || schedule::no_tiles(product.k).is_some() {
        return true;
    }
    if product.plain_left().is_none_or(|x| reads[x.index()].dtype != dtype) {
        let value = std::mem::replace(&mut product.a, Scalar::Bool(true));
        product.a = Scalar::Cast(dtype, Box::new(value));
    }
    let mut costly = false;
    let values = std::iter::once(&product.a).chain(product.stages.iter().map(|stage| &stage.value));
    // Every warp of every block would compute it again.
    values.for_each(|v| v.visit(&mut |e| costly |= matches!(e, Scalar::Unary(op, _) if op.is_costly())));
    !costly && product.tiled_left(reads).is_ok()
}

/// Sampling from a region's logits.
fn draw(inl: &mut Inliner<'_>, region: &Region, chain: DrawChain) -> Result<Draw, Stop> {
    let fault = |why: &str| Stop::Fault(format!("{}: {why}", chain.sample));
    let output = |id: NodeId| region.outputs.iter().position(|o| *o == id).map(|i| i as u8);
    let (Some(logits), Some(tokens)) = (output(chain.logits), output(chain.sample)) else {
        return Err(fault("its logits are not stored"));
    };
    let arrays = |inl: &mut Inliner<'_>, all: &[NodeId]| {
        all.iter().map(|&x| inl.operand(x)).collect::<Result<Vec<_>, Stop>>()
    };
    let graph = inl.graph;
    let few = |_| fault("it has too few inputs");
    let penalties = match chain.penalize.map(|p| (p, &graph.node(p).inputs[..])) {
        None => None,
        Some((p, [_, history, base, _, parameters @ ..])) => {
            let parameters = arrays(inl, parameters)?.try_into().map_err(few)?;
            let (history, base) = (inl.operand(*history)?, inl.value(*base, &coords(1))?);
            inl.ops.push(p);
            Some(DrawPenalties { history, base, parameters })
        }
        Some(_) => return Err(few(Vec::new())),
    };
    let [_, position, parameters @ ..] = &graph.node(chain.sample).inputs[..] else {
        return Err(few(Vec::new()));
    };
    let parameters = arrays(inl, parameters)?.try_into().map_err(few)?;
    let position = inl.value(*position, &coords(1))?;
    inl.ops.push(chain.sample);
    Ok(Draw { logits, tokens, position, parameters, penalties })
}

/// The row epilogue of a product of `n` columns, and its stores.
fn over_rows(
    inl: &mut Inliner<'_>,
    region: &Region,
    chain: &RowChain,
    n: usize,
) -> Result<(RowEpilogue, Vec<Store>), Stop> {
    let at = coords(2);
    let value = element(inl, region, chain.source, 0)?;
    // A kernel that reduces the rows it makes has no sums of those it reads.
    let sum = |n: &NodeId| matches!(inl.graph.node(*n).op, Op::Reduce(_) | Op::Softmax);
    if !inl.stages.is_empty()
        && let Some(sum) = inl.ops.iter().copied().find(sum)
    {
        return Err(Stop::Materialise(sum));
    }
    inl.known.clear();
    inl.known.insert(chain.source, (at.clone(), Scalar::Acc(0)));
    inl.inside.extend(&chain.inside);
    inl.rows = 1;
    inl.reduced = Some(Dim::Const(n));
    let mut stores = Vec::new();
    for (output, &id) in region.outputs.iter().enumerate() {
        let value = if id == chain.source { Scalar::Acc(0) } else { inl.define(id, &at)? };
        stores.push(Store { output: output as u8, index: at.clone(), value, guard: None });
    }
    Ok((RowEpilogue { value, stages: std::mem::take(&mut inl.stages) }, stores))
}

/// The store of elements `known` (position `i` of the list) of an output.
fn self_store(
    inl: &mut Inliner<'_>,
    region: &Region,
    id: NodeId,
    i: usize,
    known: &Known,
) -> Result<Store, Stop> {
    let value = element(inl, region, id, i)?;
    let mut index = known.at.clone();
    let mut guard = None;
    let node = inl.graph.node(id);
    if matches!(node.op, Op::Scatter) {
        let slot = inl.value(node.inputs[2], &index[..1])?;
        guard = Some(Scalar::Compare(Compare::Le, Box::new(Scalar::Int(0)), Box::new(slot.clone())));
        index[0] = slot;
        inl.ops.push(id);
    }
    Ok(Store { output: 0, index, value, guard })
}

/// Value of elements of a node of the region.
fn element(inl: &mut Inliner<'_>, region: &Region, id: NodeId, i: usize) -> Result<Scalar, Stop> {
    let known = &region.known[&id][i];
    match known.origin {
        Origin::Accumulator(c) => Ok(Scalar::Acc(c)),
        Origin::Moved(from, j) => {
            inl.ops.push(id);
            element(inl, region, from, j)
        }
        Origin::Computed => {
            let graph = inl.graph;
            for &x in graph.node(id).inputs.iter().filter(|x| region.known.contains_key(x)) {
                let value = element(inl, region, x, i)?;
                inl.known.insert(x, (known.at.clone(), value));
            }
            inl.define(id, &known.at)
        }
    }
}

/// Guard of the points `from..to` of `n`.
fn within(known: &Known, n: i64, guard: Option<Scalar>) -> Scalar {
    let point = || Box::new(Scalar::Coord(1));
    let mut parts = Vec::new();
    if known.from > 0 {
        parts.push(Scalar::Compare(Compare::Le, Box::new(Scalar::Int(known.from)), point()));
    }
    if known.to < n {
        parts.push(Scalar::Compare(Compare::Lt, point(), Box::new(Scalar::Int(known.to))));
    }
    parts.extend(guard);
    let mut parts = parts.into_iter();
    let first = parts.next().unwrap_or(Scalar::Bool(true));
    parts.fold(first, |a, b| Scalar::binary(Binary::And, a, b))
}
