//! Encoders in tests: ragged steps for the emulator, and comparison with Hugging Face's reference outputs.

use crate::fixture::{Fixture, folder, relative_rmse, root};
use std::io::Write;
use std::path::PathBuf;
use weft::encode::{Sequence, encode, pool};
use weft_frontend::checkpoint::Checkpoint;
use weft_frontend::config::pooling::Pooling;
use weft_ir::plan::Entry;
use weft_ir::reference::StepInputs;
use weft_runtime::exec::Executor;

/// Inputs of a step of whole sequences, padded to an entry.
pub fn ragged(entry: &Entry, sequences: &[&[i32]]) -> StepInputs {
    let mut s = StepInputs::default();
    for (i, tokens) in sequences.iter().enumerate() {
        s.slot_base.push(s.token_ids.len() as i32);
        s.lengths.push(tokens.len() as i32);
        for (position, &t) in tokens.iter().enumerate() {
            s.token_ids.push(t);
            s.positions.push(position as i32);
            s.sequences.push(i as i32);
            // Both types, so that the table is looked at.
            s.token_types.push((position % 2) as i32);
        }
    }
    for list in [&mut s.token_ids, &mut s.positions, &mut s.sequences, &mut s.token_types] {
        list.resize(entry.bind.tokens, 0);
    }
    s.slot_base.resize(entry.bind.seqs, 0);
    s.lengths.resize(entry.bind.seqs, 1);
    s
}

/// The rows of a tiny encoder's golden without what the mask hides, and their golden hidden states.
pub fn golden_rows(fixture: &Fixture) -> Vec<(Sequence, Vec<f32>)> {
    let (ids, mask) = (fixture.golden_ids("input_ids"), fixture.golden_ids("attention_mask"));
    let hidden = fixture.golden_f32("last_hidden_state");
    let (length, width) = (ids.shape[1], hidden.shape[2]);
    let row = |r: usize| {
        let (mut sequence, mut states) = (Sequence::default(), Vec::new());
        for t in (0..length).filter(|t| mask.values[r * length + t] == 1) {
            sequence.ids.push(ids.values[r * length + t] as u32);
            sequence.positions.push(t as u32);
            sequence.types.push(0);
            states.extend_from_slice(&hidden.values[(r * length + t) * width..][..width]);
        }
        (sequence, states)
    };
    (0..ids.shape[0]).map(row).collect()
}

/// Relative rmse of a tiny encoder's hidden states to its golden, where the mask is 1.
///
/// # Panics
/// When it does not run.
pub fn tiny(fixture: &Fixture, executor: &mut dyn Executor) -> f64 {
    let (sequences, golden): (Vec<Sequence>, Vec<Vec<f32>>) = golden_rows(fixture).into_iter().unzip();
    let out = encode(executor, &sequences, &mut |_, _| {}).unwrap_or_else(|e| panic!("{e}"));
    relative_rmse(&out.concat(), &golden.concat())
}

/// The all-MiniLM-L6-v2 checkpoint: `WEFT_MINILM`, or where `cargo xtask test` puts it; `None` after saying so.
///
/// # Panics
/// When it is there and cannot be opened.
pub fn minilm() -> Option<Checkpoint> {
    let fetched = || root().join("..").join(".weft").join("models").join("all-minilm-l6-v2");
    let place = std::env::var_os("WEFT_MINILM").map_or_else(fetched, PathBuf::from);
    if !place.join("model.safetensors").exists() {
        // The harness hides what passing tests print, so this goes to standard error itself.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: {} is not there (`cargo xtask test` fetches it; or set WEFT_MINILM)",
            place.display()
        );
        return None;
    }
    Some(Checkpoint::open(&place).unwrap_or_else(|e| panic!("{e}")))
}

/// Cosines of all-MiniLM-L6-v2's embeddings with those of `text/all-minilm-l6-v2.json`.
///
/// # Panics
/// When it does not run.
pub fn minilm_cosines(checkpoint: &Checkpoint, executor: &mut dyn Executor) -> Vec<f64> {
    let text = std::fs::read_to_string(folder().join("text").join("all-minilm-l6-v2.json")).expect("texts");
    let all: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let list = |v: &serde_json::Value| -> Vec<f64> {
        v.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
    };
    let all = all.as_array().expect("texts");
    let ids = |v: &serde_json::Value| list(v).into_iter().map(|id| id as u32).collect();
    let sequences: Vec<Sequence> = all.iter().map(|t| Sequence::plain(ids(&t["input_ids"]))).collect();
    let pooling = Pooling::open(checkpoint.root()).unwrap_or_else(|e| panic!("{e}")).expect("modules.json");
    let hidden = encode(executor, &sequences, &mut |_, _| {}).unwrap_or_else(|e| panic!("{e}"));
    let width = checkpoint.config().hidden_size;
    let embeddings = hidden.iter().map(|h| pool(h, width, &pooling));
    embeddings.zip(all).map(|(e, t)| cosine(&e, &list(&t["embedding"]))).collect()
}

fn cosine(a: &[f32], b: &[f64]) -> f64 {
    let product = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let a: Vec<f64> = a.iter().map(|&x| f64::from(x)).collect();
    product(&a, b) / (product(&a, &a) * product(b, b)).sqrt()
}
