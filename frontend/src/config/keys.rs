//! Keys of `config.json` that nobody reads although they change the result: an error, unless their value changes
//! nothing.

use serde_json::Value;

/// Keys that change the result, with the values (besides null) at which they do not.
const MATTERS: &[(&str, Neutral)] = &[
    ("add_cross_attention", Neutral::False),
    ("alibi", Neutral::False),
    ("apply_residual_connection_post_layernorm", Neutral::False),
    ("attention_bias", Neutral::False),
    ("attention_multiplier", Neutral::Null),
    ("attention_out_bias", Neutral::False),
    ("attn_logit_softcapping", Neutral::Null),
    ("bias", Neutral::False),
    ("clip_qkv", Neutral::Null),
    ("compression_config", Neutral::Null),
    ("embedding_multiplier", Neutral::One),
    ("final_logit_softcapping", Neutral::Null),
    ("full_attn_mod", Neutral::One),
    ("interpolate_factor", Neutral::One),
    ("is_causal", Neutral::True),
    ("is_encoder_decoder", Neutral::False),
    ("layer_types", Neutral::FullAttention),
    ("lm_head_bias", Neutral::False),
    ("logit_scale", Neutral::One),
    ("logits_scaling", Neutral::One),
    ("mlp_bias", Neutral::False),
    ("multi_query", Neutral::False),
    ("mup_enabled", Neutral::False),
    ("n_routed_experts", Neutral::Zero),
    ("new_decoder_architecture", Neutral::False),
    ("no_rope_layer_interval", Neutral::Null),
    ("no_rope_layers", Neutral::Null),
    ("num_experts", Neutral::Zero),
    ("num_local_experts", Neutral::Zero),
    ("parallel_attn", Neutral::False),
    ("partial_rotary_factor", Neutral::One),
    ("pruned_heads", Neutral::Empty),
    ("qk_layernorm", Neutral::False),
    ("qkv_bias", Neutral::False),
    ("quantization", Neutral::Null),
    ("quantization_config", Neutral::Null),
    ("query_pre_attn_scalar", Neutral::Null),
    ("residual_multiplier", Neutral::One),
    ("rope_interleaved", Neutral::False),
    ("rope_local_base_freq", Neutral::Null),
    ("rotary_emb_base", Neutral::Null),
    ("rotary_pct", Neutral::One),
    ("rotary_scaling_factor", Neutral::One),
    ("scale_attn_by_inverse_layer_idx", Neutral::False),
    ("scale_attn_weights", Neutral::True),
    ("scale_depth", Neutral::Null),
    ("scale_emb", Neutral::One),
    ("shared_expert_intermediate_size", Neutral::Zero),
    ("use_bias", Neutral::False),
    ("use_bidirectional_attention", Neutral::False),
    ("use_dynamic_ntk", Neutral::False),
    ("use_logn_attn", Neutral::False),
    ("use_mrope", Neutral::False),
    ("use_parallel_residual", Neutral::False),
    ("use_qk_norm", Neutral::False),
    ("use_qkv_bias", Neutral::False),
];

const ENCODERS: &[&str] = &["bert", "roberta", "xlm-roberta", "modernbert"];

/// The same for families that differ: what they do whether the key says so or not.
const IN_FAMILY: &[(&[&str], &str, Neutral)] = &[
    (&["cohere2"], "order_of_interleaved_layers", Neutral::Text("local_attn_first")),
    (&["cohere2"], "position_embedding_type", Neutral::Text("rope_gptj")),
    (&["cohere2"], "use_gated_activation", Neutral::True),
    (&["cohere2"], "use_parallel_block", Neutral::True),
    (ENCODERS, "causal_mask", Neutral::False),
    (ENCODERS, "is_causal", Neutral::False),
    (&["qwen3", "qwen3_moe"], "use_qk_norm", Neutral::True),
];

/// The values of a key that matters at which it changes nothing in this family; `None` for another key.
pub(super) fn neutral(model_type: &str, key: &str) -> Option<Neutral> {
    let own = IN_FAMILY.iter().find(|(families, k, _)| *k == key && families.contains(&model_type));
    own.map(|(_, _, neutral)| *neutral)
        .or_else(|| MATTERS.iter().find(|(k, _)| *k == key).map(|(_, neutral)| *neutral))
}

/// Values at which a key that matters changes nothing; null always is one.
#[derive(Clone, Copy)]
pub(super) enum Neutral {
    Null,
    False,
    True,
    Zero,
    One,
    Empty,
    FullAttention,
    Text(&'static str),
}

impl Neutral {
    pub(super) fn admits(self, value: &Value) -> bool {
        match self {
            Neutral::Null => value.is_null(),
            Neutral::False => value.is_null() || value == &Value::Bool(false),
            Neutral::True => value.is_null() || value == &Value::Bool(true),
            Neutral::Zero => value.is_null() || value.as_f64() == Some(0.0),
            Neutral::One => value.is_null() || value.as_f64() == Some(1.0),
            Neutral::Empty => value.is_null() || is_empty(value),
            Neutral::Text(text) => value.is_null() || value == text,
            Neutral::FullAttention => {
                value.is_null()
                    || value.as_array().is_some_and(|a| a.iter().all(|t| t == &Value::from("full_attention")))
            }
        }
    }

    pub(super) fn supported(self) -> String {
        match self {
            Neutral::Null => "absent or null",
            Neutral::False => "absent or false",
            Neutral::True => "absent or true",
            Neutral::Zero => "absent or 0",
            Neutral::One => "absent or 1",
            Neutral::Empty => "absent or empty",
            Neutral::Text(text) => return format!("absent or {text}"),
            Neutral::FullAttention => "absent or \"full_attention\" for every layer",
        }
        .to_owned()
    }
}

/// Whether a value is a list, an object or a text of nothing.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}
