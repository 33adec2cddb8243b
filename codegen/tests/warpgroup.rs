//! Products of four warps from shared memory: text, the emulator, and what both find wrong with them.

use weft_codegen::cuda::write;
use weft_codegen::emulator::{Arg, Fault, Launch, Memory, run};
use weft_ir::dtype::DType;
use weft_ir::kernel::build::KernelBuilder;
use weft_ir::kernel::*;
use weft_ir::verify::kernel::verify;

const COLUMNS: u32 = 128;
const K: u32 = SWIZZLED_ROW;

/// What is wrong with a kernel of [`product`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Planted {
    Nothing,
    /// The accumulators are used before they were awaited.
    Early,
    /// An operand is written again before the products were awaited.
    Overwritten,
    /// The same, with what it was: nothing shows but the race.
    Again,
    /// Operands are not shown to products.
    Unshown,
    /// No fence of the registers.
    Unfenced,
    /// Results are not awaited.
    Forgotten,
    /// An operand begins at the second row of a swizzled pattern.
    Shifted,
    /// An operand's array is not aligned as swizzled rows are.
    Unaligned,
    /// The operand's place differs between the lanes of a warp.
    Scattered,
    /// No whole eight columns.
    Columns,
    /// Elements along k beyond the row.
    Offset,
    /// A block of three warps.
    Threads,
    /// Some threads alone start products.
    Divergent,
}

/// c[64, 128] = a[64, 64] b[128, 64]ᵀ, by four warps.
fn product(dtype: DType, planted: Planted) -> Kernel {
    let threads = if planted == Planted::Threads { 96 } else { 128 };
    let mut b = KernelBuilder::new("product", threads);
    b.doc("c[64, 128] = a[64, 64] b[128, 64]");
    let a = b.pointer("a", dtype, Access::Read);
    let bm = b.pointer("b", dtype, Access::Read);
    let c = b.pointer("c", DType::F32, Access::Write);
    let tile_a = match planted {
        Planted::Unaligned => b.shared("tile_a", dtype, 64 * K),
        _ => b.swizzled("tile_a", dtype, 64),
    };
    let tile_b = b.swizzled("tile_b", dtype, COLUMNS);
    let thread = b.let_("thread", DType::I32, Expr::ThreadIdx);
    for (from, to, rows) in [(a, tile_a, 64), (bm, tile_b, COLUMNS)] {
        let range = (thread.clone(), Expr::int(i64::from(rows * K)), Expr::int(i64::from(threads)));
        b.for_loop("i", range, Unroll::Never, |b, i| {
            let (row, k) = (i.clone() / i64::from(K), i.clone() % i64::from(K));
            let place = (k.clone() / 8).xor(row.clone() % 8) * 8 + k % 8;
            b.store(Mem::Shared(to), row * i64::from(K) + place, Expr::load(from, i));
        });
    }
    if planted != Planted::Unshown {
        b.push(Stmt::AsyncProxyFence);
    }
    b.push(Stmt::Barrier);
    let acc = b.array("acc", DType::F32, COLUMNS / 2, Some(Expr::float(0.0)));
    let out = b.array("first", DType::F32, 1, None);
    if planted != Planted::Unfenced {
        b.push(Stmt::WgmmaFence);
    }
    let start = |b: &mut KernelBuilder| {
        for kk in 0..4 {
            let at = || match planted {
                Planted::Scattered => thread.clone() % 4 * i64::from(K),
                Planted::Shifted => Expr::int(i64::from(K)),
                _ => Expr::int(0),
            };
            let columns = if planted == Planted::Columns { 12 } else { COLUMNS };
            let k = if planted == Planted::Offset { 64 } else { kk * 16 };
            b.push(Stmt::Wgmma { dtype, acc, columns, a: tile_a, a_at: at(), b: tile_b, b_at: at(), k });
        }
        b.push(Stmt::WgmmaCommit);
    };
    match planted {
        Planted::Divergent => b.if_then(thread.clone().lt(Expr::int(64)), start),
        _ => start(&mut b),
    }
    if planted == Planted::Early {
        b.assign_elem(out, Expr::int(0), Expr::elem(acc, Expr::int(0)));
    }
    if matches!(planted, Planted::Overwritten | Planted::Again) {
        let value = match planted {
            Planted::Again => Expr::load(Mem::Shared(tile_a), thread.clone() * 8),
            _ => Expr::float(0.0).cast(dtype),
        };
        b.store(Mem::Shared(tile_a), thread.clone() * 8, value);
    }
    if planted != Planted::Forgotten {
        b.push(Stmt::WgmmaWait { pending: 0, acc });
    }
    if planted != Planted::Early {
        b.assign_elem(out, Expr::int(0), Expr::elem(acc, Expr::int(0)));
    }
    b.assign_elem(acc, Expr::int(0), Expr::elem(out, Expr::int(0)));
    let row = thread.clone() / 32 * 16 + thread.clone() % 32 / 4;
    let column = thread % 4 * 2;
    b.unrolled("i", COLUMNS / 2, |b, i| {
        let r = row + i.clone() / 2 % 2 * 8;
        let c_at = column + i.clone() / 4 * 8 + i.clone() % 2;
        b.store(c, r * i64::from(COLUMNS) + c_at, Expr::elem(acc, i));
    });
    b.finish()
}

/// Whether the emulator's result is the product.
fn is_right(dtype: DType, planted: Planted) -> Result<bool, Fault> {
    let wave = |n: usize, by: f32| -> Vec<f32> { (0..n).map(|i| (i as f32 * by).sin()).collect() };
    let mut m = Memory::new();
    let (a, b) = (m.floats(dtype, &wave(64 * 64, 0.37)), m.floats(dtype, &wave(128 * 64, 0.11)));
    let c = m.uninitialised(DType::F32, 64 * 128);
    let args = [a, b, c].map(Arg::Buffer).to_vec();
    run(&product(dtype, planted), &Launch { grid: [1, 1, 1], args }, &mut m)?;
    let read =
        |m: &Memory, at| -> Vec<f32> { m.read_floats(at).into_iter().map(|v| v.expect("written")).collect() };
    let (a, b) = (read(&m, a), read(&m, b));
    Ok(read(&m, c).into_iter().enumerate().all(|(i, got)| {
        let dot: f64 = (0..64).map(|k| f64::from(a[i / 128 * 64 + k]) * f64::from(b[i % 128 * 64 + k])).sum();
        (f64::from(got) - dot).abs() < 1e-4
    }))
}

#[test]
fn four_warps_multiply_what_is_swizzled() {
    for dtype in [DType::BF16, DType::F16] {
        let facts = verify(&product(dtype, Planted::Nothing)).expect("verifies");
        assert!(facts.wgmma && !facts.mma);
        assert_eq!(is_right(dtype, Planted::Nothing), Ok(true), "{dtype}");
    }
}

#[test]
fn the_emulator_sees_what_the_hardware_would_not() {
    for (planted, what) in [
        (Planted::Early, "`acc` is read before it is written"),
        (Planted::Overwritten, "races with"),
        (Planted::Again, "races with"),
        (Planted::Unshown, "without a fence of the proxies"),
        (Planted::Unfenced, "without a fence of its registers"),
        (Planted::Forgotten, "read before it is written"),
        (Planted::Shifted, "not in the first row of eight"),
    ] {
        let fault = is_right(DType::BF16, planted).expect_err(what).to_string();
        assert!(fault.contains(what), "{what}: {fault}");
    }
}

#[test]
fn the_verifier_names_what_cannot_be() {
    let faults = |planted| {
        let faults = verify(&product(DType::BF16, planted)).expect_err("a fault");
        faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    for (planted, what) in [
        (Planted::Unaligned, "aligned to 16 bytes, must be 1024"),
        (Planted::Scattered, "place of an operand of wgmma differs"),
        (Planted::Columns, "wgmma of 12 columns"),
        (Planted::Offset, "wgmma from element 64 of a row"),
        (Planted::Threads, "blocks of 96 threads"),
        (Planted::Divergent, "wgmma under a condition"),
    ] {
        let all = faults(planted);
        assert!(all.contains(what), "{what}: {all}");
    }
}

#[test]
fn its_text() {
    let text = write(&product(DType::BF16, Planted::Nothing)).expect("writes");
    let has = |what: &str| assert!(text.contains(what), "{what}: {text}");
    has("__shared__ __align__(1024) bf16 tile_a[4096];");
    has("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16");
    has("wgmma_m64n128k16_bf16(acc, tile_a, tile_b, 16);");
    has("wgmma_wait<0, 64>(acc);");
}
