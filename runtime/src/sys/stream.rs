//! Streams and events.

use cudarc::driver::sys as cu;

use super::check;
use super::context::Context;
use crate::error::Result;

/// A stream that does not wait for the legacy default stream. Dropping it waits for its work.
#[derive(Debug)]
pub struct Stream {
    raw: cu::CUstream,
    context: Context,
}

// SAFETY: stream handles may be used from any thread; the driver locks internally.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// Makes a stream.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    pub fn new(context: &Context) -> Result<Stream> {
        context.bind()?;
        let mut raw = std::ptr::null_mut();
        let flags = cu::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: a context is current; writes one handle.
        check(unsafe { call!(cuStreamCreate(&mut raw, flags)) })?;
        Ok(Stream { raw, context: context.clone() })
    }

    /// Waits for everything on this stream, and reports an error that it left behind.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    pub fn synchronize(&self) -> Result<()> {
        self.context.bind()?;
        // SAFETY: the handle lives as long as `self`.
        check(unsafe { call!(cuStreamSynchronize(self.raw)) })
    }

    /// True when everything on this stream is done.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`], also for an error that earlier work left behind.
    pub fn is_idle(&self) -> Result<bool> {
        self.context.bind()?;
        // SAFETY: the handle lives as long as `self`.
        ready(unsafe { call!(cuStreamQuery(self.raw)) })
    }

    /// Records an event behind the work on this stream.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    pub fn record(&self, event: &Event) -> Result<()> {
        self.context.bind()?;
        // SAFETY: both handles live through the call.
        check(unsafe { call!(cuEventRecord(event.raw, self.raw)) })
    }

    /// Makes later work on this stream wait for an event's latest record.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    pub fn wait(&self, event: &Event) -> Result<()> {
        self.context.bind()?;
        // SAFETY: both handles live through the call; the driver keeps what it needs of the event.
        check(unsafe { call!(cuStreamWaitEvent(self.raw, event.raw, 0)) })
    }

    /// The context it belongs to.
    pub fn context(&self) -> &Context {
        &self.context
    }

    pub(super) fn raw(&self) -> cu::CUstream {
        self.raw
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Errors cannot be returned from here; work that failed has already poisoned the context.
        let _ = self.synchronize();
        // SAFETY: made in `new`, destroyed once.
        let _ = check(unsafe { call!(cuStreamDestroy_v2(self.raw)) });
    }
}

/// A point in a stream's work.
#[derive(Debug)]
pub struct Event {
    raw: cu::CUevent,
    context: Context,
}

// SAFETY: event handles may be used from any thread; the driver locks internally.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// Makes an event that takes the time.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    pub fn new(context: &Context) -> Result<Event> {
        Self::with_flags(context, cu::CUevent_flags_enum::CU_EVENT_DEFAULT as u32)
    }

    /// Makes an event for ordering alone, which costs less.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    pub fn without_timing(context: &Context) -> Result<Event> {
        Self::with_flags(context, cu::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32)
    }

    fn with_flags(context: &Context, flags: u32) -> Result<Event> {
        context.bind()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: a context is current; writes one handle.
        check(unsafe { call!(cuEventCreate(&mut raw, flags)) })?;
        Ok(Event { raw, context: context.clone() })
    }

    /// Waits until the work before the latest record is done.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    pub fn synchronize(&self) -> Result<()> {
        self.context.bind()?;
        // SAFETY: the handle lives as long as `self`.
        check(unsafe { call!(cuEventSynchronize(self.raw)) })
    }

    /// True when the work before the latest record is done.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    pub fn is_done(&self) -> Result<bool> {
        self.context.bind()?;
        // SAFETY: the handle lives as long as `self`.
        ready(unsafe { call!(cuEventQuery(self.raw)) })
    }

    /// Milliseconds from `start` to this event, to about half a microsecond. Both must be recorded and done.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`], `CUDA_ERROR_NOT_READY` among them.
    pub fn milliseconds_since(&self, start: &Event) -> Result<f32> {
        self.context.bind()?;
        let mut milliseconds = 0.0;
        // SAFETY: both handles live through the call; writes one number.
        check(unsafe { call!(cuEventElapsedTime_v2(&mut milliseconds, start.raw, self.raw)) })?;
        Ok(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: made in `with_flags`, destroyed once; the driver defers it past pending work.
        let _ = check(unsafe { call!(cuEventDestroy_v2(self.raw)) });
    }
}

/// The answer of a query: "not ready" is no error.
fn ready(answer: (&'static str, cu::CUresult)) -> Result<bool> {
    match answer.1 {
        cu::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
        _ => check(answer).map(|()| true),
    }
}
