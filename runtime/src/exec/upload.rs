//! Brings constants to the device: threads that fill page-locked buffers of their own, which one stream copies.
//!
//! A thread takes the next chunk of the target, writes its bytes into one of its two buffers (from a mapped file, so
//! that page faults are shared by the threads too; packed or decoded where a weight is not stored as it is used), and
//! sends it off. It fills its other buffer while that is copied. Nothing is handed from thread to thread.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use weft_ir::dtype::DType;
use weft_ir::plan::Pack;
use weft_ir::reference::WeightBytes;

use super::pack::Packed;
use super::report::UploadReport;
use crate::error::Result;
use chunks::{Chunk, Item, Part, chunks};

mod chunks;
mod pinned;
#[cfg(test)]
mod tests;

pub(super) use pinned::Pinned;

/// Bytes of a staging buffer: long enough for the bus, short enough that all of them take little time to lock.
const STAGE: usize = 2 << 20;
/// Staging buffers of a thread: one is copied while the next is filled.
const RING: usize = 2;
/// Most threads: the bus is full before.
const MOST_THREADS: usize = 16;
/// So many buffers ahead of the one that is written, a weight is made ready: finding its runs takes a while where
/// rows move, and nobody should wait for it.
const AHEAD: usize = 3;
/// Least time between two calls of the progress.
const TELL: Duration = Duration::from_millis(20);

/// A buffer's bytes, and where they go.
#[derive(Debug)]
pub(super) struct Constant<'a> {
    /// First byte in the target. Ascending, without overlaps.
    pub at: usize,
    /// Bytes.
    pub len: usize,
    /// What they are.
    pub bytes: Bytes<'a>,
}

/// The bytes of a constant.
#[derive(Debug)]
pub(super) enum Bytes<'a> {
    /// As they are.
    Plain(&'a [u8]),
    /// As a pack makes them: name of the buffer, pack, its type and elements.
    Packed(&'a str, &'a Pack, DType, usize),
}

/// Where an upload goes: the device, or in tests memory.
pub(super) trait Target: Sync {
    /// A staging buffer, and its last copy.
    type Stage;

    /// Makes a staging buffer of so many bytes.
    fn stage(&self, bytes: usize) -> Result<Self::Stage>;

    /// Waits until the last copy of a buffer is done.
    fn wait(&self, stage: &Self::Stage) -> Result<()>;

    /// Lets the buffer's bytes be written.
    fn fill(&self, stage: &mut Self::Stage, write: &mut dyn FnMut(&mut [u8]) -> Result<()>) -> Result<()>;

    /// Begins to copy the first bytes of a buffer to a place of the target.
    fn send(&self, stage: &Self::Stage, at: usize, len: usize) -> Result<()>;
}

/// What the threads share.
struct Shared<'a, T> {
    target: &'a T,
    /// Bytes of a staging buffer.
    stage: usize,
    weights: &'a dyn WeightBytes,
    constants: &'a [Constant<'a>],
    chunks: Vec<Chunk>,
    next: AtomicUsize,
    stop: &'a AtomicBool,
    /// For each constant that is packed, while it is needed.
    packed: Vec<Mutex<Slot<'a>>>,
    done: AtomicU64,
    told: Mutex<Instant>,
    progress: &'a (dyn Fn(u64) + Sync),
}

/// A packed constant in the making.
#[derive(Default)]
struct Slot<'a> {
    ready: Option<Arc<Packed<'a>>>,
    /// Bytes that are written.
    written: usize,
}

/// Where a thread's time went.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    filling: Duration,
    waiting: Duration,
}

/// Brings all constants to the target. Ends early, without an error, when `stop` is set; sets it on an error.
/// `progress` is told the bytes that are done.
///
/// # Errors
/// What packing a weight or the target reports.
pub(super) fn upload<T: Target>(
    target: &T,
    constants: &[Constant<'_>],
    weights: &dyn WeightBytes,
    threads: Option<NonZeroUsize>,
    stop: &AtomicBool,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<UploadReport> {
    let start = Instant::now();
    let items: Vec<Item> = constants.iter().map(|c| Item { at: c.at, len: c.len }).collect();
    let chunks = chunks(&items, STAGE);
    let cores = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let threads = threads.unwrap_or_else(cores).get().min(MOST_THREADS).min(chunks.len());
    let shared = Shared {
        target,
        stage: chunks.iter().map(|c| c.len).max().unwrap_or(0),
        weights,
        constants,
        chunks,
        next: AtomicUsize::new(0),
        stop,
        packed: constants.iter().map(|_| Mutex::default()).collect(),
        done: AtomicU64::new(0),
        told: Mutex::new(start),
        progress,
    };
    let results: Vec<Mutex<Result<Times>>> = (0..threads).map(|_| Mutex::new(Ok(Times::default()))).collect();
    std::thread::scope(|scope| {
        for result in &results {
            let work = || {
                let times = shared.work();
                if times.is_err() {
                    stop.store(true, Ordering::Relaxed);
                }
                *lock(result) = times;
            };
            let thread = std::thread::Builder::new().name("weft-upload".into());
            // Without a thread, do the work here: it is slower, not wrong.
            if thread.spawn_scoped(scope, work).is_err() {
                work();
            }
        }
    });
    let mut all = Times::default();
    for result in results {
        let times = result.into_inner().unwrap_or_else(PoisonError::into_inner)?;
        all.filling += times.filling;
        all.waiting += times.waiting;
    }
    let (bytes, seconds) = (shared.done.into_inner(), start.elapsed().as_secs_f64());
    let (filling, waiting) = (all.filling.as_secs_f64(), all.waiting.as_secs_f64());
    let at_least = |x: f64| x.max(f64::MIN_POSITIVE);
    Ok(UploadReport {
        bytes,
        seconds,
        rate: bytes as f64 / at_least(seconds),
        threads,
        filling: filling / at_least(filling + waiting),
    })
}

impl<'a, T: Target> Shared<'a, T> {
    /// Sends chunks until none is left.
    fn work(&self) -> Result<Times> {
        let mut times = Times::default();
        let mut ring: Vec<T::Stage> = Vec::with_capacity(RING);
        for turn in 0.. {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(chunk) = self.chunks.get(index) else { break };
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let before = Instant::now();
            let spot = turn % RING;
            if spot == ring.len() {
                ring.push(self.target.stage(self.stage)?);
            }
            let stage = &mut ring[spot];
            self.target.wait(stage)?;
            let waited = Instant::now();
            self.target.fill(stage, &mut |bytes| self.fill(chunk, bytes))?;
            self.target.send(stage, chunk.at, chunk.len)?;
            times.waiting += waited - before;
            times.filling += waited.elapsed();
            self.tell(chunk.parts.iter().map(|p| p.len as u64).sum());
        }
        let before = Instant::now();
        ring.iter().try_for_each(|stage| self.target.wait(stage))?;
        times.waiting += before.elapsed();
        Ok(times)
    }

    /// Writes the bytes of a chunk.
    fn fill(&self, chunk: &Chunk, bytes: &mut [u8]) -> Result<()> {
        let mut end = 0;
        for part in &chunk.parts {
            // Padding between buffers.
            bytes[end..part.to].fill(0);
            end = part.to + part.len;
            let out = &mut bytes[part.to..end];
            match &self.constants[part.item].bytes {
                Bytes::Plain(all) => out.copy_from_slice(&all[part.from..part.from + part.len]),
                Bytes::Packed(..) => self.write(part, out)?,
            }
        }
        Ok(())
    }

    /// Writes a part of a packed constant; behind its last part it is dropped.
    fn write(&self, part: &Part, out: &mut [u8]) -> Result<()> {
        if part.from == 0 && part.item + AHEAD < self.constants.len() {
            self.prepare(part.item + AHEAD)?;
        }
        if let Some(packed) = self.prepare(part.item)? {
            packed.write(part.from, out)?;
        }
        let mut slot = lock(&self.packed[part.item]);
        slot.written += part.len;
        if slot.written == self.constants[part.item].len {
            slot.ready = None;
        }
        Ok(())
    }

    /// Makes a packed constant ready to be written, unless it is; `None` where it is plain, or written already.
    fn prepare(&self, item: usize) -> Result<Option<Arc<Packed<'a>>>> {
        let constant = &self.constants[item];
        let Bytes::Packed(name, pack, dtype, elements) = constant.bytes else { return Ok(None) };
        // Others that want it wait.
        let mut slot = lock(&self.packed[item]);
        if slot.ready.is_none() && slot.written < constant.len {
            slot.ready = Some(Arc::new(Packed::new(name, pack, dtype, elements, self.weights)?));
        }
        Ok(slot.ready.clone())
    }

    /// Counts bytes, and tells them now and then: small buffers come by the hundred.
    fn tell(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Ok(mut told) = self.told.try_lock()
            && told.elapsed() > TELL
        {
            *told = Instant::now();
            (self.progress)(done);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
