//! Loading a plan on a GPU: checks, then code and weights at the same time.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use weft_ir::graph::Literal;
use weft_ir::ids::BufferId;
use weft_ir::plan::{BufferKind, Plan};
use weft_ir::reference::WeightBytes;
use weft_ir::target::Target;
use weft_ir::verify;

use super::kernels::{self, Kernel};
use super::memory::{Layout, MemoryNeed, Region};
use super::report::{LoadReport, UploadReport};
use super::upload::{self, Bytes, Constant};
use crate::compile::{Origin, Progress};
use crate::error::{Error, Result};
use crate::sys::context::Context;
use crate::sys::driver::{Device, Driver};
use crate::sys::memory::{DeviceBuffer, PinnedBuffer};
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
    /// Folder of the compiled code; `None` for [`crate::cache::Cache::default_folder`].
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
    /// Constants were brought to the device.
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

pub(super) fn load(
    plan: &Plan,
    sources: &[KernelSource],
    weights: &dyn WeightBytes,
    options: &CudaOptions,
    progress: &OnProgress<'_>,
) -> Result<Loaded> {
    let start = Instant::now();
    let device = Driver::init()?.device(options.device)?;
    let target = check_target(plan, &device)?;
    check_plan(plan)?;
    let layout = Layout::new(plan)?;
    let (jobs, sources) = kernels::jobs(plan, sources)?;
    let context = Context::retain(&device)?;
    let free = context.memory()?.free;
    check_memory(&device.name, &layout.need, free)?;
    progress(LoadProgress::Checked { device: &device.name, need: &layout.need, free });

    // Code and weights at the same time. What fails ends the other too.
    let turn = Mutex::new(());
    let tell = |p: LoadProgress<'_>| {
        let _one_at_a_time = turn.lock().unwrap_or_else(PoisonError::into_inner);
        progress(p);
    };
    let failed = AtomicBool::new(false);
    let (built, uploaded) = std::thread::scope(|scope| {
        let code = scope.spawn(|| {
            let start = Instant::now();
            let built = kernels::compile(&jobs, target, options, &failed, &|p: Progress<'_>| {
                let cached = p.origin == Some(&Origin::Cached);
                tell(LoadProgress::Kernel { done: p.done, total: p.total, name: p.name, cached });
            });
            // Also where no kernel was at fault.
            failed.fetch_or(built.is_err(), Ordering::Relaxed);
            built.map(|built| (built, start.elapsed()))
        });
        let uploaded = bring(plan, &layout, weights, &context, &failed, &tell);
        failed.fetch_or(uploaded.is_err(), Ordering::Relaxed);
        (code.join(), uploaded)
    });
    let built = built.map_err(|_| Error::bad("load", "a thread that compiles kernels ended in a panic"))?;
    let (built, compile_time) = built?;
    let (stream, memory, upload) = uploaded?;
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
        compile_seconds: compile_time.as_secs_f64(),
        upload,
        seconds: start.elapsed().as_secs_f64(),
        cache_errors,
    };
    let kernels = built.into_iter().zip(&sources).zip(&plan.kernels);
    let kernels = kernels.map(|((b, s), spec)| Kernel::new(&context, b, s, spec.threads)).collect();
    Ok(Loaded { layout, context, stream, memory: Arc::new(memory), kernels, report })
}

/// Allocates a plan's memory, and brings its constants there. Ends early when `stop` is set.
fn bring(
    plan: &Plan,
    layout: &Layout,
    weights: &dyn WeightBytes,
    context: &Context,
    stop: &AtomicBool,
    progress: &OnProgress<'_>,
) -> Result<(Stream, Memory, UploadReport)> {
    let stream = Stream::new(context)?;
    let memory = allocate(plan, layout, context, &stream)?;
    let total = layout.need.weights + layout.need.literals;
    let target = upload::Pinned { to: &memory.constants, stream: &stream };
    let constants = constants(plan, layout)?;
    let tell = |done: u64| progress(LoadProgress::Weights { done, total });
    let report = upload::upload(&target, &constants, weights, None, stop, &tell)?;
    // The zeros too.
    stream.synchronize()?;
    progress(LoadProgress::Weights { done: total, total });
    Ok((stream, memory, report))
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

/// The constants of a plan in the order of their places.
fn constants<'a>(plan: &'a Plan, layout: &Layout) -> Result<Vec<Constant<'a>>> {
    let mut out = Vec::new();
    for (i, buffer) in plan.buffers.iter().enumerate() {
        let bytes = match &buffer.kind {
            BufferKind::Weight(pack) => {
                let elements: Option<usize> = buffer.shape.iter().map(|d| d.as_const()).product();
                let elements = elements.ok_or_else(|| {
                    Error::plan(format!("buffer {:?}", buffer.name), "a weight has a symbolic extent")
                })?;
                Bytes::Packed(&buffer.name, pack, buffer.dtype, elements)
            }
            BufferKind::Literal(Literal::F32(v)) => Bytes::Plain(bytemuck::cast_slice(v)),
            BufferKind::Literal(Literal::I32(v)) => Bytes::Plain(bytemuck::cast_slice(v)),
            BufferKind::Input(_)
            | BufferKind::State(_)
            | BufferKind::Output(_)
            | BufferKind::Temp
            | BufferKind::Control(_) => continue,
        };
        let len = match bytes {
            Bytes::Plain(bytes) => bytes.len(),
            Bytes::Packed(_, _, dtype, elements) => elements * dtype.size(),
        };
        out.push(Constant { at: layout.place(plan, 0, BufferId::new(i))?.1, len, bytes });
    }
    Ok(out)
}
