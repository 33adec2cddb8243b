//! `weft forward`.

use crate::args::ForwardArgs;
use crate::engine::{Request, Source};
use crate::errors::{Error, Result};
use crate::score::{check_length, score};
use crate::{encode, progress, tensors};
use std::time::Instant;
use weft_frontend::models::Kind;

/// Computes logits or hidden states, file to file.
pub fn run(args: &ForwardArgs) -> Result<()> {
    let source = Source::open(&args.model, &args.build)?;
    match source.kind()? {
        Kind::Decoder => logits(args, source),
        Kind::Encoder => hidden_states(args, source),
    }
}

fn hidden_states(args: &ForwardArgs, source: Source) -> Result<()> {
    if args.max_new_tokens.is_some_and(|n| n > 0) {
        return Err(Error::input("--max-new-tokens: an encoder continues nothing; leave it out"));
    }
    let rows = encode::tensors::read(&args.input, source.checkpoint())?;
    let sequences = rows.sequences.len();
    let mut executor = source.load(Request { device: args.device, build: &args.build, sequences })?;
    let (bar, start) = (progress::count("tokens"), Instant::now());
    let hidden = encode::encode(executor.as_mut(), &rows.sequences, &mut |done, total| {
        progress::tell(&bar, done, total)
    });
    bar.finish_and_clear();
    let width = executor.limits().hidden.unwrap_or_default();
    encode::tensors::write(&args.output, &rows, &hidden?, width)?;
    eprintln!(
        "{}: {sequences} rows of {} tokens in {:.2} s; wrote {}",
        executor.device(),
        rows.len,
        start.elapsed().as_secs_f64(),
        args.output.display()
    );
    Ok(())
}

fn logits(args: &ForwardArgs, source: Source) -> Result<()> {
    let input = tensors::read(&args.input, source.checkpoint().config().vocab_size)?;
    let given = input.continued.as_ref().map(|c| c.len);
    let steps = match (args.max_new_tokens, given) {
        (Some(asked), Some(given)) if given + 1 < asked => {
            return Err(Error::input(format!(
                "{}: continue_ids: it has {given} tokens a row, --max-new-tokens {asked} needs {} or more",
                args.input.display(),
                asked - 1
            )));
        }
        (Some(asked), _) => asked,
        (None, given) => given.unwrap_or(0),
    };
    check_length(input.ids.len, steps, source.max_seq(&args.build))
        .map_err(|e| Error::input(format!("{}: {e}", args.input.display())))?;
    let rows = input.ids.rows.len();
    let mut executor = source.load(Request { device: args.device, build: &args.build, sequences: rows })?;
    let (bar, start) = (progress::count("tokens"), Instant::now());
    let output =
        score(executor.as_mut(), &input, steps, &mut |done, total| progress::tell(&bar, done, total));
    bar.finish_and_clear();
    tensors::write(&args.output, &output?)?;
    eprintln!(
        "{}: {rows} rows of {} tokens, continued by {steps}, in {:.2} s; wrote {}",
        executor.device(),
        input.ids.len,
        start.elapsed().as_secs_f64(),
        args.output.display()
    );
    Ok(())
}
