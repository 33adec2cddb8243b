//! Lowering: from the graph to works and dispatches, by hand-written rules.
//!
//! Before: a graph of primitives. After: works on buffers, in launch order.
//!
//! [`forms`] decides which values become buffers and which are computed where they are used; [`inline`]
//! turns the latter into scalar expressions; [`emit`] makes one work for each buffer that is computed.
//! Level 0 makes every value a buffer. [`Rule`] names what was put together. Tests: `passes/tests/lower.rs`.

mod attend;
mod attention;
mod buffers;
mod draw;
mod emit;
mod experts;
mod forms;
mod index;
mod inline;
mod linear;
mod logits;
mod order;
mod region;
mod routing;
mod row_region;
mod rows;
mod rules;
mod scatter;
mod states;

pub use attention::AttentionSite;
pub use forms::{Form, Forms, is_linear};
pub use rules::Rule;

use crate::context::Options;
use crate::fusion::Sites;
use crate::products::Products;
use rayon::prelude::*;
use std::collections::HashSet;
use weft_ir::graph::Graph;
use weft_ir::ids::NodeId;
use weft_ir::plan::{Buffer, Dispatch, Work};

/// Works, buffers and dispatches of a step.
#[derive(Clone, Debug, Default)]
pub struct Lowered {
    /// Arrays.
    pub buffers: Vec<Buffer>,
    /// Distinct computations.
    pub works: Vec<Work>,
    /// For each graph, its dispatches in launch order.
    pub bodies: Vec<Vec<Dispatch>>,
}

/// A graph to lower.
#[derive(Clone, Copy, Debug)]
pub struct Variant<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// How its products are made.
    pub products: Products,
    /// Sites of the fusions; those that are off are cut.
    pub sites: &'a Sites,
}

/// What became of a graph's nodes.
#[derive(Debug)]
pub struct Placed {
    /// The graph as it was lowered: outputs that are one value have become copies.
    pub graph: Graph,
    /// For each dispatch of its body, the nodes that it computes.
    pub dispatches: Vec<Vec<NodeId>>,
    /// How each value exists.
    pub forms: Forms,
    /// Products that an attention makes ([`crate::attention_projection`]): what their epilogue would be is where they are
    /// read.
    pub projected: Vec<NodeId>,
}

/// Why an expression could not be made.
#[derive(Debug)]
pub(crate) enum Stop {
    /// This value must be a buffer; lowering starts again with that.
    Materialise(NodeId),
    /// The graph cannot be lowered.
    Fault(String),
}

/// Lowers verified graphs: variants of one step, which share buffers and works.
///
/// # Errors
/// An output that is not computed by the step (an input or a weight), or a reduction that no kernel
/// family can do.
pub fn run(options: &Options, variants: &[Variant<'_>]) -> Result<(Lowered, Vec<Placed>), String> {
    let drafts: Vec<Draft<'_>> = variants.par_iter().map(|v| Draft::new(options, *v)).collect();
    let mut lowered = Lowered::default();
    let placed: Result<Vec<Placed>, String> =
        drafts.into_iter().map(|draft| draft.lower(options, &mut lowered)).collect();
    Ok((lowered, placed?))
}

/// A graph whose forms are decided, before its works are made.
struct Draft<'a> {
    variant: Variant<'a>,
    graph: Graph,
    /// Values that must be buffers.
    forced: HashSet<NodeId>,
    forms: Forms,
}

impl<'a> Draft<'a> {
    fn new(options: &Options, variant: Variant<'a>) -> Draft<'a> {
        let graph = states::distinct_outputs(variant.graph);
        let mut forced = states::early_reads(&graph);
        forced.extend(&variant.sites.cuts);
        let forms = Forms::decide(&graph, options, &variant, &forced);
        Draft { variant, graph, forced, forms }
    }

    fn lower(mut self, options: &Options, lowered: &mut Lowered) -> Result<Placed, String> {
        loop {
            match emit::emit(&self.graph, &self.forms, lowered) {
                Ok(dispatches) => {
                    return Ok(Placed {
                        graph: self.graph,
                        dispatches,
                        forms: self.forms,
                        projected: Vec::new(),
                    });
                }
                Err(Stop::Fault(why)) => return Err(why),
                // Each round forces one more value, so this ends.
                Err(Stop::Materialise(node)) => {
                    if !self.forced.insert(node) {
                        let n = self.graph.node(node);
                        return Err(format!("{node} = {} ({}) cannot be lowered", n.op.name(), n.scope));
                    }
                    self.forms = Forms::decide(&self.graph, options, &self.variant, &self.forced);
                }
            }
        }
    }
}
