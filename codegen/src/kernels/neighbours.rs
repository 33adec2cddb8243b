//! What changes between neighbouring columns: of `width` points whose first column is a multiple of `width`, which
//! expressions are the same, and which arrays are read or written at places that follow each other.

use weft_ir::plan::{MatMul, Operand, Scalar};
use weft_ir::scalar::{Binary, Compare};
use weft_ir::shape::{Dim, Shape};

/// A run of neighbouring columns of a product's row.
#[derive(Clone, Copy)]
pub(super) struct Run {
    /// Points, whose first one's column is a multiple of it.
    pub width: i64,
}

impl Run {
    /// Whether rows of the product end where a run does.
    pub fn of_whole(self, m: &MatMul) -> bool {
        m.n as i64 % self.width == 0
    }

    /// By how much an integer grows from point to point.
    fn step(self, s: &Scalar) -> Option<i64> {
        let ends = |m: &Scalar| matches!(m, Scalar::Int(m) if *m > 0 && m % self.width == 0);
        match s {
            Scalar::Coord(1) => Some(1),
            Scalar::Int(_) | Scalar::Coord(_) | Scalar::Dim(_) => Some(0),
            Scalar::Load(_, index) => index.iter().all(|i| self.step(i) == Some(0)).then_some(0),
            Scalar::Binary(op, a, b) => match (op, self.step(a)?, self.step(b)?) {
                (_, 0, 0) => Some(0),
                (Binary::Add, x, y) => Some(x + y),
                // Aligned runs do not cross a multiple of a multiple of their width.
                (Binary::Rem, 1, 0) if ends(b) && self.aligned(a) => Some(1),
                (Binary::Div, 1, 0) if ends(b) && self.aligned(a) => Some(0),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether an integer is a multiple of the width at the first point.
    fn aligned(self, s: &Scalar) -> bool {
        match s {
            Scalar::Coord(1) => true,
            Scalar::Int(v) => v % self.width == 0,
            Scalar::Binary(Binary::Add | Binary::Rem, a, b) => self.aligned(a) && self.aligned(b),
            _ => false,
        }
    }

    /// Whether an expression has one value at all points.
    pub fn same(self, s: &Scalar) -> bool {
        match s {
            Scalar::Bool(_) => true,
            Scalar::Compare(op, a, b) => match (self.step(a), self.step(b)) {
                (Some(0), Some(0)) => true,
                (Some(1), Some(0)) => *op == Compare::Lt && self.aligned(a) && self.aligned(b),
                (Some(0), Some(1)) => *op == Compare::Le && self.aligned(a) && self.aligned(b),
                _ => false,
            },
            Scalar::Binary(Binary::And | Binary::Or, a, b) => self.same(a) && self.same(b),
            _ => self.step(s) == Some(0),
        }
    }

    /// Whether the points' elements of an array are one aligned access of 4, 8 or 16 bytes.
    pub fn one_access(self, of: &Operand, index: &[Scalar]) -> bool {
        let bytes = self.width * of.dtype.size() as i64;
        let Some((last, before)) = index.split_last() else { return false };
        [4, 8, 16].contains(&bytes)
            && matches!(of.shape.last(), Some(Dim::Const(n)) if *n as i64 % self.width == 0)
            && self.step(last) == Some(1)
            && self.aligned(last)
            && before.iter().all(|i| self.step(i) == Some(0))
    }
}

/// Whether an element is in its array at every point of a product, whatever guards its use.
pub(super) fn always_inside(m: &MatMul, shape: &Shape, index: &[Scalar]) -> bool {
    shape.iter().zip(index).all(|(dim, i)| match (dim, i) {
        (dim, Scalar::Coord(0)) if *dim == m.m => true,
        (Dim::Const(n), i) => end(m, i).is_some_and(|end| end <= *n as i64),
        (Dim::Sym(_), _) => false,
    })
}

/// What an integer that is not negative is below.
fn end(m: &MatMul, s: &Scalar) -> Option<i64> {
    match s {
        Scalar::Coord(1) => Some(m.n as i64),
        Scalar::Int(v) if *v >= 0 => Some(v + 1),
        Scalar::Binary(op, a, b) => match (op, end(m, a)?, end(m, b)?) {
            (Binary::Add, x, y) => Some(x + y - 1),
            (Binary::Mul, x, y) => Some((x - 1) * (y - 1) + 1),
            (Binary::Rem, x, y) if matches!(**b, Scalar::Int(1..)) => Some(x.min(y - 1)),
            (Binary::Div, x, y) if matches!(**b, Scalar::Int(1..)) => Some((x - 1) / (y - 1) + 1),
            _ => None,
        },
        _ => None,
    }
}
