//! The graph verifier: every kind of fault is found, all in one go, and the facts are right.

use weft_ir::graph::{Graph, Output, StateOut, parse};
use weft_ir::ids::NodeId;
use weft_ir::verify::graph::{Fault, verify};

const CACHE: &str = "\
%0 = input slots -> i32[tokens]
%1 = state \"k\" -> f32[slots, 2]
%2 = weight \"w\" -> f32[4, 2] @\"model.w\"
%3 = input token_ids -> i32[tokens]
%4 = gather %2, %3 -> f32[tokens, 2]
%5 = gather %1, %0 -> f32[tokens, 2] @\"model.read\"
%6 = scatter %1, %4, %0 -> f32[slots, 2] @\"model.write\"
%7 = gather %6, %0 -> f32[tokens, 2]
%8 = add %5, %7 -> f32[tokens, 2]
output \"x\" = %8
state \"k\" = %6
";

fn graph(text: &str) -> Graph {
    parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn faults(graph: &Graph) -> Vec<String> {
    verify(graph).unwrap_err().iter().map(Fault::to_string).collect()
}

fn has(graph: &Graph, what: &str) {
    let all = faults(graph);
    assert!(all.iter().any(|f| f.contains(what)), "no {what:?} in {all:#?}");
}

#[test]
fn facts() {
    let facts = verify(&graph(CACHE)).unwrap();
    let n = |i| NodeId(i);
    assert_eq!(facts.users[1], [n(5), n(6)]);
    assert!(facts.load_time[2] && !facts.load_time[4]);
    assert!(facts.live.iter().all(|&l| l));
    assert_eq!(facts.states.len(), 1);
    assert_eq!(facts.states[0].versions, [n(1), n(6)]);
}

#[test]
fn ids_out_of_range_and_out_of_order() {
    let mut g = graph(CACHE);
    g.nodes[4].inputs[1] = NodeId(99);
    g.nodes[5].inputs[0] = NodeId(7);
    g.outputs.push(Output { name: "y".into(), value: NodeId(50) });
    g.state_out.push(StateOut { name: "z".into(), value: NodeId(51) });
    let all = faults(&g);
    assert_eq!(all.len(), 4, "{all:#?}");
    assert!(all[0].contains("%99 does not exist"));
    assert!(all[1].starts_with("%5 in model.read: ") && all[1].contains("before its use"));
}

#[test]
fn types_that_are_not_what_ops_give() {
    let mut g = graph(CACHE);
    g.nodes[8].ty.shape.pop();
    g.nodes[7].inputs.pop();
    has(&g, "add gives f32[tokens, 2], stored as f32[tokens]");
    has(&g, "gather takes 2 inputs, got 1");
}

#[test]
fn a_version_is_consumed_once() {
    let text = CACHE.replace("output", "%9 = scatter %1, %4, %0 -> f32[slots, 2]\noutput");
    has(&graph(&text), "%9: scatter consumes %1, which %6 already consumed");
}

#[test]
fn a_version_is_not_read_after_it_is_consumed() {
    let text = CACHE.replace("gather %6, %0", "gather %1, %0");
    has(&graph(&text), "%7: reads %1 after %6 has consumed it");
    // Nor through a view that was made before.
    let text = "\
%0 = input slots -> i32[tokens]
%1 = state \"k\" -> f32[slots, 2]
%2 = transpose %1 perm=[1, 0] -> f32[2, slots]
%3 = gather %1, %0 -> f32[tokens, 2]
%4 = scatter %1, %3, %0 -> f32[slots, 2]
%5 = reduce_max %2 -> f32[2, 1]
output \"x\" = %5
state \"k\" = %4
";
    has(&graph(text), "%5: reads %1 after %4 has consumed it");
    let earlier = text
        .replace(
            "%4 = scatter %1, %3, %0 -> f32[slots, 2]\n%5 = reduce_max %2 -> f32[2, 1]",
            "%4 = reduce_max %2 -> f32[2, 1]\n%5 = scatter %1, %3, %0 -> f32[slots, 2]",
        )
        .replace("\"x\" = %5", "\"x\" = %4")
        .replace("\"k\" = %4", "\"k\" = %5");
    verify(&graph(&earlier)).unwrap();
}

#[test]
fn outputs_are_not_consumed_versions() {
    let text = CACHE.replace("\"x\" = %8", "\"x\" = %1");
    has(&graph(&text), "output \"x\" is %1, which %6 consumes");
}

#[test]
fn states_begin_and_end_once_with_their_last_version() {
    has(&graph(&CACHE.replace("state \"k\" = %6", "state \"k\" = %1")), "not with its last version %6");
    has(&graph(&CACHE.replace("state \"k\" = %6\n", "")), "state \"k\" has no end");
    has(
        &graph(&CACHE.replace("state \"k\" = %6", "state \"v\" = %6")),
        "state \"v\" ends with %6 but never begins",
    );
    has(&graph(&format!("{CACHE}state \"k\" = %6\n")), "state \"k\" ends twice");
    let twice = CACHE.replace("output", "%9 = state \"k\" -> f32[slots, 2]\noutput");
    has(&graph(&twice), "%9: state \"k\" is declared twice");
    let other = CACHE
        .replace("scatter %1", "scatter %5")
        .replace("f32[slots, 2] @\"model.write", "f32[tokens, 2] @\"model.write");
    has(&graph(&other), "scatter consumes %5, which is no state");
    has(&graph(&format!("{CACHE}output \"x\" = %7\n")), "output \"x\" is declared twice");
}

#[test]
fn all_faults_are_collected() {
    let mut g = graph(&CACHE.replace("state \"k\" = %6\n", ""));
    g.nodes[8].ty.shape.pop();
    g.nodes[7].ty.shape.pop();
    assert_eq!(faults(&g).len(), 3, "{:#?}", faults(&g));
}
