//! Keys of configurations: those of public checkpoints are known; others are errors unless their values are empty or
//! the user says to pass them over.
//!
//! `configs/public.json` has, for each family, the keys and values that public checkpoints carry. Lists of one entry a
//! layer are shortened with the number of layers; sizes are of no meaning here.

mod common;

use common::{V, fixture, tiny_gguf};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use weft_frontend::checkpoint::Checkpoint;
use weft_frontend::config::{MODEL_TYPES, ModelConfig, hf};
use weft_frontend::error::{Error, Result};

const FAMILIES: &[&str] = &["llama", "qwen3", "gemma2", "gpt2", "falcon", "gpt-oss", "deepseek-v3", "bert"];

/// Reads the text of a configuration.
fn parse(config: &Map<String, Value>, ignore: &[&str]) -> Result<ModelConfig> {
    let text = serde_json::to_vec(config).expect("JSON");
    let ignore: Vec<String> = ignore.iter().map(ToString::to_string).collect();
    hf::parse(Path::new("some/config.json"), &text, &ignore)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("{other} is no object"),
    }
}

/// The configurations of public checkpoints.
fn public() -> Map<String, Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/configs/public.json");
    serde_json::from_slice(&std::fs::read(path).expect("reads")).expect("JSON")
}

fn public_one(name: &str, changes: Value) -> Map<String, Value> {
    let mut config = object(public().remove(name).expect("a configuration"));
    config.append(&mut object(changes));
    config
}

/// A tiny checkpoint's configuration with changes.
fn tiny(name: &str, changes: Value) -> Map<String, Value> {
    let text = std::fs::read(fixture("tiny").join(name).join("config.json")).expect("reads");
    let mut config: Map<String, Value> = serde_json::from_slice(&text).expect("JSON");
    config.append(&mut object(changes));
    config
}

#[track_caller]
fn refused(config: &Map<String, Value>, parts: &[&str]) -> Error {
    let error = parse(config, &[]).expect_err("accepted");
    let text = error.to_string();
    for part in ["some/config.json"].iter().chain(parts) {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
    error
}

#[test]
fn public_checkpoints_are_read_without_a_warning() {
    let mut families = BTreeSet::new();
    for (name, config) in public() {
        let read = parse(&object(config), &[]).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(read.unknown, Vec::<String>::new(), "{name}");
        families.insert(read.model_type);
    }
    assert_eq!(families, MODEL_TYPES.iter().map(ToString::to_string).collect());
}

/// What a text part leaves to its class is as there; the model's end of a turn is taken.
#[test]
fn text_parts_of_public_models_of_images() {
    let read =
        |name: &str| parse(&public_one(name, json!({})), &[]).unwrap_or_else(|e| panic!("{name}: {e}"));
    let c = read("google/gemma-3-4b-it");
    assert_eq!(
        (c.model_type.as_str(), c.hidden_size, c.layers, c.vocab_size),
        ("gemma3_text", 2560, 34, 262_208)
    );
    assert_eq!((c.heads, c.kv_heads, c.head_dim, c.tie_word_embeddings), (8, 4, 256, true));
    assert_eq!(
        (c.eos_token_ids.as_slice(), c.attention[0].window, c.attention[5].window),
        (&[1, 106][..], Some(1024), None)
    );
    // Saved again, with the class's settings.
    let c = read("unsloth/gemma-3-12b-it");
    assert_eq!((c.hidden_size, c.layers, c.heads, c.kv_heads, c.vocab_size), (3840, 48, 16, 8, 262_208));
    assert_eq!(
        (c.eos_token_ids.as_slice(), c.attention[0].window, c.attention[5].window),
        (&[106][..], Some(1024), None)
    );
    let c = read("mistralai/Mistral-Small-3.1-24B-Instruct-2503");
    assert_eq!(
        (c.model_type.as_str(), c.heads, c.kv_heads, c.tie_word_embeddings),
        ("mistral", 32, 8, false)
    );
    let unknown = json!({"image_fold": 2});
    let config = public_one("google/gemma-3-4b-it", unknown);
    refused(&config, &["image_fold = 2"]);
}

#[test]
fn unknown_keys_with_a_value_are_errors() {
    for family in FAMILIES {
        for value in [
            json!(1.21),
            json!(1.0),
            json!(0),
            json!(true),
            json!(false),
            json!("on"),
            json!([0]),
            json!({"a": null}),
        ] {
            let error = refused(
                &tiny(family, json!({"flux_capacitance": value})),
                &[&format!("flux_capacitance = {value}"), "--ignore-config-key flux_capacitance"],
            );
            assert!(matches!(error, Error::UnknownKey { .. }), "{error}");
        }
    }
}

#[test]
fn what_weft_always_does_is_not_turned_off() {
    for (family, key) in [
        ("llama", "use_rope"),
        ("llama", "causal"),
        ("gemma2", "scale_embedding"),
        ("qwen3", "use_qk_norm"),
        ("bert", "use_position_embeddings"),
    ] {
        refused(&tiny(family, json!({key: false})), &[&format!("{key} = false")]);
    }
}

#[test]
fn unknown_keys_that_are_empty_are_told() {
    for family in FAMILIES {
        for value in [json!([]), json!({}), json!("")] {
            let read = parse(&tiny(family, json!({"flux_capacitance": value})), &[]).expect("read");
            assert_eq!(read.unknown, ["flux_capacitance"], "{family}: {value}");
        }
        let read = parse(&tiny(family, json!({"flux_capacitance": null})), &[]).expect("read");
        assert_eq!(read.unknown, Vec::<String>::new(), "{family}: null is as good as absent");
    }
}

#[test]
fn unknown_keys_are_passed_over_when_asked() {
    let config = tiny("llama", json!({"flux_capacitance": 1.21, "warp": 9}));
    let plain = parse(&tiny("llama", json!({})), &[]).expect("read");
    let read = parse(&config, &["warp", "flux_capacitance"]).expect("read");
    assert_eq!(read.ignored.iter().collect::<BTreeSet<_>>().len(), 2, "{:?}", read.ignored);
    assert_eq!(ModelConfig { ignored: Vec::new(), ..read }, plain);
    let text = parse(&config, &["warp"]).expect_err("one is left").to_string();
    assert!(text.contains("flux_capacitance = 1.21") && !text.contains("warp"), "{text}");
    refused(
        &config,
        &[
            "flux_capacitance = 1.21, warp = 9",
            "--ignore-config-key flux_capacitance --ignore-config-key warp",
        ],
    );
}

/// The option is no way around what Weft knows: keys that are read, that matter, that are harmless, or not there.
#[test]
fn only_unknown_keys_are_passed_over() {
    let config = tiny("llama", json!({}));
    for key in ["rope_theta", "hidden_size", "attention_bias", "use_cache", "not_there"] {
        let error = parse(&config, &[key]).expect_err("accepted");
        assert!(matches!(error, Error::Malformed { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("some/config.json: {key}:")), "{text}");
        assert!(text.contains("leave the option out"), "{text}");
    }
    let config = tiny("llama", json!({"use_mrope": true}));
    let text = parse(&config, &["use_mrope"]).expect_err("accepted").to_string();
    assert!(text.contains("use_mrope = true is not supported"), "{text}");
}

#[test]
fn an_error_names_some_of_many() {
    let many: Map<String, Value> = (0..1000).map(|i| (format!("key_{i:03}"), json!(i))).collect();
    refused(&tiny("llama", Value::Object(many)), &["key_000 = 0", "key_007 = 7 and 992 more"]);
    let long: String = "x".repeat(1 << 20);
    let text = refused(&tiny("llama", json!({"long": long})), &["long = "]).to_string();
    assert!(text.len() < 1000, "{} bytes", text.len());
}

#[test]
fn known_keys_with_values_that_matter_are_errors() {
    for (family, key, value) in [
        ("llama", "is_encoder_decoder", json!(true)),
        ("llama", "is_causal", json!(false)),
        ("llama", "pruned_heads", json!({"0": [1]})),
        ("llama", "use_qk_norm", json!(true)),
        ("llama", "quantization", json!({"bits": 4, "group_size": 64})),
        ("gpt2", "add_cross_attention", json!(true)),
        ("phi3", "full_attn_mod", json!(2)),
        ("phi3", "interpolate_factor", json!(4)),
        ("phi3", "lm_head_bias", json!(true)),
        ("qwen3", "use_qk_norm", json!(false)),
        ("qwen3-moe", "shared_expert_intermediate_size", json!(1024)),
        ("qwen3-moe", "qkv_bias", json!(true)),
        ("bert", "is_causal", json!(true)),
    ] {
        let error = refused(&tiny(family, json!({key: value})), &[&format!("{key} = {value}")]);
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    }
    let cohere = "CohereForAI/c4ai-command-r7b-12-2024";
    for (key, value) in [
        ("order_of_interleaved_layers", json!("global_attn_first")),
        ("position_embedding_type", json!("rope_neox")),
        ("use_gated_activation", json!(false)),
        ("use_parallel_block", json!(false)),
        ("rotary_pct", json!(0.5)),
    ] {
        refused(&public_one(cohere, json!({key: value})), &[key, "is not supported"]);
    }
}

/// Keys that say again what others say, and that the reference does not read.
#[test]
fn keys_that_contradict_others_are_errors() {
    for (name, key, value) in [
        ("google/gemma-2-9b", "sliding_window_size", json!(2048)),
        ("tiiuae/falcon-11B", "ff_factor", json!(3)),
        ("bigcode/starcoder2-15b", "layer_norm_epsilon", json!(1e-6)),
        ("stabilityai/stablelm-3b-4e1t", "norm_eps", json!(1e-6)),
        ("stabilityai/stablelm-3b-4e1t", "rope_pct", json!(0.5)),
        ("CohereForAI/c4ai-command-r7b-12-2024", "use_embedding_sharing", json!(false)),
        ("CohereForAI/c4ai-command-r7b-12-2024", "layer_switch", json!(2)),
        ("CohereForAI/c4ai-command-r7b-12-2024", "layer_switch", json!(0)),
        ("cointegrated/rubert-tiny", "emb_size", json!(128)),
    ] {
        refused(&public_one(name, json!({key: value})), &[key, "contradicts"]);
    }
}

#[test]
fn dual_chunks_bound_the_context() {
    let name = "Qwen/Qwen2.5-7B-Instruct-1M";
    let read = parse(&public_one(name, json!({})), &[]).expect("read");
    assert_eq!((read.max_position, read.position_limit()), (253_952, Some(253_952)));
    let with = |chunks: Value| public_one(name, json!({"dual_chunk_attention_config": chunks}));
    let small = json!({"chunk_size": 96, "local_size": 32, "original_max_position_embeddings": 48});
    assert_eq!(parse(&with(small), &[]).expect("read").position_limit(), Some(48));
    let key = "dual_chunk_attention_config";
    refused(&with(json!(true)), &[key, "not an object"]);
    refused(&with(json!({"chunk_size": 96})), &[&format!("{key}.local_size is missing")]);
    refused(&with(json!({"chunk_size": 32, "local_size": 32})), &[&format!("{key}.local_size")]);
    let sparse = json!({"chunk_size": 96, "local_size": 32, "sparse_attention_enabled": true});
    refused(&with(sparse), &[&format!("{key}.sparse_attention_enabled = true")]);
    let llama = tiny("llama", json!({key: {"chunk_size": 96, "local_size": 32}}));
    refused(&llama, &[key, "unknown to Weft"]);
}

#[test]
fn gguf_metadata_is_judged_alike() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.gguf");
    let open = |key: &str, value: V, ignore: &[String]| {
        tiny_gguf().set(key, value).write(&path);
        Checkpoint::open_ignoring(&path, ignore)
    };
    let key = "llama.flux_capacitance";
    for (value, shown) in [
        (V::F32(1.5), "1.5"),
        (V::U32(0), "0"),
        (V::Bool(true), "true"),
        (V::Bool(false), "false"),
        (V::from("on"), "\"on\""),
        (V::I32s(vec![1, 2]), "[2 values]"),
    ] {
        let text = open(key, value, &[]).expect_err("accepted").to_string();
        for part in [&format!("{key} = {shown}"), "model.gguf", &format!("--ignore-config-key {key}")] {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
    }
    for value in [V::from(""), V::I32s(vec![])] {
        assert_eq!(open(key, value, &[]).expect("read").config().unknown, [key]);
    }
    assert_eq!(open(key, V::U32(1), &[key.to_owned()]).expect("read").config().ignored, [key]);
    let known = "llama.block_count".to_owned();
    let text = open("llama.pooling_type", V::U32(3), &[known]).expect_err("accepted").to_string();
    assert!(text.contains("llama.block_count: --ignore-config-key"), "{text}");
    for harmless in ["llama.vision.block_count", "llama.mm.tokens_per_image", "general.flux", "flux.size"] {
        assert!(open(harmless, V::U32(1), &[]).expect("read").config().unknown.is_empty(), "{harmless}");
    }
}
