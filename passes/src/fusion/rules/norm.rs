//! Norms: as one kernel, with the residual before them, with the linear layer behind them.

use super::{Fusion, Site, Vars, View};
use crate::numerics::Numerics;
use weft_ir::graph::Op;
use weft_ir::ids::NodeId;
use weft_ir::scalar::{Binary, Reduce};

/// 1 / √(mean(x²) + ε), the heart of both norms.
const SCALE: &str = "(rsqrt (add (mean (mul ?x ?x)) ?e))";

/// Row statistics and what is scaled with them.
pub const RMS_NORM: Fusion = Fusion {
    name: "rms-norm",
    numerics: Numerics::Exact,
    summary: "x · rsqrt(mean(x²) + ε) (Zhang & Sennrich 2019)",
    patterns: &[SCALE],
    find: |v, at, vars| {
        let core = Core::at(v, at, vars)?;
        (!core.centred).then(|| core.site(v, at))?
    },
};

/// Mean, variance and what is scaled with them.
pub const LAYER_NORM: Fusion = Fusion {
    name: "layer-norm",
    numerics: Numerics::Exact,
    summary: "(x − mean(x)) · rsqrt(variance(x) + ε) (Ba et al. 2016)",
    patterns: &[SCALE],
    find: |v, at, vars| {
        let core = Core::at(v, at, vars)?;
        core.centred.then(|| core.site(v, at))?
    },
};

/// The sum that a norm reads, made in the norm's kernel, or the norm in the next product's.
pub const RESIDUAL_NORM: Fusion = Fusion {
    name: "residual-norm",
    numerics: Numerics::Reassociates,
    summary: "h + y, then its norm; where the norm is in the prologue of the product behind it, that suffices",
    patterns: &[SCALE],
    find: residual_norm,
};

/// A norm inside the linear layer that reads it.
pub const NORM_LINEAR: Fusion = Fusion {
    name: "norm-prologue",
    numerics: Numerics::ChangesPrecision,
    summary: "norm(x) · Wᵀ: an RMSNorm's scale is computed beside the products and applied to them, a LayerNorm before them",
    patterns: &[
        "(mul (matmul.t ?a ?w) (broadcast ?s))",
        "(matmul.t (cast (mul (mul ?x (broadcast ?s)) ?g)) ?w)",
        "(matmul.t (mul (mul ?x (broadcast ?s)) ?g) ?w)",
        "(matmul.t (cast (add (mul (mul ?x (broadcast ?s)) ?g) ?b)) ?w)",
        "(matmul.t (add (mul (mul ?x (broadcast ?s)) ?g) ?b) ?w)",
    ],
    find: norm_linear,
};

/// The parts of a norm up to its scale.
struct Core {
    /// What is normalised, below casts.
    x: NodeId,
    /// Whether the mean is taken off.
    centred: bool,
    /// Ops up to the scale, the first reduction first.
    ops: Vec<NodeId>,
}

impl Core {
    fn at(v: &View<'_>, rsqrt: NodeId, vars: &Vars<'_>) -> Option<Core> {
        let x = vars.get("?x")?;
        let add = v.input(rsqrt, 0);
        let mean = v.input(add, 0);
        let mut ops = vec![mean, v.input(mean, 0), add, rsqrt];
        if let Op::Binary(Binary::Sub) = v.op(x) {
            let first = v.below(v.input(x, 1));
            if matches!(v.op(first), Op::Reduce(Reduce::Mean)) && v.input(first, 0) == v.input(x, 0) {
                ops.extend([first, x]);
                return Some(Core { x: v.below(v.input(x, 0)), centred: true, ops });
            }
        }
        Some(Core { x: v.below(x), centred: false, ops })
    }

    /// The norm with the first product that takes its scale.
    fn site(&self, v: &View<'_>, at: NodeId) -> Option<Site> {
        let scaled = scaled(v, at).into_iter().map(|s| self.ops.iter().copied().chain([s]).collect());
        let any: Vec<Vec<NodeId>> = scaled.collect();
        let cut = self.ops.iter().copied().filter(|n| matches!(v.op(*n), Op::Reduce(_))).collect();
        (!any.is_empty()).then_some(Site { at, any, instead: None, cut, never: None, hint: None })
    }
}

/// Products with a row's scale.
fn scaled(v: &View<'_>, scale: NodeId) -> Vec<NodeId> {
    let mut found = Vec::new();
    for &u in &v.users[scale.index()] {
        match v.op(u) {
            Op::Broadcast(_) | Op::Reshape(_) => found.extend(scaled(v, u)),
            Op::Binary(Binary::Mul) => found.push(u),
            _ => {}
        }
    }
    found
}

/// Linear layers that a norm's scaled values lead to.
fn linears_above(v: &View<'_>, id: NodeId, budget: usize) -> Vec<NodeId> {
    let mut found = Vec::new();
    for &u in &v.users[id.index()] {
        match v.op(u) {
            _ if v.is_linear(u) => found.push(u),
            Op::Cast(_) | Op::Reshape(_) | Op::Binary(_) if budget > 0 => {
                found.extend(linears_above(v, u, budget - 1));
            }
            _ => {}
        }
    }
    found
}

fn residual_norm(v: &View<'_>, at: NodeId, vars: &Vars<'_>) -> Option<Site> {
    let core = Core::at(v, at, vars)?;
    let Op::Binary(Binary::Add) = v.op(core.x) else { return None };
    // A residual is added to what a linear layer gives; a bias is no residual.
    v.linear_below(core.x)?;
    if v.graph.node(core.x).inputs.iter().any(|x| v.is_constant(*x)) {
        return None;
    }
    let mean = core.ops[0];
    let site = Site::new(at, core.ops.iter().copied().chain([core.x]).collect(), vec![core.x]);
    let behind = |s: &NodeId| {
        let own = v.graph.node(*s).inputs.iter().copied().find(|x| v.is_linear(*x));
        own.or_else(|| linears_above(v, *s, 4).first().copied())
    };
    let product = scaled(v, at).iter().find_map(behind);
    let hint = Some("the kernel that makes the sum has no whole rows: they would cost more than they save");
    Some(Site { instead: product.map(|p| (NORM_LINEAR.name, vec![mean, p])), hint, ..site })
}

fn norm_linear(v: &View<'_>, at: NodeId, vars: &Vars<'_>) -> Option<Site> {
    let scale = v.below(vars.get("?s")?);
    let Op::Unary(weft_ir::scalar::Unary::Rsqrt) = v.op(scale) else { return None };
    let mean = v.below(v.input(v.input(scale, 0), 0));
    let Op::Reduce(_) = v.op(mean) else { return None };
    let product = if v.is_linear(at) { at } else { v.input(at, 0) };
    if !v.is_linear(product) {
        return None;
    }
    // A norm of the product's own result.
    if v.graph.depends(mean, product) {
        return None;
    }
    let left = v.input(product, 0);
    // A norm that something else needs too is in memory anyway.
    if product == at && (v.is_root(left) || v.users[left.index()].iter().any(|u| !v.is_linear(*u))) {
        return None;
    }
    Some(Site::new(product, vec![product, scale, mean], vec![left]))
}
