//! Schedules that the database gives for shapes that are not in it: legal, right on the emulator, without spills.
//! And candidates of `weft tune`: a sample of each family's.

use weft_ir::dtype::DType;
use weft_ir::plan::{Schedule, ScheduleSource};
use weft_ir::target::Target;
use weft_passes::schedule::candidates::{candidates, legal};
use weft_passes::schedule::database::{Database, Key, Measured, Shape};
use weft_testsuite::product::{gated_after_norm, plain};

/// Bytes that a candidate may spill for one more block on an SM.
const SQUEEZED: u32 = 16;
/// Shapes whose schedules a database has; made up.
const MEASURED: &[(usize, usize, [u32; 6])] = &[
    // columns, k, [warps, lanes, split, columns, depth, blocks]
    (64, 128, [4, 32, 2, 2, 2, 16]),
    (300, 80, [8, 16, 1, 4, 3, 40]),
    (40, 576, [4, 32, 4, 2, 5, 10]),
    (144, 1024, [16, 32, 1, 4, 4, 132]),
];

fn key(columns: usize, k: usize, group: usize, computed: bool) -> Key {
    let shape = Shape::Gemv { columns, k, group, computed };
    Key { target: "sm_90".into(), device: "H200".into(), dtype: DType::BF16, shape, longest: None }
}

fn database() -> Database {
    let mut out = Database::default();
    for &(n, k, [warps, lanes, split, columns, depth, blocks]) in MEASURED {
        let schedule = Schedule::Gemv {
            rows: 1,
            warps,
            lanes,
            split,
            columns,
            depth,
            blocks,
            staged: true,
            resident: 1,
            behind: 0,
            ahead: 0,
            late: false,
        };
        let measured =
            Measured { schedule, ns: 1000, estimated_ns: 1100, tried: 5, of: 50, context: 1024, step: None };
        for (group, computed) in [(1, false), (1, true), (2, true)] {
            out.insert(key(n, k, group, computed), measured.clone());
        }
    }
    out
}

#[test]
fn ten_shapes_that_are_not_in_the_database() {
    let (database, target) = (database(), Target::parse("sm_90").expect("sm_90"));
    let shapes = [
        (72, 128),
        (64, 136),
        (37, 440),
        (250, 72),
        (41, 576),
        (40, 600),
        (60, 168),
        (49, 120),
        (330, 96),
        (130, 1000),
    ];
    assert_eq!(shapes.len(), 10);
    for (i, (n, k)) in shapes.into_iter().enumerate() {
        let make = |rows| if i % 2 == 0 { plain(n, k, rows) } else { gated_after_norm(n / 2, k, rows) };
        let mut orders = Vec::new();
        for rows in [1, 2, 8] {
            let (maker, m) = make(rows);
            let plan = maker.plan(m.clone(), rows, &|_| {});
            let (work, bind) = (&plan.works[0], plan.entries[0].bind);
            let (schedule, source) =
                database.find(work, &bind, target).unwrap_or_else(|| panic!("{n}×{k}: no neighbour"));
            assert_eq!(source, ScheduleSource::Neighbour);
            legal(work, &schedule, target).unwrap_or_else(|why| panic!("{n}×{k}: {schedule:?}: {why}"));
            let Schedule::Gemv { warps, lanes, split, .. } = schedule else { panic!("{schedule:?}") };
            orders.push((warps, lanes, split));
            maker.check(&m, rows, &|s| *s = schedule.clone());
        }
        // What shares k out is the same for any number of rows.
        assert!(orders.iter().all(|o| *o == orders[0]), "{n}×{k}: {orders:?}");
    }
}

#[test]
fn candidates_compute_the_same() {
    let target = Target::parse("sm_90").expect("sm_90");
    for (i, (n, k)) in [(96, 256), (50, 136)].into_iter().enumerate() {
        for rows in [1, 4] {
            let (maker, m) = if i == 0 { plain(n, k, rows) } else { gated_after_norm(n / 2, k, rows) };
            let plan = maker.plan(m.clone(), rows, &|_| {});
            let all = candidates(&plan.works[0], &plan.entries[0].bind, target);
            // A sample that has every team.
            let step = (all.len() / 12).max(1);
            for schedule in all.iter().step_by(step) {
                maker.check_within(&m, rows, SQUEEZED, &|s| *s = schedule.clone());
            }
        }
    }
}
