//! Compiled code on disk, by content: a file for each (source, options, NVRTC version, architecture).
//!
//! A file is written under a temporary name in the same folder and published by one rename, so readers see a whole
//! file or none, and processes may share a folder. Every file carries a checksum of its content; one that does not
//! match counts as absent, and is replaced when the code was compiled again.
//!
//! Layout: magic (8 bytes), SHA-256 of the payload (32), payload length (8, little endian), payload. Payload: key
//! (32), length of the JSON part (8), JSON (log and report), cubin.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::nvrtc::{Compiled, Nvrtc};
use crate::resources::LogReport;
use crate::sys::driver::CudaVersion;

const MAGIC: &[u8; 8] = b"WEFTCUB1";
const HEADER: usize = 48;
const SUFFIX: &str = "weftcubin";

/// What compiled code depends on, hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key([u8; 32]);

impl Key {
    /// The key of a compilation, from the same arguments as [`Nvrtc::compile`]. `name` counts, since the log and
    /// line information hold it.
    pub fn new(source: &str, name: &str, arch: &str, options: &[String], nvrtc: CudaVersion) -> Key {
        let mut hash = Sha256::new();
        let mut field = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        field(MAGIC);
        field(nvrtc.to_string().as_bytes());
        field(arch.as_bytes());
        field(name.as_bytes());
        for option in Nvrtc::effective_options(nvrtc, arch, options) {
            field(option.as_bytes());
        }
        field(source.as_bytes());
        Key(hash.finalize().into())
    }

    /// Lower-case hexadecimal digits.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The answer of a look in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// It is there and whole.
    Hit(Compiled),
    /// It is not there.
    Miss,
    /// There is a file, but it is damaged or cannot be read; the text says how.
    Corrupt(String),
}

/// How much is in a cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CacheSize {
    /// Files.
    pub entries: u64,
    /// Their size in bytes.
    pub bytes: u64,
}

/// A folder of compiled code.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Meta {
    log: String,
    report: LogReport,
}

impl Cache {
    /// Opens a cache, making its folder; without a folder, the default one.
    ///
    /// # Errors
    /// [`Error::Cache`] when there is no default, or the folder cannot be made.
    pub fn open(folder: Option<&Path>) -> Result<Cache> {
        let folder = match folder {
            Some(folder) => folder.to_owned(),
            None => Self::default_folder().ok_or_else(|| Error::Cache {
                path: "~/.cache/weft".into(),
                why: "neither WEFT_CACHE_DIR, XDG_CACHE_HOME nor HOME is set".into(),
            })?,
        };
        fs::create_dir_all(&folder).map_err(|error| cache_error(&folder, &error))?;
        Ok(Cache { folder })
    }

    /// `$WEFT_CACHE_DIR`, else `$XDG_CACHE_HOME/weft`, else `$HOME/.cache/weft`.
    pub fn default_folder() -> Option<PathBuf> {
        let variable =
            |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        variable("WEFT_CACHE_DIR")
            .or_else(|| {
                variable("XDG_CACHE_HOME").filter(|path| path.is_absolute()).map(|path| path.join("weft"))
            })
            .or_else(|| variable("HOME").map(|path| path.join(".cache/weft")))
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file of a key, there or not.
    pub fn file(&self, key: &Key) -> PathBuf {
        self.folder.join(format!("{}.{SUFFIX}", key.hex()))
    }

    /// Looks a key up, and checks what it finds.
    pub fn get(&self, key: &Key) -> Lookup {
        match fs::read(self.file(key)) {
            Ok(bytes) => decode(&bytes, key).map_or_else(|why| Lookup::Corrupt(why.into()), Lookup::Hit),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Lookup::Miss,
            Err(error) => Lookup::Corrupt(error.to_string()),
        }
    }

    /// Stores compiled code, replacing what is there.
    ///
    /// # Errors
    /// [`Error::Cache`].
    pub fn put(&self, key: &Key, compiled: &Compiled) -> Result<()> {
        let bytes = encode(key, compiled).map_err(|error| cache_error(&self.folder, &error))?;
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::Builder::new().prefix(".tmp-").tempfile_in(&self.folder)?;
            file.write_all(&bytes)?;
            file.persist(self.file(key)).map_err(|error| error.error)?;
            Ok(())
        };
        write().map_err(|error| cache_error(&self.folder, &error))
    }

    /// Counts what is there.
    ///
    /// # Errors
    /// [`Error::Cache`] when the folder cannot be read.
    pub fn size(&self) -> Result<CacheSize> {
        let mut size = CacheSize::default();
        for entry in fs::read_dir(&self.folder).map_err(|error| cache_error(&self.folder, &error))?.flatten()
        {
            if entry.path().extension().is_some_and(|suffix| suffix == SUFFIX) {
                size.entries += 1;
                size.bytes += entry.metadata().map_or(0, |data| data.len());
            }
        }
        Ok(size)
    }

    /// Writes and removes a file, to see whether the folder can be written.
    ///
    /// # Errors
    /// [`Error::Cache`].
    pub fn check_writable(&self) -> Result<()> {
        let probe = tempfile::Builder::new().prefix(".tmp-").tempfile_in(&self.folder);
        probe.map(drop).map_err(|error| cache_error(&self.folder, &error))
    }
}

fn cache_error(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::Cache { path: path.display().to_string(), why: why.to_string() }
}

fn encode(key: &Key, compiled: &Compiled) -> Result<Vec<u8>, serde_json::Error> {
    let meta = serde_json::to_vec(&Meta { log: compiled.log.clone(), report: compiled.report.clone() })?;
    let mut payload = Vec::with_capacity(40 + meta.len() + compiled.cubin.len());
    payload.extend_from_slice(&key.0);
    payload.extend_from_slice(&(meta.len() as u64).to_le_bytes());
    payload.extend_from_slice(&meta);
    payload.extend_from_slice(&compiled.cubin);
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&Sha256::digest(&payload));
    bytes.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&payload);
    Ok(bytes)
}

fn decode(bytes: &[u8], key: &Key) -> Result<Compiled, &'static str> {
    let (header, payload) = bytes.split_at_checked(HEADER).ok_or("shorter than its header")?;
    if !header.starts_with(MAGIC) {
        return Err("not a file of this cache");
    }
    if header[40..] != (payload.len() as u64).to_le_bytes() {
        return Err("cut short");
    }
    if header[8..40] != *Sha256::digest(payload) {
        return Err("its checksum does not match");
    }
    let (stored_key, rest) = payload.split_at_checked(32).ok_or("no key")?;
    if *stored_key != key.0 {
        return Err("made for another key");
    }
    let (len, rest) = rest.split_first_chunk::<8>().ok_or("no length")?;
    let len = usize::try_from(u64::from_le_bytes(*len)).map_err(|_| "a length out of range")?;
    let (meta, cubin) = rest.split_at_checked(len).ok_or("a length out of range")?;
    let Meta { log, report } = serde_json::from_slice(meta).map_err(|_| "its log cannot be read")?;
    Ok(Compiled { cubin: cubin.to_vec(), log, report })
}
