//! How much of a weight a kernel asks for before it waits for what it depends on.
//!
//! While a kernel waits for the last blocks of the one before, the memory has little to do. What a block asks for
//! meanwhile is there when the wait is over: first by loads to registers, which take few bytes, and behind them by
//! prefetches to L2, which take none. Too much of it pushes out what other blocks asked for, so the bytes of an SM are
//! limited; `weft tune` measures how far.

use super::database::{Key, Shape};
use weft_ir::plan::{FirstLoads, MatMul, Schedule, Work};
use weft_ir::target::Target;

/// Bytes of an SM that most estimates ask for: on an H200 the best for most products is between 48 and 96 KiB.
pub(super) const AHEAD: usize = 64 * 1024;
/// Bytes of an SM that are tried by measurement.
const TRIED: [usize; 8] = [64, 96, 48, 128, 32, 80, 192, 0];
/// Prefetches are of whole lines of the cache, counted from the row's first byte.
const LINE: usize = 128;

/// A row of a product's right operand: elements, and bytes of one.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowOf {
    elements: usize,
    size: usize,
}

impl RowOf {
    /// That of a product.
    pub fn product(work: &Work, m: &MatMul) -> RowOf {
        RowOf { elements: m.k, size: work.reads[m.b.index()].dtype.size() }
    }

    /// Bytes of a row, where they are whole pieces of 16.
    pub fn pieces(&self) -> Option<usize> {
        let bytes = self.elements * self.size;
        bytes.is_multiple_of(16).then_some(bytes)
    }
}

/// Sets what a skinny product's blocks prefetch so that an SM asks for about `budget` bytes before the wait, loads
/// included. Nothing where the target has no bulk prefetch, or rows are not whole pieces.
pub(super) fn set_ahead(schedule: &mut Schedule, row: &RowOf, budget: usize, target: &Target) {
    let Schedule::Gemv { warps, lanes, split, columns, depth, blocks, resident, behind, ahead, .. } =
        schedule
    else {
        return;
    };
    *ahead = 0;
    let (Some(bytes), true) = (row.pieces(), target.features.tma) else { return };
    let teams = (*warps * 32 / *lanes / *split).max(1);
    let per_sm = blocks.div_ceil(target.profile.sms).min(*resident).max(1);
    let rows = (teams * *columns * per_sm) as usize;
    let Ok(loads) = FirstLoads::new(*columns, *depth, *behind) else { return };
    let first = (16 * *lanes * *split * loads.before.steps.end) as usize;
    let wanted = (budget / rows / LINE * LINE).min(bytes);
    *ahead = wanted.saturating_sub(first) as u32;
}

/// Has half of a skinny product's first loads start behind those of the left operand. What an SM asked for comes back
/// in turn: a block that begins as its dependency ends has its weights early and its left operand late.
pub(super) fn halve(schedule: &mut Schedule) {
    if let Schedule::Gemv { columns, depth, behind, .. } = schedule {
        *behind = if *depth > 1 { *depth / 2 * *columns } else { *columns / 2 };
    }
}

/// The other way to begin: half of the first loads behind those of the left operand, or all before.
fn share_out(schedule: &mut Schedule) {
    match schedule {
        Schedule::Gemv { behind, .. } if *behind > 0 => *behind = 0,
        other => halve(other),
    }
}

/// The same schedule of attention with dependents that start earlier or later.
fn turned(schedule: &Schedule) -> Option<Schedule> {
    let mut turned = schedule.clone();
    match &mut turned {
        Schedule::AttentionRow { late, .. } | Schedule::AttentionGroup { late, .. } => *late ^= true,
        _ => return None,
    }
    Some(turned)
}

/// The same schedule with other prefetches, with first loads shared out differently, and with dependents that start
/// earlier or later: to be tried in steps, since a kernel alone does not show what they are worth.
pub(super) fn refinements(key: &Key, schedule: &Schedule) -> Vec<Schedule> {
    let (k, target) = match (&key.shape, Target::parse(&key.target)) {
        (Shape::Gemv { k, .. }, Ok(target)) => (k, target),
        (Shape::AttentionRow { .. }, _) => return turned(schedule).into_iter().collect(),
        (Shape::Gemv { .. }, Err(_)) => return Vec::new(),
    };
    let row = RowOf { elements: *k, size: key.dtype.size() };
    let mut out: Vec<Schedule> = Vec::new();
    for (turned, shared) in [(false, false), (true, false), (false, true)] {
        for budget in TRIED {
            let mut other = schedule.clone();
            if shared {
                share_out(&mut other);
            }
            set_ahead(&mut other, &row, budget * 1024, target);
            if let Schedule::Gemv { late, .. } = &mut other {
                *late ^= turned;
            }
            if other != *schedule && !out.contains(&other) {
                out.push(other);
            }
        }
    }
    out
}
