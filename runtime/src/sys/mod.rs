//! The only unsafe code of the runtime: thin RAII wrappers over cudarc's raw driver bindings and over NVRTC.
//!
//! Rules kept here:
//! - Every driver call goes through `check`, and no driver call happens before [`driver::Driver::init`] has
//!   probed the library and its symbols: cudarc panics on a missing one. Every type below is reached through a
//!   [`driver::Driver`], so this holds by construction.
//! - Everything made in a context holds a clone of it, so contexts outlive what they own; each call binds its
//!   context to the calling thread first, so objects may move between threads.
//! - Host memory that the device can reach ([`memory::PinnedBuffer`]) and modules are kept alive by the graphs
//!   that use them and wait for the device before they are freed.
//! - Device memory is outside Rust's memory model: kernels are trusted to stay inside what they were given. Their
//!   argument list is checked against the compiled kernel's signature (count and size of each parameter).
//!
//! Known limit: cudarc declares `CUresult` as a Rust enum, so an error code added by a driver newer than the
//! pinned bindings (CUDA 13.0) is not representable. Success never is such a code.
#![allow(unsafe_code)]
#![warn(clippy::undocumented_unsafe_blocks)]

use cudarc::driver::sys as cu;

use crate::error::{Error, REMEDY_DRIVER, Result};

/// A driver call with its own name, for [`check`]: `check(unsafe { call!(cuInit(0)) })`.
macro_rules! call {
    ($function:ident($($argument:expr),* $(,)?)) => {
        (stringify!($function), cudarc::driver::sys::$function($($argument),*))
    };
}

pub mod context;
pub mod driver;
pub mod graph;
mod graph_nodes;
pub mod memory;
pub mod module;
pub mod nvrtc;
pub mod stream;
pub mod tensor_map;

/// Why a library does not load: the loader's own words are the error's source, not its text.
fn loader_reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// Turns a driver call's result into an error that carries the call, the code, its name and description.
fn check((call, code): (&'static str, cu::CUresult)) -> Result<()> {
    if code == cu::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let (name, mut description) = describe(code);
    if let Some(remedy) = remedy(code) {
        description = format!("{description}; {remedy}");
    }
    Err(Error::Cuda { call, code: code as u32, name, description, kernel: None })
}

/// The driver's name and description of a code.
fn describe(code: cu::CUresult) -> (String, String) {
    let text = |read: &dyn Fn(*mut *const core::ffi::c_char) -> cu::CUresult| {
        let mut pointer = std::ptr::null();
        if read(&mut pointer) != cu::CUresult::CUDA_SUCCESS || pointer.is_null() {
            return None;
        }
        // SAFETY: on success the driver sets a pointer to a static NUL-terminated string.
        Some(unsafe { std::ffi::CStr::from_ptr(pointer) }.to_string_lossy().into_owned())
    };
    // SAFETY: both calls only write the pointer they are given, which lives through the call.
    let name = text(&|out| unsafe { cu::cuGetErrorName(code, out) });
    // SAFETY: as above.
    let description = text(&|out| unsafe { cu::cuGetErrorString(code, out) });
    (name.unwrap_or_else(|| format!("{code:?}")), description.unwrap_or_else(|| "no description".into()))
}

/// What the user can do about a code, where there is something to do.
fn remedy(code: cu::CUresult) -> Option<&'static str> {
    match code {
        cu::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            Some("free GPU memory, or compile the plan for fewer tokens, sequences or slots")
        }
        cu::CUresult::CUDA_ERROR_STUB_LIBRARY => {
            Some("the libcuda found is the toolkit's stub: take its `stubs` folder out of LD_LIBRARY_PATH")
        }
        cu::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => {
            Some("the plan was compiled for another architecture: compile it for this GPU")
        }
        cu::CUresult::CUDA_ERROR_INVALID_IMAGE | cu::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
            Some("cubins made by NVRTC 13 need driver 580 or newer: run `weft doctor`")
        }
        cu::CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
        | cu::CUresult::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => Some(REMEDY_DRIVER),
        _ => None,
    }
}
