//! Phi 1, 1.5 and 2 (Li et al. 2023): attention and MLP in parallel on one LayerNorm, rotation of part of each head,
//! biases everywhere, the head's among them.

use super::blocks::attention::{self, Names};
use super::blocks::decoder::{self, PRE};
use super::blocks::{ModelBuilder, embedding, head, mlp, norm, rotary};

const NAMES: Names = Names { out: "dense", norms: ["q_layernorm", "k_layernorm"], ..attention::NAMES };

/// Adds the model to the builder. Hugging Face tensor names.
pub fn build(m: &mut ModelBuilder<'_>) {
    let mut x = embedding::tokens(m, "model.embed_tokens.weight");
    let rotaries = rotary::tables(m);
    for layer in 0..m.config.layers {
        let prefix = format!("model.layers.{layer}");
        let attention = |m: &mut ModelBuilder<'_>, h| {
            attention::grouped_query(m, h, &format!("{prefix}.self_attn"), &NAMES, layer, rotaries)
        };
        let mlp =
            |m: &mut ModelBuilder<'_>, h| mlp::plain(m, h, &format!("{prefix}.mlp"), ["fc1", "fc2"], false);
        x = decoder::block(m, x, &prefix, &PRE, attention, mlp);
    }
    let x = head::output_rows(m, x);
    let x = norm::configured(m, x, "model.final_layernorm");
    head::logits_and_sample(m, x, "model.embed_tokens.weight", "lm_head.weight");
}
