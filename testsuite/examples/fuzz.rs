//! Fuzzes the parsers of untrusted bytes (`weft_testsuite::fuzz`).
//!
//! `fuzz --target NAME|all --inputs N [--seed S] [--from N]`. A worker, this program started again, runs the inputs; it says
//! which panicked, took too long or too much memory, and where it dies (an abort, a stack that overflows) the last input
//! is known. Failing inputs are made smaller and saved under `testsuite/fuzz/regressions`.

use indicatif::{ProgressBar, ProgressStyle};
use peak_alloc::PeakAlloc;
use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use weft_testsuite::fuzz::{self, TARGETS, Target};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Inputs between two lines of a worker.
const REPORT: u64 = 500;
/// Different failures after which a target is given up.
const MOST_FAILURES: usize = 20;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The value after a flag.
fn flag(name: &str) -> Option<String> {
    let args: Vec<String> = std::env::args().collect();
    args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned()
}

fn number(name: &str, default: u64) -> Result<u64> {
    flag(name).map_or(Ok(default), |text| Ok(text.parse()?))
}

/// What the last panic said.
static PANIC: Mutex<String> = Mutex::new(String::new());

/// Runs an input; why it fails, if it does.
fn run(target: &Target, input: &[u8]) -> Option<String> {
    MEMORY.reset_peak_usage();
    let (before, begin) = (MEMORY.current_usage(), Instant::now());
    let result = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let (took, peak) = (begin.elapsed(), MEMORY.peak_usage().saturating_sub(before) >> 20);
    if result.is_err() {
        return Some(format!("panic {}", PANIC.lock().map(|t| t.clone()).unwrap_or_default()));
    }
    if peak > target.memory {
        return Some(format!("memory {peak} MiB"));
    }
    (took > Duration::from_secs(target.seconds)).then(|| format!("time {took:?}"))
}

fn worker(target: &Target) -> Result<()> {
    let seeds = fuzz::seeds(target);
    let (seed, from, to) = (number("--seed", 1)?, number("--from", 0)?, number("--to", 0)?);
    let state = File::create(flag("--state").ok_or("--state")?)?;
    let mut out = std::io::stdout();
    for n in from..to {
        state.write_all_at(&n.to_le_bytes(), 0)?;
        if let Some(why) = run(target, &fuzz::input(target, &seeds, seed, n)) {
            writeln!(out, "FAIL {n} {}", why.replace('\n', " "))?;
        }
        if (n + 1).is_multiple_of(REPORT) || n + 1 == to {
            writeln!(out, "DONE {}", n + 1)?;
            out.flush()?;
        }
    }
    Ok(())
}

/// Runs one file in a process of its own: why it fails, if it does.
fn alone(target: &Target, file: &Path) -> Result<Option<String>> {
    let out = Command::new(std::env::current_exe()?)
        .args(["--target", target.name, "--one"])
        .arg(file)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    Ok(match out.status.success() {
        true => None,
        false if said.is_empty() => Some(format!("died of {}", out.status)),
        false => Some(said),
    })
}

/// The kind of a failure: for a panic its place, else the word that it begins with.
fn kind(why: &str) -> String {
    let words = if why.starts_with("panic") { 2 } else { 1 };
    why.split_whitespace().take(words).collect::<Vec<_>>().join(" ")
}

/// Makes an input smaller and saves it; `None` when it does not fail again by itself.
fn save(target: &Target, input: Vec<u8>) -> Result<Option<String>> {
    let folder = std::env::temp_dir().join(format!("weft-fuzz-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let file = folder.join("input");
    fs::write(&file, &input)?;
    let Some(why) = alone(target, &file)? else { return Ok(None) };
    let small = match why.starts_with("time") {
        true => input,
        false => fuzz::shrink(input, |candidate| {
            let written = fs::write(&file, candidate).is_ok();
            written && alone(target, &file).is_ok_and(|found| found.is_some_and(|f| kind(&f) == kind(&why)))
        }),
    };
    let hash = small
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    fs::create_dir_all(fuzz::regressions())?;
    let place = fuzz::regressions().join(format!("{}-{hash:016x}.bin", target.name));
    fs::write(&place, &small)?;
    fs::remove_dir_all(&folder)?;
    Ok(Some(format!("{why}; {} bytes in {}", small.len(), place.display())))
}

/// Fuzzes a target; the failures by kind.
fn fuzz(target: &'static Target, inputs: u64, seed: u64) -> Result<BTreeMap<String, (u64, String)>> {
    let seeds = fuzz::seeds(target);
    let bar = ProgressBar::new(inputs);
    bar.set_style(ProgressStyle::with_template("{prefix:12} {wide_bar} {pos}/{len} {per_sec} {eta}")?);
    bar.set_prefix(target.name);
    let mut failures: BTreeMap<String, (u64, String)> = BTreeMap::new();
    let (mut from, begin) = (number("--from", 0)?, Instant::now());
    let to = from + inputs;
    let first = from;
    let state = std::env::temp_dir().join(format!("weft-fuzz-{}-{}.state", target.name, std::process::id()));
    while from < to && failures.len() < MOST_FAILURES {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--worker", "--target", target.name, "--seed", &seed.to_string()])
            .args(["--from", &from.to_string(), "--to", &to.to_string(), "--state"])
            .arg(&state)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut failed = Vec::new();
        for line in BufReader::new(child.stdout.take().ok_or("no output")?).lines() {
            let line = line?;
            match line.split_once(' ') {
                Some(("DONE", n)) => {
                    from = n.parse()?;
                    bar.set_position(from - first);
                }
                Some(("FAIL", rest)) => {
                    let (n, why) = rest.split_once(' ').ok_or("a reason")?;
                    failed.push((n.parse::<u64>()?, why.to_owned()));
                }
                _ => {}
            }
        }
        let status = child.wait()?;
        if !status.success() {
            let mut last = [0; 8];
            File::open(&state)?.read_exact(&mut last)?;
            let n = u64::from_le_bytes(last);
            failed.push((n, format!("died of {status}")));
            from = n + 1;
        }
        for (n, why) in failed {
            let seen = failures.entry(kind(&why)).or_default();
            seen.0 += 1;
            if seen.1.is_empty()
                && let Some(saved) = save(target, fuzz::input(target, &seeds, seed, n))?
            {
                seen.1 = format!("input {n}: {saved}");
                bar.println(format!("{}: {}", target.name, seen.1));
            }
        }
    }
    fs::remove_file(&state)?;
    bar.finish_and_clear();
    // What did not fail again by itself was this machine's.
    failures.retain(|_, (_, saved)| !saved.is_empty());
    let took = begin.elapsed();
    println!("{}: {} inputs in {took:.0?}, {} failures", target.name, from - first, failures.len());
    Ok(failures)
}

fn start() -> Result<bool> {
    let name = flag("--target").unwrap_or_else(|| "all".to_owned());
    let named = fuzz::find(&name);
    let names = || TARGETS.iter().map(|t| t.name).collect::<Vec<_>>().join(", ");
    if named.is_none() && name != "all" {
        return Err(format!("no target {name:?}: all, {}", names()).into());
    }
    let hook = |info: &std::panic::PanicHookInfo<'_>| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("");
        if let Ok(mut last) = PANIC.lock() {
            *last = format!("{place} {}", text.chars().take(200).collect::<String>());
        }
    };
    if let (Some(target), Some(file)) = (named, flag("--one")) {
        std::panic::set_hook(Box::new(hook));
        let why = run(target, &fs::read(file)?);
        println!("{}", why.as_deref().unwrap_or(""));
        return Ok(why.is_none());
    }
    if let (Some(target), true) = (named, std::env::args().any(|a| a == "--worker")) {
        std::panic::set_hook(Box::new(hook));
        worker(target)?;
        return Ok(true);
    }
    let (inputs, seed) = (number("--inputs", 100_000)?, number("--seed", 1)?);
    let mut good = true;
    for target in TARGETS.iter().filter(|t| named.is_none_or(|n| n.name == t.name)) {
        for (kind, (count, saved)) in fuzz(target, inputs, seed)? {
            good = false;
            println!("  {count} × {kind}: {saved}");
        }
    }
    Ok(good)
}

fn main() -> ExitCode {
    match start() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("fuzz: {e}");
            ExitCode::from(2)
        }
    }
}
