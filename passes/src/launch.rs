//! Launch planning: which launches each launch waits for.
//!
//! Before: dispatches in order and arenas. After: [`Launch`]es whose edges cover every read-after-write,
//! write-after-read and write-after-write, through the same buffer or through memory that temporaries and the
//! scratch of dispatches share in some entry, transitively reduced. Tests: `passes/tests/launch.rs`.

use crate::memory_plan::Arena;
use std::collections::HashMap;
use weft_ir::ids::{BufferId, DispatchId};
use weft_ir::plan::{Dispatch, EdgeKind, Launch};

/// Memory that dispatches use.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Place {
    Buffer(BufferId),
    /// What a dispatch's kernel needs besides: written and read by it alone.
    Scratch(DispatchId),
}

/// Launches for dispatches in order; `programmatic` says which dispatches wait inside the kernel.
pub fn run(dispatches: &[Dispatch], arenas: &[&Arena], programmatic: &[bool]) -> Vec<Launch> {
    let aliases = aliases(arenas);
    let mut last_write: HashMap<Place, usize> = HashMap::new();
    let mut last_reads: HashMap<Place, Vec<usize>> = HashMap::new();
    let mut before: Vec<Vec<bool>> = Vec::with_capacity(dispatches.len());
    let mut launches = Vec::with_capacity(dispatches.len());
    for (at, d) in dispatches.iter().enumerate() {
        let own = Place::Scratch(DispatchId::new(at));
        let writes: Vec<Place> = d.writes.iter().map(|b| Place::Buffer(*b)).chain([own]).collect();
        let mut needs: Vec<usize> = Vec::new();
        for b in &d.reads {
            needs.extend(last_write.get(&Place::Buffer(*b)));
        }
        for b in &writes {
            for same in std::iter::once(b).chain(aliases.get(b).into_iter().flatten()) {
                needs.extend(last_write.get(same));
                needs.extend(last_reads.get(same).into_iter().flatten());
            }
        }
        needs.sort_unstable();
        needs.dedup();
        let mut reach = vec![false; at];
        let mut after = Vec::new();
        for &n in needs.iter().rev() {
            if reach[n] {
                continue;
            }
            let kind =
                if programmatic[n] && programmatic[at] { EdgeKind::Programmatic } else { EdgeKind::Full };
            after.push((DispatchId::new(n), kind));
            reach[n] = true;
            for (r, b) in reach.iter_mut().zip(&before[n]) {
                *r |= *b;
            }
        }
        after.reverse();
        before.push(reach);
        launches.push(Launch { dispatch: DispatchId::new(at), after });
        for b in &d.reads {
            last_reads.entry(Place::Buffer(*b)).or_default().push(at);
        }
        for b in writes {
            last_write.insert(b, at);
            last_reads.remove(&b);
        }
    }
    launches
}

/// For each temporary and each scratch, those that share memory with it in some entry.
fn aliases(arenas: &[&Arena]) -> HashMap<Place, Vec<Place>> {
    let mut out: HashMap<Place, Vec<Place>> = HashMap::new();
    for arena in arenas {
        let buffers = arena.placements.iter().map(|p| (p.offset, p.bytes, Place::Buffer(p.buffer)));
        let scratch = arena.scratch.places.iter().map(|p| (p.offset, p.bytes, Place::Scratch(p.dispatch)));
        let mut by_offset: Vec<_> = buffers.chain(scratch).collect();
        by_offset.sort_by_key(|p| p.0);
        for (i, (offset, bytes, a)) in by_offset.iter().enumerate() {
            for (_, _, b) in by_offset[i + 1..].iter().take_while(|b| b.0 < offset + bytes) {
                out.entry(*a).or_default().push(*b);
                out.entry(*b).or_default().push(*a);
            }
        }
    }
    for list in out.values_mut() {
        list.sort_unstable();
        list.dedup();
    }
    out
}
