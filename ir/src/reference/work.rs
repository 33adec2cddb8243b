//! Works of a plan, compiled once; [`super::run`] runs them on arrays.

use super::error::OpError;
use super::scalar::{Affine, Program, affine, compile};
use super::steps;
use super::tensor::Data;
use super::vector::GROUP;
use crate::dtype::DType;
use crate::plan::{Compute, Draw, MadeRow, Scalar, StepKind, Store, Work};
use crate::scalar::Reduce;

/// A store, compiled: results are the indices, the value, and the guard where there is one.
#[derive(Clone, Debug)]
pub(super) struct StoreCode {
    pub output: usize,
    pub program: Program,
    pub axes: usize,
    /// Affine forms of the indices, when all are and nothing guards the store.
    pub affine: Option<Vec<Affine>>,
    /// Axis that varies along a row, if one does.
    pub inner: Option<usize>,
}

#[derive(Clone, Debug)]
pub(super) enum Kernel {
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
    Attention(AttentionCode),
    Steps(Vec<Program>),
    Routed {
        stores: Vec<StoreCode>,
    },
    Grouping,
    Sample,
    Advance,
}

/// A row epilogue, compiled: the value and the stages.
pub(super) type RowCode = (Program, Vec<(Reduce, Program)>);

/// An attention, compiled.
#[derive(Clone, Debug)]
pub(super) struct AttentionCode {
    pub slot: Program,
    pub length: Program,
    pub score: Program,
    pub sink: Option<Program>,
    pub prologue: Option<Box<PrologueCode>>,
    /// What a projection multiplies.
    pub projected: Option<Program>,
    pub stores: Vec<StoreCode>,
}

/// An attention's prologue, compiled.
#[derive(Clone, Debug)]
pub(super) struct PrologueCode {
    pub query: RowCode,
    pub key: RowCode,
    /// Type that own keys are rounded to.
    pub key_type: DType,
    pub keep: StoreCode,
}

/// A work, compiled.
#[derive(Clone, Debug)]
pub(super) struct Code {
    pub kernel: Kernel,
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
                draw.operands().iter().try_for_each(|o| look(o.index()))?;
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
            a.projection.iter().try_for_each(|p| look(p.weight.index()))?;
            let made = |row: &MadeRow| -> Result<RowCode, OpError> {
                let along = |e: &Scalar| compile(&[e], None, Some(2), reads);
                let stages = row.stages.iter().map(|s| Ok((s.op, along(&s.value)?)));
                Ok((along(&row.value)?, stages.collect::<Result<_, OpError>>()?))
            };
            let prologue = a.prologue.as_ref().map(|p| {
                let (query, key) = (made(&p.query)?, made(&p.key)?);
                let key_type = reads[a.keys.index()].dtype;
                let keep = store_code(&p.keep, work, 3, true)?;
                Ok::<_, OpError>(Box::new(PrologueCode { query, key, key_type, keep }))
            });
            Kernel::Attention(AttentionCode {
                slot: compile(&[&a.slot], None, Some(1), reads)?,
                length: compile(&[&a.length], None, None, reads)?,
                score: compile(&[&a.score], None, Some(2), reads)?,
                sink: a.sink.as_ref().map(|s| compile(&[s], None, Some(1), reads)).transpose()?,
                prologue: prologue.transpose()?,
                projected: a
                    .projection
                    .as_ref()
                    .map(|p| compile(&[&p.value], None, Some(2), reads))
                    .transpose()?,
                stores: stores(&a.stores, 3, true)?,
            })
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
