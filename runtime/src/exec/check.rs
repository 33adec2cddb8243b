//! Checks of step inputs: device code trusts them, so nothing out of range may reach it.

use weft_ir::graph::Input;
use weft_ir::plan::Role;
use weft_ir::reference::StepInputs;
use weft_ir::shape::{Dim, Sym};

use crate::error::{Error, Result};

/// What the values of inputs must stay below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// Positions: at most the longest context, and those that a table of positions has.
    pub positions: usize,
    /// Token types.
    pub token_types: usize,
    /// Longest context of a sequence.
    pub max_seq: usize,
    /// Sequences of the cache.
    pub seqs: usize,
    /// Slots of the cache.
    pub slots: usize,
}

/// The real sizes of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Tokens; at least 1.
    pub tokens: usize,
    /// Output rows.
    pub rows: usize,
    /// Longest context: the largest position, plus one; in an encoder the longest sequence.
    pub context: usize,
}

/// Checks the inputs that a plan uses (others are not looked at) for a step of a role, and gives the step's sizes.
///
/// # Errors
/// [`Error::Input`] with the input, the element and what is allowed.
pub fn check(role: Role, inputs: &StepInputs, used: &[Input], bounds: &Bounds) -> Result<Sizes> {
    let sizes = of_any_role(inputs, used, bounds)?;
    if role == Role::Decode && [Input::Sequences, Input::Slots].iter().all(|i| used.contains(i)) {
        one_token_each(inputs)?;
    }
    Ok(sizes)
}

/// A decode step's attention takes it that all keys of a sequence but its token's own are there already. Tokens that
/// write no slot are padding.
fn one_token_each(inputs: &StepInputs) -> Result<()> {
    let mut last = None;
    for (at, (sequence, slot)) in inputs.sequences.iter().zip(&inputs.slots).enumerate() {
        if *slot < 0 {
            continue;
        }
        if last == Some(*sequence) {
            let why = format!(
                "element {at} is the sequence of the one before it: a decode step has one token each"
            );
            return Err(Error::input(Input::Sequences.name(), why));
        }
        last = Some(*sequence);
    }
    Ok(())
}

/// What holds for a step of any role.
fn of_any_role(inputs: &StepInputs, used: &[Input], bounds: &Bounds) -> Result<Sizes> {
    let extent = |of: Sym| {
        let mut lengths = used.iter().filter(|i| sym(**i) == Some(of)).map(|i| length(inputs, *i));
        lengths.next().unwrap_or_default()
    };
    let (tokens, rows) = (extent(Sym::Tokens), extent(Sym::Rows));
    if tokens == 0 {
        return Err(Error::input("token_ids", "the step has no tokens"));
    }
    for &input in used {
        let (wanted, per) = match sym(input) {
            Some(Sym::Tokens) => (tokens, "token"),
            Some(Sym::Rows) => (rows, "output row"),
            Some(Sym::Seqs | Sym::Context | Sym::Slots) | None => continue,
        };
        let got = length(inputs, input);
        if got != wanted {
            return Err(Error::input(
                input.name(),
                format!("it has {got} elements, and the step {wanted}: one for each {per}"),
            ));
        }
    }
    let uses = |input: Input| used.contains(&input);
    if uses(Input::TokenIds) {
        range(Input::TokenIds, &inputs.token_ids, 0, bounds.vocab, "the vocabulary")?;
    }
    if uses(Input::Positions) {
        let what = if bounds.positions < bounds.max_seq { "the learned positions" } else { "--max-seq" };
        range(Input::Positions, &inputs.positions, 0, bounds.positions, what)?;
    }
    if uses(Input::TokenTypes) {
        range(Input::TokenTypes, &inputs.token_types, 0, bounds.token_types, "the token types")?;
    }
    if uses(Input::Prompts) {
        range(Input::Prompts, &inputs.prompts, 0, bounds.max_seq + 1, "0 to --max-seq")?;
    }
    if uses(Input::Lengths) {
        whole_sequences(inputs, bounds, tokens)?;
    } else if uses(Input::SlotBase) {
        slot_base(&inputs.slot_base, bounds)?;
    }
    if uses(Input::Sequences) {
        let seqs = if uses(Input::SlotBase) { inputs.slot_base.len() } else { bounds.seqs };
        range(Input::Sequences, &inputs.sequences, 0, seqs, "the sequences of slot_base")?;
        if let Some(at) = inputs.sequences.windows(2).position(|w| w[0] > w[1]) {
            let why = format!("element {} is less than the one before it: they must ascend", at + 1);
            return Err(Error::input(Input::Sequences.name(), why));
        }
    }
    if uses(Input::Slots) {
        range(Input::Slots, &inputs.slots, -1, bounds.slots, "max_batch · max_seq")?;
        let mut written: Vec<i32> = inputs.slots.iter().copied().filter(|&s| s >= 0).collect();
        written.sort_unstable();
        if let Some(w) = written.windows(2).find(|w| w[0] == w[1]) {
            let why = format!("two tokens write to slot {}", w[0]);
            return Err(Error::input(Input::Slots.name(), why));
        }
    }
    if uses(Input::OutputRows) {
        range(Input::OutputRows, &inputs.output_rows, 0, tokens, "the step's tokens")?;
    }
    numbers(inputs, used)?;
    let most = |values: &[i32]| values.iter().copied().max().map_or(0, |v| v as usize);
    let context = match (uses(Input::Lengths), uses(Input::Positions)) {
        (true, _) => most(&inputs.lengths),
        (false, true) => most(&inputs.positions) + 1,
        (false, false) => bounds.max_seq,
    };
    Ok(Sizes { tokens, rows, context })
}

/// Sampling parameters are numbers.
fn numbers(inputs: &StepInputs, used: &[Input]) -> Result<()> {
    let lists = [
        (Input::Temperature, &inputs.temperature),
        (Input::TopP, &inputs.top_p),
        (Input::MinP, &inputs.min_p),
        (Input::RepetitionPenalty, &inputs.repetition_penalty),
        (Input::PresencePenalty, &inputs.presence_penalty),
    ];
    for (input, values) in lists.into_iter().filter(|(i, _)| used.contains(i)) {
        if let Some(at) = values.iter().position(|v| v.is_nan()) {
            return Err(Error::input(input.name(), format!("element {at} is not a number")));
        }
    }
    Ok(())
}

/// A sequence's slots, `base .. base + max_seq`, are all in the cache: kernels may look at all of them.
fn slot_base(bases: &[i32], bounds: &Bounds) -> Result<()> {
    let fault = |why: String| Err(Error::input(Input::SlotBase.name(), why));
    if bases.is_empty() || bases.len() > bounds.seqs {
        return fault(format!("it has {} elements; 1 to {} sequences fit", bases.len(), bounds.seqs));
    }
    let fits = |&b: &i32| usize::try_from(b).is_ok_and(|b| b + bounds.max_seq <= bounds.slots);
    match bases.iter().position(|b| !fits(b)) {
        None => Ok(()),
        Some(at) => fault(format!(
            "element {at} is {}: its {} slots are not all among the cache's {}",
            bases[at], bounds.max_seq, bounds.slots
        )),
    }
}

/// The sequences of an encoder lie one behind the other, and together are the step: kernels look at all rows of a
/// sequence.
fn whole_sequences(inputs: &StepInputs, bounds: &Bounds, tokens: usize) -> Result<()> {
    let (bases, lengths) = (&inputs.slot_base, &inputs.lengths);
    if lengths.is_empty() || lengths.len() > bounds.seqs {
        let why = format!("it has {} elements; 1 to {} sequences fit", lengths.len(), bounds.seqs);
        return Err(Error::input(Input::Lengths.name(), why));
    }
    if bases.len() != lengths.len() {
        let why = format!("it has {} elements, and lengths {}", bases.len(), lengths.len());
        return Err(Error::input(Input::SlotBase.name(), why));
    }
    range(Input::Lengths, lengths, 1, bounds.max_seq + 1, "1 to --max-seq")?;
    let mut at = 0;
    for (s, (&base, &length)) in bases.iter().zip(lengths).enumerate() {
        let length = length as usize;
        if base != at as i32 {
            let why = format!("element {s} is {base}, and the sequences before it end at {at}");
            return Err(Error::input(Input::SlotBase.name(), why));
        }
        let own = inputs.sequences.get(at..at + length).unwrap_or_default();
        if own.len() != length || own.iter().any(|&of| of != s as i32) {
            let why = format!("{length} tokens from {at} on are not all of sequence {s}, as lengths says");
            return Err(Error::input(Input::Sequences.name(), why));
        }
        at += length;
    }
    if at == tokens {
        return Ok(());
    }
    Err(Error::input(Input::Lengths.name(), format!("together {at}, and the step has {tokens} tokens")))
}

/// All elements are in `least..end`.
fn range(input: Input, values: &[i32], least: i32, end: usize, what: &str) -> Result<()> {
    let inside = |&v: &i32| v >= least && i64::from(v) < end as i64;
    match values.iter().position(|v| !inside(v)) {
        None => Ok(()),
        Some(at) => {
            let why = format!("element {at} is {}, outside {least}..{end} ({what})", values[at]);
            Err(Error::input(input.name(), why))
        }
    }
}

/// The symbol that is an input's extent.
fn sym(input: Input) -> Option<Sym> {
    match input.ty().shape.first() {
        Some(Dim::Sym(s)) => Some(*s),
        Some(Dim::Const(_)) | None => None,
    }
}

fn length(inputs: &StepInputs, input: Input) -> usize {
    super::bucket::input_bytes(inputs, input).len() / input.ty().dtype().size()
}
