//! `cargo xtask bless` and `validate`: the generated code that is kept under test.

use crate::process::{self, cargo};
use crate::{Result, fetch, place};
use std::fs;
use std::path::{Path, PathBuf};
use weft_ir::target::{TARGETS, Target};
use weft_runtime::cache::Cache;
use weft_runtime::compile::{Compiler, Job};
use weft_runtime::nvrtc::Nvrtc;

/// Folder name of snapshots.
const FOLDER: &str = "snapshots";
/// Target of a snapshot whose path names none.
const DEFAULT_TARGET: &str = "sm_90";

/// Runs the tests, and accepts every snapshot as it is now.
pub fn bless() -> Result<()> {
    let mut test = cargo();
    test.args(["test", "--workspace", "--quiet"]).env("INSTA_UPDATE", "always").env("INSTA_FORCE_PASS", "1");
    process::run(&mut test, "a test failed for another reason than a snapshot: correct it")?;
    println!("snapshots are accepted; look at them with git diff");
    Ok(())
}

/// Compiles every kernel among the snapshots with NVRTC, each for the target that its path names.
pub fn validate() -> Result<()> {
    fetch::nvrtc()?;
    let nvrtc = Nvrtc::load(&[place::nvrtc()]).map_err(|e| e.to_string())?;
    let mut files = Vec::new();
    snapshots(&place::root(), false, &mut files)?;
    files.sort();
    let mut jobs: Vec<(&Target, Vec<Job>)> = TARGETS.iter().map(|t| (t, Vec::new())).collect();
    for file in &files {
        let name = place::shown(file);
        let Some(source) = kernel(file)? else { continue };
        let target = named_target(&name)?;
        if let Some((_, jobs)) = jobs.iter_mut().find(|(t, _)| t.name == target.name) {
            jobs.push(Job::new(name, source));
        }
    }
    // A cache that cannot be used costs time only.
    let cache = Cache::open(None).ok();
    let compiler = Compiler { nvrtc: &nvrtc, cache: cache.as_ref(), threads: None };
    let mut total = 0;
    for (target, jobs) in jobs.iter().filter(|(_, jobs)| !jobs.is_empty()) {
        let built = compiler.compile_all(jobs, target.nvrtc_arch, &|_| {});
        let built =
            built.map_err(|e| format!("{e}\ncorrect the code generation, then run cargo xtask bless"))?;
        let spilled = |b: &&weft_runtime::compile::Built| {
            b.compiled.report.kernels.iter().any(|k| k.spill_stores + k.spill_loads > 0)
        };
        for b in built.iter().filter(spilled) {
            println!("{}: spills registers on {}", b.name, target.name);
        }
        println!("{}: {} kernels compile", target.nvrtc_arch, built.len());
        total += built.len();
    }
    println!("{total} kernels among {} snapshots", files.len());
    // Snapshots hold kernels: none found means that it was looked for in the wrong place.
    if total == 0 {
        return Err(format!(
            "{}: no snapshot holds a kernel; is this a whole checkout?",
            place::root().display()
        ));
    }
    Ok(())
}

/// Files in folders named `snapshots`, build outputs and hidden folders left out.
fn snapshots(folder: &Path, inside: bool, out: &mut Vec<PathBuf>) -> Result<()> {
    let failed = |e: std::io::Error| format!("{}: cannot read: {e}", place::shown(folder));
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.starts_with('.') && name != "target" {
                snapshots(&path, inside || name == FOLDER, out)?;
            }
        } else if inside && (name.ends_with(".snap") || name.ends_with(".cu")) {
            out.push(path);
        }
    }
    Ok(())
}

/// The CUDA C of a snapshot, if that is what it holds: without insta's header.
fn kernel(path: &Path) -> Result<Option<String>> {
    let text = fs::read_to_string(path).map_err(|e| format!("{}: cannot read: {e}", place::shown(path)))?;
    let body = match text.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---\n")) {
        Some((_, body)) => body.to_owned(),
        None => text,
    };
    Ok(body.contains("extern \"C\" __global__").then_some(body))
}

/// The target that a snapshot's path names (`sm_80`), else the default one.
fn named_target(path: &str) -> Result<&'static Target> {
    let names = |t: &&Target| {
        path.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|part| {
            part.strip_suffix(t.name).is_some_and(|head| head.is_empty() || head.ends_with('_'))
                || part.contains(&format!("{}_", t.name))
        })
    };
    TARGETS.iter().rev().find(names).map_or_else(|| Target::parse(DEFAULT_TARGET), Ok)
}

#[cfg(test)]
mod tests {
    use super::named_target;

    #[test]
    fn a_path_names_its_target() {
        let name = |path: &str| named_target(path).map(|t| t.name);
        assert_eq!(name("codegen/tests/snapshots/writer__block_sum.snap"), Ok("sm_90"));
        assert_eq!(name("testsuite/tests/snapshots/sm_100/norm.cu"), Ok("sm_100"));
        assert_eq!(name("testsuite/tests/snapshots/plan__llama_sm_86_decode.snap"), Ok("sm_86"));
        assert_eq!(name("testsuite/tests/snapshots/plan__sm_120@norm.snap"), Ok("sm_120"));
    }
}
