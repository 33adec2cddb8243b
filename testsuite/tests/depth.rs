//! Passes do not grow with depth: the repeated block is saturated once. Alone in its binary, because it measures
//! time.

use std::time::{Duration, Instant};
use weft_frontend::checkpoint::Checkpoint;
use weft_ir::dtype::DType;
use weft_testsuite::fixture::compile;
use weft_testsuite::synthetic::{LlamaShape, SMOLLM2};

/// Time of all passes, the best of three runs.
fn passes(layers: usize) -> Duration {
    let folder = tempfile::tempdir().expect("folder");
    LlamaShape { layers, ..SMOLLM2 }.write(folder.path()).expect("checkpoint");
    let checkpoint = Checkpoint::open(folder.path()).unwrap_or_else(|e| panic!("{e}"));
    let graph = weft_frontend::models::build(&checkpoint, DType::BF16).unwrap_or_else(|e| panic!("{e}"));
    let run = |_| {
        let start = Instant::now();
        compile(&graph, "sm_90", DType::BF16, 2, (64, 2));
        start.elapsed()
    };
    (0..3).map(run).min().expect("three runs")
}

/// A 126-layer model takes at most twice the time of a 32-layer one.
#[test]
fn passes_do_not_grow_with_depth() {
    let (deep, shallow) = (passes(126), passes(32));
    assert!(deep <= 2 * shallow, "{deep:?} for 126 layers, {shallow:?} for 32");
}
