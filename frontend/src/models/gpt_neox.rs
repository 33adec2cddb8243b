//! GPT-NeoX (Black et al. 2022) and Pythia: attention and MLP in parallel, rotation of part of each head; queries, keys
//! and values in one matrix, head by head.

use super::blocks::attention::{self, Merged};
use super::blocks::decoder::{self, PRE};
use super::blocks::{ModelBuilder, embedding, head, mlp, norm, rotary};

/// Adds the model to the builder. Hugging Face tensor names.
pub fn build(m: &mut ModelBuilder<'_>) {
    let embedding = "gpt_neox.embed_in.weight";
    let mut x = embedding::tokens(m, embedding);
    let rotaries = rotary::tables(m);
    for layer in 0..m.config.layers {
        let prefix = format!("gpt_neox.layers.{layer}");
        let attention = |m: &mut ModelBuilder<'_>, h| {
            let name = format!("{prefix}.attention");
            attention::merged(m, h, &name, ("query_key_value", "dense"), Merged::Groups, layer, rotaries)
        };
        let mlp = |m: &mut ModelBuilder<'_>, h| {
            mlp::plain(m, h, &format!("{prefix}.mlp"), ["dense_h_to_4h", "dense_4h_to_h"], false)
        };
        x = decoder::block(m, x, &prefix, &PRE, attention, mlp);
    }
    let x = head::output_rows(m, x);
    let x = norm::configured(m, x, "gpt_neox.final_layer_norm");
    head::logits_and_sample(m, x, embedding, "embed_out.weight");
}
