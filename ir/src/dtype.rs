//! Element types and storage encodings.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Type of one element of a value, in memory and in arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    BF16,
    /// Signed 64-bit integer (token ids in files).
    I64,
    /// Signed 32-bit integer (indices, positions, slots).
    I32,
    /// Unsigned 32-bit integer (random bits, keys).
    U32,
    /// Truth value, one byte.
    Bool,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::I64 => 8,
            DType::Bool => 1,
        }
    }

    /// Whether this is a floating-point type.
    pub fn is_float(self) -> bool {
        match self {
            DType::F32 | DType::F16 | DType::BF16 => true,
            DType::I64 | DType::I32 | DType::U32 | DType::Bool => false,
        }
    }

    /// Whether this is a 16-bit floating-point type (what tensor cores take).
    pub fn is_half(self) -> bool {
        matches!(self, DType::F16 | DType::BF16)
    }

    /// Lower-case name, as printed and parsed.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I64 => "i64",
            DType::I32 => "i32",
            DType::U32 => "u32",
            DType::Bool => "bool",
        }
    }

    /// All types, in declaration order.
    pub const ALL: [DType; 7] =
        [DType::F32, DType::F16, DType::BF16, DType::I64, DType::I32, DType::U32, DType::Bool];

    /// The type of this name.
    pub fn parse(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.name() == name)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a tensor's bits are stored in a checkpoint. Blocks run along the innermost axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Encoding {
    /// Elements of one type, row-major, little-endian.
    Plain(DType),
    /// GGML Q4_0: 32 elements in 18 bytes: f16 scale d, 16 bytes of nibbles; value d·(q−8).
    Q4_0,
    /// GGML Q4_1: 32 elements in 20 bytes: f16 scale d, f16 minimum m, nibbles; value d·q+m.
    Q4_1,
    /// GGML Q8_0: 32 elements in 34 bytes: f16 scale d, 32 signed bytes; value d·q.
    Q8_0,
}

impl Encoding {
    /// (elements, bytes) of one block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Encoding::Plain(d) => (1, d.size()),
            Encoding::Q4_0 => (32, 18),
            Encoding::Q4_1 => (32, 20),
            Encoding::Q8_0 => (32, 34),
        }
    }

    /// Type that decoding gives: the stored type, or f32 for blocks.
    pub fn value_type(self) -> DType {
        match self {
            Encoding::Plain(d) => d,
            Encoding::Q4_0 | Encoding::Q4_1 | Encoding::Q8_0 => DType::F32,
        }
    }

    /// Bytes that `elements` take; `None` when they do not fill whole blocks or overflow.
    pub fn bytes(self, elements: usize) -> Option<usize> {
        let (n, b) = self.block();
        if elements.is_multiple_of(n) { (elements / n).checked_mul(b) } else { None }
    }

    /// Name, as printed and parsed.
    pub fn name(self) -> &'static str {
        match self {
            Encoding::Plain(d) => d.name(),
            Encoding::Q4_0 => "q4_0",
            Encoding::Q4_1 => "q4_1",
            Encoding::Q8_0 => "q8_0",
        }
    }

    /// The encoding of this name.
    pub fn parse(name: &str) -> Option<Encoding> {
        [Encoding::Q4_0, Encoding::Q4_1, Encoding::Q8_0]
            .into_iter()
            .find(|e| e.name() == name)
            .or_else(|| DType::parse(name).map(Encoding::Plain))
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
