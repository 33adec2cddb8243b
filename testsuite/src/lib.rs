//! Shared helpers of Weft's tests across crates.

pub mod attention;
pub mod companions;
pub mod decoder;
mod distance;
pub mod embed;
pub mod emulate;
pub mod emulated_decoder;
pub mod encoder;
pub mod fixture;
pub mod forms;
pub mod fuzz;
pub mod generation;
pub mod gguf;
pub mod golden;
pub mod gpu;
pub mod kernel_cases;
pub mod kernel_families;
pub mod nvrtc;
pub mod on_device;
pub mod one_work;
pub mod product;
pub mod random;
pub mod routers;
pub mod synthetic;
pub mod unseen;

pub use fixture::{Fixture, compile};
