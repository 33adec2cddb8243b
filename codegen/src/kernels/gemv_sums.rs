//! The end of a round of a skinny product: sums are joined over lanes and warps, and each lane runs the epilogue of its
//! point.

use super::gemv::{Kernel, Turn};
use super::warp::sums_by_lane;
use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::ids::{SharedId, VarId};
use weft_ir::kernel::{Expr, Mem, Stmt};

impl Kernel<'_> {
    /// Joins the lanes' sums and runs the epilogues of a team's points.
    pub fn finish(
        &self,
        b: &mut Body<'_>,
        partial: Option<SharedId>,
        reduced: &[Vec<Expr>],
        turns: &[Turn],
        round: Expr,
    ) -> Result<(), String> {
        let mut sums: Vec<Vec<Expr>> = turns.iter().map(|t| self.sums_of(b, t)).collect();
        if let Some(partial) = partial {
            sums = self.join_warps(b, partial, (turns, sums), round)?;
        }
        let points = self.points();
        for (turn, (t, acc)) in turns.iter().zip(sums).enumerate() {
            let (first, many) = (t.first, t.many);
            let stages = 0..self.m.stages.len();
            let of_row = |i: usize, at: i64| reduced[(at / points) as usize][i].clone();
            let stages = stages.map(|i| {
                // Points of one row have the same.
                let rows: Vec<i64> =
                    (first..first + many).filter(|p| *p == first || p % points == 0).collect();
                rows[1..].iter().fold(of_row(i, rows[0]), |value, p| {
                    let here = t.mine.clone().ge(Expr::int(*p));
                    b.k.let_("reduced", DType::F32, here.select(of_row(i, *p), value))
                })
            });
            let at = Point { reduced: stages.collect(), acc, ..t.at.clone() };
            if let Some(prepared) = &t.prepared {
                prepared.store(b, &self.m.stores, &at)?;
            }
            if t.prepared.is_some() && self.drawing.is_none() {
                continue;
            }
            b.if_then(t.inside.clone(), |b| {
                if t.prepared.is_none() {
                    b.stores(&self.m.stores, &at)?;
                }
                self.drawing.as_ref().map_or(Ok(()), |d| d.take(b, turn, &at))
            })?;
        }
        Ok(())
    }

    /// The sums of a turn's points over the lanes of a warp, or of a smaller team: each lane those of its point.
    fn sums_of(&self, b: &mut Body<'_>, t: &Turn) -> Vec<Expr> {
        let (group, lanes) = (self.m.group as i64, i64::from(self.s.lanes));
        (0..group)
            .map(|g| {
                let points = t.first..t.first + t.many;
                let of = points.map(|p| Expr::elem(self.sums, Expr::int(p * group + g)));
                sums_by_lane(b, &self.member, of.collect(), lanes)
            })
            .collect()
    }

    /// Adds up the sums of a team's warps, in their order, each point's in its lane. Two buffers take turns, so that one
    /// barrier a round is enough.
    fn join_warps(
        &self,
        b: &mut Body<'_>,
        partial: SharedId,
        (turns, sums): (&[Turn], Vec<Vec<Expr>>),
        round: Expr,
    ) -> Result<Vec<Vec<Expr>>, String> {
        let (group, all) = (self.m.group as i64, i64::from(self.s.rows * self.s.columns));
        let half = round % 2 * (i64::from(self.s.warps) * all);
        let half = b.k.let_("half", DType::I32, half);
        let own = b.k.let_("own_sums", DType::I32, half.clone() + self.t.warp.clone() * all);
        for (t, sums) in turns.iter().zip(sums) {
            b.if_then(self.t.lane.clone().lt(Expr::int(t.many)), |b| {
                let at = own.clone() + (self.t.lane.clone() + t.first) * group;
                for (g, sum) in (0..).zip(sums) {
                    b.k.store(Mem::Shared(partial), at.clone() + g, sum);
                }
                Ok(())
            })?;
        }
        b.k.push(Stmt::Barrier);
        let first = self.t.warp.clone() - self.part.clone();
        let first = b.k.let_("first_sums", DType::I32, half + first * all);
        let mut joined = Vec::new();
        for t in turns {
            let vars: Vec<VarId> =
                (0..group).map(|_| b.k.let_mut("value", DType::F32, Expr::float(0.0))).collect();
            b.if_then(t.inside.clone(), |b| {
                for (g, var) in (0..).zip(&vars) {
                    let at = first.clone() + t.mine.clone() * group + g;
                    b.k.assign(*var, Expr::load(Mem::Shared(partial), at.clone()));
                    b.unrolled("w", self.s.split - 1, |b, w| {
                        let other = Expr::load(Mem::Shared(partial), at + (w + 1) * all);
                        b.k.assign(*var, Expr::Var(*var) + other);
                        Ok(())
                    })?;
                }
                Ok(())
            })?;
            joined.push(vars.into_iter().map(Expr::Var).collect());
        }
        Ok(joined)
    }
}
