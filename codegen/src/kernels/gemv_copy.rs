//! Rows of a skinny product's left operand that are stored in 16 bits, brought to shared memory as they are.
//!
//! They go there by `cp.async`, all of them on their way at once: through registers a thread had but a few pieces in
//! flight, after those of the weights.

use super::Body;
use super::gemv::Shape;
use super::gemv_left::Left;
use super::warp::vector_lanes;
use weft_ir::dtype::DType;
use weft_ir::ids::{OperandId, SharedId};
use weft_ir::kernel::{Expr, Mem, Stmt, Unroll};
use weft_ir::plan::MatMul;

/// Rows that are copied as they are.
struct Copied {
    to: (SharedId, DType),
    from: OperandId,
    /// Elements of a piece.
    lanes: u32,
}

impl Left {
    fn copied(&self, m: &MatMul) -> Option<Copied> {
        let (to, from) = (self.staged?, m.plain_left()?);
        to.1.is_half().then(|| Copied { to, from, lanes: vector_lanes(to.1, m.k) })
    }

    /// Starts copies of the block's rows, where they are stored in 16 bits; whether they are.
    pub(super) fn start_copies(
        &self,
        b: &mut Body<'_>,
        m: &MatMul,
        s: &Shape,
        first_row: &Expr,
    ) -> Result<bool, String> {
        let Some(Copied { to: (shared, dtype), from, lanes }) = self.copied(m) else { return Ok(false) };
        let (global, shape) = (b.reads[from.index()], b.work.reads[from.index()].shape.clone());
        let across = i64::from(m.k as u32 / lanes);
        let last = b.extent(m.m) - 1;
        let threads = Expr::int(i64::from(s.warps * 32));
        let along = (Expr::ThreadIdx, Expr::int(across * i64::from(s.rows)), threads);
        b.for_loop("i", along, Unroll::By(4), |b, i| {
            let local = b.k.let_("local", DType::I32, i.clone() / across);
            let k = b.k.let_("k", DType::I32, i % across * i64::from(lanes));
            let row = (first_row.clone() + local.clone()).min(last);
            let global_index = b.flat(&shape, &[row, k.clone()]);
            let shared_index = local * i64::from(self.padded) + k;
            if lanes == 1 {
                // No copy is that short.
                b.k.store(Mem::Shared(shared), shared_index, Expr::load(global, global_index));
                return Ok(());
            }
            let bytes = lanes * dtype.size() as u32;
            b.k.push(Stmt::CpAsync { shared, shared_index, global, global_index, bytes, valid: None });
            Ok(())
        })?;
        if lanes > 1 {
            b.k.push(Stmt::CpAsyncCommit);
        }
        Ok(true)
    }

    /// Waits for the copies, and fills what is past the end of rows; whether there are any.
    pub(super) fn finish_copies(&self, b: &mut Body<'_>, m: &MatMul, s: &Shape) -> Result<bool, String> {
        let Some(Copied { to: (shared, dtype), lanes, .. }) = self.copied(m) else { return Ok(false) };
        if lanes > 1 {
            b.k.push(Stmt::CpAsyncWait { pending: 0 });
        }
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
