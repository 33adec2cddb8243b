//! Shapes outside the database come within 1.25 × of their tuned time: ten that were never tuned, each as `weft compile`
//! schedules it (by estimate, or as the nearest shape of the database) and as `weft tune` does, which is given some
//! seconds for each. Skipped loudly where there is no GPU; that the shapes are what they are called is tested anywhere.
//! `cargo test --release -p weft-testsuite --test gpu_tuned -- --nocapture`

use std::collections::BTreeSet;
use std::sync::Arc;
use weft::measure::{Gpu, Variant};
use weft::tuner::Tuner;
use weft_ir::dtype::DType;
use weft_ir::plan::{KernelSpec, Plan, ScheduleSource};
use weft_ir::target::Target;
use weft_passes::schedule::candidates::legal;
use weft_passes::schedule::database::Database;
use weft_passes::schedule::tune::{Outcome, Settings, Task, Timer, tune};
use weft_runtime::exec::bench::Measure;
use weft_runtime::exec::bench::figures::Spread;
use weft_runtime::exec::{CudaModel, CudaOptions, KernelSource};
use weft_testsuite::unseen::{Unseen, WORK, unseen};
use weft_testsuite::{gpu, nvrtc};

/// Most times the tuned time.
const MOST: f64 = 1.25;
/// Seconds that a shape is tuned for.
const SECONDS: f64 = 7.0;
/// Runs of each of the two, in turns.
const ROUNDS: usize = 9;
/// Steps in a row, of which one run in a step is made.
const STEPS: usize = 20;

fn shipped() -> Arc<Database> {
    Arc::new(Database::shipped().unwrap_or_else(|e| panic!("{e}")))
}

/// Seconds of a launch of two schedules alone, and of a step with the one and with the other.
#[derive(Clone, Debug)]
struct Times {
    alone: [Vec<f64>; 2],
    step: [Vec<f64>; 2],
}

/// What the first is, relative to the second: alone, and in a step, where the next kernel's loads overlap with it (what
/// the step gains by the second, for each launch, on top of the second's time alone).
#[derive(Clone, Copy, Debug)]
struct Ratio {
    /// Seconds of a launch of each.
    alone: [f64; 2],
    by_launch: f64,
    by_step: f64,
}

fn ratio(times: &Times, launches: usize) -> Ratio {
    let median = |samples: &[f64]| Spread::of(samples).expect("samples").median;
    let [chosen, best] = [0, 1].map(|i| median(&times.alone[i]));
    let [with_chosen, with_best] = [0, 1].map(|i| median(&times.step[i]));
    let gained = (with_chosen - with_best) / launches as f64;
    Ratio { alone: [chosen, best], by_launch: chosen / best, by_step: (best + gained) / best }
}

#[test]
fn ratios_are_of_medians() {
    let times = Times {
        alone: [vec![3e-6, 2.4e-6, 2.2e-6], vec![2e-6, 9e-6, 1e-6]],
        step: [vec![108e-6; 3], vec![100e-6, 50e-6, 200e-6]],
    };
    let r = ratio(&times, 16);
    assert!((r.by_launch - 1.2).abs() < 1e-9, "{r:?}");
    // 8 µs of 16 launches.
    assert!((r.by_step - 1.25).abs() < 1e-9, "{r:?}");
}

#[test]
fn ten_shapes_that_the_database_does_not_have() {
    let (target, shipped) = (Target::parse("sm_90").expect("sm_90"), shipped());
    let mut keys = BTreeSet::new();
    for model in unseen() {
        let plan = model.plan(target, &shipped);
        let (mut launched, mut sources) = (Vec::new(), BTreeSet::new());
        for (task, kernel) in model.tasks(&plan, target) {
            assert!(shipped.known(&task.key).is_none(), "{}: {:?} was tuned", model.name, task.key);
            assert_ne!(kernel.source, ScheduleSource::Measured, "{}", kernel.name);
            let work = &plan.works[kernel.work as usize];
            legal(work, &kernel.schedule, target).unwrap_or_else(|why| panic!("{}: {why}", kernel.name));
            println!("{:<14} {:<9} {:?}", model.name, kernel.source.name(), kernel.schedule);
            sources.insert(kernel.source);
            launched.push(kernel.name.clone());
            assert!(keys.insert(task.key), "{} twice", kernel.name);
        }
        // What the database gives for a shape near it must not spill: it would not be seen.
        let Some(nvrtc) = nvrtc::load() else { continue };
        let kernels = weft_codegen::emit(&plan).unwrap_or_else(|e| panic!("{e}"));
        let kernels: Vec<_> = kernels.into_iter().filter(|k| launched.contains(&k.name)).collect();
        assert_eq!(kernels.len(), launched.len());
        for b in nvrtc::compile_all(&nvrtc, &kernels, target.nvrtc_arch) {
            let used = b.compiled.report.kernel(&b.name).expect("a report");
            assert_eq!((used.spill_stores, used.spill_loads, used.stack), (0, 0, 0), "{}", b.name);
        }
    }
    assert_eq!(keys.len(), 10);
    assert!(keys.iter().all(|k| k.dtype == DType::BF16));
}

/// A shape's line of the table.
struct Row {
    what: String,
    chosen: KernelSpec,
    best: String,
    tried: (usize, usize),
    ratio: Ratio,
}

#[test]
fn shapes_outside_the_database_come_within_a_quarter_of_their_tuned_time() {
    let Some(device) = gpu::device() else { return };
    let target = Target::parse(&device.arch()).unwrap_or_else(|e| panic!("{e}"));
    let (start, shipped) = (std::time::Instant::now(), shipped());
    let mut rows = Vec::new();
    for model in unseen() {
        let plan = Arc::new(model.plan(target, &shipped));
        let mut tuner = Tuner::new(load(&model, &plan), plan.clone(), &WORK, Box::new(|_| {}));
        let tuner = tuner.as_mut().unwrap_or_else(|e| panic!("{e}"));
        // Puts a step's inputs and values where kernels find them.
        tuner.gpu().step().unwrap_or_else(|e| panic!("{e}"));
        for (task, kernel) in model.tasks(&plan, target) {
            rows.push(compare(&model, &plan, tuner, &task, kernel));
        }
    }
    print(&rows);
    println!("{} shapes in {:.0} s on {}", rows.len(), start.elapsed().as_secs_f64(), device.name);
    assert_eq!(rows.len(), 10);
    let slow: Vec<&str> = rows
        .iter()
        .filter(|r| r.ratio.by_launch > MOST || r.ratio.by_step > MOST)
        .map(|r| r.what.as_str())
        .collect();
    assert!(slow.is_empty(), "more than {MOST} × the tuned time: {slow:?}");
}

/// The step of a model on the GPU.
fn load(model: &Unseen, plan: &Arc<Plan>) -> Gpu {
    let kernels = weft_codegen::emit(plan).unwrap_or_else(|e| panic!("{e}"));
    let source = |k: weft_codegen::Emitted| KernelSource {
        name: k.name,
        source: k.source,
        dynamic_shared: k.dynamic_shared,
    };
    let sources: Vec<KernelSource> = kernels.into_iter().map(source).collect();
    let options = CudaOptions { nvrtc_dirs: vec![nvrtc::folder()], ..CudaOptions::default() };
    let loaded = CudaModel::load(plan.clone(), &sources, &model.weights(), &options, &|_| {});
    let loaded = loaded.unwrap_or_else(|e| panic!("{}: {e}", model.name));
    Gpu::of_steps(loaded, options, WORK).unwrap_or_else(|e| panic!("{e}"))
}

/// Tunes a shape, then times the plan's own kernel and the tuned one in turns.
fn compare(model: &Unseen, plan: &Plan, tuner: &mut Tuner<'_>, task: &Task, kernel: &KernelSpec) -> Row {
    let budget = tuner.elapsed() + SECONDS;
    let settings = Settings { budget, context: WORK.context, again: true };
    let mut found = Database::default();
    let saved = &mut |_: &Database, _, _| Ok::<(), String>(());
    let reports = tune(std::slice::from_ref(task), &mut found, &settings, tuner, saved);
    let report = reports.expect("nothing to keep").remove(0);
    let Outcome::Tuned(best) = report.outcome else { panic!("{}: {report:?}", kernel.name) };
    let group = tuner.group(task.work).expect("its launches").clone();
    let gpu = tuner.gpu();
    let variant: Variant = gpu
        .variants(plan, task.work, std::slice::from_ref(&best.schedule))
        .remove(0)
        .unwrap_or_else(|why| panic!("{:?}: {why}", best.schedule));
    let mut times = Times { alone: [vec![], vec![]], step: [vec![], vec![]] };
    for _ in 0..ROUNDS {
        for (i, stand_in) in [None, Some(&variant)].into_iter().enumerate() {
            // Each after one that is not counted.
            times.alone[i].extend(gpu.time(&group, stand_in, 1).unwrap_or_else(|e| panic!("{e}")));
            let of_all = stand_in.map(|v| (&group.dispatches[..], v));
            let step = gpu.time_step(of_all.as_slice(), STEPS, 1);
            times.step[i].extend(step.unwrap_or_else(|e| panic!("{e}")));
        }
    }
    Row {
        what: format!("{} {} {:?}", model.name, task.name, task.key.shape),
        chosen: kernel.clone(),
        best: format!("{:?}", best.schedule),
        tried: (best.tried, best.of),
        ratio: ratio(&times, group.dispatches.len()),
    }
}

/// A table as docs/performance.md has them.
fn print(rows: &[Row]) {
    println!("| kernel | chosen | µs | tuned (of the candidates, measured) | µs | ratio alone | in a step |");
    println!("|---|---|---|---|---|---|---|");
    for r in rows {
        let [chosen, best] = r.ratio.alone.map(|s| s * 1e6);
        let (source, schedule) = (r.chosen.source.name(), &r.chosen.schedule);
        let (tried, of) = r.tried;
        println!(
            "| {} | {source}: {schedule:?} | {chosen:.2} | {} ({tried} of {of}) | {best:.2} | {:.3} | {:.3} |",
            r.what, r.best, r.ratio.by_launch, r.ratio.by_step
        );
    }
}
