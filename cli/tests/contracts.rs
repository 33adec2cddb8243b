//! Fusion contracts of `weft compile`: the table, `--require`, `--disable`, `--numerics`.

mod common;

use common::{Run, command, finish, fixture};
use std::path::Path;

fn compile(dir: &Path, more: &[&str]) -> Run {
    let llama = fixture("tiny/llama/model.safetensors");
    let mut command = command(dir);
    command.arg("compile").arg(llama).args(["--target", "sm_90", "--no-check", "-o", "b"]).args(more);
    finish(&mut command)
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[test]
fn the_summary_counts_sites_and_says_why_others_did_not_match() {
    let dir = folder();
    let run = compile(dir.path(), &["--json"]);
    let all: serde_json::Value = serde_json::from_str(run.ok()).expect("JSON");
    let of = |name: &str| {
        let rows = all["fusions"].as_array().expect("fusions");
        rows.iter().find(|r| r["fusion"] == name).unwrap_or_else(|| panic!("{name}")).clone()
    };
    let attention = of("attention");
    assert_eq!(attention["steps"]["decode"]["matched"], 2);
    assert_eq!(attention["steps"]["prefill"]["candidates"], 2);
    assert_eq!(attention["numerics"], "reassociate");
    let prologue = of("norm-prologue");
    let misses = prologue["steps"]["prefill"]["misses"].as_array().expect("misses");
    assert_eq!(
        misses[0]["why"],
        "only decode and short steps in bf16 make a norm with the product: in longer ones each block of columns would make it again"
    );
    assert!(misses[0]["first"].as_str().expect("a place").starts_with("model.layers.0"));
    assert_eq!(
        (&prologue["steps"]["short"]["matched"], &prologue["steps"]["decode"]["matched"]),
        (&5.into(), &5.into())
    );
}

#[test]
fn what_is_required_and_holds_lets_the_bundle_be_written() {
    let dir = folder();
    let required = [
        "--require",
        "attention=all",
        "--require",
        "rope=4",
        "--require",
        "prefill:residual=all",
        "--require",
        "short:norm-prologue=all",
        "--require",
        "sibling-loops=all",
    ];
    compile(dir.path(), &required).ok();
    assert!(dir.path().join("b/plan.ron").exists());
}

#[test]
fn what_is_required_and_does_not_hold_fails_with_the_sites() {
    let dir = folder();
    let run = compile(dir.path(), &["--require", "prefill:norm-prologue=all", "--require", "rope=5"]);
    run.fails(
        1,
        &[
            "no bundle was written",
            "norm-prologue=all: 0 of 5 sites in prefill steps",
            "only decode and short steps in bf16 make a norm with the product: in longer ones each block of columns would make it again: model.layers.0",
            "rope=5: 4 of 4 sites in decode steps",
        ],
    );
    assert!(!dir.path().join("b").exists());
    let run = compile(dir.path(), &["--require", "layer-norm=all"]);
    run.fails(1, &["the model has no site of it"]);
    let run = compile(dir.path(), &["--opt-level", "1", "--require", "attention=all"]);
    run.fails(1, &["--opt-level 2 only"]);
}

#[test]
fn what_is_off_has_no_sites() {
    for (off, fusion) in [
        (["--disable", "attention"], "attention"),
        (["--disable", "rope"], "rope"),
        (["--disable", "sibling-loops"], "sibling-loops"),
        (["--numerics", "exact"], "norm-prologue"),
        (["--numerics", "exact"], "attention"),
        (["--numerics", "reassociate"], "norm-prologue"),
    ] {
        let dir = folder();
        let required = format!("{fusion}=1");
        let more: Vec<&str> = off.into_iter().chain(["--require", &required]).collect();
        let why = if off[0] == "--disable" { "it is disabled" } else { "leaves it out" };
        compile(dir.path(), &more).fails(1, &[&format!("{fusion}=1: 0 of"), why]);
    }
}

#[test]
fn unknown_names_are_usage_errors_that_list_the_known_ones() {
    let dir = folder();
    compile(dir.path(), &["--require", "atention=all"]).fails(2, &["known fusions", "attention"]);
    compile(dir.path(), &["--require", "attention=most"]).fails(2, &["neither 'all' nor a number"]);
    compile(dir.path(), &["--disable", "atention"]).fails(2, &["known rules", "attention", "merge-linears"]);
    compile(dir.path(), &["--numerics", "fast"]).fails(2, &["exact", "reassociate", "full"]);
}
