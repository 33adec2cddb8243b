//! Extraction: the cheapest term of each output, counting what is shared once.
//!
//! Greedy DAG extraction: the cost of an e-node is its own plus that of all distinct classes below it;
//! classes improve until nothing changes. The own cost is the roofline of the kernel an op leads to after
//! fusion: what is computed inside another kernel costs its arithmetic, what needs a kernel costs a launch
//! and its traffic.

use super::analysis::Block;
use super::attention;
use super::language::{Kind, Node};
use crate::products::Products;
use egg::Id;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use weft_ir::graph::Op;
use weft_ir::shape::Bindings;
use weft_ir::target::DeviceProfile;

/// What costs depend on.
#[derive(Clone, Debug)]
pub struct CostModel {
    /// Sizes of the steps to optimise for.
    pub bind: Bindings,
    /// Figures of the GPU.
    pub profile: DeviceProfile,
    /// How matrix products are made: whether they take a computed left operand and row sums.
    pub products: Products,
}

/// A choice for a class: the e-node, and the cost of every class below and including it.
#[derive(Clone, Debug)]
pub(super) struct Choice {
    pub(super) node: Node,
    below: BTreeMap<Id, f64>,
    total: f64,
}

/// The chosen e-node of each class.
pub type Chosen = HashMap<Id, Node>;

/// The result of extraction.
pub struct Extracted {
    /// The chosen e-node of each class.
    pub chosen: Chosen,
    choices: HashMap<Id, Choice>,
}

impl Extracted {
    /// Seconds of a step of a class in this form, with what it needs as it was chosen; `None` for a form that is
    /// made of itself.
    pub fn price(&self, g: &Block, model: &CostModel, class: Id, node: &Node) -> Option<f64> {
        consider(g, model, &self.choices, &BTreeSet::new(), class, node).map(|c| c.total)
    }
}

/// Chooses e-nodes for all classes that outputs reach, at the least total cost that is found.
///
/// A product that several classes would share looks dear to each of them alone. So each product is tried as
/// if it were paid for already: where the true total of all outputs falls, it stays so.
pub fn extract(g: &Block, model: &CostModel, outputs: &[Id]) -> Extracted {
    let mut paid = BTreeSet::new();
    let forms = forms(g);
    let mut chosen = greedy(g, &forms, model, &paid);
    let mut total = total_cost(g, model, &chosen, outputs);
    let is_product = |id: &Id| g[*id].nodes.iter().any(|n| matches!(n.as_op(), Some(Op::MatMul { .. })));
    let mut products: Vec<Id> = g.classes().map(|c| c.id).filter(is_product).collect();
    products.sort();
    loop {
        let before = total;
        for &p in &products {
            if !paid.insert(p) {
                continue;
            }
            let other = greedy(g, &forms, model, &paid);
            let cost = total_cost(g, model, &other, outputs);
            if cost < total * (1.0 - 1e-9) {
                (chosen, total) = (other, cost);
            } else {
                paid.remove(&p);
            }
        }
        if total >= before {
            let nodes = chosen.iter().map(|(id, c)| (*id, c.node.clone())).collect();
            return Extracted { chosen: nodes, choices: chosen };
        }
    }
}

/// Cost of all classes that outputs reach, each once.
fn total_cost(g: &Block, model: &CostModel, chosen: &HashMap<Id, Choice>, outputs: &[Id]) -> f64 {
    let mut seen = BTreeSet::new();
    let mut todo: Vec<Id> = outputs.iter().map(|o| g.find(*o)).collect();
    let mut total = 0.0;
    while let Some(id) = todo.pop() {
        let Some(choice) = chosen.get(&id) else { continue };
        if seen.insert(id) {
            total += own_cost(g, model, chosen, id, &choice.node);
            todo.extend(choice.node.children.iter().map(|c| g.find(*c)));
        }
    }
    total
}

/// All classes with their e-nodes, both in order.
fn forms(g: &Block) -> Vec<(Id, Vec<&Node>)> {
    let sorted = |class: Id| {
        let mut nodes: Vec<&Node> = g[class].nodes.iter().collect();
        nodes.sort();
        (class, nodes)
    };
    let mut all: Vec<(Id, Vec<&Node>)> = g.classes().map(|c| sorted(c.id)).collect();
    all.sort_by_key(|(class, _)| *class);
    all
}

/// The cheapest e-node of each class by itself; classes in `paid` cost nothing.
fn greedy(
    g: &Block,
    forms: &[(Id, Vec<&Node>)],
    model: &CostModel,
    paid: &BTreeSet<Id>,
) -> HashMap<Id, Choice> {
    let mut best: HashMap<Id, Choice> = HashMap::new();
    loop {
        let mut changed = false;
        for (class, nodes) in forms {
            for node in nodes {
                let Some(choice) = consider(g, model, &best, paid, *class, node) else { continue };
                let better = best.get(class).is_none_or(|b| choice.total < b.total - 1e-15);
                if better {
                    best.insert(*class, choice);
                    changed = true;
                }
            }
        }
        if !changed {
            return best;
        }
    }
}

fn consider(
    g: &Block,
    model: &CostModel,
    best: &HashMap<Id, Choice>,
    paid: &BTreeSet<Id>,
    class: Id,
    node: &Node,
) -> Option<Choice> {
    let mut below: BTreeMap<Id, f64> = BTreeMap::new();
    for child in &node.children {
        let child = g.find(*child);
        let c = best.get(&child)?;
        // A class below itself is a cycle.
        if c.below.contains_key(&class) {
            return None;
        }
        below.extend(c.below.iter().map(|(k, v)| (*k, *v)));
    }
    below.insert(class, own_cost(g, model, best, class, node));
    let total = below.values().sum();
    // What is paid for is free to others, with all that it needs; its own choice is by its true cost.
    if paid.contains(&class) {
        below.values_mut().for_each(|c| *c = 0.0);
    }
    Some(Choice { node: node.clone(), below, total })
}

/// Seconds that an e-node adds.
fn own_cost(g: &Block, m: &CostModel, best: &HashMap<Id, Choice>, class: Id, node: &Node) -> f64 {
    let elements = |id: Id| m.bind.elements(&g[id].data.ty.shape) as f64;
    let bytes = |id: Id| elements(id) * g[id].data.ty.dtype().size() as f64;
    let Kind::Op(op) = &node.kind else { return 0.0 };
    if g[class].data.load {
        return 0.0;
    }
    if let Some(cost) = attention::product(g, m, best, class, node) {
        return cost;
    }
    let arithmetic = elements(class) / m.profile.f32_flops;
    let traffic = |b: f64| b / m.profile.bandwidth;
    match &**op {
        Op::MatMul { .. } => {
            let (a, b) = (node.children[0], node.children[1]);
            let k = g[a].data.ty.shape.last().map_or(1, |d| d.eval(&m.bind)) as f64;
            let flops = 2.0 * elements(class) * k / m.profile.tensor_flops;
            let own = flops.max(traffic(bytes(b) + bytes(a) + bytes(class))) + m.profile.launch;
            own + left_operand(g, m, best, a)
        }
        Op::Softmax | Op::Scatter | Op::Penalize | Op::Sample | Op::TopK { .. } => {
            m.profile.launch + traffic(bytes(class))
        }
        // Each pick reads its matrix, unless others of the step chose it too.
        Op::RoutedMatMul { .. } => {
            let (a, b, index) = (node.children[0], node.children[1], node.children[2]);
            let experts = g[b].data.ty.shape.first().map_or(1, |d| d.eval(&m.bind)) as f64;
            let k = g[a].data.ty.shape.last().map_or(1, |d| d.eval(&m.bind)) as f64;
            let read = bytes(b) / experts * elements(index).min(experts);
            let flops = 2.0 * elements(class) * k / m.profile.tensor_flops;
            flops.max(traffic(read + bytes(a) + bytes(class))) + m.profile.launch
        }
        // The sum runs beside the products.
        Op::Reduce(_) if m.products.compute_left() => arithmetic,
        Op::Reduce(_) => m.profile.launch + traffic(bytes(node.children[0])),
        Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select | Op::Cast(_) => arithmetic,
        Op::Input(_)
        | Op::Weight { .. }
        | Op::State { .. }
        | Op::Constant { .. }
        | Op::Iota { .. }
        | Op::Decode
        | Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Broadcast(_)
        | Op::Gather => 0.0,
        Op::Concat { .. } if meets_memory(g, best, &node.children) => {
            m.profile.launch + 2.0 * traffic(bytes(class))
        }
        Op::Concat { .. } => 0.0,
        // Two halves share the kernel that joins them.
        Op::Slice { axis, len, .. } => {
            let x = g.find(node.children[0]);
            let half = g[x].data.ty.shape[*axis].as_const() == Some(2 * len);
            let parted = half && halves_are_apart(g, best, x);
            if parted { m.profile.launch / 2.0 + traffic(bytes(class)) } else { 0.0 }
        }
    }
}

/// Whether a product's result is joined with what comes from elsewhere, which no epilogue does: a kernel of its own.
fn meets_memory(g: &Block, best: &HashMap<Id, Choice>, parts: &[Id]) -> bool {
    let made = |part: &Id| {
        let (mut seen, mut todo) = (BTreeSet::new(), vec![g.find(*part)]);
        while let Some(id) = todo.pop() {
            if !seen.insert(id) {
                continue;
            }
            let Some(choice) = best.get(&id) else { continue };
            match choice.node.as_op() {
                Some(Op::MatMul { .. } | Op::RoutedMatMul { .. }) => return true,
                Some(
                    Op::Reshape(_)
                    | Op::Transpose(_)
                    | Op::Slice { .. }
                    | Op::Concat { .. }
                    | Op::Cast(_)
                    | Op::Unary(_)
                    | Op::Binary(_),
                ) => todo.extend(choice.node.children.iter().map(|c| g.find(*c))),
                _ => {}
            }
        }
        false
    };
    let products = parts.iter().filter(|p| made(p)).count();
    products > 0 && products < parts.len()
}

/// Whether a value is a product whose columns stand in their own order, so that its two halves come from
/// different points of the product and meet only in a kernel of their own.
fn halves_are_apart(g: &Block, best: &HashMap<Id, Choice>, mut x: Id) -> bool {
    loop {
        let Some(choice) = best.get(&x) else { return false };
        match choice.node.as_op() {
            Some(Op::MatMul { .. }) => return true,
            Some(Op::Reshape(_) | Op::Slice { .. } | Op::Cast(_) | Op::Binary(_)) => {
                x = g.find(choice.node.children[0]);
            }
            _ => return false,
        }
    }
}

/// What it costs to have the left operand of a product: nothing when it is in memory or the kernel computes
/// it, else a kernel that stores it.
fn left_operand(g: &Block, m: &CostModel, best: &HashMap<Id, Choice>, a: Id) -> f64 {
    let mut seen = BTreeSet::new();
    let mut todo = vec![g.find(a)];
    let (mut computed, mut stored) = (false, false);
    while let Some(id) = todo.pop() {
        if !seen.insert(id) || g[id].data.load {
            continue;
        }
        let Some(choice) = best.get(&id) else { continue };
        match choice.node.as_op() {
            Some(Op::Reduce(_) | Op::Softmax | Op::TopK { .. }) => stored = true,
            // Every block would compute it again.
            Some(Op::Unary(u)) if u.is_costly() => stored = true,
            Some(Op::MatMul { .. } | Op::RoutedMatMul { .. } | Op::Scatter | Op::Penalize | Op::Sample)
            | None => {}
            // Where a value is rounded it is stored, but for the operand itself.
            Some(Op::Cast(to)) if id != g.find(a) && to.size() < 4 => {}
            Some(op) => {
                computed |= matches!(op, Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select);
                todo.extend(choice.node.children.iter().map(|c| g.find(*c)));
            }
        }
    }
    if stored || (computed && !m.products.compute_left()) {
        let bytes = m.bind.elements(&g[a].data.ty.shape) * g[a].data.ty.dtype().size();
        m.profile.launch + 2.0 * bytes as f64 / m.profile.bandwidth
    } else {
        0.0
    }
}
