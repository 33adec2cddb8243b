//! Which values become buffers, which are computed where they are used, which belong to a larger work.

use super::attention::{self, AttentionSite};
use super::experts::{self, ExpertSite};
use super::index::Reshapes;
use super::region::{self, Limits, Region};
use super::routing::{self, RoutingSite};
use super::{Variant, rows};
use crate::context::Options;
use crate::fusion::{NORM_LINEAR, ROUTER};
use crate::numerics::Numerics;
use crate::products::Products;
use crate::schedule;
use std::collections::{BTreeMap, HashMap, HashSet};
use weft_ir::graph::{Graph, Op};
use weft_ir::ids::NodeId;
use weft_ir::shape::Dim;
use weft_ir::target::Target;

/// How a value exists in the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Only part of the making of a weight.
    LoadPart,
    /// A weight buffer, made at load.
    Weight,
    /// A step input, a state or a literal array: a buffer that nothing computes.
    Source,
    /// Computed where it is used.
    Inline,
    /// Another view of the buffer of a reshaped value.
    Alias,
    /// Inside a larger work (a matmul's epilogue, an attention) and nowhere else.
    Covered,
    /// A buffer that a work of its own computes.
    Root,
}

impl Form {
    /// Whether the value is in memory.
    pub fn is_buffer(self) -> bool {
        match self {
            Form::Weight | Form::Source | Form::Alias | Form::Root => true,
            Form::LoadPart | Form::Inline | Form::Covered => false,
        }
    }
}

/// Decisions for a graph.
#[derive(Debug)]
pub struct Forms {
    /// Form of each node.
    pub of: Vec<Form>,
    /// Linear layers with their epilogues, by the product.
    pub regions: BTreeMap<NodeId, Region>,
    /// For each stored result of a region, its product.
    pub product_of: BTreeMap<NodeId, NodeId>,
    /// How products are made: what they take as their left operand.
    pub products: Products,
    /// Whether reductions over its rows may be made for it.
    pub norm_prologues: bool,
    /// For each value inside a region, its product.
    region_of: HashMap<NodeId, NodeId>,
    /// Attention sites by their last node.
    pub attention: BTreeMap<NodeId, AttentionSite>,
    /// For each node of a site, the last.
    attention_of: HashMap<NodeId, NodeId>,
    /// Routers, in order.
    pub routing: Vec<RoutingSite>,
    /// Routed products with their epilogues, by what they store.
    pub experts: BTreeMap<NodeId, ExpertSite>,
    /// Uses of each node.
    pub users: Vec<Vec<NodeId>>,
}

/// Float operations above which a value with several uses is stored rather than computed again.
const RECOMPUTE_LIMIT: u32 = 1;

impl Forms {
    /// Decides, with these values forced into buffers.
    pub fn decide(
        graph: &Graph,
        options: &Options,
        variant: &Variant<'_>,
        forced: &HashSet<NodeId>,
    ) -> Forms {
        let opt_level = options.opt_level;
        let norm = options.selection.allows(NORM_LINEAR.name, NORM_LINEAR.numerics);
        let users = graph.users();
        let kept: HashSet<NodeId> = graph.roots().into_iter().chain(forced.iter().copied()).collect();
        let load = graph.load_time();
        let mut forms = Forms {
            of: vec![Form::Inline; graph.nodes.len()],
            regions: BTreeMap::new(),
            product_of: BTreeMap::new(),
            products: variant.products,
            norm_prologues: variant.products.compute_left() && norm,
            region_of: HashMap::new(),
            attention: BTreeMap::new(),
            attention_of: HashMap::new(),
            routing: Vec::new(),
            experts: BTreeMap::new(),
            users,
        };
        let mut covered = HashSet::new();
        if opt_level >= 2 {
            for site in attention::find(graph, variant.sites.at("attention"), &forms.users, &kept) {
                covered.extend(site.covered.iter().copied());
                let nodes = site.covered.iter().copied().chain([site.out]);
                forms.attention_of.extend(nodes.map(|n| (n, site.out)));
                forms.attention.insert(site.out, site);
            }
            let router = options.selection.allows(ROUTER.name, ROUTER.numerics);
            forms.find_mixtures(graph, (&load, &kept), router, &mut covered);
            forms.find_regions(graph, options, &load, (&kept, forced), &mut covered);
        }
        let mut cost = vec![0u32; graph.nodes.len()];
        for id in graph.ids() {
            let i = id.index();
            forms.of[i] = if load[i] {
                let part = forms.users[i].iter().all(|u| load[u.index()]) && !kept.contains(&id);
                if part { Form::LoadPart } else { Form::Weight }
            } else if covered.contains(&id) {
                Form::Covered
            } else if forms.product_of.contains_key(&id)
                || forms.experts.contains_key(&id)
                || forms.routing_of(id).is_some()
            {
                Form::Root
            } else {
                forms.decide_node(graph, id, opt_level, &kept, &mut cost)
            };
        }
        if opt_level >= 1 {
            rows::merge(graph, &mut forms, &kept);
        }
        forms
    }

    fn decide_node(
        &self,
        graph: &Graph,
        id: NodeId,
        opt_level: u8,
        kept: &HashSet<NodeId>,
        cost: &mut [u32],
    ) -> Form {
        let node = graph.node(id);
        let uses = &self.users[id.index()];
        let inline_cost: u32 =
            node.inputs.iter().filter(|i| self.of[i.index()] == Form::Inline).map(|i| cost[i.index()]).sum();
        let (own_cost, may_inline) = match &node.op {
            Op::Input(_) | Op::State { .. } => return Form::Source,
            Op::Constant { shape, .. } => {
                let one = shape.iter().all(|d| d.as_const() == Some(1));
                return if one { Form::Inline } else { Form::Source };
            }
            Op::Weight { .. } | Op::Decode => return Form::Weight,
            Op::MatMul { .. }
            | Op::RoutedMatMul { .. }
            | Op::TopK { .. }
            | Op::Scatter
            | Op::Penalize
            | Op::Sample => {
                return Form::Root;
            }
            Op::Reduce(_) | Op::Softmax => (8, uses.len() == 1),
            Op::Unary(u) => (if u.is_costly() { 8 } else { 1 }, true),
            Op::Binary(_) => (u32::from(node.ty.dtype().is_float()), true),
            Op::Iota { .. }
            | Op::Compare(_)
            | Op::Select
            | Op::Cast(_)
            | Op::Reshape(_)
            | Op::Transpose(_)
            | Op::Broadcast(_)
            | Op::Slice { .. }
            | Op::Concat { .. } => (0, true),
            // Rows of a table that several works use are fetched once.
            Op::Gather => (if node.ty.dtype().is_float() { 2 } else { 0 }, true),
        };
        cost[id.index()] = inline_cost + own_cost;
        let needs_buffer = uses.iter().any(|&u| self.reads_buffer(graph, u, id));
        let repeated = uses.len() > 1 && cost[id.index()] > RECOMPUTE_LIMIT;
        let root = opt_level == 0 || !may_inline || kept.contains(&id) || needs_buffer || repeated;
        let left =
            |u: &NodeId| matches!(graph.node(*u).op, Op::MatMul { .. }) && graph.node(*u).inputs[0] == id;
        match &node.op {
            // A view costs nothing, and a product reads its rows by vectors.
            Op::Reshape(_)
                if (root || uses.iter().any(left))
                    && opt_level > 0
                    && !kept.contains(&id)
                    && self.of[node.inputs[0].index()].is_buffer() =>
            {
                Form::Alias
            }
            _ if !root => Form::Inline,
            _ => Form::Root,
        }
    }

    /// Whether `user` takes `input` as an array rather than element by element.
    pub(super) fn reads_buffer(&self, graph: &Graph, user: NodeId, input: NodeId) -> bool {
        if let Some(site) = self.attention_of.get(&user).and_then(|out| self.attention.get(out)) {
            return [site.q, site.keys, site.values].contains(&input);
        }
        match &graph.node(user).op {
            Op::MatMul { .. } if self.routing.iter().any(|r| r.product == Some(user)) => {
                graph.node(user).inputs[1] == input
            }
            Op::MatMul { .. } => {
                let left = self.regions.contains_key(&user) && graph.node(user).inputs[0] == input;
                !(left && self.products.compute_left())
            }
            // A product that draws computes a row's place itself.
            Op::Penalize | Op::Sample if self.is_drawn(user) => {
                let node = graph.node(user);
                let places = if node.op == Op::Penalize { &node.inputs[2..4] } else { &node.inputs[1..2] };
                !places.contains(&input)
            }
            Op::Penalize | Op::Sample | Op::RoutedMatMul { .. } => true,
            Op::Scatter => graph.node(user).inputs[0] == input,
            Op::Input(_)
            | Op::Weight { .. }
            | Op::Constant { .. }
            | Op::Iota { .. }
            | Op::State { .. }
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
            | Op::Gather => false,
        }
    }

    /// The product that takes a value as reductions of its rows, or as its left operand with such in it.
    pub(super) fn normed(&self, graph: &Graph, user: NodeId, input: NodeId) -> Option<NodeId> {
        let product = *self.region_of.get(&user).filter(|_| self.norm_prologues)?;
        let node = graph.node(input);
        let one = |x: NodeId| graph.ty(x).shape.last() == Some(&Dim::Const(1));
        let of_row = one(input) || (matches!(node.op, Op::Broadcast(_)) && one(node.inputs[0]));
        // Tiles make no pass over a row before the products.
        let passes = self.products.pass_before();
        let left = passes && user == product && graph.node(product).inputs[0] == input;
        (left || (user != product && of_row)).then_some(product)
    }

    /// Whether a product's work takes this node, behind its logits.
    fn is_drawn(&self, id: NodeId) -> bool {
        self.regions.values().filter_map(|r| r.draw).any(|chain| chain.nodes().any(|n| n == id))
    }

    /// The router that this value is a result of.
    pub fn routing_of(&self, id: NodeId) -> Option<&RoutingSite> {
        self.routing.iter().find(|r| r.outputs.contains(&id))
    }

    /// Mixtures of experts: routers, where their fusion is on, and routed products with what follows them.
    fn find_mixtures(
        &mut self,
        graph: &Graph,
        (load, kept): (&[bool], &HashSet<NodeId>),
        router: bool,
        covered: &mut HashSet<NodeId>,
    ) {
        let routers = router.then(|| routing::find(graph, &self.users, load, kept, self.products.decode()));
        for site in routers.into_iter().flatten() {
            covered.extend(site.nodes.iter().copied().filter(|n| !site.outputs.contains(n)));
            self.routing.push(site);
        }
        for site in experts::find(graph, &self.users, kept) {
            covered.extend(site.covered.iter().copied());
            self.experts.insert(site.out, site);
        }
    }

    /// Linear layers take what follows them as their epilogue.
    fn find_regions(
        &mut self,
        graph: &Graph,
        options: &Options,
        load: &[bool],
        (kept, forced): (&HashSet<NodeId>, &HashSet<NodeId>),
        covered: &mut HashSet<NodeId>,
    ) {
        let mut taken = covered.clone();
        taken.extend(self.routing.iter().flat_map(|r| r.outputs.iter().copied()));
        taken.extend(self.experts.keys().copied());
        let own: HashSet<NodeId> = self.routing.iter().filter_map(|r| r.product).collect();
        let mut reshapes = Reshapes::default();
        // A tile sums a row in another order than a row loop.
        let reorders = options.selection.numerics >= Numerics::Reassociates;
        for id in graph.ids().filter(|&id| is_linear(graph, load, id) && !own.contains(&id)) {
            let rows = !self.products.decode() && reorders && takes_rows(graph, id, options.target);
            let draws = self.products.decode();
            let limits = Limits { users: &self.users, kept, forced, taken: &taken, rows, draws };
            let region = region::find(graph, id, &limits, &mut reshapes);
            taken.extend(region.nodes());
            covered.extend(region.nodes().filter(|n| !region.outputs.contains(n)));
            self.region_of.extend(region.nodes().map(|n| (n, id)));
            self.product_of.extend(region.outputs.iter().map(|o| (*o, id)));
            self.regions.insert(id, region);
        }
    }
}

/// Whether one block can make whole rows of a product.
fn takes_rows(graph: &Graph, product: NodeId, target: &Target) -> bool {
    let [left, right] = graph.node(product).inputs[..] else { return false };
    let (left, right) = (graph.ty(left), graph.ty(right));
    let [Dim::Const(n), Dim::Const(k)] = right.shape[..] else { return false };
    left.dtype() == right.dtype() && schedule::takes_rows(right.dtype(), n, k, target)
}

/// Whether a node is a product [m, k] · [n, k]ᵀ with a weight.
pub fn is_linear(graph: &Graph, load: &[bool], id: NodeId) -> bool {
    let node = graph.node(id);
    matches!(node.op, Op::MatMul { transpose_b: true, .. })
        && node.ty.shape.len() == 2
        && load[node.inputs[1].index()]
}

/// Whether a reduction is computed in place for a value.
pub fn has_reduction(graph: &Graph, forms: &Forms, id: NodeId) -> bool {
    let node = graph.node(id);
    let inline = |x: &NodeId| forms.of[x.index()] == Form::Inline;
    matches!(node.op, Op::Reduce(_) | Op::Softmax)
        || node.inputs.iter().filter(|x| inline(x)).any(|&x| has_reduction(graph, forms, x))
}
