//! Logits of given tokens, and of a continuation: what `weft forward` computes.
//!
//! Rows are sequences of a ragged batch, scored in chunks through the cache, in waves of as many as the plan
//! holds. The continuation is decoded through the same cache.

use crate::batch::{Piece, chunks, sampled, step};
use crate::errors::{Error, Result};
use crate::tensors::{Greedy, Input, Output};
use weft_ir::plan::Role;
use weft_ir::sampling::{Params, Penalties};
use weft_runtime::exec::Executor;

/// Computes the logits of an input and of a continuation by `steps` tokens. `progress` is told (tokens done,
/// tokens in all).
///
/// # Errors
/// Rows that do not fit, or what the executor reports.
pub fn score(
    executor: &mut dyn Executor,
    input: &Input,
    steps: usize,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Output> {
    let most = executor.limits();
    check_length(input.ids.len, steps, most.max_seq)?;
    let v = most.vocab.ok_or_else(|| Error::input("the model is an encoder: it has no logits"))?;
    let (b, t) = (input.ids.rows.len(), input.ids.len);
    let mut out = Output { logits: vec![0.0; b * t * v], shape: [b, t, v], greedy: None };
    let mut greedy = Greedy { ids: vec![0; b * steps], logits: vec![0.0; b * steps * v], steps };
    let total = (b * (t + steps.saturating_sub(1))) as u64;
    let mut done = 0;
    let width = most.max_batch.max(1);
    for first in (0..b).step_by(width) {
        let rows = &input.ids.rows[first..(first + width).min(b)];
        let lengths = vec![t; rows.len()];
        // The token after each row, as the device chose it.
        let mut next = vec![-1; rows.len()];
        for list in chunks(&lengths, most.score_tokens) {
            let pieces: Vec<Piece<'_>> = list
                .iter()
                .map(|c| piece(c.sequence, c.start, &rows[c.sequence][c.start..c.start + c.len], t))
                .collect();
            let result = step(executor, Role::Score, &pieces, true)?;
            let mut row = 0;
            for c in &list {
                let from = take(&result.logits, row, c.len, v)?;
                let at = ((first + c.sequence) * t + c.start) * v;
                out.logits[at..at + c.len * v].copy_from_slice(from);
                row += c.len;
                if let (true, Some(&token)) = (c.start + c.len == t, result.tokens.get(row - 1)) {
                    next[c.sequence] = token;
                }
            }
            done += row as u64;
            progress(done, total);
        }
        for n in 0..steps {
            if n > 0 {
                let ids = fed(input, first, rows.len(), n - 1, &next)?;
                let pieces: Vec<Piece<'_>> = ids
                    .iter()
                    .enumerate()
                    .map(|(s, id)| piece(s, t + n - 1, std::slice::from_ref(id), t))
                    .collect();
                let result = step(executor, Role::Decode, &pieces, true)?;
                for s in 0..rows.len() {
                    let at = ((first + s) * steps + n) * v;
                    greedy.logits[at..at + v].copy_from_slice(take(&result.logits, s, 1, v)?);
                }
                next.clone_from(&result.tokens);
                done += rows.len() as u64;
                progress(done, total);
            } else {
                for s in 0..rows.len() {
                    let (from, at) = (((first + s) * t + t - 1) * v, (first + s) * steps * v);
                    greedy.logits[at..at + v].copy_from_slice(&out.logits[from..from + v]);
                }
            }
            for (s, &token) in next.iter().enumerate() {
                greedy.ids[(first + s) * steps + n] = i64::from(sampled(token, first + s, t + n - 1)?);
            }
        }
    }
    out.greedy = (steps > 0).then_some(greedy);
    Ok(out)
}

/// Whether rows of `tokens` and a continuation fit the context. The last token of a continuation is chosen,
/// and never fed back.
///
/// # Errors
/// The figures and the remedy.
pub fn check_length(tokens: usize, steps: usize, max_seq: usize) -> Result<()> {
    let needed = tokens + steps.saturating_sub(1);
    if needed <= max_seq {
        return Ok(());
    }
    let continued = if steps > 1 { format!(" continued by {steps}") } else { String::new() };
    Err(Error::input(format!(
        "input_ids: {tokens} tokens{continued} do not fit in --max-seq {max_seq}; raise --max-seq to {needed} (a \
         bundle: compile it again with that)"
    )))
}

fn piece(sequence: usize, start: usize, ids: &[u32], prompt: usize) -> Piece<'_> {
    Piece { sequence, start, ids, params: Params::GREEDY, penalties: Penalties::NONE, prompt }
}

/// The tokens that step `n` + 1 reads: those of `continue_ids`, else those that were chosen.
fn fed(input: &Input, first: usize, rows: usize, n: usize, chosen: &[i32]) -> Result<Vec<u32>> {
    let token = |s: usize| match &input.continued {
        Some(c) => c
            .rows
            .get(first + s)
            .and_then(|row| row.get(n))
            .copied()
            .ok_or_else(|| Error::input(format!("continue_ids: row {}: it has no token {n}", first + s))),
        None => sampled(chosen.get(s).copied().unwrap_or(-1), first + s, input.ids.len + n),
    };
    (0..rows).map(token).collect()
}

fn take(logits: &[f32], row: usize, rows: usize, vocab: usize) -> Result<&[f32]> {
    logits.get(row * vocab..(row + rows) * vocab).ok_or_else(|| {
        let got = logits.len() / vocab.max(1);
        Error::failed(format!(
            "the step gave {got} rows of logits, {} were expected: a fault of Weft",
            row + rows
        ))
    })
}
