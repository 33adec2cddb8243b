//! Blocks of a cluster: they run in parts, from one cluster barrier or awaited signal to the next, and take turns
//! there. Both stand at the top of a kernel's body, so every block runs the same parts.
//!
//! What is sent arrives where its block waits for it. Kernels are written as if it could arrive at any time between:
//! an element that it arrives in may not be used before. A cluster barrier orders nothing but signals here.

use super::fault::{FaultKind, Step, raise};
use super::machine::{Copies, Machine};
use super::memory::Buffer;
use super::program::{Line, Node, Op, Program, Registers};
use super::race::{Own, Shadow};
use super::rings::Rings;
use super::value;
use super::warpgroup::Warpgroups;

/// What the blocks of the running cluster sent each other.
#[derive(Clone, Debug, Default)]
pub(super) struct Post {
    sent: Vec<Parcel>,
    /// Bytes that each signal of each block expects, by rank.
    expected: Vec<Vec<Option<i64>>>,
}

/// Some elements on the way to a block.
#[derive(Clone, Debug)]
struct Parcel {
    rank: usize,
    signal: usize,
    mem: usize,
    index: i64,
    elements: Vec<u64>,
}

/// A block that does not run: what the machine has of the one that does.
struct Resting {
    at: [u32; 3],
    vars: Vec<Vec<u64>>,
    written: Vec<Vec<bool>>,
    waited: Vec<bool>,
    copies: Vec<Copies>,
    warpgroups: Warpgroups,
    rings: Rings,
    own: Own,
    shared: Vec<(Buffer, Option<Shadow>)>,
}

/// The parts of a body: each begins with what separates it from the one before.
fn parts(body: &[Line]) -> Vec<(Option<&Line>, &[Line])> {
    let mut out = Vec::new();
    let (mut start, mut head) = (0, None);
    for (i, line) in body.iter().enumerate() {
        if matches!(line.op, Op::ClusterBarrier | Op::AwaitBytes { .. }) {
            out.push((head, &body[start..i]));
            (start, head) = (i + 1, Some(line));
        }
    }
    out.push((head, &body[start..]));
    out
}

impl Machine<'_> {
    /// Runs the blocks of a cluster: positions and numbers, in the order of their turns.
    pub(super) fn run_cluster(&mut self, program: &Program, blocks: Vec<([u32; 3], u32)>) -> Step<()> {
        let all: Vec<u32> = (0..self.threads as u32).collect();
        self.post =
            Post { sent: Vec::new(), expected: vec![vec![None; self.kernel.signals.len()]; blocks.len()] };
        let mut resting: Vec<Resting> = blocks.iter().map(|(at, number)| self.fresh(*at, *number)).collect();
        for (head, lines) in parts(&program.body) {
            for block in &mut resting {
                self.exchange(block);
                if let Some(head) = head {
                    self.begin_part(head, &all)?;
                }
                self.exec(lines, &all)?;
                self.no_products()?;
                self.no_tiles()?;
                self.exchange(block);
            }
        }
        match self.post.sent.first() {
            None => Ok(()),
            Some(parcel) => {
                let (signal, expected) = (parcel.signal, self.post.expected[parcel.rank][parcel.signal]);
                let sent = self.arriving(parcel.rank, signal);
                let signal = self.kernel.signals[signal].clone();
                raise(0, FaultKind::SignalBytes { signal, expected: expected.unwrap_or(0), sent })
            }
        }
    }

    fn shared_regions(&self) -> std::ops::Range<usize> {
        self.regions.len() - self.kernel.shared.len()..self.regions.len()
    }

    /// A block that has done nothing yet.
    fn fresh(&self, at: [u32; 3], number: u32) -> Resting {
        let shared = self
            .kernel
            .shared
            .iter()
            .map(|s| (Buffer::uninitialised(s.dtype, s.len as usize), Some(Shadow::new(s.len as usize))));
        Resting {
            at,
            vars: self.vars.iter().map(|v| vec![0; v.len()]).collect(),
            written: self.written.iter().map(|w| vec![false; w.len()]).collect(),
            waited: vec![false; self.threads],
            copies: vec![Copies::default(); self.threads],
            warpgroups: Warpgroups::new(self.threads),
            rings: Rings::new(self.kernel.rings.len()),
            own: Own::new(number, self.threads),
            shared: shared.collect(),
        }
    }

    /// The block rests, and the resting one runs.
    fn exchange(&mut self, block: &mut Resting) {
        std::mem::swap(&mut self.block, &mut block.at);
        std::mem::swap(&mut self.vars, &mut block.vars);
        std::mem::swap(&mut self.written, &mut block.written);
        std::mem::swap(&mut self.waited, &mut block.waited);
        std::mem::swap(&mut self.copies, &mut block.copies);
        std::mem::swap(&mut self.warpgroups, &mut block.warpgroups);
        std::mem::swap(&mut self.rings, &mut block.rings);
        let own = std::mem::replace(&mut block.own, Own::new(0, 0));
        block.own = self.clock.run_block(own);
        for (region, (buffer, shadow)) in self.shared_regions().zip(&mut block.shared) {
            std::mem::swap(&mut self.regions[region], buffer);
            std::mem::swap(&mut self.shadows[region], shadow);
        }
    }

    /// The running block's number in its cluster.
    fn rank(&self) -> usize {
        (self.block[2] % self.kernel.cluster.unwrap_or(1)) as usize
    }

    fn begin_part(&mut self, head: &Line, active: &[u32]) -> Step<()> {
        self.statement = head.number;
        self.clock.now += 1;
        self.stats.statements += active.len() as u64;
        if let Op::AwaitBytes { signal } = head.op {
            return self.await_bytes(signal);
        }
        self.barrier(active)
    }

    pub(super) fn expect_bytes(&mut self, signal: usize, bytes: &Node, active: &[u32]) -> Step<()> {
        let counts = self.eval(bytes, active)?;
        if active.len() != self.threads || active.iter().any(|t| counts[*t as usize] != counts[0]) {
            return raise(0, FaultKind::Invalid("threads of a block differ on the bytes of a signal".into()));
        }
        let rank = self.rank();
        self.post.expected[rank][signal] = Some(value::int_of(bytes.dtype, counts[0]));
        self.give(counts);
        Ok(())
    }

    pub(super) fn send(
        &mut self,
        (mem, index): (usize, &Node),
        (from, lanes): (&Registers, usize),
        (rank, signal): (&Node, usize),
        active: &[u32],
    ) -> Step<()> {
        let (to, at) = (self.eval(index, active)?, self.eval(&from.at, active)?);
        let ranks = self.eval(rank, active)?;
        for &t in active {
            let i = t as usize;
            let (index, to_rank) = (value::int_of(index.dtype, to[i]), value::int_of(rank.dtype, ranks[i]));
            let blocks = self.post.expected.len();
            let Some(receiver) = usize::try_from(to_rank).ok().filter(|r| *r < blocks) else {
                return raise(t, FaultKind::NoSuchBlock { rank: to_rank, blocks: blocks as u32 });
            };
            let array = self.array(mem)?;
            let (name, len) = (array.name.clone(), self.regions[array.region].len() as i64);
            if index < 0 || index + lanes as i64 > len {
                return raise(t, FaultKind::OutOfBounds { array: name, index, len: len as u64 });
            }
            if index % lanes as i64 != 0 {
                let bytes = 4 * lanes as u32;
                return raise(t, FaultKind::Misaligned { array: name, index, bytes });
            }
            let position = self.registers(from.slot, value::int_of(from.at.dtype, at[i]), lanes, t)?;
            let elements = (0..lanes).map(|l| self.register(from.slot, position + l * self.threads));
            let elements = elements.collect::<Step<Vec<u64>>>()?;
            self.post.sent.push(Parcel { rank: receiver, signal, mem, index, elements });
        }
        [to, at, ranks].into_iter().for_each(|v| self.give(v));
        Ok(())
    }

    /// Bytes on the way to a block's signal.
    fn arriving(&self, rank: usize, signal: usize) -> i64 {
        let parcels = self.post.sent.iter().filter(|p| p.rank == rank && p.signal == signal);
        parcels.map(|p| 4 * p.elements.len() as i64).sum()
    }

    /// All other blocks have run up to here: what they sent is all that comes.
    fn await_bytes(&mut self, signal: usize) -> Step<()> {
        let rank = self.rank();
        let sent = self.arriving(rank, signal);
        let expected = self.post.expected[rank][signal].unwrap_or(0);
        if sent != expected {
            let signal = self.kernel.signals[signal].clone();
            return raise(0, FaultKind::SignalBytes { signal, expected, sent });
        }
        let (mine, rest): (Vec<Parcel>, Vec<Parcel>) = std::mem::take(&mut self.post.sent)
            .into_iter()
            .partition(|p| (p.rank, p.signal) == (rank, signal));
        self.post.sent = rest;
        let mut filled = std::collections::BTreeSet::new();
        for parcel in mine {
            let region = self.array(parcel.mem)?.region;
            for (i, bits) in (parcel.index..).zip(parcel.elements) {
                let unused = self.shadows[region].as_ref().is_none_or(|s| s.is_unused(i as usize));
                if !unused || !filled.insert((region, i)) {
                    let array = self.array(parcel.mem)?.name.clone();
                    return raise(0, FaultKind::UsedBeforeArrival { array, index: i });
                }
                self.regions[region].set(i as usize * 4, 4, bits);
            }
        }
        Ok(())
    }
}
