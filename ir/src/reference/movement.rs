//! Ops that move elements: views where a layout can say it, copies elsewhere.

use super::error::OpError;
use super::layout::Layout;
use super::precision::Real;
use super::tensor::{Data, Tensor, copied};
use std::sync::Arc;

/// Same elements in row-major order, other shape: a view of packed tensors.
///
/// # Errors
/// When the number of elements differs.
pub fn reshape<R: Real>(x: &Tensor<R>, shape: Vec<usize>) -> Result<Tensor<R>, OpError> {
    if shape.iter().product::<usize>() != x.len() {
        return Err(OpError::Shape(format!("{:?} has other elements than {shape:?}", x.shape())));
    }
    let packed = x.packed();
    let layout = Layout { offset: packed.layout().offset, ..Layout::packed(shape) };
    Ok(Tensor::view(packed.data().clone(), layout))
}

/// Axes permuted: result axis i is axis `perm[i]`. A view.
///
/// # Errors
/// When `perm` does not permute the axes.
pub fn transpose<R: Real>(x: &Tensor<R>, perm: &[usize]) -> Result<Tensor<R>, OpError> {
    let mut seen = perm.to_vec();
    seen.sort_unstable();
    if !seen.into_iter().eq(0..x.shape().len()) {
        return Err(OpError::Shape(format!("{perm:?} does not permute {:?}", x.shape())));
    }
    let l = x.layout();
    let layout = Layout {
        shape: perm.iter().map(|&p| l.shape[p]).collect(),
        strides: perm.iter().map(|&p| l.strides[p]).collect(),
        offset: l.offset,
    };
    Ok(Tensor::view(x.data().clone(), layout))
}

/// Extents of 1 repeated to a shape of equal rank. A view.
///
/// # Errors
/// When an extent is neither 1 nor that of the shape.
pub fn broadcast<R: Real>(x: &Tensor<R>, shape: Vec<usize>) -> Result<Tensor<R>, OpError> {
    let l = x.layout();
    let fits = l.shape.len() == shape.len() && l.shape.iter().zip(&shape).all(|(a, b)| a == b || *a == 1);
    if !fits {
        return Err(OpError::Shape(format!("{:?} does not extend to {shape:?}", l.shape)));
    }
    let strides = l.shape.iter().zip(&shape).zip(&l.strides).map(|((a, b), &s)| if a == b { s } else { 0 });
    let layout = Layout { strides: strides.collect(), shape, offset: l.offset };
    Ok(Tensor::view(x.data().clone(), layout))
}

/// Elements `start..start+len` of an axis. A view.
///
/// # Errors
/// When they are not all in the axis.
pub fn slice<R: Real>(x: &Tensor<R>, axis: usize, start: usize, len: usize) -> Result<Tensor<R>, OpError> {
    let mut layout = x.layout().clone();
    let inside = layout.shape.get(axis).is_some_and(|&n| start.checked_add(len).is_some_and(|end| end <= n));
    if !inside {
        return Err(OpError::Shape(format!("{start}+{len} is outside axis {axis} of {:?}", x.shape())));
    }
    if len > 0 {
        layout.offset += start * layout.strides[axis];
    }
    layout.shape[axis] = len;
    Ok(Tensor::view(x.data().clone(), layout))
}

/// Joined along an axis. A copy.
///
/// # Errors
/// When there is nothing to join, or other axes or the kinds of elements differ.
pub fn concat<R: Real>(xs: &[Tensor<R>], axis: usize) -> Result<Tensor<R>, OpError> {
    let first = xs.first().ok_or_else(|| OpError::Shape("concat of nothing".into()))?;
    let mut shape = first.shape().to_vec();
    if axis >= shape.len() {
        return Err(OpError::Shape(format!("no axis {axis} in {shape:?}")));
    }
    shape[axis] = 0;
    for x in xs {
        let fits = x.shape().len() == shape.len()
            && x.shape().iter().zip(first.shape()).enumerate().all(|(i, (a, b))| i == axis || a == b);
        if !fits {
            return Err(OpError::Shape(format!("{:?} and {:?} differ", first.shape(), x.shape())));
        }
        shape[axis] += x.shape()[axis];
    }
    let outer: usize = shape[..axis].iter().product();
    let data = match first.data() {
        Data::Real(_) => Data::Real(Arc::new(joined(xs, outer, Tensor::reals)?)),
        Data::Int(_) => Data::Int(Arc::new(joined(xs, outer, Tensor::ints)?)),
        Data::U32(_) => Data::U32(Arc::new(joined(xs, outer, Tensor::u32s)?)),
        Data::Bool(_) => Data::Bool(Arc::new(joined(xs, outer, Tensor::bools)?)),
    };
    Tensor::new(data, shape)
}

fn joined<R: Real, T: Copy + Default + Send + Sync>(
    xs: &[Tensor<R>],
    outer: usize,
    get: impl Fn(&Tensor<R>) -> Result<&[T], OpError>,
) -> Result<Vec<T>, OpError> {
    let parts = xs.iter().map(|x| Ok(copied(get(x)?, x.layout()))).collect::<Result<Vec<_>, OpError>>()?;
    let mut out = Vec::with_capacity(parts.iter().map(Vec::len).sum());
    for o in 0..outer {
        for p in &parts {
            let n = p.len() / outer;
            out.extend_from_slice(&p[o * n..(o + 1) * n]);
        }
    }
    Ok(out)
}
