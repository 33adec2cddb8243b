//! How the blocks of a cluster join their softmax states: each sends every block a part of its weighted values, with its
//! largest scores and sums of weights, and finishes that part of the result. Data and its arrival are one message
//! (`st.async`), so a block waits for nothing but what it needs: about 0.2 µs, where partial results in global memory
//! and a counter take three round trips to L2. Where the blocks project the outputs
//! ([`super::attention_projection`]), each needs all of them, and is sent all.

use super::Body;
use super::attention_decode::Block;
use super::attention_join::{
    Count, Elements, Joined, Parts, Place, Split, Warps, elements, finish, join, together,
};
use super::attention_projection::Projection;
use super::warp::Threads;
use weft_ir::dtype::DType;
use weft_ir::ids::{SharedId, SignalId, VarId};
use weft_ir::kernel::{Axis, Expr, Mem, Stmt};
use weft_ir::plan::Attention;

/// What the blocks of the cluster send this one: row `block · heads + h`.
pub(super) struct Exchange {
    max: SharedId,
    sum: SharedId,
    out: SharedId,
    signal: SignalId,
    /// Blocks of the cluster, and elements of a value that each finishes.
    blocks: u32,
    share: usize,
    /// Whether each finishes all of them, however few have keys.
    whole: bool,
}

impl Exchange {
    /// Declares what is received, where the schedule has clusters.
    pub fn declare(b: &mut Body<'_>, a: &Attention, block: &Block) -> Result<Option<Exchange>, String> {
        let blocks = block.cluster;
        if blocks == 1 {
            return Ok(None);
        }
        if !a.value_dim.is_multiple_of(blocks as usize) || !block.splits.is_multiple_of(blocks) {
            let (dim, splits) = (a.value_dim, block.splits);
            return Err(format!("clusters of {blocks} blocks for {dim} elements and {splits} splits"));
        }
        b.k.cluster(blocks);
        let whole = a.projection.is_some();
        let share = if whole { a.value_dim } else { a.value_dim / blocks as usize };
        let rows = blocks * block.heads;
        Ok(Some(Exchange {
            max: b.k.shared("sent_max", DType::F32, rows),
            sum: b.k.shared("sent_sum", DType::F32, rows),
            out: b.k.shared("sent_out", DType::F32, rows * share as u32),
            signal: b.k.signal("arrived"),
            blocks,
            share,
            whole,
        }))
    }

    /// Says what will come, to all blocks of the cluster.
    pub fn open(&self, b: &mut Body<'_>, block: &Block, split: &Split) {
        let bytes = i64::from(block.heads) * (self.share as i64 + 2) * 4;
        let all = split.active.clone() * bytes;
        let bytes = if self.whole { all } else { split.joins().select(all, Expr::int(0)) };
        b.k.push(Stmt::ExpectBytes { signal: self.signal, bytes });
        b.k.push(Stmt::ClusterBarrier);
    }

    /// Joins the block's warps, and sends each block of the cluster its part.
    pub fn send(&self, b: &mut Body<'_>, a: &Attention, block: &Block, states: &Warps) -> Result<(), String> {
        let (n, share, heads) =
            (together(block, a.value_dim, self.share), self.share as i64, i64::from(block.heads));
        elements(b, (a.value_dim, n), block, |b, h, d| {
            let joined = join(b, &states.parts(block, &h), (d.clone(), n, a.value_dim as i64), None)?;
            let row = b.k.let_("row", DType::I32, Expr::BlockIdx(Axis::Z) * heads + h);
            if self.whole {
                return b.unrolled("rank", self.blocks, |b, rank| {
                    self.post_part(b, (&row, d), (&joined, n), &rank)
                });
            }
            let rank = b.k.let_("rank", DType::I32, d.clone() / share);
            let first = b.k.let_("first_of_part", DType::I32, d % share);
            self.post_part(b, (&row, first), (&joined, n), &rank)
        })
    }

    /// Sends a block some elements of a row of its part, the first of them with what all of them share.
    fn post_part(
        &self,
        b: &mut Body<'_>,
        (row, first): (&Expr, Expr),
        (joined, n): (&Joined, u32),
        rank: &Expr,
    ) -> Result<(), String> {
        self.post(b, (self.out, row.clone() * self.share as i64 + first.clone()), (joined.acc, n), rank);
        b.if_then(first.eq_(Expr::int(0)), |b| {
            for (name, to, value) in [("max", self.max, joined.best), ("sum", self.sum, joined.total)] {
                let value = b.k.array(name, DType::F32, 1, Some(value.into()));
                self.post(b, (to, row.clone()), (value, 1), rank);
            }
            Ok(())
        })
    }

    fn post(&self, b: &mut Body<'_>, (to, index): (SharedId, Expr), (src, lanes): (VarId, u32), rank: &Expr) {
        let (src_at, rank, signal) = (Expr::int(0), rank.clone(), self.signal);
        b.k.push(Stmt::Send { to, index, src, src_at, lanes, rank, signal });
    }

    /// Waits for what the cluster sends, and finishes this block's part of the result.
    pub fn finish(
        &self,
        b: &mut Body<'_>,
        (a, block): (&Attention, &Block),
        place: &Place,
        split: &Split,
        (projection, t): (Option<&Projection<'_>>, &Threads),
    ) -> Result<(), String> {
        b.k.push(Stmt::AwaitBytes { signal: self.signal });
        let [max, sum, out] = [self.max, self.sum, self.out].map(Mem::Shared);
        let parts = |h: &Expr| {
            let count = Count::UpTo(self.blocks, split.active.clone());
            Parts { count, max, sum, out, first: h.clone(), stride: i64::from(block.heads) }
        };
        let (row, n) = (self.share, 1);
        let Some(projection) = projection else {
            return b.if_then(split.joins(), |b| {
                elements(b, (self.share, 1), block, |b, h, in_row| {
                    let d = Expr::BlockIdx(Axis::Z) * self.share as i64 + in_row.clone();
                    let d = b.k.let_("d_of_value", DType::I32, d);
                    finish(b, a, &parts(&h), place, Elements { h, d, in_row, row, n }, None)
                })
            });
        };
        elements(b, (self.share, 1), block, |b, h, d| {
            let all = Elements { h: h.clone(), d: d.clone(), in_row: d, row, n };
            finish(b, a, &parts(&h), place, all, Some(projection))
        })?;
        projection.finish(b, place, t)
    }
}
