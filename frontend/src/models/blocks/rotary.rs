//! Rotary position embedding (Su et al. 2021) and its scalings.

use super::{ModelBuilder, encoder};
use crate::config::{Dynamic, Rope, RopeScaling};
use crate::models::{Kind, family};
use std::f64::consts::PI;
use weft_ir::dtype::DType;
use weft_ir::graph::{Input, Literal, Op};
use weft_ir::ids::NodeId;
use weft_ir::scalar::{Binary, Unary};
use weft_ir::shape::{Dim, Sym};

/// Cosines and sines of the step's positions: each f32 `[t, 1, dim/2]`.
#[derive(Clone, Copy)]
pub struct Rotary {
    cos: NodeId,
    sin: NodeId,
    /// Elements of a head that are rotated.
    dim: usize,
}

/// The tables of a model, shared by its layers.
#[derive(Clone, Copy, Default)]
pub struct Rotaries {
    /// Of layers with the model's rope.
    pub global: Option<Rotary>,
    /// Of sliding-window layers that have their own.
    pub local: Option<Rotary>,
}

/// Frequencies θ^(−2i/d), with the configured scaling.
fn inverse_frequencies(rope: &Rope) -> Vec<f32> {
    let (theta, d) = (rope.theta, rope.dim);
    let plain = (0..d / 2).map(|i| theta.powf(-(2.0 * i as f64) / d as f64));
    match &rope.scaling {
        RopeScaling::None => plain.map(|f| f as f32).collect(),
        RopeScaling::Factors(by) => plain.zip(by).map(|(f, by)| (f / f64::from(*by)) as f32).collect(),
        RopeScaling::LongRope { short_factor, long_factor, long, .. } => {
            let factors = if *long { long_factor } else { short_factor };
            plain.zip(factors).map(|(f, by)| (f / by) as f32).collect()
        }
        RopeScaling::Linear { factor } => plain.map(|f| (f / factor) as f32).collect(),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
            // Llama 3.1: long wavelengths are stretched, short ones kept, those between interpolated.
            let original = *original_max_position as f64;
            let scaled = plain.map(|f| {
                let wavelength = 2.0 * PI / f;
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
        RopeScaling::Yarn { factor, beta_fast, beta_slow, truncate, original_max_position, .. } => {
            // Peng et al. 2023, section 3.2: pair numbers at which a wavelength fits so many times.
            let original = *original_max_position as f64;
            let pair = |turns: f64| d as f64 * (original / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
            let (mut low, mut high) = (pair(*beta_fast), pair(*beta_slow));
            if *truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            let (low, mut high) = (low.max(0.0), high.min(d as f64 - 1.0));
            if low == high {
                high += 0.001;
            }
            let blended = plain.enumerate().map(|(i, f)| {
                let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                f / factor * ramp + f * (1.0 - ramp)
            });
            blended.map(|f| f as f32).collect()
        }
    }
}

/// Tables of the configured ropes.
pub fn tables(m: &mut ModelBuilder<'_>) -> Rotaries {
    use crate::config::{LayerRope, PositionKind};
    let c = m.config;
    if c.positions != PositionKind::Rotary {
        return Rotaries::default();
    }
    let used = |kind: LayerRope| c.attention.iter().any(|a| a.rope == kind);
    let global = used(LayerRope::Global).then(|| table(m, &c.rope, "model.rotary_emb"));
    let local = c.local_rope.as_ref().filter(|_| used(LayerRope::Local));
    Rotaries { global, local: local.map(|rope| table(m, rope, "model.rotary_emb_local")) }
}

fn table(m: &mut ModelBuilder<'_>, rope: &Rope, scope: &str) -> Rotary {
    let frequencies = inverse_frequencies(rope);
    let dynamic = rope.dynamic;
    m.scoped(scope, |m| {
        let half = frequencies.len();
        let one = Dim::Const(1);
        let mut frequencies = m.g.constant(frequencies, vec![one, one, Dim::Const(half)]);
        if let Some(Dynamic::Base { factor, original, grows: true }) = dynamic {
            frequencies = slowed(m, frequencies, rope.dim, factor, original);
        }
        let position = m.g.input(Input::Positions);
        let position = m.g.cast(position, DType::F32);
        let position = m.g.reshape(position, vec![Sym::Tokens.into(), one, one]);
        let angle = m.g.binary(Binary::Mul, position, frequencies);
        let (cos, sin) = (m.g.unary(Unary::Cos, angle), m.g.unary(Unary::Sin, angle));
        let by = rope.attention_factor();
        Rotary { cos: m.times(cos, by), sin: m.times(sin, by), dim: rope.dim }
    })
}

/// Frequencies f32 `[t, 1, dim/2]` for a base that grows with the sequence, of `frequencies` `[1, 1, dim/2]`:
/// (θ · s^(d/(d − 2)))^(−2i/d) = θ^(−2i/d) · s^(−2i/(d − 2)), with s = 1 + factor · max(0, L / original − 1).
///
/// Semantics: `_compute_dynamic_ntk_parameters` and `dynamic_rope_update` in transformers, for each sequence by itself.
/// Cached keys stay as they were turned; so a sequence that grows has keys of several bases.
fn slowed(m: &mut ModelBuilder<'_>, frequencies: NodeId, dim: usize, factor: f64, original: usize) -> NodeId {
    let one = Dim::Const(1);
    let length = lengths(m);
    let bound = i32::try_from(original).unwrap_or(i32::MAX);
    // In integers, so that s is 1, and frequencies are as they were, in all sequences that are not longer.
    let original = m.int_like(bound, length);
    let reached = m.g.binary(Binary::Max, length, original);
    let beyond = m.g.binary(Binary::Sub, reached, original);
    let beyond = m.g.cast(beyond, DType::F32);
    let beyond = m.times(beyond, factor / f64::from(bound));
    let unit = m.g.scalar_like(1.0, beyond);
    let s = m.g.binary(Binary::Add, unit, beyond);
    let powers = (0..dim / 2).map(|i| (-2.0 * i as f64 / (dim as f64 - 2.0)) as f32);
    let powers = m.g.constant(powers.collect::<Vec<_>>(), vec![one, one, Dim::Const(dim / 2)]);
    let slower = m.g.binary(Binary::Pow, s, powers);
    m.g.binary(Binary::Mul, frequencies, slower)
}

/// Tokens of each token's sequence, i32 `[t, 1, 1]`: behind the token's prompt up to the token itself, within it all of
/// the prompt, whatever part of it the step holds. (Else the rotation would depend on where a prompt is cut, and so on
/// its companions.)
fn lengths(m: &mut ModelBuilder<'_>) -> NodeId {
    let one = Dim::Const(1);
    let length = match family(m.checkpoint) {
        Ok((Kind::Encoder, _)) => encoder::of_sequence(m, Input::Lengths),
        _ => {
            let (position, prompt) = (m.g.input(Input::Positions), m.g.input(Input::Prompts));
            let first = Op::Constant { literal: Literal::I32(vec![1]), shape: vec![one] };
            let first = m.g.add(first, &[]);
            let own = m.g.binary(Binary::Add, position, first);
            m.g.binary(Binary::Max, own, prompt)
        }
    };
    m.g.reshape(length, vec![Sym::Tokens.into(), one, one])
}

/// Rotates the first elements of x `[t, heads, d]` f32: element i of their first half with element i of the
/// second; rounded to the model's type. (Pairs of neighbours are put so when the weights are loaded.)
pub fn rotate(m: &mut ModelBuilder<'_>, x: NodeId, rotary: Rotary) -> NodeId {
    let shape = m.g.shape(x);
    let width = shape.last().and_then(|d| d.as_const()).unwrap_or(0);
    let half = rotary.dim / 2;
    let Rotary { cos, sin, dim } = rotary;
    let a = m.g.slice(x, 2, 0, half);
    let b = m.g.slice(x, 2, half, half);
    let product = |m: &mut ModelBuilder<'_>, x, y| m.g.binary(Binary::Mul, x, y);
    let (a_cos, b_sin) = (product(m, a, cos), product(m, b, sin));
    let (b_cos, a_sin) = (product(m, b, cos), product(m, a, sin));
    let low = m.g.binary(Binary::Sub, a_cos, b_sin);
    let high = m.g.binary(Binary::Add, b_cos, a_sin);
    let mut parts = vec![low, high];
    if dim < width {
        parts.push(m.g.slice(x, 2, dim, width - dim));
    }
    let out = m.g.concat(&parts, 2);
    m.g.cast(out, m.dtype)
}

/// Rows of a matrix `[heads · d, …]` (or a bias) of queries or keys, with the `dim` first of each head, stored
/// as pairs of neighbours, in the order that [`rotate`] takes: the first of each pair, then the second.
/// Queries and keys move alike, so their products stay.
pub fn halves(m: &mut ModelBuilder<'_>, w: NodeId, heads: usize, dim: usize) -> NodeId {
    let shape = m.g.shape(w);
    let extents: Vec<usize> = shape.iter().filter_map(|d| d.as_const()).collect();
    let (rows, rest) = (extents.first().copied().unwrap_or(0), extents.iter().skip(1).product::<usize>());
    let d = rows / heads.max(1);
    let dims = |s: &[usize]| s.iter().map(|&n| Dim::Const(n)).collect::<Vec<_>>();
    let by_head = m.g.reshape(w, dims(&[heads, d, rest]));
    let pairs = m.g.slice(by_head, 1, 0, dim);
    let pairs = m.g.reshape(pairs, dims(&[heads, dim / 2, 2, rest]));
    let split = m.g.transpose(pairs, &[0, 2, 1, 3]);
    let mut out = m.g.reshape(split, dims(&[heads, dim, rest]));
    if dim < d {
        let tail = m.g.slice(by_head, 1, dim, d - dim);
        out = m.g.concat(&[out, tail], 1);
    }
    m.g.reshape(out, shape)
}
