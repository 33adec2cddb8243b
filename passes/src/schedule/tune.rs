//! The loop of `weft tune`: measures candidates within a budget and keeps the fastest in the database.
//!
//! A kernel alone shows what is worth a second look; what counts is the step that it is in, where the loads of the next
//! kernel overlap with it. So the fastest alone are timed again in a whole step, with what was found for the kernels
//! before them.
//!
//! What measures is behind [`Timer`], so that tests give recorded times and a clock of their own.

use super::ahead::refinements;
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
const ALONE: f64 = 0.5;
/// Share of it that is over when finalists have been timed; prefetches take the rest.
const FINALS: f64 = 0.85;

/// A shape to tune.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// What the schedule is kept under.
    pub key: Key,
    /// Work that stands for the shape: a position in [`Plan::works`].
    pub work: u32,
    /// Its name.
    pub name: String,
    /// Schedules, the estimate's first, then the plan's own.
    pub candidates: Vec<Schedule>,
    /// How many of the first have been chosen before: they are always measured, alone and in a step.
    pub chosen: usize,
}

impl Task {
    /// Adds a schedule to those that have been chosen before.
    fn choose(&mut self, schedule: &Schedule) {
        if !self.candidates[..self.chosen].contains(schedule) {
            self.candidates.retain(|c| c != schedule);
            self.candidates.insert(self.chosen, schedule.clone());
            self.chosen += 1;
        }
    }
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
    /// Candidates that were timed in a step, in that order.
    pub finalists: Vec<Finalist>,
}

/// A candidate that was timed in a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Finalist {
    /// The candidate.
    pub schedule: Schedule,
    /// Seconds of a launch alone: for other prefetches, those of the candidate that they refine.
    pub alone: f64,
    /// Seconds of a step with it.
    pub step: f64,
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
            let mut task = Task { key, work: d.work, name: work.name.clone(), candidates, chosen: 1 };
            let kernel = entry.kernels.get(&d.work).and_then(|k| plan.kernels.get(k.index()));
            if let Some(kernel) = kernel {
                task.choose(&kernel.schedule);
            }
            out.push(task);
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
        let report = |outcome, found: Times<'_>| TaskReport {
            name: task.name.clone(),
            key: task.key.clone(),
            outcome,
            failures: found.failures,
            finalists: found.finalists,
        };
        if known(database, task) {
            reports.push(report(Outcome::Known, Times::default()));
            continue;
        }
        let rest = settings.budget - timer.elapsed();
        let share = rest / left.max(1) as f64;
        left = left.saturating_sub(1);
        if rest <= 0.0 {
            reports.push(report(Outcome::NotReached, Times::default()));
            continue;
        }
        let end = timer.elapsed() + share;
        let mut task = task.clone();
        if let Some(known) = database.get(&task.key) {
            task.choose(&known.schedule);
        }
        let (best, found) = fastest(&task, settings, end, timer);
        match best {
            Some(measured) => {
                database.insert(task.key.clone(), measured.clone());
                saved(database, i + 1, tasks.len())?;
                reports.push(report(Outcome::Tuned(measured), found));
            }
            None => reports.push(report(Outcome::Failed, found)),
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
    finalists: Vec<Finalist>,
}

/// The fastest candidate of those that are reached until `end`; of equal ones the first. The estimate's is always
/// measured.
fn fastest<'t>(
    task: &'t Task,
    settings: &Settings,
    end: f64,
    timer: &mut dyn Timer,
) -> (Option<Measured>, Times<'t>) {
    let start = timer.elapsed();
    let mut times = alone(task, start + (end - start) * ALONE, timer);
    let tried = times.alone.len();
    times.alone.sort_by(|a, b| a.0.total_cmp(&b.0));
    let Some((least, first)) = times.alone.first().copied() else { return (None, times) };
    let finalists =
        |(i, (seconds, _)): &(usize, &(f64, &Schedule))| *i < FINALISTS && *seconds <= least * SLOWER;
    let fast: Vec<_> = times.alone.iter().enumerate().filter(finalists).map(|(_, t)| *t).collect();
    // What was chosen before is compared in a step however it does alone: no step becomes slower by tuning.
    let before = |t: &&(f64, &Schedule)| task.candidates[..task.chosen].contains(t.1) && !fast.contains(t);
    let wanted: Vec<_> = times.alone.iter().filter(before).chain(&fast).copied().collect();
    // Where there is a choice.
    if wanted.len() > 1 || !refinements(&task.key, first).is_empty() {
        in_step(task, &wanted, start + (end - start) * FINALS, timer, &mut times);
    }
    let best = times.best().cloned();
    let (alone, schedule) = best.map_or((least, first.clone()), |b| (b.alone, b.schedule));
    let others: Vec<Schedule> = refinements(&task.key, &schedule);
    let others: Vec<(f64, &Schedule)> = others.iter().map(|s| (alone, s)).collect();
    in_step(task, &others, end, timer, &mut times);
    let (alone, schedule) = times.best().map_or((alone, schedule), |b| (b.alone, b.schedule.clone()));
    timer.prepare(task, std::slice::from_ref(&schedule));
    timer.keep(task, &schedule);
    let ns = |seconds: f64| (seconds * 1e9).round() as u64;
    let measured = Measured {
        schedule,
        ns: ns(alone),
        estimated_ns: times.estimated.map_or(0, ns),
        tried,
        of: task.candidates.len(),
        context: settings.context,
    };
    (Some(measured), times)
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

impl Times<'_> {
    /// The candidate whose step is the fastest; of equal ones the first.
    fn best(&self) -> Option<&Finalist> {
        self.finalists.iter().min_by(|a, b| a.step.total_cmp(&b.step))
    }
}

/// Times steps with candidates, of which the times alone are known, until `end`.
fn in_step(task: &Task, wanted: &[(f64, &Schedule)], end: f64, timer: &mut dyn Timer, times: &mut Times<'_>) {
    for batch in wanted.chunks(BATCH) {
        if timer.elapsed() >= end {
            return;
        }
        let schedules: Vec<Schedule> = batch.iter().map(|(_, s)| (*s).clone()).collect();
        timer.prepare(task, &schedules);
        for (alone, schedule) in batch {
            if timer.elapsed() >= end {
                return;
            }
            match timer.time_in_step(task, schedule).and_then(|samples| median(&samples)) {
                Err(why) => times.failures.push(((*schedule).clone(), why)),
                Ok(step) => {
                    times.finalists.push(Finalist { schedule: (*schedule).clone(), alone: *alone, step });
                }
            }
        }
    }
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
