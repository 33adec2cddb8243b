//! Weft's passes: from a tensor graph to a plan.
//!
//! [`pipeline::compile`] is the list. Passes decide everything that code generation later prints.

pub mod attention_projection;
pub mod attention_prologue;
pub mod context;
pub mod eqsat;
pub mod fusion;
pub mod generation;
pub mod launch;
pub mod lower;
pub mod memory_plan;
mod merge;
pub mod numerics;
pub mod pipeline;
pub mod products;
pub mod provenance;
pub mod rules_page;
pub mod schedule;
pub mod siblings;

pub use context::{Context, Options, PassTime};
/// Names that `--disable` takes: of rewrite rules, of fusions, and of the passes that merge works; sorted.
pub fn names() -> Vec<&'static str> {
    let rules = eqsat::rules::all().into_iter().map(|r| r.name);
    let all: std::collections::BTreeSet<&str> = rules.chain(contract_names()).collect();
    all.into_iter().collect()
}

/// Names that contracts have and `--require` takes: of fusions, and of the passes that merge works; in order.
pub fn contract_names() -> Vec<&'static str> {
    let merging = [attention_prologue::NAME, attention_projection::NAME, siblings::NAME];
    fusion::all().into_iter().map(|f| f.name).chain(merging).collect()
}

pub use numerics::{Numerics, Selection};
pub use pipeline::{Compiled, Error, Form, compile};
pub use products::Products;
pub use provenance::Provenance;
