//! `cargo xtask demo`: from a GGUF file to a kernel to look at and an answered prompt.

use crate::process::{self, cargo, program, shown};
use crate::{Result, fetch, place};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines that a kernel to be shown should have: short, and not trivial.
const SHOWN_LINES: std::ops::RangeInclusive<usize> = 25..=90;

/// Runs the demo.
pub fn run(prompt: &str) -> Result<()> {
    heading("fetch what is missing (kept in .weft)");
    fetch::nvrtc()?;
    fetch::model()?;

    heading("build weft");
    let mut build = cargo();
    build.args(["build", "--release", "--package", "weft", "--quiet"]);
    process::run(&mut build, "correct what the compiler names")?;
    let weft = built_weft()?;

    let folder = place::model().join("hf");
    heading("turn the GGUF file into a Hugging Face folder");
    if folder.join("model.safetensors").exists() {
        println!("{}: there already", place::shown(&folder));
    } else {
        let mut convert = program(&weft);
        convert.arg("convert").arg(place::shown(&place::gguf())).arg("-o").arg(place::shown(&folder));
        say_and_run(&mut convert, "remove the folder, if there is one, and run cargo xtask demo again")?;
    }

    heading("compile it");
    let bundle = place::fetched().join("demo.weft");
    let mut compile = program(&weft);
    compile.arg("compile").arg(place::shown(&folder.join("model.safetensors")));
    compile.args(["--target", "sm_90", "-o"]).arg(place::shown(&bundle));
    say_and_run(&mut compile, "run cargo xtask test, which says what is wrong")?;

    let kernel = short_kernel(&bundle.join("kernels"))?;
    heading(&format!("one of its kernels: {}", place::shown(&kernel)));
    println!("{}", read(&kernel)?);

    heading("answer a prompt");
    let mut answer = program(&weft);
    answer.arg("run").arg(place::shown(&folder)).arg(prompt).args(["--max-new-tokens", "64"]);
    say_and_run(&mut answer, "weft doctor says what is missing; --device cpu needs no GPU")
}

fn heading(text: &str) {
    println!("\n== {text}");
}

fn say_and_run(command: &mut Command, remedy: &str) -> Result<()> {
    println!("$ {}", shown(command));
    process::run(command, remedy)
}

/// Where cargo put the release binary.
pub fn built_weft() -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let weft =
        place::root().join(target).join("release").join(format!("weft{}", std::env::consts::EXE_SUFFIX));
    if weft.exists() {
        return Ok(weft);
    }
    Err(format!("{}: not there after the build; unset cargo's build.target-dir setting", place::shown(&weft)))
}

/// A kernel that is short and says something: a norm where there is one of the right length.
fn short_kernel(folder: &Path) -> Result<PathBuf> {
    let failed = |e: std::io::Error| format!("{}: cannot read: {e}", place::shown(folder));
    let mut kernels = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let lines = read(&path)?.lines().count();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let norm = name.contains("layernorm") && name.contains("row");
        kernels.push((!SHOWN_LINES.contains(&lines), !norm, lines, path));
    }
    let first = kernels.into_iter().min();
    first.map(|k| k.3).ok_or_else(|| format!("{}: no kernels; compile again", place::shown(folder)))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| format!("{}: cannot read: {e}", place::shown(path)))
}
