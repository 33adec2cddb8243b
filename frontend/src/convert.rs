//! GGUF to a Hugging Face folder.
//!
//! Writes `config.json`, `generation_config.json`, `model.safetensors`, `tokenizer.json` and
//! `tokenizer_config.json`. Tensors are decoded, un-permuted, rounded to the target type and written one
//! after the other; the folder gets its name by a rename when it is whole.

use crate::checkpoint::{Checkpoint, Layout};
use crate::config::{ModelConfig, RopeScaling};
use crate::error::{Error, Result};
use crate::gguf::names::hf_name;
use crate::text::chat::ChatTemplate;
use crate::text::tokenizer::Tokenizer;
use ::safetensors::tensor::{View, serialize_to_file};
use ::safetensors::{Dtype, SafeTensorError};
use half::{bf16, f16};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use weft_ir::decode::decode_f32;
use weft_ir::dtype::{DType, Encoding};

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Tensors in `model.safetensors`.
    pub tensors: usize,
    /// Their elements.
    pub parameters: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The files, in the new folder.
    pub files: Vec<PathBuf>,
}

/// Writes the model of a GGUF file as a Hugging Face folder `out`, its weights in `dtype` (f32, f16 or
/// bf16, rounded to nearest even). `progress` is told (bytes written, bytes in all) after each tensor.
///
/// # Errors
/// [`Error::Exists`] when `out` is there; [`Error::Unsupported`] for another `dtype`, a tensor without a
/// Hugging Face name, a value that overflows f16, or a setting that `config.json` cannot express;
/// [`Error::Io`]. Nothing is left behind.
pub fn convert(
    gguf: &Checkpoint,
    out: &Path,
    dtype: DType,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Summary> {
    let source = gguf.files().first().map_or(gguf.root(), PathBuf::as_path);
    if gguf.gguf().is_none() {
        return Err(Error::unsupported(source, "format", "safetensors", "GGUF"));
    }
    if out.exists() {
        return Err(Error::Exists { path: out.to_owned() });
    }
    let config = config_json(source, gguf.config(), dtype)?;
    let tensors = tensors(gguf, dtype)?;
    let tokenizer = Tokenizer::open(gguf)?;
    let chat = ChatTemplate::open(gguf)?;

    let name = out.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let partial = out.with_file_name(format!(".{name}.partial-{}", std::process::id()));
    if let Some(parent) = out.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(|e| Error::io(parent, "create", e))?;
    }
    std::fs::create_dir(&partial).map_err(|e| Error::io(&partial, "create", e))?;
    let written = (|| {
        write_json(&partial.join("config.json"), &config)?;
        write_json(&partial.join("generation_config.json"), &generation_json(gguf.config()))?;
        tokenizer.save(&partial.join("tokenizer.json"))?;
        let settings = tokenizer_config(gguf.config(), &tokenizer, chat.as_ref());
        write_json(&partial.join("tokenizer_config.json"), &settings)?;
        let summary = write_weights(&partial.join("model.safetensors"), source, tensors, progress)?;
        std::fs::rename(&partial, out).map_err(|e| Error::io(out, "give its name to", e))?;
        Ok(summary)
    })();
    if written.is_err() {
        // Whatever went wrong is the error to report, not that the remains could not be removed.
        let _ = std::fs::remove_dir_all(&partial);
    }
    let mut summary: Summary = written?;
    summary.files = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    .map(|f| out.join(f))
    .to_vec();
    Ok(summary)
}

/// A tensor to be written, still encoded.
struct Tensor<'a> {
    name: String,
    shape: Vec<usize>,
    encoding: Encoding,
    bytes: &'a [u8],
    dtype: DType,
    out_bytes: usize,
    /// Rows of the outermost dimension and, where they are permuted, rows of one head.
    rows: usize,
    head_rows: Option<usize>,
}

/// All tensors under their Hugging Face names, checked so that decoding them cannot fail on sizes.
fn tensors(gguf: &Checkpoint, dtype: DType) -> Result<Vec<Tensor<'_>>> {
    let file = gguf.files().first().map_or(gguf.root(), PathBuf::as_path);
    if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
        return Err(Error::unsupported(file, "output type", dtype, "f32, f16, bf16"));
    }
    let mut out = Vec::new();
    for info in gguf.tensors() {
        if info.name.ends_with(".attn_rot_embd.weight") || info.name == "rope_freqs.weight" {
            continue; // Derived from the configuration, which config_json writes or refuses.
        }
        let field = format!("tensor {:?}", info.name);
        let Some(name) = hf_name(&gguf.config().model_type, &info.name) else {
            let supported = "the tensors of LlamaForCausalLM";
            return Err(Error::unsupported(file, field, "an unknown name", supported));
        };
        let source = gguf.source(&name)?;
        if !source.encoding.value_type().is_float() {
            return Err(Error::unsupported(file, field, source.encoding, "floating-point weights"));
        }
        let bytes = gguf.bytes(&source.tensor)?;
        let rows = source.shape.first().copied().unwrap_or(1);
        let elements = info.elements().filter(|&n| n > 0);
        let out_bytes = elements.and_then(|n| n.checked_mul(dtype.size()));
        let Some(out_bytes) = out_bytes else {
            return Err(Error::damaged(file, field, format!("shape {:?} is empty or too large", info.shape)));
        };
        let head_rows = match source.layout {
            Layout::Same => None,
            Layout::Interleaved { heads } => Some(rows / heads.max(1)),
            Layout::Swapped | Layout::Parts { .. } | Layout::Row(_) | Layout::OneRow => {
                let supported = "the layouts of llama";
                return Err(Error::unsupported(file, field, format!("{:?}", source.layout), supported));
            }
        };
        let rows = if source.shape.len() < 2 && head_rows.is_none() { 1 } else { rows };
        out.push(Tensor {
            name,
            shape: source.shape,
            encoding: source.encoding,
            bytes,
            dtype,
            out_bytes,
            rows,
            head_rows,
        });
    }
    Ok(out)
}

impl Tensor<'_> {
    /// The stored row that holds row `row`: within a head, row `half · n/2 + pair` of the Hugging Face
    /// order is stored at `2 · pair + half`.
    fn stored_row(&self, row: usize) -> usize {
        match self.head_rows {
            Some(n) if n >= 2 => {
                let (head, within) = (row / n, row % n);
                let (half, pair) = (within / (n / 2), within % (n / 2));
                head * n + 2 * pair + half
            }
            _ => row,
        }
    }

    /// The tensor's bytes in the target type.
    fn decode(&self, source: &Path) -> Result<Vec<u8>> {
        let field = || format!("tensor {:?}", self.name);
        let (stored, written) = (self.bytes.len() / self.rows, self.out_bytes / self.rows);
        let mut out = vec![0u8; self.out_bytes];
        out.par_chunks_mut(written).enumerate().try_for_each_init(Vec::new, |values, (row, out)| {
            let at = self.stored_row(row) * stored;
            let bytes = self.bytes.get(at..at + stored).unwrap_or_default();
            values.resize(written / self.dtype.size(), 0.0f32);
            decode_f32(self.encoding, bytes, values).map_err(|e| Error::damaged(source, field(), e))?;
            if let Some(v) = encode(values, self.dtype, out) {
                let supported = "values that f16 can hold (up to 65504); convert to bf16 or f32";
                return Err(Error::unsupported(source, field(), v, supported));
            }
            Ok(())
        })?;
        Ok(out)
    }
}

/// Rounds values to a type; gives the first finite value that becomes infinite.
pub(crate) fn encode(values: &[f32], dtype: DType, out: &mut [u8]) -> Option<f32> {
    let mut lost = None;
    for (&v, out) in values.iter().zip(out.chunks_exact_mut(dtype.size())) {
        match dtype {
            DType::F16 => {
                let h = f16::from_f32(v);
                if v.is_finite() && !h.is_finite() {
                    lost = lost.or(Some(v));
                }
                out.copy_from_slice(&h.to_le_bytes());
            }
            DType::BF16 => out.copy_from_slice(&bf16::from_f32(v).to_le_bytes()),
            _ => out.copy_from_slice(&v.to_le_bytes()),
        }
    }
    lost
}

/// Whom to tell how far writing has come.
type Tell<'a> = &'a mut dyn FnMut(u64, u64);

/// What all tensors of one file share while it is written.
struct Progress<'a> {
    source: &'a Path,
    tell: RefCell<Tell<'a>>,
    done: Cell<u64>,
    total: u64,
    failed: RefCell<Option<Error>>,
}

/// A tensor that is decoded when the writer asks for its bytes.
struct Lazy<'a> {
    tensor: Tensor<'a>,
    progress: &'a Progress<'a>,
}

impl View for Lazy<'_> {
    fn dtype(&self) -> Dtype {
        match self.tensor.dtype {
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            _ => Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let p = self.progress;
        if p.failed.borrow().is_some() {
            return Cow::Borrowed(&[]); // The file is thrown away.
        }
        match self.tensor.decode(p.source) {
            Ok(bytes) => {
                p.done.set(p.done.get() + bytes.len() as u64);
                (p.tell.borrow_mut())(p.done.get(), p.total);
                Cow::Owned(bytes)
            }
            Err(e) => {
                *p.failed.borrow_mut() = Some(e);
                Cow::Borrowed(&[])
            }
        }
    }

    fn data_len(&self) -> usize {
        self.tensor.out_bytes
    }
}

fn write_weights(
    path: &Path,
    source: &Path,
    tensors: Vec<Tensor>,
    tell: &mut dyn FnMut(u64, u64),
) -> Result<Summary> {
    let total: u64 = tensors.iter().map(|t| t.out_bytes as u64).sum();
    let parameters = tensors.iter().map(|t| (t.out_bytes / t.dtype.size()) as u64).sum();
    let summary = Summary { tensors: tensors.len(), parameters, bytes: total, files: Vec::new() };
    let progress =
        Progress { source, tell: RefCell::new(tell), done: Cell::new(0), total, failed: RefCell::new(None) };
    let views: Vec<(String, Lazy)> = tensors
        .into_iter()
        .map(|tensor| (tensor.name.clone(), Lazy { tensor, progress: &progress }))
        .collect();
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let written = serialize_to_file(views, Some(metadata), path);
    if let Some(error) = progress.failed.take() {
        return Err(error);
    }
    written.map_err(|e| match e {
        SafeTensorError::IoError(e) => Error::io(path, "write", e),
        other => Error::damaged(path, "tensors", other),
    })?;
    Ok(summary)
}

pub(crate) fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| Error::damaged(path, "JSON", e))?;
    text.push('\n');
    std::fs::write(path, text).map_err(|e| Error::io(path, "write", e))
}

/// `config.json` in the older spelling, which every version of transformers reads.
fn config_json(source: &Path, c: &ModelConfig, dtype: DType) -> Result<Value> {
    if c.model_type != "llama" {
        return Err(Error::unsupported(source, "conversion of", &c.model_type, "llama"));
    }
    let scaling = match &c.rope.scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position,
        }),
        RopeScaling::Yarn { .. } | RopeScaling::LongRope { .. } | RopeScaling::Factors(_) => {
            let supported = "rope scaling that config.json can express (none, linear, llama3)";
            return Err(Error::unsupported(source, "rope_freqs.weight", "explicit factors", supported));
        }
    };
    Ok(json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": c.attention_bias,
        "attention_dropout": 0.0,
        "bos_token_id": c.bos_token_id,
        "eos_token_id": one_or_list(&c.eos_token_ids),
        "head_dim": c.head_dim,
        "hidden_act": c.hidden_act.name(),
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "max_position_embeddings": c.max_position,
        "mlp_bias": c.mlp_bias,
        "model_type": c.model_type,
        "num_attention_heads": c.heads,
        "num_hidden_layers": c.layers,
        "num_key_value_heads": c.kv_heads,
        "pad_token_id": c.pad_token_id,
        "rms_norm_eps": c.norm_eps,
        "rope_scaling": scaling,
        "rope_theta": c.rope.theta,
        "tie_word_embeddings": c.tie_word_embeddings,
        "torch_dtype": match dtype {
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
            _ => "float32",
        },
        "use_cache": true,
        "vocab_size": c.vocab_size,
    }))
}

fn one_or_list(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [one] => json!(one),
        many => json!(many),
    }
}

fn generation_json(c: &ModelConfig) -> Value {
    json!({
        "_from_model_config": true,
        "bos_token_id": c.bos_token_id,
        "eos_token_id": one_or_list(&c.eos_token_ids),
        "pad_token_id": c.pad_token_id,
    })
}

fn tokenizer_config(c: &ModelConfig, tokenizer: &Tokenizer, chat: Option<&ChatTemplate>) -> Value {
    let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id));
    let mut out = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": false,
        "model_max_length": c.max_position,
        "bos_token": text(c.bos_token_id),
        "eos_token": text(c.eos_token_ids.first().copied()),
        "pad_token": text(c.pad_token_id),
    });
    if let (Some(map), Some(chat)) = (out.as_object_mut(), chat) {
        if let Some(unk) = chat.special_token("unk_token") {
            map.insert("unk_token".into(), json!(unk));
        }
        let names: Vec<&str> = chat.names().collect();
        let source = |name: &str| chat.source(name).unwrap_or_default().to_owned();
        let template = match names.as_slice() {
            ["default"] => json!(source("default")),
            many => many.iter().map(|n| json!({"name": n, "template": source(n)})).collect(),
        };
        map.insert("chat_template".into(), template);
    }
    out
}
