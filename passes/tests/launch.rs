//! Dependencies: every hazard has a path of edges, through buffers and through shared memory of the arena,
//! and no edge is implied by others.

use proptest::prelude::*;
use weft_ir::ids::{BufferId, DispatchId};
use weft_ir::plan::{Dispatch, EdgeKind, Launch, Placement, ScratchPlace, ScratchPlaces};
use weft_passes::launch::run;
use weft_passes::memory_plan::Arena;

fn dispatch(reads: &[usize], writes: &[usize]) -> Dispatch {
    let ids = |v: &[usize]| v.iter().map(|&i| BufferId::new(i)).collect();
    Dispatch { work: 0, reads: ids(reads), writes: ids(writes), scope: String::new() }
}

fn after(launches: &[Launch], i: usize) -> Vec<usize> {
    launches[i].after.iter().map(|(d, _)| d.index()).collect()
}

#[test]
fn branches_are_independent_and_join() {
    let d = [dispatch(&[], &[0]), dispatch(&[0], &[1]), dispatch(&[0], &[2]), dispatch(&[1, 2], &[3])];
    let launches = run(&d, &[], &[true; 4]);
    assert_eq!(after(&launches, 1), [0]);
    assert_eq!(after(&launches, 2), [0]);
    assert_eq!(after(&launches, 3), [1, 2]);
    assert!(launches.iter().flat_map(|l| &l.after).all(|(_, k)| *k == EdgeKind::Programmatic));
}

#[test]
fn a_kernel_that_does_not_wait_has_full_edges() {
    let d = [dispatch(&[], &[0]), dispatch(&[0], &[1])];
    let launches = run(&d, &[], &[true, false]);
    assert_eq!(launches[1].after, [(DispatchId(0), EdgeKind::Full)]);
}

#[test]
fn memory_that_is_used_again_orders_unrelated_dispatches() {
    let place = |b: usize, offset| Placement { buffer: BufferId::new(b), offset, bytes: 256 };
    let placements = vec![place(0, 0), place(2, 0)];
    let arena = Arena { placements, bytes: 256, unshared_bytes: 512, ..Arena::default() };
    // b2 takes the memory of b0, so its writer waits for b0's reader.
    let d = [dispatch(&[], &[0]), dispatch(&[0], &[1]), dispatch(&[], &[2])];
    assert_eq!(after(&run(&d, &[&arena], &[true; 3]), 2), [1]);
    assert!(after(&run(&d, &[], &[true; 3]), 2).is_empty());
}

#[test]
fn scratch_orders_dispatches_that_share_its_memory() {
    let scratch =
        |d: usize, offset| ScratchPlace { dispatch: DispatchId::new(d), offset, bytes: 256, counters: 0 };
    let place = |b: usize, offset| Placement { buffer: BufferId::new(b), offset, bytes: 256 };
    // Three dispatches without common buffers: the second's scratch lies where the first's was, and the third's
    // result where the second's scratch was.
    let d = [dispatch(&[], &[0]), dispatch(&[], &[1]), dispatch(&[], &[2])];
    let places = vec![scratch(0, 0), scratch(1, 0)];
    let scratch = ScratchPlaces { places, counter_bytes: 512 };
    let placements = vec![place(0, 512), place(1, 1024), place(2, 0)];
    let arena = Arena { placements, scratch, bytes: 2048, unshared_bytes: 2048 };
    let launches = run(&d, &[&arena], &[true; 3]);
    assert_eq!((after(&launches, 1), after(&launches, 2)), (vec![0], vec![1]));
    let free = run(&d, &[], &[true; 3]);
    assert!(after(&free, 1).is_empty() && after(&free, 2).is_empty());
}

proptest! {
    #[test]
    fn hazards_are_covered_and_edges_are_needed(
        list in prop::collection::vec((prop::collection::vec(0usize..8, 0..3), 0usize..8), 1..20),
    ) {
        let d: Vec<Dispatch> = list.iter().map(|(r, w)| dispatch(r, &[*w])).collect();
        let launches = run(&d, &[], &vec![true; d.len()]);
        let mut reach: Vec<Vec<bool>> = Vec::new();
        for i in 0..d.len() {
            let mut r = vec![false; d.len()];
            for j in after(&launches, i) {
                r[j] = true;
                for (x, y) in r.iter_mut().zip(&reach[j]) {
                    *x |= *y;
                }
            }
            for j in 0..i {
                let touches = |a: &Dispatch, b: &Dispatch| {
                    a.writes.iter().any(|x| b.writes.contains(x) || b.reads.contains(x))
                };
                if touches(&d[j], &d[i]) || touches(&d[i], &d[j]) {
                    prop_assert!(r[j], "{i} does not wait for {j}");
                }
            }
            for j in after(&launches, i) {
                let implied = after(&launches, i).iter().any(|&k| k != j && reach[k][j]);
                prop_assert!(!implied, "the edge {j} -> {i} is implied");
            }
            reach.push(r);
        }
    }
}
