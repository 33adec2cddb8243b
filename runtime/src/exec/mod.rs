//! Execution of plans: one interface for the GPU and the CPU reference.
//!
//! - [`cuda`]: a plan on the GPU; `load` and `upload` bring it there, `kernels` are loaded as they are used, `graphs`
//!   makes a CUDA graph of an entry.
//! - [`mod@bench`]: what a decode step takes on the GPU, kernel by kernel.
//! - [`generate`]: many decode steps, step by step or (`device_loop`) as one launch.
//! - [`cpu`]: a graph or a plan interpreted by the reference.
//! - Shared, and free of both: [`bucket`] (limits, the choice of an entry, padding), [`check`] (step inputs),
//!   [`memory`] (where buffers lie, and how much that takes), [`nodes`] (the nodes of an entry), [`pack`] (the bytes
//!   of a weight).

pub mod bench;
pub mod bucket;
pub mod check;
pub mod cpu;
pub mod cuda;
mod device_loop;
pub mod generate;
mod graphs;
mod kernels;
mod load;
pub mod memory;
pub mod nodes;
pub mod pack;
pub mod report;
mod tables;
mod upload;

pub use cpu::{CpuModel, CpuOptions};
pub use cuda::{CudaModel, StandIn, StandInSource, StreamChain, StreamDims, StreamKernel};
pub use device_loop::check_driver;
pub use generate::{Generate, Next, OnToken, RowTokens, step_by_step};
pub use load::{CudaOptions, KernelSource, LaunchMode, LoadProgress, OnProgress, check_memory, check_plan};
pub use memory::MemoryNeed;
pub use report::{EntryReport, KernelReport, LoadReport, UploadReport};

use crate::Result;
use serde::Serialize;
use weft_ir::plan::Role;
use weft_ir::reference::StepInputs;

/// Most that a step can hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Longest context of a sequence, in tokens.
    pub max_seq: usize,
    /// Most sequences at once.
    pub max_batch: usize,
    /// Most tokens of a prefill step.
    pub prefill_tokens: usize,
    /// Most tokens of a scoring step.
    pub score_tokens: usize,
    /// Most tokens of an encoder's step.
    pub encode_tokens: usize,
    /// Entries of the vocabulary: the width of the logits. `None` for an encoder, which has none.
    pub vocab: Option<usize>,
    /// Width of an encoder's hidden states; `None` for a decoder.
    pub hidden: Option<usize>,
}

/// What a step gives.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOutput {
    /// Sampled token of each output row.
    pub tokens: Vec<i32>,
    /// Logits [rows, vocab], row-major, when they were asked for.
    pub logits: Vec<f32>,
    /// An encoder's hidden states [tokens, hidden], row-major.
    pub hidden: Vec<f32>,
}

/// A loaded plan with its states, ready to run steps.
///
/// Inputs hold what the step really has (no padding): `token_ids`, `positions`, `sequences`, `slots` one
/// for each token, sequences in ascending order, in a decode step each once; `slot_base` one for each
/// sequence of the cache (`max_batch`); `output_rows` and the sampling parameters one for each output row. An encoder takes whole
/// sequences, one behind the other: `slot_base` and `lengths`, one for each, are their first tokens and numbers
/// of tokens. The executor takes the nearest bucket and pads.
pub trait Executor {
    /// Runs a step. State rows of the step's slots are replaced.
    ///
    /// # Errors
    /// A step that no bucket holds, inputs that do not fit each other, or a failure of the device.
    fn step(&mut self, role: Role, inputs: &StepInputs, logits: bool) -> Result<StepOutput>;

    /// Runs decode steps from a first one on until every row ended, and tells each token as it is made. State rows
    /// behind the last token of a row may be replaced.
    ///
    /// Step by step, unless the executor knows better; the tokens are the same, bit for bit.
    ///
    /// # Errors
    /// As [`Executor::step`]; [`crate::Error::BadArgument`] for limits or stop tokens that cannot be;
    /// [`crate::Error::Loop`] where it cannot run as the executor runs it.
    fn generate(&mut self, g: &Generate<'_>, on_token: &mut OnToken<'_>) -> Result<Vec<RowTokens>> {
        step_by_step(self, g, on_token)
    }

    /// Makes ready what prompts of so many tokens in all and answers in so many rows will run, which else their first
    /// steps do. With `loops` also for [`Executor::generate`].
    ///
    /// # Errors
    /// As [`Executor::step`] and [`Executor::generate`].
    fn ready_for(&mut self, tokens: usize, rows: usize, loops: bool) -> Result<()> {
        let _ = (tokens, rows, loops);
        Ok(())
    }

    /// What a step can hold.
    fn limits(&self) -> Limits;

    /// Where it runs, in words: `NVIDIA H200` or `CPU reference (f32, 2 threads)`.
    fn device(&self) -> String;

    /// How it was brought to the device; `None` where there is none.
    fn load_report(&self) -> Option<&LoadReport> {
        None
    }

    /// Most sequences share a cache of `max_batch · max_seq` slots: first slot of sequence `s`.
    fn slot_base(&self, sequence: usize) -> i32 {
        (sequence * self.limits().max_seq) as i32
    }
}
