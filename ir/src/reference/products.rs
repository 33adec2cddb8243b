//! Matrix products and attention of plans: what their epilogues take as accumulators.

use super::error::OpError;
use super::layout::GRAIN;
use super::matmul::{Matrix, dot, product};
use super::precision::Real;
use super::reduce::{max, softmax_row, sum};
use super::routed;
use super::run::{fill_part, fill_row, reduce};
use super::scalar::Program;
use super::tensor::Data;
use super::vector::{Env, GROUP, Point, Scratch, View, int, pick};
use crate::plan::{Attention, MatMul, Routed};
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

/// Accumulators [tokens, heads, value_dim] of an attention, token by token and head by head.
pub(super) fn run_attention<R: Real>(
    a: &Attention,
    tokens: usize,
    [slot, length, score]: [&Program; 3],
    sink: Option<&Program>,
    env: &Env<R>,
) -> Result<Vec<R>, OpError> {
    let heads = a.kv_heads * a.group;
    let ((q, qv), (keys, kv), (values, vv)) =
        (floats(env, a.q.index())?, floats(env, a.keys.index())?, floats(env, a.values.index())?);
    let slots_of = kv.shape.first().copied().unwrap_or(0);
    if qv.shape != [tokens, heads, a.head_dim]
        || kv.shape != [slots_of, a.kv_heads, a.head_dim]
        || vv.shape[..2] != [slots_of, a.kv_heads]
        || vv.shape[2..].iter().any(|n| *n < a.value_dim)
    {
        return Err(OpError::Shape(format!("attention of {:?}, {:?}, {:?}", qv.shape, kv.shape, vv.shape)));
    }
    let (one_slot, one_length) = (result(slot)?, result(length)?);
    // First key of each token, and the slots of it and those behind.
    let mut lists: Vec<(usize, Vec<usize>)> = Vec::with_capacity(tokens);
    let (mut slots, mut lengths) = (Scratch::new(slot), Scratch::new(length));
    for t in 0..tokens {
        let none = Point { coords: &[t, 0], from: 0, n: 1, reduced: &[], acc: [&[]; GROUP] };
        lengths.run(length, env, &none)?;
        let length = int(lengths.get(one_length))?.first().map_or(0, |&n| n.max(0) as usize);
        let n = a.visible(length);
        let from = length - n;
        let mut list = Vec::with_capacity(n);
        if n > 0 {
            slots.run(slot, env, &Point { from, n, ..none })?;
            let found = int(slots.get(one_slot))?;
            for j in 0..n {
                let index = pick(found, j);
                let inside = usize::try_from(index).ok().filter(|&s| s < slots_of);
                list.push(inside.ok_or(OpError::Index {
                    index: index.into(),
                    at: from + j,
                    extent: slots_of,
                })?);
            }
        }
        lists.push((from, list));
    }
    let row = vv.shape.last().copied().unwrap_or(a.value_dim);
    let mut sinks = vec![R::ZERO; heads];
    if let Some(sink) = sink {
        fill_row(sink, &mut Scratch::new(sink), env, &[0, 0], &[], [&[]; GROUP], &mut sinks)?;
    }
    let mut out = vec![R::ZERO; tokens * heads * a.value_dim];
    let each = |i: usize, o: &mut [R]| -> Result<(), OpError> {
        let (t, h) = (i / heads, i % heads);
        let g = h / a.group;
        let query = &q[i * a.head_dim..(i + 1) * a.head_dim];
        let key = |s: &usize| &keys[(s * a.kv_heads + g) * a.head_dim..][..a.head_dim];
        let (from, list) = &lists[t];
        let raw: Vec<R> = list.iter().map(|s| dot(query, key(s))).collect();
        let mut weights = vec![R::ZERO; raw.len()];
        fill_part(score, &mut Scratch::new(score), env, (&[t, h, 0], *from), [&raw, &[]], &mut weights)?;
        match sink {
            None => softmax_row(&mut weights),
            Some(_) => softmax_beside(&mut weights, sinks[h]),
        }
        for (s, &w) in list.iter().zip(&weights) {
            let value = &values[(s * a.kv_heads + g) * row..][..a.value_dim];
            o.iter_mut().zip(value).for_each(|(o, &v)| *o = *o + w * v);
        }
        Ok(())
    };
    if a.value_dim > 0 {
        let work: usize =
            lists.iter().map(|(_, list)| list.len()).sum::<usize>() * heads * (a.head_dim + a.value_dim);
        if work < 2 * GRAIN {
            out.chunks_mut(a.value_dim).enumerate().try_for_each(|(i, o)| each(i, o))?;
        } else {
            out.par_chunks_mut(a.value_dim).enumerate().try_for_each(|(i, o)| each(i, o))?;
        }
    }
    Ok(out)
}

/// Softmax of a row and one more score, in place; the weight of that one is dropped.
fn softmax_beside<R: Real>(row: &mut [R], sink: R) {
    let m = max(row).larger(sink);
    row.iter_mut().for_each(|x| *x = (*x - m).exp());
    let scale = R::ONE / (sum(row) + (sink - m).exp());
    row.iter_mut().for_each(|x| *x = *x * scale);
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
fn result(p: &Program) -> Result<usize, OpError> {
    p.results.first().copied().ok_or_else(|| OpError::Shape("expected one expression".into()))
}
