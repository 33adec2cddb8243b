//! Decoders that embed, in tests: their hidden states give the golden's logits.

use crate::fixture::{Fixture, relative_rmse};
use weft::encode::{Sequence, encode};
use weft_frontend::checkpoint::{Checkpoint, Task};
use weft_runtime::exec::Executor;

/// A decoder's checkpoint, for hidden states.
///
/// # Panics
/// When it does not open.
pub fn embedder(fixture: &Fixture) -> Checkpoint {
    let checkpoint = Checkpoint::open(fixture.folder()).unwrap_or_else(|e| panic!("{e}"));
    checkpoint.for_task(Task::Embed)
}

/// The head's matrix [vocab, h] and bias.
fn head(checkpoint: &Checkpoint) -> (Vec<f32>, Vec<f32>) {
    let tied = checkpoint.config().tie_word_embeddings;
    let names = ["lm_head.weight", "embed_out.weight"].into_iter().filter(|_| !tied);
    let embeddings = [
        "model.embed_tokens.weight",
        "transformer.wte.weight",
        "wte.weight",
        "transformer.word_embeddings.weight",
        "word_embeddings.weight",
    ];
    let has = |name: &&str| checkpoint.has(name);
    let name = names.chain(embeddings).find(has).expect("a head");
    let floats = |name: &str| -> Vec<f32> {
        let bytes = checkpoint.bytes(name).unwrap_or_else(|e| panic!("{e}"));
        bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
    };
    let bias = ["lm_head.bias"].into_iter().find(has).map(floats);
    (floats(name), bias.unwrap_or_default())
}

/// The logits of hidden states [n, h].
fn logits(checkpoint: &Checkpoint, hidden: &[f32]) -> Vec<f32> {
    let c = checkpoint.config();
    let (matrix, bias) = head(checkpoint);
    let cap = c.logit_softcap;
    let row = |x: &[f32]| -> Vec<f32> {
        let each = matrix.chunks_exact(c.hidden_size).enumerate().map(|(token, w)| {
            let sum: f64 = w.iter().zip(x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let sum = (sum + bias.get(token).map_or(0.0, |b| f64::from(*b))) * c.logit_multiplier;
            cap.map_or(sum, |cap| (sum / cap).tanh() * cap) as f32
        });
        each.collect()
    };
    hidden.chunks_exact(c.hidden_size).flat_map(row).collect()
}

/// The golden's input rows as sequences of one step, and its logits.
///
/// # Panics
/// When there is no golden.
pub fn golden(fixture: &Fixture) -> (Vec<Sequence>, Vec<f32>) {
    let ids = fixture.golden_ids("input_ids");
    let rows = ids.values.chunks(ids.shape[1]);
    let sequences = rows.map(|r| Sequence::plain(r.iter().map(|&id| id as u32).collect())).collect();
    (sequences, fixture.golden_f32("logits").values)
}

/// Relative rmse of the logits of a model's hidden states.
///
/// # Panics
/// When it does not run.
pub fn distance(fixture: &Fixture, checkpoint: &Checkpoint, model: &mut dyn Executor) -> f64 {
    let (sequences, golden) = golden(fixture);
    let hidden = encode(model, &sequences, &mut |_, _| {}).unwrap_or_else(|e| panic!("{e}"));
    relative_rmse(&logits(checkpoint, &hidden.concat()), &golden)
}
