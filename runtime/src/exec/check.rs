//! Checks of step inputs: device code trusts them, so nothing out of range may reach it.

use weft_ir::graph::Input;
use weft_ir::reference::StepInputs;
use weft_ir::shape::{Dim, Sym};

use crate::error::{Error, Result};

/// What the values of inputs must stay below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Entries of the vocabulary.
    pub vocab: usize,
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
    /// Longest context: the largest position, plus one.
    pub context: usize,
}

/// Checks the inputs that a plan uses (others are not looked at), and gives the step's sizes.
///
/// # Errors
/// [`Error::Input`] with the input, the element and what is allowed.
pub fn check(inputs: &StepInputs, used: &[Input], bounds: &Bounds) -> Result<Sizes> {
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
        range(Input::Positions, &inputs.positions, 0, bounds.max_seq, "--max-seq")?;
    }
    if uses(Input::SlotBase) {
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
    let context = inputs.positions.iter().copied().max().filter(|_| uses(Input::Positions));
    Ok(Sizes { tokens, rows, context: context.map_or(bounds.max_seq, |p| p as usize + 1) })
}

/// Sampling parameters are numbers.
fn numbers(inputs: &StepInputs, used: &[Input]) -> Result<()> {
    let lists = [
        (Input::Temperature, &inputs.temperature),
        (Input::TopP, &inputs.top_p),
        (Input::MinP, &inputs.min_p),
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
