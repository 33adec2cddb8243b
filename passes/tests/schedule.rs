//! Schedules: buckets, kernel families, and why a family was not taken.

use weft_ir::dtype::DType;
use weft_ir::graph::parse;
use weft_ir::plan::{Plan, Role, Schedule};
use weft_ir::target::Target;
use weft_passes::schedule::{ALONE, buckets};
use weft_passes::{Options, compile};

fn plan(text: &str, dtype: DType, target: &str) -> Plan {
    let graph = parse(text).unwrap_or_else(|e| panic!("{e}"));
    let target = Target::parse(target).expect("target");
    let options = Options {
        target,
        dtype,
        opt_level: 2,
        max_seq: 2048,
        max_batch: 8,
        selection: Default::default(),
        dump: false,
        schedules: Default::default(),
    };
    compile(&graph, options).unwrap_or_else(|e| panic!("{e}")).plan
}

fn linear(dtype: &str, k: usize) -> String {
    format!(
        "%0 = weight \"e\" -> {dtype}[100, {k}]\n%1 = input token_ids -> i32[tokens]\n\
         %2 = gather %0, %1 -> {dtype}[tokens, {k}]\n%3 = weight \"w\" -> {dtype}[640, {k}]\n\
         %4 = matmul.t %2, %3 -> {dtype}[tokens, 640]\noutput \"y\" = %4\n"
    )
}

fn schedules(plan: &Plan, role: Role) -> Vec<(&Schedule, Option<&str>)> {
    let is_product = |w: &u32| plan.works[*w as usize].ops.iter().any(|o| o == "matmul");
    let entries = plan.entries.iter().filter(|e| e.role == role);
    entries
        .map(|e| {
            let (_, k) = e.kernels.iter().find(|(w, _)| is_product(w)).expect("matmul");
            let k = &plan.kernels[k.index()];
            (&k.schedule, k.fallback.as_deref())
        })
        .collect()
}

#[test]
fn buckets_follow_the_limits() {
    let names =
        |seq, batch, level| buckets(seq, batch, level).into_iter().map(|b| b.name).collect::<Vec<_>>();
    assert_eq!(
        names(2048, 8, 2),
        [
            "decode_1",
            "decode_2",
            "decode_4",
            "decode_8",
            "prefill_16",
            "prefill_64",
            "prefill_128",
            "prefill_256",
            "prefill_512",
            "prefill_1024",
            "score_64",
            "score_256"
        ]
    );
    assert_eq!(
        names(2048, 11, 2)[..6],
        ["decode_1", "decode_2", "decode_4", "decode_8", "decode_16", "prefill_16"]
    );
    assert_eq!(names(10, 1, 2), ["decode_1", "prefill_16", "score_64"]);
    assert_eq!(names(2048, 2, 0), ["decode_1", "decode_2", "prefill_16", "prefill_64", "score_64"]);
}

#[test]
fn decode_streams_and_prefill_uses_tensor_cores() {
    let plan = plan(&linear("bf16", 512), DType::BF16, "sm_90");
    for entry in plan.entries.iter().filter(|e| e.role == Role::Decode) {
        for kernel in entry.kernels.values().map(|k| &plan.kernels[k.index()]) {
            let streams = matches!(kernel.schedule, Schedule::Gemv { .. });
            assert_eq!(streams, entry.bind.tokens <= ALONE, "{}: {:?}", entry.name, kernel.schedule);
        }
    }
    assert!(schedules(&plan, Role::Prefill).iter().all(|(s, _)| s.on_tensor_cores()));
    assert!(plan.kernels.iter().all(|k| k.fallback.is_none()));
}

#[test]
fn a_fallback_says_why() {
    for (dtype, d, k, why) in [
        ("f32", DType::F32, 512, "more than 8 rows: tensor cores take f16 and bf16, not f32"),
        ("bf16", DType::BF16, 500, "more than 8 rows: k = 500 is not a multiple of 8 (16-byte rows)"),
    ] {
        let plan = plan(&linear(dtype, k), d, "sm_90");
        for (schedule, fallback) in schedules(&plan, Role::Prefill) {
            assert!(matches!(schedule, Schedule::Gemv { .. }));
            assert_eq!(fallback, Some(why));
        }
    }
}

#[test]
fn programmatic_launch_follows_the_target() {
    for (target, programmatic) in [("sm_80", false), ("sm_89", false), ("sm_90", true), ("sm_120", true)] {
        let plan = plan(&linear("bf16", 512), DType::BF16, target);
        assert!(plan.kernels.iter().all(|k| k.programmatic == programmatic), "{target}");
    }
}
