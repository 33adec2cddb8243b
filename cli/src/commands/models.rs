//! `weft models`.

use crate::errors::Result;
use std::io::Write;
use weft_frontend::models::FAMILIES;
use weft_frontend::tensor::SUPPORTED_TYPES;

/// Lists families and formats.
pub fn run() -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "families (model_type in config.json):")?;
    for family in FAMILIES {
        writeln!(out, "  {}", family.model_type)?;
    }
    writeln!(out, "checkpoints: Hugging Face folders (single or sharded safetensors), GGUF 2 and 3")?;
    writeln!(out, "tensor types: {SUPPORTED_TYPES}")?;
    Ok(())
}
