//! GGUF files (versions 2 and 3, little-endian): metadata and tensor table over a memory map.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Nothing is allocated on the word
//! of a count in the file: each is bounded by the bytes that remain. Arrays stay in the map (their
//! extent is walked once at opening) and are read when asked for. GGUF lists dimensions innermost first;
//! here shapes are row-major, outermost first.

pub mod names;
mod reader;

use crate::error::{Error, Result};
use crate::mmap::Mmap;
use crate::tensor::{TensorInfo, elements};
use reader::{Entry, Reader};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use weft_ir::dtype::{DType, Encoding};

/// Alignment of tensor data where the file does not say.
const DEFAULT_ALIGNMENT: u64 = 32;

/// Tensors and metadata keys that a file may have: many times what real ones do.
const MAX_TENSORS: usize = 1 << 18;
const MAX_KEYS: usize = 1 << 16;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any of the unsigned integers.
    Unsigned(u64),
    /// Any of the signed integers.
    Signed(i64),
    /// float32.
    F32(f32),
    /// float64.
    F64(f64),
    /// bool.
    Bool(bool),
    /// UTF-8 text.
    Text(String),
    /// An array, still in the file.
    Array(Array),
}

/// An array in a file's metadata: its element type (as GGUF numbers it), length and extent.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    kind: u32,
    /// Number of elements.
    pub len: usize,
    extent: Range<usize>,
}

/// A mapped GGUF file.
#[derive(Debug)]
pub struct Gguf {
    files: [PathBuf; 1],
    map: Mmap,
    metadata: BTreeMap<String, Value>,
    tensors: Vec<TensorInfo>,
    by_name: BTreeMap<String, usize>,
}

impl Gguf {
    /// Maps a file and reads its metadata and tensor table.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Unsupported`] for another version; [`Error::Malformed`] naming the key,
    /// tensor or count that is wrong.
    pub fn open(path: &Path) -> Result<Gguf> {
        Self::parse(path, Mmap::open(path)?)
    }

    /// As [`Gguf::open`], of bytes that are mapped or in memory; `path` is for errors.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn parse(path: &Path, map: Mmap) -> Result<Gguf> {
        let mut r = Reader { path, data: &map, at: 0 };
        if r.take(4, "magic")? != b"GGUF" {
            let remedy = "give a .gguf file";
            return Err(Error::malformed(path, "magic", "the file does not begin with \"GGUF\"", remedy));
        }
        let version = r.u32("version")?;
        if version != 2 && version != 3 {
            return Err(Error::unsupported(path, "version", version, "GGUF versions 2 and 3, little-endian"));
        }
        // The smallest tensor entry is 24 bytes, the smallest metadata entry 13.
        let tensor_count = r.count(24, "tensor count")?;
        let kv_count = r.count(13, "metadata count")?;
        for (field, n, most) in
            [("tensor count", tensor_count, MAX_TENSORS), ("metadata count", kv_count, MAX_KEYS)]
        {
            if n > most {
                return Err(Error::damaged(path, field, format!("{n} is more than {most}")));
            }
        }
        let metadata = r.metadata(kv_count)?;
        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(Value::Unsigned(a)) if a.is_power_of_two() && *a <= 1 << 20 => *a,
            Some(other) => {
                let problem = format!("{other:?} is not a power of two up to 1048576");
                return Err(Error::damaged(path, "general.alignment", problem));
            }
        };
        let entries = r.tensor_entries(tensor_count)?;
        let data = (r.at as u64).next_multiple_of(alignment);
        let (tensors, by_name) = place(path, entries, data, alignment, map.len())?;
        Ok(Gguf { files: [path.to_owned()], map, metadata, tensors, by_name })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        let [path] = &self.files;
        path
    }

    /// The file, as a list of one.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// All tensors, in the file's order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).and_then(|&i| self.tensors.get(i))
    }

    /// The mapped bytes of a tensor of this file.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when its type is not read.
    pub fn data(&self, tensor: &TensorInfo) -> Result<&[u8]> {
        tensor.slice(self.path(), &self.map)
    }

    /// Metadata keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// The metadata value of a key.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// The text of a key; an error when it is of another type.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "text", |v| match v {
            Value::Text(s) => Some(s.as_str()),
            _ => None,
        })
    }

    /// The non-negative integer of a key; an error when it is of another type or negative.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "a non-negative integer", |v| match v {
            Value::Unsigned(n) => Some(*n),
            Value::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        })
    }

    /// The number of a key. A float32 is given as the shortest decimal that rounds to it, so that a
    /// stored 1e-5 is 1e-5 again.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", |v| match v {
            Value::F32(x) => x.to_string().parse().ok(),
            Value::F64(x) => Some(*x),
            Value::Unsigned(n) => Some(*n as f64),
            Value::Signed(n) => Some(*n as f64),
            _ => None,
        })
    }

    /// The truth value of a key; an error when it is of another type.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a bool", |v| match v {
            Value::Bool(b) => Some(*b),
            _ => None,
        })
    }

    /// The array of strings of a key.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<String>>> {
        let Some(array) = self.array(key)? else { return Ok(None) };
        if array.kind != 8 {
            return Err(self.mistyped(key, "an array of strings"));
        }
        let mut r = self.reader(array);
        (0..array.len).map(|_| r.string(key)).collect::<Result<_>>().map(Some)
    }

    /// The array of integers of a key.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        let Some(array) = self.array(key)? else { return Ok(None) };
        let mut r = self.reader(array);
        let one = |r: &mut Reader| match r.scalar(array.kind, key)? {
            Value::Unsigned(n) => i64::try_from(n).map_err(|_| self.mistyped(key, "an array of integers")),
            Value::Signed(n) => Ok(n),
            _ => Err(self.mistyped(key, "an array of integers")),
        };
        (0..array.len).map(|_| one(&mut r)).collect::<Result<_>>().map(Some)
    }

    /// The array of float32 of a key.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        let Some(array) = self.array(key)? else { return Ok(None) };
        let mut r = self.reader(array);
        let one = |r: &mut Reader| match r.scalar(array.kind, key)? {
            Value::F32(x) => Ok(x),
            _ => Err(self.mistyped(key, "an array of float32")),
        };
        (0..array.len).map(|_| one(&mut r)).collect::<Result<_>>().map(Some)
    }

    /// The array of truth values of a key.
    pub fn booleans(&self, key: &str) -> Result<Option<Vec<bool>>> {
        let Some(array) = self.array(key)? else { return Ok(None) };
        let mut r = self.reader(array);
        let one = |r: &mut Reader| match r.scalar(array.kind, key)? {
            Value::Bool(b) => Ok(b),
            _ => Err(self.mistyped(key, "an array of bools")),
        };
        (0..array.len).map(|_| one(&mut r)).collect::<Result<_>>().map(Some)
    }

    fn array(&self, key: &str) -> Result<Option<&Array>> {
        self.typed(key, "an array", |v| match v {
            Value::Array(a) => Some(a),
            _ => None,
        })
    }

    fn reader(&self, array: &Array) -> Reader<'_> {
        let end = array.extent.end.min(self.map.len());
        Reader { path: self.path(), data: self.map.get(..end).unwrap_or(&[]), at: array.extent.start }
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        get: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(v) => get(v).map(Some).ok_or_else(|| self.mistyped(key, expected)),
        }
    }

    fn mistyped(&self, key: &str, expected: &str) -> Error {
        let problem = match self.metadata.get(key) {
            Some(v) => format!("is {v:?}, not {expected}"),
            None => format!("is not {expected}"),
        };
        Error::damaged(self.path(), key, problem)
    }
}

/// Gives every tensor its place in the file and checks that none overlap.
fn place(
    path: &Path,
    entries: Vec<Entry>,
    data: u64,
    alignment: u64,
    file_len: usize,
) -> Result<(Vec<TensorInfo>, BTreeMap<String, usize>)> {
    let mut tensors: Vec<TensorInfo> = Vec::with_capacity(entries.len());
    let mut by_name = BTreeMap::new();
    for entry in entries {
        let field = format!("tensor {:?}", entry.name);
        let (stored_type, encoding) = ggml_type(entry.kind);
        if entry.offset % alignment != 0 {
            let problem = format!("its offset {} is not a multiple of {alignment}", entry.offset);
            return Err(Error::damaged(path, field, problem));
        }
        let bytes = match encoding {
            None => Some(0),
            Some(e) if entry.shape.last().is_some_and(|n| n % e.block().0 != 0) => {
                let problem =
                    format!("its innermost dimension does not fill blocks of {e}: shape {:?}", entry.shape);
                return Err(Error::damaged(path, field, problem));
            }
            Some(e) => elements(&entry.shape).and_then(|n| e.bytes(n)),
        };
        let Some(bytes) = bytes else {
            return Err(Error::damaged(path, field, format!("shape {:?} overflows", entry.shape)));
        };
        let offset = data.checked_add(entry.offset).and_then(|o| usize::try_from(o).ok());
        let Some(offset) = offset.filter(|o| o.checked_add(bytes).is_some_and(|end| end <= file_len)) else {
            let problem = format!(
                "its {bytes} bytes at offset {} of the data lie outside the file of {file_len} bytes",
                entry.offset
            );
            return Err(Error::damaged(path, field, problem));
        };
        if by_name.insert(entry.name.clone(), tensors.len()).is_some() {
            return Err(Error::damaged(path, field, "is listed twice"));
        }
        let (name, shape) = (entry.name, entry.shape);
        tensors.push(TensorInfo { name, shape, encoding, stored_type, file: 0, offset, bytes });
    }
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by_key(|t| (t.offset, t.bytes));
    for pair in order.windows(2) {
        if let [a, b] = pair
            && a.offset + a.bytes > b.offset
        {
            let problem = format!("overlaps tensor {:?}", a.name);
            return Err(Error::damaged(path, format!("tensor {:?}", b.name), problem));
        }
    }
    Ok((tensors, by_name))
}

/// Name and encoding of a ggml type number (`enum ggml_type`).
fn ggml_type(kind: u32) -> (String, Option<Encoding>) {
    let (name, encoding) = match kind {
        0 => ("F32", Some(Encoding::Plain(DType::F32))),
        1 => ("F16", Some(Encoding::Plain(DType::F16))),
        2 => ("Q4_0", Some(Encoding::Q4_0)),
        3 => ("Q4_1", Some(Encoding::Q4_1)),
        6 => ("Q5_0", Some(Encoding::Q5_0)),
        7 => ("Q5_1", Some(Encoding::Q5_1)),
        8 => ("Q8_0", Some(Encoding::Q8_0)),
        9 => ("Q8_1", None),
        10 => ("Q2_K", Some(Encoding::Q2K)),
        11 => ("Q3_K", Some(Encoding::Q3K)),
        12 => ("Q4_K", Some(Encoding::Q4K)),
        13 => ("Q5_K", Some(Encoding::Q5K)),
        14 => ("Q6_K", Some(Encoding::Q6K)),
        15 => ("Q8_K", None),
        16 => ("IQ2_XXS", None),
        17 => ("IQ2_XS", None),
        18 => ("IQ3_XXS", None),
        19 => ("IQ1_S", None),
        20 => ("IQ4_NL", Some(Encoding::Iq4Nl)),
        21 => ("IQ3_S", None),
        22 => ("IQ2_S", None),
        23 => ("IQ4_XS", None),
        24 => ("I8", None),
        25 => ("I16", None),
        26 => ("I32", Some(Encoding::Plain(DType::I32))),
        27 => ("I64", Some(Encoding::Plain(DType::I64))),
        28 => ("F64", None),
        29 => ("IQ1_M", None),
        30 => ("BF16", Some(Encoding::Plain(DType::BF16))),
        34 => ("TQ1_0", None),
        35 => ("TQ2_0", None),
        39 => ("MXFP4", Some(Encoding::Mxfp4)),
        other => return (format!("ggml type {other}"), None),
    };
    (name.to_owned(), encoding)
}
