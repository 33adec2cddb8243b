//! Llama (Touvron et al. 2023) and what shares its tensors: norms, rotary positions, grouped-query attention with
//! its projections stored apart, gated MLP. By configuration: Mistral (Jiang et al. 2023), Qwen 2 and 3 (Yang et
//! al. 2024, 2025), Granite, SmolLM3, Command R7B (cohere2) and StableLM 2.

use super::blocks::attention::{self, Names};
use super::blocks::decoder::{self, Norms, PRE};
use super::blocks::rotary::{self, Rotaries};
use super::blocks::{ModelBuilder, embedding, head, mlp, norm};
use weft_ir::ids::NodeId;

/// Adds the model to the builder. Hugging Face tensor names.
pub fn build(m: &mut ModelBuilder<'_>) {
    with(m, &attention::NAMES, &PRE, mlp::gated);
}

/// StableLM: its norms of queries and keys are named otherwise.
pub fn stablelm(m: &mut ModelBuilder<'_>) {
    let names = Names { norms: ["q_layernorm", "k_layernorm"], ..attention::NAMES };
    with(m, &names, &PRE, mlp::gated);
}

/// A model of this form with other names and another MLP.
pub(super) fn with(
    m: &mut ModelBuilder<'_>,
    names: &Names,
    norms: &Norms,
    mlp: fn(&mut ModelBuilder<'_>, NodeId, &str) -> NodeId,
) {
    layers(
        m,
        norms,
        |m, h, name, layer, rotaries| attention::grouped_query(m, h, name, names, layer, rotaries),
        |m, h, prefix, _| mlp(m, h, &format!("{prefix}.mlp")),
    );
}

/// A model of this form whose layers differ, with another attention: of x, a name, the layer and the rotary
/// tables; and another MLP: of x, the layer's prefix, and the layer.
pub(super) fn layers(
    m: &mut ModelBuilder<'_>,
    norms: &Norms,
    attention: impl Fn(&mut ModelBuilder<'_>, NodeId, &str, usize, Rotaries) -> NodeId,
    mlp: impl Fn(&mut ModelBuilder<'_>, NodeId, &str, usize) -> NodeId,
) {
    let mut x = embedding::tokens(m, "model.embed_tokens.weight");
    let rotaries = rotary::tables(m);
    for layer in 0..m.config.layers {
        let prefix = format!("model.layers.{layer}");
        let attention =
            |m: &mut ModelBuilder<'_>, h| attention(m, h, &format!("{prefix}.self_attn"), layer, rotaries);
        let mlp = |m: &mut ModelBuilder<'_>, h| mlp(m, h, &prefix, layer);
        x = decoder::block(m, x, &prefix, norms, attention, mlp);
    }
    let x = head::output_rows(m, x);
    let x = norm::configured(m, x, "model.norm");
    head::logits_and_sample(m, x, "model.embed_tokens.weight", "lm_head.weight");
}
