//! Elements whose scales are another tensor: DeepSeek's FP8 (`weight` and `weight_scale_inv`, a scale for 128 × 128
//! elements) and the OCP MXFP4 of gpt-oss (`_blocks` and `_scales`, one for 32).
//!
//! | element | bits | value |
//! | --- | --- | --- |
//! | E4M3 | sign, 4 exponent, 3 mantissa | ±2^(e−7) · (1 + m/8); e = 0: ±2^−6 · m/8; all ones: NaN |
//! | E2M1 | sign, 2 exponent, 1 mantissa | ±0, 0.5, 1, 1.5, 2, 3, 4, 6 |
//! | E8M0 | 8 exponent | 2^(e−127); 255: NaN |
//!
//! A value is element times scale, in f32.

use super::blocks::E2M1_TWICE;
use super::{DecodeError, check, decode_f32};
use crate::dtype::{Coded, Encoding};

/// The scales of a tensor of [`Encoding::Scaled`] elements.
#[derive(Clone, Copy, Debug)]
pub struct Scales<'a> {
    of: Encoding,
    element: Coded,
    /// Elements of a block, along the last two axes.
    block: (usize, usize),
    /// Extents of the last two axes.
    extents: (usize, usize),
    encoding: Encoding,
    bytes: &'a [u8],
}

impl<'a> Scales<'a> {
    /// The scales of a tensor of this encoding and shape (outermost first), stored as `encoding` in `bytes`.
    ///
    /// # Errors
    /// [`DecodeError::Scales`] when `of` takes no scales or others than these.
    pub fn new(
        of: Encoding,
        shape: &[usize],
        encoding: Encoding,
        bytes: &'a [u8],
    ) -> Result<Scales<'a>, DecodeError> {
        let misfit = || DecodeError::Scales { of, shape: shape.to_vec(), encoding, bytes: bytes.len() };
        let (Encoding::Scaled { of: element, rows, columns }, [.., r, c]) = (of, shape) else {
            return Err(misfit());
        };
        let counted = of.scales(shape).and_then(|s| s.iter().try_fold(1usize, |n, &d| n.checked_mul(d)));
        let single = encoding.block().0 == 1 && encoding.value_type().is_float();
        if !single
            || matches!(encoding, Encoding::Scaled { .. })
            || counted.and_then(|n| encoding.bytes(n)) != Some(bytes.len())
        {
            return Err(misfit());
        }
        let block = (rows as usize, columns as usize);
        Ok(Scales { of, element, block, extents: (*r, *c), encoding, bytes })
    }

    /// Decodes the elements from `first` on (counted in the whole tensor, row-major), as many as `out` takes, which
    /// are `bytes`.
    ///
    /// # Errors
    /// [`DecodeError::Length`] when bytes and elements do not fit together, or `first` is inside a byte;
    /// [`DecodeError::Scales`] when the run leaves the tensor.
    pub fn decode(&self, first: usize, bytes: &[u8], out: &mut [f32]) -> Result<(), DecodeError> {
        check(self.of, bytes.len(), out.len())?;
        if !first.is_multiple_of(self.of.block().0) {
            return Err(DecodeError::Length { encoding: self.of, elements: first, bytes: bytes.len() });
        }
        match self.element {
            Coded::E4M3 => out.iter_mut().zip(bytes).for_each(|(v, &b)| *v = e4m3(b)),
            Coded::E2M1 => {
                for ([low, high], &b) in out.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
                    (*low, *high) = (e2m1(b & 15), e2m1(b >> 4));
                }
            }
        }
        self.multiply(first, out)
    }

    /// Multiplies with each element's scale, run by run of elements that share one.
    fn multiply(&self, first: usize, out: &mut [f32]) -> Result<(), DecodeError> {
        let ((block_rows, block_columns), (rows, columns)) = (self.block, self.extents);
        let (down, across) = (rows.div_ceil(block_rows), columns.div_ceil(block_columns));
        let mut at = first;
        let mut rest = out;
        while !rest.is_empty() {
            let (line, column) = (at / columns, at % columns);
            let (outer, row) = (line / rows, line % rows);
            let scale = self.at((outer * down + row / block_rows) * across + column / block_columns)?;
            let border = ((column / block_columns + 1) * block_columns).min(columns);
            let (run, after) = rest.split_at_mut((border - column).min(rest.len()));
            run.iter_mut().for_each(|v| *v *= scale);
            at += run.len();
            rest = after;
        }
        Ok(())
    }

    fn at(&self, index: usize) -> Result<f32, DecodeError> {
        let size = self.encoding.block().1;
        let bytes = self.bytes.get(index * size..(index + 1) * size);
        let mut scale = [0.0];
        match bytes {
            Some(bytes) => decode_f32(self.encoding, bytes, &mut scale)?,
            None => {
                let (of, encoding, bytes) = (self.of, self.encoding, self.bytes.len());
                return Err(DecodeError::Scales {
                    of,
                    shape: vec![self.extents.0, self.extents.1],
                    encoding,
                    bytes,
                });
            }
        }
        Ok(scale[0])
    }
}

/// 2^(b − 127).
pub(super) fn e8m0(b: u8) -> f32 {
    match b {
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        b => f32::from_bits(u32::from(b) << 23),
    }
}

fn e4m3(b: u8) -> f32 {
    let (exponent, mantissa) = (u32::from(b >> 3 & 15), u32::from(b & 7));
    let magnitude = match (exponent, mantissa) {
        (15, 7) => f32::NAN,
        (0, m) => m as f32 / 512.0,
        (e, m) => f32::from_bits((e + 120) << 23 | m << 20),
    };
    if b & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The sign of zero is kept.
fn e2m1(nibble: u8) -> f32 {
    let value = f32::from(E2M1_TWICE[usize::from(nibble)]) * 0.5;
    if nibble == 8 { -0.0 } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;

    const FP8: Encoding = Encoding::Scaled { of: Coded::E4M3, rows: 2, columns: 3 };

    /// Every run of a tensor gives the part of the whole, whose scales cut short blocks at both edges.
    #[test]
    fn runs_find_their_scales() {
        let shape = [2, 3, 4];
        let scales: Vec<u8> = (1..=8).flat_map(|s| (s as f32).to_le_bytes()).collect();
        let scales = Scales::new(FP8, &shape, Encoding::Plain(DType::F32), &scales).unwrap();
        let bytes = [0x38; 24];
        let mut all = [0.0; 24];
        scales.decode(0, &bytes, &mut all).unwrap();
        let wanted: Vec<f32> = (0..24)
            .map(|e| {
                let (outer, row, column) = (e / 12, e / 4 % 3, e % 4);
                (outer * 4 + row / 2 * 2 + column / 3 + 1) as f32
            })
            .collect();
        assert_eq!(all.as_slice(), wanted);
        for first in 0..24 {
            for end in first..=24 {
                let mut out = vec![f32::NAN; end - first];
                scales.decode(first, &bytes[first..end], &mut out).unwrap();
                assert_eq!(out, &all[first..end]);
            }
        }
        assert!(scales.decode(20, &bytes[..5], &mut [0.0; 5]).is_err());
    }

    #[test]
    fn scales_that_do_not_fit_are_errors() {
        let plain = Encoding::Plain(DType::F32);
        let new =
            |of, shape: &[usize], encoding, n: usize| Scales::new(of, shape, encoding, &vec![0; n]).is_ok();
        assert!(new(FP8, &[3, 4], plain, 16) && new(FP8, &[3, 4], Encoding::E8M0, 4));
        assert!(!new(FP8, &[3, 4], plain, 15) && !new(FP8, &[4], plain, 4));
        assert!(!new(FP8, &[3, 4], Encoding::Plain(DType::I32), 16) && !new(FP8, &[3, 4], FP8, 4));
        assert!(!new(Encoding::Q8_0, &[3, 32], plain, 12));
        assert!(!new(FP8, &[usize::MAX, usize::MAX], plain, 16));
        let mut out = [0.0];
        assert_eq!(decode_f32(FP8, &[0], &mut out), Err(DecodeError::NeedsScales(FP8)));
    }

    #[test]
    fn nibbles_go_low_first() {
        let of = Encoding::Scaled { of: Coded::E2M1, rows: 1, columns: 4 };
        let scales = Scales::new(of, &[1, 4], Encoding::E8M0, &[128]).unwrap();
        let mut out = [0.0; 4];
        scales.decode(0, &[0x21, 0xF7], &mut out).unwrap();
        assert_eq!(out, [1.0, 2.0, 12.0, -12.0]);
        scales.decode(2, &[0x21], &mut out[..2]).unwrap();
        assert!(scales.decode(1, &[0x21], &mut out[..2]).is_err());
        assert!(scales.decode(0, &[0x21], &mut out[..3]).is_err());
    }
}
