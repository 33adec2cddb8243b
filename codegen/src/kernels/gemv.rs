//! Skinny matrix product: acc[m, j] = Σₖ a[m, k] · b[j, k] for a few rows m.
//!
//! A *team* of lanes (part of a warp, a warp, or some warps of a block) takes `columns` rows of b at a time,
//! every lane a different part of k, and keeps `rows` × `columns` sums. The block's left operand lies in
//! shared memory ([`super::gemv_left`]). Each lane keeps `depth` 16-byte loads of each column in flight: it
//! starts the first before the dependency wait (weights are constant), or some behind the left operand's loads, and
//! replaces each as it is used; what follows them comes to L2 meanwhile, as far as the schedule says, since the memory
//! has little to do during the wait. Shuffles join the lanes, shared memory the warps of a team, always in the same
//! order. Bound by reading b once.

use super::ahead::Prepared;
use super::draw::{Drawing, Site};
use super::gemv_left::Left;
use super::warp::{Threads, threads, vector_lanes};
use super::{Body, Point};
use std::ops::Range;
use weft_ir::dtype::DType;
use weft_ir::ids::{SharedId, VarId};
use weft_ir::kernel::{Axis, CacheHint, Expr, Stmt, Unroll};
use weft_ir::plan::{FirstLoads, LoadPart, MatMul};

/// Parameters of the schedule.
pub(super) struct Shape {
    pub rows: u32,
    pub warps: u32,
    pub lanes: u32,
    pub split: u32,
    pub columns: u32,
    pub depth: u32,
    pub blocks: u32,
    pub staged: bool,
    pub resident: u32,
    pub behind: u32,
    pub ahead: u32,
    pub late: bool,
}

impl Shape {
    /// The block along the columns of the result, and along its rows. Blocks of other rows and the same columns follow
    /// each other, so that the later ones find the weight in L2.
    pub fn block(&self) -> (Expr, Expr) {
        let (columns, rows) = if self.rows > 1 { (Axis::Y, Axis::X) } else { (Axis::X, Axis::Y) };
        (Expr::BlockIdx(columns), Expr::BlockIdx(rows))
    }
}

/// The kernel's sizes and places, once its variables are declared.
pub(super) struct Kernel<'a> {
    pub m: &'a MatMul,
    pub s: &'a Shape,
    left: Left,
    /// Elements of a 16-byte vector of b.
    vector: u32,
    /// Chunks of `depth` vectors a lane takes of each column.
    chunks: u32,
    /// Times a team takes columns.
    rounds: u32,
    teams: u32,
    pub drawing: Option<Drawing<'a>>,
    pub t: Threads,
    /// Index of the thread in its team.
    pub member: Expr,
    /// Warp within the team, and team within the block.
    pub part: Expr,
    team: Expr,
    first_row: Expr,
    weights: VarId,
    pub sums: VarId,
}

pub(super) fn build(b: &mut Body<'_>, m: &MatMul, s: &Shape) -> Result<(), String> {
    let teams_of_block = s.warps * 32 / s.lanes / s.split;
    let fits = s.lanes.is_power_of_two() && s.lanes <= 32 && (s.lanes == 32 || s.split == 1);
    if !fits || !s.warps.is_multiple_of(s.split) || !(s.columns as usize).is_multiple_of(m.group) {
        return Err(format!("teams of {} lanes × {} for {} columns", s.lanes, s.split, s.columns));
    }
    if m.row.is_some() {
        return Err("reductions over the row that the product makes".into());
    }
    if s.resident > 1 {
        b.k.min_blocks(s.resident);
    }
    let dtype = b.work.reads[m.b.index()].dtype;
    let vector = vector_lanes(dtype, m.k);
    let stride = vector * s.lanes * s.split;
    let chunks = (m.k as u32).div_ceil(stride * s.depth).max(1);
    let teams = teams_of_block * s.blocks;
    let left = Left::declare(b, m, s, (chunks * stride * s.depth, vector))?;
    let partial =
        (s.split > 1).then(|| b.k.shared("partial_sums", DType::F32, 2 * s.warps * s.rows * s.columns));
    if m.draw.is_some() && s.resident <= 1 {
        // Two blocks an SM, as the others: without the bound ptxas spills for more.
        b.k.min_blocks(if s.rows > 4 || s.warps > 8 { 1 } else { 2 });
    }
    let each = s.columns / m.group as u32;
    let (block, row_block) = s.block();
    let (rows, warps, blocks) = (s.rows, s.warps, s.blocks);
    let bests = (rows * each).div_ceil(s.lanes);
    let site = Site { rows, warps, blocks, block, row_block, groups: teams_of_block, each, bests };
    let drawing = Drawing::declare(b, m, site)?;
    let t = threads(b);
    let (lanes, split) = (i64::from(s.lanes), i64::from(s.split));
    let member = Expr::ThreadIdx % (lanes * split);
    let member = b.k.let_("member", DType::I32, member);
    let part = if s.split == 1 { Expr::int(0) } else { t.warp.clone() % split };
    let (along_columns, along_rows) = s.block();
    let team = along_columns * i64::from(teams_of_block) + Expr::ThreadIdx / (lanes * split);
    let team = b.k.let_("team", DType::I32, team);
    let first_row = b.k.let_("first_row", DType::I32, along_rows * i64::from(s.rows));
    let weights = b.k.array("w", dtype, vector * s.columns * s.depth, None);
    let tasks = (m.columns() as u32).div_ceil(s.columns);
    let rounds = tasks.div_ceil(teams);
    let mut k = Kernel {
        m,
        s,
        left,
        vector,
        chunks,
        rounds,
        teams,
        drawing,
        t,
        member,
        part,
        team: team.clone(),
        first_row,
        weights,
        sums: VarId::new(0),
    };
    if !s.late {
        b.launch_dependents();
    }
    b.k.comment(match s.behind {
        0 => "Weights are constant: their loads start before the wait.",
        _ => "Weights are constant: these loads start before the wait, the others behind those of the left operand.",
    });
    let first = k.places(b, team, Expr::int(0))?;
    let loads = FirstLoads::new(s.columns, s.depth, s.behind)?;
    k.load_part(b, &first, &loads.before)?;
    k.bring(b, &first, &loads)?;
    k.left.load_constants(b)?;
    // The only task's epilogue is known already.
    let mut only = (k.rounds == 1).then(|| k.turns(b, &k.team));
    load_ahead(b, only.iter_mut().flatten(), true)?;
    b.wait();
    if s.late {
        b.launch_dependents();
    }
    load_ahead(b, only.iter_mut().flatten(), false)?;
    let (t, first_row) = (k.t.clone(), k.first_row.clone());
    k.left.start(b, m, s, &first_row)?;
    k.load_part(b, &first, &loads.behind)?;
    let reduced = k.left.fill(b, m, s, &t, &first_row)?;
    k.rounds(b, partial, &reduced, only)
}

/// Makes the loads of some turns' epilogues: those of constants alone, or all that are left.
fn load_ahead<'t>(
    b: &mut Body<'_>,
    mut turns: impl Iterator<Item = &'t mut Turn>,
    constants: bool,
) -> Result<(), String> {
    turns.try_for_each(|t| t.prepared.as_mut().map_or(Ok(()), |p| p.load(b, constants)))
}

/// Where a lane's first vector of each column lies, for one chunk: the elements of b, and k.
struct Places {
    columns: Vec<Expr>,
    k: Expr,
}

/// The points that the lanes of a team take together: those from `first` on, `many` of them, lane by lane.
pub(super) struct Turn {
    pub first: i64,
    pub many: i64,
    /// Index of the lane's point among those of the task.
    pub mine: Expr,
    pub at: Point,
    /// Whether the lane has a point.
    pub inside: Expr,
    /// The stores, where what they read is loaded ahead.
    pub prepared: Option<Prepared>,
}

impl Kernel<'_> {
    fn stride(&self) -> i64 {
        i64::from(self.vector * self.s.lanes * self.s.split)
    }

    /// Whether the lanes' vectors cover k exactly.
    fn exact(&self) -> bool {
        self.m.k as i64 == self.stride() * i64::from(self.chunks * self.s.depth)
    }

    fn places(&self, b: &mut Body<'_>, task: Expr, chunk: Expr) -> Result<Places, String> {
        let chunk = chunk * (self.stride() * i64::from(self.s.depth));
        let k = b.k.let_("k", DType::I32, chunk + self.member.clone() * i64::from(self.vector));
        let shape = b.work.reads[self.m.b.index()].shape.clone();
        let index = b.index_type(&shape);
        let last = Expr::int(self.m.columns() as i64 - 1);
        let columns = (0..i64::from(self.s.columns)).map(|c| {
            // Columns past the end repeat the last one and are not stored.
            let column = (task.clone() * i64::from(self.s.columns) + c).min(last.clone());
            let start = b.flat(&shape, &[column, Expr::int(0)]);
            b.k.let_("column", index, start)
        });
        Ok(Places { columns: columns.collect(), k })
    }

    /// Starts a part of the first loads.
    fn load_part(&self, b: &mut Body<'_>, at: &Places, part: &LoadPart) -> Result<(), String> {
        let steps = part.steps.clone();
        if steps.is_empty() || part.columns.is_empty() {
            return Ok(());
        }
        let (first, n) = (i64::from(steps.start), steps.end - steps.start);
        b.unrolled("d", n, |b, d| {
            let d = if first == 0 { d } else { d + first };
            self.load(b, at, d, &part.columns)
        })
    }

    /// Starts a lane's loads of vector d of some columns.
    fn load(&self, b: &mut Body<'_>, at: &Places, d: Expr, columns: &Range<u32>) -> Result<(), String> {
        let shape = b.work.reads[self.m.b.index()].shape.clone();
        let k = at.k.clone() + d.clone() * self.stride();
        // Vectors past the end repeat the last one; the left operand is zero there.
        let k = if self.exact() { k } else { k.min(Expr::int((self.m.k - self.vector as usize) as i64)) };
        let (from, to) = (columns.start as usize, columns.end as usize);
        for (c, column) in at.columns.iter().enumerate().take(to).skip(from) {
            let slot = d.clone() * i64::from(self.s.columns) + c as i64;
            let index = b.flat_offset(&shape, column.clone(), k.clone());
            if self.vector == 1 {
                // No vector access is that short.
                b.k.assign_elem(self.weights, slot, Expr::load(b.reads[self.m.b.index()], index));
                continue;
            }
            b.k.push(Stmt::LoadVec {
                dst: self.weights,
                dst_at: slot * i64::from(self.vector),
                mem: b.reads[self.m.b.index()],
                index,
                lanes: self.vector,
                hint: CacheHint::Streaming,
            });
        }
        Ok(())
    }

    /// Has what follows the first loads of a team's columns brought to L2.
    fn bring(&self, b: &mut Body<'_>, at: &Places, loads: &FirstLoads) -> Result<(), String> {
        let read = &b.work.reads[self.m.b.index()];
        let (shape, size) = (read.shape.clone(), read.dtype.size() as i64);
        let first = self.stride() * i64::from(loads.before.steps.end);
        let left = (self.m.k as i64 - first).max(0);
        let piece = 16 / size;
        let elements = left.min(i64::from(self.s.ahead) / size) / piece * piece;
        if elements == 0 {
            return Ok(());
        }
        if i64::from(self.vector) != piece {
            return Err(format!("{} bytes ahead of rows that are not whole 16-byte pieces", self.s.ahead));
        }
        b.k.comment("What follows them comes to L2.");
        b.if_then(self.member.clone().eq_(Expr::int(0)), |b| {
            for column in &at.columns {
                let index = b.flat_offset(&shape, column.clone(), Expr::int(first));
                let mem = b.reads[self.m.b.index()];
                b.k.push(Stmt::PrefetchL2 { mem, index, elements: elements as u32 });
            }
            Ok(())
        })
    }

    /// The loop over the columns of the block's teams.
    fn rounds(
        mut self,
        b: &mut Body<'_>,
        partial: Option<SharedId>,
        reduced: &[Vec<Expr>],
        mut only: Option<Vec<Turn>>,
    ) -> Result<(), String> {
        let steps = self.rounds * self.chunks;
        let range = (Expr::int(0), Expr::int(i64::from(self.rounds)), Expr::int(1));
        let unroll = if self.rounds == 1 { Unroll::Full } else { Unroll::Never };
        b.for_loop("round", range, unroll, |b, round| {
            let task = self.team.clone() + round.clone() * i64::from(self.teams);
            let task = b.k.let_("task", DType::I32, task);
            self.sums = b.k.array("acc", DType::F32, self.s.rows * self.s.columns, Some(Expr::float(0.0)));
            let turns = match only.take() {
                Some(turns) => turns,
                None => {
                    let mut turns = self.turns(b, &task);
                    load_ahead(b, turns.iter_mut(), false)?;
                    turns
                }
            };
            let range = (Expr::int(0), Expr::int(i64::from(self.chunks)), Expr::int(1));
            let unroll = if self.chunks == 1 { Unroll::Full } else { Unroll::Never };
            b.for_loop("chunk", range, unroll, |b, chunk| {
                if steps == 1 {
                    return b.unrolled("d", self.s.depth, |b, d| self.multiply(b, &chunk, d));
                }
                let step = round.clone() * i64::from(self.chunks) + chunk.clone();
                let more = b.k.let_("more", DType::Bool, step.lt(Expr::int(i64::from(steps) - 1)));
                let (task, next) = if self.chunks == 1 {
                    (task.clone() + i64::from(self.teams), Expr::int(0))
                } else {
                    let ends = b.k.let_("ends", DType::I32, (chunk.clone() + 1) / i64::from(self.chunks));
                    let next = (Expr::int(1) - ends.clone()) * (chunk.clone() + 1);
                    (task.clone() + ends * i64::from(self.teams), next)
                };
                let ahead = self.places(b, task, next)?;
                b.unrolled("d", self.s.depth, |b, d| {
                    self.multiply(b, &chunk, d.clone())?;
                    b.if_then(more, |b| self.load(b, &ahead, d, &(0..self.s.columns)))
                })
            })?;
            self.finish(b, partial, reduced, &turns, round)
        })?;
        let Some(drawing) = &self.drawing else { return Ok(()) };
        let (all, lanes) = (i64::from(self.s.rows) * self.points(), i64::from(self.s.lanes));
        let slot = Expr::ThreadIdx / (lanes * i64::from(self.s.split)) * all;
        let slot = b.k.let_("slot", DType::I32, slot);
        for (turn, first) in (0..all).step_by(lanes as usize).enumerate() {
            let many = lanes.min(all - first);
            b.if_then(self.member.clone().lt(Expr::int(many)), |b| {
                drawing.leave(b, turn, slot.clone() + self.member.clone() + first)
            })?;
        }
        drawing.finish(b, &self.t, &self.first_row)
    }

    /// Adds the products of vector d of each column.
    fn multiply(&self, b: &mut Body<'_>, chunk: &Expr, d: Expr) -> Result<(), String> {
        let k = self.member.clone() * i64::from(self.vector)
            + (chunk.clone() * i64::from(self.s.depth) + d.clone()) * self.stride();
        let columns = i64::from(self.s.columns);
        b.unrolled("r", self.s.rows, |b, r| {
            let row = self.first_row.clone() + r.clone();
            let x = self.left.vector(b, self.m, (r.clone(), row), k)?;
            b.unrolled("c", self.s.columns, |b, c| {
                b.unrolled("e", self.vector, |b, e| {
                    let at = r * columns + c.clone();
                    let slot = (d * columns + c) * i64::from(self.vector) + e.clone();
                    let w = Expr::elem(self.weights, slot).cast(DType::F32);
                    let sum = Expr::fma(Expr::elem(x, e), w, Expr::elem(self.sums, at.clone()));
                    b.k.assign_elem(self.sums, at, sum);
                    Ok(())
                })
            })
        })
    }

    /// The points of a team's task: each lane takes one (or several, in turn), so that their epilogues run together.
    /// What the epilogues read is loaded while the products are computed.
    fn turns(&self, b: &mut Body<'_>, task: &Expr) -> Vec<Turn> {
        let points = self.points();
        let all = i64::from(self.s.rows) * points;
        let lanes = i64::from(self.s.lanes);
        let count = b.extent(self.m.m);
        let mut turns = Vec::new();
        for first in (0..all).step_by(self.s.lanes as usize) {
            let many = lanes.min(all - first);
            let mine = if many == 1 { Expr::int(first) } else { self.member.clone() + first };
            let mine = b.k.let_("mine", DType::I32, mine);
            let row = b.k.let_("row", DType::I32, self.first_row.clone() + mine.clone() / points);
            let point = task.clone() * points + mine.clone() % points;
            let point = b.k.let_("point", DType::I32, point);
            let taken = self.member.clone().lt(Expr::int(many));
            let inside = row.clone().lt(count.clone()).and(point.clone().lt(Expr::int(self.m.n as i64)));
            let inside = b.k.let_("inside", DType::Bool, taken.and(inside));
            let at = Point::at(vec![row, point]);
            // Where there are many turns, their registers would be too many.
            let prepare = || Prepared::new(&self.m.stores, at.clone(), inside.clone());
            let prepared = (all <= lanes).then(prepare);
            turns.push(Turn { first, many, mine, at, inside, prepared });
        }
        turns
    }

    /// Points of a task.
    pub fn points(&self) -> i64 {
        i64::from(self.s.columns) / self.m.group as i64
    }
}
