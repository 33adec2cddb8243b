//! Rotary positions and grouped-query attention over the slot-mapped cache.

use super::ModelBuilder;
use crate::config::RopeScaling;
use weft_ir::dtype::DType;
use weft_ir::graph::{Input, ValueType};
use weft_ir::ids::NodeId;
use weft_ir::scalar::{Binary, Compare, Unary};
use weft_ir::shape::{Dim, Sym};

/// Cosines and sines of the step's positions: each f32 [t, 1, d/2].
#[derive(Clone, Copy)]
pub struct Rotary {
    cos: NodeId,
    sin: NodeId,
}

/// Rotary frequencies θ^(−2i/d) (Su et al. 2021), with the configured scaling.
fn inverse_frequencies(m: &ModelBuilder<'_>) -> Vec<f32> {
    let (theta, d) = (m.config.rope.theta, m.config.head_dim);
    let plain = (0..d / 2).map(|i| theta.powf(-(2.0 * i as f64) / d as f64));
    match &m.config.rope.scaling {
        RopeScaling::None => plain.map(|f| f as f32).collect(),
        RopeScaling::Factors(by) => plain.zip(by).map(|(f, by)| (f / f64::from(*by)) as f32).collect(),
        RopeScaling::Linear { factor } => plain.map(|f| (f / factor) as f32).collect(),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
            // Llama 3.1: long wavelengths are stretched, short ones kept, those between interpolated.
            let original = *original_max_position as f64;
            let scaled = plain.map(|f| {
                let wavelength = 2.0 * std::f64::consts::PI / f;
                if wavelength > original / low_freq_factor {
                    f / factor
                } else if wavelength < original / high_freq_factor {
                    f
                } else {
                    let smooth =
                        (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * f / factor + smooth * f
                }
            });
            scaled.map(|f| f as f32).collect()
        }
    }
}

/// Tables shared by all layers.
pub fn rotary_tables(m: &mut ModelBuilder<'_>) -> Rotary {
    let frequencies = inverse_frequencies(m);
    m.scoped("model.rotary_emb", |m| {
        let half = frequencies.len();
        let one = Dim::Const(1);
        let frequencies = m.g.constant(frequencies, vec![one, one, Dim::Const(half)]);
        let position = m.g.input(Input::Positions);
        let position = m.g.cast(position, DType::F32);
        let position = m.g.reshape(position, vec![Sym::Tokens.into(), one, one]);
        let angle = m.g.binary(Binary::Mul, position, frequencies);
        Rotary { cos: m.g.unary(Unary::Cos, angle), sin: m.g.unary(Unary::Sin, angle) }
    })
}

/// Rotates x [t, heads, d] f32: element i of the first half with element i of the second; rounded to the
/// model's type.
pub fn rotate(m: &mut ModelBuilder<'_>, x: NodeId, rotary: Rotary) -> NodeId {
    let shape = m.g.shape(x);
    let half = shape.last().and_then(|d| d.as_const()).unwrap_or(0) / 2;
    let Rotary { cos, sin } = rotary;
    let a = m.g.slice(x, 2, 0, half);
    let b = m.g.slice(x, 2, half, half);
    let product = |m: &mut ModelBuilder<'_>, x, y| m.g.binary(Binary::Mul, x, y);
    let (a_cos, b_sin) = (product(m, a, cos), product(m, b, sin));
    let (b_cos, a_sin) = (product(m, b, cos), product(m, a, sin));
    let low = m.g.binary(Binary::Sub, a_cos, b_sin);
    let high = m.g.binary(Binary::Add, b_cos, a_sin);
    let out = m.g.concat(&[low, high], 2);
    m.g.cast(out, m.dtype)
}

/// Slots of all keys that each token may see: i32 [t, context], slot base of the token's sequence + j.
fn key_slots(m: &mut ModelBuilder<'_>) -> NodeId {
    let base = m.g.input(Input::SlotBase);
    let sequence = m.g.input(Input::Sequences);
    let base = m.g.gather(base, sequence);
    let base = m.g.reshape(base, vec![Sym::Tokens.into(), Dim::Const(1)]);
    let j = m.g.iota(1, vec![Sym::Tokens.into(), Sym::Context.into()]);
    m.g.binary(Binary::Add, base, j)
}

/// Causal softmax attention of x [t, h] over the layer's cache, grouped-query (Ainslie et al. 2023); f32.
pub fn grouped_query(
    m: &mut ModelBuilder<'_>,
    x: NodeId,
    name: &str,
    layer: usize,
    rotary: Rotary,
) -> NodeId {
    m.scoped("self_attn", |m| {
        let c = m.config;
        let (heads, kv, d, dtype, bias) = (c.heads, c.kv_heads, c.head_dim, m.dtype, c.attention_bias);
        let tokens: Dim = Sym::Tokens.into();
        let split = |n: usize| vec![tokens, Dim::Const(n), Dim::Const(d)];

        let q = m.linear_wide(x, &format!("{name}.q_proj"), heads * d, bias);
        let k = m.linear_wide(x, &format!("{name}.k_proj"), kv * d, bias);
        let v = m.linear(x, &format!("{name}.v_proj"), kv * d, bias);
        let q = m.g.reshape(q, split(heads));
        let k = m.g.reshape(k, split(kv));
        let v = m.g.reshape(v, split(kv));
        let q = m.scoped("rotary", |m| rotate(m, q, rotary));
        let k = m.scoped("rotary", |m| rotate(m, k, rotary));

        let slots = m.g.input(Input::Slots);
        let cache = ValueType::plain(dtype, vec![Sym::Slots.into(), Dim::Const(kv), Dim::Const(d)]);
        let (k_name, v_name) = (format!("cache.{layer}.k"), format!("cache.{layer}.v"));
        let (keys, values) = m.scoped("cache", |m| {
            let keys = m.g.state(&k_name, cache.clone());
            let values = m.g.state(&v_name, cache);
            (m.g.scatter(keys, k, slots), m.g.scatter(values, v, slots))
        });
        m.g.state_out(&k_name, keys);
        m.g.state_out(&v_name, values);

        let out = m.scoped("attention", |m| {
            let index = key_slots(m);
            let keys = m.g.gather(keys, index);
            let values = m.g.gather(values, index);
            // [t, context, kv, d] → [t, kv, context, d]
            let keys = m.g.transpose(keys, &[0, 2, 1, 3]);
            let values = m.g.transpose(values, &[0, 2, 1, 3]);
            let q = m.g.reshape(q, vec![tokens, Dim::Const(kv), Dim::Const(heads / kv), Dim::Const(d)]);
            let scores = m.g.matmul_t(q, keys, DType::F32);
            let scale = m.g.scalar_like(1.0 / (d as f32).sqrt(), scores);
            let scores = m.g.binary(Binary::Mul, scores, scale);
            let masked = causal(m, scores);
            let weights = m.g.softmax(masked);
            let weights = m.g.cast(weights, dtype);
            m.g.matmul(weights, values, dtype)
        });
        let out = m.g.reshape(out, vec![tokens, Dim::Const(heads * d)]);
        m.linear_wide(out, &format!("{name}.o_proj"), c.hidden_size, bias)
    })
}

/// Scores [t, kv, group, context] of keys after the token's position become −∞.
fn causal(m: &mut ModelBuilder<'_>, scores: NodeId) -> NodeId {
    let shape = m.g.shape(scores);
    let one = Dim::Const(1);
    let j = m.g.iota(3, vec![one, one, one, Sym::Context.into()]);
    let position = m.g.input(Input::Positions);
    let position = m.g.reshape(position, vec![Sym::Tokens.into(), one, one, one]);
    let visible = m.g.compare(Compare::Le, j, position);
    let visible = m.g.broadcast(visible, shape);
    let hidden = m.g.scalar_like(f32::NEG_INFINITY, scores);
    m.g.select(visible, scores, hidden)
}
