//! Arenas: what lives at the same time does not share memory; the peak is never above the sum.

use proptest::prelude::*;
use weft_ir::dtype::DType;
use weft_ir::ids::BufferId;
use weft_ir::plan::{Buffer, BufferKind, Dispatch};
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
    let arena = run(&buffers, &dispatches, &BIND);
    assert_eq!(arena.bytes, 2 * 64 * 3 * 4);
    assert_eq!(arena.unshared_bytes, 6 * 64 * 3 * 4);
}

#[test]
fn only_temporaries_are_placed() {
    let mut buffers = vec![buffer(64), buffer(64)];
    buffers[1].kind = BufferKind::Output("logits".into());
    let arena = run(&buffers, &[dispatch(&[], 0), dispatch(&[0], 1)], &BIND);
    assert_eq!(arena.placements.len(), 1);
    assert_eq!(arena.bytes, 64 * 3 * 4);
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
        let arena = run(&buffers, &dispatches, &BIND);
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
        }
    }
}
