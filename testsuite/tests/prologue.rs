//! Attention that makes its queries and own keys: of which models and steps, when not, and that it may be turned off.
//! That its kernels are right, `emulator.rs` and `gpu_kernels.rs` prove; that models are, `families.rs`.

use weft_ir::dtype::DType;
use weft_ir::graph::{Graph, parse};
use weft_ir::plan::{Compute, Role, Schedule, Work};
use weft_passes::fusion::Contract;
use weft_passes::{Compiled, Numerics, Selection, attention_prologue};
use weft_testsuite::fixture::{Fixture, compile_with};
use weft_testsuite::forms::{self, attentions, works};

fn compiled(graph: &Graph, selection: Selection) -> Compiled {
    compile_with(graph, "sm_90", DType::BF16, 2, (64, 32), selection)
}

fn graph(name: &str) -> Graph {
    Fixture::open(name).graph(DType::BF16)
}

/// The contract in a form of the step.
fn contract<'a>(c: &'a Compiled, body: &str) -> &'a Contract {
    forms::contract(c, body, attention_prologue::NAME)
}

fn counts(c: &Compiled, body: &str) -> (usize, usize) {
    (contract(c, body).matched, contract(c, body).candidates)
}

/// Two layers of Qwen3: no loop of rows is left in a decode step, whose attention keeps its own keys.
#[test]
fn decode_steps_make_rows_in_attention() {
    let c = compiled(&graph("qwen3"), Selection::default());
    for body in ["decode", "batch"] {
        assert_eq!(counts(&c, body), (2, 2), "{body}");
    }
    for body in ["short", "prefill"] {
        assert_eq!(counts(&c, body), (0, 0), "{body}");
    }
    let plan = &c.plan;
    let rows = |w: &&Work| matches!(&w.compute, Compute::Loop(l) if l.reduced.is_some());
    assert_eq!(works(plan, Role::Decode).into_iter().filter(rows).count(), 0);
    assert!(works(plan, Role::Prefill).into_iter().filter(rows).count() > 0);
    for (work, a) in attentions(plan, Role::Decode) {
        let p = a.prologue.as_ref().expect("a prologue");
        // What queries are made of stays in f32; they are rounded as the graph says.
        assert_eq!((work.reads[a.q.index()].dtype, p.dtype), (DType::F32, DType::BF16));
        assert_eq!((p.query.stages.len(), p.key.stages.len()), (1, 1));
        assert_eq!(work.in_place, [(p.keep.output, a.keys)]);
        assert!(p.keep.guard.is_some(), "padding keeps no key");
        assert!(work.rules.iter().any(|r| r == attention_prologue::NAME), "{:?}", work.rules);
    }
    assert!(attentions(plan, Role::Prefill).iter().all(|(_, a)| a.prologue.is_none()));
    // Whatever the number of sequences: tiles of tokens would not make them.
    let tile = |k: &&weft_ir::plan::KernelSpec| matches!(k.schedule, Schedule::AttentionTile { .. });
    let made = |k: &&weft_ir::plan::KernelSpec| matches!(&plan.works[k.work as usize].compute, Compute::Attention(a) if a.prologue.is_some());
    assert_eq!(plan.kernels.iter().filter(made).filter(tile).count(), 0);
    assert!(plan.kernels.iter().filter(made).all(|k| k.fallback.is_none()));
}

#[test]
fn it_may_be_turned_off() {
    let g = graph("qwen3");
    let c = compiled(&g, Selection::without(&[attention_prologue::NAME]));
    assert_eq!(counts(&c, "decode"), (0, 2));
    let misses = &contract(&c, "decode").misses;
    assert!(misses.iter().all(|m| m.why == "it is disabled"), "{misses:?}");
    assert!(attentions(&c.plan, Role::Decode).iter().all(|(_, a)| a.prologue.is_none()));
    // Where sums keep their order, there is no attention that could have one.
    let exact = compiled(&g, Selection { numerics: Numerics::Exact, ..Selection::default() });
    assert_eq!((counts(&exact, "decode"), attentions(&exact.plan, Role::Decode).len()), ((0, 0), 0));
}

/// Families with a norm for each head, and those without: rotations alone are a product's epilogue, OLMo 2 has norms of
/// all heads together, and DeepSeek's values are parts of its keys.
#[test]
fn families() {
    for (name, layers) in [
        ("qwen3", 2),
        ("qwen3-moe", 2),
        ("gemma3", 2),
        ("llama", 0),
        ("gemma2", 0),
        ("olmo2", 0),
        ("deepseek-v3", 0),
        ("gpt2", 0),
    ] {
        let found = counts(&compiled(&graph(name), Selection::default()), "decode");
        let all = found.0 == found.1 && (found.0 > 0) == (layers > 0) && found.0 >= layers;
        assert!(all, "{name}: {found:?}");
    }
}

/// The graph of Qwen3 with a value of the first layer's rotations as an output.
fn with_output(shape: &str) -> Graph {
    let text = graph("qwen3").to_string();
    let scope = "@\"model.layers.0.self_attn.rotary\"";
    let is = |l: &&str| l.contains("= cast") && l.contains(shape) && l.contains(scope);
    let line = text.lines().find(is).expect("the rounded rows");
    let id = line.split_whitespace().next().expect("an id");
    parse(&format!("{text}\noutput \"rows\" = {id}\n")).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn rows_that_others_need_are_made_apart() {
    for (shape, why) in [
        ("[tokens, 4, 64]", "its queries are used elsewhere too"),
        ("[tokens, 2, 64]", "its keys are not made as rows of heads"),
    ] {
        let c = compiled(&with_output(shape), Selection::default());
        assert_eq!(counts(&c, "decode"), (1, 2), "{shape}");
        let misses: Vec<_> = contract(&c, "decode").misses.iter().collect();
        assert!(misses.len() == 1 && misses[0].why == why, "{misses:?}");
        assert!(misses[0].scope.contains("layers.0"), "{misses:?}");
    }
}
