//! Upload through a ring of two page-locked staging buffers: one is copied while the next is filled.

use crate::error::Result;
use crate::sys::context::Context;
use crate::sys::memory::{DeviceBuffer, PinnedBuffer};
use crate::sys::stream::{Event, Stream};

/// Bytes of a staging buffer.
const STAGE: usize = 32 << 20;

/// An upload to one device allocation. What is put must come in ascending order.
pub(super) struct Upload<'a> {
    to: &'a DeviceBuffer,
    stream: &'a Stream,
    ring: [Stage; 2],
    current: usize,
    /// First byte of the target that the current buffer holds.
    start: usize,
    /// Bytes that it holds.
    filled: usize,
}

struct Stage {
    bytes: PinnedBuffer,
    /// Recorded behind its last copy.
    copied: Event,
}

impl<'a> Upload<'a> {
    pub fn new(context: &Context, to: &'a DeviceBuffer, stream: &'a Stream) -> Result<Upload<'a>> {
        let size = to.len().min(STAGE);
        let stage = || -> Result<Stage> {
            Ok(Stage { bytes: PinnedBuffer::alloc(context, size)?, copied: Event::without_timing(context)? })
        };
        Ok(Upload { to, stream, ring: [stage()?, stage()?], current: 0, start: 0, filled: 0 })
    }

    /// Puts `len` bytes at `at` of the target: `fill(from, out)` gives the bytes from `from` on.
    pub fn put(
        &mut self,
        at: usize,
        len: usize,
        fill: &mut dyn FnMut(usize, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0;
        while done < len {
            if self.filled == 0 {
                self.start = at + done;
            }
            let size = self.ring[self.current].bytes.len();
            let from = at + done - self.start;
            if from >= size {
                self.flush()?;
                continue;
            }
            let n = (size - from).min(len - done);
            let filled = self.filled;
            self.ring[self.current].bytes.with_bytes_mut(|bytes| {
                // Padding between buffers.
                bytes[filled..from].fill(0);
                fill(done, &mut bytes[from..from + n])
            })??;
            self.filled = from + n;
            done += n;
        }
        Ok(())
    }

    /// Sends the current buffer off, and waits until the other can be filled.
    fn flush(&mut self) -> Result<()> {
        if self.filled > 0 {
            let stage = &self.ring[self.current];
            self.to.copy_from_pinned_async(self.start, &stage.bytes, 0, self.filled, self.stream)?;
            self.stream.record(&stage.copied)?;
            self.current = 1 - self.current;
            self.filled = 0;
            // Done at once for an event that was never recorded.
            self.ring[self.current].copied.synchronize()?;
        }
        Ok(())
    }

    /// Sends what is left, and waits for all of it.
    pub fn finish(mut self) -> Result<()> {
        self.flush()?;
        self.stream.synchronize()
    }
}
