//! One module a command.

mod ablate;
mod bench;
mod compile;
mod completions;
pub(crate) mod contracts;
mod convert;
mod doctor;
mod dump;
mod embed;
mod forward;
mod inspect;
mod models;
mod run;
mod summary;
mod synth;
mod tune;

use crate::args::Command;
use crate::errors::{Error, Result};
use serde::Serialize;
use std::io::Write;
use weft_ir::plan::ScheduleSource;

/// Runs a command.
///
/// # Errors
/// Why it did not do its work; [`Error::exit_code`] is the process's.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Compile(args) => compile::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Forward(args) => forward::run(&args),
        Command::Embed(args) => embed::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Tune(args) => tune::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Synth(args) => synth::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Models(args) => models::run(&args),
        Command::Completions(args) => completions::run(&args),
    }
}

/// Prints a value as JSON.
fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::failed(format!("the result cannot be written as JSON: {e}")))?;
    writeln!(std::io::stdout().lock(), "{text}")?;
    Ok(())
}

/// A table without lines: the first `left` columns from the left, the others from the right.
fn table(head: &[&str], rows: &[Vec<String>], left: usize) -> String {
    use comfy_table::{CellAlignment, Table, presets::NOTHING};
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(head).add_rows(rows);
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if i + 1 < head.len() { 2 } else { 0 }));
        column.set_cell_alignment(if i < left { CellAlignment::Left } else { CellAlignment::Right });
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n") + "\n"
}

/// A number of things as text: 950, 1.5 M.
fn count(n: u64) -> String {
    let units = ["", "k", "M", "G", "T", "P"];
    let (mut value, mut unit) = (n as f64, 0);
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 {
        n.to_string()
    } else {
        format!("{value:.1} {}", units.get(unit).copied().unwrap_or_default())
    }
}

/// How many schedules come from where, in words.
fn sources(count: impl Fn(ScheduleSource) -> usize) -> String {
    let (measured, near) = (count(ScheduleSource::Measured), count(ScheduleSource::Neighbour));
    let near = if near > 0 {
        format!(", {near} measured for a neighbouring shape or longest context")
    } else {
        String::new()
    };
    format!("{measured} measured{near}, {} estimated", count(ScheduleSource::Estimated))
}

/// Bytes as text: 64 B, 1.5 MiB.
fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let unit = units.get(unit).copied().unwrap_or_default();
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}
