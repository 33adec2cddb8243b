//! Small files that are read whole: never more than a bound, and never what is no file.

use crate::error::{Error, Result};
use std::io::Read;
use std::path::Path;

/// Most bytes of a file of settings (`config.json` and its like).
pub const SETTINGS: u64 = 4 << 20;
/// Most bytes of `tokenizer_config.json` (it may list a vocabulary's added tokens) and of a chat template.
pub(crate) const TEMPLATES: u64 = 8 << 20;
/// Most bytes of a safetensors index: DeepSeek V3's, of 91,000 tensors, has 9 million.
pub(crate) const INDEX: u64 = 32 << 20;
/// Most bytes of a `tokenizer.json`: Gemma's has 33 million.
pub(crate) const TOKENIZER: u64 = 256 << 20;

/// The bytes of a file of at most `most`.
///
/// # Errors
/// [`Error::Io`]; [`Error::Malformed`] for what is no regular file, or is longer.
pub fn bounded(path: &Path, most: u64) -> Result<Vec<u8>> {
    regular(path)?;
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let length = file.metadata().map_err(|e| Error::io(path, "read the size of", e))?.len();
    let too_long = |n: String| {
        let problem = format!("has {n} bytes, at most {most} are read");
        Err(Error::malformed(path, "size", problem, "give the model's own file: it is smaller"))
    };
    if length > most {
        return too_long(length.to_string());
    }
    let mut out = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    // One byte more shows that the file has grown.
    file.take(most + 1).read_to_end(&mut out).map_err(|e| Error::io(path, "read", e))?;
    if out.len() as u64 > most { too_long(format!("more than {most}")) } else { Ok(out) }
}

/// As [`bounded`], as text.
///
/// # Errors
/// As [`bounded`]; also [`Error::Malformed`] for bytes that are not UTF-8.
pub fn bounded_text(path: &Path, most: u64) -> Result<String> {
    let bytes = bounded(path, most)?;
    String::from_utf8(bytes)
        .map_err(|e| Error::malformed(path, "text", format!("not UTF-8: {e}"), "save the file as UTF-8"))
}

/// Refuses pipes, devices and folders, before they are opened: opening a pipe waits for its other end.
pub(crate) fn regular(path: &Path) -> Result<()> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path, "open", e))?;
    match meta.is_file() {
        true => Ok(()),
        false => Err(Error::malformed(path, "file", "not a regular file", "give the path of a file")),
    }
}
