//! Fused scalar expressions: what one element of a dispatch's result is.
//!
//! An expression is evaluated at a point of a domain; [`Scalar::Coord`] gives the point's coordinates,
//! which index arithmetic turns into indices of operands. Floats are computed in f32 whatever their
//! storage, so a chain that is fused rounds once, at its store.

use crate::dtype::DType;
use crate::ids::OperandId;
use crate::scalar::{Binary, Compare, Unary};
use crate::shape::Sym;
use serde::{Deserialize, Serialize};

/// A scalar expression. Equal ones are the same in every bit: 0 and −0 differ, a NaN equals itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Scalar {
    /// f32 literal.
    Float(f32),
    /// Integer literal (i32 arithmetic).
    Int(i64),
    /// Truth value.
    Bool(bool),
    /// Coordinate along an axis of the domain, i32.
    Coord(u8),
    /// Value of a symbol, i32.
    Dim(Sym),
    /// Element of an operand, one index for each of its axes. 16-bit floats are widened to f32.
    Load(OperandId, Vec<Scalar>),
    /// Unary operator.
    Unary(Unary, Box<Scalar>),
    /// Binary operator on two floats, two integers, or two truth values.
    Binary(Binary, Box<Scalar>, Box<Scalar>),
    /// Comparison.
    Compare(Compare, Box<Scalar>, Box<Scalar>),
    /// `condition ? a : b`; only the chosen side is evaluated (it may guard a load).
    Select(Box<Scalar>, Box<Scalar>, Box<Scalar>),
    /// Conversion between integer and float kinds. To a 16-bit float it rounds; what is stored so is rounded there
    /// anyway, and is not written as one.
    Cast(DType, Box<Scalar>),
    /// Result of a reduction stage of the same row: an earlier one of a loop; in a matmul's epilogue, any of
    /// its stages along k and any earlier one along n.
    Reduced(u8),
    /// Accumulator of the matmul (below its group), routed product (below its weights) or attention (0) whose
    /// epilogue this is, f32.
    Acc(u8),
    /// Element of the result of this earlier step, of the same row ([`super::Steps`]).
    Local(u8, Vec<Scalar>),
}

impl PartialEq for Scalar {
    fn eq(&self, other: &Scalar) -> bool {
        use Scalar::*;
        match (self, other) {
            (Float(a), Float(b)) => a.to_bits() == b.to_bits(),
            (Int(a), Int(b)) => a == b,
            (Bool(a), Bool(b)) => a == b,
            (Coord(a), Coord(b)) | (Reduced(a), Reduced(b)) | (Acc(a), Acc(b)) => a == b,
            (Dim(a), Dim(b)) => a == b,
            (Load(x, a), Load(y, b)) => x == y && a == b,
            (Local(x, a), Local(y, b)) => x == y && a == b,
            (Unary(f, a), Unary(g, b)) => f == g && a == b,
            (Cast(f, a), Cast(g, b)) => f == g && a == b,
            (Binary(f, a, c), Binary(g, b, d)) => f == g && a == b && c == d,
            (Compare(f, a, c), Compare(g, b, d)) => f == g && a == b && c == d,
            (Select(a, c, e), Select(b, d, f)) => a == b && c == d && e == f,
            (
                Float(_) | Int(_) | Bool(_) | Coord(_) | Reduced(_) | Acc(_) | Dim(_) | Load(..) | Local(..)
                | Unary(..) | Cast(..) | Binary(..) | Compare(..) | Select(..),
                _,
            ) => false,
        }
    }
}

impl Eq for Scalar {}

impl Scalar {
    /// Binary expression.
    pub fn binary(op: Binary, a: Scalar, b: Scalar) -> Scalar {
        Scalar::Binary(op, Box::new(a), Box::new(b))
    }

    /// Unary expression.
    pub fn unary(op: Unary, a: Scalar) -> Scalar {
        Scalar::Unary(op, Box::new(a))
    }

    /// Direct parts of an expression.
    pub fn children(&self) -> Vec<&Scalar> {
        match self {
            Scalar::Float(_)
            | Scalar::Int(_)
            | Scalar::Bool(_)
            | Scalar::Coord(_)
            | Scalar::Dim(_)
            | Scalar::Reduced(_)
            | Scalar::Acc(_) => Vec::new(),
            Scalar::Load(_, index) | Scalar::Local(_, index) => index.iter().collect(),
            Scalar::Unary(_, a) | Scalar::Cast(_, a) => vec![a],
            Scalar::Binary(_, a, b) | Scalar::Compare(_, a, b) => vec![a, b],
            Scalar::Select(c, a, b) => vec![c, a, b],
        }
    }

    /// The same expression with its direct parts replaced.
    pub fn map_children(&self, f: &mut dyn FnMut(&Scalar) -> Scalar) -> Scalar {
        match self {
            Scalar::Float(_)
            | Scalar::Int(_)
            | Scalar::Bool(_)
            | Scalar::Coord(_)
            | Scalar::Dim(_)
            | Scalar::Reduced(_)
            | Scalar::Acc(_) => self.clone(),
            Scalar::Load(o, index) => Scalar::Load(*o, index.iter().map(f).collect()),
            Scalar::Local(i, index) => Scalar::Local(*i, index.iter().map(f).collect()),
            Scalar::Unary(op, a) => Scalar::Unary(*op, Box::new(f(a))),
            Scalar::Cast(d, a) => Scalar::Cast(*d, Box::new(f(a))),
            Scalar::Binary(op, a, b) => Scalar::Binary(*op, Box::new(f(a)), Box::new(f(b))),
            Scalar::Compare(op, a, b) => Scalar::Compare(*op, Box::new(f(a)), Box::new(f(b))),
            Scalar::Select(c, a, b) => Scalar::Select(Box::new(f(c)), Box::new(f(a)), Box::new(f(b))),
        }
    }

    /// Visits the expression and all its parts, outermost first.
    pub fn visit(&self, f: &mut dyn FnMut(&Scalar)) {
        f(self);
        for c in self.children() {
            c.visit(f);
        }
    }

    /// Number of nodes.
    pub fn size(&self) -> usize {
        let mut n = 0;
        self.visit(&mut |_| n += 1);
        n
    }
}
