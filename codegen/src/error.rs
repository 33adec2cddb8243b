//! Errors of code generation.

/// Why a kernel could not be emitted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No kernel for this spec.
    #[error("kernel {kernel}: {why}")]
    Build {
        /// Kernel.
        kernel: String,
        /// Reason.
        why: String,
    },
    /// A builder made invalid kernel IR: a fault of Weft.
    #[error("kernel {kernel} is not valid, which is a fault of Weft; please report it:\n{faults}")]
    Invalid {
        /// Kernel.
        kernel: String,
        /// One fault a line.
        faults: String,
    },
    /// The text could not be written.
    #[error("kernel {kernel}: {why}")]
    Write {
        /// Kernel.
        kernel: String,
        /// Reason.
        why: String,
    },
}
