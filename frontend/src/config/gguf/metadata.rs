//! The metadata under one architecture's prefix, and a judgement of the keys that nobody read.

use crate::config::unread::{self, PassedOver, Unread};
use crate::error::{Error, Result};
use crate::gguf::{Gguf, Value};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// Keys under the architecture's prefix that change nothing.
const HARMLESS: &[&str] = &[
    "attention.causal",
    "classifier.output_labels",
    // Of a decoder, whose hidden states are not pooled.
    "pooling_type",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "tensor_data_layout",
];

/// What other parts of a multimodal file have: text does not go through them.
const OTHER_PARTS: &[&str] = &["mm.", "vision."];

/// Keys under the architecture's prefix that change the result, with the number (or truth value as 0
/// and 1) at which they do not.
const MATTERS: &[(&str, f64)] = &[
    ("attention.clamp_kqv", 0.0),
    ("attention.key_length_mla", 0.0),
    ("attention.key_length_swa", 0.0),
    ("attention.kv_lora_rank", 0.0),
    ("attention.max_alibi_bias", 0.0),
    ("attention.output_scale", 0.0),
    ("attention.scale", 0.0),
    ("attention.shared_kv_layers", 0.0),
    ("attention.sliding_window", 0.0),
    ("attention.temperature_scale", 0.0),
    ("attention.value_length_swa", 0.0),
    ("attn_logit_softcapping", 0.0),
    ("embedding_scale", 1.0),
    ("expert_count", 0.0),
    ("expert_used_count", 0.0),
    ("final_logit_softcapping", 0.0),
    ("logit_scale", 1.0),
    ("nextn_predict_layers", 0.0),
    ("residual_scale", 1.0),
    ("rope.dimension_count_swa", 0.0),
    ("rope.scaling.attn_factor", 1.0),
    ("rope.scaling.yarn_log_multiplier", 0.0),
    ("use_parallel_residual", 0.0),
];

/// The metadata under one architecture's prefix.
pub(super) struct Metadata<'a> {
    pub file: &'a Gguf,
    pub arch: &'a str,
    /// Keys (without prefix) that have been read.
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Metadata<'a> {
    pub fn new(file: &'a Gguf, arch: &'a str) -> Metadata<'a> {
        Metadata { file, arch, read: RefCell::default() }
    }

    pub fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    /// The whole key of something that is now read.
    pub fn reading(&self, name: &str) -> String {
        self.read.borrow_mut().insert(name.to_owned());
        self.key(name)
    }

    /// An integer; an array of equal integers (one for each layer) counts as one.
    pub fn size(&self, name: &str) -> Result<Option<usize>> {
        let key = self.reading(name);
        let value = match self.file.value(&key) {
            Some(Value::Array(_)) => {
                let all = self.file.integers(&key)?.unwrap_or_default();
                let first = all.first().copied().unwrap_or(0);
                if let Some((i, other)) = all.iter().enumerate().find(|(_, n)| **n != first) {
                    let (value, supported) = (format!("[{first}, …]"), "the same number for every layer");
                    let field = format!("{key}[{i}] = {other} in {key}");
                    return Err(Error::unsupported(self.file.path(), field, value, supported));
                }
                match u64::try_from(first) {
                    Ok(n) => Some(n),
                    Err(_) => {
                        return Err(Error::damaged(self.file.path(), key, format!("{first} is negative")));
                    }
                }
            }
            _ => self.file.unsigned(&key)?,
        };
        match value.map(usize::try_from) {
            Some(Err(_)) => Err(Error::damaged(self.file.path(), key, "does not fit in memory")),
            Some(Ok(n)) => Ok(Some(n)),
            None => Ok(None),
        }
    }

    pub fn number(&self, name: &str) -> Result<Option<f64>> {
        self.file.number(&self.reading(name))
    }

    pub fn text(&self, name: &str) -> Result<Option<&'a str>> {
        self.file.text(&self.reading(name))
    }

    pub fn boolean(&self, name: &str) -> Result<Option<bool>> {
        self.file.boolean(&self.reading(name))
    }

    pub fn required(&self, name: &str) -> Result<usize> {
        self.size(name)?.ok_or_else(|| self.absent(name))
    }

    pub fn required_number(&self, name: &str) -> Result<f64> {
        self.number(name)?.ok_or_else(|| self.absent(name))
    }

    pub fn absent(&self, name: &str) -> Error {
        Error::missing(self.file.path(), self.key(name), "the file is not a whole model: fetch it again")
    }

    pub fn unsupported(&self, name: &str, value: impl ToString, supported: impl Into<String>) -> Error {
        Error::unsupported(self.file.path(), self.key(name), value, supported)
    }

    pub fn has(&self, tensor: &str) -> bool {
        self.file.tensor(tensor).is_some()
    }

    /// Judges the keys of the architecture that nobody read; `ignore` are unknown ones that the user says to pass over.
    pub fn finish(&self, ignore: &[String]) -> Result<PassedOver> {
        let prefix = self.key("");
        let read = self.read.borrow();
        let mut unread = Vec::new();
        for key in self.file.keys() {
            let Some(name) = key.strip_prefix(&prefix).filter(|name| !read.contains(*name)) else { continue };
            if let Some((_, neutral)) = MATTERS.iter().find(|(k, _)| *k == name) {
                let value = match self.file.value(key) {
                    Some(Value::Bool(b)) => f64::from(u8::from(*b)),
                    _ => self.file.number(key)?.unwrap_or(*neutral),
                };
                if value != *neutral {
                    return Err(self.unsupported(name, value, format!("absent or {neutral}")));
                }
            } else if !HARMLESS.contains(&name) && !OTHER_PARTS.iter().any(|part| name.starts_with(part)) {
                unread.push(Unread { key: key.to_owned(), value: self.file.value(key).and_then(shown) });
            }
        }
        if !read.contains("attention.causal")
            && self.file.boolean(&self.key("attention.causal"))? == Some(false)
        {
            return Err(self.unsupported("attention.causal", false, "absent or true"));
        }
        unread::judge(self.file.path(), unread, ignore)
    }
}

/// A value as errors show it; `None` where it is empty.
fn shown(value: &Value) -> Option<String> {
    match value {
        Value::Bool(b) => Some(b.to_string()),
        Value::Unsigned(n) => Some(n.to_string()),
        Value::Signed(n) => Some(n.to_string()),
        Value::F32(x) => Some(x.to_string()),
        Value::F64(x) => Some(x.to_string()),
        Value::Text(text) => (!text.is_empty()).then(|| format!("{text:?}")),
        Value::Array(a) => (a.len > 0).then(|| format!("[{} values]", a.len)),
    }
}
