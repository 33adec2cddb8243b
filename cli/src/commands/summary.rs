//! What `weft compile` says of a plan: a table, or JSON.

use super::ablate::Ablation;
use super::contracts::{self, FusionRow};
use super::{size, sources};
use crate::model::Model;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;
use weft_frontend::checkpoint::Checkpoint;
use weft_ir::plan::{BufferKind, Plan, ScheduleSource};
use weft_runtime::resources::{LogReport, Resources};

/// A compiled model in figures. Sizes are bytes, times milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    bundle: String,
    model_type: String,
    layers: usize,
    target: String,
    dtype: String,
    opt_level: u8,
    max_seq: usize,
    max_batch: usize,
    kernels: usize,
    source_bytes: u64,
    dispatches: usize,
    weight_bytes: u64,
    state_bytes: u64,
    entries: Vec<EntrySummary>,
    fallbacks: Vec<Fallback>,
    /// Kernels by where their schedules come from.
    schedules: BTreeMap<ScheduleSource, usize>,
    /// Sites at which each rewrite rule added an equal form, in the form of the step for decode.
    rules: BTreeMap<String, usize>,
    /// Layers whose saturation stopped at a limit.
    limited: Vec<String>,
    fusions: Vec<FusionRow>,
    passes: Vec<PassSummary>,
    total_ms: f64,
    /// Warnings.
    pub warnings: Vec<String>,
    /// What NVRTC says of the kernels, unless it was not asked.
    pub nvrtc: Option<NvrtcSummary>,
    /// What each rule brings, where that was asked.
    pub ablation: Option<Ablation>,
}

#[derive(Clone, Debug, Serialize)]
struct EntrySummary {
    name: String,
    tokens: usize,
    rows: usize,
    kernels: usize,
    dispatches: usize,
    arena_bytes: u64,
    unshared_bytes: u64,
}

/// Kernels that are not the fast ones for their work.
#[derive(Clone, Debug, Serialize)]
struct Fallback {
    reason: String,
    kernels: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct PassSummary {
    name: String,
    ms: f64,
}

fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

impl Summary {
    /// Figures of a compiled checkpoint.
    pub fn new(
        bundle: &Path,
        checkpoint: &Checkpoint,
        model: &Model,
        total: Duration,
        warnings: Vec<String>,
    ) -> Summary {
        let plan = &model.plan;
        let mut passes = vec![PassSummary { name: "build".into(), ms: ms(model.build_time) }];
        let timed = model.context.times.iter();
        passes.extend(timed.map(|t| PassSummary { name: t.name.into(), ms: ms(t.time) }));
        passes.push(PassSummary { name: "emit".into(), ms: ms(model.emit_time) });
        let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for kernel in &plan.kernels {
            if let Some(reason) = &kernel.fallback {
                reasons.entry(reason).or_default().push(kernel.name.clone());
            }
        }
        Summary {
            bundle: bundle.display().to_string(),
            model_type: checkpoint.config().model_type.clone(),
            layers: checkpoint.config().layers,
            target: plan.target.clone(),
            dtype: plan.dtype.to_string(),
            opt_level: plan.opt_level,
            max_seq: plan.max_seq,
            max_batch: plan.max_batch,
            kernels: plan.kernels.len(),
            source_bytes: model.kernels.iter().map(|k| k.source.len() as u64).sum(),
            dispatches: plan.bodies.first().map_or(0, |b| b.dispatches.len()),
            weight_bytes: bytes(plan, |k| matches!(k, BufferKind::Weight(_))),
            state_bytes: bytes(plan, |k| matches!(k, BufferKind::State(_))),
            entries: entries(plan),
            schedules: [ScheduleSource::Estimated, ScheduleSource::Measured, ScheduleSource::Neighbour]
                .map(|source| (source, plan.kernels.iter().filter(|k| k.source == source).count()))
                .into(),
            fallbacks: reasons
                .into_iter()
                .map(|(reason, kernels)| Fallback { reason: reason.into(), kernels })
                .collect(),
            rules: model
                .context
                .reports
                .first()
                .map(|r| r.applied.iter().map(|(rule, n)| (rule.to_string(), *n)).collect())
                .unwrap_or_default(),
            limited: model.context.reports.iter().flat_map(|r| r.limited.iter().cloned()).collect(),
            fusions: contracts::rows(&model.context.contracts),
            passes,
            total_ms: ms(total),
            warnings,
            nvrtc: None,
            ablation: None,
        }
    }
}

/// Bytes of all buffers of a kind whose size is the same in every entry.
fn bytes(plan: &Plan, kind: impl Fn(&BufferKind) -> bool) -> u64 {
    let Some(entry) = plan.entries.first() else { return 0 };
    plan.buffers.iter().filter(|b| kind(&b.kind)).map(|b| b.bytes(&entry.bind) as u64).sum()
}

fn entries(plan: &Plan) -> Vec<EntrySummary> {
    let summary = |e: &weft_ir::plan::Entry| {
        let mut kernels: Vec<_> = e.kernels.values().collect();
        kernels.sort_unstable();
        kernels.dedup();
        EntrySummary {
            name: e.name.clone(),
            tokens: e.bind.tokens,
            rows: e.bind.rows,
            kernels: kernels.len(),
            dispatches: plan.bodies.get(e.body as usize).map_or(0, |b| b.dispatches.len()),
            arena_bytes: e.arena_bytes as u64,
            unshared_bytes: e.unshared_bytes as u64,
        }
    };
    plan.entries.iter().map(summary).collect()
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {}, {} layers, for {} in {}, opt level {}, in {:.0} ms",
            self.bundle, self.model_type, self.layers, self.target, self.dtype, self.opt_level, self.total_ms
        )?;
        writeln!(
            f,
            "  kernels     {} ({} of CUDA C), {} dispatches a step",
            self.kernels,
            size(self.source_bytes),
            self.dispatches
        )?;
        writeln!(
            f,
            "  weights     {} (by reference: the checkpoint stays where it is)",
            size(self.weight_bytes)
        )?;
        writeln!(
            f,
            "  state       {} for {} sequences of {} tokens",
            size(self.state_bytes),
            self.max_batch,
            self.max_seq
        )?;
        let (entry, tokens, rows) = ("entry", "tokens", "rows");
        writeln!(f, "  {entry:<14} {tokens:>6} {rows:>5} kernels dispatches  arena peak  sum of buffers")?;
        for e in &self.entries {
            writeln!(
                f,
                "  {:<14} {:>6} {:>5} {:>7} {:>10} {:>11} {:>15}",
                e.name,
                e.tokens,
                e.rows,
                e.kernels,
                e.dispatches,
                size(e.arena_bytes),
                size(e.unshared_bytes)
            )?;
        }
        let count = |source| self.schedules.get(&source).copied().unwrap_or_default();
        writeln!(f, "  schedules   {}", sources(count))?;
        if self.fallbacks.is_empty() {
            writeln!(f, "  fallbacks   none")?;
        }
        for fallback in &self.fallbacks {
            let n = fallback.kernels.len();
            let few = fallback.kernels.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ");
            let more = if n > 3 { ", …" } else { "" };
            writeln!(f, "  fallback    {}: {n} kernels ({few}{more})", fallback.reason)?;
        }
        if !self.rules.is_empty() {
            let rules: Vec<String> = self.rules.iter().map(|(rule, n)| format!("{rule} {n}")).collect();
            writeln!(f, "  rewrites    {}", rules.join(", "))?;
        }
        if let Some(first) = self.limited.first() {
            let n = self.limited.len();
            writeln!(f, "  limits      saturation stopped at its limits in {n} layers ({first})")?;
        }
        contracts::write(f, &self.fusions)?;
        let passes: Vec<String> = self.passes.iter().map(|p| format!("{} {:.1}", p.name, p.ms)).collect();
        writeln!(f, "  passes, ms  {}", passes.join(", "))?;
        match &self.nvrtc {
            Some(nvrtc) => write!(f, "{nvrtc}")?,
            None => writeln!(f, "  nvrtc       not asked (--no-check)")?,
        }
        match &self.ablation {
            Some(ablation) => write!(f, "{ablation}"),
            None => Ok(()),
        }
    }
}

/// What NVRTC says of the kernels.
#[derive(Clone, Debug, Default, Serialize)]
pub struct NvrtcSummary {
    /// Its version; `None` when there is none.
    version: Option<String>,
    /// Why there is none, with the remedy; or why the cache could not be used.
    note: Option<String>,
    ms: f64,
    cached: usize,
    kernels: Vec<Resources>,
    ptxas_warnings: Vec<String>,
}

impl NvrtcSummary {
    /// NVRTC was not found, or does not know the target.
    pub fn missing(why: String) -> NvrtcSummary {
        NvrtcSummary { note: Some(why), ..NvrtcSummary::default() }
    }

    /// NVRTC compiled the kernels.
    pub fn found(version: String, time: Duration, cached: usize, note: Option<String>) -> NvrtcSummary {
        NvrtcSummary { version: Some(version), note, ms: ms(time), cached, ..NvrtcSummary::default() }
    }

    /// Adds what ptxas said of a kernel.
    pub fn add(&mut self, report: &LogReport) {
        self.kernels.extend(report.kernels.iter().cloned());
        self.ptxas_warnings.extend(report.ptxas_warnings.iter().cloned());
    }
}

impl fmt::Display for NvrtcSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let note = self.note.as_deref();
        let Some(version) = &self.version else {
            return writeln!(f, "  nvrtc       kernels not checked: {}", note.unwrap_or("it was not found"));
        };
        writeln!(
            f,
            "  nvrtc       {version} compiled {} kernels in {:.0} ms, {} from the cache",
            self.kernels.len(),
            self.ms,
            self.cached
        )?;
        if let Some(most) = self.kernels.iter().max_by_key(|k| k.registers) {
            writeln!(f, "  registers   at most {} ({})", most.registers, most.kernel)?;
        }
        let spilled: Vec<&Resources> =
            self.kernels.iter().filter(|k| k.spill_stores + k.spill_loads > 0).collect();
        if spilled.is_empty() {
            writeln!(f, "  spills      none")?;
        }
        for k in spilled {
            let (stores, loads) = (k.spill_stores, k.spill_loads);
            writeln!(f, "  spills      {}: {stores} bytes stored, {loads} loaded a thread", k.kernel)?;
        }
        for line in &self.ptxas_warnings {
            writeln!(f, "  ptxas       {line}")?;
        }
        if let Some(note) = note {
            writeln!(f, "  cache       {note}")?;
        }
        Ok(())
    }
}
