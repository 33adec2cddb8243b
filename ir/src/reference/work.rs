//! Works of a plan: compiled once, then run on arrays.

use super::error::OpError;
use super::layout::{GRAIN, Layout};
use super::precision::{Precision, Real};
use super::products::{positions, run_attention, run_grouping, run_matmul, run_routed, run_row};
use super::reduce::{max, sum};
use super::sample::{penalize, sample};
use super::scalar::{Affine, Program, affine, compile};
use super::steps;
use super::tensor::{Data, Tensor};
use super::vector::{CHUNK, Env, GROUP, Point, Scratch, Vector, boolean, int, pick, real};
use crate::dtype::DType;
use crate::ids::OperandId;
use crate::plan::{Compute, Draw, Loop, Scalar, StepKind, Store, Work};
use crate::scalar::Reduce;
use rayon::prelude::*;
use std::sync::Arc;

/// A store, compiled: results are the indices, the value, and the guard where there is one.
#[derive(Clone, Debug)]
struct StoreCode {
    output: usize,
    program: Program,
    axes: usize,
    /// Affine forms of the indices, when all are and nothing guards the store.
    affine: Option<Vec<Affine>>,
    /// Axis that varies along a row, if one does.
    inner: Option<usize>,
}

#[derive(Clone, Debug)]
enum Kernel {
    Loop {
        stages: Vec<(Reduce, Program)>,
        element: Vec<StoreCode>,
        row: Vec<StoreCode>,
    },
    MatMul {
        a: Program,
        plain: Option<usize>,
        stages: Vec<(Reduce, Program)>,
        row: Option<RowCode>,
        stores: Vec<StoreCode>,
        /// Position of a row that a token is drawn from, and the first slot of its sequence.
        draw: Option<(Program, Option<Program>)>,
    },
    Attention {
        slot: Program,
        length: Program,
        score: Program,
        sink: Option<Program>,
        stores: Vec<StoreCode>,
    },
    Steps(Vec<Program>),
    Routed {
        stores: Vec<StoreCode>,
    },
    Grouping,
    Sample,
    Advance,
}

/// A row epilogue, compiled: the value and the stages.
type RowCode = (Program, Vec<(Reduce, Program)>);

/// A work, compiled.
#[derive(Clone, Debug)]
pub(super) struct Code {
    kernel: Kernel,
    /// For each read, whether it is looked at (a state that is only written is not).
    pub looked_at: Vec<bool>,
}

/// An array that is written.
pub(super) struct Target<'a, R> {
    pub data: &'a mut Data<R>,
    pub dtype: DType,
    pub shape: Vec<usize>,
}

/// Compiles a work.
///
/// # Errors
/// When expressions do not type or refer to operands that do not exist.
pub(super) fn code(work: &Work) -> Result<Code, OpError> {
    let mut looked_at = vec![false; work.reads.len()];
    let mut look = |operand: usize| match looked_at.get_mut(operand) {
        Some(l) => {
            *l = true;
            Ok(())
        }
        None => Err(OpError::Shape(format!("operand {operand} does not exist"))),
    };
    for scalar in work.scalars() {
        let mut loads = Vec::new();
        scalar.visit(&mut |e| {
            if let Scalar::Load(o, _) = e {
                loads.push(o.index());
            }
        });
        loads.into_iter().try_for_each(&mut look)?;
    }
    let reads = &work.reads;
    let stores = |list: &[Store], rank: usize, inner: bool| -> Result<Vec<StoreCode>, OpError> {
        list.iter().map(|s| store_code(s, work, rank, inner)).collect()
    };
    let kernel = match &work.compute {
        Compute::Loop(l) => {
            let rank = l.domain.len();
            let stage = |s: &crate::plan::Stage| {
                let p = compile(&[&s.value], None, Some(rank), reads)?;
                Ok((s.op, p))
            };
            let (rows, elements) = if l.reduced.is_some() { (true, rank + 1) } else { (false, rank) };
            if !rows && (!l.stages.is_empty() || !l.row_stores.is_empty()) {
                return Err(OpError::Shape("a reduction without a reduced axis".into()));
            }
            Kernel::Loop {
                stages: l.stages.iter().map(stage).collect::<Result<_, OpError>>()?,
                element: stores(&l.element_stores, elements, true)?,
                row: stores(&l.row_stores, rank, false)?,
            }
        }
        Compute::MatMul(m) => {
            look(m.b.index())?;
            if !(1..=GROUP).contains(&m.group) {
                return Err(OpError::Shape(format!("a group of {}", m.group)));
            }
            let stage = |s: &crate::plan::Stage| Ok((s.op, compile(&[&s.value], None, Some(1), reads)?));
            let row = m.row.as_ref().map(|r| -> Result<RowCode, OpError> {
                let stages = r.stages.iter().map(stage).collect::<Result<_, OpError>>()?;
                Ok((compile(&[&r.value], None, Some(1), reads)?, stages))
            });
            if let Some(draw) = &m.draw {
                draw.parameters.iter().try_for_each(|o| look(o.index()))?;
                if let Some(p) = &draw.penalties {
                    p.parameters.iter().chain([&p.history]).try_for_each(|o| look(o.index()))?;
                }
            }
            let place = |s: &Scalar| compile(&[s], None, None, reads);
            let draw = |d: &Draw| {
                let base = d.penalties.as_ref().map(|p| place(&p.base)).transpose()?;
                Ok::<_, OpError>((place(&d.position)?, base))
            };
            Kernel::MatMul {
                draw: m.draw.as_ref().map(draw).transpose()?,
                row: row.transpose()?,
                a: compile(&[&m.a], None, Some(1), reads)?,
                plain: m.plain_left().map(|o| o.index()),
                stages: m.stages.iter().map(stage).collect::<Result<_, OpError>>()?,
                stores: stores(&m.stores, 2, true)?,
            }
        }
        Compute::Attention(a) => {
            [a.q, a.keys, a.values].iter().try_for_each(|o| look(o.index()))?;
            Kernel::Attention {
                slot: compile(&[&a.slot], None, Some(1), reads)?,
                length: compile(&[&a.length], None, None, reads)?,
                score: compile(&[&a.score], None, Some(2), reads)?,
                sink: a.sink.as_ref().map(|s| compile(&[s], None, Some(1), reads)).transpose()?,
                stores: stores(&a.stores, 3, true)?,
            }
        }
        Compute::Steps(s) => {
            for step in &s.steps {
                if let StepKind::Product { b, .. } = &step.kind {
                    look(b.index())?;
                }
            }
            Kernel::Steps(steps::code(s, work)?)
        }
        Compute::Routed(r) => {
            [r.a, r.index].iter().chain(&r.weights).try_for_each(|o| look(o.index()))?;
            if !(1..=GROUP).contains(&r.weights.len()) {
                return Err(OpError::Shape(format!("{} weights", r.weights.len())));
            }
            Kernel::Routed { stores: stores(&r.stores, 3, true)? }
        }
        Compute::Grouping(_) => {
            looked_at.fill(true);
            Kernel::Grouping
        }
        Compute::Penalize(_) | Compute::Sample(_) => {
            looked_at.fill(true);
            Kernel::Sample
        }
        Compute::Advance(_) => {
            looked_at.fill(true);
            Kernel::Advance
        }
    };
    Ok(Code { kernel, looked_at })
}

fn store_code(s: &Store, work: &Work, rank: usize, inner: bool) -> Result<StoreCode, OpError> {
    let output = usize::from(s.output);
    let Some(write) = work.writes.get(output) else {
        return Err(OpError::Shape(format!("output {output} does not exist")));
    };
    if write.shape.len() != s.index.len() {
        return Err(OpError::Shape(format!("{} indices of {:?}", s.index.len(), write.shape)));
    }
    let inner = if inner { rank.checked_sub(1) } else { None };
    let roots: Vec<&Scalar> = s.index.iter().chain([&s.value]).collect();
    let program = compile(&roots, s.guard.as_ref(), inner, &work.reads)?;
    let forms = s.index.iter().map(|i| affine(i, rank)).collect::<Option<Vec<_>>>();
    let affine = if s.guard.is_none() { forms } else { None };
    Ok(StoreCode { output, program, axes: s.index.len(), affine, inner })
}

/// Runs a work other than sampling.
///
/// # Errors
/// When an index is out of range or arrays do not fit.
pub(super) fn run<R: Real>(
    work: &Work,
    code: &Code,
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
        (Compute::Attention(a), Kernel::Attention { slot, length, score, sink, stores }) => {
            let tokens = a.tokens.eval(&env.bind);
            let acc = run_attention(a, tokens, [slot, length, score], sink.as_ref(), env)?;
            let shape = [tokens, a.kv_heads * a.group, a.value_dim];
            let domain = Domain { shape: &shape, acc: [&acc, &[]], reduced: &[] };
            stores.iter().try_for_each(|s| run_store(s, &domain, env, targets))
        }
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

/// Points that stores run over, with what their expressions refer to.
struct Domain<'a, R> {
    shape: &'a [usize],
    /// Accumulators of all points, for each of the group; empty where there are none.
    acc: [&'a [R]; GROUP],
    /// Results of stages, for each row.
    reduced: &'a [Vec<R>],
}

/// Coordinates of a row: position `row` over all axes but the innermost, which is 0.
fn coords(shape: &[usize], inner: Option<usize>, row: usize, out: &mut Vec<usize>) {
    out.clear();
    out.resize(shape.len(), 0);
    let mut rest = row;
    for axis in (0..shape.len()).rev().filter(|&a| Some(a) != inner) {
        out[axis] = rest % shape[axis];
        rest /= shape[axis];
    }
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
fn run_stages<R: Real>(
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
    let &[result] = &program.results[..] else {
        return Err(OpError::Shape("expected one expression".into()));
    };
    for (i, part) in out.chunks_mut(CHUNK).enumerate() {
        let (from, n) = (i * CHUNK, part.len());
        let acc = acc.map(|a| if a.is_empty() { a } else { &a[from..from + n] });
        scratch.run(program, env, &Point { coords, from, n, reduced, acc })?;
        spread(real(scratch.get(result))?, part, |x| x);
    }
    Ok(())
}

/// Copies values, or repeats the only one.
fn spread<S: Copy, T>(from: &[S], to: &mut [T], f: impl Fn(S) -> T) {
    if from.len() == to.len() {
        to.iter_mut().zip(from).for_each(|(t, &s)| *t = f(s));
    } else if let Some(&s) = from.first() {
        to.iter_mut().for_each(|t| *t = f(s));
    }
}

fn run_store<R: Real>(
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
