//! Recipes of what models are made of, and near misses of them: norms, linear layers, gated layers,
//! residual sums, rotations.

use super::make::{Maker, TOKENS, c};
use super::pointwise::tame;
use weft_ir::dtype::DType;
use weft_ir::graph::Input;
use weft_ir::ids::NodeId;
use weft_ir::scalar::{Binary, Compare, Reduce, Unary};

/// RMSNorm or LayerNorm of a value along its last axis, in primitives, or something close to one.
pub fn norm(m: &mut Maker) {
    let x = m.any();
    let y = norm_of(m, x);
    m.keep(y);
}

/// The norm of a value.
pub fn norm_of(m: &mut Maker, x: NodeId) -> NodeId {
    let d = m.wide();
    let mut wide = m.g.cast(x, d);
    if m.rng.chance(40) {
        // LayerNorm: centred.
        let mean = m.g.reduce(Reduce::Mean, wide);
        let mean = m.g.cast(mean, d);
        wide = m.g.binary(Binary::Sub, wide, mean);
        if m.rng.chance(10) {
            m.keep(mean);
        }
    }
    let squared = if m.rng.chance(85) {
        m.g.binary(Binary::Mul, wide, wide)
    } else {
        let a = m.g.unary(Unary::Abs, wide);
        let two = m.g.scalar_like(2.0, a);
        m.g.binary(Binary::Pow, a, two)
    };
    let sum = if m.rng.chance(85) { Reduce::Mean } else { Reduce::Sum };
    let mean = m.g.reduce(sum, squared);
    let eps = m.g.scalar_like(m.rng.clone().pick(&[1e-5, 1e-6, 0.1]), mean);
    let scale = match m.rng.below(8) {
        // ε outside of the root, 1 over a root, a root to divide by.
        0 => {
            let root = m.g.unary(Unary::Sqrt, mean);
            let root = m.g.binary(Binary::Add, root, eps);
            m.g.unary(Unary::Recip, root)
        }
        1 => {
            let shifted = m.g.binary(Binary::Add, mean, eps);
            let root = m.g.unary(Unary::Sqrt, shifted);
            m.g.unary(Unary::Recip, root)
        }
        2 => {
            let shifted = m.g.binary(Binary::Max, mean, eps);
            m.g.unary(Unary::Rsqrt, shifted)
        }
        _ => {
            let shifted = if m.rng.chance(80) {
                m.g.binary(Binary::Add, mean, eps)
            } else {
                m.g.binary(Binary::Add, eps, mean)
            };
            m.g.unary(Unary::Rsqrt, shifted)
        }
    };
    if m.rng.chance(10) {
        m.keep(scale);
    }
    let wide = m.g.cast(wide, DType::F32);
    let mut y = if m.rng.chance(80) {
        m.g.binary(Binary::Mul, wide, scale)
    } else {
        m.g.binary(Binary::Mul, scale, wide)
    };
    if m.rng.chance(15) {
        // As Hugging Face's LlamaRMSNorm: rounded before the weight.
        y = m.g.cast(y, m.dtype);
        y = m.g.cast(y, DType::F32);
    }
    let known = m.g.shape(x).last().and_then(|d| d.as_const()).is_some();
    if known && m.rng.chance(85) {
        let mut w = m.along("norm", y);
        if m.rng.chance(15) {
            // Gemma's 1 + w.
            let one = m.g.scalar_like(1.0, w);
            w = m.g.binary(Binary::Add, w, one);
        }
        y = m.g.binary(Binary::Mul, y, w);
        if m.rng.chance(30) {
            let b = m.along("b", y);
            y = m.g.binary(Binary::Add, y, b);
        }
    }
    m.g.cast(y, m.dtype)
}

/// x · wᵀ for x [rows, k], with a weight that is stored in one of several ways.
fn product(m: &mut Maker, x: NodeId, n: usize, out: DType) -> NodeId {
    let k = m.g.shape(x)[1].as_const().unwrap_or(1);
    let x = m.g.cast(x, m.dtype);
    match m.rng.below(10) {
        0 => {
            let w = m.weight("w", &[k, n]);
            m.g.matmul(x, w, out)
        }
        1 => {
            let w = m.weight("w", &[k, n]);
            let w = m.g.transpose(w, &[1, 0]);
            m.g.matmul_t(x, w, out)
        }
        2 => {
            // A part of a larger weight.
            let w = m.weight("w", &[n + 3, k]);
            let w = m.g.slice(w, 0, 2, n);
            m.g.matmul_t(x, w, out)
        }
        3 if n > 1 => {
            let (a, b) = (m.weight("w", &[1, k]), m.weight("w", &[n - 1, k]));
            let w = m.g.concat(&[a, b], 0);
            m.g.matmul_t(x, w, out)
        }
        _ => {
            let w = m.weight("w", &[n, k]);
            m.g.matmul_t(x, w, out)
        }
    }
}

/// A linear layer of x [rows, k] with or without bias; wide ones are left in f32.
pub fn linear_of(m: &mut Maker, x: NodeId, n: usize, wide: bool) -> NodeId {
    let bias = m.rng.chance(35);
    let out = if wide || bias || m.rng.chance(30) { DType::F32 } else { m.dtype };
    let mut y = product(m, x, n, out);
    if bias {
        let b = m.along("b", y);
        let b = m.g.cast(b, out);
        y = if m.rng.chance(80) { m.g.binary(Binary::Add, y, b) } else { m.g.binary(Binary::Add, b, y) };
    }
    if wide { y } else { m.g.cast(y, m.dtype) }
}

/// An activation, or something close to one.
pub fn activation(m: &mut Maker, x: NodeId) -> NodeId {
    let times = |m: &mut Maker, a, b| m.g.binary(Binary::Mul, a, b);
    match m.rng.below(10) {
        0 | 1 => m.g.unary(Unary::Silu, x),
        2 => {
            let s = m.g.unary(Unary::Sigmoid, x);
            times(m, x, s)
        }
        3 => {
            let zero = m.g.scalar_like(0.0, x);
            m.g.binary(Binary::Max, x, zero)
        }
        4 => {
            let zero = m.g.scalar_like(0.0, x);
            let r = m.g.binary(Binary::Max, x, zero);
            times(m, r, r)
        }
        5 | 6 => {
            // GELU by the error function; 0.7 is close to 1/√2.
            let by = m.rng.pick(&[std::f32::consts::FRAC_1_SQRT_2, std::f32::consts::FRAC_1_SQRT_2, 0.7]);
            let by = m.g.scalar_like(by, x);
            let e = times(m, x, by);
            let e = m.g.unary(Unary::Erf, e);
            let one = m.g.scalar_like(1.0, x);
            let e = m.g.binary(Binary::Add, e, one);
            let half = m.g.scalar_like(0.5, x);
            let h = times(m, x, half);
            times(m, h, e)
        }
        7 | 8 => {
            // GELU by tanh, or another cubic.
            let by = m.rng.pick(&[0.044715, 0.044715, 0.05]);
            let x2 = times(m, x, x);
            let x3 = times(m, x2, x);
            let by = m.g.scalar_like(by, x);
            let x3 = times(m, x3, by);
            let inner = m.g.binary(Binary::Add, x, x3);
            let root = m.g.scalar_like(0.797_884_6, x);
            let inner = times(m, inner, root);
            let t = m.g.unary(Unary::Tanh, inner);
            let one = m.g.scalar_like(1.0, x);
            let t = m.g.binary(Binary::Add, t, one);
            let half = m.g.scalar_like(0.5, x);
            let h = times(m, x, half);
            times(m, h, t)
        }
        _ => tame(m, x),
    }
}

/// A linear layer, perhaps with bias, activation, a reshape, and a second user.
pub fn linear(m: &mut Maker) {
    let x = m.matrix();
    let n = m.size();
    let wide = m.rng.chance(60);
    let mut y = linear_of(m, x, n, wide);
    if m.rng.chance(15) {
        m.keep(y);
    }
    if m.rng.chance(50) {
        y = activation(m, y);
    }
    if m.rng.chance(20) && n.is_multiple_of(2) {
        let rows = m.g.shape(y)[0];
        y = m.g.reshape(y, vec![rows, c(2), c(n / 2)]);
        if m.rng.chance(50) {
            y = tame(m, y);
        }
    }
    let y = m.g.cast(y, m.dtype);
    m.keep(y);
}

/// Two or three linear layers of one input: queries, keys and values, sometimes of other sizes or types.
pub fn shared_linears(m: &mut Maker) {
    let x = m.matrix();
    let x = if m.rng.chance(50) { norm_of(m, x) } else { x };
    let n = m.size();
    for _ in 0..m.rng.within(2, 3) {
        let n = if m.rng.chance(60) { n } else { m.size() };
        let wide = m.rng.chance(30);
        let y = linear_of(m, x, n, wide);
        m.keep(y);
    }
}

/// act(gate) · up and a projection down, from two layers or from the halves of one, sometimes swapped.
pub fn gated(m: &mut Maker) {
    let x = m.matrix();
    let x = if m.rng.chance(40) { norm_of(m, x) } else { x };
    let (k, n) = (m.g.shape(x)[1].as_const().unwrap_or(1), m.size());
    let wide = m.rng.chance(70);
    let (gate, up) = if m.rng.chance(30) {
        let both = linear_of(m, x, 2 * n, wide);
        let swapped = m.rng.chance(30);
        let (a, b) = (m.g.slice(both, 1, 0, n), m.g.slice(both, 1, n, n));
        if swapped { (b, a) } else { (a, b) }
    } else {
        let gate = linear_of(m, x, n, wide);
        let up = if m.rng.chance(10) { gate } else { linear_of(m, x, n, wide) };
        (gate, up)
    };
    if m.rng.chance(10) {
        m.keep(gate);
    }
    let a = activation(m, gate);
    let y = if m.rng.chance(70) { m.g.binary(Binary::Mul, a, up) } else { m.g.binary(Binary::Mul, up, a) };
    let y = m.g.cast(y, m.dtype);
    if m.rng.chance(15) {
        m.keep(y);
    }
    let y = linear_of(m, y, k, false);
    m.keep(y);
}

/// The sum of two values of one shape, in f32 or in the model's type, sometimes scaled.
pub fn residual(m: &mut Maker) {
    let x = m.any();
    let shape = m.g.shape(x);
    let same: Vec<NodeId> = m.floats.iter().copied().filter(|&y| y != x && m.g.shape(y) == shape).collect();
    let y = if same.is_empty() {
        let last = shape.last().and_then(|d| d.as_const());
        if let ([rows, _], Some(n)) = (&shape[..], last) {
            let (rows, z) = (*rows, m.matrix());
            if m.g.shape(z)[0] == rows { linear_of(m, z, n, false) } else { tame(m, x) }
        } else {
            tame(m, x)
        }
    } else {
        m.rng.pick(&same)
    };
    let d = m.wide();
    let (a, mut b) = (m.g.cast(x, d), m.g.cast(y, d));
    if m.rng.chance(20) {
        let by = m.g.scalar_like(0.25, b);
        b = m.g.binary(Binary::Mul, b, by);
    }
    let sum = if m.rng.chance(85) { Binary::Add } else { Binary::Sub };
    let sum = if m.rng.chance(50) { m.g.binary(sum, a, b) } else { m.g.binary(sum, b, a) };
    let z = m.g.cast(sum, m.dtype);
    m.keep(z);
    if m.rng.chance(40) {
        let z = norm_of(m, if m.rng.clone().chance(50) { z } else { sum });
        m.keep(z);
    }
}

/// Rotation of [tokens, heads, d] by the positions: halves, swapped halves, or neighbours.
pub fn rotate(m: &mut Maker, x: NodeId) -> NodeId {
    let shape = m.g.shape(x);
    let last = shape.len() - 1;
    let half = shape[last].as_const().unwrap_or(2) / 2;
    let mut line = vec![c(1); shape.len()];
    line[last] = c(half);
    let f: Vec<f32> = (0..half).map(|i| 0.5f32.powi(i as i32)).collect();
    let f = m.g.constant(f, line);
    let mut rows = vec![c(1); shape.len()];
    rows[0] = TOKENS;
    let p = m.input_as(Input::Positions, rows);
    let p = m.g.cast(p, DType::F32);
    let angle = m.g.binary(Binary::Mul, p, f);
    let (cos, sin) = (m.g.unary(Unary::Cos, angle), m.g.unary(Unary::Sin, angle));
    let wide = m.g.cast(x, DType::F32);
    let (mut a, mut b) = (m.g.slice(wide, last, 0, half), m.g.slice(wide, last, half, half));
    let times = |m: &mut Maker, a, b| m.g.binary(Binary::Mul, a, b);
    if m.rng.chance(10) {
        std::mem::swap(&mut a, &mut b);
    }
    let (ac, bs) = (times(m, a, cos), times(m, b, sin));
    let (bc, as_) = (times(m, b, cos), times(m, a, sin));
    let minus = if m.rng.chance(90) { Binary::Sub } else { Binary::Add };
    let low = m.g.binary(minus, ac, bs);
    let high = m.g.binary(Binary::Add, bc, as_);
    let y = if m.rng.chance(90) { [low, high] } else { [high, low] };
    let y = m.g.concat(&y, last);
    m.g.cast(y, m.dtype)
}

/// A rotated projection.
pub fn rotary(m: &mut Maker) {
    let x = m.token_matrix();
    let (heads, d) = (m.rng.within(1, 3), m.rng.pick(&[2, 4, 8]));
    let wide = m.rng.chance(50);
    let y = linear_of(m, x, heads * d, wide);
    let y = m.g.reshape(y, vec![TOKENS, c(heads), c(d)]);
    let mut y = rotate(m, y);
    if m.rng.chance(50) {
        y = m.g.reshape(y, vec![TOKENS, c(heads * d)]);
    }
    if m.rng.chance(30) {
        let zero = m.g.scalar_like(0.0, y);
        let on = m.g.compare(Compare::Le, zero, y);
        let n = m.g.unary(Unary::Neg, y);
        y = m.g.select(on, y, n);
    }
    m.keep(y);
}
