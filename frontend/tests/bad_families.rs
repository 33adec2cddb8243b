//! Configurations that a family's reference would compute otherwise: each is a named error.

mod common;

use common::fixture;
use serde_json::{Value, json};
use std::path::Path;
use weft_frontend::config::hf;

/// Parses the configuration of a tiny checkpoint with changes; null removes a key.
fn parse(name: &str, changes: &[(&str, Value)]) -> Result<(), String> {
    let text = std::fs::read(fixture("tiny").join(name).join("config.json")).unwrap();
    let mut config: serde_json::Map<String, Value> = serde_json::from_slice(&text).unwrap();
    for (key, value) in changes {
        match value {
            Value::Null => config.remove(*key),
            value => config.insert((*key).to_owned(), value.clone()),
        };
    }
    let text = serde_json::to_vec(&config).unwrap();
    hf::parse(Path::new("some/config.json"), &text, &[]).map(drop).map_err(|e| e.to_string())
}

#[track_caller]
fn bad(name: &str, changes: &[(&str, Value)], parts: &[&str]) {
    let text = parse(name, changes).expect_err("accepted");
    for part in ["some/config.json"].iter().chain(parts) {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

/// The tiny llama's configuration as another family's.
fn as_family<'a>(model_type: &str, class: &str, more: &[(&'a str, Value)]) -> Vec<(&'a str, Value)> {
    let named = [("model_type", json!(model_type)), ("architectures", json!([class]))];
    named.into_iter().chain(more.iter().cloned()).collect()
}

#[test]
fn unchanged_they_are_read() {
    for name in ["mistral-sliding", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2", "gpt-neox", "olmo2"]
    {
        parse(name, &[]).unwrap();
    }
    for name in ["bloom", "falcon", "mixtral", "qwen3-moe", "gpt-oss", "deepseek-v3"] {
        parse(name, &[]).unwrap();
    }
}

#[test]
fn families_that_are_not_built() {
    for family in ["mamba", "t5", "llama4"] {
        bad(
            "llama",
            &[("model_type", json!(family))],
            &[&format!("model_type = {family}"), "supported: llama"],
        );
    }
    // A model of texts and images, whose texts go through a family that is built.
    let part =
        "its text part alone is gemma3_text: give a folder that Gemma3ForCausalLM of transformers saved";
    let wrapped = |text: Value| [("model_type", json!("llava")), ("text_config", text)];
    bad("llama", &wrapped(json!({"model_type": "gemma3_text"})), &["model_type = llava", part]);
    bad(
        "llama",
        &wrapped(json!({"model_type": "mistral"})),
        &["text part alone is mistral", "MistralForCausalLM"],
    );
    // One whose text part is taken.
    let part = |text: Value| [("model_type", json!("gemma3")), ("text_config", text)];
    bad("llama", &[("model_type", json!("gemma3"))], &["text_config is missing"]);
    bad("llama", &part(json!(7)), &["text_config: is 7, not an object"]);
    bad(
        "llama",
        &part(json!({"model_type": "llama"})),
        &["text_config.model_type = \"llama\"", "gemma3_text"],
    );
    bad(
        "llama",
        &part(json!({})),
        &["architectures = \"LlamaForCausalLM\"", "Gemma3ForConditionalGeneration"],
    );
    let none = ("architectures", Value::Null);
    let of = |text: Value| {
        let [family, text] = part(text);
        [family, text, none.clone()]
    };
    bad(
        "llama",
        &of(json!({"hidden_size": 8})),
        &["hidden_size: 128 contradicts text_config.hidden_size = 8"],
    );
    bad("llama", &of(json!({"head_dim": "wide"})), &["text_config.head_dim"]);
    for other in [json!({"model_type": "mamba"}), json!({}), json!(7)] {
        let text = parse("llama", &wrapped(other)).expect_err("accepted");
        assert!(text.ends_with("mistral3"), "{text}");
    }
    let class = [("architectures", json!(["Qwen2ForSequenceClassification"]))];
    bad("qwen2", &class, &["architectures", "Qwen2ForCausalLM"]);
}

#[test]
fn windows() {
    bad("mistral-sliding", &[("sliding_window", json!(0))], &["sliding_window", "0 keys"]);
    bad("mistral-sliding", &[("sliding_window", json!("wide"))], &["sliding_window", "integer"]);
    let types = json!(["sliding_attention", "full_attention"]);
    bad("mistral-sliding", &[("layer_types", types.clone())], &["layer_types", "full_attention"]);
    bad("qwen2", &[("layer_types", json!(["full_attention"]))], &["layer_types", "1 entries for 2 layers"]);
    bad("qwen2", &[("layer_types", types)], &["layer_types", "layer 0 slides without a sliding_window"]);
    let chunked = json!(["chunked_attention", "full_attention"]);
    bad("qwen3", &[("layer_types", chunked)], &["layer_types[0]", "chunked_attention"]);
    let newer = ("_sliding_window_pattern", Value::Null);
    let pattern = [("layer_types", Value::Null), newer, ("sliding_window_pattern", json!(0))];
    bad("gemma3", &pattern, &["sliding_window_pattern", "positive integer"]);
    let letters = [("sliding_window", json!(8)), ("sliding_window_pattern", json!("LLLG"))];
    bad("llama", &as_family("exaone4", "Exaone4ForCausalLM", &letters), &["sliding_window_pattern", "LLLG"]);
    bad("gemma2", &[("use_bidirectional_attention", json!(true))], &["use_bidirectional_attention = true"]);
    bad("gpt2", &[("sliding_window", json!(16))], &["sliding_window = 16"]);
}

#[test]
fn dimensions() {
    bad("mistral-sliding", &[("num_key_value_heads", Value::Null)], &["num_key_value_heads is missing"]);
    bad("qwen3", &[("head_dim", json!(0))], &["head_dim", "between 1 and"]);
    bad("gpt2", &[("n_embd", json!(130))], &["hidden_size", "130 does not divide into 4 heads"]);
    bad("gpt2", &[("hidden_size", json!(64))], &["n_embd", "contradicts hidden_size = 64"]);
    bad("bloom", &[("n_layer", json!(1_000_000_000))], &["num_hidden_layers", "between 1 and 65536"]);
    bad("bloom", &[("n_head", json!(1 << 30))], &["does not divide"]);
    bad("falcon", &[("num_kv_heads", json!(3))], &["num_key_value_heads", "3 does not divide"]);
    bad("llama", &[("head_dim", json!(1 << 20))], &["head_dim", "between 1 and 65536"]);
}

#[test]
fn numbers() {
    bad("gemma2", &[("attn_logit_softcapping", json!(0.0))], &["attn_logit_softcapping", "not a positive"]);
    bad("gemma2", &[("final_logit_softcapping", json!(-30))], &["final_logit_softcapping", "-30"]);
    bad("gemma2", &[("query_pre_attn_scalar", json!(0))], &["query_pre_attn_scalar", "not a positive"]);
    bad("gemma3", &[("attn_logit_softcapping", json!(50.0))], &["attn_logit_softcapping = 50.0"]);
    let granite = as_family("granite", "GraniteForCausalLM", &[("residual_multiplier", json!(0))]);
    bad("llama", &granite, &["residual multiplier", "not a positive"]);
    let granite = as_family("granite", "GraniteForCausalLM", &[("logits_scaling", json!(0))]);
    bad("llama", &granite, &["logit scale"]);
    let cohere = as_family(
        "cohere2",
        "Cohere2ForCausalLM",
        &[("logit_scale", json!(-1)), ("rms_norm_eps", Value::Null)],
    );
    bad("llama", &cohere, &["logit scale", "-1"]);
    bad("gpt2", &[("layer_norm_epsilon", json!("small"))], &["layer_norm_epsilon", "not a number"]);
}

#[test]
fn ropes() {
    let rope = |value: Value| [("rope_parameters", value), ("rope_scaling", Value::Null)];
    let long = |short: Vec<f64>, long: Vec<f64>| {
        rope(json!({"rope_type": "longrope", "short_factor": short, "long_factor": long}))
    };
    bad("phi3", &rope(json!({"rope_type": "longrope"})), &["short_factor is missing"]);
    bad("phi3", &long(vec![1.0; 7], vec![1.0; 7]), &["short_factor", "7 factors for 16 pairs"]);
    bad("phi3", &long(vec![1.0; 16], vec![1.0; 15]), &["long_factor", "15 long factors, 16 short"]);
    bad("phi3", &long(vec![0.0; 16], vec![1.0; 16]), &["short_factor", "not a positive number"]);
    let part = json!({"rope_type": "default", "partial_rotary_factor": 1.5});
    bad("phi3", &rope(part), &["partial_rotary_factor", "1.5"]);
    let tiny = json!({"rope_type": "default", "partial_rotary_factor": 0.03});
    bad("gpt-neox", &rope(tiny), &["rotary embedding turns pairs"]);
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "beta_fast": 1, "beta_slow": 32});
    bad("qwen3", &rope(yarn), &["yarn needs", "beta_slow <= beta_fast"]);
    bad("qwen3", &rope(json!({"rope_type": "yarn"})), &["rope_parameters.factor is missing"]);
    bad("qwen3", &rope(json!({"rope_type": "dynamic"})), &["rope_parameters.factor is missing"]);
    let still = json!({"rope_type": "dynamic", "factor": 0.0});
    bad("qwen3", &rope(still), &["rope scaling factor", "0 is not a positive number"]);
    let pair = json!({"rope_type": "dynamic", "factor": 2.0, "partial_rotary_factor": 0.0625});
    bad("phi3", &rope(pair), &["head_dim", "rope_type dynamic needs more than one pair"]);
    let other = json!({"full_attention": {"rope_type": "default"}, "global": {}});
    bad("gemma3", &rope(other), &["rope_parameters.global", "full_attention and sliding_attention"]);
    let spiral = json!({"sliding_attention": {"rope_type": "spiral"}});
    bad("gemma3", &rope(spiral), &["rope_parameters.sliding_attention.rope_type = spiral"]);
    bad("qwen2", &rope(json!({"full_attention": {}})), &["rope_parameters.full_attention"]);
    bad("olmo2", &[("rope_theta", json!(5.0))], &["rope_theta", "contradicts"]);
    let smol = |flags: Value| as_family("smollm3", "SmolLM3ForCausalLM", &[("no_rope_layers", flags)]);
    bad("llama", &smol(json!([1])), &["no_rope_layers", "1 entries for 2 layers"]);
    bad("llama", &smol(json!([1, 2])), &["no_rope_layers", "0 and 1"]);
}

#[test]
fn experts() {
    bad("mixtral", &[("num_experts_per_tok", json!(5))], &["num_experts_per_tok", "5 of 4 experts"]);
    bad("mixtral", &[("num_experts", json!(8))], &["num_experts", "contradicts num_local_experts = 4"]);
    bad("qwen3-moe", &[("decoder_sparse_step", json!(0))], &["decoder_sparse_step", "not an interval"]);
    bad("qwen3-moe", &[("mlp_only_layers", json!("all"))], &["mlp_only_layers", "a list of layers"]);
    let window = [("use_sliding_window", json!(true)), ("sliding_window", json!(8))];
    bad("qwen3-moe", &window, &["sliding_window = 8"]);
    bad("gpt-oss", &[("hidden_act", json!("gelu"))], &["hidden_act = gelu", "silu"]);
    bad("gpt-oss", &[("swiglu_limit", json!(0))], &["swiglu_limit", "not a positive number"]);
    bad(
        "gpt-oss",
        &[("n_shared_experts", json!(1)), ("num_local_experts", json!(0))],
        &["experts", "0 is not"],
    );
    let v3 = |key, value| [(key, value)];
    bad("deepseek-v3", &v3("scoring_func", json!("softmax")), &["scoring_func = softmax", "sigmoid"]);
    bad("deepseek-v3", &v3("topk_method", json!("greedy")), &["topk_method = greedy", "noaux_tc"]);
    bad("deepseek-v3", &v3("moe_layer_freq", json!(2)), &["moe_layer_freq = 2"]);
    bad("deepseek-v3", &v3("n_group", json!(3)), &["n_group", "3 groups of 8 experts"]);
    bad("deepseek-v3", &v3("topk_group", json!(3)), &["topk_group", "3 of 2 groups"]);
    bad("deepseek-v3", &v3("qk_head_dim", json!(64)), &["qk_head_dim", "64 is not"]);
    bad("deepseek-v3", &v3("num_key_value_heads", json!(2)), &["num_key_value_heads = 2"]);
    bad("deepseek-v3", &v3("kv_lora_rank", json!(0)), &["kv_lora_rank", "0 is not between"]);
    bad("deepseek-v3", &v3("routed_scaling_factor", json!(-1)), &["routed_scaling_factor", "-1"]);
    bad("qwen3", &[("num_local_experts", json!(8))], &["num_local_experts = 8"]);
}

#[test]
fn switches() {
    let by_layer = [("scale_attn_by_inverse_layer_idx", json!(true))];
    bad("gpt2", &by_layer, &["scale_attn_by_inverse_layer_idx = true", "absent or false"]);
    bad("gpt2", &[("activation_function", json!("mish"))], &["activation_function = mish", "gelu_new"]);
    bad("gemma2", &[("hidden_activation", json!("mish"))], &["hidden_activation = mish"]);
    bad("falcon", &[("parallel_attn", json!(false))], &["parallel_attn = false", "new_decoder_architecture"]);
    bad("falcon", &[("num_ln_in_parallel_attn", json!(3))], &["num_ln_in_parallel_attn = 3"]);
    bad("olmo2", &[("clip_qkv", json!(8.0))], &["clip_qkv = 8.0"]);
    bad("qwen3", &[("num_experts", json!(8))], &["num_experts = 8"]);
    let gptq = json!({"quant_method": "gptq", "bits": 4});
    bad("mistral-sliding", &[("quantization_config", gptq)], &["quant_method = gptq", "fp8", "GGUF"]);
    let star = as_family("starcoder2", "Starcoder2ForCausalLM", &[("norm_type", json!("rms"))]);
    bad("llama", &star, &["norm_type = rms", "layer_norm"]);
    let stable = as_family("stablelm", "StableLmForCausalLM", &[("use_parallel_residual", json!("yes"))]);
    bad("llama", &stable, &["use_parallel_residual", "true or false"]);
    bad("gpt-neox", &[("attention_bias", json!("no"))], &["attention_bias", "true or false"]);
}
