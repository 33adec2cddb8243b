//! ModernBERT (Warner et al. 2024): an encoder with norms before attention and MLP, rotary positions, a gated MLP, and
//! attention within a window on most layers, with a rope of its own.

use super::blocks::{ModelBuilder, embedding, encoder, mlp, norm, rotary};
use weft_ir::dtype::DType;
use weft_ir::graph::Input;

/// Adds the model to the builder. Hugging Face tensor names, with or without `model.` before them.
pub fn build(m: &mut ModelBuilder<'_>) {
    let root = m.root_of("model.", "embeddings.tok_embeddings.weight");
    let mut x = m.scoped(&format!("{root}embeddings"), |m| {
        let table = format!("{root}embeddings.tok_embeddings.weight");
        let x = embedding::rows(m, &table, m.config.vocab_size, Input::TokenIds);
        norm::configured(m, x, &format!("{root}embeddings.norm"))
    });
    let rotaries = rotary::tables(m);
    for layer in 0..m.config.layers {
        if m.failed() {
            break;
        }
        let name = format!("{root}layers.{layer}");
        x = m.scoped(&name, |m| {
            // The first layer's input is normed already.
            let h = if layer == 0 { x } else { norm::configured(m, x, &format!("{name}.attn_norm")) };
            let h = encoder::merged(m, h, &format!("{name}.attn"), layer, rotaries);
            let x = m.residual(x, h);
            let h = norm::configured(m, x, &format!("{name}.mlp_norm"));
            let h = mlp::gated_merged(m, h, &format!("{name}.mlp"), ["Wi", "Wo"]);
            m.residual(x, h)
        });
    }
    let x = m.g.cast(x, DType::F32);
    let x = norm::configured(m, x, &format!("{root}final_norm"));
    m.g.output("last_hidden_state", x);
}
