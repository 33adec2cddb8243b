//! The ropes of a configuration: where their settings stand, and that they stand there once.
//!
//! Older spelling: `rope_theta` and `rope_scaling` (`type` or `rope_type`); newer: `rope_parameters`, for
//! some families one object for each kind of layer. Files that have both must say the same twice.

use super::fields::Fields;
use super::rope::{Around, Outer, Rope, one};
use super::spec::Spec;
use crate::error::{Error, Result};
use serde_json::{Map, Value};

/// The ropes of a model, before heads are known.
#[derive(PartialEq)]
pub(super) struct Ropes {
    /// Of full-attention layers.
    pub full: Rope,
    /// Of sliding-window layers, where they have their own.
    pub local: Option<Rope>,
}

/// The kinds of layers that `rope_parameters` may have an object for.
const KINDS: [&str; 2] = ["full_attention", "sliding_attention"];

/// Reads the ropes of a configuration.
pub(super) fn read(f: &mut Fields, spec: &Spec, around: Around) -> Result<Ropes> {
    if spec.neox_names {
        // Files that transformers 4.5x wrote have both.
        f.rename("partial_rotary_factor", "rotary_pct")?;
        f.rename("rotary_emb_base", "rope_theta")?;
    }
    let outer = Outer {
        theta: f.number("rope_theta")?.map(|theta| ("rope_theta", theta)),
        partial: match (spec.partial_rotary, spec.neox_names) {
            (None, _) => None,
            (Some(_), true) => f.number("rotary_pct")?,
            (Some(_), false) => f.number("partial_rotary_factor")?,
        },
        original: if spec.outer_original { f.size("original_max_position_embeddings")? } else { None },
    };
    let local = local(f, spec)?;
    let given = Given { spec, outer, local, around };
    // transformers takes an empty `rope_scaling` for none.
    let old = object(f, "rope_scaling")?.filter(|map| !map.is_empty());
    let new = object(f, "rope_parameters")?;
    let (old, new) = match (old, new) {
        (None, new) => return given.ropes(f, "rope_parameters", new.unwrap_or_default()),
        (Some(old), None) => return given.ropes(f, "rope_scaling", old),
        (Some(old), Some(new)) => (old, new),
    };
    let (older, newer) = (Value::Object(old.clone()), Value::Object(new.clone()));
    let beside = given.beside(old, &new);
    let ropes = given.ropes(f, "rope_parameters", new)?;
    if given.ropes(f, "rope_scaling", beside)? == ropes {
        return Ok(ropes);
    }
    let problem = format!("{older} contradicts rope_parameters = {newer}");
    let remedy = "remove the one that is not the model's, with rope_theta where the other has it";
    Err(Error::malformed(&f.path, "rope_scaling", problem, remedy))
}

fn object(f: &mut Fields, key: &str) -> Result<Option<Map<String, Value>>> {
    match f.take(key) {
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(other) => Err(f.mistyped(key, &other, "an object")),
        None => Ok(None),
    }
}

/// Base of the sliding-window layers' rope, where it stands outside of its object.
#[derive(Clone, Copy)]
enum Local {
    /// Nowhere: the family's default.
    Default,
    /// As the full-attention layers'.
    Same,
    /// In this key.
    Given(&'static str, f64),
}

fn local(f: &mut Fields, spec: &Spec) -> Result<Local> {
    let modernbert = spec.model_type == "modernbert";
    let key = if modernbert { "local_rope_theta" } else { "rope_local_base_freq" };
    if spec.local_theta.is_none() {
        return Ok(Local::Default);
    }
    // ModernBERT's class asks for null; the others' would compute with it.
    let null = f.map.get(key).is_some_and(Value::is_null);
    match f.number(key)? {
        Some(theta) => Ok(Local::Given(key, theta)),
        None if null && modernbert => Ok(Local::Same),
        None => Ok(Local::Default),
    }
}

/// What an object of rope settings is read with.
struct Given<'a> {
    spec: &'a Spec,
    outer: Outer,
    local: Local,
    around: Around,
}

impl Given<'_> {
    /// What `rope_scaling` says beside a `rope_parameters` by kinds of layers: of the full-attention layers.
    fn beside(&self, mut old: Map<String, Value>, new: &Map<String, Value>) -> Map<String, Value> {
        let by_kind = |map: &Map<String, Value>| KINDS.iter().any(|kind| map.contains_key(*kind));
        if self.spec.local_theta.is_none() || by_kind(&old) || !by_kind(new) {
            return old;
        }
        let mut both = new.clone();
        if let Some(kind) = old.remove("type") {
            old.entry("rope_type").or_insert(kind);
        }
        match both.get_mut(KINDS[0]) {
            Some(Value::Object(full)) => full.append(&mut old),
            _ => drop(both.insert(KINDS[0].to_owned(), Value::Object(old))),
        }
        both
    }

    /// The ropes of an object, which stands in the file by `name`.
    fn ropes(&self, f: &Fields, name: &str, mut map: Map<String, Value>) -> Result<Ropes> {
        let (spec, around) = (self.spec, self.around);
        let mut part = |key: &str| match map.remove(key) {
            Some(Value::Object(inner)) => Ok(Some(inner)),
            None | Some(Value::Null) => Ok(None),
            Some(other) => Err(f.mistyped(&format!("{name}.{key}"), &other, "an object")),
        };
        let (full, local) = match spec.local_theta {
            Some(_) => (part(KINDS[0])?, part(KINDS[1])?),
            None => (None, None),
        };
        let nested = full.is_some() || local.is_some();
        if nested && let Some((key, value)) = map.iter().next() {
            let supported = "full_attention and sliding_attention, or the settings of one rope";
            return Err(Error::unsupported(&f.path, format!("{name}.{key}"), value, supported));
        }
        let prefix = |key: &str| if nested { format!("{name}.{key}.") } else { format!("{name}.") };
        let mut fields = Fields {
            path: f.path.clone(),
            prefix: prefix(KINDS[0]),
            map: full.unwrap_or(if nested { Default::default() } else { map }),
        };
        let full = one(&mut fields, spec, &self.outer, spec.theta, around)?;
        let Some(default) = spec.local_theta else { return Ok(Ropes { full, local: None }) };
        let (default, theta) = match self.local {
            Local::Default => (default.unwrap_or(full.theta), None),
            Local::Same => (full.theta, None),
            Local::Given(key, theta) => (theta, Some((key, theta))),
        };
        // In the older spelling the scaling is of the full-attention layers alone.
        let outer = Outer { theta, ..self.outer };
        let map = local.unwrap_or_default();
        let mut fields = Fields { path: f.path.clone(), prefix: prefix(KINDS[1]), map };
        let local = one(&mut fields, spec, &outer, default, around)?;
        Ok(Ropes { full, local: Some(local) })
    }
}
