//! Normalisation: computed in f32, rounded once to the type of the input. (Hugging Face's `LlamaRMSNorm` rounds
//! before it multiplies with the weight, too.)

use super::ModelBuilder;
use crate::config::Norm;
use weft_ir::dtype::DType;
use weft_ir::ids::NodeId;
use weft_ir::scalar::{Binary, Reduce, Unary};
use weft_ir::shape::{Dim, Shape};

/// The configured norm of x `[…, h]`, with the weight `name.weight` (and `name.bias`).
pub fn configured(m: &mut ModelBuilder<'_>, x: NodeId, name: &str) -> NodeId {
    let kind = m.config.norm;
    match kind {
        Norm::Rms | Norm::RmsPlusOne => rms(m, x, &format!("{name}.weight")),
        Norm::Layer { bias } => layer(m, x, name, m.config.norm_eps, bias),
    }
}

/// RMSNorm (Zhang & Sennrich 2019) of x `[…, h]`; with Gemma's 1 + w where configured.
pub fn rms(m: &mut ModelBuilder<'_>, x: NodeId, weight: &str) -> NodeId {
    m.scoped(part(weight), |m| {
        let w = vector(m, x, weight);
        rms_by(m, x, w, m.config.norm_eps)
    })
}

/// RMSNorm of x `[…, h]` with an epsilon of its own.
pub fn rms_with(m: &mut ModelBuilder<'_>, x: NodeId, weight: &str, eps: f64) -> NodeId {
    m.scoped(part(weight), |m| {
        let w = vector(m, x, weight);
        rms_by(m, x, w, eps)
    })
}

/// LayerNorm (Ba et al. 2016) of x `[…, h]`, with weight `name.weight` and, where `bias` is set, bias
/// `name.bias`; in old checkpoints `name.gamma` and `name.beta`.
pub fn layer(m: &mut ModelBuilder<'_>, x: NodeId, name: &str, eps: f64, bias: bool) -> NodeId {
    m.scoped(part(name), |m| {
        let old = !m.has(&format!("{name}.weight")) && m.has(&format!("{name}.gamma"));
        let [weight, shift] = if old { ["gamma", "beta"] } else { ["weight", "bias"] };
        let w = vector(m, x, &format!("{name}.{weight}"));
        let b = bias.then(|| vector(m, x, &format!("{name}.{shift}")));
        layer_by(m, x, w, b, eps)
    })
}

/// The configured norm without bias, with a weight that broadcasts to x: of the type of x.
pub fn by(m: &mut ModelBuilder<'_>, x: NodeId, w: NodeId) -> NodeId {
    match m.config.norm {
        Norm::Rms | Norm::RmsPlusOne => rms_by(m, x, w, m.config.norm_eps),
        Norm::Layer { .. } => layer_by(m, x, w, None, m.config.norm_eps),
    }
}

fn rms_by(m: &mut ModelBuilder<'_>, x: NodeId, w: NodeId, eps: f64) -> NodeId {
    let dtype = m.g.dtype(x);
    let wide = m.g.cast(x, DType::F32);
    let square = m.g.binary(Binary::Mul, wide, wide);
    let mean = m.g.reduce(Reduce::Mean, square);
    let eps = m.g.scalar_like(eps as f32, mean);
    let mean = m.g.binary(Binary::Add, mean, eps);
    let scale = m.g.unary(Unary::Rsqrt, mean);
    let y = m.g.binary(Binary::Mul, wide, scale);
    let mut w = m.g.cast(w, DType::F32);
    if m.config.norm == Norm::RmsPlusOne {
        let one = m.g.scalar_like(1.0, w);
        w = m.g.binary(Binary::Add, w, one);
    }
    let y = m.g.binary(Binary::Mul, y, w);
    m.g.cast(y, dtype)
}

fn layer_by(m: &mut ModelBuilder<'_>, x: NodeId, w: NodeId, b: Option<NodeId>, eps: f64) -> NodeId {
    let dtype = m.g.dtype(x);
    let wide = m.g.cast(x, DType::F32);
    let mean = m.g.reduce(Reduce::Mean, wide);
    let centred = m.g.binary(Binary::Sub, wide, mean);
    let square = m.g.binary(Binary::Mul, centred, centred);
    let variance = m.g.reduce(Reduce::Mean, square);
    let eps = m.g.scalar_like(eps as f32, variance);
    let variance = m.g.binary(Binary::Add, variance, eps);
    let scale = m.g.unary(Unary::Rsqrt, variance);
    let y = m.g.binary(Binary::Mul, centred, scale);
    let w = m.g.cast(w, DType::F32);
    let mut y = m.g.binary(Binary::Mul, y, w);
    if let Some(b) = b {
        let b = m.g.cast(b, DType::F32);
        y = m.g.binary(Binary::Add, y, b);
    }
    m.g.cast(y, dtype)
}

/// A weight `[h]` with the rank of x `[…, h]`.
fn vector(m: &mut ModelBuilder<'_>, x: NodeId, name: &str) -> NodeId {
    let shape = m.g.shape(x);
    let h = shape.last().and_then(|d| d.as_const()).unwrap_or(0);
    let w = m.weight(name, &[h]);
    let mut wide: Shape = vec![Dim::Const(1); shape.len().max(1)];
    if let Some(last) = wide.last_mut() {
        *last = Dim::Const(h);
    }
    m.g.reshape(w, wide)
}

/// Innermost part of a tensor's name, without its kind.
fn part(name: &str) -> &str {
    name.trim_end_matches(".weight").rsplit('.').next().unwrap_or(name)
}
