//! `weft synth`.

use super::{print_json, size};
use crate::args::SynthArgs;
use crate::errors::Result;
use crate::progress;
use std::io::Write;
use weft_frontend::synth::{Options, synth};

/// Writes random weights for a configuration.
pub fn run(args: &SynthArgs) -> Result<()> {
    let options = Options {
        seed: args.seed,
        dtype: args.dtype.map(Into::into),
        shard_size: args.shard_size,
        force: args.force,
        ignore: args.keys.ignore_config_key.clone(),
    };
    let bar = progress::bytes("writing");
    let written = synth(&args.config, &args.output, &options, &mut |done, total| {
        progress::tell(&bar, done, total);
    });
    bar.finish_and_clear();
    let summary = written?;
    for key in &summary.left_out {
        eprintln!("note: {key} is left out of config.json: the weights are plain {}", summary.dtype);
    }
    if args.json {
        return print_json(&summary);
    }
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{}: random {} of seed {}: {} tensors, {:.1} M parameters, {} of {}, {} files",
        args.output.display(),
        summary.model_type,
        summary.seed,
        summary.tensors,
        summary.parameters as f64 / 1e6,
        size(summary.bytes),
        summary.dtype,
        summary.files.len()
    )?;
    Ok(())
}
