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
    /// What it makes of its outputs before it stores anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub projection: Option<Box<AttentionProjection>>,
    /// Epilogue over Coord 0 = t, 1 = head, 2 = element, with Acc = attention output; with a projection over
    /// Coord 0 = t, 1 = head of keys, 2 = column, with Acc = what the query heads of that one add to it.
    pub stores: Vec<Store>,
}

/// The projection behind attention, made by its blocks: for each head of keys
/// acc[t, kv, j] = Σ value(t, h, e) · weight[j, h · value_dim + e] over its query heads h and their elements e, in f32.
/// What is stored are addends of the projection, one for each head of keys: who reads them adds them up, in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttentionProjection {
    /// Weight: an array [columns, kv_heads · group · value_dim] of a float type.
    pub weight: OperandId,
    /// Columns.
    pub columns: usize,
    /// What is multiplied: Coord 0 = t, 1 = head, 2 = element, Acc = attention output.
    pub value: Scalar,
}

/// Most keys of a block of a cluster that projects: past these, more blocks that share the keys gain more than the
/// projection's launch costs (docs/performance.md).
pub const PROJECTED_KEYS: usize = 1024;

/// How the blocks of a cluster share the columns of a projection, and the threads of a block its part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProjectionShare {
    /// Elements of what a head of keys' query heads give, the length of the products.
    pub k: usize,
    /// Columns of a block; those of the last may be past the end.
    pub columns: usize,
    /// Lanes that share a column, at most [`ProjectionShare::LANES`].
    pub lanes: usize,
    /// Elements of a load of up to 16 bytes.
    pub vector: usize,
    /// Loads of a lane for each column.
    pub loads: usize,
    /// Columns that the block makes at a time.
    pub groups: usize,
    /// How often it does.
    pub turns: usize,
}

impl ProjectionShare {
    /// Most lanes that share a column: rows of the weight are read 128 bytes at a time.
    pub const LANES: usize = 8;

    /// That of a block of so many warps in a cluster of so many blocks; `dtype` is the weight's.
    ///
    /// # Errors
    /// Why the block cannot make its part.
    pub fn new(
        a: &Attention,
        p: &AttentionProjection,
        (dtype, cluster, warps): (DType, usize, usize),
    ) -> Result<ProjectionShare, String> {
        let k = a.group.saturating_mul(a.value_dim);
        let divides = |n: &usize, of: usize| n.is_power_of_two() && of.is_multiple_of(*n);
        let vector = (1..=16 / dtype.size().max(1)).rev().find(|n| divides(n, k)).unwrap_or(1);
        let vectors = k / vector;
        let lanes = (1..=Self::LANES).rev().find(|n| divides(n, vectors)).unwrap_or(1);
        let columns = p.columns.div_ceil(cluster.max(1));
        let groups = (warps * 32 / lanes).max(1);
        let turns = columns.div_ceil(groups);
        if turns > lanes || k == 0 || columns == 0 {
            let turns = format!("{turns} turns, at most {lanes} are possible");
            return Err(format!("{columns} columns of {vectors} vectors by {warps} warps: {turns}"));
        }
        Ok(ProjectionShare { k, columns, lanes, vector, loads: vectors / lanes, groups, turns })
    }

    /// Elements of the weight that a thread holds.
    pub fn held(&self) -> usize {
        self.turns * self.loads * self.vector
    }
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
    /// Rows of a token that it stores, and their elements: heads and values, or heads of keys and columns.
    pub fn stored(&self) -> [usize; 2] {
        match &self.projection {
            Some(p) => [self.kv_heads, p.columns],
            None => [self.kv_heads.saturating_mul(self.group), self.value_dim],
        }
    }

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
