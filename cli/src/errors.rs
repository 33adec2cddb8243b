//! Errors of the command line, and the exit code of each.

use std::path::Path;

/// Result of a command.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a command did not do its work. Every text names the file or field and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What the user gave cannot be used: exit code 2.
    #[error("{0}")]
    Input(String),
    /// It could not be done: exit code 1.
    #[error("{0}")]
    Failed(String),
    /// A checkpoint, tokenizer or template.
    #[error(transparent)]
    Frontend(#[from] weft_frontend::error::Error),
    /// A graph that does not compile.
    #[error(transparent)]
    Passes(#[from] weft_passes::Error),
    /// A kernel that cannot be emitted.
    #[error(transparent)]
    Codegen(#[from] weft_codegen::Error),
    /// NVRTC, the driver, or a step.
    #[error(transparent)]
    Runtime(#[from] weft_runtime::Error),
    /// The reader of stdout went away: nothing is said, exit code 0.
    #[error("stdout was closed")]
    Closed,
}

impl Error {
    /// Bad usage or bad input.
    pub fn input(why: impl Into<String>) -> Error {
        Error::Input(why.into())
    }

    /// A failure.
    pub fn failed(why: impl Into<String>) -> Error {
        Error::Failed(why.into())
    }

    /// A file operation that failed; a file to be read that cannot be is bad input.
    pub fn io(path: &Path, action: &str, error: &std::io::Error) -> Error {
        let text = format!("{}: cannot {action}: {error}", path.display());
        if matches!(action, "read" | "open") { Error::Input(text) } else { Error::Failed(text) }
    }

    /// Process exit code: 1 failure, 2 bad usage or bad input.
    pub fn exit_code(&self) -> u8 {
        use weft_frontend::error::Error as Frontend;
        match self {
            Error::Closed => 0,
            Error::Input(_) => 2,
            Error::Frontend(Frontend::Io { action, .. }) => {
                if matches!(*action, "open" | "read" | "list" | "map") { 2 } else { 1 }
            }
            Error::Frontend(Frontend::NoSpace { .. }) => 1,
            Error::Frontend(_) => 2,
            Error::Failed(_) | Error::Passes(_) | Error::Codegen(_) | Error::Runtime(_) => 1,
        }
    }
}

/// An error of writing to stdout.
impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Error {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Error::Closed,
            _ => Error::Failed(format!("stdout: cannot write: {error}")),
        }
    }
}
