//! The left operand of a tiled product: fragments of it as it is stored, or computed of the arrays that it is made of.
//!
//! Computed, its arrays lie in shared memory as they are stored, and each warp makes the elements of its fragments where
//! it multiplies them: a norm's f32 row and weights become 16-bit elements in registers. The row reductions beside the
//! product are summed there, too. A lane has the same two rows of a fragment of A as of the accumulators, so a row's sum
//! is joined over four lanes and known where the epilogue needs it. Its order is that of k; where warps share k, their
//! sums are joined in that order ([`super::gemm_join`]).

use super::gemm::{CHUNK, Copied, Tile, load_a};
use super::warp::{Threads, combine, neutral};
use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::ids::{SharedId, VarId};
use weft_ir::kernel::{CacheHint, Expr, Mem, Stmt, Unroll};
use weft_ir::plan::{MatMul, Scalar, TiledLeft};
use weft_ir::scalar::Reduce;

/// An array of a computed left operand.
pub(super) struct Part {
    load: Scalar,
    dtype: DType,
    shared: SharedId,
    /// Rows of it in a stage: those of the tile, or one for all of them.
    rows: u32,
}

/// Where fragments of the left operand come from.
pub(super) enum Left {
    /// Rows of the tile, as stored.
    Stored(SharedId),
    /// Made of arrays, with the lanes' reductions of their rows, by stage.
    Computed { parts: Vec<Part>, sums: Vec<VarId> },
}

/// A fragment's place.
pub(super) struct Place<'e> {
    /// Stage of shared memory, and step of k that it holds.
    pub stage: &'e Expr,
    pub step: &'e Expr,
    /// Fragment within the stage, along k.
    pub kk: Expr,
    /// First row of the warp in the tile, and of the tile in the result.
    pub warp_row: &'e Expr,
    pub first_row: &'e Expr,
}

impl Left {
    /// Declares shared memory; the result tells what is to be copied there.
    pub fn declare(
        b: &mut Body<'_>,
        m: &MatMul,
        tile: &Tile,
        first_row: &Expr,
    ) -> Result<(Left, Vec<Copied>), String> {
        let place = |load: &Scalar| match load {
            Scalar::Load(o, index) => Ok((o.index(), index.clone())),
            _ => Err("what is copied is no load".to_owned()),
        };
        let loads = match m.tiled_left(&b.work.reads)? {
            TiledLeft::Stored(_) => {
                let (o, index) = place(&m.a)?;
                let rows = (tile.m, first_row.clone(), b.extent(m.m));
                let copied = Copied::declare(b, ("a_tile", o, index), tile, rows);
                return Ok((Left::Stored(copied.shared), vec![copied]));
            }
            TiledLeft::Computed(loads) => loads,
        };
        // Without a bound, ptxas spills some bytes to fit one more block.
        b.k.min_blocks(1);
        let (mut parts, mut copies) = (Vec::new(), Vec::new());
        for load in loads {
            let mut of_row = false;
            load.visit(&mut |part| of_row |= *part == Scalar::Coord(0));
            let (o, index) = place(&load)?;
            let rows = match of_row {
                true => (tile.m, first_row.clone(), b.extent(m.m)),
                false => (1, Expr::int(0), Expr::int(1)),
            };
            let operand = &b.work.reads[o];
            let (name, dtype) = (format!("{}_tile", operand.name), operand.dtype);
            let copied = Copied::declare(b, (&name, o, index), tile, rows);
            parts.push(Part { load, dtype, shared: copied.shared, rows: copied.rows });
            copies.push(copied);
        }
        Ok((Left::Computed { parts, sums: Vec::new() }, copies))
    }

    /// Sets the reductions of `mt` fragments of rows to nothing.
    pub fn start(&mut self, b: &mut Body<'_>, m: &MatMul, mt: u32) {
        if let Left::Computed { sums, .. } = self {
            for stage in &m.stages {
                sums.push(b.k.array("partial_sum", DType::F32, mt * 2, Some(neutral(stage.op))));
            }
        }
    }

    /// How the loop over a stage's fragments is unrolled.
    pub fn unroll(&self) -> Unroll {
        match self {
            Left::Stored(_) => Unroll::Full,
            // More elements on their way take registers that the copies' places need.
            Left::Computed { .. } => Unroll::By(2),
        }
    }

    /// `mt` fragments of a warp's rows, as `mma.sync` takes them.
    pub fn fragments(
        &self,
        b: &mut Body<'_>,
        m: &MatMul,
        (t, tile): (&Threads, &Tile),
        mt: u32,
        place: &Place<'_>,
    ) -> Result<VarId, String> {
        match self {
            Left::Stored(shared) => {
                let pitch = tile.k + CHUNK;
                let rows = place.stage.clone() * i64::from(tile.m) + place.warp_row.clone();
                let base = rows * i64::from(pitch) + place.kk.clone() * 16;
                load_a(b, t, *shared, base, mt, pitch)
            }
            Left::Computed { parts, sums } => compute(b, m, (t, tile), mt, place, (parts, sums)),
        }
    }

    /// The lanes' reductions of their rows, by stage: arrays [2 · fragment + half].
    pub fn sums(&self) -> &[VarId] {
        match self {
            Left::Stored(_) => &[],
            Left::Computed { sums, .. } => sums,
        }
    }

    /// Joins a stage's reductions over the lanes that have the same rows.
    pub fn join_lanes(&self, b: &mut Body<'_>, m: &MatMul, mt: u32, stage: usize) -> Result<(), String> {
        let (sum, op) = (self.sums()[stage], m.stages[stage].op);
        b.unrolled("slot", mt * 2, |b, slot| {
            let value = || Expr::elem(sum, slot.clone());
            for mask in [2, 1] {
                let joined = combine(op, value(), value().shuffle_xor(mask));
                b.k.assign_elem(sum, slot.clone(), joined);
            }
            Ok(())
        })
    }

    /// Joins the reductions of the lane's rows, whose k no other warp has a part of.
    pub fn reduced(&self, b: &mut Body<'_>, m: &MatMul, mt: u32) -> Result<Vec<VarId>, String> {
        for (i, &sum) in self.sums().iter().enumerate() {
            self.join_lanes(b, m, mt, i)?;
            if m.stages[i].op == Reduce::Mean {
                b.unrolled("slot", mt * 2, |b, slot| {
                    let mean = Expr::elem(sum, slot.clone()) / Expr::float(m.k as f32);
                    b.k.assign_elem(sum, slot, mean);
                    Ok(())
                })?;
            }
        }
        Ok(self.sums().to_vec())
    }
}

/// Register i of a fragment has row lane/4 + 8·(i%2), columns lane%4·2 + 8·(i/2) and the next (PTX ISA 9.7.14.5).
fn compute(
    b: &mut Body<'_>,
    m: &MatMul,
    (t, tile): (&Threads, &Tile),
    mt: u32,
    place: &Place<'_>,
    (parts, sums): (&[Part], &[VarId]),
) -> Result<VarId, String> {
    let dtype = b.work.reads[m.b.index()].dtype;
    // Packing rounds.
    let value = match &m.a {
        Scalar::Cast(to, value) if *to == dtype => value,
        value => value,
    };
    let regs = b.k.array("a", DType::U32, mt * 4, None);
    let whole = m.k.is_multiple_of(tile.k as usize);
    b.unrolled("side", 2, |b, side| {
        let k = place.kk.clone() * 16 + side.clone() * 8 + t.lane.clone() % 4 * 2;
        let k = b.k.let_("k", DType::I32, k);
        let at_k = b.k.let_("at_k", DType::I32, place.step.clone() * i64::from(tile.k) + k.clone());
        let of_all = pairs(b, parts.iter().filter(|p| p.rows == 1), (place.stage, &Expr::int(0), &k), tile);
        b.unrolled("slot", mt * 2, |b, slot| {
            let local = place.warp_row.clone() + slot.clone() * 8 + t.lane.clone() / 4;
            let local = b.k.let_("row", DType::I32, local);
            let of_row = pairs(b, parts.iter().filter(|p| p.rows > 1), (place.stage, &local, &k), tile);
            let mut both = Vec::new();
            for e in 0..2 {
                let loaded = of_all.iter().chain(&of_row).map(|(load, pair, half)| {
                    let x = Expr::elem(*pair, Expr::int(e));
                    (load.clone(), if *half { x.cast(DType::F32) } else { x })
                });
                let coords = vec![place.first_row.clone() + local.clone(), at_k.clone() + e];
                let point = Point { coords, loaded: loaded.collect(), ..Point::default() };
                // Past the end of k there are zeros, of which an expression may make anything.
                let inside = at_k.clone().lt(Expr::int(m.k as i64));
                let known = |x: Expr, none: Expr| if whole { x } else { inside.clone().select(x, none) };
                let x = known(b.lower(value, &point)?, Expr::float(0.0));
                both.push(b.k.let_("x", DType::F32, x));
                for (stage, &sum) in m.stages.iter().zip(sums) {
                    let x = known(b.lower(&stage.value, &point)?, neutral(stage.op));
                    let so_far = Expr::elem(sum, slot.clone());
                    b.k.assign_elem(sum, slot.clone(), combine(stage.op, so_far, x));
                }
            }
            let (high, low) = (both.pop(), both.pop());
            let (Some(low), Some(high)) = (low, high) else { return Err("a pair of elements".into()) };
            let at = slot.clone() / 2 * 4 + side.clone() * 2 + slot % 2;
            b.k.assign_elem(regs, at, Expr::Pack2(dtype, Box::new(low), Box::new(high)));
            Ok(())
        })
    })?;
    Ok(regs)
}

/// Two neighbouring elements of arrays at (stage, row, k): with their load, and whether they have 16 bits.
fn pairs<'p>(
    b: &mut Body<'_>,
    parts: impl Iterator<Item = &'p Part>,
    (stage, row, k): (&Expr, &Expr, &Expr),
    tile: &Tile,
) -> Vec<(Scalar, VarId, bool)> {
    let pair = |p: &Part| {
        let dst = b.k.array("pair", p.dtype, 2, None);
        let rows = stage.clone() * i64::from(p.rows) + row.clone();
        b.k.push(Stmt::LoadVec {
            dst,
            dst_at: Expr::int(0),
            mem: Mem::Shared(p.shared),
            index: rows * i64::from(tile.k + CHUNK) + k.clone(),
            lanes: 2,
            hint: CacheHint::Default,
        });
        (p.load.clone(), dst, p.dtype.is_half())
    };
    parts.map(pair).collect()
}
