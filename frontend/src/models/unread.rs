//! Stored tensors of the model's own modules that its builder did not read: an error, since the model may be another
//! than the one that is built.
//!
//! Tensors of other parts (heads of tasks, towers of images, layers that draft) are left out with a warning.

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use std::collections::BTreeSet;
use std::path::Path;

/// Most tensors that an error names.
const NAMED: usize = 4;

/// What the builder read, as the modules that tensors are of.
struct Own<'a> {
    /// Modules: names without their last part.
    modules: BTreeSet<&'a str>,
    /// What these modules are in, where that has a name.
    parents: BTreeSet<&'a str>,
    /// What numbered blocks are in.
    lists: BTreeSet<&'a str>,
}

/// The name of what a tensor or module is in; empty for the outermost.
fn parent(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(parent, _)| parent)
}

/// A block's list and number: of `model.layers.3.mlp.up_proj.weight`, `model.layers` and 3.
fn block(name: &str) -> Option<(&str, usize)> {
    let mut start = 0;
    for part in name.split('.') {
        if start > 0 && !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) {
            return Some((name.get(..start - 1)?, part.parse().unwrap_or(usize::MAX)));
        }
        start += part.len() + 1;
    }
    None
}

impl<'a> Own<'a> {
    fn of(read: &'a [String]) -> Own<'a> {
        let modules: BTreeSet<&str> = read.iter().map(|name| parent(name)).collect();
        let parents = modules.iter().map(|module| parent(module)).filter(|name| !name.is_empty()).collect();
        let lists = read.iter().filter_map(|name| block(name)).map(|(list, _)| list).collect();
        Own { modules, parents, lists }
    }

    /// Whether a tensor is of a module that was read, beside one, or in a block of the same list.
    fn has(&self, name: &str, drafts: &std::ops::Range<usize>) -> bool {
        let module = parent(name);
        match block(name).filter(|(list, _)| self.lists.contains(list)) {
            Some((_, number)) => !drafts.contains(&number),
            None => self.modules.contains(module) || self.parents.contains(parent(module)),
        }
    }
}

/// Judges the stored tensors besides `read` (stored names).
///
/// # Errors
/// [`Error::UnreadTensor`] for those of the model's own modules that the user does not say to ignore;
/// [`Error::Malformed`] where what is to be ignored is none of them, since ignoring it would change nothing.
pub(super) fn judge(checkpoint: &Checkpoint, read: &[String]) -> Result<()> {
    let config = checkpoint.config();
    let own = Own::of(read);
    let drafts = config.layers..config.layers + config.draft_layers;
    let unread: Vec<String> =
        checkpoint.unused(read).into_iter().filter(|name| own.has(name, &drafts)).collect();
    let ignored = checkpoint.ignored_tensors();
    let file = |name: &str| -> &Path {
        checkpoint.tensor(name).map_or(checkpoint.root(), |info| checkpoint.file_of(info))
    };
    if let Some(prefix) = ignored.iter().find(|prefix| !unread.iter().any(|name| name.starts_with(*prefix))) {
        let problem = "--ignore-tensor is for tensors of the model's own modules that Weft does not read, and none \
                       of these begins so";
        return Err(Error::malformed(checkpoint.root(), prefix, problem, "leave the option out"));
    }
    let is_left = |name: &&String| !ignored.iter().any(|prefix| name.starts_with(prefix.as_str()));
    let left: Vec<&String> = unread.iter().filter(is_left).collect();
    match left.first() {
        None => Ok(()),
        Some(first) => Err(Error::unread(file(first), &left, NAMED)),
    }
}

#[cfg(test)]
mod tests {
    use super::{block, parent};

    #[test]
    fn names_are_taken_apart() {
        assert_eq!(block("model.layers.3.mlp.experts.7.up_proj.weight"), Some(("model.layers", 3)));
        assert_eq!(block("blk.12.attn_q.bias"), Some(("blk", 12)));
        assert_eq!(block("h.0.attn.bias"), Some(("h", 0)));
        assert_eq!(block("model.norm.weight"), None);
        assert_eq!(block("0.weight"), None, "a number without a list");
        assert_eq!(block("model.layers.99999999999999999999.x"), Some(("model.layers", usize::MAX)));
        assert_eq!((parent("model.norm.weight"), parent("norm"), parent("")), ("model.norm", "", ""));
    }
}
