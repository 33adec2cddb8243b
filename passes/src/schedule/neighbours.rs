//! Candidates that are like a schedule but for one choice: what `weft tune` goes on with from the best of those that it
//! has measured. Most candidates are never reached in the order of their likelihood, and what is like the best is
//! likelier to be better than what the estimate thought of next.

use super::ahead::halve;
use weft_ir::plan::Schedule;

/// The candidates beside a schedule, with its prefetches and trigger; in their order.
pub(super) fn neighbours(candidates: &[Schedule], of: &Schedule) -> Vec<Schedule> {
    let mut out: Vec<Schedule> = Vec::new();
    for candidate in candidates.iter().filter(|c| beside(c, of)) {
        let like = with_timing(candidate, of);
        if like != *of && !out.contains(&like) {
            out.push(like);
        }
    }
    out
}

/// Whether two schedules of a family differ in one choice, whatever their prefetches and triggers are. Warps and the team
/// that shares k count as one, since a team's warps divide the block's.
fn beside(a: &Schedule, b: &Schedule) -> bool {
    let differ = |pairs: &[(u32, u32)]| pairs.iter().filter(|(a, b)| a != b).count();
    match (a, b) {
        (
            Schedule::Gemv { rows, warps, lanes, split, columns, depth, resident, staged, .. },
            Schedule::Gemv {
                rows: rows_b,
                warps: warps_b,
                lanes: lanes_b,
                split: split_b,
                columns: columns_b,
                depth: depth_b,
                resident: resident_b,
                staged: staged_b,
                ..
            },
        ) => {
            let team = (warps, lanes, split) != (warps_b, lanes_b, split_b);
            let rest = [(*columns, *columns_b), (*depth, *depth_b), (*resident, *resident_b)];
            rows == rows_b && staged == staged_b && usize::from(team) + differ(&rest) <= 1
        }
        (
            Schedule::AttentionGroup { warps, heads, depth, splits, cluster, late: _ },
            Schedule::AttentionGroup {
                warps: warps_b,
                heads: heads_b,
                depth: depth_b,
                splits: splits_b,
                cluster: cluster_b,
                late: _,
            },
        )
        | (
            Schedule::AttentionRow { warps, heads, depth, splits, cluster, late: _ },
            Schedule::AttentionRow {
                warps: warps_b,
                heads: heads_b,
                depth: depth_b,
                splits: splits_b,
                cluster: cluster_b,
                late: _,
            },
        ) => {
            let shares = (splits, cluster) != (splits_b, cluster_b);
            let rest = [(*warps, *warps_b), (*heads, *heads_b), (*depth, *depth_b)];
            usize::from(shares) + differ(&rest) <= 1
        }
        _ => false,
    }
}

/// A candidate with the prefetches, the order of first loads and the trigger of another schedule.
fn with_timing(candidate: &Schedule, of: &Schedule) -> Schedule {
    let mut out = candidate.clone();
    match (&mut out, of) {
        (Schedule::Gemv { ahead, late, .. }, Schedule::Gemv { ahead: wanted, late: then, behind, .. }) => {
            (*ahead, *late) = (*wanted, *then);
            if *behind > 0 {
                halve(&mut out);
            }
        }
        (Schedule::AttentionGroup { late, .. }, Schedule::AttentionGroup { late: then, .. })
        | (Schedule::AttentionRow { late, .. }, Schedule::AttentionRow { late: then, .. }) => *late = *then,
        _ => {}
    }
    out
}
