//! The loop of `weft tune`: measures candidates within a budget and keeps the fastest in the database.
//!
//! A kernel alone shows what is worth a second look; what counts is the step that it is in, where the loads of the next
//! kernel overlap with it. So the fastest alone are timed again in a whole step, with what was found for the kernels
//! before them.
//!
//! What measures is behind [`Timer`], so that tests give recorded times and a clock of their own.

use super::candidates::candidates;
use super::database::{Database, Key, Measured, key};
use std::collections::BTreeSet;
use weft_ir::plan::{Entry, Plan, Schedule};
use weft_ir::target::Target;

/// Candidates that are made ready at once.
const BATCH: usize = 16;
/// Candidates that are timed in a step, the fastest alone first.
const FINALISTS: usize = 24;
/// How much slower alone they may be than the fastest.
const SLOWER: f64 = 1.4;
/// Share of a task's time for kernels alone.
const ALONE: f64 = 0.6;

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

    /// Times of a step in which the schedule is that of all launches of the task's work, and kept schedules are those of
    /// theirs; by default, that of a launch stands for it.
    ///
    /// # Errors
    /// As [`Timer::time`].
    fn time_in_step(&mut self, task: &Task, schedule: &Schedule) -> Result<Vec<f64>, String> {
        self.time(task, schedule)
    }

    /// Told of the schedule that later steps are timed with.
    fn keep(&mut self, _task: &Task, _schedule: &Schedule) {}
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

/// What was measured of a task.
#[derive(Default)]
struct Times<'t> {
    /// Seconds of a launch, in the order of measurement; of equal ones the first is preferred.
    alone: Vec<(f64, &'t Schedule)>,
    /// The same of the estimate's.
    estimated: Option<f64>,
    failures: Vec<(Schedule, String)>,
}

/// The fastest candidate of those that are reached until `end`; of equal ones the first. The estimate's is always
/// measured.
fn fastest(
    task: &Task,
    settings: &Settings,
    end: f64,
    timer: &mut dyn Timer,
) -> (Option<Measured>, Vec<(Schedule, String)>) {
    let start = timer.elapsed();
    let mut times = alone(task, start + (end - start) * ALONE, timer);
    let tried = times.alone.len();
    times.alone.sort_by(|a, b| a.0.total_cmp(&b.0));
    let least = times.alone.first().map_or(0.0, |a| a.0);
    let mut finalists: Vec<(f64, &Schedule)> = times.alone.clone();
    finalists.retain(|(seconds, _)| *seconds <= least * SLOWER);
    finalists.truncate(FINALISTS);
    let best = in_step(task, &finalists, end, timer, &mut times.failures);
    let best = best.or(finalists.first().copied());
    if let Some((_, schedule)) = best {
        timer.prepare(task, std::slice::from_ref(schedule));
        timer.keep(task, schedule);
    }
    let ns = |seconds: f64| (seconds * 1e9).round() as u64;
    let measured = best.map(|(seconds, schedule)| Measured {
        schedule: schedule.clone(),
        ns: ns(seconds),
        estimated_ns: times.estimated.map_or(0, ns),
        tried,
        of: task.candidates.len(),
        context: settings.context,
    });
    (measured, times.failures)
}

/// Times of candidates alone, until `end`.
fn alone<'t>(task: &'t Task, end: f64, timer: &mut dyn Timer) -> Times<'t> {
    let mut times = Times::default();
    for (b, batch) in task.candidates.chunks(BATCH).enumerate() {
        if b > 0 && timer.elapsed() >= end {
            break;
        }
        timer.prepare(task, batch);
        for (i, schedule) in batch.iter().enumerate() {
            let first = b == 0 && i == 0;
            if !first && timer.elapsed() >= end {
                return times;
            }
            match timer.time(task, schedule).and_then(|samples| median(&samples)) {
                Err(why) => times.failures.push((schedule.clone(), why)),
                Ok(seconds) => {
                    if first {
                        times.estimated = Some(seconds);
                    }
                    times.alone.push((seconds, schedule));
                }
            }
        }
    }
    times
}

/// The finalist whose step is the fastest, of those that are reached until `end`, with its time alone.
fn in_step<'t>(
    task: &Task,
    finalists: &[(f64, &'t Schedule)],
    end: f64,
    timer: &mut dyn Timer,
    failures: &mut Vec<(Schedule, String)>,
) -> Option<(f64, &'t Schedule)> {
    if finalists.len() < 2 {
        return None;
    }
    let mut best: Option<(f64, (f64, &Schedule))> = None;
    for batch in finalists.chunks(BATCH) {
        if best.is_some() && timer.elapsed() >= end {
            break;
        }
        let schedules: Vec<Schedule> = batch.iter().map(|(_, s)| (*s).clone()).collect();
        timer.prepare(task, &schedules);
        for finalist in batch {
            if best.is_some() && timer.elapsed() >= end {
                break;
            }
            match timer.time_in_step(task, finalist.1).and_then(|samples| median(&samples)) {
                Err(why) => failures.push((finalist.1.clone(), why)),
                Ok(step) if best.is_none_or(|(least, _)| step < least) => best = Some((step, *finalist)),
                Ok(_) => {}
            }
        }
    }
    best.map(|(_, finalist)| finalist)
}

/// The middle sample; of an even number the upper of the middle two, which was measured.
fn median(samples: &[f64]) -> Result<f64, String> {
    let no_time = || "no time was measured".to_owned();
    if samples.iter().any(|s| !s.is_finite() || *s <= 0.0) {
        return Err(no_time());
    }
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().ok_or_else(no_time)
}
