//! BLOOM (BigScience 2022) and Falcon (Almazrouei et al. 2023), which grew from it: LayerNorm, queries, keys and
//! values in one matrix, grouped by key head. BLOOM biases its scores by distance (ALiBi) and norms its embeddings;
//! Falcon rotates, shares key heads and computes attention and MLP in parallel.

use super::blocks::attention::{self, Merged};
use super::blocks::decoder::{self, Norms, PRE};
use super::blocks::{ModelBuilder, embedding, head, mlp, norm, rotary};
use crate::config::Placement;

/// Adds BLOOM to the builder. Hugging Face tensor names, with or without `transformer.` before them.
pub fn build(m: &mut ModelBuilder<'_>) {
    with(m, &PRE, true);
}

/// Adds Falcon to the builder.
pub fn falcon(m: &mut ModelBuilder<'_>) {
    let norms = match m.config.placement {
        Placement::Parallel { norms: 2 } => Norms { attention_in: "ln_attn", mlp_in: "ln_mlp", ..PRE },
        _ => PRE,
    };
    with(m, &norms, false);
}

fn with(m: &mut ModelBuilder<'_>, norms: &Norms, embedding_norm: bool) {
    let root = m.root_of("transformer.", "word_embeddings.weight");
    let embedding = format!("{root}word_embeddings.weight");
    let mut x = embedding::tokens(m, &embedding);
    if embedding_norm {
        x = norm::configured(m, x, &format!("{root}word_embeddings_layernorm"));
    }
    let rotaries = rotary::tables(m);
    for layer in 0..m.config.layers {
        let prefix = format!("{root}h.{layer}");
        let attention = |m: &mut ModelBuilder<'_>, h| {
            let name = format!("{prefix}.self_attention");
            attention::merged(m, h, &name, ("query_key_value", "dense"), Merged::Groups, layer, rotaries)
        };
        let mlp = |m: &mut ModelBuilder<'_>, h| {
            mlp::plain(m, h, &format!("{prefix}.mlp"), ["dense_h_to_4h", "dense_4h_to_h"], false)
        };
        x = decoder::block(m, x, &prefix, norms, attention, mlp);
    }
    let x = head::output_rows(m, x);
    let x = norm::configured(m, x, &format!("{root}ln_f"));
    head::logits_and_sample(m, x, &embedding, "lm_head.weight");
}
