//! GLM-4-0414: norms before and after attention and MLP, rotary pairs of neighbours in half of each head, gate and
//! up projection in one matrix.

use super::blocks::decoder::Norms;
use super::blocks::{ModelBuilder, attention, mlp};
use super::llama;

const NORMS: Norms = Norms {
    attention_in: "input_layernorm",
    attention_out: "post_self_attn_layernorm",
    mlp_in: "post_attention_layernorm",
    mlp_out: "post_mlp_layernorm",
};

/// Adds the model to the builder. Hugging Face tensor names.
pub fn build(m: &mut ModelBuilder<'_>) {
    let merged = |m: &mut ModelBuilder<'_>, x, name: &str| mlp::gated_merged(m, x, name, mlp::MERGED);
    llama::with(m, &attention::NAMES, &NORMS, merged);
}
