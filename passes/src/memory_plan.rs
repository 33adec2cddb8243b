//! Memory planning: temporaries get offsets in the arena of an entry, by their lifetimes.
//!
//! Before: dispatches in launch order. After: [`Placement`]s; buffers whose lifetimes overlap do not
//! overlap in memory. Greedy by size (Pisarchyk & Lee 2020): the largest buffer first, each at the lowest
//! offset that is free over its lifetime. Tests: `passes/tests/memory_plan.rs`.

use weft_ir::ids::BufferId;
use weft_ir::plan::{Buffer, BufferKind, Dispatch, Placement};
use weft_ir::shape::Bindings;

/// Alignment of offsets, in bytes: what a device allocation has.
pub const ALIGN: usize = 256;

/// Arena of an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arena {
    /// Places, by buffer id.
    pub placements: Vec<Placement>,
    /// Size: the peak.
    pub bytes: usize,
    /// Sum of the buffers' sizes.
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

/// Places the temporaries of `dispatches` for the sizes that `bind` gives.
pub fn run(buffers: &[Buffer], dispatches: &[Dispatch], bind: &Bindings) -> Arena {
    let lives = lifetimes(buffers, dispatches);
    let mut wanted: Vec<(usize, usize, (usize, usize))> = lives
        .iter()
        .enumerate()
        .filter_map(|(i, life)| life.map(|l| (i, buffers[i].bytes(bind).max(1), l)))
        .collect();
    wanted.sort_by_key(|&(i, bytes, _)| (std::cmp::Reverse(bytes), i));

    let mut placed: Vec<(Placement, (usize, usize))> = Vec::new();
    for (i, bytes, life) in wanted {
        let mut busy: Vec<(usize, usize)> = placed
            .iter()
            .filter(|(_, other)| other.0 <= life.1 && life.0 <= other.1)
            .map(|(p, _)| (p.offset, p.offset + p.bytes))
            .collect();
        busy.sort_unstable();
        let mut offset = 0usize;
        for (start, end) in busy {
            if offset + bytes <= start {
                break;
            }
            offset = offset.max(end.next_multiple_of(ALIGN));
        }
        placed.push((Placement { buffer: BufferId::new(i), offset, bytes }, life));
    }
    let bytes = placed.iter().map(|(p, _)| p.offset + p.bytes).max().unwrap_or(0);
    let unshared_bytes = placed.iter().map(|(p, _)| p.bytes.next_multiple_of(ALIGN)).sum();
    let mut placements: Vec<Placement> = placed.into_iter().map(|(p, _)| p).collect();
    placements.sort_by_key(|p| p.buffer);
    Arena { placements, bytes, unshared_bytes }
}
