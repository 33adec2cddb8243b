//! Works of mixtures of experts: the choice of experts, row by row, and the products with chosen matrices.

use super::{Scalar, Store};
use crate::dtype::DType;
use crate::ids::OperandId;
use crate::scalar::Reduce;
use crate::shape::Dim;
use serde::{Deserialize, Serialize};

/// Steps of one computation on each row, whose intermediate results are small and go nowhere else: a router's
/// logits, scores, choice and weights.
///
/// In all expressions Coord 0 is the row; [`Scalar::Local`] is an element of an earlier step's result of the
/// same row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Steps {
    /// Rows.
    pub rows: Dim,
    /// Steps, in order.
    pub steps: Vec<Step>,
}

/// One step: an array of each row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Extents of a row's result.
    pub shape: Vec<usize>,
    /// Element type: f32 or i32.
    pub dtype: DType,
    /// How it is made.
    pub kind: StepKind,
    /// Position in the work's `writes` of the array `[rows, shape…]` that the result is stored to, if it is.
    pub output: Option<u8>,
}

/// How a step's result is made. Coords 1… are those of the result's element.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum StepKind {
    /// Each element by itself.
    Map(Scalar),
    /// A reduction for each element; the Coord after the element's is the position.
    Reduce {
        /// How: a sum or the largest.
        op: Reduce,
        /// Positions.
        extent: usize,
        /// What is reduced.
        value: Scalar,
    },
    /// Element n is Σₖ a(row, k) · b[n, k], in f32, with k as Coord 1.
    Product {
        /// Length.
        k: usize,
        /// Left operand.
        a: Scalar,
        /// Right operand: an array of floats.
        b: OperandId,
    },
    /// i32 positions of the largest of `extent` values, along the last axis, as [`crate::graph::Op::TopK`] orders
    /// them; the last of the element's Coords is the position.
    TopK {
        /// Positions.
        extent: usize,
        /// Values.
        value: Scalar,
    },
}

impl Step {
    /// Elements of a row's result.
    pub fn elements(&self) -> usize {
        self.shape.iter().copied().fold(1, usize::saturating_mul)
    }
}

impl StepKind {
    /// The expression, and its number of coordinates for a result of this rank.
    pub fn value(&self, rank: usize) -> (&Scalar, usize) {
        match self {
            StepKind::Map(value) | StepKind::TopK { value, .. } => (value, rank + 1),
            StepKind::Reduce { value, .. } => (value, rank + 2),
            StepKind::Product { a, .. } => (a, 2),
        }
    }
}

/// Products of rows with matrices that an index chooses: acc[t, j, n] = Σₖ a[t, j, k] · b[index[t, j], n, k] in
/// f32, for each of the weights b. A *pair* is a token t and its pick j.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Routed {
    /// Tokens.
    pub tokens: Dim,
    /// Picks of a token.
    pub picks: usize,
    /// Matrices to choose from.
    pub experts: usize,
    /// Results of a pair.
    pub n: usize,
    /// Length of the products.
    pub k: usize,
    /// Left operand: an array [tokens, picks, k], or [tokens, 1, k]: one row for all picks.
    pub a: OperandId,
    /// Right operands, one or two: arrays [experts, n, k]; accumulator i is of the i-th.
    pub weights: Vec<OperandId>,
    /// Chosen matrices: an i32 array [tokens, picks].
    pub index: OperandId,
    /// The pairs by matrix, where that is made: results of a [`Grouping`].
    pub grouped: Option<Grouped>,
    /// Epilogue over Coord 0 = token, 1 = pick, 2 = n.
    pub stores: Vec<Store>,
}

/// Where a work finds the pairs by matrix.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Grouped {
    /// i32 [tokens, picks]: pairs, numbered token · picks + pick, in the order of their matrices.
    pub order: OperandId,
    /// i32 [experts + 1]: where each matrix's pairs begin in that order, and the end.
    pub begins: OperandId,
}

/// Sorts pairs by the matrix they chose: reads the index [tokens, picks], writes order and begins of [`Grouped`].
/// Pairs of one matrix stay in their order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Grouping {
    /// Tokens.
    pub tokens: Dim,
    /// Picks of a token.
    pub picks: usize,
    /// Matrices.
    pub experts: usize,
}
