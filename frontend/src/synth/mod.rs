//! Made-up checkpoints: random weights for a `config.json`, to measure a model without its weights.
//!
//! Names and shapes are those that the model's builder asks for, so every family can be made. Tensors are written
//! one after the other, in batches that threads make; `config.json` comes last, so that what is not whole is no
//! checkpoint.

mod shards;
mod values;

use crate::checkpoint::Checkpoint;
use crate::convert::write_json;
use crate::error::{Error, Result};
use crate::models::{self, Asked};
use crate::read;
use crate::safetensors::{INDEX, SINGLE};
use serde::Serialize;
use serde_json::{Value, json};
use shards::Shard;
use std::path::{Path, PathBuf};
use weft_ir::dtype::DType;

/// Most bytes of a shard's tensors, as Hugging Face writes them.
pub const SHARD_SIZE: u64 = 4_000_000_000;

/// What to make.
#[derive(Clone, Debug)]
pub struct Options {
    /// Seed of the values: the same for the same seed.
    pub seed: u64,
    /// Type of the tensors: f32, f16 or bf16; `None`: the configuration's, else bf16.
    pub dtype: Option<DType>,
    /// Most bytes of a shard's tensors, but for a tensor that is larger.
    pub shard_size: u64,
    /// Whether a model in the folder is replaced.
    pub force: bool,
    /// Keys of the configuration that are passed over, though Weft does not know them.
    pub ignore: Vec<String>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Family.
    pub model_type: String,
    /// Type of the tensors.
    pub dtype: String,
    /// Seed of the values.
    pub seed: u64,
    /// Tensors.
    pub tensors: usize,
    /// Their elements.
    pub parameters: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The files, in the order that they were written.
    pub files: Vec<PathBuf>,
    /// Keys of the configuration that do not hold for what was written, and were left out.
    pub left_out: Vec<String>,
}

/// Writes random weights for the model of a `config.json` (or of the one in the folder `config`) to the folder `out`.
/// `progress` is told (bytes written, bytes in all).
///
/// # Errors
/// What the configuration reports; [`Error::NoSpace`]; [`Error::Malformed`] for a folder that is not empty without
/// `force`; [`Error::Io`], after which the weights that were written are removed.
pub fn synth(
    config: &Path,
    out: &Path,
    options: &Options,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Summary> {
    let path = if config.is_dir() { config.join("config.json") } else { config.to_owned() };
    let text = read::bounded(&path, read::SETTINGS)?;
    let of = |dtype| Checkpoint::of_config(&path, &text, dtype, &options.ignore);
    let stated = of(DType::BF16)?.config().dtype;
    let dtype = options.dtype.or(stated).unwrap_or(DType::BF16);
    let model = of(dtype)?;
    let asked = models::asked(&model, dtype)?;
    let shards = shards::plan(&path, &asked, dtype, options.shard_size)?;
    let (settings, left_out) = settings(&path, &text, dtype)?;

    let old = old_files(out, options.force)?;
    let bytes: u64 = shards.iter().map(|s| s.bytes).sum();
    let held = old.iter().filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum();
    check_space(out, bytes, held)?;
    std::fs::create_dir_all(out).map_err(|e| Error::io(out, "create", e))?;
    for file in old {
        std::fs::remove_file(&file).map_err(|e| Error::io(&file, "remove", e))?;
    }

    let mut files = Vec::new();
    let written = write(out, &model, &asked, &shards, options.seed, (dtype, bytes), &mut files, progress)
        .and_then(|()| write_json(&out.join("config.json"), &settings));
    if let Err(e) = written {
        for file in &files {
            // The error to report is why they are not whole.
            let _ = std::fs::remove_file(file);
        }
        return Err(e);
    }
    files.push(out.join("config.json"));
    Ok(Summary {
        model_type: model.config().model_type.clone(),
        dtype: dtype.to_string(),
        seed: options.seed,
        tensors: asked.len(),
        parameters: bytes / dtype.size() as u64,
        bytes,
        files,
        left_out,
    })
}

/// Writes the shards and, where there are several, their index; `files` is what was begun.
#[allow(clippy::too_many_arguments)]
fn write(
    out: &Path,
    model: &Checkpoint,
    asked: &[Asked],
    shards: &[Shard],
    seed: u64,
    (dtype, total): (DType, u64),
    files: &mut Vec<PathBuf>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let name = |i: usize| match shards.len() {
        1 => SINGLE.to_owned(),
        n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
    };
    let (mut done, mut map) = (0, serde_json::Map::new());
    for (i, shard) in shards.iter().enumerate() {
        let path = out.join(name(i));
        files.push(path.clone());
        let tensors = asked.get(shard.tensors.clone()).unwrap_or_default();
        shards::write(&path, tensors, model.config(), dtype, seed, &mut |bytes| {
            done += bytes;
            progress(done, total);
        })?;
        map.extend(tensors.iter().map(|t| (t.name.clone(), json!(name(i)))));
    }
    if shards.len() > 1 {
        let path = out.join(INDEX);
        files.push(path.clone());
        write_json(&path, &json!({"metadata": {"total_size": total}, "weight_map": map}))?;
    }
    Ok(())
}

/// The configuration with the type of what is written, and without what says that weights are stored otherwise.
fn settings(path: &Path, text: &[u8], dtype: DType) -> Result<(Value, Vec<String>)> {
    let mut value: Value = serde_json::from_slice(text).map_err(|e| Error::damaged(path, "JSON", e))?;
    let mut left_out = Vec::new();
    if let Some(map) = value.as_object_mut() {
        if map.get("quantization_config").is_some_and(|q| !q.is_null()) {
            left_out.push("quantization_config".to_owned());
        }
        map.shift_remove("quantization_config");
        let name = match dtype {
            DType::F32 => "float32",
            DType::F16 => "float16",
            _ => "bfloat16",
        };
        let newer = map.contains_key("dtype") || !map.contains_key("torch_dtype");
        map.shift_remove(if newer { "torch_dtype" } else { "dtype" });
        map.insert(if newer { "dtype" } else { "torch_dtype" }.to_owned(), json!(name));
    }
    Ok((value, left_out))
}

/// The files of a model in a folder that is to be written.
fn old_files(out: &Path, force: bool) -> Result<Vec<PathBuf>> {
    let mut old = Vec::new();
    if !out.exists() {
        return Ok(old);
    }
    for entry in std::fs::read_dir(out).map_err(|e| Error::io(out, "list", e))? {
        let entry = entry.map_err(|e| Error::io(out, "list", e))?;
        if !force {
            let remedy = "choose another, or give --force to replace the model in it";
            return Err(Error::malformed(out, "output folder", "is not empty", remedy));
        }
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_shard = name.starts_with("model-") && name.ends_with(".safetensors");
        if is_shard || [SINGLE, INDEX, "config.json"].contains(&&*name) {
            old.push(entry.path());
        }
    }
    Ok(old)
}

/// Checks that a folder's disk has room for `needed` bytes, where `held` will be given back.
fn check_space(out: &Path, needed: u64, held: u64) -> Result<()> {
    let whole = std::path::absolute(out).map_err(|e| Error::io(out, "find", e))?;
    let Some(there) = whole.ancestors().find(|p| p.exists()) else { return Ok(()) };
    let disk =
        rustix::fs::statvfs(there).map_err(|e| Error::io(there, "read the free space of", e.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize).saturating_add(held);
    if needed > free { Err(Error::NoSpace { path: out.to_owned(), needed, free }) } else { Ok(()) }
}
