//! A block of a decoder: attention and MLP, joined as configured.

use super::{ModelBuilder, norm};
use crate::config::Placement;
use weft_ir::ids::NodeId;

/// Names of a block's norms, within it. Which of them there are, the configured placement says.
#[derive(Clone, Copy, Default)]
pub struct Norms {
    /// Before the attention (and before the MLP, where one norm serves both).
    pub attention_in: &'static str,
    /// After it.
    pub attention_out: &'static str,
    /// Before the MLP.
    pub mlp_in: &'static str,
    /// After it.
    pub mlp_out: &'static str,
}

/// Llama's.
pub const PRE: Norms = Norms {
    attention_in: "input_layernorm",
    attention_out: "",
    mlp_in: "post_attention_layernorm",
    mlp_out: "",
};

/// One block, of the residual stream x `[t, h]`; attention and MLP give f32.
pub fn block(
    m: &mut ModelBuilder<'_>,
    x: NodeId,
    prefix: &str,
    norms: &Norms,
    attention: impl FnOnce(&mut ModelBuilder<'_>, NodeId) -> NodeId,
    mlp: impl FnOnce(&mut ModelBuilder<'_>, NodeId) -> NodeId,
) -> NodeId {
    if m.failed() {
        return x;
    }
    let norm = |m: &mut ModelBuilder<'_>, x, part: &str| norm::configured(m, x, &format!("{prefix}.{part}"));
    m.scoped(prefix, |m| match m.config.placement {
        Placement::Pre => {
            let h = norm(m, x, norms.attention_in);
            let residual = if m.config.residual_after_norm { h } else { x };
            let h = attention(m, h);
            let x = m.residual(residual, h);
            let h = norm(m, x, norms.mlp_in);
            let residual = if m.config.residual_after_norm { h } else { x };
            let h = mlp(m, h);
            m.residual(residual, h)
        }
        Placement::Post => {
            let h = attention(m, x);
            let h = norm(m, h, norms.attention_out);
            let x = m.residual(x, h);
            let h = mlp(m, x);
            let h = norm(m, h, norms.mlp_out);
            m.residual(x, h)
        }
        Placement::Sandwich => {
            let h = norm(m, x, norms.attention_in);
            let h = attention(m, h);
            let h = norm(m, h, norms.attention_out);
            let x = m.residual(x, h);
            let h = norm(m, x, norms.mlp_in);
            let h = mlp(m, h);
            let h = norm(m, h, norms.mlp_out);
            m.residual(x, h)
        }
        Placement::Parallel { norms: count } => {
            let a = norm(m, x, norms.attention_in);
            let b = if count == 2 { norm(m, x, norms.mlp_in) } else { a };
            let a = attention(m, a);
            let b = mlp(m, b);
            let sum = m.g.binary(weft_ir::scalar::Binary::Add, a, b);
            m.residual(x, sum)
        }
    })
}
