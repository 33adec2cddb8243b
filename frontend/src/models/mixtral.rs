//! Mixtral (Jiang et al. 2024), and Qwen 2 and 3 with experts (Yang et al. 2024, 2025): Llama, with a mixture of
//! experts in place of the MLP of all or some layers.

use super::blocks::decoder::PRE;
use super::blocks::experts::{self, Names};
use super::blocks::{ModelBuilder, attention, mlp};
use super::llama;
use weft_ir::ids::NodeId;

/// Adds Mixtral to the builder. Hugging Face tensor names.
pub fn build(m: &mut ModelBuilder<'_>) {
    const NAMES: Names = Names { router: "gate", expert: ["w1", "w3", "w2"], shared: "" };
    with(m, "block_sparse_moe", &NAMES);
}

/// Adds Qwen 2 or 3 with experts to the builder.
pub fn qwen(m: &mut ModelBuilder<'_>) {
    const NAMES: Names =
        Names { router: "gate", expert: ["gate_proj", "up_proj", "down_proj"], shared: "shared_expert" };
    with(m, "mlp", &NAMES);
}

fn with(m: &mut ModelBuilder<'_>, part: &str, names: &Names) {
    llama::layers(
        m,
        &PRE,
        |m, h, name, layer, rotaries| {
            attention::grouped_query(m, h, name, &attention::NAMES, layer, rotaries)
        },
        |m, h, prefix, layer| sparse_or_dense(m, h, prefix, part, layer, names),
    );
}

/// The mixture `prefix.part` of a layer that has one, else its MLP.
pub(super) fn sparse_or_dense(
    m: &mut ModelBuilder<'_>,
    x: NodeId,
    prefix: &str,
    part: &str,
    layer: usize,
    names: &Names,
) -> NodeId {
    match &m.config.experts {
        Some(e) if e.sparse.get(layer) == Some(&true) => {
            let name = format!("{prefix}.{part}");
            let stored = |m: &mut ModelBuilder<'_>| experts::one_by_one(m, &name, e, names.expert);
            experts::mixture(m, x, &name, e, names, false, stored)
        }
        _ => mlp::gated(m, x, &format!("{prefix}.mlp")),
    }
}
