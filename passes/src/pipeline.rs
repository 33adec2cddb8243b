//! The list of passes: from a graph to a plan.

use crate::context::{Context, Options};
use crate::memory_plan::Arena;
use crate::{launch, lower, memory_plan, schedule};
use std::collections::BTreeMap;
use weft_ir::graph::Graph;
use weft_ir::plan::{Body, Entry, Plan};
use weft_ir::verify;

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
}

fn lines<T: std::fmt::Display>(faults: &[T]) -> String {
    faults.iter().map(|f| format!("  {f}")).collect::<Vec<_>>().join("\n")
}

/// Compiles a graph.
///
/// # Errors
/// An invalid graph, or one that the rules cannot lower.
pub fn compile(graph: &Graph, options: Options) -> Result<Compiled, Error> {
    let mut context = Context::new(options);
    let c = &mut context;
    c.timed("verify-graph", |_| verify::graph::verify(graph)).map_err(|f| Error::Graph(lines(&f)))?;
    c.dump("build", || graph.to_string());
    let lowered = c.timed("lower", |c| lower::run(c, graph)).map_err(Error::Lower)?;
    let o = c.options.clone();
    let buckets = schedule::buckets(o.max_seq, o.max_batch, o.opt_level);
    let (kernels, chosen) = c.timed("schedule", |_| schedule::run(&lowered.works, &buckets, o.target));
    let arenas: Vec<Arena> = c.timed("memory-plan", |_| {
        buckets.iter().map(|b| memory_plan::run(&lowered.buffers, &lowered.dispatches, &b.bind)).collect()
    });
    let launches = c.timed("launch", |_| {
        let programmatic = vec![o.target.features.programmatic_launch; lowered.dispatches.len()];
        launch::run(&lowered.dispatches, &arenas.iter().collect::<Vec<_>>(), &programmatic)
    });
    let entries = buckets
        .into_iter()
        .zip(chosen)
        .zip(arenas)
        .map(|((bucket, kernels), arena)| Entry {
            name: bucket.name,
            role: bucket.role,
            bind: bucket.bind,
            body: 0,
            kernels: kernels.into_iter().enumerate().map(|(w, k)| (w as u32, k)).collect::<BTreeMap<_, _>>(),
            arena: arena.placements,
            arena_bytes: arena.bytes,
            unshared_bytes: arena.unshared_bytes,
        })
        .collect();
    let plan = Plan {
        target: o.target.name.into(),
        dtype: o.dtype,
        opt_level: o.opt_level,
        max_seq: o.max_seq,
        max_batch: o.max_batch,
        buffers: lowered.buffers,
        works: lowered.works,
        kernels,
        bodies: vec![Body { dispatches: lowered.dispatches, launches }],
        entries,
    };
    c.timed("verify-plan", |_| verify::plan::verify(&plan)).map_err(|f| Error::Plan(lines(&f)))?;
    c.dump("plan", || plan.to_ron().unwrap_or_else(|e| e.to_string()));
    Ok(Compiled { plan, context })
}
