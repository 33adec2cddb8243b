//! Stored tensors of the model's own modules that Weft does not read: refused by every command that opens a checkpoint,
//! passed over with `--ignore-tensor`, which a bundle remembers. Those of other parts are a warning of every command.

mod common;

use common::{fixture, longs, read_floats, weft, write};
use safetensors::{Dtype, SafeTensors, serialize_to_file};
use std::fs;
use std::path::Path;

const BIAS: &str = "model.layers.0.self_attn.q_proj.bias";
const OPTION: [&str; 2] = ["--ignore-tensor", "model.layers.0.self_attn.q_"];

/// The tiny llama as `model`, with one more tensor, and tokens as `in.safetensors`.
fn folder(tensor: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (llama, model) = (fixture("tiny/llama"), dir.path().join("model"));
    fs::create_dir(&model).expect("makes");
    fs::copy(llama.join("config.json"), model.join("config.json")).expect("copies");
    let weights = fs::read(llama.join("model.safetensors")).expect("reads");
    let read = SafeTensors::deserialize(&weights).expect("parses");
    let mut tensors = read.tensors();
    let one = tensors.iter().find(|(name, _)| name == "model.norm.weight").expect("a norm").1.clone();
    tensors.push((tensor.to_owned(), one));
    serialize_to_file(tensors, None, &model.join("model.safetensors")).expect("writes");
    let ids: Vec<i64> = (0..8).map(|i| 3 + 7 * i).collect();
    write(&dir.path().join("in.safetensors"), &[("input_ids", Dtype::I64, &[1, 8], longs(&ids))]);
    dir
}

fn forward<'a>(model: &'a str, output: &'a str) -> Vec<&'a str> {
    vec!["forward", model, "--input", "in.safetensors", "--output", output, "--device", "cpu"]
}

fn compile() -> Vec<&'static str> {
    vec!["compile", "model", "--target", "sm_90", "--no-check", "-o", "b"]
}

fn estimate() -> Vec<&'static str> {
    vec!["bench", "model", "--estimate", "--target", "sm_90"]
}

fn logits(file: &Path) -> Vec<f32> {
    read_floats(&fs::read(file).expect("reads"), "logits").0
}

#[test]
fn of_the_models_own_modules_they_are_refused_or_passed_over() {
    let dir = folder(BIAS);
    let whole = |model: &str, output: &str| -> Vec<String> {
        [forward(model, output), vec!["--opt-level", "0"]].concat().into_iter().map(str::to_owned).collect()
    };
    let owned = |command: Vec<&str>| command.into_iter().map(str::to_owned).collect::<Vec<String>>();
    for command in [
        owned(compile()),
        owned(estimate()),
        owned(forward("model", "out.safetensors")),
        whole("model", "whole.safetensors"),
    ] {
        weft(dir.path(), &command).fails(2, &["model.safetensors: tensor ", BIAS, "--ignore-tensor"]);
        let option = OPTION.map(str::to_owned);
        let run = weft(dir.path(), command.iter().chain(&option));
        run.ok();
        let warning = format!("warning: weights: the model does not use 1 tensor: {BIAS}");
        assert!(run.stderr.contains(&warning), "{command:?}: {}", run.stderr);
    }
    let plain = fixture("tiny/llama");
    weft(dir.path(), forward(plain.to_str().expect("UTF-8"), "plain.safetensors")).ok();
    let expected = logits(&dir.path().join("plain.safetensors"));
    assert_eq!(logits(&dir.path().join("out.safetensors")), expected);
    let read = ["--ignore-tensor", "model.norm.weight"];
    weft(dir.path(), forward("model", "x.safetensors").iter().chain(&read))
        .fails(2, &["model.norm.weight: --ignore-tensor", "leave the option out"]);
}

#[test]
fn a_bundle_remembers() {
    let dir = folder(BIAS);
    weft(dir.path(), compile().iter().chain(&OPTION)).ok();
    weft(dir.path(), forward("b", "out.safetensors")).ok();
    weft(dir.path(), forward("b", "again.safetensors").iter().chain(&OPTION)).ok();
    assert_eq!(logits(&dir.path().join("out.safetensors")), logits(&dir.path().join("again.safetensors")));
    let other = forward("b", "x.safetensors").into_iter().chain(["--ignore-tensor", "warp"]);
    weft(dir.path(), other).fails(2, &["b: compiled without --ignore-tensor warp", "compile again"]);
    let other = forward("b", "x.safetensors").into_iter().chain(["--max-seq", "64"]);
    weft(dir.path(), other)
        .fails(2, &["--target sm_90 --ignore-tensor model.layers.0.self_attn.q_ --max-seq 64"]);
}

#[test]
fn of_other_parts_they_are_a_warning_of_every_command() {
    let dir = folder("vision_tower.norm.weight");
    for command in [compile(), estimate(), forward("model", "out.safetensors")] {
        let run = weft(dir.path(), &command);
        run.ok();
        let warning = "warning: weights: the model does not use 1 tensor: vision_tower.norm.weight\n";
        assert_eq!(run.stderr.matches(warning).count(), 1, "{command:?}: {}", run.stderr);
    }
}
