//! The projection behind attention, made by the blocks of a cluster: each has the outputs of all query heads of its head
//! of keys, and makes an equal part of the columns of what these add to the projection. Its part of the weight is asked
//! for before the dependency wait, behind the first keys, and waits in registers: a block's part of all of it is some
//! tens of kilobytes where attention leaves most multiprocessors idle, and a kernel less costs less than reading the addends
//! where they are needed (docs/performance.md).

use super::attention_decode::Block;
use super::attention_join::Place;
use super::warp::{Threads, sums_by_lane};
use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::ids::{SharedId, VarId};
use weft_ir::kernel::{Axis, CacheHint, Expr, Mem, Stmt};
use weft_ir::plan::{Attention, AttentionProjection, ProjectionShare};

/// f32 of a load from shared memory.
const QUAD: u32 = 4;

/// What a block needs of the projection.
pub(super) struct Projection<'e> {
    a: &'e Attention,
    p: &'e AttentionProjection,
    /// What is multiplied: f32 [query head of the head of keys, element].
    pub outputs: SharedId,
    share: ProjectionShare,
    /// The block's part of the weight: [turn, load, element].
    weight: Option<VarId>,
}

impl<'e> Projection<'e> {
    pub fn declare(b: &mut Body<'_>, a: &'e Attention, block: &Block) -> Result<Option<Self>, String> {
        let Some(p) = &a.projection else { return Ok(None) };
        if block.cluster < 2 || block.cluster != block.splits || block.heads as usize != a.group {
            return Err("a projection of what no cluster has whole".into());
        }
        let dtype = b.work.reads[p.weight.index()].dtype;
        let share = ProjectionShare::new(a, p, (dtype, block.cluster as usize, block.warps as usize))?;
        let outputs = b.k.shared("outputs", DType::F32, share.k as u32);
        Ok(Some(Projection { a, p, outputs, share, weight: None }))
    }

    /// Column of the block that a thread has a part of in a turn.
    fn column(&self, turn: Expr) -> Expr {
        turn * self.share.groups as i64 + Expr::ThreadIdx / self.share.lanes as i64
    }

    /// First element of a lane's load.
    fn element(&self, load: Expr) -> Expr {
        let (lanes, vector) = (self.share.lanes as i64, self.share.vector as i64);
        (load * lanes + Expr::ThreadIdx % lanes) * vector
    }

    /// Asks for the block's part of the weight.
    pub fn load(&mut self, b: &mut Body<'_>) -> Result<(), String> {
        let operand = self.p.weight.index();
        let (mem, shape, dtype) =
            (b.reads[operand], b.work.reads[operand].shape.clone(), b.work.reads[operand].dtype);
        let dst = b.k.array("projection", dtype, self.share.held() as u32, None);
        b.k.comment("The block's columns of the projection, for its head of keys.");
        let first = Expr::BlockIdx(Axis::Z) * self.share.columns as i64;
        b.unrolled("turn", self.share.turns as u32, |b, turn| {
            // Past the end, the last column again.
            let column = (first + self.column(turn.clone())).min(Expr::int(self.p.columns as i64 - 1));
            let start = b.flat(&shape, &[column, Expr::BlockIdx(Axis::Y) * self.share.k as i64]);
            let start = b.k.let_("start", b.index_type(&shape), start);
            b.unrolled("i", self.share.loads as u32, |b, i| {
                let index = b.flat_offset(&shape, start, self.element(i.clone()));
                let dst_at = (turn * self.share.loads as i64 + i) * self.share.vector as i64;
                let (lanes, hint) = (self.share.vector as u32, CacheHint::Streaming);
                b.k.push(Stmt::LoadVec { dst, dst_at, mem, index, lanes, hint });
                Ok(())
            })
        })?;
        self.weight = Some(dst);
        Ok(())
    }

    /// Leaves an output of one of the block's heads in shared memory.
    pub fn put(
        &self,
        b: &mut Body<'_>,
        place: &Place,
        (h, d): (&Expr, &Expr),
        output: Expr,
    ) -> Result<(), String> {
        let head = place.first_head.clone() + h.clone();
        let value =
            b.lower(&self.p.value, &Point::with_acc(vec![place.token.clone(), head, d.clone()], output))?;
        b.k.store(Mem::Shared(self.outputs), h.clone() * self.a.value_dim as i64 + d.clone(), value);
        Ok(())
    }

    /// Makes the block's columns of the outputs in shared memory, behind a barrier, and stores them.
    pub fn finish(&self, b: &mut Body<'_>, place: &Place, t: &Threads) -> Result<(), String> {
        let weight = self.weight.ok_or("a projection without its weight")?;
        b.k.push(Stmt::Barrier);
        let vector = self.share.vector as i64;
        let quad = (self.share.vector as u32).min(QUAD);
        let x = b.k.array("x", DType::F32, (self.share.loads * self.share.vector) as u32, None);
        b.unrolled("i", self.share.loads as u32, |b, i| {
            b.unrolled("q", self.share.vector as u32 / quad, |b, q| {
                let within = q * i64::from(quad);
                let (mem, index) = (Mem::Shared(self.outputs), self.element(i.clone()) + within.clone());
                let (dst_at, lanes, hint) = (i * vector + within, quad, CacheHint::Default);
                b.k.push(Stmt::LoadVec { dst: x, dst_at, mem, index, lanes, hint });
                Ok(())
            })
        })?;
        let sums = b.k.array("sums", DType::F32, self.share.turns as u32, Some(Expr::float(0.0)));
        b.unrolled("e", (self.share.loads * self.share.vector) as u32, |b, e| {
            b.unrolled("turn", self.share.turns as u32, |b, turn| {
                let at = turn.clone() * (self.share.loads as i64 * vector) + e.clone();
                let factor = Expr::elem(weight, at).cast(DType::F32);
                let sum = Expr::fma(factor, Expr::elem(x, e), Expr::elem(sums, turn.clone()));
                b.k.assign_elem(sums, turn, sum);
                Ok(())
            })
        })?;
        let each = (0..self.share.turns as i64).map(|i| Expr::elem(sums, Expr::int(i))).collect();
        let sum = sums_by_lane(b, &t.lane, each, self.share.lanes as i64);
        let turn = b.k.let_("turn", DType::I32, Expr::ThreadIdx % self.share.lanes as i64);
        let own = b.k.let_("own_column", DType::I32, self.column(turn.clone()));
        let column = Expr::BlockIdx(Axis::Z) * self.share.columns as i64 + own.clone();
        let column = b.k.let_("column_at", DType::I32, column);
        let inside = turn.lt(Expr::int(self.share.turns as i64));
        let inside = inside.and(own.lt(Expr::int(self.share.columns as i64)));
        let inside = inside.and(column.clone().lt(Expr::int(self.p.columns as i64)));
        b.if_then(inside, |b| {
            let at = vec![place.token.clone(), Expr::BlockIdx(Axis::Y), column];
            b.stores(&self.a.stores, &Point::with_acc(at, sum))
        })
    }
}
