//! Loops that become one: which do, which do not, and that results are those of the loops apart.

mod common;

use common::options;
use std::collections::HashMap;
use weft_ir::graph::{Graph, parse};
use weft_ir::plan::{Compute, Plan, Scalar};
use weft_passes::fusion::Contract;
use weft_passes::{Compiled, Selection, compile, provenance, siblings};

fn plan(text: &str, selection: Selection) -> Plan {
    compiled(text, selection).plan
}

fn compiled(text: &str, selection: Selection) -> Compiled {
    let graph: Graph = parse(text).unwrap_or_else(|e| panic!("{e}"));
    compile(&graph, options(selection)).unwrap_or_else(|e| panic!("{e}"))
}

/// The contract of merged loops in a form of the step.
fn contract<'a>(c: &'a Compiled, body: &str) -> &'a Contract {
    let body = c.context.contracts.iter().find(|b| b.body == body).expect("a body");
    body.contracts.iter().find(|c| c.fusion == siblings::NAME).expect("a contract")
}

/// Loops of a body: domain, stages, stores, guards among these.
fn loops(plan: &Plan, body: usize) -> Vec<(usize, usize, usize, usize)> {
    let works = plan.bodies[body].dispatches.iter().map(|d| &plan.works[d.work as usize]);
    works
        .filter_map(|w| match &w.compute {
            Compute::Loop(l) => {
                let guards = l.element_stores.iter().filter(|s| s.guard.is_some()).count();
                Some((l.domain.len(), l.stages.len(), l.element_stores.len(), guards))
            }
            _ => None,
        })
        .collect()
}

const NORMS: &str = include_str!("graphs/sibling_norms.graph");

#[test]
fn norms_of_other_numbers_of_heads_are_one_loop_in_steps_of_few_tokens() {
    let merged = plan(NORMS, Selection::default());
    for body in [0, 1, 2] {
        assert_eq!(loops(&merged, body), [(2, 1, 2, 2)], "body {body}: six heads, each with its own store");
    }
    let work = merged.works.iter().find(|w| w.rules.iter().any(|r| r == siblings::NAME)).expect("merged");
    let Compute::Loop(l) = &work.compute else { panic!("{work:?}") };
    assert_eq!(l.domain[1].as_const(), Some(6));
    assert!(matches!(&l.stages[0].value, Scalar::Select(..)));
    // Long prefill keeps them apart, and so does a plan without the pass.
    assert!(loops(&merged, 3).iter().all(|l| l.2 == 1), "{:?}", loops(&merged, 3));
    let apart = plan(NORMS, Selection::without(&[siblings::NAME]));
    assert_eq!(loops(&apart, 0), [(2, 1, 1, 0), (2, 1, 1, 0)]);
    assert!(apart.works.iter().all(|w| w.rules.iter().all(|r| r != siblings::NAME)));
}

/// A chain of row loops, each of which reads what the one before wrote.
#[test]
fn loops_that_depend_on_each_other_stay_apart() {
    let chain = "
        %0 = weight \"embed\" -> bf16[100, 64]
        %1 = input token_ids -> i32[tokens]
        %2 = gather %0, %1 -> bf16[tokens, 64]
        %3 = mean %2 -> f32[tokens, 1]
        %4 = cast %3 -> bf16[tokens, 1]
        %5 = weight \"other\" -> bf16[64, 1]
        %6 = matmul.t %4, %5 -> f32[tokens, 64]
        %7 = mul %6, %6 -> f32[tokens, 64]
        %8 = mean %7 -> f32[tokens, 1]
        output \"first\" = %4
        output \"second\" = %8
    ";
    let plan = plan(chain, Selection::default());
    assert!(plan.works.iter().all(|w| w.rules.iter().all(|r| r != siblings::NAME)), "{:?}", plan.works);
}

/// Points of one loop: the parts of a rotation's table.
#[test]
fn loops_over_the_same_points_share_them() {
    let tables = "
        %0 = input positions -> i32[tokens]
        %1 = cast %0 -> f32[tokens]
        %2 = reshape %1 -> f32[tokens, 1]
        %3 = broadcast %2 -> f32[tokens, 8]
        %4 = weight \"frequencies\" -> f32[1, 8]
        %5 = broadcast %4 -> f32[tokens, 8]
        %6 = mul %3, %5 -> f32[tokens, 8]
        %7 = cos %6 -> f32[tokens, 8]
        %8 = sin %6 -> f32[tokens, 8]
        output \"cos\" = %7
        output \"sin\" = %8
    ";
    let merged = plan(tables, Selection::default());
    assert_eq!(loops(&merged, 0), [(2, 0, 2, 0)], "one loop, two stores, no guard");
    let reads: HashMap<_, _> = merged.works.iter().map(|w| (w.name.clone(), w.reads.len())).collect();
    assert_eq!(reads.values().copied().max(), Some(2), "what both read is one array: {reads:?}");
}

#[test]
fn merged_loops_are_counted_and_have_a_class() {
    let on = compiled(NORMS, Selection::default());
    let decode = contract(&on, "decode");
    assert!(decode.enabled && decode.misses.is_empty());
    assert_eq!((decode.matched, decode.candidates), (1, 1));
    // Loops of the other steps are no candidates.
    assert_eq!((contract(&on, "prefill").matched, contract(&on, "prefill").candidates), (0, 0));
    let off = compiled(NORMS, Selection::without(&[siblings::NAME]));
    let decode = contract(&off, "decode");
    assert!(!decode.enabled);
    assert_eq!((decode.matched, decode.candidates), (0, 1));
    assert_eq!(decode.misses[0].why, "it is disabled");
    let used = on.provenance.works.iter().flat_map(|w| &w.lowering).find(|r| r.rule == siblings::NAME);
    assert_eq!(used.map(|r| r.numerics.as_str()), Some(siblings::NUMERICS.name()));
    for name in weft_passes::names() {
        assert!(provenance::numerics(name).is_some(), "{name} has no class");
    }
}

/// Sums of one value with 30 weights: an array of both, and two of each.
#[test]
fn more_arrays_than_a_work_takes_are_a_miss() {
    let mut text = String::from("%0 = weight \"t\" -> f32[100, 8]\n%1 = input token_ids -> i32[tokens]\n");
    text += "%2 = gather %0, %1 -> f32[tokens, 8]\n";
    for (i, w) in (3..).step_by(3).take(30).enumerate() {
        text += &format!("%{w} = weight \"w{i}\" -> f32[1, 8]\n");
        text += &format!("%{} = broadcast %{w} -> f32[tokens, 8]\n", w + 1);
        text += &format!("%{} = add %2, %{} -> f32[tokens, 8]\n", w + 2, w + 1);
    }
    (0..30).for_each(|i| text += &format!("output \"y{i}\" = %{}\n", 3 * i + 5));
    let c = compiled(&text, Selection::default());
    // Eleven are a work of 23 arrays, eleven more another, and the rest a third.
    let contract = contract(&c, "decode");
    assert_eq!((contract.matched, contract.candidates), (27, 29), "{contract:?}");
    assert!(contract.misses.iter().all(|m| m.why.contains("too many arrays")), "{contract:?}");
}
