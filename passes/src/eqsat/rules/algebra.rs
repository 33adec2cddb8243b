//! Arithmetic that needs no step.

use super::movement::{filled, number};
use super::{Rule, var};
use crate::eqsat::build::{dtype, find, shape};
use crate::numerics::Numerics;
use weft_ir::dtype::DType;
use weft_ir::graph::Op;
use weft_ir::scalar::{Binary, Unary};

/// Times one.
pub const TIMES_ONE: Rule = Rule {
    name: "times-one",
    numerics: Numerics::Exact,
    needs: &[],
    summary: "x · 1, x / 1 → x",
    patterns: &["(mul ?x ?c)", "(mul ?c ?x)", "(div ?x ?c)"],
    apply: |g, class, subst| {
        let (x, c) = (var(subst, "?x")?, var(subst, "?c")?);
        let same = shape(g, x) == shape(g, class) && dtype(g, x) == dtype(g, class);
        let ordered = find(g, class, |op, children| match op {
            Op::Binary(Binary::Div) => Some(g.find(children[1]) == g.find(c)),
            _ => None,
        });
        (number(g, c) == Some(1.0) && same && ordered != Some(false)).then(|| vec![(class, x)])
    },
};

/// Arithmetic on literals whose result is the same in every precision.
pub const FOLD: Rule = Rule {
    name: "fold-constants",
    numerics: Numerics::Exact,
    needs: &[],
    summary: "a ∘ b of literals → the literal, where f32 holds the result exactly",
    patterns: &["(add ?a ?b)", "(sub ?a ?b)", "(mul ?a ?b)"],
    apply: |g, class, subst| {
        let (a, b) = (number(g, var(subst, "?a")?)?, number(g, var(subst, "?b")?)?);
        let (x, y) = (f64::from(a), f64::from(b));
        let value = find(g, class, |op, _| match op {
            Op::Binary(Binary::Add) => Some(x + y),
            Op::Binary(Binary::Sub) => Some(x - y),
            Op::Binary(Binary::Mul) => Some(x * y),
            _ => None,
        })?;
        let exact = f64::from(value as f32) == value && dtype(g, class) == DType::F32;
        exact.then(|| vec![(class, filled(g, value as f32, class))])
    },
};

/// Minus minus.
pub const NEGATIONS: Rule = Rule {
    name: "join-negations",
    numerics: Numerics::Exact,
    needs: &[],
    summary: "−(−x) → x",
    patterns: &["(neg (neg ?x))"],
    apply: |g, class, subst| {
        let x = var(subst, "?x")?;
        let twice = find(g, class, |op, c| match op {
            Op::Unary(Unary::Neg) => find(g, c[0], |op, c| match op {
                Op::Unary(Unary::Neg) => Some(g.find(c[0]) == g.find(x)),
                _ => None,
            }),
            _ => None,
        });
        (twice == Some(true)).then(|| vec![(class, x)])
    },
};
