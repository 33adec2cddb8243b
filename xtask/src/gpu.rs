//! `cargo xtask gpu`: every check that needs a GPU, and the measurements of docs/performance.md.

use crate::process::{self, cargo, program, shown};
use crate::{Result, demo, fetch, place};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// Test binaries that need a GPU: package, name. Without one their tests are skipped, which the first step
/// rules out.
const TESTS: [(&str, &str); 7] = [
    ("weft-runtime", "gpu"),
    ("weft-runtime", "gpu_exec"),
    ("weft-testsuite", "gpu"),
    ("weft-testsuite", "gpu_encoder"),
    ("weft-testsuite", "gpu_families"),
    ("weft", "bench"),
    ("weft", "ablate"),
];

/// Tools of compute-sanitizer.
const SANITIZERS: [&str; 4] = ["memcheck", "racecheck", "initcheck", "synccheck"];

/// Tiny models whose kernels cover the families: dense, biases and LayerNorm, experts, latent attention.
const SANITIZED: [&str; 4] = ["llama", "gpt2", "qwen3-moe", "deepseek-v3"];

/// Runs all; a step that fails is named at the end, and the others still run.
pub fn run() -> Result<()> {
    fetch::nvrtc()?;
    fetch::model()?;
    fetch::encoder()?;
    let mut build = cargo();
    build.args(["build", "--release", "--package", "weft", "--quiet"]);
    process::run(&mut build, "correct what the compiler names")?;
    let weft = demo::built_weft()?;
    let out = tempfile::tempdir().map_err(|e| format!("no temporary folder: {e}"))?;
    let forward = |model: &str, level: &str| forward(&weft, model, level, out.path());
    say_and_run(&mut forward("llama", "2"), "weft doctor says what is missing")?;

    let mut failed = Vec::new();
    let mut step = |mut command: Command| {
        let start = Instant::now();
        if let Err(why) = say_and_run(&mut command, "correct it, and run the line again") {
            failed.push(why);
        }
        println!("   {:.1} s", start.elapsed().as_secs_f64());
    };
    for (package, name) in TESTS {
        let mut test = cargo();
        test.args(["test", "--release", "-p", package, "--test", name, "--"]);
        test.args(["--nocapture", "--test-threads=1"]);
        step(test);
    }
    for model in SANITIZED {
        for level in ["0", "2"] {
            for tool in SANITIZERS {
                let plain = forward(model, level);
                let mut checked = program("compute-sanitizer");
                checked.args(["--tool", tool, "--error-exitcode", "1", "--report-api-errors", "no"]);
                checked.arg(plain.get_program()).args(plain.get_args());
                step(checked);
            }
        }
    }
    for more in [&[][..], &["--batch", "8"], &["--context", "3800"]] {
        let mut bench = program(&weft);
        bench.arg("bench").arg(place::shown(&place::gguf())).args(more);
        step(bench);
    }
    if failed.is_empty() {
        println!("all checks passed");
        return Ok(());
    }
    Err(format!("{} steps failed:\n  {}", failed.len(), failed.join("\n  ")))
}

/// `weft forward` of a tiny model on the GPU, with a few greedy steps.
fn forward(weft: &Path, model: &str, level: &str, out: &Path) -> Command {
    let folder = format!("testsuite/fixtures/tiny/{model}");
    let mut command = program(weft);
    command.arg("forward").arg(&folder).arg("--input").arg(format!("{folder}/golden.safetensors"));
    command.arg("--output").arg(out.join(format!("{model}-{level}.safetensors")));
    command.args(["--max-new-tokens", "3", "--max-seq", "64", "--device", "cuda", "--opt-level", level]);
    command
}

fn say_and_run(command: &mut Command, remedy: &str) -> Result<()> {
    println!("$ {}", shown(command));
    process::run(command, remedy)
}
