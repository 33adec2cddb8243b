//! Weft: a graph compiler for language models.
//!
//! This crate is the `weft` binary and the facade of the others: [`model::compile`] turns a checkpoint into
//! a plan and kernels, [`bundle`] stores them, [`engine`] runs them, [`generate`] answers prompts, [`encode`] embeds texts.

pub mod args;
pub mod batch;
pub mod bundle;
pub mod commands;
pub mod encode;
pub mod engine;
pub mod errors;
pub mod generate;
pub mod measure;
pub mod model;
pub mod nvdisasm;
pub mod nvrtc;
pub mod picture;
pub mod places;
pub mod progress;
pub mod schedules;
pub mod score;
pub mod startup;
pub mod tensors;
pub mod tuner;

pub use weft_codegen as codegen;
pub use weft_frontend as frontend;
pub use weft_ir as ir;
pub use weft_passes as passes;
pub use weft_runtime as runtime;

use clap::Parser;
use std::process::ExitCode;

/// Runs a command line. Exit codes: 0 success, 1 failure, 2 bad usage or bad input.
pub fn main_with(args: impl IntoIterator<Item = std::ffi::OsString>) -> ExitCode {
    startup::seconds();
    let cli = match args::Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            // Nothing to do about a closed stdout or stderr.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    match commands::run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(errors::Error::Closed) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(e.exit_code())
        }
    }
}
