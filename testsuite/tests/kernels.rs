//! What is emitted: one kernel of each family, as text, so that a change of the compiler that alters kernels shows in
//! its diff; each is compiled by NVRTC. Small shapes; `cargo xtask bless` takes what changed as it should.

use weft_codegen::Emitted;
use weft_testsuite::kernel_cases::{Case, cases};
use weft_testsuite::kernel_families::Family;
use weft_testsuite::nvrtc;

/// The cases whose first kernel of a family is shown: those whose names begin so.
fn shown(family: Family) -> &'static str {
    match family {
        Family::Pointwise | Family::WarpRow => "llama-ops",
        Family::Gather
        | Family::Scatter
        | Family::GemvDraw
        | Family::GemmDraw
        | Family::GemmRow
        | Family::Advance => "llama-a",
        Family::Gemv => "1×37×33",
        Family::GemvSplit => "tuned Gemv",
        Family::Gemm => "13×37×72",
        Family::GemmWarpgroup => "70×150×104",
        Family::AttentionRow
        | Family::AttentionRowSplit
        | Family::AttentionRowCluster
        | Family::AttentionGroup
        | Family::AttentionGroupSplit
        | Family::AttentionGroupCluster
        | Family::AttentionTile => "Shape",
        Family::AttentionRowMade => "normed-d",
        Family::AttentionGroupMade => "normed-b",
        Family::AttentionGroupProjected => "projected-a",
        Family::BlockRow
        | Family::GemmLeft
        | Family::RowSteps
        | Family::RoutedGemv
        | Family::RoutedGemm
        | Family::GroupPairs
        | Family::Penalize
        | Family::Sample => "experts-a",
    }
}

/// The kernel of a family that is shown.
fn example(cases: &[Case], family: Family) -> Emitted {
    let of_case = |case: &&Case| case.name.starts_with(shown(family));
    let found = cases.iter().filter(of_case).find_map(|case| {
        let plan = &case.plan;
        let is =
            |k: &weft_ir::plan::KernelSpec| Family::of(&plan.works[k.work as usize], &k.schedule) == family;
        let at = plan.kernels.iter().position(is)?;
        let mut emitted = weft_codegen::emit(plan).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        Some(emitted.swap_remove(at))
    });
    found.unwrap_or_else(|| panic!("no case named {}… has a kernel of {family:?}", shown(family)))
}

#[test]
fn one_of_each_family() {
    let cases = cases();
    let examples: Vec<(Family, Emitted)> = Family::ALL.iter().map(|&f| (f, example(&cases, f))).collect();
    if let Some(nvrtc) = nvrtc::load() {
        for (family, kernel) in &examples {
            for built in nvrtc::compile_all(&nvrtc, std::slice::from_ref(kernel), "sm_90a") {
                let used = built.compiled.report.kernel(&kernel.name).expect("a report");
                assert_eq!((used.spill_stores, used.spill_loads), (0, 0), "{family:?} spills");
            }
        }
    }
    for (family, kernel) in examples {
        let suffix = format!("{family:?}");
        insta::with_settings!({ snapshot_suffix => suffix, omit_expression => true }, {
            insta::assert_snapshot!("kernel", kernel.source);
        });
    }
}
