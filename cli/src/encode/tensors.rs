//! Safetensors files of `weft forward` for encoders: token ids and a mask in, hidden states out.

use super::Sequence;
use crate::errors::{Error, Result};
use crate::tensors::{Ids, bad, floats, open, read_ids, required_ids, write_tensors};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::Path;
use weft_frontend::checkpoint::{Checkpoint, Task};

/// Rows of an input file, each a sequence of the tokens that the mask keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Tokens of each row: at their columns as positions, or counted where padding has a position of its own.
    pub sequences: Vec<Sequence>,
    /// Columns of each row's tokens.
    columns: Vec<Vec<usize>>,
    /// Columns.
    pub len: usize,
}

/// Reads and checks an input file: `input_ids` `[B, T]` i64, and perhaps `attention_mask` and
/// `token_type_ids`, alike.
///
/// # Errors
/// Naming the file, the tensor and what is expected.
pub fn read(path: &Path, checkpoint: &Checkpoint) -> Result<Rows> {
    let config = checkpoint.config();
    // Where padding has a position of its own, only tokens are counted; and where tokens see those before them, whose
    // number is their position.
    let counted = config.position_offset > 0 || checkpoint.task() == Task::Embed;
    let data = open(path)?;
    let file = data.tensors(path)?;
    let ids = required_ids(path, &file, config.vocab_size)?;
    if file.tensor("continue_ids").is_ok() {
        return Err(bad(path, "continue_ids", "an encoder continues nothing: leave it out".into()));
    }
    let alike = |name: &str, other: &Ids| {
        let (found, wanted) = ([other.rows.len(), other.len], [ids.rows.len(), ids.len]);
        let why = format!("its shape is {found:?}, that of input_ids {wanted:?}; give them the same");
        if found == wanted { Ok(()) } else { Err(bad(path, name, why)) }
    };
    let mask = read_mask(path, &file)?;
    let types = read_ids(path, &file, "token_type_ids", config.type_vocab_size, "the token types")?;
    mask.iter().try_for_each(|m| alike("attention_mask", m))?;
    types.iter().try_for_each(|t| alike("token_type_ids", t))?;
    let of_rows = ids.rows.iter().enumerate().map(|(r, row)| {
        let (mut sequence, mut columns) = (Sequence::default(), Vec::new());
        for (column, &id) in row.iter().enumerate() {
            if mask.as_ref().is_some_and(|m| m.rows[r][column] == 0) {
                continue;
            }
            sequence.ids.push(id);
            columns.push(column);
            let position = if counted { sequence.positions.len() } else { column };
            sequence.positions.push(position as u32);
            sequence.types.push(types.as_ref().map_or(0, |t| t.rows[r][column]));
        }
        (sequence, columns)
    });
    let (sequences, columns) = of_rows.unzip();
    let rows = Rows { sequences, columns, len: ids.len };
    let last = rows.sequences.iter().filter_map(|s| s.positions.last()).max();
    if let Some(&last) = last.filter(|&&p| config.position_limit().is_some_and(|n| p as usize >= n)) {
        let why = format!("position {last} is beyond the {} positions of the model", config.max_position);
        return Err(bad(path, "input_ids", why));
    }
    Ok(rows)
}

/// Zeros and ones, of whatever type they are stored as.
fn read_mask(path: &Path, file: &SafeTensors<'_>) -> Result<Option<Ids>> {
    let name = "attention_mask";
    let Ok(tensor) = file.tensor(name) else { return Ok(None) };
    let shape = tensor.shape();
    let &[rows, len] = shape else {
        return Err(bad(path, name, format!("its shape is {shape:?}; give two dimensions, [rows, tokens]")));
    };
    let (dtype, size) = (tensor.dtype(), tensor.dtype().bitsize() / 8);
    let one: Vec<u8> = match dtype {
        Dtype::I64 | Dtype::I32 | Dtype::U8 | Dtype::BOOL => (0..size).map(|i| u8::from(i == 0)).collect(),
        Dtype::F32 => 1.0f32.to_le_bytes().to_vec(),
        _ => return Err(bad(path, name, format!("its type is {dtype:?}; give I64"))),
    };
    let kept = tensor.data().chunks(size.max(1)).enumerate().map(|(i, element)| {
        if element == one {
            return Ok(1);
        }
        if element.iter().all(|&b| b == 0) {
            return Ok(0);
        }
        let (row, token) = (i / len.max(1), i % len.max(1));
        Err(bad(path, name, format!("row {row}, token {token}: neither 0 nor 1")))
    });
    let kept = kept.collect::<Result<Vec<u32>>>()?;
    let rows = (0..rows).map(|r| kept.get(r * len..(r + 1) * len).unwrap_or_default().to_vec());
    Ok(Some(Ids { rows: rows.collect(), len }))
}

/// Writes `last_hidden_state` `[B, T, H]` f32, from the hidden states of each sequence; 0 where the mask is.
///
/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, rows: &Rows, hidden: &[Vec<f32>], width: usize) -> Result<()> {
    let shape = vec![rows.sequences.len(), rows.len, width];
    let mut out = vec![0f32; shape.iter().product()];
    for (r, (columns, states)) in rows.columns.iter().zip(hidden).enumerate() {
        for (&column, state) in columns.iter().zip(states.chunks_exact(width.max(1))) {
            let at = (r * rows.len + column) * width;
            let to = out.get_mut(at..at + width);
            to.ok_or_else(|| Error::failed("a token is in no column: a fault of Weft"))?
                .copy_from_slice(state);
        }
    }
    write_tensors(path, &BTreeMap::from([("last_hidden_state", (Dtype::F32, shape, floats(&out)))]))
}
