//! Expressions, evaluated for all active threads of a block.

use super::fault::{FaultKind, Step, raise};
use super::machine::Machine;
use super::program::{Node, NodeKind};
use super::race::Mode;
use super::value;
use weft_ir::dtype::DType;
use weft_ir::kernel::{Axis, BinaryOp, ShuffleMode};

fn axis(of: [u32; 3], axis: Axis) -> u64 {
    let [x, y, z] = of;
    u64::from(match axis {
        Axis::X => x,
        Axis::Y => y,
        Axis::Z => z,
    })
}

impl Machine<'_> {
    /// Bits of an expression for every active thread; entries of other threads are stale.
    pub(super) fn eval(&mut self, node: &Node, active: &[u32]) -> Step<Vec<u64>> {
        match &node.kind {
            NodeKind::Const(bits) => Ok(self.fill(*bits)),
            NodeKind::Param(p) => Ok(self.fill(self.scalars[*p])),
            NodeKind::BlockIdx(a) => Ok(self.fill(axis(self.block, *a))),
            NodeKind::GridDim(a) => Ok(self.fill(axis(self.grid, *a))),
            NodeKind::ThreadIdx => {
                let mut out = self.take();
                out.iter_mut().enumerate().for_each(|(t, v)| *v = t as u64);
                Ok(out)
            }
            NodeKind::Var(slot) => {
                let mut out = self.take();
                out.copy_from_slice(&self.vars[*slot]);
                Ok(out)
            }
            NodeKind::Elem(slot, index) => {
                let mut out = self.eval(index, active)?;
                for &t in active {
                    let at = value::int_of(index.dtype, out[t as usize]);
                    let position = self.registers(*slot, at, 1, t)?;
                    out[t as usize] = self.register(*slot, position)?;
                }
                Ok(out)
            }
            NodeKind::Unary(op, a) => {
                let mut out = self.eval(a, active)?;
                for &t in active {
                    match value::unary(*op, a.dtype, out[t as usize]) {
                        Ok(v) => out[t as usize] = v,
                        Err(kind) => return raise(t, kind),
                    }
                }
                Ok(out)
            }
            NodeKind::Binary(op, a, b) => self.binary(*op, a, b, active),
            NodeKind::Logical { and, a, b } => {
                let mut out = self.eval(a, active)?;
                let undecided: Vec<u32> =
                    active.iter().copied().filter(|t| (out[*t as usize] & 1 != 0) == *and).collect();
                if !undecided.is_empty() {
                    let right = self.eval(b, &undecided)?;
                    undecided.iter().for_each(|t| out[*t as usize] = right[*t as usize]);
                    self.give(right);
                }
                Ok(out)
            }
            NodeKind::Compare(op, a, b) => {
                let mut out = self.eval(a, active)?;
                let right = self.eval(b, active)?;
                for &t in active {
                    let t = t as usize;
                    out[t] = u64::from(value::compare(*op, a.dtype, out[t], right[t]));
                }
                self.give(right);
                Ok(out)
            }
            NodeKind::Select(c, a, b) => {
                let mut out = self.eval(c, active)?;
                let (yes, no): (Vec<u32>, Vec<u32>) = active.iter().partition(|t| out[**t as usize] & 1 != 0);
                for (side, lanes) in [(a, yes), (b, no)] {
                    if !lanes.is_empty() {
                        let chosen = self.eval(side, &lanes)?;
                        lanes.iter().for_each(|t| out[*t as usize] = chosen[*t as usize]);
                        self.give(chosen);
                    }
                }
                Ok(out)
            }
            NodeKind::Cast(a) => {
                let mut out = self.eval(a, active)?;
                for &t in active {
                    let bits = out[t as usize];
                    if a.dtype == DType::I64
                        && node.dtype == DType::I32
                        && i32::try_from(bits as i64).is_err()
                    {
                        return raise(t, FaultKind::Overflow("conversion to i32"));
                    }
                    out[t as usize] = value::cast(a.dtype, node.dtype, bits);
                }
                Ok(out)
            }
            NodeKind::Bitcast(a) => self.eval(a, active),
            NodeKind::Math(f, args) => {
                let args = args.iter().map(|a| self.eval(a, active)).collect::<Step<Vec<_>>>()?;
                let mut out = self.take();
                for &t in active {
                    let mut x = [0f32; 3];
                    for (x, a) in x.iter_mut().zip(&args) {
                        *x = value::f32_of(a[t as usize]);
                    }
                    out[t as usize] = u64::from(value::math(*f, x).to_bits());
                }
                args.into_iter().for_each(|a| self.give(a));
                Ok(out)
            }
            NodeKind::Load(mem, index) => {
                let mut out = self.eval(index, active)?;
                let size = self.array(*mem)?.size;
                for &t in active {
                    let at = value::int_of(index.dtype, out[t as usize]);
                    let (region, at) = self.touch(*mem, at, 1, t, Mode::Read)?;
                    out[t as usize] = self.regions[region].get(at, size);
                }
                Ok(out)
            }
            NodeKind::Shuffle(mode, a, lane) => self.shuffle(*mode, a, lane, active),
            NodeKind::Pack2(to, a, b) => {
                let mut out = self.eval(a, active)?;
                let high = self.eval(b, active)?;
                for &t in active {
                    let t = t as usize;
                    out[t] = value::pack2(*to, out[t], high[t]);
                }
                self.give(high);
                Ok(out)
            }
        }
    }

    fn fill(&mut self, bits: u64) -> Vec<u64> {
        let mut out = self.take();
        out.fill(bits);
        out
    }

    fn binary(&mut self, op: BinaryOp, a: &Node, b: &Node, active: &[u32]) -> Step<Vec<u64>> {
        let mut out = self.eval(a, active)?;
        let right = self.eval(b, active)?;
        for &t in active {
            let i = t as usize;
            match value::binary(op, a.dtype, out[i], right[i]) {
                Ok(v) => out[i] = v,
                Err(kind) => return raise(t, kind),
            }
        }
        self.give(right);
        Ok(out)
    }

    fn shuffle(&mut self, mode: ShuffleMode, a: &Node, lane: &Node, active: &[u32]) -> Step<Vec<u64>> {
        let warps = self.full_warps(active, "a warp shuffle")?;
        let values = self.eval(a, active)?;
        let mut out = self.eval(lane, active)?;
        for warp in warps {
            for own in 0..32i64 {
                let t = warp * 32 + own as usize;
                let operand = value::int_of(lane.dtype, out[t]);
                let from = match mode {
                    ShuffleMode::Xor => own ^ operand,
                    ShuffleMode::Down => own.saturating_add(operand),
                    ShuffleMode::Up => own.saturating_sub(operand),
                    ShuffleMode::Index => operand & 31,
                };
                let from = if (0..32).contains(&from) { from } else { own };
                out[t] = values[warp * 32 + from as usize];
            }
        }
        self.give(values);
        Ok(out)
    }
}
