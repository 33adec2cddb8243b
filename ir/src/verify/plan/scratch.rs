//! What holds for the scratch of kernels: its types, its places in the arena, counters that are no other's.

use crate::dtype::DType;
use crate::plan::{Body, Entry, Plan, SCRATCH_ALIGN, Scratch};

/// Memory of an entry: offset, bytes, first and last dispatch that uses it, name.
pub(super) type Used = (usize, usize, (usize, usize), String);

/// What is wrong with what a kernel needs.
pub(super) fn kernel(s: &Scratch) -> Option<String> {
    if s.counters.per == 0 || s.partials.iter().any(|p| p.elements.per == 0) {
        return Some("its scratch is divided by 0".into());
    }
    let other = s.partials.iter().find(|p| !matches!(p.dtype, DType::F32 | DType::I32));
    other.map(|p| format!("partial results of type {}, must be f32 or i32", p.dtype))
}

/// Where the scratch of an entry's dispatches lies in the arena, and what is wrong with it.
pub(super) fn places(plan: &Plan, entry: &Entry, body: &Body) -> (Vec<Used>, Vec<String>) {
    let (mut used, mut faults) = (Vec::new(), Vec::new());
    let mut counters: Vec<(usize, usize, usize)> = Vec::new();
    for (i, d) in body.dispatches.iter().enumerate() {
        let spec = entry.kernels.get(&d.work).and_then(|k| plan.kernels.get(k.index()));
        let scratch = spec.and_then(|k| k.scratch.as_ref()).filter(|s| kernel(s).is_none());
        let Some(scratch) = scratch else { continue };
        let fits = |offset: usize, bytes: usize, of: usize| {
            offset.is_multiple_of(SCRATCH_ALIGN) && offset.checked_add(bytes).is_some_and(|end| end <= of)
        };
        let bytes = scratch.layout(&entry.bind).1;
        let count = scratch.counter_bytes(&entry.bind);
        match entry.scratch.of(i) {
            Some(p)
                if p.bytes >= bytes
                    && fits(p.offset, p.bytes, entry.arena_bytes)
                    && fits(p.counters, count, entry.scratch.counter_bytes) =>
            {
                used.push((p.offset, p.bytes, (i, i), format!("the scratch of dispatch {i}")));
                counters.push((p.counters, count, i));
            }
            _ => faults.push(format!("the scratch of dispatch {i} has no place")),
        }
    }
    counters.sort_unstable();
    for pair in counters.windows(2) {
        if let [(offset, bytes, a), (next, _, b)] = pair
            && offset + bytes > *next
        {
            faults.push(format!("dispatches {a} and {b} share counters"));
        }
    }
    (used, faults)
}
