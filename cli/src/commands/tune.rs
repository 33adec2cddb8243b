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
use weft_passes::schedule::database::{Database, Key, Shape};
use weft_passes::schedule::tune::{Outcome, Settings, TaskReport, Timer, tasks, tune};
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
    /// Whether the file has it now.
    in_file: bool,
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
    /// Longest context of the plan that was measured, in tokens.
    max_seq: usize,
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
    // The file to fill is no choice of the plan: what is in it stands beside what is timed whatever the plan has.
    let mut build = BuildArgs { schedules: None, ..args.build.clone() };
    if source.target().is_none() {
        build.max_seq = build.max_seq.or(Some(work.context + work.tokens));
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
    let kernel = |work: u32| entry.kernels.get(&work).and_then(|k| plan.kernels.get(k.index()));
    let names: Vec<&str> = all.iter().map(|t| kernel(t.work).map_or("", |k| &k.name)).collect();
    for (task, wanted) in all.iter_mut().zip(named(&names, &args.kernel)?) {
        task.stays = !wanted;
    }
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
    let shapes: Vec<Row> = reports?.iter().map(|r| row(r, database.known(&r.key).is_some())).collect();
    for row in &shapes {
        for why in &row.failures {
            eprintln!("warning: {}: passed over {why}", row.work);
        }
    }
    let output =
        Output { device, schedules: file.display().to_string(), max_seq: plan.max_seq, seconds, shapes };
    if args.json {
        return print_json(&output);
    }
    print(&output, &file)
}

/// Which kernels have one of the wanted names in theirs; all where none is wanted.
///
/// # Errors
/// A name that no kernel has, with those that there are.
fn named(kernels: &[&str], wanted: &[String]) -> Result<Vec<bool>> {
    let has = |kernel: &&str, name: &String| !name.is_empty() && kernel.contains(name.as_str());
    if let Some(unknown) = wanted.iter().find(|name| !kernels.iter().any(|k| has(k, name))) {
        return Err(Error::input(format!("--kernel {unknown}: not among {}", kernels.join(", "))));
    }
    Ok(kernels.iter().map(|k| wanted.is_empty() || wanted.iter().any(|name| has(k, name))).collect())
}

/// The device profile of a GPU: the longest name of the target's that its own has in it, else its own name.
fn profile_name(target: &Target, gpu: &str) -> String {
    let known = PROFILES.iter().filter(|(name, p)| *name == target.name && gpu.contains(p.name));
    let longest = known.map(|(_, p)| p.name).max_by_key(|name| name.len());
    longest.map_or_else(|| gpu.trim_start_matches("NVIDIA ").to_owned(), str::to_owned)
}

fn key_text(key: &Key) -> String {
    shape_text(&key.shape) + &key.within()
}

fn shape_text(shape: &Shape) -> String {
    match shape {
        Shape::Gemv { columns, k, group, computed } => {
            let group = if *group > 1 { format!(", {group} rows a point") } else { String::new() };
            let left = if *computed { ", computed left" } else { "" };
            format!("product {columns}×{k}{group}{left}")
        }
        Shape::AttentionRow { kv_heads, group, head_dim, value_dim, keys, made, projected } => {
            let sizes =
                if head_dim == value_dim { head_dim.to_string() } else { format!("{head_dim}/{value_dim}") };
            let made = if *made { ", its rows made" } else { "" };
            let projected =
                if *projected > 0 { format!(", projected to {projected}") } else { String::new() };
            format!("attention {kv_heads}×{group} heads of {sizes}, up to {keys} keys{made}{projected}")
        }
    }
}

fn row(report: &TaskReport, in_file: bool) -> Row {
    let (outcome, measured) = match &report.outcome {
        Outcome::Known => ("known", None),
        Outcome::Tuned(m) => ("tuned", Some(m)),
        Outcome::NotReached => ("not reached", None),
        Outcome::Left => ("left", None),
        Outcome::Failed => ("failed", None),
    };
    let micros = |ns: u64| ns as f64 / 1e3;
    Row {
        work: report.name.clone(),
        shape: key_text(&report.key),
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
        in_file,
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
    let alone = output.shapes.iter().filter(|r| !r.in_file).count();
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
        writeln!(out, "give a larger --budget for the rest, or run it again without --again and --kernel")?;
    }
    let (file, max_seq) = (file.display(), output.max_seq);
    writeln!(out, "weft compile --schedules {file} takes them; they are for --max-seq {max_seq}")?;
    if alone > 0 {
        writeln!(
            out,
            "{alone} kernels of the step are not in it: they take the schedules of what is near them there"
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{key_text, named, profile_name, row, shape_text};
    use weft_ir::dtype::DType;
    use weft_ir::plan::Schedule;
    use weft_ir::target::Target;
    use weft_passes::schedule::database::{Key, Measured, Shape};
    use weft_passes::schedule::tune::{Outcome, TaskReport};

    #[test]
    fn the_longest_profile_that_a_gpu_is_named_after() {
        let name = |target: &str, gpu: &str| profile_name(Target::parse(target).expect("a target"), gpu);
        assert_eq!(name("sm_90", "NVIDIA H200"), "H200");
        assert_eq!(name("sm_90", "NVIDIA GH200 480GB"), "GH200");
        assert_eq!(name("sm_90", "NVIDIA H100 80GB HBM3"), "H100");
        assert_eq!(name("sm_89", "NVIDIA L40S"), "L40S");
    }

    #[test]
    fn kernels_are_chosen_by_their_names() {
        let kernels = ["q_proj_k_proj_v_proj_gemv_1", "attention_group_8", "o_proj_gemv_1"];
        let chosen = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(|n| (*n).to_owned()).collect();
            named(&kernels, &wanted).map_err(|e| e.to_string())
        };
        assert_eq!(chosen(&[]), Ok(vec![true; 3]));
        assert_eq!(chosen(&["o_proj", "attention_group_8"]), Ok(vec![false, true, true]));
        for unknown in ["down_proj", ""] {
            let why = chosen(&["o_proj", unknown]).expect_err("there is none");
            assert!(why.contains(&format!("{unknown}: not among q_proj_k_proj_v_proj_gemv_1, att")), "{why}");
        }
    }

    #[test]
    fn rows_say_what_became_of_a_shape() {
        let shape = Shape::Gemv { columns: 64, k: 32, group: 2, computed: true };
        assert_eq!(shape_text(&shape), "product 64×32, 2 rows a point, computed left");
        let key = Key {
            target: "sm_90".into(),
            device: "H200".into(),
            dtype: DType::BF16,
            shape,
            longest: Some(1280),
        };
        assert_eq!(key_text(&key), "product 64×32, 2 rows a point, computed left, contexts up to 1280");
        let schedule =
            Schedule::AttentionRow { warps: 4, heads: 1, depth: 2, splits: 1, cluster: 1, late: false };
        let measured = Measured {
            schedule: schedule.clone(),
            ns: 1500,
            estimated_ns: 0,
            tried: 3,
            of: 9,
            context: 64,
            step: None,
        };
        let report = |outcome| TaskReport {
            name: "gate_up".into(),
            key: key.clone(),
            outcome,
            failures: vec![(schedule.clone(), "too many registers".into())],
            finalists: Vec::new(),
        };
        let tuned = row(&report(Outcome::Tuned(measured)), true);
        assert_eq!((tuned.outcome, tuned.microseconds, tuned.tried), ("tuned", Some(1.5), 3));
        assert_eq!(tuned.estimated_schedule_microseconds, None);
        assert!(tuned.failures[0].contains("too many registers"));
        let left = row(&report(Outcome::Left), false);
        assert_eq!((left.outcome, left.in_file), ("left", false));
        assert_eq!(row(&report(Outcome::NotReached), false).outcome, "not reached");
    }
}
