//! Keys of `config.json` that nobody reads: the harmless ones, and those that matter.

use serde_json::Value;

/// Keys that do not change the logits of a decoder (training, bookkeeping, generation defaults).
pub(super) const HARMLESS: &[&str] = &[
    "_attn_implementation_autoset",
    "_commit_hash",
    "_from_model_config",
    "_name_or_path",
    "add_cross_attention",
    "attention_dropout",
    "bad_words_ids",
    "begin_suppress_tokens",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "embd_pdrop",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "hidden_dropout",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "max_length",
    "max_window_layers",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "prefix",
    "problem_type",
    "pruned_heads",
    "remove_invalid_values",
    "repetition_penalty",
    "resid_pdrop",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
];

/// Keys that change the result, with the values (besides null) at which they do not.
pub(super) const MATTERS: &[(&str, Neutral)] = &[
    ("alibi", Neutral::False),
    ("attention_multiplier", Neutral::Null),
    ("attention_out_bias", Neutral::False),
    ("attn_logit_softcapping", Neutral::Null),
    ("clip_qkv", Neutral::Null),
    ("compression_config", Neutral::Null),
    ("embedding_multiplier", Neutral::One),
    ("final_logit_softcapping", Neutral::Null),
    ("layer_types", Neutral::FullAttention),
    ("logit_scale", Neutral::One),
    ("logits_scaling", Neutral::One),
    ("mup_enabled", Neutral::False),
    ("n_routed_experts", Neutral::Zero),
    ("no_rope_layer_interval", Neutral::Null),
    ("no_rope_layers", Neutral::Null),
    ("num_experts", Neutral::Zero),
    ("num_local_experts", Neutral::Zero),
    ("parallel_attn", Neutral::False),
    ("partial_rotary_factor", Neutral::One),
    ("pretraining_tp", Neutral::One),
    ("qk_layernorm", Neutral::False),
    ("quantization_config", Neutral::Null),
    ("query_pre_attn_scalar", Neutral::Null),
    ("residual_multiplier", Neutral::One),
    ("rope_interleaved", Neutral::False),
    ("rotary_pct", Neutral::One),
    ("scale_depth", Neutral::Null),
    ("scale_emb", Neutral::One),
    ("use_mrope", Neutral::False),
    ("use_parallel_residual", Neutral::False),
    ("use_qk_norm", Neutral::False),
];

/// Values at which a key that matters changes nothing; null always is one.
#[derive(Clone, Copy)]
pub(super) enum Neutral {
    Null,
    False,
    Zero,
    One,
    FullAttention,
}

impl Neutral {
    pub(super) fn admits(self, value: &Value) -> bool {
        match self {
            Neutral::Null => value.is_null(),
            Neutral::False => value.is_null() || value == &Value::Bool(false),
            Neutral::Zero => value.is_null() || value.as_f64() == Some(0.0),
            Neutral::One => value.is_null() || value.as_f64() == Some(1.0),
            Neutral::FullAttention => {
                value.is_null()
                    || value.as_array().is_some_and(|a| a.iter().all(|t| t == &Value::from("full_attention")))
            }
        }
    }

    pub(super) fn supported(self) -> &'static str {
        match self {
            Neutral::Null => "absent or null",
            Neutral::False => "absent or false",
            Neutral::Zero => "absent or 0",
            Neutral::One => "absent or 1",
            Neutral::FullAttention => "absent or \"full_attention\" for every layer",
        }
    }
}
