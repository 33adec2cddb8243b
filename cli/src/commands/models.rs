//! `weft models`.

use super::print_json;
use crate::args::ModelsArgs;
use crate::errors::Result;
use serde::Serialize;
use std::io::Write;
use weft_frontend::config::{BOUNDED_ROPE_TYPES, ROPE_TYPES};
use weft_frontend::models::{ENCODERS, FAMILIES, Family, note};
use weft_frontend::tensor::SUPPORTED_TYPES;

/// Forms of checkpoints.
const CHECKPOINTS: [&str; 2] = ["Hugging Face folders (single or sharded safetensors)", "GGUF 2 and 3"];

/// What can be compiled.
#[derive(Serialize)]
struct Models {
    decoders: Vec<Line>,
    encoders: Vec<Line>,
    rope_types: Vec<&'static str>,
    bounded_rope_types: &'static str,
    checkpoints: [&'static str; 2],
    tensor_types: &'static str,
}

/// A family.
#[derive(Serialize)]
struct Line {
    model_type: &'static str,
    note: Option<&'static str>,
}

impl Models {
    fn all() -> Models {
        let lines = |families: &[Family]| {
            let line = |f: &Family| Line { model_type: f.model_type, note: note(f.model_type) };
            families.iter().map(line).collect()
        };
        Models {
            decoders: lines(FAMILIES),
            encoders: lines(ENCODERS),
            rope_types: ROPE_TYPES.split(", ").collect(),
            bounded_rope_types: BOUNDED_ROPE_TYPES,
            checkpoints: CHECKPOINTS,
            tensor_types: SUPPORTED_TYPES,
        }
    }
}

/// Lists families and formats.
pub fn run(args: &ModelsArgs) -> Result<()> {
    let models = Models::all();
    if args.json {
        return print_json(&models);
    }
    let mut out = std::io::stdout().lock();
    for (kind, families) in [("decoders", &models.decoders), ("encoders", &models.encoders)] {
        writeln!(out, "{kind} (model_type in config.json):")?;
        for Line { model_type, note } in families {
            match note {
                Some(note) => writeln!(out, "  {model_type}: {note}")?,
                None => writeln!(out, "  {model_type}")?,
            }
        }
    }
    writeln!(out, "rope types, where positions are rotary: {ROPE_TYPES} ({BOUNDED_ROPE_TYPES})")?;
    writeln!(out, "checkpoints: {}", CHECKPOINTS.join(", "))?;
    writeln!(out, "tensor types: {SUPPORTED_TYPES}")?;
    Ok(())
}
