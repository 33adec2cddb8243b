//! Every kernel of the tiny llama's plan runs on the emulator, at both ends of the optimisation levels, and
//! matches the reference on the same inputs; the run as a whole matches Hugging Face.

use std::collections::BTreeSet;
use weft_ir::dtype::DType;
use weft_ir::plan::Role;
use weft_testsuite::emulate::{Emulated, ragged};
use weft_testsuite::fixture::{Fixture, compile, relative_rmse};

const MAX_SEQ: usize = 64;
const MAX_BATCH: usize = 4;

/// Runs every entry of the plan on ragged sequences of the fixture, and compares logits with the golden.
fn check(name: &str, opt_level: u8) {
    let fixture = Fixture::open(name);
    let graph = fixture.graph(DType::BF16);
    let plan = compile(&graph, "sm_90", DType::BF16, opt_level, (MAX_SEQ, MAX_BATCH));
    let ids = fixture.golden_ids("input_ids");
    let logits = fixture.golden_f32("logits");
    let (length, vocab) = (ids.shape[1], logits.shape[2]);
    let row = |r: usize| &ids.values[(r % ids.shape[0]) * length..][..length];
    let hf = fixture.golden_json()["hf_16bit"]["rel_rmse"].as_f64().expect("hf_16bit");

    let mut run = Emulated::new(&plan, &fixture.checkpoint);
    let mut distances = Vec::new();
    let mut used = BTreeSet::new();
    let (mut ours, mut golden) = (Vec::new(), Vec::new());
    // Where each sequence of the cache stands.
    let mut at = [0usize; MAX_BATCH];
    let order = [Role::Score, Role::Prefill, Role::Decode];
    for entry in order.iter().flat_map(|role| plan.entries.iter().filter(move |e| e.role == *role)) {
        // Pieces of different lengths; half of a large bucket stays padding.
        let sequences = entry.bind.tokens.min(MAX_BATCH);
        let take = |s: usize| match entry.role {
            Role::Decode => 1,
            Role::Prefill | Role::Score | Role::Encode => {
                (entry.bind.tokens / MAX_BATCH - s).clamp(1, 14 - s)
            }
        };
        let mut pieces = Vec::new();
        for (s, start) in at.iter_mut().enumerate().take(sequences) {
            if *start + take(s) > length {
                *start = 0;
            }
            pieces.push((&row(s)[*start..*start + take(s)], *start));
        }
        let every_row = entry.role == Role::Score;
        let inputs = ragged(entry, &pieces, MAX_SEQ, every_row || entry.role == Role::Decode);
        distances.extend(run.step(&entry.name, &inputs));
        used.extend(entry.kernels.values().copied());
        let got = run.output("logits");
        let mut output_row = 0;
        for (s, (tokens, start)) in pieces.iter().enumerate() {
            let first = if entry.role == Role::Prefill { tokens.len() - 1 } else { 0 };
            for t in start + first..start + tokens.len() {
                let theirs = ((s % ids.shape[0]) * length + t) * vocab;
                ours.extend_from_slice(&got[output_row * vocab..][..vocab]);
                golden.extend_from_slice(&logits.values[theirs..][..vocab]);
                output_row += 1;
            }
        }
        for (s, start) in at.iter_mut().enumerate().take(sequences) {
            *start += take(s);
        }
    }
    assert_eq!(used.len(), plan.kernels.len(), "kernels that no entry uses");
    let far: Vec<_> = distances.iter().filter(|d| !d.is_close()).collect();
    assert!(far.is_empty(), "{} of {} kernels are too far: {far:#?}", far.len(), distances.len());
    let distance = relative_rmse(&ours, &golden);
    assert!(distance <= 1.5 * hf, "{name} level {opt_level}: {distance}, Hugging Face's own {hf}");
}

#[test]
fn llama_unfused() {
    check("llama", 0);
}

#[test]
fn llama_grouped() {
    check("llama", 1);
}

#[test]
fn llama_fused() {
    check("llama", 2);
}

#[test]
fn llama_rope3_tied_fused() {
    check("llama-rope3-tied", 2);
}

macro_rules! fused {
    ($($test:ident: $name:literal),* $(,)?) => {
        $(#[test] fn $test() { check($name, 2); })*
    };
}

fused! {
    mistral_sliding_fused: "mistral-sliding",
    qwen2_fused: "qwen2",
    qwen3_fused: "qwen3",
    gemma2_fused: "gemma2",
    gemma3_fused: "gemma3",
    phi3_fused: "phi3",
    gpt2_fused: "gpt2",
    gpt_neox_fused: "gpt-neox",
    olmo2_fused: "olmo2",
    bloom_fused: "bloom",
    falcon_fused: "falcon",
    mixtral_fused: "mixtral",
    qwen3_moe_fused: "qwen3-moe",
    gpt_oss_fused: "gpt-oss",
    deepseek_v3_fused: "deepseek-v3",
}

#[test]
fn mixtral_unfused() {
    check("mixtral", 0);
}
