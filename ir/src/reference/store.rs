//! Stores of a work: evaluated over all points of a domain, in place where a store's indices are the domain's.

use super::error::OpError;
use super::layout::{GRAIN, Layout};
use super::precision::{Precision, Real};
use super::scalar::Affine;
use super::tensor::Data;
use super::vector::{CHUNK, Env, GROUP, Point, Scratch, Vector, boolean, int, pick, real};
use super::work::{StoreCode, Target};
use rayon::prelude::*;
use std::sync::Arc;

/// Points that stores run over, with what their expressions refer to.
pub(super) struct Domain<'a, R> {
    pub shape: &'a [usize],
    /// Accumulators of all points, for each of the group; empty where there are none.
    pub acc: [&'a [R]; GROUP],
    /// Results of stages, for each row.
    pub reduced: &'a [Vec<R>],
}

/// Coordinates of a row: position `row` over all axes but the innermost, which is 0.
pub(super) fn coords(shape: &[usize], inner: Option<usize>, row: usize, out: &mut Vec<usize>) {
    out.clear();
    out.resize(shape.len(), 0);
    let mut rest = row;
    for axis in (0..shape.len()).rev().filter(|&a| Some(a) != inner) {
        out[axis] = rest % shape[axis];
        rest /= shape[axis];
    }
}

/// Copies values, or repeats the only one.
pub(super) fn spread<S: Copy, T>(from: &[S], to: &mut [T], f: impl Fn(S) -> T) {
    if from.len() == to.len() {
        to.iter_mut().zip(from).for_each(|(t, &s)| *t = f(s));
    } else if let Some(&s) = from.first() {
        to.iter_mut().for_each(|t| *t = f(s));
    }
}

pub(super) fn run_store<R: Real>(
    s: &StoreCode,
    domain: &Domain<R>,
    env: &Env<R>,
    targets: &mut [Target<R>],
) -> Result<(), OpError> {
    let Some(target) = targets.get_mut(s.output) else {
        return Err(OpError::Shape(format!("output {} is not given", s.output)));
    };
    let dtype = target.dtype;
    let round = env.precision == Precision::Rounded && dtype.is_half();
    let shape = &target.shape[..];
    match target.data {
        Data::Real(v) => {
            let to = |x: R| if round { x.round_to(dtype) } else { x };
            store(s, domain, env, shape, Arc::make_mut(v).as_mut_slice(), real, to)
        }
        Data::Int(v) => store(s, domain, env, shape, Arc::make_mut(v).as_mut_slice(), int, |x| x),
        Data::U32(v) => store(s, domain, env, shape, Arc::make_mut(v).as_mut_slice(), int, |x| x as u32),
        Data::Bool(v) => store(s, domain, env, shape, Arc::make_mut(v).as_mut_slice(), boolean, |x| x),
    }
}

/// Takes the first point of a chunk, its number of points, and the registers.
type Put<'a, R> = &'a mut dyn FnMut(usize, usize, &Scratch<R>) -> Result<(), OpError>;

fn store<R: Real, S: Copy, T: Send>(
    s: &StoreCode,
    domain: &Domain<R>,
    env: &Env<R>,
    target: &[usize],
    out: &mut [T],
    get: for<'v> fn(&'v Vector<R>) -> Result<&'v [S], OpError>,
    to: impl Fn(S) -> T + Sync,
) -> Result<(), OpError> {
    let length = s.inner.map_or(1, |a| domain.shape[a]);
    let total: usize = domain.shape.iter().product();
    if total == 0 {
        return Ok(());
    }
    let strides = Layout::packed(target.to_vec()).strides;
    let value = s.program.results[s.axes];
    let guard = s.program.results.get(s.axes + 1);
    // Calls `put` with each evaluated chunk of the rows `first..first + rows`.
    let walk = |first: usize, rows: usize, put: Put<R>| -> Result<(), OpError> {
        let mut scratch = Scratch::new(&s.program);
        let mut at = Vec::new();
        for row in first..first + rows {
            coords(domain.shape, s.inner, row, &mut at);
            for from in (0..length).step_by(CHUNK) {
                let n = CHUNK.min(length - from);
                let p = row * length + from;
                let acc = domain.acc.map(|a| if a.is_empty() { a } else { &a[p..p + n] });
                let reduced = domain.reduced.get(row).map_or(&[][..], Vec::as_slice);
                scratch.run(&s.program, env, &Point { coords: &at, from, n, reduced, acc })?;
                put(p, n, &scratch)?;
            }
        }
        Ok(())
    };
    if is_in_place(s.affine.as_deref(), domain.shape, &strides) && total <= out.len() {
        let many = (GRAIN / length).max(1);
        let part = |i: usize, o: &mut [T]| {
            let first = i * many;
            walk(first, o.len() / length, &mut |p, n, scratch| {
                let start = p - first * length;
                spread(get(scratch.get(value))?, &mut o[start..start + n], &to);
                Ok(())
            })
        };
        let out = &mut out[..total];
        return if total < 2 * GRAIN {
            out.chunks_mut(many * length).enumerate().try_for_each(|(i, o)| part(i, o))
        } else {
            out.par_chunks_mut(many * length).enumerate().try_for_each(|(i, o)| part(i, o))
        };
    }
    let rows = total / length;
    walk(0, rows, &mut |_, n, scratch| {
        let values = get(scratch.get(value))?;
        let index = s.program.results[..s.axes].iter().map(|&r| int(scratch.get(r)));
        let index = index.collect::<Result<Vec<&[i32]>, OpError>>()?;
        let on = guard.map(|&g| boolean(scratch.get(g))).transpose()?;
        for i in 0..n {
            if on.is_some_and(|on| !pick(on, i)) {
                continue;
            }
            let mut position = 0;
            for ((index, &extent), &stride) in index.iter().zip(target).zip(&strides) {
                let at = pick(index, i);
                match usize::try_from(at) {
                    Ok(at) if at < extent => position += at * stride,
                    _ => return Err(OpError::Index { index: at.into(), at: i, extent }),
                }
            }
            if let Some(o) = out.get_mut(position) {
                *o = to(pick(values, i));
            }
        }
        Ok(())
    })
}

/// Whether a store writes point i of the domain to element i of its output.
fn is_in_place(forms: Option<&[Affine]>, domain: &[usize], strides: &[usize]) -> bool {
    let Some(forms) = forms else { return false };
    let mut constant = 0i64;
    let mut factors = vec![0i64; domain.len()];
    for (form, &stride) in forms.iter().zip(strides) {
        constant += form.constant * stride as i64;
        for (f, g) in factors.iter_mut().zip(&form.factors) {
            *f += g * stride as i64;
        }
    }
    let packed = Layout::packed(domain.to_vec()).strides;
    constant == 0
        && factors.iter().zip(&packed).zip(domain).all(|((&f, &p), &extent)| f == p as i64 || extent == 1)
}
