//! Passes do not grow with depth: the repeated block is saturated once. Alone in its binary, because it measures
//! time.

use std::time::{Duration, Instant};
use weft_frontend::checkpoint::Checkpoint;
use weft_ir::dtype::DType;
use weft_ir::graph::Graph;
use weft_passes::Selection;
use weft_testsuite::fixture::compile_with;
use weft_testsuite::synthetic::{LlamaShape, SMOLLM2};

/// The graph of a model with some layers.
fn graph(layers: usize) -> Graph {
    let folder = tempfile::tempdir().expect("folder");
    LlamaShape { layers, ..SMOLLM2 }.write(folder.path()).expect("checkpoint");
    let checkpoint = Checkpoint::open(folder.path()).unwrap_or_else(|e| panic!("{e}"));
    weft_frontend::models::build(&checkpoint, DType::BF16).unwrap_or_else(|e| panic!("{e}"))
}

/// Times of all passes, and of equality saturation.
fn passes(graph: &Graph) -> [Duration; 2] {
    let start = Instant::now();
    let made = compile_with(graph, "sm_90", DType::BF16, 2, (64, 8), Selection::default());
    let all = start.elapsed();
    let eqsat = made.context.times.iter().find(|t| t.name == "eqsat").expect("it ran");
    [all, eqsat.time]
}

/// A 126-layer model takes at most twice the time of a 32-layer one, whose saturation takes at most half a second on two
/// cores: a second on one. By the best of fifteen runs of each, in turns: other work on the machine only adds to a time.
#[test]
fn passes_do_not_grow_with_depth() {
    let graphs = [graph(126), graph(32)];
    let mut best = [[Duration::MAX; 2]; 2];
    for _ in 0..15 {
        for (best, graph) in best.iter_mut().zip(&graphs) {
            let now = passes(graph);
            *best = [0, 1].map(|i| now[i].min(best[i]));
        }
    }
    let [[deep, _], [shallow, eqsat]] = best;
    let all = format!("{deep:?} for 126 layers, {shallow:?} for 32, {eqsat:?} of it saturation");
    println!("{all}");
    assert!(deep <= 2 * shallow && eqsat <= Duration::from_millis(500), "{all}");
}
