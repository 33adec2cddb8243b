//! The crate's error: every kind names the file, the field or tensor, and the remedy or what is supported.

use std::path::{Path, PathBuf};
use thiserror::Error;

/// Result with the crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a checkpoint, its config or its text files could not be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation on a file.
    #[error("{}: cannot {action}: {source}", .path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What was attempted: "open", "map", "read", "write", …
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The path holds no checkpoint of a known form.
    #[error("{}: not a checkpoint: {found}; expected {expected}", .path.display())]
    NotACheckpoint {
        /// File or folder.
        path: PathBuf,
        /// What was found there.
        found: String,
        /// What would be accepted.
        expected: String,
    },
    /// A file contradicts its own format.
    #[error("{}: {field}: {problem}; {remedy}", .path.display())]
    Malformed {
        /// File.
        path: PathBuf,
        /// Field or tensor in the file.
        field: String,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        remedy: String,
    },
    /// A field or value is understood, but there is no support for it.
    #[error("{}: {field} = {value} is not supported; supported: {supported}", .path.display())]
    Unsupported {
        /// File.
        path: PathBuf,
        /// Field or tensor in the file.
        field: String,
        /// Its value.
        value: String,
        /// What is supported.
        supported: String,
    },
    /// A configuration has keys that nobody knows, with values that could change the result.
    #[error("{}: {field}: unknown to Weft, and the result may depend on it; {remedy}", .path.display())]
    UnknownKey {
        /// File.
        path: PathBuf,
        /// The keys and their values.
        field: String,
        /// What to do about it.
        remedy: String,
    },
    /// A field that is needed is not there.
    #[error("{}: {field} is missing; {remedy}", .path.display())]
    MissingField {
        /// File.
        path: PathBuf,
        /// Field in the file.
        field: String,
        /// What to do about it.
        remedy: String,
    },
    /// A tensor that is needed is not there.
    #[error("{}: no tensor {tensor:?}; {remedy}", .path.display())]
    MissingTensor {
        /// File or folder.
        path: PathBuf,
        /// Name asked for.
        tensor: String,
        /// What to do about it, with the names that come near.
        remedy: String,
    },
    /// Tensors of the model's own modules that Weft does not read.
    #[error(
        "{}: {tensors}: of the model's own modules, and Weft does not read them, so the result may depend on them; \
         {remedy}",
        .path.display()
    )]
    UnreadTensor {
        /// File of the first.
        path: PathBuf,
        /// Their names, of many the first.
        tensors: String,
        /// What to do about it.
        remedy: String,
    },
    /// The tokenizer or chat template refused its input.
    #[error("{}: {field}: {problem}; {remedy}", .path.display())]
    Text {
        /// File that the tokenizer or template came from.
        path: PathBuf,
        /// Step or field: "encode", "chat_template", …
        field: String,
        /// What is wrong.
        problem: String,
        /// What to do about it.
        remedy: String,
    },
    /// The disk has no room for what is to be written.
    #[error(
        "{}: needs {:.1} GB, and {:.1} GB are free; make room, choose another disk, or a smaller type or model",
        .path.display(), *.needed as f64 / 1e9, *.free as f64 / 1e9
    )]
    NoSpace {
        /// Folder that would have been written.
        path: PathBuf,
        /// Bytes to be written.
        needed: u64,
        /// Bytes there are.
        free: u64,
    },
    /// The place to write to is taken.
    #[error("{}: already exists; choose another output path or remove it", .path.display())]
    Exists {
        /// Path that would have been written.
        path: PathBuf,
    },
}

/// Longest value of a file that an error repeats, in bytes.
const LONGEST: usize = 400;

/// A value of a file without its middle where it is long.
fn clipped(mut text: String) -> String {
    if text.len() <= LONGEST {
        return text;
    }
    // The end of the text is a boundary, and so is its beginning.
    let boundary = |from: usize| (from..=text.len()).find(|&i| text.is_char_boundary(i)).unwrap_or(from);
    let (head, tail) = (boundary(LONGEST / 2), boundary(text.len() - LONGEST / 4));
    text.replace_range(head..tail, " … ");
    text
}

/// What to do about a file whose bytes contradict its format.
pub(crate) const RELOAD: &str = "the file is damaged or incomplete: fetch it again";

impl Error {
    /// An [`Error::Io`].
    pub(crate) fn io(path: &Path, action: &'static str, source: std::io::Error) -> Error {
        Error::Io { path: path.to_owned(), action, source }
    }

    /// An [`Error::Malformed`] with its own remedy.
    pub(crate) fn malformed(
        path: &Path,
        field: impl Into<String>,
        problem: impl ToString,
        remedy: impl Into<String>,
    ) -> Error {
        Error::Malformed {
            path: path.to_owned(),
            field: clipped(field.into()),
            problem: clipped(problem.to_string()),
            remedy: remedy.into(),
        }
    }

    /// An [`Error::Malformed`] whose remedy is to fetch the file again.
    pub(crate) fn damaged(path: &Path, field: impl Into<String>, problem: impl ToString) -> Error {
        Error::malformed(path, field, problem, RELOAD)
    }

    /// An [`Error::Unsupported`].
    pub(crate) fn unsupported(
        path: &Path,
        field: impl Into<String>,
        value: impl ToString,
        supported: impl Into<String>,
    ) -> Error {
        Error::Unsupported {
            path: path.to_owned(),
            field: clipped(field.into()),
            value: clipped(value.to_string()),
            supported: supported.into(),
        }
    }

    /// An [`Error::UnknownKey`]; `options` passes the keys over.
    pub(crate) fn unknown_key(path: &Path, field: String, options: String) -> Error {
        let remedy = format!("where it does not, give {}", clipped(options));
        Error::UnknownKey { path: path.to_owned(), field: clipped(field), remedy }
    }

    /// An [`Error::MissingField`].
    pub(crate) fn missing(path: &Path, field: impl Into<String>, remedy: impl Into<String>) -> Error {
        Error::MissingField { path: path.to_owned(), field: clipped(field.into()), remedy: remedy.into() }
    }

    /// An [`Error::UnreadTensor`], which says the first `most` names.
    pub(crate) fn unread(path: &Path, names: &[&String], most: usize) -> Error {
        let all = |before: &str| -> Vec<String> {
            names.iter().take(most).map(|name| format!("{before}{name}")).collect()
        };
        let more = names.len().saturating_sub(most);
        let count = if more > 0 { format!(" and {more} more") } else { String::new() };
        let noun = if names.len() == 1 { "tensor" } else { "tensors" };
        let tensors = clipped(format!("{noun} {}{count}", all("").join(", ")));
        let options = clipped(all("--ignore-tensor ").join(" "));
        let prefix = if more > 0 { ", or what all of them begin with" } else { "" };
        let remedy = format!(
            "use the configuration and weights of the same model; where they change nothing, give {options}{prefix}"
        );
        Error::UnreadTensor { path: path.to_owned(), tensors, remedy }
    }

    /// An [`Error::Text`].
    pub(crate) fn text(
        path: &Path,
        field: impl Into<String>,
        problem: impl ToString,
        remedy: impl Into<String>,
    ) -> Error {
        Error::Text {
            path: path.to_owned(),
            field: clipped(field.into()),
            problem: clipped(problem.to_string()),
            remedy: remedy.into(),
        }
    }

    /// A model family that no builder knows: `known` lists those that one does.
    pub fn unsupported_model(path: &Path, model_type: &str, known: &[&str]) -> Error {
        Error::unsupported(path, "model_type", model_type, known.join(", "))
    }

    /// A tensor whose shape (outermost first) is not what the configuration asks for.
    pub fn tensor_shape(path: &Path, tensor: &str, found: &[usize], expected: &[usize]) -> Error {
        let problem = format!("its shape is {found:?}, the configuration asks for {expected:?}");
        let remedy = "use the weights and configuration of the same model";
        Error::malformed(path, format!("tensor {tensor:?}"), problem, remedy)
    }

    /// A model whose parts do not fit together once it is built as a graph.
    pub fn misfit(path: &Path, why: &str) -> Error {
        let remedy = "use the weights and configuration of the same model";
        Error::malformed(path, "configuration", why, remedy)
    }

    /// The file that the error is about.
    pub fn path(&self) -> &Path {
        match self {
            Error::Io { path, .. }
            | Error::NotACheckpoint { path, .. }
            | Error::Malformed { path, .. }
            | Error::Unsupported { path, .. }
            | Error::UnknownKey { path, .. }
            | Error::MissingField { path, .. }
            | Error::MissingTensor { path, .. }
            | Error::UnreadTensor { path, .. }
            | Error::Text { path, .. }
            | Error::NoSpace { path, .. }
            | Error::Exists { path } => path,
        }
    }
}
