//! OLMo 2 (OLMo Team 2024), OLMo 3 and EXAONE 4 (LG AI Research 2025): norms after attention and MLP only, and of
//! queries and keys (OLMo: of the whole projection; EXAONE: of each head).

use super::blocks::decoder::Norms;
use super::blocks::{ModelBuilder, attention, mlp};
use super::llama;

const NORMS: Norms = Norms {
    attention_in: "",
    attention_out: "post_attention_layernorm",
    mlp_in: "",
    mlp_out: "post_feedforward_layernorm",
};

/// Adds the model to the builder. Hugging Face tensor names.
pub fn build(m: &mut ModelBuilder<'_>) {
    llama::with(m, &attention::NAMES, &NORMS, mlp::gated);
}
