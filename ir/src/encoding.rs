//! Storage encodings: how a tensor's bits lie in a checkpoint. What the bits mean is in [`crate::decode`].

use crate::dtype::DType;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How a tensor's bits are stored in a checkpoint. Blocks run along the innermost axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Encoding {
    /// Elements of one type, row-major, little-endian.
    Plain(DType),
    /// GGML Q4_0: 32 elements in 18 bytes.
    Q4_0,
    /// GGML Q4_1: 32 elements in 20 bytes.
    Q4_1,
    /// GGML Q5_0: 32 elements in 22 bytes.
    Q5_0,
    /// GGML Q5_1: 32 elements in 24 bytes.
    Q5_1,
    /// GGML Q8_0: 32 elements in 34 bytes.
    Q8_0,
    /// GGML Q2_K: 256 elements in 84 bytes.
    Q2K,
    /// GGML Q3_K: 256 elements in 110 bytes.
    Q3K,
    /// GGML Q4_K: 256 elements in 144 bytes.
    Q4K,
    /// GGML Q5_K: 256 elements in 176 bytes.
    Q5K,
    /// GGML Q6_K: 256 elements in 210 bytes.
    Q6K,
    /// GGML IQ4_NL: 32 elements in 18 bytes.
    Iq4Nl,
    /// GGML MXFP4: 32 elements in 17 bytes.
    Mxfp4,
    /// E8M0 of the OCP microscaling formats: a power of two in a byte (scales of [`Encoding::Scaled`]).
    E8M0,
    /// Small elements without their scales, which are another tensor: [`Encoding::scales`] says of what shape, and a
    /// `decode` node takes both.
    Scaled {
        /// Type of the elements.
        of: Coded,
        /// Rows (of the second axis from the end) that share a scale.
        rows: u32,
        /// Columns (of the innermost axis) that share a scale.
        columns: u32,
    },
}

/// Elements that need a scale to be a weight's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Coded {
    /// Float of 4 exponent and 3 mantissa bits without infinities (Micikevicius et al. 2022), a byte each.
    E4M3,
    /// Float of 2 exponent bits and a mantissa bit (OCP), two in a byte, the first in the low nibble.
    E2M1,
}

impl Coded {
    /// (elements, bytes) of the smallest run of whole bytes.
    fn unit(self) -> (usize, usize) {
        match self {
            Coded::E4M3 => (1, 1),
            Coded::E2M1 => (2, 1),
        }
    }

    /// Lower-case name, as printed and parsed.
    fn name(self) -> &'static str {
        match self {
            Coded::E4M3 => "e4m3",
            Coded::E2M1 => "e2m1",
        }
    }
}

impl Encoding {
    /// The encodings of GGML blocks and E8M0: those with a fixed name besides the plain ones.
    pub const BLOCKS: [Encoding; 13] = [
        Encoding::Q4_0,
        Encoding::Q4_1,
        Encoding::Q5_0,
        Encoding::Q5_1,
        Encoding::Q8_0,
        Encoding::Q2K,
        Encoding::Q3K,
        Encoding::Q4K,
        Encoding::Q5K,
        Encoding::Q6K,
        Encoding::Iq4Nl,
        Encoding::Mxfp4,
        Encoding::E8M0,
    ];

    /// (elements, bytes) of one block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Encoding::Plain(d) => (1, d.size()),
            Encoding::Q4_0 => (32, 18),
            Encoding::Q4_1 => (32, 20),
            Encoding::Q5_0 => (32, 22),
            Encoding::Q5_1 => (32, 24),
            Encoding::Q8_0 => (32, 34),
            Encoding::Q2K => (256, 84),
            Encoding::Q3K => (256, 110),
            Encoding::Q4K => (256, 144),
            Encoding::Q5K => (256, 176),
            Encoding::Q6K => (256, 210),
            Encoding::Iq4Nl => (32, 18),
            Encoding::Mxfp4 => (32, 17),
            Encoding::E8M0 => (1, 1),
            Encoding::Scaled { of, .. } => of.unit(),
        }
    }

    /// Type that decoding gives: the stored type, or f32 for all others.
    pub fn value_type(self) -> DType {
        match self {
            Encoding::Plain(d) => d,
            _ => DType::F32,
        }
    }

    /// Bytes that `elements` take; `None` when they do not fill whole blocks or overflow.
    pub fn bytes(self, elements: usize) -> Option<usize> {
        let (n, b) = self.block();
        if elements.is_multiple_of(n) { (elements / n).checked_mul(b) } else { None }
    }

    /// For [`Encoding::Scaled`], the shape of the tensor of scales of a tensor of this shape (outermost first): one for
    /// each block of rows and columns, the last of which may be cut short. `None` for other encodings, and for shapes
    /// without two axes.
    pub fn scales(self, shape: &[usize]) -> Option<Vec<usize>> {
        let (Encoding::Scaled { rows, columns, .. }, [outer @ .., r, c]) = (self, shape) else { return None };
        if rows == 0 || columns == 0 {
            return None;
        }
        let mut out = outer.to_vec();
        out.extend([r.div_ceil(rows as usize), c.div_ceil(columns as usize)]);
        Some(out)
    }

    /// Name, as printed and parsed: that of the type or block, `e4m3_128x128` for scaled elements.
    pub fn parse(name: &str) -> Option<Encoding> {
        let fixed = Encoding::BLOCKS.into_iter().find(|e| e.fixed_name() == Some(name));
        fixed.or_else(|| DType::parse(name).map(Encoding::Plain)).or_else(|| {
            let (of, sizes) = name.split_once('_')?;
            let of = [Coded::E4M3, Coded::E2M1].into_iter().find(|c| c.name() == of)?;
            let (rows, columns) = sizes.split_once('x')?;
            let size = |text: &str| text.parse().ok().filter(|&n: &u32| n > 0 && n.to_string() == text);
            Some(Encoding::Scaled { of, rows: size(rows)?, columns: size(columns)? })
        })
    }

    fn fixed_name(self) -> Option<&'static str> {
        Some(match self {
            Encoding::Plain(d) => d.name(),
            Encoding::Q4_0 => "q4_0",
            Encoding::Q4_1 => "q4_1",
            Encoding::Q5_0 => "q5_0",
            Encoding::Q5_1 => "q5_1",
            Encoding::Q8_0 => "q8_0",
            Encoding::Q2K => "q2_k",
            Encoding::Q3K => "q3_k",
            Encoding::Q4K => "q4_k",
            Encoding::Q5K => "q5_k",
            Encoding::Q6K => "q6_k",
            Encoding::Iq4Nl => "iq4_nl",
            Encoding::Mxfp4 => "mxfp4",
            Encoding::E8M0 => "e8m0",
            Encoding::Scaled { .. } => return None,
        })
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Encoding::Scaled { of, rows, columns } => write!(f, "{}_{rows}x{columns}", of.name()),
            other => f.write_str(other.fixed_name().unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        let scaled = |of, rows, columns| Encoding::Scaled { of, rows, columns };
        let all = DType::ALL.into_iter().map(Encoding::Plain).chain(Encoding::BLOCKS);
        for e in all.chain([scaled(Coded::E4M3, 128, 64), scaled(Coded::E2M1, 1, 32)]) {
            assert_eq!(Encoding::parse(&e.to_string()), Some(e), "{e}");
        }
        for bad in ["q4_2", "e4m3", "e4m3_0x1", "e4m3_01x1", "e4m3_1", "e5m2_1x1", "e4m3_1x99999999999", ""] {
            assert_eq!(Encoding::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn shapes_of_scales() {
        let e = Encoding::Scaled { of: Coded::E4M3, rows: 128, columns: 128 };
        assert_eq!(e.scales(&[3, 576, 7168]), Some(vec![3, 5, 56]));
        assert_eq!(e.scales(&[0, 1]), Some(vec![0, 1]));
        assert_eq!((e.scales(&[5]), Encoding::Q4_0.scales(&[32, 32])), (None, None));
    }
}
