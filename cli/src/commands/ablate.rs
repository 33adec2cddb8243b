//! `weft compile --ablate`: what each rule brings.

use super::{size, table};
use crate::errors::{Error, Result};
use crate::model::Model;
use crate::progress;
use serde::Serialize;
use std::fmt;
use std::time::Instant;
use weft_ir::plan::{Entry, Plan, Role, step_cost};
use weft_passes::Options;
use weft_passes::provenance::numerics;

/// Measures a decode step of one sequence: seconds; `None` where there is no GPU for it.
pub type MeasureStep<'a> = dyn FnMut(&Plan) -> Result<Option<f64>> + 'a;

/// The plan with all rules, and with each left out. Estimates are by the roofline; decode steps are measured, too, where
/// there is a GPU.
#[derive(Clone, Debug, Serialize)]
pub struct Ablation {
    /// GPU whose figures the estimates are made with.
    device: String,
    /// With all rules that were not disabled anyway.
    with_all: Vec<Step>,
    /// With one more left out.
    without: Vec<Without>,
}

/// A step of an entry.
#[derive(Clone, Debug, Serialize)]
struct Step {
    entry: String,
    dispatches: usize,
    bytes: u64,
    flops: u64,
    estimated_s: f64,
    /// Of a decode step, where there is a GPU.
    measured_s: Option<f64>,
}

/// Steps without a rule; differences are to those with all rules.
#[derive(Clone, Debug, Serialize)]
struct Without {
    rule: String,
    numerics: String,
    steps: Vec<Changed>,
}

#[derive(Clone, Debug, Serialize)]
struct Changed {
    #[serde(flatten)]
    step: Step,
    dispatches_more: i64,
    bytes_more: i64,
    estimated_s_more: f64,
    measured_s_more: Option<f64>,
}

impl Changed {
    /// Whether the rule makes a difference to the step.
    fn differs(&self) -> bool {
        self.dispatches_more != 0 || self.bytes_more != 0 || self.estimated_s_more != 0.0
    }
}

/// Compiles again with each rule left out.
pub fn run(model: &Model, options: &Options, measure: &mut MeasureStep<'_>) -> Result<Ablation> {
    if options.opt_level == 0 {
        return Err(Error::input("--ablate: level 0 uses no rules; give --opt-level 1 or 2"));
    }
    let with_all = measured(&model.plan, options, measure)?;
    let on = |name: &&str| !options.selection.disabled.iter().any(|d| d == name);
    let names: Vec<&str> = weft_passes::names().into_iter().filter(on).collect();
    let bar = progress::count("compiling without each rule");
    let mut without = Vec::new();
    for (i, name) in names.iter().enumerate() {
        let mut options = options.clone();
        options.dump = false;
        options.selection.disabled.push((*name).into());
        let compiled = weft_passes::compile(&model.graph, options.clone())?;
        // The same plan takes the same time.
        let steps = match compiled.plan == model.plan {
            true => with_all.clone(),
            false => {
                let start = Instant::now();
                let steps = measured(&compiled.plan, &options, measure)?;
                if steps.iter().any(|s| s.measured_s.is_some()) {
                    let (at, of, seconds) = (i + 1, names.len(), start.elapsed().as_secs_f64());
                    bar.suspend(|| {
                        eprintln!("ablate: {at} of {of}: measured without {name} in {seconds:.1} s")
                    });
                }
                steps
            }
        };
        let changed = steps.into_iter().zip(&with_all).map(|(step, all)| Changed {
            dispatches_more: step.dispatches as i64 - all.dispatches as i64,
            bytes_more: step.bytes as i64 - all.bytes as i64,
            estimated_s_more: step.estimated_s - all.estimated_s,
            measured_s_more: step.measured_s.zip(all.measured_s).map(|(step, all)| step - all),
            step,
        });
        let numerics = numerics(name).unwrap_or_default().into();
        without.push(Without { rule: (*name).into(), numerics, steps: changed.collect() });
        progress::tell(&bar, i as u64 + 1, names.len() as u64);
    }
    bar.finish_and_clear();
    Ok(Ablation { device: options.target.profile.name.into(), with_all, without })
}

/// The steps, decode measured where that can be.
fn measured(plan: &Plan, options: &Options, measure: &mut MeasureStep<'_>) -> Result<Vec<Step>> {
    let mut steps = steps(plan, options);
    let is_decode = |s: &&mut Step| {
        plan.entries.iter().any(|e| e.name == s.entry && e.role == Role::Decode && e.bind.tokens == 1)
    };
    if let Some(step) = steps.iter_mut().find(is_decode) {
        step.measured_s = measure(plan)?;
    }
    Ok(steps)
}

/// Decode of one sequence and the largest prefill; of an encoder, the largest step.
fn steps(plan: &Plan, options: &Options) -> Vec<Step> {
    let largest = |role: Role| plan.entries.iter().filter(|e| e.role == role).max_by_key(|e| e.bind.tokens);
    let single = plan.entries.iter().find(|e| e.role == Role::Decode && e.bind.tokens == 1);
    let step = |e: &Entry| {
        let step = step_cost(plan, e, &e.bind, &options.target.profile);
        Step {
            entry: e.name.clone(),
            dispatches: step.launches,
            bytes: step.cost.bytes(),
            flops: step.cost.flops(),
            estimated_s: step.seconds,
            measured_s: None,
        }
    };
    [single, largest(Role::Prefill), largest(Role::Encode)].into_iter().flatten().map(step).collect()
}

/// Part of a step by which it must be faster without a rule for the rule to cost something: the last digit that is
/// shown of an estimate, and about what repeated measurements differ by.
const COSTS_ESTIMATED: f64 = 0.0005;
const COSTS_MEASURED: f64 = 0.01;
/// Beside the time of a step that is faster without the rule.
const COSTS: &str = " (costs)";

/// How much more time a step takes than the one with all rules, marked where that is less by at least `least`.
fn percent(more: f64, with_all: f64, least: f64) -> String {
    let part = more / with_all;
    let mark = if part <= -least { COSTS } else { "" };
    format!("{:+.1}%{mark}", 100.0 * part)
}

/// A signed number of bytes.
fn more(bytes: i64) -> String {
    let sign = if bytes < 0 { "−" } else { "+" };
    if bytes == 0 { "=".into() } else { format!("{sign}{}", size(bytes.unsigned_abs())) }
}

impl fmt::Display for Ablation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = |s: f64| format!("{:.1}", s * 1e6);
        let mut head = vec!["without".to_owned(), "numerics".to_owned()];
        let mut all = vec!["(all rules)".to_owned(), String::new()];
        for s in &self.with_all {
            head.extend([format!("{}: kernels", s.entry), "bytes".into(), "est. µs".into()]);
            all.extend([s.dispatches.to_string(), size(s.bytes), micros(s.estimated_s)]);
            if let Some(seconds) = s.measured_s {
                head.push("measured µs".into());
                all.push(micros(seconds));
            }
        }
        let mut rows = vec![all];
        let (changing, same): (Vec<&Without>, Vec<&Without>) =
            self.without.iter().partition(|w| w.steps.iter().any(Changed::differs));
        for w in changing {
            let mut row = vec![w.rule.clone(), w.numerics.clone()];
            for c in &w.steps {
                let kernels =
                    if c.dispatches_more == 0 { "=".into() } else { format!("{:+}", c.dispatches_more) };
                let with_all = c.step.estimated_s - c.estimated_s_more;
                let time = match c.estimated_s_more == 0.0 {
                    true => "=".into(),
                    false => percent(c.estimated_s_more, with_all, COSTS_ESTIMATED),
                };
                row.extend([kernels, more(c.bytes_more), time]);
                if let Some((seconds, more)) = c.step.measured_s.zip(c.measured_s_more) {
                    row.push(percent(more, seconds - more, COSTS_MEASURED));
                }
            }
            rows.push(row);
        }
        let head: Vec<&str> = head.iter().map(String::as_str).collect();
        f.write_str(&table(&head, &rows, 2))?;
        if rows.iter().flatten().any(|cell| cell.ends_with(COSTS)) {
            writeln!(
                f,
                "{}: the step is faster without the rule, which costs more there than it saves",
                COSTS.trim()
            )?;
        }
        if !same.is_empty() {
            let names: Vec<&str> = same.iter().map(|w| w.rule.as_str()).collect();
            writeln!(f, "no difference without {}", names.join(", "))?;
        }
        let how = match self.with_all.iter().any(|s| s.measured_s.is_some()) {
            true => {
                "; measured: a decode step's graph launched back to back, as weft bench does, over a cache of zeros"
            }
            false => ", not measured",
        };
        writeln!(f, "a step's kernels and bytes; estimated times by the roofline of {}{how}", self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::{Ablation, Changed, Step, Without};

    fn ablation(measured: Option<f64>) -> Ablation {
        changed_by(1e-6, measured, 0.5)
    }

    /// The step takes 10 µs, and without the rule so much more; measured, that part of itself more.
    fn changed_by(estimated_s_more: f64, measured: Option<f64>, part: f64) -> Ablation {
        let step = |dispatches, estimated_s, measured_s| Step {
            entry: "decode_1".into(),
            dispatches,
            bytes: 1 << 20,
            flops: 9,
            estimated_s,
            measured_s,
        };
        let changed = Changed {
            step: step(12, 10e-6 + estimated_s_more, measured.map(|s| s * (1.0 + part))),
            dispatches_more: 2,
            bytes_more: 0,
            estimated_s_more,
            measured_s_more: measured.map(|s| s * part),
        };
        let without =
            Without { rule: "merge-linears".into(), numerics: "exact".into(), steps: vec![changed] };
        let with_all = vec![step(10, 10e-6, measured)];
        Ablation { device: "H200".into(), with_all, without: vec![without] }
    }

    #[test]
    fn measured_times_stand_beside_estimates() {
        let text = ablation(Some(20e-6)).to_string();
        for part in ["est. µs", "measured µs", "20.0", "+10.0%", "+50.0%", "back to back"] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        let text = ablation(None).to_string();
        assert!(text.contains("not measured") && !text.contains("measured µs"), "{text}");
    }

    #[test]
    fn a_rule_that_costs_more_than_it_saves_is_marked() {
        let of = |estimated: f64, measured: f64| changed_by(estimated, Some(20e-6), measured).to_string();
        let text = of(-1e-6, -0.05);
        for part in ["-10.0% (costs)", "-5.0% (costs)", "faster without the rule"] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        // What saves, and what differs by less than measurements do, is not.
        assert!(!of(1e-6, -0.009).contains("costs"), "{}", of(1e-6, -0.009));
        assert!(of(1e-6, -0.02).contains("-2.0% (costs)"));
        // JSON has the figures alone.
        let json = serde_json::to_string(&changed_by(-1e-6, Some(20e-6), -0.05)).expect("JSON");
        assert!(!json.contains("costs"), "{json}");
    }
}
