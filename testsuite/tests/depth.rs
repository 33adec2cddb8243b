//! Passes do not grow with depth: the repeated block is saturated once. Alone in its binary, because it measures
//! time.

use std::time::{Duration, Instant};
use weft_frontend::checkpoint::Checkpoint;
use weft_ir::dtype::DType;
use weft_ir::graph::Graph;
use weft_testsuite::fixture::compile;
use weft_testsuite::synthetic::{LlamaShape, SMOLLM2};

/// The graph of a model with some layers.
fn graph(layers: usize) -> Graph {
    let folder = tempfile::tempdir().expect("folder");
    LlamaShape { layers, ..SMOLLM2 }.write(folder.path()).expect("checkpoint");
    let checkpoint = Checkpoint::open(folder.path()).unwrap_or_else(|e| panic!("{e}"));
    weft_frontend::models::build(&checkpoint, DType::BF16).unwrap_or_else(|e| panic!("{e}"))
}

/// Time of all passes.
fn passes(graph: &Graph) -> Duration {
    let start = Instant::now();
    compile(graph, "sm_90", DType::BF16, 2, (64, 2));
    start.elapsed()
}

/// A 126-layer model takes at most twice the time of a 32-layer one, by the best run of each. Other work on the
/// machine only adds to a time, so rounds are repeated, both in turns, until the best ones say so: a true excess
/// never does.
#[test]
fn passes_do_not_grow_with_depth() {
    let graphs = [graph(126), graph(32)];
    let mut best = [Duration::MAX; 2];
    for round in 0..40 {
        for (best, graph) in best.iter_mut().zip(&graphs) {
            *best = passes(graph).min(*best);
        }
        let [deep, shallow] = best;
        if round >= 2 && deep <= 2 * shallow {
            println!("{deep:?} for 126 layers, {shallow:?} for 32");
            return;
        }
    }
    let [deep, shallow] = best;
    panic!("{deep:?} for 126 layers, {shallow:?} for 32");
}
