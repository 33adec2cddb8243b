//! What is reported of a loaded plan.

use std::fmt;

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
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
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
    /// Seconds to compile the kernels, or fetch them from the cache; meanwhile weights are brought to the device.
    pub compile_seconds: f64,
    /// How weights and literals came to the device.
    pub upload: UploadReport,
    /// Seconds of all of it: the GPU's context, kernels, memory, weights.
    pub seconds: f64,
    /// Why the cache could not be used for all kernels, when it could not; each reason once.
    pub cache_errors: Vec<String>,
}

/// How constants came to the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct UploadReport {
    /// Bytes.
    pub bytes: u64,
    /// Seconds from beginning to end.
    pub seconds: f64,
    /// Bytes a second.
    pub rate: f64,
    /// Threads that wrote them into page-locked memory.
    pub threads: usize,
    /// Share of the threads' time in which they read, packed and wrote bytes. In the rest they waited for page-locked
    /// memory and for copies: then the bus, or setting up, is what limits.
    pub filling: f64,
}

impl fmt::Display for UploadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (gb, rate, share) = (self.bytes as f64 / 1e9, self.rate / 1e9, 100.0 * self.filling);
        write!(
            f,
            "{gb:.2} GB in {:.2} s, {rate:.1} GB/s, {} threads filling {share:.0}%",
            self.seconds, self.threads
        )
    }
}
