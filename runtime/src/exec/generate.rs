//! Generations: decode steps that follow each other until every row ended.
//!
//! Two ways give the same tokens, bit for bit: [`step_by_step`] runs each step from the host; on a GPU one launch
//! runs them all (`device_loop`), and the host only reads what the device streams to it ([`follow`]). Both keep
//! the same account ([`Account`]) of the rows by `weft_ir::generation`, whose rules the device follows too. A row
//! that ended stays as padding, so that the others keep their bucket.

use std::time::{Duration, Instant};

use weft_ir::generation::{self, EMPTY, End, MAX_STOP_TOKENS, Rows, Rules};
use weft_ir::graph::Input;
use weft_ir::plan::Role;
use weft_ir::reference::StepInputs;

use super::Executor;
use crate::error::{Error, Result};

/// A generation: its first step, and when rows end.
#[derive(Clone, Copy, Debug)]
pub struct Generate<'a> {
    /// The first decode step: one token a row, of one sequence each, and each an output row.
    pub first: &'a StepInputs,
    /// Most tokens of each row: at least 1.
    pub limits: &'a [usize],
    /// Tokens that end a row: at most [`MAX_STOP_TOKENS`].
    pub stop_tokens: &'a [u32],
}

/// What is to be done after a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The row goes on.
    Go,
    /// The row ends; what the device makes of it after is dropped.
    EndRow,
    /// All rows end.
    EndAll,
}

/// Told each token as it is made, with its row: step by step, and in a step row by row. The token that ends a row
/// is told too.
pub type OnToken<'a> = dyn FnMut(usize, u32) -> Next + 'a;

/// What became of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowTokens {
    /// Its tokens, the one that ended it included.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub end: End,
}

/// The host's account of a generation.
pub(super) struct Account {
    stop_tokens: Vec<i32>,
    context: usize,
    token_ids: Vec<i32>,
    positions: Vec<i32>,
    slots: Vec<i32>,
    remaining: Vec<i32>,
    out: Vec<RowTokens>,
}

impl Account {
    /// The account of a generation that begins, for contexts of at most so many tokens.
    ///
    /// # Errors
    /// [`Error::Input`] for a step that is no decode step, [`Error::BadArgument`] for limits or stop tokens that
    /// cannot be.
    pub fn new(g: &Generate<'_>, context: usize) -> Result<Account> {
        let rows = g.first.token_ids.len();
        if g.first.positions.len() != rows || g.first.slots.len() != rows {
            return Err(Error::input(
                Input::Positions.name(),
                "a generation has one position and slot a token",
            ));
        }
        if !g.first.output_rows.iter().copied().eq(0..rows as i32) {
            let why =
                format!("a generation's first step outputs a row for each of its {rows} tokens, in order");
            return Err(Error::input(Input::OutputRows.name(), why));
        }
        if g.first.slots.iter().any(|&s| s < 0) {
            return Err(Error::input(Input::Slots.name(), "each token of a generation has a slot"));
        }
        if g.limits.len() != rows || g.limits.contains(&0) {
            let why = format!("limits {:?} are not one for each of {rows} rows, at least 1", g.limits);
            return Err(Error::bad("generate", why));
        }
        if g.stop_tokens.len() > MAX_STOP_TOKENS {
            let why = format!("{} stop tokens; at most {MAX_STOP_TOKENS} are possible", g.stop_tokens.len());
            return Err(Error::bad("generate", why));
        }
        // More than the context holds is as good as all of it.
        let most = |&n: &usize| n.min(context + 1).min(i32::MAX as usize) as i32;
        Ok(Account {
            stop_tokens: g.stop_tokens.iter().map(|&t| i32::try_from(t).unwrap_or(i32::MAX)).collect(),
            context,
            token_ids: g.first.token_ids.clone(),
            positions: g.first.positions.clone(),
            slots: g.first.slots.clone(),
            remaining: g.limits.iter().map(most).collect(),
            out: vec![RowTokens { tokens: Vec::new(), end: End::Cancelled }; rows],
        })
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.remaining.len()
    }

    /// Whether a row goes on.
    pub fn is_live(&self, row: usize) -> bool {
        self.remaining.get(row).is_some_and(|&n| n > 0)
    }

    /// Whether any does.
    pub fn goes_on(&self) -> bool {
        generation::goes_on(&self.remaining)
    }

    /// Tokens that each row may still have.
    pub fn remaining(&self) -> &[i32] {
        &self.remaining
    }

    /// Tokens that end a row.
    pub fn stop_tokens(&self) -> &[i32] {
        &self.stop_tokens
    }

    /// Most steps that there can be, and the longest context that they can reach.
    pub fn reach(&self) -> (usize, usize) {
        let each = self.remaining.iter().zip(&self.positions).map(|(&n, &p)| {
            let (n, p) = (n.max(0) as usize, p.max(0) as usize);
            let steps = n.min(self.context.saturating_sub(p).max(1));
            (steps, p + steps)
        });
        each.fold((0, 0), |(s, c), (steps, context)| (s.max(steps), c.max(context)))
    }

    /// Takes the token that a step made of each row, tells those of live rows, and gives the rows that the host
    /// ended.
    pub fn take(&mut self, tokens: &[i32], on_token: &mut OnToken<'_>) -> Vec<usize> {
        let (mut cancel, mut ended, mut all) = (vec![0; self.rows()], Vec::new(), false);
        let rules = Rules { stop_tokens: &self.stop_tokens, context: self.context };
        for (row, &token) in tokens.iter().enumerate().take(self.rows()) {
            if !self.is_live(row) {
                continue;
            }
            if all {
                (cancel[row], self.out[row].end) = (1, End::Cancelled);
                ended.push(row);
                continue;
            }
            let end = rules.end(token, self.positions[row], self.remaining[row]);
            // That of the rows that go on is known when they end.
            self.out[row].end = end.unwrap_or(End::Cancelled);
            // No id: the logits are not numbers, and there is nothing to tell.
            let Ok(id) = u32::try_from(token) else { continue };
            self.out[row].tokens.push(id);
            let next = on_token(row, id);
            if next != Next::Go {
                (cancel[row], self.out[row].end) = (1, End::Cancelled);
                ended.push(row);
                all = next == Next::EndAll;
            }
        }
        if all {
            // Rows before the one that said so too.
            ended = (0..self.rows()).filter(|&r| self.is_live(r)).collect();
            cancel.fill(1);
        }
        let mut rows = Rows {
            token_ids: &mut self.token_ids,
            positions: &mut self.positions,
            slots: &mut self.slots,
            remaining: &mut self.remaining,
        };
        generation::advance(&mut rows, tokens, &cancel, &rules);
        ended
    }

    /// What became of the rows.
    pub fn finish(self) -> Vec<RowTokens> {
        self.out
    }
}

/// Runs a generation step by step: each step is told to the executor, and its tokens come back before the next.
///
/// # Errors
/// As [`Executor::generate`].
pub fn step_by_step<E: Executor + ?Sized>(
    executor: &mut E,
    g: &Generate<'_>,
    on_token: &mut OnToken<'_>,
) -> Result<Vec<RowTokens>> {
    let mut account = Account::new(g, executor.limits().max_seq)?;
    let mut inputs = g.first.clone();
    while account.goes_on() {
        let tokens = executor.step(Role::Decode, &inputs, false)?.tokens;
        if tokens.len() != account.rows() {
            let why = format!("a step gave {} tokens for {} rows", tokens.len(), account.rows());
            return Err(Error::plan("output tokens", why));
        }
        account.take(&tokens, on_token);
        inputs.token_ids.clone_from(&account.token_ids);
        inputs.positions.clone_from(&account.positions);
        inputs.slots.clone_from(&account.slots);
    }
    Ok(account.finish())
}

/// A device that runs a generation, as the host sees it through mapped memory.
pub(super) trait Stream {
    /// The token of a step and row, [`EMPTY`] while there is none.
    fn token(&self, step: usize, row: usize) -> Result<i32>;

    /// Asks the device to end a row.
    fn cancel(&self, row: usize) -> Result<()>;

    /// Whether the device is done; a fault of it is an error.
    fn is_done(&self) -> Result<bool>;
}

/// How long the host spins before it sleeps between looks at the stream.
const SPIN: Duration = Duration::from_micros(50);
/// How long it sleeps.
const NAP: Duration = Duration::from_micros(20);
/// After so long without a token it asks the driver, and again each time: a fault shows there.
const ASK: Duration = Duration::from_millis(20);

/// Reads the tokens that a device streams until every row ended, and cancels those that the host ends. Between
/// tokens there is no call of the driver, unless one takes long.
///
/// # Errors
/// A fault of the device; [`Error::Loop`] when it is done without the tokens that it owes.
pub(super) fn follow(stream: &dyn Stream, account: &mut Account, on_token: &mut OnToken<'_>) -> Result<()> {
    let mut tokens = vec![EMPTY; account.rows()];
    let mut step = 0;
    while account.goes_on() {
        for (row, token) in tokens.iter_mut().enumerate() {
            *token = if account.is_live(row) { wait(stream, step, row)? } else { EMPTY };
        }
        for row in account.take(&tokens, on_token) {
            stream.cancel(row)?;
        }
        step += 1;
    }
    Ok(())
}

fn wait(stream: &dyn Stream, step: usize, row: usize) -> Result<i32> {
    let start = Instant::now();
    let mut asked = start;
    loop {
        // Some looks for each look at the clock.
        for _ in 0..64 {
            let token = stream.token(step, row)?;
            if token != EMPTY {
                return Ok(token);
            }
            std::hint::spin_loop();
        }
        let now = Instant::now();
        if now - asked >= ASK {
            asked = now;
            if stream.is_done()? {
                // All that it wrote is here now.
                let token = stream.token(step, row)?;
                if token != EMPTY {
                    return Ok(token);
                }
                return Err(Error::Loop { why: format!("it ended before step {step} of row {row}") });
            }
        }
        if now - start >= SPIN {
            std::thread::sleep(NAP);
        }
    }
}

#[cfg(test)]
mod tests;
