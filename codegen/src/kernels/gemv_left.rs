//! The left operand of a skinny matrix product: brought to shared memory once a block where it fits, with
//! the row reductions of the work computed on the way. What refers to a reduction waits for it in another pass
//! over the row: a LayerNorm's variance for the mean, its elements for both.

use super::gemv::Shape;
use super::gemv_pass::Pass;
use super::gemv_vectors::{Held, Vectors};
use super::warp::{Threads, neutral, shuffle_reduce};
use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::ids::{SharedId, VarId};
use weft_ir::kernel::{CacheHint, Expr, Mem, Stmt, Unroll};
use weft_ir::plan::MatMul;

/// f32 values of a vector access.
const QUAD: u32 = 4;

/// Statements.
type Fill<'f> = dyn FnMut(&mut Body<'_>) -> Result<(), String> + 'f;

/// Where lanes find the left operand.
pub(super) struct Left {
    /// Rows in shared memory, if they are there: [rows, padded], as stored for a plain operand, else f32.
    pub(super) staged: Option<(SharedId, DType)>,
    /// Partial reductions: [stages, rows, warps].
    partial: Option<SharedId>,
    /// k up to whole chunks: what is past k is zero.
    pub(super) padded: u32,
    /// Elements a lane takes at a time.
    vector: u32,
    /// How rows that are computed are read, where vectors fit.
    vectors: Option<Vectors>,
    /// Reductions that the left operand refers to, where lanes compute it: [rows, stages].
    known: Option<VarId>,
    /// The first row, and what is loaded of it, where that was started ahead.
    started: Option<(Expr, Held)>,
}

impl Left {
    pub fn declare(
        b: &mut Body<'_>,
        m: &MatMul,
        s: &Shape,
        (padded, vector): (u32, u32),
    ) -> Result<Left, String> {
        let staged = s.staged.then(|| {
            let plain = m.plain_left().map(|o| b.work.reads[o.index()].dtype);
            // One access of at most 16 bytes a vector; wider types are staged as f32, in quads.
            let dtype = plain.filter(|d| d.is_half()).unwrap_or(DType::F32);
            (b.k.shared("x_shared", dtype, s.rows * padded), dtype)
        });
        let count = m.stages.len() as u32 * s.rows * s.warps;
        let partial = (count > 0).then(|| b.k.shared("partial", DType::F32, count));
        let copied = m.plain_left().is_some_and(|o| b.work.reads[o.index()].dtype.is_half());
        let computed = (staged.is_some() && !copied) || partial.is_some();
        let vectors = if computed { Vectors::find(b, m, s) } else { None };
        Ok(Left { staged, partial, padded, vector, vectors, known: None, started: None })
    }

    /// Starts what may be loaded before the dependency wait.
    pub fn load_constants(&mut self, b: &mut Body<'_>) -> Result<(), String> {
        self.vectors.as_mut().map_or(Ok(()), |v| v.load_constants(b))
    }

    /// Starts the loads of what is not constant, behind the wait: copies of rows, and of a row that is computed what
    /// the first pass reads, where other loads are to follow.
    pub fn start(&mut self, b: &mut Body<'_>, m: &MatMul, s: &Shape, first_row: &Expr) -> Result<(), String> {
        if self.start_copies(b, m, s, first_row)? {
            return Ok(());
        }
        let Some(v) = self.vectors.as_ref().filter(|v| s.behind > 0 && v.together() == v.turns) else {
            return Ok(());
        };
        let row = first_row.clone().min(b.extent(m.m) - 1);
        let row = b.k.let_("x_row", DType::I32, row);
        let (pass_of, left) = m.passes();
        let stages: Vec<usize> = (0..m.stages.len()).filter(|&i| pass_of[i] == 0).collect();
        let stores = self.staged.is_some() && left == 0;
        let pass = Pass { stages: &stages, stores, known: &[], held: &mut Held::default() };
        let mut held = Held::default();
        let missing = v.missing(b, &mut held, &pass.values(m));
        let arrays = held.arrays().to_vec();
        if !missing.is_empty() {
            b.unrolled("t", v.turns, |b, t| {
                let (k, inside) = v.place(t.clone());
                let load = |b: &mut Body<'_>| v.load_turn(b, (&arrays, &missing), &row, (k, t));
                if v.exact { load(b) } else { b.if_then(inside, load) }
            })?;
        }
        self.started = Some((row, held));
        Ok(())
    }

    /// Index in shared memory of element k of a row, k being the first of a quad or single. Quads of f32
    /// are laid out so that neighbouring lanes read neighbouring ones: first the even quads of all vectors,
    /// then the odd.
    pub(super) fn index(&self, dtype: DType, row: Expr, k: Expr) -> Expr {
        let row = row * i64::from(self.padded);
        if dtype != DType::F32 || self.vector <= QUAD {
            return row + k;
        }
        let (vector, quad) = (i64::from(self.vector), i64::from(QUAD));
        let quads = vector / quad;
        let plane = k.clone() % vector / quad * (i64::from(self.padded) / quads);
        row + plane + k.clone() / vector * quad + k % quad
    }

    /// Brings the block's rows to shared memory and computes the reductions of each; the result is, for each
    /// row, its reductions.
    pub fn fill(
        &mut self,
        b: &mut Body<'_>,
        m: &MatMul,
        s: &Shape,
        t: &Threads,
        first_row: &Expr,
    ) -> Result<Vec<Vec<Expr>>, String> {
        let count = b.extent(m.m);
        let copied = self.finish_copies(b, m, s)?;
        let (pass_of, left) = m.passes();
        let stores = self.staged.is_some() && !copied;
        let last = pass_of.iter().copied().chain(stores.then_some(left)).max();
        // What is not known yet, nothing refers to.
        let mut known = vec![vec![Expr::float(0.0); m.stages.len()]; s.rows as usize];
        let mut rows = Vec::new();
        let keeps = self.vectors.as_ref().is_some_and(|v| v.keeps(s.rows, last.unwrap_or(0)));
        let mut held: Vec<Held> = (0..s.rows).map(|_| Held::default()).collect();
        for pass in 0..=last.unwrap_or(0) {
            let stages: Vec<usize> = (0..m.stages.len()).filter(|&i| pass_of[i] == pass).collect();
            let stores = stores && pass == left;
            for (r, known) in (0..s.rows).zip(&known) {
                if last.is_none() {
                    break;
                }
                let held = &mut held[r as usize];
                match (pass, self.started.take()) {
                    (0, Some((row, started))) => {
                        rows.push(row);
                        *held = started;
                    }
                    (0, None) => {
                        let row = (first_row.clone() + i64::from(r)).min(count.clone() - 1);
                        rows.push(b.k.let_("x_row", DType::I32, row));
                    }
                    _ if !keeps => *held = Held::default(),
                    _ => {}
                }
                let at = (r, &rows[r as usize]);
                self.compute(b, m, s, t, at, Pass { stages: &stages, stores, known, held })?;
            }
            if stores || !stages.is_empty() || (copied && pass == 0) {
                b.k.push(Stmt::Barrier);
            }
            for (r, known) in (0..s.rows).zip(&mut known) {
                for &i in &stages {
                    known[i] = self.reduced(b, m, s, t, (i, r))?;
                }
            }
        }
        if left > 0 && self.staged.is_none() {
            let all: Vec<Expr> = known.iter().flatten().cloned().collect();
            let array = b.k.array("known", DType::F32, all.len() as u32, None);
            for (i, value) in (0..).zip(all) {
                b.k.assign_elem(array, Expr::int(i), value);
            }
            self.known = Some(array);
        }
        Ok(known)
    }

    /// A pass over a row: its elements, and this thread's part of the reductions.
    fn compute(
        &self,
        b: &mut Body<'_>,
        m: &MatMul,
        s: &Shape,
        t: &Threads,
        (r, row): (u32, &Expr),
        mut pass: Pass<'_>,
    ) -> Result<(), String> {
        let store = self.staged.filter(|_| pass.stores);
        let stages: Vec<_> = pass.stages.iter().map(|&i| (i, &m.stages[i])).collect();
        let vars: Vec<VarId> =
            stages.iter().map(|(_, st)| b.k.let_mut("partial_sum", DType::F32, neutral(st.op))).collect();
        if store.is_none() && vars.is_empty() {
            return Ok(());
        }
        match &self.vectors {
            Some(vectors) => self.by_vectors(b, m, vectors, (r, row), store, (&mut pass, &vars))?,
            None => {
                let along = (Expr::ThreadIdx, Expr::int(m.k as i64), Expr::int(i64::from(s.warps * 32)));
                b.for_loop("k", along, Unroll::By(4), |b, k| {
                    let point = pass.point(row, k.clone(), Vec::new());
                    if let Some((shared, dtype)) = store {
                        let value = b.lower(&m.a, &point)?;
                        let index = self.index(dtype, Expr::int(i64::from(r)), k);
                        b.k.store(Mem::Shared(shared), index, value);
                    }
                    pass.add(b, m, &vars, &point)
                })?;
            }
        }
        if let Some((shared, dtype)) = store {
            self.pad(b, m, s, r, shared, dtype)?;
        }
        let Some(partial) = self.partial else { return Ok(()) };
        for ((i, stage), &var) in stages.iter().zip(&vars) {
            shuffle_reduce(b, var, stage.op, 1, 32);
            let at = t.warp.clone() + i64::from((*i as u32 * s.rows + r) * s.warps);
            b.if_then(t.lane.clone().eq_(Expr::int(0)), |b| {
                b.k.store(Mem::Shared(partial), at, var.into());
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The same by vectors; the loads of some turns are in flight together.
    fn by_vectors(
        &self,
        b: &mut Body<'_>,
        m: &MatMul,
        v: &Vectors,
        (r, row): (u32, &Expr),
        store: Option<(SharedId, DType)>,
        (pass, vars): (&mut Pass<'_>, &[VarId]),
    ) -> Result<(), String> {
        let (together, all) = (v.together(), v.turns);
        let missing = v.missing(b, pass.held, &pass.values(m));
        let arrays = pass.held.arrays().to_vec();
        let within = |b: &mut Body<'_>, inside: Expr, fill: &mut Fill<'_>| match v.exact {
            true => fill(b),
            false => b.if_then(inside, fill),
        };
        let groups = (Expr::int(0), Expr::int(i64::from(all.div_ceil(together))), Expr::int(1));
        let unroll = if all == together { Unroll::Full } else { Unroll::Never };
        b.for_loop("group", groups, unroll, |b, group| {
            let first = group * i64::from(together);
            if !missing.is_empty() {
                b.unrolled("t", together, |b, t| {
                    let (k, inside) = v.place(first.clone() + t.clone());
                    let turn = (k, t);
                    within(b, inside, &mut |b| v.load_turn(b, (&arrays, &missing), row, turn.clone()))
                })?;
            }
            b.unrolled("t", together, |b, t| {
                let turn = first + t.clone();
                let (k, inside) = v.place(turn.clone());
                within(b, inside, &mut |b| {
                    let k = b.k.let_("k", DType::I32, k.clone());
                    let made = b.k.array("made", DType::F32, v.lanes, None);
                    b.unrolled("e", v.lanes, |b, e| {
                        let loaded = v.loaded(b, &arrays, (&turn, &t), &e);
                        let point = pass.point(row, k.clone() + e.clone(), loaded);
                        if store.is_some() {
                            let value = b.lower(&m.a, &point)?;
                            b.k.assign_elem(made, e, value);
                        }
                        pass.add(b, m, vars, &point)
                    })?;
                    let Some((shared, dtype)) = store else { return Ok(()) };
                    for quad in (0..v.lanes).step_by(QUAD as usize) {
                        let src_at = Expr::int(i64::from(quad));
                        let index = self.index(dtype, Expr::int(i64::from(r)), k.clone() + i64::from(quad));
                        b.k.push(Stmt::StoreVec {
                            mem: Mem::Shared(shared),
                            index,
                            src: made,
                            src_at,
                            lanes: QUAD,
                        });
                    }
                    Ok(())
                })
            })
        })
    }

    /// A reduction of a row, known to every thread.
    fn reduced(
        &self,
        b: &mut Body<'_>,
        m: &MatMul,
        s: &Shape,
        t: &Threads,
        (i, r): (usize, u32),
    ) -> Result<Expr, String> {
        let partial = self.partial.ok_or("a reduction without its partial results")?;
        let stage = &m.stages[i];
        let at = i64::from((i as u32 * s.rows + r) * s.warps);
        let warps = Expr::int(i64::from(s.warps));
        let mine = Expr::load(Mem::Shared(partial), t.lane.clone() + at);
        let mine = t.lane.clone().lt(warps).select(mine, neutral(stage.op));
        let var = b.k.let_mut(&format!("reduced{i}"), DType::F32, mine);
        shuffle_reduce(b, var, stage.op, 1, 32);
        if stage.op == weft_ir::scalar::Reduce::Mean {
            b.k.assign(var, Expr::Var(var) / Expr::float(m.k as f32));
        }
        Ok(var.into())
    }

    /// A lane's elements of a row from k on, as f32: `local` is the row's index in the block.
    pub fn vector(
        &self,
        b: &mut Body<'_>,
        m: &MatMul,
        (local, row): (Expr, Expr),
        k: Expr,
    ) -> Result<VarId, String> {
        let v = self.vector;
        let x = b.k.array("x", DType::F32, v, None);
        match self.staged {
            Some((shared, dtype)) => self.shared_vector(b, (shared, dtype), x, local, k)?,
            None => {
                let row = row.min(b.extent(m.m) - 1);
                let padded = self.padded as usize != m.k;
                let stages = self.known.map_or(0, |_| m.stages.len() as i64);
                let known = |i: i64| self.known.map(|v| Expr::elem(v, local.clone() * stages + i));
                let reduced: Vec<Expr> = (0..stages).filter_map(known).collect();
                b.unrolled("e", v, |b, e| {
                    let at = k + e.clone();
                    let inside = at.clone().lt(Expr::int(m.k as i64));
                    let at = if padded { at.min(Expr::int(m.k as i64 - 1)) } else { at };
                    let value =
                        b.lower(&m.a, &Point { coords: vec![row, at], reduced, ..Point::default() })?;
                    let value = if padded { inside.select(value, Expr::float(0.0)) } else { value };
                    b.k.assign_elem(x, e, value);
                    Ok(())
                })?;
            }
        }
        Ok(x)
    }

    fn shared_vector(
        &self,
        b: &mut Body<'_>,
        (shared, dtype): (SharedId, DType),
        x: VarId,
        local: Expr,
        k: Expr,
    ) -> Result<(), String> {
        let mem = Mem::Shared(shared);
        if self.vector == 1 {
            let value = Expr::load(mem, self.index(dtype, local, k));
            b.k.assign_elem(x, Expr::int(0), value.cast(DType::F32));
            return Ok(());
        }
        let hint = CacheHint::Default;
        if dtype == DType::F32 {
            let lanes = self.vector.min(QUAD);
            for quad in 0..self.vector / lanes {
                let from = i64::from(quad * lanes);
                let plane = i64::from(quad * (self.padded / (self.vector / lanes)));
                let index = self.index(dtype, local.clone(), k.clone()) + plane;
                b.k.push(Stmt::LoadVec { dst: x, dst_at: Expr::int(from), mem, index, lanes, hint });
            }
            return Ok(());
        }
        let raw = b.k.array("x_raw", dtype, self.vector, None);
        let (dst_at, index) = (Expr::int(0), self.index(dtype, local, k));
        b.k.push(Stmt::LoadVec { dst: raw, dst_at, mem, index, lanes: self.vector, hint });
        b.unrolled("e", self.vector, |b, e| {
            b.k.assign_elem(x, e.clone(), Expr::elem(raw, e).cast(DType::F32));
            Ok(())
        })
    }
}
