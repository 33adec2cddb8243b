//! The list of passes: from a graph to a plan.

mod ir;
mod variant;

use crate::context::{Context, Options};
use crate::provenance::Provenance;
use ir::Ir;
use weft_ir::graph::Graph;
use weft_ir::ids::NodeId;
use weft_ir::plan::Plan;

/// Why a graph did not compile.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The graph that a builder made is not valid.
    #[error("the graph is not valid:\n{0}")]
    Graph(String),
    /// No rule lowers it.
    #[error("cannot lower the graph: {0}")]
    Lower(String),
    /// A pass made an invalid plan: a fault of Weft.
    #[error("the plan is not valid, which is a fault of Weft; please report it:\n{0}")]
    Plan(String),
}

/// A plan, and how it was made.
#[derive(Debug)]
pub struct Compiled {
    /// The plan.
    pub plan: Plan,
    /// Times and dumps.
    pub context: Context,
    /// Where each work came from.
    pub provenance: Provenance,
    /// For each body of the plan, the form of the step that it came from.
    pub forms: Vec<Form>,
}

/// A form of the step: a graph, and what became of its nodes.
#[derive(Debug)]
pub struct Form {
    /// `decode`, `batch` (decode steps of more than [`crate::schedule::ALONE`] sequences), `short` (prefill and scoring
    /// steps of few tokens), `prefill` (the other steps of a decoder), `encode`, or `all`.
    pub name: &'static str,
    /// The graph as it was lowered.
    pub graph: Graph,
    /// For each dispatch of the body, the nodes that it computes.
    pub dispatches: Vec<Vec<NodeId>>,
}

/// Compiles a graph.
///
/// # Errors
/// An invalid graph, or one that the rules cannot lower.
pub fn compile(graph: &Graph, options: Options) -> Result<Compiled, Error> {
    let mut context = Context::new(options);
    let c = &mut context;
    let mut ir = Ir::new(graph, &c.options);

    c.timed("verify-graph", |_| ir.verify_graph())?;
    c.dump("build", || graph.to_string());

    c.reports = c.timed("eqsat", |_| ir.rewrite())?;
    for (name, graph) in ir.graphs() {
        c.dump_changed(name, "build", || graph.to_string());
    }
    c.timed("fusions", |_| ir.find_fusions())?;
    c.timed("lower", |_| ir.lower())?;
    c.dump("lower", || ir.text());
    let full = c.options.opt_level >= 2;
    if full {
        c.timed("prologues", |_| ir.make_prologues());
        c.dump_changed("prologues", "lower", || ir.text());
        c.timed("projections", |_| ir.make_projections());
        c.dump_changed("projections", "prologues", || ir.text());
        c.timed("siblings", |_| ir.merge_siblings());
        c.dump_changed("siblings", "projections", || ir.text());
        c.contracts = c.timed("contracts", |_| ir.contracts());
    }
    c.timed("generation", |_| ir.add_advance());
    c.dump_changed("generation", if full { "siblings" } else { "lower" }, || ir.text());

    c.timed("schedule", |_| ir.schedule());
    c.dump("schedule", || ir.text());
    c.timed("memory-plan", |_| ir.place());
    c.dump_changed("memory-plan", "schedule", || ir.text());
    c.timed("launch", |_| ir.launch());
    c.timed("verify-plan", |_| ir.verify_plan())?;
    c.dump_changed("launch", "memory-plan", || ir.text());

    let provenance = ir.provenance();
    let (plan, forms) = ir.finish();
    Ok(Compiled { plan, context, provenance, forms })
}
