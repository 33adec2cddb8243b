//! The keys of a JSON settings file, read by type, and a judgement of those that nobody read.

use super::harmless::is_harmless;
use super::keys;
use super::unread::{self, PassedOver, Unread};
use crate::duplicates;
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Whether two values are equal; 1 and 1.0 are.
pub(super) fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// The keys of a JSON object, taken out as they are read.
pub(super) struct Fields {
    pub(super) path: PathBuf,
    pub(super) prefix: String,
    pub(super) map: Map<String, Value>,
}

impl Fields {
    pub(super) fn parse(path: &Path, text: &[u8]) -> Result<Fields> {
        if let Some(key) = duplicates::first(text) {
            let problem = "the key appears twice";
            return Err(Error::malformed(path, key, problem, "keep one of the two"));
        }
        match serde_json::from_slice(text) {
            Ok(Value::Object(map)) => Ok(Fields { path: path.to_owned(), prefix: String::new(), map }),
            Ok(_) => Err(Error::malformed(path, "JSON", "not an object", "give an object of settings")),
            Err(e) => Err(Error::malformed(path, "JSON", e, "correct the file's JSON")),
        }
    }

    pub(super) fn name(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    pub(super) fn malformed(&self, key: &str, problem: String) -> Error {
        Error::malformed(&self.path, self.name(key), problem, "correct the checkpoint's configuration")
    }

    pub(super) fn mistyped(&self, key: &str, value: &Value, expected: &str) -> Error {
        self.malformed(key, format!("is {value}, not {expected}"))
    }

    /// The value of a key; null counts as absent.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|v| !v.is_null())
    }

    pub(super) fn typed<T>(
        &mut self,
        key: &str,
        expected: &str,
        get: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.take(key) {
            None => Ok(None),
            Some(v) => get(&v).map(Some).ok_or_else(|| self.mistyped(key, &v, expected)),
        }
    }

    pub(super) fn text(&mut self, key: &str) -> Result<Option<String>> {
        self.typed(key, "text", |v| v.as_str().map(str::to_owned))
    }

    pub(super) fn boolean(&mut self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(super) fn number(&mut self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    pub(super) fn size(&mut self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a non-negative integer", |v| v.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    /// A list of numbers.
    pub(super) fn numbers(&mut self, key: &str) -> Result<Option<Vec<f64>>> {
        let all = |v: &Value| v.as_array()?.iter().map(Value::as_f64).collect();
        self.typed(key, "a list of numbers", all)
    }

    /// Gives an older key its newer name.
    pub(super) fn rename(&mut self, older: &str, newer: &str) -> Result<()> {
        let Some(value) = self.take(older) else { return Ok(()) };
        match self.map.get(newer).filter(|v| !v.is_null() && !same(v, &value)) {
            Some(other) => Err(self.malformed(older, format!("{value} contradicts {newer} = {other}"))),
            None => {
                self.map.insert(newer.to_owned(), value);
                Ok(())
            }
        }
    }

    pub(super) fn required(&mut self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| self.absent(key))
    }

    pub(super) fn required_number(&mut self, key: &str) -> Result<f64> {
        self.number(key)?.ok_or_else(|| self.absent(key))
    }

    pub(super) fn absent(&self, key: &str) -> Error {
        Error::missing(&self.path, self.name(key), "add it: there is no safe default")
    }

    /// Token ids given as one or a list; null is an empty list, an absent key `None`. Negative ids,
    /// which some configs use for "none", are left out.
    pub(super) fn tokens(&mut self, key: &str) -> Result<Option<Vec<u32>>> {
        let Some(value) = self.map.remove(key) else { return Ok(None) };
        let items = match &value {
            Value::Null => Vec::new(),
            Value::Array(items) => items.iter().collect(),
            one => vec![one],
        };
        let mut ids = Vec::with_capacity(items.len());
        for item in items {
            match item.as_i64() {
                Some(n) if n < 0 => {}
                Some(n) if u32::try_from(n).is_ok() => ids.push(n as u32),
                _ => return Err(self.mistyped(key, &value, "a token id or a list of them")),
            }
        }
        Ok(Some(ids))
    }

    /// Judges the keys that nobody read; `ignore` are unknown ones that the user says to pass over.
    pub(super) fn finish(self, model_type: &str, ignore: &[String]) -> Result<PassedOver> {
        let mut unread = Vec::new();
        for (key, value) in self.map {
            match keys::neutral(model_type, &key) {
                Some(neutral) if !neutral.admits(&value) => {
                    return Err(Error::unsupported(&self.path, key, value, neutral.supported()));
                }
                Some(_) => {}
                None if is_harmless(model_type, &key) || value.is_null() => {}
                None => {
                    let off = keys::is_empty(&value);
                    unread.push(Unread { key, value: (!off).then_some(value) });
                }
            }
        }
        // Reading keys has mixed up their order.
        unread.sort_by(|a, b| a.key.cmp(&b.key));
        unread::judge(&self.path, unread, ignore)
    }
}
