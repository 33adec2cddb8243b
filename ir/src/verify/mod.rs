//! Verifiers, one for each level: each collects all faults and returns the facts later stages use.

pub mod graph;
pub mod kernel;
pub mod plan;
