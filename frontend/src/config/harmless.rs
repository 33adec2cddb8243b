//! Keys of `config.json` that do not change the result of inference, by where they come from.
//!
//! Of a key that is in no list here, that nothing reads and that is not in [`super::keys`], nothing is known: it is an
//! error unless its value is empty ([`super::unread`]).

/// Attributes of transformers' `PretrainedConfig` itself: bookkeeping, labels, what is returned beside the result.
const PRETRAINED: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_commit_hash",
    "_experts_implementation",
    "_experts_implementation_internal",
    "_flash_attn_2_enabled",
    "_from_model_config",
    "_name_or_path",
    "_num_labels",
    "attn_implementation",
    "auto_map",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "custom_pipelines",
    "experts_implementation",
    "finetuning_task",
    "id2label",
    "is_decoder",
    "keys_to_ignore_at_inference",
    "label2id",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_scores",
    "problem_type",
    "return_dict",
    "return_dict_in_generate",
    "task_specific_params",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "torchscript",
    "transformers_version",
    "use_bfloat16",
    "use_cache",
    "xla_device",
];

/// Defaults of generation and of the tokenizer, which older files keep here. (Tokens that begin, end and pad are read.)
const GENERATION: &[&str] = &[
    "bad_words_ids",
    "begin_suppress_tokens",
    "cache_implementation",
    "cls_token_id",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "mask_token_id",
    "max_length",
    "max_sequence_length",
    "min_length",
    "model_max_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "prefix",
    "remove_invalid_values",
    "repetition_penalty",
    "sep_token_id",
    "suppress_tokens",
    "temperature",
    "tokenizer_class",
    "tokenizer_model_max_length",
    "tokenizer_padding_side",
    "top_k",
    "top_p",
    "typical_p",
    "unk_token_id",
];

/// Training: dropout, initial values, losses, how a run was split, and what trainers write of themselves.
const TRAINING: &[&str] = &[
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "aux_loss_alpha",
    "embd_pdrop",
    "embedding_dropout",
    "ep_size",
    "gradient_checkpointing",
    "hidden_dropout",
    "hidden_dropout_prob",
    "initializer_cutoff_factor",
    "initializer_range",
    "mlp_dropout",
    "neftune_noise_alpha",
    "num_steps",
    "output_router_logits",
    // Matrices in slices, whose sums are the same.
    "pretraining_tp",
    "resid_pdrop",
    "residual_dropout",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "router_z_loss_coef",
    "seq_aux",
    "unsloth_fixed",
    "unsloth_version",
];

/// Heads for tasks and for drafts, which Weft leaves out.
const HEADS: &[&str] = &[
    "classifier_activation",
    "classifier_bias",
    "classifier_dropout",
    "classifier_pooling",
    "decoder_bias",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
    "repad_logits_with_grad",
    "sbert_ce_default_activation_function",
    "sentence_transformers",
    "sparse_pred_ignore_index",
    "sparse_prediction",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
];

/// How other runtimes compute: fused kernels, types of sums, compilation.
const RUNTIME: &[&str] = &[
    "attention_softmax_in_fp32",
    "bias_dropout_fusion",
    "deterministic_flash_attn",
    "flash_attn",
    "flash_rotary",
    "fused_dense",
    "masked_softmax_fusion",
    "reference_compile",
    "reorder_and_upcast_attn",
    "scale_attention_softmax_in_fp32",
    "skip_bias_add",
    "skip_bias_add_qkv",
    "slow_but_exact",
    "transformers.js_config",
    "use_flash_attention",
    "use_flash_attention_2",
    "use_flash_attn",
    "use_parallel_embedding",
];

/// Keys that files of these families carry and their classes in transformers do not read.
const LEFT_OVER: &[(&[&str], &[&str])] = &[
    (&["bert", "roberta", "xlm-roberta"], &["directionality"]),
    (&["bloom"], &["offset_alibi"]),
    (&["gpt2"], &["n_ctx", "n_special", "predict_special_tokens"]),
    // The context before it was extended: the rope says it, too.
    (&["gpt_oss"], &["initial_context_length"]),
    (&["llama"], &["is_llama_config"]),
    // Meant for windows, which are off or said layer by layer.
    (&["llama", "mistral", "qwen2_moe", "qwen3_moe", "smollm3"], &["max_window_layers"]),
];

/// Whether a key of a family's file changes nothing, whatever its value.
pub(super) fn is_harmless(model_type: &str, key: &str) -> bool {
    [PRETRAINED, GENERATION, TRAINING, HEADS, RUNTIME].iter().any(|list| list.contains(&key))
        || LEFT_OVER.iter().any(|(families, keys)| families.contains(&model_type) && keys.contains(&key))
}
