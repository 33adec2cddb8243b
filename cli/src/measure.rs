//! A model on the GPU, as [`weft_runtime::exec::bench`] measures it.

use crate::batch::{Chunk, Piece, chunks, inputs, sampled, step};
use crate::engine;
use crate::errors::Result;
use std::collections::BTreeSet;
use weft_codegen::kernels;
use weft_frontend::checkpoint::Checkpoint;
use weft_ir::ids::DispatchId;
use weft_ir::plan::{KernelSpec, Plan, Role, Schedule};
use weft_ir::reference::StepInputs;
use weft_passes::schedule::{launch_shape, scratch};
use weft_runtime::exec::bench::figures::Spread;
use weft_runtime::exec::bench::groups::{Group, repeated};
use weft_runtime::exec::bench::{Measure, PROMPT, Tokens, Workload};
use weft_runtime::exec::{
    CudaModel, CudaOptions, Executor, Generate, KernelSource, LaunchMode, Next, StandIn, StandInSource,
    StreamChain, StreamDims, StreamKernel,
};
use weft_runtime::sys::driver::Device;
use weft_runtime::{Error, Result as Measured};

/// Launches in the graph that a kernel is timed alone with: enough that what starts the graph does not count.
const ALONE: usize = 512;

/// Why a generation may end early.
const NO_TOKEN: &str =
    "the logits hold NaN, so no token can be chosen; with --dtype f16 values may overflow: try bf16";

/// A kernel by another schedule than the plan's.
pub struct Variant(StandIn);

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
    /// Tokens of each sequence in the cache where steps with variants are timed.
    contexts: Vec<usize>,
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
            let ids = |c: &Chunk| &prompts[c.sequence][c.start..c.start + c.len];
            let piece = |c: &Chunk| Piece::greedy(c.sequence, c.start, ids(c));
            let pieces: Vec<Piece<'_>> = step_chunks.iter().map(piece).collect();
            let out = step(&mut model, Role::Prefill, &pieces, false)?;
            for (c, token) in step_chunks.iter().zip(out.tokens) {
                first[c.sequence] = sampled(token, c.sequence, c.start + c.len - 1)?;
                done += c.len;
            }
            progress(done, work.batch * work.context);
        }
        let stream = stream_kernel(&plan.target)?;
        let contexts = vec![work.context];
        Ok(Gpu { model, options, work, entry, first, made: Vec::new(), contexts, stream, chain: None })
    }

    /// For steps alone, of a model whose cache is left as it is, all zeros after loading: times do not depend on what
    /// is in it.
    ///
    /// # Errors
    /// A workload that the plan does not hold.
    pub fn of_steps(model: CudaModel, options: CudaOptions, work: Workload) -> Result<Gpu> {
        let entry = work.entry(model.plan())?.0;
        let stream = stream_kernel(&model.plan().target)?;
        let (first, made) = (vec![0; work.batch], vec![0; work.batch * work.tokens]);
        let contexts = vec![work.context];
        Ok(Gpu { model, options, work, entry, first, made, contexts, stream, chain: None })
    }

    /// Where [`Gpu::time_step`] times steps from now on: with so many tokens of each sequence in the cache, at most
    /// those of the workload.
    pub fn set_contexts(&mut self, contexts: &[usize]) {
        self.contexts = in_order(contexts, self.work.context);
    }

    /// The inputs of the step that makes token `at` of each sequence, from the tokens before it.
    fn inputs(&self, at: usize, tokens: &[u32]) -> StepInputs {
        self.inputs_behind(self.work.context + at, tokens)
    }

    /// The inputs of a step that has so many tokens of each sequence before it.
    fn inputs_behind(&self, start: usize, tokens: &[u32]) -> StepInputs {
        let piece = |(sequence, id)| Piece::greedy(sequence, start, std::slice::from_ref(id));
        let pieces: Vec<Piece<'_>> = tokens.iter().enumerate().map(piece).collect();
        inputs(&self.model, Role::Decode, &pieces)
    }

    /// The kernels of a work of the plan by other schedules, compiled together; or why one cannot be.
    pub fn variants(&self, plan: &Plan, work: u32, schedules: &[Schedule]) -> Vec<Result<Variant, String>> {
        let Some(spec) = self.spec(plan, work) else {
            return schedules.iter().map(|_| Err("the plan has no kernel for it".into())).collect();
        };
        let emitted: Vec<Result<_, String>> =
            schedules.iter().map(|s| self.emit(plan, spec, s.clone())).collect();
        let wanted: Vec<_> = emitted.iter().flatten().cloned().collect();
        let Some(bind) = plan.entries.get(self.entry).map(|e| e.bind) else { return Vec::new() };
        let mut made = match self.model.stand_ins(&wanted, &bind, &self.options) {
            Ok(made) => made.into_iter(),
            Err(why) => return schedules.iter().map(|_| Err(why.to_string())).collect(),
        };
        let next = |e: Result<_, String>| {
            e?;
            let made = made.next().ok_or("it was not compiled")?;
            made.map(Variant).map_err(|why| why.to_string())
        };
        emitted.into_iter().map(next).collect()
    }

    /// The kernel that the plan has for a work in the entry.
    fn spec<'a>(&self, plan: &'a Plan, work: u32) -> Option<&'a KernelSpec> {
        let kernel = plan.entries.get(self.entry)?.kernels.get(&work)?;
        plan.kernels.get(kernel.index())
    }

    /// A kernel by another schedule.
    fn emit(&self, plan: &Plan, spec: &KernelSpec, schedule: Schedule) -> Result<StandInSource, String> {
        let missing = || "the plan is not whole".to_owned();
        let work = plan.works.get(spec.work as usize).ok_or_else(missing)?;
        let bind = plan.entries.get(self.entry).ok_or_else(missing)?.bind;
        let (grid, threads) = launch_shape(work, &schedule);
        let scratch = scratch(work, &schedule);
        let blocks = [0, 1, 2].map(|axis: usize| grid[axis].blocks(&bind) as u32);
        let spec = KernelSpec { schedule, grid, threads, scratch, ..spec.clone() };
        let emitted = weft_codegen::emit_kernel(plan, &spec).map_err(|e| e.to_string())?;
        let source = KernelSource {
            name: emitted.name,
            source: emitted.source,
            dynamic_shared: emitted.dynamic_shared,
        };
        Ok(StandInSource { source, grid: blocks, threads, scratch: spec.scratch })
    }

    /// Times of a launch of a group's kernel alone, or of a variant of it.
    ///
    /// # Errors
    /// What the device reports.
    pub fn time(&mut self, group: &Group, variant: Option<&Variant>, runs: usize) -> Measured<Vec<f64>> {
        let turns = !group.reads_made_integers;
        if let (false, Some(last)) = (turns, group.dispatches.last()) {
            let inputs = self.middle()?;
            self.model.run_up_to(self.entry, &inputs, *last)?;
        }
        let order = repeated(&group.dispatches, turns, ALONE);
        self.model.time_launches(self.entry, &order, variant.map(|v| &v.0), runs)
    }

    /// Times of a step with variants in the places of all launches of some dispatches: means over the contexts.
    ///
    /// # Errors
    /// What the device reports.
    pub fn time_step(
        &mut self,
        variants: &[(&[DispatchId], &Variant)],
        launches: usize,
        runs: usize,
    ) -> Measured<Vec<f64>> {
        let stand_ins: Vec<(&[DispatchId], &StandIn)> = variants.iter().map(|(d, v)| (*d, &v.0)).collect();
        let steps: Vec<StepInputs> =
            self.contexts.iter().map(|c| self.inputs_behind(*c, &self.first)).collect();
        self.model.time_step_with(self.entry, &stand_ins, &steps, launches, runs)
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

/// Seconds of a decode step of one sequence of a plan that is not loaded yet: the median of five times its graph
/// launched back to back, with up to 1024 tokens in the cache. Only this step's kernels are compiled, and the cache's rows
/// are zeros: times do not depend on them.
///
/// # Errors
/// What loading and steps report.
pub fn decode_step(device: &Device, checkpoint: &Checkpoint, plan: &Plan) -> Result<f64> {
    let tokens = (plan.max_seq / 2).clamp(1, 64);
    let context = plan.max_seq.saturating_sub(tokens).clamp(1, 1024);
    let work = Workload { batch: 1, context, tokens, runs: 5, prompt: PROMPT };
    let plan = plan.only(work.entry(plan)?.0).ok_or_else(|| bad("the plan has no decode step"))?;
    let kernels = weft_codegen::emit(&plan)?.into_iter().map(|k| KernelSource {
        name: k.name,
        source: k.source,
        dynamic_shared: k.dynamic_shared,
    });
    let kernels: Vec<KernelSource> = kernels.collect();
    let model = engine::load_on(device, checkpoint, plan, &kernels)?;
    let mut gpu = Gpu::of_steps(model, engine::cuda_options(device), work)?;
    let samples = (0..work.runs).map(|_| gpu.step()).collect::<Measured<Vec<f64>>>()?;
    Ok(Spread::of(&samples).map(|s| s.median).ok_or_else(|| bad("a step took no time"))?)
}

impl Measure for Gpu {
    fn device(&self) -> String {
        self.model.device()
    }

    fn mode(&self) -> String {
        "one launch a generation, its tokens streamed to the host".into()
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
        let first = self.inputs(0, &self.first);
        let limits = vec![self.work.tokens; self.work.batch];
        let start = std::time::Instant::now();
        let g = Generate { first: &first, limits: &limits, stop_tokens: &[] };
        let rows = self.model.generate(&g, &mut |_, _| Next::Go)?;
        let seconds = start.elapsed().as_secs_f64();
        let mut made = Vec::with_capacity(self.work.tokens * self.work.batch);
        for at in 0..self.work.tokens {
            for row in &rows {
                let token = row.tokens.get(at).ok_or_else(|| bad(NO_TOKEN))?;
                made.push(i32::try_from(*token).map_err(|_| bad(NO_TOKEN))?);
            }
        }
        self.made.clone_from(&made);
        Ok((made, seconds))
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

    fn prompt(&mut self, tokens: usize) -> Measured<f64> {
        let vocab = self.model.limits().vocab.unwrap_or(1).max(1);
        let ids = prompt(0, tokens, vocab);
        let most = self.model.limits().prefill_tokens;
        let start = std::time::Instant::now();
        let mut made = None;
        for chunk in chunks(&[tokens], most).iter().flatten() {
            let piece = Piece::greedy(0, chunk.start, &ids[chunk.start..chunk.start + chunk.len]);
            let inputs = inputs(&self.model, Role::Prefill, &[piece]);
            made = self.model.step(Role::Prefill, &inputs, false)?.tokens.first().copied();
        }
        let seconds = start.elapsed().as_secs_f64();
        made.ok_or_else(|| bad(NO_TOKEN)).and_then(token)?;
        Ok(seconds)
    }

    fn kernel(&mut self, group: &Group, runs: usize) -> Measured<Vec<f64>> {
        // The chain's memory is no longer needed.
        self.chain = None;
        self.time(group, None, runs)
    }
}

/// Each context once, up to the most, which comes last: kernels alone are timed with the inputs of the last step.
fn in_order(contexts: &[usize], most: usize) -> Vec<usize> {
    let each: BTreeSet<usize> = contexts.iter().map(|c| (*c).min(most)).chain([most]).collect();
    each.into_iter().collect()
}

fn bad(why: &str) -> Error {
    Error::BadArgument { what: "bench".into(), why: why.into() }
}

fn token(sampled: i32) -> Measured<u32> {
    u32::try_from(sampled).map_err(|_| bad(NO_TOKEN))
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
    use super::{in_order, prompt};

    #[test]
    fn the_longest_context_comes_last_and_each_once() {
        assert_eq!(in_order(&[1024, 128, 128, 2000], 1278), [128, 1024, 1278]);
        assert_eq!(in_order(&[], 64), [64]);
    }

    #[test]
    fn prompts_differ_and_stay_in_the_vocabulary() {
        let (a, b) = (prompt(0, 100, 97), prompt(1, 100, 97));
        assert!(a.iter().chain(&b).all(|&t| t < 97));
        assert_ne!(a, b);
    }
}
