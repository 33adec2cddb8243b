//! What holds for the works of mixtures of experts.

use crate::dtype::DType;
use crate::ids::OperandId;
use crate::plan::{Grouping, Operand, Routed, Scalar, StepKind, Steps, Work};
use crate::shape::{Dim, Shape, shape_text};

/// Steps refer to earlier ones, at their ranks; products and outputs have the right arrays.
pub(super) fn steps(s: &Steps, work: &Work, faults: &mut Vec<String>) {
    for (at, step) in s.steps.iter().enumerate() {
        let (value, coords) = step.kind.value(step.shape.len());
        value.visit(&mut |e| match e {
            Scalar::Local(i, index) => match s.steps[..at].get(usize::from(*i)) {
                None => faults.push(format!("step {at} uses step {i}, which is not before it")),
                Some(x) if x.shape.len() != index.len() => {
                    faults.push(format!("{} indices into step {i}, of rank {}", index.len(), x.shape.len()));
                }
                Some(_) => {}
            },
            Scalar::Coord(c) if usize::from(*c) >= coords => {
                faults.push(format!("coordinate {c} of step {at}, which has {coords}"));
            }
            Scalar::Acc(_) | Scalar::Reduced(_) => faults.push(format!("step {at} has no accumulators")),
            _ => {}
        });
        let integer = matches!(step.kind, StepKind::TopK { .. });
        if step.shape.is_empty() || !matches!(step.dtype, DType::F32 | DType::I32) {
            faults.push(format!("step {at} is {}{:?}", step.dtype, step.shape));
        }
        if integer && step.dtype != DType::I32 {
            faults.push(format!("step {at} gives positions as {}", step.dtype));
        }
        if let StepKind::Product { k, b, .. } = &step.kind {
            expect(work, *b, &[step.elements(), *k].map(Dim::Const), faults);
        }
        let Some(output) = step.output else { continue };
        let shape: Shape = std::iter::once(s.rows).chain(step.shape.iter().map(|&n| Dim::Const(n))).collect();
        match work.writes.get(usize::from(output)) {
            Some(w) if w.shape == shape => {}
            Some(w) => faults.push(format!("step {at} does not fill {}", shape_text(&w.shape))),
            None => faults.push(format!("output {output} does not exist")),
        }
    }
}

/// The arrays have the shapes that the sizes say.
pub(super) fn products(r: &Routed, work: &Work, faults: &mut Vec<String>) {
    let (picks, one) = (Dim::Const(r.picks), Dim::Const(1));
    if !(1..=2).contains(&r.weights.len()) {
        faults.push(format!("{} weights", r.weights.len()));
    }
    for b in &r.weights {
        expect(work, *b, &[r.experts, r.n, r.k].map(Dim::Const), faults);
    }
    expect(work, r.index, &[r.tokens, picks], faults);
    if let Some(a) = work.reads.get(r.a.index())
        && !(a.shape.len() == 3 && (a.shape[1] == one || a.shape[1] == picks))
    {
        faults.push(format!("the left operand is {}", shape_text(&a.shape)));
    }
    if let Some(g) = r.grouped {
        expect(work, g.order, &[r.tokens, picks], faults);
        expect(work, g.begins, &[Dim::Const(r.experts + 1)], faults);
    }
    for s in &r.stores {
        for e in s.index.iter().chain([&s.value]).chain(&s.guard) {
            e.visit(&mut |e| {
                if let Scalar::Acc(i) = e
                    && usize::from(*i) >= r.weights.len()
                {
                    faults.push(format!("accumulator {i} of {}", r.weights.len()));
                }
            });
        }
        if usize::from(s.output) >= work.writes.len() {
            faults.push("a store has no output".into());
        }
    }
}

/// One array in, two out.
pub(super) fn grouping(g: &Grouping, work: &Work, faults: &mut Vec<String>) {
    let pairs = [g.tokens, Dim::Const(g.picks)];
    expect(work, OperandId::new(0), &pairs, faults);
    let fits = |o: Option<&Operand>, shape: &[Dim]| o.is_some_and(|o| o.shape == shape);
    if !fits(work.writes.first(), &pairs) || !fits(work.writes.get(1), &[Dim::Const(g.experts + 1)]) {
        faults.push("a grouping writes the pairs and where each matrix's begin".into());
    }
}

fn expect(work: &Work, operand: OperandId, shape: &[Dim], faults: &mut Vec<String>) {
    match work.reads.get(operand.index()) {
        Some(o) if o.shape == shape => {}
        Some(o) => {
            faults.push(format!("operand {operand} is {}, not {}", shape_text(&o.shape), shape_text(shape)))
        }
        None => faults.push(format!("operand {operand} does not exist")),
    }
}
