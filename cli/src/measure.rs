//! A model on the GPU, as [`weft_runtime::exec::bench`] measures it.

use crate::batch::{Piece, chunks, inputs, sampled, step};
use crate::errors::Result;
use weft_codegen::kernels;
use weft_ir::plan::Role;
use weft_ir::reference::StepInputs;
use weft_ir::sampling::{Params, Penalties};
use weft_runtime::exec::bench::groups::{Group, repeated};
use weft_runtime::exec::bench::{Measure, Tokens, Workload};
use weft_runtime::exec::{
    CudaModel, CudaOptions, Executor, KernelSource, LaunchMode, StreamChain, StreamDims, StreamKernel,
};
use weft_runtime::{Error, Result as Measured};

/// Launches in the graph that a kernel is timed alone with: enough that what starts the graph does not count.
const ALONE: usize = 512;

/// A model whose cache is filled with a workload's context.
pub struct Gpu {
    model: CudaModel,
    options: CudaOptions,
    work: Workload,
    /// Position of the entry in the plan.
    entry: usize,
    /// The token that follows the context of each sequence.
    first: Vec<u32>,
    /// Tokens of the last generation.
    made: Tokens,
    stream: StreamKernel,
    chain: Option<StreamChain>,
}

impl Gpu {
    /// Fills the cache with prompts of the context's length. `progress` is told (tokens done, tokens in all).
    ///
    /// # Errors
    /// A workload that the plan does not hold, or what a step reports.
    pub fn new(
        mut model: CudaModel,
        options: CudaOptions,
        work: Workload,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Gpu> {
        let plan = model.plan().clone();
        let entry = work.entry(&plan)?.0;
        let limits = model.limits();
        let vocab = limits.vocab.unwrap_or(1).max(1);
        let prompts: Vec<Vec<u32>> = (0..work.batch).map(|s| prompt(s, work.context, vocab)).collect();
        let mut first = vec![0; work.batch];
        let mut done = 0;
        for step_chunks in chunks(&vec![work.context; work.batch], limits.prefill_tokens) {
            let piece = |c: &crate::batch::Chunk| Piece {
                sequence: c.sequence,
                start: c.start,
                ids: &prompts[c.sequence][c.start..c.start + c.len],
                params: Params::GREEDY,
                penalties: Penalties::NONE,
                prompt: 0,
            };
            let pieces: Vec<Piece<'_>> = step_chunks.iter().map(piece).collect();
            let out = step(&mut model, Role::Prefill, &pieces, false)?;
            for (c, token) in step_chunks.iter().zip(out.tokens) {
                first[c.sequence] = sampled(token, c.sequence, c.start + c.len - 1)?;
                done += c.len;
            }
            progress(done, work.batch * work.context);
        }
        let stream = stream_kernel(&plan.target)?;
        Ok(Gpu { model, options, work, entry, first, made: Vec::new(), stream, chain: None })
    }

    /// The inputs of the step that makes token `at` of each sequence, from the tokens before it.
    fn inputs(&self, at: usize, tokens: &[u32]) -> StepInputs {
        let piece = |(sequence, id)| Piece {
            sequence,
            start: self.work.context + at,
            ids: std::slice::from_ref(id),
            params: Params::GREEDY,
            penalties: Penalties::NONE,
            prompt: 0,
        };
        let pieces: Vec<Piece<'_>> = tokens.iter().enumerate().map(piece).collect();
        inputs(&self.model, Role::Decode, &pieces)
    }

    fn steps(&mut self) -> Measured<(Tokens, f64)> {
        let (mut last, mut made) = (self.first.clone(), Vec::new());
        let start = std::time::Instant::now();
        for at in 0..self.work.tokens {
            let inputs = self.inputs(at, &last);
            let out = self.model.step(Role::Decode, &inputs, false)?;
            last = out.tokens.iter().map(|&t| token(t)).collect::<Measured<_>>()?;
            made.extend(out.tokens);
        }
        let seconds = start.elapsed().as_secs_f64();
        self.made.clone_from(&made);
        Ok((made, seconds))
    }

    /// Inputs of the middle token's step.
    pub fn middle(&self) -> Measured<StepInputs> {
        let at = self.work.middle() - self.work.context - 1;
        let before = match at.checked_sub(1) {
            None => self.first.clone(),
            Some(before) => {
                let from = before * self.work.batch;
                let row = self.made.get(from..from + self.work.batch).unwrap_or_default();
                row.iter().map(|&t| token(t)).collect::<Measured<_>>()?
            }
        };
        Ok(self.inputs(at, &before))
    }
}

impl Measure for Gpu {
    fn device(&self) -> String {
        self.model.device()
    }

    fn mode(&self) -> String {
        "a graph launch a token, each from the host".into()
    }

    fn l2_bytes(&self) -> u64 {
        u64::from(self.model.gpu().l2_bytes)
    }

    fn reference(&mut self) -> Measured<Tokens> {
        let before = self.model.set_launch_mode(LaunchMode::Serial);
        let made = self.steps();
        self.model.set_launch_mode(before);
        Ok(made?.0)
    }

    fn generate(&mut self) -> Measured<(Tokens, f64)> {
        self.steps()
    }

    fn step(&mut self) -> Measured<f64> {
        let inputs = self.middle()?;
        Ok(f64::from(self.model.timing(self.entry, &inputs, self.work.tokens)?) / 1e3)
    }

    fn chain(&mut self, bytes: &[u64]) -> Measured<f64> {
        if self.chain.is_none() {
            self.chain = Some(self.model.stream_chain(&self.stream, bytes, &self.options)?);
        }
        match &self.chain {
            Some(chain) => self.model.time_chain(chain, self.work.tokens),
            None => Err(bad("the chain is not there")),
        }
    }

    fn kernel(&mut self, group: &Group, runs: usize) -> Measured<Vec<f64>> {
        // The chain's memory is no longer needed.
        self.chain = None;
        let turns = !group.reads_made_integers;
        if let (false, Some(last)) = (turns, group.dispatches.last()) {
            let inputs = self.middle()?;
            self.model.run_up_to(self.entry, &inputs, *last)?;
        }
        self.model.time_launches(self.entry, &repeated(&group.dispatches, turns, ALONE), None, runs)
    }
}

fn bad(why: &str) -> Error {
    Error::BadArgument { what: "bench".into(), why: why.into() }
}

fn token(sampled: i32) -> Measured<u32> {
    u32::try_from(sampled).map_err(|_| {
        bad("the logits hold NaN, so no token can be chosen; with --dtype f16 values may overflow: try bf16")
    })
}

/// A prompt of a sequence: tokens spread over the vocabulary.
fn prompt(sequence: usize, tokens: usize, vocab: usize) -> Vec<u32> {
    (0..tokens).map(|i| ((i * 7919 + sequence * 104_729 + 1) % vocab) as u32).collect()
}

/// The streaming kernel for a target.
fn stream_kernel(target: &str) -> Result<StreamKernel> {
    let target = weft_ir::target::Target::parse(target).map_err(crate::errors::Error::failed)?;
    let emitted = kernels::emit_stream(target.features.programmatic_launch)?;
    let source =
        KernelSource { name: emitted.name, source: emitted.source, dynamic_shared: emitted.dynamic_shared };
    let dims = |bytes, sms| {
        let l = kernels::stream_launch(bytes, sms)?;
        Some(StreamDims { blocks: l.blocks, vectors: l.vectors, rounds: l.rounds })
    };
    let sums_bytes = |blocks| 4 * kernels::stream_sums(blocks);
    Ok(StreamKernel { source, threads: kernels::STREAM_THREADS, dims, sums_bytes })
}

#[cfg(test)]
mod tests {
    use super::prompt;

    #[test]
    fn prompts_differ_and_stay_in_the_vocabulary() {
        let (a, b) = (prompt(0, 100, 97), prompt(1, 100, 97));
        assert!(a.iter().chain(&b).all(|&t| t < 97));
        assert_ne!(a, b);
    }
}
