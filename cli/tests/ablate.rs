//! `weft compile --ablate`: estimates anywhere, decode steps measured on a GPU (said loudly where there is none).

mod common;

use common::{fixture, weft};
use serde_json::Value;
use std::io::Write;
use weft_runtime::sys::driver::Driver;

fn ablation(more: &[&str]) -> Value {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let llama = fixture("tiny/llama").to_str().expect("UTF-8").to_owned();
    let args = ["compile", &llama, "-o", "b", "--max-seq", "64", "--no-check", "--ablate", "--json"];
    let run = weft(dir.path(), args.iter().chain(more));
    let summary: Value = serde_json::from_str(run.ok()).expect("JSON");
    summary["ablation"].clone()
}

/// The decode step of each row: with all rules, then without each.
fn decode(ablation: &Value) -> Vec<Value> {
    let steps = |list: &Value| -> Value {
        let all = list.as_array().expect("steps");
        all.iter().find(|s| s["entry"] == "decode_1").expect("a decode step").clone()
    };
    let without = ablation["without"].as_array().expect("rules");
    std::iter::once(steps(&ablation["with_all"])).chain(without.iter().map(|w| steps(&w["steps"]))).collect()
}

#[test]
fn without_the_plans_gpu_nothing_is_measured() {
    // The tests run on no GPU of this target.
    let found = ablation(&["--target", "sm_86"]);
    assert_eq!(found["without"].as_array().map(Vec::len), Some(weft_passes::names().len()));
    for step in decode(&found) {
        assert!(step["measured_s"].is_null() && step["estimated_s"].as_f64() > Some(0.0), "{step}");
    }
}

#[test]
fn on_a_gpu_decode_steps_are_measured() {
    if Driver::init().and_then(|d| d.device(0)).is_err() {
        // The harness hides what passing tests print, so this goes to standard error itself.
        let _ = writeln!(std::io::stderr(), "ablate: SKIPPED: no GPU");
        return;
    }
    let found = ablation(&[]);
    let steps = decode(&found);
    assert!(steps.len() > 10);
    for step in &steps {
        let seconds = step["measured_s"].as_f64().unwrap_or_else(|| panic!("not measured: {step}"));
        assert!(seconds > 0.0 && seconds < 0.1, "{step}");
    }
    // Kernels that a rule saves are time.
    let without = found["without"].as_array().expect("rules");
    let merged = without.iter().find(|w| w["rule"] == "merge-linears").expect("merge-linears");
    let step = decode(&serde_json::json!({ "with_all": merged["steps"], "without": [] })).remove(0);
    assert!(step["dispatches_more"].as_i64() > Some(0) && step["measured_s_more"].is_number(), "{step}");
}
