//! Every kernel of the tiny llama's plan runs on the emulator, at both ends of the optimisation levels, and
//! matches the reference on the same inputs; the run as a whole matches Hugging Face.

use weft_ir::dtype::DType;
use weft_passes::Selection;
use weft_testsuite::emulated_decoder::{decoder, decoder_with};
use weft_testsuite::fixture::Fixture;

fn check(name: &str, opt_level: u8) {
    decoder(&Fixture::open(name), opt_level);
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

/// Attention that makes its rows: in f16, and in f32, where keys are taken one by one.
#[test]
fn qwen3_in_other_types() {
    for dtype in [DType::F16, DType::F32] {
        decoder_with(&Fixture::open("qwen3"), 2, dtype, Selection::default());
    }
}

#[test]
fn mixtral_unfused() {
    check("mixtral", 0);
}

#[test]
#[ignore = "minutes: every key and value of every head passes through memory"]
fn deepseek_v3_unfused() {
    check("deepseek-v3", 0);
}

/// Keys and values of all heads, made of the cached rows, by tiles.
#[test]
fn deepseek_v3_expanded() {
    let without = Selection::without(&["absorb-latent"]);
    decoder_with(&Fixture::open("deepseek-v3"), 2, DType::BF16, without);
}
