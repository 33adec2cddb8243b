//! Multi-head latent attention (DeepSeek-AI 2024): keys and values are projections of one narrow value of each
//! token, which is what the cache holds.

use super::attention::{attend_to, cached, visible_rows};
use super::rotary::{self, Rotaries};
use super::{Linear, ModelBuilder, norm};
use crate::config::Latent;
use weft_ir::ids::NodeId;
use weft_ir::shape::{Dim, Sym};

/// Epsilon of the norms of the narrow values, whatever the model's (DeepSeek's code).
const NORM_EPS: f64 = 1e-6;

/// Latent attention of x `[t, h]`, in f32. The cache holds the narrow value of a token and the rotated elements that all
/// heads share, as one row; keys and values of every head are products of the cached rows, and attention is that of
/// any model. Rewriting finds the absorbed form, which expands nothing (`passes/src/eqsat/rules/latent.rs`).
pub fn attention(
    m: &mut ModelBuilder<'_>,
    x: NodeId,
    name: &str,
    l: Latent,
    layer: usize,
    rotaries: Rotaries,
) -> NodeId {
    m.scoped("self_attn", |m| {
        let c = m.config;
        let (tokens, heads) = (Dim::Sym(Sym::Tokens), c.heads);
        let split = |m: &mut ModelBuilder<'_>, x, n: usize, d: usize| {
            m.g.reshape(x, vec![tokens, Dim::Const(n), Dim::Const(d)])
        };
        let turn = |m: &mut ModelBuilder<'_>, x| match rotaries.global {
            Some(rotary) => m.scoped("rotary", |m| rotary::rotate(m, x, rotary)),
            None => m.g.cast(x, m.dtype),
        };
        let [q_pe, q_plain] = queries(m, x, name, l);
        let (q_pe, q_plain) = (split(m, q_pe, heads, l.rotated), split(m, q_plain, heads, l.plain));
        // The narrow value, and the rotated key of all heads.
        let wide = l.kv_rank + l.rotated;
        let both = m.stored_linear(x, &format!("{name}.kv_a_proj_with_mqa"), wide, c.attention_bias, false);
        let (narrow, shared) = (both.rows(m, 0, l.kv_rank), both.rows(m, l.kv_rank, l.rotated));
        let shared = as_halves(m, shared, 1, l.rotated);
        let narrow = m.scoped("kv_a_proj", |m| m.apply(x, narrow));
        let narrow = m.g.cast(narrow, m.dtype);
        let narrow = norm::rms_with(m, narrow, &format!("{name}.kv_a_layernorm.weight"), NORM_EPS);
        let k_pe = m.scoped("k_pe_proj", |m| m.apply(x, shared));
        let (narrow, k_pe) = (split(m, narrow, 1, l.kv_rank), split(m, k_pe, 1, l.rotated));
        let (q_pe, k_pe) = (turn(m, q_pe), turn(m, k_pe));
        let q_plain = m.g.cast(q_plain, m.dtype);
        let q = m.g.concat(&[q_plain, q_pe], 2);
        let row = m.g.concat(&[narrow, k_pe], 2);
        let [cache] = cached(m, [(row, format!("cache.{layer}.latent"))]);
        let [keys, values] = expanded(m, cache, name, l);
        let [keys, values] = m.scoped("attention", |m| [keys, values].map(|rows| visible_rows(m, rows)));
        let out = attend_to(m, [q, keys, values], name, layer);
        m.linear_wide(out, &format!("{name}.o_proj"), c.hidden_size, c.output_bias)
    })
}

/// Keys `[slots, heads, plain + rotated]` and values `[slots, heads, value]` of the cached rows
/// `[slots, 1, rank + rotated]`.
fn expanded(m: &mut ModelBuilder<'_>, cache: NodeId, name: &str, l: Latent) -> [NodeId; 2] {
    let (heads, of) = (m.config.heads, l.plain + l.value);
    let slots = m.g.shape(cache).first().copied().unwrap_or(Dim::Sym(Sym::Slots));
    let narrow = m.g.slice(cache, 2, 0, l.kv_rank);
    let narrow = m.g.reshape(narrow, vec![slots, Dim::Const(l.kv_rank)]);
    let shared = m.g.slice(cache, 2, l.kv_rank, l.rotated);
    let shared = m.g.broadcast(shared, vec![slots, Dim::Const(heads), Dim::Const(l.rotated)]);
    let whole = m.has(&format!("{name}.kv_b_proj.weight"));
    let stored =
        whole.then(|| m.stored_linear(narrow, &format!("{name}.kv_b_proj"), heads * of, false, false));
    let mut part = |scope: &str, start: usize, len: usize| {
        m.scoped(scope, |m| {
            let layer = match stored {
                Some(stored) => stored.of_groups(m, heads, of, start, len),
                None => by_head(m, &format!("{name}.{scope}.weight"), [heads, len, l.kv_rank], start == 0),
            };
            let rows = m.apply(narrow, layer);
            let rows = m.g.cast(rows, m.dtype);
            m.g.reshape(rows, vec![slots, Dim::Const(heads), Dim::Const(len)])
        })
    };
    let (keys, values) = (part("k_b_proj", 0, l.plain), part("v_b_proj", l.plain, l.value));
    [m.scoped("k_b_proj", |m| m.g.concat(&[keys, shared], 2)), values]
}

/// A matrix for each head that a GGUF file stores by itself, `[heads, out, rank]`, that of keys turned.
fn by_head(m: &mut ModelBuilder<'_>, name: &str, [heads, out, rank]: [usize; 3], keys: bool) -> Linear {
    let mut weight = match keys {
        true => m.weight(name, &[heads, rank, out]),
        false => m.weight(name, &[heads, out, rank]),
    };
    if keys {
        weight = m.g.transpose(weight, &[0, 2, 1]);
    }
    Linear { weight: m.g.reshape(weight, [heads * out, rank].map(Dim::Const).to_vec()), bias: None }
}

/// Queries, f32: the rotated elements of all heads, and the others.
fn queries(m: &mut ModelBuilder<'_>, x: NodeId, name: &str, l: Latent) -> [NodeId; 2] {
    let (heads, of) = (m.config.heads, l.plain + l.rotated);
    let (from, stored) = match l.q_rank {
        None => (x, "q_proj"),
        Some(rank) => {
            let narrow = m.linear(x, &format!("{name}.q_a_proj"), rank, m.config.attention_bias);
            (norm::rms_with(m, narrow, &format!("{name}.q_a_layernorm.weight"), NORM_EPS), "q_b_proj")
        }
    };
    let all = m.stored_linear(from, &format!("{name}.{stored}"), heads * of, false, false);
    let rotated = all.of_groups(m, heads, of, l.plain, l.rotated);
    let rotated = as_halves(m, rotated, heads, l.rotated);
    let plain = all.of_groups(m, heads, of, 0, l.plain);
    [m.scoped("q_pe_proj", |m| m.apply(from, rotated)), m.scoped("q_nope_proj", |m| m.apply(from, plain))]
}

/// Rows of the rotated elements in the order that the rotation takes.
fn as_halves(m: &mut ModelBuilder<'_>, layer: Linear, heads: usize, dim: usize) -> Linear {
    if !m.config.interleaved() {
        return layer;
    }
    layer.map(|w| rotary::halves(m, w, heads, dim))
}
