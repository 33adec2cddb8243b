//! Weft's passes: from a tensor graph to a plan.
//!
//! [`pipeline::compile`] is the list. Passes decide everything that code generation later prints.

pub mod context;
pub mod eqsat;
pub mod launch;
pub mod lower;
pub mod memory_plan;
pub mod pipeline;
pub mod schedule;

pub use context::{Context, Options, PassTime};
pub use pipeline::{Compiled, Error, compile};
