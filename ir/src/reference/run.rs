//! Runs compiled works on arrays.

use super::attention::{self, Attended};
use super::error::OpError;
use super::layout::{GRAIN, Layout};
use super::precision::Real;
use super::products::{positions, run_grouping, run_matmul, run_routed, run_row};
use super::reduce::{max, sum};
use super::sample::{penalize, sample};
use super::scalar::Program;
use super::steps;
use super::store::{Domain, coords, run_store, spread};
use super::tensor::{Data, Tensor};
use super::vector::{CHUNK, Env, GROUP, Point, Scratch, real};
use super::work::{Code, Kernel, StoreCode, Target};
use crate::ids::OperandId;
use crate::plan::{Compute, Draw, Loop, Work};
use crate::scalar::Reduce;
use rayon::prelude::*;
use std::sync::Arc;

/// Runs a work other than sampling; of an attention that ran already, the stores.
///
/// # Errors
/// When an index is out of range or arrays do not fit.
pub(super) fn run<R: Real>(
    work: &Work,
    code: &Code,
    attended: Option<&Attended<R>>,
    env: &Env<R>,
    targets: &mut [Target<R>],
) -> Result<(), OpError> {
    match (&work.compute, &code.kernel) {
        (Compute::Loop(l), Kernel::Loop { stages, element, row }) => {
            run_loop(l, stages, element, row, env, targets)
        }
        (Compute::MatMul(m), Kernel::MatMul { a, plain, stages, row, stores, draw }) => {
            let rows = m.m.eval(&env.bind);
            let mut reduced = vec![Vec::with_capacity(stages.len()); rows];
            run_stages(stages, &[rows], m.k, env, &mut reduced)?;
            let acc = run_matmul(m, &reduced, a, *plain, env)?;
            let mut parts: Vec<Vec<R>> =
                (0..m.group).map(|i| acc.iter().skip(i).step_by(m.group).copied().collect()).collect();
            if let (Some((value, stages)), [acc]) = (row, &mut parts[..]) {
                run_row(value, stages, m.n, env, acc, &mut reduced)?;
            }
            let part = |i: usize| parts.get(i).map_or(&[][..], Vec::as_slice);
            let domain = Domain { shape: &[rows, m.n], acc: [part(0), part(1)], reduced: &reduced };
            stores.iter().try_for_each(|s| run_store(s, &domain, env, targets))?;
            match (&m.draw, draw) {
                (Some(d), Some((position, base))) => {
                    run_draw(d, [Some(position), base.as_ref()], rows, env, targets)
                }
                _ => Ok(()),
            }
        }
        (Compute::Attention(a), Kernel::Attention(code)) => match attended {
            Some(attended) => attention::store(a, code, attended, env, targets),
            None => attention::store(a, code, &attention::attend(a, code, env)?, env, targets),
        },
        (Compute::Steps(s), Kernel::Steps(codes)) => steps::run(s, codes, env, targets),
        (Compute::Routed(r), Kernel::Routed { stores }) => {
            let acc = run_routed(r, env)?;
            let part = |i: usize| acc.get(i).map_or(&[][..], Vec::as_slice);
            let shape = [r.tokens.eval(&env.bind), r.picks, r.n];
            let domain = Domain { shape: &shape, acc: [part(0), part(1)], reduced: &[] };
            stores.iter().try_for_each(|s| run_store(s, &domain, env, targets))
        }
        (Compute::Grouping(g), Kernel::Grouping) => {
            for (made, target) in run_grouping(g.experts, env)?.into_iter().zip(targets) {
                match target.data {
                    Data::Int(v) if v.len() == made.len() => *v = Arc::new(made),
                    _ => {
                        return Err(OpError::Shape(format!("{} numbers for {:?}", made.len(), target.shape)));
                    }
                }
            }
            Ok(())
        }
        _ => Err(OpError::Unsupported("this work is not run by itself".into())),
    }
}

/// Draws a token from each row of logits that the stores made; `places` are its position and its first slot.
fn run_draw<R: Real>(
    draw: &Draw,
    places: [Option<&Program>; 2],
    rows: usize,
    env: &Env<R>,
    targets: &mut [Target<R>],
) -> Result<(), OpError> {
    let missing = || OpError::Shape("a draw without its arrays".into());
    let target = targets.get(usize::from(draw.logits)).ok_or_else(missing)?;
    let mut logits = Tensor::new(target.data.clone(), target.shape.clone())?;
    let [position, base] = places.map(|place| {
        let of = place.map(|p| Tensor::int(positions(p, rows, env)?, vec![rows]));
        of.ok_or_else(missing)?
    });
    let array = |operand: &OperandId| {
        let view = env.reads.get(operand.index()).and_then(Option::as_ref).ok_or_else(missing)?;
        let layout = Layout { shape: view.shape.clone(), strides: view.strides.clone(), offset: view.offset };
        Ok(Tensor::view(view.data.clone(), layout))
    };
    let position = position?;
    if let Some(p) = &draw.penalties {
        let mut operands = vec![logits, array(&p.history)?, base?, position.clone()];
        operands.extend(p.parameters.iter().map(array).collect::<Result<Vec<_>, OpError>>()?);
        logits = penalize(&operands)?;
    }
    let mut operands = vec![logits, position];
    operands.extend(draw.parameters.iter().map(array).collect::<Result<Vec<_>, OpError>>()?);
    let tokens = targets.get_mut(usize::from(draw.tokens)).ok_or_else(missing)?;
    *tokens.data = sample(&operands)?.into_data();
    Ok(())
}

fn run_loop<R: Real>(
    l: &Loop,
    stages: &[(Reduce, Program)],
    element: &[StoreCode],
    row: &[StoreCode],
    env: &Env<R>,
    targets: &mut [Target<R>],
) -> Result<(), OpError> {
    let domain = env.bind.shape(&l.domain);
    let rows: usize = domain.iter().product();
    let Some(length) = l.reduced.map(|d| d.eval(&env.bind)) else {
        let points = Domain { shape: &domain, acc: [&[]; GROUP], reduced: &[] };
        return element.iter().try_for_each(|s| run_store(s, &points, env, targets));
    };
    let mut reduced: Vec<Vec<R>> = vec![Vec::with_capacity(stages.len()); rows];
    run_stages(stages, &domain, length, env, &mut reduced)?;
    let shape: Vec<usize> = domain.iter().copied().chain([length]).collect();
    let points = Domain { shape: &shape, acc: [&[]; GROUP], reduced: &reduced };
    element.iter().try_for_each(|s| run_store(s, &points, env, targets))?;
    let points = Domain { shape: &domain, acc: [&[]; GROUP], reduced: &reduced };
    row.iter().try_for_each(|s| run_store(s, &points, env, targets))
}

/// Appends to each row of a domain the results of its reductions along an axis of this length.
pub(super) fn run_stages<R: Real>(
    stages: &[(Reduce, Program)],
    domain: &[usize],
    length: usize,
    env: &Env<R>,
    reduced: &mut [Vec<R>],
) -> Result<(), OpError> {
    if stages.is_empty() {
        return Ok(());
    }
    let rows = reduced.len();
    let each = |(first, part): (usize, &mut [Vec<R>])| -> Result<(), OpError> {
        let mut at = Vec::new();
        let mut values = vec![R::ZERO; length];
        for (op, program) in stages {
            let mut scratch = Scratch::new(program);
            for (i, done) in part.iter_mut().enumerate() {
                coords(domain, None, first + i, &mut at);
                fill_row(program, &mut scratch, env, &at, done, [&[]; GROUP], &mut values)?;
                done.push(reduce(*op, &values));
            }
        }
        Ok(())
    };
    let many = (GRAIN / length.max(1)).max(1);
    if rows * length < 2 * GRAIN {
        each((0, reduced))
    } else {
        reduced.par_chunks_mut(many).enumerate().try_for_each(|(i, p)| each((i * many, p)))
    }
}

/// The reduction of a row.
pub(super) fn reduce<R: Real>(op: Reduce, values: &[R]) -> R {
    match op {
        Reduce::Sum => sum(values),
        Reduce::Max => max(values),
        Reduce::Mean => sum(values) / R::from_f64(values.len() as f64),
    }
}

/// Evaluates a program's one float result along a row.
pub(super) fn fill_row<R: Real>(
    program: &Program,
    scratch: &mut Scratch<R>,
    env: &Env<R>,
    coords: &[usize],
    reduced: &[R],
    acc: [&[R]; GROUP],
    out: &mut [R],
) -> Result<(), OpError> {
    fill(program, scratch, env, (coords, 0), (reduced, acc), out)
}

/// The same along the part of a row from a coordinate on, without reductions; accumulators are those of the part.
pub(super) fn fill_part<R: Real>(
    program: &Program,
    scratch: &mut Scratch<R>,
    env: &Env<R>,
    at: (&[usize], usize),
    acc: [&[R]; GROUP],
    out: &mut [R],
) -> Result<(), OpError> {
    fill(program, scratch, env, at, (&[], acc), out)
}

fn fill<R: Real>(
    program: &Program,
    scratch: &mut Scratch<R>,
    env: &Env<R>,
    (coords, from): (&[usize], usize),
    (reduced, acc): (&[R], [&[R]; GROUP]),
    out: &mut [R],
) -> Result<(), OpError> {
    let &[result] = &program.results[..] else {
        return Err(OpError::Shape("expected one expression".into()));
    };
    for (i, part) in out.chunks_mut(CHUNK).enumerate() {
        let (at, n) = (i * CHUNK, part.len());
        let acc = acc.map(|a| if a.is_empty() { a } else { &a[at..at + n] });
        scratch.run(program, env, &Point { coords, from: from + at, n, reduced, acc })?;
        spread(real(scratch.get(result))?, part, |x| x);
    }
    Ok(())
}
