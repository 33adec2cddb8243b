//! Matrix products that reduce over the rows they make: norms of residual sums, stored with or without the sum.
//! Each kernel on the emulator against the f64 reference, and through NVRTC without spills.

use weft_ir::dtype::DType;
use weft_ir::ids::OperandId;
use weft_ir::plan::{BufferKind, Compute, MatMul, RowEpilogue, Scalar, Schedule, Stage};
use weft_ir::scalar::{Binary, Reduce, Unary};
use weft_ir::shape::Dim;
use weft_testsuite::product::{Maker, TOKENS, at, load_at, op, store};

/// Σ / n of a stage.
fn mean(stage: u8, n: usize) -> Scalar {
    op(Binary::Div, Scalar::Reduced(stage), Scalar::Float(n as f32))
}

fn rsqrt(x: Scalar) -> Scalar {
    Scalar::unary(Unary::Rsqrt, op(Binary::Add, x, Scalar::Float(1e-5)))
}

fn sum(value: Scalar) -> Stage {
    Stage { op: Reduce::Sum, value }
}

/// acc + bias + residual, its LayerNorm, and the sum itself where `both` is set.
fn layer_norm(n: usize, k: usize, rows: usize, both: bool) -> (Maker, MatMul) {
    let mut mk = Maker::default();
    let x = mk.floats("x", DType::BF16, &[rows, k], 1.0);
    let b = mk.floats("w", DType::BF16, &[n, k], 0.2);
    let bias = mk.floats("w_bias", DType::BF16, &[n], 1.0);
    let residual = mk.floats("residual", DType::BF16, &[rows, n], 1.0);
    let [gamma, beta] = ["w_gamma", "w_beta"].map(|name| mk.floats(name, DType::BF16, &[n], 1.0));
    let row = vec![TOKENS, Dim::Const(n)];
    mk.write("y", DType::BF16, row.clone(), BufferKind::Output("y".into()));
    let here = [at(0), at(1)];
    let value =
        op(Binary::Add, op(Binary::Add, Scalar::Acc(0), load_at(bias, &[at(1)])), load_at(residual, &here));
    let centred = || op(Binary::Sub, Scalar::Acc(0), mean(0, n));
    let stages = vec![sum(Scalar::Acc(0)), sum(op(Binary::Mul, centred(), centred()))];
    let scaled = op(Binary::Mul, op(Binary::Mul, centred(), rsqrt(mean(1, n))), load_at(gamma, &[at(1)]));
    let mut stores = vec![store(0, &here, op(Binary::Add, scaled, load_at(beta, &[at(1)])), None)];
    if both {
        mk.write("sum", DType::F32, row, BufferKind::Output("sum".into()));
        stores.push(store(1, &here, Scalar::Acc(0), None));
    }
    (mk, product((n, k), (x, b), RowEpilogue { value, stages }, stores))
}

fn product(
    (n, k): (usize, usize),
    (x, b): (OperandId, OperandId),
    row: RowEpilogue,
    stores: Vec<weft_ir::plan::Store>,
) -> MatMul {
    let a = load_at(x, &[at(0), at(1)]);
    MatMul { m: TOKENS, n, group: 1, k, a, b, stages: vec![], row: Some(row), stores, draw: None }
}

/// As scheduled for few rows, and in blocks of 32.
fn check(make: &dyn Fn(usize) -> (Maker, MatMul)) {
    for rows in [1, 16, 21] {
        let (maker, m) = make(rows);
        maker.check(&m, rows, &|s| assert!(matches!(s, Schedule::Gemm { tile_m: 16, .. }), "{s:?}"));
    }
    let (maker, m) = make(37);
    maker.check(&m, 37, &|s| {
        if let Schedule::Gemm { tile_m, warps_m, .. } = s {
            (*tile_m, *warps_m) = (32, 2);
        }
    });
}

/// One warp a row, warps that cover it exactly, and columns past its end.
#[test]
fn layer_norm_of_a_residual_sum() {
    for (n, k) in [(16, 40), (48, 64), (100, 72)] {
        check(&|rows| layer_norm(n, k, rows, n == 48));
    }
}

/// MiniLM's rows, and the longest.
#[test]
fn long_rows() {
    for (n, k) in [(384, 64), (512, 32)] {
        let (maker, m) = layer_norm(n, k, 19, true);
        maker.check(&m, 19, &|_| {});
    }
}

/// A softmax over the row: the stages are a maximum, and a sum of what is shifted by it.
#[test]
fn softmax_of_a_row() {
    let (n, k) = (40, 48);
    check(&|rows| {
        let mut mk = Maker::default();
        let x = mk.floats("x", DType::BF16, &[rows, k], 1.0);
        let b = mk.floats("w", DType::BF16, &[n, k], 0.2);
        mk.write("y", DType::F32, vec![TOKENS, Dim::Const(n)], BufferKind::Output("y".into()));
        let shifted = || Scalar::unary(Unary::Exp, op(Binary::Sub, Scalar::Acc(0), Scalar::Reduced(0)));
        let stages = vec![Stage { op: Reduce::Max, value: Scalar::Acc(0) }, sum(shifted())];
        let value = op(Binary::Div, shifted(), Scalar::Reduced(1));
        let stores = vec![store(0, &[at(0), at(1)], value, None)];
        (mk, product((n, k), (x, b), RowEpilogue { value: Scalar::Acc(0), stages }, stores))
    });
}

#[test]
fn a_block_without_the_whole_row_is_a_fault() {
    let (maker, good) = layer_norm(48, 64, 16, false);
    let plan = maker.plan(good.clone(), 16, &|_| {});
    let fault = |change: &dyn Fn(&mut weft_ir::plan::Plan)| {
        let mut plan = plan.clone();
        change(&mut plan);
        let faults = weft_ir::verify::plan::verify(&plan).expect_err("a fault");
        faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    let narrow = fault(&|p| {
        if let Schedule::Gemm { tile_n, warps_n, .. } = &mut p.kernels[0].schedule {
            (*tile_n, *warps_n) = (32, 2);
        }
    });
    assert!(narrow.contains("no block makes a whole row of 48 columns"), "{narrow}");
    let early = fault(&|p| {
        let mut m = good.clone();
        if let Some(row) = &mut m.row {
            row.stages[0].value = Scalar::Reduced(1);
        }
        p.works[0].compute = Compute::MatMul(m);
    });
    assert!(early.contains("stage 1 of 0"), "{early}");
}
