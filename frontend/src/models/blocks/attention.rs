//! Grouped-query attention over the slot-mapped cache.

use super::rotary::{self, Rotaries};
use super::{Linear, ModelBuilder, encoder, norm};
use crate::checkpoint::Task;
use crate::config::{LayerRope, PositionKind, QkNorm};
use weft_ir::dtype::DType;
use weft_ir::graph::{Input, ValueType};
use weft_ir::ids::NodeId;
use weft_ir::scalar::{Binary, Compare, Reduce, Unary};
use weft_ir::shape::{Dim, Sym};

/// Names of the tensors of an attention, within its module.
#[derive(Clone, Copy)]
pub struct Names {
    /// Queries, keys, values, where they are stored apart.
    pub qkv: [&'static str; 3],
    /// Output.
    pub out: &'static str,
    /// Norms of queries and keys.
    pub norms: [&'static str; 2],
}

/// Llama's, and most others'.
pub const NAMES: Names =
    Names { qkv: ["q_proj", "k_proj", "v_proj"], out: "o_proj", norms: ["q_norm", "k_norm"] };

/// How one stored matrix holds queries, keys and values.
#[derive(Clone, Copy)]
pub enum Merged {
    /// All queries, then all keys, then all values.
    Blocks {
        /// Stored as `[in, out]` (GPT-2's Conv1D).
        transposed: bool,
    },
    /// For each key head: its queries, its key, its value.
    Groups,
}

/// Projections of the step's tokens: queries and keys f32 `[t, heads · d]`, values of the model's type.
#[derive(Clone, Copy)]
pub struct Projected {
    q: NodeId,
    k: NodeId,
    v: NodeId,
}

/// Causal softmax attention of x `[t, h]` over the layer's cache, grouped-query (Ainslie et al. 2023), with its
/// projections stored apart; f32.
pub fn grouped_query(
    m: &mut ModelBuilder<'_>,
    x: NodeId,
    name: &str,
    names: &Names,
    layer: usize,
    rotaries: Rotaries,
) -> NodeId {
    m.scoped("self_attn", |m| {
        let c = m.config;
        let (rows, bias) = ([c.heads, c.kv_heads, c.kv_heads].map(|n| n * c.head_dim), c.attention_bias);
        let mut project = |i: usize| {
            let (part, heads) = (names.qkv[i], if i == 0 { c.heads } else { c.kv_heads });
            m.scoped(part, |m| {
                let stored = m.stored_linear(x, &format!("{name}.{part}"), rows[i], bias, false);
                let stored = if i < 2 { as_halves(m, stored, heads) } else { stored };
                m.apply(x, stored)
            })
        };
        let (q, k, v) = (project(0), project(1), project(2));
        let v = m.g.cast(v, m.dtype);
        let out = attend(m, Projected { q, k, v }, name, names, layer, rotaries);
        m.linear_wide(out, &format!("{name}.{}", names.out), c.hidden_size, c.output_bias)
    })
}

/// As [`grouped_query`], with queries, keys and values in one stored matrix `name.qkv`, cut at load.
pub fn merged(
    m: &mut ModelBuilder<'_>,
    x: NodeId,
    name: &str,
    (qkv, out): (&str, &'static str),
    layout: Merged,
    layer: usize,
    rotaries: Rotaries,
) -> NodeId {
    m.scoped("self_attn", |m| {
        let c = m.config;
        let (heads, kv, d) = (c.heads, c.kv_heads, c.head_dim);
        let transposed = matches!(layout, Merged::Blocks { transposed: true });
        let all =
            m.stored_linear(x, &format!("{name}.{qkv}"), (heads + 2 * kv) * d, c.attention_bias, transposed);
        let group = heads / kv;
        let parts = match layout {
            Merged::Blocks { .. } => {
                [(0, heads), (heads, kv), (heads + kv, kv)].map(|(at, n)| all.rows(m, at * d, n * d))
            }
            Merged::Groups => [(0, group), (group, 1), (group + 1, 1)]
                .map(|(at, n)| all.of_groups(m, kv, (group + 2) * d, at * d, n * d)),
        };
        let [q, k, v] = parts;
        let (q, k) = (as_halves(m, q, heads), as_halves(m, k, kv));
        let q = m.scoped("q_proj", |m| m.apply(x, q));
        let k = m.scoped("k_proj", |m| m.apply(x, k));
        let v = m.scoped("v_proj", |m| m.apply(x, v));
        let v = m.g.cast(v, m.dtype);
        let attended = attend(m, Projected { q, k, v }, name, &NAMES, layer, rotaries);
        let out_name = format!("{name}.{out}");
        m.scoped(out, |m| {
            let stored = m.stored_linear(attended, &out_name, c.hidden_size, c.output_bias, transposed);
            m.apply(attended, stored)
        })
    })
}

/// Rows of queries or keys in the order that the rotation takes.
fn as_halves(m: &mut ModelBuilder<'_>, stored: Linear, heads: usize) -> Linear {
    if !m.config.interleaved() {
        return stored;
    }
    let dim = m.config.rope.dim;
    stored.map(|w| rotary::halves(m, w, heads, dim))
}

/// Attention of projected tokens: `[t, heads · d]` of the model's type.
fn attend(
    m: &mut ModelBuilder<'_>,
    p: Projected,
    name: &str,
    names: &Names,
    layer: usize,
    rotaries: Rotaries,
) -> NodeId {
    let c = m.config;
    let (heads, kv, d, dtype) = (c.heads, c.kv_heads, c.head_dim, m.dtype);
    let tokens: Dim = Sym::Tokens.into();
    let split = |n: usize| vec![tokens, Dim::Const(n), Dim::Const(d)];
    let [q_norm, k_norm] = names.norms.map(|n| format!("{name}.{n}"));

    let (mut q, mut k) = (p.q, p.k);
    if c.qk_norm == QkNorm::Projection {
        (q, k) = (norm::configured(m, q, &q_norm), norm::configured(m, k, &k_norm));
    }
    q = m.g.reshape(q, split(heads));
    k = m.g.reshape(k, split(kv));
    let v = m.g.reshape(p.v, split(kv));
    match c.qk_norm {
        QkNorm::None | QkNorm::Projection => {}
        QkNorm::Head => (q, k) = (norm::configured(m, q, &q_norm), norm::configured(m, k, &k_norm)),
        QkNorm::EachHead => (q, k) = (each_head(m, q, &q_norm, heads), each_head(m, k, &k_norm, kv)),
    }
    let turned = match c.attention.get(layer).map(|a| a.rope) {
        Some(LayerRope::Global) => rotaries.global,
        Some(LayerRope::Local) => rotaries.local,
        Some(LayerRope::None) | None => None,
    };
    let mut place = |x| match turned {
        Some(rotary) => m.scoped("rotary", |m| rotary::rotate(m, x, rotary)),
        None => m.g.cast(x, dtype),
    };
    let (q, k) = (place(q), place(k));
    over_cache(m, [q, k, v], name, layer)
}

/// Attention of queries `[t, heads, d]` over the layer's cache, with the step's keys `[t, kv, d]` and values
/// `[t, kv, v]` written to it: `[t, heads · v]` of the model's type. A model that embeds has no cache: its sequences lie
/// whole in the step.
fn over_cache(m: &mut ModelBuilder<'_>, [q, k, v]: [NodeId; 3], name: &str, layer: usize) -> NodeId {
    let [keys, values] = cached(m, [(k, format!("cache.{layer}.k")), (v, format!("cache.{layer}.v"))]);
    let (keys, values) = m.scoped("attention", |m| {
        let index = key_slots(m);
        let keys = m.g.gather(keys, index);
        let values = m.g.gather(values, index);
        // [t, context, kv, d] → [t, kv, context, d]
        (m.g.transpose(keys, &[0, 2, 1, 3]), m.g.transpose(values, &[0, 2, 1, 3]))
    });
    attend_to(m, [q, keys, values], name, layer)
}

/// Caches of these names after the step's rows `[t, kv, d]` are written to them; these rows where there is no cache.
pub(super) fn cached<const N: usize>(m: &mut ModelBuilder<'_>, rows: [(NodeId, String); N]) -> [NodeId; N] {
    match m.task() {
        Task::Generate => {}
        Task::Embed => return rows.map(|(rows, _)| rows),
    }
    let slots = m.g.input(Input::Slots);
    let written = m.scoped("cache", |m| {
        let states = rows.each_ref().map(|(rows, name)| {
            let mut shape = m.g.shape(*rows);
            if let Some(first) = shape.first_mut() {
                *first = Sym::Slots.into();
            }
            (m.g.state(name, ValueType::plain(m.dtype, shape)), *rows)
        });
        states.map(|(state, rows)| m.g.scatter(state, rows, slots))
    });
    for ((_, name), written) in rows.iter().zip(written) {
        m.g.state_out(name, written);
    }
    written
}

/// Rows of a cache `[slots, kv, d]` that each token may see: `[t, kv, context, d]`.
pub(super) fn visible_rows(m: &mut ModelBuilder<'_>, cache: NodeId) -> NodeId {
    let index = key_slots(m);
    let rows = m.g.gather(cache, index);
    m.g.transpose(rows, &[0, 2, 1, 3])
}

/// Attention of queries `[t, heads, d]` to keys `[t, kv, context, d]` and values `[t, kv, context, v]`:
/// `[t, heads · v]` of the model's type.
pub(super) fn attend_to(
    m: &mut ModelBuilder<'_>,
    [q, keys, values]: [NodeId; 3],
    name: &str,
    layer: usize,
) -> NodeId {
    let (c, dtype) = (m.config, m.dtype);
    let tokens: Dim = Sym::Tokens.into();
    let extent =
        |m: &ModelBuilder<'_>, x, axis| m.g.shape(x).get(axis).and_then(|d: &Dim| d.as_const()).unwrap_or(1);
    let (heads, kv, d, wide) =
        (extent(m, q, 1), extent(m, keys, 1), extent(m, keys, 3), extent(m, values, 3));
    let out = m.scoped("attention", |m| {
        let q = m.g.reshape(q, vec![tokens, Dim::Const(kv), Dim::Const(heads / kv), Dim::Const(d)]);
        let scores = m.g.matmul_t(q, keys, DType::F32);
        let scores =
            if c.positions == PositionKind::AlibiUnscaled { alibi_rounded(m, scores) } else { scores };
        let scores = m.times(scores, c.attention_scale);
        let scores = m.soft_cap(scores, c.attention_softcap);
        let scores = if c.positions == PositionKind::Alibi { alibi(m, scores) } else { scores };
        let masked = visible(m, scores, c.attention.get(layer).and_then(|a| a.window));
        let weights = if c.sinks { with_sinks(m, masked, name) } else { m.g.softmax(masked) };
        let weights = m.g.cast(weights, dtype);
        m.g.matmul(weights, values, dtype)
    });
    m.g.reshape(out, vec![tokens, Dim::Const(heads * wide)])
}

/// Softmax of scores `[t, kv, group, context]` with one more for each head, `name.sinks`, whose weight goes to
/// no key: exp(s − m) / (Σ exp(s − m) + exp(sink − m)), with m the largest of all.
fn with_sinks(m: &mut ModelBuilder<'_>, scores: NodeId, name: &str) -> NodeId {
    let heads = m.config.heads;
    let shape = m.g.shape(scores);
    let sinks = m.weight(&format!("{name}.sinks"), &[heads]);
    let one = Dim::Const(1);
    let sinks = m.g.reshape(sinks, vec![one, shape[1], shape[2], one]);
    let sinks = m.g.cast(sinks, DType::F32);
    let largest = m.g.reduce(Reduce::Max, scores);
    let sinks = m.g.broadcast(sinks, m.g.shape(largest));
    let top = m.g.binary(Binary::Max, largest, sinks);
    let shifted = m.g.binary(Binary::Sub, scores, top);
    let keys = m.g.unary(Unary::Exp, shifted);
    let sum = m.g.reduce(Reduce::Sum, keys);
    let sink = m.g.binary(Binary::Sub, sinks, top);
    let sink = m.g.unary(Unary::Exp, sink);
    let sum = m.g.binary(Binary::Add, sum, sink);
    m.g.binary(Binary::Div, keys, sum)
}

/// The norm of x `[t, heads, d]` with a stored weight for each head.
fn each_head(m: &mut ModelBuilder<'_>, x: NodeId, name: &str, heads: usize) -> NodeId {
    let d = m.config.head_dim;
    m.scoped(name.rsplit('.').next().unwrap_or(name), |m| {
        let row = |m: &mut ModelBuilder<'_>, i: usize| {
            let w = m.weight(&format!("{name}.norms.{i}.weight"), &[d]);
            m.g.reshape(w, vec![Dim::Const(1), Dim::Const(1), Dim::Const(d)])
        };
        let rows: Vec<NodeId> = (0..heads).map(|i| row(m, i)).collect();
        let w = if let [one] = rows[..] { one } else { m.g.concat(&rows, 1) };
        norm::by(m, x, w)
    })
}

/// Slots of all keys that each token may see: i32 `[t, context]`, slot base of the token's sequence + j. Without a cache,
/// rows of the step.
fn key_slots(m: &mut ModelBuilder<'_>) -> NodeId {
    match m.task() {
        Task::Generate => {}
        Task::Embed => return encoder::key_rows(m),
    }
    let base = m.g.input(Input::SlotBase);
    let sequence = m.g.input(Input::Sequences);
    let base = m.g.gather(base, sequence);
    let base = m.g.reshape(base, vec![Sym::Tokens.into(), Dim::Const(1)]);
    let j = m.g.iota(1, vec![Sym::Tokens.into(), Sym::Context.into()]);
    m.g.binary(Binary::Add, base, j)
}

/// Number of each key, i32 `[1, 1, 1, context]`, and position of each token, i32 `[t, 1, 1, 1]`. Where a sequence lies
/// whole in the step, no token is behind its last key.
fn key_and_position(m: &mut ModelBuilder<'_>) -> (NodeId, NodeId) {
    let one = Dim::Const(1);
    let j = m.g.iota(3, vec![one, one, one, Sym::Context.into()]);
    let of_token = vec![Sym::Tokens.into(), one, one, one];
    let position = m.g.input(Input::Positions);
    let position = m.g.reshape(position, of_token.clone());
    match m.task() {
        Task::Generate => (j, position),
        Task::Embed => {
            let last = encoder::last_keys(m);
            let last = m.g.reshape(last, of_token);
            (j, m.g.binary(Binary::Min, position, last))
        }
    }
}

/// Scores `[t, kv, group, context]` of keys after the token's position, or outside its window, become −∞.
fn visible(m: &mut ModelBuilder<'_>, scores: NodeId, window: Option<usize>) -> NodeId {
    let shape = m.g.shape(scores);
    let hidden = m.g.scalar_like(f32::NEG_INFINITY, scores);
    let (j, position) = key_and_position(m);
    let mut out = scores;
    if let Some(window) = window.and_then(|w| i32::try_from(w).ok()) {
        let behind = m.g.binary(Binary::Sub, position, j);
        let window = m.int_like(window, behind);
        let near = m.g.compare(Compare::Lt, behind, window);
        let near = m.g.broadcast(near, shape.clone());
        out = m.g.select(near, out, hidden);
    }
    let past = m.g.compare(Compare::Le, j, position);
    let past = m.g.broadcast(past, shape);
    m.g.select(past, out, hidden)
}

/// Scores with ALiBi's biases (Press et al. 2022): slope · (j − p), one slope a head.
fn alibi(m: &mut ModelBuilder<'_>, scores: NodeId) -> NodeId {
    let (heads, kv) = (m.config.heads, m.config.kv_heads);
    let (j, position) = key_and_position(m);
    let distance = m.g.binary(Binary::Sub, j, position);
    let distance = m.g.cast(distance, DType::F32);
    let one = Dim::Const(1);
    let slopes = m.g.constant(slopes(heads), vec![one, Dim::Const(kv), Dim::Const(heads / kv), one]);
    let bias = m.g.binary(Binary::Mul, slopes, distance);
    m.g.binary(Binary::Add, scores, bias)
}

/// Scores with Falcon's biases: slope · j, the slope and the product in bf16 whatever the model's type
/// (`modeling_falcon.py`).
fn alibi_rounded(m: &mut ModelBuilder<'_>, scores: NodeId) -> NodeId {
    let (heads, kv) = (m.config.heads, m.config.kv_heads);
    let (j, _) = key_and_position(m);
    let j = m.g.cast(j, DType::F32);
    let one = Dim::Const(1);
    let slopes = slopes(heads).into_iter().map(|s| half::bf16::from_f32(s).to_f32()).collect();
    let slopes = m.g.constant(slopes, vec![one, Dim::Const(kv), Dim::Const(heads / kv), one]);
    let bias = m.g.binary(Binary::Mul, slopes, j);
    let bias = m.g.cast(bias, DType::BF16);
    let bias = m.g.cast(bias, DType::F32);
    m.g.binary(Binary::Add, scores, bias)
}

/// 2^(−8i/n) for n heads, a power of two; else those of the power below, and every other one of the power
/// above.
fn slopes(heads: usize) -> Vec<f32> {
    let below = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
    let slope = |n: usize, i: usize| (-8.0 * i as f64 / n as f64).exp2() as f32;
    let between = (0..heads - below).map(|i| slope(2 * below, 2 * i + 1));
    (1..=below).map(|i| slope(below, i)).chain(between).collect()
}

impl ModelBuilder<'_> {
    /// c · tanh(x / c).
    pub fn soft_cap(&mut self, x: NodeId, cap: Option<f64>) -> NodeId {
        let Some(cap) = cap else { return x };
        let y = self.times(x, 1.0 / cap);
        let y = self.g.unary(Unary::Tanh, y);
        self.times(y, cap)
    }
}
