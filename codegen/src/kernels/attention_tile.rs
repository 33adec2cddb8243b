//! Attention of a tile of tokens for one query head, on tensor cores (FlashAttention-2, Dao 2023).
//!
//! Each warp takes 16 tokens: Q stays in registers as fragments, keys and values pass through shared
//! memory, the scores of a key tile become the left operand of the product with the values without
//! leaving registers. Keys and values of the next tile are copied while one is used. A tile may hold tokens of several
//! sequences: it is cut into runs of tokens with the same slot base ([`super::attention_runs`]), and each run visits its
//! own keys; rows of other runs are masked.

use super::attention_decode::NO_SCORE;
use super::attention_runs::{Run, Runs};
use super::attention_tile_step::{add_sink, step};
use super::warp::{Threads, threads};
use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::ids::{OperandId, SharedId, VarId};
use weft_ir::kernel::{Axis, Expr, MatrixCount, Mem, Stmt, Unroll};
use weft_ir::plan::Attention;

pub(super) const CHUNK: u32 = 8;

/// Sizes and shared arrays of the kernel.
pub(super) struct Tile {
    pub q: u32,
    pub k: u32,
    /// Tiles of keys and values in shared memory: two where one is copied while the other is used.
    pub stages: u32,
    pub head_dim: u32,
    pub value_dim: u32,
    pub dtype: DType,
    pub q_shared: SharedId,
    pub k_shared: SharedId,
    pub v_shared: SharedId,
    /// Slot base and number of keys of each token of the tile.
    pub base: SharedId,
    pub length: SharedId,
}

/// Registers of a warp.
pub(super) struct Registers {
    pub q: VarId,
    pub out: VarId,
    /// For the two rows of a lane: running maximum and sum.
    pub max: VarId,
    pub sum: VarId,
}

pub(super) fn build(
    b: &mut Body<'_>,
    a: &Attention,
    (tile_q, tile_k, stages): (u32, u32, u32),
) -> Result<(), String> {
    if !(1..=2).contains(&stages) {
        return Err(format!("{stages} stages of keys"));
    }
    let base = a.slot_base().ok_or("keys are not in consecutive slots")?.clone();
    let dtype = b.work.reads[a.q.index()].dtype;
    let (head_dim, value_dim) = (a.head_dim as u32, a.value_dim as u32);
    let tile = Tile {
        q: tile_q,
        k: tile_k,
        stages,
        head_dim,
        value_dim,
        dtype,
        q_shared: b.k.shared("q_tile", dtype, tile_q * (head_dim + CHUNK)),
        k_shared: b.k.shared("k_tile", dtype, stages * tile_k * (head_dim + CHUNK)),
        v_shared: b.k.shared("v_tile", dtype, stages * tile_k * (value_dim + CHUNK)),
        base: b.k.shared("slot_base_of", DType::I32, tile_q),
        length: b.k.shared("length_of", DType::I32, tile_q),
    };
    let runs = Runs::declare(b, tile_q, a.window.is_some());
    // Without a bound, ptxas spills some bytes to fit one more block.
    b.k.min_blocks(2);
    b.wait_for_dependencies();
    let t = threads(b);
    b.k.comment("The last tiles, which see most keys, come first: what is left for the end is short.");
    let back = Expr::GridDim(Axis::Y) - 1 - Expr::BlockIdx(Axis::Y);
    let first = b.k.let_("first_token", DType::I32, back * i64::from(tile_q));
    let head = b.k.let_("head", DType::I32, Expr::BlockIdx(Axis::X));
    let kv_head = b.k.let_("kv_head", DType::I32, head.clone() / a.group as i64);
    let tokens = b.extent(a.tokens);

    b.k.comment("Where the keys of each token are; no keys past the last token.");
    b.if_then(Expr::ThreadIdx.lt(Expr::int(i64::from(tile_q))), |b| {
        let token = b.k.let_("token", DType::I32, first.clone() + Expr::ThreadIdx);
        let safe = b.k.let_("safe_token", DType::I32, token.clone().min(tokens.clone() - 1));
        let point = Point::at(vec![safe]);
        let (slot, length) = (b.lower(&base, &point)?, b.lower(&a.length, &point)?);
        b.k.store(Mem::Shared(tile.base), Expr::ThreadIdx, slot);
        let length = token.lt(tokens.clone()).select(length, Expr::int(0));
        b.k.store(Mem::Shared(tile.length), Expr::ThreadIdx, length);
        Ok(())
    })?;
    let q_at = |row: Expr| (first.clone() + row.clone(), (first.clone() + row).lt(tokens.clone()));
    copy_rows(b, &tile, a.q, (tile.q_shared, tile_q, head_dim, Expr::int(0)), &head, q_at)?;
    b.k.push(Stmt::CpAsyncCommit);
    b.k.push(Stmt::Barrier);
    runs.find(b, &tile)?;
    b.k.push(Stmt::CpAsyncWait { pending: 0 });
    b.k.push(Stmt::Barrier);

    let regs = Registers {
        q: load_q(b, &tile, &t)?,
        out: b.k.array("out_acc", DType::F32, value_dim / 8 * 4, Some(Expr::float(0.0))),
        max: b.k.array("best", DType::F32, 2, Some(Expr::float(NO_SCORE))),
        sum: b.k.array("total", DType::F32, 2, Some(Expr::float(0.0))),
    };
    let row = b.k.let_("row", DType::I32, t.warp.clone() * 16 + t.lane.clone() / 4);
    runs.each(b, &tile, a.window, |b, run| {
        let keys = Keys { tile: &tile, a, run, kv_head: &kv_head };
        let seen = seen_keys(b, &tile, run, &row)?;
        if stages == 2 {
            b.k.comment("The last tile of the run before has been read by every warp.");
            b.k.push(Stmt::Barrier);
            keys.copy(b, &run.oldest, &Expr::int(0))?;
        }
        let steps = (run.oldest.clone(), run.longest.clone(), Expr::int(i64::from(tile_k)));
        b.for_loop("first_key", steps, Unroll::Never, |b, first_key| {
            let stage = keys.next(b, &first_key)?;
            let place = Place { t: &t, row: &row, first_token: &first, head: &head, seen, stage: &stage };
            step(b, a, &tile, &regs, &place, &first_key)
        })
    })?;
    store(b, a, &tile, &regs, &t, row, first, head, tokens)
}

/// Where a lane's elements are.
pub(super) struct Place<'a> {
    pub t: &'a Threads,
    pub row: &'a Expr,
    pub first_token: &'a Expr,
    pub head: &'a Expr,
    /// For the two rows of a lane: keys that they see in the run.
    pub seen: VarId,
    /// Stage of the keys and values.
    pub stage: &'a Expr,
}

/// Keys that a lane's two rows see: none where they are of another run.
fn seen_keys(b: &mut Body<'_>, tile: &Tile, run: &Run, row: &Expr) -> Result<VarId, String> {
    let seen = b.k.array("seen", DType::I32, 2, None);
    b.unrolled("half", 2, |b, half| {
        let r = b.k.let_("r", DType::I32, row.clone() + half.clone() * 8);
        let in_run = r.clone().ge(run.rows.0.clone()).and(r.clone().lt(run.rows.1.clone()));
        let keys = in_run.select(Expr::load(Mem::Shared(tile.length), r), Expr::int(0));
        b.k.assign_elem(seen, half, keys);
        Ok(())
    })?;
    Ok(seen)
}

/// Starts copies of rows of an array [_, heads, dim] into a padded shared tile; `at` gives the row of the
/// array and whether there is one, `first_row` that of the shared array.
fn copy_rows(
    b: &mut Body<'_>,
    tile: &Tile,
    o: OperandId,
    (shared, rows, dim, first_row): (SharedId, u32, u32, Expr),
    head: &Expr,
    at: impl Fn(Expr) -> (Expr, Expr),
) -> Result<(), String> {
    let threads = tile.q * 2;
    let across = dim / CHUNK;
    let chunks = rows * across;
    let (mem, shape) = (b.reads[o.index()], b.work.reads[o.index()].shape.clone());
    b.each_chunk((chunks, threads), |b, chunk| {
        let row = b.k.let_("copy_row", DType::I32, chunk.clone() / i64::from(across));
        let column = b.k.let_("column", DType::I32, chunk.clone() % i64::from(across) * i64::from(CHUNK));
        let (from, valid) = at(row.clone());
        let global_index = b.flat(&shape, &[from, head.clone(), column.clone()]);
        b.k.push(Stmt::CpAsync {
            shared,
            shared_index: (first_row + row) * i64::from(dim + CHUNK) + column,
            global: mem,
            global_index,
            bytes: 16,
            valid: Some(valid),
        });
        Ok(())
    })
}

/// The keys and values of a run.
struct Keys<'a> {
    tile: &'a Tile,
    a: &'a Attention,
    run: &'a Run,
    kv_head: &'a Expr,
}

impl Keys<'_> {
    /// Starts the copies of a tile from its first key on.
    fn copy(&self, b: &mut Body<'_>, first_key: &Expr, stage: &Expr) -> Result<(), String> {
        let tile = self.tile;
        let at = |row: Expr| {
            let j = first_key.clone() + row;
            (self.run.base.clone() + j.clone(), j.lt(self.run.longest.clone()))
        };
        let first_row = stage.clone() * i64::from(tile.k);
        let keys = (tile.k_shared, tile.k, tile.head_dim, first_row.clone());
        copy_rows(b, tile, self.a.keys, keys, self.kv_head, at)?;
        let values = (tile.v_shared, tile.k, tile.value_dim, first_row);
        copy_rows(b, tile, self.a.values, values, self.kv_head, at)?;
        b.k.push(Stmt::CpAsyncCommit);
        Ok(())
    }

    /// Waits for the tile of a step, and starts the copies of the next one where there is room; the tile's stage.
    fn next(&self, b: &mut Body<'_>, first_key: &Expr) -> Result<Expr, String> {
        let keys = i64::from(self.tile.k);
        if self.tile.stages == 1 {
            b.k.comment("The previous tile has been read by every warp.");
            b.k.push(Stmt::Barrier);
            self.copy(b, first_key, &Expr::int(0))?;
        }
        b.k.push(Stmt::CpAsyncWait { pending: 0 });
        b.k.push(Stmt::Barrier);
        if self.tile.stages == 1 {
            return Ok(Expr::int(0));
        }
        let stage = (first_key.clone() - self.run.oldest.clone()) / keys % 2;
        let stage = b.k.let_("stage", DType::I32, stage);
        let next = b.k.let_("next_key", DType::I32, first_key.clone() + keys);
        let other = Expr::int(1) - stage.clone();
        b.if_then(next.clone().lt(self.run.longest.clone()), |b| self.copy(b, &next, &other))?;
        Ok(stage)
    }
}

/// The warp's queries as A fragments, one for each 16 elements of a head.
fn load_q(b: &mut Body<'_>, tile: &Tile, t: &Threads) -> Result<VarId, String> {
    let pitch = i64::from(tile.head_dim + CHUNK);
    let q = b.k.array("q_frag", DType::U32, tile.head_dim / 16 * 4, None);
    let row = t.warp.clone() * 16 + t.lane.clone() % 16;
    let base = b.k.let_("q_base", DType::I32, row * pitch + t.lane.clone() / 16 * 8);
    b.unrolled("kk", tile.head_dim / 16, |b, kk| {
        b.k.push(Stmt::LdMatrix {
            dst: q,
            dst_at: kk.clone() * 4,
            shared: tile.q_shared,
            index: base + kk * 16,
            count: MatrixCount::X4,
            transpose: false,
        });
        Ok(())
    })?;
    Ok(q)
}

#[allow(clippy::too_many_arguments)]
fn store(
    b: &mut Body<'_>,
    a: &Attention,
    tile: &Tile,
    regs: &Registers,
    t: &Threads,
    row: Expr,
    first: Expr,
    head: Expr,
    tokens: Expr,
) -> Result<(), String> {
    if let Some(sink) = &a.sink {
        let sink = b.lower(sink, &Point::at(vec![first.clone(), head.clone()]))?;
        let sink = b.k.let_("sink", DType::F32, sink);
        add_sink(b, tile, regs, sink)?;
    }
    // The best key has weight 1; where every key is hidden the result is 0.
    let shares = b.k.array("share", DType::F32, 2, None);
    b.unrolled("half", 2, |b, half| {
        let sum = Expr::elem(regs.sum, half.clone()).max(Expr::float(1.0));
        b.k.assign_elem(shares, half, Expr::float(1.0) / sum);
        Ok(())
    })?;
    b.unrolled("d", tile.value_dim / 8, |b, d| {
        b.unrolled("i", 4, |b, i| {
            let token = first + row + i.clone() / 2 * 8;
            let token = b.k.let_("token", DType::I32, token);
            let column = d.clone() * 8 + t.lane.clone() % 4 * 2 + i.clone() % 2;
            let element = b.k.let_("element", DType::I32, column);
            b.if_then(token.clone().lt(tokens), |b| {
                let value = Expr::elem(regs.out, d * 4 + i.clone()) * Expr::elem(shares, i / 2);
                b.stores(&a.stores, &Point::with_acc(vec![token, head, element], value))
            })
        })
    })
}
