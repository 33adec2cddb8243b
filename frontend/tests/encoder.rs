//! BERT's configuration and tensor names, and sentence-transformers' pooling files.

mod common;

use common::fixture;
use serde_json::{Map, Value, json};
use std::path::Path;
use weft_frontend::checkpoint::Checkpoint;
use weft_frontend::config::pooling::{Pooling, PoolingMode};
use weft_frontend::config::{Activation, LayerRope, ModelConfig, hf};
use weft_frontend::models::{self, Kind};
use weft_ir::dtype::DType;
use weft_ir::graph::Op;

fn parse(changes: &[(&str, Value)]) -> Result<ModelConfig, String> {
    parse_of("tiny/bert", changes)
}

/// The configuration of a fixture with changes; null removes a key.
fn parse_of(name: &str, changes: &[(&str, Value)]) -> Result<ModelConfig, String> {
    let text = std::fs::read(fixture(name).join("config.json")).unwrap();
    let mut config: Map<String, Value> = serde_json::from_slice(&text).unwrap();
    for (key, value) in changes {
        match value {
            Value::Null => config.remove(*key),
            value => config.insert((*key).to_owned(), value.clone()),
        };
    }
    hf::parse(Path::new("some/config.json"), &serde_json::to_vec(&config).unwrap(), &[])
        .map_err(|e| e.to_string())
}

#[test]
fn the_tiny_bert_opens() {
    let c = Checkpoint::open(fixture("tiny/bert")).unwrap();
    let config = c.config();
    assert_eq!((config.hidden_size, config.intermediate_size, config.layers), (128, 256, 2));
    assert_eq!((config.heads, config.kv_heads, config.head_dim), (4, 4, 32));
    assert_eq!((config.norm_eps, config.hidden_act, config.type_vocab_size), (1e-12, Activation::Gelu, 2));
    assert_eq!((config.dtype, config.position_limit()), (Some(DType::BF16), Some(256)));
    assert!(config.attention_bias && config.output_bias && config.mlp_bias);
    assert!(config.eos_token_ids.is_empty() && config.unknown.is_empty(), "{:?}", config.unknown);
    assert_eq!(models::family(&c).unwrap().0, Kind::Encoder);
    let graph = models::build(&c, DType::BF16).unwrap();
    assert!(graph.is_encoder() && graph.state_out.is_empty());
    let used: Vec<String> = graph
        .nodes
        .iter()
        .filter_map(|n| match &n.op {
            Op::Weight { tensor, .. } => Some(tensor.clone()),
            _ => None,
        })
        .collect();
    assert!(c.unused(&used).is_empty(), "{:?}", c.unused(&used));
}

#[test]
fn spellings_defaults_and_what_is_refused() {
    let old = [
        ("dtype", Value::Null),
        ("torch_dtype", json!("float32")),
        ("layer_norm_eps", Value::Null),
        ("type_vocab_size", Value::Null),
        ("max_position_embeddings", Value::Null),
        ("position_embedding_type", json!("absolute")),
        ("gradient_checkpointing", json!(true)),
        ("hidden_act", json!("gelu_new")),
        ("architectures", json!(["BertForMaskedLM"])),
        ("pooler_type", json!("first_token_transform")),
    ];
    let config = parse(&old).unwrap();
    assert_eq!((config.dtype, config.norm_eps, config.type_vocab_size), (Some(DType::F32), 1e-12, 2));
    assert_eq!((config.max_position, config.hidden_act), (512, Activation::GeluTanh));
    assert!(config.unknown.is_empty(), "{:?}", config.unknown);
    assert_eq!(parse(&[("hidden_act", json!("relu"))]).unwrap().hidden_act, Activation::Relu);
    let bad = |key: &str, value: Value, parts: &[&str]| {
        let error = parse(&[(key, value)]).expect_err(key);
        assert!(["some/config.json"].iter().chain(parts).all(|p| error.contains(p)), "{error}");
    };
    bad(
        "position_embedding_type",
        json!("relative_key"),
        &["position_embedding_type = relative_key", "absolute"],
    );
    bad("is_decoder", json!(true), &["is_decoder = true", "encoder"]);
    bad("hidden_act", json!("mish"), &["hidden_act = mish", "gelu"]);
    bad("architectures", json!(["BertLMHeadModel"]), &["BertLMHeadModel", "BertModel"]);
    bad("num_attention_heads", json!(3), &["3 heads"]);
}

#[test]
fn roberta_counts_positions_after_padding() {
    let parse = |changes: &[(&str, Value)]| parse_of("variants/roberta", changes);
    let config = parse(&[]).unwrap();
    assert_eq!((config.position_offset, config.position_limit(), config.type_vocab_size), (2, Some(64), 1));
    assert_eq!(parse(&[("pad_token_id", Value::Null)]).unwrap().position_offset, 2);
    assert_eq!(parse(&[("pad_token_id", json!(0))]).unwrap().position_offset, 1);
    let error = parse(&[("max_position_embeddings", json!(2))]).unwrap_err();
    assert!(error.contains("max_position_embeddings") && error.contains("no positions"), "{error}");
    let error = parse(&[("is_decoder", json!(true))]).unwrap_err();
    assert!(error.contains("is_decoder = true"), "{error}");
}

#[test]
fn modernbert_has_windows_on_both_sides() {
    let parse = |changes: &[(&str, Value)]| parse_of("variants/modernbert-older", changes);
    let config = parse(&[]).unwrap();
    let windows = |c: &ModelConfig| c.attention.iter().map(|a| a.window).collect::<Vec<_>>();
    assert_eq!(windows(&config), [None, Some(3), Some(3), None]);
    let locals: Vec<bool> = config.attention.iter().map(|a| a.rope == LayerRope::Local).collect();
    assert_eq!(locals, [false, true, true, false]);
    assert_eq!((config.rope.theta, config.local_rope.as_ref().map(|r| r.theta)), (160_000.0, Some(10000.0)));
    assert_eq!(config.position_limit(), None);
    // What the published files have, too.
    let published = [
        ("global_attn_every_n_layers", json!(2)),
        ("local_attention", Value::Null),
        ("layer_norm_eps", json!(1e-5)),
        ("position_embedding_type", json!("absolute")),
        ("gradient_checkpointing", json!(false)),
        ("reference_compile", json!(true)),
        ("architectures", json!(["ModernBertForMaskedLM"])),
    ];
    let config = parse(&published).unwrap();
    assert!(config.unknown.is_empty(), "{:?}", config.unknown);
    assert_eq!(windows(&config), [None, Some(65), None, Some(65)]);
    let error = parse(&[("global_attn_every_n_layers", json!(0))]).unwrap_err();
    assert!(error.contains("global_attn_every_n_layers"), "{error}");
}

/// A checkpoint of the tiny bert with its tensors renamed.
fn renamed(name: impl Fn(&str) -> String) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("tiny/bert/config.json"), folder.path().join("config.json")).unwrap();
    let bytes = std::fs::read(fixture("tiny/bert/model.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let names: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let names: Map<String, Value> =
        names.into_iter().map(|(k, v)| (if k == "__metadata__" { k } else { name(&k) }, v)).collect();
    let text = serde_json::to_string(&names).unwrap();
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text.as_bytes());
    out.extend(&bytes[8 + header..]);
    std::fs::write(folder.path().join("model.safetensors"), out).unwrap();
    folder
}

#[test]
fn older_tensor_names_build() {
    let old = |name: &str| {
        let name =
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        format!("bert.{name}")
    };
    let folder = renamed(old);
    let c = Checkpoint::open(folder.path()).unwrap();
    assert!(c.has("bert.embeddings.LayerNorm.gamma"));
    let (a, b) = (models::build(&c, DType::BF16).unwrap(), {
        let c = Checkpoint::open(fixture("tiny/bert")).unwrap();
        models::build(&c, DType::BF16).unwrap()
    });
    assert_eq!(a.nodes.len(), b.nodes.len());
    let folder = renamed(|n| n.replace("intermediate.dense", "intermediate.other"));
    let c = Checkpoint::open(folder.path()).unwrap();
    let error = models::build(&c, DType::BF16).unwrap_err().to_string();
    assert!(error.contains("encoder.layer.0.intermediate.dense.weight"), "{error}");
}

/// `config_sentence_transformers.json`.
#[test]
fn prompts_of_embeddings() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, value: Value| std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    let kinds = [("Transformer", ""), ("Pooling", "1_Pooling")];
    put("modules.json", kinds.map(|(kind, path)| json!({"type": kind, "path": path})).as_slice().into());
    std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    let mode = |include_prompt: bool| {
        let mode = json!({"pooling_mode_mean_tokens": true, "include_prompt": include_prompt});
        put("1_Pooling/config.json", mode);
    };
    let read = || Pooling::open(folder.path()).map(|p| p.unwrap().prompt).map_err(|e| e.to_string());
    let prompted = |name: Value, prompts: Value| {
        let file = "config_sentence_transformers.json";
        let version = json!({"sentence_transformers": "3.0.1", "pytorch": "2.3.1"});
        let of = json!({"__version__": version, "similarity_fn_name": "cosine", "prompts": prompts});
        let mut of = of.as_object().unwrap().clone();
        of.insert("default_prompt_name".into(), name);
        put(file, of.into());
        read()
    };
    mode(false);
    assert_eq!(read(), Ok(None));
    let prompts = json!({"query": "query: ", "document": ""});
    assert_eq!(prompted(json!(null), prompts.clone()), Ok(None));
    // The class takes the tokens of an empty prompt, too, which begin every text, from the mean.
    for name in ["query", "document"] {
        let error = prompted(json!(name), prompts.clone()).unwrap_err();
        let parts = ["1_Pooling/config.json", "include_prompt = false", "default_prompt_name"];
        assert!(parts.iter().all(|p| error.contains(p)), "{error}");
    }
    mode(true);
    assert_eq!(prompted(json!("query"), prompts.clone()), Ok(Some("query: ".into())));
    assert_eq!(prompted(json!("document"), prompts.clone()), Ok(None));
    for (name, prompts, problem) in [
        (json!("passage"), prompts, "\"passage\", which in prompts is not there"),
        (json!("query"), json!({"query": 7}), "\"query\", which in prompts is 7, not text"),
        (json!("query"), json!(null), "\"query\", which in prompts is not there"),
        (json!(7), json!({}), "default_prompt_name: is 7"),
    ] {
        let error = prompted(name, prompts).unwrap_err();
        let file = "config_sentence_transformers.json: default_prompt_name";
        assert!(error.contains(file) && error.contains(problem), "{error}");
    }
    // A prompt that is asked for by its name.
    assert_eq!(prompted(json!(null), json!({"query": "query: ", "document": ""})), Ok(None));
    let named = |name: &str| {
        let pooling = Pooling::open(folder.path()).unwrap().unwrap();
        pooling.prompted(name).map(|p| p.prompt)
    };
    assert_eq!(named("query"), Ok(Some("query: ".into())));
    assert_eq!(named("document"), Ok(None));
    assert_eq!(named("passage"), Err("the checkpoint's prompts are document, query".into()));
    put("config_sentence_transformers.json", json!({"truncate_dim": 64, "prompts": {}}));
    let error = read().unwrap_err();
    assert!(error.contains("truncate_dim: 64 is unknown to Weft"), "{error}");
}

#[test]
fn pooling_files() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, value: Value| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, value.to_string()).unwrap();
    };
    let open = || Pooling::open(folder.path()).map_err(|e| e.to_string());
    assert_eq!(open(), Ok(None));
    let module = |kind: &str, path: &str| json!({"type": format!("sentence_transformers.models.{kind}"), "path": path});
    let transformer = module("Transformer", "");
    put("modules.json", json!([transformer, module("Pooling", "1_Pooling")]));
    assert!(open().unwrap_err().contains("1_Pooling/config.json"));
    put("1_Pooling/config.json", json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}));
    let expected = Pooling { mode: PoolingMode::Cls, ..Pooling::default() };
    assert_eq!(open(), Ok(Some(expected)));
    put(
        "modules.json",
        json!([transformer, module("Pooling", "1_Pooling"), module("Normalize", "2_Normalize")]),
    );
    put("1_Pooling/config.json", json!({"pooling_mode": "max"}));
    put("sentence_bert_config.json", json!({"max_seq_length": 256, "do_lower_case": true}));
    let expected = Pooling {
        mode: PoolingMode::Max,
        normalize: true,
        lower_case: true,
        max_tokens: Some(256),
        ..Pooling::default()
    };
    assert_eq!(open(), Ok(Some(expected)));
    let bad = |parts: &[&str]| {
        let error = open().unwrap_err();
        assert!(parts.iter().all(|p| error.contains(p)), "{error}");
    };
    for (config, mode) in [
        (json!({"pooling_mode_lasttoken": true, "pooling_mode_cls_token": false}), PoolingMode::LastToken),
        (json!({"pooling_mode": "lasttoken"}), PoolingMode::LastToken),
        (json!({"pooling_mode_mean_tokens": true}), PoolingMode::Mean),
    ] {
        put("1_Pooling/config.json", config);
        assert_eq!(open().unwrap().unwrap().mode, mode);
    }
    put("sentence_bert_config.json", json!({"max_seq_length": 0}));
    bad(&["sentence_bert_config.json", "max_seq_length", "no token"]);
    std::fs::remove_file(folder.path().join("sentence_bert_config.json")).unwrap();
    put("1_Pooling/config.json", json!({"pooling_mode_max_tokens": true, "pooling_mode_mean_tokens": true}));
    bad(&["1_Pooling/config.json", "one mode"]);
    put("1_Pooling/config.json", json!({"pooling_mode_mean_sqrt_len_tokens": true}));
    bad(&["pooling_mode_mean_sqrt_len_tokens = true", "pooling_mode_mean_tokens"]);
    put("1_Pooling/config.json", json!({}));
    bad(&["a pooling mode"]);
    put("1_Pooling/config.json", json!({"pooling_mode": "cls", "pooling_mode_mean_tokens": true}));
    bad(&["1_Pooling/config.json", "pooling_mode: cls contradicts pooling_mode_mean_tokens"]);
    put("1_Pooling/config.json", json!({"pooling_mode": "cls", "pool_layers": [0, 6]}));
    bad(&["1_Pooling/config.json", "pool_layers: [0,6] is unknown to Weft", "remove the key"]);
    put("modules.json", json!([transformer]));
    bad(&["modules.json", "Pooling"]);
    put("modules.json", json!([transformer, module("Dense", "2_Dense")]));
    bad(&["modules.json", "[1].type", "Dense"]);
    put("modules.json", json!({}));
    bad(&["modules.json", "not a list"]);
}
