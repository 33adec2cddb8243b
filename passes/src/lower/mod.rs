//! Lowering: from the graph to works and dispatches, by hand-written rules.
//!
//! Before: a graph of primitives. After: works on buffers, in launch order.
//!
//! [`forms`] decides which values become buffers and which are computed where they are used; [`inline`]
//! turns the latter into scalar expressions; [`emit`] makes one work for each buffer that is computed.
//! Level 0 makes every value a buffer. Tests: `passes/tests/lower.rs`.

mod attention;
mod buffers;
mod emit;
mod forms;
mod index;
mod inline;
mod linear;
mod order;
mod region;
mod states;

pub use attention::AttentionSite;
pub use forms::{Form, Forms};

use crate::context::Context;
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

/// Why an expression could not be made.
#[derive(Debug)]
pub(crate) enum Stop {
    /// This value must be a buffer; lowering starts again with that.
    Materialise(NodeId),
    /// The graph cannot be lowered.
    Fault(String),
}

/// Lowers verified graphs: variants of one step, which share buffers and works. With each graph, whether its
/// products may compute their left operand.
///
/// # Errors
/// An output that is not computed by the step (an input or a weight), or a reduction that no kernel
/// family can do.
pub fn run(context: &mut Context, graphs: &[(&Graph, bool)]) -> Result<Lowered, String> {
    let mut lowered = Lowered::default();
    for (graph, prologues) in graphs {
        one(context.options.opt_level, graph, *prologues, &mut lowered)?;
    }
    Ok(lowered)
}

fn one(opt_level: u8, graph: &Graph, prologues: bool, lowered: &mut Lowered) -> Result<(), String> {
    let graph = &states::distinct_outputs(graph);
    let mut forced = states::early_reads(graph);
    loop {
        let forms = Forms::decide(graph, opt_level, prologues, &forced);
        let mut attempt = lowered.clone();
        match emit::emit(graph, &forms, &mut attempt) {
            Ok(()) => {
                *lowered = attempt;
                return Ok(());
            }
            Err(Stop::Fault(why)) => return Err(why),
            // Each round forces one more value, so this ends.
            Err(Stop::Materialise(node)) => {
                if !forced.insert(node) {
                    let n = graph.node(node);
                    return Err(format!("{node} = {} ({}) cannot be lowered", n.op.name(), n.scope));
                }
            }
        }
    }
}
