//! One tile of keys in [`super::attention_tile`]: scores, online softmax, product with the values.

use super::attention_tile::{CHUNK, Place, Registers, Tile};
use super::warp::shuffle_reduce;
use super::{Body, Point};
use std::f32::consts::LOG2_E;
use weft_ir::dtype::DType;
use weft_ir::ids::{SharedId, VarId};
use weft_ir::kernel::{Expr, MathFn, MatrixCount, Stmt};
use weft_ir::plan::Attention;
use weft_ir::scalar::Reduce;

/// One tile of keys: scores, online softmax, product with the values.
pub(super) fn step(
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
    let lane_row = p.t.lane.clone() / 16 * 8 + p.t.lane.clone() % 8 + p.stage.clone() * i64::from(tile.k);
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
            let seen = j.clone().lt(Expr::elem(p.seen, i.clone() / 2));
            let at = n * 4 + i;
            let coords = vec![p.first_token.clone() + r, p.head.clone(), j];
            let score = b.lower(&a.score, &Point::with_acc(coords, Expr::elem(s, at.clone())))?;
            b.k.assign_elem(s, at, seen.select(score, Expr::float(f32::NEG_INFINITY)));
            Ok(())
        })
    })?;
    softmax(b, tile, regs, s)?;
    add_values(b, tile, regs, p, s)
}

fn load_four(b: &mut Body<'_>, dst: VarId, shared: SharedId, index: Expr, transpose: bool) {
    let count = MatrixCount::X4;
    b.k.push(Stmt::LdMatrix { dst, dst_at: Expr::int(0), shared, index, count, transpose });
}

/// eˣ by the instruction for powers of two. Weights are rounded to 16 bits: its last places do not show.
fn power(x: Expr) -> Expr {
    Expr::math(MathFn::Exp2Approx, x * Expr::float(LOG2_E))
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
        let scale = power(Expr::elem(regs.max, half.clone()) - Expr::Var(best));
        let scale = b.k.let_("scale", DType::F32, scale);
        let of_best = b.k.let_("of_best", DType::F32, Expr::Var(best) * Expr::float(-LOG2_E));
        let sum = b.k.let_mut("sum", DType::F32, Expr::float(0.0));
        b.unrolled("n", nt, |b, n| {
            b.unrolled("i", 2, |b, i| {
                let at = of(n, i);
                let w = Expr::fma(Expr::elem(s, at.clone()), Expr::float(LOG2_E), of_best.clone());
                let w = Expr::math(MathFn::Exp2Approx, w);
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
fn add_values(
    b: &mut Body<'_>,
    tile: &Tile,
    regs: &Registers,
    p: &Place<'_>,
    s: VarId,
) -> Result<(), String> {
    let pitch = i64::from(tile.value_dim + CHUNK);
    let lane = &p.t.lane;
    let lane_row = lane.clone() % 16 + p.stage.clone() * i64::from(tile.k);
    let v_base = b.k.let_("v_base", DType::I32, lane_row * pitch + lane.clone() / 16 * 8);
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
pub(super) fn add_sink(b: &mut Body<'_>, tile: &Tile, regs: &Registers, sink: Expr) -> Result<(), String> {
    b.unrolled("half", 2, |b, half| {
        let best = Expr::elem(regs.max, half.clone());
        let top = b.k.let_("top", DType::F32, best.clone().max(sink.clone()));
        let scale = b.k.let_("scale", DType::F32, power(best - top.clone()));
        let beside = power(sink - top);
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
