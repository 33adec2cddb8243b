//! Fuzzing of every parser of untrusted bytes: targets, seeds, mutations. `tests/fuzz.rs` runs some of it each time,
//! `examples/fuzz.rs` as much as is asked for.
//!
//! An input is a function of target, seed and number, so a number names it. Mutations know the form of the input (JSON,
//! text, numbers in bytes), since there is no coverage to steer by.

pub mod files;
mod json;
mod mutate;
mod shrink;
mod targets;

pub use mutate::mutated;
pub use shrink::shrink;
pub use targets::{Form, TARGETS, Target, find};

use crate::fixture::{folder, root};
use crate::random::rng::Rng;
use std::path::{Path, PathBuf};

/// Folder of the seeds of a target.
pub fn corpus(target: &Target) -> PathBuf {
    root().join("fuzz/corpus").join(target.name)
}

/// Folder of inputs that once failed: `TARGET-….bin`.
pub fn regressions() -> PathBuf {
    root().join("fuzz/regressions")
}

/// The seeds of a target, sorted by file name.
///
/// # Panics
/// When there are none.
pub fn seeds(target: &Target) -> Vec<Vec<u8>> {
    let mut files = files(&corpus(target));
    // What the other tests read is a seed, too.
    match target.name {
        "config" => files.extend(below(&folder().join("tiny"), "config.json")),
        "graph" => files.extend(self::files(&root().join("regressions"))),
        "schedules" => files.push(root().join("../passes/schedules/h200.ron")),
        _ => {}
    }
    let mut out: Vec<Vec<u8>> = files.iter().map(|f| std::fs::read(f).expect("a seed")).collect();
    if target.name == "encodings" {
        out.extend((0..20u8).map(|kind| {
            let mut rng = Rng::new(u64::from(kind));
            let mut seed = vec![kind, 16, 16, 0x24];
            seed.extend((0..600).map(|_| rng.below(256) as u8));
            seed
        }));
    }
    assert!(!out.is_empty(), "no seeds for {}", target.name);
    out
}

/// Files of a folder, sorted.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut out: Vec<PathBuf> =
        entries.filter_map(|e| e.ok().map(|e| e.path())).filter(|p| p.is_file()).collect();
    out.sort();
    out
}

/// Files of a name in the folders of a folder.
fn below(folder: &Path, name: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut out: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path().join(name))).collect();
    out.retain(|p| p.is_file());
    out.sort();
    out
}

/// Input `number` of a run.
pub fn input(target: &Target, seeds: &[Vec<u8>], seed: u64, number: u64) -> Vec<u8> {
    let mut rng = Rng::named(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15), target.name);
    mutated(target.form, seeds, &mut rng)
}
