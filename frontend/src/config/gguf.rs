//! The configuration in a GGUF file's metadata (`llama.*`, `qwen3.*`, … and `tokenizer.ggml.*` keys).
//!
//! What the metadata does not say is what llama.cpp's code fixes for the architecture (`src/llama-model.cpp`): for
//! Gemma the window pattern, the scale of the scores and of the embeddings. Gemma's norms are stored as 1 + w.
//!
//! Key names: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, and llama.cpp's
//! `src/llama-arch.cpp` for those that the page does not list.

use super::spec::{self, Spec, Windows};
use super::{LayerAttention, LayerRope, MAX_COUNT, ModelConfig, Norm, PositionKind, Rope, RopeScaling};
use crate::error::{Error, Result};
use crate::gguf::{Gguf, Value};
use weft_ir::decode::decode_f32;
use weft_ir::dtype::Encoding;

/// Architectures (`general.architecture`) and the family that each is.
const ARCHITECTURES: &[(&str, &str)] = &[
    ("llama", "llama"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("gemma2", "gemma2"),
    ("gemma3", "gemma3_text"),
];

/// Layers of the 27B variants of Gemma, whose scores llama.cpp scales by another width.
const GEMMA_27B: &[(&str, usize)] = &[("gemma2", 46), ("gemma3_text", 62)];

/// Keys that [`gemma`] reads.
const GEMMA_KEYS: &[&str] =
    &["attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping", "rope.freq_base_swa"];

/// Keys under the architecture's prefix that are read here or change nothing.
const KNOWN: &[&str] = &[
    "attention.causal",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "tensor_data_layout",
    "vocab_size",
];

/// Keys under the architecture's prefix that change the result, with the number (or truth value as 0
/// and 1) at which they do not.
const MATTERS: &[(&str, f64)] = &[
    ("attention.clamp_kqv", 0.0),
    ("attention.max_alibi_bias", 0.0),
    ("attention.scale", 0.0),
    ("attention.sliding_window", 0.0),
    ("attn_logit_softcapping", 0.0),
    ("embedding_scale", 1.0),
    ("expert_count", 0.0),
    ("expert_used_count", 0.0),
    ("final_logit_softcapping", 0.0),
    ("logit_scale", 1.0),
    ("residual_scale", 1.0),
    ("rope.scaling.attn_factor", 1.0),
    ("rope.scaling.yarn_log_multiplier", 0.0),
    ("use_parallel_residual", 0.0),
];

/// Token ids of `tokenizer.ggml.*` at which a generation ends.
const END_KEYS: &[&str] =
    &["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// Reads the configuration of a GGUF file.
///
/// # Errors
/// [`Error::MissingField`], [`Error::Unsupported`] or [`Error::Malformed`], each naming file and key.
pub fn read(file: &Gguf) -> Result<ModelConfig> {
    let path = file.path();
    let supported = ARCHITECTURES.iter().map(|(arch, _)| *arch).collect::<Vec<_>>().join(", ");
    let Some(arch) = file.text("general.architecture")? else {
        let remedy = format!("supported architectures: {supported}");
        return Err(Error::missing(path, "general.architecture", remedy));
    };
    let family = ARCHITECTURES.iter().find(|(a, _)| *a == arch);
    let Some(spec) = family.and_then(|(_, model_type)| spec::find(model_type)) else {
        return Err(Error::unsupported(path, "general.architecture", arch, supported));
    };
    let m = Metadata { file, arch };
    let hidden_size = m.required("embedding_length")?;
    let heads = m.required("attention.head_count")?;
    let head_dim = head_dim(&m, hidden_size, heads)?;
    let embedding = file.tensor("token_embd.weight").ok_or_else(|| Error::MissingTensor {
        path: path.to_owned(),
        tensor: "token_embd.weight".into(),
        remedy: "the file holds no embedding: give a whole model".into(),
    })?;
    let vocab_size = embedding.shape.first().copied().unwrap_or(0);
    for (key, says) in [
        (m.key("vocab_size"), m.size("vocab_size")?),
        ("tokenizer.ggml.tokens".into(), array_len(file, "tokenizer.ggml.tokens")),
    ] {
        if says.is_some_and(|n| n != vocab_size) {
            let problem =
                format!("{} tokens, but token_embd.weight has {vocab_size} rows", says.unwrap_or(0));
            return Err(Error::damaged(path, key, problem));
        }
    }
    let mut eos_token_ids = Vec::new();
    for key in END_KEYS {
        if let Some(id) = token(file, key)?.filter(|id| !eos_token_ids.contains(id)) {
            eos_token_ids.push(id);
        }
    }
    let layers = m.required("block_count")?;
    if layers > MAX_COUNT {
        let problem = format!("{layers} is not between 1 and {MAX_COUNT}");
        return Err(Error::damaged(path, m.key("block_count"), problem));
    }
    let has = |tensor: &str| file.tensor(tensor).is_some();
    let attention_bias = has("blk.0.attn_q.bias");
    let full = LayerAttention { window: None, rope: LayerRope::Global };
    let mut config = ModelConfig {
        model_type: spec.model_type.to_owned(),
        vocab_size,
        hidden_size,
        intermediate_size: m.required("feed_forward_length")?,
        layers,
        heads,
        kv_heads: m.size("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        norm: Norm::Rms,
        norm_eps: m.required_number("attention.layer_norm_rms_epsilon")?,
        placement: spec.placement,
        qk_norm: spec.qk_norm,
        positions: PositionKind::Rotary,
        rope: rope(&m, head_dim, spec.theta)?,
        local_rope: None,
        attention: vec![full; layers],
        attention_scale: 1.0 / (head_dim as f64).sqrt(),
        attention_softcap: None,
        embedding_multiplier: 1.0,
        residual_multiplier: 1.0,
        logit_multiplier: 1.0,
        logit_softcap: None,
        residual_after_norm: false,
        max_position: m.required("context_length")?,
        position_offset: 0,
        type_vocab_size: 0,
        tie_word_embeddings: file.tensor("output.weight").is_none(),
        attention_bias,
        output_bias: has("blk.0.attn_output.bias"),
        mlp_bias: has("blk.0.ffn_gate.bias"),
        hidden_act: spec.act.1,
        experts: None,
        latent: None,
        sinks: false,
        dtype: match embedding.encoding {
            Some(Encoding::Plain(d)) if d.is_float() => Some(d),
            _ => None,
        },
        bos_token_id: token(file, "tokenizer.ggml.bos_token_id")?,
        eos_token_ids,
        pad_token_id: token(file, "tokenizer.ggml.padding_token_id")?,
        unknown: unknown(&m, spec.norm == Norm::RmsPlusOne)?,
    };
    if spec.norm == Norm::RmsPlusOne {
        gemma(&m, spec, &mut config)?;
    }
    config.check(path)?;
    Ok(config)
}

/// Reads what is particular to Gemma.
fn gemma(m: &Metadata, spec: &Spec, c: &mut ModelConfig) -> Result<()> {
    c.embedding_multiplier = (c.hidden_size as f64).sqrt();
    if GEMMA_27B.contains(&(spec.model_type, c.layers)) {
        c.attention_scale = 1.0 / (c.hidden_size as f64 / c.heads.max(1) as f64).sqrt();
    }
    let capped = spec.model_type == "gemma2";
    c.attention_softcap = m.number("attn_logit_softcapping")?.or(capped.then_some(50.0));
    c.logit_softcap = m.number("final_logit_softcapping")?.or(capped.then_some(30.0));
    if let Some(cap) = c.attention_softcap.filter(|_| !capped) {
        let supported = "absent: the model has none";
        return Err(Error::unsupported(m.file.path(), m.key("attn_logit_softcapping"), cap, supported));
    }
    let Windows::Pattern(every) = spec.windows else { return Ok(()) };
    let window = m.size("attention.sliding_window")?.unwrap_or(4096);
    if let Some(theta) = spec.local_theta {
        let theta = m.number("rope.freq_base_swa")?.or(theta).unwrap_or(c.rope.theta);
        c.local_rope = Some(Rope { theta, scaling: RopeScaling::None, ..c.rope.clone() });
    }
    let rope = if spec.local_theta.is_some() { LayerRope::Local } else { LayerRope::Global };
    for (i, layer) in c.attention.iter_mut().enumerate() {
        if !(i + 1).is_multiple_of(every) {
            *layer = LayerAttention { window: Some(window), rope };
        }
    }
    Ok(())
}

/// The width of a head; keys, values and rotary embedding must agree on it.
fn head_dim(m: &Metadata, hidden_size: usize, heads: usize) -> Result<usize> {
    let (path, key) = (m.file.path(), m.size("attention.key_length")?);
    let head_dim = match key {
        Some(d) => d,
        None if heads > 0 && hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            let remedy = format!("{hidden_size} does not divide into {heads} heads: the file must give it");
            return Err(Error::missing(path, m.key("attention.key_length"), remedy));
        }
    };
    for other in ["attention.value_length", "rope.dimension_count"] {
        if let Some(d) = m.size(other)?.filter(|&d| d != head_dim) {
            let supported = format!("the width of a key head, {head_dim}");
            return Err(Error::unsupported(path, m.key(other), d, supported));
        }
    }
    Ok(head_dim)
}

/// Base and scaling; a tensor `rope_freqs.weight` holds one divisor for each pair.
fn rope(m: &Metadata, dim: usize, theta: f64) -> Result<Rope> {
    let made = |theta, scaling| Rope { theta, dim, interleaved: false, dynamic: false, scaling };
    let path = m.file.path();
    let theta = m.number("rope.freq_base")?.unwrap_or(theta);
    let kind = m.file.text(&m.key("rope.scaling.type"))?;
    let older = m.number("rope.scale_linear")?;
    let scaling = match (kind, m.number("rope.scaling.factor")?.or(older)) {
        (Some("none"), _) | (None, None) => RopeScaling::None,
        (Some("linear") | None, Some(factor)) => RopeScaling::Linear { factor },
        (Some("linear"), None) => {
            return Err(Error::missing(path, m.key("rope.scaling.factor"), "linear scaling needs it"));
        }
        (Some(other), _) => {
            let supported = "none, linear, or factors in rope_freqs.weight (llama3)";
            return Err(Error::unsupported(path, m.key("rope.scaling.type"), other, supported));
        }
    };
    let Some(tensor) = m.file.tensor("rope_freqs.weight") else { return Ok(made(theta, scaling)) };
    if !matches!(scaling, RopeScaling::None | RopeScaling::Linear { factor: 1.0 }) {
        let supported = "either scaling metadata or the tensor rope_freqs.weight, not both";
        return Err(Error::unsupported(path, m.key("rope.scaling.type"), format!("{scaling:?}"), supported));
    }
    let bytes = m.file.data(tensor)?;
    let encoding = tensor.require_encoding(path)?;
    // The tensor's bytes are in the file, so this many f32 are no more than a few times its size.
    let mut factors = vec![0.0; tensor.elements().unwrap_or(0)];
    decode_f32(encoding, bytes, &mut factors)
        .map_err(|e| Error::damaged(path, "tensor \"rope_freqs.weight\"", e))?;
    Ok(made(theta, RopeScaling::Factors(factors)))
}

/// Keys of the architecture that nobody reads; an error for those known to matter.
fn unknown(m: &Metadata, gemma: bool) -> Result<Vec<String>> {
    let prefix = m.key("");
    let mut out = Vec::new();
    for key in m.file.keys() {
        let Some(name) = key.strip_prefix(&prefix) else { continue };
        if gemma && GEMMA_KEYS.contains(&name) {
            continue;
        }
        if let Some((_, neutral)) = MATTERS.iter().find(|(k, _)| *k == name) {
            let value = match m.file.value(key) {
                Some(Value::Bool(b)) => f64::from(u8::from(*b)),
                _ => m.file.number(key)?.unwrap_or(*neutral),
            };
            if value != *neutral {
                return Err(Error::unsupported(m.file.path(), key, value, format!("absent or {neutral}")));
            }
        } else if !KNOWN.contains(&name) {
            out.push(key.to_owned());
        }
    }
    if m.file.boolean(&m.key("attention.causal"))? == Some(false) {
        return Err(Error::unsupported(m.file.path(), m.key("attention.causal"), false, "absent or true"));
    }
    Ok(out)
}

fn array_len(file: &Gguf, key: &str) -> Option<usize> {
    match file.value(key) {
        Some(Value::Array(a)) => Some(a.len),
        _ => None,
    }
}

/// A token id; 2³²−1 means none.
fn token(file: &Gguf, key: &str) -> Result<Option<u32>> {
    match file.unsigned(key)? {
        None => Ok(None),
        Some(n) => match u32::try_from(n) {
            Ok(u32::MAX) => Ok(None),
            Ok(id) => Ok(Some(id)),
            Err(_) => Err(Error::damaged(file.path(), key, format!("{n} is not a token id"))),
        },
    }
}

/// The metadata under one architecture's prefix.
struct Metadata<'a> {
    file: &'a Gguf,
    arch: &'a str,
}

impl Metadata<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    /// An integer; an array of equal integers (one for each layer) counts as one.
    fn size(&self, name: &str) -> Result<Option<usize>> {
        let key = self.key(name);
        let value = match self.file.value(&key) {
            Some(Value::Array(_)) => {
                let all = self.file.integers(&key)?.unwrap_or_default();
                let first = all.first().copied().unwrap_or(0);
                if all.iter().any(|&n| n != first) {
                    let supported = "the same number for every layer";
                    return Err(Error::unsupported(self.file.path(), key, format!("{all:?}"), supported));
                }
                u64::try_from(first).ok()
            }
            _ => self.file.unsigned(&key)?,
        };
        match value.map(usize::try_from) {
            Some(Err(_)) => Err(Error::damaged(self.file.path(), key, "does not fit in memory")),
            Some(Ok(n)) => Ok(Some(n)),
            None => Ok(None),
        }
    }

    fn number(&self, name: &str) -> Result<Option<f64>> {
        self.file.number(&self.key(name))
    }

    fn required(&self, name: &str) -> Result<usize> {
        self.size(name)?.ok_or_else(|| self.absent(name))
    }

    fn required_number(&self, name: &str) -> Result<f64> {
        self.number(name)?.ok_or_else(|| self.absent(name))
    }

    fn absent(&self, name: &str) -> Error {
        Error::missing(self.file.path(), self.key(name), "the file is not a whole model: fetch it again")
    }
}
