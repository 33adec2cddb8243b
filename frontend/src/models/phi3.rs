//! Phi 3 and 4 (Abdin et al. 2024): Llama with queries, keys and values in one matrix, gate and up projection in
//! another, and LongRoPE in the long variants.

use super::blocks::attention::{self, Merged};
use super::blocks::decoder::{self, PRE};
use super::blocks::{ModelBuilder, embedding, head, mlp, norm, rotary};

/// Adds the model to the builder. Hugging Face tensor names.
pub fn build(m: &mut ModelBuilder<'_>) {
    let mut x = embedding::tokens(m, "model.embed_tokens.weight");
    let rotaries = rotary::tables(m);
    let layout = Merged::Blocks { transposed: false };
    for layer in 0..m.config.layers {
        let prefix = format!("model.layers.{layer}");
        let attention = |m: &mut ModelBuilder<'_>, h| {
            let name = format!("{prefix}.self_attn");
            attention::merged(m, h, &name, ("qkv_proj", "o_proj"), layout, layer, rotaries)
        };
        let mlp =
            |m: &mut ModelBuilder<'_>, h| mlp::gated_merged(m, h, &format!("{prefix}.mlp"), mlp::MERGED);
        x = decoder::block(m, x, &prefix, &PRE, attention, mlp);
    }
    let x = head::output_rows(m, x);
    let x = norm::configured(m, x, "model.norm");
    head::logits_and_sample(m, x, "model.embed_tokens.weight", "lm_head.weight");
}
