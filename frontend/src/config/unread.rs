//! Keys of a configuration that nobody read and that are in no list: an error, since the result may depend on them.
//!
//! Two kinds are passed over: those whose value is empty, and those that the user says to ignore. `false` is a value:
//! it may turn off what Weft always does (`use_rope`, `causal`).

use crate::error::{Error, Result};
use std::fmt::Display;
use std::path::Path;

/// Most keys that an error names.
const NAMED: usize = 8;

/// A key that Weft does not know.
pub(super) struct Unread<V> {
    pub key: String,
    /// Its value; `None` where there is nothing in a list, an object or a text.
    pub value: Option<V>,
}

/// Keys that were passed over.
#[derive(Debug, Default)]
pub(super) struct PassedOver {
    /// Those whose value is empty.
    pub off: Vec<String>,
    /// Those that the user says to ignore.
    pub ignored: Vec<String>,
}

/// Judges the keys of a file that Weft does not know; `ignore` are those that the user says to pass over.
///
/// # Errors
/// [`Error::UnknownKey`] for the others with a value; [`Error::Malformed`] where `ignore` names a key that is not one of
/// them, since ignoring it would change nothing.
pub(super) fn judge<V: Display>(
    path: &Path,
    unread: impl IntoIterator<Item = Unread<V>>,
    ignore: &[String],
) -> Result<PassedOver> {
    let mut passed = PassedOver::default();
    let (mut named, mut options, mut more) = (Vec::new(), Vec::new(), 0);
    for Unread { key, value } in unread {
        match value {
            _ if ignore.contains(&key) => passed.ignored.push(key),
            None => passed.off.push(key),
            Some(value) if named.len() < NAMED => {
                named.push(format!("{key} = {value}"));
                options.push(format!("--ignore-config-key {key}"));
            }
            Some(_) => more += 1,
        }
    }
    if !named.is_empty() {
        let count = if more > 0 { format!(" and {more} more") } else { String::new() };
        let options = options.join(" ");
        return Err(Error::unknown_key(path, named.join(", ") + &count, format!("{options}{count}")));
    }
    match ignore.iter().find(|key| !passed.ignored.contains(key)) {
        None => Ok(passed),
        Some(key) => {
            let problem = "--ignore-config-key is for keys that Weft does not know, and this one it knows, or the \
                           file does not have it";
            Err(Error::malformed(path, key, problem, "leave the option out"))
        }
    }
}
