//! Opens a checkpoint or a bundle on a device.
//!
//! A checkpoint is compiled in memory first. On the CPU everything is computed in f32: the graph itself at
//! `--opt-level 0`, else the plan that would go to the GPU, dispatch by dispatch.

use crate::args::{BuildArgs, DeviceArg};
use crate::bundle::{self, Bundle};
use crate::errors::{Error, Result};
use crate::startup::{self, Startup};
use crate::{model, places, progress};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use weft_frontend::checkpoint::{Checkpoint, Task};
use weft_frontend::models::{self, Kind};
use weft_ir::dtype::DType;
use weft_ir::plan::Plan;
use weft_ir::reference::{Precision, WeightBytes};
use weft_ir::target::Target;
use weft_runtime::doctor::{Report, Status};
use weft_runtime::exec::{
    CpuModel, CpuOptions, CudaModel, CudaOptions, Executor, KernelSource, LoadProgress,
};
use weft_runtime::sys::context::Context;
use weft_runtime::sys::driver::{Device, Driver};

/// Most sequences of an encoder's step, when it is compiled in memory.
const ENCODER_BATCH: usize = 64;

/// A checkpoint, by itself or behind a bundle.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    checkpoint: Checkpoint,
    bundle: Option<Bundle>,
}

/// What is to be run, and where.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Device.
    pub device: DeviceArg,
    /// Choices of a compilation in memory.
    pub build: &'a BuildArgs,
    /// Sequences that there are; a checkpoint is compiled for as many, if a plan can hold them.
    pub sequences: usize,
}

/// The tensors of a checkpoint, for packing.
struct Weights<'a>(&'a Checkpoint);

impl WeightBytes for Weights<'_> {
    fn bytes(&self, tensor: &str) -> Option<&[u8]> {
        self.0.bytes(tensor).ok()
    }
}

/// A GPU that is made ready while something else is done. Dropping it waits for that, since a process must not end in
/// the middle of it.
pub struct Warm(Option<JoinHandle<Option<Context>>>);

impl Warm {
    /// Begins to start the driver and the first GPU's context, unless the CPU is asked for. What is wrong with them,
    /// loading will say.
    pub fn up(device: DeviceArg) -> Warm {
        let ready = || Context::retain(&first_gpu().ok()?.0).ok();
        match device {
            DeviceArg::Cpu => Warm(None),
            DeviceArg::Cuda | DeviceArg::Auto => Warm(Some(std::thread::spawn(ready))),
        }
    }
}

impl Drop for Warm {
    fn drop(&mut self) {
        // A panic there has said what it had to say.
        let _ = self.0.take().map(JoinHandle::join);
    }
}

/// A device that was chosen.
enum Place {
    Cpu,
    Cuda(Device, &'static Target),
}

impl Source {
    /// Opens a checkpoint, whose configuration is read as `build` says, or a bundle.
    ///
    /// # Errors
    /// When it is neither, or a bundle whose checkpoint changed.
    pub fn open(path: &Path, build: &BuildArgs) -> Result<Source> {
        let bundle = if bundle::is_bundle(path) { Some(bundle::read(path)?) } else { None };
        let checkpoint = match &bundle {
            Some(bundle) => bundle.checkpoint(path)?,
            None => model::open(path, build)?,
        };
        Ok(Source { path: path.to_owned(), checkpoint, bundle })
    }

    /// The same for hidden states, of a decoder, too.
    ///
    /// # Errors
    /// A bundle of a decoder that was compiled to generate.
    pub fn embedding(mut self) -> Result<Source> {
        match &self.bundle {
            None => self.checkpoint = self.checkpoint.for_task(Task::Embed),
            Some(_) if self.kind()? == Kind::Encoder => {}
            Some(bundle) => {
                let (path, again) = (self.path.display(), bundle::remedy(&bundle.manifest));
                return Err(Error::input(format!(
                    "{path}: compiled to generate, and has no hidden states; compile for them: {again} --task embed"
                )));
            }
        }
        Ok(self)
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// What the model does.
    ///
    /// # Errors
    /// An unknown family.
    pub fn kind(&self) -> Result<Kind> {
        Ok(models::family(&self.checkpoint)?.0)
    }

    /// Longest context of a sequence.
    pub fn max_seq(&self, build: &BuildArgs) -> usize {
        match &self.bundle {
            Some(bundle) => bundle.plan.max_seq,
            None => model::max_seq(&self.checkpoint, build),
        }
    }

    /// Loads it on the device.
    ///
    /// # Errors
    /// Choices that contradict a bundle, a device that is not there, or what loading reports.
    pub fn load(self, request: Request<'_>) -> Result<Box<dyn Executor>> {
        Ok(self.load_timed(request)?.0)
    }

    /// As [`Source::load`], with what it took.
    ///
    /// # Errors
    /// As [`Source::load`].
    pub fn load_timed(self, request: Request<'_>) -> Result<(Box<dyn Executor>, Startup)> {
        let mut times = Startup { open_seconds: startup::seconds(), ..Startup::default() };
        if let Some(bundle) = &self.bundle {
            check_choices(&self.path, bundle, request.build)?;
        }
        let place = place(request.device)?;
        let begun = startup::seconds();
        times.device_seconds = begun - times.open_seconds;
        let executor: Box<dyn Executor> = match place {
            Place::Cpu => self.on_cpu(request)?,
            Place::Cuda(device, target) => Box::new(self.on_cuda(request, &device, target)?),
        };
        let (both, load) = (startup::seconds() - begun, executor.load_report().cloned());
        times.load_seconds = load.as_ref().map_or(both, |l| l.seconds);
        times.plan_seconds = both - times.load_seconds;
        times.load = load;
        Ok((executor, times))
    }

    /// Loads it on the GPU, to measure it there.
    ///
    /// # Errors
    /// As [`Source::load`]; without a GPU that can be used, why, ending in `remedy`.
    pub fn load_to_measure(self, request: Request<'_>, remedy: &str) -> Result<(CudaModel, CudaOptions)> {
        if let Some(bundle) = &self.bundle {
            check_choices(&self.path, bundle, request.build)?;
        }
        let (device, target) =
            usable_gpu().map_err(|why| Error::failed(format!("no GPU to measure on: {why}; {remedy}")))?;
        eprintln!("device: {} ({})", device.name, target.name);
        Ok((self.on_cuda(request, &device, target)?, cuda_options(&device)))
    }

    /// The plan that would be loaded on a GPU of a target: a bundle's own, else compiled in memory.
    ///
    /// # Errors
    /// Choices that contradict a bundle, or what compiling reports.
    pub fn plan(self, request: Request<'_>, target: &'static Target) -> Result<Plan> {
        if let Some(bundle) = self.bundle {
            check_choices(&self.path, &bundle, request.build)?;
            return Ok(bundle.plan);
        }
        let options = model::options(&self.checkpoint, request.build, target, self.sequences(&request)?)?;
        let compiled = model::compile(&self.checkpoint, options)?;
        model::warn(&model::warnings(&self.checkpoint, &compiled.graph));
        Ok(compiled.plan)
    }

    /// The target that a bundle was compiled for; `None` for a checkpoint.
    pub fn target(&self) -> Option<&str> {
        self.bundle.as_ref().map(|b| b.plan.target.as_str())
    }

    /// Sequences to compile the checkpoint for.
    fn sequences(&self, request: &Request<'_>) -> Result<usize> {
        let most = match self.kind()? {
            Kind::Decoder => weft_passes::schedule::DECODE_ROWS,
            Kind::Encoder => ENCODER_BATCH,
        };
        Ok(request.sequences.clamp(1, most))
    }

    fn on_cpu(self, request: Request<'_>) -> Result<Box<dyn Executor>> {
        let weights = Weights(&self.checkpoint);
        if let Some(bundle) = self.bundle {
            return Ok(Box::new(CpuModel::plan(Arc::new(bundle.plan), &weights, Precision::F32)?));
        }
        let target = Target::parse(model::DEFAULT_TARGET).map_err(Error::failed)?;
        let mut options = model::options(&self.checkpoint, request.build, target, self.sequences(&request)?)?;
        if request.build.dtype.is_none() {
            options.dtype = DType::F32;
        }
        let graph = models::build(&self.checkpoint, options.dtype)?;
        model::warn(&model::warnings(&self.checkpoint, &graph));
        if options.opt_level == 0 {
            let (max_seq, max_batch) = (options.max_seq, options.max_batch);
            let step_tokens = CpuOptions::default().step_tokens;
            // A sequence of an encoder lies whole in a step.
            let step_tokens = if graph.is_encoder() { step_tokens.max(max_seq) } else { step_tokens };
            let options = CpuOptions { max_seq, max_batch, step_tokens, precision: Precision::F32 };
            return Ok(Box::new(CpuModel::graph(graph, &weights, &options)?));
        }
        let plan = weft_passes::compile(&graph, options)?.plan;
        Ok(Box::new(CpuModel::plan(Arc::new(plan), &weights, Precision::F32)?))
    }

    fn on_cuda(self, request: Request<'_>, device: &Device, target: &'static Target) -> Result<CudaModel> {
        // The GPU's context takes as long to make as a plan: it is kept until the plan is loaded.
        let (planned, context) = std::thread::scope(|scope| {
            let context = scope.spawn(|| Context::retain(device));
            (self.planned(request, target), context.join())
        });
        let (checkpoint, plan, kernels) = planned?;
        // What is wrong with it, loading will say.
        let _context = context;
        load_on(device, &checkpoint, plan, &kernels)
    }

    /// The plan for a target and its kernels: a bundle's own, else compiled in memory.
    fn planned(
        self,
        request: Request<'_>,
        target: &'static Target,
    ) -> Result<(Checkpoint, Plan, Vec<KernelSource>)> {
        let (plan, kernels): (Plan, Vec<KernelSource>) = match self.bundle {
            Some(Bundle { manifest, plan, sources }) => {
                let kernels = manifest.kernels.into_iter().zip(sources);
                let kernels = kernels.map(|(k, source)| KernelSource {
                    name: k.name,
                    source,
                    dynamic_shared: k.dynamic_shared,
                });
                (plan, kernels.collect())
            }
            None => {
                let sequences = self.sequences(&request)?;
                let options = model::options(&self.checkpoint, request.build, target, sequences)?;
                let compiled = model::compile(&self.checkpoint, options)?;
                model::warn(&model::warnings(&self.checkpoint, &compiled.graph));
                let kernels = compiled.kernels.into_iter().map(|k| KernelSource {
                    name: k.name,
                    source: k.source,
                    dynamic_shared: k.dynamic_shared,
                });
                (compiled.plan, kernels.collect())
            }
        };
        Ok((self.checkpoint, plan, kernels))
    }
}

/// Loads a plan and its kernels on a GPU, with progress bars.
///
/// # Errors
/// What loading reports.
pub fn load_on(
    device: &Device,
    checkpoint: &Checkpoint,
    plan: Plan,
    kernels: &[KernelSource],
) -> Result<CudaModel> {
    let options = cuda_options(device);
    let weights = Weights(checkpoint);
    let (code, upload) = progress::together(progress::count("kernels"), progress::bytes("weights"));
    let tell = |p: LoadProgress<'_>| match p {
        LoadProgress::Checked { .. } => {}
        LoadProgress::Kernel { done, total, .. } => progress::tell(&code, done as u64, total as u64),
        LoadProgress::Weights { done, total } => progress::tell(&upload, done, total),
    };
    let loaded = CudaModel::load(Arc::new(plan), kernels, &weights, &options, &tell);
    code.finish_and_clear();
    upload.finish_and_clear();
    let loaded = loaded?;
    for why in &loaded.load_report().cache_errors {
        eprintln!("warning: {why}");
    }
    Ok(loaded)
}

/// How plans are loaded on a GPU.
pub fn cuda_options(device: &Device) -> CudaOptions {
    CudaOptions { device: device.ordinal, nvrtc_dirs: places::nvrtc_folders(), ..CudaOptions::default() }
}

/// A bundle's choices were made when it was compiled.
fn check_choices(path: &Path, bundle: &Bundle, build: &BuildArgs) -> Result<()> {
    let (plan, again) = (&bundle.plan, bundle::remedy(&bundle.manifest));
    let refuse = |option: &str, asked: String, has: String| {
        Err(Error::input(format!(
            "{}: compiled with {option} {has}, not {asked}; leave the option out, or compile again: {again} {option} \
             {asked}",
            path.display(),
        )))
    };
    let manifest = &bundle.manifest;
    for (option, asked, ignored) in [
        ("--ignore-config-key", &build.keys.ignore_config_key, &manifest.ignored_keys),
        ("--ignore-tensor", &build.ignore_tensor, &manifest.ignored_tensors),
    ] {
        if let Some(value) = asked.iter().find(|value| !ignored.contains(value)) {
            return Err(Error::input(format!(
                "{}: compiled without {option} {value}; leave it out, or compile again: {again} {option} {value}",
                path.display(),
            )));
        }
    }
    if let Some(file) = &build.schedules {
        let (path, file) = (path.display(), file.display());
        return Err(Error::input(format!(
            "{path}: a bundle's schedules were chosen when it was compiled; leave --schedules out, or compile again: \
             {again} --schedules {file}"
        )));
    }
    match (build.opt_level, build.dtype.map(DType::from), build.max_seq) {
        (Some(level), _, _) if level != plan.opt_level => {
            refuse("--opt-level", level.to_string(), plan.opt_level.to_string())
        }
        (_, Some(dtype), _) if dtype != plan.dtype => {
            refuse("--dtype", dtype.to_string(), plan.dtype.to_string())
        }
        (_, _, Some(n)) if n != plan.max_seq => refuse("--max-seq", n.to_string(), plan.max_seq.to_string()),
        _ => Ok(()),
    }
}

/// The first GPU, and its target.
///
/// # Errors
/// Why there is none that Weft can use.
pub fn first_gpu() -> Result<(Device, &'static Target), String> {
    let devices = Driver::init().and_then(|driver| driver.devices()).map_err(|e| e.to_string())?;
    let device = devices.into_iter().next().ok_or_else(|| weft_runtime::Error::NoDevice.to_string())?;
    let target = Target::for_capability(device.compute_major, device.compute_minor).ok_or_else(|| {
        let known: Vec<&str> = weft_ir::target::TARGETS.iter().map(|t| t.name).collect();
        format!("{} is {}; known targets: {}", device.name, device.arch(), known.join(", "))
    })?;
    Ok((device, target))
}

/// The first GPU, if everything that running on it takes is there.
pub fn usable_gpu() -> Result<(Device, &'static Target), String> {
    let found = first_gpu()?;
    let report = Report::gather(&places::nvrtc_folders(), None);
    match report.checks.iter().find(|c| c.status == Status::Missing && c.part != "cache") {
        None => Ok(found),
        Some(check) => {
            let detail = check.detail.split("; looked at").next().unwrap_or_default();
            let remedy = check.remedy.iter().map(|r| format!("; {r}")).collect::<String>();
            Err(format!("{}: {detail}{remedy}", check.part))
        }
    }
}

/// Chooses the device; stderr says which and, where it was not asked for, why.
fn place(device: DeviceArg) -> Result<Place> {
    match device {
        DeviceArg::Cpu => {
            eprintln!("device: CPU reference in f32");
            Ok(Place::Cpu)
        }
        DeviceArg::Cuda => {
            let (device, target) =
                usable_gpu().map_err(|why| Error::failed(format!("--device cuda: {why}")))?;
            eprintln!("device: {} ({})", device.name, target.name);
            Ok(Place::Cuda(device, target))
        }
        DeviceArg::Auto => match usable_gpu() {
            Ok((device, target)) => {
                eprintln!("device: {} ({})", device.name, target.name);
                Ok(Place::Cuda(device, target))
            }
            Err(why) => {
                eprintln!("device: CPU reference in f32, since no GPU can be used: {why}");
                Ok(Place::Cpu)
            }
        },
    }
}
