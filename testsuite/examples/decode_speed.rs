//! Milliseconds a decode step, on random weights of public shapes: the hand-made plan of
//! `weft_testsuite::decoder` and what the passes make of the same model.
//!
//! `decode_speed MODEL CONTEXT BATCH [fused|compiled] [KERNEL.FIELD=VALUE,…]…`: each further argument is one
//! variant of the schedules (`default` changes nothing; a kernel `*` is any). MODEL: smollm2, llama1b.

use std::sync::Arc;
use weft_frontend::checkpoint::Checkpoint;
use weft_ir::dtype::DType;
use weft_ir::plan::{Plan, Role, Schedule, Work};
use weft_ir::reference::{StepInputs, WeightBytes};
use weft_ir::target::Target;
use weft_runtime::exec::{CudaModel, CudaOptions, KernelSource};
use weft_testsuite::decoder::decode_plan;
use weft_testsuite::fixture::compile;
use weft_testsuite::synthetic::{LLAMA_1B, LlamaShape, SMOLLM2};

/// Any tensor is a part of one random array.
struct Random(Vec<u8>, LlamaShape);

impl Random {
    fn new(shape: &LlamaShape) -> Random {
        let elements = shape.vocab * shape.hidden + (1 << 22);
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut bytes = Vec::with_capacity(elements * 2);
        for _ in 0..elements {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // About ±0.03, never zero.
            let value = ((state >> 40) as f32 / (1 << 23) as f32 - 0.999_999) * 0.03;
            bytes.extend_from_slice(&value.to_bits().to_le_bytes()[2..]);
        }
        Random(bytes, *shape)
    }
}

impl WeightBytes for Random {
    fn bytes(&self, tensor: &str) -> Option<&[u8]> {
        let s = &self.1;
        let (q, kv) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
        let known = s.tensors().into_iter().find(|(name, _)| name == tensor);
        let elements = match known {
            Some((_, shape)) => shape.iter().product(),
            None => match tensor.rsplit('.').next()? {
                "embed" => s.vocab * s.hidden,
                "qkv" => (q + 2 * kv) * s.hidden,
                "o" => q * s.hidden,
                "gate_up" => 2 * s.intermediate * s.hidden,
                "down" => s.intermediate * s.hidden,
                _ => s.hidden,
            },
        };
        let sum: usize = tensor.bytes().map(usize::from).sum();
        let start = (sum * 7919 % (1 << 20)) * 4;
        self.0.get(start..start + 2 * elements)
    }
}

fn tweak(variant: &str, work: &Work, s: &mut Schedule) {
    for change in variant.split(',').filter(|c| *c != "default") {
        let (what, value) = change.split_once('=').unwrap_or_else(|| panic!("{change}"));
        let (kernel, field) = what.split_once('.').unwrap_or_else(|| panic!("{change}"));
        if kernel != "*" && kernel != work.name {
            continue;
        }
        let value: u32 = value.parse().unwrap_or_else(|_| panic!("{change}"));
        match s {
            Schedule::Gemv { warps, lanes, split, columns, depth, blocks, staged, .. } => match field {
                "warps" => *warps = value,
                "lanes" => *lanes = value,
                "split" => *split = value,
                "columns" => *columns = value,
                "depth" => *depth = value,
                "blocks" => *blocks = value,
                "staged" => *staged = value != 0,
                _ => {}
            },
            Schedule::AttentionRow { warps, heads, depth, splits, cluster: _, late: _ } => match field {
                "warps" => *warps = value,
                "depth" => *depth = value,
                "heads" => *heads = value,
                "splits" => *splits = value,
                _ => {}
            },
            _ => {}
        }
    }
}

/// Moves the trigger: `early` as emitted, `wait` after the wait, `none` left out.
fn trigger(variant: &str, source: String) -> String {
    let call = "grid_dependency_launch();";
    let without = |s: &str| s.replace(call, "");
    let body = source.find("extern \"C\"").unwrap_or(0);
    let (head, tail) = source.split_at(body);
    match variant {
        "none" => format!("{head}{}", without(tail)),
        "wait" => {
            let wait = "grid_dependency_wait();";
            format!("{head}{}", without(tail).replacen(wait, &format!("{wait} {call}"), 1))
        }
        _ => source,
    }
}

fn load(plan: &Arc<Plan>, weights: &Random, place: &str) -> CudaModel {
    let kernels = weft_codegen::emit(plan).unwrap_or_else(|e| panic!("{e}"));
    let source = |k: weft_codegen::Emitted| KernelSource {
        name: k.name,
        source: trigger(place, k.source),
        dynamic_shared: k.dynamic_shared,
    };
    let sources: Vec<KernelSource> = kernels.into_iter().map(source).collect();
    let options = CudaOptions { nvrtc_dirs: vec![weft_testsuite::nvrtc::folder()], ..CudaOptions::default() };
    CudaModel::load(plan.clone(), &sources, weights, &options, &|_| {}).unwrap_or_else(|e| panic!("{e}"))
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let usage = "decode_speed MODEL CONTEXT BATCH [fused|compiled] VARIANT…";
    let [model, context, batch, mode, variants @ ..] = &args[..] else { panic!("{usage}") };
    let shape = match model.as_str() {
        "smollm2" => SMOLLM2,
        "llama1b" => LLAMA_1B,
        _ => panic!("{usage}"),
    };
    let (context, batch): (usize, usize) = (context.parse().expect(usage), batch.parse().expect(usage));
    let limits = (context + 128, batch);
    let weights = Random::new(&shape);
    let target = Target::parse("sm_90").expect("sm_90");
    for variant in variants {
        let (variant, place) = variant.split_once('@').unwrap_or((variant, "early"));
        let plan = if mode == "compiled" {
            let folder = tempfile::tempdir().expect("folder");
            shape.write(folder.path()).expect("checkpoint");
            let checkpoint = Checkpoint::open(folder.path()).unwrap_or_else(|e| panic!("{e}"));
            let graph =
                weft_frontend::models::build(&checkpoint, DType::BF16).unwrap_or_else(|e| panic!("{e}"));
            compile(&graph, target.name, DType::BF16, 2, limits)
        } else {
            decode_plan(&shape, target, limits, &|w, s| tweak(variant, w, s))
        };
        weft_ir::verify::plan::verify(&plan).unwrap_or_else(|f| panic!("{f:?}"));
        let plan = Arc::new(plan);
        let of_size = |e: &weft_ir::plan::Entry| e.role == Role::Decode && e.bind.tokens >= batch;
        let entry = plan.entries.iter().position(of_size).expect("an entry");
        let mut m = load(&plan, &weights, place);
        for k in m.kernel_report().expect("kernels").iter().filter(|k| k.spill_stores + k.stack > 0) {
            println!("{} spills: {k:?}", k.name);
        }
        let inputs = inputs(context, batch, limits.0);
        let mut times: Vec<f32> =
            (0..7).map(|_| m.timing(entry, &inputs, 100).unwrap_or_else(|e| panic!("{e}"))).collect();
        times.sort_by(f32::total_cmp);
        let (first, last) = (times[0], times[6]);
        println!(
            "ROW {model} context {context} batch {batch} {mode} {variant}@{place}: {:.4} ms ({first:.4}–{last:.4})",
            times[3]
        );
    }
}

fn inputs(context: usize, batch: usize, max_seq: usize) -> StepInputs {
    let n = batch as i32;
    StepInputs {
        token_ids: (0..n).map(|i| 1000 + 37 * i).collect(),
        positions: vec![context as i32; batch],
        sequences: (0..n).collect(),
        slots: (0..n).map(|i| i * max_seq as i32 + context as i32).collect(),
        slot_base: (0..n).map(|i| i * max_seq as i32).collect(),
        output_rows: (0..n).collect(),
        temperature: vec![0.0; batch],
        top_k: vec![0; batch],
        top_p: vec![1.0; batch],
        min_p: vec![0.0; batch],
        seed: vec![0; batch],
        ..StepInputs::default()
    }
}
