//! Stored tensors that say nothing of their own: tables and masks that the configuration gives, and what the file
//! holds twice.

use crate::config::ModelConfig;
use crate::tensor::TensorInfo;
use std::collections::BTreeSet;

/// Tables of positions and numbers of masks, by the ends of their names.
const TABLES: &[&str] = &[
    ".attention.masked_bias",
    ".attn.masked_bias",
    ".attn_rot_embd",
    ".cos_cached",
    ".inv_freq",
    ".sin_cached",
    "embeddings.position_ids",
    "embeddings.token_type_ids",
];

/// Tensors of GGUF files that the configuration reads.
const READ: &[&str] = &["rope_factors_long.weight", "rope_factors_short.weight", "rope_freqs.weight"];

/// Causal masks that older files of GPT-2 and GPT-NeoX hold: of four axes, where a bias has one.
const MASKS: &[&str] = &[".attention.bias", ".attn.bias"];

/// Parts of a matrix in DeepSeek's GGUF files, which may stand beside the whole.
const PARTS: &[(&str, &str)] =
    &[("attn_k_b.weight", "attn_kv_b.weight"), ("attn_v_b.weight", "attn_kv_b.weight")];

/// Whether a tensor says nothing that the configuration or the tensors of these names do not.
pub(crate) fn is_derived(tensor: &TensorInfo, config: &ModelConfig, known: &BTreeSet<&str>) -> bool {
    let name = tensor.name.as_str();
    let beside = |part: &str, whole: &str| {
        name.strip_suffix(part).is_some_and(|rest| known.contains(format!("{rest}{whole}").as_str()))
    };
    TABLES.iter().any(|table| name.ends_with(table))
        || READ.contains(&name)
        || (tensor.shape.len() == 4 && MASKS.iter().any(|mask| name.ends_with(mask)))
        || PARTS.iter().any(|(part, whole)| beside(part, whole))
        || (name == "lm_head.weight" && config.tie_word_embeddings)
        || (config.model_type == "bert" && is_pooler(name))
}

/// Whether a tensor is of BERT's pooler, which is no part of the encoder.
fn is_pooler(name: &str) -> bool {
    name.strip_prefix("bert.").unwrap_or(name).starts_with("pooler.")
}
