//! Every family's tiny checkpoint against Hugging Face's golden, on the CPU in f32: the graph itself, and the plan
//! with all fusions.

use std::sync::Arc;
use weft_ir::dtype::DType;
use weft_ir::reference::Precision;
use weft_runtime::exec::{CpuModel, CpuOptions, Executor};
use weft_testsuite::fixture::{Bytes, Fixture, compile};
use weft_testsuite::golden::tiny;

/// Longest context: 40 tokens and 24 more.
const MAX_SEQ: usize = 64;
const MAX_BATCH: usize = 2;
/// Relative rmse that float32 in another order of sums keeps below.
const CLOSE: f64 = 1e-4;

/// The golden's logits (and those of its continuation, on its own tokens) and its greedy choices.
fn check(name: &str) {
    let fixture = Fixture::open(name);
    let weights = Bytes(&fixture.checkpoint);
    let graph = fixture.graph(DType::F32);
    let unknown = &fixture.checkpoint.config().unknown;
    assert!(unknown.is_empty(), "{name}: {unknown:?}");
    let options = CpuOptions { max_seq: MAX_SEQ, max_batch: MAX_BATCH, ..CpuOptions::default() };
    let plain = CpuModel::graph(graph.clone(), &weights, &options).unwrap_or_else(|e| panic!("{name}: {e}"));
    compare(name, 0, plain);
    let plan = Arc::new(compile(&graph, "sm_90", DType::F32, 2, (MAX_SEQ, MAX_BATCH)));
    let fused = CpuModel::plan(plan, &weights, Precision::F32).unwrap_or_else(|e| panic!("{name}: {e}"));
    compare(name, 2, fused);
}

fn compare(name: &str, level: u8, mut model: impl Executor) {
    let report = tiny(&Fixture::open(name), &mut model);
    let close = report.logits <= CLOSE && report.greedy_logits <= CLOSE && report.wrong_tokens == 0;
    assert!(close, "{name} at level {level}: {report:?}");
}

macro_rules! families {
    ($($test:ident: $name:literal),* $(,)?) => { $(#[test] fn $test() { check($name); })* };
}

families! {
    llama: "llama",
    llama_rope3_tied: "llama-rope3-tied",
    mistral_sliding: "mistral-sliding",
    qwen2: "qwen2",
    qwen3: "qwen3",
    gemma2: "gemma2",
    gemma3: "gemma3",
    phi3: "phi3",
    gpt2: "gpt2",
    gpt_neox: "gpt-neox",
    olmo2: "olmo2",
    bloom: "bloom",
    falcon: "falcon",
    mixtral: "mixtral",
    qwen3_moe: "qwen3-moe",
    gpt_oss: "gpt-oss",
    deepseek_v3: "deepseek-v3",
}
