//! Fusion contracts: the sites of each family's plan, under snapshot; fusions that are turned off; the counts
//! that public models must reach.

use rayon::prelude::*;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;
use weft_frontend::checkpoint::Checkpoint;
use weft_frontend::config::MODEL_TYPES;
use weft_ir::dtype::DType;
use weft_ir::graph::Graph;
use weft_ir::plan::{Plan, Role};
use weft_ir::reference::Precision;
use weft_passes::{Compiled, Numerics, Selection, fusion};
use weft_runtime::exec::CpuModel;
use weft_testsuite::encoder;
use weft_testsuite::fixture::{Bytes, Fixture, List, compile_with};
use weft_testsuite::golden::tiny;
use weft_testsuite::synthetic::{LlamaShape, SMOLLM2, deepseek_v3, minilm};

const SIZES: (usize, usize) = (64, 2);

fn compiled(graph: &Graph, selection: Selection) -> Compiled {
    compile_with(graph, "sm_90", DType::BF16, 2, SIZES, selection)
}

/// A line a fusion: matched / sites in each form of the step, then the reasons.
fn table(c: &Compiled) -> String {
    let mut out = String::new();
    for (i, name) in weft_passes::contract_names().iter().enumerate() {
        let rows: Vec<_> = c.context.contracts.iter().map(|b| (b.body, &b.contracts[i])).collect();
        if rows.iter().all(|(_, c)| c.candidates == 0) {
            continue;
        }
        let cells: Vec<String> =
            rows.iter().map(|(body, c)| format!("{body} {}/{}", c.matched, c.candidates)).collect();
        writeln!(out, "{name}: {}", cells.join(", ")).expect("a string");
        let mut reasons: Vec<(&str, &str)> =
            rows.iter().flat_map(|(body, c)| c.misses.iter().map(move |m| (*body, m.why.as_str()))).collect();
        reasons.sort_unstable();
        reasons.dedup();
        for (body, why) in reasons {
            writeln!(out, "  {body}: {why}").expect("a string");
        }
    }
    let bodies = c.plan.bodies.iter().map(|b| b.dispatches.len().to_string()).collect::<Vec<_>>();
    writeln!(out, "dispatches: {}", bodies.join(", ")).expect("a string");
    out
}

/// Variants of the families that `fixtures/tiny` does not have.
const OTHER_FAMILIES: &[&str] = &[
    "cohere2",
    "exaone4",
    "glm4",
    "granite",
    "modernbert",
    "olmo3",
    "phi",
    "qwen2-moe",
    "roberta",
    "smollm3",
    "stablelm",
    "starcoder2",
    "xlm-roberta",
];

/// Fusions of a checkpoint of every family.
#[test]
fn tables() {
    let variants = List::Variants.all();
    let named = |path: &PathBuf| OTHER_FAMILIES.iter().any(|name| path.ends_with(name));
    let folders = List::Tiny.all().into_iter().chain(variants.into_iter().filter(named));
    let mut families = BTreeSet::new();
    for path in folders {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let fixture = Fixture::at(path);
        families.insert(fixture.checkpoint.config().model_type.clone());
        let graph = fixture.graph(DType::BF16);
        let c = compiled(&graph, Selection::default());
        assert!(c.context.reports.iter().all(|r| r.limited.is_empty()), "{name}: saturation hit a limit");
        insta::with_settings!({ snapshot_suffix => name.as_str(), prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!("fusions", table(&c));
        });
    }
    let missing: Vec<&&str> = MODEL_TYPES.iter().filter(|m| !families.contains(**m)).collect();
    assert!(missing.is_empty(), "no table of {missing:?}");
}

/// At its own size, DeepSeek's decode attends to the narrow rows, and the other steps to keys and values that they make
/// once.
#[test]
fn latent_attention_takes_the_cheaper_form() {
    let graph = deepseek_v3(5);
    let c = compile_with(&graph, "sm_90", DType::BF16, 2, (4096, 8), Selection::default());
    let of = |body: &str, name: &str| {
        let b = c.context.contracts.iter().find(|b| b.body == body).expect("a body");
        let of = b.contracts.iter().find(|c| c.fusion == name).expect("a fusion");
        (of.matched, of.candidates)
    };
    assert_eq!(of("decode", "absorb-latent"), (5, 5));
    assert_eq!(of("prefill", "absorb-latent"), (0, 5));
    for body in ["decode", "prefill"] {
        assert_eq!(of(body, "attention"), (5, 5), "{body}");
    }
    // One block for all layers of a kind: ends and three dense ones, of which the first has the embedding before it.
    for report in &c.context.reports {
        assert!(report.limited.is_empty());
        assert!(report.distinct <= 6, "{} distinct segments", report.distinct);
    }
    let time: f64 = c.context.times.iter().filter(|t| t.name == "eqsat").map(|t| t.time.as_secs_f64()).sum();
    println!("saturation: {time:.2} s");
}

/// Without the rule, and where numbers must stay, keys and values are made of the cached rows in decode too.
#[test]
fn latent_attention_is_right_in_both_forms() {
    let f = Fixture::open("deepseek-v3");
    let graph = f.graph(DType::F32);
    let exact = Selection { numerics: Numerics::Exact, ..Selection::default() };
    for (selection, absorbed) in
        [(Selection::default(), true), (Selection::without(&["absorb-latent"]), false), (exact, false)]
    {
        let c = compile_with(&graph, "sm_90", DType::F32, 2, SIZES, selection);
        assert_eq!(matched(&c, "absorb-latent") > 0, absorbed);
        let mut model =
            CpuModel::plan(Arc::new(c.plan), &Bytes(&f.checkpoint), Precision::F32).expect("a plan");
        let report = tiny(&f, &mut model);
        assert!(report.logits <= 1e-4 && report.wrong_tokens == 0, "{report:?}");
    }
}

fn matched(c: &Compiled, name: &str) -> usize {
    let of =
        |b: &fusion::BodyContracts| b.contracts.iter().filter(|c| c.fusion == name).map(|c| c.matched).sum();
    c.context.contracts.iter().map(|b| -> usize { of(b) }).sum()
}

/// Whether a name that `--disable` takes does something in a plan: a rule that was applied, a fusion with matched sites.
fn is_used(c: &Compiled, name: &str) -> bool {
    let applied = c.context.reports.iter().any(|r| r.applied.get(name).is_some_and(|n| *n > 0));
    applied || matched(c, name) > 0
}

/// Relative distances of a plan in f32 to its golden: none above this, and no token another.
const CLOSE: f64 = 1e-4;

/// Runs a plan beside its golden.
fn holds(f: &Fixture, plan: Plan) -> Result<(), String> {
    let weights = Bytes(&f.checkpoint);
    let encodes = plan.entries.iter().any(|e| e.role == Role::Encode);
    let mut model = CpuModel::plan(Arc::new(plan), &weights, Precision::F32).map_err(|e| e.to_string())?;
    if encodes {
        let distance = encoder::tiny(f, &mut model);
        return if distance <= CLOSE { Ok(()) } else { Err(format!("{distance}")) };
    }
    let report = tiny(f, &mut model);
    let close = report.logits <= CLOSE && report.greedy_logits <= CLOSE && report.wrong_tokens == 0;
    if close { Ok(()) } else { Err(format!("{report:?}")) }
}

/// Rules that these graphs give nothing to do: builders make no such movement or arithmetic, and in f32 no casts.
/// `passes/tests/rule_properties.rs` evaluates the rules. Attention projects on tensor cores alone, which f32 has none
/// of: `projection.rs`.
const NOWHERE: [&str; 8] = [
    "attention-projection",
    "fold-cast",
    "fold-constants",
    "join-casts",
    "join-negations",
    "join-slices",
    "join-transposes",
    "times-one",
];

/// Its block takes seconds to saturate in a debug build: what others use, too, is checked there.
const SLOW: &str = "deepseek-v3";

/// What is off is not used, and the results hold: every rule and fusion, in each fixture that uses it (of [`SLOW`],
/// where no other does).
#[test]
fn a_disabled_fusion_is_gone_and_the_results_hold() {
    let fixtures = ["llama", "gemma2", "qwen2", "qwen3", "bert", "gpt2", "mixtral", "gpt-oss", SLOW];
    let compiled = |graph: &Graph, selection| compile_with(graph, "sm_90", DType::F32, 2, SIZES, selection);
    let opened = fixtures.map(|name| {
        let f = Fixture::open(name);
        let graph = f.graph(DType::F32);
        let all = compiled(&graph, Selection::default());
        (name, f, graph, all)
    });
    let pairs = opened.iter().flat_map(|of| {
        let used = weft_passes::names().into_iter().filter(|name| is_used(&of.3, name));
        used.map(move |name| (of, name))
    });
    let mut pairs: Vec<_> = pairs.collect();
    let others: BTreeSet<&str> = pairs.iter().filter(|(of, _)| of.0 != SLOW).map(|(_, name)| *name).collect();
    pairs.retain(|(of, name)| of.0 != SLOW || !others.contains(name));
    assert!(pairs.iter().any(|(of, _)| of.0 == SLOW));
    let used: BTreeSet<&str> = pairs.iter().map(|(_, name)| *name).collect();
    let unused: Vec<&str> = weft_passes::names().into_iter().filter(|n| !used.contains(n)).collect();
    assert_eq!(unused, NOWHERE, "rules and fusions that no fixture uses");
    let faults = pairs.par_iter().filter_map(|((fixture, f, graph, all), name)| {
        let c = compiled(graph, Selection::without(&[name]));
        if is_used(&c, name) {
            return Some(format!("{fixture}: {name} is off and used"));
        }
        // The plan with all of them is compared elsewhere.
        let same = c.plan == all.plan;
        let fault = (!same).then(|| holds(f, c.plan))?.err()?;
        Some(format!("{fixture} without {name}: {fault}"))
    });
    let faults: Vec<String> = faults.collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// No kernel is made by a rule of lowering above the class that is asked for.
#[test]
fn lowering_stays_within_the_class() {
    for fixture in ["llama", "qwen3", "gemma2", "bert", "gpt2", "mixtral", "gpt-oss", "deepseek-v3"] {
        let graph = Fixture::open(fixture).graph(DType::BF16);
        for class in Numerics::ALL {
            let c = compiled(&graph, Selection { numerics: class, ..Selection::default() });
            let allowed: Vec<&str> =
                Numerics::ALL.iter().filter(|n| **n <= class).map(|n| n.name()).collect();
            for work in &c.provenance.works {
                let above = work.lowering.iter().find(|r| !allowed.contains(&r.numerics.as_str()));
                assert!(above.is_none(), "{fixture} at {class}: {} by {above:?}", work.work);
            }
            assert!(c.provenance.works.iter().any(|w| !w.lowering.is_empty()), "{fixture} at {class}");
        }
    }
}

/// `--numerics` leaves whole classes out.
#[test]
fn numerics_select_classes() {
    let f = Fixture::open("llama");
    let graph = f.graph(DType::F32);
    for class in Numerics::ALL {
        let c = compiled(&graph, Selection { numerics: class, ..Selection::default() });
        for contract in c.context.contracts.iter().flat_map(|b| &b.contracts) {
            if contract.numerics > class {
                assert_eq!(contract.matched, 0, "{} at {class}", contract.fusion);
            }
        }
        assert!(matched(&c, "gated-activation") > 0, "{class}");
        let mut model = CpuModel::plan(Arc::new(c.plan), &Bytes(&f.checkpoint), Precision::F32)
            .unwrap_or_else(|e| panic!("{e}"));
        let report = tiny(&f, &mut model);
        assert!(report.logits <= 1e-4 && report.greedy_logits <= 1e-4, "{class}: {report:?}");
    }
}

fn synthetic(shape: LlamaShape) -> Graph {
    let folder = tempfile::tempdir().expect("folder");
    shape.write(folder.path()).expect("checkpoint");
    let checkpoint = Checkpoint::open(folder.path()).unwrap_or_else(|e| panic!("{e}"));
    weft_frontend::models::build(&checkpoint, DType::BF16).unwrap_or_else(|e| panic!("{e}"))
}

/// Dispatches of the body that decode steps use.
fn decode_dispatches(c: &Compiled) -> usize {
    let entry = c.plan.entries.iter().find(|e| e.role == Role::Decode).expect("a decode entry");
    c.plan.bodies[entry.body as usize].dispatches.len()
}

/// An entry by itself is a plan whose kernels are as they were.
#[test]
fn an_entry_by_itself_is_a_plan() {
    let plan = compiled(&Fixture::open("llama").graph(DType::BF16), Selection::default()).plan;
    let all = weft_codegen::emit(&plan).unwrap_or_else(|e| panic!("{e}"));
    // Comments say which entry uses a kernel first.
    let code = |source: &str| source.lines().filter(|l| !l.starts_with("//")).collect::<Vec<_>>().join("\n");
    for (i, entry) in plan.entries.iter().enumerate() {
        let only = plan.only(i).expect("an entry");
        weft_ir::verify::plan::verify(&only).unwrap_or_else(|f| panic!("{}: {f:?}", entry.name));
        let kernels = weft_codegen::emit(&only).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(kernels.len(), entry.kernels.len(), "{}", entry.name);
        assert!(kernels.len() < all.len());
        for k in kernels {
            let same = all.iter().find(|a| a.name == k.name).expect("a kernel");
            assert_eq!(code(&k.source), code(&same.source), "{}", entry.name);
        }
    }
    assert!(plan.only(plan.entries.len()).is_none());
}

/// All 30 layers of SmolLM2 match every decoder fusion, in at most 6 dispatches a layer and 4 more.
#[test]
fn smollm2_fuses_everywhere() {
    let c = compiled(&synthetic(SMOLLM2), Selection::default());
    let decode = c.context.contracts.iter().find(|b| b.body == "decode").expect("decode steps");
    for (name, sites) in [
        ("rms-norm", 61),
        ("residual-norm", 59),
        ("norm-prologue", 61),
        ("merge-linears", 60),
        ("gated-activation", 30),
        ("residual", 60),
        ("rope", 60),
        ("cache-write", 60),
        ("attention", 30),
    ] {
        let f = decode.contracts.iter().find(|c| c.fusion == name).expect(name);
        assert_eq!((f.matched, f.candidates), (sites, sites), "{name}: {:?}", f.misses.first());
    }
    let dispatches = decode_dispatches(&c);
    assert!(dispatches <= 30 * 6 + 4, "{dispatches} dispatches");
}

/// All 6 layers of MiniLM match every encoder fusion, in at most 6 dispatches a layer and 4 more.
#[test]
fn minilm_fuses_everywhere() {
    let c = compiled(&minilm(), Selection::default());
    let [encode] = &c.context.contracts[..] else { panic!("an encoder has one form of the step") };
    assert_eq!(encode.body, "encode");
    for f in &encode.contracts {
        assert_eq!(f.matched, f.candidates, "{}: {:?}", f.fusion, f.misses.first());
    }
    for (name, sites) in [
        ("layer-norm", 13),
        ("residual-norm", 12),
        ("merge-linears", 6),
        ("linear-bias", 36),
        ("linear-activation", 6),
        ("residual", 12),
        ("attention", 6),
    ] {
        let f = encode.contracts.iter().find(|c| c.fusion == name).expect(name);
        assert_eq!((f.matched, f.candidates), (sites, sites), "{name}");
    }
    let dispatches = c.plan.bodies[0].dispatches.len();
    assert!(dispatches <= 6 * 6 + 4, "{dispatches} dispatches");
}
