//! DeepSeek V3 and R1 (DeepSeek-AI 2024): latent attention, dense layers first, then mixtures of experts with a
//! shared expert, chosen by biased sigmoids within the best groups.

use super::blocks::decoder::PRE;
use super::blocks::experts::Names;
use super::blocks::{ModelBuilder, attention, latent};
use super::{llama, mixtral};

const NAMES: Names =
    Names { router: "gate", expert: ["gate_proj", "up_proj", "down_proj"], shared: "shared_experts" };

/// Adds the model to the builder. Hugging Face tensor names.
pub fn build(m: &mut ModelBuilder<'_>) {
    llama::layers(
        m,
        &PRE,
        |m, h, name, layer, rotaries| match m.config.latent {
            Some(l) => latent::attention(m, h, name, l, layer, rotaries),
            None => attention::grouped_query(m, h, name, &attention::NAMES, layer, rotaries),
        },
        |m, h, prefix, layer| mixtral::sparse_or_dense(m, h, prefix, "mlp", layer, &NAMES),
    );
}
