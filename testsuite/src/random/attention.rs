//! Recipes of attention in primitives: over the cache and over the tokens of the step, with masks and
//! score modifications, and near misses.

use super::blocks::{linear_of, rotate};
use super::make::{Maker, TOKENS, c};
use super::pointwise::{constant_i32, tame};
use super::state::{key_slots, new_state};
use weft_ir::dtype::DType;
use weft_ir::graph::Input;
use weft_ir::ids::NodeId;
use weft_ir::scalar::{Binary, Compare, Reduce, Unary};
use weft_ir::shape::{Dim, Shape, Sym};

/// Attention over a slot-mapped cache, grouped or not.
pub fn cached(m: &mut Maker) {
    let x = m.token_matrix();
    let kv = m.rng.pick(&[1, 1, 2]);
    let group = m.rng.pick(&[1, 2, 3]);
    let d = m.rng.pick(&[2, 4, 8, 16]);
    let value_dim = if m.rng.chance(75) { d } else { m.rng.pick(&[2, 4, 16]) };
    let heads = kv * group;
    let rows = |n: usize, d: usize| vec![TOKENS, c(n), c(d)];
    let wide = m.rng.chance(50);
    let q = linear_of(m, x, heads * d, wide);
    let k = linear_of(m, x, kv * d, wide);
    let v = linear_of(m, x, kv * value_dim, false);
    let (mut q, mut k, v) =
        (m.g.reshape(q, rows(heads, d)), m.g.reshape(k, rows(kv, d)), m.g.reshape(v, rows(kv, value_dim)));
    if m.rng.chance(50) {
        (q, k) = (rotate(m, q), rotate(m, k));
    }
    let (q, k) = (m.g.cast(q, m.dtype), m.g.cast(k, m.dtype));
    let slots = m.g.input(Input::Slots);
    let write = |m: &mut Maker, rows: NodeId, d: usize| {
        let (name, old) = new_state(m, &[kv, d]);
        let new = m.g.scatter(old, rows, slots);
        m.g.state_out(&name, new);
        new
    };
    let (keys, values) = (write(m, k, d), write(m, v, value_dim));
    let index = key_slots(m);
    let value_index = if m.rng.chance(92) {
        index
    } else {
        // Other slots for values: not attention.
        let j = m.g.iota(1, vec![TOKENS, Sym::Context.into()]);
        m.g.binary(Binary::Sub, index, j)
    };
    let (keys, values) = (m.g.gather(keys, index), m.g.gather(values, value_index));
    let (keys, values) = (m.g.transpose(keys, &[0, 2, 1, 3]), m.g.transpose(values, &[0, 2, 1, 3]));
    let q = m.g.reshape(q, vec![TOKENS, c(kv), c(group), c(d)]);
    let q = if m.rng.chance(12) {
        let by = m.g.scalar_like(0.5, q);
        m.g.binary(Binary::Mul, q, by)
    } else {
        q
    };
    let out = if m.rng.chance(90) { DType::F32 } else { m.dtype };
    let scores = m.g.matmul_t(q, keys, out);
    let scores = m.g.cast(scores, DType::F32);
    let y = weighted(m, scores, values, d, &Axes { key: 3, query: 0, heads: [1, 2] });
    let y = m.g.cast(y, m.dtype);
    let y = m.g.reshape(y, vec![TOKENS, c(heads * value_dim)]);
    m.keep(y);
    if m.rng.chance(50) {
        let n = m.size();
        let y = linear_of(m, y, n, false);
        m.keep(y);
    }
}

/// Attention among the tokens of the step: [heads, tokens, tokens], as in an encoder.
pub fn direct(m: &mut Maker) {
    let x = m.token_matrix();
    let (heads, d) = (m.rng.within(1, 3), m.rng.pick(&[2, 4, 8]));
    let part = |m: &mut Maker| {
        let y = linear_of(m, x, heads * d, false);
        let y = m.g.reshape(y, vec![TOKENS, c(heads), c(d)]);
        m.g.transpose(y, &[1, 0, 2])
    };
    let (q, k, v) = (part(m), part(m), part(m));
    let scores = if m.rng.chance(70) {
        m.g.matmul_t(q, k, DType::F32)
    } else {
        let k = m.g.transpose(k, &[0, 2, 1]);
        m.g.matmul(q, k, DType::F32)
    };
    let y = weighted(m, scores, v, d, &Axes { key: 2, query: 1, heads: [0, 0] });
    let y = m.g.cast(y, m.dtype);
    let y = m.g.transpose(y, &[1, 0, 2]);
    let y = m.g.reshape(y, vec![TOKENS, c(heads * d)]);
    m.keep(y);
}

/// Which axes of the scores are which.
struct Axes {
    key: usize,
    query: usize,
    heads: [usize; 2],
}

/// Softmax of modified scores, times values.
fn weighted(m: &mut Maker, scores: NodeId, values: NodeId, d: usize, axes: &Axes) -> NodeId {
    let shape = m.g.shape(scores);
    let mut s = scores;
    if m.rng.chance(8) {
        let r = m.g.reduce(Reduce::Max, scores);
        m.keep(r);
    }
    let scale_last = m.rng.chance(8);
    if !scale_last {
        s = scaled(m, s, d);
    }
    if m.rng.chance(20) {
        // Soft cap, or an uneven one.
        let cap = m.g.scalar_like(2.0, s);
        let uneven = m.rng.chance(20);
        let back = if uneven { m.g.scalar_like(3.0, s) } else { cap };
        s = m.g.binary(Binary::Div, s, cap);
        s = m.g.unary(Unary::Tanh, s);
        s = m.g.binary(Binary::Mul, s, back);
    }
    if m.rng.chance(25) {
        s = biased(m, s, &shape, axes);
    }
    if m.rng.chance(8) {
        s = tame(m, s);
    }
    s = masked(m, s, &shape, axes);
    if scale_last {
        s = scaled(m, s, d);
    }
    let mut w = m.g.softmax(s);
    if m.rng.chance(6) {
        m.keep(w);
    }
    if m.rng.chance(6) {
        w = tame(m, w);
    }
    let w = m.g.cast(w, m.dtype);
    let values = m.g.cast(values, m.dtype);
    let out = if m.rng.chance(70) { m.dtype } else { DType::F32 };
    m.g.matmul(w, values, out)
}

fn scaled(m: &mut Maker, s: NodeId, d: usize) -> NodeId {
    let right = 1.0 / (d as f32).sqrt();
    match m.rng.below(8) {
        0 => s,
        1 => {
            let by = m.g.scalar_like((d as f32).sqrt(), s);
            m.g.binary(Binary::Div, s, by)
        }
        2 => {
            let by = m.g.scalar_like(0.3, s);
            m.g.binary(Binary::Mul, by, s)
        }
        _ => {
            let by = m.g.scalar_like(right, s);
            m.g.binary(Binary::Mul, s, by)
        }
    }
}

/// Positions of queries and keys as i32, ready to be broadcast.
fn positions(m: &mut Maker, shape: &Shape, axes: &Axes) -> (NodeId, NodeId) {
    let mut line = vec![c(1); shape.len()];
    line[axes.query] = TOKENS;
    let query = m.input_as(Input::Positions, line);
    let mut line = vec![c(1); shape.len()];
    line[axes.key] = shape[axes.key];
    let key =
        if shape[axes.key] == TOKENS { m.input_as(Input::Positions, line) } else { m.g.iota(axes.key, line) };
    (query, key)
}

/// A bias that falls with the distance, with a slope a head (ALiBi, Press et al. 2022), or something like it.
fn biased(m: &mut Maker, s: NodeId, shape: &Shape, axes: &Axes) -> NodeId {
    let (query, key) = positions(m, shape, axes);
    let distance = if m.rng.chance(80) {
        m.g.binary(Binary::Sub, key, query)
    } else {
        m.g.binary(Binary::Sub, query, key)
    };
    let distance = m.g.cast(distance, DType::F32);
    let mut line = vec![c(1); shape.len()];
    for axis in axes.heads {
        line[axis] = shape[axis];
    }
    let n: usize = line.iter().map(|d| d.as_const().unwrap_or(1)).product();
    let slopes: Vec<f32> = (0..n).map(|i| 0.5f32.powi(i as i32 + 1)).collect();
    let slopes = m.g.constant(slopes, line);
    let bias = m.g.binary(Binary::Mul, distance, slopes);
    m.g.binary(if m.rng.chance(80) { Binary::Add } else { Binary::Sub }, s, bias)
}

/// Scores that may not be seen are hidden: causal, windowed, by sequence, by other rules, or not at all.
fn masked(m: &mut Maker, s: NodeId, shape: &Shape, axes: &Axes) -> NodeId {
    let kind = m.rng.below(12);
    if kind == 0 {
        return s;
    }
    let (mut query, mut key) = positions(m, shape, axes);
    let hidden = m.rng.pick(&[f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY, -1e9, -4.0]);
    if kind == 1 {
        // Another diagonal.
        let by = m.rng.within(1, 3) as i32;
        let at = m.g.shape(query);
        let by = constant_i32(m, by, &at);
        let op = m.rng.pick(&[Binary::Add, Binary::Sub]);
        query = m.g.binary(op, query, by);
    }
    if kind == 2 {
        std::mem::swap(&mut query, &mut key);
    }
    let strict = m.rng.chance(8);
    let mut on = m.g.compare(if strict { Compare::Lt } else { Compare::Le }, key, query);
    if (3..=5).contains(&kind) {
        let size = m.rng.within(1, 4) as i32;
        let near = m.g.binary(Binary::Sub, query, key);
        let at = m.g.shape(near);
        let size = constant_i32(m, size, &at);
        let near = m.g.compare(Compare::Lt, near, size);
        if kind == 3 {
            // One select a condition.
            let hidden = m.g.scalar_like(hidden, s);
            let near = m.g.broadcast(near, shape.clone());
            let s = m.g.select(near, s, hidden);
            let on = m.g.broadcast(on, shape.clone());
            return m.g.select(on, s, hidden);
        }
        on = if kind == 5 { m.g.binary(Binary::And, near, on) } else { m.g.binary(Binary::And, on, near) };
    }
    if kind == 9 {
        // As far as the sequence goes, as in an encoder.
        let lengths = m.g.input(Input::Lengths);
        let sequence = m.g.input(Input::Sequences);
        let lengths = m.g.gather(lengths, sequence);
        let mut line = vec![c(1); shape.len()];
        line[axes.query] = TOKENS;
        let length = m.g.reshape(lengths, line);
        on = m.g.compare(Compare::Lt, key, length);
    }
    if kind == 6 && shape[axes.key] == TOKENS {
        let line = |axis: usize| {
            let mut l: Vec<Dim> = vec![c(1); shape.len()];
            l[axis] = TOKENS;
            l
        };
        let (a, b) =
            (m.input_as(Input::Sequences, line(axes.query)), m.input_as(Input::Sequences, line(axes.key)));
        let same = m.g.compare(Compare::Eq, a, b);
        on = m.g.binary(Binary::And, same, on);
    }
    let hidden = m.g.scalar_like(hidden, s);
    if kind == 7 {
        // A mask that is added.
        let zero = m.g.scalar_like(0.0, s);
        let on = m.g.broadcast(on, shape.clone());
        let mask = m.g.select(on, zero, hidden);
        return m.g.binary(Binary::Add, s, mask);
    }
    if kind == 8 {
        let off = m.g.unary(Unary::Not, on);
        let off = m.g.broadcast(off, shape.clone());
        return m.g.select(off, hidden, s);
    }
    let on = m.g.broadcast(on, shape.clone());
    m.g.select(on, s, hidden)
}
