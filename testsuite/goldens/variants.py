"""The table of variants that `generate.py` makes: for each family, settings that the tiny fixtures do not have."""

SIZE = dict(vocab_size=96, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
ROPE = dict(rope_type="default", rope_theta=10000.0)


def rope(kind, **more):
    """Rope parameters of a kind."""
    return dict(ROPE, rope_type=kind, **more)


def partial(part, **more):
    """Rope of part of each head."""
    return dict(ROPE, partial_rotary_factor=part, **more)


def sliding(*flags):
    """Layer types from flags: whether a layer slides."""
    return ["sliding_attention" if f else "full_attention" for f in flags]


def two_ropes(full, local):
    """Rope parameters of full-attention and of sliding-window layers."""
    return dict(full_attention=full, sliding_attention=local)


LONG = dict(short_factor=[1.0 + 0.05 * i for i in range(4)], long_factor=[1.0 + 0.5 * i for i in range(4)])
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
GPT2 = dict(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
BLOOM = dict(vocab_size=96, hidden_size=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2, pad_token_id=0)
FALCON = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, bos_token_id=1,
              eos_token_id=2, ffn_hidden_size=96, rope_parameters=ROPE)
NEOX = dict(num_key_value_heads=None)
BERT = dict(num_key_value_heads=None)
ROBERTA = dict(BERT, pad_token_id=1, bos_token_id=0, type_vocab_size=1, max_position_embeddings=66)
MODERN = dict(num_key_value_heads=None, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)

# name: (model_type, settings, spelling of config.json: "new", "old")
DECODERS = {
    # Llama: heads, biases, sizes, activations, every kind of rope.
    "llama-mha": ("llama", dict(num_key_value_heads=4, rope_parameters=ROPE), "new"),
    "llama-mqa-tied": ("llama", dict(num_key_value_heads=1, tie_word_embeddings=True, rope_parameters=ROPE), "old"),
    "llama-attention-bias": ("llama", dict(attention_bias=True, rope_parameters=ROPE), "new"),
    "llama-both-biases": ("llama", dict(attention_bias=True, mlp_bias=True, rope_parameters=ROPE), "old"),
    "llama-odd": ("llama", dict(hidden_size=36, intermediate_size=50, num_attention_heads=6, num_key_value_heads=3,
                                head_dim=10, vocab_size=131, rope_parameters=ROPE), "new"),
    "llama-head-dim-6": ("llama", dict(hidden_size=30, num_attention_heads=5, num_key_value_heads=5,
                                       vocab_size=101, rope_parameters=ROPE), "old"),
    "llama-wide-heads": ("llama", dict(head_dim=24, rope_parameters=dict(ROPE, rope_theta=500000.0)), "new"),
    "llama-one-layer": ("llama", dict(num_hidden_layers=1, rms_norm_eps=1e-3, rope_parameters=ROPE), "new"),
    "llama-relu2": ("llama", dict(hidden_act="relu2", rope_parameters=ROPE), "new"),
    "llama-gelu": ("llama", dict(hidden_act="gelu", rope_parameters=ROPE), "new"),
    "llama-linear": ("llama", dict(rope_parameters=rope("linear", factor=4.0)), "new"),
    "llama-linear-older": ("llama", dict(rope_parameters=rope("linear", factor=2.5)), "oldest"),
    "llama-dynamic": ("llama", dict(rope_parameters=rope("dynamic", factor=2.0)), "old"),
    # Beyond the original context: from the prompt on, and within the continuation.
    "llama-dynamic-prompt": ("llama", dict(max_position_embeddings=8, rope_parameters=rope("dynamic", factor=2.0)),
                             "old"),
    "llama-dynamic-decode": ("llama", dict(max_position_embeddings=16, head_dim=16,
                                           rope_parameters=rope("dynamic", factor=4.0)), "new"),
    "phi-dynamic": ("phi", dict(max_position_embeddings=10, rope_parameters=partial(
        0.5, rope_type="dynamic", factor=3.0)), "new"),
    "llama-rope3": ("llama", dict(head_dim=16, rope_parameters=rope("llama3", **LLAMA3)), "new"),
    "llama-yarn": ("llama", dict(head_dim=16, rope_parameters=rope(
        "yarn", factor=4.0, original_max_position_embeddings=16)), "old"),
    "llama-yarn-settings": ("llama", dict(head_dim=16, rope_parameters=rope(
        "yarn", factor=8.0, original_max_position_embeddings=8, beta_fast=4.0, beta_slow=0.5, truncate=False,
        mscale=0.7, mscale_all_dim=0.4)), "new"),
    "llama-yarn-factor": ("llama", dict(rope_parameters=rope(
        "yarn", factor=4.0, original_max_position_embeddings=16, attention_factor=1.2)), "new"),
    "llama-longrope": ("llama", dict(rope_parameters=rope(
        "longrope", factor=2.0, original_max_position_embeddings=32, **LONG)), "new"),
    # Windows.
    "mistral-window-5": ("mistral", dict(sliding_window=5, head_dim=12, rope_parameters=ROPE), "old"),
    "mistral-window-1": ("mistral", dict(sliding_window=1, head_dim=8, rope_parameters=ROPE), "new"),
    "mistral-full": ("mistral", dict(sliding_window=None, head_dim=16, rope_parameters=ROPE), "new"),
    "qwen2-mqa-odd": ("qwen2", dict(hidden_size=36, num_attention_heads=3, num_key_value_heads=1, vocab_size=115,
                                    rope_parameters=ROPE), "old"),
    "qwen2-window": ("qwen2", dict(use_sliding_window=True, sliding_window=6, max_window_layers=1,
                                   num_hidden_layers=3, rope_parameters=ROPE), "new"),
    "qwen2-window-older": ("qwen2", dict(use_sliding_window=True, sliding_window=7, max_window_layers=1,
                                         tie_word_embeddings=True, rope_parameters=ROPE), "old"),
    "qwen2-yarn": ("qwen2", dict(rope_parameters=rope(
        "yarn", factor=4.0, original_max_position_embeddings=16)), "old"),
    "qwen3-tied": ("qwen3", dict(head_dim=12, tie_word_embeddings=True, rope_parameters=ROPE), "old"),
    "qwen3-bias": ("qwen3", dict(head_dim=16, attention_bias=True, rope_parameters=ROPE), "new"),
    "qwen3-window": ("qwen3", dict(head_dim=8, use_sliding_window=True, sliding_window=5, max_window_layers=1,
                                   rope_parameters=ROPE), "new"),
    "gemma2-odd": ("gemma2", dict(head_dim=10, query_pre_attn_scalar=20, sliding_window=7, num_hidden_layers=3,
                                  vocab_size=119, rope_parameters=ROPE), "new"),
    "gemma2-caps": ("gemma2", dict(head_dim=8, query_pre_attn_scalar=8, sliding_window=4, attn_logit_softcapping=2.0,
                                   final_logit_softcapping=5.0, rope_parameters=ROPE), "old"),
    "gemma2-no-caps": ("gemma2", dict(head_dim=8, query_pre_attn_scalar=16, attn_logit_softcapping=None,
                                      final_logit_softcapping=None, attention_bias=True, rope_parameters=ROPE), "new"),
    "gemma3-pattern": ("gemma3_text", dict(head_dim=16, query_pre_attn_scalar=12, sliding_window=6,
                                           num_hidden_layers=4, layer_types=sliding(1, 0, 1, 0)), "new"),
    "gemma3-older": ("gemma3_text", dict(head_dim=8, query_pre_attn_scalar=8, sliding_window=5, num_hidden_layers=3,
                                         sliding_window_pattern=3, rope_parameters=two_ropes(
                                             rope("linear", factor=8.0, rope_theta=500000.0), ROPE)), "old"),
    "gemma3-cap": ("gemma3_text", dict(head_dim=8, query_pre_attn_scalar=8, sliding_window=5, num_hidden_layers=2,
                                       final_logit_softcapping=6.0, tie_word_embeddings=False,
                                       layer_types=sliding(1, 0)), "new"),
    # Merged projections.
    "phi3-longrope": ("phi3", dict(original_max_position_embeddings=32,
                                   rope_parameters=rope("longrope", **LONG)), "new"),
    "phi3-longrope-older": ("phi3", dict(original_max_position_embeddings=32, num_key_value_heads=4,
                                         rope_parameters=rope("longrope", **LONG)), "old"),
    # A prompt beyond the original context.
    "phi3-longrope-long": ("phi3", dict(original_max_position_embeddings=8,
                                        rope_parameters=rope("longrope", **LONG)), "new"),
    "phi3-window-partial": ("phi3", dict(sliding_window=5, rope_parameters=partial(0.5)), "new"),
    "phi3-partial-longrope": ("phi3", dict(head_dim=16, hidden_size=64, intermediate_size=40,
                                           original_max_position_embeddings=32, tie_word_embeddings=True,
                                           rope_parameters=rope("longrope", partial_rotary_factor=0.5, **LONG)), "old"),
    "gpt2-relu-untied": ("gpt2", dict(GPT2, activation_function="relu", n_inner=48, tie_word_embeddings=False), "new"),
    "gpt2-odd": ("gpt2", dict(GPT2, n_embd=30, n_head=3, n_inner=44, vocab_size=109), "old"),
    "gpt2-unscaled": ("gpt2", dict(GPT2, scale_attn_weights=False, n_inner=64, activation_function="gelu"), "new"),
    "gpt-neox-sequential": ("gpt_neox", dict(NEOX, use_parallel_residual=False, attention_bias=False,
                                             tie_word_embeddings=True, rope_parameters=partial(0.5)), "new"),
    "gpt-neox-older": ("gpt_neox", dict(NEOX, hidden_size=48, rope_parameters=partial(1 / 3)), "old"),
    "gpt-neox-full": ("gpt_neox", dict(NEOX, hidden_act="gelu_fast", rope_parameters=partial(1.0)), "new"),
    "gpt-neox-linear": ("gpt_neox", dict(NEOX, rope_parameters=partial(0.5, rope_type="linear", factor=2.0)), "old"),
    # Norms in other places.
    "olmo2-mha": ("olmo2", dict(num_key_value_heads=4, rope_parameters=ROPE), "old"),
    "olmo2-bias": ("olmo2", dict(num_key_value_heads=1, attention_bias=True, tie_word_embeddings=True,
                                 rope_parameters=ROPE), "new"),
    "olmo3": ("olmo3", dict(num_hidden_layers=4, sliding_window=5), "new"),
    "olmo3-yarn": ("olmo3", dict(num_hidden_layers=2, sliding_window=4, layer_types=sliding(1, 0),
                                 rope_parameters=two_ropes(rope("yarn", factor=4.0, rope_theta=500000.0,
                                                                original_max_position_embeddings=16),
                                                           dict(ROPE, rope_theta=500000.0))), "new"),
    "exaone4": ("exaone4", dict(num_hidden_layers=4, sliding_window=5, rope_parameters=ROPE), "new"),
    "exaone4-full": ("exaone4", dict(sliding_window=None, sliding_window_pattern=None, layer_types=sliding(0, 0),
                                     tie_word_embeddings=True, rope_parameters=rope("llama3", **LLAMA3)), "old"),
    "glm4": ("glm4", dict(head_dim=16, rope_parameters=partial(0.5)), "new"),
    "glm4-no-bias": ("glm4", dict(head_dim=8, attention_bias=False, num_key_value_heads=1,
                                  rope_parameters=partial(0.25)), "old"),
    # ALiBi and Falcon's decoders.
    "bloom-odd-heads": ("bloom", dict(BLOOM, n_head=6, hidden_size=36), "new"),
    "bloom-after-norm": ("bloom", dict(BLOOM, apply_residual_connection_post_layernorm=True, n_head=1), "old"),
    "bloom-many-heads": ("bloom", dict(BLOOM, n_head=16, tie_word_embeddings=False), "new"),
    "falcon-mqa": ("falcon", dict(FALCON, multi_query=True, parallel_attn=True, bias=True), "new"),
    "falcon-sequential": ("falcon", dict(FALCON, multi_query=False, parallel_attn=False), "new"),
    "falcon-new-one-norm": ("falcon", dict(FALCON, new_decoder_architecture=True, num_kv_heads=2,
                                           num_ln_in_parallel_attn=1), "new"),
    "falcon-new-two-norms": ("falcon", dict(FALCON, new_decoder_architecture=True, num_kv_heads=1,
                                            num_ln_in_parallel_attn=2, tie_word_embeddings=False), "old"),
    "falcon-alibi": ("falcon", dict(FALCON, alibi=True, multi_query=False, parallel_attn=False, bias=True), "new"),
    "falcon-alibi-mqa": ("falcon", dict(FALCON, alibi=True, num_attention_heads=6, hidden_size=48), "old"),
    # Llama with other numbers.
    "granite": ("granite", dict(embedding_multiplier=12.0, residual_multiplier=0.22, attention_multiplier=0.05,
                                logits_scaling=4.0, rope_parameters=ROPE), "new"),
    "granite-tied-bias": ("granite", dict(embedding_multiplier=3.0, residual_multiplier=0.5, attention_bias=True,
                                          mlp_bias=True, tie_word_embeddings=True, rope_parameters=ROPE), "old"),
    "smollm3": ("smollm3", dict(num_hidden_layers=4, no_rope_layer_interval=2, rope_parameters=ROPE), "new"),
    "smollm3-listed": ("smollm3", dict(num_hidden_layers=3, no_rope_layers=[0, 1, 1], attention_bias=True,
                                       tie_word_embeddings=False, rope_parameters=ROPE), "old"),
    "smollm3-window": ("smollm3", dict(num_hidden_layers=3, no_rope_layers=[1, 0, 1], use_sliding_window=True,
                                       sliding_window=5, mlp_bias=True, rope_parameters=ROPE), "old"),
    "starcoder2": ("starcoder2", dict(sliding_window=6, rope_parameters=ROPE), "new"),
    "starcoder2-no-bias": ("starcoder2", dict(use_bias=False, num_key_value_heads=1, tie_word_embeddings=False,
                                              rope_parameters=dict(ROPE, rope_theta=999.0)), "old"),
    "stablelm": ("stablelm", dict(use_qkv_bias=True, rope_parameters=partial(0.25)), "old"),
    "stablelm-qk-parallel": ("stablelm", dict(qk_layernorm=True, use_parallel_residual=True,
                                              rope_parameters=partial(0.5)), "new"),
    "stablelm-parallel-bias": ("stablelm", dict(use_parallel_residual=True, use_qkv_bias=True, num_key_value_heads=4,
                                                rope_parameters=partial(1.0)), "new"),
    "phi": ("phi", dict(rope_parameters=partial(0.5)), "new"),
    "phi-qk": ("phi", dict(qk_layernorm=True, num_key_value_heads=4, rope_parameters=partial(0.5)), "old"),
    "cohere2": ("cohere2", dict(num_hidden_layers=4, sliding_window=5, logit_scale=0.5, rope_parameters=ROPE), "new"),
    "cohere2-bias": ("cohere2", dict(layer_types=sliding(0, 1), sliding_window=6, attention_bias=True,
                                     num_attention_heads=2, num_key_value_heads=1, logit_scale=0.25,
                                     rope_parameters=ROPE), "old"),
}

# Experts.
EXPERTS = dict(SIZE, hidden_size=32, intermediate_size=24)
DEEPSEEK = dict(EXPERTS, intermediate_size=40, num_key_value_heads=4, num_hidden_layers=2, first_k_dense_replace=1,
                moe_intermediate_size=16, n_routed_experts=8, num_experts_per_tok=3, n_group=1, topk_group=1,
                n_shared_experts=1, kv_lora_rank=16, q_lora_rank=24, qk_rope_head_dim=8, qk_nope_head_dim=8,
                v_head_dim=12, rope_parameters=ROPE)
YARN32 = rope("yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=32.0, beta_slow=1.0)
MOE = {
    "mixtral-top-1": ("mixtral", dict(EXPERTS, num_local_experts=4, num_experts_per_tok=1, rope_parameters=ROPE),
                      "new"),
    "mixtral-window": ("mixtral", dict(EXPERTS, num_local_experts=3, num_experts_per_tok=2, sliding_window=5,
                                       head_dim=12, rope_parameters=ROPE), "old"),
    "mixtral-all": ("mixtral", dict(EXPERTS, num_local_experts=2, num_experts_per_tok=2, tie_word_embeddings=True,
                                    rope_parameters=ROPE), "new"),
    "qwen2-moe": ("qwen2_moe", dict(EXPERTS, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=16,
                                    shared_expert_intermediate_size=24, rope_parameters=ROPE), "new"),
    "qwen2-moe-sparse-step": ("qwen2_moe", dict(EXPERTS, num_hidden_layers=3, decoder_sparse_step=2, num_experts=4,
                                                num_experts_per_tok=1, moe_intermediate_size=24, norm_topk_prob=True,
                                                shared_expert_intermediate_size=24, rope_parameters=ROPE), "old"),
    "qwen3-moe-normed": ("qwen3_moe", dict(EXPERTS, head_dim=8, num_experts=6, num_experts_per_tok=3,
                                           moe_intermediate_size=16, norm_topk_prob=True, rope_parameters=ROPE), "old"),
    "qwen3-moe-plain": ("qwen3_moe", dict(EXPERTS, head_dim=12, num_experts=4, num_experts_per_tok=2,
                                          moe_intermediate_size=24, norm_topk_prob=False, rope_parameters=ROPE), "new"),
    "qwen3-moe-mlp-layer": ("qwen3_moe", dict(EXPERTS, head_dim=8, num_experts=4, num_experts_per_tok=1,
                                              mlp_only_layers=[0], moe_intermediate_size=16, attention_bias=True,
                                              norm_topk_prob=True, rope_parameters=ROPE), "new"),
    "gpt-oss-top-1": ("gpt_oss", dict(EXPERTS, head_dim=8, num_local_experts=4, num_experts_per_tok=1,
                                      sliding_window=5, rope_parameters=dict(YARN32, truncate=False)), "new"),
    "gpt-oss-full": ("gpt_oss", dict(EXPERTS, head_dim=16, num_local_experts=3, num_experts_per_tok=2,
                                     layer_types=sliding(0, 1), sliding_window=7, num_key_value_heads=1,
                                     rope_parameters=dict(YARN32, truncate=False)), "old"),
    "deepseek-v3-groups": ("deepseek_v3", dict(DEEPSEEK, n_group=4, topk_group=2, num_experts_per_tok=2,
                                               routed_scaling_factor=2.5), "new"),
    "deepseek-v3-one-group": ("deepseek_v3", dict(DEEPSEEK, n_shared_experts=2, norm_topk_prob=False,
                                                  routed_scaling_factor=1.5), "old"),
    "deepseek-v3-no-q-rank": ("deepseek_v3", dict(DEEPSEEK, q_lora_rank=None, first_k_dense_replace=0,
                                                  num_experts_per_tok=1), "new"),
    "deepseek-v3-yarn": ("deepseek_v3", dict(DEEPSEEK, n_group=2, topk_group=1, rope_parameters=dict(
        YARN32, mscale=1.0, mscale_all_dim=1.0)), "old"),
    "deepseek-v3-halves": ("deepseek_v3", dict(DEEPSEEK, rope_interleave=False, attention_bias=True), "new"),
    "deepseek-v2": ("deepseek_v2", dict(DEEPSEEK, topk_method="greedy", routed_scaling_factor=1.0), "new"),
    "deepseek-v2-groups": ("deepseek_v2", dict(DEEPSEEK, topk_method="group_limited_greedy", n_group=4, topk_group=2,
                                               num_experts_per_tok=2, routed_scaling_factor=4.0, q_lora_rank=None,
                                               rope_parameters=dict(YARN32, mscale=0.707, mscale_all_dim=0.707)), "old"),
    "olmoe": ("olmoe", dict(EXPERTS, num_experts=5, num_experts_per_tok=2, rope_parameters=ROPE), "new"),
    "granitemoe": ("granitemoe", dict(EXPERTS, num_local_experts=4, num_experts_per_tok=2, embedding_multiplier=2.0,
                                      residual_multiplier=0.5, attention_multiplier=0.2, logits_scaling=2.0,
                                      rope_parameters=ROPE), "new"),
    "glm4-moe": ("glm4_moe", dict(EXPERTS, head_dim=16, use_qk_norm=True, moe_intermediate_size=16, n_routed_experts=6,
                                  num_experts_per_tok=2, attention_bias=True, routed_scaling_factor=1.5,
                                  first_k_dense_replace=1, rope_parameters=partial(0.5)), "new"),
}

# Encoders: (model_type, settings, spelling, class whose checkpoint it is).
ENCODERS = {
    **{f"bert-{act.replace('_', '-')}": ("bert", dict(BERT, hidden_act=act), "new", "Model")
       for act in ["gelu", "gelu_new", "relu", "silu", "gelu_python", "quick_gelu"]},
    "bert-odd": ("bert", dict(BERT, hidden_size=30, num_attention_heads=5, intermediate_size=44, vocab_size=103,
                              layer_norm_eps=1e-5), "old", "Model"),
    "bert-masked-lm": ("bert", dict(BERT, type_vocab_size=3), "new", "ForMaskedLM"),
    "roberta": ("roberta", dict(ROBERTA, num_attention_heads=2), "new", "Model"),
    "roberta-masked-lm": ("roberta", dict(ROBERTA, hidden_act="gelu_new", type_vocab_size=2, hidden_size=36,
                                          num_attention_heads=3), "old", "ForMaskedLM"),
    "roberta-padding-0": ("roberta", dict(ROBERTA, pad_token_id=0, bos_token_id=1), "new", "Model"),
    "xlm-roberta": ("xlm-roberta", ROBERTA, "new", "Model"),
    "xlm-roberta-classifier": ("xlm-roberta", dict(ROBERTA, vocab_size=150), "old", "ForSequenceClassification"),
    "modernbert": ("modernbert", dict(MODERN, num_hidden_layers=4, num_attention_heads=2, local_attention=6), "new",
                   "Model"),
    "modernbert-masked-lm": ("modernbert", dict(MODERN, num_hidden_layers=3, local_attention=8, hidden_size=36,
                                                num_attention_heads=3), "new", "ForMaskedLM"),
    "modernbert-older": ("modernbert", dict(MODERN, num_hidden_layers=4, local_attention=4,
                                            rope_parameters=two_ropes(dict(ROPE, rope_theta=160000.0), ROPE)),
                         "old", "Model"),
    "modernbert-biases": ("modernbert", dict(MODERN, attention_bias=True, mlp_bias=True, norm_bias=True,
                                             hidden_activation="silu", local_attention=10,
                                             layer_types=sliding(1, 0)), "new", "Model"),
}

# Configurations that are refused: (variant whose config.json is changed, changes, parts of the error).
REFUSED = {
    "bert-relative-key": ("bert-gelu", dict(position_embedding_type="relative_key"), "position_embedding_type"),
    "bert-relative-key-query": ("bert-gelu", dict(position_embedding_type="relative_key_query"),
                                "position_embedding_type"),
    "bert-decoder": ("bert-gelu", dict(is_decoder=True), "is_decoder"),
    "roberta-cross-attention": ("roberta", dict(add_cross_attention=True), "add_cross_attention"),
    "gemma3-bidirectional": ("gemma3-cap", dict(use_bidirectional_attention=True), "use_bidirectional_attention"),
    "gpt2-by-layer": ("gpt2-odd", dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx"),
    "falcon-two-norms-of-7b": ("falcon-mqa", dict(num_ln_in_parallel_attn=2), "num_ln_in_parallel_attn"),
    "llama-window": ("llama-mha", dict(sliding_window=5), "sliding_window"),
    "llama-other-act": ("llama-mha", dict(hidden_act="laplace"), "hidden_act"),
    "qwen2-chunked": ("qwen2-window", dict(layer_types=["chunked_attention"] * 3), "layer_types"),
    "starcoder2-rms": ("starcoder2", dict(norm_type="rms_norm"), "norm_type"),
}
