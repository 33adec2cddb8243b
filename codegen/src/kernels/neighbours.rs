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

#[cfg(test)]
mod tests {
    use super::*;
    use weft_ir::dtype::DType;
    use weft_ir::ids::OperandId;
    use weft_ir::shape::Sym;

    fn of(op: Binary, a: Scalar, b: i64) -> Scalar {
        Scalar::binary(op, a, Scalar::Int(b))
    }

    fn column() -> Scalar {
        Scalar::Coord(1)
    }

    fn array(shape: &[usize], dtype: DType) -> Operand {
        let shape = shape.iter().map(|n| Dim::Const(*n)).collect();
        Operand { name: "x".into(), dtype, shape, constant: false }
    }

    #[test]
    fn heads_of_a_row_are_one_access() {
        let run = Run { width: 4 };
        let head = [of(Binary::Div, column(), 128), of(Binary::Rem, column(), 128)];
        assert!(run.one_access(&array(&[8, 128], DType::BF16), &head));
        assert!(run.one_access(
            &array(&[8, 128], DType::F32),
            &[head[0].clone(), of(Binary::Add, head[1].clone(), 64)]
        ));
        // Heads of 6 elements end within a run; so do rows of 126.
        let short = [of(Binary::Div, column(), 6), of(Binary::Rem, column(), 6)];
        assert!(!run.one_access(&array(&[8, 6], DType::BF16), &short));
        assert!(!run.one_access(&array(&[8, 126], DType::BF16), &head));
        // Every second element; an odd first one; eight bytes each.
        let twice = of(Binary::Mul, column(), 2);
        assert!(!run.one_access(&array(&[8, 128], DType::BF16), &[head[0].clone(), twice]));
        assert!(!run.one_access(&array(&[256], DType::BF16), &[of(Binary::Add, column(), 1)]));
        assert!(!run.one_access(&array(&[256], DType::I64), &[column()]));
        // A row that is looked up by the column.
        let found = Scalar::Load(OperandId(0), vec![column()]);
        assert!(!run.one_access(&array(&[8, 128], DType::BF16), &[found, head[1].clone()]));
    }

    #[test]
    fn bounds_at_the_end_of_a_run_are_the_same_for_its_points() {
        let run = Run { width: 2 };
        let compare = |op, a: Scalar, b: Scalar| Scalar::Compare(op, Box::new(a), Box::new(b));
        let below = |n| compare(Compare::Lt, column(), Scalar::Int(n));
        let from = |n| compare(Compare::Le, Scalar::Int(n), column());
        assert!(run.same(&below(2048)) && !run.same(&below(2047)));
        assert!(run.same(&Scalar::binary(Binary::And, from(2048), below(2560))));
        assert!(!run.same(&from(7)));
        assert!(!run.same(&compare(Compare::Lt, Scalar::Int(6), column())));
        assert!(!run.same(&compare(Compare::Eq, column(), Scalar::Int(6))));
        let slot = Scalar::Load(OperandId(1), vec![Scalar::Coord(0)]);
        assert!(run.same(&compare(Compare::Le, Scalar::Int(0), slot)));
    }

    #[test]
    fn elements_that_are_always_there() {
        let rows = Dim::Sym(Sym::Tokens);
        let m = MatMul {
            m: rows,
            n: 96,
            group: 1,
            k: 64,
            a: Scalar::Float(0.0),
            b: OperandId(0),
            stages: vec![],
            row: None,
            stores: vec![],
            draw: None,
        };
        let inside =
            |dim: usize, i: Scalar| always_inside(&m, &vec![rows, Dim::Const(dim)], &[Scalar::Coord(0), i]);
        assert!(inside(96, column()) && !inside(95, column()));
        assert!(inside(64, of(Binary::Rem, column(), 64)) && !inside(63, of(Binary::Rem, column(), 64)));
        assert!(inside(2, of(Binary::Div, column(), 64)) && !inside(1, of(Binary::Div, column(), 64)));
        assert!(!inside(96, of(Binary::Add, column(), -1)));
        assert!(!always_inside(&m, &vec![rows], &[column()]));
    }
}
