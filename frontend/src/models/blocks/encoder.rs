//! Attention of an encoder: every token sees all tokens of its sequence, which lies whole in the step.
//!
//! Keys and values are values of the step. As in a decoder's cache, key j of a token is in row base + j, with
//! the base of its sequence; past the sequence's end the last row is read again, and masked.

use super::ModelBuilder;
use super::rotary::{self, Rotaries, Rotary};
use crate::config::LayerRope;
use weft_ir::dtype::DType;
use weft_ir::graph::{Input, Literal, Op};
use weft_ir::ids::NodeId;
use weft_ir::scalar::{Binary, Compare, Unary};
use weft_ir::shape::{Dim, Sym};

/// An input that has one element for each sequence, as i32 [t, 1] of each token's sequence.
pub(super) fn of_sequence(m: &mut ModelBuilder<'_>, input: Input) -> NodeId {
    let all = m.g.input(input);
    let sequence = m.g.input(Input::Sequences);
    let own = m.g.gather(all, sequence);
    m.g.reshape(own, vec![Sym::Tokens.into(), Dim::Const(1)])
}

/// Rows of the keys that each token may see: i32 [t, context], base + min(j, length − 1).
pub(super) fn key_rows(m: &mut ModelBuilder<'_>) -> NodeId {
    let base = of_sequence(m, Input::SlotBase);
    let last = last_keys(m);
    let j = m.g.iota(1, vec![Sym::Tokens.into(), Sym::Context.into()]);
    let j = m.g.binary(Binary::Min, j, last);
    m.g.binary(Binary::Add, base, j)
}

/// Number of the last key of each token's sequence: i32 [t, 1].
pub(super) fn last_keys(m: &mut ModelBuilder<'_>) -> NodeId {
    let length = of_sequence(m, Input::Lengths);
    let one = Op::Constant { literal: Literal::I32(vec![1]), shape: vec![Dim::Const(1); 2] };
    let one = m.g.add(one, &[]);
    m.g.binary(Binary::Sub, length, one)
}

/// Softmax attention (Vaswani et al. 2017) of x [t, h]: [t, heads · d], of the model's type. Projections are
/// `query`, `key` and `value` below `name`.
pub fn self_attention(m: &mut ModelBuilder<'_>, x: NodeId, name: &str) -> NodeId {
    m.scoped("attention", |m| {
        let (wide, bias) = (m.config.heads * m.config.head_dim, m.config.attention_bias);
        let projected =
            ["query", "key", "value"].map(|part| m.linear_wide(x, &format!("{name}.{part}"), wide, bias));
        attend(m, projected, None, None)
    })
}

/// As [`self_attention`], with queries, keys and values in one stored matrix `name.Wqkv`, rotated as the layer is, and
/// projected by `name.Wo`: [t, h] f32.
pub fn merged(m: &mut ModelBuilder<'_>, x: NodeId, name: &str, layer: usize, rotaries: Rotaries) -> NodeId {
    m.scoped("attn", |m| {
        let c = m.config;
        let wide = c.heads * c.head_dim;
        let all = m.stored_linear(x, &format!("{name}.Wqkv"), 3 * wide, c.attention_bias, false);
        let projected = [("q_proj", 0), ("k_proj", wide), ("v_proj", 2 * wide)].map(|(part, at)| {
            let rows = all.rows(m, at, wide);
            m.scoped(part, |m| m.apply(x, rows))
        });
        let own = c.attention.get(layer);
        let rotary = own.and_then(|a| match a.rope {
            LayerRope::Global => rotaries.global,
            LayerRope::Local => rotaries.local,
            LayerRope::None => None,
        });
        let out = attend(m, projected, rotary, own.and_then(|a| a.window));
        m.linear_wide(out, &format!("{name}.Wo"), c.hidden_size, c.output_bias)
    })
}

/// Attention of queries, keys and values f32 [t, heads · d]: [t, heads · d], of the model's type.
fn attend(
    m: &mut ModelBuilder<'_>,
    projected: [NodeId; 3],
    rotary: Option<Rotary>,
    window: Option<usize>,
) -> NodeId {
    let c = m.config;
    let (heads, d, dtype) = (c.heads, c.head_dim, m.dtype);
    let tokens: Dim = Sym::Tokens.into();
    let [q, k, v] = projected.map(|x| m.g.reshape(x, vec![tokens, Dim::Const(heads), Dim::Const(d)]));
    let [q, k] = [q, k].map(|x| match rotary {
        Some(rotary) => m.scoped("rotary", |m| rotary::rotate(m, x, rotary)),
        None => m.g.cast(x, dtype),
    });
    let v = m.g.cast(v, dtype);
    let index = key_rows(m);
    // [t, context, heads, d] → [t, heads, context, d]
    let [keys, values] = [k, v].map(|x| {
        let rows = m.g.gather(x, index);
        m.g.transpose(rows, &[0, 2, 1, 3])
    });
    let q = m.g.reshape(q, vec![tokens, Dim::Const(heads), Dim::Const(1), Dim::Const(d)]);
    let scores = m.g.matmul_t(q, keys, DType::F32);
    let scale = m.g.scalar_like(1.0 / (d as f32).sqrt(), scores);
    let scores = m.g.binary(Binary::Mul, scores, scale);
    let near = within_window(m, scores, index, window);
    let masked = within_sequence(m, near);
    let weights = m.g.softmax(masked);
    let weights = m.g.cast(weights, dtype);
    let out = m.g.matmul(weights, values, dtype);
    m.g.reshape(out, vec![tokens, Dim::Const(heads * d)])
}

/// Scores [t, heads, 1, context] of keys whose positions are further from the token's than the window become −∞.
/// `index`: rows of the keys.
fn within_window(m: &mut ModelBuilder<'_>, scores: NodeId, index: NodeId, window: Option<usize>) -> NodeId {
    let Some(window) = window.and_then(|w| i32::try_from(w).ok()) else { return scores };
    let (tokens, one) = (Dim::from(Sym::Tokens), Dim::Const(1));
    let positions = m.g.input(Input::Positions);
    let of_keys = m.g.gather(positions, index);
    let of_keys = m.g.reshape(of_keys, vec![tokens, one, one, Sym::Context.into()]);
    let own = m.g.reshape(positions, vec![tokens, one, one, one]);
    let distance = m.g.binary(Binary::Sub, of_keys, own);
    let distance = m.g.unary(Unary::Abs, distance);
    let window = m.int_like(window, distance);
    let near = m.g.compare(Compare::Lt, distance, window);
    let shape = m.g.shape(scores);
    let near = m.g.broadcast(near, shape);
    let hidden = m.g.scalar_like(f32::NEG_INFINITY, scores);
    m.g.select(near, scores, hidden)
}

/// Scores [t, heads, 1, context] of keys past the end of the token's sequence become −∞.
fn within_sequence(m: &mut ModelBuilder<'_>, scores: NodeId) -> NodeId {
    let shape = m.g.shape(scores);
    let one = Dim::Const(1);
    let j = m.g.iota(3, vec![one, one, one, Sym::Context.into()]);
    let length = of_sequence(m, Input::Lengths);
    let length = m.g.reshape(length, vec![Sym::Tokens.into(), one, one, one]);
    let visible = m.g.compare(Compare::Lt, j, length);
    let visible = m.g.broadcast(visible, shape);
    let hidden = m.g.scalar_like(f32::NEG_INFINITY, scores);
    m.g.select(visible, scores, hidden)
}
