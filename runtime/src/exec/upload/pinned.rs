//! Uploads to a device allocation.

use super::Target;
use crate::error::Result;
use crate::sys::memory::{DeviceBuffer, PinnedBuffer};
use crate::sys::stream::{Event, Stream};

/// A device allocation, and the stream that copies to it.
pub struct Pinned<'a> {
    pub to: &'a DeviceBuffer,
    pub stream: &'a Stream,
}

/// A page-locked buffer.
pub struct Stage {
    bytes: PinnedBuffer,
    /// Recorded behind its last copy.
    copied: Event,
}

impl Target for Pinned<'_> {
    type Stage = Stage;

    fn stage(&self, bytes: usize) -> Result<Stage> {
        let context = self.stream.context();
        Ok(Stage { bytes: PinnedBuffer::alloc(context, bytes)?, copied: Event::without_timing(context)? })
    }

    fn wait(&self, stage: &Stage) -> Result<()> {
        // Done at once for an event that was never recorded.
        stage.copied.synchronize()
    }

    fn fill(&self, stage: &mut Stage, write: &mut dyn FnMut(&mut [u8]) -> Result<()>) -> Result<()> {
        stage.bytes.with_bytes_mut(|bytes| write(bytes))?
    }

    fn send(&self, stage: &Stage, at: usize, len: usize) -> Result<()> {
        self.to.copy_from_pinned_async(at, &stage.bytes, 0, len, self.stream)?;
        self.stream.record(&stage.copied)
    }
}
