//! `weft compile`: what a bundle holds, that it is the same each time, and what is refused.

mod common;

use common::{command, finish, fixture, weft};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use weft_ir::bundle::Manifest;
use weft_ir::plan::Plan;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// Compiles the tiny llama to `out`, without NVRTC.
fn compile(dir: &Path, out: &str, more: &[&str]) -> common::Run {
    let llama = fixture("tiny/llama/model.safetensors");
    let mut command = command(dir);
    command.arg("compile").arg(llama).args(["--target", "sm_90", "--no-check", "-o", out]).args(more);
    finish(&mut command)
}

/// All files of a folder, by their relative paths.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut out = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if path.is_dir() {
            out.extend(files(&path).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else {
            out.insert(name, fs::read(&path).expect("reads"));
        }
    }
    out
}

#[test]
fn a_bundle_has_manifest_plan_and_kernels() {
    let dir = folder();
    let run = compile(dir.path(), "b", &[]);
    for text in ["for sm_90 in bf16", "decode_1", "arena peak", "sum of buffers", "fallbacks   none", "emit"]
    {
        assert!(run.ok().contains(text), "{text}: {}", run.stdout);
    }
    let mut files = files(&dir.path().join("b"));
    let manifest = files.remove("manifest.json").expect("a manifest");
    let manifest: Manifest = serde_json::from_slice(&manifest).expect("parses");
    assert_eq!(manifest.version, weft_ir::bundle::VERSION);
    assert_eq!((manifest.target.as_str(), manifest.model_type.as_str()), ("sm_90", "llama"));
    assert_eq!((manifest.vocab_size, manifest.eos_token_ids.as_slice()), (256, [2].as_slice()));
    let weights = fs::metadata(fixture("tiny/llama/model.safetensors")).expect("there");
    assert_eq!(manifest.sources.len(), 1);
    assert_eq!(manifest.sources[0].bytes, weights.len());

    let text = String::from_utf8(files.remove("plan.ron").expect("a plan")).expect("UTF-8");
    let plan = Plan::from_ron(&text).expect("parses");
    assert_eq!(plan.to_ron().expect("prints"), text);
    assert_eq!(plan.opt_level, 2);
    assert!(plan.entries.iter().all(|e| e.arena_bytes <= e.unshared_bytes));

    assert_eq!(manifest.kernels.len(), plan.kernels.len());
    for (file, kernel) in manifest.kernels.iter().zip(&plan.kernels) {
        assert_eq!(file.name, kernel.name);
        let source = String::from_utf8(files.remove(&file.file).expect("a kernel")).expect("UTF-8");
        assert!(source.contains("extern \"C\" __global__") && source.contains(&kernel.name), "{source}");
    }
    let explain = files.remove("explain.json").expect("where the works came from");
    let explain: serde_json::Value = serde_json::from_slice(&explain).expect("parses");
    assert_eq!(explain["works"].as_array().map(Vec::len), Some(plan.works.len()));
    assert!(files.is_empty(), "more files: {:?}", files.keys());
}

#[test]
fn the_same_bytes_on_1_thread_and_on_16() {
    let dir = folder();
    let mut bundles = Vec::new();
    for (out, threads) in [("one", "1"), ("sixteen", "16"), ("again", "16")] {
        let mut command = command(dir.path());
        command.env("RAYON_NUM_THREADS", threads).arg("compile").arg(fixture("tiny/llama"));
        finish(command.args(["--target", "sm_90", "--no-check", "-o", out])).ok();
        bundles.push(files(&dir.path().join(out)));
    }
    assert!(bundles[0] == bundles[1] && bundles[1] == bundles[2]);
}

#[test]
fn the_default_place_is_the_models_name() {
    let dir = folder();
    let mut command = command(dir.path());
    command.arg("compile").arg(fixture("tiny/llama/model.safetensors")).args([
        "--target",
        "sm_90",
        "--no-check",
    ]);
    finish(&mut command).ok();
    assert!(dir.path().join("llama.weft/manifest.json").is_file());
}

#[test]
fn an_older_bundle_is_replaced_and_nothing_else() {
    let dir = folder();
    compile(dir.path(), "b", &["--opt-level", "0"]).ok();
    fs::write(dir.path().join("b/kernels/old.cu"), "").expect("writes");
    compile(dir.path(), "b", &["--opt-level", "2"]).ok();
    assert!(!dir.path().join("b/kernels/old.cu").exists());

    fs::create_dir(dir.path().join("mine")).expect("makes");
    fs::write(dir.path().join("mine/thesis.tex"), "words").expect("writes");
    compile(dir.path(), "mine", &[]).fails(2, &["mine", "not a bundle", "-o"]);
    fs::write(dir.path().join("file"), "words").expect("writes");
    compile(dir.path(), "file", &[]).fails(2, &["file", "not a folder", "-o"]);
    let left: Vec<String> = fs::read_dir(dir.path())
        .expect("a folder")
        .map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with('.'))
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn json_and_dumps() {
    let dir = folder();
    let run = compile(dir.path(), "b", &["--json", "--dump-passes", "dump"]);
    let json: serde_json::Value = serde_json::from_str(run.ok()).expect("JSON");
    assert_eq!(json["target"], "sm_90");
    assert!(json["entries"].as_array().is_some_and(|e| !e.is_empty()), "{json}");
    assert!(json["nvrtc"].is_null());
    let dump = files(&dir.path().join("dump"));
    let first = dump.get("01-build.txt").expect("the graph");
    assert!(String::from_utf8_lossy(first).contains("input token_ids"), "{:?}", dump.keys());
}

#[test]
fn fallbacks_and_choices_are_reported() {
    let dir = folder();
    let run = compile(dir.path(), "b", &["--dtype", "f32", "--max-seq", "128", "--max-batch", "3"]);
    for text in ["in f32", "3 sequences of 128 tokens", "fallback", "tensor cores take f16 and bf16, not f32"]
    {
        assert!(run.ok().contains(text), "{text}: {}", run.stdout);
    }
}

#[test]
fn a_longer_context_than_the_positions_is_an_error_with_its_reason() {
    let dir = folder();
    for (name, why) in [
        ("variants/phi3-longrope", "rope_type longrope has factors for no more"),
        ("tiny/gpt2", "they are learned"),
    ] {
        let model = fixture(name);
        let model = model.to_str().expect("UTF-8");
        let run =
            weft(dir.path(), ["compile", model, "--target", "sm_90", "--no-check", "--max-seq", "1000000"]);
        run.fails(2, &["--max-seq 1000000: the model has ", why, "; give at most "]);
    }
    compile(dir.path(), "b", &["--max-seq", "1000000"]).ok();
}

#[test]
fn a_dynamic_base_grows_beyond_the_original_context_alone() {
    let dir = folder();
    let model = fixture("variants/llama-dynamic");
    let model = model.to_str().expect("UTF-8");
    for (max_seq, grows) in [("64", false), ("65", true)] {
        let all = ["compile", model, "--target", "sm_90", "--no-check", "--max-seq", max_seq, "-o", max_seq];
        weft(dir.path(), all).ok();
        let plan = fs::read_to_string(dir.path().join(max_seq).join("plan.ron")).expect("reads");
        assert_eq!(plan.contains("Input(Prompts)"), grows, "--max-seq {max_seq}");
    }
}

#[test]
fn a_context_beyond_longropes_original_one_is_said() {
    let dir = folder();
    let model = fixture("variants/phi3-longrope");
    let model = model.to_str().expect("UTF-8");
    let run = |more: &[&str]| {
        let all = ["compile", model, "--target", "sm_90", "--no-check", "-o", "b"];
        weft(dir.path(), all.iter().chain(more))
    };
    let short = run(&[]);
    assert!(short.ok().contains("of 32 tokens") && !short.stderr.contains("longrope"), "{}", short.stderr);
    let long = run(&["--max-seq", "64"]);
    assert!(long.ok().contains("of 64 tokens"), "{}", long.stdout);
    let said = "for contexts beyond 32 tokens rope_type longrope's long factors are taken";
    assert!(long.stderr.contains(said) && long.stderr.contains("--max-seq 32"), "{}", long.stderr);
}

#[test]
fn empty_keys_and_unused_tensors_are_warnings() {
    let dir = folder();
    let llama = fixture("tiny/llama");
    let model = dir.path().join("model");
    fs::create_dir(&model).expect("makes");
    let weights = fs::read(llama.join("model.safetensors")).expect("reads");
    let read = safetensors::SafeTensors::deserialize(&weights).expect("parses");
    let mut tensors = read.tensors();
    let extra = tensors[0].1.clone();
    tensors.push(("vision_tower.extra.weight".into(), extra));
    safetensors::serialize_to_file(tensors, None, &model.join("model.safetensors")).expect("writes");
    let config = fs::read_to_string(llama.join("config.json")).expect("reads");
    let config = config.replacen('{', "{\"flux_capacitance\": [],", 1);
    fs::write(model.join("config.json"), config).expect("writes");
    let run = weft(dir.path(), ["compile", "model", "--target", "sm_90", "--no-check", "-o", "b"]);
    run.ok();
    for text in ["warning: config", "flux_capacitance", "does not use 1 tensor: vision_tower.extra.weight"] {
        assert!(run.stderr.contains(text), "{text}: {}", run.stderr);
    }
}

#[test]
fn without_nvrtc_the_remedy_is_said() {
    let dir = folder();
    let mut command = command(dir.path());
    command.arg("compile").arg(fixture("tiny/llama")).args(["--target", "sm_90", "-o", "b"]);
    let missing = finish(command.env("WEFT_NVRTC", dir.path().join("nowhere")));
    for text in ["kernels not checked", "pip install nvidia-cuda-nvrtc"] {
        assert!(missing.ok().contains(text), "{text}: {}", missing.stdout);
    }
}

#[test]
fn with_nvrtc_registers_and_spills_are_said() {
    let dir = folder();
    // As cargo xtask keeps it; else wherever it is found.
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.weft/nvrtc");
    let compile = |out: &str| {
        let mut command = command(dir.path());
        if kept.is_dir() && std::env::var_os("WEFT_NVRTC").is_none() {
            command.env("WEFT_NVRTC", &kept);
        }
        command.arg("compile").arg(fixture("tiny/llama")).args(["--max-batch", "1", "--json"]);
        let run = finish(command.args(["--target", "sm_90", "-o", out]));
        serde_json::from_str::<serde_json::Value>(run.ok()).expect("JSON")
    };
    let first = compile("b");
    if first["nvrtc"]["version"].is_null() {
        let line = "SKIPPED: no NVRTC: run cargo xtask test\n";
        std::io::stderr().write_all(line.as_bytes()).expect("writes");
        return;
    }
    let kernels = first["nvrtc"]["kernels"].as_array().expect("kernels");
    assert_eq!(kernels.len() as u64, first["kernels"].as_u64().expect("a count"));
    for kernel in kernels {
        assert!(kernel["registers"].as_u64().is_some_and(|n| n > 0), "{kernel}");
        assert_eq!((kernel["spill_stores"].as_u64(), kernel["spill_loads"].as_u64()), (Some(0), Some(0)));
    }
    assert_eq!(first["nvrtc"]["cached"], 0);
    assert_eq!(compile("c")["nvrtc"]["cached"], first["kernels"]);
}

#[test]
fn a_bundle_is_no_checkpoint() {
    let dir = folder();
    compile(dir.path(), "b", &[]).ok();
    weft(dir.path(), ["compile", "b"]).fails(2, &["already a bundle"]);
}
