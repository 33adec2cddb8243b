//! Statements, executed by all active threads of a block.

use super::fault::{FaultKind, Step, raise};
use super::machine::Machine;
use super::program::{Line, Node, Op, Registers};
use super::race::Mode;
use super::value;

impl Machine<'_> {
    /// Executes lines for the active threads.
    pub(super) fn exec(&mut self, lines: &[Line], active: &[u32]) -> Step<()> {
        lines.iter().try_for_each(|line| self.line(line, active))
    }

    fn line(&mut self, line: &Line, active: &[u32]) -> Step<()> {
        self.statement = line.number;
        self.clock.now += 1;
        self.stats.statements += active.len() as u64;
        match &line.op {
            Op::Nothing => Ok(()),
            Op::Set { slot, value } => {
                let new = self.eval(value, active)?;
                active.iter().for_each(|t| self.vars[*slot][*t as usize] = new[*t as usize]);
                self.give(new);
                Ok(())
            }
            Op::DeclareArray { slot, init } => self.declare_array(*slot, init.as_ref(), active),
            Op::SetElem { slot, index, value } => {
                let new = self.eval(value, active)?;
                let at = self.eval(index, active)?;
                for &t in active {
                    let index = value::int_of(index.dtype, at[t as usize]);
                    let position = self.registers(*slot, index, 1, t)?;
                    self.set_register(*slot, position, new[t as usize]);
                }
                self.give(new);
                self.give(at);
                Ok(())
            }
            Op::Store { mem, index, value } => {
                let new = self.eval(value, active)?;
                let at = self.eval(index, active)?;
                let size = self.array(*mem)?.size;
                for &t in active {
                    let index = value::int_of(index.dtype, at[t as usize]);
                    let (region, at) = self.touch(*mem, index, 1, t, Mode::Write)?;
                    self.regions[region].set(at, size, new[t as usize]);
                }
                self.give(new);
                self.give(at);
                Ok(())
            }
            Op::LoadVec { to, mem, index, lanes } => self.load_vec(to, *mem, index, *lanes as usize, active),
            Op::StoreVec { mem, index, from, lanes } => {
                self.store_vec(*mem, index, from, *lanes as usize, active)
            }
            Op::Prefetch { mem, index, elements } => self.prefetch(*mem, index, *elements as usize, active),
            Op::For { slot, start, end, step, body } => {
                self.for_loop(line.number, *slot, [start, end, step], body, active)
            }
            Op::If { cond, then, otherwise } => {
                let c = self.eval(cond, active)?;
                let (yes, no): (Vec<u32>, Vec<u32>) = active.iter().partition(|t| c[**t as usize] & 1 != 0);
                self.give(c);
                if !yes.is_empty() {
                    self.exec(then, &yes)?;
                }
                if !no.is_empty() {
                    self.exec(otherwise, &no)?;
                }
                Ok(())
            }
            Op::Barrier => self.barrier(active),
            Op::WarpBarrier => {
                for warp in self.full_warps(active, "a warp barrier")? {
                    self.clock.warp_barrier(warp);
                }
                Ok(())
            }
            Op::DependencyWait => {
                active.iter().for_each(|t| self.waited[*t as usize] = true);
                Ok(())
            }
            Op::Mma { dtype, acc, a, b } => self.mma(*dtype, acc, a, b, active),
            Op::Product { dtype, acc, columns, a, b, k } => {
                self.start_product(*dtype, (*acc, *columns), ([(a.0, &a.1), (b.0, &b.1)], *k), active)
            }
            Op::FenceProducts => self.fence_products(active),
            Op::ShowToProducts => {
                self.warpgroups.show(active);
                Ok(())
            }
            Op::CommitProducts => self.commit_products(active),
            Op::AwaitProducts(pending) => self.await_products(*pending, active),
            Op::LdMatrix { to, mem, index, count, transpose } => {
                self.ld_matrix(to, (*mem, index), *count, *transpose, active)
            }
            Op::Copy { to, to_at, from, from_at, bytes, valid } => {
                self.copy((*to, to_at), (*from, from_at), *bytes as usize, valid.as_ref(), active)
            }
            Op::CopyCommit => {
                for &t in active {
                    let copies = &mut self.copies[t as usize];
                    copies.groups.push_back(std::mem::take(&mut copies.open));
                }
                Ok(())
            }
            Op::CopyWait(pending) => {
                active.iter().for_each(|t| self.land(*t, *pending));
                Ok(())
            }
            Op::Atomic { mem, index, value, old } => self.atomic(*mem, index, value, *old, active),
            Op::Fence => {
                active.iter().for_each(|t| self.clock.fence(*t as usize));
                Ok(())
            }
            Op::LastBlock { counter, index, expected, last } => {
                self.last_block(*counter, index, expected, *last, active)
            }
            // What these do at the top of the body is done between the parts of a kernel (`cluster.rs`).
            Op::ClusterBarrier | Op::AwaitBytes { signal: _ } => {
                raise(0, FaultKind::Invalid("a cluster's barrier or wait in a branch or loop".into()))
            }
            Op::ExpectBytes { signal, bytes } => self.expect_bytes(*signal, bytes, active),
            Op::Send { to, index, from, lanes, rank, signal } => {
                self.send((*to, index), (from, *lanes as usize), (rank, *signal), active)
            }
            Op::MakeRing { ring } => self.make_ring(*ring, active),
            Op::FillStage { ring, stage, bytes, tiles } => {
                self.fill_stage((*ring, stage), *bytes, tiles, active)
            }
            Op::AwaitStage { ring, stage, round } => self.await_stage((*ring, stage), round, active),
            Op::SetCondition { mem, value } => {
                let new = self.eval(value, active)?;
                for &t in active {
                    let (region, at) = self.touch(*mem, 0, 1, t, Mode::Write)?;
                    self.regions[region].set(at, 4, new[t as usize]);
                }
                self.give(new);
                Ok(())
            }
        }
    }

    pub(super) fn barrier(&mut self, active: &[u32]) -> Step<()> {
        let (arrived, expected) = (active.len() as u32, self.threads as u32);
        if arrived != expected {
            let thread = active.first().copied().unwrap_or(0);
            return raise(thread, FaultKind::DivergentBarrier { arrived, expected });
        }
        self.stats.barriers += 1;
        self.clock.block_barrier();
        Ok(())
    }

    fn declare_array(&mut self, slot: usize, init: Option<&Node>, active: &[u32]) -> Step<()> {
        let len = self.written[slot].len() / self.threads;
        match init {
            Some(init) => {
                let new = self.eval(init, active)?;
                for e in 0..len {
                    for &t in active {
                        self.set_register(slot, e * self.threads + t as usize, new[t as usize]);
                    }
                }
                self.give(new);
            }
            None => {
                for e in 0..len {
                    active.iter().for_each(|t| self.written[slot][e * self.threads + *t as usize] = false);
                }
            }
        }
        Ok(())
    }

    fn for_loop(
        &mut self,
        number: usize,
        slot: usize,
        [start, end, step]: [&Node; 3],
        body: &[Line],
        active: &[u32],
    ) -> Step<()> {
        let first = self.eval(start, active)?;
        active.iter().for_each(|t| self.vars[slot][*t as usize] = first[*t as usize]);
        self.give(first);
        let mut running = active.to_vec();
        loop {
            self.statement = number;
            self.clock.now += 1;
            let bound = self.eval(end, &running)?;
            let i = &self.vars[slot];
            running.retain(|t| (i[*t as usize] as i32) < (bound[*t as usize] as i32));
            self.give(bound);
            if running.is_empty() {
                return Ok(());
            }
            self.exec(body, &running)?;
            self.statement = number;
            self.clock.now += 1;
            let by = self.eval(step, &running)?;
            for &t in &running {
                let (i, by) = (&mut self.vars[slot][t as usize], by[t as usize] as i32);
                if by <= 0 {
                    return raise(t, FaultKind::LoopStep(i64::from(by)));
                }
                match (*i as i32).checked_add(by) {
                    Some(next) => *i = u64::from(next as u32),
                    None => return raise(t, FaultKind::Overflow("loop variable")),
                }
            }
            self.give(by);
        }
    }

    fn load_vec(
        &mut self,
        to: &Registers,
        mem: usize,
        index: &Node,
        lanes: usize,
        active: &[u32],
    ) -> Step<()> {
        let from = self.eval(index, active)?;
        let at = self.eval(&to.at, active)?;
        let size = self.array(mem)?.size;
        // 16-bit elements fill words, two each.
        let wide = self.kernel.vars[to.slot].dtype.size().max(size);
        let registers = lanes * size / wide;
        for &t in active {
            let position =
                self.registers(to.slot, value::int_of(to.at.dtype, at[t as usize]), registers, t)?;
            let index = value::int_of(index.dtype, from[t as usize]);
            let (region, offset) = self.touch(mem, index, lanes, t, Mode::Read)?;
            for register in 0..registers {
                let bits = self.regions[region].get(offset + register * wide, wide);
                self.set_register(to.slot, position + register * self.threads, bits);
            }
        }
        self.give(from);
        self.give(at);
        Ok(())
    }

    fn store_vec(
        &mut self,
        mem: usize,
        index: &Node,
        from: &Registers,
        lanes: usize,
        active: &[u32],
    ) -> Step<()> {
        let to = self.eval(index, active)?;
        let at = self.eval(&from.at, active)?;
        let size = self.array(mem)?.size;
        for &t in active {
            let position =
                self.registers(from.slot, value::int_of(from.at.dtype, at[t as usize]), lanes, t)?;
            let index = value::int_of(index.dtype, to[t as usize]);
            let (region, offset) = self.touch(mem, index, lanes, t, Mode::Write)?;
            for lane in 0..lanes {
                let bits = self.register(from.slot, position + lane * self.threads)?;
                self.regions[region].set(offset + lane * size, size, bits);
            }
        }
        self.give(to);
        self.give(at);
        Ok(())
    }

    fn atomic(
        &mut self,
        mem: usize,
        index: &Node,
        value: &Node,
        old: Option<usize>,
        active: &[u32],
    ) -> Step<()> {
        let addends = self.eval(value, active)?;
        let at = self.eval(index, active)?;
        let (size, global) = (self.array(mem)?.size, self.array(mem)?.global);
        for &t in active {
            let i = t as usize;
            let (region, offset) = self.touch(mem, value::int_of(index.dtype, at[i]), 1, t, Mode::Atomic)?;
            let before = self.regions[region].get(offset, size);
            let after = (before as u32).wrapping_add(addends[i] as u32);
            self.regions[region].set(offset, size, u64::from(after));
            if let Some(slot) = old {
                self.vars[slot][i] = before;
            }
            if global {
                self.clock.synchronise(i, region, offset / size);
            }
        }
        self.give(addends);
        self.give(at);
        Ok(())
    }
}
