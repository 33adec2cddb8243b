//! From a checkpoint to kernels: the way of `weft compile`, in memory.

use crate::args::BuildArgs;
use crate::errors::{Error, Result};
use crate::schedules;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use weft_codegen::Emitted;
use weft_frontend::checkpoint::Checkpoint;
use weft_frontend::config::{ModelConfig, RopeScaling};
use weft_frontend::models;
use weft_ir::dtype::DType;
use weft_ir::graph::{Graph, Op};
use weft_ir::plan::Plan;
use weft_ir::target::Target;
use weft_passes::{Context, Form, Options, Provenance, Selection};

/// The target where there is no GPU and none is named.
pub const DEFAULT_TARGET: &str = "sm_90";
/// Longest context unless another is asked for.
const DEFAULT_MAX_SEQ: usize = 4096;

/// Opens a checkpoint, read as `args` says.
///
/// # Errors
/// What the frontend reports.
pub fn open(path: &Path, args: &BuildArgs) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open_ignoring(path, &args.keys.ignore_config_key)?;
    let checkpoint = checkpoint.ignoring_tensors(&args.ignore_tensor);
    Ok(match args.max_seq {
        Some(max_seq) => checkpoint.reaching(max_seq),
        None => checkpoint,
    })
}

/// What a checkpoint is compiled for: the user's choices, with defaults filled in.
///
/// # Errors
/// A longest context beyond the model's positions, where they limit it.
pub fn options(
    checkpoint: &Checkpoint,
    args: &BuildArgs,
    target: &'static Target,
    max_batch: usize,
) -> Result<Options> {
    let max_seq = max_seq(checkpoint, args);
    let config = checkpoint.config();
    if let Some(why) = config.position_bound().filter(|_| max_seq > config.max_position) {
        let most = config.max_position;
        return Err(Error::input(format!(
            "--max-seq {max_seq}: the model has {most} positions: {why}; give at most {most}"
        )));
    }
    let dtype = args.dtype.map_or_else(|| default_dtype(checkpoint), DType::from);
    Ok(Options {
        target,
        dtype,
        opt_level: args.opt_level.unwrap_or(2),
        max_seq,
        max_batch,
        selection: Selection {
            disabled: args.disable.clone(),
            numerics: args.numerics.into(),
            ..Selection::default()
        },
        dump: false,
        schedules: schedules::chosen(args.schedules.as_deref())?,
    })
}

/// Longest context: what was asked for, else the model's own up to 4096.
pub fn max_seq(checkpoint: &Checkpoint, args: &BuildArgs) -> usize {
    args.max_seq.unwrap_or(checkpoint.config().max_position.min(DEFAULT_MAX_SEQ))
}

/// The default type: the checkpoint's where it is 16-bit, else bf16.
fn default_dtype(checkpoint: &Checkpoint) -> DType {
    let stored = || {
        let weights = checkpoint.tensors().filter_map(|t| t.encoding);
        weights.map(|e| e.value_type()).find(|d| d.is_float())
    };
    checkpoint.config().dtype.or_else(stored).filter(|d| d.is_half()).unwrap_or(DType::BF16)
}

/// A model compiled in memory.
#[derive(Debug)]
pub struct Model {
    /// The graph it came from.
    pub graph: Graph,
    /// The plan.
    pub plan: Plan,
    /// The kernels, in the plan's order.
    pub kernels: Vec<Emitted>,
    /// Pass times and dumps.
    pub context: Context,
    /// Where each work came from.
    pub provenance: Provenance,
    /// For each body of the plan, the graph that it came from.
    pub forms: Vec<Form>,
    /// Time to build the graph.
    pub build_time: Duration,
    /// Time to emit the kernels.
    pub emit_time: Duration,
}

/// Compiles a checkpoint. Reads headers only.
///
/// # Errors
/// What the frontend, the passes and code generation report.
pub fn compile(checkpoint: &Checkpoint, options: Options) -> Result<Model> {
    let start = Instant::now();
    let graph = models::build(checkpoint, options.dtype)?;
    let build_time = start.elapsed();
    let compiled = weft_passes::compile(&graph, options)?;
    let start = Instant::now();
    let kernels = weft_codegen::emit(&compiled.plan)?;
    let emit_time = start.elapsed();
    Ok(Model {
        graph,
        plan: compiled.plan,
        kernels,
        context: compiled.context,
        provenance: compiled.provenance,
        forms: compiled.forms,
        build_time,
        emit_time,
    })
}

/// Names of the checkpoint tensors that a graph uses.
pub fn used_tensors(graph: &Graph) -> Vec<String> {
    let used: BTreeSet<&String> = graph
        .nodes
        .iter()
        .filter_map(|n| match &n.op {
            Op::Weight { tensor, .. } => Some(tensor),
            _ => None,
        })
        .collect();
    used.into_iter().cloned().collect()
}

/// Prints warnings.
pub fn warn(warnings: &[String]) {
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
}

/// What a user should know of a configuration that was read all the same.
pub fn config_warnings(config: &ModelConfig) -> Vec<String> {
    let mut out = Vec::new();
    if !config.unknown.is_empty() {
        let keys = config.unknown.join(", ");
        out.push(format!(
            "config: keys that Weft does not know have empty values, and were passed over: {keys}"
        ));
    }
    if !config.ignored.is_empty() {
        let keys = config.ignored.join(", ");
        out.push(format!("config: keys that Weft does not know were passed over, as asked: {keys}"));
    }
    if let RopeScaling::LongRope { long: true, original_max_position, .. } = &config.rope.scaling {
        let n = original_max_position;
        out.push(format!(
            "rope: for contexts beyond {n} tokens rope_type longrope's long factors are taken, in shorter sequences, too \
             (Hugging Face takes the short ones there); --max-seq {n} keeps to the short ones"
        ));
    }
    out
}

/// What a user should know of a checkpoint that was compiled all the same.
pub fn warnings(checkpoint: &Checkpoint, graph: &Graph) -> Vec<String> {
    let mut out = config_warnings(checkpoint.config());
    let unused = checkpoint.unused(&used_tensors(graph));
    if !unused.is_empty() {
        let few: Vec<&str> = unused.iter().take(5).map(String::as_str).collect();
        let more = if unused.len() > few.len() { ", …" } else { "" };
        let (count, few) = (unused.len(), few.join(", "));
        let noun = if count == 1 { "tensor" } else { "tensors" };
        out.push(format!("weights: the model does not use {count} {noun}: {few}{more}"));
    }
    out
}

/// A name for a model, from its path: the folder's name, or a `.gguf` file's.
pub fn name(path: &Path) -> Result<String> {
    let full = std::path::absolute(path).map_err(|e| Error::io(path, "open", &e))?;
    // `.` and `..` have no name until they are resolved.
    let full = full.canonicalize().unwrap_or(full);
    let ending = full.extension().map(|x| x.to_string_lossy().into_owned()).unwrap_or_default();
    let named: Option<PathBuf> = match ending.as_str() {
        "gguf" if full.is_file() => full.file_stem().map(PathBuf::from),
        _ if full.is_file() => full.parent().and_then(Path::file_name).map(PathBuf::from),
        _ => full.file_name().map(PathBuf::from),
    };
    Ok(named.map_or_else(|| "model".to_owned(), |n| n.to_string_lossy().into_owned()))
}
