//! Recipes of mixtures of experts: a router, its choice, and products with the chosen matrices.
//!
//! A choice is a jump: where two experts are closer than roundings, either is right, and what follows is another value.
//! So a router's logits are made of a table's rows, which every plan reads as they are, in f32: no two are so close but by
//! a chance of one in a million. What the experts take is any value.

use super::blocks::{activation, linear_of, norm_of};
use super::make::{IDS, Maker, TOKENS, c};
use weft_ir::dtype::DType;
use weft_ir::graph::Input;
use weft_ir::ids::NodeId;
use weft_ir::scalar::{Binary, Compare, Reduce, Unary};
use weft_ir::shape::Shape;

/// Σ weight · expert(x) over the experts that a router chose for each token.
pub fn mixture(m: &mut Maker) {
    let x = m.token_matrix();
    let x = if m.rng.chance(30) { norm_of(m, x) } else { x };
    let k = m.g.shape(x)[1].as_const().unwrap_or(1);
    let experts = m.rng.pick(&[2, 3, 4, 4]);
    let picks = m.rng.within(1, experts.min(3));
    let (index, weights) = route(m, experts, picks);
    if m.rng.chance(20) {
        m.others.push(index);
    }
    if m.rng.chance(15) {
        m.keep(weights);
    }
    let (n, out) = (m.size(), if m.rng.chance(60) { k } else { m.size() });
    let rows = m.g.cast(x, m.dtype);
    let rows = m.g.reshape(rows, vec![TOKENS, c(1), c(k)]);
    let gate = chosen(m, rows, index, [experts, n, k]);
    let mut hidden = activation(m, gate);
    if m.rng.chance(60) {
        let up = chosen(m, rows, index, [experts, n, k]);
        hidden = m.g.binary(Binary::Mul, hidden, up);
    }
    let hidden = m.g.cast(hidden, m.dtype);
    if m.rng.chance(10) {
        m.keep(hidden);
    }
    let each = chosen(m, hidden, index, [experts, out, n]);
    let weights = m.g.reshape(weights, vec![TOKENS, c(picks), c(1)]);
    let each = m.g.binary(Binary::Mul, each, weights);
    let mut sum = None;
    for i in 0..picks {
        let part = m.g.slice(each, 1, i, 1);
        let part = m.g.reshape(part, vec![TOKENS, c(out)]);
        sum = Some(sum.map_or(part, |s| m.g.binary(Binary::Add, s, part)));
    }
    let y = sum.unwrap_or(each);
    let y = m.g.cast(y, m.dtype);
    m.keep(y);
}

/// Rows times the matrices [experts, out, in] that an index names, in f32, perhaps with the bias of each.
fn chosen(m: &mut Maker, rows: NodeId, index: NodeId, shape: [usize; 3]) -> NodeId {
    let w = m.weight("w", &shape);
    let y = m.g.routed_matmul(rows, w, index, DType::F32);
    if !m.rng.chance(25) {
        return y;
    }
    let b = m.weight("b", &shape[..2]);
    let b = m.g.gather(b, index);
    let b = m.g.cast(b, DType::F32);
    m.g.binary(Binary::Add, y, b)
}

/// A token's experts, i32 [tokens, picks], and their weights, f32 [tokens, picks].
fn route(m: &mut Maker, experts: usize, picks: usize) -> (NodeId, NodeId) {
    let n = m.rng.pick(&[4, 8, 16, 32]);
    let table = m.weight("table", &[IDS, n]);
    let ids = m.g.input(Input::TokenIds);
    let x = m.g.gather(table, ids);
    let logits = linear_of(m, x, experts, true);
    let logits = m.g.cast(logits, DType::F32);
    match m.rng.below(3) {
        // The softmax of the chosen.
        0 => {
            let index = m.g.top_k(logits, picks);
            let of = picked(m, logits, index);
            (index, m.g.softmax(of))
        }
        // That of all, at the chosen.
        1 => {
            let index = m.g.top_k(logits, picks);
            let scores = m.g.softmax(logits);
            (index, picked(m, scores, index))
        }
        // Scores of which a bias, or the better half of the experts, decides, divided by their sum.
        _ => {
            let scores = m.g.unary(Unary::Sigmoid, logits);
            let mut by = scores;
            if m.rng.chance(60) {
                let b = m.along("b", scores);
                by = m.g.binary(Binary::Add, by, b);
            }
            if experts == 4 && picks <= 2 && m.rng.chance(50) {
                by = better_half(m, by);
            }
            let index = m.g.top_k(by, picks);
            let of = picked(m, scores, index);
            let sum = m.g.reduce(Reduce::Sum, of);
            (index, m.g.binary(Binary::Div, of, sum))
        }
    }
}

/// Scores [tokens, 4] with those of the pair whose best is the lower one far below the others.
fn better_half(m: &mut Maker, scores: NodeId) -> NodeId {
    let pairs = m.g.reshape(scores, vec![TOKENS, c(2), c(2)]);
    let best = m.g.reduce(Reduce::Max, pairs);
    let best = m.g.reshape(best, vec![TOKENS, c(2)]);
    let first = m.g.top_k(best, 1);
    let first = m.g.reshape(first, vec![TOKENS, c(1), c(1)]);
    let number = m.g.iota(1, vec![c(1), c(2), c(1)]);
    let kept = m.g.compare(Compare::Eq, number, first);
    let kept = m.g.broadcast(kept, vec![TOKENS, c(2), c(2)]);
    let none = m.g.scalar_like(-100.0, pairs);
    let only = m.g.select(kept, pairs, none);
    m.g.reshape(only, vec![TOKENS, c(4)])
}

/// Elements of x [tokens, n] at an index [tokens, picks]: sums of one element and zeros, so exact.
fn picked(m: &mut Maker, x: NodeId, index: NodeId) -> NodeId {
    let (n, picks) = (m.g.shape(x)[1], m.g.shape(index)[1]);
    let wide: Shape = vec![TOKENS, picks, n];
    let x = m.g.reshape(x, vec![TOKENS, c(1), n]);
    let x = m.g.broadcast(x, wide.clone());
    let index = m.g.reshape(index, vec![TOKENS, picks, c(1)]);
    let index = m.g.broadcast(index, wide.clone());
    let position = m.g.iota(2, vec![c(1), c(1), n]);
    let position = m.g.broadcast(position, wide);
    let here = m.g.compare(Compare::Eq, position, index);
    let none = m.g.scalar_like(0.0, x);
    let only = m.g.select(here, x, none);
    let sum = m.g.reduce(Reduce::Sum, only);
    m.g.reshape(sum, vec![TOKENS, picks])
}
