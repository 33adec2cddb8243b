//! Generation: what runs between decode steps, so that they follow each other on the device.
//!
//! Before: the works and bodies of steps. After: one more work, the advance, on buffers of its own, which is no
//! dispatch of a body (a single step goes without it); and the launches that it waits for. Plans that sample
//! nothing, or that make more rows in a decode step than a block has threads, have none.
//! Tests: `passes/tests/generation.rs`.

use crate::launch;
use weft_ir::ids::BufferId;
use weft_ir::plan::{
    Advance, Buffer, BufferKind, Compute, Dispatch, GeneratingBody, Generation, Operand, Work,
};
use weft_ir::shape::{Dim, Sym};

/// Most rows of a decode step: threads of a block.
pub const MOST_ROWS: usize = 1024;

/// Adds the advance to the buffers and works of a plan, where there are decode bodies that have all that it works on.
pub fn advance(
    buffers: &mut Vec<Buffer>,
    works: &mut Vec<Work>,
    decode: &[&[Dispatch]],
    max_seq: usize,
) -> Option<Dispatch> {
    let uses = |d: &Dispatch, b: &BufferId| d.reads.contains(b) || d.writes.contains(b);
    let used = |b: &BufferId| !decode.is_empty() && decode.iter().all(|body| body.iter().any(|d| uses(d, b)));
    let find = |kind: &BufferKind| {
        let at = buffers.iter().position(|b| b.kind == *kind).map(BufferId::new);
        at.filter(used)
    };
    let missing = |kind: &&BufferKind| !matches!(kind, BufferKind::Control(_)) && find(kind).is_none();
    let (reads, writes) = (Advance::reads(), Advance::writes());
    if reads.iter().chain(&writes).any(|kind| missing(&kind)) {
        return None;
    }
    let mut place = |kinds: &[BufferKind]| -> (Vec<BufferId>, Vec<Operand>) {
        let each = kinds.iter().map(|kind| {
            let known = buffers.iter().position(|b| b.kind == *kind);
            let at = known.unwrap_or_else(|| {
                if let BufferKind::Control(c) = kind {
                    let (name, dtype, shape) = (c.name().to_owned(), c.dtype(), c.shape(max_seq));
                    buffers.push(Buffer { name, dtype, shape, kind: kind.clone() });
                }
                buffers.len() - 1
            });
            let Buffer { name, dtype, shape, .. } = buffers[at].clone();
            (BufferId::new(at), Operand { name, dtype, shape, constant: false })
        });
        each.unzip()
    };
    let ((read_ids, reads), (write_ids, writes)) = (place(&reads), place(&writes));
    works.push(Work {
        name: "advance".into(),
        compute: Compute::Advance(Advance { rows: Dim::Sym(Sym::Rows), context: max_seq }),
        reads,
        writes,
        in_place: Vec::new(),
        ops: Vec::new(),
        rules: Vec::new(),
    });
    let work = (works.len() - 1) as u32;
    Some(Dispatch { work, reads: read_ids, writes: write_ids, scope: "generation".into() })
}

/// The launches of the decode bodies that the advance waits for.
pub fn run(of: &[usize], bodies: &[Vec<Dispatch>], advance: Dispatch, programmatic: bool) -> Generation {
    let after = |&body: &usize| {
        let mut all = bodies[body].clone();
        all.push(advance.clone());
        // It touches no temporary, so arenas do not matter.
        let mut launches = launch::run(&all, &[], &vec![programmatic; all.len()]);
        let after = launches.pop().map(|l| l.after).unwrap_or_default();
        GeneratingBody { body: body as u32, after }
    };
    Generation { bodies: of.iter().map(after).collect(), advance }
}
