//! Decoding of stored tensor bytes to f32: the one definition of what the encodings mean.
//!
//! All numbers are little-endian. A GGML block holds 32 or 256 consecutive elements of the innermost axis
//! (`ggml/src/ggml-quants.c`, `dequantize_row_q4_0` and its neighbours): see [`blocks`] and [`super_blocks`]. Elements
//! whose scales are another tensor: see [`scaled`].
//!
//! Products and sums are in f32, rounded once each (no fused multiply-add), as ggml's plain C does.

mod blocks;
mod scaled;
mod super_blocks;

pub use scaled::Scales;

use crate::dtype::{DType, Encoding};
use half::{bf16, f16};
use thiserror::Error;

/// Why bytes could not be decoded.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The encoding does not hold floating-point numbers.
    #[error("cannot decode {0} to f32: it holds integers, which keep their type")]
    NotFloat(Encoding),
    /// The number of bytes is not what the number of elements takes.
    #[error("{elements} elements of {encoding} do not take {bytes} bytes: each block of {} elements takes {}",
        .encoding.block().0, .encoding.block().1)]
    Length {
        /// How the bytes are encoded.
        encoding: Encoding,
        /// Elements asked for.
        elements: usize,
        /// Bytes given.
        bytes: usize,
    },
    /// Elements need the scales that are another tensor.
    #[error("{0} elements have no value without their scales")]
    NeedsScales(Encoding),
    /// Scales do not fit the elements.
    #[error("{bytes} bytes of {encoding} are not the scales of {of} {shape:?}")]
    Scales {
        /// How the elements are encoded.
        of: Encoding,
        /// Shape of the elements.
        shape: Vec<usize>,
        /// How the scales are encoded.
        encoding: Encoding,
        /// Bytes of the scales.
        bytes: usize,
    },
}

/// Decodes `bytes` into `out`, element by element in storage order.
///
/// `bytes` must be exactly what `out.len()` elements of `encoding` take, so a caller may split a
/// tensor at any block border and decode the parts in parallel. No alignment is required.
///
/// # Errors
/// [`DecodeError::NotFloat`] for integer and bool encodings, [`DecodeError::Length`] when the sizes
/// do not fit together, [`DecodeError::NeedsScales`] for what [`Scales::decode`] decodes.
pub fn decode_f32(encoding: Encoding, bytes: &[u8], out: &mut [f32]) -> Result<(), DecodeError> {
    check(encoding, bytes.len(), out.len())?;
    match encoding {
        Encoding::Plain(DType::F32) => each(bytes, out, f32::from_le_bytes),
        Encoding::Plain(DType::F16) => each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        Encoding::Plain(DType::BF16) => each(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        Encoding::Plain(DType::I64 | DType::I32 | DType::U32 | DType::Bool) => {
            return Err(DecodeError::NotFloat(encoding));
        }
        Encoding::E8M0 => each(bytes, out, |[b]| scaled::e8m0(b)),
        Encoding::Scaled { .. } => return Err(DecodeError::NeedsScales(encoding)),
        Encoding::Q4_0 => run(bytes, out, blocks::q4_0),
        Encoding::Q4_1 => run(bytes, out, blocks::q4_1),
        Encoding::Q5_0 => run(bytes, out, blocks::q5_0),
        Encoding::Q5_1 => run(bytes, out, blocks::q5_1),
        Encoding::Q8_0 => run(bytes, out, blocks::q8_0),
        Encoding::Iq4Nl => run(bytes, out, blocks::iq4_nl),
        Encoding::Mxfp4 => run(bytes, out, blocks::mxfp4),
        Encoding::Q2K => run(bytes, out, super_blocks::q2_k),
        Encoding::Q3K => run(bytes, out, super_blocks::q3_k),
        Encoding::Q4K => run(bytes, out, super_blocks::q4_k),
        Encoding::Q5K => run(bytes, out, super_blocks::q5_k),
        Encoding::Q6K => run(bytes, out, super_blocks::q6_k),
    }
    Ok(())
}

fn check(encoding: Encoding, bytes: usize, elements: usize) -> Result<(), DecodeError> {
    match encoding.bytes(elements) == Some(bytes) {
        true => Ok(()),
        false => Err(DecodeError::Length { encoding, elements, bytes }),
    }
}

/// Elements of `N` bytes each, one after the other.
fn each<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    let (elements, _) = bytes.as_chunks::<N>();
    for (v, &b) in out.iter_mut().zip(elements) {
        *v = value(b);
    }
}

/// Blocks of `N` bytes for `M` elements each.
fn run<const N: usize, const M: usize>(bytes: &[u8], out: &mut [f32], block: fn(&[u8; N], &mut [f32; M])) {
    let (stored, _) = bytes.as_chunks::<N>();
    let (values, _) = out.as_chunks_mut::<M>();
    for (v, b) in values.iter_mut().zip(stored) {
        block(b, v);
    }
}

/// The f16 in the first two bytes.
fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(head: &[f32], quants: impl IntoIterator<Item = u8>) -> Vec<u8> {
        let mut bytes: Vec<u8> = head.iter().flat_map(|&h| f16::from_f32(h).to_le_bytes()).collect();
        bytes.extend(quants);
        bytes
    }

    #[test]
    fn q4_0_is_centred_and_low_nibbles_come_first() {
        let bytes = block(&[0.5], (0..16).map(|j| j | ((15 - j) << 4)));
        let mut out = [f32::NAN; 32];
        decode_f32(Encoding::Q4_0, &bytes, &mut out).unwrap();
        for j in 0..16 {
            assert_eq!(out[j], 0.5 * (j as f32 - 8.0));
            assert_eq!(out[j + 16], 0.5 * (15.0 - j as f32 - 8.0));
        }
    }

    #[test]
    fn q4_1_adds_the_minimum() {
        let bytes = block(&[0.25, -3.0], (0..16).map(|j| j | (1 << 4)));
        let mut out = [f32::NAN; 32];
        decode_f32(Encoding::Q4_1, &bytes, &mut out).unwrap();
        for j in 0..16 {
            assert_eq!(out[j], 0.25 * j as f32 - 3.0);
            assert_eq!(out[j + 16], 0.25 - 3.0);
        }
    }

    #[test]
    fn q8_0_is_signed_and_blocks_follow_each_other() {
        let mut bytes = block(&[2.0], (0..32).map(|j| (j as i8 - 16) as u8));
        bytes.extend(block(&[-1.0], [0x80; 32]));
        let mut out = [f32::NAN; 64];
        decode_f32(Encoding::Q8_0, &bytes, &mut out).unwrap();
        for j in 0..32 {
            assert_eq!(out[j], 2.0 * (j as f32 - 16.0));
            assert_eq!(out[j + 32], 128.0);
        }
    }

    #[test]
    fn plain_floats_at_any_alignment() {
        let mut bytes = vec![0xAA];
        bytes.extend([1.5f32, -2.25].iter().flat_map(|v| v.to_le_bytes()));
        let mut out = [0.0; 2];
        decode_f32(Encoding::Plain(DType::F32), &bytes[1..], &mut out).unwrap();
        assert_eq!(out, [1.5, -2.25]);
        let half: Vec<u8> = [1.5f32, -2.25].iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
        decode_f32(Encoding::Plain(DType::F16), &half, &mut out).unwrap();
        assert_eq!(out, [1.5, -2.25]);
        let brain: Vec<u8> = [1.5f32, -2.25].iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
        decode_f32(Encoding::Plain(DType::BF16), &brain, &mut out).unwrap();
        assert_eq!(out, [1.5, -2.25]);
    }

    #[test]
    fn wrong_sizes_and_integers_are_errors() {
        let mut out = [0.0; 32];
        let short = decode_f32(Encoding::Q4_0, &[0; 17], &mut out);
        assert_eq!(short, Err(DecodeError::Length { encoding: Encoding::Q4_0, elements: 32, bytes: 17 }));
        assert!(decode_f32(Encoding::Q4_0, &[0; 18], &mut out[..31]).is_err());
        let int = Encoding::Plain(DType::I64);
        assert_eq!(decode_f32(int, &[0; 256], &mut out), Err(DecodeError::NotFloat(int)));
    }
}
