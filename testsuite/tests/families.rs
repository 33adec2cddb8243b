//! Every family's tiny checkpoint against Hugging Face's golden, on the CPU in f32: the graph itself, and the plan
//! with all fusions.

use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};
use std::sync::Arc;
use weft_ir::dtype::DType;
use weft_ir::reference::Precision;
use weft_runtime::exec::{CpuModel, CpuOptions, Executor};
use weft_testsuite::fixture::{Bytes, Fixture, compile, folder};
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

/// The same weights, stored in f32 and in f16: bf16's values are f32's, and f16's but for the smallest.
#[test]
fn checkpoints_of_other_types() {
    let source = folder().join("tiny").join("llama");
    for (stored, dtype, config) in [(Dtype::F32, DType::F32, "float32"), (Dtype::F16, DType::F16, "float16")]
    {
        let dir = tempfile::tempdir().expect("a folder");
        let bytes = std::fs::read(source.join("model.safetensors")).expect("reads");
        let all = SafeTensors::deserialize(&bytes).expect("safetensors");
        let recast = |t: TensorView<'_>| -> (Vec<usize>, Vec<u8>) {
            assert_eq!(t.dtype(), Dtype::BF16);
            let values = t.data().chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32());
            let data = match stored {
                Dtype::F16 => values.flat_map(|v| f16::from_f32(v).to_le_bytes()).collect(),
                _ => values.flat_map(f32::to_le_bytes).collect(),
            };
            (t.shape().to_vec(), data)
        };
        let data: Vec<_> = all.tensors().into_iter().map(|(name, t)| (name, recast(t))).collect();
        let views: Vec<(&String, TensorView<'_>)> = data
            .iter()
            .map(|(n, (s, d))| (n, TensorView::new(stored, s.clone(), d).expect("a tensor")))
            .collect();
        serialize_to_file(views, None, &dir.path().join("model.safetensors")).expect("writes");
        let text = std::fs::read_to_string(source.join("config.json")).expect("reads");
        assert!(text.contains("bfloat16"));
        std::fs::write(dir.path().join("config.json"), text.replace("bfloat16", config)).expect("writes");
        for file in ["golden.safetensors", "golden.json"] {
            std::fs::copy(source.join(file), dir.path().join(file)).expect("copies");
        }
        let fixture = Fixture::at(dir.path().to_owned());
        assert_eq!(fixture.checkpoint.config().dtype, Some(dtype));
        let options = CpuOptions { max_seq: MAX_SEQ, max_batch: MAX_BATCH, ..CpuOptions::default() };
        let model = CpuModel::graph(fixture.graph(DType::F32), &Bytes(&fixture.checkpoint), &options);
        let report = tiny(&fixture, &mut model.unwrap_or_else(|e| panic!("{config}: {e}")));
        let close = report.logits <= CLOSE && report.greedy_logits <= CLOSE && report.wrong_tokens == 0;
        assert!(close, "{config}: {report:?}");
    }
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
