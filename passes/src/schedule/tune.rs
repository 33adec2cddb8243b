//! The loop of `weft tune`: measures candidates within a budget ([`super::search`]) and keeps the fastest in the database.
//!
//! What measures is behind [`Timer`], so that tests give recorded times and a clock of their own.

use super::candidates::candidates;
use super::database::{Database, Key, Measured, key};
use super::search::{Times, fastest};
use std::collections::BTreeSet;
use weft_ir::plan::{Entry, Plan, Schedule};
use weft_ir::target::Target;

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
    /// Whether it is not to be measured, and only there for the steps of the others.
    pub stays: bool,
}

impl Task {
    /// Whether a schedule takes as many rows as the task's own: one that was measured with a sequence is not as it is
    /// that of two.
    fn has_rows_of(&self, schedule: &Schedule) -> bool {
        let rows = |s: &Schedule| match s {
            Schedule::Gemv { rows, .. } => Some(*rows),
            _ => None,
        };
        self.candidates.first().is_some_and(|own| rows(own) == rows(schedule))
    }

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
    /// It was not to be measured, and is not in the database.
    Left,
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
    /// Candidates that were timed in a step, in that order; those that were timed again are there twice.
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
            let mut task =
                Task { key, work: d.work, name: work.name.clone(), candidates, chosen: 1, stays: false };
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
    let known = |database: &Database, t: &Task| !settings.again && database.known(&t.key).is_some();
    let mut left = tasks.iter().filter(|t| !t.stays && !known(database, t)).count();
    // What is in the database stands beside what is timed.
    for task in tasks {
        if let Some(m) = database.taken(&task.key).filter(|m| task.has_rows_of(&m.schedule)) {
            timer.prepare(task, std::slice::from_ref(&m.schedule));
            timer.keep(task, &m.schedule);
        }
    }
    let mut reports = Vec::with_capacity(tasks.len());
    for (i, task) in tasks.iter().enumerate() {
        let report = |outcome, found: Times<'_>| TaskReport {
            name: task.name.clone(),
            key: task.key.clone(),
            outcome,
            failures: found.failures,
            finalists: found.finalists,
        };
        if task.stays || known(database, task) {
            let outcome = if database.known(&task.key).is_some() { Outcome::Known } else { Outcome::Left };
            reports.push(report(outcome, Times::default()));
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
        // The one for its longest context, and that for any.
        for known in [database.taken(&task.key), database.get(&task.key.for_any())].into_iter().flatten() {
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
