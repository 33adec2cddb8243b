//! What a measured schedule is kept under, and how far other measurements are from it. Tests:
//! `passes/tests/tuning/database.rs`.
//!
//! A key is what decides the speed of a schedule and is the same in every decode bucket: so a row's sums have the
//! same order in all of them that stream. Rows of the bucket and the context it was measured with are not in it, but
//! noted; the longest context of the plan is, because it decides what attention a product runs beside.

use super::candidates::few;
use serde::{Deserialize, Serialize};
use weft_ir::dtype::DType;
use weft_ir::plan::{Compute, Work};
use weft_ir::shape::Bindings;
use weft_ir::target::Target;

/// How much larger or smaller a product may be for its neighbour's schedule to be taken: the product over its extents.
/// Farther away the estimate is nearer to what tuning finds (docs/performance.md, ten shapes that were never tuned).
const PRODUCT_REACH: f64 = 1.5;
/// The same of an attention.
const ATTENTION_REACH: f64 = 8.0;
/// How much farther a shorter context is than one of as many times more: keys may take a round more here.
const SHORTER: f64 = 1.75;
/// How far attention that makes its rows is from one that reads them: what it waits for differs.
const OTHER_ROWS: f64 = 0.5;

/// Shape of a work, by family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Shape {
    /// A skinny product.
    Gemv {
        /// Rows of the right operand.
        columns: usize,
        /// Length of the products.
        k: usize,
        /// Rows of the right operand of a point.
        group: usize,
        /// Whether the left operand is computed.
        computed: bool,
    },
    /// Attention of few tokens.
    AttentionRow {
        /// Heads of keys and values.
        kv_heads: usize,
        /// Query heads for each.
        group: usize,
        /// Elements of a key.
        head_dim: usize,
        /// Elements of a value.
        value_dim: usize,
        /// Keys that a token sees of the longest context, up to an eighth of a power of two.
        keys: usize,
        /// Whether it makes its queries and own keys itself.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        made: bool,
        /// Columns of the projection that it makes of its outputs, 0 where it does not.
        #[serde(default, skip_serializing_if = "none")]
        projected: usize,
    },
}

fn none(columns: &usize) -> bool {
    *columns == 0
}

/// What a schedule was measured for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Target: `sm_90`.
    pub target: String,
    /// Device profile: `H200`.
    pub device: String,
    /// Type of what is streamed: the right operand, the keys.
    pub dtype: DType,
    /// Shape.
    pub shape: Shape,
    /// Of a product: the longest context of the plans it is for, in tokens, up to an eighth of a power of two; `None` for
    /// any. What is fastest beside attention of few blocks is not beside one that takes every SM.
    pub longest: Option<usize>,
}

/// The key of a work in a decode bucket; `None` for works that are not tuned.
pub fn key(work: &Work, bind: &Bindings, target: &Target, device: &str) -> Option<Key> {
    let (shape, longest, streamed) = match &work.compute {
        Compute::MatMul(m) if m.row.is_none() => {
            let computed = m.plain_left().is_none() || !m.stages.is_empty();
            let shape = Shape::Gemv { columns: m.columns(), k: m.k, group: m.group, computed };
            (shape, Some(rounded(bind.context)), m.b)
        }
        Compute::Attention(a) if few(a, bind) => {
            let (kv_heads, group, head_dim, value_dim) = (a.kv_heads, a.group, a.head_dim, a.value_dim);
            let keys = rounded(a.visible(bind.context));
            let made = a.prologue.is_some();
            let projected = a.projection.as_ref().map_or(0, |p| p.columns);
            let shape = Shape::AttentionRow { kv_heads, group, head_dim, value_dim, keys, made, projected };
            (shape, None, a.keys)
        }
        Compute::Loop(_)
        | Compute::MatMul(_)
        | Compute::Attention(_)
        | Compute::Steps(_)
        | Compute::Routed(_)
        | Compute::Grouping(_)
        | Compute::Penalize(_)
        | Compute::Sample(_)
        | Compute::Advance(_) => return None,
    };
    let dtype = work.reads.get(streamed.index())?.dtype;
    Some(Key { target: target.name.into(), device: device.into(), dtype, shape, longest })
}

/// A context up to a whole number of eighths of a power of two. Attention takes keys in rounds of all its blocks: what takes
/// 1280 in one round is the fastest where there are no more, and not where there are 2048.
pub fn rounded(keys: usize) -> usize {
    keys.next_multiple_of((keys.next_power_of_two() / 8).max(1))
}

impl Shape {
    /// Largest ratio of extents to another shape whose schedule is taken over.
    pub(super) fn reach(&self) -> f64 {
        match self {
            Shape::Gemv { .. } => PRODUCT_REACH,
            Shape::AttentionRow { .. } => ATTENTION_REACH,
        }
    }

    /// How far another shape is, as the logarithm of the ratio of extents; `None` when nothing can be taken over.
    pub(super) fn distance(&self, other: &Shape) -> Option<f64> {
        match (self, other) {
            (
                Shape::Gemv { columns, k, group, computed },
                Shape::Gemv { columns: c, k: other_k, group: g, computed: p },
            ) if group == g && computed == p => Some(apart(*columns, *c) + apart(*k, *other_k)),
            (
                Shape::AttentionRow { kv_heads, group, head_dim, value_dim, keys, made, projected },
                Shape::AttentionRow {
                    kv_heads: h,
                    group: g,
                    head_dim: d,
                    value_dim: v,
                    keys: n,
                    made: m,
                    projected: p,
                },
            ) if none(projected) == none(p) => {
                let heads = apart(*kv_heads, *h) + apart(*group, *g);
                let sizes = apart(*head_dim, *d) + apart(*value_dim, *v);
                let other = if made == m { 0.0 } else { OTHER_ROWS };
                // Splits follow the context anyway.
                let context = apart(*keys, *n) * if n < keys { SHORTER } else { 1.0 };
                Some(heads + sizes + context / 8.0 + other + apart(*projected, *p))
            }
            (Shape::Gemv { .. }, _) | (Shape::AttentionRow { .. }, _) => None,
        }
    }
}

/// How near what a line was measured beside is to what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(super) enum Beside {
    /// The same longest context.
    Same,
    /// Any.
    Any,
    /// Another: the logarithm of the ratio, more where what was measured is shorter.
    Other(f64),
}

impl Key {
    /// The same for any longest context.
    pub fn for_any(&self) -> Key {
        Key { longest: None, ..self.clone() }
    }

    /// Which longest contexts it is for, to be put behind the shape; empty for any.
    pub fn within(&self) -> String {
        self.longest.map(|n| format!(", contexts up to {n}")).unwrap_or_default()
    }

    /// How near the longest context of another key is.
    pub(super) fn beside(&self, other: &Key) -> Beside {
        match (self.longest, other.longest) {
            (a, b) if a == b => Beside::Same,
            (None, _) | (_, None) => Beside::Any,
            (Some(a), Some(b)) => Beside::Other(apart(a, b) * if b < a { SHORTER } else { 1.0 }),
        }
    }
}

/// How far two extents are: the logarithm of their ratio.
fn apart(a: usize, b: usize) -> f64 {
    (a.max(1) as f64 / b.max(1) as f64).ln().abs()
}
