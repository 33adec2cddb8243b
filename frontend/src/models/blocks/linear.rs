//! Linear layers, and parts of stored ones: a file may merge what the model takes apart, or store it transposed;
//! it is cut and turned when it is loaded.

use super::ModelBuilder;
use weft_ir::dtype::DType;
use weft_ir::ids::NodeId;
use weft_ir::scalar::Binary;
use weft_ir::shape::Dim;

/// Weight `[out, in]` and perhaps bias `[out]` of a linear layer.
#[derive(Clone, Copy)]
pub struct Linear {
    /// Weight.
    pub weight: NodeId,
    /// Bias.
    pub bias: Option<NodeId>,
}

impl Linear {
    /// The same change of rows on weight and bias.
    pub fn map(self, mut f: impl FnMut(NodeId) -> NodeId) -> Linear {
        Linear { weight: f(self.weight), bias: self.bias.map(f) }
    }

    /// The results `start..start + len`.
    pub fn rows(self, m: &mut ModelBuilder<'_>, start: usize, len: usize) -> Linear {
        self.map(|w| m.g.slice(w, 0, start, len))
    }

    /// Of the results, `groups` times `of`, those `start..start + len` of each group.
    pub fn of_groups(
        self,
        m: &mut ModelBuilder<'_>,
        groups: usize,
        of: usize,
        start: usize,
        len: usize,
    ) -> Linear {
        self.map(|w| {
            let mut shape = m.g.shape(w);
            let rest: usize = shape.iter().skip(1).filter_map(|d| d.as_const()).product();
            let grouped = m.g.reshape(w, [groups, of, rest].map(Dim::Const).to_vec());
            let part = m.g.slice(grouped, 1, start, len);
            if let Some(rows) = shape.first_mut() {
                *rows = Dim::Const(groups * len);
            }
            m.g.reshape(part, shape)
        })
    }
}

impl ModelBuilder<'_> {
    /// The stored layer W `name.weight`, b `name.bias` (where `bias` is set) that takes x `[t, in]` to `[t, out]`.
    /// `transposed`: W is stored as `[in, out]`.
    pub fn stored_linear(
        &mut self,
        x: NodeId,
        name: &str,
        out: usize,
        bias: bool,
        transposed: bool,
    ) -> Linear {
        let inner = self.g.shape(x).last().and_then(|d| d.as_const()).unwrap_or(0);
        let weight = if transposed {
            let w = self.turned_weight(&format!("{name}.weight"), &[inner, out]);
            self.g.transpose(w, &[1, 0])
        } else {
            self.weight(&format!("{name}.weight"), &[out, inner])
        };
        Linear { weight, bias: bias.then(|| self.weight(&format!("{name}.bias"), &[out])) }
    }

    /// x `[t, in]` · Wᵀ + b, in f32.
    pub fn apply(&mut self, x: NodeId, layer: Linear) -> NodeId {
        let y = self.g.matmul_t(x, layer.weight, DType::F32);
        let Some(b) = layer.bias else { return y };
        let out = self.g.shape(b).first().copied().unwrap_or(Dim::Const(0));
        let b = self.g.reshape(b, vec![Dim::Const(1), out]);
        let b = self.g.cast(b, DType::F32);
        self.g.binary(Binary::Add, y, b)
    }

    /// x `[t, in]` · Wᵀ + b, with W `name.weight` `[out, in]` and b `name.bias` `[out]` where `bias` is set, rounded
    /// to the model's type.
    pub fn linear(&mut self, x: NodeId, name: &str, out: usize, bias: bool) -> NodeId {
        let wide = self.linear_wide(x, name, out, bias);
        self.g.cast(wide, self.dtype)
    }

    /// As [`ModelBuilder::linear`], in f32: for results that further arithmetic takes before they are
    /// stored.
    pub fn linear_wide(&mut self, x: NodeId, name: &str, out: usize, bias: bool) -> NodeId {
        let part = name.rsplit('.').next().unwrap_or(name);
        self.scoped(part, |m| {
            let layer = m.stored_linear(x, name, out, bias, false);
            m.apply(x, layer)
        })
    }
}
