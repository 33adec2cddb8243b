//! The number types the reference computes in, and when it rounds.

use crate::dtype::DType;
use half::{bf16, f16};
use std::fmt::Debug;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// In what precision a graph or a plan is interpreted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// f64 throughout: the oracle. Stored types round nothing.
    F64,
    /// f32 throughout. Stored types round nothing, casts between floats are no-ops.
    F32,
    /// f32, and the result of every op (of every store, in a plan) is rounded to its stored type.
    Rounded,
}

/// A floating-point number type that the reference computes in: `f32` or `f64`.
pub trait Real:
    Copy
    + Default
    + Debug
    + PartialOrd
    + Send
    + Sync
    + 'static
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + ndarray::LinalgScalar
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// −∞.
    const NEG_INFINITY: Self;
    /// Whether this type computes at that precision.
    fn serves(precision: Precision) -> bool;
    /// Nearest number of this type.
    fn from_f64(x: f64) -> Self;
    /// The same number.
    fn from_f32(x: f32) -> Self;
    /// The same number.
    fn to_f64(self) -> f64;
    /// Nearest f32.
    fn to_f32(self) -> f32;
    /// Takes f32 elements over, without a copy where the type is f32.
    fn from_f32s(values: Vec<f32>) -> Vec<Self>;
    /// Whether it is NaN.
    fn is_nan(self) -> bool;
    /// eˣ.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// √x.
    fn sqrt(self) -> Self;
    /// Sine.
    fn sin(self) -> Self;
    /// Cosine.
    fn cos(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// Error function.
    fn erf(self) -> Self;
    /// |x|.
    fn abs(self) -> Self;
    /// xʸ.
    fn pow(self, y: Self) -> Self;
    /// Nearest number that is stored in this type, ties to even; the same for types that are not floats.
    fn round_to(self, dtype: DType) -> Self;
    /// Towards zero, clamped to the range of i32; NaN gives 0.
    fn to_i32(self) -> i32;
    /// Towards zero, clamped to the range of u32; NaN gives 0.
    fn to_u32(self) -> u32;

    /// The larger; NaN if either is.
    fn larger(self, other: Self) -> Self {
        if self.is_nan() || self > other { self } else { other }
    }

    /// The smaller; NaN if either is.
    fn smaller(self, other: Self) -> Self {
        if self.is_nan() || self < other { self } else { other }
    }
}

macro_rules! real {
    ($ty:ident, $erf:path, $precisions:pat) => {
        fn serves(precision: Precision) -> bool {
            matches!(precision, $precisions)
        }
        fn from_f64(x: f64) -> Self {
            x as $ty
        }
        fn from_f32(x: f32) -> Self {
            $ty::from(x)
        }
        fn to_f64(self) -> f64 {
            f64::from(self)
        }
        fn to_f32(self) -> f32 {
            self as f32
        }
        fn is_nan(self) -> bool {
            $ty::is_nan(self)
        }
        fn exp(self) -> Self {
            $ty::exp(self)
        }
        fn ln(self) -> Self {
            $ty::ln(self)
        }
        fn sqrt(self) -> Self {
            $ty::sqrt(self)
        }
        fn sin(self) -> Self {
            $ty::sin(self)
        }
        fn cos(self) -> Self {
            $ty::cos(self)
        }
        fn tanh(self) -> Self {
            $ty::tanh(self)
        }
        fn erf(self) -> Self {
            $erf(self)
        }
        fn abs(self) -> Self {
            $ty::abs(self)
        }
        fn pow(self, y: Self) -> Self {
            $ty::powf(self, y)
        }
        fn to_i32(self) -> i32 {
            self as i32
        }
        fn to_u32(self) -> u32 {
            self as u32
        }
    };
}

impl Real for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
    const NEG_INFINITY: f32 = f32::NEG_INFINITY;
    real!(f32, libm::erff, Precision::F32 | Precision::Rounded);

    fn from_f32s(values: Vec<f32>) -> Vec<f32> {
        values
    }

    fn round_to(self, dtype: DType) -> f32 {
        match dtype {
            DType::F16 => f16::from_f32(self).to_f32(),
            DType::BF16 => bf16::from_f32(self).to_f32(),
            DType::F32 | DType::I64 | DType::I32 | DType::U32 | DType::Bool => self,
        }
    }
}

impl Real for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
    const NEG_INFINITY: f64 = f64::NEG_INFINITY;
    real!(f64, libm::erf, Precision::F64);

    fn from_f32s(values: Vec<f32>) -> Vec<f64> {
        values.into_iter().map(f64::from).collect()
    }

    fn round_to(self, dtype: DType) -> f64 {
        match dtype {
            DType::F16 => f16::from_f64(self).to_f64(),
            DType::BF16 => bf16::from_f64(self).to_f64(),
            DType::F32 => f64::from(self as f32),
            DType::I64 | DType::I32 | DType::U32 | DType::Bool => self,
        }
    }
}
