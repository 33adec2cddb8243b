//! Every emitted kernel compiles under NVRTC for its target; on sm_90 none spills.

use std::collections::BTreeSet;
use weft_frontend::checkpoint::Checkpoint;
use weft_ir::dtype::DType;
use weft_ir::target::{TARGETS, Target};
use weft_testsuite::fixture::{Fixture, List, checkpoints, compile};
use weft_testsuite::nvrtc::{compile_all, load};
use weft_testsuite::synthetic::{SMOLLM2, deepseek_v3, shape};

fn check(graph: &weft_ir::graph::Graph, target: &Target, dtype: DType, opt_level: u8) {
    let Some(nvrtc) = load() else { return };
    let plan = compile(graph, target.name, dtype, opt_level, (2048, 8));
    let kernels = weft_codegen::emit(&plan).unwrap_or_else(|e| panic!("{e}"));
    let built = compile_all(&nvrtc, &kernels, target.nvrtc_arch);
    assert_eq!(built.len(), plan.kernels.len());
    for b in &built {
        let used = b.compiled.report.kernel(&b.name).unwrap_or_else(|| panic!("{}: no report", b.name));
        if target.name == "sm_90" {
            let spills = (used.spill_stores, used.spill_loads);
            assert_eq!(spills, (0, 0), "{} spills on {}", b.name, target.name);
        }
    }
}

#[test]
fn tiny_llama_for_every_target() {
    let graph = Fixture::open("llama").graph(DType::BF16);
    for target in TARGETS {
        check(&graph, target, DType::BF16, 2);
    }
}

/// What the test of delays runs on a GPU.
#[test]
fn tiny_llama_with_delays() {
    let Some(nvrtc) = load() else { return };
    let plan = compile(&Fixture::open("llama").graph(DType::BF16), "sm_90", DType::BF16, 2, (96, 4));
    let change = |kernel| weft_codegen::delays::delayed(&kernel, 1);
    let kernels = weft_codegen::emit_with(&plan, &change).unwrap_or_else(|e| panic!("{e}"));
    assert!(kernels.iter().all(|k| k.source.contains("__nanosleep(")));
    assert_eq!(compile_all(&nvrtc, &kernels, "sm_90a").len(), plan.kernels.len());
}

#[test]
fn tiny_llama_unfused() {
    let graph = Fixture::open("llama").graph(DType::BF16);
    check(&graph, Target::parse("sm_90").expect("sm_90"), DType::BF16, 0);
}

#[test]
fn tiny_llama_in_other_types() {
    let target = Target::parse("sm_90").expect("sm_90");
    for dtype in [DType::F16, DType::F32] {
        check(&Fixture::open("llama").graph(dtype), target, dtype, 2);
    }
}

#[test]
fn smollm2_for_every_target() {
    let folder = tempfile::tempdir().expect("folder");
    SMOLLM2.write(folder.path()).expect("checkpoint");
    let checkpoint = Checkpoint::open(folder.path()).unwrap_or_else(|e| panic!("{e}"));
    let graph = weft_frontend::models::build(&checkpoint, DType::BF16).unwrap_or_else(|e| panic!("{e}"));
    for target in TARGETS {
        check(&graph, target, DType::BF16, 2);
    }
}

/// Two layers of public shapes: the kernels of all of them, the largest tiles among them.
#[test]
fn public_shapes() {
    let target = Target::parse("sm_90").expect("sm_90");
    for name in ["qwen3-4b", "llama-3.1-8b"] {
        eprintln!("{name}");
        check(&shape(name, 2), target, DType::BF16, 2);
    }
}

/// Kernels of heads of 192 and 128, and of 576 and 512.
#[test]
fn deepseek_v3_at_its_size() {
    check(&deepseek_v3(4), Target::parse("sm_90").expect("sm_90"), DType::BF16, 2);
}

#[test]
fn tiny_families() {
    let target = Target::parse("sm_90").expect("sm_90");
    let families = [
        "mistral-sliding",
        "qwen2",
        "qwen3",
        "gemma2",
        "gemma3",
        "phi3",
        "gpt2",
        "gpt-neox",
        "olmo2",
        "bloom",
        "falcon",
        "mixtral",
        "qwen3-moe",
        "gpt-oss",
        "deepseek-v3",
    ];
    for name in families {
        eprintln!("{name}");
        check(&Fixture::open(name).graph(DType::BF16), target, DType::BF16, 2);
    }
}

/// What `gpu_families` runs.
#[test]
#[ignore = "takes minutes"]
fn every_checkpoint() {
    let Some(nvrtc) = load() else { return };
    let mut seen = BTreeSet::new();
    for (list, level, max_seq) in [(List::Tiny, 0, 64), (List::Tiny, 2, 64), (List::Variants, 2, 32)] {
        for path in checkpoints(list) {
            let graph = Fixture::at(path.clone()).graph(DType::BF16);
            let plan = compile(&graph, "sm_90", DType::BF16, level, (max_seq, 2));
            let mut kernels = weft_codegen::emit(&plan).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            kernels.retain(|k| seen.insert(k.source.clone()));
            eprintln!("{} at level {level}: {} new kernels", path.display(), kernels.len());
            compile_all(&nvrtc, &kernels, "sm_90a");
        }
    }
}

#[test]
fn the_streaming_kernel_for_every_target() {
    let Some(nvrtc) = load() else { return };
    for target in TARGETS {
        let kernel = weft_codegen::kernels::emit_stream(target.features.programmatic_launch);
        let kernel = kernel.unwrap_or_else(|e| panic!("{e}"));
        let built = compile_all(&nvrtc, std::slice::from_ref(&kernel), target.nvrtc_arch);
        let used = built[0].compiled.report.kernel(&kernel.name).expect("a report");
        assert_eq!((used.spill_stores, used.spill_loads), (0, 0), "{}", target.name);
        // Two blocks of 512 threads share an SM's registers.
        assert!(used.registers <= 64, "{}: {} registers", target.name, used.registers);
    }
}
