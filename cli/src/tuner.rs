//! Candidates of `weft tune` on the GPU: alone, and in the step that they are in.

use crate::measure::{Gpu, Variant};
use std::sync::Arc;
use std::time::Instant;
use weft_ir::plan::{Plan, Schedule};
use weft_passes::schedule::tune::{Task, Timer};
use weft_runtime::Result as Measured;
use weft_runtime::exec::bench::Workload;
use weft_runtime::exec::bench::groups::{Group, groups};

/// Seconds of steps in a row, of which one run is made.
const STEPS_SECONDS: f64 = 0.03;
const NOT_LAUNCHED: &str = "the step does not launch it";
/// Runs of a candidate, of which the median counts.
pub const RUNS: usize = 3;

/// The candidates of a plan's decode step on the GPU; its clock begins when it is made.
pub struct Tuner<'t> {
    gpu: Gpu,
    plan: Arc<Plan>,
    groups: Vec<Group>,
    /// Candidates that were compiled, and why others were not.
    ready: Vec<(Schedule, Result<Variant, String>)>,
    /// Kernels that steps are timed with, by their works.
    kept: Vec<(u32, Variant)>,
    /// Seconds of the last step.
    step: f64,
    start: Instant,
    /// Told of the seconds that went by.
    tell: Box<dyn FnMut(f64) + 't>,
}

impl<'t> Tuner<'t> {
    /// For the step of a workload of the plan that is on the GPU, whose inputs and values lie where kernels find them.
    ///
    /// # Errors
    /// A workload that the plan does not hold.
    pub fn new(gpu: Gpu, plan: Arc<Plan>, work: &Workload, tell: Box<dyn FnMut(f64) + 't>) -> Measured<Self> {
        let (_, entry, bind) = work.entry(&plan)?;
        let groups = groups(&plan, entry, &bind)?;
        let (ready, kept) = (Vec::new(), Vec::new());
        Ok(Tuner { gpu, plan, groups, ready, kept, step: 1e-3, start: Instant::now(), tell })
    }

    /// What measures.
    pub fn gpu(&mut self) -> &mut Gpu {
        &mut self.gpu
    }

    /// The launches of a work.
    pub fn group(&self, work: u32) -> Option<&Group> {
        self.groups.iter().find(|g| g.work == work)
    }
}

impl Timer for Tuner<'_> {
    fn elapsed(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    fn prepare(&mut self, task: &Task, schedules: &[Schedule]) {
        let variants = self.gpu.variants(&self.plan, task.work, schedules);
        self.ready = schedules.iter().cloned().zip(variants).collect();
    }

    fn time(&mut self, task: &Task, schedule: &Schedule) -> Result<Vec<f64>, String> {
        (self.tell)(self.start.elapsed().as_secs_f64());
        let group = self.groups.iter().find(|g| g.work == task.work).ok_or(NOT_LAUNCHED)?;
        let variant = ready(&self.ready, schedule)?;
        self.gpu.time(group, Some(variant), RUNS).map_err(|e| e.to_string())
    }

    fn time_in_step(&mut self, task: &Task, schedule: &Schedule) -> Result<Vec<f64>, String> {
        (self.tell)(self.start.elapsed().as_secs_f64());
        let kept = self.kept.iter().map(|(work, variant)| (*work, variant));
        let all = kept.chain([(task.work, ready(&self.ready, schedule)?)]);
        let of = |(work, variant)| {
            let group = self.groups.iter().find(|g| g.work == work).ok_or(NOT_LAUNCHED)?;
            Ok::<_, String>((&group.dispatches[..], variant))
        };
        let all = all.map(of).collect::<Result<Vec<_>, String>>()?;
        let launches = (STEPS_SECONDS / self.step).clamp(4.0, 40.0) as usize;
        let times = self.gpu.time_step(&all, launches, RUNS).map_err(|e| e.to_string())?;
        self.step = times.first().copied().unwrap_or(self.step);
        Ok(times)
    }

    fn keep(&mut self, task: &Task, schedule: &Schedule) {
        let found = self.ready.iter().position(|(s, _)| s == schedule);
        if let Some((_, Ok(variant))) = found.map(|at| self.ready.swap_remove(at)) {
            self.kept.push((task.work, variant));
        }
    }
}

/// The compiled kernel of a schedule.
fn ready<'r>(
    all: &'r [(Schedule, Result<Variant, String>)],
    schedule: &Schedule,
) -> Result<&'r Variant, String> {
    let found = all.iter().find(|(s, _)| s == schedule).ok_or("it was not compiled")?;
    found.1.as_ref().map_err(Clone::clone)
}
