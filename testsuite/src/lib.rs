//! Shared helpers of Weft's tests across crates.

pub mod emulate;
pub mod fixture;

pub use fixture::{Fixture, compile};
