//! `weft bench`: what a decode step takes, kernel by kernel.

use super::{print_json, size, table};
use crate::args::BenchArgs;
use crate::engine::{self, Request, Source};
use crate::errors::{Error, Result};
use crate::measure::Gpu;
use crate::{model, progress};
use serde::Serialize;
use std::fmt;
use std::io::Write;
use weft_ir::target::Target;
use weft_runtime::exec::LoadReport;
use weft_runtime::exec::bench::figures::Spread;
use weft_runtime::exec::bench::{self, Report, Workload, report::Rated};

/// What `--json` prints: times are seconds, rates bytes a second.
#[derive(Serialize)]
struct Output<'a> {
    model: String,
    #[serde(flatten)]
    report: &'a Report,
    load: Option<LoadReport>,
}

/// Measures, or estimates.
pub fn run(args: &BenchArgs) -> Result<()> {
    let work = Workload {
        batch: args.batch,
        context: args.context,
        tokens: args.tokens,
        runs: args.runs,
        prompt: args.prompt,
    };
    let source = Source::open(&args.model, &args.build)?;
    let mut build = args.build.clone();
    if source.target().is_none() {
        build.max_seq = build.max_seq.or(Some((args.context + args.tokens).max(args.prompt)));
    }
    let request = Request { device: crate::args::DeviceArg::Cuda, build: &build, sequences: args.batch };
    let mut load = None;
    let report = if args.estimate {
        let target = target(args, &source)?;
        let plan = source.plan(request, target)?;
        // Before anything is measured: what does not fit is bad input.
        work.check(&plan).map_err(|e| Error::input(e.to_string()))?;
        bench::estimate(&plan, &work, &target.profile)?
    } else {
        let remedy = "weft bench --estimate prints the same table by the cost model, on any machine";
        let (loaded, options) = source.load_to_measure(request, remedy)?;
        let plan = loaded.plan().clone();
        load = Some(loaded.load_report().clone());
        work.check(&plan).map_err(|e| Error::input(e.to_string()))?;
        let bar = progress::count("filling the cache");
        let mut gpu = Gpu::new(loaded, options, work, &mut |done, total| {
            progress::tell(&bar, done as u64, total as u64);
        })?;
        bar.finish_and_clear();
        let bar = progress::count("measuring");
        let report = bench::measure(&plan, &work, &mut gpu, &mut |done, total| {
            progress::tell(&bar, done as u64, total as u64);
        });
        bar.finish_and_clear();
        report?
    };
    let model = args.model.display().to_string();
    if args.json {
        return print_json(&Output { model, report: &report, load });
    }
    write!(std::io::stdout().lock(), "{}", Text { model, report: &report, load })?;
    Ok(())
}

/// Whose figures an estimate is made with.
fn target(args: &BenchArgs, source: &Source) -> Result<&'static Target> {
    let own = source.target();
    if let (Some(asked), Some(own)) = (args.target, own)
        && asked.name != own
    {
        let (model, asked) = (args.model.display(), asked.name);
        return Err(Error::input(format!("--target {asked}: {model} was compiled for {own}; leave it out")));
    }
    match (args.target, own) {
        (Some(target), _) => Ok(target),
        (None, Some(own)) => Target::parse(own).map_err(Error::failed),
        (None, None) => match engine::first_gpu() {
            Ok((_, target)) => Ok(target),
            Err(_) => Target::parse(model::DEFAULT_TARGET).map_err(Error::failed),
        },
    }
}

/// The table and what it means.
struct Text<'a> {
    model: String,
    report: &'a Report,
    /// How it was brought to the GPU; absent in an estimate.
    load: Option<LoadReport>,
}

fn micros(seconds: f64) -> String {
    format!("{:.2}", seconds * 1e6)
}

fn tera(rate: f64) -> String {
    format!("{:.2}", rate / 1e12)
}

fn percent(part: f64) -> String {
    format!("{:.0}%", 100.0 * part)
}

/// `0.7812 ms (0.7790–0.7850)`.
fn millis(s: &Spread) -> String {
    let ms = |x: f64| format!("{:.4}", x * 1e3);
    if s.lowest == s.highest {
        return format!("{} ms", ms(s.median));
    }
    format!("{} ms ({}–{})", ms(s.median), ms(s.lowest), ms(s.highest))
}

fn rated(r: &Rated) -> String {
    format!("{}, {} TB/s, {:.2} × chain", millis(&r.seconds), tera(r.rate), r.of_chain)
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let r = self.report;
        let what = if r.estimated { "ESTIMATED by the cost model for" } else { "measured on" };
        writeln!(
            f,
            "{}: {what} {}, {} in {}, entry {}, batch {}, {} tokens after a context of {}",
            self.model, r.device, r.target, r.dtype, r.entry, r.batch, r.tokens, r.context
        )?;
        let mark = |k: &bench::KernelTime| {
            format!("{}{}", if k.in_l2 { " ᴸ" } else { "" }, if k.one_place { " ¹" } else { "" })
        };
        let row = |k: &bench::KernelTime| -> Vec<String> {
            vec![
                format!("{}{}", k.name, mark(k)),
                k.launches.to_string(),
                size(k.bytes),
                micros(k.seconds.median),
                micros(k.seconds.median * k.launches as f64),
                percent(k.seconds.median * k.launches as f64 / r.kernels_s.max(f64::MIN_POSITIVE)),
                tera(k.rate),
                percent(k.of_ceiling),
            ]
        };
        let mut rows: Vec<Vec<String>> = r.kernels.iter().map(row).collect();
        let mut sum = vec![String::new(); 8];
        sum[0] = "all".into();
        sum[1] = r.launches.to_string();
        sum[2] = size(r.bytes);
        sum[4] = micros(r.kernels_s);
        sum[5] = "100%".into();
        rows.push(sum);
        let alone = if r.estimated { "est. µs" } else { "µs alone" };
        let head = ["kernel", "launches", "bytes", alone, "× launches", "of all", "TB/s", "of ceiling"];
        f.write_str(&table(&head, &rows, 1))?;
        if let Some(token) = &r.token {
            let rate = r.batch as f64 / token.seconds.median.max(f64::MIN_POSITIVE);
            writeln!(f, "a token   {}, {rate:.1} tokens/s", rated(token))?;
        }
        writeln!(f, "a step    {}", rated(&r.step))?;
        writeln!(f, "chain     {}, {} TB/s: the ceiling", millis(&r.chain.seconds), tera(r.chain.rate))?;
        if let Some(p) = &r.prompt {
            let what = format!("first token of a prompt of {} tokens", p.tokens);
            writeln!(f, "{what}   {}, {:.2} × a decode step", millis(&p.seconds), p.of_step)?;
        }
        if let Some(load) = &self.load {
            writeln!(
                f,
                "loaded in {:.2} s: weights {}; kernels {:.2} s",
                load.seconds, load.upload, load.compile_seconds
            )?;
        }
        self.notes(f)
    }
}

impl Text<'_> {
    fn notes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let r = self.report;
        writeln!(
            f,
            "bytes: what must move at least once in a launch (a step: {}), with {} keys a sequence, those of the \
             middle token",
            size(r.bytes),
            r.counted_context
        )?;
        if r.estimated {
            return writeln!(
                f,
                "nothing was measured: kernels by the roofline of {} with a launch's cost, the step as their sum, the \
                 chain as bytes by bandwidth in as many launches",
                r.device
            );
        }
        writeln!(
            f,
            "µs alone: a launch of the kernel in a graph of its own launches only, in turn over the buffers of its \
             places in the model; in a step kernels overlap, and find in L2 what others left there"
        )?;
        if r.kernels.iter().any(|k| k.in_l2) {
            writeln!(f, "ᴸ what it reads in turn fits in L2: its TB/s are not the memory's")?;
        }
        if r.kernels.iter().any(|k| k.one_place) {
            writeln!(f, "¹ reads indices that the step made: timed at its last place only")?;
        }
        if let Some(mode) = &r.mode {
            writeln!(f, "a token: {mode}; wall clock over {} tokens, medians of {} runs", r.tokens, r.runs)?;
        }
        writeln!(
            f,
            "a step: the middle token's graph launched back to back, no host in between; chain: {} launches that \
             stream as many bytes as the step's, and do nothing else",
            r.launches
        )?;
        writeln!(
            f,
            "all runs gave the {} tokens of step-by-step execution, kernel by kernel",
            r.compared_tokens
        )
    }
}

#[cfg(test)]
mod tests;
