//! `weft completions`.

use crate::args::{Cli, CompletionsArgs};
use crate::errors::Result;
use clap::CommandFactory;
use std::io::Write;

/// Prints the script.
pub fn run(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "weft", &mut script);
    std::io::stdout().lock().write_all(&script)?;
    Ok(())
}
