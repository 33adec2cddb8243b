//! `weft tune`: the schedules of decode kernels, measured on the GPU at hand.

use super::{print_json, table};
use crate::args::{BuildArgs, DeviceArg, TuneArgs};
use crate::engine::{Request, Source};
use crate::errors::{Error, Result};
use crate::measure::Gpu;
use crate::tuner::{RUNS, Tuner};
use crate::{progress, schedules};
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};
use weft_ir::target::{PROFILES, Target};
use weft_passes::schedule::database::{Database, Shape};
use weft_passes::schedule::tune::{Outcome, Settings, Task, TaskReport, Timer, tasks, tune};
use weft_runtime::exec::bench::{Measure, PROMPT, Workload};

/// The file to fill, unless another is named.
const FILE: &str = "schedules.ron";

/// What became of one shape.
#[derive(Debug, Serialize)]
struct Row {
    work: String,
    shape: String,
    dtype: String,
    outcome: &'static str,
    schedule: Option<String>,
    microseconds: Option<f64>,
    estimated_schedule_microseconds: Option<f64>,
    tried: usize,
    candidates: usize,
    finalists: Vec<Timed>,
    failures: Vec<String>,
}

/// A schedule that was timed in a step.
#[derive(Debug, Serialize)]
struct Timed {
    schedule: String,
    microseconds: f64,
    step_microseconds: f64,
}

#[derive(Debug, Serialize)]
struct Output {
    device: String,
    schedules: String,
    seconds: f64,
    shapes: Vec<Row>,
}

/// Tunes a model's decode kernels.
pub fn run(args: &TuneArgs) -> Result<()> {
    let file = args.build.schedules.clone().unwrap_or_else(|| PathBuf::from(FILE));
    let mut database = match file.exists() {
        true => schedules::read(&file)?,
        false => Database::default(),
    };
    let context = args.context.iter().copied().max().unwrap_or(1);
    let work = Workload { batch: args.batch, context, tokens: 2, runs: RUNS, prompt: PROMPT };
    let source = Source::open(&args.model, &args.build)?;
    // A bundle's kernels are what they are; of a checkpoint, those that are in the file stand beside what is timed.
    let mut build = BuildArgs { schedules: None, ..args.build.clone() };
    if source.target().is_none() {
        build.max_seq = build.max_seq.or(Some(work.context + work.tokens));
        build.schedules = file.exists().then(|| file.clone());
    }
    let request = Request { device: DeviceArg::Cuda, build: &build, sequences: args.batch };
    let remedy = "tune where the GPU is, and give its file to weft compile --schedules";
    let (loaded, options) = source.load_to_measure(request, remedy)?;
    let plan = loaded.plan().clone();
    work.check(&plan).map_err(|e| Error::input(e.to_string()))?;
    let target = Target::parse(&plan.target).map_err(Error::failed)?;
    let device = profile_name(target, &loaded.gpu().name);
    let (_, entry, _) = work.entry(&plan)?;
    let mut all = tasks(&plan, entry, target, &device);
    if all.is_empty() {
        return Err(Error::input(format!(
            "--batch {}: no kernel of {} has schedules to measure (steps of more than {} sequences run on tensor cores, \
             by estimate); give a smaller --batch",
            args.batch,
            entry.name,
            weft_passes::schedule::ALONE
        )));
    }
    only_named(&mut all, &args.kernel)?;
    let bar = progress::count("filling the cache");
    let mut gpu = Gpu::new(loaded, options, work, &mut |done, total| {
        progress::tell(&bar, done as u64, total as u64);
    })?;
    bar.finish_and_clear();
    // Puts a step's inputs and values where kernels find them.
    gpu.reference()?;
    gpu.set_contexts(&args.context);
    let bar = progress::count("tuning, s");
    let budget = args.budget as u64;
    let tell = |seconds: f64| progress::tell(&bar, (seconds as u64).min(budget), budget);
    let mut timer = Tuner::new(gpu, plan.clone(), &work, Box::new(tell))?;
    let settings =
        Settings { budget: args.budget as f64, context, again: args.again || !args.kernel.is_empty() };
    let reports = tune(&all, &mut database, &settings, &mut timer, &mut |database, _, _| {
        schedules::write(&file, database)
    });
    bar.finish_and_clear();
    let seconds = timer.elapsed();
    let shapes: Vec<Row> = reports?.iter().map(row).collect();
    for row in &shapes {
        for why in &row.failures {
            eprintln!("warning: {}: passed over {why}", row.work);
        }
    }
    let output = Output { device, schedules: file.display().to_string(), seconds, shapes };
    if args.json {
        return print_json(&output);
    }
    print(&output, &file)
}

/// Leaves those of the tasks that have one of the names in theirs; all where none is given.
///
/// # Errors
/// A name that no task has, with those that there are.
fn only_named(all: &mut Vec<Task>, names: &[String]) -> Result<()> {
    if let Some(unknown) = names.iter().find(|n| all.iter().all(|t| !t.name.contains(n.as_str()))) {
        let known: Vec<&str> = all.iter().map(|t| t.name.as_str()).collect();
        return Err(Error::input(format!("--kernel {unknown}: not among {}", known.join(", "))));
    }
    all.retain(|t| names.is_empty() || names.iter().any(|n| t.name.contains(n.as_str())));
    Ok(())
}

/// The device profile of a GPU: the longest name of the target's that its own has in it, else its own name.
fn profile_name(target: &Target, gpu: &str) -> String {
    let known = PROFILES.iter().filter(|(name, p)| *name == target.name && gpu.contains(p.name));
    let longest = known.map(|(_, p)| p.name).max_by_key(|name| name.len());
    longest.map_or_else(|| gpu.trim_start_matches("NVIDIA ").to_owned(), str::to_owned)
}

fn shape_text(shape: &Shape) -> String {
    match shape {
        Shape::Gemv { columns, k, group, computed } => {
            let group = if *group > 1 { format!(", {group} rows a point") } else { String::new() };
            let left = if *computed { ", computed left" } else { "" };
            format!("product {columns}×{k}{group}{left}")
        }
        Shape::AttentionRow { kv_heads, group, head_dim, value_dim, keys, made } => {
            let sizes =
                if head_dim == value_dim { head_dim.to_string() } else { format!("{head_dim}/{value_dim}") };
            let made = if *made { ", its rows made" } else { "" };
            format!("attention {kv_heads}×{group} heads of {sizes}, up to {keys} keys{made}")
        }
    }
}

fn row(report: &TaskReport) -> Row {
    let (outcome, measured) = match &report.outcome {
        Outcome::Known => ("known", None),
        Outcome::Tuned(m) => ("tuned", Some(m)),
        Outcome::NotReached => ("not reached", None),
        Outcome::Failed => ("failed", None),
    };
    let micros = |ns: u64| ns as f64 / 1e3;
    Row {
        work: report.name.clone(),
        shape: shape_text(&report.key.shape),
        dtype: report.key.dtype.to_string(),
        outcome,
        schedule: measured.map(|m| format!("{:?}", m.schedule)),
        microseconds: measured.map(|m| micros(m.ns)),
        estimated_schedule_microseconds: measured
            .filter(|m| m.estimated_ns > 0)
            .map(|m| micros(m.estimated_ns)),
        tried: measured.map_or(0, |m| m.tried),
        candidates: measured.map_or(0, |m| m.of),
        finalists: report
            .finalists
            .iter()
            .map(|f| Timed {
                schedule: format!("{:?}", f.schedule),
                microseconds: f.alone * 1e6,
                step_microseconds: f.step * 1e6,
            })
            .collect(),
        failures: report.failures.iter().map(|(schedule, why)| format!("{schedule:?}: {why}")).collect(),
    }
}

fn print(output: &Output, file: &Path) -> Result<()> {
    let text = |x: Option<f64>| x.map_or("–".to_owned(), |x| format!("{x:.2}"));
    let rows: Vec<Vec<String>> = output
        .shapes
        .iter()
        .map(|r| {
            let tried =
                if r.candidates > 0 { format!("{} of {}", r.tried, r.candidates) } else { "–".into() };
            vec![
                r.work.clone(),
                r.shape.clone(),
                r.outcome.into(),
                r.schedule.clone().unwrap_or_default(),
                tried,
                text(r.estimated_schedule_microseconds),
                text(r.microseconds),
            ]
        })
        .collect();
    let head = ["work", "shape", "", "schedule", "measured", "estimate's µs", "best µs"];
    let mut out = std::io::stdout().lock();
    write!(out, "{}", table(&head, &rows, 4))?;
    let count = |outcome: &str| output.shapes.iter().filter(|r| r.outcome == outcome).count();
    let left = count("not reached");
    writeln!(
        out,
        "{}: {} tuned, {} known before, {} failed, {left} not reached, in {:.0} s on {}",
        file.display(),
        count("tuned"),
        count("known"),
        count("failed"),
        output.seconds,
        output.device
    )?;
    if left > 0 {
        writeln!(out, "run it again for the rest, or give a larger --budget")?;
    }
    writeln!(out, "weft compile --schedules {} takes them", file.display())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{only_named, profile_name, row, shape_text};
    use weft_ir::dtype::DType;
    use weft_ir::plan::Schedule;
    use weft_ir::target::Target;
    use weft_passes::schedule::database::{Key, Measured, Shape};
    use weft_passes::schedule::tune::{Outcome, Task, TaskReport};

    #[test]
    fn the_longest_profile_that_a_gpu_is_named_after() {
        let name = |target: &str, gpu: &str| profile_name(Target::parse(target).expect("a target"), gpu);
        assert_eq!(name("sm_90", "NVIDIA H200"), "H200");
        assert_eq!(name("sm_90", "NVIDIA GH200 480GB"), "GH200");
        assert_eq!(name("sm_90", "NVIDIA H100 80GB HBM3"), "H100");
        assert_eq!(name("sm_89", "NVIDIA L40S"), "L40S");
    }

    #[test]
    fn names_leave_their_kernels() {
        let task = |name: &str| {
            let shape = Shape::Gemv { columns: 64, k: 32, group: 1, computed: false };
            let key = Key { target: "sm_90".into(), device: "H200".into(), dtype: DType::BF16, shape };
            Task { key, work: 0, name: name.into(), candidates: Vec::new(), chosen: 0 }
        };
        let left = |names: &[&str]| {
            let mut all = ["q_proj_k_proj_v_proj", "attention", "o_proj"].map(task).to_vec();
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            only_named(&mut all, &names).map_err(|e| e.to_string())?;
            Ok::<_, String>(all.into_iter().map(|t| t.name).collect::<Vec<_>>())
        };
        assert_eq!(left(&[]).map(|all| all.len()), Ok(3));
        assert_eq!(left(&["o_proj", "q_proj"]), Ok(vec!["q_proj_k_proj_v_proj".into(), "o_proj".into()]));
        let why = left(&["down_proj"]).expect_err("there is none");
        assert!(why.contains("down_proj: not among q_proj_k_proj_v_proj, attention, o_proj"), "{why}");
    }

    #[test]
    fn rows_say_what_became_of_a_shape() {
        let shape = Shape::Gemv { columns: 64, k: 32, group: 2, computed: true };
        assert_eq!(shape_text(&shape), "product 64×32, 2 rows a point, computed left");
        let key = Key { target: "sm_90".into(), device: "H200".into(), dtype: DType::BF16, shape };
        let schedule =
            Schedule::AttentionRow { warps: 4, heads: 1, depth: 2, splits: 1, cluster: 1, late: false };
        let measured =
            Measured { schedule: schedule.clone(), ns: 1500, estimated_ns: 0, tried: 3, of: 9, context: 64 };
        let report = |outcome| TaskReport {
            name: "gate_up".into(),
            key: key.clone(),
            outcome,
            failures: vec![(schedule.clone(), "too many registers".into())],
            finalists: Vec::new(),
        };
        let tuned = row(&report(Outcome::Tuned(measured)));
        assert_eq!((tuned.outcome, tuned.microseconds, tuned.tried), ("tuned", Some(1.5), 3));
        assert_eq!(tuned.estimated_schedule_microseconds, None);
        assert!(tuned.failures[0].contains("too many registers"));
        assert_eq!(row(&report(Outcome::NotReached)).outcome, "not reached");
    }
}
