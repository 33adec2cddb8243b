//! Files made to hurt: each is a named error, within five seconds and 256 MB.
//!
//! Each case runs in a process of its own, this test binary started again, so that a crash is seen as one and the peak of
//! its memory is its own.

mod common;

use adversarial::{Case, cases};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use weft_frontend::checkpoint::Checkpoint;
use weft_frontend::config::pooling::Pooling;
use weft_frontend::error::{Error, Result};
use weft_frontend::models;
use weft_frontend::text::chat::{ChatTemplate, Message};
use weft_frontend::text::tokenizer::Tokenizer;
use weft_ir::dtype::DType;

#[path = "adversarial/cases.rs"]
mod adversarial;

/// The variable that names the case's file to the child.
const FILE: &str = "WEFT_ADVERSARIAL_FILE";
/// Most time and memory.
const TIME: Duration = Duration::from_secs(5);
const MEMORY_KIB: u64 = 256 << 10;

/// Uses a checkpoint as far as it goes without a device.
fn use_all(path: &Path) -> Result<()> {
    let checkpoint = Checkpoint::open(path)?;
    models::build(&checkpoint, DType::BF16)?;
    Tokenizer::open(&checkpoint)?.encode("some text <s> 12 \u{1F980}", true)?;
    if let Some(chat) = ChatTemplate::open(&checkpoint)? {
        chat.render(&[Message::new("user", "Hello")], true)?;
    }
    Pooling::of(&checkpoint)?;
    Ok(())
}

/// The child: says the error and its own peak.
#[test]
fn child() {
    let Some(path) = std::env::var_os(FILE) else { return };
    let outcome = match use_all(Path::new(&path)) {
        Ok(()) => "accepted".to_owned(),
        Err(Error::Io { path, action, source }) => format!("Io {} {action} {source}", path.display()),
        Err(e) => e.to_string(),
    };
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap().trim().trim_end_matches(" kB");
    println!("PEAK {peak}\nTICKS {}\nERROR {}", ticks(), outcome.replace('\n', " "));
}

/// Processor time of this process so far, in hundredths of a second (fields 14 and 15 of proc_pid_stat(5)).
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    fields.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().unwrap()).sum()
}

/// Processor time and peak, or what is wrong. (Waiting time is the machine's, which may be doing something else.)
fn check(case: &Case, folder: &Path) -> Result<(Duration, u64), String> {
    let path = case.write(folder);
    let out = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(FILE, &path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    let line = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)).map(str::to_owned);
    let (Some(error), Some(peak), Some(ticks)) = (line("ERROR "), line("PEAK "), line("TICKS ")) else {
        return Err(format!("ended by {}: {}", out.status, String::from_utf8_lossy(&out.stderr)));
    };
    for part in case.parts.iter().copied().chain([&*folder.to_string_lossy()]) {
        if !error.contains(part) {
            return Err(format!("{part:?} is not in: {error}"));
        }
    }
    let remedy = error.contains("; ") || error.contains("supported: ") || error.starts_with("Io ");
    if !remedy || error.len() > 2000 {
        return Err(format!("no remedy, or {} bytes: {error}", error.len()));
    }
    let peak: u64 = peak.trim().parse().unwrap();
    let took = Duration::from_millis(ticks.trim().parse::<u64>().unwrap() * 10);
    if took < TIME && peak < MEMORY_KIB {
        Ok((took, peak))
    } else {
        Err(format!("{took:?}, {peak} KiB: {error}"))
    }
}

#[test]
fn every_case_is_a_named_error_in_bounds() {
    let all = cases();
    assert!(all.len() >= 60, "{} cases", all.len());
    let (mut slowest, mut largest) = ((Duration::ZERO, ""), (0, ""));
    let mut wrong = Vec::new();
    for case in &all {
        let folder = tempfile::tempdir().unwrap();
        match check(case, folder.path()) {
            Ok((took, peak)) => {
                slowest = slowest.max((took, case.name));
                largest = largest.max((peak, case.name));
            }
            Err(why) => wrong.push(format!("{}: {why}", case.name)),
        }
    }
    println!("{} cases; slowest {slowest:?}; largest {largest:?} KiB", all.len());
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
}
