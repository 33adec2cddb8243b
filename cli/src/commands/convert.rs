//! `weft convert`.

use super::size;
use crate::args::ConvertArgs;
use crate::errors::{Error, Result};
use crate::{model, progress};
use std::io::Write;
use weft_frontend::checkpoint::Checkpoint;
use weft_frontend::convert::convert;

/// Converts a GGUF file.
pub fn run(args: &ConvertArgs) -> Result<()> {
    let checkpoint = Checkpoint::open_ignoring(&args.file, &args.keys.ignore_config_key)?;
    if checkpoint.gguf().is_none() {
        let path = args.file.display();
        return Err(Error::input(format!("{path}: not a GGUF file; give a .gguf file")));
    }
    model::warn(&model::config_warnings(checkpoint.config()));
    let bar = progress::bytes("converting");
    let written = convert(&checkpoint, &args.output, args.dtype.into(), &mut |done, total| {
        progress::tell(&bar, done, total)
    });
    bar.finish_and_clear();
    let summary = written?;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{}: {} tensors, {:.1} M parameters, {}",
        args.output.display(),
        summary.tensors,
        summary.parameters as f64 / 1e6,
        size(summary.bytes)
    )?;
    Ok(())
}
