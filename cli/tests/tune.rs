//! `weft tune` where there is no GPU, the measurement where there is one, and `weft compile --schedules`.

mod common;

use common::{Run, fixture, weft};
use std::fs;
use std::io::Write;
use std::path::Path;
use weft_runtime::sys::driver::Driver;

/// Made up: a team of two warps for the down projection of the tiny llama, and a shape near its output projection's.
const FILE: &str = "// Made up.
[
  (target: \"sm_90\", device: \"H200\", dtype: BF16, shape: Gemv(columns: 128, k: 192, group: 1, computed: false), \
schedule: Gemv(rows: 1, warps: 4, lanes: 32, split: 2, columns: 1, depth: 1, blocks: 64, staged: true), ns: 900, \
estimated_ns: 1000, tried: 4, of: 9, context: 64),
  (target: \"sm_90\", device: \"H200\", dtype: BF16, shape: Gemv(columns: 128, k: 144, group: 1, computed: false), \
schedule: Gemv(rows: 1, warps: 4, lanes: 32, split: 1, columns: 1, depth: 1, blocks: 32, staged: true), ns: 900, \
estimated_ns: 1000, tried: 4, of: 9, context: 64),
]
";

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn llama() -> String {
    fixture("tiny/llama").to_str().expect("UTF-8").to_owned()
}

fn compile(dir: &Path, more: &[&str]) -> Run {
    let llama = llama();
    let args = ["compile", &llama, "-o", "b", "--target", "sm_90", "--dtype", "bf16", "--no-check"];
    weft(dir, args.iter().chain(more))
}

#[test]
fn compile_takes_measured_schedules_and_says_which() {
    let dir = folder();
    fs::write(dir.path().join("s.ron"), FILE).expect("writes");
    let run = compile(dir.path(), &["--schedules", "s.ron", "--json"]);
    let summary: serde_json::Value = serde_json::from_str(run.ok()).expect("JSON");
    let count = |source: &str| summary["schedules"][source].as_u64().expect("a number");
    assert!(
        count("measured") >= 1 && count("neighbour") >= 1 && count("estimated") >= 1,
        "{}",
        summary["schedules"]
    );
    let kernels = count("measured") + count("neighbour") + count("estimated");
    assert_eq!(summary["kernels"].as_u64(), Some(kernels));
    let run = compile(dir.path(), &["--schedules", "s.ron"]);
    assert!(run.ok().contains("measured for a neighbouring shape"), "{}", run.stdout);
    let table = weft(dir.path(), ["inspect", "b", "--json"]);
    let table: serde_json::Value = serde_json::from_str(table.ok()).expect("JSON");
    let kernels = table["kernels"].as_array().expect("kernels");
    let measured = kernels.iter().find(|k| k["schedule_source"] == "measured").expect("a measured kernel");
    assert!(measured["schedule"].as_str().expect("text").contains("split: 2"), "{measured}");
    let name = measured["name"].as_str().expect("a name");
    let text = weft(dir.path(), ["inspect", "b"]);
    assert!(text.ok().contains(&format!("measured: {name}")), "{}", text.stdout);
    let explained = weft(dir.path(), ["inspect", "b", "--explain", name]);
    assert!(explained.ok().contains("}, measured"), "{}", explained.stdout);
    // A bundle's schedules are chosen.
    let run = weft(dir.path(), ["bench", "b", "--estimate", "--schedules", "s.ron"]);
    run.fails(2, &["were chosen when it was compiled", "--schedules s.ron"]);
}

#[test]
fn files_that_are_no_database_are_named() {
    let dir = folder();
    compile(dir.path(), &["--schedules", "nowhere.ron"]).fails(2, &["nowhere.ron", "cannot open"]);
    fs::write(dir.path().join("s.ron"), FILE.replace("warps", "wraps")).expect("writes");
    compile(dir.path(), &["--schedules", "s.ron"]).fails(2, &["s.ron", "warps", "weft tune"]);
    let llama = llama();
    let run = weft(dir.path(), ["tune", &llama, "--schedules", "s.ron"]);
    run.fails(2, &["s.ron", "warps"]);
    for (figure, says) in [("lanes: 0", "lanes: 0"), ("lanes: 4294967295", "from 1 to 32")] {
        let text = FILE.replacen("lanes: 32", figure, 1);
        assert_ne!(text, FILE);
        fs::write(dir.path().join("s.ron"), text).expect("writes");
        compile(dir.path(), &["--schedules", "s.ron"]).fails(2, &["s.ron", says, "weft tune"]);
    }
    fs::write(dir.path().join("s.ron"), "[".repeat(1 << 20)).expect("writes");
    compile(dir.path(), &["--schedules", "s.ron"]).fails(2, &["s.ron", "weft tune"]);
    fs::File::create(dir.path().join("s.ron")).and_then(|f| f.set_len(1 << 40)).expect("a long file");
    compile(dir.path(), &["--schedules", "s.ron"]).fails(2, &["s.ron", "size", "at most"]);
}

#[test]
fn without_a_gpu_the_error_names_the_remedy() {
    if Driver::init().and_then(|d| d.device(0)).is_ok() {
        return;
    }
    let dir = folder();
    let llama = llama();
    let run = weft(dir.path(), ["tune", &llama, "--context", "16"]);
    run.fails(1, &["no GPU to measure on", "weft compile --schedules"]);
    assert!(!dir.path().join("schedules.ron").exists());
}

#[test]
fn on_a_gpu_it_fills_the_file_and_goes_on() {
    if Driver::init().and_then(|d| d.device(0)).is_err() {
        // The harness hides what passing tests print, so this goes to standard error itself.
        let _ = writeln!(std::io::stderr(), "tune: SKIPPED: no GPU");
        return;
    }
    let dir = folder();
    let llama = llama();
    let args = ["tune", &llama, "--context", "16,8", "--budget", "20", "--dtype", "bf16", "--json"];
    let result = |run: Run| -> serde_json::Value { serde_json::from_str(run.ok()).expect("JSON") };
    let outcomes = |result: &serde_json::Value| -> Vec<String> {
        let shapes = result["shapes"].as_array().expect("shapes");
        shapes.iter().map(|s| s["outcome"].as_str().expect("text").to_owned()).collect()
    };
    let first = result(weft(dir.path(), args));
    assert!(outcomes(&first).iter().any(|o| o == "tuned"), "{first}");
    let second = result(weft(dir.path(), args));
    assert!(
        outcomes(&second).iter().all(|o| o != "failed") && outcomes(&second).iter().any(|o| o == "known")
    );
    // One kernel again, beside what the file has of the others.
    let file = || std::fs::read_to_string(dir.path().join("schedules.ron")).expect("the file");
    let before = file();
    let named = args.into_iter().chain(["--kernel", "down_proj"]);
    let third = outcomes(&result(weft(dir.path(), named)));
    assert_eq!(third.iter().filter(|o| *o == "tuned").count(), 1, "{third:?}");
    assert!(third.iter().all(|o| o == "tuned" || o == "known"), "{third:?}");
    let changed = before.lines().zip(file().lines()).filter(|(a, b)| a != b).count();
    assert!(changed <= 1 && before.lines().count() == file().lines().count(), "{before}{}", file());
    weft(dir.path(), ["bench", &llama, "--context", "16", "--tokens", "8", "--schedules", "schedules.ron"])
        .ok();
}
