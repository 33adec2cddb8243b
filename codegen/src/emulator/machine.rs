//! State of a running launch, and the checks of every memory access.

use super::arrivals::Arrivals;
use super::cluster::Post;
use super::fault::{Fault, FaultKind, Place, Raised, Rival, Step, raise};
use super::memory::Buffer;
use super::program::{Node, Program};
use super::race::{Clock, Conflict, Mode, Shadow};
use super::rings::Rings;
use super::warpgroup::Warpgroups;
use super::{Arg, Launch, Order, Stats, value};
use crate::cuda::describe;
use std::collections::{BTreeMap, VecDeque};
use weft_ir::kernel::{Access, Kernel, ParamKind};

/// An array that the kernel names: a pointer parameter or a shared array.
#[derive(Clone, Debug)]
pub(super) struct Array {
    /// Position in the machine's regions.
    pub(super) region: usize,
    pub(super) size: usize,
    pub(super) name: String,
    pub(super) global: bool,
    early: Early,
}

/// What may be read before the dependency wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Early {
    /// All.
    Constant,
    /// What no kernel of the step has written.
    Settled,
    /// Nothing.
    Never,
}

/// An asynchronous copy that has been issued.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copy {
    pub(super) to: (usize, usize),
    /// Source; `None` fills with zeros.
    pub(super) from: Option<(usize, usize)>,
    pub(super) bytes: usize,
    pub(super) size: usize,
}

/// Asynchronous copies of one thread.
#[derive(Clone, Debug, Default)]
pub(super) struct Copies {
    pub(super) open: Vec<Copy>,
    pub(super) groups: VecDeque<Vec<Copy>>,
}

/// A running launch.
pub(super) struct Machine<'k> {
    pub(super) kernel: &'k Kernel,
    pub(super) threads: usize,
    pub(super) grid: [u32; 3],
    pub(super) block: [u32; 3],
    /// Bits of scalar arguments.
    pub(super) scalars: Vec<u64>,
    arrays: Vec<Option<Array>>,
    /// Global buffers, then shared arrays.
    pub(super) regions: Vec<Buffer>,
    pub(super) shadows: Vec<Option<Shadow>>,
    /// Bits of variables: element `e` of thread `t` at `e · threads + t`.
    pub(super) vars: Vec<Vec<u64>>,
    /// Which elements of register arrays have been written.
    pub(super) written: Vec<Vec<bool>>,
    pub(super) waited: Vec<bool>,
    has_wait: bool,
    pub(super) copies: Vec<Copies>,
    /// Products of four warps.
    pub(super) warpgroups: Warpgroups,
    /// Rings of stages.
    pub(super) rings: Rings,
    pub(super) clock: Clock,
    /// What the blocks of the running cluster sent each other.
    pub(super) post: Post,
    /// Counters of blocks that this launch has used, by region and byte offset.
    pub(super) arrivals: BTreeMap<(usize, usize), Arrivals>,
    pub(super) statement: usize,
    pub(super) stats: Stats,
    pub(super) pool: Vec<Vec<u64>>,
}

impl<'k> Machine<'k> {
    pub(super) fn new(kernel: &'k Kernel, launch: &Launch, program: &Program, buffers: Vec<Buffer>) -> Self {
        let threads = kernel.threads as usize;
        let globals = buffers.len();
        let mut regions = buffers;
        let mut shadows: Vec<Option<Shadow>> = vec![None; globals];
        let mut arrays = Vec::new();
        let mut scalars = Vec::new();
        for (param, arg) in kernel.params.iter().zip(&launch.args) {
            let (array, scalar) = match (param.kind, arg) {
                (ParamKind::Pointer { dtype, access }, Arg::Buffer(region)) => {
                    if matches!(access, Access::Write | Access::ReadWrite | Access::ToHost) {
                        shadows[*region] = Some(Shadow::new(regions[*region].len()));
                    }
                    let early = match access {
                        // No kernel writes what comes from the host.
                        Access::Constant | Access::FromHost => Early::Constant,
                        Access::Settled => Early::Settled,
                        Access::Read | Access::Write | Access::ReadWrite | Access::ToHost => Early::Never,
                    };
                    let (region, name) = (*region, param.name.clone());
                    (Some(Array { region, size: dtype.size(), name, global: true, early }), 0)
                }
                (ParamKind::Matrix { dtype, access, .. }, Arg::Buffer(region)) => {
                    let early = if access == Access::Constant { Early::Constant } else { Early::Never };
                    let (region, name) = (*region, param.name.clone());
                    (Some(Array { region, size: dtype.size(), name, global: true, early }), 0)
                }
                (ParamKind::Condition, Arg::Buffer(region)) => {
                    shadows[*region] = Some(Shadow::new(regions[*region].len()));
                    let (region, name) = (*region, param.name.clone());
                    (Some(Array { region, size: 4, name, global: true, early: Early::Never }), 0)
                }
                (_, Arg::Scalar(bits)) => (None, *bits),
                (ParamKind::Scalar(_), Arg::Buffer(_)) => (None, 0),
            };
            arrays.push(array);
            scalars.push(scalar);
        }
        for s in &kernel.shared {
            let (region, size) = (regions.len(), s.dtype.size());
            regions.push(Buffer::uninitialised(s.dtype, s.len as usize));
            shadows.push(Some(Shadow::new(s.len as usize)));
            arrays.push(Some(Array {
                region,
                size,
                name: s.name.clone(),
                global: false,
                early: Early::Never,
            }));
        }
        let elements = |len: Option<u32>| len.map_or(1, |l| l as usize) * threads;
        Machine {
            kernel,
            threads,
            grid: launch.grid,
            block: [0; 3],
            scalars,
            arrays,
            regions,
            shadows,
            vars: kernel.vars.iter().map(|v| vec![0; elements(v.len)]).collect(),
            written: kernel
                .vars
                .iter()
                .map(|v| vec![false; v.len.map_or(0, |l| elements(Some(l)))])
                .collect(),
            waited: vec![false; threads],
            has_wait: program.has_wait,
            copies: vec![Copies::default(); threads],
            warpgroups: Warpgroups::new(threads),
            rings: Rings::new(kernel.rings.len()),
            clock: Clock::new(threads, program.has_fence),
            post: Post::default(),
            arrivals: BTreeMap::new(),
            statement: 0,
            stats: Stats::default(),
            pool: Vec::new(),
        }
    }

    /// The global buffers.
    pub(super) fn into_buffers(mut self, count: usize) -> Vec<Buffer> {
        self.regions.truncate(count);
        self.regions
    }

    pub(super) fn run(&mut self, program: &Program, order: Order) -> Result<(), Fault> {
        let [width, height, depth] = self.grid.map(u64::from);
        let cluster = u64::from(self.kernel.cluster.unwrap_or(1));
        let clusters = width * height * (depth / cluster);
        for turn in 0..clusters {
            let at = match order {
                Order::Forward => turn,
                Order::Backward => clusters - 1 - turn,
            };
            let (x, y, z) = (at % width, at / width % height, at / width / height * cluster);
            let mut ranks: Vec<u64> = (0..cluster).collect();
            if order == Order::Backward {
                ranks.reverse();
            }
            let blocks = ranks.into_iter().map(|rank| {
                let number = x + width * (y + height * (z + rank));
                ([x, y, z + rank].map(|i| i as u32), number as u32)
            });
            self.run_cluster(program, blocks.collect()).map_err(|raised| self.located(raised))?;
        }
        self.all_arrived().map_err(|raised| self.located(raised))
    }

    fn located(&self, raised: Raised) -> Fault {
        let stmt = self.kernel.statement(self.statement);
        let place = Place {
            kernel: self.kernel.name.clone(),
            statement: self.statement,
            text: stmt.map_or_else(String::new, |s| describe(self.kernel, s)),
            block: self.block,
            thread: raised.thread,
        };
        Fault { place: Box::new(place), kind: raised.kind }
    }

    /// A vector of values, one a thread, with stale contents.
    pub(super) fn take(&mut self) -> Vec<u64> {
        self.pool.pop().unwrap_or_else(|| vec![0; self.threads])
    }

    /// Gives a vector back for reuse.
    pub(super) fn give(&mut self, v: Vec<u64>) {
        self.pool.push(v);
    }

    pub(super) fn array(&self, mem: usize) -> Step<&Array> {
        match self.arrays.get(mem) {
            Some(Some(array)) => Ok(array),
            Some(None) | None => raise(0, FaultKind::Invalid(format!("no array {mem}"))),
        }
    }

    /// Checks and records an access to `count` elements at once; gives region and byte offset.
    pub(super) fn touch(
        &mut self,
        mem: usize,
        index: i64,
        count: usize,
        thread: u32,
        mode: Mode,
    ) -> Step<(usize, usize)> {
        let Some(Some(array)) = self.arrays.get(mem) else {
            return raise(thread, FaultKind::Invalid(format!("no array {mem}")));
        };
        let name = || array.name.clone();
        let early = self.has_wait && array.global && !self.waited[thread as usize];
        if early && array.early == Early::Never {
            return raise(thread, FaultKind::BeforeDependencyWait(name()));
        }
        let region = &self.regions[array.region];
        let len = region.bytes.len() / array.size;
        let first = usize::try_from(index).unwrap_or(usize::MAX);
        if first.checked_add(count).is_none_or(|end| end > len) {
            let index = if first < len { len as i64 } else { index };
            return raise(thread, FaultKind::OutOfBounds { array: name(), index, len: len as u64 });
        }
        let (at, bytes) = (first * array.size, count * array.size);
        if early && array.early == Early::Settled && !region.is_settled(at, bytes) {
            return raise(thread, FaultKind::BeforeDependencyWait(name()));
        }
        if at % bytes.max(1) != 0 {
            return raise(thread, FaultKind::Misaligned { array: name(), index, bytes: bytes as u32 });
        }
        if let Some(shadow) = &mut self.shadows[array.region] {
            let grain = region.dtype.size();
            for element in at / grain..(at + bytes).div_ceil(grain) {
                if let Err(conflict) = shadow.access(&self.clock, element, thread as u16, mode) {
                    let index = (element * grain / array.size) as i64;
                    return raise(thread, conflict_kind(name(), index, mode, conflict));
                }
            }
        }
        let reads = mode != Mode::Write;
        if reads && !region.is_initialised(at, bytes) {
            let fresh = |i: &usize| !region.is_initialised(at + i * array.size, array.size);
            let index = index + (0..count).find(fresh).unwrap_or(0) as i64;
            return raise(thread, FaultKind::Uninitialised { array: name(), index });
        }
        if !array.global && !reads {
            self.warpgroups.wrote(thread);
        }
        if array.global {
            if reads {
                self.stats.bytes_loaded += bytes as u64;
            }
            if matches!(mode, Mode::Write | Mode::Atomic) {
                self.stats.bytes_stored += bytes as u64;
            }
        }
        Ok((array.region, at))
    }

    /// Checks that elements to be brought to the cache lie in their array, in pieces of 16 bytes.
    pub(super) fn prefetch(&mut self, mem: usize, index: &Node, count: usize, active: &[u32]) -> Step<()> {
        let at = self.eval(index, active)?;
        for &t in active {
            let index = value::int_of(index.dtype, at[t as usize]);
            let array = self.array(mem)?;
            let len = self.regions[array.region].bytes.len() / array.size;
            let first = usize::try_from(index).unwrap_or(usize::MAX);
            let name = array.name.clone();
            if first.checked_add(count).is_none_or(|end| end > len) {
                let index = if first < len { len as i64 } else { index };
                return raise(t, FaultKind::OutOfBounds { array: name, index, len: len as u64 });
            }
            if !(first * array.size).is_multiple_of(16) {
                return raise(t, FaultKind::Misaligned { array: name, index, bytes: 16 });
            }
        }
        self.give(at);
        Ok(())
    }

    /// Checks `count` elements of a register array; gives the position of the first.
    pub(super) fn registers(&self, slot: usize, index: i64, count: usize, thread: u32) -> Step<usize> {
        let len = self.written[slot].len() / self.threads;
        match usize::try_from(index) {
            Ok(first) if first + count <= len => Ok(first * self.threads + thread as usize),
            Ok(_) | Err(_) => {
                let array = self.kernel.vars[slot].name.clone();
                let index = if index < 0 { index } else { index.max(len as i64) };
                raise(thread, FaultKind::OutOfBounds { array, index, len: len as u64 })
            }
        }
    }

    /// Reads an element of a register array at a position.
    pub(super) fn register(&self, slot: usize, position: usize) -> Step<u64> {
        if self.written[slot][position] {
            return Ok(self.vars[slot][position]);
        }
        let array = self.kernel.vars[slot].name.clone();
        let (index, thread) = (position / self.threads, position % self.threads);
        raise(thread as u32, FaultKind::Uninitialised { array, index: index as i64 })
    }

    /// Writes an element of a register array at a position.
    pub(super) fn set_register(&mut self, slot: usize, position: usize, bits: u64) {
        self.vars[slot][position] = bits;
        self.written[slot][position] = true;
    }

    /// Warps whose lanes are active; a fault when one of them is not complete.
    pub(super) fn full_warps(&self, active: &[u32], what: &'static str) -> Step<Vec<usize>> {
        let mut warps = Vec::with_capacity(self.threads / 32);
        let mut rest = active;
        while let Some(first) = rest.first() {
            let warp = first / 32;
            let lanes = rest.iter().take_while(|t| **t / 32 == warp).count();
            if lanes != 32 {
                return raise(*first, FaultKind::DivergentCollective { what, arrived: lanes as u32 });
            }
            warps.push(warp as usize);
            rest = &rest[lanes..];
        }
        Ok(warps)
    }
}

fn conflict_kind(array: String, index: i64, mode: Mode, conflict: Conflict) -> FaultKind {
    match conflict {
        Conflict::InFlight => FaultKind::CopyInFlight { array, index },
        Conflict::Race { wrote, rival } => {
            let writes = matches!(mode, Mode::Write | Mode::Atomic);
            let rival = Rival { block: rival.block, thread: rival.thread, wrote };
            FaultKind::Race { array, index, writes, rival }
        }
    }
}
