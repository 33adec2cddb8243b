//! Runs many random graphs, and writes what fails.

use super::check::{Check, Failure, Judged, without};
use super::make::graph;
use super::rng::Rng;
use super::shrink::{same_failure, shrink};
use rayon::prelude::*;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use weft_ir::graph::{Graph, parse};

/// A graph that fails.
#[derive(Clone, Debug)]
pub struct Failed {
    /// Its seed.
    pub seed: u64,
    /// How.
    pub failure: Failure,
}

/// What running many graphs gave.
#[derive(Clone, Debug, Default)]
pub struct Ran {
    /// Graphs that fail, by seed.
    pub failed: Vec<Failed>,
    /// Graphs whose results all hold to the rule of every kernel.
    pub plain: usize,
    /// Graphs of which some results were held to that rule on the mean of several inputs.
    pub on_average: usize,
    /// Graphs of which some results were held to what noise of the roundings' size does.
    pub by_noise: usize,
}

/// One graph in so many also runs on the emulator.
const EMULATED: u64 = 4;

/// Graphs of more nodes do not run on the emulator.
const CHEAP: usize = 160;

/// Stages of rewriting in a random order.
fn order(rng: &mut Rng) -> Vec<usize> {
    let mut stages: Vec<usize> = (0..weft_passes::eqsat::rules::stages().len()).collect();
    for i in (1..stages.len()).rev() {
        stages.swap(i, rng.below(i + 1));
    }
    stages
}

/// The check of a seed's graph: every variant, the highest level without some rules in some order, and for some graphs
/// the emulator, by turns of variants.
pub fn check_of(check: &Check, seed: u64, graph: &Graph) -> Check {
    let mut rng = Rng::named(seed, "rules");
    let off: Vec<&str> = check.rules.iter().copied().filter(|_| rng.chance(25)).collect();
    let mut variants = check.variants.clone();
    if !check.rules.is_empty() {
        variants.push(without(&off, order(&mut rng)));
    }
    let turn = (seed / EMULATED) as usize % variants.len().max(1);
    let cheap = seed.is_multiple_of(EMULATED) && graph.nodes.len() <= CHEAP;
    Check { variants, emulated: if cheap { vec![turn] } else { Vec::new() }, data: seed, ..check.clone() }
}

/// Checks the graph of a seed; by which rule.
///
/// # Errors
/// The first failure.
pub fn check_seed(check: &Check, seed: u64) -> Result<Judged, Failure> {
    let graph = graph(seed);
    check_of(check, seed, &graph).run(&graph)
}

/// Checks the graphs of the seeds `first..first + count`, with a line of progress every so often.
pub fn run_many(check: &Check, first: u64, count: u64) -> Ran {
    let start = Instant::now();
    let (done, bad) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let one = |seed: u64| {
        let checked = check_seed(check, seed).map_err(|failure| Failed { seed, failure });
        bad.fetch_add(usize::from(checked.is_err()), Ordering::Relaxed);
        let n = done.fetch_add(1, Ordering::Relaxed) + 1;
        if n.is_multiple_of(100) && count > 300 {
            let (bad, seconds) = (bad.load(Ordering::Relaxed), start.elapsed().as_secs());
            // Past the capture of the test harness.
            let _ = writeln!(std::io::stderr(), "random graphs: {n} of {count}, {bad} failed, {seconds} s");
        }
        checked
    };
    let all: Vec<Result<Judged, Failed>> = (first..first + count).into_par_iter().map(one).collect();
    let mut ran = Ran::default();
    for checked in all {
        match checked {
            Ok(Judged::Plain) => ran.plain += 1,
            Ok(Judged::OnAverage) => ran.on_average += 1,
            Ok(Judged::ByNoise) => ran.by_noise += 1,
            Err(failed) => ran.failed.push(failed),
        }
    }
    ran
}

/// Shrinks a failing graph, writes it to a folder, and says where it is and how to run it again.
///
/// # Panics
/// When the file cannot be written.
pub fn report(check: &Check, failed: &Failed, folder: &Path) -> String {
    let Failed { seed, failure } = failed;
    let whole = graph(*seed);
    let check = check_of(check, *seed, &whole);
    let small = shrink(&whole, &same_failure(&check, failure));
    let now = check.only(failure.variant, failure.stage).run(&small).err();
    let path = folder.join(format!("seed_{seed}.graph"));
    let mut text = String::new();
    let _ = writeln!(text, "// {failure}");
    if let Some(now) = &now {
        let _ = writeln!(text, "// shrunk: {now}");
    }
    let text = text.replace(['\r', '\n'], " ").replace(" // ", "\n// ");
    let text = format!("{}\n// data: {seed}\n{small}", text.trim_end());
    std::fs::create_dir_all(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    std::fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    format!(
        "seed {seed}: {failure}\n  smallest graph ({} of {} nodes): {}\n  to keep it: cp it to \
         testsuite/regressions/\n  again: WEFT_RANDOM_SEED={seed} WEFT_RANDOM_GRAPHS=1 cargo test -p weft-testsuite \
         --test random_graphs",
        small.nodes.len(),
        whole.nodes.len(),
        path.display()
    )
}

/// Checks a graph's text; a line `// data: N` says the seed of its data. Every variant runs on the emulator.
///
/// # Errors
/// What is wrong with it.
pub fn check_text(check: &Check, text: &str) -> Result<(), String> {
    let graph = parse(text).map_err(|e| e.to_string())?;
    let seed = text.lines().find_map(|l| l.strip_prefix("// data: "));
    let data = seed.map_or(Ok(0), str::parse).map_err(|e| format!("data: {e}"))?;
    let emulated = (0..check.variants.len()).collect();
    Check { data, emulated, ..check.clone() }.run(&graph).map(|_| ()).map_err(|f| f.to_string())
}
