//! The command line's grammar.

use crate::commands::contracts::Requirement;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use weft_frontend::checkpoint::Task;
use weft_ir::dtype::DType;
use weft_ir::target::Target;
use weft_passes::Numerics;

/// A graph compiler for language models: from a checkpoint to readable CUDA kernels and tokens.
#[derive(Debug, Parser)]
#[command(name = "weft", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Compile a checkpoint to a bundle: kernels, memory map and launch graph.
    Compile(CompileArgs),
    /// Answer prompts with a checkpoint or a bundle.
    Run(RunArgs),
    /// Compute the logits, or an encoder's hidden states, of given token ids, file to file.
    Forward(ForwardArgs),
    /// Turn texts into embeddings with an encoder.
    Embed(EmbedArgs),
    /// Say what the kernels of a bundle are, what they cost and where they come from.
    Inspect(InspectArgs),
    /// Measure the decode steps of a model on the GPU, kernel by kernel, against the streaming ceiling.
    Bench(BenchArgs),
    /// Measure schedules of a model's decode kernels on the GPU, and keep the fastest for compile.
    Tune(TuneArgs),
    /// Turn a GGUF file into a Hugging Face folder.
    Convert(ConvertArgs),
    /// Write random weights for a config.json: a checkpoint of any public shape, to measure.
    Synth(SynthArgs),
    /// Say what of driver, GPU, NVRTC and cache is there, and what to do about the rest.
    Doctor(DoctorArgs),
    /// List the model families that can be compiled.
    Models(ModelsArgs),
    /// Print a completion script for a shell.
    Completions(CompletionsArgs),
}

/// Where to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceArg {
    /// The GPU when one is usable, else the CPU reference (stderr says which and why).
    Auto,
    /// The CPU reference, in f32.
    Cpu,
    /// The GPU.
    Cuda,
}

/// What a decoder is compiled for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TaskArg {
    /// To continue sequences: weft run, forward, bench, tune.
    #[default]
    Generate,
    /// To give hidden states of whole sequences, as encoders do: weft embed, forward.
    Embed,
}

impl From<TaskArg> for Task {
    fn from(arg: TaskArg) -> Task {
        match arg {
            TaskArg::Generate => Task::Generate,
            TaskArg::Embed => Task::Embed,
        }
    }
}

/// How decode steps follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LaunchArg {
    /// All in one launch: the GPU samples, tests for the end and goes on by itself, and streams tokens out as they
    /// are made. On the CPU the same as step.
    Loop,
    /// One launch a step, with the host between: for finding faults, and for drivers without conditional graph
    /// nodes. The tokens are the same.
    Step,
}

/// A floating-point type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FloatArg {
    /// bfloat16.
    Bf16,
    /// IEEE binary16.
    F16,
    /// IEEE binary32.
    F32,
}

impl From<FloatArg> for DType {
    fn from(arg: FloatArg) -> DType {
        match arg {
            FloatArg::Bf16 => DType::BF16,
            FloatArg::F16 => DType::F16,
            FloatArg::F32 => DType::F32,
        }
    }
}

/// How a checkpoint's configuration is read.
#[derive(Clone, Debug, Default, Args)]
pub struct ConfigArgs {
    /// Pass over this key of the model's config.json (or of a GGUF file's metadata), which Weft does not know and
    /// refuses; may be given several times.
    #[arg(long, value_name = "KEY")]
    pub ignore_config_key: Vec<String>,
}

/// Choices of a compilation; fixed in a bundle.
#[derive(Clone, Debug, Default, Args)]
pub struct BuildArgs {
    /// How its configuration is read.
    #[command(flatten)]
    pub keys: ConfigArgs,
    /// Pass over tensors whose names begin so, which are of the model's own modules and which Weft does not read and
    /// refuses; may be given several times.
    #[arg(long, value_name = "PREFIX")]
    pub ignore_tensor: Vec<String>,
    /// 0: one kernel an op; 1: fused loops; 2: all fusions [default: 2].
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(u8).range(0..=2))]
    pub opt_level: Option<u8>,
    /// Type of weights and activations [default: the checkpoint's where it is 16-bit, else bf16].
    #[arg(long, value_enum)]
    pub dtype: Option<FloatArg>,
    /// Longest context of a sequence, in tokens [default: the model's, at most 4096].
    #[arg(long, value_name = "TOKENS", value_parser = positive)]
    pub max_seq: Option<usize>,
    /// Leave a rewrite rule or a fusion out; may be given several times (see docs/rules.md).
    #[arg(long, value_name = "RULE", value_parser = rule)]
    pub disable: Vec<String>,
    /// The most that rules may do to the numbers.
    #[arg(long, value_enum, default_value_t)]
    pub numerics: NumericsArg,
    /// Measured schedules to compile with, as weft tune writes them [default: those that come with Weft].
    #[arg(long, value_name = "FILE")]
    pub schedules: Option<PathBuf>,
}

/// Classes of rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum NumericsArg {
    /// Same rounding points and order of sums.
    Exact,
    /// Also: sums in another order.
    Reassociate,
    /// Also: values rounded elsewhere.
    #[default]
    Full,
}

impl From<NumericsArg> for Numerics {
    fn from(arg: NumericsArg) -> Numerics {
        match arg {
            NumericsArg::Exact => Numerics::Exact,
            NumericsArg::Reassociate => Numerics::Reassociates,
            NumericsArg::Full => Numerics::ChangesPrecision,
        }
    }
}

/// A rule by its name.
fn rule(name: &str) -> Result<String, String> {
    let known = weft_passes::names();
    if known.contains(&name) { Ok(name.into()) } else { Err(format!("known rules: {}", known.join(", "))) }
}

/// `weft compile`.
#[derive(Debug, Args)]
pub struct CompileArgs {
    /// A folder with config.json and safetensors, a .safetensors file, or a .gguf file.
    pub model: PathBuf,
    /// GPU generation, its architecture-specific features included [default: this machine's GPU, else sm_90].
    #[arg(long, value_parser = Target::parse)]
    pub target: Option<&'static Target>,
    /// Folder to write; an older bundle there is replaced [default: NAME.weft in the current folder].
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// What the bundle is for.
    #[command(flatten)]
    pub build: BuildArgs,
    /// What a decoder is for; an encoder gives hidden states in any case.
    #[arg(long, value_enum, default_value_t)]
    pub task: TaskArg,
    /// Most sequences of a step.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = batch)]
    pub max_batch: usize,
    /// Fail unless all, or at least N, sites of a fusion are one kernel each, in decode steps (an encoder's
    /// steps) or in those of BODY: decode, batch, short, prefill, encode; may be given several times.
    #[arg(long, value_name = "[BODY:]FUSION=all|N", value_parser = Requirement::parse)]
    pub require: Vec<Requirement>,
    /// Write the IR after each pass to this folder, and pictures of one layer before and after.
    #[arg(long, value_name = "DIR")]
    pub dump_passes: Option<PathBuf>,
    /// Also compile with each rule left out, and say what each brings.
    #[arg(long)]
    pub ablate: bool,
    /// Do not compile the kernels with NVRTC.
    #[arg(long)]
    pub no_check: bool,
    /// Print the summary as JSON.
    #[arg(long)]
    pub json: bool,
}

/// `weft run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// A checkpoint (as for compile) or a bundle.
    pub model: PathBuf,
    /// Prompts, answered as one batch; from stdin when there is none and stdin is not a terminal.
    #[arg(value_name = "PROMPT")]
    pub prompts: Vec<String>,
    /// Apply the chat template; an error when the model has none.
    #[arg(long, overrides_with = "no_chat")]
    pub chat: bool,
    /// Take prompts as they are, even when the model has a chat template.
    #[arg(long, overrides_with = "chat")]
    pub no_chat: bool,
    /// System message of the chat.
    #[arg(long, value_name = "TEXT", conflicts_with = "no_chat")]
    pub system: Option<String>,
    /// Most tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = positive)]
    pub max_new_tokens: usize,
    /// How to choose tokens.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// End an answer before this text; may be repeated.
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Where to run.
    #[arg(long, value_enum, default_value_t = DeviceArg::Auto)]
    pub device: DeviceArg,
    /// How the steps of an answer are launched.
    #[arg(long, value_enum, default_value_t = LaunchArg::Loop)]
    pub launch: LaunchArg,
    /// How to compile a checkpoint.
    #[command(flatten)]
    pub build: BuildArgs,
    /// Print answers, token ids and timings as JSON.
    #[arg(long)]
    pub json: bool,
}

/// How tokens are chosen.
#[derive(Clone, Debug, Args)]
pub struct SamplingArgs {
    /// Divides the logits; 0 takes the most likely token.
    #[arg(long, default_value_t = 0.0, value_parser = at_least_zero)]
    pub temperature: f32,
    /// Keep the K most likely tokens; 0 keeps all.
    #[arg(long, value_name = "K", default_value_t = 0, value_parser = clap::value_parser!(i32).range(0..))]
    pub top_k: i32,
    /// Keep the most likely tokens of this total probability.
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = probability)]
    pub top_p: f32,
    /// Keep tokens at least this likely relative to the most likely one.
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = probability)]
    pub min_p: f32,
    /// Divides the positive logits of tokens that occurred before, in the prompt too, and multiplies the others; 1
    /// changes nothing.
    #[arg(long, value_name = "R", default_value_t = 1.0, value_parser = above_zero)]
    pub repetition_penalty: f32,
    /// Taken from the logits of tokens that the answer already has; 0 changes nothing.
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = number, allow_negative_numbers = true)]
    pub presence_penalty: f32,
    /// Seed of the draws; prompt i of a batch draws with seed + i.
    #[arg(long, default_value_t = 0)]
    pub seed: u32,
}

/// `weft forward`.
#[derive(Debug, Args)]
pub struct ForwardArgs {
    /// A checkpoint (as for compile) or a bundle.
    pub model: PathBuf,
    /// Safetensors file with input_ids [B, T] i64; with continue_ids [B, N] i64, the continuation is computed
    /// on these tokens instead of the greedy ones. Encoders also take attention_mask and token_type_ids [B, T] i64.
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// Safetensors file to write: logits [B, T, V] f32; with a continuation also greedy_ids [B, N] i64 and
    /// greedy_logits [B, N, V] f32. Encoders: last_hidden_state [B, T, H] f32, 0 where the mask is.
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
    /// Tokens to continue each row by, through the cache [default: as many as continue_ids has, else 0].
    #[arg(long, value_name = "N")]
    pub max_new_tokens: Option<usize>,
    /// Where to run.
    #[arg(long, value_enum, default_value_t = DeviceArg::Auto)]
    pub device: DeviceArg,
    /// How to compile a checkpoint.
    #[command(flatten)]
    pub build: BuildArgs,
}

/// `weft embed`.
#[derive(Debug, Args)]
pub struct EmbedArgs {
    /// A checkpoint (as for compile) or a bundle (a decoder's of --task embed); modules.json beside the checkpoint says
    /// how to pool.
    pub model: PathBuf,
    /// Texts; the lines of stdin when there is none and stdin is not a terminal.
    #[arg(value_name = "TEXT")]
    pub texts: Vec<String>,
    /// Where to run.
    #[arg(long, value_enum, default_value_t = DeviceArg::Auto)]
    pub device: DeviceArg,
    /// Put this prompt of the checkpoint's before each text [default: the one that the checkpoint says, if any].
    #[arg(long, value_name = "NAME")]
    pub prompt_name: Option<String>,
    /// How to compile a checkpoint.
    #[command(flatten)]
    pub build: BuildArgs,
    /// Print embeddings, numbers of tokens and the pooling as JSON.
    #[arg(long)]
    pub json: bool,
}

/// `weft inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A bundle.
    pub bundle: PathBuf,
    /// Bucket to list [default: decode of one sequence, else the first].
    #[arg(long, value_name = "NAME")]
    pub entry: Option<String>,
    /// Length of every sequence, for bytes and operations [default: the longest].
    #[arg(long, value_name = "TOKENS", value_parser = positive)]
    pub context: Option<usize>,
    /// Print this kernel's code.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["entry", "context", "explain", "json"])]
    pub kernel: Option<String>,
    /// As what.
    #[arg(long, value_enum, default_value_t = EmitArg::Cuda, requires = "kernel",
        conflicts_with_all = ["entry", "context", "explain", "json"])]
    pub emit: EmitArg,
    /// Say which parts of the model this kernel computes, from which weights, and by which rules.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["entry", "context"])]
    pub explain: Option<String>,
    /// Print as JSON.
    #[arg(long)]
    pub json: bool,
}

/// A form of a kernel's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EmitArg {
    /// CUDA C, as in the bundle.
    Cuda,
    /// PTX, by NVRTC.
    Ptx,
    /// Machine code, by NVRTC and nvdisasm.
    Sass,
}

/// `weft bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// A checkpoint (as for compile) or a bundle.
    pub model: PathBuf,
    /// Sequences of a step.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = batch)]
    pub batch: usize,
    /// Tokens of each sequence in the cache as generation starts.
    #[arg(long, value_name = "TOKENS", default_value_t = 1024, value_parser = positive)]
    pub context: usize,
    /// Tokens generated for each sequence in a run.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = positive)]
    pub tokens: usize,
    /// Runs, after one that is not counted; medians are given.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = positive)]
    pub runs: usize,
    /// Tokens of the prompt whose first token is timed, on an empty cache.
    #[arg(long, value_name = "TOKENS", default_value_t = 16, value_parser = positive)]
    pub prompt: usize,
    /// Measure nothing: print the same table by the cost model. Needs no GPU.
    #[arg(long)]
    pub estimate: bool,
    /// GPU generation to estimate for [default: the bundle's, this machine's GPU, else sm_90].
    #[arg(long, value_parser = Target::parse, requires = "estimate")]
    pub target: Option<&'static Target>,
    /// How to compile a checkpoint; --max-seq is what --context and --tokens, or --prompt, take unless it is given.
    #[command(flatten)]
    pub build: BuildArgs,
    /// Print as JSON.
    #[arg(long)]
    pub json: bool,
}

/// `weft tune`.
#[derive(Debug, Args)]
pub struct TuneArgs {
    /// A checkpoint (as for compile) or a bundle.
    pub model: PathBuf,
    /// Seconds to measure for, shared by the shapes that are not in the file yet.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = positive)]
    pub budget: usize,
    /// Sequences of a step.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = batch)]
    pub batch: usize,
    /// Tokens of each sequence in the cache, of one step or several: the mean of their times counts. Kernels alone are
    /// timed with the most, which with two more is the longest context of the plan (1280, as weft bench has).
    #[arg(long, value_name = "TOKENS,…", value_delimiter = ',', default_values_t = [128, 1278], value_parser = positive)]
    pub context: Vec<usize>,
    /// Measure what is in the file too.
    #[arg(long)]
    pub again: bool,
    /// Only kernels with this in their name, as weft bench prints it (may be given again), in the file or not; the
    /// others stay as they are.
    #[arg(long, value_name = "NAME")]
    pub kernel: Vec<String>,
    /// How to compile a checkpoint; --max-seq is what --context takes unless it is given. --schedules is the file to
    /// fill, and to go on with when it is there.
    #[command(flatten)]
    pub build: BuildArgs,
    /// Print as JSON.
    #[arg(long)]
    pub json: bool,
}

/// `weft convert`.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// The GGUF file.
    pub file: PathBuf,
    /// Folder to write; it must not exist.
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// Type of the weights.
    #[arg(long, value_enum, default_value_t = FloatArg::F32)]
    pub dtype: FloatArg,
    /// How its metadata is read.
    #[command(flatten)]
    pub keys: ConfigArgs,
}

/// `weft synth`.
#[derive(Debug, Args)]
pub struct SynthArgs {
    /// A config.json, or a folder with one.
    pub config: PathBuf,
    /// Folder to write; it must not exist or be empty.
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// Seed of the values.
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// Type of the weights [default: the config's, else bf16].
    #[arg(long, value_enum)]
    pub dtype: Option<FloatArg>,
    /// Most bytes of a file (500MB, 4GB; of 1000s), but for a tensor that is larger.
    #[arg(long, value_name = "SIZE", default_value = "4GB", value_parser = bytes)]
    pub shard_size: u64,
    /// Replace the model in DIR.
    #[arg(long)]
    pub force: bool,
    /// How the config.json is read.
    #[command(flatten)]
    pub keys: ConfigArgs,
    /// Print the summary as JSON.
    #[arg(long)]
    pub json: bool,
}

/// `weft doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print as JSON.
    #[arg(long)]
    pub json: bool,
}

/// `weft models`.
#[derive(Debug, Args)]
pub struct ModelsArgs {
    /// Print as JSON.
    #[arg(long)]
    pub json: bool,
}

/// `weft completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(n) if n > 0 && n <= i32::MAX as usize => Ok(n),
        _ => Err("give a whole number from 1".into()),
    }
}

/// A number of bytes: 800, 100KB, 500MB, 4GB.
fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let units = [("KB", 1_000), ("MB", 1_000_000), ("GB", 1_000_000_000)];
    let split = |&(name, by)| text.strip_suffix(name).map(|number| (number, by));
    let (number, by) = units.iter().find_map(split).unwrap_or((text, 1));
    let number = number.parse::<u64>().ok().and_then(|n| n.checked_mul(by));
    number.filter(|&n| n > 0).ok_or_else(|| "give a number of bytes from 1, as 500MB or 4GB".into())
}

fn batch(text: &str) -> Result<usize, String> {
    let most = weft_passes::schedule::DECODE_ROWS;
    match text.parse::<usize>() {
        Ok(n) if (1..=most).contains(&n) => Ok(n),
        _ => Err(format!("give a whole number from 1 to {most}")),
    }
}

fn above_zero(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(x) if x.is_finite() && x > 0.0 => Ok(x),
        _ => Err("give a number above 0".into()),
    }
}

fn number(text: &str) -> Result<f32, String> {
    text.parse::<f32>().ok().filter(|x| x.is_finite()).ok_or_else(|| "give a number".into())
}

fn at_least_zero(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(x) if x.is_finite() && x >= 0.0 => Ok(x),
        _ => Err("give a number, 0 or more".into()),
    }
}

fn probability(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(x) if (0.0..=1.0).contains(&x) => Ok(x),
        _ => Err("give a number from 0 to 1".into()),
    }
}
