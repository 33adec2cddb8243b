//! Running programs.

use crate::{Result, place};
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A program that runs in the workspace's root.
pub fn program(name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(name);
    command.current_dir(place::root());
    command
}

/// The cargo that runs this program.
pub fn cargo() -> Command {
    program(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs a command; it must succeed. `remedy` says what to do when it does not.
pub fn run(command: &mut Command, remedy: &str) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().map_err(|e| format!("cannot run {name}: {e}; {remedy}"))?;
    if status.success() {
        return Ok(());
    }
    let code = status.code().map_or("a signal".to_owned(), |code| format!("exit code {code}"));
    Err(format!("{}: {code}; {remedy}", shown(command)))
}

/// Runs a command without a word, unless it fails.
pub fn run_quietly(command: &mut Command, remedy: &str) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|e| format!("cannot run {name}: {e}; {remedy}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last: Vec<&str> = said.lines().rev().filter(|l| !l.trim().is_empty()).take(3).collect();
    let last: Vec<&str> = last.into_iter().rev().collect();
    Err(format!("{}: {}\n{remedy}", shown(command), last.join("\n  ")))
}

/// A command as it would be typed.
pub fn shown(command: &Command) -> String {
    let root = place::root();
    let root = format!("{}/", root.display());
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words = words.map(|w| {
        let word = w.to_string_lossy();
        let word = word.strip_prefix(&root).unwrap_or(&word).to_owned();
        if word.contains(char::is_whitespace) { format!("{word:?}") } else { word }
    });
    let words: Vec<String> = words.collect();
    match words.split_first() {
        // cargo and the built weft by their names.
        Some((first, rest)) => {
            let name = PathBuf::from(first);
            let name = name.file_name().map_or(first.clone(), |n| n.to_string_lossy().into_owned());
            [&[name], rest].concat().join(" ")
        }
        None => String::new(),
    }
}
