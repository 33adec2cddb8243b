//! StarCoder 2 (Lozhkov et al. 2024): Llama's attention, LayerNorm, and an MLP without gate.

use super::blocks::decoder::PRE;
use super::blocks::{ModelBuilder, attention, mlp};
use super::llama;

/// Adds the model to the builder. Hugging Face tensor names.
pub fn build(m: &mut ModelBuilder<'_>) {
    let ungated = |m: &mut ModelBuilder<'_>, x, name: &str| mlp::plain(m, x, name, ["c_fc", "c_proj"], false);
    llama::with(m, &attention::NAMES, &PRE, ungated);
}
