//! Safetensors checkpoints: one file, or shards listed by `model.safetensors.index.json`.
//!
//! Format: <https://github.com/huggingface/safetensors#format>: 8 bytes little-endian header length,
//! a JSON header `{name: {dtype, shape, data_offsets}}`, then the data. Only headers are read at opening;
//! the `safetensors` crate checks them (header at most 100 MB and within the file, offsets contiguous
//! and equal to shape × type, no overflow); this module puts names to what it finds wrong.

use crate::duplicates;
use crate::error::{Error, RELOAD, Result};
use crate::mmap::Mmap;
use crate::read;
use crate::tensor::TensorInfo;
use ::safetensors::{Dtype, SafeTensorError, SafeTensors, tensor::Metadata};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use weft_ir::dtype::{DType, Encoding};

/// Name of the index of a sharded checkpoint.
pub const INDEX: &str = "model.safetensors.index.json";
/// Name of the file of an unsharded checkpoint.
pub const SINGLE: &str = "model.safetensors";

/// Bytes of the header length that a file begins with.
const LENGTH_BYTES: usize = 8;

/// Largest header that is read: a tensor takes some 100 bytes.
const MAX_HEADER: u64 = 16 << 20;
/// Largest header that is searched for the tensor behind an error.
const MAX_BLAMED: u64 = 1 << 20;

/// What of an index is read.
#[derive(Deserialize)]
struct Index {
    weight_map: WeightMap,
}

/// The shard of each tensor; shards are few, and their names are held once.
struct WeightMap(BTreeMap<String, Rc<str>>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> serde::de::Visitor<'de> for Pairs {
            type Value = WeightMap;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object of tensor names and files")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let (mut out, mut shards) = (BTreeMap::new(), BTreeSet::<Rc<str>>::new());
                while let Some((tensor, shard)) = map.next_entry::<String, String>()? {
                    let known = shards.get(shard.as_str()).cloned();
                    let shard = known.unwrap_or_else(|| {
                        let shard: Rc<str> = shard.into();
                        shards.insert(Rc::clone(&shard));
                        shard
                    });
                    if let Some(old) = out.insert(tensor, shard) {
                        let why = format!("a tensor is listed twice, once in {old:?}");
                        return Err(serde::de::Error::custom(why));
                    }
                }
                Ok(WeightMap(out))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// One or more mapped safetensors files that make up one checkpoint.
#[derive(Debug)]
pub struct SafetensorsSet {
    files: Vec<PathBuf>,
    maps: Vec<Mmap>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl SafetensorsSet {
    /// Opens a single `.safetensors` file.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Malformed`] naming the tensor or header field that is wrong.
    pub fn open_file(path: &Path) -> Result<SafetensorsSet> {
        Self::open_files(vec![path.to_owned()])
    }

    /// Opens the shards that an index file lists; they lie in the index's folder.
    ///
    /// # Errors
    /// As [`Self::open_file`]; also when the index is not what the format says, names a file outside its
    /// folder, or places a tensor in a shard that does not hold it.
    pub fn open_index(index: &Path) -> Result<SafetensorsSet> {
        let text = read::bounded(index, read::INDEX)?;
        let tensors = parse_index(index, &text)?;
        drop(text);
        let folder = index.parent().unwrap_or(Path::new(""));
        let names: BTreeSet<&Rc<str>> = tensors.values().collect();
        let set = Self::open_files(names.iter().map(|n| folder.join(&***n)).collect())?;
        for (tensor, shard) in &tensors {
            let found = set.tensors.get(tensor).and_then(|t| set.files.get(t.file));
            if found != Some(&folder.join(&**shard)) {
                let problem = format!("tensor {tensor:?} is not in {shard:?}");
                return Err(Error::damaged(index, "weight_map", problem));
            }
        }
        Ok(set)
    }

    /// A single file of bytes that are mapped or in memory; `path` is for errors.
    ///
    /// # Errors
    /// As [`Self::open_file`].
    pub fn parse(path: &Path, map: Mmap) -> Result<SafetensorsSet> {
        Self::of(std::iter::once(Ok((path.to_owned(), map))))
    }

    fn open_files(files: Vec<PathBuf>) -> Result<SafetensorsSet> {
        Self::of(files.into_iter().map(|path| {
            let map = Mmap::open(&path)?;
            Ok((path, map))
        }))
    }

    fn of(files: impl Iterator<Item = Result<(PathBuf, Mmap)>>) -> Result<SafetensorsSet> {
        let mut set = SafetensorsSet { files: Vec::new(), maps: Vec::new(), tensors: BTreeMap::new() };
        for file in files {
            let (path, map) = file?;
            for tensor in read_header(&path, &map, set.files.len())? {
                if let Some(other) = set.tensors.get(&tensor.name) {
                    let other = set.files.get(other.file).map(|f| f.display().to_string());
                    return Err(Error::malformed(
                        &path,
                        format!("tensor {:?}", tensor.name),
                        format!("is also in {}", other.unwrap_or_default()),
                        "keep only the shards that belong together",
                    ));
                }
                set.tensors.insert(tensor.name.clone(), tensor);
            }
            set.files.push(path);
            set.maps.push(map);
        }
        Ok(set)
    }

    /// The files, in the order that [`TensorInfo::file`] counts.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.values()
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// The file of a tensor.
    pub(crate) fn path_of(&self, name: &str) -> PathBuf {
        let file = self.tensors.get(name).and_then(|t| self.files.get(t.file)).or(self.files.first());
        file.cloned().unwrap_or_default()
    }

    /// Replaces what is said of a tensor.
    pub(crate) fn replace(&mut self, tensor: TensorInfo) {
        self.tensors.insert(tensor.name.clone(), tensor);
    }

    /// The mapped bytes of a tensor of this set.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when its type is not read.
    pub fn data(&self, tensor: &TensorInfo) -> Result<&[u8]> {
        match (self.files.get(tensor.file), self.maps.get(tensor.file)) {
            (Some(path), Some(map)) => tensor.slice(path, map),
            (path, _) => {
                let path = path.map(PathBuf::as_path).unwrap_or(Path::new("model.safetensors"));
                Err(Error::damaged(path, format!("tensor {:?}", tensor.name), "belongs to no open file"))
            }
        }
    }
}

/// The file of each tensor, as the text of an index says; `path` is for errors. The files are plain names, of files in
/// the index's folder.
///
/// # Errors
/// [`Error::Malformed`] for text that is no index, and for names that are not plain.
pub fn parse_index(path: &Path, text: &[u8]) -> Result<BTreeMap<String, Rc<str>>> {
    let parsed: Index = serde_json::from_slice(text)
        .map_err(|e| Error::damaged(path, "weight_map", format!("not a safetensors index: {e}")))?;
    let WeightMap(tensors) = parsed.weight_map;
    let names: BTreeSet<&Rc<str>> = tensors.values().collect();
    if names.is_empty() {
        return Err(Error::damaged(path, "weight_map", "lists no tensors"));
    }
    for name in names {
        // A name with a slash behind it is one component, too, but not the whole name.
        let plain = |part: Component<'_>| part == Component::Normal(OsStr::new(&**name));
        let mut parts = Path::new(&**name).components();
        if !(parts.next().is_some_and(plain) && parts.next().is_none()) || name.ends_with('/') {
            let problem = format!("shard {name:?} is not a plain file name");
            let remedy = "shards must lie in the index's folder";
            return Err(Error::malformed(path, "weight_map", problem, remedy));
        }
    }
    Ok(tensors)
}

/// The encoding of a safetensors type; `None` for those that Weft does not read.
pub fn encoding(dtype: Dtype) -> Option<Encoding> {
    let plain = match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::U32 => DType::U32,
        Dtype::BOOL => DType::Bool,
        Dtype::F8_E8M0 => return Some(Encoding::E8M0),
        _ => return None,
    };
    Some(Encoding::Plain(plain))
}

/// Reads and checks one file's header.
fn read_header(path: &Path, map: &[u8], file: usize) -> Result<Vec<TensorInfo>> {
    let declared = map.first_chunk::<LENGTH_BYTES>().map(|b| u64::from_le_bytes(*b));
    if let Some(n) = declared.filter(|&n| n > MAX_HEADER && n <= map.len() as u64) {
        let problem = format!("{n} bytes declared, at most {MAX_HEADER} are read");
        let remedy = "the file is damaged or not a safetensors file";
        return Err(Error::malformed(path, "header length", problem, remedy));
    }
    let (length, metadata) = SafeTensors::read_metadata(map).map_err(|e| header_error(path, map, e))?;
    let data = LENGTH_BYTES + length;
    if let Some(name) = map.get(LENGTH_BYTES..data).and_then(duplicates::first) {
        return Err(Error::damaged(path, format!("tensor {name:?}"), "appears twice in the header"));
    }
    Ok(infos(&metadata, data, file))
}

fn infos(metadata: &Metadata, data: usize, file: usize) -> Vec<TensorInfo> {
    let mut out = Vec::new();
    for (name, info) in metadata.tensors() {
        let (start, end) = info.data_offsets;
        out.push(TensorInfo {
            name,
            shape: info.shape.clone(),
            encoding: encoding(info.dtype),
            stored_type: format!("{:?}", info.dtype),
            file,
            offset: data + start,
            bytes: end - start,
        });
    }
    out
}

/// Says which field or tensor is behind the library's error.
fn header_error(path: &Path, map: &[u8], error: SafeTensorError) -> Error {
    let declared = map.first_chunk::<LENGTH_BYTES>().map(|b| u64::from_le_bytes(*b));
    match error {
        SafeTensorError::HeaderTooSmall => {
            Error::damaged(path, "header length", format!("the file has only {} bytes", map.len()))
        }
        SafeTensorError::HeaderTooLarge => Error::malformed(
            path,
            "header length",
            format!("{} bytes declared, at most 100000000 allowed", declared.unwrap_or_default()),
            "the file is damaged or not a safetensors file",
        ),
        SafeTensorError::InvalidHeaderLength => Error::malformed(
            path,
            "header length",
            format!("{} bytes declared in a file of {}", declared.unwrap_or_default(), map.len()),
            "the file is cut short or not a safetensors file",
        ),
        SafeTensorError::InvalidOffset(name) => Error::damaged(
            path,
            format!("tensor {name:?}"),
            "its data_offsets overlap another tensor, leave a gap, or run backwards",
        ),
        SafeTensorError::MetadataIncompleteBuffer => {
            Error::damaged(path, "data", "the tensors do not cover the file's data exactly (cut short?)")
        }
        other => match blame(map, declared.filter(|&n| n <= MAX_BLAMED)) {
            Some((field, problem)) => Error::malformed(path, field, problem, RELOAD),
            None => Error::damaged(path, "header", other),
        },
    }
}

/// The first tensor whose header entry contradicts itself, and how.
fn blame(map: &[u8], declared: Option<u64>) -> Option<(String, String)> {
    let end = LENGTH_BYTES.checked_add(usize::try_from(declared?).ok()?)?;
    let header: Value = serde_json::from_slice(map.get(LENGTH_BYTES..end)?).ok()?;
    let Value::Object(entries) = header else {
        return Some(("header".into(), "is not a JSON object".into()));
    };
    for (name, entry) in entries.iter().filter(|(name, _)| *name != "__metadata__") {
        let problem = match TensorEntry::deserialize(entry) {
            Err(e) => Some(format!("bad header entry: {e}")),
            Ok(t) => t.problem(),
        };
        if let Some(problem) = problem {
            return Some((format!("tensor {name:?}"), problem));
        }
    }
    None
}

/// A header entry, read without trusting it.
#[derive(Deserialize)]
struct TensorEntry {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl TensorEntry {
    fn problem(&self) -> Option<String> {
        let bits = crate::tensor::elements(&self.shape).and_then(|n| n.checked_mul(self.dtype.bitsize()));
        let Some(bits) = bits else {
            return Some(format!("shape {:?} overflows", self.shape));
        };
        let (start, end) = self.data_offsets;
        let held = end.checked_sub(start);
        if held == Some(bits / 8) && bits % 8 == 0 {
            return None;
        }
        Some(format!(
            "data_offsets {start}..{end} do not hold shape {:?} of {:?} ({} bytes)",
            self.shape,
            self.dtype,
            bits.div_ceil(8)
        ))
    }
}
