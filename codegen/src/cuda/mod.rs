//! Kernel IR to CUDA C. The writer prints and decides nothing: same kernel in, same bytes out.

mod cluster;
mod expr;
mod helpers;
mod namer;
mod rings;
mod stmt;
mod wgmma;
mod writer;

pub use namer::Namer;
pub use writer::{WriteError, describe, write, write_module};
