//! Arrivals of blocks at counters: which block is the last, what that orders, and what can be wrong with it.

use super::fault::{FaultKind, Step, raise};
use super::machine::Machine;
use super::program::Node;
use super::race::Mode;
use super::value;
use std::collections::BTreeSet;

/// Blocks that arrived at a counter.
#[derive(Clone, Debug)]
pub(super) struct Arrivals {
    array: String,
    index: i64,
    expected: u32,
    blocks: BTreeSet<[u32; 3]>,
    /// Where the last one arrived: statement.
    statement: usize,
}

impl Machine<'_> {
    /// The block arrives: a barrier, the first thread's fence, its atomic increment, its fence, a barrier.
    pub(super) fn last_block(
        &mut self,
        counter: usize,
        index: &Node,
        expected: &Node,
        last: usize,
        active: &[u32],
    ) -> Step<()> {
        self.barrier(active)?;
        self.clock.now += 1;
        let (at, counts) = (self.eval(index, active)?, self.eval(expected, active)?);
        if active.iter().any(|t| (at[*t as usize], counts[*t as usize]) != (at[0], counts[0])) {
            return raise(0, FaultKind::Invalid("threads of a block differ on a counter of blocks".into()));
        }
        let (index, expected) = (value::int_of(index.dtype, at[0]), counts[0] as u32);
        self.give(at);
        self.give(counts);
        self.clock.fence(0);
        self.clock.now += 1;
        let (size, array) = (self.array(counter)?.size, self.array(counter)?.name.clone());
        let (region, offset) = self.touch(counter, index, 1, 0, Mode::Atomic)?;
        let before = self.regions[region].get(offset, size) as u32;
        let place = (region, offset);
        if let Some(known) = self.arrivals.get(&place) {
            if known.expected != expected {
                let before = known.expected;
                return raise(0, FaultKind::Expectation { array, index, expected, before });
            }
            if known.blocks.contains(&self.block) {
                return raise(0, FaultKind::ArrivesAgain { array, index });
            }
        } else if before != 0 {
            return raise(0, FaultKind::Counter { array, index, value: before });
        }
        let known = self.arrivals.entry(place).or_insert_with(|| Arrivals {
            array: array.clone(),
            index,
            expected,
            blocks: BTreeSet::new(),
            statement: 0,
        });
        known.blocks.insert(self.block);
        known.statement = self.statement;
        let arrived = known.blocks.len() as u32;
        if arrived > expected {
            return raise(0, FaultKind::Arrivals { array, index, arrived, expected });
        }
        // As atomicInc(counter, expected - 1) does.
        let is_last = before == expected - 1;
        let after = if before >= expected - 1 { 0 } else { before + 1 };
        self.regions[region].set(offset, size, u64::from(after));
        self.clock.synchronise(0, region, offset / size);
        self.clock.now += 1;
        self.clock.fence(0);
        self.clock.now += 1;
        self.barrier(active)?;
        active.iter().for_each(|t| self.vars[last][*t as usize] = u64::from(is_last));
        Ok(())
    }

    /// At the end of a launch: every counter that was used has seen all blocks that it expects.
    pub(super) fn all_arrived(&mut self) -> Step<()> {
        let missing = self.arrivals.values().find(|a| (a.blocks.len() as u32) < a.expected).cloned();
        let Some(a) = missing else { return Ok(()) };
        self.statement = a.statement;
        self.block = a.blocks.last().copied().unwrap_or_default();
        let (arrived, expected) = (a.blocks.len() as u32, a.expected);
        raise(0, FaultKind::Arrivals { array: a.array, index: a.index, arrived, expected })
    }
}
