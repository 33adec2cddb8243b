//! Matrix products with all that fuses into them, one kernel a plan: merged outputs, norms, gated
//! activations, rotations with cache writes. Each kernel on the emulator against the f64 reference, and
//! through NVRTC without spills.

use weft_ir::dtype::DType;
use weft_ir::ids::OperandId;
use weft_ir::plan::{BufferKind, Compute, MatMul, Scalar, Schedule, Stage};
use weft_ir::scalar::{Binary, Reduce, Unary};
use weft_ir::shape::Dim;
use weft_testsuite::product::{self, Maker, TOKENS, at, less, load_at, norm, not, op, rounded, store};

#[test]
fn plain() {
    for (n, k) in [(37, 80), (16, 576), (5, 33), (70, 1032)] {
        Maker::check_all(&|rows| product::plain(n, k, rows));
    }
}

/// Tiles of at most 16 rows, as wide and deep as prompts of any shape make them.
#[test]
fn short_prompts() {
    let tiles = [
        (16, 528, 1, 3),
        (16, 64, 4, 9),
        (16, 32, 2, 8),
        (32, 256, 8, 3),
        (32, 80, 5, 2),
        (64, 128, 8, 3),
        (64, 64, 2, 5),
    ];
    for (columns, depth, parts, ahead) in tiles {
        for (rows, n, k) in [(16, 70, 520), (9, 33, 72)] {
            let (maker, m) = product::plain(n, k, rows);
            maker.check(&m, rows, &|schedule| match schedule {
                Schedule::Gemm { tile_m: 16, tile_n, tile_k, warps_m: 1, warps_n, warps_k, stages } => {
                    (*tile_n, *tile_k, *warps_n, *warps_k, *stages) = (columns, depth, 1, parts, ahead);
                }
                other => panic!("{other:?}"),
            });
        }
    }
}

/// Tiles that compute their left operand: a norm's f32 row and 16-bit weights, with the sum beside the products, as wide
/// and deep as short steps make them.
#[test]
fn norms_in_tiles() {
    let tiles = [
        [16, 16, 64, 1, 1, 4, 10],
        [16, 16, 128, 1, 1, 8, 5],
        [16, 32, 528, 1, 1, 3, 1],
        [16, 64, 80, 1, 1, 5, 3],
        [16, 128, 64, 1, 2, 4, 4],
        [16, 64, 128, 1, 4, 1, 3],
        [32, 64, 64, 2, 2, 1, 3],
        [32, 128, 64, 2, 4, 1, 3],
        [32, 64, 64, 2, 2, 2, 3],
        [64, 64, 32, 2, 2, 1, 4],
        [64, 128, 32, 2, 4, 1, 4],
    ];
    for [tile_m, tile_n, tile_k, warps_m, warps_n, warps_k, stages] in tiles {
        for (rows, n, k) in [(16, 35, 520), (9, 17, 72), (tile_m as usize + 5, 70, 136)] {
            let (maker, m) = product::gated_after_norm(n, k, rows);
            maker.check(&rounded(m), rows.max(9), &|schedule| {
                assert!(matches!(schedule, Schedule::Gemm { .. }), "{schedule:?}");
                *schedule = Schedule::Gemm { tile_m, tile_n, tile_k, warps_m, warps_n, warps_k, stages };
            });
        }
    }
}

/// A sum of arrays, of rows that are looked up, with the largest element of a row beside the products; what an expression
/// makes of the zeros behind the end of a row does not count.
#[test]
fn computed_operands_in_tiles() {
    for (rows, n, k) in [(16, 35, 72), (37, 70, 264), (11, 130, 520)] {
        let mut mk = Maker::default();
        let x = mk.floats("x", DType::F32, &[rows + 3, k], 1.0);
        let y = mk.floats("y", DType::BF16, &[rows, k], 1.0);
        let places = mk.ints("places", (0..rows).map(|r| (r * 7 % (rows + 3)) as i32).collect());
        let b = mk.floats("w", DType::BF16, &[n, k], 0.2);
        mk.write("z", DType::F32, vec![TOKENS, Dim::Const(n)], BufferKind::Output("z".into()));
        let x = || load_at(x, &[load_at(places, &[at(0)]), at(1)]);
        let a = op(Binary::Add, op(Binary::Div, x(), load_at(y, &[at(0), at(1)])), Scalar::Float(3.0));
        let a = op(Binary::Min, op(Binary::Max, a, Scalar::Float(-4.0)), Scalar::Float(4.0));
        let largest = Stage { op: Reduce::Max, value: op(Binary::Sub, x(), Scalar::Float(5.0)) };
        let value = op(Binary::Add, Scalar::Acc(0), Scalar::Reduced(0));
        let stores = vec![store(0, &[at(0), at(1)], value, None)];
        let stages = vec![largest];
        let m = MatMul { m: TOKENS, n, group: 1, k, a, b, stages, row: None, stores, draw: None };
        mk.check(&rounded(m), rows, &|s| assert!(matches!(s, Schedule::Gemm { .. }), "{s:?}"));
    }
}

/// What tiles cannot compute is left to the skinny kernels, and said.
#[test]
fn what_tiles_do_not_compute() {
    let why = |m: MatMul, maker: &Maker| {
        let plan = maker.plan(m, 24, &|s| assert!(matches!(s, Schedule::Gemv { .. }), "{s:?}"));
        plan.kernels[0].fallback.clone().expect("a reason")
    };
    let (maker, m) = product::gated_after_norm(21, 136, 24);
    assert!(why(m, &maker).contains("not rounded to bf16"));
    let (maker, m) = after_norm(21, 136, 24, true);
    assert!(why(rounded(m), &maker).contains("a pass over the row of its own"));
    let (maker, mut m) = product::gated_after_norm(21, 136, 24);
    m.a = op(Binary::Mul, m.a, load_at(OperandId::new(0), &[at(0), Scalar::Int(0)]));
    assert!(why(rounded(m), &maker).contains("reads what is not along k"));
    let (maker, mut m) = product::gated_after_norm(21, 136, 24);
    m.a = load_at(OperandId::new(0), &[at(0), op(Binary::Sub, Scalar::Int(135), at(1))]);
    assert!(why(rounded(m), &maker).contains("not read along k"));
}

#[test]
fn f32_operands() {
    let (n, k) = (19, 100);
    Maker::check_all(&|rows| {
        let mut mk = Maker::default();
        let x = mk.floats("x", DType::F32, &[rows, k], 1.0);
        let b = mk.floats("w", DType::F32, &[n, k], 0.2);
        mk.write("y", DType::F32, vec![TOKENS, Dim::Const(n)], BufferKind::Output("y".into()));
        let stores = vec![store(0, &[at(0), at(1)], Scalar::Acc(0), None)];
        let a = load_at(x, &[at(0), at(1)]);
        (mk, MatMul { m: TOKENS, n, group: 1, k, a, b, stages: vec![], row: None, stores, draw: None })
    });
}

/// Rows of b alternate gate and up.
#[test]
fn gated_activation_after_a_norm() {
    Maker::check_all(&|rows| product::gated_after_norm(21, 136, rows));
}

/// A thread computes more of a row than it has loads in flight, and not a multiple.
#[test]
fn rows_of_five_turns() {
    let (maker, m) = product::gated_after_norm(5, 1280, 2);
    maker.check(&m, 2, &|s| {
        if let Schedule::Gemv { warps, lanes, split, columns, depth, blocks, .. } = s {
            (*warps, *lanes, *split, *columns, *depth, *blocks) = (2, 32, 1, 2, 2, 3);
        }
    });
}

/// The left operand is a LayerNorm, or what one takes from its mean, scaled behind the product.
#[test]
fn after_a_layer_norm() {
    for (n, k) in [(21, 136), (7, 768), (5, 100)] {
        for scaled_before in [true, false] {
            Maker::check_all(&|rows| after_norm(n, k, rows, scaled_before));
        }
    }
}

fn after_norm(n: usize, k: usize, rows: usize, scaled_before: bool) -> (Maker, MatMul) {
    let mut mk = Maker::default();
    let x = mk.floats("x", DType::F32, &[rows, k], 1.0);
    let gamma = mk.floats("w_norm", DType::BF16, &[k], 1.0);
    let beta = mk.floats("w_shift", DType::BF16, &[k], 0.3);
    let b = mk.floats("w", DType::BF16, &[n, k], 0.2);
    mk.write("y", DType::BF16, vec![TOKENS, Dim::Const(n)], BufferKind::Output("y".into()));
    let sum = |value| Stage { op: Reduce::Sum, value };
    let mean = |stage| op(Binary::Div, Scalar::Reduced(stage), Scalar::Float(k as f32));
    // A mean that is far from zero.
    let e = op(Binary::Add, load_at(x, &[at(0), at(1)]), Scalar::Float(3.0));
    let centred = op(Binary::Sub, e.clone(), mean(0));
    let stages = vec![sum(e), sum(op(Binary::Mul, centred.clone(), centred.clone()))];
    let scale = Scalar::unary(Unary::Rsqrt, op(Binary::Add, mean(1), Scalar::Float(1e-5)));
    let gamma = load_at(gamma, &[at(1)]);
    let (a, value) = match scaled_before {
        true => {
            let scaled = op(Binary::Mul, op(Binary::Mul, centred, scale), gamma);
            (op(Binary::Add, scaled, load_at(beta, &[at(1)])), Scalar::Acc(0))
        }
        false => (op(Binary::Mul, centred, gamma), op(Binary::Mul, Scalar::Acc(0), scale)),
    };
    let stores = vec![store(0, &[at(0), at(1)], value, None)];
    let m = MatMul { m: TOKENS, n, group: 1, k, a, b, stages, row: None, stores, draw: None };
    assert_eq!(m.passes(), (vec![0, 1], if scaled_before { 2 } else { 1 }));
    (mk, m)
}

/// Blocks that an SM is to hold bound a thread's registers, and change nothing else.
#[test]
fn resident_blocks_are_launch_bounds() {
    let (maker, m) = product::plain(300, 512, 1);
    let source = |blocks: u32| {
        let plan = maker.plan(m.clone(), 1, &|s| match s {
            Schedule::Gemv { warps, resident, .. } => (*warps, *resident) = (8, blocks),
            other => panic!("{other:?}"),
        });
        weft_codegen::emit(&plan).expect("emits").remove(0).source
    };
    let (one, two, four) = (source(1), source(2), source(4));
    assert!(one.contains("__launch_bounds__(256) "), "{one}");
    assert!(two.contains("__launch_bounds__(256, 2) "), "{two}");
    let body = |source: &str| {
        source.split_once("__launch_bounds__").and_then(|(_, s)| s.split_once(") ")).map(|s| s.1.to_owned())
    };
    assert!(four.contains("__launch_bounds__(256, 4) ") && body(&four) == body(&two), "{four}");
    assert_eq!(body(&one), body(&two));
    maker.check(&m, 1, &|s| {
        if let Schedule::Gemv { warps, resident, .. } = s {
            (*warps, *resident) = (8, 2);
        }
    });
}

/// The first loads that a schedule puts behind the wait start between those of the left operand and its first use,
/// whether it is copied or computed.
#[test]
fn loads_start_behind_those_of_the_left_operand() {
    let kinds = [
        (product::plain(300, 512, 1), "copy_async_commit();"),
        (product::gated_after_norm(300, 512, 1), ">(&x["),
    ];
    for ((maker, m), started) in kinds {
        let plan = maker.plan(m, 1, &|s| {
            let Schedule::Gemv { warps, lanes, split, columns, depth, behind, .. } = s else {
                panic!("{s:?}")
            };
            (*warps, *lanes, *split, *columns, *depth, *behind) = (8, 32, 2, 4, 1, 3);
        });
        let source = weft_codegen::emit(&plan).expect("emits").remove(0).source;
        let (before, after) = source.split_once("grid_dependency_wait();\n    ").expect("a wait");
        let (start, rest) = after.split_once("__syncthreads();").expect("a barrier");
        let loads =
            |text: &str| text.lines().filter(|l| l.contains("&w[") && l.contains("load_once_16")).count();
        assert_eq!((loads(before), loads(start)), (1, 3), "{source}");
        let at = |text: &str| start.find(text).unwrap_or_else(|| panic!("no {text} in {start}"));
        assert!(at(started) < at("load_once_16"), "{start}");
        assert!(rest.contains("acc["), "{rest}");
    }
}

/// A plain left operand with a group: what the tensor-core kernel takes too.
#[test]
fn gated_activation() {
    let (n, k) = (27, 64);
    Maker::check_all(&|rows| {
        let mut mk = Maker::default();
        let x = mk.floats("x", DType::BF16, &[rows, k], 1.0);
        let b = mk.floats("w", DType::BF16, &[2 * n, k], 0.2);
        mk.write("y", DType::BF16, vec![TOKENS, Dim::Const(n)], BufferKind::Output("y".into()));
        let value = op(Binary::Mul, Scalar::unary(Unary::Silu, Scalar::Acc(0)), Scalar::Acc(1));
        let stores = vec![store(0, &[at(0), at(1)], value, None)];
        let a = load_at(x, &[at(0), at(1)]);
        (mk, MatMul { m: TOKENS, n, group: 2, k, a, b, stages: vec![], row: None, stores, draw: None })
    });
}

/// Queries, keys and values in one product: rows of a head alternate element i and i + half, which a
/// rotation mixes; keys and values go to the slots of their tokens.
#[test]
fn merged_projections_with_rotation_and_cache_write() {
    let (heads, kv_heads, half, k, slots) = (3, 1, 4, 72, 64);
    let (q, kv) = (heads * half, kv_heads * half);
    let n = q + 2 * kv;
    for normed in [true, false] {
        Maker::check_all(&|rows| {
            let mut mk = Maker::default();
            let x = mk.floats("x", DType::BF16, &[rows, k], 1.0);
            let gamma = mk.floats("w_norm", DType::BF16, &[k], 1.0);
            let b = mk.floats("w", DType::BF16, &[2 * n, k], 0.2);
            let cos = mk.floats("w_cos", DType::F32, &[64, half], 1.0);
            let sin = mk.floats("w_sin", DType::F32, &[64, half], 1.0);
            // The last token is padding: its slot is negative.
            let slot =
                mk.ints("slots", (0..rows).map(|r| if r == 4 { -1 } else { 3 * r as i32 % 64 }).collect());
            let shape = |heads: usize, first| vec![first, Dim::Const(heads), Dim::Const(2 * half)];
            mk.write("q", DType::BF16, shape(heads, TOKENS), BufferKind::Output("q".into()));
            for name in ["keys", "values"] {
                let dims = shape(kv_heads, Dim::Const(slots));
                mk.write(name, DType::BF16, dims, BufferKind::State(name.into()));
            }
            let (a, stages, scale) = norm(x, gamma, k);
            let (a, stages) = if normed { (a, stages) } else { (load_at(x, &[at(0), at(1)]), vec![]) };
            let acc =
                |i| if normed { op(Binary::Mul, Scalar::Acc(i), scale.clone()) } else { Scalar::Acc(i) };
            let int = |n: usize| Scalar::Int(n as i64);
            let position = load_at(slot, &[at(0)]);
            let position = op(Binary::Max, position, int(0));
            let mut stores = Vec::new();
            let parts = [(0, 0, q), (1, q, q + kv), (2, q + kv, n)];
            for (output, from, to) in parts {
                let local = op(Binary::Sub, at(1), int(from));
                let (head, i) =
                    (op(Binary::Div, local.clone(), int(half)), op(Binary::Rem, local, int(half)));
                let angle = |t| load_at(t, &[position.clone(), i.clone()]);
                let turned = [
                    op(Binary::Sub, op(Binary::Mul, acc(0), angle(cos)), op(Binary::Mul, acc(1), angle(sin))),
                    op(Binary::Add, op(Binary::Mul, acc(1), angle(cos)), op(Binary::Mul, acc(0), angle(sin))),
                ];
                let inside = op(Binary::And, not(less(at(1), int(from))), less(at(1), int(to)));
                let slot = load_at(slot, &[at(0)]);
                let written = not(less(slot.clone(), int(0)));
                let (row, guard) = match output {
                    0 => (at(0), inside),
                    _ => (slot, op(Binary::And, inside, written)),
                };
                for (part, value) in turned.into_iter().enumerate() {
                    let value = if output == 2 { acc(part as u8) } else { value };
                    let element = op(Binary::Add, i.clone(), int(part * half));
                    stores.push(store(
                        output,
                        &[row.clone(), head.clone(), element],
                        value,
                        Some(guard.clone()),
                    ));
                }
            }
            (mk, MatMul { m: TOKENS, n, group: 2, k, a, b, stages, row: None, stores, draw: None })
        });
    }
}

#[test]
fn expressions_that_see_too_much_are_faults() {
    let mut mk = Maker::default();
    let x = mk.floats("x", DType::BF16, &[1, 8], 1.0);
    let b = mk.floats("w", DType::BF16, &[4, 8], 1.0);
    mk.write("y", DType::F32, vec![TOKENS, Dim::Const(4)], BufferKind::Output("y".into()));
    let a = load_at(x, &[at(0), at(1)]);
    let stores = vec![store(0, &[at(0), at(1)], Scalar::Acc(0), None)];
    let good =
        MatMul { m: TOKENS, n: 4, group: 1, k: 8, a, b, stages: vec![], row: None, stores, draw: None };
    let plan = mk.plan(good.clone(), 1, &|_| {});
    let fault = |m: MatMul| {
        let mut plan = plan.clone();
        plan.works[0].compute = Compute::MatMul(m);
        let faults = weft_ir::verify::plan::verify(&plan).expect_err("a fault");
        faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    let mut m = good.clone();
    m.stores[0].value = Scalar::Acc(1);
    assert!(fault(m).contains("accumulator 1 of 1"));
    let mut m = good.clone();
    m.stores[0].value = Scalar::Reduced(0);
    assert!(fault(m).contains("stage 0 of 0"));
    let mut m = good.clone();
    m.stages = vec![Stage { op: Reduce::Sum, value: Scalar::Reduced(0) }];
    assert!(fault(m.clone()).contains("stage 0 of 0"));
    m.stages[0].value = Scalar::Float(1.0);
    m.a = Scalar::Reduced(1);
    assert!(fault(m).contains("stage 1 of 1"));
    assert!(fault(MatMul { group: 2, ..good }).contains("right operand"));
}
