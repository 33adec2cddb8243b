//! Recipes of movement: reshape, transpose, slice, concat, broadcast, gather, in chains.

use super::make::{IDS, Maker, TOKENS, c};
use super::pointwise::{constant_i32, integer_chain, tame};
use weft_ir::dtype::DType;
use weft_ir::graph::Input;
use weft_ir::ids::NodeId;
use weft_ir::scalar::{Binary, Unary};
use weft_ir::shape::{Dim, Shape, Sym};

/// A shape of the same elements: an axis is split, two are merged, or an extent of 1 comes or goes.
fn reshaped(m: &mut Maker, shape: &Shape) -> Shape {
    let mut to = shape.clone();
    match m.rng.below(5) {
        0 | 1 if to.len() < 5 => {
            let at = m.rng.below(to.len());
            if let Some(n) = to[at].as_const() {
                let divisors: Vec<usize> = (1..=n).filter(|d| n.is_multiple_of(*d)).collect();
                let d = m.rng.pick(&divisors);
                to.splice(at..=at, [c(d), c(n / d)]);
            }
        }
        2 | 3 if to.len() > 1 => {
            let at = m.rng.below(to.len() - 1);
            if let (Some(a), Some(b)) = (to[at].as_const(), to[at + 1].as_const()) {
                to.splice(at..=at + 1, [c(a * b)]);
            }
        }
        _ if to.len() < 5 => {
            let at = m.rng.below(to.len() + 1);
            to.insert(at, c(1));
        }
        _ => {}
    }
    to
}

/// One movement of a value.
fn moved(m: &mut Maker, x: NodeId) -> NodeId {
    let shape = m.g.shape(x);
    match m.rng.below(7) {
        0 | 1 => {
            let to = reshaped(m, &shape);
            m.g.reshape(x, to)
        }
        2 => {
            let mut perm: Vec<usize> = (0..shape.len()).collect();
            for i in (1..perm.len()).rev() {
                let j = m.rng.below(i + 1);
                perm.swap(i, j);
            }
            m.g.transpose(x, &perm)
        }
        3 => {
            let axes: Vec<(usize, usize)> =
                shape.iter().enumerate().filter_map(|(i, d)| Some((i, d.as_const()?))).collect();
            if axes.is_empty() {
                return x;
            }
            let (axis, n) = m.rng.pick(&axes);
            let len = m.rng.within(1, n);
            let start = m.rng.within(0, n - len);
            m.g.slice(x, axis, start, len)
        }
        4 => {
            let wide: Shape = shape
                .iter()
                .map(|&d| match d {
                    Dim::Const(1) if m.rng.chance(50) => c(m.rng.within(2, 4)),
                    d => d,
                })
                .collect();
            if m.elements(&wide) > 8192 { x } else { m.g.broadcast(x, wide) }
        }
        5 => {
            let axes: Vec<usize> = (0..shape.len()).filter(|&i| shape[i].as_const().is_some()).collect();
            if axes.is_empty() || m.elements(&shape) > 4096 {
                return x;
            }
            let axis = m.rng.pick(&axes);
            let other = if m.rng.chance(50) { x } else { tame(m, x) };
            m.g.concat(&[x, other], axis)
        }
        _ => tame(m, x),
    }
}

/// A chain of movements.
pub fn chain(m: &mut Maker) {
    let mut x = m.any();
    for _ in 0..m.rng.within(1, 6) {
        x = moved(m, x);
        if m.rng.chance(15) {
            m.keep(x);
        }
    }
    m.keep(x);
}

/// Parts of one or two values joined, then perhaps split again.
pub fn join(m: &mut Maker) {
    let x = m.any();
    let shape = m.g.shape(x);
    let Some(axis) = (0..shape.len()).rev().find(|&i| shape[i].as_const().is_some()) else { return };
    let n = shape[axis].as_const().unwrap_or(1);
    let d = m.g.dtype(x);
    let mut parts = vec![x];
    let fits: Vec<NodeId> = m
        .floats
        .iter()
        .copied()
        .filter(|&y| {
            let s = m.g.shape(y);
            let rest = |(i, (a, b)): (usize, (&Dim, &Dim))| i == axis || a == b;
            s.len() == shape.len()
                && s[axis].as_const().is_some()
                && s.iter().zip(&shape).enumerate().all(rest)
        })
        .collect();
    for _ in 0..m.rng.within(1, 3) {
        let y = if fits.is_empty() || m.rng.chance(40) {
            let y = tame(m, x);
            let len = m.rng.within(1, n);
            m.g.slice(y, axis, n - len, len)
        } else {
            m.rng.pick(&fits)
        };
        parts.push(m.g.cast(y, d));
    }
    if m.rng.chance(50) {
        parts.reverse();
    }
    let total: usize = parts.iter().map(|&p| m.g.shape(p)[axis].as_const().unwrap_or(1)).sum();
    let mut y = m.g.concat(&parts, axis);
    if m.rng.chance(40) {
        let to = reshaped(m, &m.g.shape(y));
        y = m.g.reshape(y, to);
    } else if total > 1 && m.rng.chance(50) {
        let len = m.rng.within(1, total - 1);
        let start = m.rng.below(total - len + 1);
        y = m.g.slice(y, axis, start, len);
    }
    m.keep(y);
}

/// Rows of a computed value, by a step input or by computed indices.
pub fn gather(m: &mut Maker) {
    let x = m.any();
    let shape = m.g.shape(x);
    let y = match shape[0] {
        TOKENS => {
            let at = m.g.input(Input::OutputRows);
            m.g.gather(x, at)
        }
        Dim::Const(n) => {
            let to = vec![m.rng.pick(&[TOKENS, c(2), Dim::Sym(Sym::Rows)])];
            let at = integer_chain(m, &to);
            let at = m.g.unary(Unary::Abs, at);
            let n = constant_i32(m, n as i32, &to);
            let at = m.g.binary(Binary::Rem, at, n);
            let rest: Shape = to.iter().chain(&shape[1..]).copied().collect();
            if m.elements(&rest) > 8192 { x } else { m.g.gather(x, at) }
        }
        Dim::Sym(_) => {
            // The first row, for each token.
            let ids = m.input_as(Input::TokenIds, vec![TOKENS]);
            let zero = constant_i32(m, 0, &vec![TOKENS]);
            let at = m.g.binary(Binary::Mul, ids, zero);
            let rest: Shape = [TOKENS].iter().chain(&shape[1..]).copied().collect();
            if m.elements(&rest) > 8192 { x } else { m.g.gather(x, at) }
        }
    };
    if m.rng.chance(30) {
        // A table of integers in between.
        let name = m.name("index");
        let ty = weft_ir::graph::ValueType::plain(DType::I32, vec![c(IDS)]);
        let table = m.g.weight(&name, ty);
        let ids = m.g.input(Input::TokenIds);
        let at = m.g.gather(table, ids);
        let n = m.rng.within(1, 8);
        let rows = m.weight("table", &[IDS, n]);
        let z = m.g.gather(rows, at);
        m.keep(z);
    }
    m.keep(y);
}
