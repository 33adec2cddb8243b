//! Tiles that are copied to the stages of a ring: text, the emulator, and what both find wrong with them.

use weft_codegen::cuda::write;
use weft_codegen::emulator::{Arg, Fault, Launch, Memory, run};
use weft_ir::dtype::DType;
use weft_ir::kernel::build::KernelBuilder;
use weft_ir::kernel::*;
use weft_ir::verify::kernel::verify;

const ROWS: usize = 70;
const COLUMNS: usize = 136;
const TILE: u32 = 64;
const STEPS: i64 = 3;

/// What is wrong with a kernel of [`row_sums`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Planted {
    Nothing,
    /// Tiles are used before they are awaited.
    Early,
    /// A stage is filled again before it was awaited.
    Twice,
    /// A stage is filled again, and no barrier is behind its use.
    Unordered,
    /// The wrong round of a stage is awaited.
    Round,
    /// More bytes are announced than come.
    Short,
    /// A tile begins within eight rows.
    Shifted,
    /// A last tile is never awaited.
    Left,
    /// No stage is made.
    Unmade,
    /// Nothing is awaited.
    Unawaited,
    /// A tile of an array that is no matrix.
    Pointer,
    /// A matrix is read as an array.
    Element,
    /// The tile's array is not aligned as swizzled rows are.
    Unaligned,
    /// Half of the threads fill.
    Divergent,
    /// A tile of what another kernel writes, before the wait for it.
    Ahead,
}

/// sums[r] = the sum of row r of a, which is read in tiles of 64 × 64 by two stages.
fn row_sums(planted: Planted) -> Kernel {
    let mut b = KernelBuilder::new("row_sums", TILE);
    let size = (COLUMNS as u32, TILE);
    let a = match planted {
        Planted::Pointer => b.pointer("a", DType::BF16, Access::Read),
        _ => b.matrix("a", DType::BF16, Access::Read, size),
    };
    let sums = b.pointer("sums", DType::F32, Access::Write);
    let tile = match planted {
        Planted::Unaligned => b.shared("tile", DType::BF16, 2 * TILE * TILE),
        _ => b.swizzled("tile", DType::BF16, 2 * TILE),
    };
    let ring = b.ring("full", 2);
    let row = b.let_("first_row", DType::I32, Expr::BlockIdx(Axis::X) * i64::from(TILE));
    if planted != Planted::Unmade {
        b.push(Stmt::MakeRing { ring });
    }
    b.push(Stmt::Barrier);
    if planted != Planted::Ahead {
        b.push(Stmt::GridDependencyWait);
    }
    let bytes = TILE * TILE * 2 + if planted == Planted::Short { 16 } else { 0 };
    let fill = |b: &mut KernelBuilder, step: Expr| {
        let stage = step.clone() % 2;
        let shift = if planted == Planted::Shifted { 4 } else { 0 };
        let to_row = stage.clone() * i64::from(TILE) + shift;
        let from = TileCopy { to: tile, to_row, from: a, row: row.clone(), column: step * i64::from(TILE) };
        b.push(Stmt::FillStage { ring, stage, bytes, tiles: vec![from] });
    };
    match planted {
        Planted::Divergent => {
            b.if_then(Expr::ThreadIdx.lt(Expr::int(32)), |b| fill(b, Expr::int(0)));
        }
        _ => fill(&mut b, Expr::int(0)),
    }
    if planted == Planted::Ahead {
        b.push(Stmt::GridDependencyWait);
    }
    let sum = b.let_mut("sum", DType::F32, Expr::float(0.0));
    let range = (Expr::int(0), Expr::int(STEPS), Expr::int(1));
    b.for_loop("step", range, Unroll::Never, |b, step| {
        let ahead = if planted == Planted::Twice { 0 } else { 1 };
        let more = if planted == Planted::Left { STEPS } else { STEPS - 1 };
        b.if_then(step.clone().lt(Expr::int(more)), |b| fill(b, step.clone() + ahead));
        let shift = if planted == Planted::Round { 1 } else { 0 };
        let wait = Stmt::AwaitStage { ring, stage: step.clone() % 2, round: step.clone() / 2 + shift };
        if !matches!(planted, Planted::Early | Planted::Unawaited) {
            b.push(wait.clone());
        }
        b.for_loop("k", (Expr::int(0), Expr::int(i64::from(TILE)), Expr::int(1)), Unroll::Never, |b, k| {
            let place = (k.clone() / 8).xor(Expr::ThreadIdx % 8) * 8 + k % 8;
            let at = (step.clone() % 2 * i64::from(TILE) + Expr::ThreadIdx) * i64::from(TILE) + place;
            let x = match planted {
                Planted::Element => Expr::load(a, at),
                _ => Expr::load(Mem::Shared(tile), at),
            };
            b.assign(sum, Expr::Var(sum) + x.cast(DType::F32));
        });
        if planted == Planted::Early {
            b.push(wait);
        }
        if planted != Planted::Unordered {
            b.push(Stmt::Barrier);
        }
    });
    let r = row + Expr::ThreadIdx;
    b.if_then(r.clone().lt(Expr::int(ROWS as i64)), |b| b.store(sums, r, sum.into()));
    b.finish()
}

/// Whether the emulator's result is the sums.
fn is_right(planted: Planted) -> Result<bool, Fault> {
    let mut m = Memory::new();
    let values: Vec<f32> = (0..ROWS * COLUMNS).map(|i| (i % 17) as f32 - 5.0).collect();
    let (a, sums) = (m.floats(DType::BF16, &values), m.uninitialised(DType::F32, ROWS));
    let args = [a, sums].map(Arg::Buffer).to_vec();
    run(&row_sums(planted), &Launch { grid: [2, 1, 1], args }, &mut m)?;
    let wanted = values.chunks(COLUMNS).map(|row| Some(row.iter().sum::<f32>()));
    Ok(m.read_floats(sums).into_iter().eq(wanted))
}

#[test]
fn tiles_come_by_two_stages() {
    let facts = verify(&row_sums(Planted::Nothing)).expect("verifies");
    assert!(facts.tiles && !facts.bulk && !facts.cp_async);
    assert_eq!(is_right(Planted::Nothing), Ok(true));
}

#[test]
fn the_emulator_sees_what_the_hardware_would_not() {
    for (planted, what) in [
        (Planted::Early, "copy"),
        (Planted::Twice, "filled again before it was awaited"),
        (Planted::Unordered, "races with"),
        (Planted::Round, "is awaited in round 1, and 0 were before"),
        (Planted::Short, "8208"),
        (Planted::Shifted, "to row 4 of shared memory"),
        (Planted::Left, "on their way as the block ends"),
        (Planted::Ahead, "before"),
    ] {
        let fault = is_right(planted).expect_err(what).to_string();
        assert!(fault.contains(what), "{what}: {fault}");
    }
}

#[test]
fn the_verifier_names_what_cannot_be() {
    for (planted, what) in [
        (Planted::Unmade, "`full` is used before it is made"),
        (Planted::Unawaited, "`full` is filled or awaited, but not both"),
        (Planted::Pointer, "a tile of `a`, which is no matrix"),
        (Planted::Element, "`a` is no array but used as one"),
        (Planted::Unaligned, "aligned to 16 bytes, must be 1024"),
        (Planted::Divergent, "filling of a stage under a condition"),
        (Planted::Ahead, "`a` is accessed before the grid dependency wait"),
    ] {
        let faults = verify(&row_sums(planted)).expect_err("a fault");
        let all = faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        assert!(all.contains(what), "{what}: {all}");
    }
    let narrow = {
        let mut b = KernelBuilder::new("narrow", 32);
        b.matrix("a", DType::F32, Access::Read, (20, 300));
        b.ring("full", 0);
        verify(&b.finish()).expect_err("faults").iter().map(ToString::to_string).collect::<String>()
    };
    assert!(narrow.contains("ring `full` of 0 stages") && narrow.contains("20 columns in tiles of 300 rows"));
}

#[test]
fn its_text() {
    let text = write(&row_sums(Planted::Nothing)).expect("writes");
    let has = |what: &str| assert!(text.contains(what), "{what}: {text}");
    has("const __grid_constant__ tensor_map a");
    has("__shared__ unsigned long long full[2];");
    has("make_ring(full, 2);");
    has("begin_filling(&full[(step + 1) % 2], 8192);");
    has("copy_tile(&tile[(step + 1) % 2 * 64 * 64], a, (step + 1) * 64, first_row, &full[(step + 1) % 2]);");
    has("await_stage(&full[step % 2], step / 2 % 2);");
}
