//! What the tests share: fixture paths, and writers of small GGUF and safetensors files.
#![allow(dead_code)]

use std::io::Write;
use std::path::{Path, PathBuf};

/// A path under the workspace's `testsuite/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testsuite/fixtures").join(name)
}

/// The SmolLM2 GGUF file: `WEFT_SMOLLM2`, or the place where the demo puts it. `None` says on stderr
/// that the test is skipped.
pub fn smollm2() -> Option<PathBuf> {
    let named = std::env::var_os("WEFT_SMOLLM2").map(PathBuf::from);
    let usual = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../.weft/models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = named.unwrap_or(usual);
    if path.exists() {
        return Some(path);
    }
    // Not eprintln!, which the test harness swallows.
    let line = format!("SKIPPED: no SmolLM2 at {}: set WEFT_SMOLLM2 to the .gguf file\n", path.display());
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    None
}

/// A metadata value to write.
#[derive(Clone)]
pub enum V {
    U32(u32),
    F32(f32),
    Bool(bool),
    Str(String),
    Strs(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    /// Type number and bytes as they are.
    Raw(u32, Vec<u8>),
}

impl From<&str> for V {
    fn from(s: &str) -> V {
        V::Str(s.to_owned())
    }
}

fn string(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

/// A GGUF file to write.
#[derive(Clone, Default)]
pub struct GgufFile {
    pub kv: Vec<(String, V)>,
    /// Name, shape (outermost first), ggml type, bytes.
    pub tensors: Vec<(String, Vec<usize>, u32, Vec<u8>)>,
    /// Overrides of the header's counts.
    pub tensor_count: Option<u64>,
    pub kv_count: Option<u64>,
    /// Overrides of tensor offsets.
    pub offsets: Vec<(usize, u64)>,
}

impl GgufFile {
    pub fn set(mut self, key: &str, value: impl Into<V>) -> GgufFile {
        self.kv.retain(|(k, _)| k != key);
        self.kv.push((key.to_owned(), value.into()));
        self
    }

    pub fn without(mut self, key: &str) -> GgufFile {
        self.kv.retain(|(k, _)| k != key);
        self.tensors.retain(|(n, ..)| n != key);
        self
    }

    pub fn tensor(mut self, name: &str, shape: &[usize], kind: u32, bytes: Vec<u8>) -> GgufFile {
        self.tensors.push((name.to_owned(), shape.to_vec(), kind, bytes));
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.kv_count.unwrap_or(self.kv.len() as u64).to_le_bytes());
        for (key, value) in &self.kv {
            string(&mut out, key);
            let mut put = |kind: u32, bytes: &[u8]| {
                out.extend(kind.to_le_bytes());
                out.extend(bytes);
            };
            match value {
                V::U32(n) => put(4, &n.to_le_bytes()),
                V::F32(x) => put(6, &x.to_le_bytes()),
                V::Bool(b) => put(7, &[u8::from(*b)]),
                V::Raw(kind, bytes) => put(*kind, bytes),
                V::Str(s) => {
                    put(8, &[]);
                    string(&mut out, s);
                }
                V::Strs(list) => {
                    put(9, &8u32.to_le_bytes());
                    out.extend((list.len() as u64).to_le_bytes());
                    list.iter().for_each(|s| string(&mut out, s));
                }
                V::F32s(list) => {
                    put(9, &6u32.to_le_bytes());
                    out.extend((list.len() as u64).to_le_bytes());
                    list.iter().for_each(|x| out.extend(x.to_le_bytes()));
                }
                V::I32s(list) => {
                    put(9, &5u32.to_le_bytes());
                    out.extend((list.len() as u64).to_le_bytes());
                    list.iter().for_each(|n| out.extend(n.to_le_bytes()));
                }
            }
        }
        let mut at = 0u64;
        for (i, (name, shape, kind, bytes)) in self.tensors.iter().enumerate() {
            string(&mut out, name);
            out.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|&d| out.extend((d as u64).to_le_bytes()));
            out.extend(kind.to_le_bytes());
            let offset = self.offsets.iter().find(|(n, _)| *n == i).map_or(at, |(_, o)| *o);
            out.extend(offset.to_le_bytes());
            at = (at + bytes.len() as u64).next_multiple_of(32);
        }
        for (.., bytes) in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(bytes);
        }
        out
    }

    pub fn write(&self, path: &Path) {
        std::fs::write(path, self.bytes()).unwrap();
    }
}

/// The 256 characters that stand for bytes in byte-level vocabularies, in the order of the bytes.
pub fn byte_alphabet() -> Vec<String> {
    let plain = |b: u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let mut next = 256;
    let character = |b: u32| match plain(b) {
        true => b,
        false => {
            next += 1;
            next - 1
        }
    };
    (0..256u32).map(character).map(|c| char::from_u32(c).unwrap().to_string()).collect()
}

/// A byte-level vocabulary: 256 bytes, "he", "ll", "hell", "Ġw", and two control tokens 260 and 261.
pub fn vocabulary(file: GgufFile) -> GgufFile {
    let mut tokens = byte_alphabet();
    tokens.extend(["he", "ll", "hell", "Ġw", "<s>", "</s>"].map(String::from));
    let mut types = vec![1; tokens.len()];
    types[260..].fill(3);
    file.set("tokenizer.ggml.model", "gpt2")
        .set("tokenizer.ggml.pre", "smollm")
        .set("tokenizer.ggml.tokens", V::Strs(tokens))
        .set("tokenizer.ggml.token_type", V::I32s(types))
        .set("tokenizer.ggml.merges", V::Strs(["h e", "l l", "he ll", "Ġ w"].map(String::from).to_vec()))
        .set("tokenizer.ggml.bos_token_id", V::U32(260))
        .set("tokenizer.ggml.eos_token_id", V::U32(261))
}

/// A whole llama of one block: width 64, 2 heads of 32, 1 key head, with [`vocabulary`].
pub fn tiny_gguf() -> GgufFile {
    let mut seed = 1u32;
    let mut f32s = |n: usize| -> Vec<u8> {
        let mut next = || {
            seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
            (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).flat_map(|_| next().to_le_bytes()).collect()
    };
    let mut file = vocabulary(GgufFile::default())
        .set("general.architecture", "llama")
        .set("llama.block_count", V::U32(1))
        .set("llama.context_length", V::U32(128))
        .set("llama.embedding_length", V::U32(64))
        .set("llama.feed_forward_length", V::U32(96))
        .set("llama.attention.head_count", V::U32(2))
        .set("llama.attention.head_count_kv", V::U32(1))
        .set("llama.attention.layer_norm_rms_epsilon", V::F32(1e-5))
        .set("llama.rope.freq_base", V::F32(10000.0));
    for (name, shape) in [
        ("token_embd.weight", vec![262, 64]),
        ("blk.0.attn_norm.weight", vec![64]),
        ("blk.0.attn_q.weight", vec![64, 64]),
        ("blk.0.attn_k.weight", vec![32, 64]),
        ("blk.0.attn_v.weight", vec![32, 64]),
        ("blk.0.attn_output.weight", vec![64, 64]),
        ("blk.0.ffn_norm.weight", vec![64]),
        ("blk.0.ffn_gate.weight", vec![96, 64]),
        ("blk.0.ffn_up.weight", vec![96, 64]),
        ("blk.0.ffn_down.weight", vec![64, 96]),
        ("output_norm.weight", vec![64]),
    ] {
        let bytes = f32s(shape.iter().product());
        file = file.tensor(name, &shape, 0, bytes);
    }
    file
}

/// The bytes of a safetensors file with this header and this much data.
pub fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.resize(out.len() + data, 0);
    out
}
