//! What needs no rule: a value that is written twice is made once, what nothing needs is not made, and what is cheap is
//! made again where it is read.

mod common;

use common::options;
use weft_ir::graph::parse;
use weft_ir::plan::{BufferKind, Plan};
use weft_passes::{Compiled, compile};

fn compiled(text: &str) -> Compiled {
    let graph = parse(text).unwrap_or_else(|e| panic!("{e}"));
    compile(&graph, options(Default::default())).unwrap_or_else(|e| panic!("{e}"))
}

/// Ops of a name in the first form's graph.
fn ops(compiled: &Compiled, name: &str) -> usize {
    compiled.forms[0].graph.nodes.iter().filter(|n| n.op.name() == name).count()
}

fn temporaries(plan: &Plan) -> usize {
    plan.buffers.iter().filter(|b| b.kind == BufferKind::Temp).count()
}

#[test]
fn a_value_that_is_written_twice_is_made_once() {
    let twice = compiled(
        "
        %0 = weight \"embed\" -> bf16[100, 64]
        %1 = input token_ids -> i32[tokens]
        %2 = gather %0, %1 -> bf16[tokens, 64]
        %3 = weight \"w\" -> bf16[32, 64]
        %4 = matmul.t %2, %3 -> f32[tokens, 32]
        %5 = matmul.t %2, %3 -> f32[tokens, 32]
        %6 = exp %4 -> f32[tokens, 32]
        %7 = exp %5 -> f32[tokens, 32]
        %8 = mul %6, %7 -> f32[tokens, 32]
        output \"y\" = %8
    ",
    );
    assert_eq!((ops(&twice, "matmul"), ops(&twice, "exp")), (1, 1));
}

#[test]
fn what_nothing_needs_is_not_made() {
    let dead = compiled(
        "
        %0 = weight \"embed\" -> f32[100, 64]
        %1 = input token_ids -> i32[tokens]
        %2 = gather %0, %1 -> f32[tokens, 64]
        %3 = exp %2 -> f32[tokens, 64]
        %4 = neg %2 -> f32[tokens, 64]
        output \"y\" = %4
    ",
    );
    let made = |name: &str| dead.plan.works.iter().any(|w| format!("{:?}", w.compute).contains(name));
    assert!(made("Neg") && !made("Exp"), "{:?}", dead.plan.works);
}

#[test]
fn what_is_cheap_is_made_again_where_it_is_read() {
    let text = |op: &str| {
        format!(
            "
        %0 = input positions -> i32[tokens]
        %1 = cast %0 -> f32[tokens]
        %2 = reshape %1 -> f32[tokens, 1]
        %3 = broadcast %2 -> f32[tokens, 64]
        %4 = {op}
        %5 = mean %4 -> f32[tokens, 1]
        %6 = transpose %4 perm=[1, 0] -> f32[64, tokens]
        output \"mean\" = %5
        output \"turned\" = %6
    "
        )
    };
    let cheap = compiled(&text("neg %3 -> f32[tokens, 64]"));
    assert_eq!(temporaries(&cheap.plan), 0, "{:?}", cheap.plan.buffers);
    let sum = compiled(&text("softmax %3 -> f32[tokens, 64]"));
    assert!(temporaries(&sum.plan) >= 1, "a row's reduction is made once: {:?}", sum.plan.buffers);
}
