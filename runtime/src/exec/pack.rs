//! The bytes of a weight buffer, made from checkpoint tensors as its [`Pack`] says.
//!
//! Three ways, from fast to slow, that give the same bytes:
//! 1. stored bytes are copied, where a pack only reshapes, joins, cuts or reorders contiguous runs of the right type;
//! 2. such runs of another type are decoded and rounded piece by piece;
//! 3. where elements move, the whole tensor is made as f32 first.
//!
//! Rounding is to nearest, ties to even, at each cast of the pack and to the buffer's type at the end.

use std::sync::Arc;

use half::{bf16, f16};
use rayon::prelude::*;
use weft_ir::decode::{Scales, decode_f32};
use weft_ir::dtype::{DType, Encoding};
use weft_ir::graph::ValueType;
use weft_ir::plan::Pack;
use weft_ir::reference::{
    Data, OpError, Precision, Tensor, WeightBytes, elementwise, movement, scaled_weight, weight,
};
use weft_ir::shape::Dim;

use crate::error::{Error, Result};
use permute::permuted;

mod permute;

/// Elements that are made at a time: whole blocks of every encoding.
const PART: usize = 64 * 1024;

/// A weight buffer that can be written out, whole or in parts.
#[derive(Debug)]
pub struct Packed<'a> {
    name: String,
    dtype: DType,
    elements: usize,
    source: Source<'a>,
}

#[derive(Debug)]
enum Source<'a> {
    Pieces(Vec<Piece<'a>>),
    Reals(Arc<Vec<f32>>),
    Ints(Vec<i32>),
}

/// A contiguous run of stored elements.
#[derive(Clone, Debug)]
struct Piece<'a> {
    /// First element in the buffer.
    start: usize,
    elements: usize,
    encoding: Encoding,
    bytes: &'a [u8],
    /// Scales of the tensor that it is a run of, and its first element there.
    scales: Option<(Scales<'a>, usize)>,
    /// Types to round to, in order; none of them without effect.
    rounds: Vec<DType>,
}

/// How a buffer is made: see the module's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Stored bytes are copied.
    Copied,
    /// Stored runs are decoded and rounded.
    Converted,
    /// The whole tensor was made as f32 (or i32) first.
    Moved,
}

impl<'a> Packed<'a> {
    /// Makes ready to write the buffer `name` of so many elements.
    ///
    /// # Errors
    /// [`Error::Weight`] when a tensor is missing, has other bytes than its type takes, or the pack does not fit the
    /// buffer.
    pub fn new(
        name: &str,
        pack: &Pack,
        dtype: DType,
        elements: usize,
        weights: &'a dyn WeightBytes,
    ) -> Result<Packed<'a>> {
        let fault = |why: String| Error::Weight { buffer: name.to_owned(), why };
        let linear = linear(pack, weights).map_err(fault)?.and_then(|l| finish(l, dtype));
        let (source, shape) = match linear {
            Some((pieces, shape)) => (Source::Pieces(pieces), shape),
            None => moved(pack, dtype, weights).map_err(|e| fault(e.to_string()))?,
        };
        if shape.iter().product::<usize>() != elements {
            return Err(fault(format!("its tensors make {shape:?}, and it has {elements} elements")));
        }
        Ok(Packed { name: name.to_owned(), dtype, elements, source })
    }

    /// As [`Packed::new`], by the slow way: for tests.
    ///
    /// # Errors
    /// As [`Packed::new`].
    pub fn moved(name: &str, pack: &Pack, dtype: DType, weights: &'a dyn WeightBytes) -> Result<Packed<'a>> {
        let fault = |e: OpError| Error::Weight { buffer: name.to_owned(), why: e.to_string() };
        let (source, shape) = moved(pack, dtype, weights).map_err(fault)?;
        Ok(Packed { name: name.to_owned(), dtype, elements: shape.iter().product(), source })
    }

    /// How it is made.
    pub fn way(&self) -> Way {
        match &self.source {
            Source::Pieces(pieces) if pieces.iter().all(|p| p.is_direct(self.dtype)) => Way::Copied,
            Source::Pieces(_) => Way::Converted,
            Source::Reals(_) | Source::Ints(_) => Way::Moved,
        }
    }

    /// Its bytes in all.
    pub fn len(&self) -> usize {
        self.elements * self.dtype.size()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.elements == 0
    }

    /// Writes the bytes from `at` on, as many as fit `out`, on the calling thread. Both are multiples of the element's
    /// size.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::BadArgument`].
    pub fn write(&self, at: usize, out: &mut [u8]) -> Result<()> {
        crate::error::check_range("Packed::write", at, out.len(), self.len())?;
        let size = self.dtype.size();
        if !at.is_multiple_of(size) || !out.len().is_multiple_of(size) {
            return Err(Error::bad("Packed::write", format!("{at} and {} cut an element", out.len())));
        }
        let mut parts = out.chunks_mut(PART * size).enumerate();
        parts.try_for_each(|(i, part)| self.write_part(at / size + i * PART, part))
    }

    /// All its bytes, written in parallel.
    ///
    /// # Errors
    /// As [`Packed::write`].
    pub fn to_vec(&self) -> Result<Vec<u8>> {
        let mut out = vec![0; self.len()];
        let parts = out.par_chunks_mut(PART * self.dtype.size()).enumerate();
        parts.try_for_each(|(i, part)| self.write_part(i * PART, part))?;
        Ok(out)
    }

    fn write_part(&self, first: usize, out: &mut [u8]) -> Result<()> {
        let size = self.dtype.size();
        let elements = out.len() / size;
        match &self.source {
            Source::Reals(values) => {
                store(self.dtype, &values[first..first + elements], out);
                Ok(())
            }
            Source::Ints(values) => {
                let values = &values[first..first + elements];
                out.as_chunks_mut::<4>().0.iter_mut().zip(values).for_each(|(o, v)| *o = v.to_le_bytes());
                Ok(())
            }
            Source::Pieces(pieces) => {
                let mut done = 0;
                let mut index = pieces.partition_point(|p| p.start + p.elements <= first);
                while done < elements {
                    let Some(piece) = pieces.get(index) else {
                        return Err(self.fault("its tensors end early".into()));
                    };
                    let from = first + done - piece.start;
                    let n = (piece.elements - from).min(elements - done);
                    let part = &mut out[done * size..(done + n) * size];
                    piece.write(self.dtype, from, n, part).map_err(|e| self.fault(e))?;
                    done += n;
                    index += 1;
                }
                Ok(())
            }
        }
    }

    fn fault(&self, why: String) -> Error {
        Error::Weight { buffer: self.name.clone(), why }
    }
}

impl<'a> Piece<'a> {
    /// Elements `from..from + n` of it; `None` when a cut is inside a block.
    fn part(&self, from: usize, n: usize) -> Option<Piece<'a>> {
        let (block, bytes) = self.encoding.block();
        if !from.is_multiple_of(block) || !n.is_multiple_of(block) {
            return None;
        }
        let run = self.bytes.get(from / block * bytes..(from + n) / block * bytes)?;
        let scales = self.scales.map(|(scales, first)| (scales, first + from));
        Some(Piece { elements: n, bytes: run, scales, rounds: self.rounds.clone(), ..*self })
    }

    fn is_direct(&self, dtype: DType) -> bool {
        self.encoding == Encoding::Plain(dtype) && self.rounds.is_empty()
    }

    fn write(&self, dtype: DType, from: usize, n: usize, out: &mut [u8]) -> Result<(), String> {
        if self.is_direct(dtype) {
            let size = dtype.size();
            out.copy_from_slice(&self.bytes[from * size..(from + n) * size]);
            return Ok(());
        }
        // Whole blocks that hold the elements.
        let (block, bytes) = self.encoding.block();
        let (low, high) = (from / block, (from + n).div_ceil(block));
        let mut values = vec![0.0; (high - low) * block];
        let stored = &self.bytes[low * bytes..high * bytes];
        match &self.scales {
            None => decode_f32(self.encoding, stored, &mut values),
            Some((scales, first)) => scales.decode(first + low * block, stored, &mut values),
        }
        .map_err(|e| e.to_string())?;
        let values = &mut values[from - low * block..][..n];
        for &to in &self.rounds {
            round(to, values);
        }
        store(dtype, values, out);
        Ok(())
    }
}

/// Contiguous runs of stored elements, joined, with a shape.
struct Linear<'a> {
    pieces: Vec<Piece<'a>>,
    shape: Vec<usize>,
}

/// A pack as contiguous runs; `None` where elements move.
fn linear<'a>(pack: &Pack, weights: &'a dyn WeightBytes) -> Result<Option<Linear<'a>>, String> {
    let outer = |shape: &[usize], axis: usize| shape.iter().take(axis).product::<usize>();
    Ok(match pack {
        Pack::Tensor { name, encoding, shape } => Some(stored(weights, name, *encoding, shape)?),
        Pack::Scaled { name, encoding, shape, scales, scale_encoding } => {
            let mut l = stored(weights, name, *encoding, shape)?;
            let found = Scales::new(*encoding, shape, *scale_encoding, bytes(weights, scales)?);
            let found = found.map_err(|e| format!("tensor {scales:?}: {e}"))?;
            l.pieces.iter_mut().for_each(|p| p.scales = Some((found, 0)));
            Some(l)
        }
        Pack::Decode(p) => linear(p, weights)?,
        Pack::Reshape(shape, p) => {
            let Some(l) = linear(p, weights)? else { return Ok(None) };
            if shape.iter().product::<usize>() != l.shape.iter().product::<usize>() {
                return Err(format!("{:?} cannot be reshaped to {shape:?}", l.shape));
            }
            Some(Linear { shape: shape.clone(), ..l })
        }
        Pack::Cast(dtype, p) => linear(p, weights)?.and_then(|mut l| {
            let floats = dtype.is_float() && l.pieces.iter().all(|p| p.encoding.value_type().is_float());
            l.pieces.iter_mut().for_each(|p| p.rounds.push(*dtype));
            // A conversion to or from integers is none of this module's.
            floats.then_some(l)
        }),
        Pack::Slice(axis, start, len, p) => match linear(p, weights)? {
            Some(l) if *axis < l.shape.len() && outer(&l.shape, *axis) == 1 => {
                if start.checked_add(*len).is_none_or(|end| end > l.shape[*axis]) {
                    return Err(format!("{start}+{len} is outside axis {axis} of {:?}", l.shape));
                }
                cut(l, *axis, *start, *len)
            }
            Some(_) | None => None,
        },
        Pack::Concat(axis, parts) => {
            let mut joined: Option<Linear<'a>> = None;
            for part in parts {
                let next = match linear(part, weights)? {
                    Some(l) if *axis < l.shape.len() && outer(&l.shape, *axis) == 1 => l,
                    Some(_) | None => return Ok(None),
                };
                joined = match joined {
                    None => Some(next),
                    Some(mut all) => {
                        let same = all.shape.len() == next.shape.len()
                            && (0..all.shape.len()).all(|i| i == *axis || all.shape[i] == next.shape[i]);
                        if !same {
                            return Err(format!("{:?} and {:?} cannot be joined", all.shape, next.shape));
                        }
                        all.shape[*axis] += next.shape[*axis];
                        all.pieces.extend(next.pieces);
                        Some(all)
                    }
                };
            }
            joined
        }
        Pack::Transpose(perm, p) => match turned_back(perm, p) {
            Some(inner) => linear(&inner, weights)?,
            None => linear(p, weights)?.and_then(|l| permuted(&l, perm)),
        },
    })
}

fn bytes<'a>(weights: &'a dyn WeightBytes, name: &str) -> Result<&'a [u8], String> {
    weights.bytes(name).ok_or_else(|| format!("the checkpoint has no tensor {name:?}"))
}

/// A whole checkpoint tensor.
fn stored<'a>(
    weights: &'a dyn WeightBytes,
    name: &str,
    encoding: Encoding,
    shape: &[usize],
) -> Result<Linear<'a>, String> {
    let bytes = bytes(weights, name)?;
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let elements = elements.ok_or_else(|| format!("{shape:?} has too many elements"))?;
    if encoding.bytes(elements) != Some(bytes.len()) {
        let have = bytes.len();
        return Err(format!("tensor {name:?} has {have} bytes, not those of {encoding} {shape:?}"));
    }
    let piece = Piece { start: 0, elements, encoding, bytes, scales: None, rounds: Vec::new() };
    Ok(Linear { pieces: vec![piece], shape: shape.to_vec() })
}

/// What a transposed pack comes to where another transposition inside undoes it: that of gpt-oss's experts, stored
/// the other way round when they are quantised.
fn turned_back(perm: &[usize], p: &Pack) -> Option<Pack> {
    match p {
        Pack::Cast(dtype, inner) => Some(Pack::Cast(*dtype, Box::new(turned_back(perm, inner)?))),
        Pack::Transpose(first, inner)
            if first.len() == perm.len()
                && perm.iter().enumerate().all(|(i, &axis)| first.get(axis) == Some(&i)) =>
        {
            Some((**inner).clone())
        }
        _ => None,
    }
}

/// Elements `start..start+len` of an axis that is outermost but for extents of 1; `None` when a cut is inside a block.
fn cut<'a>(l: Linear<'a>, axis: usize, start: usize, len: usize) -> Option<Linear<'a>> {
    let inner: usize = l.shape[axis + 1..].iter().product();
    let (mut skip, mut left) = (start * inner, len * inner);
    let mut pieces = Vec::new();
    for piece in l.pieces {
        let from = skip.min(piece.elements);
        let n = (piece.elements - from).min(left);
        skip -= from;
        left -= n;
        if n == 0 {
            continue;
        }
        pieces.push(piece.part(from, n)?);
    }
    let mut shape = l.shape;
    shape[axis] = len;
    Some(Linear { pieces, shape })
}

/// Places the pieces, and drops roundings without effect; `None` when integers would have to be converted.
fn finish(l: Linear<'_>, dtype: DType) -> Option<(Vec<Piece<'_>>, Vec<usize>)> {
    let mut at = 0;
    let mut pieces = l.pieces;
    for piece in &mut pieces {
        let mut now = piece.encoding.value_type();
        piece.rounds.retain(|&to| {
            let changes = to != DType::F32 && to != now;
            now = if changes { to } else { now };
            changes
        });
        let floats = dtype.is_float() && piece.encoding.value_type().is_float();
        if !floats && !piece.is_direct(dtype) {
            return None;
        }
        piece.start = at;
        at += piece.elements;
    }
    Some((pieces, l.shape))
}

/// The slow way.
fn moved<'a>(
    pack: &Pack,
    dtype: DType,
    weights: &dyn WeightBytes,
) -> Result<(Source<'a>, Vec<usize>), OpError> {
    let tensor = value(pack, weights)?.packed();
    let shape = tensor.shape().to_vec();
    let whole = tensor.layout().offset == 0 && tensor.data().len() == tensor.len();
    let source = match tensor.data() {
        Data::Real(values) if dtype.is_float() && whole => Source::Reals(Arc::clone(values)),
        Data::Real(_) if dtype.is_float() => Source::Reals(Arc::new(tensor.to_reals()?)),
        Data::Int(_) if dtype == DType::I32 => Source::Ints(tensor.to_ints()?),
        Data::Real(_) | Data::Int(_) | Data::U32(_) | Data::Bool(_) => {
            return Err(OpError::Type(format!("{:?} elements for a buffer of {dtype}", tensor.kind())));
        }
    };
    Ok((source, shape))
}

fn value(pack: &Pack, weights: &dyn WeightBytes) -> Result<Tensor<f32>, OpError> {
    match pack {
        Pack::Tensor { name, encoding, shape } => {
            let shape = shape.iter().map(|&n| Dim::Const(n)).collect();
            weight(weights, name, &ValueType { encoding: *encoding, shape })
        }
        // A weight's value is decoded already.
        Pack::Decode(p) => value(p, weights),
        Pack::Scaled { name, encoding, shape, scales, scale_encoding } => {
            scaled_weight(weights, (name, *encoding), shape, (scales, *scale_encoding))
        }
        Pack::Reshape(shape, p) => movement::reshape(&value(p, weights)?, shape.clone()),
        Pack::Transpose(perm, p) => movement::transpose(&value(p, weights)?, perm),
        Pack::Slice(axis, start, len, p) => movement::slice(&value(p, weights)?, *axis, *start, *len),
        Pack::Concat(axis, parts) => {
            let parts = parts.iter().map(|p| value(p, weights)).collect::<Result<Vec<_>, _>>()?;
            movement::concat(&parts, *axis)
        }
        Pack::Cast(dtype, p) => {
            let cast = elementwise::cast(&value(p, weights)?, *dtype)?;
            Ok(elementwise::round(cast, *dtype, Precision::Rounded))
        }
    }
}

fn round(dtype: DType, values: &mut [f32]) {
    match dtype {
        DType::F16 => values.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32()),
        DType::BF16 => values.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32()),
        DType::F32 | DType::I64 | DType::I32 | DType::U32 | DType::Bool => {}
    }
}

/// Rounds and stores; `dtype` is a float type.
fn store(dtype: DType, values: &[f32], out: &mut [u8]) {
    fn each<const N: usize>(values: &[f32], out: &mut [u8], bytes: impl Fn(f32) -> [u8; N]) {
        out.as_chunks_mut::<N>().0.iter_mut().zip(values).for_each(|(o, &v)| *o = bytes(v));
    }
    match dtype {
        DType::F16 => each(values, out, |v| f16::from_f32(v).to_le_bytes()),
        DType::BF16 => each(values, out, |v| bf16::from_f32(v).to_le_bytes()),
        DType::F32 | DType::I64 | DType::I32 | DType::U32 | DType::Bool => {
            each(values, out, f32::to_le_bytes)
        }
    }
}
