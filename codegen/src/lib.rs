//! Weft's code generation: from a plan to CUDA C.
//!
//! [`kernels`] builds kernel IR for each kernel of the plan, [`cuda`] prints it, [`emulator`] executes it
//! on the CPU. Pure: the same plan gives the same bytes, whatever the number of threads.

pub mod cuda;
pub mod delays;
mod emit;
pub mod emulator;
mod error;
pub mod kernels;

pub use emit::{Emitted, emit, emit_kernel, emit_with};
pub use error::Error;
