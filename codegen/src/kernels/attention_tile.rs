//! Attention of a tile of tokens for one query head, on tensor cores (FlashAttention-2, Dao 2023).
//!
//! Each warp takes 16 tokens: Q stays in registers as fragments, keys and values pass through shared
//! memory, the scores of a key tile become the left operand of the product with the values without
//! leaving registers. A tile may hold tokens of several sequences: it is cut into runs of tokens with the
//! same slot base, and each run visits its own keys; rows of other runs are masked.

use super::attention_decode::NO_SCORE;
use super::attention_tile_step::{add_sink, step};
use super::warp::{Threads, threads};
use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::ids::{OperandId, SharedId, VarId};
use weft_ir::kernel::{Axis, CompareOp, Expr, MatrixCount, Mem, Stmt, Unroll};
use weft_ir::plan::Attention;

pub(super) const CHUNK: u32 = 8;

/// Sizes and shared arrays of the kernel.
pub(super) struct Tile {
    pub q: u32,
    pub k: u32,
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

pub(super) fn build(b: &mut Body<'_>, a: &Attention, tile_q: u32, tile_k: u32) -> Result<(), String> {
    let base = a.slot_base().ok_or("keys are not in consecutive slots")?.clone();
    let dtype = b.work.reads[a.q.index()].dtype;
    let (head_dim, value_dim) = (a.head_dim as u32, a.value_dim as u32);
    let tile = Tile {
        q: tile_q,
        k: tile_k,
        head_dim,
        value_dim,
        dtype,
        q_shared: b.k.shared("q_tile", dtype, tile_q * (head_dim + CHUNK)),
        k_shared: b.k.shared("k_tile", dtype, tile_k * (head_dim + CHUNK)),
        v_shared: b.k.shared("v_tile", dtype, tile_k * (value_dim + CHUNK)),
        base: b.k.shared("slot_base_of", DType::I32, tile_q),
        length: b.k.shared("length_of", DType::I32, tile_q),
    };
    b.wait_for_dependencies();
    let t = threads(b);
    let first = b.k.let_("first_token", DType::I32, Expr::BlockIdx(Axis::X) * i64::from(tile_q));
    let head = b.k.let_("head", DType::I32, Expr::BlockIdx(Axis::Y));
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
    copy_rows(b, &tile, a.q, (tile.q_shared, tile_q, head_dim), &head, q_at)?;
    b.k.push(Stmt::CpAsyncCommit);
    b.k.push(Stmt::CpAsyncWait { pending: 0 });
    b.k.push(Stmt::Barrier);

    let regs = Registers {
        q: load_q(b, &tile, &t)?,
        out: b.k.array("out_acc", DType::F32, value_dim / 8 * 4, Some(Expr::float(0.0))),
        max: b.k.array("best", DType::F32, 2, Some(Expr::float(NO_SCORE))),
        sum: b.k.array("total", DType::F32, 2, Some(Expr::float(0.0))),
    };
    let row = b.k.let_("row", DType::I32, t.warp.clone() * 16 + t.lane.clone() / 4);
    let all = (Expr::int(0), Expr::int(i64::from(tile_q)), Expr::int(1));
    b.for_loop("run", all, Unroll::Never, |b, run| {
        let shared = |s, at| Expr::load(Mem::Shared(s), at);
        let before = shared(tile.base, (run.clone() - 1).max(Expr::int(0)));
        let own = b.k.let_("run_base", DType::I32, shared(tile.base, run.clone()));
        let starts = run.clone().eq_(Expr::int(0));
        let differs = Expr::cmp(CompareOp::Ne, before, own.clone());
        let starts = Expr::Binary(weft_ir::kernel::BinaryOp::Or, Box::new(starts), Box::new(differs));
        b.if_then(starts, |b| {
            let Run { end, oldest, longest } = Run::declare(b, a, &tile, &run, &own)?;
            let steps = (oldest, longest.clone(), Expr::int(i64::from(tile_k)));
            b.for_loop("first_key", steps, Unroll::Never, |b, first_key| {
                let keys = KeyTile { own: &own, first: &first_key, end: &longest, kv_head: &kv_head };
                load_keys(b, &tile, a, &keys)?;
                let rows = (run, end);
                let place = Place { t: &t, row: &row, first_token: &first, head: &head, rows: &rows };
                step(b, a, &tile, &regs, &place, &first_key)
            })
        })
    })?;
    store(b, a, &tile, &regs, &t, row, first, head, tokens)
}

/// Keys of a step: `own + first ..`, up to `end`.
struct KeyTile<'a> {
    own: &'a Expr,
    first: &'a Expr,
    end: &'a Expr,
    kv_head: &'a Expr,
}

/// Where a lane's elements are.
pub(super) struct Place<'a> {
    pub t: &'a Threads,
    pub row: &'a Expr,
    pub first_token: &'a Expr,
    pub head: &'a Expr,
    /// First and last + 1 row of the run.
    pub rows: &'a (Expr, Expr),
}

/// A run of tokens with the same slot base.
struct Run {
    /// Row behind its last.
    end: Expr,
    /// First key of the first tile that one of its tokens sees.
    oldest: Expr,
    /// Its longest context.
    longest: Expr,
}

impl Run {
    /// The run that starts at row `run`. Tiles of keys begin where they do without a window, so that a token's sums
    /// have one order whatever else is in its run: tiles that it does not see change nothing.
    fn declare(b: &mut Body<'_>, a: &Attention, tile: &Tile, run: &Expr, own: &Expr) -> Result<Run, String> {
        let end = b.k.let_mut("run_end", DType::I32, run.clone());
        let longest = b.k.let_mut("longest", DType::I32, Expr::int(0));
        let none = Expr::int(i64::from(i32::MAX));
        let shortest = a.window.map(|window| (window, b.k.let_mut("shortest", DType::I32, none)));
        let range = (run.clone(), Expr::int(i64::from(tile.q)), Expr::int(1));
        b.for_loop("r", range, Unroll::Never, |b, r| {
            let same = Expr::load(Mem::Shared(tile.base), r.clone()).eq_(own.clone());
            let follows = Expr::Var(end).eq_(r.clone());
            b.if_then(same.and(follows), |b| {
                b.k.assign(end, r.clone() + 1);
                let length = Expr::load(Mem::Shared(tile.length), r);
                b.k.assign(longest, Expr::Var(longest).max(length.clone()));
                if let Some((_, shortest)) = shortest {
                    // Rows past the last token have no keys.
                    let shorter = Expr::Var(shortest).min(length.clone());
                    let some = Expr::int(0).lt(length);
                    b.k.assign(shortest, some.select(shorter, shortest.into()));
                }
                Ok(())
            })
        })?;
        let oldest = match shortest {
            Some((window, shortest)) => {
                let oldest = (Expr::Var(shortest) - window as i64).max(Expr::int(0));
                let tile = i64::from(tile.k);
                b.k.let_("oldest", DType::I32, oldest / tile * tile)
            }
            None => Expr::int(0),
        };
        Ok(Run { end: end.into(), oldest, longest: longest.into() })
    }
}

/// Starts copies of rows of an array [_, heads, dim] into a padded shared tile; `at` gives the row of the
/// array and whether there is one.
fn copy_rows(
    b: &mut Body<'_>,
    tile: &Tile,
    o: OperandId,
    (shared, rows, dim): (SharedId, u32, u32),
    head: &Expr,
    at: impl Fn(Expr) -> (Expr, Expr),
) -> Result<(), String> {
    let threads = tile.q * 2;
    let across = dim / CHUNK;
    let chunks = rows * across;
    let (mem, shape) = (b.reads[o.index()], b.work.reads[o.index()].shape.clone());
    let range = (Expr::ThreadIdx, Expr::int(i64::from(chunks)), Expr::int(i64::from(threads)));
    b.for_loop("chunk", range, Unroll::Never, |b, chunk| {
        let row = b.k.let_("copy_row", DType::I32, chunk.clone() / i64::from(across));
        let column = b.k.let_("column", DType::I32, chunk % i64::from(across) * i64::from(CHUNK));
        let (from, valid) = at(row.clone());
        let global_index = b.flat(&shape, &[from, head.clone(), column.clone()]);
        b.k.push(Stmt::CpAsync {
            shared,
            shared_index: row * i64::from(dim + CHUNK) + column,
            global: mem,
            global_index,
            bytes: 16,
            valid: Some(valid),
        });
        Ok(())
    })
}

/// Brings a tile of keys and values to shared memory.
fn load_keys(b: &mut Body<'_>, tile: &Tile, a: &Attention, k: &KeyTile<'_>) -> Result<(), String> {
    b.k.comment("The previous tile has been read by every warp.");
    b.k.push(Stmt::Barrier);
    let at = |row: Expr| {
        let j = k.first.clone() + row;
        (k.own.clone() + j.clone(), j.lt(k.end.clone()))
    };
    copy_rows(b, tile, a.keys, (tile.k_shared, tile.k, tile.head_dim), k.kv_head, at)?;
    copy_rows(b, tile, a.values, (tile.v_shared, tile.k, tile.value_dim), k.kv_head, at)?;
    b.k.push(Stmt::CpAsyncCommit);
    b.k.push(Stmt::CpAsyncWait { pending: 0 });
    b.k.push(Stmt::Barrier);
    Ok(())
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
    b.unrolled("d", tile.value_dim / 8, |b, d| {
        b.unrolled("i", 4, |b, i| {
            let token = first + row + i.clone() / 2 * 8;
            let token = b.k.let_("token", DType::I32, token);
            let column = d.clone() * 8 + t.lane.clone() % 4 * 2 + i.clone() % 2;
            let element = b.k.let_("element", DType::I32, column);
            b.if_then(token.clone().lt(tokens), |b| {
                // The best key has weight 1; where every key is hidden the result is 0.
                let sum = Expr::elem(regs.sum, i.clone() / 2).max(Expr::float(1.0));
                let value = Expr::elem(regs.out, d * 4 + i) / sum;
                b.stores(&a.stores, &Point::with_acc(vec![token, head, element], value))
            })
        })
    })
}
