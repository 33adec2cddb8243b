//! Decoders that embed: their hidden states are those behind the logits, on the CPU and on the emulator, with all
//! fusions.

use std::sync::Arc;
use weft_frontend::models::{FAMILIES, Kind, build, family};
use weft_ir::dtype::DType;
use weft_ir::plan::Compute;
use weft_ir::reference::Precision;
use weft_runtime::exec::{CpuModel, CpuOptions, Executor};
use weft_testsuite::embed::{distance, embedder, golden};
use weft_testsuite::emulate::Emulated;
use weft_testsuite::encoder::ragged;
use weft_testsuite::fixture::{Bytes, Fixture, List, checkpoints, compile};
use weft_testsuite::nvrtc::{compile_all, load};

const MAX_SEQ: usize = 64;
const MAX_BATCH: usize = 2;

#[test]
fn hidden_states_are_those_behind_the_logits() {
    let mut seen = 0;
    for folder in checkpoints(List::Tiny) {
        let fixture = Fixture::at(folder);
        let name = fixture.folder().display().to_string();
        if !FAMILIES.iter().any(|f| f.model_type == fixture.checkpoint.config().model_type) {
            continue;
        }
        let checkpoint = embedder(&fixture);
        assert_eq!(family(&checkpoint).map(|(kind, _)| kind).ok(), Some(Kind::Encoder));
        let graph = build(&checkpoint, DType::F32).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(graph.is_encoder() && graph.state_out.is_empty(), "{name}");
        let weights = Bytes(&checkpoint);
        let options = CpuOptions { max_seq: MAX_SEQ, max_batch: MAX_BATCH, ..CpuOptions::default() };
        let mut plain =
            CpuModel::graph(graph.clone(), &weights, &options).unwrap_or_else(|e| panic!("{name}: {e}"));
        let plan = Arc::new(compile(&graph, "sm_90", DType::F32, 2, (MAX_SEQ, MAX_BATCH)));
        let attentions = plan.works.iter().filter(|w| matches!(w.compute, Compute::Attention(_))).count();
        assert!(attentions > 0, "{name}: its attention is not one work");
        let mut fused =
            CpuModel::plan(plan, &weights, Precision::F32).unwrap_or_else(|e| panic!("{name}: {e}"));
        for (level, model) in [(0, &mut plain as &mut dyn Executor), (2, &mut fused)] {
            let far = distance(&fixture, &checkpoint, model);
            assert!(far <= 1e-4, "{name} at level {level}: {far}");
        }
        seen += 1;
    }
    assert!(seen >= 17, "{seen} decoders");
}

/// Grouped-query, windowed, with sinks, with biases on the scores, and latent attention: every kernel of their plans
/// on the emulator, whose sequences do not fill the step, and through NVRTC.
#[test]
fn kernels_of_decoders_that_embed() {
    let nvrtc = load();
    for name in ["qwen3", "mistral-sliding", "gpt-oss", "bloom", "deepseek-v3"] {
        let fixture = Fixture::open(name);
        let checkpoint = embedder(&fixture);
        let graph = build(&checkpoint, DType::BF16).unwrap_or_else(|e| panic!("{name}: {e}"));
        let plan = compile(&graph, "sm_90", DType::BF16, 2, (48, 3));
        let fallbacks: Vec<_> = plan.kernels.iter().filter_map(|k| k.fallback.as_ref()).collect();
        assert!(fallbacks.is_empty(), "{name}: {fallbacks:?}");
        if let Some(nvrtc) = &nvrtc {
            let kernels = weft_codegen::emit(&plan).unwrap_or_else(|e| panic!("{name}: {e}"));
            let built = compile_all(nvrtc, &kernels, "sm_90a");
            let reports = built.iter().filter_map(|b| b.compiled.report.kernel(&b.name));
            assert!(reports.clone().all(|r| (r.spill_stores, r.spill_loads) == (0, 0)), "{name} spills");
            assert_eq!(reports.count(), kernels.len(), "{name}");
        }
        let (sequences, _) = golden(&fixture);
        let all: Vec<i32> = sequences.iter().flat_map(|s| s.ids.iter().map(|&id| id as i32)).collect();
        let mut run = Emulated::new(&plan, &checkpoint);
        for entry in &plan.entries {
            let (first, second) = (&all[..all.len().min(entry.bind.tokens / 2)], &all[..3]);
            let inputs = ragged(entry, &[first, second]);
            let far: Vec<_> = run.step(&entry.name, &inputs).into_iter().filter(|d| !d.is_close()).collect();
            assert!(far.is_empty(), "{name}, {}: {far:#?}", entry.name);
        }
    }
}
