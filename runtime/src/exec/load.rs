//! Loading a plan on a GPU: checks, code, memory, weights.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_ir::graph::Literal;
use weft_ir::ids::BufferId;
use weft_ir::plan::{BufferKind, Plan};
use weft_ir::reference::WeightBytes;
use weft_ir::target::Target;
use weft_ir::verify;

use super::memory::{Layout, MemoryNeed, Region};
use super::pack::Packed;
use super::report::{KernelReport, LoadReport};
use super::upload::Upload;
use crate::cache::Cache;
use crate::compile::{Built, Compiler, Job, Origin, Progress};
use crate::error::{Error, Result};
use crate::nvrtc::Nvrtc;
use crate::sys::context::Context;
use crate::sys::driver::{Device, Driver};
use crate::sys::memory::{DeviceBuffer, PinnedBuffer};
use crate::sys::module::{Function, Module};
use crate::sys::stream::Stream;

/// An emitted kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelSource {
    /// Function name, as in the plan.
    pub name: String,
    /// CUDA C.
    pub source: String,
    /// Dynamic shared memory of a block in bytes; 0 when it is static.
    pub dynamic_shared: u32,
}

/// How the nodes of an entry are run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LaunchMode {
    /// As one CUDA graph.
    #[default]
    Graph,
    /// One by one, waiting after each, so that a fault names its kernel: slow, for finding faults.
    Serial,
}

/// How to load and run a plan on a GPU.
#[derive(Clone, Debug)]
pub struct CudaOptions {
    /// Ordinal of the GPU.
    pub device: usize,
    /// Folders where NVRTC is looked for, before the system's.
    pub nvrtc_dirs: Vec<PathBuf>,
    /// Whether compiled code is kept on disk.
    pub cache: bool,
    /// Folder of the compiled code; `None` for [`Cache::default_folder`].
    pub cache_dir: Option<PathBuf>,
    /// Threads that compile; `None` for one a core.
    pub threads: Option<NonZeroUsize>,
    /// How steps are run.
    pub launch: LaunchMode,
    /// Makes every edge full: no kernel starts before those it waits for are done.
    pub full_edges: bool,
}

impl Default for CudaOptions {
    fn default() -> Self {
        CudaOptions {
            device: 0,
            nvrtc_dirs: Vec::new(),
            cache: true,
            cache_dir: None,
            threads: None,
            launch: LaunchMode::Graph,
            full_edges: false,
        }
    }
}

/// What is told while a plan is loaded. Calls come from any thread, one at a time.
#[derive(Clone, Copy, Debug)]
pub enum LoadProgress<'a> {
    /// The GPU fits the plan, and its memory is enough.
    Checked {
        /// The GPU's name.
        device: &'a str,
        /// What the plan needs.
        need: &'a MemoryNeed,
        /// Free bytes.
        free: u64,
    },
    /// A kernel was compiled, or found in the cache.
    Kernel {
        /// Kernels done.
        done: usize,
        /// Kernels in all.
        total: usize,
        /// This kernel's name.
        name: &'a str,
        /// Whether it came from the cache.
        cached: bool,
    },
    /// Weights were packed.
    Weights {
        /// Bytes done.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
}

/// Called while a plan is loaded.
pub type OnProgress<'a> = dyn Fn(LoadProgress<'_>) + Sync + 'a;

/// Device memory of a loaded plan, and the host memory that mirrors its inputs and tokens.
#[derive(Debug)]
pub(super) struct Memory {
    constants: DeviceBuffer,
    state: DeviceBuffer,
    inputs: DeviceBuffer,
    arena: DeviceBuffer,
    outputs: DeviceBuffer,
    counters: DeviceBuffer,
    pub host_inputs: PinnedBuffer,
    pub host_tokens: PinnedBuffer,
}

impl Memory {
    pub fn region(&self, region: Region) -> &DeviceBuffer {
        match region {
            Region::Constants => &self.constants,
            Region::State => &self.state,
            Region::Inputs => &self.inputs,
            Region::Arena => &self.arena,
            Region::Outputs => &self.outputs,
            Region::Counters => &self.counters,
        }
    }
}

/// A loaded kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    pub function: Function,
    pub dynamic_shared: u32,
    pub report: KernelReport,
}

/// All that a model needs of the device.
pub(super) struct Loaded {
    pub layout: Layout,
    pub context: Context,
    pub stream: Stream,
    pub memory: Arc<Memory>,
    pub kernels: Vec<Kernel>,
    pub report: LoadReport,
}

/// The target of a plan, if the GPU is of it.
fn check_target(plan: &Plan, device: &Device) -> Result<&'static Target> {
    let target = Target::parse(&plan.target).map_err(|why| Error::plan("target", why))?;
    let own = Target::for_capability(device.compute_major, device.compute_minor);
    if own.is_some_and(|t| t.name == target.name) {
        return Ok(target);
    }
    Err(Error::WrongTarget {
        target: target.name.to_owned(),
        ordinal: device.ordinal,
        device: device.name.clone(),
        arch: device.arch(),
        remedy: match own {
            Some(t) => format!("compile it again with --target {}", t.name),
            None => "weft has no target for this GPU: run with --device cpu".to_owned(),
        },
    })
}

/// Fails when a plan needs more memory than is free.
///
/// # Errors
/// [`Error::NotEnoughMemory`].
pub fn check_memory(device: &str, need: &MemoryNeed, free: u64) -> Result<()> {
    if need.total() <= free {
        return Ok(());
    }
    Err(Error::NotEnoughMemory { device: device.to_owned(), free, need: *need })
}

/// Checks a plan and everything that it refers to.
///
/// # Errors
/// [`Error::Plan`].
pub fn check_plan(plan: &Plan) -> Result<()> {
    verify::plan::verify(plan).map_err(|faults| match faults.first() {
        Some(first) => {
            Error::plan(first.place.clone(), format!("{} ({} faults in all)", first.what, faults.len()))
        }
        None => Error::plan("?", "it does not verify"),
    })?;
    if plan.entries.is_empty() {
        return Err(Error::plan("entries", "there are none"));
    }
    Ok(())
}

/// One job for each kernel of the plan, in its order.
fn jobs<'a>(plan: &Plan, sources: &'a [KernelSource]) -> Result<(Vec<Job>, Vec<&'a KernelSource>)> {
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

pub(super) fn load(
    plan: &Plan,
    sources: &[KernelSource],
    weights: &dyn WeightBytes,
    options: &CudaOptions,
    progress: &OnProgress<'_>,
) -> Result<Loaded> {
    let device = Driver::init()?.device(options.device)?;
    let target = check_target(plan, &device)?;
    check_plan(plan)?;
    let layout = Layout::new(plan)?;
    let (jobs, sources) = jobs(plan, sources)?;
    let context = Context::retain(&device)?;
    let free = context.memory()?.free;
    check_memory(&device.name, &layout.need, free)?;
    progress(LoadProgress::Checked { device: &device.name, need: &layout.need, free });

    let start = Instant::now();
    let built = compile(&jobs, target, options, &|p: Progress<'_>| {
        let cached = p.origin == Some(&Origin::Cached);
        progress(LoadProgress::Kernel { done: p.done, total: p.total, name: p.name, cached });
    })?;
    let kernels = built.iter().zip(&sources).zip(&plan.kernels);
    let kernels = kernels.map(|((b, s), spec)| kernel(&context, b, s, spec.threads));
    let kernels = kernels.collect::<Result<Vec<Kernel>>>()?;
    let compile_time = start.elapsed();

    let start = Instant::now();
    let stream = Stream::new(&context)?;
    let memory = allocate(plan, &layout, &context, &stream)?;
    upload(plan, &layout, weights, &memory, &stream, progress)?;
    let mut cache_errors: Vec<String> =
        built.iter().filter_map(|b| b.cache_error.as_ref()).map(ToString::to_string).collect();
    cache_errors.sort();
    cache_errors.dedup();
    let report = LoadReport {
        device: device.name.clone(),
        memory: layout.need,
        free_before: free,
        compiled: built.iter().filter(|b| b.origin != Origin::Cached).count(),
        kernels: built.len(),
        compile_time,
        upload_time: start.elapsed(),
        cache_errors,
    };
    Ok(Loaded { layout, context, stream, memory: Arc::new(memory), kernels, report })
}

/// Compiles kernels with NVRTC, or takes them from the cache.
fn compile(
    jobs: &[Job],
    target: &Target,
    options: &CudaOptions,
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
    compiler.compile_all(jobs, target.nvrtc_arch, progress)
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
    let built: Vec<Result<Built>> = match compile(&jobs, target, options, &|_| {}) {
        Ok(built) => built.into_iter().map(Ok).collect(),
        // One that does not compile ends them all: find which.
        Err(_) => {
            let one = |job: &Job| compile(std::slice::from_ref(job), target, options, &|_| {});
            jobs.iter().map(|job| one(job)?.into_iter().next().ok_or_else(nothing)).collect()
        }
    };
    let load = |(built, (source, threads)): (Result<Built>, &(&KernelSource, u32))| {
        kernel(context, &built?, source, *threads)
    };
    built.into_iter().zip(wanted).map(load).collect()
}

fn kernel(context: &Context, built: &Built, source: &KernelSource, threads: u32) -> Result<Kernel> {
    let module = Module::load(context, &built.compiled.cubin, &built.name)?;
    let function = module.function(&built.name)?;
    if source.dynamic_shared > 0 {
        function.set_max_dynamic_shared(source.dynamic_shared)?;
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
        dynamic_shared: source.dynamic_shared,
        blocks_per_sm: function.blocks_per_sm(threads, source.dynamic_shared)?,
        cached: built.origin == Origin::Cached,
        warnings: built.compiled.report.ptxas_warnings.clone(),
    };
    Ok(Kernel { function, dynamic_shared: source.dynamic_shared, report })
}

fn allocate(plan: &Plan, layout: &Layout, context: &Context, stream: &Stream) -> Result<Memory> {
    let device = |bytes: u64| DeviceBuffer::alloc(context, bytes as usize);
    let need = &layout.need;
    let rows = plan.entries.iter().map(|e| e.bind.rows).max().unwrap_or(0);
    let memory = Memory {
        constants: device(layout.constants as u64)?,
        state: device(need.state)?,
        inputs: device(need.inputs)?,
        arena: device(need.arena)?,
        outputs: device(need.outputs)?,
        counters: device(need.counters)?,
        host_inputs: PinnedBuffer::alloc(context, need.inputs as usize)?,
        host_tokens: PinnedBuffer::alloc(context, rows * 4)?,
    };
    // Zeros mean the same in every type. Outputs and the arena too, so that runs are alike.
    for region in [Region::State, Region::Arena, Region::Outputs, Region::Counters] {
        let buffer = memory.region(region);
        if !buffer.is_empty() {
            buffer.fill_async(0, buffer.len(), 0, stream)?;
        }
    }
    Ok(memory)
}

fn upload(
    plan: &Plan,
    layout: &Layout,
    weights: &dyn WeightBytes,
    memory: &Memory,
    stream: &Stream,
    progress: &OnProgress<'_>,
) -> Result<()> {
    let total = layout.need.weights;
    let mut done = 0u64;
    let mut upload = Upload::new(stream.context(), &memory.constants, stream)?;
    let mut last = Instant::now();
    for (i, buffer) in plan.buffers.iter().enumerate() {
        let place = || layout.place(plan, 0, BufferId::new(i));
        match &buffer.kind {
            BufferKind::Weight(pack) => {
                let elements: Option<usize> = buffer.shape.iter().map(|d| d.as_const()).product();
                let elements = elements.ok_or_else(|| {
                    Error::plan(format!("buffer {:?}", buffer.name), "a weight has a symbolic extent")
                })?;
                let packed = Packed::new(&buffer.name, pack, buffer.dtype, elements, weights)?;
                upload.put(place()?.1, packed.len(), &mut |from, out| {
                    packed.write(from, out)?;
                    done += out.len() as u64;
                    // Small weights come by the hundred.
                    if last.elapsed() > Duration::from_millis(20) {
                        last = Instant::now();
                        progress(LoadProgress::Weights { done: done.min(total), total });
                    }
                    Ok(())
                })?;
            }
            BufferKind::Literal(literal) => {
                let bytes: &[u8] = match literal {
                    Literal::F32(v) => bytemuck::cast_slice(v),
                    Literal::I32(v) => bytemuck::cast_slice(v),
                };
                upload.put(place()?.1, bytes.len(), &mut |from, out| {
                    out.copy_from_slice(&bytes[from..from + out.len()]);
                    Ok(())
                })?;
            }
            BufferKind::Input(_)
            | BufferKind::State(_)
            | BufferKind::Output(_)
            | BufferKind::Temp
            | BufferKind::Control(_) => {}
        }
    }
    upload.finish()?;
    progress(LoadProgress::Weights { done: total, total });
    Ok(())
}
