//! `weft compile`.

use super::summary::{NvrtcSummary, Summary};
use super::{contracts, print_json};
use crate::args::CompileArgs;
use crate::errors::{Error, Result};
use crate::{bundle, engine, model, places, progress};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;
use weft_codegen::Emitted;
use weft_frontend::checkpoint::Checkpoint;
use weft_ir::target::Target;
use weft_passes::Context;
use weft_runtime::cache::Cache;
use weft_runtime::compile::{Compiler, Job, Origin};
use weft_runtime::nvrtc::Nvrtc;

/// Compiles a checkpoint to a bundle.
pub fn run(args: &CompileArgs) -> Result<()> {
    let start = Instant::now();
    if bundle::is_bundle(&args.model) {
        let path = args.model.display();
        return Err(Error::input(format!("{path}: already a bundle; give the checkpoint it came from")));
    }
    let checkpoint = Checkpoint::open(&args.model)?;
    let out = match &args.output {
        Some(out) => out.clone(),
        None => PathBuf::from(format!("{}.weft", model::name(&args.model)?)),
    };
    bundle::check_place(&out)?;
    let target = match args.target {
        Some(target) => target,
        None => default_target()?,
    };
    let mut options = model::options(&checkpoint, &args.build, target, args.max_batch)?;
    options.dump = args.dump_passes.is_some();
    let compiled = model::compile(&checkpoint, options)?;
    contracts::check(&args.require, &compiled.context.contracts)?;
    let warnings = model::warnings(&checkpoint, &compiled.graph);
    let manifest = bundle::manifest(&checkpoint, &args.model, &compiled.plan, &compiled.kernels)?;
    bundle::write(&out, &manifest, &compiled.plan, &compiled.kernels)?;
    if let Some(folder) = &args.dump_passes {
        dump(folder, &compiled.context)?;
    }
    let mut summary = Summary::new(&out, &checkpoint, &compiled, start.elapsed(), warnings);
    if !args.no_check {
        summary.nvrtc = Some(check(&compiled.kernels, target)?);
    }
    if args.json {
        return print_json(&summary);
    }
    for warning in &summary.warnings {
        eprintln!("warning: {warning}");
    }
    write!(std::io::stdout().lock(), "{summary}")?;
    Ok(())
}

/// This machine's GPU where Weft knows it, else [`model::DEFAULT_TARGET`].
fn default_target() -> Result<&'static Target> {
    match engine::first_gpu() {
        Ok((_, target)) => Ok(target),
        Err(why) => {
            let name = model::DEFAULT_TARGET;
            eprintln!("target: {name}, the default ({why}); choose another with --target");
            Target::parse(name).map_err(Error::failed)
        }
    }
}

/// Writes the IR after each pass: `01-build.txt`, ….
fn dump(folder: &Path, context: &Context) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, "create", &e))?;
    for (i, (pass, text)) in context.dumps.iter().enumerate() {
        let path = folder.join(format!("{:02}-{pass}.txt", i + 1));
        fs::write(&path, text).map_err(|e| Error::io(&path, "write", &e))?;
    }
    Ok(())
}

/// Compiles the kernels with NVRTC, in parallel and through the cache, for their registers and spills.
fn check(kernels: &[Emitted], target: &Target) -> Result<NvrtcSummary> {
    let nvrtc = match Nvrtc::load(&places::nvrtc_folders()) {
        Ok(nvrtc) => nvrtc,
        Err(e) => return Ok(NvrtcSummary::missing(&e)),
    };
    let (major, minor) = target.capability;
    if !nvrtc.supported_archs().contains(&(major * 10 + minor)) {
        return Ok(NvrtcSummary::too_old(&nvrtc, target));
    }
    // A cache that cannot be used costs time, not the check.
    let cache = Cache::open(None);
    let cache_error = cache.as_ref().err().map(ToString::to_string);
    let compiler = Compiler { nvrtc: &nvrtc, cache: cache.as_ref().ok(), threads: None };
    let jobs: Vec<Job> = kernels.iter().map(|k| Job::new(&k.name, &k.source)).collect();
    let (bar, start) = (progress::count("checking kernels with NVRTC"), Instant::now());
    let built = compiler.compile_all(&jobs, target.nvrtc_arch, &|p| {
        progress::tell(&bar, p.done as u64, p.total as u64);
    });
    bar.finish_and_clear();
    let built = built?;
    let cached = built.iter().filter(|b| b.origin == Origin::Cached).count();
    let mut summary = NvrtcSummary::found(nvrtc.version().to_string(), start.elapsed(), cached, cache_error);
    for b in &built {
        summary.add(&b.compiled.report);
    }
    Ok(summary)
}
