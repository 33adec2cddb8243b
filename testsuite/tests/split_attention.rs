//! Attention whose keys several blocks share: on the emulator against the f64 reference, with blocks in both
//! orders; keys outside a window are out of bounds; the same bits whatever else is in the step; what the schedule chooses; NVRTC without spills.

use weft_codegen::emulator::Order;
use weft_ir::dtype::DType;
use weft_ir::plan::{SPLIT_KEYS, Schedule};
use weft_ir::reference::StepInputs;
use weft_testsuite::attention::{Shape, Token, plan};
use weft_testsuite::emulate::{Distance, Emulated};
use weft_testsuite::nvrtc::{compile_all, load};

const LENGTHS: [i32; 9] = [1, 2, 63, 64, 65, 129, 256, 257, 1000];

fn tokens(lengths: &[i32]) -> Vec<Token> {
    lengths.iter().copied().enumerate().collect()
}

/// Heads of a block, warps, keys of a lane (or tiles of a warp) in flight, blocks that share the keys, and of a cluster.
type Parts = (u32, u32, u32, u32, u32);
/// A schedule of these parts: on tensor cores or not.
type Make = fn(Parts) -> Schedule;

fn rows((heads, warps, depth, splits, cluster): Parts) -> Schedule {
    Schedule::AttentionRow { warps, heads, depth, splits, cluster, late: cluster > 1 }
}

fn groups((heads, warps, depth, splits, cluster): Parts) -> Schedule {
    Schedule::AttentionGroup { warps, heads, depth, splits, cluster, late: cluster > 1 }
}

/// Results of a step, with blocks in an order; each kernel near the reference.
fn run(s: &Shape, tokens: &[Token], make: Make, parts: Parts, order: Order) -> Vec<u32> {
    let (plan, arrays) = plan(s, tokens, 8192, "sm_90", &|schedule| *schedule = make(parts));
    let mut emulated = Emulated::with_weights(&plan, &arrays);
    emulated.order = order;
    let distances = emulated.step("step", &StepInputs::default());
    let far: Vec<&Distance> = distances.iter().filter(|d| !d.is_close()).collect();
    assert!(far.is_empty(), "{s:?}, {parts:?}: {far:?}");
    // A second step finds the counters as the first did.
    if parts.3 > 1 && tokens.len() == 1 {
        emulated.step("step", &StepInputs::default());
    }
    emulated.output("y").into_iter().map(f32::to_bits).collect()
}

/// Blocks that share the keys, alone or in clusters: with two of these, the longest context has more keys than one takes.
const SHARES: [(u32, u32); 7] = [(1, 1), (2, 1), (5, 1), (16, 1), (8, 8), (6, 2), (16, 4)];

/// All lengths, by all shares, in both orders.
fn check(s: &Shape, make: Make, (heads, warps, depth): (u32, u32, u32)) {
    let step = tokens(&LENGTHS);
    let mut whole = Vec::new();
    for (splits, cluster) in SHARES {
        let parts = (heads, warps, depth, splits, cluster);
        let forward = run(s, &step, make, parts, Order::Forward);
        if splits == 1 || splits == 5 || cluster > 1 {
            // Keys that are loaded before the wait are the same keys.
            let early = run(&Shape { settled: true, ..*s }, &step, make, parts, Order::Forward);
            assert_eq!(early, forward, "{s:?}, {parts:?}: settled");
        }
        if splits == 1 {
            whole = forward;
            continue;
        }
        assert_eq!(
            forward,
            run(s, &step, make, parts, Order::Backward),
            "{s:?}, {parts:?}: the order of blocks shows"
        );
        // Of so few keys there is one block, which does what a kernel without splits does.
        let few = LENGTHS.iter().filter(|n| **n as usize <= SPLIT_KEYS).count();
        assert!(few > 0 && few < step.len());
        let few = few * forward.len() / step.len();
        assert_eq!(forward[..few], whole[..few], "{s:?}, {parts:?}");
    }
}

macro_rules! shapes {
    ($($test:ident: $shape:expr, $make:ident $parts:expr;)*) => {
        $(#[test] fn $test() { check(&$shape, $make, $parts); })*
    };
}

shapes! {
    heads_of_64: Shape::new(2, 1, 64, DType::BF16), rows(1, 16, 4);
    three_heads_of_80_together: Shape::new(1, 3, 80, DType::F16), rows(3, 4, 2);
    four_heads_of_128_together: Shape::new(2, 4, 128, DType::BF16), rows(4, 8, 4);
    eight_heads_of_32_in_pairs: Shape::new(1, 8, 32, DType::BF16), rows(2, 4, 1);
    window_of_300: Shape { window: Some(300), ..Shape::new(1, 4, 96, DType::F16) }, rows(2, 8, 1);
    capped_heads_of_256: Shape { cap: Some(5.0), ..Shape::new(1, 2, 256, DType::BF16) }, rows(1, 8, 2);
    window_of_one_key: Shape { window: Some(1), ..Shape::new(1, 2, 64, DType::BF16) }, rows(2, 4, 2);
    window_of_33_in_f32: Shape { window: Some(33), ..Shape::new(2, 1, 64, DType::F32) }, rows(1, 4, 2);
    sinks: Shape { sink: true, ..Shape::new(2, 2, 64, DType::F16) }, rows(2, 8, 2);
    sinks_and_a_window: Shape { sink: true, window: Some(100), ..Shape::new(1, 3, 64, DType::BF16) }, rows(1, 2, 4);
    one_head_on_tensor_cores: Shape::new(2, 1, 64, DType::BF16), groups(1, 4, 2);
    three_heads_on_tensor_cores: Shape::new(1, 3, 64, DType::F16), groups(3, 2, 1);
    four_heads_of_128_on_tensor_cores: Shape::new(2, 4, 128, DType::BF16), groups(4, 8, 1);
    sixteen_heads_in_two_blocks: Shape::new(1, 16, 64, DType::BF16), groups(8, 4, 2);
    seven_heads_with_sinks_and_a_window:
        Shape { sink: true, window: Some(100), cap: Some(5.0), ..Shape::new(1, 7, 64, DType::BF16) }, groups(7, 2, 4);
    window_of_one_key_on_tensor_cores:
        Shape { window: Some(1), ..Shape::new(1, 4, 64, DType::F16) }, groups(4, 4, 1);
    window_of_300_on_tensor_cores:
        Shape { window: Some(300), ..Shape::new(2, 2, 128, DType::BF16) }, groups(2, 2, 2);
    in_f32: Shape::new(1, 2, 64, DType::F32), rows(1, 4, 2);
}

#[test]
fn thousands_of_keys() {
    let s = Shape::new(1, 2, 64, DType::BF16);
    let makes: [(Make, [u32; 3]); 2] = [(rows, [2, 8, 4]), (groups, [2, 8, 2])];
    for (make, [heads, warps, depth], (splits, cluster)) in
        makes.into_iter().flat_map(|(m, p)| SHARES.into_iter().chain([(16, 8)]).map(move |n| (m, p, n)))
    {
        let parts = (heads, warps, depth, splits, cluster);
        let bits = run(&s, &tokens(&[4321]), make, parts, Order::Forward);
        assert_eq!(bits, run(&s, &tokens(&[4321]), make, parts, Order::Backward));
    }
}

#[test]
fn latent_attention() {
    let s = Shape { value_dim: 512, latent: true, ..Shape::new(1, 3, 576, DType::BF16) };
    for (splits, cluster) in [(1, 1), (2, 1), (5, 1), (8, 8)] {
        run(&s, &tokens(&[1, 257, 700]), rows, (1, 16, 4, splits, cluster), Order::Forward);
    }
}

/// Keys of earlier steps are loaded before the dependency wait, the token's own behind it.
#[test]
fn settled_keys_change_no_bit() {
    let makes: [(Make, Parts); 5] = [
        (rows, (2, 4, 2, 5, 1)),
        (groups, (4, 2, 1, 5, 1)),
        (groups, (4, 2, 2, 1, 1)),
        (rows, (2, 4, 2, 8, 4)),
        (groups, (4, 5, 2, 8, 8)),
    ];
    for (make, parts) in makes {
        let s = Shape::new(2, 4, 64, DType::BF16);
        let settled = Shape { settled: true, ..s };
        let step = tokens(&LENGTHS);
        let [late, early] = [&s, &settled].map(|s| run(s, &step, make, parts, Order::Forward));
        assert_eq!(late, early, "{parts:?}");
    }
}

#[test]
fn companions_do_not_show() {
    let s = Shape { sink: true, ..Shape::new(2, 2, 64, DType::BF16) };
    let all: Vec<Token> = vec![(0, 700), (1, 3), (2, 1500), (3, 256)];
    let shares = [(2, 1), (5, 1), (16, 1), (8, 8), (8, 2)];
    for (make, (splits, cluster)) in [rows as Make, groups].into_iter().flat_map(|m| shares.map(|n| (m, n))) {
        let parts = (2, 8, 2, splits, cluster);
        let together = run(&s, &all, make, parts, Order::Forward);
        let row = together.len() / all.len();
        for (i, t) in all.iter().enumerate() {
            assert_eq!(together[i * row..][..row], run(&s, &[*t], make, parts, Order::Forward), "{t:?}");
        }
        let other: Vec<Token> = vec![(3, 900), (2, 1500)];
        assert_eq!(together[2 * row..][..row], run(&s, &other, make, parts, Order::Backward)[row..]);
    }
}

#[test]
fn a_token_has_the_same_bits_alone_and_with_another() {
    for s in [Shape::new(2, 4, 64, DType::BF16), Shape::new(1, 2, 128, DType::F16)] {
        let step: Vec<Token> = vec![(0, 700), (2, 1500)];
        let of = |tokens: &[Token]| {
            let (plan, arrays) = plan(&s, tokens, 131_072, "sm_90", &|_| {});
            let mut emulated = Emulated::with_weights(&plan, &arrays);
            emulated.step("step", &StepInputs::default());
            (plan.kernels[0].schedule.clone(), emulated.output("y"))
        };
        let (all, together) = of(&step);
        let row = together.len() / step.len();
        let (one, alone) = of(&step[1..]);
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&together[row..]), bits(&alone), "{all:?}, {one:?}");
    }
}

/// Warps, heads, loads in flight, splits and blocks of a cluster, of a bucket of so many tokens and this context.
fn chosen(s: &Shape, tokens: usize, context: usize) -> [u32; 5] {
    let (plan, _) = plan(s, &vec![(0, 1); tokens], context, "sm_90", &|_| {});
    match plan.kernels[0].schedule {
        Schedule::AttentionRow { warps, heads, depth, splits, cluster, late: _ }
        | Schedule::AttentionGroup { warps, heads, depth, splits, cluster, late: _ } => {
            [warps, heads, depth, splits, cluster]
        }
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn splits_fill_the_gpu_within_bounds() {
    let llama8b = Shape::new(8, 4, 128, DType::BF16);
    assert_eq!(chosen(&llama8b, 1, 131_072), [8, 4, 1, 16, 1]);
    assert_eq!(chosen(&llama8b, 1, 1024), [8, 4, 1, 16, 1]);
    assert_eq!(chosen(&llama8b, 2, 1024), [8, 4, 1, 16, 1]);
    // More tokens share the SMs.
    assert_eq!(chosen(&llama8b, 8, 1024), [8, 4, 1, 2, 1]);
    assert_eq!(chosen(&llama8b, 16, 1024), [8, 4, 1, 1, 1]);
    // Few clusters: one for each key head while its blocks have few keys, then as many as fill the GPU.
    let smollm2 = Shape::new(3, 3, 64, DType::BF16);
    assert_eq!(chosen(&smollm2, 1, 2048), [9, 3, 1, 8, 8]);
    assert_eq!(chosen(&smollm2, 1, 2049), [9, 3, 1, 32, 8]);
    assert_eq!(chosen(&smollm2, 2, 131_072), [9, 3, 1, 40, 8]);
    assert_eq!(chosen(&smollm2, 8, 131_072), [8, 3, 1, 5, 1]);
    assert_eq!(chosen(&Shape::new(1, 8, 256, DType::BF16), 1, 2048), [8, 2, 4, 32, 8]);
    for s in [
        llama8b,
        Shape::new(3, 3, 64, DType::BF16),
        Shape::new(32, 1, 80, DType::F16),
        Shape::new(1, 8, 256, DType::BF16),
        Shape::new(2, 7, 96, DType::F32),
    ] {
        for context in [1, 255, 256, 511, 2048, 32_768, 131_072] {
            let [warps, one, depth, splits, cluster] = chosen(&s, 1, context);
            assert!(splits.is_multiple_of(cluster), "{s:?}, {context}: {splits} splits by {cluster}");
            assert!(splits == 1 || context / splits as usize >= SPLIT_KEYS, "{s:?}, {context}: {splits}");
            // About the 132 SMs, or twice as many, where there are keys enough for so many blocks.
            let blocks = s.kv_heads * s.group / one as usize;
            let one_cluster = cluster > 1 && splits == cluster;
            if !one_cluster && blocks < 132 && blocks * (context / SPLIT_KEYS) >= 264 {
                assert!((99..=330).contains(&(blocks * splits as usize)), "{s:?}, {context}");
            }
            for tokens in [4, 8, 16] {
                let [_, heads, _, n, c] = chosen(&s, tokens, context);
                assert!(s.group.is_multiple_of(heads as usize) && n.is_multiple_of(c));
                assert!(n == 1 || context / n as usize >= SPLIT_KEYS, "{s:?}, {tokens}, {context}: {n}");
                let blocks = tokens * s.kv_heads * s.group / heads as usize * n as usize;
                assert!(n == 1 || blocks <= 330, "{s:?}, {tokens}, {context}: {blocks}");
            }
            let [w, heads, d, n, c] = chosen(&s, 2, context);
            assert!(s.group.is_multiple_of(heads as usize));
            assert_eq!(
                (w, d, n, c),
                (warps, depth, splits, cluster),
                "{s:?}, {context}: two tokens' sums in another order"
            );
        }
    }
}

/// Prefill skips tiles of keys that no token of a run sees; the rest of a tile is hidden by the score.
#[test]
fn windows_in_tiles_of_tokens() {
    fn tile(_: Parts) -> Schedule {
        Schedule::AttentionTile { tile_q: 64, tile_k: 64, stages: 2 }
    }
    fn one_stage(_: Parts) -> Schedule {
        Schedule::AttentionTile { tile_q: 64, tile_k: 64, stages: 1 }
    }
    let parts = (1, 4, 1, 1, 1);
    for window in [1, 40, 200] {
        let s = Shape { window: Some(window), ..Shape::new(1, 2, 64, DType::BF16) };
        // Tokens of sequences that begin, and that go on far from their beginning.
        let step: Vec<Token> = (1..30).chain(190..230).chain(610..660).map(|n| (0, n)).collect();
        let forward = run(&s, &step, tile, parts, Order::Forward);
        assert_eq!(forward, run(&s, &step, tile, parts, Order::Backward), "{s:?}");
        assert_eq!(forward, run(&s, &step, one_stage, parts, Order::Forward), "{s:?}");
        // A token's bits are its own, wherever the keys of its run begin.
        let row = forward.len() / step.len();
        let some = run(&s, &step[25..90], tile, parts, Order::Forward);
        assert_eq!(forward[25 * row..90 * row], some, "{s:?}");
    }
}

/// A window is shared by as many blocks as a context of its length.
#[test]
fn splits_follow_the_window() {
    for s in [Shape::new(8, 4, 128, DType::BF16), Shape::new(1, 8, 256, DType::BF16)] {
        for window in [16, 512, 4096] {
            let windowed = Shape { window: Some(window), ..s };
            for tokens in [1, 8] {
                let all = chosen(&s, tokens, window as usize);
                assert_eq!(chosen(&windowed, tokens, 131_072), all, "{windowed:?}, {tokens}");
                assert_eq!(chosen(&windowed, tokens, 8), chosen(&s, tokens, 8), "{windowed:?}, {tokens}");
            }
        }
    }
}

/// Dependents of clusters start behind the wait where all keys are on their way by then, else when the last are: the
/// weights of the projection behind it would hold them up.
#[test]
fn dependents_start_behind_the_last_loads() {
    let shape = Shape { settled: true, ..Shape::new(3, 3, 64, DType::BF16) };
    let starts = |s: &Shape, context: usize, make: Make, parts: Parts| {
        let (plan, _) = plan(s, &tokens(&[100]), context, "sm_90", &|schedule| *schedule = make(parts));
        let kernels = weft_codegen::emit(&plan).unwrap_or_else(|e| panic!("{e}"));
        let calls = kernels[0].source.matches("grid_dependency_launch();").count();
        let waits = kernels[0].source.contains("if (rounds < 2) {\n        grid_dependency_launch();");
        let loops = kernels[0].source.contains("if (round + 2 >= rounds) {");
        (calls, waits, loops)
    };
    let (once, last) = ((1, false, false), (2, true, true));
    // 8 blocks of 10 tiles of 16 keys.
    let parts = (3, 10, 1, 8, 8);
    assert_eq!(starts(&shape, 1280, groups, parts), once);
    assert_eq!(starts(&shape, 1281, groups, parts), last);
    assert_eq!(starts(&Shape { window: Some(1024), ..shape }, 8192, groups, parts), once);
    // 8 blocks of 8 warps that take 4 keys a round.
    let parts = (3, 8, 1, 8, 8);
    assert_eq!(starts(&shape, 256, rows, parts), (2, true, true));
    // Where clusters share long contexts, each of the few takes more than a round.
    let parts = (3, 10, 1, 64, 8);
    assert_eq!(starts(&shape, 8192, groups, parts), last);
    // Dependents that start at once, and keys that are not there before the wait.
    assert_eq!(starts(&shape, 8192, groups, (3, 10, 1, 16, 1)), once);
    assert_eq!(starts(&Shape { settled: false, ..shape }, 8192, groups, (3, 10, 1, 8, 8)), once);
}

#[test]
fn kernels_compile_without_spills() {
    let Some(nvrtc) = load() else { return };
    let shapes = [
        Shape::new(8, 4, 128, DType::BF16),
        Shape::new(3, 3, 64, DType::F16),
        Shape { window: Some(512), ..Shape::new(1, 8, 96, DType::BF16) },
        Shape { cap: Some(30.0), ..Shape::new(1, 2, 256, DType::BF16) },
        Shape { sink: true, ..Shape::new(8, 8, 64, DType::BF16) },
        Shape::new(8, 4, 80, DType::F16),
        Shape::new(8, 8, 32, DType::BF16),
        Shape::new(2, 4, 128, DType::F32),
        Shape { value_dim: 512, latent: true, ..Shape::new(1, 16, 576, DType::BF16) },
        Shape { settled: true, ..Shape::new(8, 4, 128, DType::BF16) },
        Shape { settled: true, ..Shape::new(3, 3, 64, DType::F16) },
        Shape { settled: true, sink: true, ..Shape::new(8, 8, 64, DType::BF16) },
        Shape { settled: true, window: Some(1024), ..Shape::new(4, 2, 256, DType::BF16) },
        Shape { settled: true, window: Some(128), sink: true, ..Shape::new(8, 8, 64, DType::BF16) },
    ];
    for (target, arch) in [("sm_80", "sm_80"), ("sm_90", "sm_90a")] {
        for s in &shapes {
            for (tokens, context) in [(1, 2048), (1, 131_072), (8, 2048), (8, 131_072)] {
                let (plan, _) = plan(s, &vec![(0, 1); tokens], context, target, &|_| {});
                let kernels = weft_codegen::emit(&plan).unwrap_or_else(|e| panic!("{e}"));
                for b in compile_all(&nvrtc, &kernels, arch) {
                    let used = b.compiled.report.kernel(&b.name).expect("a report");
                    let what = format!("{target} {s:?} {:?}: {used:?}", plan.kernels[0].schedule);
                    assert_eq!((used.spill_stores, used.spill_loads, used.stack), (0, 0, 0), "{what}");
                }
            }
        }
    }
}

/// As many keys as the longest contexts have, by the schedules that are chosen for them.
#[test]
fn a_context_of_131072() {
    const KEYS: i32 = 131_072;
    for s in [Shape::new(1, 4, 64, DType::BF16), Shape::new(1, 1, 32, DType::F32)] {
        let s = Shape { settled: true, ..s };
        let (plan, arrays) = plan(&s, &[(0, KEYS)], KEYS as usize, "sm_90", &|_| {});
        match plan.kernels[0].schedule {
            Schedule::AttentionRow { splits, .. } | Schedule::AttentionGroup { splits, .. } => {
                assert!(splits >= 16, "{:?}", plan.kernels[0].schedule);
            }
            ref other => panic!("{other:?}"),
        }
        for order in [Order::Forward, Order::Backward] {
            let mut emulated = Emulated::with_weights(&plan, &arrays);
            emulated.order = order;
            let distances = emulated.step("step", &StepInputs::default());
            let far: Vec<&Distance> = distances.iter().filter(|d| !d.is_close()).collect();
            assert!(far.is_empty() && !distances.is_empty(), "{s:?}: {far:?}");
        }
    }
}
