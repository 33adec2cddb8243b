//! The figures of a benchmark, measured or estimated.

use serde::{Deserialize, Serialize};
use weft_ir::plan::{Entry, Plan};
use weft_ir::shape::Bindings;
use weft_ir::target::DeviceProfile;

use super::Workload;
use super::figures::{Spread, rate, ratio};
use super::groups::{Group, launch_bytes};
use crate::error::{Error, Result};

/// What a decode step of a plan takes. Times are seconds, rates bytes a second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Whether all times are the cost model's, and nothing was measured.
    pub estimated: bool,
    /// GPU.
    pub device: String,
    /// Target of the plan.
    pub target: String,
    /// Type of weights and activations.
    pub dtype: String,
    /// Bucket.
    pub entry: String,
    /// Sequences.
    pub batch: usize,
    /// Tokens in the cache as generation starts.
    pub context: usize,
    /// Tokens generated in a run.
    pub tokens: usize,
    /// Runs.
    pub runs: usize,
    /// Keys of a sequence that bytes were counted with: those of the middle token.
    pub counted_context: usize,
    /// Kernels in the order of their first launches.
    pub kernels: Vec<KernelTime>,
    /// Launches of a step.
    pub launches: usize,
    /// Bytes that a step must move.
    pub bytes: u64,
    /// Sum of the kernels' times, each alone.
    pub kernels_s: f64,
    /// A token of a generation; absent in an estimate.
    pub token: Option<Rated>,
    /// A step, launched back to back.
    pub step: Rated,
    /// The chain: the streaming ceiling.
    pub chain: Rated,
    /// The first token of a short prompt; absent where no bucket holds it.
    pub prompt: Option<Prompt>,
    /// How tokens were generated; absent in an estimate.
    pub mode: Option<String>,
    /// Tokens of each run that were compared with step-by-step execution, and were the same.
    pub compared_tokens: usize,
}

/// A time for the bytes of a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rated {
    /// Seconds.
    pub seconds: Spread,
    /// Bytes a second at the median.
    pub rate: f64,
    /// Median over that of the chain.
    pub of_chain: f64,
}

impl Rated {
    fn new(seconds: Spread, bytes: u64, chain: f64) -> Rated {
        Rated { seconds, rate: rate(bytes, seconds.median), of_chain: ratio(seconds.median, chain) }
    }
}

/// The time to the first token of a prompt on an empty cache, in a plan that is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prompt {
    /// Tokens.
    pub tokens: usize,
    /// Seconds until the first token is on the host.
    pub seconds: Spread,
    /// Median over that of a decode step.
    pub of_step: f64,
}

impl Prompt {
    fn new(tokens: usize, seconds: Spread, step: f64) -> Prompt {
        Prompt { tokens, seconds, of_step: ratio(seconds.median, step) }
    }
}

/// A kernel of the step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelTime {
    /// Its name.
    pub name: String,
    /// Place in the model of its first launch.
    pub scope: String,
    /// Launches in a step.
    pub launches: usize,
    /// Bytes that one launch must move.
    pub bytes: u64,
    /// Operations of one launch.
    pub flops: u64,
    /// Seconds of one launch, alone.
    pub seconds: Spread,
    /// Bytes a second.
    pub rate: f64,
    /// Rate over that of the chain.
    pub of_ceiling: f64,
    /// Whether what it reads in turn fits in L2, so that its rate says little.
    pub in_l2: bool,
    /// Whether it was timed on one launch's buffers only, since it reads indices that the step made.
    pub one_place: bool,
}

/// Measured times of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Timed {
    /// A token of a generation.
    pub token: Spread,
    /// A step back to back.
    pub step: Spread,
    /// The chain.
    pub chain: Spread,
    /// The first token of a prompt, of so many tokens.
    pub prompt: (usize, Spread),
    /// How tokens were generated.
    pub mode: String,
    /// Tokens of a run that were compared.
    pub compared: usize,
    /// Bytes of the L2 cache.
    pub l2_bytes: u64,
}

/// The report of measurements: `alone` has a time for each group.
///
/// # Errors
/// [`Error::Plan`] for a kernel that does not exist.
pub(super) fn measured(
    plan: &Plan,
    at: (&Entry, &Bindings),
    work: &Workload,
    groups: &[Group],
    alone: &[Spread],
    timed: &Timed,
    device: String,
) -> Result<Report> {
    let bytes = launch_bytes(groups).into_iter().fold(0, u64::saturating_add);
    let ceiling = rate(bytes, timed.chain.median);
    let mut report = plain(plan, at, work, groups, alone, ceiling)?;
    report.device = device;
    for (kernel, group) in report.kernels.iter_mut().zip(groups) {
        let places = if group.reads_made_integers { 1 } else { group.dispatches.len() as u64 };
        kernel.in_l2 = kernel.bytes.saturating_mul(places) < timed.l2_bytes;
    }
    let chain = timed.chain.median;
    report.token = Some(Rated::new(timed.token, bytes, chain));
    report.step = Rated::new(timed.step, bytes, chain);
    report.chain = Rated::new(timed.chain, bytes, chain);
    report.prompt = Some(Prompt::new(timed.prompt.0, timed.prompt.1, timed.step.median));
    report.mode = Some(timed.mode.clone());
    report.compared_tokens = timed.compared;
    Ok(report)
}

/// The report of the cost model: kernels by the roofline with a launch's cost, the step as their sum, the chain as
/// bytes by bandwidth with as many launches. The first token of a prompt of so many tokens is the sum of its step's
/// kernels.
pub(super) fn estimated(
    plan: &Plan,
    at: (&Entry, &Bindings),
    work: &Workload,
    (groups, prompt): (&[Group], Option<(usize, Vec<Group>)>),
    profile: &DeviceProfile,
) -> Result<Report> {
    let exactly = |seconds| Spread { median: seconds, lowest: seconds, highest: seconds };
    let mut times = Vec::with_capacity(groups.len());
    let (mut step, mut chain, mut bytes) = (0.0, 0.0, 0u64);
    for g in groups {
        let spec = plan.kernels.get(g.kernel.index()).ok_or_else(|| no_kernel(g))?;
        let estimate = g.cost.estimate(&spec.schedule, profile);
        let n = g.dispatches.len();
        step += estimate.seconds * n as f64;
        chain += (g.cost.bytes() as f64 / profile.bandwidth + profile.launch) * n as f64;
        bytes = bytes.saturating_add(g.cost.bytes().saturating_mul(n as u64));
        times.push(exactly(estimate.seconds));
    }
    let mut report = plain(plan, at, work, groups, &times, rate(bytes, chain))?;
    report.device = profile.name.into();
    report.estimated = true;
    report.step = Rated::new(exactly(step), bytes, chain);
    report.chain = Rated::new(exactly(chain), bytes, chain);
    if let Some((tokens, groups)) = prompt {
        let mut seconds = 0.0;
        for g in &groups {
            let spec = plan.kernels.get(g.kernel.index()).ok_or_else(|| no_kernel(g))?;
            seconds += g.cost.estimate(&spec.schedule, profile).seconds * g.dispatches.len() as f64;
        }
        report.prompt = Some(Prompt::new(tokens, exactly(seconds), step));
    }
    Ok(report)
}

fn no_kernel(g: &Group) -> Error {
    Error::plan(format!("kernel {}", g.kernel.index()), "it does not exist")
}

/// What both have in common; the step's times are not filled in.
fn plain(
    plan: &Plan,
    (entry, bind): (&Entry, &Bindings),
    work: &Workload,
    groups: &[Group],
    times: &[Spread],
    ceiling: f64,
) -> Result<Report> {
    let mut kernels = Vec::with_capacity(groups.len());
    for (g, seconds) in groups.iter().zip(times) {
        let spec = plan.kernels.get(g.kernel.index()).ok_or_else(|| no_kernel(g))?;
        let rate = rate(g.cost.bytes(), seconds.median);
        kernels.push(KernelTime {
            name: spec.name.clone(),
            scope: g.scope.clone(),
            launches: g.dispatches.len(),
            bytes: g.cost.bytes(),
            flops: g.cost.flops(),
            seconds: *seconds,
            rate,
            of_ceiling: ratio(rate, ceiling),
            in_l2: false,
            one_place: g.reads_made_integers,
        });
    }
    let none = Rated { seconds: Spread::default(), rate: 0.0, of_chain: 0.0 };
    Ok(Report {
        estimated: false,
        device: String::new(),
        target: plan.target.clone(),
        dtype: plan.dtype.to_string(),
        entry: entry.name.clone(),
        batch: work.batch,
        context: work.context,
        tokens: work.tokens,
        runs: work.runs,
        counted_context: bind.context,
        launches: groups.iter().map(|g| g.dispatches.len()).sum(),
        bytes: launch_bytes(groups).into_iter().fold(0, u64::saturating_add),
        kernels_s: kernels.iter().map(|k| k.seconds.median * k.launches as f64).sum(),
        kernels,
        token: None,
        step: none,
        chain: none,
        prompt: None,
        mode: None,
        compared_tokens: 0,
    })
}
