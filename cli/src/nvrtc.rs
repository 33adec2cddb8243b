//! Kernels through NVRTC: in parallel, through the cache on disk, with a progress bar.

use crate::errors::Result;
use crate::{places, progress};
use std::time::{Duration, Instant};
use weft_ir::target::Target;
use weft_runtime::cache::Cache;
use weft_runtime::compile::{Built, Compiler, Job};
use weft_runtime::error::REMEDY_NVRTC;
use weft_runtime::nvrtc::Nvrtc;

/// Compiled kernels.
#[derive(Debug)]
pub struct Kernels {
    /// NVRTC's version.
    pub version: String,
    /// The kernels, in the order given.
    pub kernels: Vec<Built>,
    /// Time it took.
    pub time: Duration,
    /// Why the cache could not be used, when it could not.
    pub cache_error: Option<String>,
}

/// NVRTC for a target, or why there is none, with the remedy.
pub fn load(target: &Target) -> Result<Nvrtc, String> {
    let nvrtc = Nvrtc::load(&places::nvrtc_folders()).map_err(|e| {
        let text = e.to_string();
        let first = text.lines().next().unwrap_or_default();
        if first.contains(REMEDY_NVRTC) { first.to_owned() } else { format!("{first}; {REMEDY_NVRTC}") }
    })?;
    let (major, minor) = target.capability;
    if !nvrtc.supported_archs().contains(&(major * 10 + minor)) {
        let (version, place) = (nvrtc.version(), nvrtc.path().display());
        let name = target.name;
        return Err(format!("NVRTC {version} at {place} does not compile for {name}; {REMEDY_NVRTC}"));
    }
    Ok(nvrtc)
}

/// Compiles kernels, given as names and CUDA C. Without NVRTC the inner result says why, and the remedy.
///
/// # Errors
/// A kernel that does not compile.
pub fn compile<'a>(
    kernels: impl Iterator<Item = (&'a str, &'a str)>,
    target: &Target,
) -> Result<Result<Kernels, String>> {
    let nvrtc = match load(target) {
        Ok(nvrtc) => nvrtc,
        Err(why) => return Ok(Err(why)),
    };
    // A cache that cannot be used costs time, not the result.
    let cache = Cache::open(None);
    let cache_error = cache.as_ref().err().map(ToString::to_string);
    let compiler = Compiler { nvrtc: &nvrtc, cache: cache.as_ref().ok(), threads: None };
    let jobs: Vec<Job> = kernels.map(|(name, source)| Job::new(name, source)).collect();
    let (bar, start) = (progress::count("compiling kernels with NVRTC"), Instant::now());
    let built = compiler.compile_all(&jobs, target.nvrtc_arch, &|p| {
        progress::tell(&bar, p.done as u64, p.total as u64);
    });
    bar.finish_and_clear();
    let version = nvrtc.version().to_string();
    Ok(Ok(Kernels { version, kernels: built?, time: start.elapsed(), cache_error }))
}
