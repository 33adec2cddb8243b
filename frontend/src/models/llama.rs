//! Llama (Touvron et al. 2023) and what is built alike: RMSNorm before attention and MLP, rotary
//! positions, grouped-query attention, SwiGLU.

use super::blocks::{ModelBuilder, attention, embedding, head, mlp, norm};

/// Adds the model to the builder. Hugging Face tensor names.
pub fn build(m: &mut ModelBuilder<'_>) {
    let mut x = embedding::tokens(m, "model.embed_tokens.weight");
    let rotary = attention::rotary_tables(m);
    for layer in 0..m.config.layers {
        let prefix = format!("model.layers.{layer}");
        x = m.scoped(&prefix, |m| {
            let h = norm::rms(m, x, &format!("{prefix}.input_layernorm.weight"));
            let h = attention::grouped_query(m, h, &format!("{prefix}.self_attn"), layer, rotary);
            let x = m.residual(x, h);
            let h = norm::rms(m, x, &format!("{prefix}.post_attention_layernorm.weight"));
            let h = mlp::gated(m, h, &format!("{prefix}.mlp"));
            m.residual(x, h)
        });
    }
    let x = head::output_rows(m, x);
    let x = norm::rms(m, x, "model.norm.weight");
    head::logits_and_sample(m, x, "model.embed_tokens.weight", "lm_head.weight");
}
