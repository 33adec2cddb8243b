//! The table of an entry's kernels.

use crate::args::InspectArgs;
use crate::bundle::Bundle;
use crate::commands::{count, print_json, size, sources, table};
use crate::errors::{Error, Result};
use crate::nvrtc;
use serde::Serialize;
use std::fmt;
use std::io::Write;
use weft_ir::ids::KernelId;
use weft_ir::plan::{Bound, Cost, Entry, Plan, ScheduleSource, kernel_cost, step_cost};
use weft_ir::shape::Bindings;
use weft_ir::target::Target;
use weft_runtime::resources::Resources;

/// The kernels of an entry. Bytes and operations are those of one launch.
#[derive(Clone, Debug, Serialize)]
struct Report {
    bundle: String,
    model_type: String,
    target: String,
    /// GPU whose figures the estimates are made with.
    device: String,
    entry: String,
    tokens: usize,
    rows: usize,
    /// Length of every sequence that is assumed.
    context: usize,
    /// NVRTC's version, where there is one.
    nvrtc: Option<String>,
    /// Why there are no registers, and the remedy.
    nvrtc_note: Option<String>,
    kernels: Vec<Row>,
    step: Step,
}

#[derive(Clone, Debug, Serialize)]
struct Row {
    name: String,
    work: String,
    source: String,
    ops: Vec<String>,
    rules: Vec<String>,
    schedule: String,
    schedule_source: ScheduleSource,
    fallback: Option<String>,
    /// Launches in a step of this entry.
    launches: usize,
    /// All entries that launch it.
    entries: Vec<String>,
    grid: [usize; 3],
    block: u32,
    registers: Option<u32>,
    spill_stores: Option<u32>,
    spill_loads: Option<u32>,
    shared_bytes: u32,
    bytes_read: u64,
    bytes_written: u64,
    flops: u64,
    bound: Bound,
    estimated_s: f64,
}

/// Sum over all launches of a step.
#[derive(Clone, Debug, Serialize)]
struct Step {
    launches: usize,
    bytes: u64,
    flops: u64,
    estimated_s: f64,
}

/// Prints the table.
pub fn run(args: &InspectArgs, bundle: &Bundle) -> Result<()> {
    let plan = &bundle.plan;
    let entry = super::entry(plan, args.entry.as_deref())?;
    let target = super::target(plan)?;
    let mut bind = entry.bind;
    if let Some(context) = args.context {
        if context > bind.context {
            let most = bind.context;
            return Err(Error::input(format!(
                "--context {context}: the bundle is for at most {most} tokens"
            )));
        }
        bind.context = context;
    }
    let mut report = Report {
        bundle: args.bundle.display().to_string(),
        model_type: bundle.manifest.model_type.clone(),
        target: plan.target.clone(),
        device: target.profile.name.into(),
        entry: entry.name.clone(),
        tokens: bind.tokens,
        rows: bind.rows,
        context: bind.context,
        nvrtc: None,
        nvrtc_note: None,
        kernels: rows(plan, entry, &bind, target)?,
        step: {
            let step = step_cost(plan, entry, &bind, &target.profile);
            let (bytes, flops) = (step.cost.bytes(), step.cost.flops());
            Step { launches: step.launches, bytes, flops, estimated_s: step.seconds }
        },
    };
    registers(&mut report, bundle, target)?;
    if args.json {
        return print_json(&report);
    }
    write!(std::io::stdout().lock(), "{report}")?;
    Ok(())
}

/// One row for each kernel, in the order of the first launches.
fn rows(plan: &Plan, entry: &Entry, bind: &Bindings, target: &Target) -> Result<Vec<Row>> {
    let mut order: Vec<(KernelId, u32, &str, usize)> = Vec::new();
    let body = plan.bodies.get(entry.body as usize);
    for d in body.map(|b| b.dispatches.as_slice()).unwrap_or_default() {
        match order.iter_mut().find(|(_, work, ..)| *work == d.work) {
            Some((.., launches)) => *launches += 1,
            None => {
                if let Some(kernel) = entry.kernels.get(&d.work) {
                    order.push((*kernel, d.work, &d.scope, 1));
                }
            }
        }
    }
    let mut rows = Vec::new();
    for (id, work, scope, launches) in order {
        let (Some(spec), Some(work)) = (plan.kernels.get(id.index()), plan.works.get(work as usize)) else {
            continue;
        };
        let cost: Cost = kernel_cost(work, spec, bind);
        let estimate = cost.estimate(&spec.schedule, &target.profile);
        // The kernel is built anew for its shared memory: plan and bundle have only what is dynamic.
        let (_, shared_bytes) = weft_codegen::kernels::build(plan, spec)?.shared_layout();
        let uses = |e: &&Entry| e.kernels.values().any(|k| *k == id);
        rows.push(Row {
            name: spec.name.clone(),
            work: work.name.clone(),
            source: super::short_scope(scope).into(),
            ops: work.ops.clone(),
            rules: work.rules.clone(),
            schedule: format!("{:?}", spec.schedule),
            schedule_source: spec.source,
            fallback: spec.fallback.clone(),
            launches,
            entries: plan.entries.iter().filter(uses).map(|e| e.name.clone()).collect(),
            grid: [0, 1, 2].map(|axis: usize| spec.grid[axis].blocks(bind)),
            block: spec.threads,
            registers: None,
            spill_stores: None,
            spill_loads: None,
            shared_bytes,
            bytes_read: cost.read,
            bytes_written: cost.written,
            flops: cost.flops(),
            bound: estimate.bound,
            estimated_s: estimate.seconds,
        });
    }
    Ok(rows)
}

/// Fills in registers and spills, where NVRTC is there.
fn registers(report: &mut Report, bundle: &Bundle, target: &Target) -> Result<()> {
    let with_source = |row: &Row| {
        let at = bundle.plan.kernels.iter().position(|k| k.name == row.name)?;
        Some((row.name.clone(), bundle.sources.get(at)?.as_str()))
    };
    let jobs: Vec<(String, &str)> = report.kernels.iter().filter_map(with_source).collect();
    match nvrtc::compile(jobs.iter().map(|(name, source)| (name.as_str(), *source)), target)? {
        Err(why) => report.nvrtc_note = Some(why),
        Ok(built) => {
            let of = |name: &str| -> Option<&Resources> {
                built.kernels.iter().find(|b| b.name == name)?.compiled.report.kernel(name)
            };
            for row in &mut report.kernels {
                if let Some(r) = of(&row.name) {
                    row.registers = Some(r.registers);
                    row.spill_stores = Some(r.spill_stores);
                    row.spill_loads = Some(r.spill_loads);
                }
            }
            report.nvrtc = Some(built.version);
            report.nvrtc_note = built.cache_error;
        }
    }
    Ok(())
}

/// Seconds as microseconds.
fn micros(seconds: f64) -> String {
    format!("{:.2}", seconds * 1e6)
}

/// At most this many characters of a text.
fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} for {}, entry {}: {} kernels, {} launches a step, tokens {}, context {}",
            self.bundle,
            self.model_type,
            self.target,
            self.entry,
            self.kernels.len(),
            self.step.launches,
            self.tokens,
            self.context
        )?;
        let unknown = || "–".to_owned();
        let row = |k: &Row| -> Vec<String> {
            let spills = k.spill_stores.zip(k.spill_loads).map(|(s, l)| s + l);
            vec![
                k.name.clone(),
                cut(&k.source, 40),
                k.launches.to_string(),
                format!("{}×{}×{}", k.grid[0], k.grid[1], k.grid[2]),
                k.block.to_string(),
                k.registers.map_or_else(unknown, |n| n.to_string()),
                spills.map_or_else(unknown, |n| n.to_string()),
                size(u64::from(k.shared_bytes)),
                size(k.bytes_read + k.bytes_written),
                count(k.flops),
                k.bound.name().into(),
                micros(k.estimated_s),
                format!("{:.0}%", 100.0 * k.estimated_s * k.launches as f64 / self.step.estimated_s),
            ]
        };
        let mut rows: Vec<Vec<String>> = self.kernels.iter().map(row).collect();
        let mut sum = vec![String::new(); 13];
        sum[0] = "step".into();
        sum[2] = self.step.launches.to_string();
        sum[8] = size(self.step.bytes);
        sum[9] = count(self.step.flops);
        sum[11] = micros(self.step.estimated_s);
        sum[12] = "100%".into();
        rows.push(sum);
        let head = [
            "kernel", "source", "launches", "grid", "block", "regs", "spills", "shared", "bytes", "flops",
            "bound", "est. µs", "of step",
        ];
        f.write_str(&table(&head, &rows, 2))?;
        writeln!(
            f,
            "bytes, flops and µs are those of one launch, by the roofline of {} with a launch's cost; the last \
             row is the step",
            self.device
        )?;
        let of = |source| self.kernels.iter().filter(move |k| k.schedule_source == source);
        writeln!(f, "schedules: {}", sources(|source| of(source).count()))?;
        for source in [ScheduleSource::Measured, ScheduleSource::Neighbour] {
            let names: Vec<&str> = of(source).map(|k| k.name.as_str()).collect();
            if !names.is_empty() {
                writeln!(f, "  {}: {}", source.name(), names.join(", "))?;
            }
        }
        match (&self.nvrtc, &self.nvrtc_note) {
            (None, note) => {
                writeln!(f, "registers and spills (–): {}", note.as_deref().unwrap_or("NVRTC was not asked"))
            }
            (Some(version), note) => {
                writeln!(f, "registers and spilled bytes of a thread: ptxas of NVRTC {version}")?;
                match note {
                    Some(note) => writeln!(f, "cache: {note}"),
                    None => Ok(()),
                }
            }
        }
    }
}
