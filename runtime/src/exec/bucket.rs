//! What a plan can hold, which of its entries takes a step, and padding a step to its entry.

use weft_ir::dtype::DType;
use weft_ir::graph::{Graph, Input, Op};
use weft_ir::plan::{BufferKind, Entry, Plan, Role};
use weft_ir::reference::StepInputs;
use weft_ir::shape::{Bindings, Dim, Shape, Sym};

use super::Limits;
use super::check::{Bounds, Sizes};
use crate::error::{Error, Result};

/// Name of the output that holds sampled tokens.
pub const TOKENS: &str = "tokens";
/// Name of the output that holds logits.
pub const LOGITS: &str = "logits";

/// Lower-case name of a role.
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Decode => "decode",
        Role::Prefill => "prefill",
        Role::Score => "score",
    }
}

/// What a plan's steps can hold.
///
/// # Errors
/// [`Error::Plan`] for a plan without `logits` (rows × vocabulary), which say how large the vocabulary is, or with
/// `tokens` that are not i32, one for each row.
pub fn plan_limits(plan: &Plan) -> Result<Limits> {
    let tokens = plan.buffers.iter().find(|b| matches!(&b.kind, BufferKind::Output(name) if name == TOKENS));
    if let Some(b) = tokens.filter(|b| b.dtype != DType::I32 || b.shape != [Dim::Sym(Sym::Rows)]) {
        let text = weft_ir::shape::shape_text(&b.shape);
        return Err(Error::plan("output tokens", format!("it is {} {text}, not i32 [rows]", b.dtype)));
    }
    let logits = plan.buffers.iter().find(|b| matches!(&b.kind, BufferKind::Output(name) if name == LOGITS));
    let vocab = vocab_of(logits.map(|b| (b.dtype, &b.shape)))?;
    let most = |role| {
        plan.entries.iter().filter(|e| e.role == role).map(|e| e.bind.tokens).max().unwrap_or_default()
    };
    Ok(Limits {
        max_seq: plan.max_seq,
        max_batch: plan.max_batch,
        prefill_tokens: most(Role::Prefill),
        score_tokens: most(Role::Score),
        vocab,
    })
}

/// The vocabulary of a graph.
///
/// # Errors
/// As [`plan_limits`].
pub fn graph_vocab(graph: &Graph) -> Result<usize> {
    let logits = graph.outputs.iter().find(|o| o.name == LOGITS).map(|o| graph.ty(o.value));
    vocab_of(logits.map(|ty| (ty.dtype(), &ty.shape)))
}

fn vocab_of(logits: Option<(DType, &Shape)>) -> Result<usize> {
    let fault = |why: String| Error::plan("output logits", why);
    match logits {
        None => Err(fault("there is none, so the vocabulary's size is not known".into())),
        Some((dtype, _)) if !dtype.is_float() => Err(fault(format!("its type is {dtype}, not a float"))),
        Some((_, shape)) => match shape.as_slice() {
            [Dim::Sym(Sym::Rows), Dim::Const(vocab)] => Ok(*vocab),
            other => {
                let text = weft_ir::shape::shape_text(other);
                Err(fault(format!("its shape is {text}, not [rows, vocabulary]")))
            }
        },
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
    Ok(Bounds {
        vocab: plan_limits(plan)?.vocab,
        max_seq: plan.max_seq,
        seqs: least(|b| b.seqs),
        slots: least(|b| b.slots),
    })
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
        };
        let text = |e: &Entry| format!("{} ({} tokens, {} rows)", e.name, e.bind.tokens, e.bind.rows);
        let available: Vec<String> = listed.into_iter().map(text).collect();
        let available = if available.is_empty() { "none".into() } else { available.join(", ") };
        Error::NoBucket { role: role_name(role), tokens, rows, available, remedy }
    })
}

/// A step padded to the sizes of an entry. Padding tokens have token, position and sequence 0 and write to no
/// slot; padding rows are those of token 0, sampled greedily.
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
    }
}
