//! What a plan can hold, which of its entries takes a step, and padding a step to its entry.

use weft_ir::dtype::DType;
use weft_ir::graph::{Graph, Input, Op};
use weft_ir::plan::{BufferKind, Entry, Plan, Role};
use weft_ir::reference::StepInputs;
use weft_ir::shape::{Bindings, Dim, Shape, Sym};

use super::check::{Bounds, Sizes};
use super::{Limits, tables};
use crate::error::{Error, Result};

/// Name of the output that holds sampled tokens.
pub const TOKENS: &str = "tokens";
/// Name of the output that holds logits.
pub const LOGITS: &str = "logits";
/// Name of the output that holds an encoder's hidden states.
pub const HIDDEN: &str = "last_hidden_state";

/// Lower-case name of a role.
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Decode => "decode",
        Role::Prefill => "prefill",
        Role::Score => "score",
        Role::Encode => "encode",
    }
}

/// What a plan's steps can hold.
///
/// # Errors
/// [`Error::Plan`] for a plan with neither `logits` (rows × vocabulary) nor `last_hidden_state` (tokens × width), or
/// with `tokens` that are not i32, one for each row.
pub fn plan_limits(plan: &Plan) -> Result<Limits> {
    let tokens = plan.buffers.iter().find(|b| matches!(&b.kind, BufferKind::Output(name) if name == TOKENS));
    if let Some(b) = tokens.filter(|b| b.dtype != DType::I32 || b.shape != [Dim::Sym(Sym::Rows)]) {
        let text = weft_ir::shape::shape_text(&b.shape);
        return Err(Error::plan("output tokens", format!("it is {} {text}, not i32 [rows]", b.dtype)));
    }
    let outputs = plan.buffers.iter().filter_map(|b| match &b.kind {
        BufferKind::Output(name) => Some((name.as_str(), b.dtype, &b.shape)),
        _ => None,
    });
    let (vocab, hidden) = widths(outputs)?;
    let most = |role| {
        plan.entries.iter().filter(|e| e.role == role).map(|e| e.bind.tokens).max().unwrap_or_default()
    };
    Ok(Limits {
        max_seq: plan.max_seq,
        max_batch: plan.max_batch,
        prefill_tokens: most(Role::Prefill),
        score_tokens: most(Role::Score),
        encode_tokens: most(Role::Encode),
        vocab,
        hidden,
    })
}

/// Widths of a graph's logits and of its hidden states; it has one of the two.
///
/// # Errors
/// As [`plan_limits`].
pub fn graph_widths(graph: &Graph) -> Result<(Option<usize>, Option<usize>)> {
    let ty = |o: &weft_ir::graph::Output| graph.ty(o.value).clone();
    let types: Vec<_> = graph.outputs.iter().map(|o| (o.name.as_str(), ty(o))).collect();
    widths(types.iter().map(|(name, ty)| (*name, ty.dtype(), &ty.shape)))
}

fn widths<'a>(
    outputs: impl Iterator<Item = (&'a str, DType, &'a Shape)>,
) -> Result<(Option<usize>, Option<usize>)> {
    let (mut vocab, mut hidden) = (None, None);
    for (name, dtype, shape) in outputs {
        let (width, sym) = match name {
            LOGITS => (&mut vocab, Sym::Rows),
            HIDDEN => (&mut hidden, Sym::Tokens),
            _ => continue,
        };
        let fault = |why: String| Error::plan(format!("output {name}"), why);
        if !dtype.is_float() {
            return Err(fault(format!("its type is {dtype}, not a float")));
        }
        match shape.as_slice() {
            [Dim::Sym(s), Dim::Const(n)] if *s == sym => *width = Some(*n),
            other => {
                let text = weft_ir::shape::shape_text(other);
                return Err(fault(format!("its shape is {text}, not [{}, width]", sym.name())));
            }
        }
    }
    match (vocab, hidden) {
        (None, None) => Err(Error::plan("outputs", format!("there is neither {LOGITS} nor {HIDDEN}"))),
        found => Ok(found),
    }
}

/// The step inputs that a plan uses.
pub fn plan_inputs(plan: &Plan) -> Vec<Input> {
    let used = |i: &Input| plan.buffers.iter().any(|b| b.kind == BufferKind::Input(*i));
    Input::ALL.into_iter().filter(used).collect()
}

/// The step inputs that a graph uses.
pub fn graph_inputs(graph: &Graph) -> Vec<Input> {
    let used = |i: &Input| graph.nodes.iter().any(|n| n.op == Op::Input(*i));
    Input::ALL.into_iter().filter(used).collect()
}

/// What the values of a plan's inputs must stay below, in every entry.
///
/// # Errors
/// As [`plan_limits`].
pub fn bounds(plan: &Plan) -> Result<Bounds> {
    let least = |of: fn(&Bindings) -> usize| plan.entries.iter().map(|e| of(&e.bind)).min().unwrap_or(0);
    let sizes = (plan.max_seq, least(|b| b.seqs), least(|b| b.slots));
    Ok(bounds_of(plan_limits(plan)?.vocab, sizes, |input| tables::plan_rows(plan, input)))
}

/// The same of a graph, run with this longest context, these sequences and slots.
pub fn graph_bounds(graph: &Graph, vocab: Option<usize>, sizes: (usize, usize, usize)) -> Bounds {
    bounds_of(vocab, sizes, |input| tables::graph_rows(graph, input))
}

fn bounds_of(
    vocab: Option<usize>,
    (max_seq, seqs, slots): (usize, usize, usize),
    rows: impl Fn(Input) -> Option<usize>,
) -> Bounds {
    Bounds {
        vocab: rows(Input::TokenIds).or(vocab).unwrap_or(0),
        positions: rows(Input::Positions).map_or(max_seq, |n| n.min(max_seq)),
        token_types: rows(Input::TokenTypes).unwrap_or(0),
        max_seq,
        seqs,
        slots,
    }
}

/// The smallest entry of a role that holds a step: a position in [`Plan::entries`].
///
/// # Errors
/// [`Error::NoBucket`] with what there is.
pub fn choose(plan: &Plan, role: Role, step: &Sizes) -> Result<usize> {
    let Sizes { tokens, rows, context } = *step;
    let holds = |e: &Entry| {
        let b = &e.bind;
        e.role == role && tokens <= b.tokens && rows <= b.rows && context <= b.context
    };
    let fitting = plan.entries.iter().enumerate().filter(|(_, e)| holds(e));
    let best = fitting.min_by_key(|(i, e)| (e.bind.tokens, e.bind.rows, e.bind.context, *i));
    best.map(|(i, _)| i).ok_or_else(|| {
        let of_role: Vec<&Entry> = plan.entries.iter().filter(|e| e.role == role).collect();
        let (listed, remedy) = match role {
            _ if of_role.is_empty() => (plan.entries.iter().collect(), "use a role that it has"),
            Role::Decode => (of_role, "split the step, or compile with a higher --max-batch"),
            Role::Prefill | Role::Score => (of_role, "split the step"),
            Role::Encode => (of_role, "split the step between sequences"),
        };
        let text = |e: &Entry| format!("{} ({} tokens, {} rows)", e.name, e.bind.tokens, e.bind.rows);
        let available: Vec<String> = listed.into_iter().map(text).collect();
        let available = if available.is_empty() { "none".into() } else { available.join(", ") };
        Error::NoBucket { role: role_name(role), tokens, rows, available, remedy }
    })
}

/// A step padded to the sizes of an entry. Padding tokens have token, position and sequence 0 and write to no
/// slot; padding rows are those of token 0, sampled greedily; padding sequences have one token.
pub fn pad(inputs: &StepInputs, bind: &Bindings) -> StepInputs {
    fn to<T: Copy>(values: &[T], len: usize, pad: T) -> Vec<T> {
        let mut out = Vec::with_capacity(len);
        out.extend(values.iter().copied().chain(std::iter::repeat(pad)).take(len));
        out
    }
    let (tokens, rows) = (bind.tokens, bind.rows);
    StepInputs {
        token_ids: to(&inputs.token_ids, tokens, 0),
        positions: to(&inputs.positions, tokens, 0),
        sequences: to(&inputs.sequences, tokens, 0),
        slots: to(&inputs.slots, tokens, -1),
        slot_base: to(&inputs.slot_base, bind.seqs, 0),
        output_rows: to(&inputs.output_rows, rows, 0),
        temperature: to(&inputs.temperature, rows, 0.0),
        top_k: to(&inputs.top_k, rows, 0),
        top_p: to(&inputs.top_p, rows, 1.0),
        min_p: to(&inputs.min_p, rows, 0.0),
        seed: to(&inputs.seed, rows, 0),
        repetition_penalty: to(&inputs.repetition_penalty, rows, 1.0),
        presence_penalty: to(&inputs.presence_penalty, rows, 0.0),
        prompt_lengths: to(&inputs.prompt_lengths, rows, 0),
        lengths: to(&inputs.lengths, bind.seqs, 1),
        token_types: to(&inputs.token_types, tokens, 0),
        prompts: to(&inputs.prompts, tokens, 0),
    }
}

/// The elements of an input as the device's bytes.
pub fn input_bytes(inputs: &StepInputs, input: Input) -> &[u8] {
    match input {
        Input::TokenIds => bytemuck::cast_slice(&inputs.token_ids),
        Input::Positions => bytemuck::cast_slice(&inputs.positions),
        Input::Sequences => bytemuck::cast_slice(&inputs.sequences),
        Input::Slots => bytemuck::cast_slice(&inputs.slots),
        Input::SlotBase => bytemuck::cast_slice(&inputs.slot_base),
        Input::OutputRows => bytemuck::cast_slice(&inputs.output_rows),
        Input::Temperature => bytemuck::cast_slice(&inputs.temperature),
        Input::TopK => bytemuck::cast_slice(&inputs.top_k),
        Input::TopP => bytemuck::cast_slice(&inputs.top_p),
        Input::MinP => bytemuck::cast_slice(&inputs.min_p),
        Input::Seed => bytemuck::cast_slice(&inputs.seed),
        Input::RepetitionPenalty => bytemuck::cast_slice(&inputs.repetition_penalty),
        Input::PresencePenalty => bytemuck::cast_slice(&inputs.presence_penalty),
        Input::PromptLengths => bytemuck::cast_slice(&inputs.prompt_lengths),
        Input::Lengths => bytemuck::cast_slice(&inputs.lengths),
        Input::TokenTypes => bytemuck::cast_slice(&inputs.token_types),
        Input::Prompts => bytemuck::cast_slice(&inputs.prompts),
    }
}
