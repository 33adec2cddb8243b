//! `weft models`.

use crate::errors::Result;
use std::io::Write;
use weft_frontend::config::ROPE_TYPES;
use weft_frontend::models::{ENCODERS, FAMILIES, note};
use weft_frontend::tensor::SUPPORTED_TYPES;

/// Lists families and formats.
pub fn run() -> Result<()> {
    let mut out = std::io::stdout().lock();
    for (kind, families) in [("decoders", FAMILIES), ("encoders", ENCODERS)] {
        writeln!(out, "{kind} (model_type in config.json):")?;
        for family in families {
            match note(family.model_type) {
                Some(note) => writeln!(out, "  {}: {note}", family.model_type)?,
                None => writeln!(out, "  {}", family.model_type)?,
            }
        }
    }
    writeln!(out, "rope types, where positions are rotary: {ROPE_TYPES}")?;
    writeln!(out, "checkpoints: Hugging Face folders (single or sharded safetensors), GGUF 2 and 3")?;
    writeln!(out, "tensor types: {SUPPORTED_TYPES}")?;
    Ok(())
}
