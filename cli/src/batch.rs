//! Ragged steps: from pieces of sequences to the inputs of a step.

use crate::errors::{Error, Result};
use weft_ir::plan::Role;
use weft_ir::reference::StepInputs;
use weft_ir::sampling::{Params, Penalties};
use weft_runtime::exec::{Executor, StepOutput};

/// Tokens of one sequence in a step.
#[derive(Clone, Debug)]
pub struct Piece<'a> {
    /// Sequence: a row of the cache.
    pub sequence: usize,
    /// Position of the first token.
    pub start: usize,
    /// Tokens.
    pub ids: &'a [u32],
    /// How to choose the token after each output row.
    pub params: Params,
    /// What the sequence's tokens cost.
    pub penalties: Penalties,
    /// Tokens of the sequence's prompt, of which this may be a part, or behind it.
    pub prompt: usize,
}

impl Piece<'_> {
    /// Tokens after which the most likely one is taken, the end of their prompt.
    pub fn greedy(sequence: usize, start: usize, ids: &[u32]) -> Piece<'_> {
        let (params, penalties) = (Params::GREEDY, Penalties::NONE);
        Piece { sequence, start, ids, params, penalties, prompt: start + ids.len() }
    }
}

/// Runs a step of pieces, whose sequences ascend. `Role::Score` outputs a row for each token, other roles
/// one for the last token of each piece.
///
/// # Errors
/// What the executor reports.
pub fn step(
    executor: &mut dyn Executor,
    role: Role,
    pieces: &[Piece<'_>],
    logits: bool,
) -> Result<StepOutput> {
    let inputs = inputs(executor, role, pieces);
    Ok(executor.step(role, &inputs, logits)?)
}

/// The inputs of a step of pieces, as [`step`] takes them.
pub fn inputs(executor: &dyn Executor, role: Role, pieces: &[Piece<'_>]) -> StepInputs {
    let slot_base = (0..executor.limits().max_batch).map(|i| executor.slot_base(i)).collect();
    let mut s = StepInputs { slot_base, ..StepInputs::default() };
    for piece in pieces {
        let base = executor.slot_base(piece.sequence);
        for (i, &id) in piece.ids.iter().enumerate() {
            let position = (piece.start + i) as i32;
            s.token_ids.push(id as i32);
            s.positions.push(position);
            s.sequences.push(piece.sequence as i32);
            s.slots.push(base + position);
            s.prompts.push(piece.prompt as i32);
            if role == Role::Score || i + 1 == piece.ids.len() {
                s.output_rows.push(s.token_ids.len() as i32 - 1);
                s.temperature.push(piece.params.temperature);
                s.top_k.push(piece.params.top_k);
                s.top_p.push(piece.params.top_p);
                s.min_p.push(piece.params.min_p);
                s.seed.push(piece.params.seed);
                s.repetition_penalty.push(piece.penalties.repetition);
                s.presence_penalty.push(piece.penalties.presence);
                s.prompt_lengths.push(piece.prompt as i32);
            }
        }
    }
    s
}

/// A part of a sequence's tokens that one step takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Sequence.
    pub sequence: usize,
    /// First token.
    pub start: usize,
    /// Number of tokens.
    pub len: usize,
}

/// Cuts sequences of these lengths into steps of at most `most` tokens, in order; a step takes what fits of
/// each sequence in turn.
pub fn chunks(lengths: &[usize], most: usize) -> Vec<Vec<Chunk>> {
    let (mut steps, mut step, mut room) = (Vec::new(), Vec::new(), most.max(1));
    for (sequence, &length) in lengths.iter().enumerate() {
        let mut start = 0;
        while start < length {
            let len = room.min(length - start);
            step.push(Chunk { sequence, start, len });
            (start, room) = (start + len, room - len);
            if room == 0 {
                steps.push(std::mem::take(&mut step));
                room = most.max(1);
            }
        }
    }
    if !step.is_empty() {
        steps.push(step);
    }
    steps
}

/// A sampled token as an id.
///
/// # Errors
/// When there was none: the logits are not numbers.
pub fn sampled(token: i32, sequence: usize, position: usize) -> Result<u32> {
    u32::try_from(token).map_err(|_| {
        Error::failed(format!(
            "row {sequence}, position {position}: the logits hold NaN, so no token can be chosen; with \
             --dtype f16 values may overflow: try bf16"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_fill_steps_and_cover_all() {
        let c = |sequence, start, len| Chunk { sequence, start, len };
        assert_eq!(chunks(&[5, 0, 3], 4), [vec![c(0, 0, 4)], vec![c(0, 4, 1), c(2, 0, 3)]],);
        assert_eq!(chunks(&[4, 4], 4), [vec![c(0, 0, 4)], vec![c(1, 0, 4)]]);
        assert!(chunks(&[0], 4).is_empty());
    }
}
