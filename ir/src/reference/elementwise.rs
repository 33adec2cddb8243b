//! Elementwise ops. Operands are tensors of equal shape, of any layout.

use super::error::OpError;
use super::layout::{GRAIN, Layout, Run, fill_rows};
use super::precision::{Precision, Real};
use super::tensor::{Data, Kind, Tensor};
use crate::dtype::DType;
use crate::scalar::{Binary, Compare, Unary};
use rayon::prelude::*;
use std::sync::Arc;

/// Elementwise unary operator. `Neg` and `Abs` of integers wrap.
///
/// # Errors
/// When the operator does not take these elements.
pub fn unary<R: Real>(op: Unary, x: &Tensor<R>) -> Result<Tensor<R>, OpError> {
    let data = match x.data() {
        Data::Real(v) => Data::Real(Arc::new(unary_real(op, v, x.layout())?)),
        Data::Int(v) => Data::Int(Arc::new(match op {
            Unary::Neg => map1(v, x.layout(), i32::wrapping_neg),
            Unary::Abs => map1(v, x.layout(), i32::wrapping_abs),
            _ => return Err(refused(op.name(), x)),
        })),
        Data::Bool(v) => Data::Bool(Arc::new(match op {
            Unary::Not => map1(v, x.layout(), |b: bool| !b),
            _ => return Err(refused(op.name(), x)),
        })),
        Data::U32(_) => return Err(refused(op.name(), x)),
    };
    Tensor::new(data, x.shape().to_vec())
}

fn unary_real<R: Real>(op: Unary, v: &[R], l: &Layout) -> Result<Vec<R>, OpError> {
    Ok(match op {
        Unary::Neg => map1(v, l, |x: R| -x),
        Unary::Exp => map1(v, l, R::exp),
        Unary::Log => map1(v, l, R::ln),
        Unary::Sqrt => map1(v, l, R::sqrt),
        Unary::Rsqrt => map1(v, l, |x: R| R::ONE / x.sqrt()),
        Unary::Recip => map1(v, l, |x: R| R::ONE / x),
        Unary::Sin => map1(v, l, R::sin),
        Unary::Cos => map1(v, l, R::cos),
        Unary::Tanh => map1(v, l, R::tanh),
        Unary::Erf => map1(v, l, R::erf),
        Unary::Sigmoid => map1(v, l, sigmoid),
        Unary::Silu => map1(v, l, |x: R| x * sigmoid(x)),
        Unary::Abs => map1(v, l, R::abs),
        Unary::Not => return Err(OpError::Type("not does not take floats".into())),
    })
}

/// 1/(1+e⁻ˣ).
pub(super) fn sigmoid<R: Real>(x: R) -> R {
    R::ONE / (R::ONE + (-x).exp())
}

/// Elementwise binary operator. Integers wrap; an integer divided by 0 is 0, and so is its remainder.
///
/// # Errors
/// When shapes differ or the operator does not take these elements.
pub fn binary<R: Real>(op: Binary, a: &Tensor<R>, b: &Tensor<R>) -> Result<Tensor<R>, OpError> {
    same_shape(a, b)?;
    let (la, lb) = (a.layout(), b.layout());
    let data = match (a.data(), b.data()) {
        (Data::Real(x), Data::Real(y)) => Data::Real(Arc::new(match op {
            Binary::Add => map2(x, la, y, lb, |a: R, b: R| a + b),
            Binary::Sub => map2(x, la, y, lb, |a: R, b: R| a - b),
            Binary::Mul => map2(x, la, y, lb, |a: R, b: R| a * b),
            Binary::Div => map2(x, la, y, lb, |a: R, b: R| a / b),
            Binary::Min => map2(x, la, y, lb, R::smaller),
            Binary::Max => map2(x, la, y, lb, R::larger),
            Binary::Pow => map2(x, la, y, lb, R::pow),
            Binary::Rem | Binary::And | Binary::Or => return Err(refused(op.name(), a)),
        })),
        (Data::Int(x), Data::Int(y)) => Data::Int(Arc::new(match op {
            Binary::Add => map2(x, la, y, lb, i32::wrapping_add),
            Binary::Sub => map2(x, la, y, lb, i32::wrapping_sub),
            Binary::Mul => map2(x, la, y, lb, i32::wrapping_mul),
            Binary::Div => map2(x, la, y, lb, div_int),
            Binary::Rem => map2(x, la, y, lb, rem_int),
            Binary::Min => map2(x, la, y, lb, i32::min),
            Binary::Max => map2(x, la, y, lb, i32::max),
            Binary::Pow | Binary::And | Binary::Or => return Err(refused(op.name(), a)),
        })),
        (Data::U32(x), Data::U32(y)) => Data::U32(Arc::new(match op {
            Binary::Add => map2(x, la, y, lb, u32::wrapping_add),
            Binary::Sub => map2(x, la, y, lb, u32::wrapping_sub),
            Binary::Mul => map2(x, la, y, lb, u32::wrapping_mul),
            Binary::Div => map2(x, la, y, lb, |a: u32, b: u32| a.checked_div(b).unwrap_or(0)),
            Binary::Rem => map2(x, la, y, lb, |a: u32, b: u32| a.checked_rem(b).unwrap_or(0)),
            Binary::Min => map2(x, la, y, lb, u32::min),
            Binary::Max => map2(x, la, y, lb, u32::max),
            Binary::Pow | Binary::And | Binary::Or => return Err(refused(op.name(), a)),
        })),
        (Data::Bool(x), Data::Bool(y)) => Data::Bool(Arc::new(match op {
            Binary::And => map2(x, la, y, lb, |a: bool, b: bool| a && b),
            Binary::Or => map2(x, la, y, lb, |a: bool, b: bool| a || b),
            Binary::Add
            | Binary::Sub
            | Binary::Mul
            | Binary::Div
            | Binary::Rem
            | Binary::Min
            | Binary::Max
            | Binary::Pow => return Err(refused(op.name(), a)),
        })),
        _ => return Err(mixed(op.name(), a, b)),
    };
    Tensor::new(data, a.shape().to_vec())
}

/// Quotient towards zero; 0 for a divisor of 0.
pub(super) fn div_int(a: i32, b: i32) -> i32 {
    if b == 0 { 0 } else { a.wrapping_div(b) }
}

/// Remainder with the sign of `a`; 0 for a divisor of 0.
pub(super) fn rem_int(a: i32, b: i32) -> i32 {
    if b == 0 { 0 } else { a.wrapping_rem(b) }
}

/// Elementwise comparison, false where an operand is NaN.
///
/// # Errors
/// When shapes or kinds of elements differ.
pub fn compare<R: Real>(op: Compare, a: &Tensor<R>, b: &Tensor<R>) -> Result<Tensor<R>, OpError> {
    same_shape(a, b)?;
    let (la, lb) = (a.layout(), b.layout());
    let bits = match (a.data(), b.data()) {
        (Data::Real(x), Data::Real(y)) => compared(op, x, la, y, lb),
        (Data::Int(x), Data::Int(y)) => compared(op, x, la, y, lb),
        (Data::U32(x), Data::U32(y)) => compared(op, x, la, y, lb),
        (Data::Bool(x), Data::Bool(y)) => compared(op, x, la, y, lb),
        _ => return Err(mixed(op.name(), a, b)),
    };
    Tensor::new(Data::Bool(Arc::new(bits)), a.shape().to_vec())
}

fn compared<T: Copy + PartialOrd + Sync>(
    op: Compare,
    x: &[T],
    lx: &Layout,
    y: &[T],
    ly: &Layout,
) -> Vec<bool> {
    match op {
        Compare::Eq => map2(x, lx, y, ly, |a: T, b: T| a == b),
        Compare::Lt => map2(x, lx, y, ly, |a: T, b: T| a < b),
        Compare::Le => map2(x, lx, y, ly, |a: T, b: T| a <= b),
    }
}

/// `a` where the condition is true, else `b`.
///
/// # Errors
/// When shapes or kinds of elements do not fit.
pub fn select<R: Real>(c: &Tensor<R>, a: &Tensor<R>, b: &Tensor<R>) -> Result<Tensor<R>, OpError> {
    same_shape(c, a)?;
    same_shape(a, b)?;
    let on = c.bools()?;
    let layouts = [c.layout(), a.layout(), b.layout()];
    let data = match (a.data(), b.data()) {
        (Data::Real(x), Data::Real(y)) => Data::Real(Arc::new(chosen(on, x, y, layouts))),
        (Data::Int(x), Data::Int(y)) => Data::Int(Arc::new(chosen(on, x, y, layouts))),
        (Data::U32(x), Data::U32(y)) => Data::U32(Arc::new(chosen(on, x, y, layouts))),
        (Data::Bool(x), Data::Bool(y)) => Data::Bool(Arc::new(chosen(on, x, y, layouts))),
        _ => return Err(mixed("select", a, b)),
    };
    Tensor::new(data, a.shape().to_vec())
}

fn chosen<T: Copy + Default + Send + Sync>(on: &[bool], x: &[T], y: &[T], layouts: [&Layout; 3]) -> Vec<T> {
    let mut out = vec![T::default(); layouts[0].len()];
    fill_rows(layouts, &mut out, |part, [c, a, b]| {
        for (i, o) in part.iter_mut().enumerate() {
            *o = if on[c.start + i * c.step] { x[a.start + i * a.step] } else { y[b.start + i * b.step] };
        }
    });
    out
}

/// Conversion to the kind of a stored type: between floats nothing (see [`round`]); floats to integers
/// towards zero and clamped; integers to floats to nearest; to bool: not 0.
///
/// # Errors
/// Never for tensors that hold what their shape says.
pub fn cast<R: Real>(x: &Tensor<R>, dtype: DType) -> Result<Tensor<R>, OpError> {
    let to = Kind::of(dtype);
    if x.kind() == to {
        return Ok(x.clone());
    }
    let l = x.layout();
    let data = match (x.data(), to) {
        (Data::Real(v), Kind::Int) => Data::Int(Arc::new(map1(v, l, R::to_i32))),
        (Data::Real(v), Kind::U32) => Data::U32(Arc::new(map1(v, l, R::to_u32))),
        (Data::Real(v), Kind::Bool) => Data::Bool(Arc::new(map1(v, l, |x: R| x != R::ZERO))),
        (Data::Int(v), Kind::Real) => Data::Real(Arc::new(map1(v, l, |x: i32| R::from_f64(x.into())))),
        (Data::Int(v), Kind::U32) => Data::U32(Arc::new(map1(v, l, |x: i32| x as u32))),
        (Data::Int(v), Kind::Bool) => Data::Bool(Arc::new(map1(v, l, |x: i32| x != 0))),
        (Data::U32(v), Kind::Real) => Data::Real(Arc::new(map1(v, l, |x: u32| R::from_f64(x.into())))),
        (Data::U32(v), Kind::Int) => Data::Int(Arc::new(map1(v, l, |x: u32| x as i32))),
        (Data::U32(v), Kind::Bool) => Data::Bool(Arc::new(map1(v, l, |x: u32| x != 0))),
        (Data::Bool(v), Kind::Real) => {
            Data::Real(Arc::new(map1(v, l, |x: bool| if x { R::ONE } else { R::ZERO })))
        }
        (Data::Bool(v), Kind::Int) => Data::Int(Arc::new(map1(v, l, i32::from))),
        (Data::Bool(v), Kind::U32) => Data::U32(Arc::new(map1(v, l, u32::from))),
        (Data::Real(_), Kind::Real)
        | (Data::Int(_), Kind::Int)
        | (Data::U32(_), Kind::U32)
        | (Data::Bool(_), Kind::Bool) => return Ok(x.clone()),
    };
    Tensor::new(data, x.shape().to_vec())
}

/// Rounds floats to a 16-bit stored type where the precision asks for it; in place when not shared.
pub fn round<R: Real>(mut x: Tensor<R>, dtype: DType, precision: Precision) -> Tensor<R> {
    if precision != Precision::Rounded || !dtype.is_half() {
        return x;
    }
    if let (Data::Real(v), _) = x.parts_mut() {
        round_all(Arc::make_mut(v).as_mut_slice(), dtype);
    }
    x
}

/// Rounds floats to a stored type.
pub(super) fn round_all<R: Real>(v: &mut [R], dtype: DType) {
    v.par_chunks_mut(GRAIN).for_each(|part| part.iter_mut().for_each(|x| *x = x.round_to(dtype)));
}

fn map1<A: Copy + Sync, T: Copy + Default + Send>(v: &[A], l: &Layout, f: impl Fn(A) -> T + Sync) -> Vec<T> {
    let mut out = vec![T::default(); l.len()];
    fill_rows([l], &mut out, |part, [run]| match run.step {
        1 => part.iter_mut().zip(&v[run.start..]).for_each(|(o, &x)| *o = f(x)),
        0 => part.fill(f(v[run.start])),
        step => part.iter_mut().zip(v[run.start..].iter().step_by(step)).for_each(|(o, &x)| *o = f(x)),
    });
    out
}

fn map2<A: Copy + Sync, T: Copy + Default + Send>(
    x: &[A],
    lx: &Layout,
    y: &[A],
    ly: &Layout,
    f: impl Fn(A, A) -> T + Sync,
) -> Vec<T> {
    let mut out = vec![T::default(); lx.len()];
    fill_rows([lx, ly], &mut out, |part, runs: [Run; 2]| {
        let [a, b] = runs;
        match (a.step, b.step) {
            (1, 1) => {
                let pairs = x[a.start..].iter().zip(&y[b.start..]);
                part.iter_mut().zip(pairs).for_each(|(o, (&p, &q))| *o = f(p, q));
            }
            (1, 0) => {
                let q = y[b.start];
                part.iter_mut().zip(&x[a.start..]).for_each(|(o, &p)| *o = f(p, q));
            }
            (0, 1) => {
                let p = x[a.start];
                part.iter_mut().zip(&y[b.start..]).for_each(|(o, &q)| *o = f(p, q));
            }
            (s, t) => {
                for (i, o) in part.iter_mut().enumerate() {
                    *o = f(x[a.start + i * s], y[b.start + i * t]);
                }
            }
        }
    });
    out
}

fn same_shape<R: Real>(a: &Tensor<R>, b: &Tensor<R>) -> Result<(), OpError> {
    if a.shape() == b.shape() {
        return Ok(());
    }
    Err(OpError::Shape(format!("{:?} and {:?}", a.shape(), b.shape())))
}

fn refused<R: Real>(op: &str, x: &Tensor<R>) -> OpError {
    OpError::Type(format!("{op} does not take {:?} elements", x.kind()))
}

fn mixed<R: Real>(op: &str, a: &Tensor<R>, b: &Tensor<R>) -> OpError {
    OpError::Type(format!("{op} of {:?} and {:?} elements", a.kind(), b.kind()))
}
