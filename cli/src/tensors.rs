//! Safetensors files of `weft forward`: token ids in, logits out.

use crate::errors::{Error, Result};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Rows of token ids, all of one length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    /// Rows.
    pub rows: Vec<Vec<u32>>,
    /// Length of each.
    pub len: usize,
}

/// What `weft forward` reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// `input_ids` `[B, T]`.
    pub ids: Ids,
    /// `continue_ids` `[B, N]`.
    pub continued: Option<Ids>,
}

/// Reads and checks an input file.
///
/// # Errors
/// Naming the file, the tensor and what is expected.
pub fn read(path: &Path, vocab: usize) -> Result<Input> {
    let data = open(path)?;
    let file = data.tensors(path)?;
    let ids = required_ids(path, &file, vocab)?;
    if let Ok(mask) = file.tensor("attention_mask") {
        check_mask(path, &mask)?;
    }
    let continued = read_ids(path, &file, "continue_ids", vocab, "the vocabulary")?;
    if let Some(c) = &continued
        && c.rows.len() != ids.rows.len()
    {
        let why =
            format!("it has {} rows, input_ids has {}; give one for each", c.rows.len(), ids.rows.len());
        return Err(bad(path, "continue_ids", why));
    }
    Ok(Input { ids, continued })
}

/// The bytes of a file.
pub(crate) struct Bytes(Vec<u8>);

/// Reads a file.
pub(crate) fn open(path: &Path) -> Result<Bytes> {
    fs::read(path).map(Bytes).map_err(|e| Error::io(path, "read", &e))
}

impl Bytes {
    /// The tensors in it.
    pub fn tensors(&self, path: &Path) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(&self.0)
            .map_err(|e| Error::input(format!("{}: not a safetensors file: {e}", path.display())))
    }
}

/// An error about a tensor.
pub(crate) fn bad(path: &Path, tensor: &str, why: String) -> Error {
    Error::input(format!("{}: {tensor}: {why}", path.display()))
}

/// `input_ids`: at least one row, and one token in each.
pub(crate) fn required_ids(path: &Path, file: &SafeTensors<'_>, vocab: usize) -> Result<Ids> {
    let ids = read_ids(path, file, "input_ids", vocab, "the vocabulary")?;
    let ids = ids.ok_or_else(|| {
        let has: Vec<&str> = file.names().into_iter().collect();
        let has = if has.is_empty() { "none".to_owned() } else { has.join(", ") };
        Error::input(format!(
            "{}: no tensor input_ids; give one, [B,T] i64 (it holds: {has})",
            path.display()
        ))
    })?;
    if ids.rows.is_empty() || ids.len == 0 {
        let shape = [ids.rows.len(), ids.len];
        let why = format!("its shape is {shape:?}; give at least one row and one token");
        return Err(bad(path, "input_ids", why));
    }
    Ok(ids)
}

/// Ids below `end`, which is the size of `what`; `None` when there is no such tensor.
pub(crate) fn read_ids(
    path: &Path,
    file: &SafeTensors<'_>,
    name: &str,
    end: usize,
    what: &str,
) -> Result<Option<Ids>> {
    let Ok(tensor) = file.tensor(name) else { return Ok(None) };
    let (dtype, shape) = (tensor.dtype(), tensor.shape());
    let &[rows, len] = shape else {
        return Err(bad(path, name, format!("its shape is {shape:?}; give two dimensions, [rows, tokens]")));
    };
    if dtype != Dtype::I64 {
        return Err(bad(path, name, format!("its type is {dtype:?}; give I64")));
    }
    let mut out = Vec::with_capacity(rows);
    let (longs, _) = tensor.data().as_chunks::<8>();
    for row in 0..rows {
        let longs = longs.get(row * len..(row + 1) * len).unwrap_or_default();
        let ids = longs.iter().enumerate().map(|(i, &b)| {
            let id = i64::from_le_bytes(b);
            u32::try_from(id).ok().filter(|&id| (id as usize) < end).ok_or_else(|| {
                bad(path, name, format!("row {row}, token {i}: id {id} is outside {what}, 0..{end}"))
            })
        });
        out.push(ids.collect::<Result<Vec<u32>>>()?);
    }
    Ok(Some(Ids { rows: out, len }))
}

/// A decoder's rows have no padding.
fn check_mask(path: &Path, mask: &TensorView<'_>) -> Result<()> {
    let size = mask.dtype().bitsize() / 8;
    let one = |element: &[u8]| match mask.dtype() {
        Dtype::I64 | Dtype::I32 | Dtype::U8 | Dtype::BOOL => element.first() == Some(&1),
        Dtype::F32 => element == 1.0f32.to_le_bytes(),
        _ => false,
    };
    if mask.data().chunks(size.max(1)).all(one) {
        return Ok(());
    }
    let why = "a decoder takes rows without padding: leave it out, or set all of it to 1 (I64)";
    Err(bad(path, "attention_mask", why.into()))
}

/// What `weft forward` writes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Output {
    /// `logits` `[B, T, V]`.
    pub logits: Vec<f32>,
    /// Its shape.
    pub shape: [usize; 3],
    /// The continuation, where one was asked for.
    pub greedy: Option<Greedy>,
}

/// A continuation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Greedy {
    /// `greedy_ids` `[B, N]`: the most likely token at each step.
    pub ids: Vec<i64>,
    /// `greedy_logits` `[B, N, V]`: the logits it was chosen by.
    pub logits: Vec<f32>,
    /// Number of steps N.
    pub steps: usize,
}

/// Writes an output file: under a temporary name first, so that it is there whole or not at all.
///
/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, output: &Output) -> Result<()> {
    let [b, _, v] = output.shape;
    let mut tensors: Tensors<'_> = BTreeMap::new();
    tensors.insert("logits", (Dtype::F32, output.shape.to_vec(), floats(&output.logits)));
    if let Some(g) = &output.greedy {
        let ids = g.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        tensors.insert("greedy_ids", (Dtype::I64, vec![b, g.steps], ids));
        tensors.insert("greedy_logits", (Dtype::F32, vec![b, g.steps, v], floats(&g.logits)));
    }
    write_tensors(path, &tensors)
}

/// Tensors by name: type, shape, bytes.
pub(crate) type Tensors<'a> = BTreeMap<&'a str, (Dtype, Vec<usize>, Vec<u8>)>;

/// Writes a file under a temporary name, and puts it in its place.
pub(crate) fn write_tensors(path: &Path, tensors: &Tensors<'_>) -> Result<()> {
    let failed = |why: String| Error::failed(format!("{}: cannot write: {why}", path.display()));
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        let view = TensorView::new(*dtype, shape.clone(), data).map_err(|e| failed(e.to_string()))?;
        Ok((*name, view))
    });
    let views: Vec<(&str, TensorView<'_>)> = views.collect::<Result<_>>()?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let partial = tempfile::Builder::new().prefix(".weft-partial-").tempfile_in(folder);
    let partial = partial.map_err(|e| failed(e.to_string()))?;
    safetensors::serialize_to_file(views, None, partial.path()).map_err(|e| failed(e.to_string()))?;
    partial.persist(path).map_err(|e| failed(e.error.to_string()))?;
    Ok(())
}

/// The bytes of f32 values.
pub(crate) fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}
