//! TODO

pub mod cuda;
pub mod emulator;
