//! Statements, executed by all active threads of a block.

use super::fault::{FaultKind, Step, raise};
use super::fragments;
use super::machine::{Copy, Machine};
use super::program::{Line, Node, Op, Registers};
use super::race::Mode;
use super::value;
use weft_ir::dtype::DType;
use weft_ir::kernel::MatrixCount;

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

    /// `N` registers of every lane of a warp, and where they are.
    fn fragment<const N: usize>(
        &self,
        slot: usize,
        at: &[u64],
        ty: DType,
        warp: usize,
    ) -> Step<[[u64; N]; 32]> {
        let mut out = [[0; N]; 32];
        for (lane, registers) in out.iter_mut().enumerate() {
            let t = warp * 32 + lane;
            let position = self.registers(slot, value::int_of(ty, at[t]), N, t as u32)?;
            for (i, r) in registers.iter_mut().enumerate() {
                *r = self.register(slot, position + i * self.threads)?;
            }
        }
        Ok(out)
    }

    fn mma(
        &mut self,
        dtype: DType,
        acc: &Registers,
        a: &Registers,
        b: &Registers,
        active: &[u32],
    ) -> Step<()> {
        let warps = self.full_warps(active, "mma")?;
        let at_acc = self.eval(&acc.at, active)?;
        let at_a = self.eval(&a.at, active)?;
        let at_b = self.eval(&b.at, active)?;
        for warp in warps {
            let words_a = self.fragment::<4>(a.slot, &at_a, a.at.dtype, warp)?.map(|r| r.map(|x| x as u32));
            let words_b = self.fragment::<2>(b.slot, &at_b, b.at.dtype, warp)?.map(|r| r.map(|x| x as u32));
            let mut d =
                self.fragment::<4>(acc.slot, &at_acc, acc.at.dtype, warp)?.map(|r| r.map(value::f32_of));
            fragments::mma_m16n8k16(dtype, &mut d, &words_a, &words_b);
            for (lane, values) in d.iter().enumerate() {
                let t = warp * 32 + lane;
                let index = value::int_of(acc.at.dtype, at_acc[t]);
                let position = self.registers(acc.slot, index, 4, t as u32)?;
                for (i, v) in values.iter().enumerate() {
                    self.set_register(acc.slot, position + i * self.threads, u64::from(v.to_bits()));
                }
            }
        }
        [at_acc, at_a, at_b].into_iter().for_each(|v| self.give(v));
        Ok(())
    }

    fn ld_matrix(
        &mut self,
        to: &Registers,
        (mem, index): (usize, &Node),
        count: MatrixCount,
        transpose: bool,
        active: &[u32],
    ) -> Step<()> {
        let warps = self.full_warps(active, "ldmatrix")?;
        let rows_at = self.eval(index, active)?;
        let at = self.eval(&to.at, active)?;
        for warp in warps {
            for matrix in 0..count.count() as usize {
                let mut rows = [[0u16; 8]; 8];
                for (r, row) in rows.iter_mut().enumerate() {
                    let t = warp * 32 + matrix * 8 + r;
                    let index = value::int_of(index.dtype, rows_at[t]);
                    let (region, offset) = self.touch(mem, index, 8, t as u32, Mode::WarpRead)?;
                    for (i, x) in row.iter_mut().enumerate() {
                        *x = self.regions[region].get(offset + i * 2, 2) as u16;
                    }
                }
                for lane in 0..32 {
                    let t = warp * 32 + lane;
                    let first = value::int_of(to.at.dtype, at[t]) + matrix as i64;
                    let position = self.registers(to.slot, first, 1, t as u32)?;
                    let word = fragments::ld_matrix(&rows, lane, transpose);
                    self.set_register(to.slot, position, u64::from(word));
                }
            }
        }
        self.give(rows_at);
        self.give(at);
        Ok(())
    }

    fn copy(
        &mut self,
        (to, to_at): (usize, &Node),
        (from, from_at): (usize, &Node),
        bytes: usize,
        valid: Option<&Node>,
        active: &[u32],
    ) -> Step<()> {
        let destination = self.eval(to_at, active)?;
        let source = self.eval(from_at, active)?;
        let valid = match valid {
            Some(v) => self.eval(v, active)?,
            None => {
                let mut all = self.take();
                all.fill(1);
                all
            }
        };
        let size = self.array(to)?.size;
        let count = bytes / size;
        for &t in active {
            let i = t as usize;
            let index = value::int_of(to_at.dtype, destination[i]);
            let (region, offset) = self.touch(to, index, count, t, Mode::Write)?;
            let from = match valid[i] & 1 {
                0 => None,
                _ => Some(self.touch(from, value::int_of(from_at.dtype, source[i]), count, t, Mode::Read)?),
            };
            if let Some(shadow) = &mut self.shadows[region] {
                (0..count).for_each(|e| shadow.launch(offset / size + e));
            }
            self.copies[i].open.push(Copy { to: (region, offset), from, bytes, size });
        }
        [destination, source, valid].into_iter().for_each(|v| self.give(v));
        Ok(())
    }

    /// Completes the committed copies of a thread but for the last `pending` groups.
    fn land(&mut self, thread: u32, pending: usize) {
        while self.copies[thread as usize].groups.len() > pending {
            let group = self.copies[thread as usize].groups.pop_front().unwrap_or_default();
            for copy in group {
                let (region, offset) = copy.to;
                for at in (0..copy.bytes).step_by(copy.size) {
                    let bits = copy.from.map_or(0, |(r, o)| self.regions[r].get(o + at, copy.size));
                    self.regions[region].set(offset + at, copy.size, bits);
                    if let Some(shadow) = &mut self.shadows[region] {
                        shadow.land(&self.clock, (offset + at) / copy.size, thread as u16);
                    }
                }
            }
        }
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
