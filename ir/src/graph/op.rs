//! The closed set of graph operations.
//!
//! Matched exhaustively everywhere, so that a new op lists its own work: shape inference
//! (`graph/infer.rs`), text (`graph/print.rs`, `graph/parse.rs`), semantics (`reference/`), lowering.

use crate::dtype::{DType, Encoding};
use crate::scalar::{Binary, Compare, Reduce, Unary};
use crate::shape::{Dim, Shape};
use serde::{Deserialize, Serialize};

/// A step input: a small array that the runtime fills before each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Input {
    /// `[tokens]` i32: token id. Padding: 0.
    TokenIds,
    /// `[tokens]` i32: position of the token in its sequence, from 0. Padding: 0.
    Positions,
    /// `[tokens]` i32: sequence (row of [`Input::SlotBase`]) of the token. Padding: 0.
    Sequences,
    /// `[tokens]` i32: cache slot that the token's state is written to; −1 (padding) writes nothing.
    Slots,
    /// `[seqs]` i32: first cache slot of each sequence; position p is in slot base + p. In an encoder: the
    /// sequence's first token of the step.
    SlotBase,
    /// `[rows]` i32: tokens whose logits the step outputs.
    OutputRows,
    /// `[rows]` f32: sampling temperature; 0 is greedy.
    Temperature,
    /// `[rows]` i32: keep the k most likely tokens; 0 keeps all.
    TopK,
    /// `[rows]` f32: keep the most likely tokens of this total probability; 1 keeps all.
    TopP,
    /// `[rows]` f32: keep tokens at least this likely relative to the most likely; 0 keeps all.
    MinP,
    /// `[rows]` u32: sampling seed.
    Seed,
    /// `[rows]` f32: divides the positive logits of the sequence's tokens and multiplies the others; 1 changes
    /// nothing.
    RepetitionPenalty,
    /// `[rows]` f32: taken from the logits of the sequence's tokens behind its prompt; 0 changes nothing.
    PresencePenalty,
    /// `[rows]` i32: tokens of the sequence's prompt.
    PromptLengths,
    /// `[seqs]` i32: tokens of each sequence of an encoder, all of them in the step. Padding: 1.
    Lengths,
    /// `[tokens]` i32: token type (segment) of the token. Padding: 0.
    TokenTypes,
    /// `[tokens]` i32: tokens of the whole prompt of the token's sequence, of which a step may hold a part.
    /// Padding: 0.
    Prompts,
}

impl Input {
    /// All inputs, in declaration order.
    pub const ALL: [Input; 17] = [
        Input::TokenIds,
        Input::Positions,
        Input::Sequences,
        Input::Slots,
        Input::SlotBase,
        Input::OutputRows,
        Input::Temperature,
        Input::TopK,
        Input::TopP,
        Input::MinP,
        Input::Seed,
        Input::RepetitionPenalty,
        Input::PresencePenalty,
        Input::PromptLengths,
        Input::Lengths,
        Input::TokenTypes,
        Input::Prompts,
    ];

    /// Lower-case name, as printed, parsed, and used in kernels.
    pub fn name(self) -> &'static str {
        match self {
            Input::TokenIds => "token_ids",
            Input::Positions => "positions",
            Input::Sequences => "sequences",
            Input::Slots => "slots",
            Input::SlotBase => "slot_base",
            Input::OutputRows => "output_rows",
            Input::Temperature => "temperature",
            Input::TopK => "top_k",
            Input::TopP => "top_p",
            Input::MinP => "min_p",
            Input::Seed => "seed",
            Input::RepetitionPenalty => "repetition_penalty",
            Input::PresencePenalty => "presence_penalty",
            Input::PromptLengths => "prompt_lengths",
            Input::Lengths => "lengths",
            Input::TokenTypes => "token_types",
            Input::Prompts => "prompts",
        }
    }

    /// The input of this name.
    pub fn parse(name: &str) -> Option<Input> {
        Input::ALL.into_iter().find(|i| i.name() == name)
    }

    /// Element type and shape.
    pub fn ty(self) -> ValueType {
        use crate::shape::Sym;
        let (dtype, sym) = match self {
            Input::TokenIds
            | Input::Positions
            | Input::Sequences
            | Input::Slots
            | Input::TokenTypes
            | Input::Prompts => (DType::I32, Sym::Tokens),
            Input::SlotBase | Input::Lengths => (DType::I32, Sym::Seqs),
            Input::OutputRows | Input::TopK | Input::PromptLengths => (DType::I32, Sym::Rows),
            Input::Temperature
            | Input::TopP
            | Input::MinP
            | Input::RepetitionPenalty
            | Input::PresencePenalty => (DType::F32, Sym::Rows),
            Input::Seed => (DType::U32, Sym::Rows),
        };
        ValueType::plain(dtype, vec![sym.into()])
    }
}

/// Type of a value: shape and how its bits are stored.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ValueType {
    /// Storage.
    pub encoding: Encoding,
    /// Extents, outermost first.
    pub shape: Shape,
}

impl ValueType {
    /// A value of plainly stored elements.
    pub fn plain(dtype: DType, shape: Shape) -> Self {
        ValueType { encoding: Encoding::Plain(dtype), shape }
    }

    /// Type of one element once decoded.
    pub fn dtype(&self) -> DType {
        self.encoding.value_type()
    }

    /// Whether elements are stored plainly.
    pub fn is_plain(&self) -> bool {
        matches!(self.encoding, Encoding::Plain(_))
    }
}

/// Literal values of a constant node, row-major.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Literal {
    /// f32 elements.
    F32(Vec<f32>),
    /// i32 elements.
    I32(Vec<i32>),
}

/// An operation. Inputs are in the order given in each description; every op has one result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Op {
    /// () → a step input.
    Input(Input),
    /// () → a checkpoint tensor, by its name in the file, as stored.
    Weight {
        /// Name of the tensor in its file.
        tensor: String,
        /// Storage and shape.
        ty: ValueType,
    },
    /// () → literal elements of this shape.
    Constant {
        /// Elements.
        literal: Literal,
        /// Shape.
        shape: Shape,
    },
    /// () → i32 indices along `axis` of this shape.
    Iota {
        /// Axis that counts.
        axis: usize,
        /// Shape.
        shape: Shape,
    },
    /// () → the state of this name as the step begins.
    State {
        /// Name, unique in the graph.
        name: String,
        /// Storage and shape.
        ty: ValueType,
    },
    /// (x) or (x, scales) → plain f32 values of an encoded tensor; with the scales that
    /// [`Encoding::scales`] says.
    Decode,
    /// (x) → elementwise.
    Unary(Unary),
    /// (a, b) → elementwise on equal shapes.
    Binary(Binary),
    /// (a, b) → elementwise on equal shapes, bool.
    Compare(Compare),
    /// (condition, a, b) → a where the condition is true, else b; equal shapes.
    Select,
    /// (x) → converted to a type, round to nearest even.
    Cast(DType),
    /// (x) → same elements in row-major order, other shape. Symbolic extents keep their place as
    /// leading dims or are untouched.
    Reshape(Shape),
    /// (x) → axes permuted: result axis i is input axis `perm[i]`.
    Transpose(Vec<usize>),
    /// (x) → extents of 1 repeated to this shape of equal rank.
    Broadcast(Shape),
    /// (x) → elements `start..start+len` of a constant axis.
    Slice {
        /// Axis.
        axis: usize,
        /// First element.
        start: usize,
        /// Elements.
        len: usize,
    },
    /// (x₀, x₁, …) → joined along a constant axis.
    Concat {
        /// Axis.
        axis: usize,
    },
    /// (x) → floats reduced along the last axis, which becomes 1, to f32.
    Reduce(Reduce),
    /// (x) → softmax along the last axis; −∞ entries give 0.
    Softmax,
    /// (a `[batch…, m, k]`, b `[batch…, k, n]` or, transposed, `[batch…, n, k]`) → `[batch…, m, n]`, products
    /// accumulated in f32, stored as `out`.
    MatMul {
        /// Whether b is stored as `[batch…, n, k]`.
        transpose_b: bool,
        /// Element type of the result.
        out: DType,
    },
    /// (x) → i32 indices of the `k` largest elements along the last axis, which becomes `k`: the largest first, of
    /// equal ones the one that comes first. NaN counts as −∞.
    TopK {
        /// Elements taken.
        k: usize,
    },
    /// (a `[t, r, i]`, b `[experts, n, i]`, index `[t, picks]` i32) → `[t, picks, n]`: for each pick, the row of a
    /// times the transposed matrix of b that the index names, products accumulated in f32, stored as `out`.
    /// r is `picks`, or 1: one row for all picks. Index out of range is an error.
    RoutedMatMul {
        /// Element type of the result.
        out: DType,
    },
    /// (table `[n, rest…]`, index `[i…]` i32) → `[i…, rest…]`: rows of the table. Index out of range is an error.
    Gather,
    /// (state `[n, rest…]`, rows `[t, rest…]`, index `[t]` i32) → the state with those rows replaced; a negative
    /// index writes nothing. The state is consumed (linear).
    Scatter,
    /// (logits `[r, v]` f32, history `[n]` i32, base, position, prompt `[r]` i32, repetition, presence `[r]` f32) →
    /// the logits after the penalties of each row's tokens, history[base ..= base + position], of which the first
    /// `prompt` are the prompt's. See `crate::sampling::penalize_row`.
    Penalize,
    /// (logits `[r, v]` f32, position `[r]` i32, temperature, top_k, top_p, min_p, seed `[r]`) → token `[r]` i32.
    ///
    /// Order as in Hugging Face's logits processors, behind the penalties: temperature, top-k, top-p, min-p, then a draw by the
    /// Gumbel-max trick with Philox4x32-10 bits of (seed, position, token); temperature 0 takes the
    /// largest logit, the smallest id among equals. See `crate::sampling`.
    Sample,
}

impl Op {
    /// Whether the op yields a value without inputs.
    pub fn is_source(&self) -> bool {
        self.arity() == Some(0)
    }

    /// Number of inputs; `None` when it varies.
    pub fn arity(&self) -> Option<usize> {
        match self {
            Op::Input(_) | Op::Weight { .. } | Op::Constant { .. } | Op::Iota { .. } | Op::State { .. } => {
                Some(0)
            }
            Op::Unary(_)
            | Op::Cast(_)
            | Op::Reshape(_)
            | Op::Transpose(_)
            | Op::Broadcast(_)
            | Op::Slice { .. }
            | Op::Reduce(_)
            | Op::Softmax
            | Op::TopK { .. } => Some(1),
            Op::Binary(_) | Op::Compare(_) | Op::MatMul { .. } | Op::Gather => Some(2),
            Op::Select | Op::Scatter | Op::RoutedMatMul { .. } => Some(3),
            Op::Penalize | Op::Sample => Some(7),
            Op::Decode | Op::Concat { .. } => None,
        }
    }

    /// Keyword of the text form and of reports.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Input(_) => "input",
            Op::Weight { .. } => "weight",
            Op::Constant { .. } => "constant",
            Op::Iota { .. } => "iota",
            Op::State { .. } => "state",
            Op::Decode => "decode",
            Op::Unary(u) => u.name(),
            Op::Binary(b) => b.name(),
            Op::Compare(c) => c.name(),
            Op::Select => "select",
            Op::Cast(_) => "cast",
            Op::Reshape(_) => "reshape",
            Op::Transpose(_) => "transpose",
            Op::Broadcast(_) => "broadcast",
            Op::Slice { .. } => "slice",
            Op::Concat { .. } => "concat",
            Op::Reduce(r) => r.name(),
            Op::Softmax => "softmax",
            Op::MatMul { .. } => "matmul",
            Op::TopK { .. } => "top_k",
            Op::RoutedMatMul { .. } => "routed_matmul",
            Op::Gather => "gather",
            Op::Scatter => "scatter",
            Op::Penalize => "penalize",
            Op::Sample => "sample",
        }
    }

    /// Whether each result element depends on one element of each input, found by index arithmetic
    /// alone (elementwise ops, movement, gather).
    pub fn is_pointwise(&self) -> bool {
        match self {
            Op::Constant { .. }
            | Op::Iota { .. }
            | Op::Unary(_)
            | Op::Binary(_)
            | Op::Compare(_)
            | Op::Select
            | Op::Cast(_)
            | Op::Reshape(_)
            | Op::Transpose(_)
            | Op::Broadcast(_)
            | Op::Slice { .. }
            | Op::Concat { .. }
            | Op::Gather => true,
            Op::Input(_)
            | Op::Weight { .. }
            | Op::State { .. }
            | Op::Decode
            | Op::Reduce(_)
            | Op::Softmax
            | Op::MatMul { .. }
            | Op::TopK { .. }
            | Op::RoutedMatMul { .. }
            | Op::Scatter
            | Op::Penalize
            | Op::Sample => false,
        }
    }
}

/// Product of the constant extents of a shape.
pub fn const_elements(shape: &[Dim]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, d| n.checked_mul(d.as_const()?))
}
