//! Schedules of mixtures of experts.

use weft_ir::plan::{Routed, Schedule, StepKind, Steps, Work};
use weft_ir::shape::Bindings;
use weft_ir::target::Target;

/// Steps on rows: threads for the widest step, many where a product reads a weight.
pub(super) fn steps(s: &Steps) -> Schedule {
    let product = s.steps.iter().any(|s| matches!(s.kind, StepKind::Product { .. }));
    let extent = |kind: &StepKind, elements: usize| match kind {
        StepKind::TopK { extent, .. } => elements.max(*extent),
        StepKind::Map(_) | StepKind::Reduce { .. } | StepKind::Product { .. } => elements,
    };
    let widest = s.steps.iter().map(|s| extent(&s.kind, s.elements())).max().unwrap_or(1);
    let threads = if product { 512 } else { widest.next_power_of_two().clamp(64, 256) as u32 };
    Schedule::RowSteps { threads }
}

/// Routed products: tiles of each matrix's pairs where these are sorted, else pair by pair.
pub(super) fn products(
    work: &Work,
    r: &Routed,
    bind: &Bindings,
    target: &Target,
) -> (Schedule, Option<String>) {
    let streaming = Schedule::RoutedGemv { warps: 4, columns: if r.weights.len() > 1 { 2 } else { 4 } };
    if r.grouped.is_none() {
        return (streaming, None);
    }
    let dtype = r.weights.first().map(|b| work.reads[b.index()].dtype);
    let why = match dtype {
        _ if !target.features.mma_sync || !target.features.cp_async => {
            Some(format!("{} has no mma.sync or cp.async", target.name))
        }
        Some(d) if !d.is_half() => Some(format!("tensor cores take f16 and bf16, not {d}")),
        _ if !r.k.is_multiple_of(8) => Some(format!("k = {} is not a multiple of 8 (16-byte rows)", r.k)),
        _ => None,
    };
    if let Some(why) = why {
        return (streaming, Some(format!("pair by pair: {why}")));
    }
    let pairs = r.tokens.eval(bind) * r.picks;
    // A matrix has so many pairs on average.
    let average = pairs.div_ceil(r.experts);
    let (tile_m, warps_m, warps_n) = if average <= 16 { (16, 1, 4) } else { (64, 2, 2) };
    let split = average.div_ceil(tile_m).clamp(1, 16) as u32;
    let tile_k = if r.k.is_multiple_of(64) && r.weights.len() == 1 { 64 } else { 32 };
    let tile_m = tile_m as u32;
    (Schedule::RoutedGemm { tile_m, tile_n: 64, tile_k, warps_m, warps_n, stages: 3, split }, None)
}
