//! Hidden states of an encoder, and embeddings: what `weft forward` and `weft embed` compute with one.
//!
//! Sequences lie whole in a step; as many as fit are put into one, in order.

pub mod tensors;

use crate::errors::{Error, Result};
use weft_frontend::config::pooling::{Pooling, PoolingMode};
use weft_ir::plan::Role;
use weft_ir::reference::StepInputs;
use weft_runtime::exec::Executor;

/// Tokens of one sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Position of each.
    pub positions: Vec<u32>,
    /// Token type of each.
    pub types: Vec<u32>,
}

impl Sequence {
    /// Tokens at positions from 0 on, all of type 0.
    pub fn plain(ids: Vec<u32>) -> Sequence {
        Sequence { positions: (0..ids.len() as u32).collect(), types: vec![0; ids.len()], ids }
    }
}

/// Hidden states [len, width] of each sequence, row-major. `progress` is told (tokens done, tokens in all).
///
/// # Errors
/// A sequence that does not fit, or what the executor reports.
pub fn encode(
    executor: &mut dyn Executor,
    sequences: &[Sequence],
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<Vec<f32>>> {
    let most = executor.limits();
    let width = most.hidden.ok_or_else(|| Error::input("the model is a decoder: it has no hidden states"))?;
    let longest = most.max_seq.min(most.encode_tokens);
    if let Some((i, s)) = sequences.iter().enumerate().find(|(_, s)| s.ids.len() > longest) {
        return Err(Error::input(format!(
            "sequence {i}: its {} tokens do not fit in --max-seq {longest}; shorten it, or raise --max-seq as far \
             as the model's positions go",
            s.ids.len()
        )));
    }
    let total = sequences.iter().map(|s| s.ids.len() as u64).sum();
    let (mut out, mut done) = (Vec::with_capacity(sequences.len()), 0);
    for step in steps(sequences, most.encode_tokens, most.max_batch) {
        let inputs = inputs(step);
        if inputs.lengths.is_empty() {
            out.extend(step.iter().map(|_| Vec::new()));
            continue;
        }
        let result = executor.step(Role::Encode, &inputs, false)?;
        let mut rest = result.hidden.as_slice();
        for s in step {
            let own = rest.split_at_checked(s.ids.len() * width).ok_or_else(|| {
                Error::failed("the step gave fewer hidden states than tokens: a fault of Weft")
            })?;
            out.push(own.0.to_vec());
            rest = own.1;
        }
        done += inputs.token_ids.len() as u64;
        progress(done, total);
    }
    Ok(out)
}

/// Cuts a list of sequences into steps of at most so many tokens and sequences, in order.
fn steps(sequences: &[Sequence], tokens: usize, batch: usize) -> Vec<&[Sequence]> {
    let mut out = Vec::new();
    let (mut first, mut sum) = (0, 0);
    for (i, s) in sequences.iter().enumerate() {
        if i > first && (sum + s.ids.len() > tokens || i - first >= batch) {
            out.push(&sequences[first..i]);
            (first, sum) = (i, 0);
        }
        sum += s.ids.len();
    }
    if first < sequences.len() {
        out.push(&sequences[first..]);
    }
    out
}

/// The inputs of a step; sequences without tokens are left out.
fn inputs(sequences: &[Sequence]) -> StepInputs {
    let signed = |v: &[u32]| v.iter().map(|&x| x as i32).collect::<Vec<i32>>();
    let mut s = StepInputs::default();
    for sequence in sequences.iter().filter(|s| !s.ids.is_empty()) {
        s.sequences.extend(vec![s.lengths.len() as i32; sequence.ids.len()]);
        s.slot_base.push(s.token_ids.len() as i32);
        s.lengths.push(sequence.ids.len() as i32);
        s.token_ids.extend(signed(&sequence.ids));
        s.positions.extend(signed(&sequence.positions));
        s.token_types.extend(signed(&sequence.types));
    }
    s
}

/// The embedding of a text from the hidden states [len, width] of its tokens.
pub fn pool(hidden: &[f32], width: usize, pooling: &Pooling) -> Vec<f32> {
    let rows = || hidden.chunks_exact(width.max(1));
    let count = rows().len().max(1) as f64;
    let mut out: Vec<f32> = match pooling.mode {
        PoolingMode::Mean => {
            let mut sum = vec![0f64; width];
            for row in rows() {
                sum.iter_mut().zip(row).for_each(|(s, &x)| *s += f64::from(x));
            }
            sum.into_iter().map(|s| (s / count) as f32).collect()
        }
        PoolingMode::Cls => rows().next().map_or_else(|| vec![0.0; width], <[f32]>::to_vec),
        PoolingMode::LastToken => rows().next_back().map_or_else(|| vec![0.0; width], <[f32]>::to_vec),
        PoolingMode::Max => {
            let mut most = vec![f32::NEG_INFINITY; width];
            for row in rows() {
                most.iter_mut().zip(row).for_each(|(m, &x)| *m = m.max(x));
            }
            most
        }
    };
    if pooling.normalize {
        let square: f64 = out.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        // As torch.nn.functional.normalize does.
        let length = square.sqrt().max(1e-12);
        out.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_hold_whole_sequences() {
        let all: Vec<Sequence> = [3, 4, 0, 9, 1, 1, 1].map(|n| Sequence::plain(vec![7; n])).into();
        let lengths = |tokens, batch| -> Vec<Vec<usize>> {
            let steps = steps(&all, tokens, batch);
            steps.iter().map(|s| s.iter().map(|s| s.ids.len()).collect()).collect()
        };
        assert_eq!(lengths(10, 8), [vec![3, 4, 0], vec![9, 1], vec![1, 1]]);
        assert_eq!(lengths(100, 3), [vec![3, 4, 0], vec![9, 1, 1], vec![1]]);
        let step = inputs(&all[1..4]);
        assert_eq!((&step.slot_base[..], &step.lengths[..]), (&[0, 4][..], &[4, 9][..]));
        assert_eq!(step.sequences[3..6], [0, 1, 1]);
    }

    #[test]
    fn pooling_follows_its_mode() {
        let hidden = [1.0, -2.0, 3.0, 0.0];
        let pooling = |mode, normalize| Pooling { mode, normalize, ..Pooling::default() };
        assert_eq!(pool(&hidden, 2, &pooling(PoolingMode::Mean, false)), [2.0, -1.0]);
        assert_eq!(pool(&hidden, 2, &pooling(PoolingMode::Cls, false)), [1.0, -2.0]);
        assert_eq!(pool(&hidden, 2, &pooling(PoolingMode::Max, false)), [3.0, 0.0]);
        assert_eq!(pool(&hidden, 2, &pooling(PoolingMode::LastToken, false)), [3.0, 0.0]);
        let unit = pool(&hidden, 2, &pooling(PoolingMode::Max, true));
        assert_eq!(unit, [1.0, 0.0]);
    }
}
