//! On the emulator: a sequence's logits are the same bits whatever else is in its steps. `testsuite/tests/gpu.rs` does
//! the same on the GPU, 100 times.

use rayon::prelude::*;
use weft_ir::dtype::DType;
use weft_runtime::exec::Executor;
use weft_testsuite::companions::{Companions, MODELS};
use weft_testsuite::emulate::Emulated;
use weft_testsuite::fixture::{Fixture, compile};
use weft_testsuite::generation::EmulatedModel;

#[test]
fn companions_do_not_show() {
    MODELS.par_iter().filter(|(_, level)| *level == 2).for_each(|(name, level)| {
        let fixture = Fixture::open(name);
        let plan = compile(&fixture.graph(DType::BF16), "sm_90", DType::BF16, *level, (96, 4));
        let companions = Companions::of(&fixture);
        let mut model = EmulatedModel { run: Emulated::new(&plan, &fixture.checkpoint) };
        let first = companions.round(&mut model, 0);
        assert_eq!(first.len(), 2 * model.limits().vocab.expect("a decoder"), "{name}");
        assert!(first.iter().any(|bits| f32::from_bits(*bits) != 0.0), "{name}: all logits are 0");
        for round in 1..companions.companies.len() {
            assert!(first == companions.round(&mut model, round), "{name}, round {round}: other bits");
        }
    });
}
