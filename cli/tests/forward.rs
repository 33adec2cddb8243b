//! `weft forward` on the CPU: golden logits, teacher forcing, bundles, and what is refused.

mod common;

use common::{command, finish, fixture, longs, read_floats, read_longs, relative_rmse, write};
use safetensors::Dtype;
use std::fs;
use std::path::Path;

/// Differences between the golden's two best logits under which either token is right.
const MARGIN: f32 = 0.01;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn forward(dir: &Path, model: &Path, input: &Path, more: &[&str]) -> common::Run {
    let mut command = command(dir);
    command.arg("forward").arg(model).arg("--input").arg(input);
    command.args(["--output", "out.safetensors", "--device", "cpu"]).args(more);
    finish(&mut command)
}

/// The two largest of a row, and where the largest is.
fn best(row: &[f32]) -> (usize, f32) {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
    (order[0], row[order[0]] - row[order[1]])
}

/// Compares an output with a golden file; `forced`: the continuation was computed on the golden's tokens.
fn check(out: &Path, golden: &[u8], forced: bool) {
    let out = fs::read(out).expect("reads");
    let ((logits, shape), (expected, golden_shape)) =
        (read_floats(&out, "logits"), read_floats(golden, "logits"));
    assert_eq!(shape, golden_shape);
    let error = relative_rmse(&logits, &expected);
    assert!(error <= 1e-4, "logits: relative rmse {error:e}");
    let (ids, shape) = read_longs(&out, "greedy_ids");
    let (golden_ids, golden_shape) = read_longs(golden, "greedy_ids");
    assert_eq!(shape, golden_shape);
    let (logits, expected) = (read_floats(&out, "greedy_logits").0, read_floats(golden, "greedy_logits").0);
    let (steps, vocab) = (shape[1], expected.len() / golden_ids.len());
    for row in 0..shape[0] {
        for step in 0..steps {
            let i = row * steps + step;
            let (got, wanted) = (&logits[i * vocab..][..vocab], &expected[i * vocab..][..vocab]);
            let error = relative_rmse(got, wanted);
            assert!(error <= 1e-4, "row {row}, step {step}: relative rmse {error:e}");
            let (token, margin) = best(wanted);
            assert_eq!(token as i64, golden_ids[i], "the golden is greedy");
            if margin > MARGIN {
                assert_eq!(ids[i], golden_ids[i], "row {row}, step {step}: margin {margin}");
            } else if ids[i] != golden_ids[i] && !forced {
                break; // Either token is right, and what follows differs.
            }
        }
    }
}

fn golden(name: &str) -> (std::path::PathBuf, Vec<u8>) {
    let path = fixture("tiny").join(name).join("golden.safetensors");
    let bytes = fs::read(&path).expect("reads");
    (path, bytes)
}

#[test]
fn logits_are_the_golden_ones_at_every_level() {
    let dir = folder();
    for name in ["llama", "llama-rope3-tied"] {
        let (path, golden) = golden(name);
        for level in ["0", "1", "2"] {
            let model = fixture("tiny").join(name);
            let run = forward(dir.path(), &model, &path, &["--opt-level", level, "--max-new-tokens", "24"]);
            run.ok();
            assert!(run.stderr.contains("CPU reference (f32"), "{}", run.stderr);
            check(&dir.path().join("out.safetensors"), &golden, false);
        }
    }
}

#[test]
fn teacher_forcing_uses_the_given_tokens() {
    let dir = folder();
    let (_, golden) = golden("llama");
    let input = dir.path().join("in.safetensors");
    let (ids, shape) = read_longs(&golden, "input_ids");
    let (continued, steps) = read_longs(&golden, "greedy_ids");
    let tensors = [
        ("input_ids", Dtype::I64, shape.as_slice(), longs(&ids)),
        ("continue_ids", Dtype::I64, steps.as_slice(), longs(&continued)),
    ];
    write(&input, &tensors);
    forward(dir.path(), &fixture("tiny/llama"), &input, &[]).ok();
    check(&dir.path().join("out.safetensors"), &golden, true);

    // Other tokens, other logits, from the second step on.
    let others = longs(&vec![7; continued.len()]);
    let tensors = [tensors[0].clone(), ("continue_ids", Dtype::I64, steps.as_slice(), others)];
    write(&input, &tensors);
    let before = fs::read(dir.path().join("out.safetensors")).expect("reads");
    forward(dir.path(), &fixture("tiny/llama"), &input, &[]).ok();
    let after = fs::read(dir.path().join("out.safetensors")).expect("reads");
    let (before, after) = (read_floats(&before, "greedy_logits").0, read_floats(&after, "greedy_logits").0);
    assert_eq!(before[..256], after[..256]);
    assert!(relative_rmse(&after[256..512], &before[256..512]) > 0.01);
}

#[test]
fn a_bundle_gives_the_same_as_its_checkpoint() {
    let dir = folder();
    let (path, golden) = golden("llama");
    for level in ["0", "2"] {
        let mut compile = command(dir.path());
        compile.arg("compile").arg(fixture("tiny/llama"));
        compile.args(["--target", "sm_90", "--no-check", "-o", "b", "--opt-level", level]);
        finish(&mut compile).ok();
        forward(dir.path(), &dir.path().join("b"), &path, &["--max-new-tokens", "24"]).ok();
        check(&dir.path().join("out.safetensors"), &golden, false);
    }
    let run = forward(dir.path(), &dir.path().join("b"), &path, &["--opt-level", "1"]);
    run.fails(2, &["compiled with --opt-level 2, not 1", "compile again"]);
}

#[test]
fn rows_beyond_the_batch_and_long_rows_work() {
    // 11 rows do not fit in one batch of 8, nor 100 tokens in one scoring step of a small bucket.
    let dir = folder();
    let input = dir.path().join("in.safetensors");
    let ids: Vec<i64> = (0..11 * 100).map(|i| (i * 37 + i / 7) % 256).collect();
    write(&input, &[("input_ids", Dtype::I64, &[11, 100], longs(&ids))]);
    let out = dir.path().join("out.safetensors");
    let more = ["--max-new-tokens", "3"];
    forward(dir.path(), &fixture("tiny/llama"), &input, &more).ok();
    let all = fs::read(&out).expect("reads");
    write(&input, &[("input_ids", Dtype::I64, &[1, 100], longs(&ids[900..1000]))]);
    forward(dir.path(), &fixture("tiny/llama"), &input, &more).ok();
    let one = fs::read(&out).expect("reads");
    for (name, per_row) in [("logits", 100 * 256), ("greedy_logits", 3 * 256)] {
        let (all, one) = (read_floats(&all, name).0, read_floats(&one, name).0);
        let error = relative_rmse(&all[9 * per_row..10 * per_row], &one);
        assert!(error <= 1e-5, "{name}: {error:e}");
    }
    assert_eq!(read_longs(&all, "greedy_ids").0[27..30], read_longs(&one, "greedy_ids").0);
}

#[test]
fn bad_inputs_are_named() {
    let dir = folder();
    let input = dir.path().join("in.safetensors");
    let model = fixture("tiny/llama");
    type Tensor<'a> = (&'a str, Dtype, &'a [usize], Vec<u8>);
    let refused = |tensors: &[Tensor<'_>], more: &[&str], says: &[&str]| {
        write(&input, tensors);
        forward(dir.path(), &model, &input, more).fails(2, &[&["in.safetensors"], says].concat());
        assert!(!dir.path().join("out.safetensors").exists());
    };
    let one = |v: i64| -> Tensor<'_> { ("input_ids", Dtype::I64, &[1, 2], longs(&[1, v])) };
    refused(&[("ids", Dtype::I64, &[1, 2], longs(&[1, 2]))], &[], &["no tensor input_ids", "it holds: ids"]);
    refused(&[("input_ids", Dtype::F32, &[1, 4], longs(&[1, 2]))], &[], &["input_ids", "F32", "give I64"]);
    refused(&[("input_ids", Dtype::I64, &[2], longs(&[1, 2]))], &[], &["input_ids", "[2]", "two dimensions"]);
    refused(&[("input_ids", Dtype::I64, &[0, 4], longs(&[]))], &[], &["input_ids", "at least one"]);
    refused(&[one(256)], &[], &["row 0, token 1: id 256", "0..256"]);
    refused(&[one(-1)], &[], &["id -1"]);
    refused(&[one(1)], &["--max-seq", "1"], &["2 tokens do not fit in --max-seq 1", "raise --max-seq to 2"]);
    let steps = ["--max-seq", "3", "--max-new-tokens", "3"];
    refused(&[one(1)], &steps, &["2 tokens continued by 3", "raise --max-seq to 4"]);
    let mask: Tensor<'_> = ("attention_mask", Dtype::I64, &[1, 2], longs(&[1, 0]));
    refused(&[one(1), mask], &[], &["attention_mask", "without padding"]);
    let other: Tensor<'_> = ("continue_ids", Dtype::I64, &[2, 1], longs(&[1, 2]));
    refused(&[one(1), other], &[], &["continue_ids", "2 rows", "input_ids has 1"]);
    fs::write(&input, "words").expect("writes");
    forward(dir.path(), &model, &input, &[]).fails(2, &["in.safetensors", "not a safetensors file"]);
    let nowhere = dir.path().join("nowhere");
    forward(dir.path(), &model, &nowhere, &[]).fails(2, &["nowhere", "cannot read"]);
}

#[test]
fn damaged_bundles_are_named() {
    let dir = folder();
    let model = dir.path().join("model");
    fs::create_dir(&model).expect("makes");
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixture("tiny/llama").join(file), model.join(file)).expect("copies");
    }
    let (path, _) = golden("llama");
    let bundle = dir.path().join("b");
    let compile = || {
        let args = ["compile", "model", "--target", "sm_90", "--no-check", "-o", "b"];
        common::weft(dir.path(), args).ok();
    };
    let refused = |says: &[&str]| forward(dir.path(), &bundle, &path, &[]).fails(2, says);
    let edit = |file: &str, from: &str, to: &str| {
        let text = fs::read_to_string(bundle.join(file)).expect("reads");
        assert!(text.contains(from), "{text}");
        fs::write(bundle.join(file), text.replacen(from, to, 1)).expect("writes");
    };
    compile();
    let version = weft_ir::bundle::VERSION;
    edit("manifest.json", &format!("\"version\": {version}"), "\"version\": 99");
    let reads = format!("version: 99, this weft reads {version}");
    refused(&["manifest.json", &reads, "compile the model again"]);
    compile();
    edit("manifest.json", "\"file\": \"kernels/", "\"file\": \"../kernels/");
    refused(&["manifest.json", "\"../kernels/", "no file of the bundle", "compile the model again"]);
    for (file, bytes) in [("manifest.json", 1 << 40), ("plan.ron", 1 << 30)] {
        compile();
        fs::File::create(bundle.join(file)).and_then(|f| f.set_len(bytes)).expect("a long file");
        refused(&[file, "size", "at most"]);
    }
    compile();
    fs::write(bundle.join("plan.ron"), "[".repeat(1 << 20)).expect("writes");
    refused(&["plan.ron", "compile again: weft compile"]);
    compile();
    fs::write(bundle.join("manifest.json"), "[".repeat(1 << 20)).expect("writes");
    refused(&["manifest.json", "not JSON", "compile the model again"]);
    compile();
    edit("plan.ron", "max_seq", "min_seq");
    refused(&["plan.ron", "compile again: weft compile"]);
    compile();
    let kernels = fs::read_dir(bundle.join("kernels")).expect("a folder");
    fs::remove_file(kernels.last().expect("one").expect("an entry").path()).expect("removes");
    refused(&[".cu", "cannot read", "compile again"]);
    compile();
    let weights = model.join("model.safetensors");
    let mut bytes = fs::read(&weights).expect("reads");
    bytes.push(0);
    fs::write(&weights, bytes).expect("writes");
    refused(&["model.safetensors has", "when the bundle was compiled", "compile again"]);
    fs::remove_file(&weights).expect("removes");
    refused(&["cannot read the weights", "put the checkpoint back"]);
}
