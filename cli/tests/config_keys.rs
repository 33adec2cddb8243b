//! Keys of a configuration that Weft does not know: refused by every command that opens a checkpoint, passed over with
//! `--ignore-config-key`, which a bundle remembers.

mod common;
#[path = "../../frontend/tests/common/mod.rs"]
mod gguf;

use common::{fixture, longs, read_floats, weft, write};
use safetensors::Dtype;
use std::fs;
use std::path::Path;

const OPTION: [&str; 2] = ["--ignore-config-key", "flux_capacitance"];

/// The tiny llama as `model`, with one more key in its configuration, and tokens as `in.safetensors`.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (llama, model) = (fixture("tiny/llama"), dir.path().join("model"));
    fs::create_dir(&model).expect("makes");
    fs::copy(llama.join("model.safetensors"), model.join("model.safetensors")).expect("copies");
    let config = fs::read_to_string(llama.join("config.json")).expect("reads");
    let config = config.replacen('{', "{\"flux_capacitance\": 1.21,", 1);
    fs::write(model.join("config.json"), config).expect("writes");
    let ids: Vec<i64> = (0..8).map(|i| 3 + 7 * i).collect();
    write(&dir.path().join("in.safetensors"), &[("input_ids", Dtype::I64, &[1, 8], longs(&ids))]);
    dir
}

fn forward<'a>(model: &'a str, output: &'a str) -> Vec<&'a str> {
    vec!["forward", model, "--input", "in.safetensors", "--output", output, "--device", "cpu"]
}

fn logits(file: &Path) -> Vec<f32> {
    read_floats(&fs::read(file).expect("reads"), "logits").0
}

#[test]
fn every_command_that_opens_a_checkpoint_refuses_them() {
    let dir = folder();
    for command in [
        vec!["compile", "model", "--target", "sm_90", "--no-check", "-o", "b"],
        forward("model", "out.safetensors"),
        vec!["run", "model", "--device", "cpu", "hello"],
        vec!["embed", "model", "--device", "cpu", "hello"],
        vec!["bench", "model", "--estimate", "--target", "sm_90"],
        vec!["tune", "model"],
        vec!["synth", "model", "-o", "made"],
    ] {
        let says = ["config.json", "flux_capacitance = 1.21", "--ignore-config-key flux_capacitance"];
        weft(dir.path(), &command).fails(2, &says);
        // What fails now is another thing, or nothing.
        let run = weft(dir.path(), command.iter().chain(&OPTION));
        assert!(!run.stderr.contains("flux_capacitance = "), "{command:?}: {}", run.stderr);
        let known = weft(dir.path(), command.iter().chain(&["--ignore-config-key", "rope_theta"]));
        known.fails(2, &["flux_capacitance = 1.21"]);
    }
}

#[test]
fn passed_over_the_result_is_that_of_the_rest() {
    let dir = folder();
    let plain = fixture("tiny/llama");
    weft(dir.path(), forward(plain.to_str().expect("UTF-8"), "plain.safetensors")).ok();
    weft(dir.path(), forward("model", "ours.safetensors").iter().chain(&OPTION)).ok();
    let expected = logits(&dir.path().join("plain.safetensors"));
    assert_eq!(logits(&dir.path().join("ours.safetensors")), expected);
    let wrong = [OPTION.as_slice(), &["--ignore-config-key", "rope_theta"]].concat();
    weft(dir.path(), forward("model", "x.safetensors").iter().chain(&wrong))
        .fails(2, &["config.json: rope_theta", "leave the option out"]);
}

#[test]
fn a_bundle_remembers() {
    let dir = folder();
    let compile = ["compile", "model", "--target", "sm_90", "--no-check", "-o", "b"];
    let run = weft(dir.path(), compile.iter().chain(&OPTION));
    run.ok();
    for text in ["warning: config", "as asked: flux_capacitance"] {
        assert!(run.stderr.contains(text), "{text}: {}", run.stderr);
    }
    weft(dir.path(), forward("b", "out.safetensors")).ok();
    weft(dir.path(), forward("b", "again.safetensors").iter().chain(&OPTION)).ok();
    assert_eq!(logits(&dir.path().join("out.safetensors")), logits(&dir.path().join("again.safetensors")));
    let other = forward("b", "x.safetensors").into_iter().chain(["--ignore-config-key", "warp"]);
    weft(dir.path(), other).fails(2, &["b: compiled without --ignore-config-key warp", "compile again"]);
    // The remedies compile it as it was compiled.
    let other = forward("b", "x.safetensors").into_iter().chain(["--max-seq", "64"]);
    weft(dir.path(), other).fails(2, &["--target sm_90 --ignore-config-key flux_capacitance --max-seq 64"]);
}

#[test]
fn metadata_of_a_gguf_file_is_judged_alike() {
    let dir = folder();
    gguf::tiny_gguf().set("llama.warp", gguf::V::U32(9)).write(&dir.path().join("tiny.gguf"));
    let convert = ["convert", "tiny.gguf", "-o", "hf"];
    weft(dir.path(), convert).fails(2, &["tiny.gguf: llama.warp = 9", "--ignore-config-key llama.warp"]);
    weft(dir.path(), convert.iter().chain(&["--ignore-config-key", "llama.warp"])).ok();
    weft(dir.path(), forward("hf", "out.safetensors")).ok();
}

#[test]
fn made_weights_keep_the_configuration() {
    let dir = folder();
    let synth = weft(dir.path(), ["synth", "model", "-o", "made"].iter().chain(&OPTION));
    synth.ok();
    weft(dir.path(), forward("made", "x.safetensors")).fails(2, &["flux_capacitance = 1.21"]);
    weft(dir.path(), forward("made", "out.safetensors").iter().chain(&OPTION)).ok();
}
