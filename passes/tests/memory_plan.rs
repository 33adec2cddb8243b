//! Arenas: what lives at the same time does not share memory; the peak is never above the sum.

use proptest::prelude::*;
use weft_ir::dtype::DType;
use weft_ir::ids::BufferId;
use weft_ir::plan::{Buffer, BufferKind, Dispatch, Extent, Partials, Scratch};
use weft_ir::shape::{Bindings, Dim, Sym};
use weft_passes::memory_plan::{ALIGN, lifetimes, run};

const BIND: Bindings = Bindings { tokens: 3, seqs: 1, rows: 1, context: 8, slots: 8 };

fn buffer(elements: usize) -> Buffer {
    let shape = vec![Dim::Sym(Sym::Tokens), Dim::Const(elements)];
    Buffer { name: "x".into(), dtype: DType::F32, shape, kind: BufferKind::Temp }
}

fn dispatch(reads: &[usize], write: usize) -> Dispatch {
    let reads = reads.iter().map(|&i| BufferId::new(i)).collect();
    Dispatch { work: 0, reads, writes: vec![BufferId::new(write)], scope: String::new() }
}

#[test]
fn a_chain_needs_two_buffers() {
    let buffers: Vec<Buffer> = (0..6).map(|_| buffer(64)).collect();
    let dispatches: Vec<Dispatch> =
        (0..6).map(|i| if i == 0 { dispatch(&[], 0) } else { dispatch(&[i - 1], i) }).collect();
    let arena = run(&buffers, &dispatches, &BIND, &|_| None);
    assert_eq!(arena.bytes, 2 * 64 * 3 * 4);
    assert_eq!(arena.unshared_bytes, 6 * 64 * 3 * 4);
}

#[test]
fn only_temporaries_are_placed() {
    let mut buffers = vec![buffer(64), buffer(64)];
    buffers[1].kind = BufferKind::Output("logits".into());
    let arena = run(&buffers, &[dispatch(&[], 0), dispatch(&[0], 1)], &BIND, &|_| None);
    assert_eq!(arena.placements.len(), 1);
    assert_eq!(arena.bytes, 64 * 3 * 4);
}

fn scratch(floats: usize, counters: usize) -> Scratch {
    let elements = Extent { dims: vec![Dim::Sym(Sym::Tokens), Dim::Const(floats)], per: 1 };
    let partials = vec![Partials { name: "partial".into(), dtype: DType::F32, elements }];
    Scratch { partials, counters: Extent { dims: vec![Dim::Const(counters)], per: 1 } }
}

#[test]
fn scratch_takes_memory_while_its_dispatch_runs() {
    let buffers: Vec<Buffer> = (0..4).map(|_| buffer(64)).collect();
    let chain: Vec<Dispatch> =
        (0..4).map(|i| if i == 0 { dispatch(&[], 0) } else { dispatch(&[i - 1], i) }).collect();
    let small = scratch(64, 5);
    let needs = |d: &Dispatch| (d.writes[0].index() % 2 == 1).then_some(&small);
    let arena = run(&buffers, &chain, &BIND, &needs);
    // Two buffers live at once, and beside them one scratch: the second is where the first was.
    assert_eq!(arena.bytes, 3 * 64 * 3 * 4);
    assert_eq!(arena.unshared_bytes, 6 * 64 * 3 * 4);
    let places = &arena.scratch.places;
    assert_eq!(places.iter().map(|p| p.dispatch.index()).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(places[0].offset, places[1].offset);
    // Counters are not shared: each dispatch finds its own as it left them.
    assert_eq!(places.iter().map(|p| p.counters).collect::<Vec<_>>(), [0, ALIGN]);
    assert_eq!(arena.scratch.counter_bytes, 2 * ALIGN);
}

proptest! {
    #[test]
    fn live_buffers_do_not_overlap(
        sizes in prop::collection::vec(1usize..500, 1..24),
        uses in prop::collection::vec((0usize..24, 0usize..24), 0..40),
    ) {
        let buffers: Vec<Buffer> = sizes.iter().map(|&n| buffer(n)).collect();
        let n = buffers.len();
        let mut dispatches: Vec<Dispatch> = (0..n).map(|i| dispatch(&[], i)).collect();
        dispatches.extend(uses.iter().map(|&(r, w)| dispatch(&[r % n], w % n)));
        let lives = lifetimes(&buffers, &dispatches);
        let needed = scratch(sizes[0], n);
        let scratch = |d: &Dispatch| d.reads.is_empty().then_some(&needed);
        let arena = run(&buffers, &dispatches, &BIND, &scratch);
        prop_assert_eq!(arena.placements.len(), n);
        prop_assert!(arena.bytes <= arena.unshared_bytes);
        for a in &arena.placements {
            prop_assert_eq!(a.offset % ALIGN, 0);
            prop_assert!(a.bytes >= buffers[a.buffer.index()].bytes(&BIND));
            for b in arena.placements.iter().filter(|b| b.buffer > a.buffer) {
                let (la, lb) = (lives[a.buffer.index()].unwrap(), lives[b.buffer.index()].unwrap());
                let at_once = la.0 <= lb.1 && lb.0 <= la.1;
                let apart = a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset;
                prop_assert!(!at_once || apart, "{:?} and {:?}", a, b);
            }
            for s in &arena.scratch.places {
                let life = lives[a.buffer.index()].unwrap();
                let at_once = (life.0..=life.1).contains(&s.dispatch.index());
                let apart = a.offset + a.bytes <= s.offset || s.offset + s.bytes <= a.offset;
                prop_assert!(!at_once || apart, "{:?} and {:?}", a, s);
            }
        }
        let with = dispatches.iter().filter(|d| d.reads.is_empty()).count();
        prop_assert_eq!(arena.scratch.places.len(), with);
        for s in &arena.scratch.places {
            prop_assert!(s.bytes >= needed.layout(&BIND).1 && s.offset + s.bytes <= arena.bytes);
            prop_assert!(s.counters + needed.counter_bytes(&BIND) <= arena.scratch.counter_bytes);
        }
    }
}
