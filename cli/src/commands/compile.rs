//! `weft compile`.

use super::summary::{NvrtcSummary, Summary};
use super::{ablate, contracts, dump, print_json};
use crate::args::CompileArgs;
use crate::errors::{Error, Result};
use crate::measure::decode_step;
use crate::{bundle, engine, model, nvrtc};
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;
use weft_codegen::Emitted;
use weft_ir::plan::Plan;
use weft_ir::target::Target;
use weft_runtime::compile::Origin;

/// Compiles a checkpoint to a bundle.
pub fn run(args: &CompileArgs) -> Result<()> {
    let start = Instant::now();
    if bundle::is_bundle(&args.model) {
        let path = args.model.display();
        return Err(Error::input(format!("{path}: already a bundle; give the checkpoint it came from")));
    }
    let checkpoint = model::open(&args.model, &args.build)?.for_task(args.task.into());
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
    let compiled = model::compile(&checkpoint, options.clone())?;
    contracts::check(&args.require, &compiled.context.contracts)?;
    let warnings = model::warnings(&checkpoint, &compiled.graph);
    let manifest = bundle::manifest(&checkpoint, &args.model, &compiled.plan, &compiled.kernels)?;
    bundle::write(&out, &manifest, &compiled.plan, &compiled.kernels, &compiled.provenance)?;
    if let Some(folder) = &args.dump_passes {
        dump::write(folder, &compiled)?;
    }
    let mut summary = Summary::new(&out, &checkpoint, &compiled, start.elapsed(), warnings);
    if !args.no_check {
        summary.nvrtc = Some(check(&compiled.kernels, target)?);
    }
    if args.ablate {
        // Where the plan's GPU is at hand, decode steps are measured, too.
        let gpu =
            engine::usable_gpu().ok().filter(|(_, own)| own.name == target.name).map(|(device, _)| device);
        let mut step = |plan: &Plan| gpu.as_ref().map(|d| decode_step(d, &checkpoint, plan)).transpose();
        summary.ablation = Some(ablate::run(&compiled, &options, &mut step)?);
    }
    if args.json {
        return print_json(&summary);
    }
    model::warn(&summary.warnings);
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

/// Compiles the kernels with NVRTC for their registers and spills.
fn check(kernels: &[Emitted], target: &Target) -> Result<NvrtcSummary> {
    let jobs = kernels.iter().map(|k| (k.name.as_str(), k.source.as_str()));
    let built = match nvrtc::compile(jobs, target)? {
        Ok(built) => built,
        Err(why) => return Ok(NvrtcSummary::missing(why)),
    };
    let cached = built.kernels.iter().filter(|b| b.origin == Origin::Cached).count();
    let mut summary = NvrtcSummary::found(built.version, built.time, cached, built.cache_error);
    for b in &built.kernels {
        summary.add(&b.compiled.report);
    }
    Ok(summary)
}
