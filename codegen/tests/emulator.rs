//! The emulator on hand-built kernels: values, and planted faults that each must raise the right fault.

mod kernels;

use kernels::*;
use weft_codegen::emulator::{Arg, Fault, FaultKind, Launch, Memory, Order, run, run_in_order};
use weft_ir::dtype::DType;
use weft_ir::kernel::build::KernelBuilder;
use weft_ir::kernel::*;
use weft_ir::verify::kernel::verify;

fn launch(blocks: u32, args: &[Arg]) -> Launch {
    Launch { grid: [blocks, 1, 1], args: args.to_vec() }
}

fn ramp(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.37).sin()).collect()
}

fn values(memory: &Memory, buffer: usize) -> Vec<f32> {
    memory.read_floats(buffer).into_iter().map(|v| v.expect("written")).collect()
}

fn bf16(v: f32) -> f32 {
    half::bf16::from_f32(v).to_f32()
}

#[test]
fn vector_add_rounds_once() {
    let (x, y) = (ramp(1024), ramp(2048)[1024..].to_vec());
    let mut m = Memory::new();
    let (a, b, out) =
        (m.floats(DType::BF16, &x), m.floats(DType::BF16, &y), m.uninitialised(DType::BF16, 1024));
    let args = [Arg::Buffer(a), Arg::Buffer(b), Arg::Buffer(out), Arg::i32(1024)];
    let kernel = vector_add(64);
    verify(&kernel).expect("verifies");
    let stats = run(&kernel, &launch(3, &args), &mut m).expect("runs");
    let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| bf16(bf16(*x) + bf16(*y))).collect();
    assert_eq!(values(&m, out), expected);
    assert_eq!((stats.bytes_loaded, stats.bytes_stored), (4096, 2048));
}

fn sum_of_blocks(kernel: &Kernel) -> Result<Vec<f32>, Fault> {
    let mut m = Memory::new();
    let x: Vec<f32> = (0..3 * 300).map(|i| (i % 17) as f32).collect();
    let (a, out) = (m.floats(DType::F32, &x), m.uninitialised(DType::F32, 3));
    run(kernel, &launch(3, &[Arg::Buffer(a), Arg::Buffer(out), Arg::i32(300)]), &mut m)?;
    let expected: Vec<f32> = x.chunks(300).map(|row| row.iter().sum()).collect();
    assert_eq!(values(&m, out), expected);
    Ok(expected)
}

#[test]
fn block_sum_adds_rows() {
    verify(&block_sum(128, true)).expect("verifies");
    sum_of_blocks(&block_sum(128, true)).expect("runs");
}

#[test]
fn delays_are_valid_and_change_nothing() {
    let kernel = block_sum(128, true);
    for seed in 0..20 {
        let delayed = weft_codegen::delays::delayed(&kernel, seed);
        verify(&delayed).expect("verifies");
        let sleeps = delayed.body.iter().filter(|s| matches!(s, Stmt::Sleep { .. })).count();
        assert!(sleeps >= 2 && delayed == weft_codegen::delays::delayed(&kernel, seed));
        assert_eq!(sum_of_blocks(&delayed).expect("runs"), sum_of_blocks(&kernel).expect("runs"));
    }
}

/// Attention of several rounds lets dependents start in the loop over them.
#[test]
fn delays_are_behind_triggers_wherever_they_are() {
    let mut b = KernelBuilder::new("late", 32);
    let out = b.pointer("out", DType::I32, Access::Write);
    b.push(Stmt::GridDependencyWait);
    b.for_loop("round", (Expr::int(0), Expr::int(3), Expr::int(1)), Unroll::Never, |b, round| {
        b.if_then(round.clone().eq_(Expr::int(1)), |b| b.push(Stmt::GridDependencyLaunch));
        b.store(out, Expr::ThreadIdx, round);
    });
    let delayed = weft_codegen::delays::delayed(&b.finish(), 7);
    verify(&delayed).expect("verifies");
    let inside = delayed.body.iter().find_map(|s| match s {
        Stmt::For { body, .. } => body.iter().find_map(|s| match s {
            Stmt::If { then, .. } => Some(then),
            _ => None,
        }),
        _ => None,
    });
    assert!(matches!(inside.expect("the trigger")[..], [Stmt::GridDependencyLaunch, Stmt::Sleep { .. }]));
    let mut m = Memory::new();
    let out = m.uninitialised(DType::I32, 32);
    run(&delayed, &launch(1, &[Arg::Buffer(out)]), &mut m).expect("runs");
    assert_eq!(m.buffers[out].element(31), Some(2));
}

#[test]
fn missing_barrier_is_a_race() {
    let fault = sum_of_blocks(&block_sum(128, false)).expect_err("races");
    assert!(
        matches!(&fault.kind, FaultKind::Race { array, writes: false, rival, .. }
        if array == "partial" && rival.wrote),
        "{fault}"
    );
}

#[test]
fn mma_through_ldmatrix_matches_naive() {
    for dtype in [DType::BF16, DType::F16] {
        let kernel = mma_tile(dtype);
        assert!(verify(&kernel).expect("verifies").mma);
        let mut m = Memory::new();
        let (a, b) = (ramp(256), ramp(512)[384..].to_vec());
        let (ia, ib, c) = (m.floats(dtype, &a), m.floats(dtype, &b), m.uninitialised(DType::F32, 128));
        let (a, b) = (values(&m, ia), values(&m, ib));
        run(&kernel, &launch(1, &[ia, ib, c].map(Arg::Buffer)), &mut m).expect("runs");
        for (i, got) in values(&m, c).into_iter().enumerate() {
            let dot: f64 = (0..16).map(|k| f64::from(a[i / 8 * 16 + k]) * f64::from(b[k * 8 + i % 8])).sum();
            assert_eq!(got, dot as f32, "element {i} of {dtype}");
        }
    }
}

fn run_pipeline(kernel: &Kernel) -> Result<(), Fault> {
    let x = ramp(1024);
    let mut m = Memory::new();
    let (a, out) = (m.floats(DType::F32, &x), m.uninitialised(DType::F32, 1024));
    run(kernel, &launch(1, &[Arg::Buffer(a), Arg::Buffer(out), Arg::i32(4)]), &mut m)?;
    assert_eq!(values(&m, out), x.iter().map(|v| v * 2.0).collect::<Vec<_>>());
    Ok(())
}

#[test]
fn pipeline_stages_copies() {
    verify(&pipeline(true, true)).expect("verifies");
    run_pipeline(&pipeline(true, true)).expect("runs");
}

#[test]
fn missing_copy_wait_is_caught() {
    let fault = run_pipeline(&pipeline(false, true)).expect_err("in flight");
    assert!(matches!(&fault.kind, FaultKind::CopyInFlight { array, .. } if array == "stage"), "{fault}");
}

#[test]
fn waiting_does_not_make_copies_of_others_visible() {
    let fault = run_pipeline(&pipeline(true, false)).expect_err("races");
    // Lane 1 reads what lane 0 fetched and has waited for, but there is no barrier between.
    assert!(matches!(&fault.kind, FaultKind::Race { array, .. } if array == "stage"), "{fault}");
}

fn run_last_block(fenced: bool) -> Result<f32, Fault> {
    let mut m = Memory::new();
    let a = m.floats(DType::F32, &(0..20).map(|i| i as f32).collect::<Vec<_>>());
    let (partial, counter) = (m.uninitialised(DType::F32, 5), m.zeros(DType::U32, 1));
    let out = m.uninitialised(DType::F32, 1);
    run(&last_block(64, fenced), &launch(5, &[a, partial, counter, out].map(Arg::Buffer)), &mut m)?;
    Ok(values(&m, out)[0])
}

#[test]
fn fences_and_an_atomic_order_blocks() {
    verify(&last_block(64, true)).expect("verifies");
    assert_eq!(run_last_block(true).expect("runs"), 190.0);
    let fault = run_last_block(false).expect_err("unordered");
    assert!(matches!(&fault.kind, FaultKind::Race { array, .. } if array == "partial"), "{fault}");
}

/// Two launches of [`joined`] over five blocks; counters start as given, and the second launch finds what the
/// first left.
fn run_joined(planted: Planted, counter: i64, order: Order) -> Result<(Vec<u32>, Vec<Option<i64>>), Fault> {
    let mut m = Memory::new();
    let x: Vec<f32> = ramp(5 * 128);
    let (x, out) = (m.floats(DType::F32, &x), m.uninitialised(DType::F32, 5 * 64 + 32));
    let partial = m.uninitialised(DType::F32, 5 * 32);
    let counters = m.ints(DType::U32, &[7, counter]);
    let launch = launch(5, &[x, out, partial, counters].map(Arg::Buffer));
    let kernel = joined(planted);
    run_in_order(&kernel, &launch, &mut m, order)?;
    let first = values(&m, out);
    run_in_order(&kernel, &launch, &mut m, order)?;
    assert_eq!(values(&m, out), first);
    Ok((first.into_iter().map(f32::to_bits).collect(), m.read_ints(counters)))
}

#[test]
fn the_last_block_joins_what_others_left() {
    assert!(verify(&joined(Planted::Nothing)).expect("verifies").atomics);
    let (bits, counters) = run_joined(Planted::Nothing, 0, Order::Forward).expect("runs");
    let (backward, _) = run_joined(Planted::Nothing, 0, Order::Backward).expect("runs");
    assert_eq!(bits, backward, "the order of blocks shows");
    // The counter is as before, so that the next launch needs no reset; its neighbour is untouched.
    assert_eq!(counters, [Some(7), Some(0)]);
    let x = ramp(5 * 128);
    for (i, got) in bits.iter().take(32).enumerate() {
        let of_block = |b: usize| (0..4).fold(0.0f32, |s, j| s + x[b * 128 + j * 32 + i]);
        let sum = (0..5).fold(0.0f32, |s, b| s + of_block(b));
        assert_eq!(*got, sum.to_bits());
    }
}

#[test]
fn partial_results_are_read_by_the_last_block_alone() {
    for (planted, order) in [
        (Planted::AllRead, Order::Forward),
        (Planted::AllRead, Order::Backward),
        (Planted::ReadEarly, Order::Forward),
        (Planted::ReadEarly, Order::Backward),
    ] {
        // In the first launch what other blocks have not left yet is found unwritten.
        let fault = run_joined(planted, 0, order).expect_err("reads too much");
        let is = matches!(&fault.kind, FaultKind::Uninitialised { array, .. } if array == "partial")
            || matches!(&fault.kind, FaultKind::Race { array, .. } if array == "partial");
        assert!(is, "{fault}");
    }
    // Where they hold something, a block that reads without being the last races with those that still write.
    for planted in [Planted::AllRead, Planted::ReadEarly] {
        let mut m = Memory::new();
        let (x, out) = (m.floats(DType::F32, &ramp(5 * 128)), m.uninitialised(DType::F32, 5 * 64 + 32));
        let (partial, counters) = (m.zeros(DType::F32, 5 * 32), m.zeros(DType::U32, 2));
        let launch = launch(5, &[x, out, partial, counters].map(Arg::Buffer));
        let fault = run(&joined(planted), &launch, &mut m).expect_err("races");
        assert!(
            matches!(&fault.kind, FaultKind::Race { array, .. } if array == "partial" || array == "out"),
            "{fault}"
        );
    }
}

#[test]
fn counters_of_blocks_are_checked() {
    let kind = |planted, counter| run_joined(planted, counter, Order::Forward).expect_err("faults").kind;
    let (array, index) = (|| "counters".to_string(), 1);
    assert_eq!(kind(Planted::Nothing, 3), FaultKind::Counter { array: array(), index, value: 3 });
    let arrivals = |arrived, expected| FaultKind::Arrivals { array: array(), index, arrived, expected };
    assert_eq!(kind(Planted::Expects(1), 0), arrivals(5, 6));
    // The fourth block of five takes itself for the last: it joins too early, and the fifth is one too many.
    assert_eq!(kind(Planted::Expects(-5), 0), arrivals(1, 0));
    assert_eq!(kind(Planted::Stays, 0), arrivals(3, 5));
    assert_eq!(kind(Planted::Twice, 0), FaultKind::ArrivesAgain { array: array(), index });
    let expectation = FaultKind::Expectation { array: array(), index, expected: 5, before: 6 };
    assert_eq!(kind(Planted::Disagrees, 0), expectation);
    let early = run_joined(Planted::Expects(-1), 0, Order::Forward).expect_err("too early");
    assert!(
        matches!(early.kind, FaultKind::Uninitialised { .. } | FaultKind::Race { .. })
            || early.kind == arrivals(5, 4),
        "{early}"
    );
}

/// A kernel of one warp over a 32-element `x` (read) and `out` (written), filled by a closure.
fn small(threads: u32, fill: impl FnOnce(&mut KernelBuilder, Mem, Mem)) -> Kernel {
    let mut b = KernelBuilder::new("small", threads);
    let x = b.pointer("x", DType::F32, Access::Read);
    let out = b.pointer("out", DType::F32, Access::ReadWrite);
    fill(&mut b, x, out);
    b.finish()
}

fn run_small(kernel: &Kernel, blocks: u32) -> Result<Vec<Option<f32>>, Fault> {
    let mut m = Memory::new();
    let (x, out) = (m.floats(DType::F32, &ramp(32)), m.uninitialised(DType::F32, 64));
    run(kernel, &launch(blocks, &[x, out].map(Arg::Buffer)), &mut m)?;
    Ok(m.read_floats(out))
}

fn fault_of(kernel: &Kernel) -> Fault {
    run_small(kernel, 2).expect_err("faults")
}

#[test]
fn out_of_bounds_is_caught_in_every_memory() {
    let global = small(64, |b, x, out| b.store(out, Expr::ThreadIdx, Expr::load(x, Expr::ThreadIdx)));
    let fault = fault_of(&global);
    assert_eq!(fault.kind, FaultKind::OutOfBounds { array: "x".into(), index: 32, len: 32 });
    assert_eq!((fault.place.thread, fault.place.statement), (32, 0));
    assert_eq!(fault.place.text, "out[threadIdx.x] = x[threadIdx.x];");
    let shared = small(32, |b, _, _| {
        let s = Mem::Shared(b.shared("s", DType::F32, 16));
        b.store(s, Expr::ThreadIdx, Expr::float(1.0));
    });
    let kind = FaultKind::OutOfBounds { array: "s".into(), index: 16, len: 16 };
    assert_eq!(fault_of(&shared).kind, kind);
    let registers = small(32, |b, _, _| {
        let r = b.array("r", DType::F32, 4, Some(Expr::float(0.0)));
        b.unrolled("i", 5, |b, i| b.assign_elem(r, i, Expr::float(1.0)));
    });
    assert_eq!(fault_of(&registers).kind, FaultKind::OutOfBounds { array: "r".into(), index: 4, len: 4 });
}

#[test]
fn prefetches_stay_in_their_array_and_start_at_16_bytes() {
    let of = |index: i64, elements: u32| {
        small(32, move |b, x, out| {
            let at = Expr::ThreadIdx / 32 + index;
            b.push(Stmt::PrefetchL2 { mem: x, index: at, elements });
            b.store(out, Expr::ThreadIdx, Expr::float(0.0));
        })
    };
    assert!(run_small(&of(4, 28), 1).is_ok());
    let beyond = FaultKind::OutOfBounds { array: "x".into(), index: 32, len: 32 };
    assert_eq!(fault_of(&of(8, 28)).kind, beyond);
    let before = FaultKind::OutOfBounds { array: "x".into(), index: -4, len: 32 };
    assert_eq!(fault_of(&of(-4, 8)).kind, before);
    assert_eq!(fault_of(&of(2, 8)).kind, FaultKind::Misaligned { array: "x".into(), index: 2, bytes: 16 });
}

#[test]
fn uninitialised_reads_are_caught() {
    let shared = small(32, |b, _, out| {
        let s = Mem::Shared(b.shared("s", DType::F32, 32));
        b.store(out, Expr::ThreadIdx, Expr::load(s, Expr::ThreadIdx));
    });
    assert_eq!(fault_of(&shared).kind, FaultKind::Uninitialised { array: "s".into(), index: 0 });
    let registers = small(32, |b, _, out| {
        let r = b.array("r", DType::F32, 2, None);
        b.assign_elem(r, Expr::int(0), Expr::float(1.0));
        b.store(out, Expr::ThreadIdx, Expr::elem(r, Expr::int(1)));
    });
    assert_eq!(fault_of(&registers).kind, FaultKind::Uninitialised { array: "r".into(), index: 1 });
    let global = small(32, |b, _, out| {
        b.let_("v", DType::F32, Expr::load(out, Expr::ThreadIdx));
    });
    assert_eq!(fault_of(&global).kind, FaultKind::Uninitialised { array: "out".into(), index: 0 });
}

#[test]
fn divergent_barriers_and_collectives_are_caught() {
    let barrier = small(64, |b, _, _| b.if_then(Expr::ThreadIdx.lt(Expr::int(40)), barrier));
    assert_eq!(fault_of(&barrier).kind, FaultKind::DivergentBarrier { arrived: 40, expected: 64 });
    let faults = verify(&barrier).expect_err("divergent");
    assert!(faults.iter().any(|f| matches!(f.kind, weft_ir::verify::kernel::FaultKind::Divergent(_))));
    let shuffle = small(64, |b, _, _| {
        b.if_then(Expr::ThreadIdx.lt(Expr::int(40)), |b| {
            b.let_("v", DType::F32, Expr::float(1.0).shuffle_xor(1));
        });
    });
    let kind = FaultKind::DivergentCollective { what: "a warp shuffle", arrived: 8 };
    assert_eq!(fault_of(&shuffle).kind, kind);
}

#[test]
fn accesses_before_the_dependency_wait_are_caught() {
    let late = small(32, |b, x, out| {
        let v = b.let_("v", DType::F32, Expr::load(x, Expr::ThreadIdx));
        b.push(Stmt::GridDependencyWait);
        b.store(out, Expr::ThreadIdx, v);
    });
    assert_eq!(fault_of(&late).kind, FaultKind::BeforeDependencyWait("x".into()));
    assert!(verify(&late).is_err());
}

/// Reads 32 elements of a settled `x` from an element on, by vectors of some lanes, before or behind the wait.
fn settled_read(first: i64, lanes: u32, early: bool) -> Kernel {
    let mut b = KernelBuilder::new("settled_read", 32);
    let x = b.pointer("x", DType::F32, Access::Settled);
    let out = b.pointer("out", DType::F32, Access::Write);
    let v = b.array("v", DType::F32, lanes, None);
    let at = Expr::ThreadIdx * i64::from(lanes);
    if !early {
        b.push(Stmt::GridDependencyWait);
    }
    let some = Expr::ThreadIdx.lt(Expr::int(i64::from(32 / lanes)));
    b.if_then(some.clone(), |b| {
        let index = at.clone() + first;
        if lanes == 1 {
            b.assign_elem(v, Expr::int(0), Expr::load(x, index));
        } else {
            let (dst_at, hint) = (Expr::int(0), CacheHint::Settled);
            b.push(Stmt::LoadVec { dst: v, dst_at, mem: x, index, lanes, hint });
        }
    });
    if early {
        b.push(Stmt::GridDependencyWait);
    }
    b.if_then(some, |b| {
        b.unrolled("e", lanes, |b, e| b.store(out, at.clone() + e.clone(), Expr::elem(v, e)));
    });
    b.finish()
}

#[test]
fn what_earlier_steps_wrote_may_be_read_before_the_dependency_wait() {
    let x = ramp(128);
    let mut m = Memory::new();
    let (cache, from) = (m.floats(DType::F32, &x), m.floats(DType::F32, &x[64..]));
    let out = m.uninitialised(DType::F32, 32);
    let read = |m: &mut Memory, kernel: &Kernel| {
        verify(kernel).expect("verifies");
        run(kernel, &launch(1, &[cache, out].map(Arg::Buffer)), m).map(|_| values(m, out))
    };
    let before = FaultKind::BeforeDependencyWait("x".into());
    assert_eq!(read(&mut m, &settled_read(64, 4, true)).expect("nothing is fresh"), x[64..96]);
    // A kernel of the step writes elements 64 to 95 again, with what is there.
    let write = small(32, |b, x, out| b.store(out, Expr::ThreadIdx + 64, Expr::load(x, Expr::ThreadIdx)));
    run(&write, &launch(1, &[from, cache].map(Arg::Buffer)), &mut m).expect("writes");
    for lanes in [1, 4] {
        for (first, old) in [(0, true), (32, true), (36, false), (64, false), (92, false), (96, true)] {
            let first_fresh = if first < 64 { 64 } else { first };
            let early = read(&mut m, &settled_read(first, lanes, true));
            match early {
                Ok(got) => assert!(old && got == x[first as usize..][..32], "{lanes} lanes from {first}"),
                Err(fault) => {
                    assert!(!old && fault.kind == before, "{lanes} lanes from {first}: {fault}");
                    assert_eq!(i64::from(fault.place.thread), (first_fresh - first) / i64::from(lanes));
                }
            }
            let late = read(&mut m, &settled_read(first, lanes, false)).expect("behind the wait");
            assert_eq!(late, x[first as usize..][..32]);
        }
    }
    // In the next step they are old.
    m.buffers[cache].settle();
    assert_eq!(read(&mut m, &settled_read(64, 4, true)).expect("settled"), x[64..96]);
    // Nobody writes through such a pointer.
    let mut b = KernelBuilder::new("writes", 32);
    let x = b.pointer("x", DType::F32, Access::Settled);
    b.store(x, Expr::ThreadIdx, Expr::float(1.0));
    let faults = verify(&b.finish()).expect_err("written");
    assert!(
        faults.iter().any(|f| f.to_string().contains("`x` is written but declared Settled")),
        "{faults:?}"
    );
}

#[test]
fn blocks_that_write_the_same_element_race() {
    let same = small(32, |b, _, out| b.store(out, Expr::ThreadIdx, Expr::float(1.0)));
    let fault = fault_of(&same);
    assert!(matches!(&fault.kind, FaultKind::Race { rival, .. } if rival.block == 0), "{fault}");
    assert_eq!(fault.place.block, [1, 0, 0]);
    assert!(run_small(&same, 1).is_ok());
}

/// Lanes exchange through shared memory with what `between` puts there.
fn exchange(between: Option<Stmt>, distance: i64) -> Kernel {
    small(64, |b, _, out| {
        let s = Mem::Shared(b.shared("s", DType::F32, 64));
        b.store(s, Expr::ThreadIdx, Expr::ThreadIdx.cast(DType::F32));
        if let Some(stmt) = between {
            b.push(stmt);
        }
        let other = (Expr::ThreadIdx + distance) % 64;
        b.store(out, Expr::ThreadIdx, Expr::load(s, other));
    })
}

#[test]
fn warp_barriers_order_lanes_of_one_warp_only() {
    assert!(run_small(&exchange(Some(Stmt::Barrier), 1), 1).is_ok());
    for between in [None, Some(Stmt::WarpBarrier)] {
        let fault = run_small(&exchange(between, 1), 1).expect_err("races");
        assert!(matches!(fault.kind, FaultKind::Race { .. }), "{fault}");
    }
    // Distance 0 stays in the thread.
    assert!(run_small(&exchange(None, 0), 1).is_ok());
    let within = small(32, |b, _, out| {
        let s = Mem::Shared(b.shared("s", DType::F32, 32));
        b.store(s, Expr::ThreadIdx, Expr::ThreadIdx.cast(DType::F32));
        b.push(Stmt::WarpBarrier);
        b.store(out, Expr::ThreadIdx, Expr::load(s, (Expr::ThreadIdx + 1) % 32));
    });
    let out = run_small(&within, 1).expect("runs");
    assert_eq!(out[31], Some(0.0));
}

#[test]
fn overwriting_a_tile_that_others_still_read_is_a_race() {
    let kernel = small(64, |b, _, out| {
        let s = Mem::Shared(b.shared("s", DType::F32, 64));
        b.for_loop("i", (Expr::int(0), Expr::int(2), Expr::int(1)), Unroll::Never, |b, _| {
            b.store(s, Expr::ThreadIdx, Expr::float(1.0));
            barrier(b);
            b.store(out, Expr::ThreadIdx, Expr::load(s, (Expr::ThreadIdx + 33) % 64));
        });
    });
    let fault = run_small(&kernel, 1).expect_err("races");
    assert!(matches!(&fault.kind, FaultKind::Race { writes: true, rival, .. } if !rival.wrote), "{fault}");
}

#[test]
fn misaligned_vectors_and_overflow_are_caught() {
    let vector = small(32, |b, x, _| {
        let dst = b.array("r", DType::F32, 4, None);
        let (dst_at, index, hint) = (Expr::int(0), Expr::int(2), CacheHint::Default);
        b.push(Stmt::LoadVec { dst, dst_at, mem: x, index, lanes: 4, hint });
    });
    assert_eq!(fault_of(&vector).kind, FaultKind::Misaligned { array: "x".into(), index: 2, bytes: 16 });
    let overflow = small(32, |b, _, _| {
        b.let_("i", DType::I32, (Expr::ThreadIdx + 65536) * 65536);
    });
    assert_eq!(fault_of(&overflow).kind, FaultKind::Overflow("multiplication"));
    let division = small(32, |b, _, _| {
        b.let_("i", DType::I32, Expr::int(7) / (Expr::ThreadIdx - 3));
    });
    let fault = fault_of(&division);
    assert_eq!((fault.kind, fault.place.thread), (FaultKind::DivisionByZero, 3));
}

#[test]
fn histogram_by_atomics() {
    let kernel = {
        let mut b = KernelBuilder::new("histogram", 64);
        let x = b.pointer("x", DType::I32, Access::Read);
        let out = b.pointer("out", DType::U32, Access::ReadWrite);
        let bins = Mem::Shared(b.shared("bins", DType::U32, 8));
        b.if_then(Expr::ThreadIdx.lt(Expr::int(8)), |b| b.store(bins, Expr::ThreadIdx, Expr::uint(0)));
        barrier(&mut b);
        let at = block_x() * 64 + Expr::ThreadIdx;
        b.atomic_add("old", bins, Expr::load(x, at), Expr::uint(1));
        barrier(&mut b);
        b.if_then(Expr::ThreadIdx.lt(Expr::int(8)), |b| {
            let value = Expr::load(bins, Expr::ThreadIdx);
            b.push(Stmt::AtomicAdd { mem: out, index: Expr::ThreadIdx, value, old: None });
        });
        b.finish()
    };
    verify(&kernel).expect("verifies");
    let mut m = Memory::new();
    let x: Vec<i64> = (0..256).map(|i| i * i % 8).collect();
    let (a, out) = (m.ints(DType::I32, &x), m.zeros(DType::U32, 8));
    run(&kernel, &launch(4, &[a, out].map(Arg::Buffer)), &mut m).expect("runs");
    let expected: Vec<_> = (0..8).map(|b| Some(x.iter().filter(|v| **v == b).count() as i64)).collect();
    assert_eq!(m.read_ints(out), expected);
}

#[test]
fn launches_that_do_not_fit_are_refused() {
    let kernel = vector_add(64);
    let fault = run(&kernel, &launch(1, &[Arg::i32(1)]), &mut Memory::new()).expect_err("refused");
    assert!(matches!(fault.kind, FaultKind::Invalid(_)), "{fault}");
}

/// Not a test of speed, but its figure: `cargo test --release -- --ignored --nocapture throughput`.
#[test]
#[ignore = "measures"]
fn throughput() {
    let mut m = Memory::new();
    let (rows, n) = (64usize, 65536usize);
    let (x, out) = (m.zeros(DType::F32, rows * n), m.uninitialised(DType::F32, rows));
    let start = std::time::Instant::now();
    let args = [Arg::Buffer(x), Arg::Buffer(out), Arg::i32(n as i32)];
    let stats = run(&block_sum(256, true), &launch(rows as u32, &args), &mut m).expect("runs");
    let seconds = start.elapsed().as_secs_f64();
    println!("{:.1} M thread-statements a second", stats.statements as f64 / seconds / 1e6);
}
