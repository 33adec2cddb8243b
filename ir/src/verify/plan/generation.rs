//! What holds for the generation of a plan.

use super::Verifier;
use crate::ids::BufferId;
use crate::plan::{
    Advance, BufferKind, Compute, Control, Dispatch, GeneratingBody, Generation, Plan, Role, Work,
};
use crate::shape::{Dim, Sym, shape_text};

/// The operands of an advance are of the types that its kinds of buffers have.
pub(super) fn advance(a: &Advance, work: &Work, max_seq: usize, faults: &mut Vec<String>) {
    if a.rows != Dim::Sym(Sym::Rows) || a.context != max_seq {
        faults.push(format!("an advance of {} rows with context {}", shape_text(&[a.rows]), a.context));
    }
    let kinds = [Advance::reads().to_vec(), Advance::writes().to_vec()];
    for (kinds, operands) in kinds.iter().zip([&work.reads, &work.writes]) {
        if kinds.len() != operands.len() {
            faults.push(format!("{} operands for {} of an advance", operands.len(), kinds.len()));
        }
        for (kind, operand) in kinds.iter().zip(operands) {
            let (dtype, shape) = match kind {
                BufferKind::Control(c) => (c.dtype(), c.shape(max_seq)),
                BufferKind::Input(i) => (i.ty().dtype(), i.ty().shape),
                _ => (crate::dtype::DType::I32, vec![Dim::Sym(Sym::Rows)]),
            };
            if (operand.dtype, &operand.shape) != (dtype, &shape) || operand.constant {
                let have = shape_text(&operand.shape);
                faults.push(format!("{} is {} {have}, not {kind:?}'s", operand.name, operand.dtype));
            }
        }
    }
}

/// Whether buffers are of these kinds.
fn are(plan: &Plan, list: &[BufferId], kinds: &[BufferKind]) -> bool {
    let is =
        |(b, kind): (&BufferId, &BufferKind)| plan.buffers.get(b.index()).is_some_and(|b| b.kind == *kind);
    list.len() == kinds.len() && list.iter().zip(kinds).all(is)
}

impl Verifier<'_> {
    /// The advance comes after every launch of a body that reads what it writes or writes what it reads.
    fn generating(&mut self, plan: &Plan, advance: &Dispatch, of: &GeneratingBody) {
        let place = "generation";
        let Some(body) = plan.bodies.get(of.body as usize) else {
            return self.fault(place, "its body does not exist");
        };
        let mut reach = vec![false; body.launches.len()];
        for (before, _) in &of.after {
            match reach.get_mut(before.index()) {
                Some(r) => *r = true,
                None => self.fault(place, format!("waits for {before}, which does not exist")),
            }
        }
        for i in (0..reach.len()).rev() {
            if reach[i] {
                for (before, _) in &body.launches[i].after {
                    if let Some(r) = reach.get_mut(before.index()) {
                        *r = true;
                    }
                }
            }
        }
        for (i, d) in body.dispatches.iter().enumerate() {
            let (theirs, ours) = (&d.writes, advance);
            let touches = theirs.iter().any(|b| ours.reads.contains(b) || ours.writes.contains(b))
                || d.reads.iter().any(|b| ours.writes.contains(b));
            if touches && !reach.get(i).copied().unwrap_or(false) {
                self.fault(place, format!("has no path from launch {i}"));
            }
        }
    }

    /// The advance comes behind each body's launches, and each decode entry has a kernel for it.
    pub(super) fn generation(&mut self, plan: &Plan, g: &Generation) {
        let place = "generation";
        let work = plan.works.get(g.advance.work as usize);
        if !work.is_some_and(|w| matches!(w.compute, Compute::Advance(_))) {
            return self.fault(place, "its work is no advance");
        }
        if !are(plan, &g.advance.reads, &Advance::reads())
            || !are(plan, &g.advance.writes, &Advance::writes())
        {
            self.fault(place, "the advance is not on the buffers that it is of");
        }
        for (i, b) in plan.buffers.iter().enumerate() {
            let BufferKind::Control(c) = &b.kind else { continue };
            if b.dtype != c.dtype() || b.shape != c.shape(plan.max_seq) {
                self.fault(place, format!("{} is not of {}'s type", BufferId::new(i), c.name()));
            }
        }
        g.bodies.iter().for_each(|b| self.generating(plan, &g.advance, b));
        for entry in plan.entries.iter().filter(|e| e.role == Role::Decode) {
            let kernel = entry.kernels.get(&g.advance.work).and_then(|k| plan.kernels.get(k.index()));
            if !kernel.is_some_and(|k| k.work == g.advance.work && entry.bind.rows <= k.threads as usize) {
                self.fault(&entry.name, "the advance has no kernel with a thread a row");
            }
            let stream = entry.bind.elements(&Control::Stream.shape(plan.max_seq));
            if g.after(entry.body).is_none()
                || entry.bind.tokens != entry.bind.rows
                || i32::try_from(stream).is_err()
            {
                self.fault(&entry.name, "decode steps of this entry cannot follow each other by the advance");
            }
        }
    }
}
