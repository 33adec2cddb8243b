//! Values of integer literals.

use crate::kernel::{BinaryOp, Const, Expr, UnaryOp};

/// Value of an integer expression of literals.
pub(super) fn fold(e: &Expr) -> Option<i64> {
    match e {
        Expr::Const(Const::I32(v)) => Some(i64::from(*v)),
        Expr::Const(Const::U32(v)) => Some(i64::from(*v)),
        Expr::Const(Const::I64(v)) => Some(*v),
        Expr::Unary(UnaryOp::Neg, a) => fold(a)?.checked_neg(),
        Expr::Binary(op, a, b) => {
            let (a, b) = (fold(a)?, fold(b)?);
            match op {
                BinaryOp::Add => a.checked_add(b),
                BinaryOp::Sub => a.checked_sub(b),
                BinaryOp::Mul => a.checked_mul(b),
                BinaryOp::Div => a.checked_div(b),
                BinaryOp::Rem => a.checked_rem(b),
                BinaryOp::Min => Some(a.min(b)),
                BinaryOp::Max => Some(a.max(b)),
                BinaryOp::And
                | BinaryOp::Or
                | BinaryOp::Xor
                | BinaryOp::Shl
                | BinaryOp::Shr
                | BinaryOp::MulHi => None,
            }
        }
        Expr::Unary(UnaryOp::Not | UnaryOp::BitNot, _)
        | Expr::Const(Const::F32(_) | Const::Bool(_))
        | Expr::Var(_)
        | Expr::Elem(_, _)
        | Expr::Param(_)
        | Expr::ThreadIdx
        | Expr::BlockIdx(_)
        | Expr::GridDim(_)
        | Expr::Compare(_, _, _)
        | Expr::Select(_, _, _)
        | Expr::Cast(_, _)
        | Expr::Bitcast(_, _)
        | Expr::Math(_, _)
        | Expr::Load(_, _)
        | Expr::Shuffle(_, _, _)
        | Expr::Pack2(_, _, _) => None,
    }
}
