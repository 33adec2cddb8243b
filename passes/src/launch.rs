//! Launch planning: which launches each launch waits for.
//!
//! Before: dispatches in order and arenas. After: [`Launch`]es whose edges cover every read-after-write,
//! write-after-read and write-after-write, through the same buffer or through memory that two temporaries
//! share in some entry, transitively reduced. Tests: `passes/tests/launch.rs`.

use crate::memory_plan::Arena;
use std::collections::HashMap;
use weft_ir::ids::{BufferId, DispatchId};
use weft_ir::plan::{Dispatch, EdgeKind, Launch};

/// Launches for dispatches in order; `programmatic` says which dispatches wait inside the kernel.
pub fn run(dispatches: &[Dispatch], arenas: &[&Arena], programmatic: &[bool]) -> Vec<Launch> {
    let aliases = aliases(arenas);
    let mut last_write: HashMap<BufferId, usize> = HashMap::new();
    let mut last_reads: HashMap<BufferId, Vec<usize>> = HashMap::new();
    let mut before: Vec<Vec<bool>> = Vec::with_capacity(dispatches.len());
    let mut launches = Vec::with_capacity(dispatches.len());
    for (at, d) in dispatches.iter().enumerate() {
        let mut needs: Vec<usize> = Vec::new();
        for b in &d.reads {
            needs.extend(last_write.get(b));
        }
        for b in &d.writes {
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
            last_reads.entry(*b).or_default().push(at);
        }
        for b in &d.writes {
            last_write.insert(*b, at);
            last_reads.remove(b);
        }
    }
    launches
}

/// For each temporary, those that share memory with it in some entry.
fn aliases(arenas: &[&Arena]) -> HashMap<BufferId, Vec<BufferId>> {
    let mut out: HashMap<BufferId, Vec<BufferId>> = HashMap::new();
    for arena in arenas {
        let mut by_offset: Vec<_> = arena.placements.iter().collect();
        by_offset.sort_by_key(|p| p.offset);
        for (i, a) in by_offset.iter().enumerate() {
            for b in by_offset[i + 1..].iter().take_while(|b| b.offset < a.offset + a.bytes) {
                out.entry(a.buffer).or_default().push(b.buffer);
                out.entry(b.buffer).or_default().push(a.buffer);
            }
        }
    }
    for list in out.values_mut() {
        list.sort_unstable();
        list.dedup();
    }
    out
}
