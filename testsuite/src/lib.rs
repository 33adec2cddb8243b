//! Shared helpers of Weft's tests across crates.

pub mod emulate;
pub mod fixture;
pub mod golden;
pub mod gpu;
pub mod nvrtc;
pub mod synthetic;

pub use fixture::{Fixture, compile};
