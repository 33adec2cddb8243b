//! `weft bench`: the estimate anywhere, the measurement on a GPU (said loudly where there is none).

mod common;

use common::{Run, fixture, weft};
use std::io::Write;
use std::path::Path;
use weft_runtime::sys::driver::Driver;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn bench(dir: &Path, model: &str, more: &[&str]) -> Run {
    weft(dir, ["bench", model].iter().chain(more))
}

fn tiny(name: &str) -> String {
    fixture("tiny").join(name).to_str().expect("UTF-8").to_owned()
}

fn has_gpu() -> bool {
    Driver::init().and_then(|d| d.device(0)).is_ok()
}

fn json(run: &Run) -> serde_json::Value {
    serde_json::from_str(run.ok()).expect("JSON")
}

#[test]
fn an_estimate_needs_no_gpu() {
    let dir = folder();
    let run = bench(
        dir.path(),
        &tiny("llama"),
        &["--estimate", "--context", "16", "--tokens", "8", "--target", "sm_90"],
    );
    let text = run.ok();
    for part in
        ["ESTIMATED by the cost model for H200", "entry decode_1", "of ceiling", "nothing was measured"]
    {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let args =
        ["--estimate", "--context", "16", "--tokens", "8", "--batch", "3", "--target", "sm_90", "--json"];
    let report = json(&bench(dir.path(), &tiny("llama"), &args));
    assert_eq!(report["estimated"], true);
    assert_eq!((report["entry"].as_str(), report["counted_context"].as_u64()), (Some("decode_4"), Some(20)));
    assert!(report["token"].is_null());
    let kernels = report["kernels"].as_array().expect("kernels");
    let number = |v: &serde_json::Value, key: &str| v[key].as_f64().unwrap_or_else(|| panic!("{key}: {v}"));
    let sum: f64 = kernels.iter().map(|k| number(k, "launches") * number(k, "bytes")).sum();
    assert_eq!(sum, number(&report, "bytes"));
    let launches: f64 = kernels.iter().map(|k| number(k, "launches")).sum();
    assert_eq!(launches, number(&report, "launches"));
    assert!(number(&report["step"], "of_chain") >= 1.0);
}

#[test]
fn a_bundle_keeps_its_target_and_limits() {
    let dir = folder();
    let llama = tiny("llama");
    let args = ["compile", &llama, "-o", "b", "--target", "sm_90", "--max-seq", "32", "--no-check"];
    weft(dir.path(), args).ok();
    bench(dir.path(), "b", &["--estimate", "--context", "16", "--tokens", "16"]).ok();
    let run = bench(dir.path(), "b", &["--estimate", "--context", "17", "--tokens", "16"]);
    run.fails(2, &["--context 17", "the plan has 32", "--max-seq 33"]);
    bench(dir.path(), "b", &["--estimate", "--target", "sm_80"]).fails(2, &["compiled for sm_90"]);
    bench(dir.path(), "b", &["--estimate", "--batch", "17"]).fails(2, &["from 1 to 16"]);
    bench(dir.path(), "b", &["--target", "sm_80"]).fails(2, &["--estimate"]);
}

#[test]
fn encoders_have_no_decode_steps() {
    let dir = folder();
    let run = bench(dir.path(), &tiny("bert"), &["--estimate", "--context", "16", "--tokens", "8"]);
    run.fails(2, &["an encoder", "no decode steps"]);
}

#[test]
fn without_a_gpu_the_error_names_the_remedy() {
    if has_gpu() {
        return;
    }
    let dir = folder();
    let run = bench(dir.path(), &tiny("llama"), &["--context", "16", "--tokens", "8"]);
    run.fails(1, &["no GPU to measure on", "driver", "weft bench --estimate"]);
    assert!(run.stdout.is_empty());
}

#[test]
fn on_a_gpu_it_measures_and_compares_tokens() {
    if !has_gpu() {
        // The harness hides what passing tests print, so this goes to standard error itself.
        let _ = writeln!(std::io::stderr(), "bench: SKIPPED: no GPU");
        return;
    }
    let dir = folder();
    for (model, batch) in [("llama", "1"), ("llama", "2"), ("mixtral", "1"), ("gpt-oss", "3")] {
        let args = ["--context", "16", "--tokens", "9", "--runs", "3", "--batch", batch];
        let text = bench(dir.path(), &tiny(model), &args);
        assert!(text.ok().contains("tokens of step-by-step execution"), "{}", text.stdout);
        let mut more = args.to_vec();
        more.push("--json");
        let report = json(&bench(dir.path(), &tiny(model), &more));
        assert_eq!(report["estimated"], false);
        assert_eq!(report["compared_tokens"].as_u64(), Some(9 * batch.parse::<u64>().expect("a number")));
        for part in ["token", "step", "chain"] {
            let seconds = report[part]["seconds"]["median"].as_f64().expect("a time");
            assert!(seconds > 0.0 && seconds < 1.0, "{model}, {part}: {seconds}");
        }
        for kernel in report["kernels"].as_array().expect("kernels") {
            assert!(kernel["seconds"]["median"].as_f64().expect("a time") > 0.0, "{kernel}");
        }
    }
}
