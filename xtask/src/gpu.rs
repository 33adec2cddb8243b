//! `cargo xtask gpu`: every check that needs a GPU, and the measurements of docs/performance.md.

use crate::process::{self, cargo, program, shown};
use crate::summary::{self, Ran};
use crate::{Result, demo, fetch, place};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// Test binaries that need a GPU: package, name. Without one their tests are skipped, which the first step
/// rules out.
const TESTS: [(&str, &str); 10] = [
    ("weft-runtime", "gpu"),
    ("weft-runtime", "gpu_exec"),
    ("weft-testsuite", "gpu"),
    ("weft-testsuite", "gpu_kernels"),
    ("weft-testsuite", "gpu_encoder"),
    ("weft-testsuite", "gpu_families"),
    ("weft-testsuite", "gpu_tuned"),
    ("weft", "bench"),
    ("weft", "tune"),
    ("weft", "ablate"),
];

/// Tools of compute-sanitizer.
const SANITIZERS: [&str; 4] = ["memcheck", "racecheck", "initcheck", "synccheck"];

/// Tests of `gpu_kernels` that run under them: every kernel family at three shapes and more, and generations.
const FAMILIES: [&str; 2] = ["gpu_every_kernel", "gpu_every_generation"];

/// Tiny models whose whole steps run under them: dense, biases and LayerNorm, experts, latent attention.
const SANITIZED: [&str; 4] = ["llama", "gpt2", "qwen3-moe", "deepseek-v3"];

/// A step: its name in the summary, and the command.
struct Step {
    name: String,
    command: Command,
}

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
    say_and_run(&mut forward(&weft, "llama", out.path()), "weft doctor says what is missing")?;

    let (mut ran, mut failed) = (Vec::new(), Vec::new());
    for Step { name, mut command } in steps(&weft, out.path()) {
        let start = Instant::now();
        let done = say_and_run(&mut command, "correct it, and run the line again");
        let time = start.elapsed();
        println!("   {:.1} s", time.as_secs_f64());
        ran.push(Ran { name, time, failed: done.is_err() });
        failed.extend(done.err());
    }
    println!("== summary");
    print!("{}", summary::text(&ran));
    if failed.is_empty() {
        return Ok(());
    }
    Err(format!("{} steps failed:\n  {}", failed.len(), failed.join("\n  ")))
}

/// The steps, in order: tests, the same kernels under the sanitizer, measurements.
fn steps(weft: &Path, out: &Path) -> Vec<Step> {
    let mut steps = Vec::new();
    for (package, name) in TESTS {
        steps.push(Step { name: format!("test {package} {name}"), command: test(&[], package, name, None) });
    }
    for tool in SANITIZERS {
        for filter in FAMILIES {
            let config = ["--config", &runner(tool)];
            let command = test(&config, "weft-testsuite", "gpu_kernels", Some(filter));
            steps.push(Step { name: format!("{tool} {filter}"), command });
        }
        for model in SANITIZED {
            let plain = forward(weft, model, out);
            let mut command = program("compute-sanitizer");
            command.args(sanitizer(tool)).arg(plain.get_program()).args(plain.get_args());
            steps.push(Step { name: format!("{tool} forward {model}"), command });
        }
    }
    for more in
        [&[][..], &["--batch", "8"], &["--batch", "16"], &["--prompt", "1024"], &["--context", "3800"]]
    {
        let mut command = program(weft);
        command.arg("bench").arg(place::shown(&place::gguf())).args(more);
        steps.push(Step {
            name: ["bench", "SmolLM2"].iter().chain(more).copied().collect::<Vec<_>>().join(" "),
            command,
        });
    }
    let mut goals = program("python3");
    goals.arg("testsuite/peers/goals.py").arg("--weft").arg(weft);
    steps.push(Step { name: "goals of decode, by random weights of public shapes".into(), command: goals });
    steps
}

/// `cargo test` of a test binary, one test at a time; `before` is for cargo.
fn test(before: &[&str], package: &str, name: &str, filter: Option<&str>) -> Command {
    let mut command = cargo();
    command.args(before);
    command.args(["test", "--release", "-p", package, "--test", name, "--"]);
    command.args(filter).args(["--nocapture", "--test-threads=1"]);
    command
}

/// Options of compute-sanitizer for a tool.
fn sanitizer(tool: &str) -> [&str; 6] {
    ["--tool", tool, "--error-exitcode", "1", "--report-api-errors", "no"]
}

/// cargo's setting that runs test binaries under a tool of compute-sanitizer.
fn runner(tool: &str) -> String {
    let words = ["compute-sanitizer"].into_iter().chain(sanitizer(tool));
    let words: Vec<String> = words.map(|word| format!("'{word}'")).collect();
    format!("target.'cfg(all())'.runner=[{}]", words.join(","))
}

/// `weft forward` of a tiny model on the GPU, with a few greedy steps.
fn forward(weft: &Path, model: &str, out: &Path) -> Command {
    let folder = format!("testsuite/fixtures/tiny/{model}");
    let mut command = program(weft);
    command.arg("forward").arg(&folder).arg("--input").arg(format!("{folder}/golden.safetensors"));
    command.arg("--output").arg(out.join(format!("{model}.safetensors")));
    command.args(["--max-new-tokens", "3", "--max-seq", "64", "--device", "cuda"]);
    command
}

fn say_and_run(command: &mut Command, remedy: &str) -> Result<()> {
    println!("$ {}", shown(command));
    process::run(command, remedy)
}

#[cfg(test)]
mod tests {
    use super::{FAMILIES, SANITIZERS, TESTS, runner, steps};
    use crate::{place, process::shown};
    use std::path::Path;

    /// The folder of a package.
    fn folder(package: &str) -> &str {
        if package == "weft" { "cli" } else { package.trim_start_matches("weft-") }
    }

    #[test]
    fn every_test_of_the_gpu_is_run() {
        let file = |(package, name): &(&str, &str)| format!("{}/tests/{name}.rs", folder(package));
        let named: Vec<String> = TESTS.iter().map(file).collect();
        for file in &named {
            assert!(place::root().join(file).is_file(), "{file}");
        }
        for package in ["runtime", "testsuite", "cli"] {
            for entry in std::fs::read_dir(place::root().join(package).join("tests")).expect("tests") {
                let name = entry.expect("a file").file_name().to_string_lossy().into_owned();
                let file = format!("{package}/tests/{name}");
                let is_test = name.starts_with("gpu") && name.ends_with(".rs");
                assert!(!is_test || named.contains(&file), "{file} is not among the tests");
            }
        }
        let kernels = std::fs::read_to_string(place::root().join("testsuite/tests/gpu_kernels.rs"));
        let kernels = kernels.expect("gpu_kernels");
        for filter in FAMILIES {
            assert!(kernels.contains(&format!("fn {filter}")), "no test begins with {filter}");
        }
    }

    #[test]
    fn each_tool_runs_the_families() {
        let steps = steps(Path::new("weft"), Path::new("out"));
        for tool in SANITIZERS {
            let of_tool = steps.iter().filter(|s| s.name.starts_with(tool)).map(|s| shown(&s.command));
            let of_tool: Vec<String> = of_tool.collect();
            assert_eq!(of_tool.iter().filter(|c| c.contains("--test gpu_kernels")).count(), 2, "{of_tool:?}");
            assert!(
                of_tool.iter().all(|c| c.contains("compute-sanitizer") && c.contains(tool)),
                "{of_tool:?}"
            );
        }
        let wanted = "target.'cfg(all())'.runner=['compute-sanitizer','--tool','racecheck',\
                      '--error-exitcode','1','--report-api-errors','no']";
        assert_eq!(runner("racecheck"), wanted);
    }
}
