//! Steps on each row of plans: each step for all rows, its result an operand of the later ones.

use super::error::OpError;
use super::layout::Layout;
use super::matmul::{Matrix, product};
use super::precision::{Precision, Real};
use super::products::floats;
use super::reduce::{max, sum};
use super::routed::largest;
use super::run::fill_row;
use super::scalar::{Program, compile};
use super::tensor::Data;
use super::vector::{CHUNK, Env, GROUP, Point, Scratch, Vector, View, int, pick};
use super::work::Target;
use crate::dtype::DType;
use crate::ids::OperandId;
use crate::plan::{Operand, Scalar, Step, StepKind, Steps, Work};
use crate::scalar::Reduce;
use crate::shape::Dim;
use std::sync::Arc;

/// Compiles the steps of a work: results of steps become operands after its reads.
///
/// # Errors
/// When expressions do not type, or refer to what does not exist.
pub(super) fn code(s: &Steps, work: &Work) -> Result<Vec<Program>, OpError> {
    let mut operands = work.reads.clone();
    let mut codes = Vec::with_capacity(s.steps.len());
    for step in &s.steps {
        let (value, coords) = step.kind.value(step.shape.len());
        let value = loaded(value, work.reads.len());
        codes.push(compile(&[&value], None, Some(coords - 1), &operands)?);
        let shape = std::iter::once(s.rows).chain(step.shape.iter().map(|&n| Dim::Const(n))).collect();
        operands.push(Operand { name: "step".into(), dtype: step.dtype, shape, constant: false });
    }
    Ok(codes)
}

/// The expression with results of steps as operands from `first` on.
fn loaded(e: &Scalar, first: usize) -> Scalar {
    match e {
        Scalar::Local(i, at) => {
            let row = std::iter::once(Scalar::Coord(0));
            Scalar::Load(
                OperandId::new(first + usize::from(*i)),
                row.chain(at.iter().map(|x| loaded(x, first))).collect(),
            )
        }
        other => other.map_children(&mut |x| loaded(x, first)),
    }
}

/// Runs the steps.
///
/// # Errors
/// When an index is out of range or arrays do not fit.
pub(super) fn run<R: Real>(
    s: &Steps,
    codes: &[Program],
    env: &Env<R>,
    targets: &mut [Target<R>],
) -> Result<(), OpError> {
    let rows = s.rows.eval(&env.bind);
    let mut done: Vec<Data<R>> = Vec::with_capacity(s.steps.len());
    for (step, program) in s.steps.iter().zip(codes) {
        let shape_of = |step: &Step| std::iter::once(rows).chain(step.shape.iter().copied()).collect();
        let locals = s.steps.iter().zip(&done).map(|(step, data)| {
            let Layout { shape, strides, offset } = Layout::packed(shape_of(step));
            Some(View { data, offset, shape, strides })
        });
        let reads = env.reads.iter().cloned().chain(locals).collect();
        let made = one(step, program, rows, &Env { reads, ..*env })?;
        if let Some(output) = step.output {
            let target = targets.get_mut(usize::from(output));
            let target = target.ok_or_else(|| OpError::Shape(format!("output {output} is not given")))?;
            write(&made, env.precision, target)?;
        }
        done.push(made);
    }
    Ok(())
}

/// The result of a step for all rows.
fn one<R: Real>(step: &Step, program: &Program, rows: usize, env: &Env<R>) -> Result<Data<R>, OpError> {
    let mut scratch = Scratch::new(program);
    let (last, outer) =
        step.shape.split_last().ok_or_else(|| OpError::Shape("a step without axes".into()))?;
    let lines: usize = outer.iter().product();
    // Coordinates of a line: the row, the outer axes, and a place for the innermost.
    let coords = |line: usize, more: &[usize]| {
        let mut at = vec![line / lines.max(1)];
        let mut rest = line % lines.max(1);
        let mut inner: Vec<usize> = outer.iter().rev().map(|&n| (rest % n, rest /= n).0).collect();
        inner.reverse();
        at.extend(inner);
        at.extend(more);
        at
    };
    let mut reals = |at: &[usize], n: usize| -> Result<Vec<R>, OpError> {
        let mut values = vec![R::ZERO; n];
        fill_row(program, &mut scratch, env, at, &[], [&[]; GROUP], &mut values)?;
        Ok(values)
    };
    let all = rows * lines;
    let data = match &step.kind {
        StepKind::Map(_) if step.dtype == DType::I32 => {
            let mut values = Vec::with_capacity(all * last);
            for line in 0..all {
                integers(program, env, &coords(line, &[0]), *last, &mut values)?;
            }
            return Ok(Data::Int(Arc::new(values)));
        }
        StepKind::Map(_) => {
            let mut values = Vec::with_capacity(all * last);
            for line in 0..all {
                values.extend(reals(&coords(line, &[0]), *last)?);
            }
            values
        }
        StepKind::Reduce { op, extent, .. } => {
            let mut values = Vec::with_capacity(all * last);
            for (line, i) in (0..all).flat_map(|l| (0..*last).map(move |i| (l, i))) {
                let of = reals(&coords(line, &[i, 0]), *extent)?;
                values.push(match op {
                    Reduce::Sum => sum(&of),
                    Reduce::Max => max(&of),
                    Reduce::Mean => sum(&of) / R::from_f64(*extent as f64),
                });
            }
            values
        }
        StepKind::Product { k, b, .. } => {
            let (right, view) = floats(env, b.index())?;
            if view.shape != [*last, *k] {
                return Err(OpError::Shape(format!("right operand {:?} is not [{last}, {k}]", view.shape)));
            }
            let mut values = vec![R::ZERO; rows * last];
            let mut left = Vec::with_capacity(rows * k);
            for row in 0..rows {
                left.extend(reals(&[row, 0], *k)?);
            }
            let matrix = |data| Matrix { data, offset: 0, rows: *k, cols: 1 };
            if !values.is_empty() && *k > 0 {
                product(matrix(&left), matrix(right), &mut values, [rows, *last, *k])?;
            }
            values
        }
        StepKind::TopK { extent, .. } => {
            let mut picks = Vec::with_capacity(all * last);
            for line in 0..all {
                picks.extend(largest(&reals(&coords(line, &[0]), *extent)?, *last));
            }
            return Ok(Data::Int(Arc::new(picks)));
        }
    };
    Ok(Data::Real(Arc::new(data)))
}

/// Appends the integers of a line.
fn integers<R: Real>(
    program: &Program,
    env: &Env<R>,
    at: &[usize],
    n: usize,
    out: &mut Vec<i32>,
) -> Result<(), OpError> {
    let &[result] = &program.results[..] else {
        return Err(OpError::Shape("expected one expression".into()));
    };
    let mut scratch = Scratch::new(program);
    for from in (0..n).step_by(CHUNK) {
        let n = CHUNK.min(n - from);
        scratch.run(program, env, &Point { coords: at, from, n, reduced: &[], acc: [&[]; GROUP] })?;
        let values: &Vector<R> = scratch.get(result);
        let values = int(values)?;
        out.extend((0..n).map(|i| pick(values, i)));
    }
    Ok(())
}

/// Stores a result, rounded where the precision asks for it.
fn write<R: Real>(from: &Data<R>, precision: Precision, to: &mut Target<R>) -> Result<(), OpError> {
    let round = precision == Precision::Rounded && to.dtype.is_half();
    match (from, &mut *to.data) {
        (Data::Real(f), Data::Real(t)) if f.len() == t.len() => {
            let rounded = |x: &R| if round { x.round_to(to.dtype) } else { *x };
            Arc::make_mut(t).iter_mut().zip(f.iter()).for_each(|(t, f)| *t = rounded(f));
            Ok(())
        }
        (Data::Int(f), Data::Int(t)) if f.len() == t.len() => {
            Arc::make_mut(t).copy_from_slice(f);
            Ok(())
        }
        _ => {
            Err(OpError::Shape(format!("{} elements of a step for an output of {:?}", from.len(), to.shape)))
        }
    }
}
