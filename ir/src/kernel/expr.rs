//! Expressions of kernel IR: pure but for loads and shuffles.

use super::Mem;
use crate::dtype::DType;
use crate::ids::{ParamId, VarId};
use serde::{Deserialize, Serialize};

/// A literal.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Const {
    /// `f32` literal (infinities allowed).
    F32(f32),
    /// `i32` literal.
    I32(i32),
    /// `u32` literal.
    U32(u32),
    /// `i64` literal.
    I64(i64),
    /// Truth value.
    Bool(bool),
}

/// Grid axis of a block index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Axis {
    /// Fastest.
    X,
    /// Second.
    Y,
    /// Third.
    Z,
}

/// Unary operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum UnaryOp {
    /// Arithmetic negation (f32, i32, i64).
    Neg,
    /// Logical not (bool).
    Not,
    /// Bitwise complement (u32).
    BitNot,
}

/// Binary operators; both operands and the result have one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BinaryOp {
    /// Sum.
    Add,
    /// Difference.
    Sub,
    /// Product (low half for integers).
    Mul,
    /// Quotient (integers truncate; operands are non-negative by construction).
    Div,
    /// Remainder (integers).
    Rem,
    /// Smaller (f32: `fminf`; integers).
    Min,
    /// Larger (f32: `fmaxf`; integers).
    Max,
    /// Bitwise or logical and (integers, bool).
    And,
    /// Bitwise or logical or (integers, bool).
    Or,
    /// Bitwise exclusive or (integers).
    Xor,
    /// Left shift (integers).
    Shl,
    /// Right shift, logical for u32, arithmetic for signed.
    Shr,
    /// High 32 bits of a u32 product (`__umulhi`).
    MulHi,
}

/// Comparisons; operands of one type, result bool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CompareOp {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// Less.
    Lt,
    /// Less or equal.
    Le,
    /// Greater.
    Gt,
    /// Greater or equal.
    Ge,
}

/// CUDA math functions on `f32`, in their accurate form unless the name says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MathFn {
    /// `expf(x)`.
    Exp,
    /// `exp2f(x)`.
    Exp2,
    /// `ex2.approx.ftz.f32`: 2ˣ within 2 units in the last place; subnormal results are 0 (PTX ISA, "ex2").
    Exp2Approx,
    /// `logf(x)`.
    Log,
    /// `sqrtf(x)`.
    Sqrt,
    /// `rsqrtf(x)`.
    Rsqrt,
    /// `sinf(x)`.
    Sin,
    /// `cosf(x)`.
    Cos,
    /// `tanhf(x)`.
    Tanh,
    /// `erff(x)`.
    Erf,
    /// `fabsf(x)`.
    Abs,
    /// `powf(x, y)`.
    Pow,
    /// `fmaf(x, y, z)`.
    Fma,
}

impl MathFn {
    /// Number of arguments.
    pub fn arity(self) -> usize {
        match self {
            MathFn::Exp
            | MathFn::Exp2
            | MathFn::Exp2Approx
            | MathFn::Log
            | MathFn::Sqrt
            | MathFn::Rsqrt
            | MathFn::Sin
            | MathFn::Cos
            | MathFn::Tanh
            | MathFn::Erf
            | MathFn::Abs => 1,
            MathFn::Pow => 2,
            MathFn::Fma => 3,
        }
    }
}

/// Lane selection of a warp shuffle (all 32 lanes take part).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ShuffleMode {
    /// From lane `own ^ operand` (`__shfl_xor_sync`).
    Xor,
    /// From lane `own + operand`, own value past the end (`__shfl_down_sync`).
    Down,
    /// From lane `own - operand`, own value before the start (`__shfl_up_sync`).
    Up,
    /// From lane `operand` (`__shfl_sync`).
    Index,
}

/// An expression. Its type follows from its parts (see `verify::kernel::expr_type`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Expr {
    /// A literal.
    Const(Const),
    /// A scalar variable.
    Var(VarId),
    /// An element of a register array.
    Elem(VarId, Box<Expr>),
    /// A scalar parameter.
    Param(ParamId),
    /// `threadIdx.x` as i32.
    ThreadIdx,
    /// `blockIdx.{x,y,z}` as i32.
    BlockIdx(Axis),
    /// `gridDim.{x,y,z}` as i32.
    GridDim(Axis),
    /// Unary operation.
    Unary(UnaryOp, Box<Expr>),
    /// Binary operation.
    Binary(BinaryOp, Box<Expr>, Box<Expr>),
    /// Comparison.
    Compare(CompareOp, Box<Expr>, Box<Expr>),
    /// `condition ? then : otherwise`; only the chosen side is evaluated.
    Select(Box<Expr>, Box<Expr>, Box<Expr>),
    /// Value conversion, round to nearest even into floats; float to integer truncates.
    Cast(DType, Box<Expr>),
    /// Same 32 bits as another type (f32, i32, u32).
    Bitcast(DType, Box<Expr>),
    /// Math function on f32.
    Math(MathFn, Vec<Expr>),
    /// One element of memory.
    Load(Mem, Box<Expr>),
    /// Warp shuffle of a 32-bit value; every lane of the warp must execute it.
    Shuffle(ShuffleMode, Box<Expr>, Box<Expr>),
    /// Two f32 rounded to a 16-bit type and packed in a u32, the first in the low half
    /// (`cvt.rn.{bf16x2,f16x2}.f32`).
    Pack2(DType, Box<Expr>, Box<Expr>),
}

impl Expr {
    /// Direct parts of this expression, in evaluation order.
    pub fn parts(&self) -> Vec<&Expr> {
        match self {
            Expr::Const(_)
            | Expr::Var(_)
            | Expr::Param(_)
            | Expr::ThreadIdx
            | Expr::BlockIdx(_)
            | Expr::GridDim(_) => Vec::new(),
            Expr::Elem(_, a)
            | Expr::Unary(_, a)
            | Expr::Cast(_, a)
            | Expr::Bitcast(_, a)
            | Expr::Load(_, a) => vec![a],
            Expr::Binary(_, a, b)
            | Expr::Compare(_, a, b)
            | Expr::Shuffle(_, a, b)
            | Expr::Pack2(_, a, b) => vec![a, b],
            Expr::Select(c, a, b) => vec![c, a, b],
            Expr::Math(_, args) => args.iter().collect(),
        }
    }

    /// Calls `f` on this expression and then on all its parts, outermost first.
    pub fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Expr)) {
        f(self);
        self.parts().into_iter().for_each(|p| p.visit(f));
    }
}
