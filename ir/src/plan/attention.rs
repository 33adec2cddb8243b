//! Attention: what a dispatch of it computes, and the rows that it may make itself.

use super::{Operand, Scalar, Stage, Store};
use crate::dtype::DType;
use crate::ids::OperandId;
use crate::scalar::Binary;
use crate::shape::Dim;
use serde::{Deserialize, Serialize};

/// Attention of each token over the cached keys of its sequence, with online softmax
/// (Milakov & Gimelshein 2018; Dao et al. 2022):
/// out[t, h] = softmaxⱼ(score(q[t, h] · keys[slot(t, j), h/group])) · values[slot(t, j), h/group],
/// for j in 0..length(t).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attention {
    /// Tokens.
    pub tokens: Dim,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Query heads for each of them.
    pub group: usize,
    /// Elements of a query and of a key.
    pub head_dim: usize,
    /// Elements of a value.
    pub value_dim: usize,
    /// Queries, or what the prologue makes them of: an array [tokens, kv_heads · group, head_dim].
    pub q: OperandId,
    /// Keys: an array [slots, kv_heads, head_dim].
    pub keys: OperandId,
    /// Values: an array [slots, kv_heads, value_dim or more]; a value is the first elements of its row.
    pub values: OperandId,
    /// Slot of key j of token t: Coord 0 = t, Coord 1 = j.
    pub slot: Scalar,
    /// Number of keys of token t: Coord 0 = t. At least 1.
    pub length: Scalar,
    /// Score modification: Acc = q·k; Coord 0 = t, 1 = head, 2 = j. Includes the scale.
    pub score: Scalar,
    /// A score of each head that no key belongs to, in its softmax: Coord 1 = head.
    pub sink: Option<Scalar>,
    /// Whether earlier steps wrote all keys and values of a token but the last, its own: they may be read while
    /// the kernels before this one still run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub settled: bool,
    /// Only the last so many keys of a token count, at least 1: those before `length − window` are not read, and
    /// where the score is asked for them it is −∞.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// What it makes of what a projection left, before it reads keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prologue: Option<AttentionPrologue>,
    /// Epilogue over Coord 0 = t, 1 = head, 2 = element, with Acc = attention output.
    pub stores: Vec<Store>,
}

/// Rows that attention makes itself, norms and rotations: its queries, and the key that each token adds to its
/// sequence, which is the last that it sees. Only of [`Attention::settled`] keys in consecutive slots: all other
/// keys are there already.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttentionPrologue {
    /// Queries, Coord 1 = query head: [`Attention::q`] is what they are made of.
    pub query: MadeRow,
    /// Own keys, Coord 1 = head of keys; rounded to the type of the array of keys.
    pub key: MadeRow,
    /// Type that queries are rounded to.
    pub dtype: DType,
    /// Where own keys are kept, in an array that is the one of keys: Coord 0 = t, 1 = head, 2 = element, with
    /// Acc = the element.
    pub keep: Store,
}

/// A row of `head_dim` elements: reductions along them, and each. Coord 0 = t, 1 = head, 2 = element.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MadeRow {
    /// Reductions along the row.
    pub stages: Vec<Stage>,
    /// An element.
    pub value: Scalar,
}

impl MadeRow {
    /// All expressions.
    pub fn scalars(&self) -> impl Iterator<Item = &Scalar> {
        self.stages.iter().map(|s| &s.value).chain([&self.value])
    }
}

/// Fewest keys that a block takes of a token whose keys several blocks share: up to so many there is one block.
pub const SPLIT_KEYS: usize = 64;

/// Most keys that each block of a cluster takes before more blocks share a token's keys than a cluster has: up to
/// there joining through shared memory costs less than the longer shares do (docs/performance.md).
pub const CLUSTER_KEYS: usize = 256;

impl Attention {
    /// Type of the queries that are multiplied with keys, of operands `reads`.
    ///
    /// # Panics
    /// When there is no such operand.
    pub fn query_type(&self, reads: &[Operand]) -> DType {
        self.prologue.as_ref().map_or_else(|| reads[self.q.index()].dtype, |p| p.dtype)
    }

    /// Most keys that a token reads where its sequence has so many.
    pub fn visible(&self, keys: usize) -> usize {
        self.window.map_or(keys, |window| window.min(keys))
    }

    /// Lanes of a warp that share a key where keys are taken one by one: 16 bytes of a 16-bit key for each lane
    /// where the sizes allow it.
    pub fn row_lanes(&self) -> usize {
        let fits = |l: &usize| self.head_dim.is_multiple_of(*l) && self.value_dim.is_multiple_of(*l);
        let wish = (self.head_dim / 8).clamp(1, 32);
        [1, 2, 4, 8, 16, 32].into_iter().filter(fits).rfind(|l| *l <= wish).unwrap_or(1)
    }

    /// Whether slot(t, j) = base(t) + j: the keys of a sequence lie in consecutive slots.
    pub fn sequential_slots(&self) -> bool {
        self.slot_base().is_some()
    }

    /// The base of slot(t, j) = base(t) + j, when it has that form.
    pub fn slot_base(&self) -> Option<&Scalar> {
        let Scalar::Binary(Binary::Add, a, b) = &self.slot else { return None };
        let free_of_j = |e: &Scalar| {
            let mut free = true;
            e.visit(&mut |x| free &= *x != Scalar::Coord(1));
            free
        };
        match (a.as_ref(), b.as_ref()) {
            (base, Scalar::Coord(1)) | (Scalar::Coord(1), base) if free_of_j(base) => Some(base),
            _ => None,
        }
    }
}
