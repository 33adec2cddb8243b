//! Legal schedules.

use crate::{attention, linear, plan_with, product, projecting, target};
use weft_ir::plan::{Compute, KernelSpec, Role, Schedule, Work};
use weft_ir::shape::Bindings;
use weft_ir::target::TARGETS;
use weft_passes::schedule::candidates::{candidates, legal};
use weft_passes::schedule::database::Database;

#[test]
fn candidates_are_legal_distinct_and_begin_with_the_estimate() {
    for target in TARGETS {
        for (n, k) in [(640, 576), (8192, 2048), (100, 33), (128_256, 2048), (4096, 14336)] {
            let plan = plan_with(&linear(n, k), target, Database::default());
            for tokens in [1, 2] {
                let (work, bind) = product(&plan, tokens);
                let all = candidates(work, &bind, target);
                assert!(all.len() > 20, "{n}×{k}: {}", all.len());
                assert_eq!(all[0], weft_passes::schedule::choose(work, &bind, target).0);
                for (i, s) in all.iter().enumerate().skip(1) {
                    legal(work, s, target).unwrap_or_else(|why| panic!("{n}×{k}: {s:?}: {why}"));
                    assert!(!all[..i].contains(s));
                }
                for s in &all {
                    let Schedule::Gemv { rows, blocks, .. } = s else { panic!("{s:?}") };
                    assert!(*rows as usize == tokens && *blocks <= 4 * target.profile.sms, "{n}×{k}: {s:?}");
                }
            }
        }
        let work = attention(8, 4, 128);
        let bind = Bindings { tokens: 2, seqs: 8, rows: 2, context: 512, slots: 4096 };
        let all = candidates(&work, &bind, target);
        assert!(all.len() > 10);
        assert!(all.iter().any(|s| matches!(s, Schedule::AttentionRow { heads: 4, .. })));
        assert!(candidates(&work, &Bindings { tokens: 64, ..bind }, target).is_empty());
    }
}

/// Attention that projects: clusters that have all keys and heads, whose threads hold their part of the weight.
#[test]
fn projecting_attention_has_whole_clusters() {
    let target = target();
    let work = projecting(3, 3, 64, 576);
    for (tokens, context, most) in [(1, 1280, 8), (2, 1280, 8), (1, 256, 4), (1, 8192, 8)] {
        let bind = Bindings { tokens, seqs: 8, rows: tokens, context, slots: 1 << 16 };
        let all = candidates(&work, &bind, target);
        assert!(all.len() > 8, "{all:?}");
        let mut largest = 0;
        for s in &all {
            legal(&work, s, target).unwrap_or_else(|why| panic!("{s:?}: {why}"));
            let Schedule::AttentionGroup { heads: 3, splits, cluster, .. } = s else { panic!("{s:?}") };
            assert!(splits == cluster && *cluster > 1, "{s:?}");
            largest = largest.max(*cluster);
        }
        assert_eq!((largest, &all[0]), (most, &weft_passes::schedule::choose(&work, &bind, target).0));
    }
    let group = |warps, heads, splits, cluster| Schedule::AttentionGroup {
        warps,
        heads,
        depth: 1,
        splits,
        cluster,
        late: true,
    };
    let why = |work: &Work, s: &Schedule| legal(work, s, target).expect_err("not legal");
    for s in [group(8, 3, 16, 8), group(8, 1, 8, 8), group(8, 3, 1, 1), group(8, 3, 8, 1)] {
        assert!(why(&work, &s).contains("no cluster has all keys"), "{s:?}");
    }
    let row = Schedule::AttentionRow { warps: 8, heads: 3, depth: 1, splits: 8, cluster: 8, late: true };
    assert!(why(&work, &row).contains("only blocks on tensor cores project"));
    // A lane's columns are at most its group's lanes; their weight takes registers.
    assert!(
        why(&work, &group(1, 3, 2, 2)).contains("288 columns of 24 vectors by 1 warps: 72 turns, at most 8")
    );
    assert!(why(&projecting(1, 8, 128, 2048), &group(8, 8, 8, 8)).contains("registers a thread"));
}

/// What follows the first loads comes to L2, where the target has bulk prefetches and rows are whole pieces of 16 bytes;
/// never more than the row, nor much more than an SM is to ask for.
#[test]
fn prefetches_follow_target_and_row() {
    for target in TARGETS {
        for (n, k, some) in [(8192, 8192, true), (4096, 2048, true), (8192, 33, false)] {
            let plan = plan_with(&linear(n, k), target, Database::default());
            let (work, bind) = product(&plan, 1);
            let mut found = false;
            for s in candidates(work, &bind, target) {
                let Schedule::Gemv { lanes, split, depth, ahead, .. } = s else { panic!("{s:?}") };
                let first = 16 * lanes * split * depth;
                assert!(ahead == 0 || first + ahead <= 2 * k as u32, "{n}×{k}: {s:?}");
                assert!(ahead <= 64 * 1024, "{s:?}");
                found |= ahead > 0;
            }
            assert_eq!(found, some && target.features.tma, "{}: {n}×{k}", target.name);
        }
    }
}

#[test]
fn what_is_not_legal_says_why() {
    let plan = plan_with(&linear(640, 576), target(), Database::default());
    let (work, _) = product(&plan, 1);
    let says = |s: Schedule, what: &str| {
        let why = legal(work, &s, target()).expect_err(what);
        assert!(why.contains(what), "{why}");
    };
    let gemv = |warps, lanes, split, columns, depth| Schedule::Gemv {
        rows: 1,
        warps,
        lanes,
        split,
        columns,
        depth,
        blocks: 1,
        staged: true,
        resident: 1,
        behind: 0,
        ahead: 0,
        late: false,
    };
    says(gemv(4, 16, 2, 1, 1), "teams of 16 lanes × 2");
    says(gemv(4, 32, 3, 1, 1), "teams");
    says(gemv(4, 32, 1, 8, 9), "registers");
    says(gemv(40, 32, 1, 1, 1), "warps");
    let mut five_of_16_warps = gemv(16, 32, 1, 1, 1);
    if let Schedule::Gemv { resident, .. } = &mut five_of_16_warps {
        *resident = 5;
    }
    says(five_of_16_warps, "5 blocks of 16 warps on an SM");
    let mut parted = gemv(4, 32, 1, 2, 2);
    if let Schedule::Gemv { behind, .. } = &mut parted {
        *behind = 3;
    }
    says(parted, "3 of 2 × 2 loads behind the wait");
    says(
        Schedule::AttentionRow { warps: 4, heads: 1, depth: 1, splits: 1, cluster: 1, late: false },
        "another family",
    );
    // A target without bulk prefetches, and rows that are not whole pieces.
    let old = &TARGETS[0];
    assert!(!old.features.tma);
    let plain = gemv(4, 32, 1, 1, 1);
    let mut prefetching = plain.clone();
    if let Schedule::Gemv { ahead, .. } = &mut prefetching {
        *ahead = 128;
    }
    assert_eq!((legal(work, &plain, old), legal(work, &prefetching, target())), (Ok(()), Ok(())));
    let why = legal(work, &prefetching, old).expect_err("a prefetch");
    assert!(why.contains("cannot be prefetched"), "{why}");
    let odd = plan_with(&linear(640, 33), target(), Database::default());
    let (odd, _) = product(&odd, 1);
    let why = legal(odd, &prefetching, target()).expect_err("a prefetch");
    assert!(why.contains("cannot be prefetched"), "{why}");
}

/// Blocks of 16 warps, of which some multiprocessors had two and others one, become two of 12 on nearly all, where the left
/// operand is stored; sums keep their order in a step of two rows.
#[test]
fn the_estimate_evens_out_what_multiprocessors_have_to_do() {
    let of = |n: usize, tokens: usize| {
        let second = format!(
            "%5 = weight \"v\" -> bf16[{n}, {n}]\n%6 = matmul.t %4, %5 -> bf16[tokens, {n}]\noutput \"y\" = %6\n"
        );
        let text = linear(n, 64).replace("output \"y\" = %4\n", &second);
        let plan = plan_with(&text, target(), Database::default());
        let entry = plan.entries.iter().find(|e| e.role == Role::Decode && e.bind.tokens == tokens);
        let kernels = entry.expect("an entry").kernels.values().map(|k| &plan.kernels[k.index()]);
        let second = |k: &&KernelSpec| match &plan.works[k.work as usize].compute {
            Compute::MatMul(m) => m.k == n,
            _ => false,
        };
        kernels.into_iter().find(second).expect("a product").schedule.clone()
    };
    let even = Schedule::Gemv {
        rows: 1,
        warps: 12,
        lanes: 32,
        split: 4,
        columns: 2,
        depth: 3,
        blocks: 256,
        staged: true,
        resident: 2,
        behind: 2,
        ahead: 2048,
        late: false,
    };
    assert_eq!(of(3072, 1), even);
    let Schedule::Gemv { rows: 2, warps: 12, lanes: 32, split: 4, behind: 0, .. } = of(3072, 2) else {
        panic!()
    };
    for n in [2048, 3584, 4096, 5120] {
        let Schedule::Gemv { warps: 16, split: 4, behind: 0, .. } = of(n, 1) else { panic!("{n}") };
    }
}
