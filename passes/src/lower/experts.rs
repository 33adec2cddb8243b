//! Routed products: rows times the matrices that an index chooses.
//!
//! Below level 2 each is a loop with a sum. At level 2, products of the same rows and index (gate and up) and
//! the elementwise ops that follow them are one work; in steps with many tokens, the pairs of token and
//! pick are sorted by their matrix first, once for each index.

use super::emit::{Emitter, Made, coords, finish};
use super::scatter::parts;
use super::{Rule, Stop};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use weft_ir::dtype::DType;
use weft_ir::graph::{Graph, Op};
use weft_ir::ids::{BufferId, NodeId, OperandId};
use weft_ir::plan::{Compute, Grouped, Grouping, Loop, Operand, Routed, Scalar, Stage, Store};
use weft_ir::scalar::{Binary, Reduce};
use weft_ir::shape::Dim;

/// Most products of one work.
const PRODUCTS: usize = 2;

/// Routed products with their epilogue.
#[derive(Clone, Debug)]
pub struct ExpertSite {
    /// What is stored, `[t, picks, n]`, or such a value beside others that are in memory, `[t, picks, n + …]`.
    pub out: NodeId,
    /// What the products make.
    pub made: NodeId,
    /// The products, of the same rows and index.
    pub products: Vec<NodeId>,
    /// Nodes that exist only inside, but for `out`.
    pub covered: HashSet<NodeId>,
}

/// All sites, in order: every routed product is in one.
pub fn find(graph: &Graph, users: &[Vec<NodeId>], kept: &HashSet<NodeId>) -> Vec<ExpertSite> {
    let mut by_rows: BTreeMap<(NodeId, NodeId, usize), Vec<NodeId>> = BTreeMap::new();
    for id in graph.ids() {
        let node = graph.node(id);
        if let Op::RoutedMatMul { .. } = node.op
            && let Some(n) = node.ty.shape.last().and_then(|d| d.as_const())
        {
            by_rows.entry((node.inputs[0], node.inputs[2], n)).or_default().push(id);
        }
    }
    let mut sites = Vec::new();
    for products in by_rows.into_values() {
        for some in products.chunks(PRODUCTS) {
            match joined(graph, users, kept, some) {
                Some(site) => sites.push(site),
                None => sites.extend(some.iter().filter_map(|p| joined(graph, users, kept, &[*p]))),
            }
        }
    }
    sites.sort_by_key(|s| s.out);
    sites
}

/// The site of products whose elementwise users all end in one value.
fn joined(
    graph: &Graph,
    users: &[Vec<NodeId>],
    kept: &HashSet<NodeId>,
    products: &[NodeId],
) -> Option<ExpertSite> {
    let shape = &graph.ty(*products.first()?).shape;
    let mut inside: BTreeSet<NodeId> = products.iter().copied().collect();
    let mut below: BTreeSet<NodeId> = inside.clone();
    let first = products.iter().min()?.index();
    // What is inside has its users within these bounds.
    let bound = |id: NodeId| users[id.index()].iter().map(|u| u.index() + 1).max().unwrap_or(0);
    let mut end = products.iter().map(|p| bound(*p)).max().unwrap_or(0);
    let mut at = first;
    while at < end {
        let id = NodeId::new(at);
        at += 1;
        let node = graph.node(id);
        if !node.inputs.iter().any(|x| below.contains(x)) || inside.contains(&id) {
            continue;
        }
        below.insert(id);
        let elementwise =
            matches!(node.op, Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select | Op::Cast(_));
        // What comes from elsewhere must not wait for the products.
        let whole = node.inputs.iter().all(|x| inside.contains(x) || !below.contains(x));
        if elementwise && whole && node.ty.shape == *shape {
            inside.insert(id);
            end = end.max(bound(id));
        }
    }
    // Drops what follows a value that is needed in memory, until one value is left that is.
    loop {
        let stored = |id: &NodeId| {
            let all = &users[id.index()];
            kept.contains(id) || all.is_empty() || !all.iter().all(|u| inside.contains(u))
        };
        let border = inside
            .iter()
            .copied()
            .find(|id| stored(id) && users[id.index()].iter().any(|u| inside.contains(u)));
        let Some(border) = border else { break };
        let mut todo: Vec<NodeId> = users[border.index()].clone();
        while let Some(id) = todo.pop() {
            if inside.remove(&id) {
                todo.extend(&users[id.index()]);
            }
        }
    }
    let ends: Vec<NodeId> =
        inside.iter().copied().filter(|id| !users[id.index()].iter().any(|u| inside.contains(u))).collect();
    let (&[out], true) = (&ends[..], products.iter().all(|p| inside.contains(p))) else { return None };
    inside.remove(&out);
    let mut site =
        ExpertSite { out, made: out, products: products.to_vec(), covered: inside.into_iter().collect() };
    if let Some(whole) = beside(graph, users, kept, &site) {
        site.covered.insert(out);
        site.out = whole;
    }
    Some(site)
}

/// The concatenation of what a site makes with values that do not wait for it: the same points store both.
fn beside(graph: &Graph, users: &[Vec<NodeId>], kept: &HashSet<NodeId>, site: &ExpertSite) -> Option<NodeId> {
    let &[whole] = &users[site.made.index()][..] else { return None };
    let node = graph.node(whole);
    let len = |id: NodeId| graph.ty(id).shape.get(2).and_then(|d| d.as_const());
    let own = len(site.made)?;
    let free = |x: &NodeId| {
        *x == site.made
            || len(*x).is_some_and(|n| n <= own) && site.products.iter().all(|p| !graph.depends(*x, *p))
    };
    let joins = matches!(node.op, Op::Concat { axis: 2 }) && !kept.contains(&site.made);
    (joins && node.inputs.iter().all(free)).then_some(whole)
}

impl Emitter<'_> {
    /// A routed product as a loop with a sum.
    pub(super) fn routed_loop(&mut self, id: NodeId) -> Result<Made, Stop> {
        let node = self.graph.node(id);
        let (a, b, index) = (node.inputs[0], node.inputs[1], node.inputs[2]);
        let domain = node.ty.shape.clone();
        let a_shape = &self.graph.ty(a).shape;
        let (one, k) = (a_shape[1] == Dim::Const(1), a_shape[2]);
        let write = self.write(id)?;
        let mut inl = self.inliner(domain.iter().copied().chain([k]).collect());
        inl.ops.push(id);
        let at = coords(3);
        let row = if one { Scalar::Int(0) } else { at[1].clone() };
        let expert = inl.value(index, &at[..2])?;
        let x = inl.value(a, &[at[0].clone(), row, Scalar::Coord(3)])?;
        let y = inl.value(b, &[expert, at[2].clone(), Scalar::Coord(3)])?;
        let stages = vec![Stage { op: Reduce::Sum, value: Scalar::binary(Binary::Mul, x, y) }];
        let row_stores = vec![Store { output: 0, index: at, value: Scalar::Reduced(0), guard: None }];
        let (reads, ops) = finish(inl);
        let compute =
            Compute::Loop(Loop { domain, reduced: Some(k), stages, element_stores: vec![], row_stores });
        Ok(Made { compute, reads, writes: vec![write], ops, rules: vec![], scope: node.scope.clone() })
    }

    /// The work of a site.
    pub(super) fn experts(&mut self, site: &ExpertSite) -> Result<Made, Stop> {
        let (graph, streams) = (self.graph, self.forms.products.decode());
        let first = site.products.first().copied().unwrap_or(site.out);
        let node = graph.node(first);
        let (a, index) = (node.inputs[0], node.inputs[2]);
        let known = |d: Dim| {
            d.as_const().ok_or_else(|| Stop::Fault(format!("{first} ({}): symbolic sizes", node.scope)))
        };
        let shape = node.ty.shape.clone();
        let experts = known(graph.ty(node.inputs[1]).shape[0])?;
        let (picks, n, k) = (known(shape[1])?, known(shape[2])?, known(graph.ty(a).shape[2])?);
        // While tokens are few, each pair reads its matrix by itself.
        let sorted = if streams { None } else { Some(self.sorted(first, index, (picks, experts))?) };
        let write = self.write(site.out)?;
        let mut inl = self.inliner(shape.clone());
        let at = coords(3);
        let left = inl.operand(a)?;
        let mut weights = Vec::new();
        for (i, &p) in site.products.iter().enumerate() {
            weights.push(inl.operand(graph.node(p).inputs[1])?);
            inl.known.insert(p, (at.clone(), Scalar::Acc(i as u8)));
        }
        let chosen = inl.operand(index)?;
        inl.ops.extend(&site.products);
        let value = match site.products.contains(&site.made) {
            true => Scalar::Acc(0),
            false => inl.define(site.made, &at)?,
        };
        let mut stores = vec![Store { output: 0, index: at.clone(), value, guard: None }];
        if site.out != site.made {
            let own = stores.pop().into_iter().map(|s| s.value);
            inl.known.extend(own.map(|value| (site.made, (at.clone(), value))));
            stores = parts(&mut inl, site.out, &at)?;
        }
        inl.ops.sort_unstable();
        inl.ops.dedup();
        let (mut reads, ops) = finish(inl);
        let grouped = sorted.map(|buffers| {
            let [order, begins] = operands(shape[0], picks, experts);
            let first = reads.len();
            reads.extend([order, begins].into_iter().zip(buffers));
            Grouped { order: OperandId::new(first), begins: OperandId::new(first + 1) }
        });
        for (i, o) in weights.iter().enumerate() {
            if let (Some((operand, _)), true) = (reads.get_mut(o.index()), weights.len() > 1) {
                operand.name = format!("weight{i}");
            }
        }
        let tokens = shape[0];
        let (mut rules, index) = (vec![Rule::GroupedExperts], chosen);
        if site.products.len() > 1 {
            rules.push(Rule::PairedExperts);
        }
        if !site.covered.is_empty() {
            rules.push(Rule::ExpertEpilogue);
        }
        let compute = Compute::Routed(Routed {
            tokens,
            picks,
            experts,
            n,
            k,
            a: left,
            weights,
            index,
            grouped,
            stores,
        });
        Ok(Made { compute, reads, writes: vec![write], ops, rules, scope: node.scope.clone() })
    }

    /// The pairs of an index by matrix: adds the dispatch that sorts them, where there is none yet.
    fn sorted(
        &mut self,
        product: NodeId,
        index: NodeId,
        (picks, experts): (usize, usize),
    ) -> Result<[BufferId; 2], Stop> {
        if let Some(known) = self.grouped.get(&index) {
            return Ok(*known);
        }
        let tokens = self.graph.ty(index).shape[0];
        let node = self.graph.node(index);
        let scope = self.graph.node(product).scope.clone();
        let mut inl = self.inliner(vec![tokens, Dim::Const(picks)]);
        inl.operand(index)?;
        let (reads, _) = finish(inl);
        let [order, begins] = operands(tokens, picks, experts);
        let temp = |e: &mut Self, o: &Operand| {
            e.buffers.temp(format!("{}.{}", node.scope, o.name), o.dtype, o.shape.clone())
        };
        let buffers = [temp(self, &order), temp(self, &begins)];
        let compute = Compute::Grouping(Grouping { tokens, picks, experts });
        let writes = vec![(order, buffers[0]), (begins, buffers[1])];
        let rules = vec![Rule::GroupedExperts];
        let scope = format!("{scope}.grouping");
        self.add(index, Made { compute, reads, writes, ops: vec![], rules, scope });
        self.grouped.insert(index, buffers);
        Ok(buffers)
    }
}

/// Operands of a grouping's results.
fn operands(tokens: Dim, picks: usize, experts: usize) -> [Operand; 2] {
    let operand =
        |name: &str, shape| Operand { name: name.into(), dtype: DType::I32, shape, constant: false };
    [operand("order", vec![tokens, Dim::Const(picks)]), operand("begins", vec![Dim::Const(experts + 1)])]
}
