//! Operators on vectors of elements, where a list of one element stands for as many as are needed.

use super::elementwise::{div_int, rem_int, sigmoid};
use super::error::OpError;
use super::precision::Real;
use super::tensor::Kind;
use super::vector::{Vector, pick, wrong};
use crate::scalar::{Binary, Compare, Unary};

/// `n` times a value.
pub(super) fn fill<T: Clone>(out: &mut Vec<T>, n: usize, x: T) {
    out.clear();
    out.resize(n, x);
}

fn map<A: Copy, T>(out: &mut Vec<T>, a: &[A], f: impl Fn(A) -> T) {
    out.clear();
    out.extend(a.iter().map(|&x| f(x)));
}

/// Pairs of elements; a list of another length than `n` repeats its first.
pub(super) fn zip<A: Copy, T>(out: &mut Vec<T>, a: &[A], b: &[A], n: usize, f: impl Fn(A, A) -> T) {
    out.clear();
    match (a.len() == n, b.len() == n) {
        (true, true) => out.extend(a.iter().zip(b).map(|(&x, &y)| f(x, y))),
        (true, false) => {
            let y = b[0];
            out.extend(a.iter().map(|&x| f(x, y)));
        }
        (false, true) => {
            let x = a[0];
            out.extend(b.iter().map(|&y| f(x, y)));
        }
        (false, false) => out.extend((0..n).map(|_| f(a[0], b[0]))),
    }
}

/// Elements of `a` where the condition holds, else of `b`.
pub(super) fn choose<T: Copy>(out: &mut Vec<T>, c: &[bool], a: &[T], b: &[T], n: usize) {
    out.clear();
    out.extend((0..n).map(|i| if pick(c, i) { pick(a, i) } else { pick(b, i) }));
}

/// A comparison.
pub(super) fn compared<T: PartialOrd>(op: Compare, x: T, y: T) -> bool {
    match op {
        Compare::Eq => x == y,
        Compare::Lt => x < y,
        Compare::Le => x <= y,
    }
}

/// Comparisons of pairs.
pub(super) fn compare<T: Copy + PartialOrd>(op: Compare, x: &[T], y: &[T], n: usize, out: &mut Vec<bool>) {
    match op {
        Compare::Eq => zip(out, x, y, n, |x, y| x == y),
        Compare::Lt => zip(out, x, y, n, |x, y| x < y),
        Compare::Le => zip(out, x, y, n, |x, y| x <= y),
    }
}

/// A unary operator on each element.
pub(super) fn unary<R: Real>(op: Unary, a: &Vector<R>, out: &mut Vector<R>) -> Result<(), OpError> {
    match (a, out) {
        (Vector::Real(a), Vector::Real(o)) => match op {
            Unary::Neg => map(o, a, |x: R| -x),
            Unary::Exp => map(o, a, R::exp),
            Unary::Log => map(o, a, R::ln),
            Unary::Sqrt => map(o, a, R::sqrt),
            Unary::Rsqrt => map(o, a, |x: R| R::ONE / x.sqrt()),
            Unary::Recip => map(o, a, |x: R| R::ONE / x),
            Unary::Sin => map(o, a, R::sin),
            Unary::Cos => map(o, a, R::cos),
            Unary::Tanh => map(o, a, R::tanh),
            Unary::Erf => map(o, a, R::erf),
            Unary::Sigmoid => map(o, a, sigmoid),
            Unary::Silu => map(o, a, |x: R| x * sigmoid(x)),
            Unary::Abs => map(o, a, R::abs),
            Unary::Not => return Err(wrong()),
        },
        (Vector::Int(a), Vector::Int(o)) => match op {
            Unary::Neg => map(o, a, i32::wrapping_neg),
            Unary::Abs => map(o, a, i32::wrapping_abs),
            _ => return Err(wrong()),
        },
        (Vector::Bool(a), Vector::Bool(o)) => map(o, a, |x| !x),
        _ => return Err(wrong()),
    }
    Ok(())
}

/// A binary operator on pairs; `kind` tells u32 from i32.
pub(super) fn binary<R: Real>(
    op: Binary,
    kind: Kind,
    a: &Vector<R>,
    b: &Vector<R>,
    n: usize,
    out: &mut Vector<R>,
) -> Result<(), OpError> {
    match (a, b, out) {
        (Vector::Real(a), Vector::Real(b), Vector::Real(o)) => match op {
            Binary::Add => zip(o, a, b, n, |x, y| x + y),
            Binary::Sub => zip(o, a, b, n, |x, y| x - y),
            Binary::Mul => zip(o, a, b, n, |x, y| x * y),
            Binary::Div => zip(o, a, b, n, |x, y| x / y),
            Binary::Min => zip(o, a, b, n, R::smaller),
            Binary::Max => zip(o, a, b, n, R::larger),
            Binary::Pow => zip(o, a, b, n, R::pow),
            Binary::Rem | Binary::And | Binary::Or => return Err(wrong()),
        },
        (Vector::Int(a), Vector::Int(b), Vector::Int(o)) => {
            let unsigned = kind == Kind::U32;
            match op {
                Binary::Add => zip(o, a, b, n, i32::wrapping_add),
                Binary::Sub => zip(o, a, b, n, i32::wrapping_sub),
                Binary::Mul => zip(o, a, b, n, i32::wrapping_mul),
                Binary::Div if unsigned => {
                    zip(o, a, b, n, |x, y| (x as u32).checked_div(y as u32).unwrap_or(0) as i32)
                }
                Binary::Rem if unsigned => {
                    zip(o, a, b, n, |x, y| (x as u32).checked_rem(y as u32).unwrap_or(0) as i32)
                }
                Binary::Min if unsigned => zip(o, a, b, n, |x, y| (x as u32).min(y as u32) as i32),
                Binary::Max if unsigned => zip(o, a, b, n, |x, y| (x as u32).max(y as u32) as i32),
                Binary::Div => zip(o, a, b, n, div_int),
                Binary::Rem => zip(o, a, b, n, rem_int),
                Binary::Min => zip(o, a, b, n, i32::min),
                Binary::Max => zip(o, a, b, n, i32::max),
                Binary::Pow | Binary::And | Binary::Or => return Err(wrong()),
            }
        }
        (Vector::Bool(a), Vector::Bool(b), Vector::Bool(o)) => match op {
            Binary::And => zip(o, a, b, n, |x, y| x && y),
            Binary::Or => zip(o, a, b, n, |x, y| x || y),
            Binary::Add
            | Binary::Sub
            | Binary::Mul
            | Binary::Div
            | Binary::Rem
            | Binary::Min
            | Binary::Max
            | Binary::Pow => return Err(wrong()),
        },
        _ => return Err(wrong()),
    }
    Ok(())
}

/// Conversion of each element; the kinds tell u32 from i32.
pub(super) fn cast<R: Real>(from: Kind, to: Kind, a: &Vector<R>, out: &mut Vector<R>) -> Result<(), OpError> {
    match (a, out) {
        (Vector::Real(a), Vector::Real(o)) => map(o, a, |x| x),
        (Vector::Real(a), Vector::Int(o)) if to == Kind::U32 => map(o, a, |x: R| x.to_u32() as i32),
        (Vector::Real(a), Vector::Int(o)) => map(o, a, R::to_i32),
        (Vector::Real(a), Vector::Bool(o)) => map(o, a, |x: R| x != R::ZERO),
        (Vector::Int(a), Vector::Real(o)) if from == Kind::U32 => {
            map(o, a, |x| R::from_f64((x as u32).into()));
        }
        (Vector::Int(a), Vector::Real(o)) => map(o, a, |x| R::from_f64(x.into())),
        (Vector::Int(a), Vector::Int(o)) => map(o, a, |x| x),
        (Vector::Int(a), Vector::Bool(o)) => map(o, a, |x| x != 0),
        (Vector::Bool(a), Vector::Real(o)) => map(o, a, |x| if x { R::ONE } else { R::ZERO }),
        (Vector::Bool(a), Vector::Int(o)) => map(o, a, i32::from),
        (Vector::Bool(a), Vector::Bool(o)) => map(o, a, |x| x),
    }
    Ok(())
}
