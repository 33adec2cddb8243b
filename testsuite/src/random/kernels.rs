//! A random graph's kernels on the emulator, one by one against the reference.

use super::data::{Steps, Weights};
use super::noise::roundoff;
use crate::emulate::{Distance, Emulated};
use weft_ir::dtype::DType;
use weft_ir::plan::{Compute, KernelSpec, Plan, Schedule, Work};

/// Runs two buckets on the emulator, each kernel compared with the reference.
///
/// Results of a few elements are close by chance: a kernel that is too far is looked at on more inputs.
///
/// # Errors
/// A kernel that faults or is too far.
pub(super) fn emulate(plan: &Plan, weights: &Weights, data: u64) -> Result<(), String> {
    for name in ["prefill_16", "decode_2"] {
        let Some(entry) = plan.entries.iter().find(|e| e.name == name) else { continue };
        let mut run = Emulated::try_with_weights(plan, weights)?;
        let mut one = |more: u64| {
            let steps = Steps::single(entry, data.wrapping_add(more << 32));
            run.try_step(name, &steps.steps[0].1)
        };
        let first = one(0)?;
        let is_close = |d: &Distance| d.is_close() || d.kernel_rmse <= rounded_inside(plan, d);
        if first.iter().all(is_close) {
            continue;
        }
        let runs = (1..16).map(&mut one).collect::<Result<Vec<_>, String>>()?;
        let all: Vec<&Vec<Distance>> = runs.iter().chain([&first]).collect();
        for i in 0..first.len() {
            let together = Distance::together(&all.iter().map(|run| &run[i]).collect::<Vec<_>>());
            // Sums in f32 in another order: the reference's may be nearly exact in all runs.
            let is_f32 =
                work_of(plan, &together).is_some_and(|(w, _)| w.writes.iter().all(|o| o.dtype == DType::F32));
            let loose = (4.0 * together.rounded_rmse).max(2.0 * together.ulp);
            let near = is_close(&together) || (is_f32 && together.kernel_rmse <= loose);
            if !near {
                return Err(format!("{name}: {together:?}"));
            }
        }
    }
    Ok(())
}

/// What a kernel that rounds inside of it may be off: tensor cores take attention's weights in 16 bits, as the
/// graph has them, also where the result is stored in f32. The plan's reference rounds only what is stored.
fn rounded_inside(plan: &Plan, d: &Distance) -> f64 {
    let Some((work, Schedule::AttentionTile { .. })) = work_of(plan, d) else { return 0.0 };
    let (Compute::Attention(a), [out]) = (&work.compute, &work.writes[..]) else { return 0.0 };
    d.ulp / roundoff(out.dtype) * roundoff(a.query_type(&work.reads))
}

/// The work and the schedule of the kernel that a distance is of.
fn work_of<'p>(plan: &'p Plan, d: &Distance) -> Option<(&'p Work, &'p Schedule)> {
    let of = |k: &&KernelSpec| d.kernel.strip_prefix(&k.name).is_some_and(|rest| rest.starts_with(" ("));
    plan.kernels.iter().find(of).map(|k| (&plan.works[k.work as usize], &k.schedule))
}
