//! Encoders without a GPU: every kernel of the tiny bert's plan on the emulator, under NVRTC for every target,
//! and all-MiniLM-L6-v2's embeddings at the precisions that a GPU has.

use std::collections::BTreeSet;
use std::sync::Arc;
use weft_frontend::checkpoint::Checkpoint;
use weft_ir::dtype::DType;
use weft_ir::graph::Graph;
use weft_ir::plan::{Compute, Plan, Schedule};
use weft_ir::reference::Precision;
use weft_ir::target::{TARGETS, Target};
use weft_runtime::exec::CpuModel;
use weft_testsuite::emulate::Emulated;
use weft_testsuite::encoder::{golden_rows, minilm, minilm_cosines, ragged, tiny};
use weft_testsuite::fixture::{Bytes, Fixture, compile, folder, relative_rmse};
use weft_testsuite::nvrtc::{compile_all, load};

/// Runs every entry of the plan on ragged sequences, and compares whole rows with the golden.
fn emulate(fixture: &Fixture, dtype: DType, opt_level: u8, most: f64) {
    let plan = compile(&fixture.graph(dtype), "sm_90", dtype, opt_level, (48, 3));
    let rows = golden_rows(fixture);
    let tokens: Vec<Vec<i32>> =
        rows.iter().map(|(s, _)| s.ids.iter().map(|&id| id as i32).collect()).collect();
    let mut run = Emulated::new(&plan, &fixture.checkpoint);
    let (mut distances, mut used) = (Vec::new(), BTreeSet::new());
    for entry in &plan.entries {
        // Sequences of different lengths, and padding behind them.
        let room = entry.bind.tokens;
        let (first, second) = (&tokens[0][..], &tokens[1][..]);
        let whole = room >= first.len() + second.len() + 5;
        let sequences = if whole {
            vec![first, second, &first[..5]]
        } else if room >= first.len() + 3 {
            vec![&first[..3], first]
        } else {
            vec![&second[..1], &first[..7], &second[..(room - 10).min(second.len())]]
        };
        let mut inputs = ragged(entry, &sequences);
        if whole || fixture.checkpoint.config().type_vocab_size < 2 {
            inputs.token_types.fill(0);
        }
        distances.extend(run.step(&entry.name, &inputs));
        used.extend(entry.kernels.values().copied());
        if whole {
            let golden: Vec<f32> = rows.iter().flat_map(|(_, states)| states.clone()).collect();
            let got = run.output("last_hidden_state");
            let distance = relative_rmse(&got[..golden.len()], &golden);
            assert!(distance <= most, "level {opt_level}: {distance}, at most {most}");
        }
    }
    assert_eq!(used.len(), plan.kernels.len(), "kernels that no entry uses");
    let far: Vec<_> = distances.iter().filter(|d| !d.is_close()).collect();
    assert!(far.is_empty(), "{} of {} kernels are too far: {far:#?}", far.len(), distances.len());
}

/// 1.5 times Hugging Face's own 16-bit distance.
fn yardstick_of(fixture: &Fixture) -> f64 {
    1.5 * fixture.golden_json()["hf_16bit"]["rel_rmse"].as_f64().expect("hf_16bit")
}

fn yardstick() -> f64 {
    yardstick_of(&Fixture::open("bert"))
}

fn variant(name: &str) -> Fixture {
    Fixture::at(folder().join("variants").join(name))
}

#[test]
fn roberta_and_modernbert_emulated() {
    for (name, opt_level) in [("roberta", 2), ("modernbert", 0), ("modernbert", 2)] {
        let fixture = variant(name);
        emulate(&fixture, DType::BF16, opt_level, yardstick_of(&fixture));
    }
}

#[test]
fn windows_are_part_of_the_attention_work() {
    let fixture = variant("modernbert");
    let plan = compile(&fixture.graph(DType::BF16), "sm_90", DType::BF16, 2, (48, 3));
    let is_attention = |w: &&weft_ir::plan::Work| matches!(w.compute, Compute::Attention(_));
    // One with and one without a window.
    assert_eq!(plan.works.iter().filter(is_attention).count(), 2);
    let fallbacks: Vec<_> = plan.kernels.iter().filter_map(|k| k.fallback.as_ref()).collect();
    assert!(fallbacks.is_empty(), "{fallbacks:?}");
}

#[test]
fn emulated_unfused() {
    emulate(&Fixture::open("bert"), DType::BF16, 0, yardstick());
}

#[test]
fn emulated_grouped() {
    emulate(&Fixture::open("bert"), DType::BF16, 1, yardstick());
}

#[test]
fn emulated_fused() {
    emulate(&Fixture::open("bert"), DType::BF16, 2, yardstick());
}

#[test]
fn emulated_fused_in_f32() {
    emulate(&Fixture::open("bert"), DType::F32, 2, 1e-4);
}

#[test]
fn attention_is_one_work_over_keys_in_a_row() {
    let fixture = Fixture::open("bert");
    let plan = compile(&fixture.graph(DType::BF16), "sm_90", DType::BF16, 2, (48, 3));
    let works = plan.works.iter().filter_map(|w| match &w.compute {
        Compute::Attention(a) => Some(a),
        _ => None,
    });
    let found: Vec<_> = works.collect();
    let [attention] = found[..] else { panic!("{} attention works, one was expected", found.len()) };
    assert!(attention.sequential_slots(), "{:?}", attention.slot);
    let tiled = |s: &Schedule| matches!(s, Schedule::AttentionTile { .. });
    assert!(plan.kernels.iter().any(|k| tiled(&k.schedule)), "no attention on tensor cores");
    assert!(plan.kernels.iter().all(|k| k.fallback.is_none()), "a kernel falls back");
}

/// Dispatches of a step: at most `layer` a layer and 4 more.
fn count_dispatches(checkpoint: &Checkpoint, dtype: DType, layer: usize) -> Plan {
    let graph = weft_frontend::models::build(checkpoint, dtype).unwrap_or_else(|e| panic!("{e}"));
    let plan = compile(&graph, "sm_90", dtype, 2, (512, 8));
    let [body] = &plan.bodies[..] else { panic!("{} bodies", plan.bodies.len()) };
    let (found, most) = (body.dispatches.len(), layer * checkpoint.config().layers + 4);
    let scopes: Vec<&str> = body.dispatches.iter().map(|d| d.scope.as_str()).collect();
    assert!(found <= most, "{found} dispatches, at most {most} were expected: {scopes:#?}");
    plan
}

/// Projections, attention, output + norm, up, down + norm: norms belong to the products that make their rows.
#[test]
fn a_layer_takes_at_most_six_dispatches() {
    let minilm = minilm();
    for checkpoint in [Some(&Fixture::open("bert").checkpoint), minilm.as_ref()].into_iter().flatten() {
        for dtype in [DType::BF16, DType::F16] {
            let plan = count_dispatches(checkpoint, dtype, 6);
            let is_norm = |c: &Compute| matches!(c, Compute::MatMul(m) if m.row.is_some());
            assert!(plan.works.iter().any(|w| is_norm(&w.compute)), "no row epilogue");
        }
        // Without tensor cores no block makes whole rows; a LayerNorm is one kernel.
        count_dispatches(checkpoint, DType::F32, 7);
    }
}

fn nvrtc(graph: &Graph, target: &Target, dtype: DType, opt_level: u8) {
    let Some(nvrtc) = load() else { return };
    let plan = compile(graph, target.name, dtype, opt_level, (512, 8));
    let kernels = weft_codegen::emit(&plan).unwrap_or_else(|e| panic!("{e}"));
    for b in &compile_all(&nvrtc, &kernels, target.nvrtc_arch) {
        let used = b.compiled.report.kernel(&b.name).unwrap_or_else(|| panic!("{}: no report", b.name));
        let spills = (used.spill_stores, used.spill_loads);
        assert!(target.name != "sm_90" || spills == (0, 0), "{} spills on {}", b.name, target.name);
    }
}

#[test]
fn tiny_bert_compiles_for_every_target() {
    let fixture = Fixture::open("bert");
    for target in TARGETS {
        nvrtc(&fixture.graph(DType::BF16), target, DType::BF16, 2);
    }
    let target = Target::parse("sm_90").expect("sm_90");
    nvrtc(&fixture.graph(DType::BF16), target, DType::BF16, 0);
    for dtype in [DType::F16, DType::F32] {
        nvrtc(&fixture.graph(dtype), target, dtype, 2);
    }
}

#[test]
fn minilm_compiles_for_every_target() {
    let Some(checkpoint) = minilm() else { return };
    for target in TARGETS {
        let graph = weft_frontend::models::build(&checkpoint, DType::BF16).unwrap_or_else(|e| panic!("{e}"));
        nvrtc(&graph, target, DType::BF16, 2);
    }
}

fn on_cpu(checkpoint: &Checkpoint, dtype: DType, opt_level: u8, precision: Precision) -> CpuModel {
    let graph = weft_frontend::models::build(checkpoint, dtype).unwrap_or_else(|e| panic!("{e}"));
    let plan: Plan = compile(&graph, "sm_90", dtype, opt_level, (128, 4));
    CpuModel::plan(Arc::new(plan), &Bytes(checkpoint), precision).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn tiny_bert_rounded_stays_within_the_yardstick() {
    let fixture = Fixture::open("bert");
    for opt_level in 0..=2 {
        let mut model = on_cpu(&fixture.checkpoint, DType::BF16, opt_level, Precision::Rounded);
        let distance = tiny(&fixture, &mut model);
        println!("bert level {opt_level}, rounded to bf16: {distance}, at most {}", yardstick());
        assert!(distance <= yardstick(), "level {opt_level}: {distance}");
    }
}

/// What a GPU computes is this, up to the order of sums.
#[test]
fn minilm_embeddings_hold_at_every_precision() {
    let Some(checkpoint) = minilm() else { return };
    let cases =
        [(DType::F32, Precision::F32), (DType::BF16, Precision::Rounded), (DType::F16, Precision::Rounded)];
    for (dtype, precision) in cases {
        let mut model = on_cpu(&checkpoint, dtype, 2, precision);
        let cosines = minilm_cosines(&checkpoint, &mut model);
        println!("MiniLM in {dtype}: cosines {cosines:?}");
        assert!(cosines.len() == 3 && cosines.iter().all(|&c| c >= 0.9999), "{dtype}: {cosines:?}");
    }
}
