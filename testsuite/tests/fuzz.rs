//! Some of the fuzzing each time: every input that once failed, every seed, and some thousands of changed ones of each
//! target. `cargo run --release -p weft-testsuite --example fuzz` runs more, within bounds of memory and time.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use weft_ir::plan::ScheduleSource;
use weft_passes::schedule::candidates::candidates;
use weft_passes::schedule::database::{Database, Measured, Shape, key};
use weft_testsuite::fixture::{compile, root};
use weft_testsuite::fuzz::{self, TARGETS, Target};

/// Changed seeds of each target.
const INPUTS: u64 = 3000;
/// A template may run for long: fewer of them.
const TEMPLATES: u64 = 400;

fn run(target: &Target, input: &[u8], what: &str) {
    let result = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    assert!(
        result.is_ok(),
        "{}, {what}: {:?}",
        target.name,
        String::from_utf8_lossy(&input[..input.len().min(600)])
    );
}

fn some(name: &str) {
    let target = fuzz::find(name).expect("a target");
    let seeds = fuzz::seeds(target);
    for (i, seed) in seeds.iter().enumerate() {
        run(target, seed, &format!("seed {i}"));
    }
    let inputs = if name == "template" { TEMPLATES } else { INPUTS };
    for n in 0..inputs {
        run(target, &fuzz::input(target, &seeds, 1, n), &format!("input {n}"));
    }
}

#[test]
fn what_once_failed() {
    let files = fuzz::files(&fuzz::regressions());
    for file in &files {
        let name = file.file_name().and_then(|n| n.to_str()).expect("a name");
        let target = TARGETS.iter().find(|t| name.starts_with(&format!("{}-", t.name)));
        run(target.expect("TARGET-….bin"), &std::fs::read(file).expect("reads"), name);
    }
}

#[test]
fn safetensors() {
    some("safetensors");
}

#[test]
fn index() {
    some("index");
}

#[test]
fn config() {
    some("config");
}

#[test]
fn gguf() {
    some("gguf");
}

#[test]
fn tokenizer() {
    some("tokenizer");
}

#[test]
fn template() {
    some("template");
}

#[test]
fn graph() {
    some("graph");
}

#[test]
fn plan() {
    some("plan");
}

#[test]
fn encodings() {
    some("encodings");
}

#[test]
fn pooling() {
    some("pooling");
}

#[test]
fn schedules() {
    some("schedules");
}

#[test]
fn manifest() {
    some("manifest");
}

#[test]
fn explain() {
    some("explain");
}

/// The seeds of schedules are for works of the plan that they are looked up for, as measured and as neighbours.
#[test]
fn seeds_of_schedules_are_found() {
    let (plan, target) = (fuzz::files::small_plan(), fuzz::files::target());
    let seeds = fuzz::seeds(fuzz::find("schedules").expect("a target"));
    let mut sources = BTreeSet::new();
    for seed in seeds {
        let database = Database::parse(std::str::from_utf8(&seed).expect("text")).expect("a database");
        let works = plan.entries.iter().flat_map(|e| plan.works.iter().map(move |w| (w, &e.bind)));
        sources.extend(works.filter_map(|(w, bind)| Some(database.find(w, bind, target)?.1)));
    }
    assert!(sources.contains(&ScheduleSource::Measured) && sources.contains(&ScheduleSource::Neighbour));
}

/// Writes the seeds of schedules: `cargo test -p weft-testsuite --test fuzz -- --ignored write_schedule_seeds`.
#[test]
#[ignore = "writes files"]
fn write_schedule_seeds() {
    let folder = root().join("fuzz/corpus/schedules");
    std::fs::create_dir_all(&folder).expect("a folder");
    let (plan, target) = (fuzz::files::small_plan(), fuzz::files::target());
    // Of the works themselves, and of shapes of twice the length.
    for (name, larger) in [("measured", false), ("neighbours", true)] {
        let mut database = Database::default();
        for work in &plan.works {
            let bind = &plan.entries[0].bind;
            let Some(mut key) = key(work, bind, target, target.profile.name) else { continue };
            match &mut key.shape {
                Shape::Gemv { k, .. } if larger => *k *= 2,
                Shape::AttentionRow { keys, .. } if larger => *keys *= 2,
                Shape::Gemv { .. } | Shape::AttentionRow { .. } => {}
            }
            let all = candidates(work, bind, target);
            let Some(schedule) = all.last().cloned() else { continue };
            let (tried, of) = (all.len(), all.len());
            let measured =
                Measured { schedule, ns: 900, estimated_ns: 1000, tried, of, context: 1024, step: None };
            database.insert(key, measured);
        }
        assert!(database.len() > 2, "{} entries", database.len());
        std::fs::write(folder.join(format!("{name}.ron")), database.text().expect("RON")).expect("writes");
    }
}

/// Inputs are functions of their number, so a failure can be made again.
#[test]
fn inputs_have_names() {
    for target in TARGETS {
        let seeds = fuzz::seeds(target);
        let of = |n: u64| fuzz::input(target, &seeds, 3, n);
        assert!((0..50).all(|n| of(n) == of(n)));
        let different = (0..50).filter(|&n| of(n) != of(n + 1)).count();
        assert!(different > 40, "{}: {different}", target.name);
    }
}

/// Writes the seeds of plans: `cargo test -p weft-testsuite --test fuzz -- --ignored write_plan_seeds`.
#[test]
#[ignore = "writes files"]
fn write_plan_seeds() {
    let folder = root().join("fuzz/corpus/plan");
    std::fs::create_dir_all(&folder).expect("a folder");
    for (name, level) in [
        ("linear_of_one", 0),
        ("linear_of_one", 2),
        ("softmax_beside_product", 2),
        ("read_beside_epilogue", 1),
    ] {
        let text = std::fs::read_to_string(root().join(format!("regressions/{name}.graph"))).expect("reads");
        let graph = weft_ir::graph::parse(&text).expect("a graph");
        let plan = compile(&graph, "sm_90", weft_ir::dtype::DType::BF16, level, (16, 2));
        std::fs::write(folder.join(format!("{name}_{level}.ron")), plan.to_ron().expect("RON"))
            .expect("writes");
    }
    let decode = |graph: &weft_ir::graph::Graph, context, name: &str| {
        let plan = compile(graph, "sm_90", weft_ir::dtype::DType::BF16, 2, (context, 1));
        let entry =
            plan.entries.iter().position(|e| e.role == weft_ir::plan::Role::Decode).expect("an entry");
        let plan = plan.only(entry).expect("an entry");
        std::fs::write(folder.join(name), plan.to_ron().expect("RON")).expect("writes");
    };
    // Attention that makes its rows, and attention that projects its outputs.
    let rows = weft_testsuite::fixture::Fixture::open("qwen3").graph(weft_ir::dtype::DType::BF16);
    decode(&rows, 16, "normed_heads_2.ron");
    let sizes = serde_json::json!({
        "hidden_size": 72, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64,
        "intermediate_size": 56, "vocab_size": 97, "num_hidden_layers": 1,
    });
    decode(&weft_testsuite::kernel_cases::made_up("llama", &sizes).graph(), 160, "projected_2.ron");
}
