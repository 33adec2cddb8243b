//! Device memory and page-locked host memory. All lengths and offsets are bytes and are checked.
//!
//! Copies named `…_async` go on a stream and return at once. The others return when the bytes are in place, but
//! know nothing of streams: they neither wait for work on a [`Stream`] nor hold it back, so synchronise first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::sys as cu;

use super::check;
use super::context::Context;
use super::stream::Stream;
use crate::error::{Error, Result, check_range};

/// Device memory, freed on drop (which waits for the device).
#[derive(Debug)]
pub struct DeviceBuffer {
    raw: cu::CUdeviceptr,
    len: usize,
    context: Context,
}

impl DeviceBuffer {
    /// Allocates `len` bytes, aligned to 256, contents undefined. A length of 0 is allowed.
    ///
    /// # Errors
    /// [`Error::Cuda`], `CUDA_ERROR_OUT_OF_MEMORY` among them.
    pub fn alloc(context: &Context, len: usize) -> Result<DeviceBuffer> {
        context.bind()?;
        let mut raw = 0;
        // SAFETY: a context is current; writes one address. The driver refuses a size of 0.
        check(unsafe { call!(cuMemAlloc_v2(&mut raw, len.max(1))) })?;
        Ok(DeviceBuffer { raw, len, context: context.clone() })
    }

    /// Allocates and fills from host memory.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn from_bytes(context: &Context, bytes: &[u8]) -> Result<DeviceBuffer> {
        let buffer = Self::alloc(context, bytes.len())?;
        buffer.copy_from_host(0, bytes)?;
        Ok(buffer)
    }

    /// The device address of byte 0.
    pub fn address(&self) -> u64 {
        self.raw
    }

    /// The device address of a byte; `offset` may be the length.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn address_at(&self, offset: usize) -> Result<u64> {
        self.range("DeviceBuffer::address_at", offset, 0)
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for a buffer of 0 bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The context it belongs to.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Copies host bytes in; they are on the device when this returns.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Cuda`].
    pub fn copy_from_host(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        let to = self.range("DeviceBuffer::copy_from_host", offset, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.context.bind()?;
        // SAFETY: the source is a live slice and the target range was checked.
        check(unsafe { call!(cuMemcpyHtoD_v2(to, bytes.as_ptr().cast(), bytes.len())) })?;
        // From pageable memory the call returns once the bytes are staged, before they are in place.
        self.wait_default_stream()
    }

    /// Copies device bytes out.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Cuda`].
    pub fn copy_to_host(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let from = self.range("DeviceBuffer::copy_to_host", offset, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.context.bind()?;
        // SAFETY: the target is a live exclusive slice and the source range was checked; the call returns when the
        // bytes are there.
        check(unsafe { call!(cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), from, bytes.len())) })
    }

    /// Copies from page-locked memory, on a stream. The source must not be written until the stream gets there.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Cuda`].
    pub fn copy_from_pinned_async(
        &self,
        offset: usize,
        from: &PinnedBuffer,
        from_offset: usize,
        len: usize,
        stream: &Stream,
    ) -> Result<()> {
        let to = self.range("DeviceBuffer::copy_from_pinned_async", offset, len)?;
        let from = from.range("DeviceBuffer::copy_from_pinned_async (source)", from_offset, len)?;
        stream.context().bind()?;
        // SAFETY: both ranges were checked; page-locked memory waits for the device before it is freed.
        check(unsafe { call!(cuMemcpyHtoDAsync_v2(to, from.cast(), len, stream.raw())) })
    }

    /// Copies to page-locked memory, on a stream. The bytes are there once the stream has got there.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Cuda`].
    pub fn copy_to_pinned_async(
        &self,
        offset: usize,
        to: &PinnedBuffer,
        to_offset: usize,
        len: usize,
        stream: &Stream,
    ) -> Result<()> {
        let from = self.range("DeviceBuffer::copy_to_pinned_async", offset, len)?;
        let to = to.range("DeviceBuffer::copy_to_pinned_async (target)", to_offset, len)?;
        stream.context().bind()?;
        // SAFETY: both ranges were checked; page-locked memory waits for the device before it is freed, and no
        // Rust reference into it outlives a call of `PinnedBuffer`.
        check(unsafe { call!(cuMemcpyDtoHAsync_v2(to.cast(), from, len, stream.raw())) })
    }

    /// Copies from other device memory, on a stream.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Cuda`].
    pub fn copy_from_device_async(
        &self,
        offset: usize,
        from: &DeviceBuffer,
        from_offset: usize,
        len: usize,
        stream: &Stream,
    ) -> Result<()> {
        let to = self.range("DeviceBuffer::copy_from_device_async", offset, len)?;
        let from = from.range("DeviceBuffer::copy_from_device_async (source)", from_offset, len)?;
        stream.context().bind()?;
        // SAFETY: both ranges were checked.
        check(unsafe { call!(cuMemcpyDtoDAsync_v2(to, from, len, stream.raw())) })
    }

    /// Sets bytes to a value; done when this returns.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Cuda`].
    pub fn fill(&self, offset: usize, len: usize, value: u8) -> Result<()> {
        let to = self.range("DeviceBuffer::fill", offset, len)?;
        self.context.bind()?;
        // SAFETY: the range was checked; a null stream is the default stream.
        check(unsafe { call!(cuMemsetD8Async(to, value, len, std::ptr::null_mut())) })?;
        self.wait_default_stream()
    }

    /// Sets bytes to a value, on a stream.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Cuda`].
    pub fn fill_async(&self, offset: usize, len: usize, value: u8, stream: &Stream) -> Result<()> {
        let to = self.range("DeviceBuffer::fill_async", offset, len)?;
        stream.context().bind()?;
        // SAFETY: the range was checked.
        check(unsafe { call!(cuMemsetD8Async(to, value, len, stream.raw())) })
    }

    /// Sets `words` 32-bit words to a value, on a stream; `offset` is in bytes and a multiple of 4.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::BadArgument`] for a crooked offset, [`Error::Cuda`].
    pub fn fill_u32_async(&self, offset: usize, words: usize, value: u32, stream: &Stream) -> Result<()> {
        let to = self.range("DeviceBuffer::fill_u32_async", offset, words.saturating_mul(4))?;
        if !to.is_multiple_of(4) {
            return Err(Error::bad(
                "DeviceBuffer::fill_u32_async",
                format!("offset {offset} is no multiple of 4"),
            ));
        }
        stream.context().bind()?;
        // SAFETY: the range was checked and is aligned.
        check(unsafe { call!(cuMemsetD32Async(to, value, words, stream.raw())) })
    }

    /// The address of a checked range.
    pub(super) fn range(&self, what: &'static str, offset: usize, len: usize) -> Result<cu::CUdeviceptr> {
        check_range(what, offset, len, self.len)?;
        Ok(self.raw + offset as u64)
    }

    fn wait_default_stream(&self) -> Result<()> {
        // SAFETY: a null stream is the default stream of the current context.
        check(unsafe { call!(cuStreamSynchronize(std::ptr::null_mut())) })
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: made in `alloc`, freed once; the driver waits for work that may use it.
        let _ = check(unsafe { call!(cuMemFree_v2(self.raw)) });
    }
}

/// Page-locked host memory, zeroed. Clones share it; the last one, and the last graph that copies to or from it,
/// waits for the device and frees it.
///
/// The device may write to it at any time, so no reference to its bytes is handed out but in
/// [`PinnedBuffer::with_bytes_mut`]: bytes are copied in and out, and flags are atomic words.
#[derive(Debug, Clone)]
pub struct PinnedBuffer {
    pub(super) inner: Arc<Pinned>,
}

/// The allocation behind a [`PinnedBuffer`].
#[derive(Debug)]
pub(super) struct Pinned {
    pointer: *mut u8,
    len: usize,
    mapped: bool,
    context: Context,
}

// SAFETY: the pointer is to memory owned by this value; all access is by raw copies or atomics.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl PinnedBuffer {
    /// Allocates `len` bytes, aligned to a page, usable in every context. A length of 0 is allowed.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn alloc(context: &Context, len: usize) -> Result<PinnedBuffer> {
        Self::with_flags(context, len, false)
    }

    /// As [`PinnedBuffer::alloc`], and mapped into the device's address space: kernels reach it through
    /// [`PinnedBuffer::device_address`].
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn alloc_mapped(context: &Context, len: usize) -> Result<PinnedBuffer> {
        Self::with_flags(context, len, true)
    }

    fn with_flags(context: &Context, len: usize, mapped: bool) -> Result<PinnedBuffer> {
        context.bind()?;
        let flags = cu::CU_MEMHOSTALLOC_PORTABLE | if mapped { cu::CU_MEMHOSTALLOC_DEVICEMAP } else { 0 };
        let mut pointer = std::ptr::null_mut();
        // SAFETY: a context is current; writes one pointer.
        check(unsafe { call!(cuMemHostAlloc(&mut pointer, len.max(1), flags)) })?;
        let pointer: *mut u8 = pointer.cast();
        // SAFETY: just allocated with at least `len` bytes, and nothing else knows of it.
        unsafe { pointer.write_bytes(0, len) };
        Ok(PinnedBuffer { inner: Arc::new(Pinned { pointer, len, mapped, context: context.clone() }) })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.inner.len
    }

    /// True for a buffer of 0 bytes.
    pub fn is_empty(&self) -> bool {
        self.inner.len == 0
    }

    /// The address by which the device reaches byte 0.
    ///
    /// # Errors
    /// [`Error::BadArgument`] for a buffer that is not mapped, [`Error::Cuda`].
    pub fn device_address(&self) -> Result<u64> {
        if !self.inner.mapped {
            return Err(Error::bad("PinnedBuffer::device_address", "the buffer was not allocated as mapped"));
        }
        self.inner.context.bind()?;
        let mut address = 0;
        // SAFETY: the pointer came from `cuMemHostAlloc` with the mapped flag; writes one address.
        check(unsafe { call!(cuMemHostGetDevicePointer_v2(&mut address, self.inner.pointer.cast(), 0)) })?;
        Ok(address)
    }

    /// Copies bytes in. Work on the device that reads them must not be under way.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        let to = self.range("PinnedBuffer::write", offset, bytes.len())?;
        // SAFETY: the range was checked, and a live slice cannot overlap memory that hands out no references.
        unsafe { std::ptr::copy(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    /// Copies bytes out. Bytes that the device is writing are stale or torn: synchronise first.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let from = self.range("PinnedBuffer::read", offset, bytes.len())?;
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy(from, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Reads the 32-bit word at a byte offset, with acquire ordering: what the device wrote before it (with a
    /// system-wide fence) is seen after it.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::BadArgument`] for a crooked offset.
    pub fn load_u32(&self, offset: usize) -> Result<u32> {
        Ok(self.word("PinnedBuffer::load_u32", offset)?.load(Ordering::Acquire))
    }

    /// Writes the 32-bit word at a byte offset, with release ordering.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::BadArgument`] for a crooked offset.
    pub fn store_u32(&self, offset: usize, value: u32) -> Result<()> {
        self.word("PinnedBuffer::store_u32", offset)?.store(value, Ordering::Release);
        Ok(())
    }

    /// Fills the buffer in place, without a copy. Fails while a clone or a graph shares the buffer; copies on
    /// streams that use it must be done.
    ///
    /// # Errors
    /// [`Error::BadArgument`] when it is shared.
    pub fn with_bytes_mut<R>(&mut self, fill: impl FnOnce(&mut [u8]) -> R) -> Result<R> {
        match Arc::get_mut(&mut self.inner) {
            // SAFETY: the memory is initialised (zeroed in `with_flags`), lives as long as `pinned`, and this is
            // its only owner on the host for the time of the call.
            Some(pinned) => Ok(fill(unsafe { std::slice::from_raw_parts_mut(pinned.pointer, pinned.len) })),
            None => Err(Error::bad("PinnedBuffer::with_bytes_mut", "a clone or a graph shares this buffer")),
        }
    }

    fn word(&self, what: &'static str, offset: usize) -> Result<&AtomicU32> {
        let pointer: *mut u32 = self.range(what, offset, 4)?.cast();
        if !pointer.is_aligned() {
            return Err(Error::bad(what, format!("offset {offset} is no multiple of 4")));
        }
        // SAFETY: in range, aligned, alive as long as `self`; other access is by raw copies.
        Ok(unsafe { AtomicU32::from_ptr(pointer) })
    }

    /// The address of a checked range.
    pub(super) fn range(&self, what: &'static str, offset: usize, len: usize) -> Result<*mut u8> {
        check_range(what, offset, len, self.inner.len)?;
        Ok(self.inner.pointer.wrapping_add(offset))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Copies may still be under way; errors cannot be returned from here.
        let _ = self.context.synchronize();
        // SAFETY: made in `with_flags`, freed once, and the device is done with it.
        let _ = check(unsafe { call!(cuMemFreeHost(self.pointer.cast())) });
    }
}
