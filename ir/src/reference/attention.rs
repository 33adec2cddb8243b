//! Attention of plans: the rows that it makes itself, the projection behind it, and what its epilogue takes as
//! accumulators.

use super::error::OpError;
use super::layout::GRAIN;
use super::matmul::dot;
use super::precision::{Precision, Real};
use super::products::{floats, result};
use super::reduce::{max, softmax_row, sum};
use super::run::{fill_part, fill_row, run_stages};
use super::scalar::Program;
use super::store::{Domain, run_store};
use super::vector::{Env, GROUP, Point, Scratch, int, pick};
use super::work::{AttentionCode, RowCode, Target};
use crate::dtype::DType;
use crate::plan::{Attention, AttentionProjection};
use rayon::prelude::*;

/// Rows that a prologue made: queries [tokens, heads, head_dim], and own keys [tokens, kv_heads, head_dim].
struct Made<R> {
    queries: Vec<R>,
    keys: Vec<R>,
}

/// What an attention stores: accumulators [tokens, rows, elements] ([`Attention::stored`]), and the rows of its
/// prologue.
pub(super) struct Attended<R> {
    acc: Vec<R>,
    made: Option<Made<R>>,
}

/// Runs an attention and its prologue; [`store`] is left.
///
/// # Errors
/// When an index is out of range or arrays do not fit.
pub(super) fn attend<R: Real>(
    a: &Attention,
    code: &AttentionCode,
    env: &Env<R>,
) -> Result<Attended<R>, OpError> {
    let tokens = a.tokens.eval(&env.bind);
    check_shapes(a, tokens, env)?;
    let made = match (&a.prologue, &code.prologue) {
        (Some(p), Some(code)) => {
            let query_shape = [tokens, a.kv_heads * a.group];
            let queries = rows(&code.query, (query_shape, a.head_dim), p.dtype, env)?;
            let keys = rows(&code.key, ([tokens, a.kv_heads], a.head_dim), code.key_type, env)?;
            Some(Made { queries, keys })
        }
        _ => None,
    };
    let acc = accumulators(a, tokens, code, made.as_ref(), env)?;
    let acc = match (&a.projection, &code.projected) {
        (Some(p), Some(value)) => projected(a, p, value, &acc, env)?,
        _ => acc,
    };
    Ok(Attended { acc, made })
}

/// What the query heads of each head of keys add to the projection: [tokens, kv_heads, columns].
fn projected<R: Real>(
    a: &Attention,
    p: &AttentionProjection,
    value: &Program,
    acc: &[R],
    env: &Env<R>,
) -> Result<Vec<R>, OpError> {
    let heads = a.kv_heads * a.group;
    let (weight, view) = floats(env, p.weight.index())?;
    if view.shape[..] != [p.columns, heads * a.value_dim] {
        return Err(OpError::Shape(format!("a projection of {heads} heads by {:?}", view.shape)));
    }
    let mut values = vec![R::ZERO; acc.len()];
    let mut scratch = Scratch::new(value);
    for (i, (row, acc)) in
        values.chunks_mut(a.value_dim.max(1)).zip(acc.chunks(a.value_dim.max(1))).enumerate()
    {
        fill_row(value, &mut scratch, env, &[i / heads, i % heads, 0], &[], [acc, &[]], row)?;
    }
    let k = a.group * a.value_dim;
    if k == 0 {
        return Err(OpError::Shape("a projection of no elements".into()));
    }
    let mut out = Vec::with_capacity(acc.len() / k * p.columns);
    for (i, row) in values.chunks(k).enumerate() {
        let first = i % a.kv_heads * k;
        let column = |j: usize| dot(row, &weight[j * heads * a.value_dim + first..][..k]);
        out.extend((0..p.columns).map(column));
    }
    Ok(out)
}

/// Stores what an attention made. Nothing of what it read is needed but what its stores refer to.
///
/// # Errors
/// When an index is out of range or arrays do not fit.
pub(super) fn store<R: Real>(
    a: &Attention,
    code: &AttentionCode,
    Attended { acc, made }: &Attended<R>,
    env: &Env<R>,
    targets: &mut [Target<R>],
) -> Result<(), OpError> {
    let tokens = a.tokens.eval(&env.bind);
    if let (Some(made), Some(code)) = (made, &code.prologue) {
        let shape = [tokens, a.kv_heads, a.head_dim];
        let domain = Domain { shape: &shape, acc: [&made.keys, &[]], reduced: &[] };
        run_store(&code.keep, &domain, env, targets)?;
    }
    let [rows, elements] = a.stored();
    let shape = [tokens, rows, elements];
    let domain = Domain { shape: &shape, acc: [acc, &[]], reduced: &[] };
    code.stores.iter().try_for_each(|s| run_store(s, &domain, env, targets))
}

/// Whether the arrays are what the attention says.
fn check_shapes<R: Real>(a: &Attention, tokens: usize, env: &Env<R>) -> Result<(), OpError> {
    let [q, k, v] = [a.q, a.keys, a.values].map(|o| floats(env, o.index()).map(|(_, view)| &view.shape));
    let (q, k, v) = (q?, k?, v?);
    let slots = k.first().copied().unwrap_or(0);
    let fits = a.kv_heads.checked_mul(a.group).is_some_and(|heads| q[..] == [tokens, heads, a.head_dim])
        && k[..] == [slots, a.kv_heads, a.head_dim]
        && v.len() == 3
        && v[..2] == [slots, a.kv_heads]
        && v[2] >= a.value_dim;
    if fits { Ok(()) } else { Err(OpError::Shape(format!("attention of {q:?}, {k:?}, {v:?}"))) }
}

/// Rows [shape, length] that a prologue makes, rounded as an array of the type is.
fn rows<R: Real>(
    (value, stages): &RowCode,
    (shape, length): ([usize; 2], usize),
    dtype: DType,
    env: &Env<R>,
) -> Result<Vec<R>, OpError> {
    let mut reduced = vec![Vec::with_capacity(stages.len()); shape[0] * shape[1]];
    run_stages(stages, &shape, length, env, &mut reduced)?;
    let mut made = vec![R::ZERO; reduced.len() * length];
    let mut scratch = Scratch::new(value);
    for (i, (row, reduced)) in made.chunks_mut(length.max(1)).zip(&reduced).enumerate() {
        let at = [i / shape[1], i % shape[1], 0];
        fill_row(value, &mut scratch, env, &at, reduced, [&[]; GROUP], row)?;
    }
    if env.precision == Precision::Rounded && dtype.is_half() {
        made.iter_mut().for_each(|x| *x = x.round_to(dtype));
    }
    Ok(made)
}

/// Accumulators [tokens, heads, value_dim] of an attention, token by token and head by head.
fn accumulators<R: Real>(
    a: &Attention,
    tokens: usize,
    AttentionCode { slot, length, score, sink, .. }: &AttentionCode,
    made: Option<&Made<R>>,
    env: &Env<R>,
) -> Result<Vec<R>, OpError> {
    let heads = a.kv_heads * a.group;
    let ((q, _), (keys, kv), (values, vv)) =
        (floats(env, a.q.index())?, floats(env, a.keys.index())?, floats(env, a.values.index())?);
    let slots_of = kv.shape.first().copied().unwrap_or(0);
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
        let query = &made.map_or(q, |m| &m.queries)[i * a.head_dim..(i + 1) * a.head_dim];
        let key = |s: &usize| &keys[(s * a.kv_heads + g) * a.head_dim..][..a.head_dim];
        let (from, list) = &lists[t];
        let mut raw: Vec<R> = list.iter().map(|s| dot(query, key(s))).collect();
        if let (Some(made), Some(own)) = (made, raw.last_mut()) {
            *own = dot(query, &made.keys[(t * a.kv_heads + g) * a.head_dim..][..a.head_dim]);
        }
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
