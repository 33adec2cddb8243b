//! Fusions: named groups of ops that belong into one kernel, found by patterns, counted, and held to.
//!
//! Before: the graph as rewriting left it. After: the *sites* of each fusion, and, once lowering is done, how
//! many of them are *matched*: all their ops are in one kernel of the plan, with no buffer between them.
//! A fusion that is off is cut: the value that would stand between its ops is forced into memory.
//! Tests: `passes/tests/fusion/`.
//!
//! Patterns are egg's, searched in an e-graph of the whole graph without rewriting; what a pattern cannot say
//! (any elementwise ops between two products) a site's function walks. *How* a site becomes a kernel is
//! lowering's affair; whether it did is read off the plan, not believed.

mod contract;
mod rules;
mod view;

pub(crate) use rules::{NORM_LINEAR, ROUTER};

pub use contract::{BodyContracts, Contract, Miss, contracts};
pub use view::View;

use crate::eqsat::language::Node as ENode;
use crate::numerics::{Numerics, Selection};
use egg::{EGraph, Id, Pattern, Searcher};
use std::collections::{BTreeMap, HashMap, HashSet};
use weft_ir::graph::Graph;
use weft_ir::ids::NodeId;

/// Ops that belong together.
pub type Group = Vec<NodeId>;

/// A place where a fusion applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The op that the pattern was found at.
    pub at: NodeId,
    /// One of these groups in one kernel is the fusion.
    pub any: Vec<Group>,
    /// Another fusion that competes for the site, and what of it suffices.
    pub instead: Option<(&'static str, Group)>,
    /// Values that are put into memory when the fusion is off.
    pub cut: Vec<NodeId>,
    /// Why nothing can fuse it, where the rule knows.
    pub never: Option<&'static str>,
    /// The usual reason why lowering leaves it apart.
    pub hint: Option<&'static str>,
}

impl Site {
    /// A site with one group.
    fn new(at: NodeId, group: Group, cut: Vec<NodeId>) -> Site {
        Site { at, any: vec![group], instead: None, cut, never: None, hint: None }
    }
}

/// What pattern variables stand for.
pub struct Vars<'a> {
    of: &'a dyn Fn(&str) -> Option<NodeId>,
}

impl Vars<'_> {
    /// The value of a variable.
    fn get(&self, name: &str) -> Option<NodeId> {
        (self.of)(name)
    }
}

/// A fusion.
#[derive(Clone)]
pub struct Fusion {
    /// Name, as in reports, `--require` and `--disable`.
    pub name: &'static str,
    /// Numerics class.
    pub numerics: Numerics,
    /// What becomes one kernel, for the generated page.
    pub summary: &'static str,
    /// Patterns of the op it looks at.
    pub patterns: &'static [&'static str],
    /// The site at a match; `None` when the fusion does not apply there.
    find: fn(&View<'_>, NodeId, &Vars<'_>) -> Option<Site>,
}

/// All fusions, in the order of reports.
pub fn all() -> Vec<Fusion> {
    rules::all()
}

/// Sites by fusion.
#[derive(Clone, Debug, Default)]
pub struct Sites {
    /// For each fusion, its sites in graph order.
    pub of: BTreeMap<&'static str, Vec<Site>>,
    /// Values that fusions which are off leave in memory.
    pub cuts: HashSet<NodeId>,
}

impl Sites {
    /// Ops at which a fusion has sites.
    pub fn at(&self, fusion: &str) -> impl Iterator<Item = NodeId> {
        self.of.get(fusion).into_iter().flatten().map(|s| s.at)
    }
}

/// Finds all sites of a graph.
///
/// # Errors
/// A pattern that does not parse: a fault of Weft.
pub fn find(graph: &Graph, selection: &Selection) -> Result<Sites, String> {
    let mut g: EGraph<ENode, ()> = EGraph::default();
    let mut class_of: Vec<Id> = Vec::with_capacity(graph.nodes.len());
    let mut node_of: HashMap<Id, NodeId> = HashMap::new();
    for id in graph.ids() {
        let node = graph.node(id);
        let children = node.inputs.iter().map(|x| class_of[x.index()]).collect();
        let class = g.add(ENode::op(node.op.clone(), children));
        class_of.push(class);
        node_of.entry(class).or_insert(id);
    }
    g.rebuild();
    let view = View::new(graph);
    let mut sites = Sites::default();
    for fusion in all() {
        let mut found: BTreeMap<NodeId, Site> = BTreeMap::new();
        for pattern in fusion.patterns {
            let pattern: Pattern<ENode> = pattern.parse().map_err(|e| format!("{}: {e}", fusion.name))?;
            for m in pattern.search(&g) {
                let Some(&at) = node_of.get(&m.eclass) else { continue };
                for subst in &m.substs {
                    let of = |name: &str| node_of.get(subst.get(name.parse().ok()?)?).copied();
                    if let Some(site) = (fusion.find)(&view, at, &Vars { of: &of }) {
                        found.entry(site.at).or_insert(site);
                    }
                }
            }
        }
        if !selection.allows(fusion.name, fusion.numerics) {
            sites.cuts.extend(found.values().flat_map(|s| s.cut.iter().copied()));
        }
        sites.of.insert(fusion.name, found.into_values().collect());
    }
    Ok(sites)
}
