//! Hand-built kernels that the writer's and the emulator's tests share.
#![allow(dead_code)]

use weft_ir::dtype::DType;
use weft_ir::ids::{SharedId, VarId};
use weft_ir::kernel::build::KernelBuilder;
use weft_ir::kernel::*;

pub fn block_x() -> Expr {
    Expr::BlockIdx(Axis::X)
}

pub fn barrier(b: &mut KernelBuilder) {
    b.push(Stmt::Barrier);
}

/// out[i] = x[i] + y[i] on bf16, eight elements a thread.
pub fn vector_add(threads: u32) -> Kernel {
    let mut b = KernelBuilder::new("vector_add", threads);
    b.doc("out[i] = x[i] + y[i]: 6 bytes an element, bound by memory.");
    b.min_blocks(2);
    let x = b.pointer("x", DType::BF16, Access::Constant);
    let y = b.pointer("y", DType::BF16, Access::Read);
    let out = b.pointer("out", DType::BF16, Access::Write);
    let n = b.scalar("n", DType::I32);
    let at = b.let_("at", DType::I32, (block_x() * i64::from(threads) + Expr::ThreadIdx) * 8);
    b.if_then(at.clone().lt(n), |b| {
        let xs = b.array("xs", DType::BF16, 8, None);
        let ys = b.array("ys", DType::BF16, 8, None);
        for (dst, mem, hint) in [(xs, x, CacheHint::Streaming), (ys, y, CacheHint::Default)] {
            b.push(Stmt::LoadVec { dst, dst_at: Expr::int(0), mem, index: at.clone(), lanes: 8, hint });
        }
        b.unrolled("i", 8, |b, i| {
            let sum = Expr::elem(xs, i.clone()).cast(DType::F32) + Expr::elem(ys, i.clone()).cast(DType::F32);
            b.assign_elem(xs, i, sum.cast(DType::BF16));
        });
        b.push(Stmt::StoreVec { mem: out, index: at.clone(), src: xs, src_at: Expr::int(0), lanes: 8 });
    });
    b.finish()
}

/// out[block] = sum of the block's row of x, by shuffles and one shared array. `synchronised` leaves the
/// barrier in.
pub fn block_sum(threads: u32, synchronised: bool) -> Kernel {
    let mut b = KernelBuilder::new("block_sum", threads);
    b.doc("out[row] = sum of x[row, :]");
    let x = b.pointer("x", DType::F32, Access::Read);
    let out = b.pointer("out", DType::F32, Access::Write);
    let n = b.scalar("n", DType::I32);
    let warps = threads / 32;
    let partial = Mem::Shared(b.shared("partial", DType::F32, warps));
    let tid = b.let_("tid", DType::I32, Expr::ThreadIdx);
    let lane = b.let_("lane", DType::I32, tid.clone() % 32);
    let warp = b.let_("warp", DType::I32, tid.clone() / 32);
    let row = b.let_("row", DType::I64, block_x().cast(DType::I64) * n.clone().cast(DType::I64));
    let sum = b.let_mut("sum", DType::F32, Expr::float(0.0));
    b.comment("Each thread sums a stride of the row.");
    b.for_loop("i", (tid, n, Expr::int(i64::from(threads))), Unroll::By(4), |b, i| {
        let v = Expr::load(x, row.clone() + i.cast(DType::I64));
        b.assign(sum, Expr::Var(sum) + v);
    });
    b.comment("Warps sum their lanes, the first warp sums the warps.");
    for mask in [16, 8, 4, 2, 1] {
        b.assign(sum, Expr::Var(sum) + Expr::Var(sum).shuffle_xor(mask));
    }
    b.if_then(lane.clone().eq_(Expr::int(0)), |b| b.store(partial, warp.clone(), sum.into()));
    if synchronised {
        barrier(&mut b);
    }
    b.if_then(warp.eq_(Expr::int(0)), |b| {
        let in_range = lane.clone().lt(Expr::int(i64::from(warps)));
        b.assign(sum, in_range.select(Expr::load(partial, lane.clone()), Expr::float(0.0)));
        for mask in [16, 8, 4, 2, 1] {
            b.assign(sum, Expr::Var(sum) + Expr::Var(sum).shuffle_xor(mask));
        }
        b.if_then(lane.clone().eq_(Expr::int(0)), |b| b.store(out, block_x(), sum.into()));
    });
    b.finish()
}

pub fn ld_matrix(dst: VarId, shared: SharedId, index: Expr, count: MatrixCount, transpose: bool) -> Stmt {
    Stmt::LdMatrix { dst, dst_at: Expr::int(0), shared, index, count, transpose }
}

/// c = a · b for one 16×8×16 tile: `a` row-major 16×16, `b` row-major 16×8 (k, n), by one warp.
pub fn mma_tile(dtype: DType) -> Kernel {
    let mut b = KernelBuilder::new("mma_tile", 32);
    b.doc("c[16, 8] = a[16, 16] b[16, 8]");
    let a = b.pointer("a", dtype, Access::Read);
    let bm = b.pointer("b", dtype, Access::Read);
    let c = b.pointer("c", DType::F32, Access::Write);
    let tile_a = b.shared("tile_a", dtype, 256);
    let tile_b = b.shared("tile_b", dtype, 128);
    let lane = b.let_("lane", DType::I32, Expr::ThreadIdx);
    let copy = |b: &mut KernelBuilder, from: Mem, to: SharedId, len: u32| {
        b.for_loop("i", (lane.clone(), Expr::int(i64::from(len)), Expr::int(32)), Unroll::Never, |b, i| {
            b.store(Mem::Shared(to), i.clone(), Expr::load(from, i));
        });
    };
    copy(&mut b, a, tile_a, 256);
    copy(&mut b, bm, tile_b, 128);
    barrier(&mut b);
    let fa = b.array("fa", DType::U32, 4, None);
    let fb = b.array("fb", DType::U32, 2, None);
    let acc = b.array("acc", DType::F32, 4, Some(Expr::float(0.0)));
    // Matrices of A: rows 0-7, rows 8-15, then the same of columns 8-15.
    let row_a = (lane.clone() % 16) * 16 + (lane.clone() / 16) * 8;
    b.push(ld_matrix(fa, tile_a, row_a, MatrixCount::X4, false));
    let row_b = (lane.clone() % 16) * 8;
    b.push(ld_matrix(fb, tile_b, row_b, MatrixCount::X2, true));
    let zero = || Expr::int(0);
    b.push(Stmt::Mma { dtype, acc, acc_at: zero(), a: fa, a_at: zero(), b: fb, b_at: zero() });
    b.unrolled("i", 4, |b, i| {
        let row = lane.clone() / 4 + (i.clone() / 2) * 8;
        let column = (lane.clone() % 4) * 2 + i.clone() % 2;
        b.store(c, row * 8 + column, Expr::elem(acc, i));
    });
    b.finish()
}

/// out[i] = 2 · x[i], staged through shared memory by a two-stage cp.async pipeline. `wait` and `sync`
/// leave the wait and the barrier in.
pub fn pipeline(wait: bool, sync: bool) -> Kernel {
    let (threads, tile) = (64u32, 256i64);
    let mut b = KernelBuilder::new("pipeline", threads);
    b.doc("out[i] = 2 x[i], two stages of cp.async");
    let x = b.pointer("x", DType::F32, Access::Read);
    let out = b.pointer("out", DType::F32, Access::Write);
    let tiles = b.scalar("tiles", DType::I32);
    let stage = b.shared("stage", DType::F32, 2 * tile as u32);
    let tid = b.let_("tid", DType::I32, Expr::ThreadIdx);
    let fetch = |b: &mut KernelBuilder, t: Expr| {
        b.push(Stmt::CpAsync {
            shared: stage,
            shared_index: (t.clone() % 2) * tile + tid.clone() * 4,
            global: x,
            global_index: t.clone() * tile + tid.clone() * 4,
            bytes: 16,
            valid: Some(t.lt(tiles.clone())),
        });
        b.push(Stmt::CpAsyncCommit);
    };
    fetch(&mut b, Expr::int(0));
    b.for_loop("t", (Expr::int(0), tiles.clone(), Expr::int(1)), Unroll::Never, |b, t| {
        fetch(b, t.clone() + 1);
        if wait {
            b.push(Stmt::CpAsyncWait { pending: 1 });
        }
        if sync {
            barrier(b);
        }
        b.unrolled("j", 4, |b, j| {
            // Elements that another thread fetched.
            let at = j * i64::from(threads) + tid.clone();
            let v = Expr::load(Mem::Shared(stage), (t.clone() % 2) * tile + at.clone());
            b.store(out, t.clone() * tile + at, v * Expr::float(2.0));
        });
        barrier(b);
    });
    b.finish()
}

/// Every block adds its row to partial sums; the last one to finish adds them up.
pub fn last_block(threads: u32, fenced: bool) -> Kernel {
    let mut b = KernelBuilder::new("last_block", threads);
    let x = b.pointer("x", DType::F32, Access::Read);
    let partial = b.pointer("partial", DType::F32, Access::ReadWrite);
    let counter = b.pointer("counter", DType::U32, Access::ReadWrite);
    let out = b.pointer("out", DType::F32, Access::Write);
    let last = Mem::Shared(b.shared("last", DType::Bool, 1));
    let tid = b.let_("tid", DType::I32, Expr::ThreadIdx);
    b.if_then(tid.clone().eq_(Expr::int(0)), |b| {
        let sum = b.let_mut("sum", DType::F32, Expr::float(0.0));
        b.for_loop("i", (Expr::int(0), Expr::int(4), Expr::int(1)), Unroll::Full, |b, i| {
            b.assign(sum, Expr::Var(sum) + Expr::load(x, block_x() * 4 + i));
        });
        b.store(partial, block_x(), sum.into());
        if fenced {
            b.push(Stmt::Fence);
        }
        let taken = b.atomic_add("ticket", counter, Expr::int(0), Expr::uint(1));
        let count = Expr::Cast(DType::U32, Box::new(Expr::GridDim(Axis::X) - 1));
        b.store(last, Expr::int(0), taken.eq_(count));
        if fenced {
            b.push(Stmt::Fence);
        }
    });
    barrier(&mut b);
    b.if_then(Expr::load(last, Expr::int(0)), |b| {
        b.if_then(tid.clone().eq_(Expr::int(1)), |b| {
            let sum = b.let_mut("sum", DType::F32, Expr::float(0.0));
            let blocks = Expr::GridDim(Axis::X);
            b.for_loop("i", (Expr::int(0), blocks, Expr::int(1)), Unroll::Never, |b, i| {
                b.assign(sum, Expr::Var(sum) + Expr::load(partial, i));
            });
            b.store(out, Expr::int(0), sum.into());
        });
    });
    b.finish()
}

/// What the kernel of [`joined`] does wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    Nothing,
    /// Every block reads the partial sums, not the last alone.
    AllRead,
    /// Reads before the arrival.
    ReadEarly,
    /// Stores a partial sum behind the arrival.
    StoreLate,
    /// So many blocks more than there are are expected (fewer when negative).
    Expects(i64),
    /// The first block expects one more than the others.
    Disagrees,
    /// A block arrives twice.
    Twice,
    /// Blocks of odd number do not arrive.
    Stays,
}

/// Each block's threads add up their share of 128 elements of x and leave 32 partial sums; the last block adds
/// those of all blocks, in order: out[i] = Σ over blocks, thread i of `gridDim.x`.
pub fn joined(planted: Planted) -> Kernel {
    let mut b = KernelBuilder::new("joined", 64);
    let x = b.pointer("x", DType::F32, Access::Read);
    let out = b.pointer("out", DType::F32, Access::Write);
    let partial = b.pointer("partial", DType::F32, Access::ReadWrite);
    let counters = b.pointer("counters", DType::U32, Access::ReadWrite);
    let tid = b.let_("tid", DType::I32, Expr::ThreadIdx);
    let share = |b: &mut KernelBuilder| {
        b.if_then(Expr::ThreadIdx.lt(Expr::int(32)), |b| {
            let sum = b.let_mut("sum", DType::F32, Expr::float(0.0));
            b.for_loop("i", (Expr::int(0), Expr::int(4), Expr::int(1)), Unroll::Full, |b, i| {
                b.assign(sum, Expr::Var(sum) + Expr::load(x, block_x() * 128 + i * 32 + Expr::ThreadIdx));
            });
            b.store(partial, block_x() * 32 + Expr::ThreadIdx, sum.into());
        });
    };
    let combine = |b: &mut KernelBuilder| {
        b.if_then(Expr::ThreadIdx.ge(Expr::int(32)), |b| {
            let sum = b.let_mut("sum", DType::F32, Expr::float(0.0));
            let blocks = Expr::GridDim(Axis::X);
            b.for_loop("i", (Expr::int(0), blocks, Expr::int(1)), Unroll::Never, |b, i| {
                b.assign(sum, Expr::Var(sum) + Expr::load(partial, i * 32 + Expr::ThreadIdx - 32));
            });
            b.store(out, Expr::ThreadIdx - 32, sum.into());
        });
    };
    if planted != Planted::StoreLate {
        share(&mut b);
    }
    if planted == Planted::ReadEarly {
        barrier(&mut b);
        combine(&mut b);
    }
    let blocks = || Expr::GridDim(Axis::X).cast(DType::U32);
    let expected = match planted {
        Planted::Expects(more) if more < 0 => blocks() - Expr::uint(more.unsigned_abs() as u32),
        Planted::Expects(more) => blocks() + Expr::uint(more as u32),
        Planted::Disagrees => block_x().eq_(Expr::int(0)).select(blocks() + Expr::uint(1), blocks()),
        _ => blocks(),
    };
    let one = Expr::int(1);
    if planted == Planted::Stays {
        b.if_then((block_x() % 2).eq_(Expr::int(0)), |b| {
            b.last_block("is_last", counters, one, expected);
        });
        return b.finish();
    }
    let last = b.last_block("is_last", counters, one.clone(), expected.clone());
    if planted == Planted::Twice {
        b.last_block("again", counters, one, expected);
    }
    match planted {
        Planted::AllRead => combine(&mut b),
        Planted::StoreLate => share(&mut b),
        Planted::ReadEarly => b.comment("read before"),
        _ => b.if_then(last, combine),
    }
    b.store(out, tid + 32 + block_x() * 64, Expr::float(1.0));
    b.finish()
}

/// Uses every statement, operator and helper once; for compilers, not for running.
pub fn intrinsics() -> Kernel {
    let mut b = KernelBuilder::new("intrinsics", 64);
    b.doc("Every intrinsic once.");
    let weights = b.pointer("weights", DType::U32, Access::Constant);
    let x = b.pointer("x", DType::F16, Access::Read);
    let y = b.pointer("y", DType::BF16, Access::Read);
    let counts = b.pointer("counts", DType::I32, Access::ReadWrite);
    let out = b.pointer("out", DType::F32, Access::Write);
    let words = b.pointer("words", DType::U32, Access::Write);
    let counters = b.pointer("counters", DType::U32, Access::ReadWrite);
    let scale = b.scalar("scale", DType::F32);
    let offset = b.scalar("offset", DType::I64);
    let stage = b.shared("stage", DType::F16, 1024);
    let tile = b.shared("tile", DType::BF16, 1024);
    let tid = b.let_("tid", DType::I32, Expr::ThreadIdx);
    let zero = || Expr::int(0);
    let w = b.array("w", DType::U32, 4, None);
    for lanes in [1, 2, 4] {
        let (index, hint) = (tid.clone() * i64::from(lanes), CacheHint::Streaming);
        b.push(Stmt::LoadVec { dst: w, dst_at: zero(), mem: weights, index, lanes, hint });
        let index = tid.clone() * i64::from(lanes);
        b.push(Stmt::StoreVec { mem: words, index, src: w, src_at: zero(), lanes });
    }
    b.push(Stmt::PrefetchL2 { mem: weights, index: zero(), elements: 64 });
    b.push(Stmt::GridDependencyLaunch);
    b.comment("Nothing but weights may be read before this.");
    b.push(Stmt::GridDependencyWait);
    for (to, from) in [(stage, x), (tile, y)] {
        for bytes in [4u32, 8, 16] {
            for valid in [None, Some(tid.clone().lt(Expr::int(48)))] {
                let at = || tid.clone() * i64::from(bytes / 2);
                b.push(Stmt::CpAsync {
                    shared: to,
                    shared_index: at(),
                    global: from,
                    global_index: at(),
                    bytes,
                    valid,
                });
            }
        }
    }
    b.push(Stmt::CpAsyncCommit);
    b.push(Stmt::CpAsyncWait { pending: 0 });
    b.push(Stmt::Barrier);
    let acc = b.array("acc", DType::F32, 8, Some(Expr::float(f32::NEG_INFINITY)));
    for (dtype, shared) in [(DType::F16, stage), (DType::BF16, tile)] {
        let a = b.array("a", DType::U32, 4, None);
        let bb = b.array("b", DType::U32, 4, None);
        for count in [MatrixCount::X1, MatrixCount::X2, MatrixCount::X4] {
            b.push(ld_matrix(a, shared, (tid.clone() % 32) * 8, count, false));
            b.push(ld_matrix(bb, shared, (tid.clone() % 32) * 8, count, true));
        }
        let (acc_at, a_at, b_at) = (Expr::int(4), zero(), Expr::int(2));
        b.push(Stmt::Mma { dtype, acc, acc_at, a, a_at, b: bb, b_at });
    }
    let half = |mem| Expr::load(mem, zero()).cast(DType::F32);
    let v = b.let_mut("float", DType::F32, half(x) + half(y));
    for f in [
        MathFn::Exp,
        MathFn::Exp2,
        MathFn::Exp2Approx,
        MathFn::Log,
        MathFn::Sqrt,
        MathFn::Rsqrt,
        MathFn::Sin,
        MathFn::Cos,
        MathFn::Tanh,
        MathFn::Erf,
        MathFn::Abs,
    ] {
        b.assign(v, Expr::math(f, v.into()));
    }
    b.assign(v, Expr::Math(MathFn::Pow, vec![v.into(), scale.clone()]));
    b.assign(
        v,
        Expr::fma(v.into(), scale.clone(), Expr::float(1.0e-6)).min(scale.clone()).max(Expr::float(0.0)),
    );
    for mode in [ShuffleMode::Down, ShuffleMode::Up, ShuffleMode::Index, ShuffleMode::Xor] {
        b.assign(v, Expr::Shuffle(mode, Box::new(v.into()), Box::new(Expr::int(1))));
    }
    for dtype in [DType::F16, DType::BF16] {
        let pair = Expr::Pack2(dtype, Box::new(v.into()), Box::new(scale.clone()));
        b.store(words, Expr::int(0), pair);
        let rounded = Expr::Var(v).cast(dtype).cast(DType::F32);
        b.assign(v, tid.clone().eq_(Expr::int(1)).select(rounded, v.into()));
    }
    let bits = Expr::Bitcast(DType::U32, Box::new(v.into()));
    let high = Expr::Binary(BinaryOp::MulHi, Box::new(bits), Box::new(Expr::uint(0x9e37_79b9)));
    let shifted = Expr::Binary(BinaryOp::Shr, Box::new(high), Box::new(Expr::uint(3)));
    let back = Expr::Bitcast(DType::F32, Box::new(shifted));
    b.assign(v, back + Expr::elem(acc, Expr::int(4)));
    let ticket = b.atomic_add("ticket", counts, zero(), Expr::int(1));
    b.push(Stmt::Fence);
    b.push(Stmt::WarpBarrier);
    let last = b.last_block("is_last", counters, Expr::BlockIdx(Axis::Y), Expr::uint(2));
    b.if_then(last, |b| b.store(counts, Expr::int(1), Expr::int(2)));
    b.if_else(
        ticket.clone().eq_(Expr::int(3)),
        |b| b.store(out, offset.clone() + tid.clone().cast(DType::I64), v.into()),
        |b| {
            b.if_else(
                ticket.lt(Expr::int(2)),
                |b| b.store(out, tid.clone(), Expr::float(0.0)),
                |b| b.comment("nothing"),
            );
        },
    );
    b.finish()
}
