//! `cargo xtask test`: every check that needs no GPU.

use crate::process::{self, cargo, shown};
use crate::summary::{self, Ran};
use crate::{Result, fetch};
use std::process::Command;
use std::time::{Duration, Instant};

/// A check: its name, the command, and what to do when it fails.
struct Step {
    name: &'static str,
    command: Command,
    remedy: &'static str,
}

fn steps() -> [Step; 4] {
    let mut format = cargo();
    format.args(["fmt", "--all", "--check"]);
    let mut lint = cargo();
    lint.args(["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]);
    let mut document = cargo();
    document.args(["doc", "--workspace", "--no-deps", "--quiet"]).env("RUSTDOCFLAGS", "-D warnings");
    let mut test = cargo();
    // Snapshots are never accepted by running them.
    test.args(["test", "--workspace"]).env("INSTA_UPDATE", "no");
    [
        Step {
            name: "format",
            command: format,
            remedy: "run cargo fmt --all (missing? rustup component add rustfmt)",
        },
        Step {
            name: "clippy",
            command: lint,
            remedy: "correct what it names (missing? rustup component add clippy)",
        },
        Step { name: "rustdoc", command: document, remedy: "correct what it names" },
        Step {
            name: "tests",
            command: test,
            remedy: "correct what failed; where a snapshot changed as it should, run cargo xtask bless",
        },
    ]
}

/// Runs the checks in order, and stops at the first that fails.
fn run_all(times: &mut Vec<(&'static str, Duration)>) -> Result<()> {
    let start = Instant::now();
    println!("== fetch");
    let fetched = fetch::nvrtc().and_then(|()| fetch::model()).and_then(|()| fetch::encoder());
    times.push(("fetch", start.elapsed()));
    fetched?;
    for mut step in steps() {
        let start = Instant::now();
        println!("== {}: {}", step.name, shown(&step.command));
        let done = process::run(&mut step.command, step.remedy);
        times.push((step.name, start.elapsed()));
        done.map_err(|why| format!("{}: {why}", step.name))?;
    }
    Ok(())
}

/// Runs the checks and says how long each took.
pub fn run() -> Result<()> {
    let mut times = Vec::new();
    let done = run_all(&mut times);
    println!("== summary");
    let last = times.len();
    let ran = times.into_iter().enumerate().map(|(i, (name, time))| {
        let failed = done.is_err() && i + 1 == last;
        Ran { name: name.to_owned(), time, failed }
    });
    print!("{}", summary::text(&ran.collect::<Vec<_>>()));
    done
}
