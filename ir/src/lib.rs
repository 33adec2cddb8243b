//! Weft's intermediate representations: everything the other crates meet in.
//!
//! `graph` (tensor graph of primitives) → `plan` (dispatches, buffers, launches) → `kernel` (typed
//! statements), plus the target table, the bundle manifest and the CPU reference. No IO, no FFI.

pub mod bundle;
pub mod decode;
pub mod dtype;
pub mod encoding;
pub mod generation;
pub mod graph;
pub mod ids;
pub mod kernel;
pub mod plan;
pub mod reference;
pub mod sampling;
pub mod scalar;
pub mod shape;
pub mod target;
pub mod verify;
