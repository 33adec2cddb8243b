//! Recipes of states and sampling.

use super::blocks::linear_of;
use super::make::{MAX_SEQ, Maker, TOKENS, c};
use super::pointwise::tame;
use weft_ir::dtype::DType;
use weft_ir::graph::{Input, Literal, Op, ValueType};
use weft_ir::ids::NodeId;
use weft_ir::scalar::{Binary, Unary};
use weft_ir::shape::{Dim, Shape, Sym};

/// Slots of all keys that each token may see: i32 [tokens, context].
pub fn key_slots(m: &mut Maker) -> NodeId {
    let base = m.g.input(Input::SlotBase);
    let sequence = m.g.input(Input::Sequences);
    let base = m.g.gather(base, sequence);
    let base = m.g.reshape(base, vec![TOKENS, c(1)]);
    let j = m.g.iota(1, vec![TOKENS, Sym::Context.into()]);
    m.g.binary(Binary::Add, base, j)
}

/// A state of rows, and its name.
pub fn new_state(m: &mut Maker, rest: &[usize]) -> (String, NodeId) {
    let name = m.name("state");
    let shape: Shape = [Sym::Slots.into()].into_iter().chain(rest.iter().map(|&n| c(n))).collect();
    let x = m.g.state(&name, ValueType::plain(m.dtype, shape));
    (name, x)
}

/// The slot of each token's own row, 0 for padding.
fn own_slots(m: &mut Maker) -> NodeId {
    let slots = m.g.input(Input::Slots);
    m.g.unary(Unary::Abs, slots)
}

/// Rows written to a state; rows of before and of after are read.
pub fn cache(m: &mut Maker) {
    let x = m.token_matrix();
    let n = m.rng.pick(&[4, 6, 8]);
    let rest: Vec<usize> = if m.rng.chance(50) { vec![n] } else { vec![2, n / 2] };
    let (name, old) = new_state(m, &rest);
    let rest: Shape = rest.iter().map(|&n| c(n)).collect();
    let rows: Shape = [TOKENS].iter().chain(&rest).copied().collect();
    let mut read = Vec::new();
    if m.rng.chance(40) {
        let at = own_slots(m);
        let y = m.g.gather(old, at);
        read.push(y);
    }
    if m.rng.chance(15) {
        let y = tame(m, old);
        read.push(y);
    }
    let wide = m.rng.chance(60);
    let new = linear_of(m, x, n, wide);
    let mut new = m.g.reshape(new, rows);
    if m.rng.chance(50) {
        new = tame(m, new);
    }
    if let Some(&before) = read.first()
        && m.rng.chance(30)
        && m.g.shape(before) == m.g.shape(new)
    {
        // A running sum: what is written depends on what was there.
        let before = m.g.cast(before, m.g.dtype(new));
        new = m.g.binary(Binary::Add, new, before);
    }
    let mut new = m.g.cast(new, m.dtype);
    if m.rng.chance(10) {
        m.keep(new);
    }
    let slots = m.g.input(Input::Slots);
    let mut state = m.g.scatter(old, new, slots);
    if m.rng.chance(70) {
        let at = if m.rng.chance(50) { own_slots(m) } else { key_slots(m) };
        let y = m.g.gather(state, at);
        read.push(y);
    }
    if m.rng.chance(15) {
        // A second write of other rows.
        new = m.g.unary(Unary::Neg, new);
        state = m.g.scatter(state, new, slots);
    }
    m.g.state_out(&name, state);
    for y in read {
        m.keep(y);
        if m.rng.chance(60) {
            let wide = m.g.cast(y, DType::F32);
            let z = tame(m, wide);
            let z = m.g.cast(z, m.dtype);
            m.keep(z);
        }
    }
    if m.rng.chance(10) {
        m.others.push(state);
    }
}

/// Logits after penalties on tokens of a history, a constant: all rows have the same one.
fn penalised(m: &mut Maker, logits: NodeId, position: NodeId) -> NodeId {
    let history: Vec<i32> = (0..MAX_SEQ).map(|_| m.rng.below(42) as i32 - 1).collect();
    let shape = vec![Dim::Const(history.len())];
    let history = m.g.add(Op::Constant { literal: Literal::I32(history), shape }, &[]);
    let nothing = m.g.scalar_like(0.0, position);
    let base = m.g.binary(Binary::Mul, position, nothing);
    let costs = [Input::PromptLengths, Input::RepetitionPenalty, Input::PresencePenalty];
    let costs = costs.map(|i| m.g.input(i));
    let all: Vec<NodeId> = [logits, history, base, position].into_iter().chain(costs).collect();
    m.g.add(Op::Penalize, &all)
}

/// Tokens sampled from logits of the output rows.
pub fn sample(m: &mut Maker) {
    let x = m.token_matrix();
    let rows = m.g.input(Input::OutputRows);
    let x = m.g.gather(x, rows);
    let vocab = m.rng.within(2, 40);
    let mut logits = linear_of(m, x, vocab, true);
    let three = m.g.scalar_like(3.0, logits);
    logits = m.g.binary(Binary::Mul, logits, three);
    let position = m.g.input(Input::Positions);
    let position = m.g.gather(position, rows);
    let drawn = if m.rng.chance(50) { penalised(m, logits, position) } else { logits };
    let inputs = [Input::Temperature, Input::TopK, Input::TopP, Input::MinP, Input::Seed];
    let inputs = inputs.map(|i| m.g.input(i));
    let all: Vec<NodeId> = [drawn, position].into_iter().chain(inputs).collect();
    let tokens = m.g.add(Op::Sample, &all);
    m.others.clear();
    m.others.push(tokens);
    if m.rng.chance(40) {
        m.keep(logits);
    }
    let rows: Dim = Sym::Rows.into();
    if m.rng.chance(30) {
        // What the token decides is a jump, so only the token goes on.
        let next = m.g.reshape(tokens, vec![rows, c(1)]);
        m.others.push(next);
    }
}
