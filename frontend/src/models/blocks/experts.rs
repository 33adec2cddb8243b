//! Mixtures of experts: routers, and MLPs of which each token goes through some.

use super::{Linear, ModelBuilder, mlp};
use crate::config::{Clamped, Experts, Scoring};
use weft_ir::dtype::DType;
use weft_ir::ids::NodeId;
use weft_ir::scalar::{Binary, Compare, Reduce, Unary};
use weft_ir::shape::{Dim, Shape, Sym};

/// Added to the sum of a token's weights before they are divided by it (DeepSeek's code).
const SUM_EPS: f32 = 1e-20;

/// Matrices of all experts, `[experts, out, in]`, with biases `[experts, out]`.
#[derive(Clone, Copy)]
pub struct Stored {
    /// Gate.
    pub gate: Linear,
    /// Up.
    pub up: Linear,
    /// Down.
    pub down: Linear,
}

/// Names of a mixture's tensors, within it.
#[derive(Clone, Copy)]
pub struct Names {
    /// Router.
    pub router: &'static str,
    /// Gate, up and down of an expert.
    pub expert: [&'static str; 3],
    /// Expert of all tokens; its gate is this with `_gate`.
    pub shared: &'static str,
}

/// The matrices of a mixture `name` whose experts are stored one by one.
pub fn one_by_one(m: &mut ModelBuilder<'_>, name: &str, e: &Experts, parts: [&str; 3]) -> Stored {
    let (h, w) = (m.config.hidden_size, e.width);
    let mut stacked = |part: &str, out: usize, inner: usize| {
        m.scoped(part, |m| {
            let one = |i: usize| {
                let weight = m.weight(&format!("{name}.experts.{i}.{part}.weight"), &[out, inner]);
                m.g.reshape(weight, [1, out, inner].map(Dim::Const).to_vec())
            };
            let all: Vec<NodeId> = (0..e.count).map(one).collect();
            Linear { weight: m.g.concat(&all, 0), bias: None }
        })
    };
    Stored { gate: stacked(parts[0], w, h), up: stacked(parts[1], w, h), down: stacked(parts[2], h, w) }
}

/// The mixture `name` of x `[t, h]`, in f32: Σ weight · expert(x) over a token's experts in their order, and the
/// expert of all tokens.
pub fn mixture(
    m: &mut ModelBuilder<'_>,
    x: NodeId,
    name: &str,
    e: &Experts,
    names: &Names,
    router_bias: bool,
    stored: impl FnOnce(&mut ModelBuilder<'_>) -> Stored,
) -> NodeId {
    m.scoped("mlp", |m| {
        let (index, weights) = m.scoped("router", |m| {
            let router = format!("{name}.{}", names.router);
            let logits = m.linear_wide(x, &router, e.count, router_bias);
            route(m, logits, &router, e)
        });
        let routed = m.scoped("experts", |m| {
            let stored = stored(m);
            chosen(m, x, e, &stored, index, weights)
        });
        let Some(shared) = e.shared else { return routed };
        let shared_name = format!("{name}.{}", names.shared);
        let mut always = mlp::gated_of(m, x, &shared_name, names.shared, shared.width);
        if shared.gated {
            let gate = m.linear_wide(x, &format!("{shared_name}_gate"), 1, false);
            let gate = m.g.unary(Unary::Sigmoid, gate);
            always = m.g.binary(Binary::Mul, gate, always);
        }
        m.g.binary(Binary::Add, routed, always)
    })
}

/// A token's experts, i32 `[t, picks]`, and their weights, f32 `[t, picks]`, from logits f32 `[t, experts]`.
fn route(m: &mut ModelBuilder<'_>, logits: NodeId, router: &str, e: &Experts) -> (NodeId, NodeId) {
    let (index, mut weights) = match e.scoring {
        // The softmax of the chosen is the softmax of all, divided by its sum.
        Scoring::Softmax if e.normalised => {
            let index = m.g.top_k(logits, e.picks);
            let chosen = picked(m, logits, index);
            (index, m.g.softmax(chosen))
        }
        Scoring::Softmax => {
            let index = m.g.top_k(logits, e.picks);
            let scores = m.g.softmax(logits);
            (index, picked(m, scores, index))
        }
        Scoring::BiasedSigmoid => {
            let scores = m.g.unary(Unary::Sigmoid, logits);
            let bias = m.weight_as(&format!("{router}.e_score_correction_bias"), &[e.count], DType::F32);
            let bias = m.g.reshape(bias, vec![Dim::Const(1), Dim::Const(e.count)]);
            let biased = m.g.binary(Binary::Add, scores, bias);
            let biased = best_groups(m, biased, e);
            let index = m.g.top_k(biased, e.picks);
            let mut weights = picked(m, scores, index);
            if e.normalised {
                let sum = m.g.reduce(Reduce::Sum, weights);
                let eps = m.g.scalar_like(SUM_EPS, sum);
                let sum = m.g.binary(Binary::Add, sum, eps);
                weights = m.g.binary(Binary::Div, weights, sum);
            }
            (index, weights)
        }
    };
    weights = m.times(weights, e.scale);
    (index, weights)
}

/// Scores `[t, experts]` with those outside the best groups 0. A group is as good as the sum of its two best.
fn best_groups(m: &mut ModelBuilder<'_>, scores: NodeId, e: &Experts) -> NodeId {
    let Some(groups) = e.groups else { return scores };
    let (tokens, one) = (Dim::Sym(Sym::Tokens), Dim::Const(1));
    let (count, of) = (Dim::Const(groups.count), Dim::Const(e.count / groups.count));
    let grouped = m.g.reshape(scores, vec![tokens, count, of]);
    let two = m.g.top_k(grouped, 2);
    let two = picked(m, grouped, two);
    let sums = m.g.reduce(Reduce::Sum, two);
    let sums = m.g.reshape(sums, vec![tokens, count]);
    let best = m.g.top_k(sums, groups.picks);
    // 1 for a group among the best: [t, groups, picks] → [t, groups, 1]
    let best = m.g.reshape(best, vec![tokens, one, Dim::Const(groups.picks)]);
    let number = m.g.iota(1, vec![one, count, one]);
    let wide = vec![tokens, count, Dim::Const(groups.picks)];
    let (best, number) = (m.g.broadcast(best, wide.clone()), m.g.broadcast(number, wide));
    let is_best = m.g.compare(Compare::Eq, best, number);
    let among = m.g.cast(is_best, DType::F32);
    let among = m.g.reduce(Reduce::Max, among);
    let zero = m.g.scalar_like(0.0, among);
    let kept = m.g.compare(Compare::Lt, zero, among);
    let kept = m.g.broadcast(kept, vec![tokens, count, of]);
    let none = m.g.scalar_like(0.0, grouped);
    let kept = m.g.select(kept, grouped, none);
    m.g.reshape(kept, vec![tokens, Dim::Const(e.count)])
}

/// Elements of x `[…, n]` at an index `[…, k]` along the last axis: Σ over n of x where the index is n, so
/// exact.
fn picked(m: &mut ModelBuilder<'_>, x: NodeId, index: NodeId) -> NodeId {
    let (mut row, mut column) = (m.g.shape(x), m.g.shape(index));
    let out = column.clone();
    let n = row.last().copied().unwrap_or(Dim::Const(1));
    let rank = row.len();
    row.insert(rank - 1, Dim::Const(1));
    column.push(Dim::Const(1));
    let wide: Shape = column[..rank].iter().copied().chain([n]).collect();
    let x = m.g.reshape(x, row);
    let x = m.g.broadcast(x, wide.clone());
    let index = m.g.reshape(index, column);
    let index = m.g.broadcast(index, wide.clone());
    let mut line = vec![Dim::Const(1); rank];
    line.push(n);
    let position = m.g.iota(rank, line);
    let position = m.g.broadcast(position, wide);
    let here = m.g.compare(Compare::Eq, position, index);
    let none = m.g.scalar_like(0.0, x);
    let only = m.g.select(here, x, none);
    let sum = m.g.reduce(Reduce::Sum, only);
    m.g.reshape(sum, out)
}

/// Σ weight · down(act(gate(x)) · up(x)) over each token's experts, in the order of its index.
fn chosen(
    m: &mut ModelBuilder<'_>,
    x: NodeId,
    e: &Experts,
    stored: &Stored,
    index: NodeId,
    weights: NodeId,
) -> NodeId {
    let (tokens, picks) = (Dim::Sym(Sym::Tokens), Dim::Const(e.picks));
    let h = Dim::Const(m.config.hidden_size);
    let rows = m.g.reshape(x, vec![tokens, Dim::Const(1), h]);
    let gate = m.scoped("gate_proj", |m| routed(m, rows, stored.gate, index));
    let up = m.scoped("up_proj", |m| routed(m, rows, stored.up, index));
    let hidden = match e.clamped {
        Some(c) => clamped(m, gate, up, c),
        None => {
            let gate = mlp::activation(m, gate);
            m.g.binary(Binary::Mul, gate, up)
        }
    };
    let hidden = m.g.cast(hidden, m.dtype);
    m.scoped("down_proj", |m| {
        let out = routed(m, hidden, stored.down, index);
        let weights = m.g.reshape(weights, vec![tokens, picks, Dim::Const(1)]);
        let out = m.g.binary(Binary::Mul, out, weights);
        let one = |m: &mut ModelBuilder<'_>, i| {
            let part = m.g.slice(out, 1, i, 1);
            m.g.reshape(part, vec![tokens, h])
        };
        let first = one(m, 0);
        (1..e.picks).fold(first, |sum, i| {
            let next = one(m, i);
            m.g.binary(Binary::Add, sum, next)
        })
    })
}

/// Rows times the chosen matrices, with the chosen biases, in f32.
fn routed(m: &mut ModelBuilder<'_>, rows: NodeId, layer: Linear, index: NodeId) -> NodeId {
    let y = m.g.routed_matmul(rows, layer.weight, index, DType::F32);
    let Some(b) = layer.bias else { return y };
    let b = m.g.gather(b, index);
    let b = m.g.cast(b, DType::F32);
    m.g.binary(Binary::Add, y, b)
}

/// g · sigmoid(α g) · (u + 1) of limited g and u.
fn clamped(m: &mut ModelBuilder<'_>, gate: NodeId, up: NodeId, c: Clamped) -> NodeId {
    let (high, low) = (m.g.scalar_like(c.limit as f32, gate), m.g.scalar_like(-c.limit as f32, gate));
    let gate = m.g.binary(Binary::Min, gate, high);
    let up = m.g.binary(Binary::Min, up, high);
    let up = m.g.binary(Binary::Max, up, low);
    let inner = m.times(gate, c.alpha);
    let inner = m.g.unary(Unary::Sigmoid, inner);
    let gate = m.g.binary(Binary::Mul, gate, inner);
    let one = m.g.scalar_like(1.0, up);
    let up = m.g.binary(Binary::Add, up, one);
    m.g.binary(Binary::Mul, up, gate)
}
