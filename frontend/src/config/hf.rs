//! `config.json` and `generation_config.json` of a Hugging Face folder.
//!
//! Two spellings are read: the older (`rope_theta`, `rope_scaling`, `torch_dtype`) and that of
//! transformers 5 (`rope_parameters`, `dtype`). Defaults of absent keys are those of the family's class in
//! transformers ([`super::spec`]); the dimensions have none. Every key is either read, known to be harmless, known to
//! matter (an error unless its value changes nothing), or unknown ([`super::unread`]).

use super::fields::Fields;
use super::rope::Around;
use super::ropes::{self, Ropes};
use super::spec::{self, Bias, HeadDim, KvHeads, MlpWidth, Spec};
use super::{
    Activation, MAX_COUNT, MODEL_TYPES, ModelConfig, PositionKind, Rope, RopeScaling, composite, experts,
    layers, particular, quantization,
};
use crate::error::{Error, Result};
use crate::read;
use serde_json::Value;
use std::path::Path;
use weft_ir::dtype::DType;

/// Reads `config.json` of a folder; `generation_config.json`, where there is one, overrides the
/// special tokens. `ignore` are keys that the user says to pass over, though Weft does not know them.
///
/// # Errors
/// [`Error::MissingField`], [`Error::Unsupported`], [`Error::UnknownKey`] or [`Error::Malformed`], each naming file and
/// key.
pub fn read(folder: &Path, ignore: &[String]) -> Result<ModelConfig> {
    let path = folder.join("config.json");
    if !path.exists() {
        let remedy = "a safetensors checkpoint needs its config.json in the same folder";
        return Err(Error::missing(&path, "the file", remedy));
    }
    let mut config = parse(&path, &read_bytes(&path)?, ignore)?;
    let generation = folder.join("generation_config.json");
    if generation.exists() {
        override_tokens(&mut config, &generation, &read_bytes(&generation)?)?;
    }
    Ok(config)
}

fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    read::bounded(path, read::SETTINGS)
}

/// Parses the text of a `config.json`; `path` is for errors, `ignore` as for [`read()`].
///
/// # Errors
/// As [`read()`].
pub fn parse(path: &Path, text: &[u8], ignore: &[String]) -> Result<ModelConfig> {
    let mut f = composite::text_part(Fields::parse(path, text)?)?;
    let known = || MODEL_TYPES.iter().copied().chain(composite::names()).collect::<Vec<_>>().join(", ");
    let model_type = f.text("model_type")?;
    let model_type = model_type
        .ok_or_else(|| Error::missing(path, "model_type", format!("supported model types: {}", known())))?;
    let Some(spec) = spec::find(&model_type) else {
        let part = text_part(&f).unwrap_or_default();
        return Err(Error::unsupported(path, "model_type", model_type, known() + &part));
    };
    check_architecture(&mut f, spec)?;
    if matches!(spec.head_dim, HeadDim::Ratio) {
        for (older, newer) in OLDER_NAMES {
            f.rename(older, newer)?;
        }
    }
    if spec.positions == PositionKind::Alibi {
        f.rename("seq_length", "max_position_embeddings")?;
    }
    if model_type == "modernbert" {
        particular::modernbert_names(&mut f)?;
    }
    let hidden_size = f.required("hidden_size")?;
    let heads = f.required("num_attention_heads")?;
    let layers = f.required("num_hidden_layers")?;
    if layers > MAX_COUNT {
        let problem = format!("{layers} is not between 1 and {MAX_COUNT}");
        return Err(f.malformed("num_hidden_layers", problem));
    }
    let head_dim = head_dim(&mut f, spec, hidden_size, heads)?;
    experts::default_rope(&mut f, &model_type);
    let max_position = f.size("max_position_embeddings")?.unwrap_or(spec.max_position);
    let attention = layers::read(&mut f, spec, layers)?;
    let none =
        Rope { theta: spec.theta, dim: 0, interleaved: false, dynamic: None, scaling: RopeScaling::None };
    let Ropes { full: rope, local: local_rope } = match spec.positions {
        PositionKind::Rotary => ropes::read(&mut f, spec, Around { head_dim, max_position })?,
        PositionKind::Learned | PositionKind::Alibi | PositionKind::AlibiUnscaled => {
            Ropes { full: none, local: None }
        }
    };
    let max_position = match &rope.scaling {
        RopeScaling::LongRope { original_max_position, .. } => max_position.min(*original_max_position),
        _ => max_position,
    };
    let bias = |f: &mut Fields, i: usize| match spec.biases[i] {
        Bias::Fixed(b) => Ok(b),
        // Two biases may have one key.
        Bias::Key(key, default) => match f.map.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(v) => v.as_bool().ok_or_else(|| f.mistyped(key, v, "true or false")),
        },
    };
    let biases = [bias(&mut f, 0)?, bias(&mut f, 1)?, bias(&mut f, 2)?];
    for b in spec.biases {
        if let Bias::Key(key, _) = b {
            f.take(key);
        }
    }
    let (begin, end) = spec.tokens;
    let mut config = ModelConfig {
        model_type,
        vocab_size: f.required("vocab_size")?,
        hidden_size,
        intermediate_size: mlp_width(&mut f, spec, hidden_size)?,
        layers,
        draft_layers: draft_layers(&mut f, spec)?,
        heads,
        kv_heads: kv_heads(&mut f, spec, heads)?,
        head_dim,
        norm: spec.norm,
        norm_eps: f.number(spec.eps.0)?.unwrap_or(spec.eps.1),
        placement: spec.placement,
        qk_norm: spec.qk_norm,
        positions: spec.positions,
        rope,
        local_rope,
        attention,
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
        tie_word_embeddings: f.boolean("tie_word_embeddings")?.unwrap_or(spec.tied),
        attention_bias: biases[0],
        output_bias: biases[1],
        mlp_bias: biases[2],
        hidden_act: activation(&mut f, spec)?,
        experts: None,
        latent: None,
        sinks: false,
        dtype: dtype(&mut f)?,
        quantization: quantization::read(&mut f)?,
        bos_token_id: f.tokens("bos_token_id")?.map_or(begin, |t| t.first().copied()),
        eos_token_ids: f.tokens("eos_token_id")?.unwrap_or_else(|| end.to_vec()),
        pad_token_id: f.tokens("pad_token_id")?.and_then(|t| t.first().copied()),
        unknown: Vec::new(),
        ignored: Vec::new(),
    };
    particular::read(&mut f, &mut config)?;
    experts::read(&mut f, &mut config)?;
    let passed = f.finish(&config.model_type, ignore)?;
    (config.unknown, config.ignored) = (passed.off, passed.ignored);
    config.check(path)?;
    Ok(config)
}

/// Where a family that is not built has texts go through one that is, how to get that.
fn text_part(f: &Fields) -> Option<String> {
    let named = f.map.get("text_config").and_then(|text| text.get("model_type")).and_then(Value::as_str);
    let spec = spec::find(named?)?;
    Some(format!(
        "; its text part alone is {}: give a folder that {} of transformers saved, or a GGUF file of the model",
        spec.model_type, spec.architecture
    ))
}

/// GPT-2's names of dimensions, and those of the families that took them over.
const OLDER_NAMES: &[(&str, &str)] = &[
    ("n_embd", "hidden_size"),
    ("n_embed", "hidden_size"),
    ("n_layer", "num_hidden_layers"),
    ("n_head", "num_attention_heads"),
    ("n_head_kv", "num_kv_heads"),
    ("n_positions", "max_position_embeddings"),
];

fn head_dim(f: &mut Fields, spec: &Spec, hidden_size: usize, heads: usize) -> Result<usize> {
    let key = match spec.head_dim {
        HeadDim::KeyOrRatio => f.size("head_dim")?,
        HeadDim::KeyOr(default) => Some(f.size("head_dim")?.unwrap_or(default)),
        // Rotary tables are of this part of a head.
        HeadDim::Rotated(default) => {
            f.rename("head_dim", "qk_rope_head_dim")?;
            Some(f.size("qk_rope_head_dim")?.unwrap_or(default))
        }
        HeadDim::Ratio => {
            f.take("head_dim");
            None
        }
    };
    match key {
        Some(d) => Ok(d),
        None if heads > 0 && hidden_size.is_multiple_of(heads) => Ok(hidden_size / heads),
        None if spec.head_dim == HeadDim::Ratio => {
            Err(f.malformed("hidden_size", format!("{hidden_size} does not divide into {heads} heads")))
        }
        None => {
            let remedy = format!("hidden_size {hidden_size} does not divide into {heads} heads: give it");
            Err(Error::missing(&f.path, "head_dim", remedy))
        }
    }
}

fn kv_heads(f: &mut Fields, spec: &Spec, heads: usize) -> Result<usize> {
    match spec.kv_heads {
        KvHeads::KeyOrHeads => Ok(f.size("num_key_value_heads")?.unwrap_or(heads)),
        KvHeads::Key => f.required("num_key_value_heads"),
        KvHeads::Heads => Ok(heads),
        KvHeads::Falcon => {
            let new = f.map.get("new_decoder_architecture") == Some(&Value::Bool(true));
            let given = f.size("num_kv_heads")?;
            let multi_query = f.boolean("multi_query")?.unwrap_or(true);
            Ok(if new {
                given.unwrap_or(heads)
            } else if multi_query {
                1
            } else {
                heads
            })
        }
    }
}

fn mlp_width(f: &mut Fields, spec: &Spec, hidden_size: usize) -> Result<usize> {
    match spec.mlp {
        MlpWidth::Key => f.required("intermediate_size"),
        MlpWidth::KeyOrFour(key) => Ok(f.size(key)?.unwrap_or(hidden_size.saturating_mul(4))),
        MlpWidth::Four => Ok(hidden_size.saturating_mul(4)),
    }
}

/// DeepSeek V3 has one behind the last layer, which its class does not load.
fn draft_layers(f: &mut Fields, spec: &Spec) -> Result<usize> {
    let default = usize::from(spec.model_type == "deepseek_v3");
    Ok(f.size("num_nextn_predict_layers")?.unwrap_or(default).min(MAX_COUNT))
}

fn activation(f: &mut Fields, spec: &Spec) -> Result<Activation> {
    let (key, default) = spec.act;
    match f.text(key)? {
        None => Ok(default),
        Some(name) => Activation::parse(&name)
            .ok_or_else(|| Error::unsupported(&f.path, key, name, Activation::SUPPORTED)),
    }
}

/// Takes the special tokens that a `generation_config.json` gives.
fn override_tokens(config: &mut ModelConfig, path: &Path, text: &[u8]) -> Result<()> {
    let mut f = Fields::parse(path, text)?;
    if let Some(&id) = f.tokens("bos_token_id")?.unwrap_or_default().first() {
        config.bos_token_id = Some(id);
    }
    if let Some(ids) = f.tokens("eos_token_id")?.filter(|ids| !ids.is_empty()) {
        config.eos_token_ids = ids;
    }
    if let Some(&id) = f.tokens("pad_token_id")?.unwrap_or_default().first() {
        config.pad_token_id = Some(id);
    }
    Ok(())
}

fn check_architecture(f: &mut Fields, spec: &Spec) -> Result<()> {
    let Some(value) = f.take("architectures") else { return Ok(()) };
    let names: Vec<&str> = value.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if names.is_empty() || names.iter().any(|n| spec.is_architecture(n)) {
        return Ok(());
    }
    Err(Error::unsupported(&f.path, "architectures", value, spec.architecture))
}

/// The newer `dtype` or the older `torch_dtype`.
fn dtype(f: &mut Fields) -> Result<Option<DType>> {
    let old = f.text("torch_dtype")?;
    let Some(name) = f.text("dtype")?.or(old) else { return Ok(None) };
    match name.strip_prefix("torch.").unwrap_or(&name) {
        "float32" => Ok(Some(DType::F32)),
        "float16" => Ok(Some(DType::F16)),
        "bfloat16" => Ok(Some(DType::BF16)),
        _ => Err(Error::unsupported(&f.path, "dtype", name, "float32, float16, bfloat16")),
    }
}
