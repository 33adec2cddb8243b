//! A sequence's logits, whatever else is in its steps: the same bits.

use crate::fixture::Fixture;
use weft::batch::{Piece, step};
use weft_ir::plan::Role;
use weft_runtime::exec::Executor;

/// Tiny models of all kinds of kernels, with a level: dense ones, with LayerNorm and learned positions, windows, sinks,
/// experts, whose tiles take other sequences' tokens, and latent attention.
pub const MODELS: [(&str, u8); 7] = [
    ("llama", 0),
    ("llama", 2),
    ("gpt2", 2),
    ("gemma3", 2),
    ("gpt-oss", 2),
    ("qwen3-moe", 2),
    ("deepseek-v3", 2),
];

/// Prompts of other sequences.
pub type Company = Vec<Vec<u32>>;

/// A prompt, and three companies whose steps with it fall in the buckets `prefill_64` and `decode_4`.
pub struct Companions {
    /// The sequence that is looked at.
    pub prompt: Vec<u32>,
    /// The others.
    pub companies: [Company; 3],
}

impl Companions {
    /// Of tokens that `row` gives: which row, and how many.
    pub fn new(row: impl Fn(usize, usize) -> Vec<u32>) -> Companions {
        Companions {
            prompt: row(0, 25),
            companies: [
                vec![row(1, 13), row(1, 9), row(1, 7)],
                vec![row(0, 7), row(1, 13), row(0, 9)],
                vec![row(1, 3), row(1, 17), row(0, 14)],
            ],
        }
    }

    /// Of a fixture's golden inputs.
    ///
    /// # Panics
    /// When it has none.
    pub fn of(fixture: &Fixture) -> Companions {
        let rows = fixture.golden_ids("input_ids");
        let width = rows.shape[1];
        Companions::new(|r, n| rows.values[r * width..][..n].iter().map(|&v| v as u32).collect())
    }

    /// The bits with the company of a round.
    ///
    /// # Panics
    /// When a step does not run.
    pub fn round(&self, model: &mut dyn Executor, round: usize) -> Vec<u32> {
        two_steps(model, &self.prompt, &self.companies[round % self.companies.len()])
    }
}

/// Bits of the logits of a prefill of sequence 0 and of a decode step after it, with others in the same steps.
///
/// # Panics
/// When a step does not run.
pub fn two_steps(model: &mut dyn Executor, ids: &[u32], others: &[Vec<u32>]) -> Vec<u32> {
    let vocab = model.limits().vocab.expect("a decoder");
    let all: Vec<&[u32]> = std::iter::once(ids).chain(others.iter().map(Vec::as_slice)).collect();
    let prompts = all.iter().enumerate().map(|(s, ids)| Piece::greedy(s, 0, &ids[..ids.len() - 1]));
    let last = all.iter().enumerate().map(|(s, ids)| Piece::greedy(s, ids.len() - 1, &ids[ids.len() - 1..]));
    let mut bits = Vec::new();
    let steps: [(Role, Vec<Piece<'_>>); 2] =
        [(Role::Prefill, prompts.collect()), (Role::Decode, last.collect())];
    for (role, pieces) in steps {
        let out = step(model, role, &pieces, true).unwrap_or_else(|e| panic!("{e}"));
        bits.extend(out.logits[..vocab].iter().map(|l| l.to_bits()));
    }
    bits
}
