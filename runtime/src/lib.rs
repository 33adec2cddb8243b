//! Weft's runtime: NVRTC, CUDA graphs, execution.
//!
//! The lower half, from the bottom up:
//! - [`sys`]: the only unsafe code; the driver, memory, streams, modules and graphs as owners that clean up.
//! - [`nvrtc`]: finding NVRTC and compiling CUDA C with it (no GPU needed); [`resources`] reads ptxas's report.
//! - [`cache`] and [`compile`]: compiled code on disk, and many kernels compiled in parallel through it.
//! - [`doctor`]: what of all this is there, and what to do about the rest.
//!
//! The upper half is [`exec`]: plans loaded and run, on the GPU and on the CPU.

pub mod cache;
pub mod compile;
pub mod doctor;
pub mod error;
pub mod exec;
pub mod nvrtc;
pub mod resources;
pub mod sys;

pub use error::{Error, Result};
