//! Targets: the files beside checkpoints and plans.

use crate::decoder::decode_plan;
use crate::synthetic::LlamaShape;
use serde_json::Value;
use std::path::{Component, Path};
use std::sync::OnceLock;
use weft::bundle::{parse_explain, parse_manifest};
use weft_frontend::config::pooling::Pooling;
use weft_ir::plan::Plan;
use weft_ir::target::Target;
use weft_passes::schedule::candidates;
use weft_passes::schedule::database::Database;

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

/// Shape of the works that measured schedules are looked up for.
pub const SMALL: LlamaShape = LlamaShape {
    layers: 1,
    hidden: 256,
    intermediate: 512,
    heads: 8,
    kv_heads: 2,
    head_dim: 64,
    vocab: 300,
    tied: true,
};

/// A decode step of [`SMALL`], of three sequences.
pub fn small_plan() -> &'static Plan {
    static PLAN: OnceLock<Plan> = OnceLock::new();
    PLAN.get_or_init(|| decode_plan(&SMALL, target(), (1024, 2), &|_, _| {}))
}

/// The target of the plan.
pub fn target() -> &'static Target {
    Target::parse("sm_90").expect("sm_90")
}

/// Measured schedules: read, written again, and looked up for a decode step.
pub(super) fn schedules(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(database) = Database::parse(text) else { return };
    let printed = database.text().unwrap_or_else(|e| panic!("it is not written: {e}"));
    let again = Database::parse(&printed).unwrap_or_else(|e| panic!("its own text is not read: {e}"));
    assert_eq!(again, database);
    let (plan, target) = (small_plan(), target());
    for entry in &plan.entries {
        for work in &plan.works {
            if let Some((schedule, _)) = database.find(work, &entry.bind, target) {
                candidates::legal(work, &schedule, target).unwrap_or_else(|e| panic!("{schedule:?}: {e}"));
            }
        }
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
