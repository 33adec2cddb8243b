//! From scalar expressions of the plan to expressions of kernel IR.

use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::ids::OperandId;
use weft_ir::kernel::{BinaryOp, CompareOp, Const, Expr, MathFn, Mem, UnaryOp};
use weft_ir::plan::Scalar;
use weft_ir::scalar::{Binary, Compare, Unary};
use weft_ir::shape::{Dim, Shape};

/// Kind of a lowered expression.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Float,
    Int,
    Uint,
    Bool,
}

fn kind_of(d: DType) -> Kind {
    match d {
        DType::F32 | DType::F16 | DType::BF16 => Kind::Float,
        DType::I32 | DType::I64 => Kind::Int,
        DType::U32 => Kind::Uint,
        DType::Bool => Kind::Bool,
    }
}

impl Body<'_> {
    /// A scalar expression at a point, as f32, i32, u32 or bool.
    pub fn lower(&mut self, s: &Scalar, p: &Point) -> Result<Expr, String> {
        Ok(self.expr(s, p, true)?.0)
    }

    /// Element of an operand as f32 (floats) or its own type.
    pub fn load(&self, o: OperandId, at: &[Expr]) -> Expr {
        let operand = &self.work.reads[o.index()];
        let e = Expr::load(self.reads[o.index()], self.flat(&operand.shape, at));
        if operand.dtype.is_half() { e.cast(DType::F32) } else { e }
    }

    fn expr(&mut self, s: &Scalar, p: &Point, hoist: bool) -> Result<(Expr, Kind), String> {
        Ok(match s {
            Scalar::Float(v) => (Expr::float(*v), Kind::Float),
            Scalar::Int(v) => (Expr::int(*v), Kind::Int),
            Scalar::Bool(v) => (Expr::Const(Const::Bool(*v)), Kind::Bool),
            Scalar::Coord(c) => {
                let e = p.coords.get(*c as usize).ok_or_else(|| format!("coordinate {c} is not known"))?;
                (e.clone(), Kind::Int)
            }
            Scalar::Dim(sym) => (self.sym(*sym), Kind::Int),
            Scalar::Load(o, _) if p.loaded.iter().any(|(load, _)| load == s) => {
                let found = p.loaded.iter().find(|(load, _)| load == s);
                let value = found.map_or_else(|| Expr::int(0), |(_, value)| value.clone());
                (value, kind_of(self.work.reads[o.index()].dtype))
            }
            Scalar::Load(o, index) => {
                let at: Result<Vec<Expr>, String> =
                    index.iter().map(|i| self.expr(i, p, hoist).map(|e| e.0)).collect();
                let kind = kind_of(self.work.reads[o.index()].dtype);
                (self.load(*o, &at?), kind)
            }
            Scalar::Reduced(i) => {
                let e = p.reduced.get(*i as usize).ok_or_else(|| format!("stage {i} is not known"))?;
                (e.clone(), Kind::Float)
            }
            Scalar::Acc(i) => {
                let e = p.acc.get(*i as usize).ok_or_else(|| format!("there is no accumulator {i} here"))?;
                (e.clone(), Kind::Float)
            }
            Scalar::Local(i, index) => {
                let at: Result<Vec<Expr>, String> =
                    index.iter().map(|x| self.expr(x, p, hoist).map(|e| e.0)).collect();
                let (shared, dtype, shape) =
                    self.locals.get(usize::from(*i)).ok_or_else(|| format!("step {i} is not known here"))?;
                let shape: Shape = shape.iter().map(|&n| Dim::Const(n)).collect();
                (Expr::load(Mem::Shared(*shared), self.flat(&shape, &at?)), kind_of(*dtype))
            }
            Scalar::Unary(op, a) => self.unary(*op, a, p, hoist)?,
            Scalar::Binary(op, a, b) => {
                let ((x, kx), (y, ky)) = (self.expr(a, p, hoist)?, self.expr(b, p, hoist)?);
                if kx != ky {
                    return Err(format!("{} of {kx:?} and {ky:?}", op.name()));
                }
                (binary(*op, x, y), kx)
            }
            Scalar::Compare(op, a, b) => {
                let ((x, kx), (y, ky)) = (self.expr(a, p, hoist)?, self.expr(b, p, hoist)?);
                if kx != ky {
                    return Err(format!("{} of {kx:?} and {ky:?}", op.name()));
                }
                let op = match op {
                    Compare::Eq => CompareOp::Eq,
                    Compare::Lt => CompareOp::Lt,
                    Compare::Le => CompareOp::Le,
                };
                (Expr::cmp(op, x, y), Kind::Bool)
            }
            Scalar::Select(c, a, b) => {
                let (c, _) = self.expr(c, p, hoist)?;
                // What a branch needs is computed in it: it may be out of bounds otherwise.
                let ((x, kx), (y, ky)) = (self.expr(a, p, false)?, self.expr(b, p, false)?);
                if kx != ky {
                    return Err(format!("select of {kx:?} and {ky:?}"));
                }
                (c.select(x, y), kx)
            }
            Scalar::Cast(to, a) => {
                let (x, from) = self.expr(a, p, hoist)?;
                match (from, kind_of(*to)) {
                    (_, Kind::Float) if to.is_half() => {
                        (x.cast(DType::F32).cast(*to).cast(DType::F32), Kind::Float)
                    }
                    (f, t) if f == t => (x, t),
                    (_, Kind::Float) => (x.cast(DType::F32), Kind::Float),
                    (_, Kind::Int) => (x.cast(DType::I32), Kind::Int),
                    (_, Kind::Uint) => (x.cast(DType::U32), Kind::Uint),
                    (_, Kind::Bool) => (x.cast(DType::Bool), Kind::Bool),
                }
            }
        })
    }

    fn unary(&mut self, op: Unary, a: &Scalar, p: &Point, hoist: bool) -> Result<(Expr, Kind), String> {
        let (mut x, kind) = self.expr(a, p, hoist)?;
        let simple = matches!(x, Expr::Var(_) | Expr::Const(_) | Expr::Elem(..));
        let twice = matches!(op, Unary::Silu);
        if twice && hoist && !simple {
            x = self.k.let_("x", DType::F32, x);
        }
        let math = |f, x| Expr::math(f, x);
        let one_plus_exp_neg =
            |x: Expr| Expr::float(1.0) + math(MathFn::Exp, Expr::Unary(UnaryOp::Neg, Box::new(x)));
        let e = match op {
            Unary::Neg => Expr::Unary(UnaryOp::Neg, Box::new(x)),
            Unary::Exp => math(MathFn::Exp, x),
            Unary::Log => math(MathFn::Log, x),
            Unary::Sqrt => math(MathFn::Sqrt, x),
            Unary::Rsqrt => math(MathFn::Rsqrt, x),
            Unary::Recip => Expr::float(1.0) / x,
            Unary::Sin => math(MathFn::Sin, x),
            Unary::Cos => math(MathFn::Cos, x),
            Unary::Tanh => math(MathFn::Tanh, x),
            Unary::Erf => math(MathFn::Erf, x),
            Unary::Sigmoid => Expr::float(1.0) / one_plus_exp_neg(x),
            Unary::Silu => x.clone() / one_plus_exp_neg(x),
            Unary::Abs if kind == Kind::Int => x.clone().max(Expr::int(0) - x),
            Unary::Abs => math(MathFn::Abs, x),
            Unary::Not => Expr::Unary(UnaryOp::Not, Box::new(x)),
        };
        Ok((e, kind))
    }
}

fn binary(op: Binary, x: Expr, y: Expr) -> Expr {
    let bin = |op, x, y| Expr::Binary(op, Box::new(x), Box::new(y));
    match op {
        Binary::Add => x + y,
        Binary::Sub => x - y,
        Binary::Mul => x * y,
        Binary::Div => x / y,
        Binary::Rem => x % y,
        Binary::Min => x.min(y),
        Binary::Max => x.max(y),
        Binary::Pow => Expr::Math(MathFn::Pow, vec![x, y]),
        Binary::And => bin(BinaryOp::And, x, y),
        Binary::Or => bin(BinaryOp::Or, x, y),
    }
}
