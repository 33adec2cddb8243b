//! `config.json` and `generation_config.json` of a Hugging Face folder.
//!
//! Two spellings are read: the older (`rope_theta`, `rope_scaling`, `torch_dtype`) and that of
//! transformers 5 (`rope_parameters`, `dtype`). Defaults of absent keys are those of transformers'
//! `LlamaConfig`; the dimensions have none. Every key is either read, known to be harmless, known to
//! matter (an error unless its value changes nothing), or listed as unknown.

use super::fields::Fields;
use super::{Activation, MODEL_TYPES, ModelConfig, Rope, RopeScaling};
use crate::error::{Error, Result};
use serde_json::Value;
use std::path::Path;
use weft_ir::dtype::DType;

/// Reads `config.json` of a folder; `generation_config.json`, where there is one, overrides the
/// special tokens.
///
/// # Errors
/// [`Error::MissingField`], [`Error::Unsupported`] or [`Error::Malformed`], each naming file and key.
pub fn read(folder: &Path) -> Result<ModelConfig> {
    let path = folder.join("config.json");
    if !path.exists() {
        let remedy = "a safetensors checkpoint needs its config.json in the same folder";
        return Err(Error::missing(&path, "the file", remedy));
    }
    let mut config = parse(&path, &read_bytes(&path)?)?;
    let generation = folder.join("generation_config.json");
    if generation.exists() {
        override_tokens(&mut config, &generation, &read_bytes(&generation)?)?;
    }
    Ok(config)
}

fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::io(path, "read", e))
}

/// Parses the text of a `config.json`; `path` is for errors.
///
/// # Errors
/// As [`read`].
pub fn parse(path: &Path, text: &[u8]) -> Result<ModelConfig> {
    let mut f = Fields::parse(path, text)?;
    let model_type = f.text("model_type")?;
    let model_type = model_type.ok_or_else(|| {
        Error::missing(path, "model_type", format!("supported model types: {}", MODEL_TYPES.join(", ")))
    })?;
    if !MODEL_TYPES.contains(&model_type.as_str()) {
        return Err(Error::unsupported(path, "model_type", model_type, MODEL_TYPES.join(", ")));
    }
    check_architecture(&mut f)?;
    check_sliding_window(&mut f)?;
    let hidden_size = f.required("hidden_size")?;
    let heads = f.required("num_attention_heads")?;
    let head_dim = match f.size("head_dim")? {
        Some(d) => d,
        None if heads > 0 && hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            let remedy = format!("hidden_size {hidden_size} does not divide into {heads} heads: give it");
            return Err(Error::missing(path, "head_dim", remedy));
        }
    };
    let act = f.text("hidden_act")?.unwrap_or_else(|| "silu".to_owned());
    let Some(hidden_act) = Activation::parse(&act) else {
        return Err(Error::unsupported(path, "hidden_act", act, "silu"));
    };
    let mut config = ModelConfig {
        model_type,
        vocab_size: f.required("vocab_size")?,
        hidden_size,
        intermediate_size: f.required("intermediate_size")?,
        layers: f.required("num_hidden_layers")?,
        heads,
        kv_heads: f.size("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        rms_norm_eps: f.number("rms_norm_eps")?.unwrap_or(1e-6),
        rope: rope(&mut f)?,
        max_position: f.size("max_position_embeddings")?.unwrap_or(2048),
        tie_word_embeddings: f.boolean("tie_word_embeddings")?.unwrap_or(false),
        attention_bias: f.boolean("attention_bias")?.unwrap_or(false),
        mlp_bias: f.boolean("mlp_bias")?.unwrap_or(false),
        hidden_act,
        dtype: dtype(&mut f)?,
        bos_token_id: f.tokens("bos_token_id")?.map_or(Some(1), |t| t.first().copied()),
        eos_token_ids: f.tokens("eos_token_id")?.unwrap_or_else(|| vec![2]),
        pad_token_id: f.tokens("pad_token_id")?.and_then(|t| t.first().copied()),
        unknown: Vec::new(),
    };
    config.unknown = f.finish()?;
    config.check(path)?;
    Ok(config)
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

fn check_architecture(f: &mut Fields) -> Result<()> {
    let Some(value) = f.take("architectures") else { return Ok(()) };
    let names: Vec<&str> = value.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if names.is_empty() || names.iter().any(|n| n.eq_ignore_ascii_case("LlamaForCausalLM")) {
        return Ok(());
    }
    Err(Error::unsupported(&f.path, "architectures", value, "LlamaForCausalLM"))
}

fn check_sliding_window(f: &mut Fields) -> Result<()> {
    let used = f.boolean("use_sliding_window")?;
    match f.take("sliding_window") {
        Some(window) if used != Some(false) => {
            Err(Error::unsupported(&f.path, "sliding_window", window, "absent, null, or not used"))
        }
        _ if used == Some(true) => {
            Err(Error::unsupported(&f.path, "use_sliding_window", true, "absent or false"))
        }
        _ => Ok(()),
    }
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

/// The newer `rope_parameters`, or the older `rope_theta` and `rope_scaling`.
fn rope(f: &mut Fields) -> Result<Rope> {
    let outer_theta = f.number("rope_theta")?;
    let (old, new) = (f.take("rope_scaling"), f.take("rope_parameters"));
    let (name, value) = match (old, new) {
        (_, Some(new)) => ("rope_parameters", new),
        (Some(old), None) => ("rope_scaling", old),
        (None, None) => {
            let theta = outer_theta.unwrap_or(10000.0);
            return Ok(Rope { theta, scaling: RopeScaling::None });
        }
    };
    let Value::Object(map) = value else {
        return Err(f.mistyped(name, &value, "an object"));
    };
    let mut r = Fields { path: f.path.clone(), prefix: format!("{name}."), map };
    let theta = match (r.number("rope_theta")?, outer_theta) {
        (Some(inner), Some(outer)) if inner != outer => {
            let problem = format!("{inner} contradicts rope_theta = {outer}");
            return Err(r.malformed("rope_theta", problem));
        }
        (inner, outer) => inner.or(outer).unwrap_or(10000.0),
    };
    let older_kind = r.text("type")?;
    let kind = r.text("rope_type")?.or(older_kind).unwrap_or_else(|| "default".to_owned());
    if let Some(factor) = r.number("partial_rotary_factor")?.filter(|&x| x != 1.0) {
        return Err(Error::unsupported(&r.path, r.name("partial_rotary_factor"), factor, "absent or 1"));
    }
    let scaling = match kind.as_str() {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: r.required_number("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: r.required_number("factor")?,
            low_freq_factor: r.required_number("low_freq_factor")?,
            high_freq_factor: r.required_number("high_freq_factor")?,
            original_max_position: r.required("original_max_position_embeddings")?,
        },
        _ => return Err(Error::unsupported(&r.path, r.name("rope_type"), kind, "default, linear, llama3")),
    };
    // With "default" and "linear" these two are recorded, but not used.
    for unused in ["factor", "original_max_position_embeddings"] {
        r.map.remove(unused);
    }
    match r.map.iter().find(|(_, v)| !v.is_null()) {
        Some((key, value)) => {
            let supported = "rope_theta, rope_type, factor, low_freq_factor, high_freq_factor, \
                             original_max_position_embeddings";
            Err(Error::unsupported(&r.path, r.name(key), value, supported))
        }
        None => Ok(Rope { theta, scaling }),
    }
}
