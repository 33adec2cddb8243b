//! Graphs as files: each `graphs/*.graph` is lowered at every level, and what comes out is under snapshot.

mod common;

use common::options;
use std::fmt::Write;
use weft_ir::graph::{Graph, parse};
use weft_ir::plan::{Compute, Plan};
use weft_passes::{Numerics, Options, Selection, compile};

fn plan(graph: &Graph, opt_level: u8) -> Plan {
    plan_with(graph, opt_level, Selection::default())
}

fn plan_with(graph: &Graph, opt_level: u8, selection: Selection) -> Plan {
    let options = Options { opt_level, ..options(selection) };
    compile(graph, options).unwrap_or_else(|e| panic!("{e}")).plan
}

/// One line a dispatch: what it computes, from which buffers, by which rules.
fn listing(plan: &Plan) -> String {
    let mut out = String::new();
    for d in &plan.bodies[0].dispatches {
        let work = &plan.works[d.work as usize];
        let kind = match &work.compute {
            Compute::Loop(l) if l.reduced.is_some() => format!("rows with {} stages", l.stages.len()),
            Compute::Loop(_) => "elements".into(),
            Compute::MatMul(m) => format!("matmul {}x{}", m.n, m.k),
            Compute::Attention(a) => match a.window {
                Some(keys) => format!("attention of the last {keys} keys"),
                None => "attention".into(),
            },
            Compute::Steps(s) => format!("{} steps a row", s.steps.len()),
            Compute::Routed(r) => format!("{} of {} matrices {}x{}", r.weights.len(), r.experts, r.n, r.k),
            Compute::Grouping(g) => format!("pairs by {} matrices", g.experts),
            Compute::Penalize(_) => "penalize".into(),
            Compute::Sample(_) => "sample".into(),
            Compute::Advance(_) => "advance".into(),
        };
        let names =
            |ids: &[weft_ir::ids::BufferId]| ids.iter().map(|b| b.to_string()).collect::<Vec<_>>().join(" ");
        let (reads, writes) = (names(&d.reads), names(&d.writes));
        let _ = writeln!(out, "{} = {}({reads}): {kind} [{}]", writes, work.name, work.ops.join(" "));
        if !work.rules.is_empty() {
            let _ = writeln!(out, "    rules: {}", work.rules.join(", "));
        }
    }
    out
}

#[test]
fn graphs() {
    insta::glob!("graphs/*.graph", |path| {
        let text = std::fs::read_to_string(path).expect("graph file");
        let graph = parse(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut out = String::new();
        for level in 0..=2 {
            let _ = writeln!(out, "level {level}\n{}", listing(&plan(&graph, level)));
        }
        insta::assert_snapshot!(out);
    });
}

/// A row of a tile is summed in another order, and a fusion that is off leaves the sum in memory.
#[test]
fn a_row_epilogue_follows_the_selection() {
    let graph = parse(include_str!("graphs/linear_layernorm.graph")).unwrap_or_else(|e| panic!("{e}"));
    let rows = |selection| {
        let plan = plan_with(&graph, 2, selection);
        let is = |c: &Compute| matches!(c, Compute::MatMul(m) if m.row.is_some());
        plan.works.iter().filter(|w| is(&w.compute)).count()
    };
    assert_eq!(rows(Selection::default()), 1);
    assert_eq!(rows(Selection::without(&["residual-norm"])), 0);
    assert_eq!(rows(Selection { numerics: Numerics::Exact, ..Selection::default() }), 0);
}

/// The products wait for a norm in their left operand, which rounds and sums otherwise than a kernel of its own.
#[test]
fn a_norm_in_the_left_operand_follows_the_selection() {
    let graph = parse(include_str!("graphs/layernorm_linear.graph")).unwrap_or_else(|e| panic!("{e}"));
    let normed = |selection| {
        let plan = plan_with(&graph, 2, selection);
        let waits = |c: &Compute| matches!(c, Compute::MatMul(m) if m.passes() == (vec![0, 1], 2));
        plan.works.iter().filter(|w| waits(&w.compute)).count()
    };
    assert_eq!(normed(Selection::default()), 2);
    assert_eq!(normed(Selection::without(&["norm-prologue"])), 0);
    assert_eq!(normed(Selection { numerics: Numerics::Reassociates, ..Selection::default() }), 0);
}

#[test]
fn a_plan_reads_back_as_it_was_written() {
    insta::glob!("graphs/*.graph", |path| {
        let text = std::fs::read_to_string(path).expect("graph file");
        let graph = parse(&text).expect("graph");
        for level in 0..=2 {
            let plan = plan(&graph, level);
            let text = plan.to_ron().expect("RON");
            assert_eq!(Plan::from_ron(&text).expect("reads back"), plan);
        }
    });
}

#[test]
fn an_output_that_nothing_computes_is_an_error() {
    let graph = parse("%0 = input token_ids -> i32[tokens]\noutput \"ids\" = %0\n").expect("graph");
    let error = compile(&graph, options(Default::default())).expect_err("nothing to compute").to_string();
    assert!(error.contains("is not computed by the step"), "{error}");
}
