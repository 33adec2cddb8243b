//! Values as raw bits, and arithmetic on them.

use super::fault::FaultKind;
use half::{bf16, f16};
use weft_ir::dtype::DType;
use weft_ir::kernel::{BinaryOp, CompareOp, Const, MathFn, UnaryOp};

/// Bits of a literal.
pub(super) fn literal(c: Const) -> u64 {
    match c {
        Const::F32(v) => u64::from(v.to_bits()),
        Const::I32(v) => from_i32(v),
        Const::U32(v) => u64::from(v),
        Const::I64(v) => v as u64,
        Const::Bool(v) => u64::from(v),
    }
}

pub(super) fn f32_of(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn from_f32(v: f32) -> u64 {
    u64::from(v.to_bits())
}

fn i32_of(bits: u64) -> i32 {
    bits as u32 as i32
}

fn from_i32(v: i32) -> u64 {
    u64::from(v as u32)
}

/// Value of an integer of a type.
pub(super) fn int_of(dtype: DType, bits: u64) -> i64 {
    match dtype {
        DType::I32 => i64::from(i32_of(bits)),
        DType::I64 => bits as i64,
        DType::U32 => i64::from(bits as u32),
        DType::Bool => i64::from(bits & 1 != 0),
        DType::F32 | DType::F16 | DType::BF16 => as_f32(dtype, bits) as i64,
    }
}

/// Value of a float of a type, or an integer rounded.
pub(super) fn as_f32(dtype: DType, bits: u64) -> f32 {
    match dtype {
        DType::F32 => f32_of(bits),
        DType::F16 => f16::from_bits(bits as u16).to_f32(),
        DType::BF16 => bf16::from_bits(bits as u16).to_f32(),
        DType::I64 => bits as i64 as f32,
        DType::I32 => i32_of(bits) as f32,
        DType::U32 => bits as u32 as f32,
        DType::Bool => f32::from(u8::from(bits & 1 != 0)),
    }
}

/// Conversion between types: rounds to nearest even, truncates towards zero into integers.
pub(super) fn cast(from: DType, to: DType, bits: u64) -> u64 {
    if from == to {
        return bits;
    }
    match to {
        DType::F32 => from_f32(as_f32(from, bits)),
        DType::F16 => u64::from(f16::from_f32(as_f32(from, bits)).to_bits()),
        DType::BF16 => u64::from(bf16::from_f32(as_f32(from, bits)).to_bits()),
        DType::I64 => int_of(from, bits) as u64,
        DType::I32 if from.is_float() => from_i32(as_f32(from, bits) as i32),
        DType::U32 if from.is_float() => u64::from(as_f32(from, bits) as u32),
        DType::I32 | DType::U32 => u64::from(int_of(from, bits) as u32),
        DType::Bool if from.is_float() => u64::from(as_f32(from, bits) != 0.0),
        DType::Bool => u64::from(int_of(from, bits) != 0),
    }
}

/// Two f32 rounded to a 16-bit type, the first in the low half.
pub(super) fn pack2(to: DType, low: u64, high: u64) -> u64 {
    cast(DType::F32, to, low) | (cast(DType::F32, to, high) << 16)
}

/// Unary operator.
pub(super) fn unary(op: UnaryOp, dtype: DType, a: u64) -> Result<u64, FaultKind> {
    let overflow = FaultKind::Overflow("negation");
    match op {
        UnaryOp::Neg => match dtype {
            DType::I32 => i32_of(a).checked_neg().map(from_i32).ok_or(overflow),
            DType::I64 => (a as i64).checked_neg().map(|v| v as u64).ok_or(overflow),
            DType::F32 | DType::F16 | DType::BF16 | DType::U32 | DType::Bool => Ok(from_f32(-f32_of(a))),
        },
        UnaryOp::Not => Ok(u64::from(a & 1 == 0)),
        UnaryOp::BitNot => Ok(u64::from(!(a as u32))),
    }
}

/// Binary operator on values of one type.
pub(super) fn binary(op: BinaryOp, dtype: DType, a: u64, b: u64) -> Result<u64, FaultKind> {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => Ok(from_f32(floats(op, f32_of(a), f32_of(b)))),
        DType::I32 => {
            let v = signed(op, i64::from(i32_of(a)), i64::from(i32_of(b)), 32)?;
            i32::try_from(v).map(from_i32).map_err(|_| FaultKind::Overflow(operator(op)))
        }
        DType::I64 => signed(op, a as i64, b as i64, 64).map(|v| v as u64),
        DType::U32 | DType::Bool => unsigned(op, a as u32, b as u32).map(u64::from),
    }
}

fn floats(op: BinaryOp, a: f32, b: f32) -> f32 {
    match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        BinaryOp::Min => a.min(b),
        BinaryOp::Max => a.max(b),
        BinaryOp::Rem
        | BinaryOp::And
        | BinaryOp::Or
        | BinaryOp::Xor
        | BinaryOp::Shl
        | BinaryOp::Shr
        | BinaryOp::MulHi => f32::NAN,
    }
}

fn operator(op: BinaryOp) -> &'static str {
    match op {
        BinaryOp::Add => "addition",
        BinaryOp::Sub => "subtraction",
        BinaryOp::Mul | BinaryOp::MulHi => "multiplication",
        BinaryOp::Div | BinaryOp::Rem => "division",
        BinaryOp::Shl | BinaryOp::Shr => "shift",
        BinaryOp::Min | BinaryOp::Max => "comparison",
        BinaryOp::And | BinaryOp::Or | BinaryOp::Xor => "bit operation",
    }
}

fn signed(op: BinaryOp, a: i64, b: i64, width: i64) -> Result<i64, FaultKind> {
    let overflow = FaultKind::Overflow(operator(op));
    let shift = u32::try_from(b).ok().filter(|s| i64::from(*s) < width);
    match op {
        BinaryOp::Add => a.checked_add(b).ok_or(overflow),
        BinaryOp::Sub => a.checked_sub(b).ok_or(overflow),
        BinaryOp::Mul => a.checked_mul(b).ok_or(overflow),
        BinaryOp::Div | BinaryOp::Rem if b == 0 => Err(FaultKind::DivisionByZero),
        BinaryOp::Div => a.checked_div(b).ok_or(overflow),
        BinaryOp::Rem => a.checked_rem(b).ok_or(overflow),
        BinaryOp::Min => Ok(a.min(b)),
        BinaryOp::Max => Ok(a.max(b)),
        BinaryOp::And => Ok(a & b),
        BinaryOp::Or => Ok(a | b),
        BinaryOp::Xor => Ok(a ^ b),
        // Bits that leave an i32 are lost (C++17: the result must be representable).
        BinaryOp::Shl => shift.and_then(|s| a.checked_mul(1i64.checked_shl(s)?)).ok_or(overflow),
        BinaryOp::Shr => shift.map(|s| a >> s).ok_or(overflow),
        BinaryOp::MulHi => Err(overflow),
    }
}

fn unsigned(op: BinaryOp, a: u32, b: u32) -> Result<u32, FaultKind> {
    let overflow = FaultKind::Overflow(operator(op));
    match op {
        BinaryOp::Add => Ok(a.wrapping_add(b)),
        BinaryOp::Sub => Ok(a.wrapping_sub(b)),
        BinaryOp::Mul => Ok(a.wrapping_mul(b)),
        BinaryOp::Div => a.checked_div(b).ok_or(FaultKind::DivisionByZero),
        BinaryOp::Rem => a.checked_rem(b).ok_or(FaultKind::DivisionByZero),
        BinaryOp::Min => Ok(a.min(b)),
        BinaryOp::Max => Ok(a.max(b)),
        BinaryOp::And => Ok(a & b),
        BinaryOp::Or => Ok(a | b),
        BinaryOp::Xor => Ok(a ^ b),
        BinaryOp::Shl => a.checked_shl(b).ok_or(overflow),
        BinaryOp::Shr => a.checked_shr(b).ok_or(overflow),
        BinaryOp::MulHi => Ok(((u64::from(a) * u64::from(b)) >> 32) as u32),
    }
}

/// Comparison of values of one type.
pub(super) fn compare(op: CompareOp, dtype: DType, a: u64, b: u64) -> bool {
    fn order<T: PartialOrd>(op: CompareOp, a: T, b: T) -> bool {
        match op {
            CompareOp::Eq => a == b,
            CompareOp::Ne => a != b,
            CompareOp::Lt => a < b,
            CompareOp::Le => a <= b,
            CompareOp::Gt => a > b,
            CompareOp::Ge => a >= b,
        }
    }
    if dtype.is_float() {
        order(op, as_f32(dtype, a), as_f32(dtype, b))
    } else {
        order(op, int_of(dtype, a), int_of(dtype, b))
    }
}

/// Math function; `args` beyond its arity are ignored.
pub(super) fn math(f: MathFn, args: [f32; 3]) -> f32 {
    let [x, y, z] = args;
    match f {
        MathFn::Exp => x.exp(),
        MathFn::Exp2 => x.exp2(),
        MathFn::Exp2Approx => match x.exp2() {
            y if y < f32::MIN_POSITIVE => 0.0,
            y => y,
        },
        MathFn::Log => x.ln(),
        MathFn::Sqrt => x.sqrt(),
        MathFn::Rsqrt => 1.0 / x.sqrt(),
        MathFn::Sin => x.sin(),
        MathFn::Cos => x.cos(),
        MathFn::Tanh => x.tanh(),
        MathFn::Erf => erf(x),
        MathFn::Abs => x.abs(),
        MathFn::Pow => x.powf(y),
        MathFn::Fma => x.mul_add(y, z),
    }
}

/// Error function: its Taylor series in f64, exact to f32 where f32 tells it from ±1.
fn erf(x: f32) -> f32 {
    if x.is_nan() {
        return x;
    }
    if x.abs() >= 4.0 {
        return 1f32.copysign(x);
    }
    let x = f64::from(x);
    let (mut power, mut sum) = (x, x);
    for n in 1..80 {
        let n = f64::from(n);
        power *= -x * x / n;
        sum += power / (2.0 * n + 1.0);
    }
    (sum * std::f64::consts::FRAC_2_SQRT_PI) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_matches_known_values() {
        for (x, y) in
            [(0.0, 0.0), (0.5, 0.520_499_9), (1.0, 0.842_700_8), (2.0, 0.995_322_3), (3.5, 0.999_999_3)]
        {
            assert!((erf(x) - y).abs() < 1e-7, "erf({x}) = {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
    }

    #[test]
    fn signed_overflow_and_division_are_faults() {
        let max = from_i32(i32::MAX);
        assert_eq!(binary(BinaryOp::Add, DType::I32, max, 1), Err(FaultKind::Overflow("addition")));
        assert_eq!(binary(BinaryOp::Rem, DType::U32, 3, 0), Err(FaultKind::DivisionByZero));
        assert_eq!(binary(BinaryOp::MulHi, DType::U32, 0x8000_0000, 6), Ok(3));
    }

    #[test]
    fn casts_round_to_even_and_truncate() {
        let f = |v: f32| u64::from(v.to_bits());
        assert_eq!(cast(DType::F32, DType::BF16, f(1.003_906_3)), 0x3f80);
        assert_eq!(cast(DType::F32, DType::I32, f(-1.9)) as u32 as i32, -1);
        assert_eq!(cast(DType::I64, DType::I32, -5i64 as u64) as u32 as i32, -5);
    }
}
