//! Random graphs compute the same however they are compiled (see `weft_testsuite::random`).
//!
//! `WEFT_RANDOM_GRAPHS=10000` runs more of them, `WEFT_RANDOM_SEED=7` begins with another seed.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use weft_ir::dtype::DType;
use weft_ir::graph::{Graph, Input, Literal, Op, ValueType};
use weft_ir::scalar::{Binary, Compare, Reduce, Unary};
use weft_testsuite::fixture::root;
use weft_testsuite::random::{Check, check_text, graph, report, run_many, shrink};

/// Failures that are shrunk and shown in full.
const SHOWN: usize = 5;

fn number(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, not a number")),
        Err(_) => otherwise,
    }
}

#[test]
fn all_levels_compute_what_the_graph_does() {
    let (first, count) = (number("WEFT_RANDOM_SEED", 0), number("WEFT_RANDOM_GRAPHS", 300));
    let check = Check::new(0);
    let ran = run_many(&check, first, count);
    let (plain, average, by_noise) = (ran.plain, ran.on_average, ran.by_noise);
    // Past the capture of the test harness.
    let _ = writeln!(
        std::io::stderr(),
        "random graphs: {plain} of {count} held to 2x the graph's own distance, {average} to that on average, {by_noise} to \
         measured amplification"
    );
    let failed = ran.failed;
    if failed.is_empty() {
        return;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("random");
    let shown: Vec<String> = failed.iter().take(SHOWN).map(|f| report(&check, f, &folder)).collect();
    let rest: Vec<String> =
        failed.iter().skip(SHOWN).map(|f| format!("seed {}: {}", f.seed, f.failure)).collect();
    panic!("{} of {count} graphs failed\n{}\n{}", failed.len(), shown.join("\n"), rest.join("\n"));
}

/// Graphs of a folder, each with what is wrong with it.
fn checked(folder: &str) -> Vec<(String, Result<(), String>)> {
    let folder = root().join(folder);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|p| p.extension().is_some_and(|e| e == "graph"))
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{}: no graphs", folder.display());
    let check = Check::new(0);
    let one = |path: std::path::PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        (path.display().to_string(), check_text(&check, &text))
    };
    paths.into_iter().map(one).collect()
}

#[test]
fn regressions() {
    let wrong: Vec<String> = checked("regressions")
        .into_iter()
        .filter_map(|(path, r)| Some(format!("{path}: {}", r.err()?)))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Keyword of an op, with what matters of its parameters.
fn kind(op: &Op) -> String {
    match op {
        Op::Input(i) => format!("input {}", i.name()),
        Op::MatMul { transpose_b, .. } => format!("matmul {transpose_b}"),
        other => other.name().to_string(),
    }
}

fn all<T: Copy>(kinds: &[T], op: fn(T) -> Op) -> Vec<Op> {
    kinds.iter().map(|kind| op(*kind)).collect()
}

/// Every op, one behind the other from `Op::Input`: each with all kinds of it, and the op behind it. A new op takes its
/// place, because the match is exhaustive.
fn row(op: &Op) -> (Vec<Op>, Option<Op>) {
    let one = |next: Op| (vec![op.clone()], Some(next));
    let ty = || ValueType::plain(DType::F32, Vec::new());
    let product = |transpose_b| Op::MatMul { transpose_b, out: DType::F32 };
    match op {
        Op::Input(_) => (all(&Input::ALL, Op::Input), Some(Op::Weight { tensor: String::new(), ty: ty() })),
        Op::Weight { .. } => one(Op::Constant { literal: Literal::F32(Vec::new()), shape: Vec::new() }),
        Op::Constant { .. } => one(Op::Iota { axis: 0, shape: Vec::new() }),
        Op::Iota { .. } => one(Op::State { name: String::new(), ty: ty() }),
        Op::State { .. } => one(Op::Decode),
        Op::Decode => one(Op::Unary(Unary::Neg)),
        Op::Unary(_) => (all(Unary::ALL, Op::Unary), Some(Op::Binary(Binary::Add))),
        Op::Binary(_) => (all(Binary::ALL, Op::Binary), Some(Op::Compare(Compare::Eq))),
        Op::Compare(_) => (all(Compare::ALL, Op::Compare), Some(Op::Select)),
        Op::Select => one(Op::Cast(DType::F32)),
        Op::Cast(_) => one(Op::Reshape(Vec::new())),
        Op::Reshape(_) => one(Op::Transpose(Vec::new())),
        Op::Transpose(_) => one(Op::Broadcast(Vec::new())),
        Op::Broadcast(_) => one(Op::Slice { axis: 0, start: 0, len: 1 }),
        Op::Slice { .. } => one(Op::Concat { axis: 0 }),
        Op::Concat { .. } => one(Op::Reduce(Reduce::Sum)),
        Op::Reduce(_) => (all(Reduce::ALL, Op::Reduce), Some(Op::Softmax)),
        Op::Softmax => one(product(false)),
        Op::MatMul { .. } => (vec![product(false), product(true)], Some(Op::TopK { k: 1 })),
        Op::TopK { .. } => one(Op::RoutedMatMul { out: DType::F32 }),
        Op::RoutedMatMul { .. } => one(Op::Gather),
        Op::Gather => one(Op::Scatter),
        Op::Scatter => one(Op::Penalize),
        Op::Penalize => one(Op::Sample),
        Op::Sample => (vec![op.clone()], None),
    }
}

#[test]
fn the_generator_uses_every_op() {
    let graphs: Vec<Graph> = (0..300).map(graph).collect();
    let used: BTreeSet<String> = graphs.iter().flat_map(|g| g.nodes.iter().map(|n| kind(&n.op))).collect();
    let mut wanted: Vec<String> = Vec::new();
    let mut next = Some(Op::Input(Input::TokenIds));
    while let Some(op) = next {
        let (kinds, behind) = row(&op);
        wanted.extend(kinds.iter().map(kind));
        next = behind;
    }
    let distinct: BTreeSet<&String> = wanted.iter().collect();
    assert_eq!(distinct.len(), wanted.len(), "an op is in the chain twice");
    let missing: Vec<&String> = wanted.iter().filter(|w| !used.contains(*w)).collect();
    assert!(missing.is_empty(), "never made: {missing:?}");
    let nodes: usize = graphs.iter().map(|g| g.nodes.len()).sum();
    println!("{} nodes a graph", nodes / graphs.len());
}

#[test]
fn a_seed_names_a_graph() {
    for seed in 0..20 {
        assert_eq!(graph(seed), graph(seed));
    }
    assert_ne!(graph(1), graph(2));
}

/// "Fails" when it holds a tanh of something that is gathered: two nodes and their sources are left.
#[test]
fn shrinking_leaves_what_fails() {
    let fails = |g: &Graph| {
        let gathered = |n: &weft_ir::graph::Node| matches!(n.op, Op::Gather);
        g.nodes.iter().any(|n| matches!(n.op, Op::Unary(Unary::Tanh))) && g.nodes.iter().any(gathered)
    };
    let big = (0..400).map(graph).filter(|g| fails(g)).max_by_key(|g| g.nodes.len()).expect("one of them");
    let small = shrink(&big, &fails);
    assert!(fails(&small));
    assert!(small.nodes.len() <= 6, "{} of {} nodes are left:\n{small}", small.nodes.len(), big.nodes.len());
}
