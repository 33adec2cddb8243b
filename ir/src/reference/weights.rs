//! Checkpoint tensors as tensors of the reference.

use super::error::OpError;
use super::precision::Real;
use super::tensor::{Data, Kind, Tensor};
use crate::decode::{DecodeError, Scales, decode_f32};
use crate::dtype::{DType, Encoding};
use crate::graph::ValueType;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where the bytes of checkpoint tensors come from.
pub trait WeightBytes: Sync {
    /// Bytes of a tensor as stored, row-major and little-endian; `None` when there is no such tensor.
    fn bytes(&self, tensor: &str) -> Option<&[u8]>;
}

/// Tensors in memory.
impl WeightBytes for BTreeMap<String, Vec<u8>> {
    fn bytes(&self, tensor: &str) -> Option<&[u8]> {
        self.get(tensor).map(Vec::as_slice)
    }
}

/// Elements that one task decodes: whole blocks of every encoding.
const PART: usize = 64 * 1024;

/// The values of a checkpoint tensor; blocks are decoded, i64 must fit i32.
///
/// # Errors
/// When the tensor is missing, its bytes do not fill the type, or an integer is too large.
pub fn weight<R: Real>(
    weights: &dyn WeightBytes,
    tensor: &str,
    ty: &ValueType,
) -> Result<Tensor<R>, OpError> {
    let shape: Option<Vec<usize>> = ty.shape.iter().map(|d| d.as_const()).collect();
    let shape = shape.ok_or_else(|| OpError::Unsupported("a checkpoint tensor of symbolic shape".into()))?;
    let bytes = weights.bytes(tensor).ok_or_else(|| OpError::NoTensor(tensor.to_string()))?;
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let elements = elements.ok_or_else(|| OpError::Shape(format!("{shape:?} has too many elements")))?;
    let encoding = ty.encoding;
    if encoding.bytes(elements) != Some(bytes.len()) {
        return Err(DecodeError::Length { encoding, elements, bytes: bytes.len() }.into());
    }
    let data = match (Kind::of(ty.dtype()), encoding) {
        (Kind::Real, _) => Data::Real(Arc::new(R::from_f32s(floats(encoding, bytes, elements)?))),
        (Kind::Int, Encoding::Plain(DType::I64)) => Data::Int(Arc::new(longs(bytes)?)),
        (Kind::Int, _) => Data::Int(Arc::new(words(bytes, i32::from_le_bytes))),
        (Kind::U32, _) => Data::U32(Arc::new(words(bytes, u32::from_le_bytes))),
        (Kind::Bool, _) => Data::Bool(Arc::new(bytes.iter().map(|&b| b != 0).collect())),
    };
    Tensor::new(data, shape)
}

/// The values of a checkpoint tensor of [`Encoding::Scaled`] elements with its scales: (name, storage) of both.
///
/// # Errors
/// As [`weight`].
pub fn scaled_weight<R: Real>(
    weights: &dyn WeightBytes,
    (tensor, encoding): (&str, Encoding),
    shape: &[usize],
    (scales, scale_encoding): (&str, Encoding),
) -> Result<Tensor<R>, OpError> {
    let bytes = |name: &str| weights.bytes(name).ok_or_else(|| OpError::NoTensor(name.to_owned()));
    let (elements, scales) = (bytes(tensor)?, bytes(scales)?);
    let scales = Scales::new(encoding, shape, scale_encoding, scales)?;
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let count = count.ok_or_else(|| OpError::Shape(format!("{shape:?} has too many elements")))?;
    if encoding.bytes(count) != Some(elements.len()) {
        return Err(DecodeError::Length { encoding, elements: count, bytes: elements.len() }.into());
    }
    let mut out = vec![0.0; count];
    let (block, size) = encoding.block();
    out.par_chunks_mut(PART)
        .zip(elements.par_chunks(PART / block * size))
        .enumerate()
        .try_for_each(|(i, (o, b))| scales.decode(i * PART, b, o))?;
    Tensor::new(Data::Real(Arc::new(R::from_f32s(out))), shape.to_vec())
}

fn floats(encoding: Encoding, bytes: &[u8], elements: usize) -> Result<Vec<f32>, OpError> {
    let mut out = vec![0.0; elements];
    let (block, size) = encoding.block();
    out.par_chunks_mut(PART)
        .zip(bytes.par_chunks(PART / block * size))
        .try_for_each(|(o, b)| decode_f32(encoding, b, o))?;
    Ok(out)
}

fn words<T>(bytes: &[u8], of: impl Fn([u8; 4]) -> T) -> Vec<T> {
    bytes.as_chunks::<4>().0.iter().map(|&b| of(b)).collect()
}

fn longs(bytes: &[u8]) -> Result<Vec<i32>, OpError> {
    let fits = |(i, &b): (usize, &[u8; 8])| {
        let long = i64::from_le_bytes(b);
        i32::try_from(long).map_err(|_| OpError::Type(format!("element {i} is {long}, beyond 32 bits")))
    };
    bytes.as_chunks::<8>().0.iter().enumerate().map(fits).collect()
}
