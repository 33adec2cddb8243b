//! The cases: a checkpoint that is whole but for one thing.

mod files;
mod pooling;
mod text;

use crate::common::{V, fixture, tiny_gguf};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A bad checkpoint.
pub struct Case {
    pub name: &'static str,
    /// What the error says.
    pub parts: &'static [&'static str],
    make: Box<dyn Fn(&Path) -> PathBuf>,
}

impl Case {
    /// Writes it; gives the path to open.
    pub fn write(&self, folder: &Path) -> PathBuf {
        (self.make)(folder)
    }
}

type Cases = Vec<Case>;

fn case(
    all: &mut Cases,
    name: &'static str,
    parts: &'static [&'static str],
    make: impl Fn(&Path) -> PathBuf + 'static,
) {
    all.push(Case { name, parts, make: Box::new(make) });
}

/// A whole folder: the tiny llama with a tokenizer and a template.
fn whole(folder: &Path) {
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("tiny/llama").join(file), folder.join(file)).unwrap();
    }
    write(folder, "tokenizer.json", tokenizer().to_string());
    write(folder, "tokenizer_config.json", json!({"chat_template": "{{ messages[0].content }}"}).to_string());
}

fn write(folder: &Path, file: &str, text: impl AsRef<[u8]>) {
    std::fs::write(folder.join(file), text).unwrap();
}

/// A file that is long and takes no room.
fn sparse(path: &Path, length: u64) {
    std::fs::File::create(path).unwrap().set_len(length).unwrap();
}

fn tokenizer() -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": "?", "fuse_unk": true, "byte_fallback": false,
            "vocab": {"?": 0, "a": 1, "b": 2, "ab": 3}, "merges": [["a", "b"]]},
    })
}

/// The folder with a file of this text instead.
fn with_file(
    all: &mut Cases,
    name: &'static str,
    parts: &'static [&'static str],
    file: &'static str,
    text: impl Fn() -> Vec<u8> + 'static,
) {
    case(all, name, parts, move |folder| {
        whole(folder);
        write(folder, file, text());
        folder.to_owned()
    });
}

/// The folder with a changed configuration; null removes a key.
fn with_config(all: &mut Cases, name: &'static str, parts: &'static [&'static str], changes: Value) {
    case(all, name, parts, move |folder| {
        whole(folder);
        let text = std::fs::read(folder.join("config.json")).unwrap();
        let mut config: Value = serde_json::from_slice(&text).unwrap();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        write(folder, "config.json", config.to_string());
        folder.to_owned()
    });
}

fn with_tokenizer(
    all: &mut Cases,
    name: &'static str,
    parts: &'static [&'static str],
    change: impl Fn(&mut Value) + 'static,
) {
    with_file(all, name, parts, "tokenizer.json", move || {
        let mut t = tokenizer();
        change(&mut t);
        t.to_string().into_bytes()
    });
}

fn with_template(
    all: &mut Cases,
    name: &'static str,
    parts: &'static [&'static str],
    template: impl Into<String>,
) {
    let template = template.into();
    with_file(all, name, parts, "chat_template.jinja", move || template.clone().into_bytes());
}

fn with_safetensors(
    all: &mut Cases,
    name: &'static str,
    parts: &'static [&'static str],
    bytes: impl Fn() -> Vec<u8> + 'static,
) {
    with_file(all, name, parts, "model.safetensors", bytes);
}

fn with_index(
    all: &mut Cases,
    name: &'static str,
    parts: &'static [&'static str],
    index: impl Fn() -> String + 'static,
) {
    case(all, name, parts, move |folder| {
        whole(folder);
        std::fs::rename(folder.join("model.safetensors"), folder.join("a.safetensors")).unwrap();
        write(folder, "model.safetensors.index.json", index());
        folder.to_owned()
    });
}

fn with_gguf(
    all: &mut Cases,
    name: &'static str,
    parts: &'static [&'static str],
    bytes: impl Fn() -> Vec<u8> + 'static,
) {
    case(all, name, parts, move |folder| {
        let path = folder.join("model.gguf");
        std::fs::write(&path, bytes()).unwrap();
        path
    });
}

fn with_key(
    all: &mut Cases,
    name: &'static str,
    parts: &'static [&'static str],
    key: &'static str,
    value: V,
) {
    with_gguf(all, name, parts, move || tiny_gguf().set(key, value.clone()).bytes());
}

/// All of them.
pub fn cases() -> Cases {
    let mut all = Vec::new();
    configs(&mut all);
    files::headers(&mut all);
    files::indices(&mut all);
    text::tokenizers(&mut all);
    text::templates(&mut all);
    pooling::pooling(&mut all);
    files::ggufs(&mut all);
    all
}

fn configs(all: &mut Cases) {
    let c = "config.json";
    case(all, "config of a terabyte", &["config.json", "size", "at most"], |folder| {
        whole(folder);
        sparse(&folder.join("config.json"), 1 << 40);
        folder.to_owned()
    });
    case(all, "config is a pipe", &["config.json", "not a regular file"], |folder| {
        whole(folder);
        std::fs::remove_file(folder.join("config.json")).unwrap();
        let made = std::process::Command::new("mkfifo").arg(folder.join("config.json")).status().unwrap();
        assert!(made.success());
        folder.to_owned()
    });
    with_file(all, "config nested deep", &["config.json", "JSON", "recursion"], c, || {
        "[".repeat(1 << 20).into_bytes()
    });
    with_file(all, "config nested deep in an object", &["config.json", "recursion"], c, || {
        format!("{{\"x\": {}{}}}", "{\"a\":".repeat(100_000), "1").into_bytes()
    });
    with_file(all, "config of a million numbers", &["config.json", "model_type is missing"], c, || {
        format!("{{\"id2label\": [{}0]}}", "0,".repeat(2_000_000)).into_bytes()
    });
    with_file(all, "config with a key twice", &["config.json", "vocab_size", "twice"], c, || {
        b"{\"model_type\": \"llama\", \"vocab_size\": 8, \"vocab_size\": 256}".to_vec()
    });
    with_file(
        all,
        "config of many unknown keys",
        &["config.json", "x0 = 1, x1 = 1, x10 = 1", "unknown", "99992 more"],
        c,
        || {
            let mut config: Value =
                serde_json::from_slice(&std::fs::read(fixture("tiny/llama/config.json")).unwrap()).unwrap();
            for i in 0..100_000 {
                config[format!("x{i}")] = json!(1);
            }
            config.to_string().into_bytes()
        },
    );
    with_config(
        all,
        "unknown key of a long name",
        &["config.json", "unknown to Weft"],
        json!({"x".repeat(1 << 20): 1}),
    );
    with_file(all, "config not UTF-8", &["config.json", "JSON"], c, || {
        b"{\"model_type\": \"\xC3\x28\"}".to_vec()
    });
    with_file(all, "config of zeros", &["config.json", "JSON"], c, || vec![0; 4096]);
    with_file(all, "config empty", &["config.json", "JSON", "EOF"], c, Vec::new);
    with_config(
        all,
        "layers without end",
        &["num_hidden_layers", "1 and 65536"],
        json!({"num_hidden_layers": u64::MAX}),
    );
    with_config(all, "as many layers as allowed", &["model.layers.2."], json!({"num_hidden_layers": 65536}));
    with_config(all, "negative layers", &["num_hidden_layers", "-2"], json!({"num_hidden_layers": -2}));
    with_config(all, "layers as a float", &["num_hidden_layers", "2.5"], json!({"num_hidden_layers": 2.5}));
    with_config(all, "heads of no width", &["head_dim", "0"], json!({"head_dim": 0}));
    with_config(
        all,
        "heads whose product overflows",
        &["num_attention_heads"],
        json!({"num_attention_heads": 1u64 << 62}),
    );
    with_config(all, "widths whose product overflows", &["hidden_size"], json!({"hidden_size": 1u64 << 40}));
    with_config(
        all,
        "largest allowed widths",
        &["shape"],
        json!({"hidden_size": 1u64 << 31, "intermediate_size": 1u64 << 31}),
    );
    with_config(all, "negative epsilon", &["rms_norm_eps", "-1"], json!({"rms_norm_eps": -1.0}));
    with_config(
        all,
        "a scaling by nothing",
        &["rope scaling factor"],
        json!({"rope_theta": 1e308, "rope_scaling": {"rope_type": "linear", "factor": 0}}),
    );
    with_config(
        all,
        "rope factor below zero",
        &["factor", "-8"],
        json!({"rope_scaling": {"rope_type": "linear", "factor": -8}}),
    );
    with_config(
        all,
        "a vocabulary that is not the embedding's",
        &["embed_tokens", "[256, 128]", "[999, 128]"],
        json!({"vocab_size": 999}),
    );
    with_config(
        all,
        "token ids beyond 32 bits",
        &["eos_token_id", "token id"],
        json!({"eos_token_id": [1u64 << 40]}),
    );
    with_config(
        all,
        "model_type of a megabyte",
        &["model_type", "…", "llama"],
        json!({"model_type": "x".repeat(1 << 20)}),
    );
    with_config(
        all,
        "layer_types of a million",
        &["layer_types"],
        json!({"model_type": "qwen2", "architectures": null, "layer_types": vec!["full_attention"; 100_000]}),
    );
    with_file(
        all,
        "generation config as a list",
        &["generation_config.json", "not an object"],
        "generation_config.json",
        || b"[1]".to_vec(),
    );
    with_file(
        all,
        "generation config with text for an id",
        &["generation_config.json", "eos_token_id"],
        "generation_config.json",
        || b"{\"eos_token_id\": \"</s>\"}".to_vec(),
    );
}
