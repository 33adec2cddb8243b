//! The comment above a kernel: what it is, where it comes from, what it costs, how it is scheduled.

use super::Body;
use weft_ir::plan::{BufferKind, Dispatch, Plan, kernel_cost};
use weft_ir::shape::shape_text;
use weft_ir::target::Target;

/// Writes it: a line each for places in the model, weights, ops, rules, cost, schedule and arrays.
pub(super) fn write(b: &mut Body<'_>) {
    let (plan, spec, work) = (b.plan, b.spec, b.work);
    let sites: Vec<&Dispatch> =
        plan.bodies.iter().flat_map(|b| &b.dispatches).filter(|d| d.work == spec.work).collect();
    let mut lines = Vec::new();
    match sites[..] {
        [] => {}
        [one] => lines.push(format!("from: {}", one.scope)),
        [first, .., last] => {
            lines.push(format!("from: {} … {} ({} sites)", first.scope, last.scope, sites.len()));
        }
    }
    let weights = sites.first().map(|d| weights(plan, d)).unwrap_or_default();
    if !weights.is_empty() {
        let first = if sites.len() > 1 { " (of the first)" } else { "" };
        lines.push(format!("weights: {}{first}", weights.join(", ")));
    }
    if !work.ops.is_empty() {
        lines.push(format!("ops: {}", counted(&work.ops)));
    }
    if !work.rules.is_empty() {
        lines.push(format!("rules: {}", work.rules.join(", ")));
    }
    lines.extend(cost_line(b));
    lines.push(format!("schedule: {:?}", spec.schedule));
    if let Some(why) = &spec.fallback {
        lines.push(format!("fallback: {why}"));
    }
    for o in work.reads.iter().chain(&work.writes) {
        lines.push(format!("{}: {} {}", o.name, o.dtype, shape_text(&o.shape)));
    }
    lines.into_iter().for_each(|l| b.k.doc(l));
}

/// Tensors of the checkpoint that a dispatch reads.
fn weights<'a>(plan: &'a Plan, dispatch: &Dispatch) -> Vec<&'a str> {
    let mut names = Vec::new();
    for b in &dispatch.reads {
        if let Some(BufferKind::Weight(pack)) = plan.buffers.get(b.index()).map(|b| &b.kind) {
            names.extend(pack.tensors());
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|n| seen.insert(*n));
    names
}

/// Ops in order of first appearance, with their numbers: `cast, mul ×3, add`.
fn counted(ops: &[String]) -> String {
    let mut kinds: Vec<(&str, usize)> = Vec::new();
    for op in ops {
        match kinds.iter_mut().find(|(name, _)| name == op) {
            Some((_, n)) => *n += 1,
            None => kinds.push((op, 1)),
        }
    }
    let text = |(name, n): &(&str, usize)| if *n == 1 { (*name).to_owned() } else { format!("{name} ×{n}") };
    kinds.iter().map(text).collect::<Vec<_>>().join(", ")
}

/// What a launch moves and computes in the first entry that uses the kernel, and what bounds it.
fn cost_line(b: &Body<'_>) -> Option<String> {
    let at = b.plan.kernels.iter().position(|k| k.name == b.spec.name)?;
    let entry = b.plan.entries.iter().find(|e| e.kernels.values().any(|k| k.index() == at))?;
    let profile = Target::parse(&b.plan.target).ok()?.profile;
    let cost = kernel_cost(b.work, b.spec, &entry.bind);
    let bound = cost.estimate(&b.spec.schedule, &profile).bound;
    Some(format!(
        "cost: {} bytes, {} flops in {} with context {}; {} bound on {}",
        cost.bytes(),
        cost.flops(),
        entry.name,
        entry.bind.context,
        bound.name(),
        profile.name
    ))
}
