//! Random-graph differential testing: valid graphs from seeds, checked to compute the same however they are
//! compiled, and shrunk where they do not.
//!
//! [`make`] makes graphs by recipes ([`blocks`], [`attention`], [`movement`], [`pointwise`], [`routed`], [`state`]);
//! [`data`] gives them weights and inputs; [`check`] compares; [`mod@shrink`] finds a small graph that fails in
//! the same way; [`driver`] runs many and writes what failed. Tests: `testsuite/tests/random_graphs.rs`.

pub mod attention;
pub mod blocks;
pub mod check;
pub mod data;
pub mod driver;
mod judge;
mod kernels;
pub mod make;
pub mod movement;
pub mod noise;
pub mod pointwise;
pub mod resize;
pub mod rng;
pub mod routed;
pub mod shrink;
pub mod state;
pub mod values;

pub use check::{Check, Failure, Judged, Stage, Variant, levels, options, without};
pub use driver::{Failed, Ran, check_seed, check_text, report, run_many};
pub use make::graph;
pub use shrink::shrink;
