//! The plan interpreter: works of each kind against values from the graph interpreter or by hand.

mod cache;
#[path = "../maker/mod.rs"]
mod maker;
mod projection;
mod prologue;

use maker::*;
use std::collections::BTreeMap;
use std::time::Instant;
use weft_ir::dtype::{DType, Encoding};
use weft_ir::graph::{Input, Literal, parse};
use weft_ir::ids::OperandId;
use weft_ir::plan::*;
use weft_ir::reference::{Precision, States, StepInputs, load, load_plan, step, step_plan};
use weft_ir::scalar::{Binary, Compare, Reduce, Unary};
use weft_ir::shape::{Bindings, Dim, Sym};

fn weights(tensors: &[(&str, Vec<f32>)]) -> BTreeMap<String, Vec<u8>> {
    let bytes = |v: &Vec<f32>| v.iter().flat_map(|x| x.to_le_bytes()).collect();
    tensors.iter().map(|(n, v)| (n.to_string(), bytes(v))).collect()
}

fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let number =
        |i: u32| (i.wrapping_mul(2_654_435_761).wrapping_add(seed * 977) >> 16 & 0xff) as f32 / 64.0 - 2.0;
    (0..n as u32).map(number).collect()
}

fn run(
    plan: &Plan,
    tensors: &[(&str, Vec<f32>)],
    inputs: &StepInputs,
    states: &mut States<f64>,
    output: &str,
) -> Vec<f64> {
    let loaded = load_plan::<f64>(plan, &weights(tensors), Precision::F64).unwrap();
    let out = step_plan(plan, &loaded, 0, &BIND, inputs, states).unwrap();
    out.get(output).unwrap().to_reals().unwrap()
}

fn close(a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len());
    for (x, y) in a.iter().zip(b) {
        assert!((x - y).abs() < 1e-9, "{a:?}\n{b:?}");
    }
}

/// A norm over rows (two stages' worth of use), then a product with an epilogue, against the graph.
#[test]
fn loop_and_matmul_against_the_graph() {
    let graph = parse(
        "\
%0 = input token_ids -> i32[tokens]
%1 = weight \"embed\" -> f32[5, 6]
%2 = gather %1, %0 -> f32[tokens, 6]
%3 = mul %2, %2 -> f32[tokens, 6]
%4 = mean %3 -> f32[tokens, 1]
%5 = rsqrt %4 -> f32[tokens, 1]
%6 = broadcast %5 -> f32[tokens, 6]
%7 = mul %2, %6 -> f32[tokens, 6]
%8 = weight \"w\" -> f32[4, 6]
%9 = matmul.t %7, %8 -> f32[tokens, 4]
%10 = silu %9 -> f32[tokens, 4]
%11 = softmax %7 -> f32[tokens, 6]
output \"y\" = %10
output \"p\" = %11
",
    )
    .unwrap();
    let tensors = [("embed", numbers(30, 1)), ("w", numbers(24, 2))];
    let inputs = StepInputs { token_ids: vec![4, 0, 2], ..StepInputs::default() };
    let loaded = load::<f64>(&graph, &weights(&tensors), Precision::F64).unwrap();
    let want = step(&graph, &loaded, &BIND, &inputs, &mut States::new()).unwrap();

    let mut m = Maker::new();
    let (ids, embed, w) = (m.input(Input::TokenIds), m.weight("embed", &[5, 6]), m.weight("w", &[4, 6]));
    let x = m.buffer(DType::F32, &[TOKENS, c(6)], BufferKind::Temp);
    let y = m.output(DType::F32, &[TOKENS, c(4)], "y");
    let p = m.output(DType::F32, &[TOKENS, c(6)], "p");
    let scale = m.buffer(DType::F32, &[TOKENS], BufferKind::Temp);
    let e = || load_at(1, &[load_at(0, &[at(0)]), at(1)]);
    let rsqrt = Scalar::unary(Unary::Rsqrt, op(Binary::Div, Scalar::Reduced(0), Scalar::Float(6.0)));
    m.dispatch(
        Compute::Loop(Loop {
            domain: shape(&[TOKENS]),
            reduced: Some(c(6)),
            stages: vec![Stage { op: Reduce::Sum, value: op(Binary::Mul, e(), e()) }],
            element_stores: vec![store(0, &[at(0), at(1)], op(Binary::Mul, e(), rsqrt.clone()))],
            row_stores: vec![store(1, &[at(0)], rsqrt)],
        }),
        &[ids, embed],
        &[x, scale],
    );
    // The product reads the embedding again and scales it in its prologue.
    let a = op(Binary::Mul, load_at(1, &[load_at(0, &[at(0)]), at(1)]), load_at(3, &[at(0)]));
    m.dispatch(
        Compute::MatMul(MatMul {
            m: TOKENS,
            n: 4,
            group: 1,
            k: 6,
            a,
            b: OperandId(2),
            stages: vec![],
            row: None,
            draw: None,
            stores: vec![store(0, &[at(0), at(1)], Scalar::unary(Unary::Silu, Scalar::Acc(0)))],
        }),
        &[ids, embed, w, scale],
        &[y],
    );
    // Softmax in two stages.
    let shifted = Scalar::unary(Unary::Exp, op(Binary::Sub, load_at(0, &[at(0), at(1)]), Scalar::Reduced(0)));
    m.dispatch(
        Compute::Loop(Loop {
            domain: shape(&[TOKENS]),
            reduced: Some(c(6)),
            stages: vec![
                Stage { op: Reduce::Max, value: load_at(0, &[at(0), at(1)]) },
                Stage { op: Reduce::Sum, value: shifted.clone() },
            ],
            element_stores: vec![store(0, &[at(0), at(1)], op(Binary::Div, shifted, Scalar::Reduced(1)))],
            row_stores: Vec::new(),
        }),
        &[x],
        &[p],
    );
    let plan = m.plan();
    let none = &mut States::new();
    for name in ["y", "p"] {
        close(&run(&plan, &tensors, &inputs, none, name), &want.get(name).unwrap().to_reals().unwrap());
    }
}

/// Index arithmetic of all kinds: transposes, parts, halves swapped under a condition that guards loads.
#[test]
fn elementwise_indices_and_guards() {
    let mut m = Maker::new();
    let x = m.weight("x", &[3, 4]);
    let turned = m.output(DType::F32, &[c(4), c(3)], "turned");
    let shifted = m.output(DType::F32, &[c(3), c(4)], "shifted");
    let flat = m.output(DType::F32, &[c(12)], "flat");
    let reversed = m.output(DType::F32, &[c(3), c(4)], "reversed");
    let folded = m.output(DType::F32, &[c(3), c(4)], "folded");
    let domain = [c(3), c(4)];
    let here = load_at(0, &[at(0), at(1)]);
    // Column j − 2 where there is one, else minus column j + 2: neither load is in range everywhere.
    let less = op(Binary::Sub, at(1), Scalar::Int(2));
    let more = op(Binary::Add, at(1), Scalar::Int(2));
    let half = Scalar::Select(
        Box::new(Scalar::Compare(Compare::Lt, Box::new(at(1)), Box::new(Scalar::Int(2)))),
        Box::new(Scalar::unary(Unary::Neg, load_at(0, &[at(0), more]))),
        Box::new(load_at(0, &[at(0), less])),
    );
    let linear = op(Binary::Add, op(Binary::Mul, at(0), Scalar::Int(4)), at(1));
    let last = op(Binary::Sub, Scalar::Int(3), at(1));
    // Element i of the flat order, found by division and remainder.
    let div = |a: Scalar| op(Binary::Div, a, Scalar::Int(4));
    let rem = |a: Scalar| op(Binary::Rem, a, Scalar::Int(4));
    let stores = vec![
        store(0, &[at(1), at(0)], here.clone()),
        store(1, &[at(0), at(1)], half),
        store(2, std::slice::from_ref(&linear), here),
        store(3, &[at(0), at(1)], load_at(0, &[at(0), last])),
        store(4, &[at(0), at(1)], load_at(0, &[div(linear.clone()), rem(linear)])),
    ];
    m.dispatch(elementwise(&domain, stores), &[x], &[turned, shifted, flat, reversed, folded]);
    let plan = m.plan();
    let values: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let of =
        |name: &str| run(&plan, &[("x", values.clone())], &StepInputs::default(), &mut States::new(), name);
    close(&of("turned"), &[0.0, 4.0, 8.0, 1.0, 5.0, 9.0, 2.0, 6.0, 10.0, 3.0, 7.0, 11.0]);
    close(&of("shifted"), &[-2.0, -3.0, 0.0, 1.0, -6.0, -7.0, 4.0, 5.0, -10.0, -11.0, 8.0, 9.0]);
    let count: Vec<f64> = (0..12).map(f64::from).collect();
    close(&of("flat"), &count);
    close(&of("folded"), &count);
    close(&of("reversed"), &[3.0, 2.0, 1.0, 0.0, 7.0, 6.0, 5.0, 4.0, 11.0, 10.0, 9.0, 8.0]);
}

#[test]
fn rounding_happens_at_stores_alone() {
    let mut m = Maker::new();
    let x = m.weight("x", &[2]);
    let y = m.output(DType::BF16, &[c(2)], "y");
    // (x + 2⁻⁸) − 2⁻⁸ would lose x's last bits if the sum were rounded.
    let small = Scalar::Float(0.00390625);
    let value = op(Binary::Sub, op(Binary::Add, load_at(0, &[at(0)]), small.clone()), small);
    m.dispatch(elementwise(&[c(2)], vec![store(0, &[at(0)], value)]), &[x], &[y]);
    let plan = m.plan();
    let tensors = weights(&[("x", vec![1.0078125, 3.01])]);
    let loaded = load_plan::<f32>(&plan, &tensors, Precision::Rounded).unwrap();
    let out = step_plan(&plan, &loaded, 0, &BIND, &StepInputs::default(), &mut States::new()).unwrap();
    assert_eq!(out.get("y").unwrap().to_reals().unwrap(), [1.0078125, 3.015625]);
}

#[test]
fn literals_packs_and_sampling() {
    let mut m = Maker::new();
    let part = Pack::Slice(
        1,
        1,
        3,
        Box::new(Pack::Transpose(
            vec![1, 0],
            Box::new(Pack::Concat(
                0,
                vec![
                    Pack::Tensor {
                        name: "a".into(),
                        encoding: Encoding::Plain(DType::F32),
                        shape: vec![2, 1],
                    },
                    Pack::Reshape(
                        vec![2, 1],
                        Box::new(Pack::Tensor {
                            name: "b".into(),
                            encoding: Encoding::Plain(DType::F32),
                            shape: vec![2],
                        }),
                    ),
                ],
            )),
        )),
    );
    let logits = m.buffer(DType::F32, &[Dim::Sym(Sym::Rows), c(3)], BufferKind::Weight(part));
    let position = m.buffer(DType::I32, &[c(1)], BufferKind::Literal(Literal::I32(vec![7])));
    let mut reads = vec![logits, position];
    reads
        .extend([Input::Temperature, Input::TopK, Input::TopP, Input::MinP, Input::Seed].map(|i| m.input(i)));
    let tokens = m.output(DType::I32, &[Dim::Sym(Sym::Rows)], "tokens");
    m.dispatch(Compute::Sample(Sample { rows: Dim::Sym(Sym::Rows), vocab: 3 }), &reads, &[tokens]);
    let plan = m.plan();
    let tensors = weights(&[("a", vec![9.0, 1.0]), ("b", vec![2.0, 5.0])]);
    let loaded = load_plan::<f32>(&plan, &tensors, Precision::F32).unwrap();
    let inputs = StepInputs {
        temperature: vec![0.0],
        top_k: vec![0],
        top_p: vec![1.0],
        min_p: vec![0.0],
        seed: vec![1],
        ..StepInputs::default()
    };
    // The logits are [9, 1, 2, 5] from the second on.
    let out = step_plan(&plan, &loaded, 0, &BIND, &inputs, &mut States::new()).unwrap();
    assert_eq!(out.get("tokens").unwrap().to_ints().unwrap(), [2]);
}

#[test]
fn misfits_are_errors() {
    let bad = |value: Scalar, index: &[Scalar]| {
        let mut m = Maker::new();
        let x = m.weight("x", &[3]);
        let y = m.output(DType::F32, &[c(3)], "y");
        m.dispatch(elementwise(&[c(3)], vec![store(0, index, value)]), &[x], &[y]);
        let plan = m.plan();
        let loaded = load_plan::<f32>(&plan, &weights(&[("x", vec![0.0; 3])]), Precision::F32)?;
        step_plan(&plan, &loaded, 0, &BIND, &StepInputs::default(), &mut States::new()).map(|_| ())
    };
    let text = |value: Scalar, index: &[Scalar]| bad(value, index).unwrap_err().to_string();
    assert!(text(load_at(1, &[at(0)]), &[at(0)]).contains("operand 1 does not exist"));
    assert!(text(load_at(0, &[]), &[at(0)]).contains("0 indices"));
    assert!(text(Scalar::Float(0.0), &[]).contains("0 indices"));
    assert!(text(op(Binary::Add, at(0), Scalar::Float(0.0)), &[at(0)]).contains("add of Int and Real"));
    assert!(text(at(0), &[at(0)]).contains("another kind"));
    let beyond = op(Binary::Add, at(0), Scalar::Int(1));
    assert!(text(load_at(0, std::slice::from_ref(&beyond)), &[at(0)]).contains("index 3"));
    assert!(text(Scalar::Float(0.0), std::slice::from_ref(&beyond)).contains("index 3"));
    assert!(text(Scalar::Reduced(0), &[at(0)]).contains("no stage 0"));
    assert!(text(Scalar::Acc(0), &[at(0)]).contains("no accumulator"));
    assert!(text(Scalar::Float(0.0), &[at(3)]).contains("no coordinate 3"));
}

/// `cargo test -p weft-ir --release --test reference_plan -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn speed_of_small_dispatches() {
    let mut m = Maker::new();
    let bind = Bindings { tokens: 1, ..BIND };
    let x = m.weight("x", &[1, 9, 64]);
    let (row, wide) = (m.weight("row", &[1, 576]), m.weight("wide", &[1, 1536]));
    let w = m.weight("w", &[1536, 576]);
    let rope = m.buffer(DType::F32, &[TOKENS, c(9), c(64)], BufferKind::Temp);
    let norm = m.buffer(DType::F32, &[TOKENS, c(576)], BufferKind::Temp);
    let gate = m.buffer(DType::F32, &[TOKENS, c(1536)], BufferKind::Temp);
    let up = m.buffer(DType::F32, &[TOKENS, c(1536)], BufferKind::Temp);
    let here = || load_at(0, &[at(0), at(1), at(2)]);
    let half = Scalar::Select(
        Box::new(Scalar::Compare(Compare::Lt, Box::new(at(2)), Box::new(Scalar::Int(32)))),
        Box::new(Scalar::unary(
            Unary::Neg,
            load_at(0, &[at(0), at(1), op(Binary::Add, at(2), Scalar::Int(32))]),
        )),
        Box::new(load_at(0, &[at(0), at(1), op(Binary::Sub, at(2), Scalar::Int(32))])),
    );
    let angle =
        || op(Binary::Mul, load_at(1, &[at(0), op(Binary::Rem, at(2), Scalar::Int(32))]), Scalar::Float(3.0));
    let turned = op(
        Binary::Add,
        op(Binary::Mul, here(), Scalar::unary(Unary::Cos, angle())),
        op(Binary::Mul, half, Scalar::unary(Unary::Sin, angle())),
    );
    let turn = elementwise(&[TOKENS, c(9), c(64)], vec![store(0, &[at(0), at(1), at(2)], turned)]);
    let e = || load_at(0, &[at(0), at(1)]);
    let scaled = op(
        Binary::Mul,
        op(
            Binary::Mul,
            e(),
            Scalar::unary(Unary::Rsqrt, op(Binary::Div, Scalar::Reduced(0), Scalar::Float(576.0))),
        ),
        load_at(0, &[Scalar::Int(0), at(1)]),
    );
    let rms = Compute::Loop(Loop {
        domain: shape(&[TOKENS]),
        reduced: Some(c(576)),
        stages: vec![Stage { op: Reduce::Sum, value: op(Binary::Mul, e(), e()) }],
        element_stores: vec![store(0, &[at(0), at(1)], scaled)],
        row_stores: Vec::new(),
    });
    let act = op(Binary::Mul, Scalar::unary(Unary::Silu, e()), load_at(1, &[at(0), at(1)]));
    let act = elementwise(&[TOKENS, c(1536)], vec![store(0, &[at(0), at(1)], act)]);
    let product = Compute::MatMul(MatMul {
        m: TOKENS,
        n: 1536,
        group: 1,
        k: 576,
        a: e(),
        b: OperandId(1),
        stages: vec![],
        row: None,
        draw: None,
        stores: vec![store(0, &[at(0), at(1)], Scalar::Acc(0))],
    });
    let kinds = [
        ("rope 576", turn, vec![x, row], rope),
        ("norm 576", rms, vec![row], norm),
        ("silu·up 1536", act, vec![wide, wide], gate),
        ("matmul 1536×576", product, vec![row, w], up),
    ];
    let tensors = [
        ("x", numbers(576, 1)),
        ("row", numbers(576, 2)),
        ("wide", numbers(1536, 3)),
        ("w", numbers(1536 * 576, 4)),
    ];
    for (name, compute, reads, write) in kinds {
        let mut one = Maker { plan: m.plan.clone(), dispatches: Vec::new() };
        for _ in 0..100 {
            one.dispatch(compute.clone(), &reads, &[write]);
        }
        let plan = one.plan();
        let loaded = load_plan::<f32>(&plan, &weights(&tensors), Precision::F32).unwrap();
        let mut states = States::new();
        let start = Instant::now();
        for _ in 0..20 {
            step_plan(&plan, &loaded, 0, &bind, &StepInputs::default(), &mut states).unwrap();
        }
        println!("{name}: {:.1} µs", start.elapsed().as_secs_f64() * 1e6 / 2000.0);
    }
}
