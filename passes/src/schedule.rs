//! Scheduling: the kernel family, tiles and grid of each work in each bucket.
//!
//! Before: works. After: a [`KernelSpec`] for each work and bucket; buckets whose choice is the same share
//! the kernel. Where the fast family cannot take a work, the reason is kept as its fallback and reported.
//! Tests: `passes/tests/schedule.rs`.

mod adapt;
mod ahead;
mod attention;
pub mod candidates;
pub mod database;
mod gemm;
mod gemv;
mod key;
mod neighbours;
mod routed;
mod row;
mod search;
pub mod tune;

pub(crate) use attention::projects;
use database::Database;
use gemm::no_mma;
pub(crate) use gemm::no_tiles;
pub(crate) use row::{REDUCTIONS as ROW_REDUCTIONS, takes as takes_rows};

use std::collections::BTreeMap;
use weft_ir::ids::KernelId;
use weft_ir::plan::{
    Compute, Extent, Grid, KernelSpec, Loop, MatMul, Role, Schedule, ScheduleSource, Scratch, Work,
};
use weft_ir::shape::{Bindings, Dim, Shape};
use weft_ir::target::Target;

/// Most sequences of a decode step: the rows of a tile on tensor cores.
pub const DECODE_ROWS: usize = 16;

/// Most rows that a GEMV keeps accumulators for.
pub const GEMV_ROWS: usize = 8;

/// Most sequences of a decode step that are computed as one is, in the same order: the arithmetic of further rows would
/// take longer than their weights, and tensor cores take up to 16 for the price of one.
pub const ALONE: usize = 2;

/// Most tokens whose attention takes a block or more each: tiles of tokens would leave most SMs idle.
pub const ATTENTION_TOKENS: usize = 16;

/// Most tokens of a short step, the rows of a tile: its products compute their left operand, which those of more rows
/// would do too often. (With 64 rows a layer's products take 5% longer so, norms and their launches included.)
pub const SHORT_TOKENS: usize = 16;

/// Longest keys and values that tiled attention keeps in registers, in elements.
pub(crate) const TILE_HEAD: [usize; 2] = [192, 128];

/// A bucket to schedule for.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// Name: `decode_4`.
    pub name: String,
    /// Purpose.
    pub role: Role,
    /// Sizes.
    pub bind: Bindings,
}

/// Buckets of an encoder: steps of some sizes, the largest of which hold the longest sequence. A sequence lies
/// whole in a step, and there are no slots.
pub fn encoder_buckets(max_seq: usize, max_batch: usize, opt_level: u8) -> Vec<Bucket> {
    let all = max_seq.saturating_mul(max_batch);
    // Level 0 stores every intermediate, as for a decoder.
    let enough = if opt_level == 0 { max_seq } else { all.min(max_seq.max(4096)) };
    let mut sizes = vec![16];
    while let Some(&last) = sizes.last()
        && last < enough
    {
        sizes.push(last * 4);
    }
    let bind = |tokens| Bindings { tokens, seqs: max_batch, rows: 0, context: max_seq, slots: 0 };
    let bucket = |n: usize| Bucket { name: format!("encode_{n}"), role: Role::Encode, bind: bind(n) };
    sizes.into_iter().map(bucket).collect()
}

/// Buckets of a plan: decode steps of 1, 2, 4, 8, 16 sequences, prefill and scoring steps of some sizes.
///
/// Level 0 stores every intermediate (rows gathered from the cache for each token among them), so its
/// prefill buckets are small.
pub fn buckets(max_seq: usize, max_batch: usize, opt_level: u8) -> Vec<Bucket> {
    let bind = |tokens, rows| Bindings {
        tokens,
        seqs: max_batch,
        rows,
        context: max_seq,
        slots: max_batch * max_seq,
    };
    let up_to = |sizes: &[usize], limit: usize| -> Vec<usize> {
        let below = sizes.iter().copied().filter(|&s| s < limit);
        below.chain(sizes.iter().copied().find(|&s| s >= limit)).collect()
    };
    let prefill: &[usize] = if opt_level == 0 { &[16, 64] } else { &[16, 64, 128, 256, 512, 1024] };
    let score: &[usize] = if opt_level == 0 { &[64] } else { &[64, 256] };
    let mut out = Vec::new();
    for n in up_to(&[1, 2, 4, 8, 16], max_batch.min(DECODE_ROWS)) {
        out.push(Bucket { name: format!("decode_{n}"), role: Role::Decode, bind: bind(n, n) });
    }
    let all = max_seq.saturating_mul(max_batch);
    for n in up_to(prefill, all) {
        out.push(Bucket { name: format!("prefill_{n}"), role: Role::Prefill, bind: bind(n, max_batch) });
    }
    for n in up_to(score, all) {
        out.push(Bucket { name: format!("score_{n}"), role: Role::Score, bind: bind(n, n) });
    }
    out
}

/// Kernels of the works that a bucket uses.
pub type Chosen = BTreeMap<u32, KernelId>;

/// Chooses a schedule for each work in each bucket that uses it. Result: kernels, and for each bucket the
/// kernel of each of its works.
pub fn run(
    works: &[Work],
    buckets: &[Bucket],
    uses: &dyn Fn(&Bucket, u32) -> bool,
    (target, measured): (&Target, &Database),
) -> (Vec<KernelSpec>, Vec<Chosen>) {
    let mut kernels: Vec<KernelSpec> = Vec::new();
    let mut chosen = vec![Chosen::new(); buckets.len()];
    for (w, work) in works.iter().enumerate() {
        let first = kernels.len();
        for (bucket, ids) in buckets.iter().zip(&mut chosen) {
            if !uses(bucket, w as u32) {
                continue;
            }
            let (schedule, fallback, source) = choose_measured(work, &bucket.bind, target, measured);
            let same = kernels[first..].iter().position(|k| k.schedule == schedule);
            if let Some(i) = same {
                // One bucket may fall back to what is right for another.
                let known = &mut kernels[first + i].fallback;
                *known = known.take().or(fallback);
                ids.insert(w as u32, KernelId::new(first + i));
                continue;
            }
            let id = {
                let (grid, threads) = launch_shape(work, &schedule);
                let scratch = scratch(work, &schedule);
                kernels.push(KernelSpec {
                    name: format!("{}{}", work.name, suffix(&schedule)),
                    work: w as u32,
                    schedule,
                    source,
                    grid,
                    threads,
                    scratch,
                    programmatic: target.features.programmatic_launch,
                    fallback,
                });
                kernels.len() - 1
            };
            ids.insert(w as u32, KernelId::new(id));
        }
    }
    unique_names(&mut kernels);
    (kernels, chosen)
}

fn unique_names(kernels: &mut [KernelSpec]) {
    let mut seen = std::collections::HashSet::new();
    for k in kernels {
        let base = k.name.clone();
        let mut i = 1;
        while !seen.insert(k.name.clone()) {
            i += 1;
            k.name = format!("{base}_v{i}");
        }
    }
}

fn suffix(s: &Schedule) -> String {
    match s {
        // Never empty: a bare word may be a function of the CUDA headers (`norm`).
        Schedule::Elementwise { .. } => "_pointwise".into(),
        Schedule::SampleRow { .. } | Schedule::RowSteps { .. } => "_row".into(),
        Schedule::AdvanceRows { .. } => "_rows".into(),
        Schedule::RoutedGemv { .. } => "_routed_gemv".into(),
        Schedule::RoutedGemm { tile_m, tile_n, split, .. } => {
            format!("_routed_gemm_{tile_m}x{tile_n}_{split}")
        }
        Schedule::GroupPairs { .. } => "_pairs".into(),
        Schedule::WarpRow { .. } => "_warp_row".into(),
        Schedule::BlockRow { .. } => "_block_row".into(),
        Schedule::Gemv { rows, .. } => format!("_gemv_{rows}"),
        Schedule::Gemm { tile_m, tile_n, .. } => format!("_gemm_{tile_m}x{tile_n}"),
        Schedule::WarpgroupGemm { groups, tile_n, .. } => format!("_wgmma_{}x{tile_n}", groups * 64),
        Schedule::AttentionRow { splits: 1, .. } => "_row".into(),
        Schedule::AttentionRow { splits, .. } => format!("_row_{splits}"),
        Schedule::AttentionGroup { splits: 1, .. } => "_group".into(),
        Schedule::AttentionGroup { splits, .. } => format!("_group_{splits}"),
        Schedule::AttentionTile { tile_q, tile_k, .. } => format!("_tile_{tile_q}x{tile_k}"),
    }
}

/// The schedule of a work under bindings, and why it is not the fast one where it is not.
pub fn choose(work: &Work, bind: &Bindings, target: &Target) -> (Schedule, Option<String>) {
    match &work.compute {
        Compute::Loop(l) => (loop_schedule(l, bind), None),
        Compute::MatMul(m) => matmul_schedule(work, m, bind, target),
        Compute::Attention(a) => attention::schedule(work, a, bind, target),
        Compute::Steps(s) => (routed::steps(s), None),
        Compute::Routed(r) => routed::products(work, r, bind, target),
        Compute::Grouping(_) => (Schedule::GroupPairs { threads: 128 }, None),
        Compute::Penalize(_) | Compute::Sample(_) => (Schedule::SampleRow { threads: 1024 }, None),
        Compute::Advance(a) => {
            let rows = a.rows.eval(bind).next_multiple_of(32).clamp(32, 1024);
            (Schedule::AdvanceRows { threads: rows as u32 }, None)
        }
    }
}

/// The same, from measurements where there are any for the work's shape or one near it. Only works of the decode
/// families are measured.
pub fn choose_measured(
    work: &Work,
    bind: &Bindings,
    target: &Target,
    measured: &Database,
) -> (Schedule, Option<String>, ScheduleSource) {
    let (schedule, fallback) = choose(work, bind, target);
    let decodes = match &work.compute {
        Compute::Attention(a) => candidates::few(a, bind),
        _ => matches!(schedule, Schedule::Gemv { .. }),
    };
    let found = if decodes { measured.find(work, bind, target) } else { None };
    match found {
        Some((schedule, source)) => (schedule, fallback, source),
        None => (schedule, fallback, ScheduleSource::Estimated),
    }
}

fn loop_schedule(l: &Loop, bind: &Bindings) -> Schedule {
    let Some(reduced) = l.reduced else { return Schedule::Elementwise { threads: 256 } };
    // A block a row while rows are few, so that they spread over the SMs; else a warp a row.
    if bind.elements(&l.domain) >= 2048 || reduced.eval(bind) <= 64 {
        return Schedule::WarpRow { warps: 4 };
    }
    let threads = (reduced.eval(bind) / 4).next_power_of_two().clamp(32, 512);
    Schedule::BlockRow { threads: threads as u32 }
}

fn matmul_schedule(work: &Work, m: &MatMul, bind: &Bindings, target: &Target) -> (Schedule, Option<String>) {
    let rows = m.m.eval(bind);
    if m.row.is_some()
        && let Some(schedule) = row::schedule(m.n, m.k, rows, target)
    {
        return (schedule, None);
    }
    let left = gemm::left(work, m, target);
    let (few, fallback) = (rows <= GEMV_ROWS, left.as_ref().err().cloned());
    match left {
        Ok(left) if rows > ALONE && (m.draw.is_none() || rows <= DECODE_ROWS) => {
            (gemm::schedule(m, &left, rows, target), None)
        }
        Ok(_) | Err(_) => {
            let taken = rows.min(GEMV_ROWS).next_power_of_two() as u32;
            let fallback = fallback.filter(|_| !few).map(|why| format!("more than {GEMV_ROWS} rows: {why}"));
            (gemv::schedule(work, m, taken, target), fallback)
        }
    }
}

/// What a schedule needs for its blocks to join their results.
pub fn scratch(work: &Work, schedule: &Schedule) -> Option<Scratch> {
    match (schedule, &work.compute) {
        (Schedule::Gemv { rows, blocks, .. }, Compute::MatMul(m)) => {
            m.draw.as_ref().map(|d| gemv::draw_scratch(m, d, *rows, *blocks))
        }
        (Schedule::Gemm { tile_m, tile_n, .. }, Compute::MatMul(m)) => {
            let blocks = (m.columns() as u32).div_ceil(*tile_n);
            m.draw.as_ref().map(|d| gemv::draw_scratch(m, d, *tile_m, blocks))
        }
        (
            Schedule::AttentionRow { heads, splits, cluster, .. }
            | Schedule::AttentionGroup { heads, splits, cluster, .. },
            Compute::Attention(a),
        ) if splits > cluster => Some(attention::scratch(a, *heads as usize, *splits as usize)),
        _ => None,
    }
}

/// Grid and threads of a block of a schedule.
pub fn launch_shape(work: &Work, schedule: &Schedule) -> (Grid, u32) {
    let over = |dims: Shape, per: u32| Extent { dims, per: per as usize };
    let c = |n: usize| vec![Dim::Const(n)];
    let domain = match &work.compute {
        Compute::Loop(l) => l.domain.clone(),
        Compute::MatMul(m) => vec![m.m, Dim::Const(m.columns())],
        Compute::Attention(a) => vec![a.tokens, Dim::Const(a.kv_heads * a.group)],
        Compute::Steps(s) => vec![s.rows],
        Compute::Routed(r) => vec![r.tokens, Dim::Const(r.picks)],
        Compute::Grouping(g) => vec![Dim::Const(g.experts)],
        Compute::Penalize(p) => vec![p.rows],
        Compute::Sample(s) => vec![s.rows],
        Compute::Advance(a) => vec![a.rows],
    };
    let one = Extent::one;
    match (schedule, &work.compute) {
        (Schedule::Elementwise { threads }, _) => ([over(domain, *threads), one(), one()], *threads),
        (Schedule::WarpRow { warps }, _) => ([over(domain, *warps), one(), one()], warps * 32),
        (
            Schedule::BlockRow { threads }
            | Schedule::SampleRow { threads }
            | Schedule::RowSteps { threads }
            | Schedule::GroupPairs { threads },
            _,
        ) => ([over(domain, 1), one(), one()], *threads),
        (Schedule::AdvanceRows { threads }, _) => ([one(), one(), one()], *threads),
        (Schedule::Gemv { rows, warps, blocks, .. }, Compute::MatMul(m)) => {
            let (columns, of_rows) = (over(c(*blocks as usize), 1), over(vec![m.m], *rows));
            // Blocks of other rows follow each other: the second reads the weight from L2.
            let grid = if *rows > 1 { [of_rows, columns, one()] } else { [columns, of_rows, one()] };
            (grid, warps * 32)
        }
        (Schedule::Gemm { tile_m, tile_n, warps_m, warps_n, warps_k, .. }, Compute::MatMul(m)) => {
            let grid = [over(c(m.columns()), *tile_n), over(vec![m.m], *tile_m), one()];
            (grid, warps_m * warps_n * warps_k * 32)
        }
        (Schedule::WarpgroupGemm { groups, tile_n, .. }, Compute::MatMul(m)) => {
            // Blocks of the same columns follow each other: all but the first read the weight from L2.
            let grid = [over(vec![m.m], 64 * groups), over(c(m.columns()), *tile_n), one()];
            (grid, groups * 128)
        }
        (
            Schedule::AttentionRow { warps, heads, splits, .. }
            | Schedule::AttentionGroup { warps, heads, splits, .. },
            Compute::Attention(a),
        ) => {
            let blocks = over(c(a.kv_heads * a.group), *heads);
            ([over(vec![a.tokens], 1), blocks, over(c(*splits as usize), 1)], warps * 32)
        }
        (Schedule::AttentionTile { tile_q, .. }, Compute::Attention(a)) => {
            let heads = a.kv_heads * a.group;
            ([over(c(heads), 1), over(vec![a.tokens], *tile_q), one()], tile_q * 2)
        }
        (Schedule::RoutedGemv { warps, columns }, Compute::Routed(r)) => {
            ([over(c(r.n), warps * columns), over(domain, 1), one()], warps * 32)
        }
        (Schedule::RoutedGemm { tile_n, warps_m, warps_n, split, .. }, Compute::Routed(r)) => {
            let blocks = [over(c(r.n), *tile_n), over(c(r.experts), 1), over(c(*split as usize), 1)];
            (blocks, warps_m * warps_n * 32)
        }
        // Families of another kind of work: `choose` does not make them.
        (
            Schedule::Gemv { .. }
            | Schedule::Gemm { .. }
            | Schedule::WarpgroupGemm { .. }
            | Schedule::RoutedGemv { .. }
            | Schedule::RoutedGemm { .. }
            | Schedule::AttentionRow { .. }
            | Schedule::AttentionGroup { .. }
            | Schedule::AttentionTile { .. },
            _,
        ) => ([one(), one(), one()], 32),
    }
}
