//! Memory planning: temporaries get offsets in the arena of an entry, by their lifetimes; what a schedule needs
//! to join blocks gets some for the time of its dispatch alone.
//!
//! Before: dispatches in launch order. After: [`Placement`]s and [`ScratchPlaces`]; what lives at the same time
//! does not overlap in memory. Greedy by size (Pisarchyk & Lee 2020): the largest first, each at the lowest
//! offset that is free over its lifetime. Tests: `passes/tests/memory_plan.rs`.

use weft_ir::ids::{BufferId, DispatchId};
use weft_ir::plan::{
    Buffer, BufferKind, Dispatch, Placement, SCRATCH_ALIGN, Scratch, ScratchPlace, ScratchPlaces,
};
use weft_ir::shape::Bindings;

/// Alignment of offsets, in bytes: what a device allocation has.
pub const ALIGN: usize = SCRATCH_ALIGN;

/// Arena of an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arena {
    /// Places, by buffer id.
    pub placements: Vec<Placement>,
    /// Places of scratch, by dispatch.
    pub scratch: ScratchPlaces,
    /// Size: the peak.
    pub bytes: usize,
    /// Sum of the sizes of buffers and scratch.
    pub unshared_bytes: usize,
}

/// First and last dispatch (positions) that touch each temporary buffer.
pub fn lifetimes(buffers: &[Buffer], dispatches: &[Dispatch]) -> Vec<Option<(usize, usize)>> {
    let mut lives: Vec<Option<(usize, usize)>> = vec![None; buffers.len()];
    for (at, d) in dispatches.iter().enumerate() {
        for b in d.reads.iter().chain(&d.writes) {
            if buffers[b.index()].kind == BufferKind::Temp {
                let life = lives[b.index()].get_or_insert((at, at));
                life.1 = at;
            }
        }
    }
    lives
}

/// What takes memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Buffer(usize),
    Scratch(usize),
}

struct Wanted {
    item: Item,
    bytes: usize,
    life: (usize, usize),
}

/// Places the temporaries of `dispatches`, and what their kernels need besides, for the sizes that `bind` gives.
pub fn run<'s>(
    buffers: &[Buffer],
    dispatches: &[Dispatch],
    bind: &Bindings,
    scratch: &dyn Fn(&Dispatch) -> Option<&'s Scratch>,
) -> Arena {
    let lives = lifetimes(buffers, dispatches);
    let temps = lives.iter().enumerate().filter_map(|(i, life)| {
        life.map(|life| Wanted { item: Item::Buffer(i), bytes: buffers[i].bytes(bind).max(1), life })
    });
    let needs = dispatches.iter().enumerate().filter_map(|(i, d)| {
        let bytes = scratch(d)?.layout(bind).1.max(1);
        Some(Wanted { item: Item::Scratch(i), bytes, life: (i, i) })
    });
    let mut wanted: Vec<Wanted> = temps.chain(needs).collect();
    wanted.sort_by_key(|w| (std::cmp::Reverse(w.bytes), w.item));

    let mut placed: Vec<(Wanted, usize)> = Vec::new();
    for w in wanted {
        let mut busy: Vec<(usize, usize)> = placed
            .iter()
            .filter(|(other, _)| other.life.0 <= w.life.1 && w.life.0 <= other.life.1)
            .map(|(other, offset)| (*offset, offset + other.bytes))
            .collect();
        busy.sort_unstable();
        let mut offset = 0usize;
        for (start, end) in busy {
            if offset + w.bytes <= start {
                break;
            }
            offset = offset.max(end.next_multiple_of(ALIGN));
        }
        placed.push((w, offset));
    }
    let mut arena = Arena {
        bytes: placed.iter().map(|(w, offset)| offset + w.bytes).max().unwrap_or(0),
        unshared_bytes: placed.iter().map(|(w, _)| w.bytes.next_multiple_of(ALIGN)).sum(),
        ..Arena::default()
    };
    placed.sort_by_key(|(w, _)| w.item);
    for (w, offset) in placed {
        match w.item {
            Item::Buffer(i) => {
                arena.placements.push(Placement { buffer: BufferId::new(i), offset, bytes: w.bytes });
            }
            Item::Scratch(i) => {
                // Dispatches may run at once: each has counters of its own.
                let counters = arena.scratch.counter_bytes;
                let needed = scratch(&dispatches[i]).map_or(0, |s| s.counter_bytes(bind));
                arena.scratch.counter_bytes = counters + needed.next_multiple_of(ALIGN);
                let dispatch = DispatchId::new(i);
                arena.scratch.places.push(ScratchPlace { dispatch, offset, bytes: w.bytes, counters });
            }
        }
    }
    arena
}
