//! GGUF files as llama.cpp's converter writes them (`convert_hf_to_gguf.py`), made from Hugging Face tensors: names by the
//! `gguf` package's own map (`fixtures/gguf/names.json`), and rows in the order that the converter gives them.

use crate::fixture::folder;
use std::collections::BTreeMap;
use std::path::Path;

/// A metadata value.
#[derive(Clone, Debug)]
pub enum Meta {
    /// string
    Text(&'static str),
    /// uint32
    Size(u32),
    /// float32
    Number(f32),
    /// bool
    Flag(bool),
    /// array of bool
    Flags(Vec<bool>),
}

/// Extents and values of a tensor.
pub type Tensor = (Vec<usize>, Vec<f32>);

/// Writes a GGUF file of f32 tensors.
///
/// # Panics
/// When it cannot be written.
pub fn write(path: &Path, meta: &[(String, Meta)], tensors: &[(String, Tensor)]) {
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((meta.len() as u64).to_le_bytes());
    let text = |out: &mut Vec<u8>, s: &str| {
        out.extend((s.len() as u64).to_le_bytes());
        out.extend(s.as_bytes());
    };
    for (key, value) in meta {
        text(&mut out, key);
        let kind = |out: &mut Vec<u8>, kind: u32| out.extend(kind.to_le_bytes());
        match value {
            Meta::Size(n) => out.extend([4u32.to_le_bytes(), n.to_le_bytes()].concat()),
            Meta::Number(x) => out.extend([6u32.to_le_bytes(), x.to_le_bytes()].concat()),
            Meta::Flag(b) => {
                kind(&mut out, 7);
                out.push(u8::from(*b));
            }
            Meta::Flags(flags) => {
                kind(&mut out, 9);
                kind(&mut out, 7);
                out.extend((flags.len() as u64).to_le_bytes());
                out.extend(flags.iter().map(|&b| u8::from(b)));
            }
            Meta::Text(s) => {
                kind(&mut out, 8);
                text(&mut out, s);
            }
        }
    }
    let mut at = 0u64;
    for (name, (shape, values)) in tensors {
        text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&d| out.extend((d as u64).to_le_bytes()));
        out.extend(0u32.to_le_bytes());
        out.extend(at.to_le_bytes());
        at = (at + 4 * values.len() as u64).next_multiple_of(32);
    }
    for (_, (_, values)) in tensors {
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    }
    std::fs::write(path, out).expect("writes");
}

/// The GGUF names of a family's tensors.
pub struct Names(BTreeMap<String, String>);

impl Names {
    /// Of a `model_type`.
    ///
    /// # Panics
    /// When the map has no such family.
    pub fn of(model_type: &str) -> Names {
        let text = std::fs::read_to_string(folder().join("gguf/names.json")).expect("reads");
        let mut all: BTreeMap<String, BTreeMap<String, String>> = serde_json::from_str(&text).expect("JSON");
        Names(all.remove(model_type).expect("a family"))
    }

    /// The name of a tensor: the map is of the first block.
    ///
    /// # Panics
    /// When the family has no such tensor.
    pub fn get(&self, hf: &str) -> String {
        let (stem, kind) = hf.rsplit_once('.').expect("a kind");
        let number = stem.split('.').find(|part| part.parse::<u32>().is_ok());
        let first = number.map_or(stem.to_owned(), |n| stem.replacen(&format!(".{n}."), ".0.", 1));
        let name = self.0.get(&first).unwrap_or_else(|| panic!("no name for {hf}"));
        let name = number.map_or(name.clone(), |n| name.replace("blk.0.", &format!("blk.{n}.")));
        format!("{name}.{kind}")
    }
}

/// Rows `[a, b, c]` of a matrix (or vector) as `[a, c, b]`.
fn rows_swapped((shape, values): &Tensor, [a, b, c]: [usize; 3]) -> Tensor {
    let inner = values.len() / (a * b * c);
    let row = |i: usize, j: usize, k: usize| values[((i * b + j) * c + k) * inner..][..inner].to_vec();
    let rows = (0..a).flat_map(|i| (0..c).flat_map(move |k| (0..b).map(move |j| (i, j, k))));
    (shape.clone(), rows.flat_map(|(i, j, k)| row(i, j, k)).collect())
}

/// Rotary halves of each head as pairs of neighbours (`LlamaModel.permute`).
pub fn permuted(t: &Tensor, heads: usize) -> Tensor {
    rows_swapped(t, [heads, 2, t.0[0] / heads / 2])
}

/// Rows grouped by key head as all queries, all keys, all values.
pub fn apart((shape, values): &Tensor, heads: usize, kv_heads: usize) -> Tensor {
    let group = heads / kv_heads;
    let d = values.len() / (heads + 2 * kv_heads);
    let of = |first: usize, n: usize| -> Vec<f32> {
        let part = |kv: usize| values[(kv * (group + 2) + first) * d..][..n * d].to_vec();
        (0..kv_heads).flat_map(part).collect()
    };
    (shape.clone(), [of(0, group), of(group, 1), of(group + 1, 1)].concat())
}

/// A matrix with its axes swapped.
///
/// # Panics
/// When it is none.
pub fn transposed((shape, values): &Tensor) -> Tensor {
    let [r, c] = *shape.as_slice() else { panic!("a matrix") };
    (vec![c, r], (0..r * c).map(|i| values[i % r * c + i / r]).collect())
}
