//! Matrix products.
//!
//! Few rows (decode) stream the right operand once, split over its rows in fixed chunks; many rows go
//! through `ndarray`'s product (the `matrixmultiply` crate). In both, a result element depends on its row
//! and column alone, not on the number of threads.

use super::error::OpError;
use super::layout::Layout;
use super::precision::Real;
use super::reduce::fold_lanes;
use super::tensor::{Tensor, copied};
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, Axis, ShapeBuilder};
use pulp::Arch;
use rayon::prelude::*;
use std::borrow::Cow;

/// Most rows that are worth streaming rather than packing for the tiled product.
const FEW: usize = 12;
/// Columns of the result that one task makes when it streams.
const STREAM: usize = 32;
/// Rows or columns of the result that one task makes when it multiplies tiles.
const TILE: usize = 256;
/// Products below which a task is not worth starting.
const SERIAL: usize = 64 * 1024;
/// Partial sums of a dot product.
const LANES: usize = 32;

/// A matrix in shared data: element (i, j) at `offset + i·rows + j·cols`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a, R> {
    pub data: &'a [R],
    pub offset: usize,
    pub rows: usize,
    pub cols: usize,
}

/// (a [batch…, m, k], b [batch…, k, n] or, transposed, [batch…, n, k]) → [batch…, m, n].
///
/// # Errors
/// When shapes do not fit or elements are not floats.
pub fn matmul<R: Real>(a: &Tensor<R>, b: &Tensor<R>, transpose_b: bool) -> Result<Tensor<R>, OpError> {
    let (sa, sb) = (a.shape(), b.shape());
    let misfit = || OpError::Shape(format!("matmul of {sa:?} and {sb:?}, transposed: {transpose_b}"));
    let rank = sa.len();
    if rank < 2 || sb.len() != rank || sa[..rank - 2] != sb[..rank - 2] {
        return Err(misfit());
    }
    let (m, k) = (sa[rank - 2], sa[rank - 1]);
    let (kb, n) = if transpose_b { (sb[rank - 1], sb[rank - 2]) } else { (sb[rank - 2], sb[rank - 1]) };
    if k != kb {
        return Err(misfit());
    }
    let (da, db) = (a.reals()?, b.reals()?);
    let batch: usize = sa[..rank - 2].iter().product();
    let mut out = vec![R::ZERO; batch * m * n];
    if !out.is_empty() && k > 0 {
        let (starts_a, starts_b) = (starts(a.layout(), rank - 2), starts(b.layout(), rank - 2));
        let one = |(i, part): (usize, &mut [R])| {
            let ma = matrix(da, a.layout(), starts_a[i], false);
            // As [n, k], whichever way it is stored.
            let mb = matrix(db, b.layout(), starts_b[i], !transpose_b);
            product(ma, mb, part, [m, n, k])
        };
        if batch == 1 || batch * m * n * k < SERIAL {
            out.chunks_mut(m * n).enumerate().try_for_each(one)?;
        } else {
            out.par_chunks_mut(m * n).enumerate().try_for_each(one)?;
        }
    }
    let shape = sa[..rank - 2].iter().copied().chain([m, n]).collect();
    Tensor::real(out, shape)
}

/// Positions of the first elements of the matrices in the last two axes.
fn starts(l: &Layout, outer: usize) -> Vec<usize> {
    let mut at = vec![l.offset];
    for axis in 0..outer {
        at = at.iter().flat_map(|&p| (0..l.shape[axis]).map(move |i| p + i * l.strides[axis])).collect();
    }
    at
}

fn matrix<'a, R>(data: &'a [R], l: &Layout, offset: usize, swapped: bool) -> Matrix<'a, R> {
    let rank = l.strides.len();
    let (r, c) = (l.strides[rank - 2], l.strides[rank - 1]);
    let (rows, cols) = if swapped { (c, r) } else { (r, c) };
    Matrix { data, offset, rows, cols }
}

/// out [m, n] = a [m, k] · b [n, k]ᵀ; `out` is row-major and holds zeros, no extent is 0.
pub(super) fn product<R: Real>(
    a: Matrix<R>,
    b: Matrix<R>,
    out: &mut [R],
    [m, n, k]: [usize; 3],
) -> Result<(), OpError> {
    let a_rows = packed(a, m, k);
    if m <= FEW && (b.cols == 1 || k == 1) {
        stream_rows(&a_rows, b, out, [m, n, k]);
    } else if m <= FEW && (b.rows == 1 || n == 1) {
        for (row, o) in a_rows.chunks(k).zip(out.chunks_mut(n)) {
            stream_columns(row, b, o);
        }
    } else {
        tiled(&a_rows, b, out, [m, n, k])?;
    }
    Ok(())
}

/// Elements of a matrix, row-major.
fn packed<'a, R: Real>(a: Matrix<'a, R>, m: usize, k: usize) -> Cow<'a, [R]> {
    let layout = Layout { shape: vec![m, k], strides: vec![a.rows, a.cols], offset: a.offset };
    if layout.is_packed() {
        Cow::Borrowed(&a.data[a.offset..a.offset + m * k])
    } else {
        Cow::Owned(copied(a.data, &layout))
    }
}

/// Few rows: each row of b [n, k] is read once and multiplied with all rows of a.
fn stream_rows<R: Real>(a: &[R], b: Matrix<R>, out: &mut [R], [m, n, k]: [usize; 3]) {
    let arch = Arch::new();
    let chunk = |first: usize, part: &mut [R]| {
        // Compiled for the vector registers there are; products and sums are rounded one by one, so the
        // result is the same on each of them.
        arch.dispatch(
            #[inline(always)]
            || {
                for (j, o) in part.chunks_mut(m).enumerate() {
                    let at = b.offset + (first + j) * b.rows;
                    dots(a, &b.data[at..at + k], o);
                }
            },
        );
    };
    let each = |part: &mut [R]| {
        if m * n * k < SERIAL {
            chunk(0, part);
        } else {
            part.par_chunks_mut(STREAM * m).enumerate().for_each(|(i, p)| chunk(i * STREAM, p));
        }
    };
    if m == 1 {
        each(out);
        return;
    }
    // Made as [n, m], so that chunks of n are neighbours.
    let mut turned = vec![R::ZERO; n * m];
    each(&mut turned);
    for (j, column) in turned.chunks(m).enumerate() {
        for (i, &x) in column.iter().enumerate() {
            out[i * n + j] = x;
        }
    }
}

/// One row of a against b [n, k] whose columns are contiguous: Σₖ a[k] · column k.
fn stream_columns<R: Real>(a: &[R], b: Matrix<R>, out: &mut [R]) {
    let chunk = |first: usize, part: &mut [R]| {
        for (j, &x) in a.iter().enumerate() {
            let at = b.offset + j * b.cols + first * b.rows;
            for (o, &y) in part.iter_mut().zip(&b.data[at..]) {
                *o = *o + x * y;
            }
        }
    };
    if out.len() * a.len() < SERIAL {
        chunk(0, out);
    } else {
        out.par_chunks_mut(4 * STREAM).enumerate().for_each(|(i, p)| chunk(i * 4 * STREAM, p));
    }
}

/// Dot products of the rows of a with one vector.
#[inline(always)]
fn dots<R: Real>(a: &[R], b: &[R], out: &mut [R]) {
    let k = b.len();
    let mut rows = a.chunks_exact(2 * k);
    let (pairs, rest) = out.as_chunks_mut::<2>();
    for (o, two) in pairs.iter_mut().zip(&mut rows) {
        let (x, y) = two.split_at(k);
        *o = dot_pair(x, y, b);
    }
    if let [o] = rest {
        *o = dot(rows.remainder(), b);
    }
}

/// Σ a·b over equal lengths, in a fixed order.
#[inline(always)]
pub(super) fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    let ((ca, ra), (cb, rb)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut lanes = [R::ZERO; LANES];
    for (x, y) in ca.iter().zip(cb) {
        for i in 0..LANES {
            lanes[i] = lanes[i] + x[i] * y[i];
        }
    }
    finish(lanes, ra, rb)
}

/// Two dot products with the same vector, each as [`dot`] makes it.
#[inline(always)]
fn dot_pair<R: Real>(a: &[R], z: &[R], b: &[R]) -> [R; 2] {
    let ((ca, ra), (cz, rz), (cb, rb)) =
        (a.as_chunks::<LANES>(), z.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let (mut first, mut second) = ([R::ZERO; LANES], [R::ZERO; LANES]);
    for ((x, w), y) in ca.iter().zip(cz).zip(cb) {
        for i in 0..LANES {
            first[i] = first[i] + x[i] * y[i];
        }
        for i in 0..LANES {
            second[i] = second[i] + w[i] * y[i];
        }
    }
    [finish(first, ra, rb), finish(second, rz, rb)]
}

/// Adds the elements beyond the last whole chunk, then the lanes. Not inlined: the lanes of the loops
/// above would live in memory rather than in registers.
#[inline(never)]
fn finish<R: Real>(mut lanes: [R; LANES], a: &[R], b: &[R]) -> R {
    for (l, (&x, &y)) in lanes.iter_mut().zip(a.iter().zip(b)) {
        *l = *l + x * y;
    }
    fold_lanes(lanes)
}

/// Many rows: `ndarray`'s product on fixed parts of the result.
fn tiled<R: Real>(a: &[R], b: Matrix<R>, out: &mut [R], [m, n, k]: [usize; 3]) -> Result<(), OpError> {
    // ndarray takes no views whose elements overlap: broadcasts are copied.
    let copy;
    let overlaps = (b.rows == 0 && n > 1) || (b.cols == 0 && k > 1);
    let b = if overlaps {
        copy = packed(b, n, k);
        Matrix { data: &copy, offset: 0, rows: k, cols: 1 }
    } else {
        b
    };
    let strides = (b.rows.max(1), b.cols.max(1));
    let misfit = |e: ndarray::ShapeError| OpError::Shape(e.to_string());
    let a = ArrayView2::from_shape((m, k), a).map_err(misfit)?;
    let b = ArrayView2::from_shape((n, k).strides(strides), &b.data[b.offset..]).map_err(misfit)?;
    let mut out = ArrayViewMut2::from_shape((m, n), out).map_err(misfit)?;
    let bt = b.t();
    let axis = if n >= m { Axis(1) } else { Axis(0) };
    let parts: Vec<_> = out.axis_chunks_iter_mut(axis, TILE).collect();
    let one = |(i, mut part): (usize, ArrayViewMut2<R>)| {
        let len = part.len_of(axis);
        let range = ndarray::Slice::from(i * TILE..i * TILE + len);
        if axis == Axis(1) {
            general_mat_mul(R::ONE, &a, &bt.slice_axis(axis, range), R::ZERO, &mut part);
        } else {
            general_mat_mul(R::ONE, &a.slice_axis(axis, range), &bt, R::ZERO, &mut part);
        }
    };
    if m * n * k < SERIAL {
        parts.into_iter().enumerate().for_each(one);
    } else {
        parts.into_par_iter().enumerate().for_each(one);
    }
    Ok(())
}
