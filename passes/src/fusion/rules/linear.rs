//! Linear layers: merged with their siblings, and with what follows them.

use super::{Fusion, Site, Vars, View};
use crate::numerics::Numerics;
use weft_ir::graph::Op;
use weft_ir::ids::NodeId;
use weft_ir::scalar::Binary;

/// Linear layers of one input, as one product: QKV, gate and up.
pub const MERGED: Fusion = Fusion {
    name: "merge-linears",
    numerics: Numerics::Exact,
    summary: "x·Aᵀ, x·Bᵀ, … as one product with the weights joined at load",
    patterns: &["(matmul.t ?x ?w)"],
    find: merged,
};

/// A bias in the epilogue.
pub const BIAS: Fusion = Fusion {
    name: "linear-bias",
    numerics: Numerics::Exact,
    summary: "x·Wᵀ + b",
    patterns: &["(add ?y (broadcast ?b))", "(add (broadcast ?b) ?y)"],
    find: |v, at, vars| {
        let (y, b) = (vars.get("?y")?, vars.get("?b")?);
        let site = (v.is_constant(b) && v.load[v.below(b).index()]).then(|| epilogue(v, at, y))??;
        let router =
            "with many tokens a router's logits are a product by themselves, and its kernel adds to them";
        Some(Site { hint: v.chooses(at).then_some(router), ..site })
    },
};

/// An activation in the epilogue.
pub const ACTIVATION: Fusion = Fusion {
    name: "linear-activation",
    numerics: Numerics::Exact,
    summary: "f(x·Wᵀ + b) for SiLU, both GELUs, ReLU and its square",
    patterns: &["(silu ?x)", "(max ?x ?z)", "(mul ?a ?b)"],
    find: |v, at, _| {
        let x = v.activation(at)?;
        // That of a gated unit belongs to it; a ReLU that is squared, to the square.
        let larger =
            v.users[at.index()].iter().any(|u| gate_of(v, *u).is_some() || v.activation(*u).is_some());
        (!larger).then(|| epilogue(v, at, x))?
    },
};

/// Gate and up in one kernel.
pub const GATED: Fusion = Fusion {
    name: "gated-activation",
    numerics: Numerics::Exact,
    summary: "f(gate) · up: SwiGLU, GeGLU (Shazeer 2020), both products in one kernel",
    patterns: &["(mul ?a ?b)"],
    find: |v, at, _| {
        let (gate, up) = gate_of(v, at)?;
        let ((_, a), (_, b)) = (v.linear_below(gate)?, v.linear_below(up)?);
        Some(Site::new(at, a.into_iter().chain(b).chain([at]).collect(), vec![gate, up]))
    },
};

/// A residual in the epilogue.
pub const RESIDUAL: Fusion = Fusion {
    name: "residual",
    numerics: Numerics::Exact,
    summary: "h + x·Wᵀ",
    patterns: &["(add ?a ?b)"],
    find: residual,
};

/// Head and sampling in one kernel.
pub const HEAD_SAMPLE: Fusion = Fusion {
    name: "head-sample",
    numerics: Numerics::Exact,
    summary: "sampling, or its first pass, in the kernel of the head's product",
    patterns: &["(sample ?l ?p ?t ?k ?q ?m ?s)"],
    find: |v, at, vars| epilogue(v, at, vars.get("?l")?),
};

/// An op at the end of a linear layer's epilogue.
pub(super) fn epilogue(v: &View<'_>, at: NodeId, y: NodeId) -> Option<Site> {
    let (_, path) = v.linear_below(y)?;
    Some(Site::new(at, path.into_iter().chain([at]).collect(), vec![y]))
}

/// Gate's argument and up, of the product of an activation and another linear layer's result.
fn gate_of(v: &View<'_>, at: NodeId) -> Option<(NodeId, NodeId)> {
    let Op::Binary(Binary::Mul) = v.op(at) else { return None };
    let (a, b) = (v.input(at, 0), v.input(at, 1));
    let one = |f: NodeId, up: NodeId| {
        let gate = v.activation(v.below(f))?;
        let other = v.activation(at) != Some(gate) && up != gate && up != f;
        (other && v.linear_below(gate).is_some() && v.linear_below(up).is_some()).then_some((gate, up))
    };
    one(a, b).or_else(|| one(b, a))
}

fn merged(v: &View<'_>, at: NodeId, vars: &Vars<'_>) -> Option<Site> {
    let (x, w) = (vars.get("?x")?, vars.get("?w")?);
    if !v.is_linear(at) {
        return None;
    }
    let siblings: Vec<NodeId> = v.users[x.index()]
        .iter()
        .copied()
        .filter(|u| {
            v.is_linear(*u) && v.input(*u, 0) == x && v.graph.ty(*u).dtype() == v.graph.ty(at).dtype()
        })
        .collect();
    if siblings.len() > 1 {
        return (siblings[0] == at).then(|| Site::new(at, siblings, Vec::new()));
    }
    joined(v, w).then(|| Site::new(at, vec![at], Vec::new()))
}

/// Whether a weight is several, joined at load.
fn joined(v: &View<'_>, w: NodeId) -> bool {
    match v.op(w) {
        Op::Concat { .. } => true,
        Op::Reshape(_) | Op::Transpose(_) | Op::Cast(_) => joined(v, v.input(w, 0)),
        _ => false,
    }
}

fn residual(v: &View<'_>, at: NodeId, vars: &Vars<'_>) -> Option<Site> {
    let (a, b) = (vars.get("?a")?, vars.get("?b")?);
    let [shape, sa, sb] = [at, a, b].map(|x| &v.graph.ty(x).shape);
    if shape.len() != 2 || sa != shape || sb != shape || v.is_constant(a) || v.is_constant(b) {
        return None;
    }
    let broadcast = |x: NodeId| matches!(v.op(x), Op::Broadcast(_));
    if broadcast(a) || broadcast(b) {
        return None;
    }
    // The stream is used again, and comes from farther away; of a parallel residual's two products either will do.
    let once = |y: &&NodeId| v.users[y.index()].len() == 1;
    let ways: Vec<(NodeId, Vec<NodeId>)> =
        [b, a].iter().filter(once).filter_map(|y| Some((*y, v.linear_below(*y)?.1))).collect();
    let shortest = ways.iter().map(|(_, w)| w.len()).min()?;
    let near = ways.into_iter().filter(|(_, w)| w.len() <= shortest + 2);
    let (cut, any): (Vec<NodeId>, Vec<Vec<NodeId>>) =
        near.map(|(y, w)| (y, w.into_iter().chain([at]).collect())).unzip();
    Some(Site { at, any, instead: None, cut, never: None, hint: None })
}
