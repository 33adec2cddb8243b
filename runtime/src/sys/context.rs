//! The primary context of a device: retained while anything made in it lives.

use std::sync::Arc;

use cudarc::driver::sys as cu;
use serde::Serialize;

use super::check;
use super::driver::{Device, Driver};
use crate::error::Result;

/// Memory of a device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryInfo {
    /// Free at this moment.
    pub free: u64,
    /// In all.
    pub total: u64,
}

/// A device's primary context. Clones share one retained reference; the last one releases it.
#[derive(Debug, Clone)]
pub struct Context {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    raw: cu::CUcontext,
    device: Device,
}

// SAFETY: a context handle may be used from any thread; the driver locks internally.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Context {
    /// Starts the driver and retains the primary context of one GPU.
    ///
    /// # Errors
    /// Those of [`Driver::init`] and [`Driver::device`]; [`crate::Error::Cuda`].
    pub fn open(ordinal: usize) -> Result<Context> {
        Self::retain(&Driver::init()?.device(ordinal)?)
    }

    /// Retains the primary context of a GPU and makes it current on this thread.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    pub fn retain(device: &Device) -> Result<Context> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: a `Device` exists only after the driver started; writes one handle.
        check(unsafe { call!(cuDevicePrimaryCtxRetain(&mut raw, device.raw)) })?;
        let context = Context { inner: Arc::new(Inner { raw, device: device.clone() }) };
        context.bind()?;
        Ok(context)
    }

    /// Makes this context current on the calling thread. Every call of this layer does so itself.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    pub fn bind(&self) -> Result<()> {
        // SAFETY: the handle is retained until the last clone is dropped.
        check(unsafe { call!(cuCtxSetCurrent(self.inner.raw)) })
    }

    /// Waits for all work in this context, and reports an error that such work left behind.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    pub fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: a context is current.
        check(unsafe { call!(cuCtxSynchronize()) })
    }

    /// Free and total memory of the device.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    pub fn memory(&self) -> Result<MemoryInfo> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two sizes.
        check(unsafe { call!(cuMemGetInfo_v2(&mut free, &mut total)) })?;
        Ok(MemoryInfo { free: free as u64, total: total as u64 })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.inner.device
    }

    /// The raw handle, for calls that take it.
    pub(super) fn raw(&self) -> cu::CUcontext {
        self.inner.raw
    }

    /// True for clones of one context.
    pub(super) fn same(&self, other: &Context) -> bool {
        self.inner.raw == other.inner.raw
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: retained once in `retain`; nothing made in the context is left, since each holds a clone.
        // An error cannot be returned from here and leaves nothing to undo.
        let _ = check(unsafe { call!(cuDevicePrimaryCtxRelease_v2(self.device.raw)) });
    }
}
