//! Evaluation of compiled expressions over chunks of a row.

use super::elementwise::round_all;
use super::error::OpError;
use super::lanes::{binary, cast, choose, compare, compared, fill, unary, zip};
use super::precision::{Precision, Real};
use super::scalar::{Inst, Level, Program, Reg};
use super::tensor::{Data, Kind};
use crate::shape::Bindings;

/// Elements of a row that are evaluated at a time; a multiple of a sum's lanes.
pub(super) const CHUNK: usize = 2048;

/// Most accumulators of an epilogue's point.
pub(super) const GROUP: usize = 2;

/// An operand: row-major data of a shape.
#[derive(Clone)]
pub(super) struct View<'a, R> {
    pub data: &'a Data<R>,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// What expressions refer to and no point changes.
pub(super) struct Env<'a, R> {
    pub bind: Bindings,
    pub precision: Precision,
    /// Operands; those that no expression loads may be absent.
    pub reads: Vec<Option<View<'a, R>>>,
}

/// Where a program is evaluated.
pub(super) struct Point<'a, R> {
    /// Coordinates; that of the innermost axis is not used.
    pub coords: &'a [usize],
    /// Innermost coordinate of the first element.
    pub from: usize,
    /// Elements.
    pub n: usize,
    /// Results of the earlier stages of this row.
    pub reduced: &'a [R],
    /// Accumulators of these elements, for each of the group; empty where there are none.
    pub acc: [&'a [R]; GROUP],
}

/// Values of a register: one, or one an element. u32 is kept as the i32 of the same bits.
#[derive(Clone, Debug)]
pub(super) enum Vector<R> {
    Real(Vec<R>),
    Int(Vec<i32>),
    Bool(Vec<bool>),
}

/// Registers of a program, reused from point to point (of one environment).
pub(super) struct Scratch<R> {
    regs: Vec<Vector<R>>,
    started: bool,
}

impl<R: Real> Scratch<R> {
    /// Registers for a program.
    pub fn new(program: &Program) -> Scratch<R> {
        let of = |k: &Kind| match k {
            Kind::Real => Vector::Real(Vec::new()),
            Kind::Int | Kind::U32 => Vector::Int(Vec::new()),
            Kind::Bool => Vector::Bool(Vec::new()),
        };
        Scratch { regs: program.kinds.iter().map(of).collect(), started: false }
    }

    /// Values of a register: one element, or as many as the point has.
    pub fn get(&self, reg: Reg) -> &Vector<R> {
        &self.regs[reg]
    }

    /// Evaluates a program at a point.
    ///
    /// # Errors
    /// When a load that is not masked is out of range.
    pub fn run(&mut self, p: &Program, env: &Env<R>, at: &Point<R>) -> Result<(), OpError> {
        for (i, inst) in p.insts.iter().enumerate() {
            if self.started && p.levels[i] == Level::Const {
                continue;
            }
            let (done, rest) = self.regs.split_at_mut(i);
            if let Some(out) = rest.first_mut() {
                eval(inst, p, done, out, p.levels[i], env, at)?;
            }
        }
        self.started = true;
        Ok(())
    }
}

pub(super) fn wrong() -> OpError {
    OpError::Type("a register holds another kind of element".into())
}

pub(super) fn real<R>(v: &Vector<R>) -> Result<&[R], OpError> {
    match v {
        Vector::Real(v) => Ok(v),
        Vector::Int(_) | Vector::Bool(_) => Err(wrong()),
    }
}

pub(super) fn int<R>(v: &Vector<R>) -> Result<&[i32], OpError> {
    match v {
        Vector::Int(v) => Ok(v),
        Vector::Real(_) | Vector::Bool(_) => Err(wrong()),
    }
}

pub(super) fn boolean<R>(v: &Vector<R>) -> Result<&[bool], OpError> {
    match v {
        Vector::Bool(v) => Ok(v),
        Vector::Real(_) | Vector::Int(_) => Err(wrong()),
    }
}

fn eval<R: Real>(
    inst: &Inst,
    p: &Program,
    regs: &[Vector<R>],
    out: &mut Vector<R>,
    level: Level,
    env: &Env<R>,
    at: &Point<R>,
) -> Result<(), OpError> {
    let n = if level == Level::Element { at.n } else { 1 };
    match (inst, out) {
        (Inst::Float(x), Vector::Real(o)) => fill(o, 1, R::from_f32(*x)),
        (Inst::Int(x), Vector::Int(o)) => fill(o, 1, *x),
        (Inst::Bool(x), Vector::Bool(o)) => fill(o, 1, *x),
        (Inst::Coord(axis), Vector::Int(o)) => {
            if level == Level::Element {
                o.clear();
                o.extend((at.from..at.from + n).map(|i| i as i32));
            } else {
                let c = at.coords.get(*axis).copied();
                fill(o, 1, c.ok_or_else(|| OpError::Shape(format!("no coordinate {axis}")))? as i32);
            }
        }
        (Inst::Dim(sym), Vector::Int(o)) => fill(o, 1, env.bind.get(*sym) as i32),
        (Inst::Reduced(stage), Vector::Real(o)) => {
            let x = at.reduced.get(*stage).copied();
            fill(o, 1, x.ok_or_else(|| OpError::Shape(format!("no stage {stage}")))?);
        }
        (Inst::Acc(i), Vector::Real(o)) => {
            o.clear();
            o.extend_from_slice(at.acc.get(*i).copied().unwrap_or(&[]));
            if o.len() != n {
                return Err(OpError::Shape("no accumulator here".into()));
            }
        }
        (Inst::Load { operand, axes, mask }, out) => {
            let view = view(env, *operand)?;
            let bases =
                axes.iter().map(|&(r, _)| int(&regs[r]).map(|v| v[0])).collect::<Result<Vec<_>, _>>()?;
            let slopes: Vec<i64> = axes.iter().map(|a| a.1).collect();
            match run(view, &bases, &slopes, at.from, n) {
                Some((start, step)) => slice(view, start, step, n, out)?,
                None => {
                    let index = |a: usize, i: usize| i64::from(bases[a]) + slopes[a] * (at.from + i) as i64;
                    lanes(view, index, masked(mask, regs)?, n, out)?;
                }
            }
        }
        (Inst::Gather { operand, axes, mask }, out) => {
            let view = view(env, *operand)?;
            let index = axes.iter().map(|&r| int(&regs[r])).collect::<Result<Vec<_>, _>>()?;
            let index = |a: usize, i: usize| i64::from(pick(index[a], i));
            lanes(view, index, masked(mask, regs)?, n, out)?;
        }
        (Inst::Unary(op, a), out) => unary(*op, &regs[*a], out)?,
        (Inst::Binary(op, a, b), out) => binary(*op, p.kinds[*a], &regs[*a], &regs[*b], n, out)?,
        (Inst::Compare(op, a, b), Vector::Bool(o)) => match (&regs[*a], &regs[*b]) {
            (Vector::Real(x), Vector::Real(y)) => compare(*op, x, y, n, o),
            (Vector::Int(x), Vector::Int(y)) if p.kinds[*a] == Kind::U32 => {
                zip(o, x, y, n, |x, y| compared(*op, x as u32, y as u32));
            }
            (Vector::Int(x), Vector::Int(y)) => compare(*op, x, y, n, o),
            (Vector::Bool(x), Vector::Bool(y)) => compare(*op, x, y, n, o),
            _ => return Err(wrong()),
        },
        (Inst::Select(c, a, b), out) => {
            let c = boolean(&regs[*c])?;
            match (&regs[*a], &regs[*b], out) {
                (Vector::Real(x), Vector::Real(y), Vector::Real(o)) => choose(o, c, x, y, n),
                (Vector::Int(x), Vector::Int(y), Vector::Int(o)) => choose(o, c, x, y, n),
                (Vector::Bool(x), Vector::Bool(y), Vector::Bool(o)) => choose(o, c, x, y, n),
                _ => return Err(wrong()),
            }
        }
        (Inst::Cast(dtype, a), out) => {
            cast(p.kinds[*a], Kind::of(*dtype), &regs[*a], out)?;
            if let (Vector::Real(o), Precision::Rounded) = (out, env.precision)
                && dtype.is_half()
            {
                round_all(o.as_mut_slice(), *dtype);
            }
        }
        _ => return Err(wrong()),
    }
    Ok(())
}

fn view<'a, 'b, R>(env: &'b Env<'a, R>, operand: usize) -> Result<&'b View<'a, R>, OpError> {
    let view = env.reads.get(operand).and_then(Option::as_ref);
    view.ok_or_else(|| OpError::Unsupported(format!("operand {operand} cannot be read here")))
}

/// Position of the first element and distance of neighbours, when all are in range.
fn run<R>(view: &View<R>, bases: &[i32], slopes: &[i64], from: usize, n: usize) -> Option<(i64, i64)> {
    let (mut start, mut step) = (view.offset as i64, 0);
    for (((&base, &slope), &extent), &stride) in bases.iter().zip(slopes).zip(&view.shape).zip(&view.strides)
    {
        let first = i64::from(base) + slope * from as i64;
        let last = first + slope * (n as i64 - 1);
        if first < 0 || last < 0 || first >= extent as i64 || last >= extent as i64 {
            return None;
        }
        start += first * stride as i64;
        step += slope * stride as i64;
    }
    Some((start, step))
}

/// Elements at a distance of each other.
fn slice<R: Real>(
    view: &View<R>,
    start: i64,
    step: i64,
    n: usize,
    out: &mut Vector<R>,
) -> Result<(), OpError> {
    fn copy<A: Copy, T>(out: &mut Vec<T>, v: &[A], start: i64, step: i64, n: usize, f: impl Fn(A) -> T) {
        out.clear();
        let first = start as usize;
        match step {
            1 => out.extend(v[first..first + n].iter().map(|&x| f(x))),
            step => out.extend((0..n).map(|i| f(v[(start + step * i as i64) as usize]))),
        }
    }
    match (view.data, out) {
        (Data::Real(v), Vector::Real(o)) => copy(o, v, start, step, n, |x| x),
        (Data::Int(v), Vector::Int(o)) => copy(o, v, start, step, n, |x| x),
        (Data::U32(v), Vector::Int(o)) => copy(o, v, start, step, n, |x| x as i32),
        (Data::Bool(v), Vector::Bool(o)) => copy(o, v, start, step, n, |x| x),
        _ => return Err(wrong()),
    }
    Ok(())
}

/// Elements at any indices; where the mask is false an index may be out of range, and gives 0.
fn lanes<R: Real>(
    view: &View<R>,
    index: impl Fn(usize, usize) -> i64,
    mask: Option<&[bool]>,
    n: usize,
    out: &mut Vector<R>,
) -> Result<(), OpError> {
    fn each<T: Default>(
        out: &mut Vec<T>,
        n: usize,
        at: impl Fn(usize) -> Result<Option<usize>, OpError>,
        get: impl Fn(usize) -> T,
    ) -> Result<(), OpError> {
        out.clear();
        for i in 0..n {
            out.push(at(i)?.map_or(T::default(), &get));
        }
        Ok(())
    }
    let at = |i: usize| {
        let mut position = view.offset;
        for (a, (&extent, &stride)) in view.shape.iter().zip(&view.strides).enumerate() {
            let at = index(a, i);
            match usize::try_from(at) {
                Ok(at) if at < extent => position += at * stride,
                _ => {
                    // A load that is the same for the whole row is wanted where any element wants it.
                    let wanted = mask.is_none_or(|m| if n == 1 { m.contains(&true) } else { pick(m, i) });
                    return if wanted { Err(OpError::Index { index: at, at: i, extent }) } else { Ok(None) };
                }
            }
        }
        Ok(Some(position))
    };
    match (view.data, out) {
        (Data::Real(v), Vector::Real(o)) => each(o, n, at, |p| v[p]),
        (Data::Int(v), Vector::Int(o)) => each(o, n, at, |p| v[p]),
        (Data::U32(v), Vector::Int(o)) => each(o, n, at, |p| v[p] as i32),
        (Data::Bool(v), Vector::Bool(o)) => each(o, n, at, |p| v[p]),
        _ => Err(wrong()),
    }
}

fn masked<'a, R>(mask: &Option<Reg>, regs: &'a [Vector<R>]) -> Result<Option<&'a [bool]>, OpError> {
    mask.map(|m| boolean(&regs[m])).transpose()
}

/// An element of a register.
pub(super) fn pick<T: Copy>(v: &[T], i: usize) -> T {
    if v.len() == 1 { v[0] } else { v[i] }
}
