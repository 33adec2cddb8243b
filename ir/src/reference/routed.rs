//! Choice of experts and their matrix products: the ops, and what works of plans share with them.

use super::error::OpError;
use super::matmul::{Matrix, product};
use super::precision::Real;
use super::tensor::Tensor;
use rayon::prelude::*;
use std::cmp::Ordering;

/// Indices of the k largest elements along the last axis, largest first; of equal ones the first. NaN counts
/// as −∞.
///
/// # Errors
/// For scalars, elements that are not floats, and rows shorter than k.
pub fn top_k<R: Real>(x: &Tensor<R>, k: usize) -> Result<Tensor<R>, OpError> {
    let mut shape = x.shape().to_vec();
    let Some(last) = shape.last_mut().filter(|n| **n >= k) else {
        return Err(OpError::Shape(format!("top {k} of {:?}", x.shape())));
    };
    let n = std::mem::replace(last, k);
    let values = x.to_reals()?;
    let picks = values.chunks(n.max(1)).flat_map(|row| largest(row, k)).collect();
    Tensor::int(picks, shape)
}

/// Positions of the k largest of a row.
pub(super) fn largest<R: Real>(row: &[R], k: usize) -> Vec<i32> {
    let value = |i: &i32| {
        let x = row[*i as usize];
        if x.is_nan() { R::NEG_INFINITY } else { x }
    };
    let mut order: Vec<i32> = (0..row.len() as i32).collect();
    // Stable, so that the first of equal ones stays first.
    order.sort_by(|a, b| value(b).partial_cmp(&value(a)).unwrap_or(Ordering::Equal));
    order.truncate(k);
    order
}

/// Rows a [t, picks or 1, i] times the transposed matrices of b [experts, n, i] that the index [t, picks] names:
/// [t, picks, n].
///
/// # Errors
/// When shapes do not fit, or an index is no expert.
pub fn routed_matmul<R: Real>(a: &Tensor<R>, b: &Tensor<R>, index: &Tensor<R>) -> Result<Tensor<R>, OpError> {
    let (a, b, picks) = (a.packed(), b.packed(), index.to_ints()?);
    let (&[t, rows, k], &[experts, n, kb], &[ti, per]) = (a.shape(), b.shape(), index.shape()) else {
        return Err(OpError::Shape(format!("routed: {:?}, {:?}, {:?}", a.shape(), b.shape(), index.shape())));
    };
    if t != ti || k != kb || (rows != per && rows != 1) {
        return Err(OpError::Shape(format!("routed: {:?}, {:?}, {:?}", a.shape(), b.shape(), index.shape())));
    }
    let (left, right) = (&a.reals()?[a.layout().offset..], &b.reals()?[b.layout().offset..]);
    Tensor::real(products(left, right, &picks, [rows, per, experts, n, k])?, vec![t, per, n])
}

/// Products [pairs, n] of the rows of a with the matrices that the picks name.
pub(super) fn products<R: Real>(
    a: &[R],
    b: &[R],
    picks: &[i32],
    [rows, per, experts, n, k]: [usize; 5],
) -> Result<Vec<R>, OpError> {
    let mut out = vec![R::ZERO; picks.len() * n];
    if n == 0 || k == 0 {
        return Ok(out);
    }
    out.par_chunks_mut(n).zip(picks).enumerate().try_for_each(|(at, (o, &expert))| {
        let expert = usize::try_from(expert).ok().filter(|&e| e < experts);
        let expert = expert.ok_or(OpError::Index { index: picks[at].into(), at, extent: experts })?;
        let row = if rows == 1 { at / per } else { at };
        let matrix = |data, offset| Matrix { data, offset, rows: k, cols: 1 };
        product(matrix(a, row * k), matrix(b, expert * n * k), o, [1, n, k])
    })?;
    Ok(out)
}

/// Pairs (token · picks + pick) in the order of their experts, equal ones as they stand; and where each expert's
/// pairs begin, with the end of the last.
///
/// # Errors
/// When an index is no expert.
pub(super) fn grouped(picks: &[i32], experts: usize) -> Result<(Vec<i32>, Vec<i32>), OpError> {
    if let Some((at, &i)) =
        picks.iter().enumerate().find(|(_, i)| !(0..experts as i64).contains(&(**i).into()))
    {
        return Err(OpError::Index { index: i.into(), at, extent: experts });
    }
    let mut order: Vec<i32> = (0..picks.len() as i32).collect();
    order.sort_by_key(|&p| picks[p as usize]);
    let begins = |e: usize| picks.iter().filter(|&&i| (i as usize) < e).count() as i32;
    Ok((order, (0..=experts).map(begins).collect()))
}
