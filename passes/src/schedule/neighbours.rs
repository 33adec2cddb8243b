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

/// Whether two schedules of a family differ in one choice at most, whatever their prefetches and triggers are.
fn beside(a: &Schedule, b: &Schedule) -> bool {
    let (Some((fixed, ours)), Some((given, theirs))) = (choices(a), choices(b)) else { return false };
    let differ = ours.iter().zip(&theirs).filter(|(a, b)| a != b).count();
    std::mem::discriminant(a) == std::mem::discriminant(b) && fixed == given && differ <= 1
}

/// What a schedule's family is given, and its choices. Warps and the team that shares k are one, since a team's warps divide
/// the block's; so are splits and the blocks of a cluster.
fn choices(s: &Schedule) -> Option<([u32; 2], [[u32; 3]; 4])> {
    let one = |n: u32| [n, 0, 0];
    match *s {
        Schedule::Gemv { rows, warps, lanes, split, columns, depth, resident, staged, .. } => {
            let choices = [[warps, lanes, split], one(columns), one(depth), one(resident)];
            Some(([rows, u32::from(staged)], choices))
        }
        Schedule::AttentionGroup { warps, heads, depth, splits, cluster, late: _ }
        | Schedule::AttentionRow { warps, heads, depth, splits, cluster, late: _ } => {
            Some(([0, 0], [[splits, cluster, 0], one(warps), one(heads), one(depth)]))
        }
        _ => None,
    }
}

/// A candidate with the trigger of another schedule, as many bytes of each row ahead, and half of its first loads behind
/// those of the left operand where that has some.
fn with_timing(candidate: &Schedule, of: &Schedule) -> Schedule {
    let mut out = candidate.clone();
    match (&mut out, of) {
        (
            Schedule::Gemv { ahead, late, behind, .. },
            Schedule::Gemv { ahead: wanted, late: then, behind: some, .. },
        ) => {
            (*ahead, *late, *behind) = (*wanted, *then, 0);
            if *some > 0 {
                halve(&mut out);
            }
        }
        (Schedule::AttentionGroup { late, .. }, Schedule::AttentionGroup { late: then, .. })
        | (Schedule::AttentionRow { late, .. }, Schedule::AttentionRow { late: then, .. }) => *late = *then,
        _ => {}
    }
    out
}

#[cfg(test)]
mod tests {
    use super::neighbours;
    use weft_ir::plan::Schedule;

    fn group([warps, depth, splits, cluster]: [u32; 4]) -> Schedule {
        Schedule::AttentionGroup { warps, heads: 4, depth, splits, cluster, late: false }
    }

    #[test]
    fn attention_is_beside_what_differs_in_one_choice() {
        let of =
            Schedule::AttentionGroup { warps: 8, heads: 4, depth: 1, splits: 16, cluster: 1, late: true };
        let near = [[10, 1, 16, 1], [8, 2, 16, 1], [8, 1, 8, 8], [8, 1, 8, 1]];
        let far = [[10, 2, 16, 1], [10, 1, 8, 8], [8, 2, 8, 1]];
        let mut all: Vec<Schedule> = near.iter().chain(&far).map(|parts| group(*parts)).collect();
        // The same but for its trigger, other heads beside other warps, and another family.
        all.push(group([8, 1, 16, 1]));
        all.push(Schedule::AttentionGroup {
            warps: 9,
            heads: 2,
            depth: 1,
            splits: 16,
            cluster: 1,
            late: true,
        });
        all.push(Schedule::AttentionRow { warps: 8, heads: 4, depth: 1, splits: 16, cluster: 1, late: true });
        let found = neighbours(&all, &of);
        let parts = |s: &Schedule| match s {
            Schedule::AttentionGroup { warps, depth, splits, cluster, late: true, .. } => {
                [*warps, *depth, *splits, *cluster]
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(found.iter().map(parts).collect::<Vec<_>>(), near);
    }

    #[test]
    fn products_take_over_what_was_timed() {
        let product = |columns: u32, depth: u32, behind: u32, ahead: u32, late: bool| Schedule::Gemv {
            rows: 1,
            warps: 8,
            lanes: 32,
            split: 2,
            columns,
            depth,
            blocks: 128,
            staged: true,
            resident: 1,
            behind,
            ahead,
            late,
        };
        let candidates =
            [product(4, 2, 4, 512, false), product(8, 4, 0, 0, false), product(2, 4, 0, 0, false)];
        // Both columns and depth of the second and the third differ.
        let found = neighbours(&candidates, &product(4, 3, 0, 1024, true));
        assert_eq!(found, [product(4, 2, 0, 1024, true)]);
        let found = neighbours(&candidates, &product(4, 4, 8, 0, true));
        assert_eq!(found, [product(4, 2, 4, 0, true), product(8, 4, 16, 0, true), product(2, 4, 4, 0, true)]);
    }
}
