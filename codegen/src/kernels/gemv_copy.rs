//! Rows of a skinny product's left operand that are stored in 16 bits, brought to shared memory as they are.
//!
//! Whole 16-byte pieces go there by `cp.async`, all of them on their way at once: through registers a thread had but a
//! few in flight, after those of the weights.

use super::Body;
use super::gemv::Shape;
use super::gemv_left::Left;
use super::warp::vector_lanes;
use weft_ir::dtype::DType;
use weft_ir::ids::{OperandId, SharedId};
use weft_ir::kernel::{CacheHint, Expr, Mem, Stmt, Unroll};
use weft_ir::plan::MatMul;

impl Left {
    /// Whether rows are copied as they are, by whole 16-byte pieces: asynchronously.
    pub(super) fn piecewise(&self, m: &MatMul) -> Option<(SharedId, OperandId)> {
        let ((shared, dtype), o) = (self.staged?, m.plain_left()?);
        let pieces = dtype.is_half() && vector_lanes(dtype, m.k) as usize * dtype.size() == 16;
        pieces.then_some((shared, o))
    }

    /// Starts asynchronous copies of the block's rows.
    pub(super) fn copy_pieces(
        &self,
        b: &mut Body<'_>,
        m: &MatMul,
        s: &Shape,
        first_row: &Expr,
        (shared, o): (SharedId, OperandId),
    ) -> Result<(), String> {
        let (global, shape) = (b.reads[o.index()], b.work.reads[o.index()].shape.clone());
        let lanes = vector_lanes(b.work.reads[o.index()].dtype, m.k);
        let across = i64::from(m.k as u32 / lanes);
        let last = b.extent(m.m) - 1;
        let along =
            (Expr::ThreadIdx, Expr::int(across * i64::from(s.rows)), Expr::int(i64::from(s.warps * 32)));
        b.for_loop("i", along, Unroll::By(4), |b, i| {
            let local = b.k.let_("local", DType::I32, i.clone() / across);
            let k = b.k.let_("k", DType::I32, i % across * i64::from(lanes));
            let row = (first_row.clone() + local.clone()).min(last);
            let global_index = b.flat(&shape, &[row, k.clone()]);
            let shared_index = local * i64::from(self.padded) + k;
            b.k.push(Stmt::CpAsync { shared, shared_index, global, global_index, bytes: 16, valid: None });
            Ok(())
        })?;
        b.k.push(Stmt::CpAsyncCommit);
        Ok(())
    }

    /// Copies rows that are stored in 16 bits as they are; whether they were.
    pub(super) fn copy(
        &self,
        b: &mut Body<'_>,
        m: &MatMul,
        s: &Shape,
        first_row: &Expr,
    ) -> Result<bool, String> {
        let (Some((shared, dtype)), Some(o)) = (self.staged, m.plain_left()) else { return Ok(false) };
        if !dtype.is_half() {
            return Ok(false);
        }
        if self.piecewise(m).is_some() {
            b.k.push(Stmt::CpAsyncWait { pending: 0 });
            for r in 0..s.rows {
                self.pad(b, m, s, r, shared, dtype)?;
            }
            return Ok(true);
        }
        let lanes = vector_lanes(dtype, m.k);
        let (mem, shape) = (b.reads[o.index()], b.work.reads[o.index()].shape.clone());
        let across = i64::from(m.k as u32 / lanes);
        let threads = i64::from(s.warps * 32);
        let last = b.extent(m.m) - 1;
        let along = (Expr::ThreadIdx, Expr::int(across * i64::from(s.rows)), Expr::int(threads));
        b.for_loop("i", along, Unroll::By(4), |b, i| {
            let local = b.k.let_("local", DType::I32, i.clone() / across);
            let k = b.k.let_("k", DType::I32, i % across * i64::from(lanes));
            let row = (first_row.clone() + local.clone()).min(last);
            let x = b.k.array("x", dtype, lanes, None);
            let index = b.flat(&shape, &[row, k.clone()]);
            let to = local * i64::from(self.padded) + k;
            if lanes == 1 {
                b.k.assign_elem(x, Expr::int(0), Expr::load(mem, index));
                b.k.store(Mem::Shared(shared), to, Expr::elem(x, Expr::int(0)));
                return Ok(());
            }
            let hint = CacheHint::Default;
            b.k.push(Stmt::LoadVec { dst: x, dst_at: Expr::int(0), mem, index, lanes, hint });
            let (mem, src_at) = (Mem::Shared(shared), Expr::int(0));
            b.k.push(Stmt::StoreVec { mem, index: to, src: x, src_at, lanes });
            Ok(())
        })?;
        for r in 0..s.rows {
            self.pad(b, m, s, r, shared, dtype)?;
        }
        Ok(true)
    }

    /// Zeros past the end of a row.
    pub(super) fn pad(
        &self,
        b: &mut Body<'_>,
        m: &MatMul,
        s: &Shape,
        r: u32,
        shared: SharedId,
        dtype: DType,
    ) -> Result<(), String> {
        let (k, end) = (m.k as i64, i64::from(self.padded));
        if k == end {
            return Ok(());
        }
        let along = (Expr::ThreadIdx + k, Expr::int(end), Expr::int(i64::from(s.warps * 32)));
        b.for_loop("k", along, Unroll::Never, |b, k| {
            let zero = Expr::float(0.0);
            let zero = if dtype.is_half() { zero.cast(dtype) } else { zero };
            let index = self.index(dtype, Expr::int(i64::from(r)), k);
            b.k.store(Mem::Shared(shared), index, zero);
            Ok(())
        })
    }
}
