//! The kernels of a plan: all are compiled when it is loaded, each is loaded when it is first used.
//!
//! A plan has kernels for buckets that a process may never run.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use weft_ir::plan::Plan;
use weft_ir::target::Target;

use super::load::{CudaOptions, KernelSource};
use super::report::KernelReport;
use crate::cache::Cache;
use crate::compile::{Built, Compiler, Job, Origin, Progress};
use crate::error::{Error, Result};
use crate::nvrtc::Nvrtc;
use crate::sys::context::Context;
use crate::sys::module::{Function, Module};

/// A compiled kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    context: Context,
    built: Built,
    threads: u32,
    dynamic_shared: u32,
    loaded: OnceLock<LoadedKernel>,
}

/// A kernel on the device.
#[derive(Debug)]
pub(super) struct LoadedKernel {
    pub function: Function,
    pub dynamic_shared: u32,
    pub report: KernelReport,
}

impl Kernel {
    /// A kernel that was compiled, with the threads of its blocks.
    pub fn new(context: &Context, built: Built, source: &KernelSource, threads: u32) -> Kernel {
        let (context, dynamic_shared) = (context.clone(), source.dynamic_shared);
        Kernel { context, built, threads, dynamic_shared, loaded: OnceLock::new() }
    }

    /// The kernel on the device, where it is brought at the first call.
    ///
    /// # Errors
    /// [`Error::Plan`] where it cannot have its threads, [`Error::Cuda`].
    pub fn loaded(&self) -> Result<&LoadedKernel> {
        if let Some(loaded) = self.loaded.get() {
            return Ok(loaded);
        }
        let loaded = self.load()?;
        Ok(self.loaded.get_or_init(|| loaded))
    }

    fn load(&self) -> Result<LoadedKernel> {
        let (built, threads, dynamic_shared) = (&self.built, self.threads, self.dynamic_shared);
        let module = Module::load(&self.context, &built.compiled.cubin, &built.name)?;
        let function = module.function(&built.name)?;
        if dynamic_shared > 0 {
            function.set_max_dynamic_shared(dynamic_shared)?;
        }
        let attributes = function.attributes()?;
        if threads > attributes.max_threads_per_block {
            let most = attributes.max_threads_per_block;
            let why = format!("it has {threads} threads, and its registers allow {most}");
            return Err(Error::plan(format!("kernel {}", built.name), why));
        }
        let from_ptxas = built.compiled.report.kernel(&built.name).cloned().unwrap_or_default();
        let report = KernelReport {
            name: built.name.clone(),
            threads,
            registers: attributes.registers,
            stack: from_ptxas.stack,
            spill_stores: from_ptxas.spill_stores,
            spill_loads: from_ptxas.spill_loads,
            static_shared: attributes.static_shared_bytes,
            dynamic_shared,
            blocks_per_sm: function.blocks_per_sm(threads, dynamic_shared)?,
            cached: built.origin == Origin::Cached,
            warnings: built.compiled.report.ptxas_warnings.clone(),
        };
        Ok(LoadedKernel { function, dynamic_shared, report })
    }
}

/// One job for each kernel of the plan, in its order.
pub(super) fn jobs<'a>(
    plan: &Plan,
    sources: &'a [KernelSource],
) -> Result<(Vec<Job>, Vec<&'a KernelSource>)> {
    let by_name: HashMap<&str, &KernelSource> = sources.iter().map(|s| (s.name.as_str(), s)).collect();
    let mut jobs = Vec::with_capacity(plan.kernels.len());
    let mut used = Vec::with_capacity(plan.kernels.len());
    for spec in &plan.kernels {
        let source = by_name.get(spec.name.as_str());
        let source =
            source.ok_or_else(|| Error::plan(format!("kernel {}", spec.name), "it has no source"))?;
        jobs.push(Job::new(&source.name, &source.source));
        used.push(*source);
    }
    Ok((jobs, used))
}

/// Compiles kernels with NVRTC, or takes them from the cache; not all of them once `stop` is set, as it is by an error.
pub(super) fn compile(
    jobs: &[Job],
    target: &Target,
    options: &CudaOptions,
    stop: &AtomicBool,
    progress: &(dyn Fn(Progress<'_>) + Sync),
) -> Result<Vec<Built>> {
    let nvrtc = Nvrtc::load(&options.nvrtc_dirs)?;
    let cache = match &options.cache_dir {
        _ if !options.cache => None,
        Some(folder) => Some(Cache::open(Some(folder))?),
        // Without a home there is no default folder: go without.
        None => Cache::open(None).ok(),
    };
    let compiler = Compiler { nvrtc: &nvrtc, cache: cache.as_ref(), threads: options.threads };
    compiler.compile_until(jobs, target.nvrtc_arch, stop, progress)
}

/// Compiles and loads kernels that no plan has, each with the threads of its blocks.
pub(super) fn kernels_alone(
    context: &Context,
    wanted: &[(&KernelSource, u32)],
    target: &Target,
    options: &CudaOptions,
) -> Vec<Result<Kernel>> {
    let jobs: Vec<Job> = wanted.iter().map(|(s, _)| Job::new(&s.name, &s.source)).collect();
    let nothing = || Error::bad("kernel", "nothing was compiled");
    let built: Vec<Result<Built>> = match compile(&jobs, target, options, &AtomicBool::new(false), &|_| {}) {
        Ok(built) => built.into_iter().map(Ok).collect(),
        // One that does not compile ends them all: find which.
        Err(_) => {
            let one = |job: &Job| {
                let stop = AtomicBool::new(false);
                let built = compile(std::slice::from_ref(job), target, options, &stop, &|_| {})?;
                built.into_iter().next().ok_or_else(nothing)
            };
            jobs.iter().map(one).collect()
        }
    };
    let load = |(built, (source, threads)): (Result<Built>, &(&KernelSource, u32))| {
        let kernel = Kernel::new(context, built?, source, *threads);
        kernel.loaded()?;
        Ok(kernel)
    };
    built.into_iter().zip(wanted).map(load).collect()
}
