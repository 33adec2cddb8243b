//! `weft synth`: random checkpoints load, compile and run; they depend on seed and names alone.

mod common;

use common::{fixture, longs, read_floats, weft, write};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// Makes `out` of a tiny fixture's configuration.
fn synth(dir: &Path, fixture_name: &str, out: &str, more: &[&str]) -> common::Run {
    let config = fixture("tiny").join(fixture_name).join("config.json");
    let config = config.to_str().expect("UTF-8");
    weft(dir, ["synth", config, "-o", out].iter().chain(more))
}

/// The bytes of all tensors of a folder.
fn tensors(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut out = BTreeMap::new();
    for file in fs::read_dir(folder).expect("lists") {
        let path = file.expect("lists").path();
        // A fixture's golden is beside its weights.
        let weights = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("model"));
        if weights && path.extension().is_some_and(|x| x == "safetensors") {
            let bytes = fs::read(&path).expect("reads");
            let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
            for (name, tensor) in file.tensors() {
                assert!(out.insert(name, tensor.data().to_vec()).is_none());
            }
        }
    }
    assert!(!out.is_empty());
    out
}

/// Runs a step on the CPU; its output is finite, and not all of it equal.
fn runs(dir: &Path, model: &str, output: &str) {
    let ids: Vec<i64> = (0..12).map(|i| 3 + 7 * i).collect();
    write(&dir.join("in.safetensors"), &[("input_ids", Dtype::I64, &[1, 12], longs(&ids))]);
    let args =
        ["forward", model, "--input", "in.safetensors", "--output", "out.safetensors", "--device", "cpu"];
    weft(dir, args).ok();
    let (values, _) = read_floats(&fs::read(dir.join("out.safetensors")).expect("reads"), output);
    assert!(values.iter().all(|v| v.is_finite()), "{model}");
    let n = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let spread = (values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n).sqrt();
    assert!((0.05..50.0).contains(&spread), "{model}: deviation {spread}");
}

#[test]
fn random_checkpoints_have_the_real_tensors_and_run() {
    let dir = folder();
    let cases =
        [("llama", "logits"), ("gemma2", "logits"), ("mixtral", "logits"), ("bert", "last_hidden_state")];
    for (name, output) in cases {
        synth(dir.path(), name, name, &["--seed", "5"]).ok();
        let real = tensors(&fixture("tiny").join(name));
        let made = tensors(&dir.path().join(name));
        let plain = |n: &str| n.strip_prefix("bert.").unwrap_or(n).to_owned();
        for (tensor, bytes) in &made {
            let there = real.get(tensor).or_else(|| real.get(&plain(tensor)));
            assert_eq!(there.map(Vec::len), Some(bytes.len()), "{name}: {tensor}");
            assert!(bytes.iter().any(|&b| b != 0), "{name}: {tensor} is zero");
        }
        let left: Vec<&String> = real
            .keys()
            .filter(|n| !made.keys().any(|m| plain(m) == plain(n)) && !n.contains("pooler"))
            .collect();
        assert!(left.is_empty(), "{name}: not made: {left:?}");
        weft(dir.path(), ["compile", name, "--no-check", "-o", "bundle.weft", "--max-seq", "64"]).ok();
        runs(dir.path(), name, output);
    }
}

#[test]
fn values_depend_on_the_seed_and_not_on_shards_or_threads() {
    let dir = folder();
    let make = |out: &str, more: &[&str]| {
        synth(dir.path(), "llama", out, more).ok();
        tensors(&dir.path().join(out))
    };
    let first = make("first", &["--seed", "1"]);
    assert_eq!(first, make("again", &["--seed", "1"]));
    let read = |name: &str| fs::read(dir.path().join(name)).expect("reads");
    assert_eq!(read("first/model.safetensors"), read("again/model.safetensors"));
    let other = make("other", &["--seed", "2"]);
    for (name, bytes) in &first {
        assert_ne!(&other[name], bytes, "{name}");
    }
    assert_eq!(first, make("shards", &["--seed", "1", "--shard-size", "100KB"]));
    assert!(dir.path().join("shards/model.safetensors.index.json").exists());
    assert!(!dir.path().join("shards/model.safetensors").exists());
    assert!(fs::read_dir(dir.path().join("shards")).expect("lists").count() > 4);
    runs(dir.path(), "shards", "logits");
    let config = fixture("tiny/llama");
    let mut command = common::command(dir.path());
    command.arg("synth").arg(&config).args(["-o", "one", "--seed", "1"]).env("RAYON_NUM_THREADS", "1");
    common::finish(&mut command).ok();
    assert_eq!(first, tensors(&dir.path().join("one")));
}

#[test]
fn force_replaces_the_model_and_the_summary_is_json() {
    let dir = folder();
    let made = synth(dir.path(), "llama", "out", &["--json", "--shard-size", "100KB"]);
    let json: serde_json::Value = serde_json::from_str(made.ok()).expect("JSON");
    assert_eq!(
        (json["model_type"].as_str(), json["dtype"].as_str()),
        (Some("llama"), Some("bf16")),
        "{json}"
    );
    fs::write(dir.path().join("out/notes.txt"), "mine").expect("writes");
    synth(dir.path(), "bert", "out", &[]).fails(2, &["out", "is not empty", "--force"]);
    synth(dir.path(), "llama", "out", &["--force", "--dtype", "f32"]).ok();
    let mut names: Vec<String> = fs::read_dir(dir.path().join("out"))
        .expect("lists")
        .map(|f| f.expect("lists").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "notes.txt"]);
    let config = fs::read_to_string(dir.path().join("out/config.json")).expect("reads");
    assert!(config.contains("float32"), "{config}");
    runs(dir.path(), "out", "logits");
}

#[test]
fn what_cannot_be_made_is_named() {
    let dir = folder();
    weft(dir.path(), ["synth", "nowhere", "-o", "out"]).fails(2, &["nowhere", "cannot open"]);
    let config = fs::read_to_string(fixture("tiny/llama/config.json")).expect("reads");
    let with = |from: &str, to: &str| {
        assert!(config.contains(from), "{from}");
        fs::write(dir.path().join("config.json"), config.replace(from, to)).expect("writes");
        weft(dir.path(), ["synth", "config.json", "-o", "out"])
    };
    with("\"hidden_size\": 128", "\"hidden_size\": \"wide\"").fails(2, &["config.json", "hidden_size"]);
    with("\"model_type\": \"llama\"", "\"model_type\": \"mamba\"")
        .fails(2, &["config.json", "model_type", "mamba"]);
    // 4 PB and more.
    let config = config.replace("\"hidden_size\": 128", "\"hidden_size\": 1048576");
    fs::write(
        dir.path().join("config.json"),
        config.replace("\"vocab_size\": 256", "\"vocab_size\": 2147483647"),
    )
    .expect("writes");
    weft(dir.path(), ["synth", "config.json", "-o", "out"])
        .fails(1, &["out: needs", "GB are free", "make room"]);
    weft(dir.path(), ["synth", "config.json", "-o", "out", "--shard-size", "0"])
        .fails(2, &["--shard-size", "500MB"]);
    assert!(!dir.path().join("out").exists());
}
