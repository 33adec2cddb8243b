//! Scalar operators, shared by the graph's elementwise ops and the plan's fused expressions.
//!
//! Arithmetic on floats is in f32 (f64 in the oracle); a 16-bit type is a way of storing.

use serde::{Deserialize, Serialize};

/// Unary elementwise operators on floats (`Not` on bool).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Unary {
    /// −x.
    Neg,
    /// eˣ.
    Exp,
    /// Natural logarithm.
    Log,
    /// √x.
    Sqrt,
    /// 1/√x.
    Rsqrt,
    /// 1/x.
    Recip,
    /// Sine, radians.
    Sin,
    /// Cosine, radians.
    Cos,
    /// Hyperbolic tangent.
    Tanh,
    /// Error function.
    Erf,
    /// 1/(1+e⁻ˣ).
    Sigmoid,
    /// x·sigmoid(x) (Elfwing et al. 2017).
    Silu,
    /// |x|.
    Abs,
    /// Logical not.
    Not,
}

/// Binary elementwise operators; both operands of one type (floats or integers).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Binary {
    /// Sum.
    Add,
    /// Difference.
    Sub,
    /// Product.
    Mul,
    /// Quotient; integers truncate.
    Div,
    /// Remainder of non-negative integers.
    Rem,
    /// Smaller.
    Min,
    /// Larger.
    Max,
    /// xʸ (floats).
    Pow,
    /// Logical and (bool).
    And,
    /// Logical or (bool).
    Or,
}

/// Comparisons; the result is bool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Compare {
    /// Equal.
    Eq,
    /// Less.
    Lt,
    /// Less or equal.
    Le,
}

/// Reductions along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Reduce {
    /// Sum.
    Sum,
    /// Largest.
    Max,
    /// Sum over the number of elements.
    Mean,
}

macro_rules! names {
    ($ty:ident { $($variant:ident => $name:literal),* $(,)? }) => {
        impl $ty {
            /// All variants, in declaration order.
            pub const ALL: &'static [$ty] = &[$($ty::$variant),*];

            /// Lower-case name, as printed and parsed.
            pub fn name(self) -> &'static str {
                match self { $($ty::$variant => $name),* }
            }

            /// The variant of this name.
            pub fn parse(name: &str) -> Option<$ty> {
                $ty::ALL.iter().copied().find(|v| v.name() == name)
            }
        }
    };
}
names!(Unary {
    Neg => "neg", Exp => "exp", Log => "log", Sqrt => "sqrt", Rsqrt => "rsqrt", Recip => "recip", Sin => "sin",
    Cos => "cos", Tanh => "tanh", Erf => "erf", Sigmoid => "sigmoid", Silu => "silu", Abs => "abs", Not => "not",
});
names!(Binary {
    Add => "add", Sub => "sub", Mul => "mul", Div => "div", Rem => "rem", Min => "min", Max => "max", Pow => "pow",
    And => "and", Or => "or",
});
names!(Compare { Eq => "eq", Lt => "lt", Le => "le" });
names!(Reduce { Sum => "sum", Max => "reduce_max", Mean => "mean" });

impl Unary {
    /// Whether evaluating it costs so much more than a load that it should not be done twice.
    pub fn is_costly(self) -> bool {
        match self {
            Unary::Neg | Unary::Abs | Unary::Not | Unary::Recip | Unary::Sqrt | Unary::Rsqrt => false,
            Unary::Exp
            | Unary::Log
            | Unary::Sin
            | Unary::Cos
            | Unary::Tanh
            | Unary::Erf
            | Unary::Sigmoid
            | Unary::Silu => true,
        }
    }
}
