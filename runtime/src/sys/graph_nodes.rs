//! Nodes of a graph that move or set bytes, and nodes that only join edges. Their edges are all full.

use cudarc::driver::sys as cu;

use super::check;
use super::graph::{Graph, NodeHandle};
use super::memory::{DeviceBuffer, PinnedBuffer};
use crate::error::{Error, Result};

impl Graph {
    /// Adds a copy from page-locked to device memory. Lengths and offsets are bytes; the page-locked buffer lives as
    /// long as the graph, the device buffer is the caller's to keep.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::BadArgument`], [`Error::Cuda`].
    pub fn add_copy_from_pinned(
        &mut self,
        (to, to_offset): (&DeviceBuffer, usize),
        (from, from_offset): (&PinnedBuffer, usize),
        len: usize,
        deps: &[NodeHandle],
    ) -> Result<NodeHandle> {
        let mut copy = empty_copy(len);
        copy.srcMemoryType = cu::CUmemorytype::CU_MEMORYTYPE_HOST;
        copy.srcHost = from.range("Graph::add_copy_from_pinned (source)", from_offset, len)?.cast();
        copy.dstMemoryType = cu::CUmemorytype::CU_MEMORYTYPE_DEVICE;
        copy.dstDevice = to.range("Graph::add_copy_from_pinned", to_offset, len)?;
        let node = self.add_copy("copy from pinned", &copy, deps)?;
        self.keep(&from.inner);
        Ok(node)
    }

    /// Adds a copy from device to page-locked memory, as [`Graph::add_copy_from_pinned`].
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::BadArgument`], [`Error::Cuda`].
    pub fn add_copy_to_pinned(
        &mut self,
        (to, to_offset): (&PinnedBuffer, usize),
        (from, from_offset): (&DeviceBuffer, usize),
        len: usize,
        deps: &[NodeHandle],
    ) -> Result<NodeHandle> {
        let mut copy = empty_copy(len);
        copy.srcMemoryType = cu::CUmemorytype::CU_MEMORYTYPE_DEVICE;
        copy.srcDevice = from.range("Graph::add_copy_to_pinned (source)", from_offset, len)?;
        copy.dstMemoryType = cu::CUmemorytype::CU_MEMORYTYPE_HOST;
        copy.dstHost = to.range("Graph::add_copy_to_pinned", to_offset, len)?.cast();
        let node = self.add_copy("copy to pinned", &copy, deps)?;
        self.keep(&to.inner);
        Ok(node)
    }

    /// Adds a copy within device memory.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::BadArgument`], [`Error::Cuda`].
    pub fn add_copy_device(
        &mut self,
        (to, to_offset): (&DeviceBuffer, usize),
        (from, from_offset): (&DeviceBuffer, usize),
        len: usize,
        deps: &[NodeHandle],
    ) -> Result<NodeHandle> {
        let mut copy = empty_copy(len);
        copy.srcMemoryType = cu::CUmemorytype::CU_MEMORYTYPE_DEVICE;
        copy.srcDevice = from.range("Graph::add_copy_device (source)", from_offset, len)?;
        copy.dstMemoryType = cu::CUmemorytype::CU_MEMORYTYPE_DEVICE;
        copy.dstDevice = to.range("Graph::add_copy_device", to_offset, len)?;
        self.add_copy("copy on the device", &copy, deps)
    }

    /// Adds a memset of `words` 32-bit words; `offset` is in bytes and a multiple of 4.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::BadArgument`], [`Error::Cuda`].
    pub fn add_fill_u32(
        &mut self,
        (to, offset): (&DeviceBuffer, usize),
        words: usize,
        value: u32,
        deps: &[NodeHandle],
    ) -> Result<NodeHandle> {
        let address = to.range("Graph::add_fill_u32", offset, words.saturating_mul(4))?;
        if words == 0 || !address.is_multiple_of(4) {
            let why =
                format!("{words} words at byte {offset}: at least one word, at a multiple of 4, is needed");
            return Err(Error::bad("Graph::add_fill_u32", why));
        }
        let params = cu::CUDA_MEMSET_NODE_PARAMS {
            dst: address,
            pitch: 0,
            value,
            elementSize: 4,
            width: words,
            height: 1,
        };
        let deps = self.raw_nodes(deps)?;
        self.context.bind()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the target range was checked; the parameters outlive the call, which copies them.
        check(unsafe {
            call!(cuGraphAddMemsetNode(
                &mut raw,
                self.raw,
                deps.as_ptr(),
                deps.len(),
                &params,
                self.context.raw()
            ))
        })
        .map_err(|error| error.for_kernel("fill"))?;
        Ok(self.push(raw, "fill", false))
    }

    /// Adds a node that does nothing: a place to join edges.
    ///
    /// # Errors
    /// [`Error::BadArgument`], [`Error::Cuda`].
    pub fn add_empty(&mut self, deps: &[NodeHandle]) -> Result<NodeHandle> {
        let deps = self.raw_nodes(deps)?;
        self.context.bind()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: all handles are of this graph; writes one handle.
        check(unsafe { call!(cuGraphAddEmptyNode(&mut raw, self.raw, deps.as_ptr(), deps.len())) })?;
        Ok(self.push(raw, "empty", false))
    }

    fn add_copy(&mut self, label: &str, copy: &cu::CUDA_MEMCPY3D, deps: &[NodeHandle]) -> Result<NodeHandle> {
        if copy.WidthInBytes == 0 {
            return Err(Error::bad(label, "a copy of 0 bytes"));
        }
        let deps = self.raw_nodes(deps)?;
        self.context.bind()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: both ranges were checked by the caller; the parameters outlive the call, which copies them.
        check(unsafe {
            call!(cuGraphAddMemcpyNode(
                &mut raw,
                self.raw,
                deps.as_ptr(),
                deps.len(),
                copy,
                self.context.raw()
            ))
        })
        .map_err(|error| error.for_kernel(label))?;
        Ok(self.push(raw, label, false))
    }
}

fn empty_copy(len: usize) -> cu::CUDA_MEMCPY3D {
    cu::CUDA_MEMCPY3D {
        srcXInBytes: 0,
        srcY: 0,
        srcZ: 0,
        srcLOD: 0,
        srcMemoryType: cu::CUmemorytype::CU_MEMORYTYPE_DEVICE,
        srcHost: std::ptr::null(),
        srcDevice: 0,
        srcArray: std::ptr::null_mut(),
        reserved0: std::ptr::null_mut(),
        srcPitch: 0,
        srcHeight: 0,
        dstXInBytes: 0,
        dstY: 0,
        dstZ: 0,
        dstLOD: 0,
        dstMemoryType: cu::CUmemorytype::CU_MEMORYTYPE_DEVICE,
        dstHost: std::ptr::null_mut(),
        dstDevice: 0,
        dstArray: std::ptr::null_mut(),
        reserved1: std::ptr::null_mut(),
        dstPitch: 0,
        dstHeight: 0,
        WidthInBytes: len,
        Height: 1,
        Depth: 1,
    }
}
