//! Writing and reading bundles.
//!
//! A bundle is written under a temporary name beside its place and published by a rename, so that a reader
//! sees all of it or none. What is read back is checked: layout version, plan, kernels, and whether the
//! checkpoint it names is still the one it was compiled from.

use crate::errors::{Error, Result};
use std::fs;
use std::path::{Component, Path, PathBuf};
use weft_codegen::Emitted;
use weft_frontend::checkpoint::{Checkpoint, Task};
use weft_frontend::read::{SETTINGS, bounded_text};
use weft_ir::bundle::{EXPLAIN, KERNELS, KernelFile, MANIFEST, Manifest, PLAN, SourceFile, VERSION};
use weft_ir::plan::Plan;
use weft_passes::{Provenance, provenance};

/// Most bytes of a plan, and of what tells where its works came from: those of an 8B model have 0.3 million.
const PLAN_BYTES: u64 = 16 << 20;

/// A bundle in memory.
#[derive(Debug)]
pub struct Bundle {
    /// Its manifest.
    pub manifest: Manifest,
    /// Its plan.
    pub plan: Plan,
    /// CUDA C of each kernel, in the manifest's order.
    pub sources: Vec<String>,
}

/// Whether a path is a bundle: a folder with a manifest.
pub fn is_bundle(path: &Path) -> bool {
    path.join(MANIFEST).is_file()
}

/// The manifest of a compiled checkpoint. `model` is the path that the user gave.
///
/// # Errors
/// A file of the checkpoint that cannot be looked at.
pub fn manifest(checkpoint: &Checkpoint, model: &Path, plan: &Plan, kernels: &[Emitted]) -> Result<Manifest> {
    let config = checkpoint.config();
    let sources = checkpoint.files().iter().map(|file| {
        let meta = fs::metadata(file).map_err(|e| Error::io(file, "read", &e))?;
        Ok(SourceFile { path: absolute(file)?, bytes: meta.len() })
    });
    Ok(Manifest {
        version: VERSION,
        weft: env!("CARGO_PKG_VERSION").into(),
        target: plan.target.clone(),
        model_type: config.model_type.clone(),
        checkpoint: absolute(model)?,
        sources: sources.collect::<Result<_>>()?,
        vocab_size: config.vocab_size,
        eos_token_ids: config.eos_token_ids.clone(),
        ignored_keys: config.ignored.clone(),
        ignored_tensors: checkpoint.ignored_tensors().to_vec(),
        embeds: checkpoint.task() == Task::Embed,
        kernels: kernels
            .iter()
            .map(|k| KernelFile {
                name: k.name.clone(),
                file: format!("{KERNELS}/{}.cu", k.name),
                dynamic_shared: k.dynamic_shared,
            })
            .collect(),
    })
}

fn absolute(path: &Path) -> Result<String> {
    let full = path.canonicalize().map_err(|e| Error::io(path, "open", &e))?;
    let text = full.into_os_string().into_string();
    text.map_err(|p| Error::input(format!("{}: the path is not UTF-8: rename it", Path::new(&p).display())))
}

/// Writes a bundle to `out`, replacing an older bundle there.
///
/// # Errors
/// A place that is taken by something else, or that cannot be written.
pub fn write(
    out: &Path,
    manifest: &Manifest,
    plan: &Plan,
    kernels: &[Emitted],
    explain: &Provenance,
) -> Result<()> {
    check_place(out)?;
    let ron = plan.to_ron().map_err(|e| Error::failed(format!("plan: cannot be written as RON: {e}")))?;
    let mut json = serde_json::to_string_pretty(manifest)
        .map_err(|e| Error::failed(format!("manifest: cannot be written as JSON: {e}")))?;
    json.push('\n');
    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(|e| Error::io(parent, "create", &e))?;
    // Removed with all it holds unless it is renamed.
    let partial = tempfile::Builder::new()
        .prefix(".weft-partial-")
        .tempdir_in(parent)
        .map_err(|e| Error::io(parent, "write", &e))?;
    let bundle = partial.path().join("new");
    let put = |name: &str, text: &str| {
        let path = bundle.join(name);
        fs::write(&path, text).map_err(|e| Error::io(&path, "write", &e))
    };
    let folder = bundle.join(KERNELS);
    fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, "create", &e))?;
    put(MANIFEST, &json)?;
    put(PLAN, &ron)?;
    put(EXPLAIN, &explain_text(explain)?)?;
    for (file, kernel) in manifest.kernels.iter().zip(kernels) {
        put(&file.file, &kernel.source)?;
    }
    let old = partial.path().join("old");
    let replaced = out.exists();
    if replaced {
        fs::rename(out, &old).map_err(|e| Error::io(out, "replace", &e))?;
    }
    fs::rename(&bundle, out).map_err(|e| {
        if replaced {
            // Put back what was there; the rename that failed is the error to report.
            let _ = fs::rename(&old, out);
        }
        Error::io(out, "write", &e)
    })
}

/// Provenance as JSON, one work a line.
fn explain_text(explain: &Provenance) -> Result<String> {
    let line = |work| {
        serde_json::to_string(work)
            .map_err(|e| Error::failed(format!("{EXPLAIN}: cannot be written as JSON: {e}")))
    };
    let works = explain.works.iter().map(line).collect::<Result<Vec<_>>>()?;
    Ok(format!("{{\"version\": {}, \"works\": [\n{}\n]}}\n", explain.version, works.join(",\n")))
}

/// Reads where the works of a bundle came from.
///
/// # Errors
/// A file that is missing or damaged, or of another layout version.
pub fn read_explain(path: &Path) -> Result<Provenance> {
    let file = path.join(EXPLAIN);
    parse_explain(&file, &bounded_text(&file, PLAN_BYTES)?)
}

/// The text of [`EXPLAIN`].
///
/// # Errors
/// As [`read_explain`].
pub fn parse_explain(file: &Path, text: &str) -> Result<Provenance> {
    let damaged = |why: String| Error::input(format!("{}: {why}; compile the model again", file.display()));
    let json: serde_json::Value =
        serde_json::from_str(text).map_err(|e| damaged(format!("not JSON: {e}")))?;
    let version = json.get("version").and_then(serde_json::Value::as_u64);
    if version != Some(u64::from(provenance::VERSION)) {
        let found = version.map_or("none".to_owned(), |v| v.to_string());
        return Err(damaged(format!("version: {found}, this weft reads {}", provenance::VERSION)));
    }
    serde_json::from_value(json).map_err(|e| damaged(e.to_string()))
}

/// Whether a bundle may be written here: nothing, an empty folder, or an older bundle.
///
/// # Errors
/// When there is something else.
pub fn check_place(out: &Path) -> Result<()> {
    let Ok(meta) = fs::symlink_metadata(out) else { return Ok(()) };
    let empty = || fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_none());
    if meta.is_dir() && (is_bundle(out) || empty()) {
        return Ok(());
    }
    let what = if meta.is_dir() { "a folder that is not a bundle" } else { "not a folder" };
    Err(Error::input(format!("{}: already exists, and is {what}; choose another with -o", out.display())))
}

/// Reads a bundle.
///
/// # Errors
/// Another layout version, a file that is missing or damaged, a checkpoint that changed.
pub fn read(path: &Path) -> Result<Bundle> {
    let file = path.join(MANIFEST);
    let manifest = parse_manifest(&file, &bounded_text(&file, SETTINGS)?)?;
    let remedy = remedy(&manifest);
    let plan_file = path.join(PLAN);
    let plan = parse_plan(&plan_file, &bounded_text(&plan_file, PLAN_BYTES)?, &manifest)?;
    let damaged = |why: String| Error::input(format!("{}: {why}; compile again: {remedy}", file.display()));
    if plan.target != manifest.target {
        let (p, m) = (&plan.target, &manifest.target);
        return Err(damaged(format!("target: {m}, but the plan is for {p}")));
    }
    let names = manifest.kernels.iter().map(|k| &k.name);
    if !names.eq(plan.kernels.iter().map(|k| &k.name)) {
        return Err(damaged("kernels: not those of the plan".into()));
    }
    let sources = manifest.kernels.iter().map(|k| {
        let file = path.join(&k.file);
        bounded_text(&file, SETTINGS).map_err(|e| {
            Error::input(format!("{}: cannot read: {e}; compile again: {remedy}", file.display()))
        })
    });
    let sources = sources.collect::<Result<_>>()?;
    Ok(Bundle { manifest, plan, sources })
}

/// The text of [`MANIFEST`].
///
/// # Errors
/// Another layout version, what is no manifest, a kernel's file outside the bundle.
pub fn parse_manifest(file: &Path, text: &str) -> Result<Manifest> {
    let damaged = |why: String| Error::input(format!("{}: {why}; compile the model again", file.display()));
    let json: serde_json::Value =
        serde_json::from_str(text).map_err(|e| damaged(format!("not JSON: {e}")))?;
    // Before the rest, which another version may not have.
    let version = json.get("version").and_then(serde_json::Value::as_u64);
    if version != Some(u64::from(VERSION)) {
        let found = version.map_or("none".to_owned(), |v| v.to_string());
        let why =
            format!("version: {found}, this weft reads {VERSION}; compile the model again with this weft");
        return Err(Error::input(format!("{}: {why}", file.display())));
    }
    let manifest: Manifest =
        serde_json::from_value(json).map_err(|e| damaged(format!("not a manifest: {e}")))?;
    let inside = |file: &str| {
        let mut parts = Path::new(file).components().peekable();
        parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
    };
    match manifest.kernels.iter().find(|k| !inside(&k.file)) {
        Some(k) => Err(damaged(format!("kernel {}: {:?} is no file of the bundle", k.name, k.file))),
        None => Ok(manifest),
    }
}

/// The text of [`PLAN`], verified.
///
/// # Errors
/// What is no plan, or not a valid one.
pub fn parse_plan(file: &Path, text: &str, manifest: &Manifest) -> Result<Plan> {
    let remedy = remedy(manifest);
    let damaged = |why: String| Error::input(format!("{}: {why}; compile again: {remedy}", file.display()));
    let plan = Plan::from_ron(text).map_err(|e| damaged(e.to_string()))?;
    weft_ir::verify::plan::verify(&plan).map_err(|faults| {
        let first = faults.first().map(ToString::to_string).unwrap_or_default();
        damaged(format!("not a valid plan: {first}"))
    })?;
    Ok(plan)
}

/// The command that makes a bundle again.
pub fn remedy(manifest: &Manifest) -> String {
    let mut command = format!("weft compile {} --target {}", manifest.checkpoint, manifest.target);
    let options =
        [("--ignore-config-key", &manifest.ignored_keys), ("--ignore-tensor", &manifest.ignored_tensors)];
    for (option, values) in options {
        for value in values {
            command.push_str(&format!(" {option} {value}"));
        }
    }
    if manifest.embeds {
        command.push_str(" --task embed");
    }
    command
}

impl Bundle {
    /// Opens the checkpoint that the weights are in.
    ///
    /// # Errors
    /// When it is not there, or not the one that the bundle was compiled from.
    pub fn checkpoint(&self, bundle: &Path) -> Result<Checkpoint> {
        let m = &self.manifest;
        let place = bundle.join(MANIFEST);
        for source in &m.sources {
            let path = PathBuf::from(&source.path);
            let found = fs::metadata(&path).map_err(|e| {
                Error::input(format!(
                    "{}: cannot read the weights {}: {e}; put the checkpoint back, or compile again from \
                     where it is now",
                    place.display(),
                    source.path
                ))
            })?;
            if found.len() != source.bytes {
                return Err(Error::input(format!(
                    "{}: {} has {} bytes, and had {} when the bundle was compiled; compile again: {}",
                    place.display(),
                    source.path,
                    found.len(),
                    source.bytes,
                    remedy(m)
                )));
            }
        }
        let checkpoint = Checkpoint::open_ignoring(&m.checkpoint, &m.ignored_keys)?;
        let task = if m.embeds { Task::Embed } else { Task::Generate };
        let checkpoint = checkpoint.ignoring_tensors(&m.ignored_tensors).for_task(task);
        Ok(checkpoint.reaching(self.plan.max_seq))
    }
}
