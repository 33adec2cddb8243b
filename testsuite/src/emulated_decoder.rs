//! Every kernel of a decoder's plan on the emulator.

use crate::emulate::{Emulated, ragged};
use crate::fixture::{Fixture, compile_with, relative_rmse};
use std::collections::BTreeSet;
use weft_ir::dtype::DType;
use weft_ir::plan::Role;
use weft_passes::Selection;

const MAX_SEQ: usize = 64;
const MAX_BATCH: usize = 4;

/// Runs every entry of the plan on ragged sequences of the fixture, and compares logits with the golden.
///
/// # Panics
/// When a kernel is further from its reference than it may be, or the logits from the golden.
pub fn decoder(fixture: &Fixture, opt_level: u8) {
    decoder_with(fixture, opt_level, DType::BF16, Selection::default());
}

/// As [`decoder`], with activations and weights of a type, and some rules off.
///
/// # Panics
/// As [`decoder`].
pub fn decoder_with(fixture: &Fixture, opt_level: u8, dtype: DType, selection: Selection) {
    let graph = fixture.graph(dtype);
    let max_seq = fixture.checkpoint.config().position_limit().map_or(MAX_SEQ, |n| n.min(MAX_SEQ));
    let plan = compile_with(&graph, "sm_90", dtype, opt_level, (max_seq, MAX_BATCH), selection).plan;
    let ids = fixture.golden_ids("input_ids");
    let logits = fixture.golden_f32("logits");
    let (length, vocab) = (ids.shape[1], logits.shape[2]);
    let row = |r: usize| &ids.values[(r % ids.shape[0]) * length..][..length];
    let hf = fixture.golden_json()["hf_16bit"]["rel_rmse"].as_f64().expect("hf_16bit");

    let mut run = Emulated::new(&plan, &fixture.checkpoint);
    let mut distances = Vec::new();
    let mut used = BTreeSet::new();
    let (mut ours, mut golden) = (Vec::new(), Vec::new());
    // Where each sequence of the cache stands.
    let mut at = [0usize; MAX_BATCH];
    let order = [Role::Score, Role::Prefill, Role::Decode];
    for entry in order.iter().flat_map(|role| plan.entries.iter().filter(move |e| e.role == *role)) {
        // Pieces of different lengths; half of a large bucket stays padding.
        let sequences = entry.bind.tokens.min(MAX_BATCH);
        let take = |s: usize| match entry.role {
            Role::Decode => 1,
            Role::Prefill | Role::Score | Role::Encode => {
                (entry.bind.tokens / MAX_BATCH - s).clamp(1, length.min(14) - s)
            }
        };
        let mut pieces = Vec::new();
        for (s, start) in at.iter_mut().enumerate().take(sequences) {
            if *start + take(s) > length {
                *start = 0;
            }
            pieces.push((&row(s)[*start..*start + take(s)], *start));
        }
        let every_row = entry.role == Role::Score;
        let mut inputs = ragged(entry, &pieces, max_seq, every_row || entry.role == Role::Decode);
        // The golden is of whole rows.
        inputs.prompts = vec![length as i32; entry.bind.tokens];
        distances.extend(run.step(&entry.name, &inputs));
        used.extend(entry.kernels.values().copied());
        let got = run.output("logits");
        let mut output_row = 0;
        for (s, (tokens, start)) in pieces.iter().enumerate() {
            let first = if entry.role == Role::Prefill { tokens.len() - 1 } else { 0 };
            for t in start + first..start + tokens.len() {
                let theirs = ((s % ids.shape[0]) * length + t) * vocab;
                ours.extend_from_slice(&got[output_row * vocab..][..vocab]);
                golden.extend_from_slice(&logits.values[theirs..][..vocab]);
                output_row += 1;
            }
        }
        for (s, start) in at.iter_mut().enumerate().take(sequences) {
            *start += take(s);
        }
    }
    assert_eq!(used.len(), plan.kernels.len(), "kernels that no entry uses");
    let far: Vec<_> = distances.iter().filter(|d| !d.is_close()).collect();
    assert!(far.is_empty(), "{} of {} kernels are too far: {far:#?}", far.len(), distances.len());
    let distance = relative_rmse(&ours, &golden);
    assert!(distance <= 1.5 * hf, "level {opt_level}: {distance}, Hugging Face's own {hf}");
}
