//! Matrix products of plans: what their epilogues take as accumulators.

use super::error::OpError;
use super::layout::GRAIN;
use super::matmul::{Matrix, product};
use super::precision::Real;
use super::routed;
use super::run::{fill_row, reduce};
use super::scalar::Program;
use super::tensor::Data;
use super::vector::{Env, GROUP, Point, Scratch, View, int, pick};
use crate::plan::{MatMul, Routed};
use crate::scalar::Reduce;
use rayon::prelude::*;

/// Floats of an operand, from its first element on.
pub(super) fn floats<'a, R: Real>(
    env: &'a Env<R>,
    operand: usize,
) -> Result<(&'a [R], &'a View<'a, R>), OpError> {
    let view = env.reads.get(operand).and_then(Option::as_ref);
    let view = view.ok_or_else(|| OpError::Unsupported(format!("operand {operand} cannot be read here")))?;
    match view.data {
        Data::Real(v) => Ok((&v[view.offset..], view)),
        Data::Int(_) | Data::U32(_) | Data::Bool(_) => {
            Err(OpError::Type(format!("operand {operand} does not hold floats")))
        }
    }
}

/// Accumulators [rows, n · group] of a matrix product; its left operand is evaluated first unless it is a plain
/// array (then `plain`).
pub(super) fn run_matmul<R: Real>(
    m: &MatMul,
    reduced: &[Vec<R>],
    a: &Program,
    plain: Option<usize>,
    env: &Env<R>,
) -> Result<Vec<R>, OpError> {
    let (b, view) = floats(env, m.b.index())?;
    let (rows, n) = (reduced.len(), m.columns());
    if view.shape != [n, m.k] {
        return Err(OpError::Shape(format!("right operand {:?} is not [{n}, {}]", view.shape, m.k)));
    }
    let mut acc = vec![R::ZERO; rows * n];
    if acc.is_empty() || m.k == 0 {
        return Ok(acc);
    }
    let plain = match plain {
        Some(operand) => Some(floats(env, operand)?).filter(|(_, v)| v.shape == [rows, m.k]).map(|(d, _)| d),
        None => None,
    };
    let made;
    let left = match plain {
        Some(data) => data,
        None => {
            let mut values = vec![R::ZERO; rows * m.k];
            let each = |i: usize, row: &mut [R]| {
                fill_row(a, &mut Scratch::new(a), env, &[i, 0], &reduced[i], [&[]; GROUP], row)
            };
            if values.len() < 2 * GRAIN {
                values.chunks_mut(m.k).enumerate().try_for_each(|(i, r)| each(i, r))?;
            } else {
                values.par_chunks_mut(m.k).enumerate().try_for_each(|(i, r)| each(i, r))?;
            }
            made = values;
            &made
        }
    };
    let left = Matrix { data: left, offset: 0, rows: m.k, cols: 1 };
    let right = Matrix { data: b, offset: 0, rows: m.k, cols: 1 };
    product(left, right, &mut acc, [rows, n, m.k])?;
    Ok(acc)
}

/// A row epilogue: puts its value in the accumulators' place, [rows, n], and appends each row's reductions.
pub(super) fn run_row<R: Real>(
    value: &Program,
    stages: &[(Reduce, Program)],
    n: usize,
    env: &Env<R>,
    acc: &mut [R],
    reduced: &mut [Vec<R>],
) -> Result<(), OpError> {
    if n == 0 {
        return Ok(());
    }
    let mut scratch = Scratch::new(value);
    let mut scratches: Vec<Scratch<R>> = stages.iter().map(|(_, p)| Scratch::new(p)).collect();
    let mut values = vec![R::ZERO; n];
    for (i, (row, done)) in acc.chunks_mut(n).zip(reduced).enumerate() {
        fill_row(value, &mut scratch, env, &[i, 0], done, [row, &[]], &mut values)?;
        row.copy_from_slice(&values);
        for ((op, program), scratch) in stages.iter().zip(&mut scratches) {
            fill_row(program, scratch, env, &[i, 0], done, [row, &[]], &mut values)?;
            done.push(reduce(*op, &values));
        }
    }
    Ok(())
}

/// Values of an integer expression of Coord 0, for each of the rows.
pub(super) fn positions<R: Real>(p: &Program, rows: usize, env: &Env<R>) -> Result<Vec<i32>, OpError> {
    let one = result(p)?;
    let mut scratch = Scratch::new(p);
    let at = |row: usize, scratch: &mut Scratch<R>| {
        let none = Point { coords: &[row], from: 0, n: 1, reduced: &[], acc: [&[]; GROUP] };
        scratch.run(p, env, &none)?;
        Ok(pick(int(scratch.get(one))?, 0))
    };
    (0..rows).map(|row| at(row, &mut scratch)).collect()
}

/// Accumulators [tokens, picks, n] of a routed product, for each of its weights.
pub(super) fn run_routed<R: Real>(r: &Routed, env: &Env<R>) -> Result<Vec<Vec<R>>, OpError> {
    let tokens = r.tokens.eval(&env.bind);
    let (a, view) = floats(env, r.a.index())?;
    let rows = view.shape.get(1).copied().unwrap_or(0);
    let picks = integers(env, r.index.index())?;
    if view.shape != [tokens, rows, r.k] || (rows != 1 && rows != r.picks) || picks.len() != tokens * r.picks
    {
        return Err(OpError::Shape(format!("routed products of {:?} by {} picks", view.shape, picks.len())));
    }
    let of = |b: &crate::ids::OperandId| {
        let (b, view) = floats(env, b.index())?;
        if view.shape != [r.experts, r.n, r.k] {
            return Err(OpError::Shape(format!("matrices {:?}", view.shape)));
        }
        routed::products(a, b, picks, [rows, r.picks, r.experts, r.n, r.k])
    };
    r.weights.iter().map(of).collect()
}

/// Order and begins of a grouping.
pub(super) fn run_grouping<R: Real>(experts: usize, env: &Env<R>) -> Result<[Vec<i32>; 2], OpError> {
    let (order, begins) = routed::grouped(integers(env, 0)?, experts)?;
    Ok([order, begins])
}

/// Integers of an operand in row-major order.
fn integers<'a, R: Real>(env: &'a Env<R>, operand: usize) -> Result<&'a [i32], OpError> {
    let view = env.reads.get(operand).and_then(Option::as_ref);
    let view = view.ok_or_else(|| OpError::Unsupported(format!("operand {operand} cannot be read here")))?;
    let len: usize = view.shape.iter().product();
    match view.data {
        Data::Int(v) => Ok(&v[view.offset..view.offset + len]),
        Data::Real(_) | Data::U32(_) | Data::Bool(_) => {
            Err(OpError::Type(format!("operand {operand} does not hold integers")))
        }
    }
}

/// Register of a program's one result.
pub(super) fn result(p: &Program) -> Result<usize, OpError> {
    p.results.first().copied().ok_or_else(|| OpError::Shape("expected one expression".into()))
}
