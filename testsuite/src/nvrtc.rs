//! NVRTC for tests: where it is missing the tests fail, unless they are told to go without.

use std::path::PathBuf;
use weft_codegen::Emitted;
use weft_runtime::compile::{Built, Compiler, Job};
use weft_runtime::nvrtc::Nvrtc;

/// Loads NVRTC from `WEFT_NVRTC`, the workspace's `.weft/nvrtc` or the system.
///
/// `None` only with `WEFT_SKIP_NVRTC=1`, which is reported.
///
/// # Panics
/// When there is none.
pub fn load() -> Option<Nvrtc> {
    match Nvrtc::load(&[folder()]) {
        Ok(nvrtc) => Some(nvrtc),
        Err(e) if std::env::var_os("WEFT_SKIP_NVRTC").is_some_and(|v| v == "1") => {
            eprintln!("SKIPPED: no NVRTC ({e})");
            None
        }
        Err(e) => panic!("{e}\n(`cargo xtask test` fetches it; WEFT_SKIP_NVRTC=1 goes without)"),
    }
}

/// Where the workspace keeps NVRTC.
pub fn folder() -> PathBuf {
    crate::fixture::root().join("..").join(".weft").join("nvrtc")
}

/// Compiles kernels for an architecture.
///
/// # Panics
/// When one does not compile.
pub fn compile_all(nvrtc: &Nvrtc, kernels: &[Emitted], arch: &str) -> Vec<Built> {
    let jobs: Vec<Job> = kernels.iter().map(|k| Job::new(k.name.clone(), k.source.clone())).collect();
    let compiler = Compiler { nvrtc, cache: None, threads: None };
    compiler.compile_all(&jobs, arch, &|_| {}).unwrap_or_else(|e| panic!("{arch}: {e}"))
}
