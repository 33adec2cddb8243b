//! What a decode step takes: each kernel, the step, a generation, and the chain that is their ceiling.
//!
//! Everything that is arithmetic is here and in [`figures`], [`mod@groups`] and [`report`]; the GPU is behind [`Measure`],
//! so that tests give recorded numbers.

pub mod figures;
pub mod groups;
pub mod report;

use weft_ir::plan::{Entry, Plan, Role};
use weft_ir::shape::Bindings;
use weft_ir::target::DeviceProfile;

use crate::error::{Error, Result};
use figures::Spread;
use groups::{Group, groups};
pub use report::{KernelTime, Report, Timed};

/// Tokens of the prompt whose first token is timed, unless it is said otherwise.
pub const PROMPT: usize = 16;

/// Alignment of the ranges that a chain streams.
const ALIGN: u64 = 256;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each that are in the cache when generation starts.
    pub context: usize,
    /// Tokens generated for each in a run.
    pub tokens: usize,
    /// Runs.
    pub runs: usize,
    /// Tokens of the prompt whose first token is timed; at most the plan's longest sequence.
    pub prompt: usize,
}

impl Workload {
    /// Keys that the middle token of a run attends to: bytes are counted there.
    pub fn middle(&self) -> usize {
        self.context + self.tokens.div_ceil(2)
    }

    /// Whether a plan holds it.
    ///
    /// # Errors
    /// [`Error::BadArgument`] with the figures and the remedy.
    pub fn check(&self, plan: &Plan) -> Result<()> {
        let fault = |why: String| Err(Error::bad("bench", why));
        if plan.entries.iter().all(|e| e.role != Role::Decode) {
            return fault("the model is an encoder, which has no decode steps".into());
        }
        if [self.context, self.tokens, self.runs, self.batch, self.prompt].contains(&0) {
            return fault("batch, context, tokens, runs and prompt are at least 1".into());
        }
        if self.batch > plan.max_batch {
            let most = plan.max_batch;
            return fault(format!(
                "--batch {}: the plan holds {most}; compile with a higher --max-batch",
                self.batch
            ));
        }
        let needed = self.context + self.tokens;
        if needed > plan.max_seq {
            let (context, tokens, most) = (self.context, self.tokens, plan.max_seq);
            return fault(format!(
                "--context {context} and --tokens {tokens} take {needed} positions, and the plan has {most}; \
                 compile with --max-seq {needed}, or give less"
            ));
        }
        Ok(())
    }

    /// The entry that takes its steps, and what is bound there at the middle token.
    ///
    /// # Errors
    /// As [`Workload::check`].
    pub fn entry<'a>(&self, plan: &'a Plan) -> Result<(usize, &'a Entry, Bindings)> {
        self.check(plan)?;
        let holds = |e: &Entry| e.role == Role::Decode && e.bind.tokens >= self.batch;
        let fitting = plan.entries.iter().enumerate().filter(|(_, e)| holds(e));
        let (at, entry) = fitting.min_by_key(|(_, e)| e.bind.tokens).ok_or_else(|| {
            Error::bad("bench", format!("no decode bucket of the plan holds {} sequences", self.batch))
        })?;
        let seqs = self.batch.min(entry.bind.seqs);
        Ok((at, entry, Bindings { context: self.middle(), seqs, ..entry.bind }))
    }
}

/// Tokens of a generation: those of a step one behind the other, step by step.
pub type Tokens = Vec<i32>;

/// What can be measured of a workload. Seconds throughout.
pub trait Measure {
    /// The GPU's name.
    fn device(&self) -> String;

    /// How [`Measure::generate`] runs, in words.
    fn mode(&self) -> String;

    /// Bytes of the L2 cache.
    fn l2_bytes(&self) -> u64;

    /// Generates the workload's tokens the plainest way: step by step, kernel by kernel.
    ///
    /// # Errors
    /// What the device reports.
    fn reference(&mut self) -> Result<Tokens>;

    /// Generates them the way that is timed.
    ///
    /// # Errors
    /// What the device reports.
    fn generate(&mut self) -> Result<(Tokens, f64)>;

    /// Time of the middle token's step, launched again and again without a host in between.
    ///
    /// # Errors
    /// What the device reports.
    fn step(&mut self) -> Result<f64>;

    /// Time of a chain that streams so many bytes in each launch.
    ///
    /// # Errors
    /// What the device reports; a launch larger than the memory that is free.
    fn chain(&mut self, bytes: &[u64]) -> Result<f64>;

    /// Time of a prompt of so many tokens on an empty cache, until its first token is on the host. The cache is no
    /// longer the workload's.
    ///
    /// # Errors
    /// What the device reports.
    fn prompt(&mut self, tokens: usize) -> Result<f64>;

    /// Times of a launch of a kernel alone, one for each run.
    ///
    /// # Errors
    /// What the device reports.
    fn kernel(&mut self, group: &Group, runs: usize) -> Result<Vec<f64>>;
}

/// Measures a workload of a plan. `progress` is told (parts done, parts in all).
///
/// # Errors
/// A workload that the plan does not hold, tokens of a timed run that are not those of the reference, or what the
/// device reports.
pub fn measure(
    plan: &Plan,
    work: &Workload,
    gpu: &mut dyn Measure,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Report> {
    let (_, entry, bind) = work.entry(plan)?;
    let groups = groups(plan, entry, &bind)?;
    let bytes = groups::launch_bytes(&groups);
    let total = 1 + work.runs + groups.len();
    let expected = gpu.reference()?;
    progress(1, total);
    // Not counted: clocks rise, caches fill.
    check_tokens(&expected, &gpu.generate()?.0, work.batch, None)?;
    let (mut tokens, mut steps, mut chains) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..work.runs {
        let (made, seconds) = gpu.generate()?;
        check_tokens(&expected, &made, work.batch, Some(run))?;
        tokens.push(seconds / work.tokens as f64);
        // In turns, so that all see the same clocks.
        steps.push(gpu.step()?);
        chains.push(gpu.chain(&bytes)?);
        progress(2 + run, total);
    }
    let prompt = work.prompt.min(plan.max_seq);
    // Its first step builds a graph, and is not counted.
    let prompts = (0..=work.runs).map(|_| gpu.prompt(prompt)).skip(1).collect::<Result<Vec<f64>>>()?;
    // Kernels alone see the middle token's step again.
    gpu.step()?;
    // Last: kernels that run alone leave nonsense in the buffers.
    let mut alone = Vec::with_capacity(groups.len());
    for (i, group) in groups.iter().enumerate() {
        alone.push(spread(&gpu.kernel(group, work.runs)?)?);
        progress(2 + work.runs + i, total);
    }
    let timed = Timed {
        token: spread(&tokens)?,
        step: spread(&steps)?,
        chain: spread(&chains)?,
        prompt: (prompt, spread(&prompts)?),
        mode: gpu.mode(),
        compared: expected.len(),
        l2_bytes: gpu.l2_bytes(),
    };
    report::measured(plan, (entry, &bind), work, &groups, &alone, &timed, gpu.device())
}

/// The same table by the cost model.
///
/// # Errors
/// A workload that the plan does not hold.
pub fn estimate(plan: &Plan, work: &Workload, profile: &DeviceProfile) -> Result<Report> {
    let (_, entry, bind) = work.entry(plan)?;
    let prompt = prompt_step(plan, work.prompt.min(plan.max_seq))?;
    report::estimated(plan, (entry, &bind), work, (&groups(plan, entry, &bind)?, prompt), profile)
}

/// The kernels of the step of a prompt of so many tokens; `None` where no bucket holds it.
fn prompt_step(plan: &Plan, tokens: usize) -> Result<Option<(usize, Vec<Group>)>> {
    let holds = |e: &&Entry| e.role == Role::Prefill && e.bind.tokens >= tokens;
    let Some(entry) = plan.entries.iter().filter(holds).min_by_key(|e| e.bind.tokens) else {
        return Ok(None);
    };
    let bind = Bindings { context: tokens, seqs: 1, ..entry.bind };
    Ok(Some((tokens, groups(plan, entry, &bind)?)))
}

fn spread(samples: &[f64]) -> Result<Spread> {
    Spread::of(samples).ok_or_else(|| Error::bad("bench", "a measurement gave no number"))
}

fn check_tokens(expected: &[i32], made: &[i32], batch: usize, run: Option<usize>) -> Result<()> {
    if expected == made {
        return Ok(());
    }
    let which = run.map_or("the warm-up".to_owned(), |r| format!("timed run {}", r + 1));
    let differs = |(a, b): (&i32, &i32)| a != b;
    let at = expected.iter().zip(made).position(differs).unwrap_or(expected.len().min(made.len()));
    let text = |list: &[i32]| list.get(at).map_or("none".to_owned(), ToString::to_string);
    Err(Error::bad(
        "bench",
        format!(
            "{which} gave other tokens than step-by-step execution, so its time means nothing: token {} of \
             sequence {} is {}, not {}; this is a fault of Weft: please report it",
            at / batch.max(1),
            at % batch.max(1),
            text(made),
            text(expected)
        ),
    ))
}
