//! What is reported of a loaded plan.

use std::time::Duration;

use serde::Serialize;
use weft_ir::plan::Role;

use super::memory::MemoryNeed;

/// A loaded kernel. Registers, stack and spills are of each thread, shared memory of each block, all but registers in
/// bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KernelReport {
    /// Name.
    pub name: String,
    /// Threads of a block.
    pub threads: u32,
    /// Registers.
    pub registers: u32,
    /// Stack frame.
    pub stack: u32,
    /// Spilled stores.
    pub spill_stores: u32,
    /// Spilled loads.
    pub spill_loads: u32,
    /// Static shared memory.
    pub static_shared: u32,
    /// Dynamic shared memory.
    pub dynamic_shared: u32,
    /// Blocks that fit on a multiprocessor at a time.
    pub blocks_per_sm: u32,
    /// Whether its code came from the cache.
    pub cached: bool,
    /// ptxas's warnings.
    pub warnings: Vec<String>,
}

/// An entry of a loaded plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EntryReport {
    /// Name.
    pub name: String,
    /// Purpose.
    pub role: Role,
    /// Most tokens.
    pub tokens: usize,
    /// Most output rows.
    pub rows: usize,
    /// Bytes of its arena.
    pub arena_bytes: usize,
    /// Bytes that its intermediate values would take without sharing.
    pub unshared_bytes: usize,
    /// Nodes of its graph, copies included.
    pub nodes: usize,
    /// Kernels among them.
    pub kernels: usize,
    /// Full edges.
    pub full_edges: usize,
    /// Programmatic edges.
    pub programmatic_edges: usize,
    /// Whether its graph is built.
    pub built: bool,
}

/// How a plan was loaded.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoadReport {
    /// The GPU.
    pub device: String,
    /// Device memory that the plan takes.
    pub memory: MemoryNeed,
    /// Device memory that was free before, in bytes.
    pub free_before: u64,
    /// Kernels that NVRTC compiled; the others came from the cache.
    pub compiled: usize,
    /// Kernels in all.
    pub kernels: usize,
    /// Time to compile, or fetch from the cache, and load the kernels.
    pub compile_time: Duration,
    /// Time to pack and upload weights and literals.
    pub upload_time: Duration,
    /// Why the cache could not be used for all kernels, when it could not; each reason once.
    pub cache_errors: Vec<String>,
}
