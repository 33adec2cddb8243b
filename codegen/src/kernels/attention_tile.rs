//! Attention of a tile of tokens for one query head, on tensor cores (FlashAttention-2, Dao 2023).
//!
//! Each warp takes 16 tokens: Q stays in registers as fragments, keys and values pass through shared
//! memory, the scores of a key tile become the left operand of the product with the values without
//! leaving registers. A tile may hold tokens of several sequences: it is cut into runs of tokens with the
//! same slot base, and each run visits its own keys; rows of other runs are masked.

use super::attention_decode::NO_SCORE;
use super::warp::{Threads, shuffle_reduce, threads};
use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::ids::{OperandId, SharedId, VarId};
use weft_ir::kernel::{Axis, CompareOp, Expr, MathFn, MatrixCount, Mem, Stmt, Unroll};
use weft_ir::plan::Attention;
use weft_ir::scalar::Reduce;

const CHUNK: u32 = 8;

/// Sizes and shared arrays of the kernel.
struct Tile {
    q: u32,
    k: u32,
    head_dim: u32,
    value_dim: u32,
    dtype: DType,
    q_shared: SharedId,
    k_shared: SharedId,
    v_shared: SharedId,
    /// Slot base and number of keys of each token of the tile.
    base: SharedId,
    length: SharedId,
}

/// Registers of a warp.
struct Registers {
    q: VarId,
    out: VarId,
    /// For the two rows of a lane: running maximum and sum.
    max: VarId,
    sum: VarId,
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
            let (end, longest) = run_extent(b, &tile, &run, &own)?;
            let steps = (Expr::int(0), longest.clone(), Expr::int(i64::from(tile_k)));
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
struct Place<'a> {
    t: &'a Threads,
    row: &'a Expr,
    first_token: &'a Expr,
    head: &'a Expr,
    /// First and last + 1 row of the run.
    rows: &'a (Expr, Expr),
}

/// End of the run that starts at `run`, and its longest context.
fn run_extent(b: &mut Body<'_>, tile: &Tile, run: &Expr, own: &Expr) -> Result<(Expr, Expr), String> {
    let end = b.k.let_mut("run_end", DType::I32, run.clone());
    let longest = b.k.let_mut("longest", DType::I32, Expr::int(0));
    let range = (run.clone(), Expr::int(i64::from(tile.q)), Expr::int(1));
    b.for_loop("r", range, Unroll::Never, |b, r| {
        let same = Expr::load(Mem::Shared(tile.base), r.clone()).eq_(own.clone());
        let follows = Expr::Var(end).eq_(r.clone());
        b.if_then(same.and(follows), |b| {
            b.k.assign(end, r.clone() + 1);
            let length = Expr::load(Mem::Shared(tile.length), r);
            b.k.assign(longest, Expr::Var(longest).max(length));
            Ok(())
        })
    })?;
    Ok((end.into(), longest.into()))
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

/// One tile of keys: scores, online softmax, product with the values.
fn step(
    b: &mut Body<'_>,
    a: &Attention,
    tile: &Tile,
    regs: &Registers,
    p: &Place<'_>,
    first_key: &Expr,
) -> Result<(), String> {
    let nt = tile.k / 8;
    let s = b.k.array("s", DType::F32, nt * 4, Some(Expr::float(0.0)));
    let pitch = i64::from(tile.head_dim + CHUNK);
    let lane_row = p.t.lane.clone() / 16 * 8 + p.t.lane.clone() % 8;
    let k_base = b.k.let_("k_base", DType::I32, lane_row * pitch + p.t.lane.clone() / 8 % 2 * 8);
    b.unrolled("nj", nt / 2, |b, nj| {
        b.unrolled("kk", tile.head_dim / 16, |b, kk| {
            let frag = b.k.array("k_frag", DType::U32, 4, None);
            let index = k_base + nj.clone() * (16 * pitch) + kk.clone() * 16;
            load_four(b, frag, tile.k_shared, index, false);
            b.unrolled("half", 2, |b, half| {
                let acc_at = (nj * 2 + half.clone()) * 4;
                b.k.push(Stmt::Mma {
                    dtype: tile.dtype,
                    acc: s,
                    acc_at,
                    a: regs.q,
                    a_at: kk * 4,
                    b: frag,
                    b_at: half * 2,
                });
                Ok(())
            })
        })
    })?;
    b.k.comment("Row i/2 of a lane's two, key column i%2 of its pair.");
    b.unrolled("n", nt, |b, n| {
        b.unrolled("i", 4, |b, i| {
            let r = b.k.let_("r", DType::I32, p.row.clone() + i.clone() / 2 * 8);
            let column = n.clone() * 8 + p.t.lane.clone() % 4 * 2 + i.clone() % 2;
            let j = b.k.let_("j", DType::I32, first_key.clone() + column);
            let in_run = r.clone().ge(p.rows.0.clone()).and(r.clone().lt(p.rows.1.clone()));
            let seen = in_run.and(j.clone().lt(Expr::load(Mem::Shared(tile.length), r.clone())));
            let at = n * 4 + i;
            let coords = vec![p.first_token.clone() + r, p.head.clone(), j];
            let score = b.lower(&a.score, &Point::with_acc(coords, Expr::elem(s, at.clone())))?;
            b.k.assign_elem(s, at, seen.select(score, Expr::float(f32::NEG_INFINITY)));
            Ok(())
        })
    })?;
    softmax(b, tile, regs, s)?;
    add_values(b, tile, regs, p.t, s)
}

fn load_four(b: &mut Body<'_>, dst: VarId, shared: SharedId, index: Expr, transpose: bool) {
    let count = MatrixCount::X4;
    b.k.push(Stmt::LdMatrix { dst, dst_at: Expr::int(0), shared, index, count, transpose });
}

/// Online softmax of the lane's two rows; `s` becomes the weights.
fn softmax(b: &mut Body<'_>, tile: &Tile, regs: &Registers, s: VarId) -> Result<(), String> {
    let nt = tile.k / 8;
    b.unrolled("half", 2, |b, half| {
        let of = |n: Expr, i: Expr| n * 4 + half.clone() * 2 + i;
        let best = b.k.let_mut("new_best", DType::F32, Expr::elem(regs.max, half.clone()));
        b.unrolled("n", nt, |b, n| {
            b.unrolled("i", 2, |b, i| {
                b.k.assign(best, Expr::Var(best).max(Expr::elem(s, of(n, i))));
                Ok(())
            })
        })?;
        // The four lanes of a row.
        shuffle_reduce(b, best, Reduce::Max, 1, 4);
        let scale = Expr::math(MathFn::Exp, Expr::elem(regs.max, half.clone()) - Expr::Var(best));
        let scale = b.k.let_("scale", DType::F32, scale);
        let sum = b.k.let_mut("sum", DType::F32, Expr::float(0.0));
        b.unrolled("n", nt, |b, n| {
            b.unrolled("i", 2, |b, i| {
                let at = of(n, i);
                let w = Expr::math(MathFn::Exp, Expr::elem(s, at.clone()) - Expr::Var(best));
                let w = b.k.let_("w", DType::F32, w);
                b.k.assign(sum, Expr::Var(sum) + w.clone());
                b.k.assign_elem(s, at, w);
                Ok(())
            })
        })?;
        shuffle_reduce(b, sum, Reduce::Sum, 1, 4);
        b.k.assign_elem(regs.max, half.clone(), best.into());
        let total = Expr::fma(Expr::elem(regs.sum, half.clone()), scale.clone(), sum.into());
        b.k.assign_elem(regs.sum, half.clone(), total);
        b.unrolled("d", tile.value_dim / 8, |b, d| {
            b.unrolled("i", 2, |b, i| {
                let at = d * 4 + half.clone() * 2 + i;
                b.k.assign_elem(regs.out, at.clone(), Expr::elem(regs.out, at) * scale);
                Ok(())
            })
        })
    })
}

/// out += weights · values. The accumulator layout of two score fragments is the A layout of one.
fn add_values(b: &mut Body<'_>, tile: &Tile, regs: &Registers, t: &Threads, s: VarId) -> Result<(), String> {
    let pitch = i64::from(tile.value_dim + CHUNK);
    let lane_row = t.lane.clone() % 16;
    let v_base = b.k.let_("v_base", DType::I32, lane_row * pitch + t.lane.clone() / 16 * 8);
    b.unrolled("kj", tile.k / 16, |b, kj| {
        let frag = b.k.array("w_frag", DType::U32, 4, None);
        b.unrolled("i", 4, |b, i| {
            let at = kj.clone() * 8 + i.clone() * 2;
            let (low, high) = (Expr::elem(s, at.clone()), Expr::elem(s, at + 1));
            b.k.assign_elem(frag, i, Expr::Pack2(tile.dtype, Box::new(low), Box::new(high)));
            Ok(())
        })?;
        b.unrolled("dj", tile.value_dim / 16, |b, dj| {
            let v_frag = b.k.array("v_frag", DType::U32, 4, None);
            let index = v_base + kj * (16 * pitch) + dj.clone() * 16;
            load_four(b, v_frag, tile.v_shared, index, true);
            b.unrolled("half", 2, |b, half| {
                b.k.push(Stmt::Mma {
                    dtype: tile.dtype,
                    acc: regs.out,
                    acc_at: (dj * 2 + half.clone()) * 4,
                    a: frag,
                    a_at: Expr::int(0),
                    b: v_frag,
                    b_at: half * 2,
                });
                Ok(())
            })
        })
    })
}

/// One more score in the softmax of the lane's two rows, which adds to no value.
fn add_sink(b: &mut Body<'_>, tile: &Tile, regs: &Registers, sink: Expr) -> Result<(), String> {
    b.unrolled("half", 2, |b, half| {
        let best = Expr::elem(regs.max, half.clone());
        let top = b.k.let_("top", DType::F32, best.clone().max(sink.clone()));
        let scale = b.k.let_("scale", DType::F32, Expr::math(MathFn::Exp, best - top.clone()));
        let beside = Expr::math(MathFn::Exp, sink - top);
        let total = Expr::fma(Expr::elem(regs.sum, half.clone()), scale.clone(), beside);
        b.k.assign_elem(regs.sum, half.clone(), total);
        b.unrolled("d", tile.value_dim / 8, |b, d| {
            b.unrolled("i", 2, |b, i| {
                let at = d * 4 + half.clone() * 2 + i;
                b.k.assign_elem(regs.out, at.clone(), Expr::elem(regs.out, at) * scale);
                Ok(())
            })
        })
    })
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
