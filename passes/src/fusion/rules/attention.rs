//! Attention, what is done to its scores, and what comes before it: rotation and cache write.

use super::linear::epilogue;
use super::{Fusion, Site, Vars, View};
use crate::numerics::Numerics;
use weft_ir::graph::Op;
use weft_ir::ids::NodeId;
use weft_ir::scalar::{Binary, Unary};

/// Rotary positions in the projection's epilogue.
pub const ROPE: Fusion = Fusion {
    name: "rope",
    numerics: Numerics::Exact,
    summary: "rotary positions (Su et al. 2021) in the epilogue of the projection: the two elements of a pair in one thread",
    patterns: &[
        "(concat (sub (mul ?a ?c) (mul ?b ?s)) (add (mul ?b2 ?c2) (mul ?a2 ?s2)))",
        "(concat (sub (mul ?a ?c) (mul ?b ?s)) (add (mul ?b2 ?c2) (mul ?a2 ?s2)) ?rest)",
    ],
    find: |v, at, vars| {
        let a = vars.get("?a")?;
        let same = |x: &str| Some(vars.get(&format!("?{x}"))? == vars.get(&format!("?{x}2"))?);
        if !(same("a")? && same("b")? && same("c")? && same("s")?) {
            return None;
        }
        let (low, high) = (v.input(at, 0), v.input(at, 1));
        let (_, path) = v.linear_below(a)?;
        Some(Site::new(at, path.into_iter().chain([low, high]).collect(), vec![v.input(a, 0)]))
    },
};

/// The cache write in the projection's epilogue.
pub const CACHE_WRITE: Fusion = Fusion {
    name: "cache-write",
    numerics: Numerics::Exact,
    summary: "a projection's result, or the norm of one, goes to its cache slot and nowhere else",
    patterns: &["(scatter ?c ?x ?i)"],
    find: |v, at, vars| {
        let x = vars.get("?x")?;
        epilogue(v, at, x).or_else(|| {
            let (scaled, scale) = normed(v, x, 12)?;
            let hint = Some("the norm's rows are not those of the cache");
            Some(Site { hint, ..Site::new(at, vec![scale, scaled, at], vec![x]) })
        })
    },
};

/// The norm that a value is made from by movement and elementwise ops: what is scaled, and the row's scale.
fn normed(v: &View<'_>, id: NodeId, budget: usize) -> Option<(NodeId, NodeId)> {
    if budget == 0 || v.is_linear(id) || v.is_constant(id) {
        return None;
    }
    let inputs = &v.graph.node(id).inputs;
    match v.op(id) {
        Op::Binary(Binary::Mul) => {
            let scale =
                inputs.iter().map(|x| v.below(*x)).find(|x| matches!(v.op(*x), Op::Unary(Unary::Rsqrt)));
            scale.map(|s| (id, s)).or_else(|| inputs.iter().find_map(|x| normed(v, *x, budget - 1)))
        }
        Op::Binary(_)
        | Op::Unary(_)
        | Op::Cast(_)
        | Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Slice { .. }
        | Op::Concat { .. } => inputs.iter().find_map(|x| normed(v, *x, budget - 1)),
        _ => None,
    }
}

/// Attention as one kernel.
pub const ATTENTION: Fusion = Fusion {
    name: "attention",
    numerics: Numerics::Reassociates,
    summary: "softmax(q·kᵀ …)·v over cache rows, with running maxima and sums (Dao et al. 2022)",
    patterns: &[
        "(matmul (softmax ?m) ?v)",
        "(matmul (cast (softmax ?m)) ?v)",
        // With a sink in the sum.
        "(matmul (div (exp (sub ?m ?t)) ?z) ?v)",
        "(matmul (cast (div (exp (sub ?m ?t)) ?z)) ?v)",
    ],
    find: |v, at, vars| {
        let masked = vars.get("?m")?;
        let scores = scores(v, masked)?;
        let softmax = v.below(v.input(at, 0));
        let group = scores.into_iter().chain([softmax, at]).collect();
        Some(Site::new(at, group, vec![softmax]))
    },
};

/// Attention over the narrow rows that the cache holds, in one kernel.
pub const LATENT: Fusion = Fusion {
    name: "absorb-latent",
    numerics: Numerics::ChangesPrecision,
    summary: "attention whose keys and values are products of cached rows, over those rows themselves: the matrices \
              go to the queries and to the result",
    patterns: &["(matmul (softmax ?m) ?v)", "(matmul (cast (softmax ?m)) ?v)"],
    find: |v, at, vars| {
        let scores = scores(v, vars.get("?m")?)?;
        let keys = v.input(scores[0], 1);
        if v.users[at.index()].iter().any(|u| by_head(v, *u)) && matches!(v.op(keys), Op::Broadcast(_)) {
            let softmax = v.below(v.input(at, 0));
            return Some(Site::new(at, scores.into_iter().chain([softmax, at]).collect(), Vec::new()));
        }
        let expanded = is_expanded(v, keys);
        let why = Some("keys and values of all heads are cheaper made once");
        expanded.then(|| Site { never: why, ..Site::new(at, Vec::new(), Vec::new()) })
    },
};

/// Whether a value is taken to a product with a matrix for each head.
fn by_head(v: &View<'_>, id: NodeId) -> bool {
    match v.op(id) {
        Op::RoutedMatMul { .. } => true,
        Op::Reshape(_) => v.users[id.index()].iter().any(|u| by_head(v, *u)),
        _ => false,
    }
}

/// Whether keys are products of rows of a state.
fn is_expanded(v: &View<'_>, keys: NodeId) -> bool {
    let gather = v.below(keys);
    if !matches!(v.op(gather), Op::Gather) {
        return false;
    }
    let mut rows = v.below(v.input(gather, 0));
    if let Op::Concat { .. } = v.op(rows) {
        rows = v.below(v.input(rows, 0));
    }
    v.is_linear(rows) && matches!(v.op(v.below(v.input(rows, 0))), Op::State { .. } | Op::Scatter)
}

/// What is done to the scores, in attention's kernel.
pub const SCORES: Fusion = Fusion {
    name: "attention-epilogue",
    numerics: Numerics::Exact,
    summary: "any elementwise ops on attention's scores: soft-cap, bias, ALiBi, window",
    patterns: &["(softmax ?m)"],
    find: modified,
};

/// Ops that compute the scores, the product first.
fn scores(v: &View<'_>, masked: NodeId) -> Option<Vec<NodeId>> {
    let shape = &v.graph.ty(masked).shape;
    match v.op(masked) {
        Op::MatMul { transpose_b: true, .. } => Some(vec![masked]),
        Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Cast(_) => {
            let whole = v.graph.node(masked).inputs.iter().filter(|x| v.graph.ty(**x).shape == *shape);
            let mut below = whole.into_iter().find_map(|x| scores(v, *x))?;
            below.push(masked);
            Some(below)
        }
        _ => None,
    }
}

fn modified(v: &View<'_>, at: NodeId, vars: &Vars<'_>) -> Option<Site> {
    let masked = vars.get("?m")?;
    let all = scores(v, masked)?;
    // The scale and the causal mask are attention's own.
    let scale = |n: &NodeId| {
        matches!(v.op(*n), Op::Binary(Binary::Mul))
            && v.is_constant(v.input(*n, 1))
            && v.input(*n, 0) == all[0]
    };
    let own: Vec<NodeId> = all[1..].iter().copied().filter(|n| *n != masked && !scale(n)).collect();
    let product = all[0];
    (!own.is_empty())
        .then(|| Site::new(at, own.iter().copied().chain([product, at]).collect(), vec![own[own.len() - 1]]))
}
