//! Interpreter of plans: the dispatches of a body, one by one, with the tensors and states of the graph
//! interpreter. What `--device cpu --opt-level 2` runs.

use super::advance::advance;
use super::attention::attend;
use super::elementwise::{cast, round};
use super::error::{OpError, ReferenceError};
use super::layout::Layout;
use super::movement;
use super::precision::{Precision, Real};
use super::run::run;
use super::sample::{penalize, sample};
use super::state::{Outputs, States, StepInputs};
use super::tensor::{Data, Tensor};
use super::vector::{Env, View};
use super::weights::{WeightBytes, scaled_weight, weight};
use super::work::{Code, Kernel, Target, code};
use crate::graph::{Literal, ValueType};
use crate::ids::BufferId;
use crate::plan::{Body, BufferKind, Compute, Dispatch, Pack, Plan, Work};
use crate::shape::{Bindings, Dim};
use rayon::prelude::*;

/// A plan made ready for steps: weights and literals, and compiled works.
#[derive(Clone, Debug)]
pub struct LoadedPlan<R> {
    precision: Precision,
    /// For each buffer, its value if it is constant.
    constants: Vec<Option<Tensor<R>>>,
    codes: Vec<Code>,
    /// For each body and dispatch, the temporaries that no later dispatch uses.
    frees: Vec<Vec<Vec<BufferId>>>,
}

impl<R> LoadedPlan<R> {
    /// Value of a weight or literal buffer.
    pub fn constant(&self, buffer: BufferId) -> Option<&Tensor<R>> {
        self.constants.get(buffer.index())?.as_ref()
    }
}

/// Runs one dispatch of a body on values by buffer: what it reads must be there (constants need not), what
/// it writes is replaced, or changed in place where it is there already. For comparing kernels one by one.
///
/// # Errors
/// [`ReferenceError::Dispatch`] when the dispatch fails, [`ReferenceError::Mismatch`] when it is not there.
pub fn run_dispatch<R: Real>(
    plan: &Plan,
    loaded: &LoadedPlan<R>,
    (body, index): (usize, usize),
    bind: &Bindings,
    values: &mut [Option<Tensor<R>>],
) -> Result<(), ReferenceError> {
    let d = plan.bodies.get(body).and_then(|b| b.dispatches.get(index));
    let d = d.ok_or_else(|| ReferenceError::Mismatch(format!("no dispatch {index} in body {body}")))?;
    one(plan, loaded, d, index, bind, values)
}

/// Runs the advance of a plan's generation on values by buffer, which must all be there: what follows a step of
/// the decode body.
///
/// # Errors
/// As [`run_dispatch`]; the plan may have no generation.
pub fn run_advance<R: Real>(
    plan: &Plan,
    loaded: &LoadedPlan<R>,
    bind: &Bindings,
    values: &mut [Option<Tensor<R>>],
) -> Result<(), ReferenceError> {
    let g = plan.generation.as_ref();
    let g = g.ok_or_else(|| ReferenceError::Mismatch("the plan has no generation".into()))?;
    // Behind the dispatches of any body.
    let index = plan.bodies.iter().map(|b| b.dispatches.len()).max().unwrap_or(0);
    one(plan, loaded, &g.advance, index, bind, values)
}

fn one<R: Real>(
    plan: &Plan,
    loaded: &LoadedPlan<R>,
    d: &Dispatch,
    index: usize,
    bind: &Bindings,
    values: &mut [Option<Tensor<R>>],
) -> Result<(), ReferenceError> {
    if values.len() != plan.buffers.len() {
        return Err(ReferenceError::Mismatch("values are not one a buffer".into()));
    }
    let work = plan.works.get(d.work as usize);
    let work = work.ok_or_else(|| ReferenceError::Mismatch(format!("there is no work {}", d.work)))?;
    dispatch(plan, loaded, work, d, bind, values).map_err(|error| ReferenceError::Dispatch {
        dispatch: index,
        work: work.name.clone(),
        scope: d.scope.clone(),
        error,
    })
}

/// Makes a plan ready: evaluates the packs of its weights, in parallel, and compiles its works.
///
/// # Errors
/// [`ReferenceError::Buffer`] when a weight is missing or does not fit, [`ReferenceError::Mismatch`] when
/// a work or a dispatch refers to what does not exist or its expressions do not type,
/// [`ReferenceError::Precision`] when `R` is not the precision's number type.
pub fn load_plan<R: Real>(
    plan: &Plan,
    weights: &dyn WeightBytes,
    precision: Precision,
) -> Result<LoadedPlan<R>, ReferenceError> {
    if !R::serves(precision) {
        return Err(ReferenceError::Precision(precision));
    }
    let constants = plan.buffers.par_iter().enumerate().map(|(i, b)| {
        let value = match &b.kind {
            BufferKind::Weight(pack) => packed(pack, weights, precision).map(Some),
            BufferKind::Literal(Literal::F32(v)) => {
                Tensor::real(R::from_f32s(v.clone()), vec![v.len()]).map(Some)
            }
            BufferKind::Literal(Literal::I32(v)) => Tensor::int(v.clone(), vec![v.len()]).map(Some),
            BufferKind::Input(_)
            | BufferKind::State(_)
            | BufferKind::Output(_)
            | BufferKind::Temp
            | BufferKind::Control(_) => Ok(None),
        };
        value.map_err(|error| ReferenceError::Buffer { buffer: i, name: b.name.clone(), error })
    });
    let constants = constants.collect::<Result<Vec<_>, _>>()?;
    let codes = plan
        .works
        .iter()
        .map(|w| code(w).map_err(|e| ReferenceError::Mismatch(format!("work {}: {e}", w.name))));
    let codes = codes.collect::<Result<Vec<_>, _>>()?;
    let frees = plan.bodies.iter().map(|b| frees(plan, b)).collect::<Result<Vec<_>, _>>()?;
    Ok(LoadedPlan { precision, constants, codes, frees })
}

/// The value of a load-time expression.
fn packed<R: Real>(
    pack: &Pack,
    weights: &dyn WeightBytes,
    precision: Precision,
) -> Result<Tensor<R>, OpError> {
    let part = |p: &Pack| packed(p, weights, precision);
    let value = match pack {
        Pack::Tensor { name, encoding, shape } => {
            let shape = shape.iter().map(|&n| Dim::Const(n)).collect();
            weight(weights, name, &ValueType { encoding: *encoding, shape })
        }
        // A weight's value is decoded already.
        Pack::Decode(p) => part(p),
        Pack::Scaled { name, encoding, shape, scales, scale_encoding } => {
            scaled_weight(weights, (name, *encoding), shape, (scales, *scale_encoding))
        }
        Pack::Reshape(shape, p) => movement::reshape(&part(p)?, shape.clone()),
        Pack::Transpose(perm, p) => movement::transpose(&part(p)?, perm),
        Pack::Slice(axis, start, len, p) => movement::slice(&part(p)?, *axis, *start, *len),
        Pack::Concat(axis, parts) => {
            let parts = parts.iter().map(part).collect::<Result<Vec<_>, OpError>>()?;
            movement::concat(&parts, *axis)
        }
        Pack::Cast(dtype, p) => Ok(round(cast(&part(p)?, *dtype)?, *dtype, precision)),
    }?;
    Ok(value.owned())
}

/// Checks what a body refers to, and finds where temporaries end.
fn frees(plan: &Plan, body: &Body) -> Result<Vec<Vec<BufferId>>, ReferenceError> {
    let mut last = vec![None; plan.buffers.len()];
    for (i, d) in body.dispatches.iter().enumerate() {
        let fault = |what: &str| Err(ReferenceError::Mismatch(format!("dispatch {i} ({}): {what}", d.scope)));
        let Some(work) = plan.works.get(d.work as usize) else { return fault("its work does not exist") };
        if work.reads.len() != d.reads.len() || work.writes.len() != d.writes.len() {
            return fault("it has other operands than its work");
        }
        for b in d.reads.iter().chain(&d.writes) {
            match last.get_mut(b.index()) {
                Some(l) => *l = Some(i),
                None => return fault("a buffer does not exist"),
            }
        }
    }
    let mut frees = vec![Vec::new(); body.dispatches.len()];
    for (b, buffer) in plan.buffers.iter().enumerate() {
        if let (BufferKind::Temp, Some(i)) = (&buffer.kind, last[b]) {
            frees[i].push(BufferId::new(b));
        }
    }
    Ok(frees)
}

/// Runs a step by a body of a plan (a position in [`Plan::bodies`]). Bindings may be smaller than those of
/// the entries that use the body.
///
/// # Errors
/// [`ReferenceError::Input`] when an input has another length than its binding says,
/// [`ReferenceError::Dispatch`] when a dispatch fails; its outputs, and states that it writes, may then be
/// partly written.
pub fn step_plan<R: Real>(
    plan: &Plan,
    loaded: &LoadedPlan<R>,
    body: usize,
    bind: &Bindings,
    inputs: &StepInputs,
    states: &mut States<R>,
) -> Result<Outputs<R>, ReferenceError> {
    let (Some(dispatches), Some(frees)) = (plan.bodies.get(body), loaded.frees.get(body)) else {
        return Err(ReferenceError::Mismatch(format!("there is no body {body}")));
    };
    if loaded.constants.len() != plan.buffers.len()
        || loaded.codes.len() != plan.works.len()
        || frees.len() != dispatches.dispatches.len()
    {
        return Err(ReferenceError::Mismatch("another plan was loaded".into()));
    }
    let mut used = vec![false; plan.buffers.len()];
    for b in dispatches.dispatches.iter().flat_map(|d| d.reads.iter().chain(&d.writes)) {
        used[b.index()] = true;
    }
    let mut values: Vec<Option<Tensor<R>>> = vec![None; plan.buffers.len()];
    let mut taken = Vec::new();
    let mut done = Ok(());
    for (i, buffer) in plan.buffers.iter().enumerate().filter(|(i, _)| used[*i]) {
        let value = match &buffer.kind {
            BufferKind::Input(input) => inputs.tensor(*input, bind),
            BufferKind::State(name) => states
                .take(name, &bind.shape(&buffer.shape))
                .map(Tensor::owned)
                .map_err(|error| ReferenceError::Buffer { buffer: i, name: buffer.name.clone(), error }),
            BufferKind::Weight(_)
            | BufferKind::Literal(_)
            | BufferKind::Output(_)
            | BufferKind::Temp
            | BufferKind::Control(_) => continue,
        };
        match value {
            Ok(value) => {
                if let BufferKind::State(name) = &buffer.kind {
                    taken.push((i, name));
                }
                values[i] = Some(value);
            }
            Err(e) => {
                done = Err(e);
                break;
            }
        }
    }
    if done.is_ok() {
        done = dispatches.dispatches.iter().enumerate().try_for_each(|(i, d)| {
            let work = &plan.works[d.work as usize];
            dispatch(plan, loaded, work, d, bind, &mut values).map_err(|error| ReferenceError::Dispatch {
                dispatch: i,
                work: work.name.clone(),
                scope: d.scope.clone(),
                error,
            })?;
            for b in &frees[i] {
                values[b.index()] = None;
            }
            Ok(())
        });
    }
    for (i, name) in taken {
        if let Some(value) = values[i].take() {
            states.put(name, value);
        }
    }
    done?;
    let outputs = plan.buffers.iter().zip(values).filter_map(|(b, v)| match (&b.kind, v) {
        (BufferKind::Output(name), Some(v)) => Some((name.clone(), v)),
        _ => None,
    });
    Ok(Outputs::new(outputs.collect()))
}

fn dispatch<R: Real>(
    plan: &Plan,
    loaded: &LoadedPlan<R>,
    work: &Work,
    d: &Dispatch,
    bind: &Bindings,
    values: &mut [Option<Tensor<R>>],
) -> Result<(), OpError> {
    let code = &loaded.codes[d.work as usize];
    let mut reads = Vec::with_capacity(d.reads.len());
    for ((b, operand), &wanted) in d.reads.iter().zip(&work.reads).zip(&code.looked_at) {
        if !wanted {
            reads.push(None);
            continue;
        }
        let value = values[b.index()].as_ref().or(loaded.constants[b.index()].as_ref());
        let value = value.ok_or_else(|| OpError::Unsupported(format!("{b} is read before it is written")))?;
        let shape = bind.shape(&operand.shape);
        reads.push(Some(movement::reshape(value, shape)?));
    }
    if let Compute::Penalize(_) | Compute::Sample(_) = work.compute {
        let operands: Vec<Tensor<R>> = reads.into_iter().flatten().collect();
        let sampled = matches!(work.compute, Compute::Sample(_));
        let made = if sampled { sample(&operands)? } else { penalize(&operands)? };
        if let Some(b) = d.writes.first() {
            values[b.index()] = Some(made);
        }
        return Ok(());
    }
    if let Compute::Advance(a) = &work.compute {
        let reads: Option<Vec<Tensor<R>>> = reads.into_iter().collect();
        let old: Option<Vec<Tensor<R>>> = d.writes.iter().map(|b| values[b.index()].clone()).collect();
        let old = old.ok_or_else(|| OpError::Unsupported("an advance changes what is not there".into()))?;
        let made = advance(a, &reads.unwrap_or_default(), &old)?;
        d.writes.iter().zip(made).for_each(|(b, value)| values[b.index()] = Some(value));
        return Ok(());
    }
    let attended = match (&work.compute, &code.kernel) {
        (Compute::Attention(a), Kernel::Attention(code)) if !work.in_place.is_empty() => {
            Some(attend(a, code, &env(&reads, bind, loaded.precision))?)
        }
        _ => None,
    };
    if attended.is_some() {
        // What it changes in place was read; shared data would be copied.
        for (_, r) in &work.in_place {
            match reads.get_mut(r.index()) {
                Some(read) => *read = None,
                None => return Err(OpError::Shape(format!("operand {r} does not exist"))),
            }
        }
    }
    let env = env(&reads, bind, loaded.precision);
    // Written arrays are taken out, so that they are changed in place.
    let mut outs: Vec<Data<R>> = Vec::with_capacity(d.writes.len());
    for &b in &d.writes {
        let buffer = plan.buffer(b);
        let old = values[b.index()].take();
        let fresh = || Tensor::zeros(buffer.dtype, bind.shape(&buffer.shape));
        outs.push(old.unwrap_or_else(fresh).into_data());
    }
    let targets = outs.iter_mut().zip(&work.writes).map(|(data, w)| {
        let shape = bind.shape(&w.shape);
        if shape.iter().product::<usize>() != data.len() {
            return Err(OpError::Shape(format!("{} elements for {shape:?}", data.len())));
        }
        Ok(Target { data, dtype: w.dtype, shape })
    });
    let done = match targets.collect::<Result<Vec<_>, OpError>>() {
        Ok(mut targets) => run(work, code, attended.as_ref(), &env, &mut targets),
        Err(e) => Err(e),
    };
    for (&b, data) in d.writes.iter().zip(outs) {
        values[b.index()] = Some(Tensor::new(data, bind.shape(&plan.buffer(b).shape))?);
    }
    done
}

/// What a work's expressions read.
fn env<'a, R: Real>(reads: &'a [Option<Tensor<R>>], bind: &Bindings, precision: Precision) -> Env<'a, R> {
    let view = |t: &'a Tensor<R>| {
        let Layout { shape, strides, offset } = t.layout().clone();
        View { data: t.data(), offset, shape, strides }
    };
    Env { bind: *bind, precision, reads: reads.iter().map(|r| r.as_ref().map(view)).collect() }
}
