//! Models of several parts (images and text), whose texts go through a decoder that is built: the text part's settings
//! are those in `text_config`, completed by the model's own. The other parts are left out.

use super::fields::{Fields, same};
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};

/// A family of such models.
struct Composite {
    /// `model_type` in config.json.
    model_type: &'static str,
    /// Name of its class.
    architecture: &'static str,
    /// `model_type` of its text part.
    text: &'static str,
    /// Dimensions that its class gives a text part without them.
    dimensions: &'static [(&'static str, usize)],
}

const ALL: [Composite; 2] = [
    Composite {
        model_type: "gemma3",
        architecture: "Gemma3ForConditionalGeneration",
        text: "gemma3_text",
        dimensions: &[
            ("vocab_size", 262_208),
            ("hidden_size", 2304),
            ("intermediate_size", 9216),
            ("num_hidden_layers", 26),
            ("num_attention_heads", 8),
            ("num_key_value_heads", 4),
            ("head_dim", 256),
        ],
    },
    Composite {
        model_type: "mistral3",
        architecture: "Mistral3ForConditionalGeneration",
        text: "mistral",
        dimensions: &[],
    },
];

/// Keys of other parts, and of how they meet the text.
const OTHERS: [&str; 12] = [
    "boi_token_index",
    "eoi_token_index",
    "image_token_index",
    "image_token_id",
    "mm_tokens_per_image",
    "model_type",
    "multimodal_projector_bias",
    "projector_hidden_act",
    "spatial_merge_size",
    "vision_config",
    "vision_feature_layer",
    "text_config",
];

/// Keys that both may have with different values; the model's own are taken.
const OUTER: [&str; 3] = ["bos_token_id", "eos_token_id", "pad_token_id"];

/// Keys that say nothing of the result; the text part's are taken.
const FREE: [&str; 6] =
    ["_name_or_path", "dtype", "initializer_range", "torch_dtype", "transformers_version", "use_cache"];

/// Families of models of several parts, as errors list them.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|c| c.model_type)
}

/// The text part's settings, where the file's are those of a model of several parts; the family's name is in them.
pub(super) fn text_part(mut f: Fields) -> Result<Fields> {
    let Some(own) = f.map.get("model_type").and_then(Value::as_str) else { return Ok(f) };
    let Some(of) = ALL.iter().find(|c| c.model_type == own) else { return Ok(f) };
    let mut text: Map<String, Value> = match f.take("text_config") {
        Some(Value::Object(text)) => text,
        Some(other) => return Err(f.mistyped("text_config", &other, "an object of settings")),
        None => return Err(f.absent("text_config")),
    };
    if let Some(other) = text.get("model_type").filter(|name| **name != of.text) {
        return Err(Error::unsupported(&f.path, "text_config.model_type", other, of.text));
    }
    let classes = f.take("architectures");
    let mut classes = classes.iter().filter_map(Value::as_array).flatten();
    if let Some(other) = classes.find(|class| **class != of.architecture) {
        return Err(Error::unsupported(&f.path, "architectures", other, of.architecture));
    }
    text.remove("architectures");
    text.insert("model_type".into(), of.text.into());
    let free = |key: &str| FREE.contains(&key);
    for (key, value) in std::mem::take(&mut f.map) {
        let inner = text.get(&key).filter(|v| !v.is_null());
        match inner {
            _ if OTHERS.contains(&key.as_str()) || value.is_null() => {}
            Some(inner) if !OUTER.contains(&key.as_str()) && !free(&key) && !same(inner, &value) => {
                let problem = format!("{value} contradicts text_config.{key} = {inner}");
                return Err(f.malformed(&key, problem));
            }
            Some(_) if free(&key) => {}
            Some(_) | None => {
                text.insert(key, value);
            }
        }
    }
    for (key, n) in of.dimensions {
        text.entry(*key).or_insert(json!(n));
    }
    Ok(Fields { map: text, prefix: "text_config.".into(), ..f })
}
