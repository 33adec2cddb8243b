//! Every kernel family at three shapes, odd ones among them, and the schedules that ship: on the emulator, and on the
//! GPU kernel by kernel against the reference on the same inputs. In one process, so that compute-sanitizer takes it:
//!
//! `cargo test --release -p weft-testsuite --test gpu_kernels -- --nocapture`, and `cargo xtask gpu` runs the part `gpu_`
//! under each of its tools. Skipped loudly where there is no GPU.

use rayon::prelude::*;
use std::time::Instant;
use weft::batch::{Piece, inputs, step};
use weft_ir::ids::BufferId;
use weft_ir::plan::{BufferKind, Role};
use weft_ir::sampling::{Params, Penalties};
use weft_ir::target::Target;
use weft_runtime::exec::bucket;
use weft_runtime::exec::memory::Layout;
use weft_runtime::exec::nodes::nodes;
use weft_runtime::exec::{CudaModel, Executor, Generate, Next, check_plan, step_by_step};
use weft_testsuite::emulate::{Distance, Emulated, too_far};
use weft_testsuite::kernel_cases::{Case, TARGET, cases};
use weft_testsuite::kernel_families::{Covered, Family, is_odd};
use weft_testsuite::{gpu, nvrtc, on_device};

/// Shapes of each family.
const SHAPES: usize = 3;

#[test]
fn every_family_has_three_shapes_and_odd_ones() {
    let mut covered = Covered::new();
    let cases = cases();
    cases.iter().for_each(|case| case.cover(&mut covered));
    let kernels: usize = cases.iter().map(|case| case.plan.kernels.len()).sum();
    println!("{} cases, {kernels} kernels", cases.len());
    for family in Family::ALL {
        let shapes = covered.get(family).cloned().unwrap_or_default();
        println!("{family:?}: {shapes:?}");
        assert!(shapes.len() >= SHAPES, "{family:?}: {shapes:?}");
        assert!(shapes.iter().any(|s| is_odd(s)), "{family:?}: no odd shape in {shapes:?}");
    }
}

fn far(case: &Case, distances: &[Distance]) -> Vec<String> {
    too_far(distances).iter().map(|d| format!("{}: {d:?}", case.name)).collect()
}

#[test]
fn every_case_is_right_on_the_emulator() {
    let all = |case: &Case| -> Vec<String> {
        let mut emulated = Emulated::with_weights(&case.plan, case);
        let step = |(entry, inputs): &(String, _)| emulated.step(entry, inputs);
        let distances: Vec<Distance> = case.steps.iter().flat_map(step).collect();
        assert!(!distances.is_empty(), "{}", case.name);
        far(case, &distances)
    };
    let far: Vec<String> = cases().par_iter().flat_map(all).collect();
    assert!(far.is_empty(), "{} kernels are too far: {far:#?}", far.len());
}

/// What compares the GPU's results: it agrees with what was compared step by step, whatever the step changed (states in
/// place), and sees a single result that is another.
#[test]
fn a_comparison_afterwards_sees_what_is_wrong() {
    let all = |case: &Case| {
        let mut emulated = Emulated::with_weights(&case.plan, case);
        let mut reference = Emulated::with_weights(&case.plan, case);
        let (mut at_once, mut afterwards) = (Vec::new(), Vec::new());
        for (entry, inputs) in &case.steps {
            at_once.extend(emulated.step(entry, inputs));
            afterwards.extend(reference.compare(entry, inputs, &|b| emulated.left(b)));
        }
        assert_eq!(far(case, &afterwards), Vec::<String>::new());
        assert_eq!(at_once.len(), afterwards.len(), "{}", case.name);
        let (entry, inputs) = case.steps.last().expect("a step");
        let body = case.plan.entries.iter().find(|e| e.name == *entry).expect("an entry").body;
        let written = case.plan.bodies[body as usize].dispatches.iter().flat_map(|d| &d.writes);
        // Of a state the step writes a few rows only.
        let is_state = |b: &BufferId| matches!(case.plan.buffer(*b).kind, BufferKind::State(_));
        for written in written.filter(|b| !is_state(b)) {
            // An element in the middle becomes some 10,000, or as an integer, which may be an index, 0 or 1.
            let wrong = |b| {
                let mut bytes = emulated.left(b);
                if b == *written {
                    let dtype = case.plan.buffer(b).dtype;
                    let at = bytes.len() / dtype.size() / 2 * dtype.size();
                    let element = &mut bytes[at..at + dtype.size()];
                    if dtype.is_float() {
                        element[dtype.size() - 1] = 0x47;
                    } else {
                        let was_zero = element.iter().all(|byte| *byte == 0);
                        element.fill(0);
                        element[0] = u8::from(was_zero);
                    }
                }
                bytes
            };
            let seen = far(case, &reference.compare(entry, inputs, &wrong));
            assert!(!seen.is_empty(), "{}: {} was changed", case.name, case.plan.buffer(*written).name);
        }
    };
    // One of each kind.
    let mut cases = cases();
    cases.retain(|c| ["llama-a", "experts-a"].contains(&c.name.as_str()) || !c.loops);
    cases.par_iter().for_each(all);
}

/// What loading and running them on a GPU asks of plans.
#[test]
fn every_case_is_a_plan_that_the_runtime_takes() {
    for case in &cases() {
        let plan = &case.plan;
        check_plan(plan).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        bucket::bounds(plan).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let layout = Layout::new(plan).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        for (i, entry) in plan.entries.iter().enumerate() {
            nodes(plan, &layout, i, false).unwrap_or_else(|e| panic!("{}: {e}", case.name));
            // All that a step makes is there behind it: nothing lies where something else does.
            let mut ends = 0;
            for placement in &entry.arena {
                assert!(placement.offset >= ends, "{}: {}", case.name, entry.name);
                ends = placement.offset + placement.bytes;
            }
            assert!(ends <= entry.arena_bytes, "{}: {}", case.name, entry.name);
            assert!(
                entry
                    .scratch
                    .places
                    .iter()
                    .all(|p| entry.arena.iter().all(|a| p.offset + p.bytes <= a.offset))
            );
        }
    }
}

/// Single works: what the models' kernels compile to, other tests show.
#[test]
fn tiles_and_tuned_schedules_compile_without_spills() {
    let Some(nvrtc) = nvrtc::load() else { return };
    let arch = Target::parse(TARGET).expect("a target").nvrtc_arch;
    let mut names = Vec::new();
    let mut kernels = Vec::new();
    for case in cases().iter().filter(|c| c.plan.kernels.len() == 1) {
        names.push(case.name.clone());
        kernels.extend(weft_codegen::emit(&case.plan).unwrap_or_else(|e| panic!("{}: {e}", case.name)));
    }
    for (b, name) in nvrtc::compile_all(&nvrtc, &kernels, arch).iter().zip(&names) {
        let used = b.compiled.report.kernel(&b.name).expect("a report");
        assert_eq!((used.spill_stores, used.spill_loads, used.stack), (0, 0, 0), "{name}");
        // Among them: products of groups of warps that are made one after the other.
        assert!(
            b.compiled.report.ptxas_warnings.is_empty(),
            "{name}: {:?}",
            b.compiled.report.ptxas_warnings
        );
    }
}

/// Cases on the GPU, all loaded at once; `None` after saying why not.
fn loaded(wanted: fn(&Case) -> bool) -> Option<Vec<(Case, CudaModel)>> {
    let device = gpu::device()?;
    assert_eq!(device.arch(), TARGET, "the cases are for {TARGET}, the target of the schedules that ship");
    let load = |case: Case| {
        let model = on_device::load(&case).unwrap_or_else(|why| panic!("{}: {why}", case.name));
        (case, model)
    };
    Some(cases().into_par_iter().filter(wanted).map(load).collect())
}

#[test]
fn gpu_every_kernel_is_right() {
    let start = Instant::now();
    let Some(mut loaded) = loaded(|_| true) else { return };
    let load = start.elapsed();
    let (mut compared, mut wrong) = (0, Vec::new());
    for (case, model) in &mut loaded {
        let distances = on_device::run(case, model).unwrap_or_else(|why| panic!("{}: {why}", case.name));
        compared += distances.len();
        wrong.extend(far(case, &distances));
    }
    let all = start.elapsed();
    println!("{} cases, {compared} results compared, {all:?} with {load:?} of loading", loaded.len());
    assert!(wrong.is_empty(), "{} of {compared} results are too far: {wrong:#?}", wrong.len());
}

/// Tokens of a row: the first greedy, the others drawn.
fn piece(sequence: usize, start: usize, ids: &[u32], prompt: usize) -> Piece<'_> {
    let params = Params { temperature: sequence as f32 * 0.6, seed: 5, ..Params::GREEDY };
    let penalties = Penalties { repetition: 1.2, presence: 0.1 };
    Piece { sequence, start, ids, params, penalties, prompt }
}

/// The advance: generations of three rows, one launch each, make the tokens of steps.
#[test]
fn gpu_every_generation_is_that_of_steps() {
    let Some(loaded) = loaded(|case| case.loops) else { return };
    let mut made = 0;
    for (case, mut model) in loaded {
        let vocab = model.limits().vocab.expect("a decoder") as u32;
        let ids: Vec<u32> = (0..13).map(|i| (i * 29 + 3) % vocab).collect();
        for rows in [1, 3] {
            let prompts = [&ids[..7], &ids[7..], &ids[5..8]];
            let pieces: Vec<Piece<'_>> =
                (0..rows).map(|s| piece(s, 0, prompts[s], prompts[s].len())).collect();
            let mut tokens = |in_one_launch: bool| {
                let first = step(&mut model, Role::Prefill, &pieces, false);
                let first: Vec<u32> =
                    first.unwrap_or_else(|e| panic!("{e}")).tokens.iter().map(|t| *t as u32).collect();
                let next: Vec<Piece<'_>> =
                    (0..rows).map(|s| piece(s, prompts[s].len(), &first[s..=s], prompts[s].len())).collect();
                let first = inputs(&model, Role::Decode, &next);
                let g = Generate { first: &first, limits: &[5, 9, 3][..rows], stop_tokens: &[] };
                let all = match in_one_launch {
                    true => model.generate(&g, &mut |_, _| Next::Go),
                    false => step_by_step(&mut model, &g, &mut |_, _| Next::Go),
                };
                all.unwrap_or_else(|e| panic!("{}: {e}", case.name))
            };
            let wanted = tokens(false);
            assert!(wanted == tokens(true), "{}, {rows} rows: other tokens", case.name);
            made += wanted.iter().map(|row| row.tokens.len()).sum::<usize>();
        }
    }
    println!("{made} tokens in one launch each are those of steps");
}
