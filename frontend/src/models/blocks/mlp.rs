//! Feed-forward layers.

use super::{Linear, ModelBuilder};
use crate::config::Activation;
use std::f32::consts::{FRAC_1_SQRT_2, PI};
use weft_ir::ids::NodeId;
use weft_ir::scalar::{Binary, Unary};

/// The configured activation of an f32 value, elementwise.
pub fn activation(m: &mut ModelBuilder<'_>, x: NodeId) -> NodeId {
    let scaled = |m: &mut ModelBuilder<'_>, x, by: f32| {
        let by = m.g.scalar_like(by, x);
        m.g.binary(Binary::Mul, x, by)
    };
    // x/2 · (1 + y)
    let gate = |m: &mut ModelBuilder<'_>, y| {
        let one = m.g.scalar_like(1.0, y);
        let y = m.g.binary(Binary::Add, y, one);
        let half = scaled(m, x, 0.5);
        m.g.binary(Binary::Mul, half, y)
    };
    match m.config.hidden_act {
        Activation::Silu => m.g.unary(Unary::Silu, x),
        Activation::Gelu => {
            let y = scaled(m, x, FRAC_1_SQRT_2);
            let y = m.g.unary(Unary::Erf, y);
            gate(m, y)
        }
        Activation::GeluTanh => {
            // tanh(√(2/π) · (x + 0.044715 x³)) (Hendrycks & Gimpel 2016)
            let square = m.g.binary(Binary::Mul, x, x);
            let cube = m.g.binary(Binary::Mul, square, x);
            let cube = scaled(m, cube, 0.044715);
            let y = m.g.binary(Binary::Add, x, cube);
            let y = scaled(m, y, (2.0 / PI).sqrt());
            let y = m.g.unary(Unary::Tanh, y);
            gate(m, y)
        }
        Activation::QuickGelu => {
            let y = scaled(m, x, 1.702);
            let y = m.g.unary(Unary::Sigmoid, y);
            m.g.binary(Binary::Mul, x, y)
        }
        Activation::Relu | Activation::Relu2 => {
            let zero = m.g.scalar_like(0.0, x);
            let y = m.g.binary(Binary::Max, x, zero);
            match m.config.hidden_act {
                Activation::Relu2 => m.g.binary(Binary::Mul, y, y),
                _ => y,
            }
        }
    }
}

/// down(act(gate(x)) · up(x)) (Shazeer 2020) of x `[t, h]`, in f32.
pub fn gated(m: &mut ModelBuilder<'_>, x: NodeId, name: &str) -> NodeId {
    gated_of(m, x, name, "mlp", m.config.intermediate_size)
}

/// As [`gated`], of another width, in the scope `part`.
pub fn gated_of(m: &mut ModelBuilder<'_>, x: NodeId, name: &str, part: &str, wide: usize) -> NodeId {
    m.scoped(part, |m| {
        let bias = m.config.mlp_bias;
        let gate = m.linear_wide(x, &format!("{name}.gate_proj"), wide, bias);
        let up = m.linear_wide(x, &format!("{name}.up_proj"), wide, bias);
        gate_and_down(m, gate, up, &format!("{name}.down_proj"))
    })
}

/// Names of [`gated_merged`]'s matrices in most files.
pub const MERGED: [&str; 2] = ["gate_up_proj", "down_proj"];

/// As [`gated`], with gate and up one stored matrix, the gate's rows first; `names`: of it and of down.
pub fn gated_merged(m: &mut ModelBuilder<'_>, x: NodeId, name: &str, names: [&str; 2]) -> NodeId {
    m.scoped("mlp", |m| {
        let wide = m.config.intermediate_size;
        let both = m.stored_linear(x, &format!("{name}.{}", names[0]), 2 * wide, m.config.mlp_bias, false);
        let (gate, up) = (both.rows(m, 0, wide), both.rows(m, wide, wide));
        let gate = m.scoped("gate_proj", |m| m.apply(x, gate));
        let up = m.scoped("up_proj", |m| m.apply(x, up));
        gate_and_down(m, gate, up, &format!("{name}.{}", names[1]))
    })
}

fn gate_and_down(m: &mut ModelBuilder<'_>, gate: NodeId, up: NodeId, down: &str) -> NodeId {
    let gate = activation(m, gate);
    let h = m.g.binary(Binary::Mul, gate, up);
    let h = m.g.cast(h, m.dtype);
    m.linear_wide(h, down, m.config.hidden_size, m.config.mlp_bias)
}

/// down(act(up(x))) of x `[t, h]`, in f32; `names`: of up and down. `transposed`: stored as `[in, out]`.
pub fn plain(m: &mut ModelBuilder<'_>, x: NodeId, name: &str, names: [&str; 2], transposed: bool) -> NodeId {
    m.scoped("mlp", |m| {
        let (wide, narrow, bias) = (m.config.intermediate_size, m.config.hidden_size, m.config.mlp_bias);
        let layer = |m: &mut ModelBuilder<'_>, x, part: &str, out| {
            m.scoped(part, |m| {
                let stored: Linear = m.stored_linear(x, &format!("{name}.{part}"), out, bias, transposed);
                m.apply(x, stored)
            })
        };
        let h = layer(m, x, names[0], wide);
        let h = activation(m, h);
        let h = m.g.cast(h, m.dtype);
        layer(m, h, names[1], narrow)
    })
}
