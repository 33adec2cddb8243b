//! Normalisation.

use super::ModelBuilder;
use weft_ir::dtype::DType;
use weft_ir::ids::NodeId;
use weft_ir::scalar::{Binary, Reduce, Unary};
use weft_ir::shape::Dim;

/// RMSNorm (Zhang & Sennrich 2019) of x [t, h] in f32, rounded once. (Hugging Face's `LlamaRMSNorm` rounds
/// before it multiplies with the weight, too.)
pub fn rms(m: &mut ModelBuilder<'_>, x: NodeId, weight: &str) -> NodeId {
    let scope = weight.trim_end_matches(".weight").rsplit('.').next().unwrap_or(weight).to_string();
    m.scoped(&scope, |m| {
        let dtype = m.g.dtype(x);
        let h = m.g.shape(x).last().and_then(|d| d.as_const()).unwrap_or(0);
        let wide = m.g.cast(x, DType::F32);
        let square = m.g.binary(Binary::Mul, wide, wide);
        let mean = m.g.reduce(Reduce::Mean, square);
        let eps = m.g.scalar_like(m.config.rms_norm_eps as f32, mean);
        let mean = m.g.binary(Binary::Add, mean, eps);
        let scale = m.g.unary(Unary::Rsqrt, mean);
        let y = m.g.binary(Binary::Mul, wide, scale);
        let w = m.weight(weight, &[h]);
        let w = m.g.reshape(w, vec![Dim::Const(1), Dim::Const(h)]);
        let w = m.g.cast(w, DType::F32);
        let y = m.g.binary(Binary::Mul, y, w);
        m.g.cast(y, dtype)
    })
}
