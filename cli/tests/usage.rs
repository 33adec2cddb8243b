//! Usage, help, and what is wrong with paths: exit codes and messages.

mod common;

use common::{fixture, weft};
use std::fs;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[test]
fn no_command_and_unknown_options_are_bad_usage() {
    let dir = folder();
    weft::<&str>(dir.path(), []).fails(2, &["Usage: weft", "compile", "forward"]);
    weft(dir.path(), ["compile"]).fails(2, &["<MODEL>"]);
    weft(dir.path(), ["run", "x", "--frobnicate"]).fails(2, &["--frobnicate"]);
    weft(dir.path(), ["run", "x", "--top-p", "1.5"]).fails(2, &["--top-p", "from 0 to 1"]);
    weft(dir.path(), ["run", "x", "--temperature=-1"]).fails(2, &["--temperature", "0 or more"]);
    weft(dir.path(), ["compile", "x", "--max-batch", "17"]).fails(2, &["--max-batch", "from 1 to 16"]);
    weft(dir.path(), ["compile", "x", "--max-seq", "0"]).fails(2, &["--max-seq", "whole number from 1"]);
    weft(dir.path(), ["compile", "x", "--opt-level", "3"]).fails(2, &["--opt-level"]);
}

#[test]
fn help_and_version_succeed() {
    let dir = folder();
    assert!(weft(dir.path(), ["--help"]).ok().contains("graph compiler"));
    assert!(weft(dir.path(), ["--version"]).ok().starts_with("weft "));
}

#[test]
fn an_unknown_target_lists_the_known_ones() {
    let dir = folder();
    let run = weft(dir.path(), ["compile", "x", "--target", "sm_75"]);
    run.fails(2, &["sm_75", "sm_80, sm_86, sm_89, sm_90, sm_100, sm_120"]);
}

#[test]
fn missing_and_foreign_files_are_named() {
    let dir = folder();
    for command in ["compile", "run"] {
        weft(dir.path(), [command, "nowhere"]).fails(2, &["nowhere", "cannot open"]);
    }
    fs::write(dir.path().join("notes.txt"), "hello").expect("writes");
    weft(dir.path(), ["compile", "notes.txt"]).fails(2, &["notes.txt", "not a checkpoint", ".gguf"]);
    fs::create_dir(dir.path().join("empty")).expect("makes");
    weft(dir.path(), ["compile", "empty"]).fails(2, &["empty", "not a checkpoint", "config.json"]);
    weft(dir.path(), ["convert", "notes.txt", "-o", "out"]).fails(2, &["notes.txt"]);
    let llama = fixture("tiny/llama");
    let args = ["convert".as_ref(), llama.as_os_str(), "-o".as_ref(), "out".as_ref()];
    weft(dir.path(), args).fails(2, &["not a GGUF file"]);
    assert!(!dir.path().join("out").exists());
}

#[test]
fn an_unknown_family_lists_the_known_ones() {
    let dir = folder();
    let llama = fixture("tiny/llama");
    fs::copy(llama.join("model.safetensors"), dir.path().join("model.safetensors")).expect("copies");
    let config = fs::read_to_string(llama.join("config.json")).expect("reads");
    let config = config.replace("\"model_type\": \"llama\"", "\"model_type\": \"mamba\"");
    fs::write(dir.path().join("config.json"), config).expect("writes");
    weft(dir.path(), ["compile", "."]).fails(2, &["config.json", "model_type", "mamba", "llama"]);
}

#[test]
fn doctor_models_and_completions_print() {
    let dir = folder();
    let run = weft(dir.path(), ["doctor"]);
    for part in ["driver", "gpu", "nvrtc", "cache", "runs on the CPU"] {
        assert!(run.ok().contains(part), "{part}: {}", run.stdout);
    }
    let json = weft(dir.path(), ["doctor", "--json"]);
    let value: serde_json::Value = serde_json::from_str(json.ok()).expect("JSON");
    assert!(value["checks"].as_array().is_some_and(|c| c.len() >= 4), "{value}");
    let text = weft(dir.path(), ["models"]);
    let bounded = "longrope up to the extended context";
    for part in ["  llama: ", "  bert: ", bounded, "GGUF 2 and 3", "bf16"] {
        assert!(text.ok().contains(part), "{part}: {}", text.stdout);
    }
    let models: serde_json::Value =
        serde_json::from_str(weft(dir.path(), ["models", "--json"]).ok()).expect("JSON");
    let families = |kind: &str| models[kind].as_array().expect("families").clone();
    let all = [families("decoders"), families("encoders")].concat();
    assert_eq!(all.len(), weft_frontend::config::MODEL_TYPES.len());
    for family in all {
        let of = |key: &str| family[key].as_str().expect("text").to_owned();
        assert!(text.stdout.contains(&format!("  {}: {}\n", of("model_type"), of("note"))), "{family}");
    }
    assert_eq!(models["bounded_rope_types"], bounded);
    assert!(models["rope_types"].as_array().is_some_and(|types| types.contains(&"yarn".into())), "{models}");
    assert!(weft(dir.path(), ["completions", "bash"]).ok().contains("complete -F _weft"));
}
