//! Attention that projects its outputs: of which models and steps, when not, that it may be turned off, and that models
//! are the same with it and without. That its kernels are right, `emulator.rs` and `gpu_kernels.rs` prove.

use serde_json::json;
use weft_ir::dtype::DType;
use weft_ir::graph::Graph;
use weft_ir::plan::{Compute, Plan, Role, Schedule, Work};
use weft_ir::reference::{Precision, States, load_plan, step_plan};
use weft_passes::fusion::Contract;
use weft_passes::{Compiled, Numerics, Selection, attention_projection};
use weft_testsuite::emulate::ragged;
use weft_testsuite::fixture::{Fixture, compile_with};
use weft_testsuite::forms::{self, attentions, works};
use weft_testsuite::kernel_cases::{MadeUp, made_up};
use weft_testsuite::synthetic::shape;

fn compiled(graph: &Graph, sizes: (usize, usize), selection: Selection) -> Compiled {
    compile_with(graph, "sm_90", DType::BF16, 2, sizes, selection)
}

/// The contract in a form of the step.
fn contract<'a>(c: &'a Compiled, body: &str) -> &'a Contract {
    forms::contract(c, body, attention_projection::NAME)
}

fn counts(c: &Compiled, body: &str) -> (usize, usize) {
    (contract(c, body).matched, contract(c, body).candidates)
}

/// Two layers of SmolLM2: four kernels a layer of a decode step, whose residual is added up where it is read; clusters
/// that have all keys, whatever the rows of the bucket and however many keys they are.
#[test]
fn decode_steps_of_few_heads_project_in_attention() {
    let g = shape("smollm2-135m", 2);
    let longest = compiled(&g, (8192, 1), Selection::default());
    assert_eq!(counts(&longest, "decode"), (2, 2));
    let c = compiled(&g, (1280, 16), Selection::default());
    assert_eq!(counts(&c, "decode"), (2, 2));
    for body in ["batch", "short", "prefill"] {
        assert_eq!(counts(&c, body), (0, 0), "{body}");
    }
    let apart = compiled(&g, (1280, 16), Selection::without(&[attention_projection::NAME]));
    assert_eq!(works(&c.plan, Role::Decode).len() + 2, works(&apart.plan, Role::Decode).len());
    let all = attentions(&c.plan, Role::Decode);
    assert!(all.iter().all(|(_, a)| a.stored() == [3, 576] && a.projection.is_some()) && all.len() == 2);
    assert!(attentions(&c.plan, Role::Prefill).iter().all(|(_, a)| a.projection.is_none()));
    let projects = |w: &Work| matches!(&w.compute, Compute::Attention(a) if a.projection.is_some());
    let mut kernels = 0;
    for k in c.plan.kernels.iter().filter(|k| projects(&c.plan.works[k.work as usize])) {
        let Schedule::AttentionGroup { splits, cluster, heads, .. } = k.schedule else { panic!("{k:?}") };
        assert_eq!((splits, cluster, heads), (8, 8, 3));
        kernels += 1;
    }
    assert_eq!(kernels, 1, "steps of one and of two tokens share it");
    // The product has no kernel there, and its ops and rules are named where they went.
    let made = works(&c.plan, Role::Decode).into_iter().find(|w| projects(w)).expect("one");
    assert!(made.rules.iter().any(|r| r == attention_projection::NAME), "{:?}", made.rules);
    assert!(made.ops.iter().filter(|op| *op == "matmul").count() == 3, "{:?}", made.ops);
    // The residual is added where the addends are, and counted as what it is.
    let residual = forms::contract(&c, "decode", "residual");
    assert_eq!((residual.matched, residual.candidates), (4, 4));
    assert_eq!(residual.instead.get(attention_projection::NAME), Some(&2));
    let summed = works(&c.plan, Role::Decode).into_iter().filter(|w| w.name.starts_with("gate_proj_up_proj"));
    assert!(
        summed.map(|w| &w.ops).all(|ops| ops.contains(&"add".to_owned()) && ops.contains(&"silu".to_owned()))
    );
}

#[test]
fn it_may_be_turned_off() {
    let g = shape("smollm2-135m", 2);
    let c = compiled(&g, (1280, 1), Selection::without(&[attention_projection::NAME]));
    assert_eq!(counts(&c, "decode"), (0, 2));
    let misses = &contract(&c, "decode").misses;
    assert!(misses.iter().all(|m| m.why == "it is disabled"), "{misses:?}");
    assert!(attentions(&c.plan, Role::Decode).iter().all(|(_, a)| a.projection.is_none()));
    let exact = compiled(&g, (1280, 1), Selection { numerics: Numerics::Exact, ..Selection::default() });
    assert!(attentions(&exact.plan, Role::Decode).iter().all(|(_, a)| a.projection.is_none()));
}

/// More heads of keys than clusters may be, keys for more than one cluster, rows that attention makes, and a product that
/// does more.
#[test]
fn others_have_a_product_of_their_own() {
    let misses = |g: &Graph, context: usize| {
        let c = compiled(g, (context, 1), Selection::default());
        let contract = contract(&c, "decode");
        assert_eq!(contract.matched, 0);
        contract.misses.iter().map(|m| m.why.clone()).collect::<Vec<_>>()
    };
    let no_cluster = "its clusters cannot project what they have: no cluster has all keys and query heads of a head of keys";
    assert_eq!(misses(&shape("llama-3.2-1b", 2), 1280), [no_cluster; 2]);
    let many = "up to 9000 keys are too many for a cluster of 8 blocks";
    assert_eq!(misses(&shape("smollm2-135m", 2), 9000), [many; 2]);
    let made = "it makes its rows: whether it should project as well was not measured";
    assert_eq!(misses(&shape("qwen3-4b", 1), 1280), [made]);
    let normed = misses(&Fixture::open("gemma2").graph(DType::BF16), 64);
    assert!(!normed.is_empty() && !normed.contains(&"it is disabled".to_owned()), "{normed:?}");
    // A target without clusters.
    let c = compile_with(&shape("smollm2-135m", 1), "sm_80", DType::BF16, 2, (1280, 1), Selection::default());
    assert_eq!(counts(&c, "decode"), (0, 1));
}

/// Tokens of sequences, and the position of the first of each.
type Sequences<'a> = Vec<(&'a [i32], usize)>;

/// Logits of a prompt's last token and of decode steps of one sequence and of two, in f64.
fn logits(model: &MadeUp, plan: &Plan, context: usize) -> Vec<Vec<f64>> {
    let loaded = load_plan::<f64>(plan, model, Precision::F64).expect("loads");
    let ids: Vec<i32> = (0..64).map(|i| (i * 37 + 5) % model.vocab).collect();
    let pieces: [(&str, Sequences<'_>); 4] = [
        ("prefill_16", vec![(&ids[..9], 0), (&ids[20..24], 0)]),
        ("decode_1", vec![(&ids[9..10], 9)]),
        ("decode_2", vec![(&ids[10..11], 10), (&ids[24..25], 4)]),
        ("decode_1", vec![(&ids[11..12], 11)]),
    ];
    let mut out = Vec::new();
    let mut states = None;
    for (name, sequences) in pieces {
        let at = plan.entries.iter().position(|e| e.name == name).expect("an entry");
        let entry = &plan.entries[at];
        let inputs = ragged(entry, &sequences, context, entry.role == Role::Decode);
        let states = states.get_or_insert_with(|| States::zeros_of_plan(plan, &entry.bind));
        let made = step_plan(plan, &loaded, at, &entry.bind, &inputs, states).expect("runs");
        out.push(made.get("logits").expect("logits").to_reals().expect("floats"));
    }
    out
}

#[test]
fn models_are_the_same_with_it_and_without() {
    let sizes = json!({
        "hidden_size": 72, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64,
        "intermediate_size": 56, "vocab_size": 97, "num_hidden_layers": 3,
    });
    let model = made_up("llama", &sizes);
    let (graph, context) = (model.graph(), 160);
    let with = compiled(&graph, (context, 2), Selection::default());
    assert_eq!(counts(&with, "decode"), (3, 3));
    let without = compiled(&graph, (context, 2), Selection::without(&[attention_projection::NAME]));
    let (with, without) = (logits(&model, &with.plan, context), logits(&model, &without.plan, context));
    let largest = without.iter().flatten().fold(0.0_f64, |m, x| m.max(x.abs()));
    assert!(largest > 0.1, "{largest}");
    for (a, b) in with.iter().zip(&without) {
        assert_eq!(a.len(), b.len());
        // Where the residual is f32 in memory, it is not rounded in f64.
        assert!(a.iter().zip(b).all(|(x, y)| (x - y).abs() <= 1e-9 * largest), "{a:?}\n{b:?}");
    }
    assert!(with[1] != with[3]);
}
