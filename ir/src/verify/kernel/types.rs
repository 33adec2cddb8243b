//! Types of kernel-IR expressions.

use crate::dtype::DType;
use crate::kernel::{BinaryOp, CompareOp, Const, Expr, Kernel, ParamKind, UnaryOp};

/// An expression whose parts do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TypeError(pub String);

fn fail<T>(message: impl Into<String>) -> Result<T, TypeError> {
    Err(TypeError(message.into()))
}

fn expect(kernel: &Kernel, e: &Expr, want: DType, role: &str) -> Result<(), TypeError> {
    let got = expr_type(kernel, e)?;
    if got == want { Ok(()) } else { fail(format!("{role} is {got}, must be {want}")) }
}

/// Whether values of the type can index an array.
pub fn is_index(dtype: DType) -> bool {
    is_integer(dtype)
}

fn is_integer(dtype: DType) -> bool {
    match dtype {
        DType::I32 | DType::U32 | DType::I64 => true,
        DType::F32 | DType::F16 | DType::BF16 | DType::Bool => false,
    }
}

fn is_arithmetic(dtype: DType) -> bool {
    is_integer(dtype) || dtype == DType::F32
}

fn is_word(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::I32 | DType::U32)
}

/// Checks that an expression is an index (i32, u32 or i64).
pub fn index_type(kernel: &Kernel, e: &Expr) -> Result<(), TypeError> {
    let got = expr_type(kernel, e)?;
    if is_index(got) { Ok(()) } else { fail(format!("index is {got}, must be an integer")) }
}

/// Type of an expression, or why it has none.
pub fn expr_type(kernel: &Kernel, e: &Expr) -> Result<DType, TypeError> {
    match e {
        Expr::Const(c) => Ok(match c {
            Const::F32(_) => DType::F32,
            Const::I32(_) => DType::I32,
            Const::U32(_) => DType::U32,
            Const::I64(_) => DType::I64,
            Const::Bool(_) => DType::Bool,
        }),
        Expr::Var(v) => match kernel.var(*v) {
            None => fail(format!("no variable {v}")),
            Some(var) if var.len.is_some() => fail(format!("array `{}` used as a value", var.name)),
            Some(var) => Ok(var.dtype),
        },
        Expr::Elem(v, index) => {
            index_type(kernel, index)?;
            match kernel.var(*v) {
                None => fail(format!("no variable {v}")),
                Some(var) if var.len.is_none() => fail(format!("scalar `{}` is indexed", var.name)),
                Some(var) => Ok(var.dtype),
            }
        }
        Expr::Param(p) => match kernel.params.get(p.index()).map(|p| p.kind) {
            None => fail(format!("no parameter {p}")),
            Some(ParamKind::Scalar(dtype)) => Ok(dtype),
            Some(ParamKind::Pointer { .. }) => fail(format!("pointer {p} used as a value")),
            Some(ParamKind::Matrix { .. }) => fail(format!("matrix {p} used as a value")),
            Some(ParamKind::Condition) => fail(format!("condition {p} used as a value")),
        },
        Expr::ThreadIdx | Expr::BlockIdx(_) | Expr::GridDim(_) => Ok(DType::I32),
        Expr::Unary(op, a) => {
            let t = expr_type(kernel, a)?;
            let fits = match op {
                UnaryOp::Neg => matches!(t, DType::F32 | DType::I32 | DType::I64),
                UnaryOp::Not => t == DType::Bool,
                UnaryOp::BitNot => t == DType::U32,
            };
            if fits { Ok(t) } else { fail(format!("{op:?} of {t}")) }
        }
        Expr::Binary(op, a, b) => {
            let (t, u) = (expr_type(kernel, a)?, expr_type(kernel, b)?);
            let fits = match op {
                BinaryOp::Add
                | BinaryOp::Sub
                | BinaryOp::Mul
                | BinaryOp::Div
                | BinaryOp::Min
                | BinaryOp::Max => is_arithmetic(t),
                BinaryOp::Rem | BinaryOp::Xor | BinaryOp::Shl | BinaryOp::Shr => is_integer(t),
                BinaryOp::And | BinaryOp::Or => is_integer(t) || t == DType::Bool,
                BinaryOp::MulHi => t == DType::U32,
            };
            if fits && t == u { Ok(t) } else { fail(format!("{op:?} of {t} and {u}")) }
        }
        Expr::Compare(op, a, b) => {
            let (t, u) = (expr_type(kernel, a)?, expr_type(kernel, b)?);
            let fits = match op {
                CompareOp::Eq | CompareOp::Ne => is_arithmetic(t) || t == DType::Bool,
                CompareOp::Lt | CompareOp::Le | CompareOp::Gt | CompareOp::Ge => is_arithmetic(t),
            };
            if fits && t == u { Ok(DType::Bool) } else { fail(format!("{op:?} of {t} and {u}")) }
        }
        Expr::Select(c, a, b) => {
            expect(kernel, c, DType::Bool, "condition of a select")?;
            let (t, u) = (expr_type(kernel, a)?, expr_type(kernel, b)?);
            if t == u { Ok(t) } else { fail(format!("select between {t} and {u}")) }
        }
        Expr::Cast(to, a) => expr_type(kernel, a).map(|_| *to),
        Expr::Bitcast(to, a) => {
            let t = expr_type(kernel, a)?;
            if is_word(t) && is_word(*to) { Ok(*to) } else { fail(format!("bitcast of {t} to {to}")) }
        }
        Expr::Math(f, args) => {
            if args.len() != f.arity() {
                return fail(format!("{f:?} of {} arguments, takes {}", args.len(), f.arity()));
            }
            for a in args {
                expect(kernel, a, DType::F32, "argument of a math function")?;
            }
            Ok(DType::F32)
        }
        Expr::Load(mem, index) => {
            index_type(kernel, index)?;
            kernel.mem_dtype(*mem).map_or_else(|| fail(format!("no array {mem:?}")), Ok)
        }
        Expr::Shuffle(_, value, lane) => {
            let (t, l) = (expr_type(kernel, value)?, expr_type(kernel, lane)?);
            match l {
                DType::I32 | DType::U32 if is_word(t) => Ok(t),
                DType::I32 | DType::U32 => fail(format!("shuffle of {t}, must be 32 bits")),
                DType::F32 | DType::F16 | DType::BF16 | DType::I64 | DType::Bool => {
                    fail(format!("lane of a shuffle is {l}, must be i32 or u32"))
                }
            }
        }
        Expr::Pack2(to, a, b) => {
            expect(kernel, a, DType::F32, "first half of a pack")?;
            expect(kernel, b, DType::F32, "second half of a pack")?;
            if to.is_half() { Ok(DType::U32) } else { fail(format!("pack into pairs of {to}")) }
        }
    }
}
