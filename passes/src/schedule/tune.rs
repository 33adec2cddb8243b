//! The loop of `weft tune`: measures candidates within a budget and keeps the fastest in the database.
//!
//! What measures is behind [`Timer`], so that tests give recorded times and a clock of their own.

use super::candidates::candidates;
use super::database::{Database, Key, Measured, key};
use std::collections::BTreeSet;
use weft_ir::plan::{Entry, Plan, Schedule};
use weft_ir::target::Target;

/// Candidates that are made ready at once.
const BATCH: usize = 16;

/// A shape to tune.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// What the schedule is kept under.
    pub key: Key,
    /// Work that stands for the shape: a position in [`Plan::works`].
    pub work: u32,
    /// Its name.
    pub name: String,
    /// Schedules, the estimate's first.
    pub candidates: Vec<Schedule>,
}

/// What measures schedules. Seconds throughout.
pub trait Timer {
    /// Time since the beginning.
    fn elapsed(&self) -> f64;

    /// Told of schedules that are measured next, so that they can be compiled together.
    fn prepare(&mut self, task: &Task, schedules: &[Schedule]);

    /// Times of a launch, one for each run.
    ///
    /// # Errors
    /// Why this schedule cannot be measured; the others still are.
    fn time(&mut self, task: &Task, schedule: &Schedule) -> Result<Vec<f64>, String>;
}

/// What became of a task.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It was in the database.
    Known,
    /// The fastest of those that were measured is in the database now.
    Tuned(Measured),
    /// There was no time left for it.
    NotReached,
    /// No candidate could be measured.
    Failed,
}

/// A task and what became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskReport {
    /// Name of the work.
    pub name: String,
    /// Shape.
    pub key: Key,
    /// What became of it.
    pub outcome: Outcome,
    /// Candidates that could not be measured, and why.
    pub failures: Vec<(Schedule, String)>,
}

/// How to tune.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Seconds for all tasks. One that has begun is ended when its share is over.
    pub budget: f64,
    /// Context that kernels are measured with, to be noted.
    pub context: usize,
    /// Whether to measure what is in the database already.
    pub again: bool,
}

/// What is tuned of an entry: one task for each shape, in the order of first launches.
pub fn tasks(plan: &Plan, entry: &Entry, target: &Target, device: &str) -> Vec<Task> {
    let dispatches = plan.bodies.get(entry.body as usize).map(|b| b.dispatches.as_slice());
    let mut seen = BTreeSet::new();
    let mut out = Vec::new();
    for d in dispatches.unwrap_or_default() {
        let Some(work) = plan.works.get(d.work as usize) else { continue };
        let Some(key) = key(work, &entry.bind, target, device) else { continue };
        let candidates = candidates(work, &entry.bind, target);
        if !candidates.is_empty() && seen.insert(key.clone()) {
            out.push(Task { key, work: d.work, name: work.name.clone(), candidates });
        }
    }
    out
}

/// Tunes. Time that is left is shared evenly by the tasks that are left. `saved` is told after each task that changed
/// the database, with (tasks done, tasks in all).
///
/// # Errors
/// What `saved` reports: the database could not be kept.
pub fn tune<E>(
    tasks: &[Task],
    database: &mut Database,
    settings: &Settings,
    timer: &mut dyn Timer,
    saved: &mut dyn FnMut(&Database, usize, usize) -> Result<(), E>,
) -> Result<Vec<TaskReport>, E> {
    let known = |database: &Database, t: &Task| !settings.again && database.get(&t.key).is_some();
    let mut left = tasks.iter().filter(|t| !known(database, t)).count();
    let mut reports = Vec::with_capacity(tasks.len());
    for (i, task) in tasks.iter().enumerate() {
        let report = |outcome, failures| TaskReport {
            name: task.name.clone(),
            key: task.key.clone(),
            outcome,
            failures,
        };
        if known(database, task) {
            reports.push(report(Outcome::Known, Vec::new()));
            continue;
        }
        let rest = settings.budget - timer.elapsed();
        let share = rest / left.max(1) as f64;
        left = left.saturating_sub(1);
        if rest <= 0.0 {
            reports.push(report(Outcome::NotReached, Vec::new()));
            continue;
        }
        let end = timer.elapsed() + share;
        let (best, failures) = fastest(task, settings, end, timer);
        match best {
            Some(measured) => {
                database.insert(task.key.clone(), measured.clone());
                saved(database, i + 1, tasks.len())?;
                reports.push(report(Outcome::Tuned(measured), failures));
            }
            None => reports.push(report(Outcome::Failed, failures)),
        }
    }
    Ok(reports)
}

/// The fastest candidate of those that are reached until `end`; of equal ones the first. The estimate's is always
/// measured.
fn fastest(
    task: &Task,
    settings: &Settings,
    end: f64,
    timer: &mut dyn Timer,
) -> (Option<Measured>, Vec<(Schedule, String)>) {
    let mut best: Option<(f64, &Schedule)> = None;
    let (mut failures, mut estimated, mut tried) = (Vec::new(), None, 0);
    'all: for (b, batch) in task.candidates.chunks(BATCH).enumerate() {
        if b > 0 && timer.elapsed() >= end {
            break;
        }
        timer.prepare(task, batch);
        for (i, schedule) in batch.iter().enumerate() {
            let first = b == 0 && i == 0;
            if !first && timer.elapsed() >= end {
                break 'all;
            }
            let median = match timer.time(task, schedule) {
                Ok(samples) => median(&samples).ok_or("no time was measured".to_owned()),
                Err(why) => Err(why),
            };
            match median {
                Err(why) => failures.push((schedule.clone(), why)),
                Ok(seconds) => {
                    tried += 1;
                    if first {
                        estimated = Some(seconds);
                    }
                    if best.is_none_or(|(least, _)| seconds < least) {
                        best = Some((seconds, schedule));
                    }
                }
            }
        }
    }
    let ns = |seconds: f64| (seconds * 1e9).round() as u64;
    let measured = best.map(|(seconds, schedule)| Measured {
        schedule: schedule.clone(),
        ns: ns(seconds),
        estimated_ns: estimated.map_or(0, ns),
        tried,
        of: task.candidates.len(),
        context: settings.context,
    });
    (measured, failures)
}

/// The middle sample; of an even number the upper of the middle two, which was measured. `None` without samples, or
/// when one is not a time.
fn median(samples: &[f64]) -> Option<f64> {
    if samples.iter().any(|s| !s.is_finite() || *s <= 0.0) {
        return None;
    }
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}
