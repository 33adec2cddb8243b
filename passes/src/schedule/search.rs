//! The search of one shape's fastest schedule within its share of the time: kernels alone, then steps.
//!
//! A kernel alone shows what is worth a second look; what counts is the step that it is in, where the loads of the next
//! kernel overlap with it. So the fastest alone are timed again in a whole step, with what was found for the kernels
//! before them; then what the best of these prefetches, and then candidates beside it, one choice apart, as long as they
//! are better still. Those that are about as fast are timed again. Tests: `passes/tests/tuning/runs.rs`.

use super::ahead::refinements;
use super::database::{Measured, StepTimes};
use super::neighbours::neighbours;
use super::tune::{Finalist, Settings, Task, Timer};
use weft_ir::plan::Schedule;

/// Candidates that are made ready at once.
const BATCH: usize = 16;
/// Candidates that are timed in a step, the fastest alone first.
const FINALISTS: usize = 24;
/// How much slower alone they may be than the fastest.
const SLOWER: f64 = 1.4;
/// Share of a task's time for kernels alone.
const ALONE: f64 = 0.4;
/// Share of it that is over when finalists have been timed.
const FINALS: f64 = 0.6;
/// Share of it that is over when prefetches have.
const REFINED: f64 = 0.75;
/// Share of it that is over when what is beside the best has; those that are about as fast are timed again in the rest.
const CLIMBED: f64 = 0.9;
/// Candidates that are timed again, how much slower than the best they may have been, and how often in turns.
const CLOSE: usize = 6;
const CLOSER: f64 = 1.01;
const TURNS: usize = 3;

/// What was measured of a task.
#[derive(Default)]
pub(super) struct Times<'t> {
    /// Seconds of a launch, in the order of measurement; of equal ones the first is preferred.
    alone: Vec<(f64, &'t Schedule)>,
    /// The same of the estimate's.
    estimated: Option<f64>,
    pub failures: Vec<(Schedule, String)>,
    pub finalists: Vec<Finalist>,
    /// What is beside the best, and too slow alone.
    slow: Vec<Schedule>,
    /// Candidates beside the best that were measured.
    beside: usize,
}

/// The fastest candidate of those that are reached until `end`; of equal ones the first. The estimate's is always
/// measured.
pub(super) fn fastest<'t>(
    task: &'t Task,
    settings: &Settings,
    end: f64,
    timer: &mut dyn Timer,
) -> (Option<Measured>, Times<'t>) {
    let start = timer.elapsed();
    let mut times = alone(task, start + (end - start) * ALONE, timer);
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
    in_step(task, &others, start + (end - start) * REFINED, timer, &mut times);
    climb(task, start + (end - start) * CLIMBED, timer, &mut times);
    let later = again(task, end, timer, &mut times);
    let ns = |seconds: f64| (seconds * 1e9).round() as u64;
    // Only what was timed in turns is compared.
    let estimate = later.iter().find(|f| task.candidates.first() == Some(&f.schedule)).map(|f| f.step);
    let step = later.first().zip(estimate);
    let step = step.map(|(b, of_estimate)| StepTimes { ns: ns(b.step), estimated_ns: ns(of_estimate) });
    let best = later.into_iter().next().or_else(|| times.best().cloned());
    let (alone, schedule) = best.map_or((alone, schedule), |b| (b.alone, b.schedule));
    timer.prepare(task, std::slice::from_ref(&schedule));
    timer.keep(task, &schedule);
    let measured = Measured {
        schedule,
        ns: ns(alone),
        estimated_ns: times.estimated.map_or(0, ns),
        tried: times.alone.len() + times.beside,
        of: task.candidates.len(),
        context: settings.context,
        step,
    };
    (Some(measured), times)
}

/// Times candidates beside the best in steps, then those beside what is better, until none is or `end`.
fn climb(task: &Task, end: f64, timer: &mut dyn Timer, times: &mut Times<'_>) {
    let Some(&(least, _)) = times.alone.first() else { return };
    while let Some(best) = times.best().map(|b| b.schedule.clone()) {
        let mut beside = neighbours(&task.candidates, &best);
        beside.retain(|s| times.is_new(s));
        for batch in beside.chunks(BATCH) {
            if timer.elapsed() >= end {
                return;
            }
            timer.prepare(task, batch);
            for schedule in batch {
                if timer.elapsed() >= end {
                    return;
                }
                let seconds = timer.time(task, schedule).and_then(|samples| median(&samples));
                times.beside += usize::from(seconds.is_ok());
                match seconds {
                    Err(why) => times.failures.push((schedule.clone(), why)),
                    Ok(seconds) if seconds <= least * SLOWER => times.step(task, (seconds, schedule), timer),
                    Ok(_) => times.slow.push(schedule.clone()),
                }
            }
        }
        if times.best().is_none_or(|b| b.schedule == best) {
            return;
        }
    }
}

/// Times the steps that are about as fast as the best again, in turns, since of many the luckiest looks like the best; and
/// with them the estimate's, to say what was gained. The fastest first, by these later times; none where there is no
/// choice, or no time for it.
fn again(task: &Task, end: f64, timer: &mut dyn Timer, times: &mut Times<'_>) -> Vec<Finalist> {
    let Some(best) = times.best().map(|b| b.step) else { return Vec::new() };
    let is_estimate = |f: &Finalist| task.candidates.first() == Some(&f.schedule);
    let mut close: Vec<Finalist> = Vec::new();
    for f in times.finalists.iter().filter(|f| f.step <= best * CLOSER || is_estimate(f)) {
        if close.iter().all(|other| other.schedule != f.schedule) {
            close.push(f.clone());
        }
    }
    // What was chosen before is among them: no step becomes slower by tuning.
    let new = |f: &Finalist| !task.candidates[..task.chosen].contains(&f.schedule);
    close.sort_by(|a, b| new(a).cmp(&new(b)).then(a.step.total_cmp(&b.step)));
    close.truncate(CLOSE);
    if close.len() < 2 || timer.elapsed() >= end {
        return Vec::new();
    }
    let schedules: Vec<Schedule> = close.iter().map(|f| f.schedule.clone()).collect();
    timer.prepare(task, &schedules);
    let mut samples: Vec<Vec<f64>> = vec![Vec::new(); close.len()];
    for _ in 0..TURNS {
        if timer.elapsed() >= end {
            break;
        }
        for (schedule, samples) in schedules.iter().zip(&mut samples) {
            // One that ran before and does not now is behind the others.
            samples.extend(timer.time_in_step(task, schedule).unwrap_or_default());
        }
    }
    let later = close.into_iter().zip(&samples);
    let mut later: Vec<Finalist> =
        later.filter_map(|(f, samples)| Some(Finalist { step: median(samples).ok()?, ..f })).collect();
    times.finalists.extend(later.iter().cloned());
    // Stable: of equal ones the first.
    later.sort_by(|a, b| a.step.total_cmp(&b.step));
    later
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
    /// Whether nothing is known of a schedule yet, neither alone nor in a step.
    fn is_new(&self, schedule: &Schedule) -> bool {
        let mut known = self.alone.iter().map(|(_, s)| *s).chain(self.failures.iter().map(|(s, _)| s));
        let mut timed = self.finalists.iter().map(|f| &f.schedule).chain(&self.slow);
        known.all(|s| s != schedule) && timed.all(|s| s != schedule)
    }

    /// Times a step with a candidate that is ready, of which the time alone is known.
    fn step(&mut self, task: &Task, (alone, schedule): (f64, &Schedule), timer: &mut dyn Timer) {
        match timer.time_in_step(task, schedule).and_then(|samples| median(&samples)) {
            Err(why) => self.failures.push((schedule.clone(), why)),
            Ok(step) => self.finalists.push(Finalist { schedule: schedule.clone(), alone, step }),
        }
    }

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
            times.step(task, (*alone, schedule), timer);
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
