//! Asynchronous copies: started by a thread, in its shared memory when it waits for them.

use super::fault::Step;
use super::machine::{Copy, Machine};
use super::program::Node;
use super::race::Mode;
use super::value;

impl Machine<'_> {
    pub(super) fn copy(
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
    pub(super) fn land(&mut self, thread: u32, pending: usize) {
        while self.copies[thread as usize].groups.len() > pending {
            self.warpgroups.wrote(thread);
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
}
