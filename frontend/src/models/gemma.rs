//! Gemma 2 (Gemma Team 2024) and the text part of Gemma 3 (2025): norms before and after attention and MLP, with
//! 1 + w; scaled embeddings; windows on most layers; Gemma 2 caps scores and logits, Gemma 3 norms queries and keys
//! and has a rope of its own for layers with a window.

use super::blocks::decoder::Norms;
use super::blocks::{ModelBuilder, attention, mlp};
use super::llama;

const NORMS: Norms = Norms {
    attention_in: "input_layernorm",
    attention_out: "post_attention_layernorm",
    mlp_in: "pre_feedforward_layernorm",
    mlp_out: "post_feedforward_layernorm",
};

/// Adds the model to the builder. Hugging Face tensor names.
pub fn build(m: &mut ModelBuilder<'_>) {
    llama::with(m, &attention::NAMES, &NORMS, mlp::gated);
}
