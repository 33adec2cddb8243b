//! What follows a decode step: which rows end, and what the others' next step reads. The definition that
//! step-by-step execution and the plan interpreter run, and that the GPU kernel repeats.
//!
//! A row is one sequence of the step: token i of the step is that of row i. A row that ended stays in the step
//! as padding (token 0 at position 0, written nowhere), so the others keep their bucket, and with it their bits.

use crate::graph::Input;

/// Most stop tokens of a generation.
pub const MAX_STOP_TOKENS: usize = 63;

/// What the stream holds where no token was made: no token, and no sign of one.
pub const EMPTY: i32 = i32::MIN;

/// Why a row ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// There was no token: its logits are not numbers.
    NotNumbers,
    /// A stop token.
    StopToken,
    /// As many tokens as it may have.
    Length,
    /// The context is full.
    ContextFull,
    /// The host said so.
    Cancelled,
}

/// What a step input does between the steps of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Carry {
    /// It stays.
    Stays,
    /// It becomes the token that was made.
    Token,
    /// It counts up.
    Counts,
    /// A decode step has none.
    Absent,
}

/// What an input does between steps. Matched exhaustively: a new input says here what it does.
pub fn carry(input: Input) -> Carry {
    match input {
        Input::TokenIds => Carry::Token,
        Input::Positions | Input::Slots => Carry::Counts,
        Input::Sequences
        | Input::SlotBase
        | Input::OutputRows
        | Input::Temperature
        | Input::TopK
        | Input::TopP
        | Input::MinP
        | Input::Seed
        | Input::RepetitionPenalty
        | Input::PresencePenalty
        | Input::PromptLengths
        | Input::Prompts => Carry::Stays,
        Input::Lengths | Input::TokenTypes => Carry::Absent,
    }
}

/// When rows end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules<'a> {
    /// Tokens that end a row.
    pub stop_tokens: &'a [i32],
    /// Longest context of a sequence: positions stay below it.
    pub context: usize,
}

impl Rules<'_> {
    /// Why a row ends with a token that was made at a position, when it could have `remaining` tokens, this one
    /// included; `None` when it goes on.
    pub fn end(&self, token: i32, position: i32, remaining: i32) -> Option<End> {
        if token < 0 {
            Some(End::NotNumbers)
        } else if self.stop_tokens.contains(&token) {
            Some(End::StopToken)
        } else if remaining <= 1 {
            Some(End::Length)
        } else if i64::from(position) + 1 >= self.context as i64 {
            Some(End::ContextFull)
        } else {
            None
        }
    }
}

/// What changes from step to step, an element a row. All slices have one length.
#[derive(Debug)]
pub struct Rows<'a> {
    /// Token of the step.
    pub token_ids: &'a mut [i32],
    /// Its position.
    pub positions: &'a mut [i32],
    /// Its cache slot; −1 writes nothing.
    pub slots: &'a mut [i32],
    /// Tokens that the row may still have; 0 when it ended or is padding.
    pub remaining: &'a mut [i32],
}

/// From one step to the next: takes the token that each row made, and gives what the stream shows of the step,
/// [`EMPTY`] for rows that had ended before. Rows with a cancel word other than 0 end after this token.
pub fn advance(rows: &mut Rows<'_>, tokens: &[i32], cancel: &[i32], rules: &Rules<'_>) -> Vec<i32> {
    let mut stream = vec![EMPTY; rows.remaining.len()];
    for (r, shown) in stream.iter_mut().enumerate() {
        let (remaining, token) = (rows.remaining[r], tokens[r]);
        if remaining <= 0 {
            continue;
        }
        *shown = token;
        if rules.end(token, rows.positions[r], remaining).is_some() || cancel[r] != 0 {
            rows.token_ids[r] = 0;
            rows.positions[r] = 0;
            rows.slots[r] = -1;
            rows.remaining[r] = 0;
        } else {
            rows.token_ids[r] = token;
            rows.positions[r] += 1;
            rows.slots[r] += 1;
            rows.remaining[r] = remaining - 1;
        }
    }
    stream
}

/// Whether a row is left.
pub fn goes_on(remaining: &[i32]) -> bool {
    remaining.iter().any(|&n| n > 0)
}
