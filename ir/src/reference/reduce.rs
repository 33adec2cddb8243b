//! Reductions and softmax along the last axis.

use super::error::OpError;
use super::layout::GRAIN;
use super::precision::Real;
use super::tensor::{Data, Tensor};
use crate::scalar::Reduce;
use rayon::prelude::*;
use std::sync::Arc;

/// Partial sums that a sum keeps, so that it vectorises; part of what defines its rounding.
const LANES: usize = 16;

/// Sum in a fixed order: element i is added to lane i mod 16, then the lanes are added up.
pub fn sum<R: Real>(v: &[R]) -> R {
    let (chunks, rest) = v.as_chunks::<LANES>();
    let mut lanes = [R::ZERO; LANES];
    for c in chunks {
        for (l, &x) in lanes.iter_mut().zip(c) {
            *l = *l + x;
        }
    }
    for (l, &x) in lanes.iter_mut().zip(rest) {
        *l = *l + x;
    }
    fold_lanes(lanes)
}

/// Adds lanes up: groups of eight one after the other, then the eight pairwise. `N` is a multiple of 8.
pub(super) fn fold_lanes<R: Real, const N: usize>(lanes: [R; N]) -> R {
    let mut s = [R::ZERO; 8];
    for eight in lanes.as_chunks::<8>().0 {
        for i in 0..8 {
            s[i] = s[i] + eight[i];
        }
    }
    ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))
}

/// Largest element; NaN if there is one; −∞ of nothing.
pub fn max<R: Real>(v: &[R]) -> R {
    v.iter().fold(R::NEG_INFINITY, |m, &x| m.larger(x))
}

/// Reduction along the last axis, which becomes 1.
///
/// # Errors
/// For scalars and elements that are not floats.
pub fn reduce<R: Real>(op: Reduce, x: &Tensor<R>) -> Result<Tensor<R>, OpError> {
    let (n, shape) = last_axis(x)?;
    let x = x.packed();
    let (from, len) = (x.layout().offset, x.len());
    let count = shape.iter().product::<usize>();
    let Data::Real(v) = x.data() else {
        return Err(OpError::Type(format!("{} takes floats", op.name())));
    };
    let data = Data::Real(Arc::new(rows(&v[from..from + len], n, count, |row| match op {
        Reduce::Sum => sum(row),
        Reduce::Max => max(row),
        Reduce::Mean => sum(row) / R::from_f64(n as f64),
    })));
    Tensor::new(data, shape)
}

fn rows<T: Sync, U: Send>(v: &[T], n: usize, count: usize, f: impl Fn(&[T]) -> U + Sync) -> Vec<U> {
    let row = |i: usize| f(&v[i * n..(i + 1) * n]);
    if v.len() < 2 * GRAIN {
        (0..count).map(row).collect()
    } else {
        (0..count).into_par_iter().map(row).collect()
    }
}

/// Softmax along the last axis: −∞ entries give 0, a row of nothing else gives zeros, NaN spreads over
/// its row.
///
/// # Errors
/// For scalars and elements that are not floats.
pub fn softmax<R: Real>(x: &Tensor<R>) -> Result<Tensor<R>, OpError> {
    let (n, _) = last_axis(x)?;
    let mut out = x.to_reals()?;
    if n > 0 {
        if out.len() < 2 * GRAIN {
            out.chunks_mut(n).for_each(softmax_row);
        } else {
            out.par_chunks_mut(n).for_each(softmax_row);
        }
    }
    Tensor::real(out, x.shape().to_vec())
}

/// Softmax of a row, in place.
pub fn softmax_row<R: Real>(row: &mut [R]) {
    let m = max(row);
    if m == R::NEG_INFINITY {
        row.fill(R::ZERO);
        return;
    }
    for x in row.iter_mut() {
        *x = (*x - m).exp();
    }
    let scale = R::ONE / sum(row);
    for x in row.iter_mut() {
        *x = *x * scale;
    }
}

fn last_axis<R: Real>(x: &Tensor<R>) -> Result<(usize, Vec<usize>), OpError> {
    let mut shape = x.shape().to_vec();
    let last = shape.last_mut().ok_or_else(|| OpError::Shape("a scalar has no last axis".into()))?;
    let n = std::mem::replace(last, 1);
    Ok((n, shape))
}
