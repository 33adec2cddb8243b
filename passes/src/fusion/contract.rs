//! What became of each fusion's sites, read off the lowered plan.

use super::{Group, Site, Sites, View, all};
use crate::attention_projection;
use crate::lower::Forms;
use crate::numerics::{Numerics, Selection};
use crate::products::Products;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use weft_ir::graph::{Graph, Op};
use weft_ir::ids::NodeId;

/// A fusion's sites in a body of the plan, or the loops of a body that could be one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contract {
    /// Fusion.
    pub fusion: &'static str,
    /// Its class.
    pub numerics: Numerics,
    /// Whether it is on.
    pub enabled: bool,
    /// Sites where its pattern applies.
    pub candidates: usize,
    /// Sites whose ops are in one kernel.
    pub matched: usize,
    /// Of these, sites where a competing fusion suffices: (fusion, sites).
    pub instead: BTreeMap<&'static str, usize>,
    /// The other sites.
    pub misses: Vec<Miss>,
}

impl Contract {
    /// One without sites.
    pub(crate) fn empty(fusion: &'static str, numerics: Numerics, enabled: bool) -> Contract {
        let (instead, misses) = (BTreeMap::new(), Vec::new());
        Contract { fusion, numerics, enabled, candidates: 0, matched: 0, instead, misses }
    }
}

/// The contracts of one form of the step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BodyContracts {
    /// `decode`, `short` (prefill and scoring steps of few tokens), `prefill` (the other steps of a decoder) or `encode`.
    pub body: &'static str,
    /// One a fusion, in the order of [`all`], and one of merged loops ([`crate::siblings`]) behind them.
    pub contracts: Vec<Contract>,
}

/// A site that was not fused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Miss {
    /// Where in the model.
    pub scope: String,
    /// Why.
    pub why: String,
}

/// Compares the sites with the kernels that lowering made.
///
/// `dispatches`: for each dispatch of the body, the nodes it computes. `forms`: how values exist. `projected`: products that
/// attention makes.
pub fn contracts(
    graph: &Graph,
    sites: &Sites,
    selection: &Selection,
    dispatches: &[Vec<NodeId>],
    (forms, projected): (&Forms, &[NodeId]),
) -> Vec<Contract> {
    let kernels: Vec<BTreeSet<NodeId>> = dispatches.iter().map(|d| d.iter().copied().collect()).collect();
    let mut kernels_of: HashMap<NodeId, Vec<usize>> = HashMap::new();
    for (i, nodes) in kernels.iter().enumerate() {
        nodes.iter().for_each(|n| kernels_of.entry(*n).or_default().push(i));
    }
    let together = |group: &Group| {
        let first = group.first().and_then(|n| kernels_of.get(n));
        first.is_some_and(|of| of.iter().any(|&k| group.iter().all(|n| kernels[k].contains(n))))
    };
    let view = View::new(graph);
    let projected = |group: &Group| group.iter().any(|n| projected.contains(n));
    let mut out = Vec::new();
    for fusion in all() {
        let found = sites.of.get(fusion.name).map_or(&[][..], Vec::as_slice);
        let enabled = selection.allows(fusion.name, fusion.numerics);
        let mut c = Contract::empty(fusion.name, fusion.numerics, enabled);
        c.candidates = found.len();
        for site in found {
            let other = site.instead.as_ref().filter(|(_, group)| enabled && together(group));
            if site.any.iter().any(together) {
                c.matched += 1;
            } else if let Some((name, _)) = other {
                c.matched += 1;
                *c.instead.entry(name).or_default() += 1;
            } else if enabled && site.any.iter().any(projected) {
                c.matched += 1;
                *c.instead.entry(attention_projection::NAME).or_default() += 1;
            } else {
                let why = match (enabled, site.never) {
                    (false, _) => selection.why_off(fusion.name),
                    (true, Some(why)) => why.into(),
                    (true, None) => reason(&view, site, (&kernels, &kernels_of), forms),
                };
                c.misses.push(Miss { scope: graph.node(site.at).scope.clone(), why });
            }
        }
        out.push(c);
    }
    out
}

/// Why the ops of a site are in several kernels.
fn reason(
    v: &View<'_>,
    site: &Site,
    (kernels, kernels_of): (&[BTreeSet<NodeId>], &HashMap<NodeId, Vec<usize>>),
    forms: &Forms,
) -> String {
    let Some(group) = site.any.first() else { return "it has no ops".into() };
    let near: BTreeSet<usize> = group.iter().filter_map(|n| kernels_of.get(n)).flatten().copied().collect();
    let near = near.into_iter().map(|i| &kernels[i]);
    let most = near.max_by_key(|k| group.iter().filter(|n| k.contains(n)).count());
    let Some(kernel) = most else { return "nothing is computed".into() };
    let is = |f: &dyn Fn(&Op) -> bool| group.iter().any(|n| f(v.op(*n)));
    let linear = group.iter().any(|n| v.is_linear(*n));
    if linear && is(&|o| matches!(o, Op::Sample)) {
        return "only a decode step's product draws tokens: one of many rows makes tiles".into();
    }
    if group.iter().filter(|n| v.is_linear(**n)).count() > 1 && group.iter().all(|n| v.is_linear(*n)) {
        return "the cost model leaves these products apart".into();
    }
    let missing: Vec<NodeId> = group.iter().copied().filter(|n| !kernel.contains(n)).collect();
    let reduces = |n: &NodeId| matches!(v.op(*n), Op::Reduce(_) | Op::Softmax);
    if linear && group.iter().any(reduces) {
        let left = group.iter().find(|n| v.is_linear(**n)).map(|n| v.input(*n, 0));
        let before = |x: NodeId| group.iter().filter(|n| reduces(n)).any(|n| v.graph.depends(x, *n));
        let private = |x: NodeId| v.users[x.index()].iter().all(|u| v.is_linear(*u));
        return match forms.products {
            Products::Tiles => {
                "only decode and short steps in bf16 make a norm with the product: in longer ones \
                                each block of columns would make it again"
                    .into()
            }
            Products::Batches | Products::ShortTiles if left.is_some_and(|x| before(x) && private(x)) => {
                "tiles make no pass over a row before the products, which this norm needs".into()
            }
            Products::Batches | Products::ShortTiles | Products::Streams => {
                "the norm's result is needed in memory".into()
            }
        };
    }
    if let Some(hint) = site.hint {
        return hint.into();
    }
    let first = missing.first().copied().unwrap_or(site.at);
    let name = |n: NodeId| format!("{} of {}", v.op(n).name(), part(&v.graph.node(n).scope));
    if is(&|o| matches!(o, Op::Softmax)) {
        return format!("{} is no read of cache rows by one index, or is used elsewhere too", name(first));
    }
    let between =
        group.iter().copied().find(|n| forms.of[n.index()].is_buffer() && v.users[n.index()].len() > 1);
    match between {
        Some(n) => format!("{} is stored, because {} ops use it", name(n), v.users[n.index()].len()),
        None => format!("{} is in another kernel", name(first)),
    }
}

/// Innermost part of a scope.
fn part(scope: &str) -> &str {
    scope.rsplit('.').next().filter(|p| !p.is_empty()).unwrap_or("the model")
}
