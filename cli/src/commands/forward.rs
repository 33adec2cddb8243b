//! `weft forward`.

use crate::args::ForwardArgs;
use crate::engine::{Request, Source};
use crate::errors::{Error, Result};
use crate::score::{check_length, score};
use crate::{progress, tensors};
use std::time::Instant;

/// Computes logits, file to file.
pub fn run(args: &ForwardArgs) -> Result<()> {
    let source = Source::open(&args.model)?;
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
