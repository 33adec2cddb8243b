//! Weft's developer commands: `cargo xtask demo`, `test`, `gpu`, `bless`, `validate`.

mod demo;
mod fetch;
mod gpu;
mod place;
mod process;
mod snapshots;
mod summary;
mod test;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Developer commands of Weft.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fetch what is missing, compile a real model, show a kernel, and answer a prompt.
    Demo {
        /// What to ask.
        #[arg(default_value = "What is gravity?")]
        prompt: String,
    },
    /// Run every check that needs no GPU.
    Test,
    /// Run every check that needs a GPU, and measure.
    Gpu,
    /// Accept the snapshots that the tests make now.
    Bless,
    /// Compile every kernel among the snapshots with NVRTC.
    Validate,
}

/// What went wrong, and what to do about it.
type Result<T, E = String> = std::result::Result<T, E>;

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Demo { prompt } => demo::run(&prompt),
        Command::Test => test::run(),
        Command::Gpu => gpu::run(),
        Command::Bless => snapshots::bless(),
        Command::Validate => snapshots::validate(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}
