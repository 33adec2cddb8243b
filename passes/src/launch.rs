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
    let mut occupied: Vec<Occupied> = arenas.iter().map(|a| Occupied::new(a)).collect();
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
            let earlier = occupied.iter_mut().flat_map(|o| o.take(*b));
            for same in std::iter::once(*b).chain(earlier) {
                needs.extend(last_write.get(&same));
                needs.extend(last_reads.get(&same).into_iter().flatten());
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

/// What lies in an arena as dispatches run: each part of it belongs to the place that was written there last. What
/// lay there before was done with, and its dispatches come before the writer's, so nothing later need wait for it.
struct Occupied {
    /// Bytes `from..to` of each place.
    ranges: HashMap<Place, (usize, usize)>,
    /// Parts that do not overlap.
    parts: Vec<(usize, usize, Place)>,
}

impl Occupied {
    fn new(arena: &Arena) -> Occupied {
        let buffers = arena.placements.iter().map(|p| (Place::Buffer(p.buffer), p.offset, p.bytes));
        let scratch = arena.scratch.places.iter().map(|p| (Place::Scratch(p.dispatch), p.offset, p.bytes));
        let ranges = buffers.chain(scratch).map(|(place, from, bytes)| (place, (from, from + bytes)));
        Occupied { ranges: ranges.collect(), parts: Vec::new() }
    }

    /// Lets a place have its bytes: the places that had some of them.
    fn take(&mut self, place: Place) -> Vec<Place> {
        let Some(&(from, to)) = self.ranges.get(&place) else { return Vec::new() };
        let (over, mut rest): (Vec<_>, Vec<_>) =
            self.parts.iter().copied().partition(|&(start, end, _)| start < to && from < end);
        for &(start, end, other) in &over {
            rest.extend([(start, from, other), (to, end, other)].into_iter().filter(|p| p.0 < p.1));
        }
        rest.push((from, to, place));
        self.parts = rest;
        over.into_iter().map(|p| p.2).filter(|other| *other != place).collect()
    }
}
