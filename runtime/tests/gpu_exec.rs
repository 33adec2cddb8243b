//! Plans on a GPU, against the CPU reference. Without a GPU, every test but one says so loudly and returns.

mod common;
mod toy;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use weft_ir::dtype::{DType, Encoding};
use weft_ir::ids::BufferId;
use weft_ir::plan::{Buffer, BufferKind, Pack, Plan, Role};
use weft_ir::reference::{Precision, WeightBytes};
use weft_ir::shape::Dim;
use weft_ir::target::{TARGETS, Target};
use weft_runtime::Error;
use weft_runtime::exec::{
    CpuModel, CpuOptions, CudaModel, CudaOptions, Executor, KernelSource, LaunchMode, LoadProgress,
};
use weft_runtime::sys::driver::Driver;

const SOURCE: &str = include_str!("toy.cu");

fn kernels(plan: &Plan) -> Vec<KernelSource> {
    let shared = |name: &str| if name == "toy_head" { 32 * 400 * 4 } else { 0 };
    let sources = plan.kernels.iter().map(|k| KernelSource {
        name: k.name.clone(),
        source: SOURCE.into(),
        dynamic_shared: shared(&k.name),
    });
    sources.collect()
}

/// The toy for the GPU at hand, or `None` with a loud line.
fn plan() -> Option<Plan> {
    let device = match Driver::init().and_then(|driver| driver.device(0)) {
        Ok(device) => device,
        Err(error) => {
            common::shout(&format!("SKIPPED: no GPU ({error})"));
            return None;
        }
    };
    common::nvrtc()?;
    match Target::for_capability(device.compute_major, device.compute_minor) {
        Some(target) => Some(toy::plan(target.name)),
        None => {
            common::shout(&format!("SKIPPED: no target for {}", device.arch()));
            None
        }
    }
}

fn options() -> CudaOptions {
    let nvrtc: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.weft/nvrtc");
    CudaOptions { nvrtc_dirs: vec![nvrtc], cache: false, ..CudaOptions::default() }
}

fn load_with(plan: Plan, weights: &dyn WeightBytes, options: &CudaOptions) -> Result<CudaModel, Error> {
    let kernels = kernels(&plan);
    CudaModel::load(Arc::new(plan), &kernels, weights, options, &|_| {})
}

#[test]
fn the_kernels_compile_without_a_gpu() {
    let Some(nvrtc) = common::nvrtc() else { return };
    for arch in ["sm_80", "sm_90a"] {
        let compiled = nvrtc.compile(SOURCE, "toy", arch, &[]).expect("compiles");
        assert_eq!(compiled.report.kernels.len(), 6);
    }
}

#[test]
fn every_way_to_launch_agrees_with_the_cpu() {
    let Some(plan) = plan() else { return };
    let weights = toy::weights();
    let cpu = CpuOptions {
        max_seq: toy::MAX_SEQ,
        max_batch: toy::MAX_BATCH,
        step_tokens: 16,
        precision: Precision::F64,
    };
    let mut cpu = CpuModel::graph(toy::graph(), &weights, &cpu).expect("a model");
    let wanted = (toy::generate(&mut cpu, 1), toy::generate(&mut cpu, 0));
    let both = [1, 2];
    let mut together = toy::step(0, 8, &both[..1]);
    let other = toy::step(1, 8, &both[1..]);
    together.token_ids.extend(other.token_ids);
    together.positions.extend(other.positions);
    together.sequences.extend(other.sequences);
    together.slots.extend(other.slots);
    together.output_rows.push(1);
    together.temperature.push(0.0);
    together.top_k.push(0);
    together.top_p.push(1.0);
    together.min_p.push(0.0);
    together.seed.push(0);
    let last = cpu.step(Role::Decode, &together, true).expect("a step");
    let state: Vec<u8> =
        cpu.state("cache").expect("a state").into_iter().flat_map(f32::to_le_bytes).collect();
    for (launch, full_edges) in
        [(LaunchMode::Graph, false), (LaunchMode::Graph, true), (LaunchMode::Serial, false)]
    {
        let options = CudaOptions { launch, full_edges, ..options() };
        let mut gpu = load_with(plan.clone(), &weights, &options).expect("a model");
        for _ in 0..2 {
            let result = (toy::generate(&mut gpu, 1), toy::generate(&mut gpu, 0));
            assert_eq!(result, wanted, "{launch:?}, full edges: {full_edges}");
            assert_eq!(gpu.step(Role::Decode, &together, true).expect("a step"), last);
            assert_eq!(gpu.state_bytes("cache").expect("a state"), state);
            gpu.reset().expect("zeros");
            assert!(gpu.state_bytes("cache").expect("a state").iter().all(|&b| b == 0));
        }
        // Wrong steps do no harm.
        assert!(gpu.step(Role::Decode, &toy::step(0, 0, &[1, 2, 3]), false).is_err());
        assert!(gpu.step(Role::Decode, &toy::step(0, 99, &[1]), false).is_err());
        assert_eq!(toy::generate(&mut gpu, 1), wanted.0);
    }
}

#[test]
fn reports_and_timing() {
    let Some(plan) = plan() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let options = CudaOptions { cache: true, cache_dir: Some(folder.path().to_owned()), ..options() };
    let events = Mutex::new(Vec::new());
    let note = |p: LoadProgress<'_>| {
        let line = match p {
            LoadProgress::Checked { need, free, .. } => {
                assert!(need.total() <= free);
                "checked".to_owned()
            }
            LoadProgress::Kernel { done, total, cached, .. } => format!("{done}/{total} {cached}"),
            LoadProgress::Weights { done, total } => format!("{done} of {total}"),
        };
        events.lock().expect("a lock").push(line);
    };
    let (weights, sources, plan) = (toy::weights(), kernels(&plan), Arc::new(plan));
    let load = || CudaModel::load(Arc::clone(&plan), &sources, &weights, &options, &note).expect("a model");
    let first = load();
    assert_eq!((first.load_report().compiled, first.load_report().kernels), (6, 6));
    drop(first);
    let mut model = load();
    assert_eq!(model.load_report().compiled, 0);
    let events = events.into_inner().expect("events");
    // Kernels and weights come at the same time; weights may be told more than once.
    let loads: Vec<&[String]> = events.split(|e| e == "checked").skip(1).collect();
    assert_eq!(loads.len(), 2, "{events:?}");
    for (load, last) in loads.into_iter().zip(["6/6 false", "6/6 true"]) {
        let kernels: Vec<&String> = load.iter().filter(|e| e.contains('/')).collect();
        assert_eq!((kernels.len(), kernels.last().map(|e| e.as_str())), (6, Some(last)), "{load:?}");
        assert_eq!(load.iter().rfind(|e| !e.contains('/')).map(String::as_str), Some("256 of 256"));
    }
    let report = model.load_report();
    assert!(report.upload.bytes > 0 && report.upload.bytes <= 256, "{report:?}");
    assert!(report.upload.seconds > 0.0 && report.upload.seconds <= report.seconds, "{report:?}");

    let kernels = model.kernel_report().expect("kernels");
    assert_eq!(kernels.len(), 6);
    assert!(
        kernels.iter().all(|k| k.registers > 0 && k.blocks_per_sm > 0 && k.cached && k.spill_stores == 0)
    );
    assert_eq!(kernels[4].dynamic_shared, 32 * 400 * 4);
    let before = model.entry_report();
    assert!(before.iter().all(|e| !e.built && (e.nodes, e.kernels) == (8, 6)));
    assert_eq!((before[0].full_edges, before[0].programmatic_edges), (3, 5));
    model.prepare([1, 3]).expect("graphs");
    assert_eq!(
        model.entry_report().iter().map(|e| e.built).collect::<Vec<_>>(),
        [false, true, false, true, false]
    );
    assert!(model.prepare([5]).is_err());
    let time = model.timing(1, &toy::step(0, 0, &[1]), 20).expect("a time");
    println!("decode_1: {time} ms");
    assert!(time > 0.01 && time < 10.0, "five kernels of about 20 µs in a row took {time} ms");
    assert!(model.timing(1, &toy::step(0, 0, &[1, 2]), 1).is_err());
}

#[test]
fn weights_larger_than_the_staging_buffers_arrive_whole() {
    let Some(mut plan) = plan() else { return };
    // Copied, converted, transposed; about 150 MB in all, with padding between.
    let (rows, columns) = (5001, 1003);
    let stored: Vec<u8> =
        (0..rows * columns).flat_map(|i: usize| ((i * 31 % 2003) as f32 - 1000.0).to_le_bytes()).collect();
    let mut weights = toy::weights();
    weights.insert("big".into(), stored);
    let tensor = || Pack::Tensor {
        name: "big".into(),
        encoding: Encoding::Plain(DType::F32),
        shape: vec![rows, columns],
    };
    let first = plan.buffers.len();
    let cases = [
        (DType::F32, Pack::Concat(0, vec![tensor(), tensor(), tensor()]), [3 * rows, columns]),
        (DType::BF16, Pack::Concat(0, vec![tensor(), tensor()]), [2 * rows, columns]),
        (DType::F16, Pack::Transpose(vec![1, 0], Box::new(tensor())), [columns, rows]),
    ];
    for (i, (dtype, pack, shape)) in cases.iter().enumerate() {
        plan.buffers.push(Buffer {
            name: format!("big {i}"),
            dtype: *dtype,
            shape: shape.iter().map(|&n| Dim::Const(n)).collect(),
            kind: BufferKind::Weight(pack.clone()),
        });
    }
    let model = load_with(plan, &weights, &options()).expect("a model");
    for (i, (dtype, pack, _)) in cases.iter().enumerate() {
        let wanted = weft_runtime::exec::pack::Packed::moved("big", pack, *dtype, &weights);
        let wanted = wanted.and_then(|p| p.to_vec()).expect("bytes");
        let got = model.buffer_bytes(BufferId::new(first + i), 0).expect("bytes");
        assert!(got == wanted, "big {i} differs");
    }
    println!("{:?}", model.load_report());
}

#[test]
fn another_target_and_too_little_memory_are_refused() {
    let Some(plan) = plan() else { return };
    let weights = toy::weights();
    let own = plan.target.clone();
    let other = TARGETS.iter().find(|t| t.name != own).expect("another");
    let wrong = Plan { target: other.name.into(), ..plan.clone() };
    let error = load_with(wrong, &weights, &options()).err().expect("an error").to_string();
    assert!(error.contains(other.name) && error.contains(&format!("--target {own}")), "{error}");

    let mut large = plan.clone();
    for entry in &mut large.entries {
        entry.bind.slots = 1 << 36;
    }
    let error = load_with(large, &weights, &options()).err().expect("an error");
    assert!(matches!(error, Error::NotEnoughMemory { .. }), "{error}");
    assert!(error.to_string().contains("state (KV cache) 1.0 TiB"), "{error}");

    let mut sources = kernels(&plan);
    sources.remove(2);
    let error = CudaModel::load(Arc::new(plan), &sources, &weights, &options(), &|_| {});
    assert!(error.err().expect("an error").to_string().contains("kernel toy_sum: it has no source"));
}

/// Models may move between threads.
#[test]
fn models_are_send() {
    fn is_send<T: Send>() {}
    is_send::<CudaModel>();
    is_send::<CpuModel>();
}
