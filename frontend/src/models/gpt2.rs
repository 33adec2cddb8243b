//! GPT-2 (Radford et al. 2019): learned positions, LayerNorm, matrices stored as `[in, out]` ("Conv1D"), queries,
//! keys and values in one of them.

use super::blocks::attention::{self, Merged};
use super::blocks::decoder::{self, Norms};
use super::blocks::{ModelBuilder, embedding, head, mlp, norm, rotary};

const NORMS: Norms = Norms { attention_in: "ln_1", attention_out: "", mlp_in: "ln_2", mlp_out: "" };

/// Adds the model to the builder. Hugging Face tensor names, with or without `transformer.` before them.
pub fn build(m: &mut ModelBuilder<'_>) {
    let root = m.root_of("transformer.", "wte.weight");
    let embedding = format!("{root}wte.weight");
    let mut x = embedding::tokens_and_positions(m, &embedding, &format!("{root}wpe.weight"));
    let rotaries = rotary::tables(m);
    let layout = Merged::Blocks { transposed: true };
    for layer in 0..m.config.layers {
        let prefix = format!("{root}h.{layer}");
        let attention = |m: &mut ModelBuilder<'_>, h| {
            let name = format!("{prefix}.attn");
            attention::merged(m, h, &name, ("c_attn", "c_proj"), layout, layer, rotaries)
        };
        let mlp = |m: &mut ModelBuilder<'_>, h| {
            mlp::plain(m, h, &format!("{prefix}.mlp"), ["c_fc", "c_proj"], true)
        };
        x = decoder::block(m, x, &prefix, &NORMS, attention, mlp);
    }
    let x = head::output_rows(m, x);
    let x = norm::configured(m, x, &format!("{root}ln_f"));
    head::logits_and_sample(m, x, &embedding, "lm_head.weight");
}
