//! Race detection: what orders two accesses to one element.
//!
//! Time counts statements of a launch. Within a block, an access happens before another when the same
//! thread made both, when a block barrier lies between, or when both threads are of one warp and a warp
//! barrier lies between. Across blocks only the release pattern orders: accesses, `__threadfence`, an
//! atomic on an element; then in the other block an atomic on that element, `__threadfence`, accesses
//! (each side may spread it over a block barrier). Atomics do not race with atomics.

use std::collections::HashMap;

/// How many threads a record stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Span {
    Thread,
    Warp,
    Block,
    Grid,
}

/// The last unordered accesses of one kind to an element, summed up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    time: u64,
    pub(super) block: u32,
    pub(super) thread: u16,
    span: Span,
    atomic: bool,
}

const NONE: Record = Record { time: 0, block: 0, thread: 0, span: Span::Thread, atomic: false };

#[derive(Clone, Copy, Debug)]
struct Cell {
    write: Record,
    read: Record,
    in_flight: bool,
}

const EMPTY: Cell = Cell { write: NONE, read: NONE, in_flight: false };

/// Records of every element of an array.
#[derive(Clone, Debug)]
pub(super) struct Shadow {
    cells: Vec<Cell>,
}

/// How an element is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Read,
    /// Read by a warp instruction: every lane may receive it.
    WarpRead,
    Write,
    Atomic,
}

/// Why an access is wrong.
#[derive(Clone, Copy, Debug)]
pub(super) enum Conflict {
    Race { wrote: bool, rival: Record },
    InFlight,
}

/// What an atomic published: accesses of its block up to `block_time` and of its thread up to
/// `own_time`, and the atomic itself.
#[derive(Clone, Copy, Debug)]
struct Release {
    block: u32,
    thread: u16,
    own_time: u64,
    block_time: u64,
    atomic_time: u64,
}

/// What orders the accesses of the running block.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    pub(super) now: u64,
    own: Own,
    releases: HashMap<(usize, usize), Vec<Release>>,
    tracks_fences: bool,
}

/// What is known of one block: blocks of a cluster take turns.
#[derive(Clone, Debug)]
pub(super) struct Own {
    block: u32,
    barrier: u64,
    warps: Vec<u64>,
    /// Of each thread: last fence, and the barrier before it.
    fences: Vec<(u64, u64)>,
    /// All threads fenced before a barrier: accesses up to here are published.
    published: u64,
    pending: Vec<Vec<Release>>,
    acquired: Vec<Vec<Release>>,
    acquired_by_block: Vec<Release>,
}

impl Own {
    /// A block that has done nothing yet.
    pub(super) fn new(block: u32, threads: usize) -> Own {
        Own {
            block,
            barrier: 0,
            warps: vec![0; threads.div_ceil(32)],
            fences: vec![(0, 0); threads],
            published: 0,
            pending: vec![Vec::new(); threads],
            acquired: vec![Vec::new(); threads],
            acquired_by_block: Vec::new(),
        }
    }
}

impl Clock {
    pub(super) fn new(threads: usize, tracks_fences: bool) -> Self {
        Clock { now: 1, own: Own::new(0, threads), releases: HashMap::new(), tracks_fences }
    }

    /// Another block runs from here on; gives what is known of the one that ran.
    pub(super) fn run_block(&mut self, own: Own) -> Own {
        std::mem::replace(&mut self.own, own)
    }

    pub(super) fn block_barrier(&mut self) {
        self.own.barrier = self.now;
        if self.tracks_fences {
            self.own.published = self.own.fences.iter().map(|f| f.0).min().unwrap_or(0);
            for a in &mut self.own.acquired {
                self.own.acquired_by_block.append(a);
            }
        }
    }

    pub(super) fn warp_barrier(&mut self, warp: usize) {
        if let Some(w) = self.own.warps.get_mut(warp) {
            *w = self.now;
        }
    }

    pub(super) fn fence(&mut self, thread: usize) {
        self.own.fences[thread] = (self.now, self.own.barrier);
        let (pending, acquired) = (&mut self.own.pending[thread], &mut self.own.acquired[thread]);
        acquired.append(pending);
    }

    /// An atomic on a global element: acquires what earlier ones released, and releases.
    pub(super) fn synchronise(&mut self, thread: usize, array: usize, element: usize) {
        if !self.tracks_fences {
            return;
        }
        let (own_time, barrier) = self.own.fences[thread];
        let release = Release {
            block: self.own.block,
            thread: thread as u16,
            own_time,
            block_time: barrier.max(self.own.published),
            atomic_time: self.now,
        };
        let releases = self.releases.entry((array, element)).or_default();
        self.own.pending[thread].extend(releases.iter().filter(|r| r.block != release.block));
        let same = |r: &&mut Release| r.block == release.block && r.thread == release.thread;
        match releases.iter_mut().rev().find(same) {
            Some(earlier) => *earlier = release,
            None => releases.push(release),
        }
    }

    fn has_acquired(&self, record: &Record, thread: u16) -> bool {
        let covers = |r: &Release| {
            let own = r.own_time.max(if record.atomic { r.atomic_time } else { 0 });
            let single = record.span == Span::Thread || record.atomic;
            r.block == record.block
                && (record.time < r.block_time || (single && r.thread == record.thread && record.time <= own))
        };
        let own = self.own.acquired.get(usize::from(thread)).map_or(&[][..], Vec::as_slice);
        self.own.acquired_by_block.iter().chain(own).any(covers)
    }

    fn acquired_any(&self, thread: u16) -> bool {
        !self.own.acquired_by_block.is_empty()
            || self.own.acquired.get(usize::from(thread)).is_some_and(|a| !a.is_empty())
    }

    /// Whether all accesses of a record happen before one of `thread` now.
    fn ordered(&self, r: &Record, thread: u16, mode: Mode) -> bool {
        if r.time == 0 {
            return true;
        }
        if r.block != self.own.block {
            return match r.span {
                Span::Thread | Span::Warp | Span::Block => self.has_acquired(r, thread),
                Span::Grid => r.atomic && self.has_acquired(r, thread),
            };
        }
        let by_block = r.time < self.own.barrier;
        let same_warp = r.thread / 32 == thread / 32;
        let by_warp = same_warp && r.time < self.own.warps[usize::from(thread / 32)];
        let same_thread = r.thread == thread && mode != Mode::WarpRead;
        match r.span {
            Span::Thread => same_thread || by_block || by_warp,
            Span::Warp => by_block || by_warp,
            Span::Block => by_block,
            // Atomics of several blocks: ordered like the last one, if others were acquired.
            Span::Grid => r.atomic && self.acquired_any(thread) && (same_thread || by_block || by_warp),
        }
    }

    /// Adds an access to a record of accesses that do not race with each other.
    fn merge(&self, r: &mut Record, thread: u16, mode: Mode) {
        let own = if mode == Mode::WarpRead { Span::Warp } else { Span::Thread };
        let span = if self.ordered(r, thread, mode) {
            own
        } else if r.block != self.own.block {
            Span::Grid
        } else if r.thread / 32 != thread / 32 {
            r.span.max(Span::Block)
        } else {
            r.span.max(Span::Warp)
        };
        *r = Record { time: self.now, block: self.own.block, thread, span, atomic: mode == Mode::Atomic };
    }
}

impl Shadow {
    pub(super) fn new(elements: usize) -> Self {
        Shadow { cells: vec![EMPTY; elements] }
    }

    /// Records an access to an element, or says what it conflicts with.
    pub(super) fn access(
        &mut self,
        clock: &Clock,
        element: usize,
        thread: u16,
        mode: Mode,
    ) -> Result<(), Conflict> {
        let Some(cell) = self.cells.get_mut(element) else {
            return Ok(());
        };
        if cell.in_flight {
            return Err(Conflict::InFlight);
        }
        let write_ordered =
            (mode == Mode::Atomic && cell.write.atomic) || clock.ordered(&cell.write, thread, mode);
        if !write_ordered {
            return Err(Conflict::Race { wrote: true, rival: cell.write });
        }
        match mode {
            Mode::Read | Mode::WarpRead => clock.merge(&mut cell.read, thread, mode),
            Mode::Write | Mode::Atomic => {
                if !clock.ordered(&cell.read, thread, mode) {
                    return Err(Conflict::Race { wrote: false, rival: cell.read });
                }
                if mode == Mode::Atomic && cell.write.atomic {
                    clock.merge(&mut cell.write, thread, mode);
                } else {
                    let atomic = mode == Mode::Atomic;
                    cell.write = Record {
                        time: clock.now,
                        block: clock.own.block,
                        thread,
                        span: Span::Thread,
                        atomic,
                    };
                }
                cell.read = NONE;
            }
        }
        Ok(())
    }

    /// Marks an element as the destination of a copy in flight.
    pub(super) fn launch(&mut self, element: usize) {
        if let Some(cell) = self.cells.get_mut(element) {
            cell.in_flight = true;
        }
    }

    /// Whether the block has not used an element: data that another one sends may arrive there.
    pub(super) fn is_unused(&self, element: usize) -> bool {
        self.cells.get(element).is_none_or(|c| c.write.time == 0 && c.read.time == 0 && !c.in_flight)
    }

    /// Records that the copy to an element has arrived for all threads of the block, which waited for it.
    pub(super) fn arrive(&mut self, element: usize) {
        if let Some(cell) = self.cells.get_mut(element) {
            *cell = EMPTY;
        }
    }

    /// Records that the copy to an element has landed, as a write of its thread.
    pub(super) fn land(&mut self, clock: &Clock, element: usize, thread: u16) {
        if let Some(cell) = self.cells.get_mut(element) {
            let write =
                Record { time: clock.now, block: clock.own.block, thread, span: Span::Thread, atomic: false };
            *cell = Cell { write, read: NONE, in_flight: false };
        }
    }
}
