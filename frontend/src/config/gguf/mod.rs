//! The configuration in a GGUF file's metadata (`llama.*`, `qwen3.*`, … and `tokenizer.ggml.*` keys).
//!
//! What the metadata does not say is what llama.cpp's code fixes for the architecture (`src/llama-model.cpp`): for
//! Gemma the window pattern, the scale of the scores and of the embeddings. Gemma's norms are stored as 1 + w.
//!
//! Key names: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, and llama.cpp's
//! `src/llama-arch.cpp` for those that the page does not list.

mod metadata;
mod particular;
mod rope;

use super::spec;
use super::{MAX_COUNT, ModelConfig, Norm, PositionKind, Rope, RopeScaling};
use crate::error::{Error, Result};
use crate::gguf::{Gguf, Value};
use metadata::Metadata;
use weft_ir::dtype::Encoding;

/// Architectures (`general.architecture`) and the family that each is.
const ARCHITECTURES: &[(&str, &str)] = &[
    ("llama", "llama"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("gemma2", "gemma2"),
    ("gemma3", "gemma3_text"),
    ("phi3", "phi3"),
    ("phi2", "phi"),
    ("gpt2", "gpt2"),
    ("gptneox", "gpt_neox"),
    ("falcon", "falcon"),
    ("bloom", "bloom"),
    ("olmo2", "olmo2"),
    ("exaone4", "exaone4"),
    ("starcoder2", "starcoder2"),
    ("stablelm", "stablelm"),
    ("granite", "granite"),
    ("cohere2", "cohere2"),
    ("glm4", "glm4"),
    ("smollm3", "smollm3"),
    ("qwen2moe", "qwen2_moe"),
    ("qwen3moe", "qwen3_moe"),
    ("gpt-oss", "gpt_oss"),
    ("deepseek2", "deepseek_v3"),
    ("bert", "bert"),
];

/// Token ids of `tokenizer.ggml.*` at which a generation ends.
const END_KEYS: &[&str] =
    &["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// Reads the configuration of a GGUF file. `ignore` are keys that the user says to pass over, though Weft does not know
/// them.
///
/// # Errors
/// [`Error::MissingField`], [`Error::Unsupported`], [`Error::UnknownKey`] or [`Error::Malformed`], each naming file and
/// key.
pub fn read(file: &Gguf, ignore: &[String]) -> Result<ModelConfig> {
    let path = file.path();
    let supported = ARCHITECTURES.iter().map(|(arch, _)| *arch).collect::<Vec<_>>().join(", ");
    let Some(arch) = file.text("general.architecture")? else {
        let remedy = format!("supported architectures: {supported}");
        return Err(Error::missing(path, "general.architecture", remedy));
    };
    let family = ARCHITECTURES.iter().find(|(a, _)| *a == arch).map(|(_, model_type)| *model_type);
    let m = Metadata::new(file, arch);
    // Mixtral's files are llama's, with experts; OLMo 3's are OLMo 2's, with windows.
    let more = |key: &str| m.size(key).map(|n| n.is_some_and(|n| n > 0));
    let family = match family {
        Some("llama") if more("expert_count")? => Some("mixtral"),
        Some("olmo2") if more("attention.sliding_window")? => Some("olmo3"),
        family => family,
    };
    let Some(spec) = family.and_then(spec::find) else {
        return Err(Error::unsupported(path, "general.architecture", arch, supported));
    };
    let hidden_size = m.required("embedding_length")?;
    let heads = m.required("attention.head_count")?;
    let latent = particular::latent(&m, spec)?;
    let head_dim = match &latent {
        Some(l) => l.rotated,
        None => head_dim(&m, hidden_size, heads)?,
    };
    // Files of latent attention count one key head: what the cache holds.
    let kv_heads = match (&latent, m.size("attention.head_count_kv")?) {
        (Some(_), _) | (None, None) => heads,
        (None, Some(n)) => n,
    };
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
    let max_position = m.required("context_length")?;
    let none =
        Rope { theta: spec.theta, dim: 0, interleaved: false, dynamic: None, scaling: RopeScaling::None };
    let rope = match spec.positions {
        PositionKind::Rotary => rope::read(&m, spec, head_dim, max_position)?,
        PositionKind::Learned | PositionKind::Alibi | PositionKind::AlibiUnscaled => none,
    };
    let local_rope = particular::local_rope(&m, spec, &rope)?;
    let eps = match spec.norm {
        Norm::Rms | Norm::RmsPlusOne => "attention.layer_norm_rms_epsilon",
        Norm::Layer { .. } => "attention.layer_norm_epsilon",
    };
    let mut config = ModelConfig {
        model_type: spec.model_type.to_owned(),
        vocab_size,
        hidden_size,
        intermediate_size: match (spec.model_type, m.size("feed_forward_length")?) {
            (_, Some(n)) => n,
            // All its layers have experts.
            ("gpt_oss" | "qwen2_moe", None) => m.required("expert_feed_forward_length")?,
            (_, None) => return Err(m.absent("feed_forward_length")),
        },
        layers,
        draft_layers: 0,
        heads,
        kv_heads,
        head_dim,
        // Gemma's weights are stored as 1 + w.
        norm: if spec.norm == Norm::RmsPlusOne { Norm::Rms } else { spec.norm },
        norm_eps: m.required_number(eps)?,
        placement: spec.placement,
        qk_norm: spec.qk_norm,
        positions: spec.positions,
        rope,
        local_rope,
        attention: particular::attention(&m, spec, layers)?,
        attention_scale: 1.0 / (head_dim as f64).sqrt(),
        attention_softcap: None,
        embedding_multiplier: 1.0,
        residual_multiplier: 1.0,
        logit_multiplier: 1.0,
        logit_softcap: None,
        residual_after_norm: false,
        max_position,
        position_offset: 0,
        type_vocab_size: 0,
        tie_word_embeddings: !m.has("output.weight"),
        attention_bias: m.has("blk.0.attn_q.bias") || m.has("blk.0.attn_qkv.bias"),
        output_bias: m.has("blk.0.attn_output.bias"),
        mlp_bias: m.has("blk.0.ffn_up.bias"),
        hidden_act: spec.act.1,
        experts: particular::experts(&m, spec, layers)?,
        latent,
        sinks: false,
        dtype: match embedding.encoding {
            Some(Encoding::Plain(d)) if d.is_float() => Some(d),
            _ => None,
        },
        quantization: None,
        bos_token_id: token(file, "tokenizer.ggml.bos_token_id")?,
        eos_token_ids,
        pad_token_id: token(file, "tokenizer.ggml.padding_token_id")?,
        unknown: Vec::new(),
        ignored: Vec::new(),
    };
    particular::read(&m, spec, &mut config)?;
    let passed = m.finish(ignore)?;
    (config.unknown, config.ignored) = (passed.off, passed.ignored);
    config.check(path)?;
    Ok(config)
}

/// The width of a head; keys and values must agree on it.
fn head_dim(m: &Metadata, hidden_size: usize, heads: usize) -> Result<usize> {
    let head_dim = match m.size("attention.key_length")? {
        Some(d) => d,
        None if heads > 0 && hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            let remedy = format!("{hidden_size} does not divide into {heads} heads: the file must give it");
            return Err(Error::missing(m.file.path(), m.key("attention.key_length"), remedy));
        }
    };
    match m.size("attention.value_length")?.filter(|&d| d != head_dim) {
        None => Ok(head_dim),
        Some(d) => {
            let supported = format!("the width of a key head, {head_dim}");
            Err(m.unsupported("attention.value_length", d, supported))
        }
    }
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
