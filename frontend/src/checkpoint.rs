//! A model on disk: its configuration, and its tensors by their Hugging Face names.
//!
//! A checkpoint is a folder (`config.json` with `model.safetensors` or a sharded
//! `model.safetensors.index.json`; or one `.gguf` file), a `.safetensors` file, an index, or a `.gguf`
//! file. Opening maps the files and reads their headers; weights are read as they are touched.
//!
//! GGUF names are mapped (`model.layers.3.self_attn.q_proj.weight` ↔ `blk.3.attn_q.weight`); where a file stores a
//! tensor otherwise than Hugging Face does, [`Source::layout`] says how.

use crate::base::Base;
use crate::config::{self, ModelConfig};
use crate::derived::is_derived;
use crate::error::{Error, Result};
pub use crate::gguf::names::Layout;
use crate::gguf::{Gguf, names};
use crate::models::ENCODERS;
use crate::quantized;
use crate::safetensors::{INDEX, SINGLE, SafetensorsSet};
use crate::tensor::TensorInfo;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use weft_ir::dtype::{DType, Encoding};

/// What [`Checkpoint::open`] accepts, as errors list it.
const ACCEPTED: &str = "a folder with config.json and model.safetensors (or model.safetensors.index.json) or \
                        one .gguf file; or a .safetensors, .safetensors.index.json or .gguf file";

/// What is made of a decoder's checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Task {
    /// Continuations of sequences, token by token.
    #[default]
    Generate,
    /// Hidden states of whole sequences, as an encoder's.
    Embed,
}

/// An opened model.
#[derive(Debug)]
pub struct Checkpoint {
    root: PathBuf,
    storage: Storage,
    config: ModelConfig,
    ignored_tensors: Vec<String>,
    task: Task,
    base: Base,
}

/// What the names of heads' tensors begin with, in Hugging Face's files and in GGUF's.
const HEADS: [&str; 3] = ["lm_head.", "embed_out.", "output."];

/// The files behind a checkpoint.
#[derive(Debug)]
enum Storage {
    Safetensors(SafetensorsSet),
    Gguf(Gguf),
    /// None: a configuration alone, whose tensors would be of this type.
    Config(DType),
}

/// Where a tensor of the model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Name in its file, for [`Checkpoint::bytes`].
    pub tensor: String,
    /// Dimensions of the model's tensor, outermost first.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub encoding: Encoding,
    /// Dimensions in the file, outermost first.
    pub stored_shape: Vec<usize>,
    /// How it lies there.
    pub layout: Layout,
    /// The tensor of the scales, where `encoding` is [`Encoding::Scaled`].
    pub scales: Option<Scales>,
}

/// A tensor of scales of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scales {
    /// Name in its file.
    pub tensor: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub encoding: Encoding,
}

impl Checkpoint {
    /// Opens a folder or file (see the module's header).
    ///
    /// # Errors
    /// [`Error::NotACheckpoint`] when nothing there is of a known form; else what the file formats and
    /// the configuration report.
    pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint> {
        Self::open_ignoring(path, &[])
    }

    /// As [`Checkpoint::open`], but for the keys `ignore` of the configuration, which the user says to pass over, though
    /// Weft does not know them.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; [`Error::Malformed`] where `ignore` names a key that is not one of these.
    pub fn open_ignoring(path: impl AsRef<Path>, ignore: &[String]) -> Result<Checkpoint> {
        let path = path.as_ref();
        let meta = std::fs::metadata(path).map_err(|e| Error::io(path, "open", e))?;
        if meta.is_dir() {
            return Self::open_folder(path, ignore);
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name.ends_with(".gguf") {
            Self::open_gguf(path, ignore)
        } else if name.ends_with(".safetensors.index.json") {
            Self::with_config(folder, SafetensorsSet::open_index(path)?, ignore)
        } else if name.ends_with(".safetensors") {
            Self::with_config(folder, SafetensorsSet::open_file(path)?, ignore)
        } else {
            Err(not_a_checkpoint(path, "a file with another ending".into()))
        }
    }

    fn open_folder(folder: &Path, ignore: &[String]) -> Result<Checkpoint> {
        let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
        if single.exists() {
            return Self::with_config(folder, SafetensorsSet::open_file(&single)?, ignore);
        }
        if index.exists() {
            return Self::with_config(folder, SafetensorsSet::open_index(&index)?, ignore);
        }
        let mut ggufs = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, "list", e))? {
            let path = entry.map_err(|e| Error::io(folder, "list", e))?.path();
            if path.extension().is_some_and(|x| x == "gguf") {
                ggufs.push(path);
            }
        }
        match ggufs.as_slice() {
            [one] => Self::open_gguf(one, ignore),
            [] => Err(not_a_checkpoint(folder, "a folder without weights".into())),
            many => Err(not_a_checkpoint(folder, format!("{} .gguf files: name one of them", many.len()))),
        }
    }

    fn with_config(folder: &Path, mut set: SafetensorsSet, ignore: &[String]) -> Result<Checkpoint> {
        let config = config::hf::read(folder, ignore)?;
        if let Some(quantization) = config.quantization {
            quantized::mark(&mut set, &folder.join("config.json"), quantization)?;
        }
        Ok(Self::new(folder, Storage::Safetensors(set), config))
    }

    fn open_gguf(path: &Path, ignore: &[String]) -> Result<Checkpoint> {
        let file = Gguf::open(path)?;
        let config = config::gguf::read(&file, ignore)?;
        Ok(Self::new(path.parent().unwrap_or(Path::new("")), Storage::Gguf(file), config))
    }

    /// The model of a configuration (the text of a `config.json`; `path` is for errors, `ignore` as for
    /// [`Checkpoint::open_ignoring`]) without weights: a graph can be built of it, with weights of type `dtype`, but not
    /// run.
    ///
    /// It has every `.weight` that is asked for, of the shape asked for: so tensors have the prefix and names of newer
    /// files, and the head is tied where the configuration says so. Of tensors that a file may have or not, it has
    /// Phi's `lm_head.bias`, which all Phi models have.
    ///
    /// # Errors
    /// What the configuration reports.
    pub fn of_config(path: &Path, text: &[u8], dtype: DType, ignore: &[String]) -> Result<Checkpoint> {
        let config = config::hf::parse(path, text, ignore)?;
        Ok(Self::new(path, Storage::Config(dtype), config))
    }

    fn new(root: &Path, storage: Storage, config: ModelConfig) -> Checkpoint {
        let base = match &storage {
            Storage::Safetensors(set) => Base::of(set),
            Storage::Gguf(_) | Storage::Config(_) => Base::Model,
        };
        let (root, task) = (root.to_owned(), Task::default());
        Checkpoint { root, storage, config, ignored_tensors: Vec::new(), task, base }
    }

    /// The same, to make something else of it. Of an encoder's nothing else can be made: it stays as it is.
    pub fn for_task(self, task: Task) -> Checkpoint {
        match ENCODERS.iter().any(|family| family.model_type == self.config.model_type) {
            true => self,
            false => Checkpoint { task, ..self },
        }
    }

    /// The same, for sequences of so many tokens ([`ModelConfig::reach`]).
    pub fn reaching(mut self, tokens: usize) -> Checkpoint {
        self.config.reach(tokens);
        self
    }

    /// What [`Checkpoint::for_task`] was given.
    pub fn task(&self) -> Task {
        self.task
    }

    /// The same, but for tensors whose stored names begin with these: where the model's builder does not read them, it
    /// says nothing, though they are of the model's own modules.
    pub fn ignoring_tensors(self, prefixes: &[String]) -> Checkpoint {
        Checkpoint { ignored_tensors: prefixes.to_vec(), ..self }
    }

    /// What [`Checkpoint::ignoring_tensors`] was given.
    pub fn ignored_tensors(&self) -> &[String] {
        &self.ignored_tensors
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The folder that the checkpoint lies in.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The files that hold the tensors, in the order that [`TensorInfo::file`] counts.
    pub fn files(&self) -> &[PathBuf] {
        match &self.storage {
            Storage::Safetensors(set) => set.files(),
            Storage::Gguf(file) => file.files(),
            Storage::Config(_) => &[],
        }
    }

    /// The GGUF file behind the checkpoint, where it is one.
    pub fn gguf(&self) -> Option<&Gguf> {
        match &self.storage {
            Storage::Safetensors(_) | Storage::Config(_) => None,
            Storage::Gguf(file) => Some(file),
        }
    }

    /// All stored tensors: by name, or in a GGUF file's order.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        let (set, file) = match &self.storage {
            Storage::Safetensors(set) => (Some(set), None),
            Storage::Gguf(file) => (None, Some(file)),
            Storage::Config(_) => (None, None),
        };
        set.into_iter().flat_map(SafetensorsSet::tensors).chain(file.into_iter().flat_map(Gguf::tensors))
    }

    /// Whether there is a tensor of this Hugging Face name.
    pub fn has(&self, hf_name: &str) -> bool {
        if let Storage::Config(_) = self.storage {
            let biased = self.config.model_type == "phi" && hf_name == "lm_head.bias";
            return biased || hf_name.ends_with(".weight");
        }
        self.stored_name(hf_name).is_some_and(|name| self.tensor(&name).is_some())
    }

    /// Where the tensor of this Hugging Face name comes from, of which a model asks for this shape.
    ///
    /// # Errors
    /// As [`Checkpoint::source`]; [`Error::Malformed`] when its shape is another.
    pub fn source_of(&self, hf_name: &str, shape: &[usize]) -> Result<Source> {
        if let Storage::Config(dtype) = self.storage {
            return Ok(Source {
                tensor: hf_name.to_owned(),
                shape: shape.to_vec(),
                encoding: Encoding::Plain(dtype),
                stored_shape: shape.to_vec(),
                layout: Layout::Same,
                scales: None,
            });
        }
        let source = self.source(hf_name)?;
        if source.shape != shape {
            return Err(Error::tensor_shape(&self.root, hf_name, &source.shape, shape));
        }
        Ok(source)
    }

    /// Where the tensor of this Hugging Face name comes from.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] listing near names; [`Error::Unsupported`] when its type is not read.
    pub fn source(&self, hf_name: &str) -> Result<Source> {
        let stored = self.stored_name(hf_name);
        let Some(info) = stored.as_deref().and_then(|name| self.tensor(name)) else {
            return Err(self.no_tensor(hf_name, stored));
        };
        let encoding = info.require_encoding(self.file_of(info))?;
        let packed = info.name == quantized::blocks_of(&self.base.place(hf_name));
        let swapped = packed && matches!(encoding, Encoding::Scaled { .. });
        let layout = match &self.storage {
            Storage::Safetensors(_) if swapped => Layout::Swapped,
            Storage::Safetensors(_) | Storage::Config(_) => Layout::Same,
            Storage::Gguf(_) => names::layout(&self.config, hf_name),
        };
        let shape = self.shape(info, layout)?;
        let (tensor, stored_shape, scales) =
            (info.name.clone(), info.shape.clone(), self.scales(info, encoding)?);
        Ok(Source { tensor, shape, encoding, stored_shape, layout, scales })
    }

    /// The shape that the model's tensor has.
    fn shape(&self, info: &TensorInfo, layout: Layout) -> Result<Vec<usize>> {
        let misfit = |problem: String| {
            Err(Error::damaged(self.file_of(info), format!("tensor {:?}", info.name), problem))
        };
        let (mut shape, d) = (info.shape.clone(), self.config.head_dim);
        let rows = shape.first().copied().unwrap_or(0);
        match (layout, shape.as_mut_slice()) {
            (Layout::Same, _) => {}
            (Layout::Interleaved { heads }, _) if rows != heads * d || d % 2 != 0 => {
                return misfit(format!("{rows} rows are not {heads} heads of {d}"));
            }
            (Layout::Parts { heads, kv_heads }, _) if rows != (heads + 2 * kv_heads) * d => {
                return misfit(format!("{rows} rows are not {heads} and twice {kv_heads} heads of {d}"));
            }
            (Layout::Interleaved { .. } | Layout::Parts { .. }, _) => {}
            (Layout::Swapped, [.., a, b]) => std::mem::swap(a, b),
            (Layout::Row(row), [_, inner @ ..]) if row < rows && !inner.is_empty() => {
                return Ok(inner.to_vec());
            }
            (Layout::OneRow, [1, _]) => {}
            (Layout::OneRow, [n]) => return Ok(vec![1, *n]),
            (Layout::Swapped | Layout::Row(_) | Layout::OneRow, shape) => {
                return misfit(format!("shape {shape:?} is not that of a matrix with the model's rows"));
            }
        }
        Ok(shape)
    }

    /// The scales of a stored tensor that needs them.
    fn scales(&self, info: &TensorInfo, encoding: Encoding) -> Result<Option<Scales>> {
        if !matches!(encoding, Encoding::Scaled { .. }) {
            return Ok(None);
        }
        let name = quantized::scales_of(&info.name);
        let scales = self.tensor(&name).ok_or_else(|| self.no_tensor(&name, None))?;
        let encoding = scales.require_encoding(self.file_of(scales))?;
        Ok(Some(Scales { tensor: scales.name.clone(), shape: scales.shape.clone(), encoding }))
    }

    /// The mapped bytes of a tensor, by its stored name ([`Source::tensor`]).
    ///
    /// # Errors
    /// [`Error::MissingTensor`]; [`Error::Unsupported`] when its type is not read.
    pub fn bytes(&self, tensor: &str) -> Result<&[u8]> {
        let info = self.tensor(tensor).ok_or_else(|| self.no_tensor(tensor, None))?;
        match &self.storage {
            Storage::Safetensors(set) => set.data(info),
            Storage::Gguf(file) => file.data(info),
            Storage::Config(_) => Err(self.no_tensor(tensor, None)),
        }
    }

    /// What the file says of a tensor, by its stored name.
    pub fn tensor(&self, tensor: &str) -> Option<&TensorInfo> {
        match &self.storage {
            Storage::Safetensors(set) => set.tensor(tensor),
            Storage::Gguf(file) => file.tensor(tensor),
            Storage::Config(_) => None,
        }
    }

    /// Stored tensors that a model did not use (stored or Hugging Face names), less those that are known
    /// to be derived from the configuration or to be no part of it: worth a warning.
    pub fn unused(&self, used: &[String]) -> Vec<String> {
        let mut known: BTreeSet<&str> = used.iter().map(String::as_str).collect();
        let mapped: Vec<String> = used.iter().filter_map(|n| self.stored_name(n)).collect();
        let scales: Vec<String> = mapped.iter().map(|n| quantized::scales_of(n)).collect();
        known.extend(mapped.iter().chain(&scales).map(String::as_str));
        self.tensors()
            .filter(|t| !known.contains(t.name.as_str()) && !is_derived(t, &self.config, &known))
            .filter(|t| self.task == Task::Generate || !HEADS.iter().any(|head| t.name.starts_with(head)))
            .map(|t| t.name.clone())
            .collect()
    }

    /// The name in the file of a Hugging Face name; `None` when the format has no such tensor.
    fn stored_name(&self, hf_name: &str) -> Option<String> {
        match &self.storage {
            Storage::Safetensors(set) => {
                let name = self.base.place(hf_name);
                let blocks = quantized::blocks_of(&name);
                let packed = set.tensor(&name).is_none() && set.tensor(&blocks).is_some();
                Some(if packed { blocks } else { name.into_owned() })
            }
            Storage::Config(_) => Some(hf_name.to_owned()),
            Storage::Gguf(_) => names::gguf_name(&self.config.model_type, hf_name),
        }
    }

    /// The file that a tensor is in.
    pub(crate) fn file_of(&self, info: &TensorInfo) -> &Path {
        self.files().get(info.file).map_or(self.root.as_path(), PathBuf::as_path)
    }

    fn no_tensor(&self, asked: &str, stored: Option<String>) -> Error {
        let stem = stored.as_deref().unwrap_or(asked);
        let tail = stem.rsplit('.').nth(1).unwrap_or(stem);
        let near: Vec<&str> =
            self.tensors().map(|t| t.name.as_str()).filter(|n| n.contains(tail)).take(3).collect();
        let near = match near.is_empty() {
            true => self.tensors().map(|t| t.name.as_str()).take(3).collect(),
            false => near,
        };
        let looked =
            stored.filter(|s| s != asked).map(|s| format!("(looked for {s:?}) ")).unwrap_or_default();
        Error::MissingTensor {
            path: self.files().first().cloned().unwrap_or_else(|| self.root.clone()),
            tensor: asked.to_owned(),
            remedy: format!(
                "{looked}the checkpoint's config and weights do not fit together; it holds, among {} tensors, {}",
                self.tensors().count(),
                near.join(", ")
            ),
        }
    }
}

fn not_a_checkpoint(path: &Path, found: String) -> Error {
    Error::NotACheckpoint { path: path.to_owned(), found, expected: ACCEPTED.to_owned() }
}
