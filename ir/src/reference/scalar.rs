//! Compilation of scalar expressions to flat programs over vectors.
//!
//! A program is evaluated at the points of a row: all coordinates fixed but the innermost, which runs over
//! a chunk. Each instruction fills one register; what does not depend on the innermost coordinate has one
//! element. Loads whose indices are affine in it become slices of the operand.

use super::error::OpError;
use super::tensor::Kind;
use crate::dtype::DType;
use crate::plan::{Operand, Scalar};
use crate::scalar::{Binary, Compare, Unary};
use crate::shape::Sym;
use std::collections::HashMap;

/// A register: the position of the instruction that fills it.
pub(super) type Reg = usize;

/// One instruction.
#[derive(Clone, Debug)]
pub(super) enum Inst {
    Float(f32),
    Int(i32),
    Bool(bool),
    Coord(usize),
    Dim(Sym),
    /// Element at Σ (base + slope · innermost coordinate) · stride over the axes.
    Load {
        operand: usize,
        axes: Vec<(Reg, i64)>,
        mask: Option<Reg>,
    },
    /// Element at any indices.
    Gather {
        operand: usize,
        axes: Vec<Reg>,
        mask: Option<Reg>,
    },
    Unary(Unary, Reg),
    Binary(Binary, Reg, Reg),
    Compare(Compare, Reg, Reg),
    Select(Reg, Reg, Reg),
    Cast(DType, Reg),
    Reduced(usize),
    Acc(usize),
}

/// How often a register changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// Never while the operands stay.
    Const,
    /// With each row.
    Row,
    /// With each element of a row.
    Element,
}

/// A compiled list of expressions.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub insts: Vec<Inst>,
    pub kinds: Vec<Kind>,
    pub levels: Vec<Level>,
    /// Registers of the expressions.
    pub results: Vec<Reg>,
}

/// Compiles expressions, evaluated only where `guard` holds; the guard's register comes last in the
/// results.
///
/// # Errors
/// When kinds of elements do not fit, or an operand does not exist.
pub(super) fn compile(
    roots: &[&Scalar],
    guard: Option<&Scalar>,
    inner: Option<usize>,
    reads: &[Operand],
) -> Result<Program, OpError> {
    let program = Program { insts: Vec::new(), kinds: Vec::new(), levels: Vec::new(), results: Vec::new() };
    let mut c = Compiler { program, inner, reads, known: HashMap::new() };
    let mask = guard.map(|g| c.expr(g, None)).transpose()?;
    if let Some(m) = mask {
        c.want(m, Kind::Bool)?;
    }
    for root in roots {
        let reg = c.expr(root, mask)?;
        c.program.results.push(reg);
    }
    c.program.results.extend(mask);
    Ok(c.program)
}

struct Compiler<'a> {
    program: Program,
    inner: Option<usize>,
    reads: &'a [Operand],
    /// Register of an expression (as text) under a mask.
    known: HashMap<(String, Option<Reg>), Reg>,
}

impl Compiler<'_> {
    fn expr(&mut self, e: &Scalar, mask: Option<Reg>) -> Result<Reg, OpError> {
        let key = (format!("{e:?}"), mask);
        if let Some(&reg) = self.known.get(&key) {
            return Ok(reg);
        }
        let reg = self.fresh(e, mask)?;
        self.known.insert(key, reg);
        Ok(reg)
    }

    fn fresh(&mut self, e: &Scalar, mask: Option<Reg>) -> Result<Reg, OpError> {
        match e {
            Scalar::Float(x) => Ok(self.push(Inst::Float(*x), Kind::Real, Level::Const)),
            Scalar::Int(i) => {
                let i = i32::try_from(*i).map_err(|_| OpError::Type(format!("{i} is beyond 32 bits")))?;
                Ok(self.push(Inst::Int(i), Kind::Int, Level::Const))
            }
            Scalar::Bool(b) => Ok(self.push(Inst::Bool(*b), Kind::Bool, Level::Const)),
            Scalar::Coord(axis) => {
                let axis = usize::from(*axis);
                let level = if Some(axis) == self.inner { Level::Element } else { Level::Row };
                Ok(self.push(Inst::Coord(axis), Kind::Int, level))
            }
            Scalar::Dim(sym) => Ok(self.push(Inst::Dim(*sym), Kind::Int, Level::Const)),
            Scalar::Load(operand, index) => self.load(operand.index(), index, mask),
            Scalar::Unary(op, a) => {
                let a = self.expr(a, mask)?;
                let (kind, level) = (self.program.kinds[a], self.program.levels[a]);
                let fits = match op {
                    Unary::Not => kind == Kind::Bool,
                    Unary::Neg | Unary::Abs => matches!(kind, Kind::Real | Kind::Int),
                    Unary::Exp
                    | Unary::Log
                    | Unary::Sqrt
                    | Unary::Rsqrt
                    | Unary::Recip
                    | Unary::Sin
                    | Unary::Cos
                    | Unary::Tanh
                    | Unary::Erf
                    | Unary::Sigmoid
                    | Unary::Silu => kind == Kind::Real,
                };
                if !fits {
                    return Err(OpError::Type(format!("{} does not take {kind:?}", op.name())));
                }
                Ok(self.push(Inst::Unary(*op, a), kind, level))
            }
            Scalar::Binary(op, a, b) => {
                let (a, b, kind, level) = self.pair(op.name(), a, b, mask)?;
                let fits = match op {
                    Binary::And | Binary::Or => kind == Kind::Bool,
                    Binary::Rem => matches!(kind, Kind::Int | Kind::U32),
                    Binary::Pow => kind == Kind::Real,
                    Binary::Add | Binary::Sub | Binary::Mul | Binary::Div | Binary::Min | Binary::Max => {
                        kind != Kind::Bool
                    }
                };
                if !fits {
                    return Err(OpError::Type(format!("{} does not take {kind:?}", op.name())));
                }
                Ok(self.push(Inst::Binary(*op, a, b), kind, level))
            }
            Scalar::Compare(op, a, b) => {
                let (a, b, _, level) = self.pair(op.name(), a, b, mask)?;
                Ok(self.push(Inst::Compare(*op, a, b), Kind::Bool, level))
            }
            Scalar::Select(c, a, b) => {
                let c = self.expr(c, mask)?;
                self.want(c, Kind::Bool)?;
                let level = self.program.levels[c];
                let not = self.push(Inst::Unary(Unary::Not, c), Kind::Bool, level);
                let (on, off) = (self.both(mask, c), self.both(mask, not));
                let (a, b) = (self.expr(a, Some(on))?, self.expr(b, Some(off))?);
                let kind = self.program.kinds[a];
                self.want(b, kind)?;
                let level = level.max(self.program.levels[a]).max(self.program.levels[b]);
                Ok(self.push(Inst::Select(c, a, b), kind, level))
            }
            Scalar::Cast(dtype, a) => {
                let a = self.expr(a, mask)?;
                let level = self.program.levels[a];
                Ok(self.push(Inst::Cast(*dtype, a), Kind::of(*dtype), level))
            }
            Scalar::Reduced(stage) => Ok(self.push(Inst::Reduced((*stage).into()), Kind::Real, Level::Row)),
            Scalar::Acc(i) => Ok(self.push(Inst::Acc((*i).into()), Kind::Real, Level::Element)),
            Scalar::Local(i, _) => Err(OpError::Unsupported(format!("step {i} is not known here"))),
        }
    }

    fn load(&mut self, operand: usize, index: &[Scalar], mask: Option<Reg>) -> Result<Reg, OpError> {
        let Some(read) = self.reads.get(operand) else {
            return Err(OpError::Shape(format!("operand {operand} does not exist")));
        };
        if read.shape.len() != index.len() {
            return Err(OpError::Shape(format!("{} indices of {:?}", index.len(), read.shape)));
        }
        let kind = Kind::of(read.dtype);
        let slopes: Option<Vec<i64>> = index.iter().map(|i| slope(i, self.inner)).collect();
        // A mask that changes with rows must be looked at in each of them.
        let mut level = mask.map_or(Level::Const, |m| self.program.levels[m].min(Level::Row));
        let mut axes = Vec::new();
        for i in index {
            let base = if slopes.is_some() {
                self.expr(&at_zero(i, self.inner), mask)?
            } else {
                self.expr(i, mask)?
            };
            self.want(base, Kind::Int)?;
            level = level.max(self.program.levels[base]);
            axes.push(base);
        }
        let inst = match slopes {
            Some(slopes) => {
                if slopes.iter().any(|&s| s != 0) {
                    level = Level::Element;
                }
                Inst::Load { operand, axes: axes.into_iter().zip(slopes).collect(), mask }
            }
            None => Inst::Gather { operand, axes, mask },
        };
        Ok(self.push(inst, kind, level))
    }

    fn pair(
        &mut self,
        name: &str,
        a: &Scalar,
        b: &Scalar,
        mask: Option<Reg>,
    ) -> Result<(Reg, Reg, Kind, Level), OpError> {
        let (a, b) = (self.expr(a, mask)?, self.expr(b, mask)?);
        let (ka, kb) = (self.program.kinds[a], self.program.kinds[b]);
        if ka != kb {
            return Err(OpError::Type(format!("{name} of {ka:?} and {kb:?}")));
        }
        Ok((a, b, ka, self.program.levels[a].max(self.program.levels[b])))
    }

    fn both(&mut self, mask: Option<Reg>, c: Reg) -> Reg {
        match mask {
            None => c,
            Some(m) => {
                let level = self.program.levels[m].max(self.program.levels[c]);
                self.push(Inst::Binary(Binary::And, m, c), Kind::Bool, level)
            }
        }
    }

    fn want(&self, reg: Reg, kind: Kind) -> Result<(), OpError> {
        let found = self.program.kinds[reg];
        if found == kind { Ok(()) } else { Err(OpError::Type(format!("expected {kind:?}, got {found:?}"))) }
    }

    fn push(&mut self, inst: Inst, kind: Kind, level: Level) -> Reg {
        self.program.insts.push(inst);
        self.program.kinds.push(kind);
        self.program.levels.push(level);
        self.program.insts.len() - 1
    }
}

/// How much an index grows with the innermost coordinate, where that is the same everywhere.
fn slope(e: &Scalar, inner: Option<usize>) -> Option<i64> {
    let mut depends = false;
    e.visit(&mut |part| {
        depends |= match part {
            Scalar::Coord(axis) => Some(usize::from(*axis)) == inner,
            Scalar::Acc(_) => true,
            Scalar::Float(_)
            | Scalar::Int(_)
            | Scalar::Bool(_)
            | Scalar::Dim(_)
            | Scalar::Load(..)
            | Scalar::Local(..)
            | Scalar::Unary(..)
            | Scalar::Binary(..)
            | Scalar::Compare(..)
            | Scalar::Select(..)
            | Scalar::Cast(..)
            | Scalar::Reduced(_) => false,
        };
    });
    if !depends {
        return Some(0);
    }
    match e {
        Scalar::Coord(_) => Some(1),
        Scalar::Binary(Binary::Add, a, b) => slope(a, inner)?.checked_add(slope(b, inner)?),
        Scalar::Binary(Binary::Sub, a, b) => slope(a, inner)?.checked_sub(slope(b, inner)?),
        Scalar::Binary(Binary::Mul, a, b) => match (&**a, &**b) {
            (Scalar::Int(k), other) | (other, Scalar::Int(k)) => slope(other, inner)?.checked_mul(*k),
            _ => None,
        },
        _ => None,
    }
}

/// The expression where the innermost coordinate is 0.
fn at_zero(e: &Scalar, inner: Option<usize>) -> Scalar {
    match e {
        Scalar::Coord(axis) if Some(usize::from(*axis)) == inner => Scalar::Int(0),
        other => other.map_children(&mut |c| at_zero(c, inner)),
    }
}

/// An index as constant + Σ factor · coordinate, with constant factors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Affine {
    pub constant: i64,
    pub factors: Vec<i64>,
}

/// The affine form of an index over `rank` coordinates, if it has one.
pub(super) fn affine(e: &Scalar, rank: usize) -> Option<Affine> {
    let constant = |constant| Affine { constant, factors: vec![0; rank] };
    let combine = |a: Affine, b: Affine, sign: i64| {
        let factors = a.factors.iter().zip(&b.factors).map(|(x, y)| x.checked_add(sign * y));
        Some(Affine {
            constant: a.constant.checked_add(sign * b.constant)?,
            factors: factors.collect::<Option<_>>()?,
        })
    };
    match e {
        Scalar::Int(i) => Some(constant(*i)),
        Scalar::Coord(axis) => {
            let mut out = constant(0);
            *out.factors.get_mut(usize::from(*axis))? = 1;
            Some(out)
        }
        Scalar::Binary(Binary::Add, a, b) => combine(affine(a, rank)?, affine(b, rank)?, 1),
        Scalar::Binary(Binary::Sub, a, b) => combine(affine(a, rank)?, affine(b, rank)?, -1),
        Scalar::Binary(Binary::Mul, a, b) => match (&**a, &**b) {
            (Scalar::Int(k), other) | (other, Scalar::Int(k)) => {
                let x = affine(other, rank)?;
                let factors = x.factors.iter().map(|f| f.checked_mul(*k));
                Some(Affine {
                    constant: x.constant.checked_mul(*k)?,
                    factors: factors.collect::<Option<_>>()?,
                })
            }
            _ => None,
        },
        _ => None,
    }
}
