//! Feed-forward layers.

use super::ModelBuilder;
use crate::config::Activation;
use weft_ir::ids::NodeId;
use weft_ir::scalar::{Binary, Unary};

/// Elementwise activation.
pub fn activation(m: &mut ModelBuilder<'_>, x: NodeId) -> NodeId {
    match m.config.hidden_act {
        Activation::Silu => m.g.unary(Unary::Silu, x),
    }
}

/// down(act(gate(x)) · up(x)) (Shazeer 2020) of x [t, h], in f32.
pub fn gated(m: &mut ModelBuilder<'_>, x: NodeId, name: &str) -> NodeId {
    m.scoped("mlp", |m| {
        let (wide, narrow, bias) = (m.config.intermediate_size, m.config.hidden_size, m.config.mlp_bias);
        let gate = m.linear_wide(x, &format!("{name}.gate_proj"), wide, bias);
        let up = m.linear_wide(x, &format!("{name}.up_proj"), wide, bias);
        let gate = activation(m, gate);
        let h = m.g.binary(Binary::Mul, gate, up);
        let h = m.g.cast(h, m.dtype);
        m.linear_wide(h, &format!("{name}.down_proj"), narrow, bias)
    })
}
