//! A read-only memory map of a whole file: the crate's only unsafe code.
#![allow(unsafe_code)]

use crate::error::{Error, Result};
use std::fs::File;
use std::ops::Deref;
use std::path::Path;

/// The bytes of a file, mapped read-only; dereferences to `[u8]`. Pages are read as they are touched.
///
/// The file must not be written to or truncated while it is mapped (on Unix the process would receive
/// `SIGBUS` when it touches a page that is gone); replacing it by rename is fine.
#[derive(Debug)]
pub struct Mmap(Bytes);

#[derive(Debug)]
enum Bytes {
    File(memmap2::Mmap),
    Memory(Vec<u8>),
}

impl Mmap {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be opened or mapped; [`Error::Malformed`] when it is empty or
    /// not a regular file.
    pub fn open(path: &Path) -> Result<Mmap> {
        crate::read::regular(path)?;
        let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        let meta = file.metadata().map_err(|e| Error::io(path, "read the size of", e))?;
        if !meta.is_file() {
            return Err(Error::malformed(path, "file", "not a regular file", "give the path of a file"));
        }
        if meta.len() == 0 {
            return Err(Error::damaged(path, "file", "empty (0 bytes)"));
        }
        // SAFETY: the map is private to this value, read-only, and lives as long as the slices borrowed
        // from it. What remains is that another process changes the file while it is mapped; that is
        // documented above as the caller's duty, as for every reader of mapped checkpoints.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, "map", e))?;
        Ok(Mmap(Bytes::File(map)))
    }
}

/// Bytes that are in memory already, as if they were a file's.
impl From<Vec<u8>> for Mmap {
    fn from(bytes: Vec<u8>) -> Mmap {
        Mmap(Bytes::Memory(bytes))
    }
}

impl Deref for Mmap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::File(map) => map,
            Bytes::Memory(bytes) => bytes,
        }
    }
}
