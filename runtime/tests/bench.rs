//! The arithmetic of `weft bench`, on recorded numbers.

#[allow(dead_code)]
mod toy;

use weft_ir::plan::{BufferKind, Plan};
use weft_ir::target::Target;
use weft_runtime::exec::bench::groups::{Group, groups, launch_bytes};
use weft_runtime::exec::bench::{Measure, PROMPT, Tokens, Workload, estimate, measure};
use weft_runtime::{Error, Result};

const WORK: Workload = Workload { batch: 1, context: 6, tokens: 4, runs: 3, prompt: PROMPT };

/// A GPU that gives what was recorded, in order.
struct Recorded {
    /// Tokens and seconds of each generation, the warm-up's first.
    runs: Vec<(Tokens, f64)>,
    steps: Vec<f64>,
    chains: Vec<f64>,
    /// The first token of prompts, the warm-up's first.
    prompts: Vec<f64>,
    /// What the chain was asked to stream.
    bytes: Vec<u64>,
    /// Calls, in order.
    calls: Vec<&'static str>,
}

impl Recorded {
    fn new() -> Recorded {
        let run = |seconds| (vec![3, 1, 4, 1], seconds);
        Recorded {
            runs: vec![run(9.0), run(0.004), run(0.008), run(0.0048)],
            steps: vec![0.0010, 0.0008, 0.0009],
            chains: vec![0.0004, 0.0005, 0.0006],
            prompts: vec![9.0, 0.0018, 0.0009, 0.0027],
            bytes: Vec::new(),
            calls: Vec::new(),
        }
    }
}

impl Measure for Recorded {
    fn device(&self) -> String {
        "recorded".into()
    }

    fn mode(&self) -> String {
        "from a list".into()
    }

    fn l2_bytes(&self) -> u64 {
        100
    }

    fn reference(&mut self) -> Result<Tokens> {
        self.calls.push("reference");
        Ok(vec![3, 1, 4, 1])
    }

    fn generate(&mut self) -> Result<(Tokens, f64)> {
        self.calls.push("generate");
        Ok(self.runs.remove(0))
    }

    fn step(&mut self) -> Result<f64> {
        self.calls.push("step");
        // The last is made only to put its inputs back.
        Ok(if self.steps.is_empty() { 0.0 } else { self.steps.remove(0) })
    }

    fn chain(&mut self, bytes: &[u64]) -> Result<f64> {
        self.calls.push("chain");
        self.bytes = bytes.to_vec();
        Ok(self.chains.remove(0))
    }

    fn prompt(&mut self, tokens: usize) -> Result<f64> {
        self.calls.push("prompt");
        assert_eq!(tokens, 16);
        Ok(self.prompts.remove(0))
    }

    fn kernel(&mut self, group: &Group, runs: usize) -> Result<Vec<f64>> {
        self.calls.push("kernel");
        let base = 1e-6 * (1.0 + group.kernel.index() as f64);
        Ok((0..runs).map(|i| base * (1.0 + i as f64)).collect())
    }
}

fn plan() -> Plan {
    toy::plan("sm_90")
}

#[test]
fn figures_are_medians_over_the_bytes_of_the_middle_token() {
    let (plan, mut gpu) = (plan(), Recorded::new());
    let mut told = Vec::new();
    let report = measure(&plan, &WORK, &mut gpu, &mut |done, total| told.push((done, total))).expect("runs");
    assert_eq!((report.entry.as_str(), report.counted_context), ("decode_1", 8));
    assert!(!report.estimated);
    let token = report.token.expect("measured");
    assert_eq!(token.seconds.median, 0.0012);
    assert_eq!((token.seconds.lowest, token.seconds.highest), (0.001, 0.002));
    assert_eq!((report.step.seconds.median, report.chain.seconds.median), (0.0009, 0.0005));
    assert!((token.of_chain - 2.4).abs() < 1e-12 && (report.step.of_chain - 1.8).abs() < 1e-12);
    assert_eq!(report.chain.of_chain, 1.0);
    let prompt = report.prompt.expect("measured");
    assert_eq!((prompt.tokens, prompt.seconds.median, prompt.of_step), (16, 0.0018, 2.0));
    // The chain streamed what the kernels move, launch by launch.
    let bytes: Vec<u64> = report.kernels.iter().map(|k| k.bytes).collect();
    assert_eq!(gpu.bytes, bytes);
    assert_eq!(report.bytes, bytes.iter().sum::<u64>());
    assert_eq!(report.chain.rate, report.bytes as f64 / 0.0005);
    let first = &report.kernels[0];
    assert_eq!((first.name.as_str(), first.launches), ("toy_embed", 1));
    assert_eq!(first.seconds.median, 2e-6);
    assert_eq!(first.rate, first.bytes as f64 / 2e-6);
    assert!((first.of_ceiling - first.rate / report.chain.rate).abs() < 1e-12);
    assert!((report.kernels_s - (2.0 + 4.0 + 6.0 + 8.0 + 10.0 + 12.0) * 1e-6).abs() < 1e-12);
    // 8 keys of 16 bytes; the table of 8 rows of 8.
    let of = |name: &str| report.kernels.iter().find(|k| k.name == name).expect("a kernel");
    assert!(of("toy_sum").bytes > 128 && !of("toy_sum").in_l2);
    assert!(of("toy_embed").in_l2);
    assert_eq!(report.compared_tokens, 4);
    // Kernels last, since they leave nonsense behind.
    let order: Vec<&str> = gpu.calls.clone();
    assert_eq!(order[..5], ["reference", "generate", "generate", "step", "chain"]);
    assert!(order[order.len() - 6..].iter().all(|c| *c == "kernel"));
    // The middle token's inputs are put back between.
    assert_eq!(order[order.len() - 7], "step");
    assert!(order[order.len() - 11..order.len() - 7].iter().all(|c| *c == "prompt"));
    assert_eq!(told.last(), Some(&(10, 10)));
}

#[test]
fn other_tokens_are_an_error_that_names_the_first() {
    let (plan, mut gpu) = (plan(), Recorded::new());
    gpu.runs[2].0 = vec![3, 1, 5, 1];
    let why = measure(&plan, &WORK, &mut gpu, &mut |_, _| {}).expect_err("differs").to_string();
    for part in ["timed run 2", "token 2 of sequence 0 is 5, not 4", "report it"] {
        assert!(why.contains(part), "{part:?} is not in {why}");
    }
    let mut gpu = Recorded::new();
    gpu.runs[0].0.pop();
    let why = measure(&plan, &WORK, &mut gpu, &mut |_, _| {}).expect_err("differs").to_string();
    assert!(why.contains("the warm-up") && why.contains("is none, not 1"), "{why}");
}

#[test]
fn a_workload_that_does_not_fit_says_what_would() {
    let says = |work: Workload, parts: &[&str]| {
        let why = work.check(&plan()).expect_err("does not fit").to_string();
        parts.iter().for_each(|p| assert!(why.contains(p), "{p:?} is not in {why}"));
    };
    says(Workload { batch: 3, ..WORK }, &["--batch 3", "--max-batch"]);
    says(Workload { tokens: 11, ..WORK }, &["--max-seq 17", "the plan has 16"]);
    says(Workload { runs: 0, ..WORK }, &["at least 1"]);
    Workload { tokens: 10, ..WORK }.check(&plan()).expect("fits");
    // The bucket that holds the batch; its padding reads no keys.
    let (at, entry, bind) = Workload { batch: 2, ..WORK }
        .entry(&plan())
        .map(|(a, e, b)| (a, e.name.clone(), b))
        .expect("an entry");
    assert_eq!((at, entry.as_str(), bind.seqs, bind.context), (0, "decode_2", 2, 8));
}

#[test]
fn an_estimate_has_the_same_rows_and_says_so() {
    let plan = plan();
    let profile = Target::parse("sm_90").expect("a target").profile;
    let report = estimate(&plan, &WORK, &profile).expect("estimates");
    assert!(report.estimated && report.token.is_none());
    assert_eq!((report.device.as_str(), report.launches, report.kernels.len()), ("H200", 6, 6));
    // Six tiny kernels: their launches are all there is, in the chain too.
    assert!((report.step.seconds.median - 6.0 * profile.launch).abs() < 1e-8);
    assert!((1.0..1.01).contains(&report.step.of_chain), "{}", report.step.of_chain);
    let sum: f64 = report.kernels.iter().map(|k| k.seconds.median).sum();
    let prompt = report.prompt.expect("a bucket holds it");
    assert!(prompt.tokens == 16 && prompt.of_step >= 1.0 && prompt.of_step < 1.01, "{prompt:?}");
    assert!((report.kernels_s - sum).abs() < 1e-15 && (report.step.seconds.median - sum).abs() < 1e-15);
}

#[test]
fn kernels_that_read_indices_of_the_step_are_marked() {
    let plan = plan();
    let (_, entry, bind) = WORK.entry(&plan).expect("an entry");
    let all = groups(&plan, entry, &bind).expect("groups");
    let marked: Vec<&str> = all
        .iter()
        .filter(|g| g.reads_made_integers)
        .map(|g| plan.kernels[g.kernel.index()].name.as_str())
        .collect();
    assert_eq!(marked, ["toy_sample"]);
    assert!(plan.buffers.iter().any(|b| b.kind == BufferKind::Temp && !b.dtype.is_float()));
    assert_eq!(launch_bytes(&all).len(), 6);
}

#[test]
fn launches_of_one_work_are_a_group() {
    let mut plan = plan();
    let body = &mut plan.bodies[0];
    let mut again = body.dispatches[0].clone();
    again.scope = "toy.again".into();
    body.dispatches.push(again);
    let (_, entry, bind) = WORK.entry(&plan).expect("an entry");
    let all = groups(&plan, entry, &bind).expect("groups");
    assert_eq!(all.len(), 6);
    assert_eq!((all[0].scope.as_str(), all[0].dispatches.len()), ("toy.embed", 2));
    assert_eq!(launch_bytes(&all)[6], all[0].cost.bytes());
    let mut broken = plan.clone();
    broken.entries[1].kernels.clear();
    let (_, entry, bind) = WORK.entry(&broken).expect("an entry");
    assert!(matches!(groups(&broken, entry, &bind), Err(Error::Plan { .. })));
}
