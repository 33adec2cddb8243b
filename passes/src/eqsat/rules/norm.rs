//! Normalisation before a linear layer.

use super::{Rule, var};
use crate::eqsat::analysis::Block;
use crate::eqsat::build::{broadcast, cast, dtype, linear, mul, shape};
use crate::numerics::Numerics;
use egg::{Id, Subst};
use weft_ir::shape::Dim;

/// A scale of the row commutes with the product: it is applied to the result, where it costs nothing.
pub const SCALE_AFTER_LINEAR: Rule = Rule {
    name: "norm-prologue",
    numerics: Numerics::ChangesPrecision,
    needs: &[],
    summary: "(x·s·γ)·Wᵀ with one s a row → s·((x·γ)·Wᵀ)",
    patterns: &[
        "(matmul.t (cast (mul (mul ?x (broadcast ?s)) (broadcast ?g))) ?w)",
        "(matmul.t (mul (mul ?x (broadcast ?s)) (broadcast ?g)) ?w)",
    ],
    apply: scale_after,
};

fn scale_after(g: &mut Block, class: Id, subst: &Subst) -> Option<Vec<(Id, Id)>> {
    let (x, s, gamma, w) = (var(subst, "?x")?, var(subst, "?s")?, var(subst, "?g")?, var(subst, "?w")?);
    let wide = shape(g, x);
    let is_row_scale = matches!(&shape(g, s)[..], [rows, Dim::Const(1)] if Some(rows) == wide.first());
    let is_gamma = matches!(&shape(g, gamma)[..], [Dim::Const(1), _]);
    let out = dtype(g, class);
    if !is_row_scale || !is_gamma || !g[w].data.load || dtype(g, s) != out {
        return None;
    }
    let gamma = broadcast(g, gamma, wide);
    let a = mul(g, x, gamma);
    let a = cast(g, a, dtype(g, w));
    let y = linear(g, a, w, out);
    let to = shape(g, y);
    let s = broadcast(g, s, to);
    Some(vec![(class, mul(g, y, s))])
}
