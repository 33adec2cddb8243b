//! Schedules of attention: tensor-core tiles of tokens, or blocks of one token that may share its keys.

use super::{ALONE, ATTENTION_TOKENS, TILE_HEAD, candidates};
use weft_ir::dtype::DType;
use weft_ir::kernel::MAX_CLUSTER;
use weft_ir::plan::{
    Attention, CLUSTER_KEYS, Compute, Extent, PROJECTED_KEYS, Partials, SPLIT_KEYS, Schedule, Scratch, Work,
};
use weft_ir::shape::{Bindings, Dim};
use weft_ir::target::Target;

/// Most bytes of partial results of a dispatch of [`ATTENTION_TOKENS`] tokens.
const SCRATCH_BYTES: usize = 64 << 20;

/// Elements that pad a row in shared memory.
const PAD: usize = 8;

/// Largest head whose parts fit the registers of a warp's tiles, and heads of a tile.
const GROUP_HEAD: usize = 128;
pub(super) const GROUP_HEADS: usize = 8;

/// f32 registers of a lane for the queries and sums of its heads: four heads where a lane has 8 elements of each.
const HEAD_REGISTERS: usize = 64;

pub(super) fn schedule(
    work: &Work,
    a: &Attention,
    bind: &Bindings,
    target: &Target,
) -> (Schedule, Option<String>) {
    // Only blocks of a token make its rows.
    if a.tokens.eval(bind) <= ATTENTION_TOKENS || a.prologue.is_some() {
        let schedule = match groups(work, a, target) {
            Ok(()) => group(a, bind, target),
            Err(_) => few_tokens(a, bind, target),
        };
        return (schedule, None);
    }
    // More tokens share the GPU: fewer warps, and a block reads keys once for several heads.
    // Queries and accumulators of up to 8 heads of 128 elements fit in registers.
    let most = (8 * 256 / (a.head_dim + a.value_dim)).clamp(1, 8);
    let heads = divisors(a.group).find(|h| *h <= most).unwrap_or(1) as u32;
    let row = Schedule::AttentionRow { warps: 4, heads, depth: 1, splits: 1, cluster: 1, late: false };
    let dtype = a.query_type(&work.reads);
    let why = if !target.features.mma_sync {
        format!("{} has no mma.sync", target.name)
    } else if !dtype.is_half() {
        format!("tensor cores take f16 and bf16, not {dtype}")
    } else if !a.head_dim.is_multiple_of(16)
        || !a.value_dim.is_multiple_of(16)
        || a.head_dim > TILE_HEAD[0]
        || a.value_dim > TILE_HEAD[1]
    {
        let [key, value] = TILE_HEAD;
        let (k, v) = (a.head_dim, a.value_dim);
        format!("head sizes {k} and {v} are not multiples of 16 up to {key} and {value}")
    } else if !a.sequential_slots() {
        "keys of a sequence are not in consecutive slots".into()
    } else {
        return (tile(a, dtype, target), None);
    };
    (row, Some(why))
}

/// Tiles of 64 tokens and 64 keys, with two stages of keys and values where they fit.
fn tile(a: &Attention, dtype: DType, target: &Target) -> Schedule {
    let (tile_q, tile_k) = (64, 64);
    let row = |dim: usize| (dim + PAD) * dtype.size();
    let keys = tile_k * (row(a.head_dim) + row(a.value_dim));
    // Beside them the queries, and some words of each row.
    let rest = tile_q * row(a.head_dim) + (tile_q + 1) * 6 * 4;
    let stages = if 2 * keys + rest <= target.shared_bytes as usize { 2 } else { 1 };
    Schedule::AttentionTile { tile_q: tile_q as u32, tile_k: tile_k as u32, stages }
}

/// Divisors of a number, the largest first.
fn divisors(n: usize) -> impl Iterator<Item = usize> {
    (1..=n).rev().filter(move |d| n.is_multiple_of(*d))
}

/// Whether a key head's query heads can be taken together by tensor cores.
///
/// # Errors
/// Why not.
pub(super) fn groups(work: &Work, a: &Attention, target: &Target) -> Result<(), String> {
    let [keys, values] = [a.keys, a.values].map(|o| work.reads[o.index()].dtype);
    let types = [a.query_type(&work.reads), keys, values];
    let row = work.reads[a.values.index()].shape.last().and_then(|d| d.as_const()).unwrap_or(0);
    let sizes = (a.head_dim, a.value_dim);
    if !target.features.mma_sync {
        Err(format!("{} has no mma.sync", target.name))
    } else if !types[0].is_half() || types.iter().any(|t| *t != types[0]) {
        Err(format!("tensor cores take f16 and bf16, not {}", types[1]))
    } else if !sizes.0.is_multiple_of(32) || !sizes.1.is_multiple_of(64) || sizes.0.max(sizes.1) > GROUP_HEAD
    {
        Err(format!(
            "head sizes {} and {} are not multiples of 32 and 64 up to {GROUP_HEAD}",
            sizes.0, sizes.1
        ))
    } else if !row.is_multiple_of(8) {
        Err(format!("rows of {row} values are not whole loads"))
    } else {
        Ok(())
    }
}

/// Query heads of a block on tensor cores: all of the key head, or as many as a tile has.
pub(super) fn group_heads(a: &Attention) -> usize {
    divisors(a.group).find(|h| *h <= GROUP_HEADS).unwrap_or(1)
}

/// Tensor cores take all heads of a key head for the price of one, so what is left is to share the keys: a block an
/// SM, of eight warps with one tile each in flight; or a cluster with nine warps a block, alone while keys are few.
fn group(a: &Attention, bind: &Bindings, target: &Target) -> Schedule {
    let (heads, tokens) = (group_heads(a), sharing(a, bind));
    let wanted = target.profile.sms as usize / blocks(a, heads, tokens);
    let splits = wanted.clamp(1, most_splits(a, bind)) as u32;
    let (splits, cluster) = joined(a, (heads, tokens), splits, target);
    // A cluster that projects has all keys.
    let few = a.projection.is_some() || a.visible(bind.context) <= cluster as usize * CLUSTER_KEYS;
    let (warps, splits) = match cluster > 1 {
        true => (9, if few { cluster } else { splits }),
        false => (8, splits),
    };
    let late = starts_late(cluster);
    Schedule::AttentionGroup { warps, heads: heads as u32, depth: 1, splits, cluster, late }
}

/// Most bytes of a projection's weight that a block takes: it reads them alone, while most multiprocessors are idle.
const PROJECTION_BYTES: usize = 48 << 10;

/// Whether the clusters of an attention's steps of these sizes project its outputs: each has all keys and query heads of a
/// head of keys, and little of the weight.
///
/// # Errors
/// Why not.
pub(crate) fn projects(work: &Work, (binds, target): (&[Bindings], &Target)) -> Result<(), String> {
    let Compute::Attention(a) = &work.compute else { return Err("it is no attention".into()) };
    let Some(p) = &a.projection else { return Err("it has no projection".into()) };
    groups(work, a, target)?;
    for bind in binds {
        if !candidates::few(a, bind) {
            return Err(format!(
                "its steps have up to {} tokens, at most {ALONE} project",
                a.tokens.eval(bind)
            ));
        }
        let schedule = group(a, bind, target);
        candidates::legal(work, &schedule, target)
            .map_err(|why| format!("its clusters cannot project what they have: {why}"))?;
        let Schedule::AttentionGroup { cluster, .. } = schedule else { continue };
        let keys = a.visible(bind.context);
        if keys > cluster as usize * PROJECTED_KEYS {
            return Err(format!("up to {keys} keys are too many for a cluster of {cluster} blocks"));
        }
        let size = work.reads[p.weight.index()].dtype.size();
        let part = p.columns.div_ceil(cluster as usize) * a.group * a.value_dim * size;
        if part > PROJECTION_BYTES {
            return Err(format!("each of its blocks would read {part} bytes of the weight"));
        }
    }
    Ok(())
}

/// Clusters join their splits fastest, but few of them start at once beside the kernel before: whole steps gain where
/// one cluster for each block of heads, of a step of one token, takes up to a third of the SMs, and lose where it
/// takes more (docs/performance.md).
fn joined(a: &Attention, (heads, tokens): (usize, usize), splits: u32, target: &Target) -> (u32, u32) {
    match 3 * blocks(a, heads, tokens) * MAX_CLUSTER as usize <= target.profile.sms as usize {
        true => clustered(a, splits, target),
        false => (splits, 1),
    }
}

/// The weight that the projection behind it would stream takes the bandwidth of keys, and its blocks the SMs of
/// clusters, which cost more than the head start gains where all splits are soon done.
pub(super) fn starts_late(cluster: u32) -> bool {
    cluster > 1
}

/// At most so many splits in whole clusters, and the blocks of one; no clusters where the target has none, or where
/// their blocks have no equal parts of a value.
pub(super) fn clustered(a: &Attention, splits: u32, target: &Target) -> (u32, u32) {
    let fits = |blocks: &u32| *blocks <= splits && clusters(a, *blocks, target);
    let cluster = [MAX_CLUSTER, 4, 2].into_iter().find(fits).unwrap_or(1);
    (splits / cluster * cluster, cluster)
}

/// Whether clusters of so many blocks can join the results of their splits.
pub(super) fn clusters(a: &Attention, blocks: u32, target: &Target) -> bool {
    target.features.clusters && a.value_dim.is_multiple_of(blocks as usize)
}

/// Few tokens read their keys fastest where all SMs share the work. A block that takes several heads reads their keys
/// once, so as many are packed as still leave most SMs a block, counting the most splits of the longest context.
///
/// How keys are shared (splits, warps, loads in flight) follows from a step of [`sharing`] tokens, and only how many
/// heads are packed from the bucket's: so a token's sums have the same order alone and beside another.
fn few_tokens(a: &Attention, bind: &Bindings, target: &Target) -> Schedule {
    let slice = (a.head_dim + a.value_dim) / a.row_lanes();
    let sharing = sharing(a, bind);
    let pack = |tokens: usize, splits: usize| {
        let enough = target.profile.sms as usize * 3 / 4;
        let fills = |h: &usize| blocks(a, *h, tokens).saturating_mul(splits) >= enough;
        divisors(a.group).find(|h| h * slice <= HEAD_REGISTERS && fills(h)).unwrap_or(1)
    };
    let alone = pack(sharing, most_splits(a, bind));
    let (splits, cluster) = joined(a, (alone, sharing), splits(a, (alone, sharing), bind, target), target);
    // About 128 bytes of keys and values of a 16-bit type in flight for each lane.
    let depth = if slice <= 16 { 4 } else { 2 };
    // As many warps as have keys where a token sees the most.
    let keys = (a.visible(bind.context) / splits.max(1) as usize).max(1);
    let step = 32 / a.row_lanes() * depth as usize;
    let warps = if keys > 4 * step { 8 } else { 4 };
    let heads = match a.tokens.eval(bind) {
        0 | 1 => alone,
        tokens => pack(tokens, splits as usize).max(alone),
    };
    Schedule::AttentionRow { warps, heads: heads as u32, depth, splits, cluster, late: starts_late(cluster) }
}

/// Two blocks an SM.
fn blocks_wanted(target: &Target) -> usize {
    2 * target.profile.sms as usize
}

/// Blocks of a step of some tokens without splits.
fn blocks(a: &Attention, heads: usize, tokens: usize) -> usize {
    tokens.saturating_mul(a.kv_heads * (a.group / heads.max(1))).max(1)
}

/// Most splits that have enough of the keys that a token sees of the longest context, and room for their results in any bucket.
pub(super) fn most_splits(a: &Attention, bind: &Bindings) -> usize {
    let partial = ATTENTION_TOKENS.saturating_mul(a.kv_heads * a.group).saturating_mul((a.value_dim + 2) * 4);
    (a.visible(bind.context) / SPLIT_KEYS).min(SCRATCH_BYTES / partial.max(1)).max(1)
}

/// Tokens that the splits of the keys are chosen for: one in the decode buckets of one and two sequences, since the
/// order of a token's sums follows from the splits; those of a larger step share the SMs.
pub(super) fn sharing(a: &Attention, bind: &Bindings) -> usize {
    if candidates::few(a, bind) { 1 } else { a.tokens.eval(bind) }
}

/// Splits of the keys where a block takes so many heads: as many as bring the blocks of a step of so many tokens nearest
/// to two an SM.
pub(super) fn splits(
    a: &Attention,
    (heads, tokens): (usize, usize),
    bind: &Bindings,
    target: &Target,
) -> u32 {
    let (wanted, blocks) = (blocks_wanted(target), blocks(a, heads, tokens));
    ((wanted + blocks / 2) / blocks).clamp(1, most_splits(a, bind)) as u32
}

/// Largest score, sum of weights and weighted values of each head in each split; a counter for each block of heads.
pub(super) fn scratch(a: &Attention, heads: usize, splits: usize) -> Scratch {
    let all = a.kv_heads * a.group;
    let of = |n: usize| Extent { dims: vec![a.tokens, Dim::Const(n)], per: 1 };
    let partial = |name: &str, n: usize| Partials { name: name.into(), dtype: DType::F32, elements: of(n) };
    Scratch {
        partials: vec![
            partial("split_max", all * splits),
            partial("split_sum", all * splits),
            partial("split_out", all * splits * a.value_dim),
        ],
        counters: of(all / heads.max(1)),
    }
}
