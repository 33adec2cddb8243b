//! Targets: the files beside checkpoints and plans.

use serde_json::Value;
use std::path::{Component, Path};
use weft::bundle::{parse_explain, parse_manifest};
use weft_frontend::config::pooling::Pooling;

/// The files of sentence-transformers, as an object of JSON by their names: a text is a file's own bytes, another value
/// is written as JSON.
pub(super) fn pooling(bytes: &[u8]) {
    let Ok(Value::Object(files)) = serde_json::from_slice(bytes) else { return };
    let folder = Path::new("encoder");
    let found = Pooling::read(folder, &|path| {
        let name = path.strip_prefix(folder).expect("a file of the folder");
        let inside = name.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        assert!(inside, "{name:?} leaves the folder");
        Ok(files.get(&*name.to_string_lossy()).map(|file| match file {
            Value::String(text) => text.clone().into_bytes(),
            other => other.to_string().into_bytes(),
        }))
    });
    if let Ok(Some(pooling)) = found {
        assert_ne!(pooling.max_tokens, Some(0), "no token at all");
    }
}

/// A bundle's manifest.
pub(super) fn manifest(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(read) = parse_manifest(Path::new("manifest.json"), text) else { return };
    for k in &read.kernels {
        let inside = Path::new(&k.file).components().all(|c| matches!(c, Component::Normal(_)));
        assert!(inside && !k.file.is_empty(), "{:?} leaves the bundle", k.file);
    }
    let printed = serde_json::to_string(&read).expect("JSON");
    assert_eq!(parse_manifest(Path::new("manifest.json"), &printed).ok(), Some(read));
}

/// Where a bundle's works came from.
pub(super) fn explain(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(read) = parse_explain(Path::new("explain.json"), text) else { return };
    // Costs are read to the last digit but one.
    let printed = serde_json::to_string(&read).expect("JSON");
    let again = parse_explain(Path::new("explain.json"), &printed).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(again.works.len(), read.works.len());
}
