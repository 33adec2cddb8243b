//! What was measured for one shape, made a schedule of another, or of more rows. Tests: `passes/tests/tuning/database.rs`.

use super::GEMV_ROWS;
use super::ahead::halve;
use super::attention::{clustered, group_heads, most_splits, splits};
use super::candidates::{Team, copied, legal, with_team};
use super::database::Measured;
use weft_ir::kernel::MAX_CLUSTER;
use weft_ir::plan::{Attention, Compute, MatMul, Schedule, Work};
use weft_ir::shape::Bindings;
use weft_ir::target::Target;

/// A measured schedule for the rows of a bucket, and for another shape unless it is `exact`. How k is shared out
/// depends on the shape alone: lanes, split and warps are never changed for the rows.
pub(super) fn adapted(
    work: &Work,
    bind: &Bindings,
    measured: &Measured,
    exact: bool,
    target: &Target,
) -> Option<Schedule> {
    match (&work.compute, &measured.schedule) {
        (Compute::MatMul(m), Schedule::Gemv { .. }) => {
            let rows = m.m.eval(bind).min(GEMV_ROWS).next_power_of_two() as u32;
            gemv(work, m, rows, &measured.schedule, exact, target)
        }
        (
            Compute::Attention(a),
            Schedule::AttentionRow { warps, heads, depth, splits: at, cluster, late },
        ) => {
            let most = (*heads as usize).min(a.group);
            let heads = (1..=most).rev().find(|h| a.group.is_multiple_of(*h))? as u32;
            let at = (*at, *cluster, measured.context);
            let (splits, cluster) = shares(a, heads as usize, bind, at, target);
            Some(Schedule::AttentionRow { warps: *warps, heads, depth: *depth, splits, cluster, late: *late })
        }
        (
            Compute::Attention(a),
            Schedule::AttentionGroup { warps, heads: _, depth, splits: at, cluster, late },
        ) => {
            let heads = group_heads(a);
            let at = (*at, *cluster, measured.context);
            let (splits, cluster) = shares(a, heads, bind, at, target);
            let (warps, depth, heads) = (*warps, *depth, heads as u32);
            Some(Schedule::AttentionGroup { warps, heads, depth, splits, cluster, late: *late })
        }
        _ => None,
    }
}

/// Measured splits for another context, and blocks of a cluster: more where it is longer, fewer where it has no keys for
/// so many.
fn shares(
    a: &Attention,
    heads: usize,
    bind: &Bindings,
    (at, cluster, context): (u32, u32, usize),
    target: &Target,
) -> (u32, u32) {
    let (usual, most) = (splits(a, (heads, 1), bind, target), most_splits(a, bind) as u32);
    let longer = a.visible(bind.context) > 2 * a.visible(context);
    let splits = if longer { usual.max(at) } else { at }.clamp(1, most);
    match (&a.projection, cluster) {
        // One cluster has all keys, however many they are.
        (Some(_), _) => {
            let blocks = if longer { MAX_CLUSTER } else { cluster };
            let (_, cluster) = clustered(a, blocks.min(most), target);
            (cluster, cluster)
        }
        (None, 1) => (splits, 1),
        (None, _) => clustered(a, splits, target),
    }
}

fn gemv(
    work: &Work,
    m: &MatMul,
    rows: u32,
    measured: &Schedule,
    exact: bool,
    target: &Target,
) -> Option<Schedule> {
    let Schedule::Gemv {
        rows: at,
        warps,
        lanes,
        split,
        columns,
        depth,
        blocks,
        behind,
        ahead: far,
        late: starts_late,
        ..
    } = measured
    else {
        return None;
    };
    // One that is not legal here is made anew, as it is for other rows: sums keep one order.
    if exact && rows == *at && legal(work, measured, target).is_ok() {
        return Some(measured.clone());
    }
    let sms = target.profile.sms as usize;
    let columns = (*columns as usize).next_multiple_of(m.group.max(1));
    let per_sm = (*blocks as usize).div_ceil(sms.max(1));
    let mut team = Team {
        warps: *warps as usize,
        lanes: *lanes as usize,
        split: *split as usize,
        columns,
        depth: *depth as usize,
        per_sm,
    };
    if !exact {
        // As many loads in flight, but no more past the end of a row than need be.
        let dtype = work.reads.get(m.b.index())?.dtype;
        let bytes = team.lanes * team.split * 16 / dtype.size();
        let cost = |d: &usize| (m.k.next_multiple_of(bytes * d), usize::MAX - d);
        team.depth = (team.depth.div_ceil(2)..=team.depth).min_by_key(cost)?;
    }
    // Further rows take registers: fewer loads in flight, then fewer columns, whatever is the first to fit; then fewer
    // rows of a block, which have room for all of them again.
    let (mut rows, whole) = (rows, (team.depth, team.columns));
    loop {
        let mut schedule = with_team(work, m, rows, &team, target);
        if exact {
            // Of rows that are computed, the first alone is started ahead of them.
            if *behind > 0 && (rows == 1 || copied(work, m)) {
                halve(&mut schedule);
            }
            if let Schedule::Gemv { ahead, late, .. } = &mut schedule {
                (*ahead, *late) = (*far, *starts_late);
            }
        }
        if legal(work, &schedule, target).is_ok() {
            return Some(schedule);
        }
        if team.depth > 1 {
            team.depth -= 1;
        } else if team.columns >= 2 * m.group.max(1) {
            team.columns = (team.columns / 2).next_multiple_of(m.group.max(1));
        } else if rows > 1 {
            rows = rows.div_ceil(2);
            (team.depth, team.columns) = whole;
        } else {
            return None;
        }
    }
}
