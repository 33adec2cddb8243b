//! Shards of a made-up checkpoint: which tensors are in which, and writing one without holding its tensors.

use super::values::{CHUNK, Values};
use crate::config::ModelConfig;
use crate::convert::encode;
use crate::error::{Error, Result};
use crate::models::Asked;
use ::safetensors::Dtype;
use ::safetensors::tensor::{Metadata, TensorInfo};
use rayon::prelude::*;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::Path;
use weft_ir::dtype::DType;

/// Chunks that are made at once: 64 MiB of f32.
const BATCH: usize = 256;
/// A header's length is a multiple of this.
const ALIGN: usize = 8;

/// A range of the tensors, in one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shard {
    /// Which.
    pub tensors: Range<usize>,
    /// Their bytes.
    pub bytes: u64,
}

/// The bytes of a tensor; `None` when it is empty or its size overflows.
fn bytes_of(asked: &Asked, dtype: DType) -> Option<usize> {
    let all = asked.shape.iter().try_fold(dtype.size(), |n, &d| n.checked_mul(d));
    all.filter(|&n| n > 0 && isize::try_from(n).is_ok())
}

/// Puts tensors into shards of at most `most` bytes in their order; a larger tensor is a shard of its own.
///
/// # Errors
/// [`Error::Malformed`] for a tensor that is empty or whose size overflows; `config` is for errors.
pub(super) fn plan(config: &Path, asked: &[Asked], dtype: DType, most: u64) -> Result<Vec<Shard>> {
    let mut shards: Vec<Shard> = Vec::new();
    let mut total = 0u64;
    for (i, tensor) in asked.iter().enumerate() {
        let bytes = bytes_of(tensor, dtype).map(|n| n as u64);
        let Some(bytes) = bytes.filter(|&n| total.checked_add(n).is_some()) else {
            let problem = format!("shape {:?} is empty or too large", tensor.shape);
            let remedy = "correct the sizes in the configuration";
            return Err(Error::malformed(config, format!("tensor {:?}", tensor.name), problem, remedy));
        };
        total += bytes;
        match shards.last_mut() {
            Some(last) if last.bytes.saturating_add(bytes) <= most => {
                last.tensors.end = i + 1;
                last.bytes += bytes;
            }
            _ => shards.push(Shard { tensors: i..i + 1, bytes }),
        }
    }
    Ok(shards)
}

/// Writes a safetensors file of these tensors; `tell` is told the bytes of each batch.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn write(
    path: &Path,
    tensors: &[Asked],
    config: &ModelConfig,
    dtype: DType,
    seed: u64,
    tell: &mut dyn FnMut(u64),
) -> Result<()> {
    let io = |e| Error::io(path, "write", e);
    let mut file = BufWriter::new(File::create(path).map_err(|e| Error::io(path, "create", e))?);
    file.write_all(&header(path, tensors, dtype)?).map_err(io)?;
    let mut buffer = Vec::new();
    for tensor in tensors {
        let values = Values::new(tensor, config, seed);
        let elements = bytes_of(tensor, dtype).unwrap_or(0) / dtype.size();
        for batch in (0..elements.div_ceil(CHUNK)).step_by(BATCH) {
            let here = (elements - batch * CHUNK).min(BATCH * CHUNK);
            buffer.resize(here * dtype.size(), 0u8);
            buffer.par_chunks_mut(CHUNK * dtype.size()).enumerate().for_each_init(
                Vec::new,
                |wide, (i, out)| {
                    wide.resize(out.len() / dtype.size(), 0.0f32);
                    values.fill((batch + i) as u64, wide);
                    // Values are far from the largest of f16.
                    encode(wide, dtype, out);
                },
            );
            file.write_all(&buffer).map_err(io)?;
            tell(buffer.len() as u64);
        }
    }
    file.flush().map_err(io)
}

/// The header: its length and the tensors' places, padded with spaces.
fn header(path: &Path, tensors: &[Asked], dtype: DType) -> Result<Vec<u8>> {
    let dtype_there = match dtype {
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        _ => Dtype::F32,
    };
    let mut at = 0;
    let places = tensors.iter().map(|t| {
        let end = at + bytes_of(t, dtype).unwrap_or(0);
        let info = TensorInfo { dtype: dtype_there, shape: t.shape.clone(), data_offsets: (at, end) };
        at = end;
        (t.name.clone(), info)
    });
    let format = [("format".to_owned(), "pt".to_owned())].into();
    let header = Metadata::new(Some(format), places.collect())
        .map_err(|e| Error::damaged(path, "tensors", e))
        .and_then(|m| serde_json::to_vec(&m).map_err(|e| Error::damaged(path, "header", e)))?;
    let mut header = header;
    header.resize(header.len().next_multiple_of(ALIGN), b' ');
    let length = header.len() as u64;
    Ok(length.to_le_bytes().into_iter().chain(header).collect())
}
