//! The one error type of this crate. Every variant says what failed, where, and, where one is known, the remedy.

use std::fmt;

use weft_ir::reference::ReferenceError;

use crate::exec::memory::{MemoryNeed, bytes_text};

/// Result of every fallible call in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a user does when there is no usable driver.
pub const REMEDY_DRIVER: &str = "install an NVIDIA driver (580 or newer), or run with --device cpu";

/// What a user does when there is no NVRTC.
pub const REMEDY_NVRTC: &str = "pip install nvidia-cuda-nvrtc==13.0.88 and set WEFT_NVRTC to its lib folder (…/site-packages/nvidia/cu13/lib)";

/// What went wrong in the CUDA layer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// `libcuda` cannot be loaded: the machine has no NVIDIA driver.
    #[error("no NVIDIA driver: libcuda.so.1 not found ({detail}); {}", REMEDY_DRIVER)]
    NoDriver {
        /// What the dynamic loader said.
        detail: String,
    },

    /// `libcuda` is there but lacks a function this crate calls.
    #[error("the NVIDIA driver is too old: its libcuda has no `{symbol}`; {}", REMEDY_DRIVER)]
    DriverTooOld {
        /// The first missing symbol.
        symbol: &'static str,
    },

    /// The driver works but the machine shows no GPU to this process.
    #[error(
        "the NVIDIA driver sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES, or run with --device cpu"
    )]
    NoDevice,

    /// A GPU ordinal that does not exist.
    #[error("no GPU {ordinal}: this machine shows {count} (ordinals start at 0)")]
    NoSuchDevice {
        /// The ordinal asked for.
        ordinal: usize,
        /// How many GPUs there are.
        count: usize,
    },

    /// A driver call returned an error.
    #[error("{call}{} failed: {name} ({code}): {description}", ForKernel(.kernel))]
    Cuda {
        /// The driver function.
        call: &'static str,
        /// The `CUresult`.
        code: u32,
        /// Its name, such as `CUDA_ERROR_OUT_OF_MEMORY`.
        name: String,
        /// The driver's description and, where one is known, the remedy.
        description: String,
        /// The kernel or graph node concerned.
        kernel: Option<String>,
    },

    /// No usable NVRTC was found.
    #[error("libnvrtc not found: {}\n  looked at: {}", REMEDY_NVRTC, .tried.join("\n             "))]
    NvrtcNotFound {
        /// Every place tried, with the loader's reason where the file exists.
        tried: Vec<String>,
    },

    /// An NVRTC call failed for a reason other than the source.
    #[error("{call}{} failed: {name} ({code}){}", ForKernel(.kernel), Log(.log))]
    Nvrtc {
        /// The NVRTC function.
        call: &'static str,
        /// The `nvrtcResult`.
        code: i32,
        /// Its name.
        name: String,
        /// The kernel concerned.
        kernel: Option<String>,
        /// NVRTC's log; empty if there is none.
        log: String,
    },

    /// A kernel does not compile.
    #[error("kernel `{kernel}` does not compile for {arch}:\n{log}")]
    Compile {
        /// The kernel's name.
        kernel: String,
        /// The architecture, such as `sm_90a`.
        arch: String,
        /// NVRTC's and ptxas's log.
        log: String,
    },

    /// A range that lies outside its buffer. All figures are bytes.
    #[error("{what}: bytes {offset}..{offset}+{len} lie outside a buffer of {capacity} bytes")]
    OutOfRange {
        /// The operation.
        what: &'static str,
        /// First byte.
        offset: usize,
        /// Length of the access.
        len: usize,
        /// Length of the buffer.
        capacity: usize,
    },

    /// An argument that the call cannot take.
    #[error("{what}: {why}")]
    BadArgument {
        /// The operation and its object.
        what: String,
        /// What is wrong with it.
        why: String,
    },

    /// The compiled-code cache cannot be used.
    #[error("cubin cache {path}: {why}; set WEFT_CACHE_DIR to a folder that can be written")]
    Cache {
        /// The file or folder.
        path: String,
        /// The system's reason.
        why: String,
    },

    /// The GPU is of another family than the plan was made for.
    #[error("the plan was compiled for {target}, and GPU {ordinal} ({device}) is {arch}; {remedy}")]
    WrongTarget {
        /// The plan's target.
        target: String,
        /// The GPU's ordinal.
        ordinal: usize,
        /// The GPU's name.
        device: String,
        /// Its architecture.
        arch: String,
        /// What to do.
        remedy: String,
    },

    /// The GPU has less free memory than the plan takes.
    #[error(
        "{device} has {} free, and the plan takes {}: {need}; compile with a lower --max-seq or --max-batch, or free GPU memory",
        bytes_text(*.free), bytes_text(.need.total())
    )]
    NotEnoughMemory {
        /// The GPU's name.
        device: String,
        /// Free bytes.
        free: u64,
        /// What is needed, by part.
        need: MemoryNeed,
    },

    /// A plan (or its kernels) that cannot be executed.
    #[error("plan, {place}: {why}; compile the model again with this version of weft")]
    Plan {
        /// Which part: a field, an entry, a buffer, a kernel.
        place: String,
        /// What is wrong with it.
        why: String,
    },

    /// A weight buffer that cannot be made from the checkpoint.
    #[error("weight {buffer:?}: {why}; compile the model again from this checkpoint")]
    Weight {
        /// The buffer's name.
        buffer: String,
        /// What is wrong.
        why: String,
    },

    /// A step input that the plan cannot take.
    #[error("step input {input}: {why}")]
    Input {
        /// Name of the input.
        input: &'static str,
        /// What is wrong with it, and what is allowed.
        why: String,
    },

    /// No bucket of the plan holds a step.
    #[error(
        "no {role} bucket holds {tokens} tokens with {rows} output rows; the plan has {available}; {remedy}"
    )]
    NoBucket {
        /// The step's role.
        role: &'static str,
        /// Its tokens.
        tokens: usize,
        /// Its output rows.
        rows: usize,
        /// The buckets of the role, or of all roles when it has none.
        available: String,
        /// What to do.
        remedy: &'static str,
    },

    /// A generation cannot run as one launch, or did not.
    #[error("a generation in one launch: {why}; run with --launch step")]
    Loop {
        /// What is missing or went wrong.
        why: String,
    },

    /// The CPU reference stopped.
    #[error("CPU reference: {0}")]
    Reference(#[from] Box<ReferenceError>),
}

impl Error {
    /// The same error with the kernel (or graph node) it concerns; unchanged for errors that carry none.
    #[must_use]
    pub fn for_kernel(mut self, kernel_name: &str) -> Self {
        if let Error::Cuda { kernel, .. } | Error::Nvrtc { kernel, .. } = &mut self {
            kernel.get_or_insert_with(|| kernel_name.to_owned());
        }
        self
    }

    /// True when the machine lacks what is needed (driver, GPU, NVRTC), so that nothing is wrong with the plan.
    pub fn is_missing(&self) -> bool {
        matches!(
            self,
            Error::NoDriver { .. }
                | Error::DriverTooOld { .. }
                | Error::NoDevice
                | Error::NvrtcNotFound { .. }
        )
    }

    pub(crate) fn plan(place: impl Into<String>, why: impl Into<String>) -> Self {
        Error::Plan { place: place.into(), why: why.into() }
    }

    pub(crate) fn input(input: &'static str, why: impl Into<String>) -> Self {
        Error::Input { input, why: why.into() }
    }

    pub(crate) fn bad(what: impl Into<String>, why: impl Into<String>) -> Self {
        Error::BadArgument { what: what.into(), why: why.into() }
    }
}

/// Fails with [`Error::OutOfRange`] unless `offset..offset+len` lies within `capacity` bytes.
pub(crate) fn check_range(what: &'static str, offset: usize, len: usize, capacity: usize) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= capacity => Ok(()),
        _ => Err(Error::OutOfRange { what, offset, len, capacity }),
    }
}

struct ForKernel<'a>(&'a Option<String>);

impl fmt::Display for ForKernel<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(kernel) => write!(f, " for `{kernel}`"),
            None => Ok(()),
        }
    }
}

struct Log<'a>(&'a str);

impl fmt::Display for Log<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "\n{}", self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked_without_overflow() {
        assert!(check_range("t", 0, 4, 4).is_ok());
        assert!(check_range("t", 4, 0, 4).is_ok());
        assert!(check_range("t", 1, 4, 4).is_err());
        assert!(check_range("t", usize::MAX, 2, 4).is_err());
    }

    #[test]
    fn cuda_errors_name_call_code_and_kernel() {
        let error = Error::Cuda {
            call: "cuLaunchKernel",
            code: 1,
            name: "CUDA_ERROR_INVALID_VALUE".into(),
            description: "invalid argument".into(),
            kernel: None,
        };
        let text = error.for_kernel("rmsnorm").to_string();
        assert_eq!(
            text,
            "cuLaunchKernel for `rmsnorm` failed: CUDA_ERROR_INVALID_VALUE (1): invalid argument"
        );
    }
}
