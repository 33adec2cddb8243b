//! Recipes of elementwise ops, reductions and softmax.

use super::make::{IDS, Maker, TOKENS, c};
use weft_ir::dtype::DType;
use weft_ir::graph::Input;
use weft_ir::ids::NodeId;
use weft_ir::scalar::{Binary, Compare, Reduce, Unary};
use weft_ir::shape::{Dim, Shape, Sym};

/// A function of x that stays in a modest range.
pub fn tame(m: &mut Maker, x: NodeId) -> NodeId {
    let k = m.rng.below(20);
    let half = m.g.scalar_like(0.5, x);
    let positive = |m: &mut Maker| {
        let a = m.g.unary(Unary::Abs, x);
        m.g.binary(Binary::Add, a, half)
    };
    match k {
        0 => m.g.unary(Unary::Neg, x),
        1 => {
            let a = m.g.unary(Unary::Abs, x);
            let n = m.g.unary(Unary::Neg, a);
            m.g.unary(Unary::Exp, n)
        }
        2 => {
            let p = positive(m);
            m.g.unary(Unary::Log, p)
        }
        3 => {
            let p = positive(m);
            m.g.unary(Unary::Sqrt, p)
        }
        4 => {
            let p = positive(m);
            m.g.unary(Unary::Rsqrt, p)
        }
        5 => {
            let p = positive(m);
            m.g.unary(Unary::Recip, p)
        }
        6 => m.g.unary(Unary::Sin, x),
        7 => m.g.unary(Unary::Cos, x),
        8 => m.g.unary(Unary::Tanh, x),
        9 => m.g.unary(Unary::Erf, x),
        10 => m.g.unary(Unary::Sigmoid, x),
        11 => m.g.unary(Unary::Silu, x),
        12 => m.g.unary(Unary::Abs, x),
        13 => {
            let p = positive(m);
            let e = m.g.scalar_like(1.5, x);
            m.g.binary(Binary::Pow, p, e)
        }
        14 => {
            let p = positive(m);
            m.g.binary(Binary::Div, half, p)
        }
        15 => m.g.binary(Binary::Min, x, half),
        16 => m.g.binary(Binary::Max, x, half),
        17 => {
            // Leaky, and continuous: a rounding that moves the condition moves little else.
            let zero = m.g.scalar_like(0.0, x);
            let on = m.g.compare(Compare::Lt, zero, x);
            let small = m.g.binary(Binary::Mul, x, half);
            m.g.select(on, x, small)
        }
        18 => m.g.binary(Binary::Sub, half, x),
        _ => m.g.binary(Binary::Mul, x, half),
    }
}

/// Two values of one shape combined, after some unary ops.
pub fn elementwise(m: &mut Maker) {
    let mut x = m.any();
    let d = m.wide();
    x = m.g.cast(x, d);
    for _ in 0..m.rng.within(1, 4) {
        x = match m.rng.below(5) {
            0 => {
                let w = m.along("b", x);
                let w = m.g.cast(w, d);
                let op = m.rng.pick(&[Binary::Add, Binary::Sub, Binary::Mul, Binary::Max]);
                if m.g.shape(x).last().and_then(|d| d.as_const()).is_some() {
                    m.g.binary(op, x, w)
                } else {
                    tame(m, x)
                }
            }
            1 => {
                let y = tame(m, x);
                let op = m.rng.pick(&[Binary::Add, Binary::Sub, Binary::Mul, Binary::Min]);
                if m.rng.chance(50) { m.g.binary(op, x, y) } else { m.g.binary(op, y, x) }
            }
            _ => tame(m, x),
        };
        if m.rng.chance(25) {
            m.keep(x);
        }
    }
    if m.rng.chance(30) {
        x = masked(m, x);
    }
    let out = if m.rng.chance(70) { m.dtype } else { d };
    let x = m.g.cast(x, out);
    m.keep(x);
}

/// Values kept where a condition on integers holds.
fn masked(m: &mut Maker, x: NodeId) -> NodeId {
    let shape = m.g.shape(x);
    let on = condition(m, &shape);
    let y = tame(m, x);
    m.g.select(on, x, y)
}

/// An integer value that broadcasts to a shape: a position, an index, or a constant.
fn integer(m: &mut Maker, shape: &Shape) -> NodeId {
    let mut small = vec![c(1); shape.len()];
    let tokens = shape.iter().position(|d| *d == TOKENS);
    let axis = m.rng.below(shape.len());
    let x = match (m.rng.below(4), tokens) {
        (0, Some(t)) => {
            small[t] = TOKENS;
            let inputs = [
                Input::Positions,
                Input::TokenIds,
                Input::Sequences,
                Input::Slots,
                Input::TokenTypes,
                Input::Prompts,
            ];
            let input = m.rng.pick(&inputs);
            m.input_as(input, small)
        }
        (1, _) => m.g.iota(axis, shape.clone()),
        (2, _) => {
            small[axis] = shape[axis];
            m.g.iota(axis, small)
        }
        _ => {
            let v = m.rng.within(0, 6) as i32;
            m.g.add(
                weft_ir::graph::Op::Constant { literal: weft_ir::graph::Literal::I32(vec![v]), shape: small },
                &[],
            )
        }
    };
    m.g.broadcast(x, shape.clone())
}

/// Integer arithmetic that gives a value of a shape.
pub fn integer_chain(m: &mut Maker, shape: &Shape) -> NodeId {
    let mut x = integer(m, shape);
    for _ in 0..m.rng.within(1, 3) {
        let y = integer(m, shape);
        let ops = [Binary::Add, Binary::Sub, Binary::Mul, Binary::Min, Binary::Max, Binary::Div, Binary::Rem];
        let op = m.rng.pick(&ops);
        x = match op {
            Binary::Div | Binary::Rem => {
                // Operands of these are not negative.
                let a = m.g.unary(Unary::Abs, x);
                let three = constant_i32(m, 3, shape);
                m.g.binary(op, a, three)
            }
            _ => m.g.binary(op, x, y),
        };
        if m.rng.chance(20) {
            x = m.g.unary(m.rng.clone().pick(&[Unary::Neg, Unary::Abs]), x);
        }
    }
    x
}

/// One integer repeated to a shape.
pub fn constant_i32(m: &mut Maker, v: i32, shape: &Shape) -> NodeId {
    let literal = weft_ir::graph::Literal::I32(vec![v]);
    let one = m.g.add(weft_ir::graph::Op::Constant { literal, shape: vec![c(1); shape.len()] }, &[]);
    m.g.broadcast(one, shape.clone())
}

/// A condition on integers, of a shape.
fn condition(m: &mut Maker, shape: &Shape) -> NodeId {
    let (a, b) = (integer(m, shape), integer(m, shape));
    let op = m.rng.pick(Compare::ALL);
    let mut on = m.g.compare(op, a, b);
    if m.rng.chance(30) {
        on = m.g.unary(Unary::Not, on);
    }
    if m.rng.chance(40) {
        let (a, b) = (integer(m, shape), integer_chain(m, shape));
        let op = m.rng.pick(Compare::ALL);
        let other = m.g.compare(op, a, b);
        let both = m.rng.pick(&[Binary::And, Binary::Or]);
        on = m.g.binary(both, on, other);
    }
    on
}

/// Integers, booleans, and what becomes of them as floats and as indices.
pub fn integers(m: &mut Maker) {
    let n = m.rng.within(1, 9);
    let rows: Dim = m.rng.pick(&[TOKENS, TOKENS, c(3), Dim::Sym(Sym::Context)]);
    let shape = vec![rows, c(n)];
    let x = integer_chain(m, &shape);
    match m.rng.below(5) {
        0 => {
            let f = m.g.cast(x, DType::F32);
            let f = m.g.unary(Unary::Sin, f);
            let f = m.g.cast(f, m.dtype);
            m.keep(f);
        }
        1 => {
            // A row for each of them.
            let a = m.g.unary(Unary::Abs, x);
            let ids = constant_i32(m, IDS as i32, &shape);
            let at = m.g.binary(Binary::Rem, a, ids);
            let d = m.rng.within(1, 6);
            let table = m.weight("table", &[IDS, d]);
            let y = m.g.gather(table, at);
            m.keep(y);
            m.others.push(at);
        }
        2 => {
            let on = condition(m, &shape);
            let y = integer_chain(m, &shape);
            let x = m.g.select(on, x, y);
            m.others.push(x);
            if m.rng.chance(50) {
                m.others.push(on);
            }
        }
        3 => {
            let d = m.rng.pick(&[DType::U32, DType::Bool, DType::I32]);
            let y = m.g.cast(x, d);
            let f = m.g.cast(y, DType::F32);
            let f = m.g.unary(Unary::Cos, f);
            m.keep(f);
        }
        _ => {
            let op = m.rng.pick(&[Reduce::Sum, Reduce::Max, Reduce::Mean]);
            let x = m.g.cast(x, DType::F32);
            let y = m.g.reduce(op, x);
            m.others.push(y);
        }
    }
}

/// A reduction along the last axis, with something before and after it.
pub fn reduction(m: &mut Maker) {
    let mut x = m.any();
    if m.rng.chance(60) {
        x = m.g.cast(x, DType::F32);
    }
    let before = x;
    if m.rng.chance(50) {
        x = tame(m, x);
    }
    let op = m.rng.pick(Reduce::ALL);
    let r = m.g.reduce(op, x);
    match m.rng.below(4) {
        0 => m.keep(r),
        1 => {
            let wide = m.g.cast(before, DType::F32);
            let y = m.g.binary(m.rng.clone().pick(&[Binary::Add, Binary::Sub, Binary::Max]), wide, r);
            let y = m.g.cast(y, m.dtype);
            m.keep(y);
        }
        2 => {
            let y = tame(m, r);
            let wide = m.g.cast(x, DType::F32);
            let y = m.g.binary(Binary::Mul, wide, y);
            m.keep(y);
        }
        _ => {
            let y = tame(m, r);
            m.keep(y);
            m.keep(r);
        }
    }
}

/// A softmax along the last axis, masked or not.
pub fn softmax(m: &mut Maker) {
    let x = m.any();
    let mut x = m.g.cast(x, DType::F32);
    if m.rng.chance(50) {
        let shape = m.g.shape(x);
        // Rows without any visible element are valid, too.
        let on = condition(m, &shape);
        let hidden = m.rng.pick(&[f32::NEG_INFINITY, f32::NEG_INFINITY, -1e9, -8.0]);
        let hidden = m.g.scalar_like(hidden, x);
        x = m.g.select(on, x, hidden);
    }
    let mut y = m.g.softmax(x);
    if m.rng.chance(30) {
        y = tame(m, y);
    }
    let y = m.g.cast(y, m.dtype);
    m.keep(y);
}
