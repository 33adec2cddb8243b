//! The left operand of a skinny product by vectors: a thread computes some neighbouring elements of a row at a time,
//! with one access for each array that they are made of. What is constant (a norm's weights) is loaded before the
//! dependency wait.

use super::Body;
use super::gemv::Shape;
use super::warp::vector_lanes;
use weft_ir::ids::VarId;
use weft_ir::kernel::{CacheHint, Expr, Stmt};
use weft_ir::plan::{MatMul, Scalar, loads_along_k};

/// Most accesses of a thread to one array that are in flight together.
const IN_FLIGHT: u32 = 4;
/// Most of them before the wait: they keep their registers.
const EARLY: u32 = 2;

/// Most registers of a thread for rows that several passes read.
const KEPT: u32 = 32;

/// Registers of a row's vectors, and which are loaded.
#[derive(Default)]
pub struct Held {
    arrays: Vec<VarId>,
    here: Vec<bool>,
}

impl Held {
    /// An array for each load.
    pub fn arrays(&self) -> &[VarId] {
        &self.arrays
    }
}

/// How a thread reads what a row of the left operand is made of.
pub(super) struct Vectors {
    /// Elements of an access.
    pub lanes: u32,
    /// Accesses of a thread to an array, in a row.
    pub turns: u32,
    /// Whether all threads have that many, and those in flight together divide them.
    pub exact: bool,
    /// Vectors of a row.
    count: i64,
    threads: i64,
    /// What is loaded, and for constants that are in registers already, where.
    loads: Vec<(Scalar, Option<VarId>)>,
}

impl Vectors {
    /// The accesses, where all that depends on k is read along it, element by element.
    pub fn find(b: &Body<'_>, m: &MatMul, s: &Shape) -> Option<Vectors> {
        let values = std::iter::once(&m.a).chain(m.stages.iter().map(|stage| &stage.value));
        let loads = loads_along_k(values)?;
        let mut lanes = 16;
        for load in &loads {
            let Scalar::Load(o, _) = load else { return None };
            let operand = &b.work.reads[o.index()];
            let row = operand.shape.last().and_then(|d| d.as_const())?;
            lanes = lanes.min(vector_lanes(operand.dtype, row)).min(vector_lanes(operand.dtype, m.k));
        }
        if loads.is_empty() || lanes < 4 {
            return None;
        }
        let (count, threads) = (m.k as u32 / lanes, s.warps * 32);
        let turns = count.div_ceil(threads);
        Some(Vectors {
            lanes,
            turns,
            exact: count.is_multiple_of(threads) && turns.is_multiple_of(turns.min(IN_FLIGHT)),
            count: i64::from(count),
            threads: i64::from(threads),
            loads: loads.into_iter().map(|load| (load, None)).collect(),
        })
    }

    /// The k of a thread's turn, and whether the row has it.
    pub fn place(&self, turn: Expr) -> (Expr, Expr) {
        let vector = Expr::ThreadIdx + turn * self.threads;
        (vector.clone() * i64::from(self.lanes), vector.lt(Expr::int(self.count)))
    }

    /// Turns whose loads are in flight together.
    pub fn together(&self) -> u32 {
        self.turns.min(IN_FLIGHT)
    }

    /// Starts the loads of constants.
    pub fn load_constants(&mut self, b: &mut Body<'_>) -> Result<(), String> {
        if self.turns > EARLY {
            return Ok(());
        }
        let (lanes, turns) = (self.lanes, self.turns);
        let mut loads = std::mem::take(&mut self.loads);
        for (load, early) in &mut loads {
            let Scalar::Load(o, _) = &*load else { continue };
            let operand = &b.work.reads[o.index()];
            let mut of_row = false;
            load.visit(&mut |part| of_row |= *part == Scalar::Coord(0));
            if !operand.constant || of_row {
                continue;
            }
            let var = b.k.array("constant", operand.dtype, lanes * turns, None);
            *early = Some(var);
            let load = load.clone();
            b.unrolled("t", turns, |b, turn| {
                let (k, inside) = self.place(turn.clone());
                let start = |b: &mut Body<'_>| self.load(b, &load, var, (&Expr::int(0), k), turn);
                if self.exact { start(b) } else { b.if_then(inside, start) }
            })?;
        }
        self.loads = loads;
        Ok(())
    }

    /// Whether `passes` more passes over the rows use what the first one loaded.
    pub fn keeps(&self, rows: u32, passes: usize) -> bool {
        let own = self.loads.iter().filter(|(_, early)| early.is_none()).count() as u32;
        passes > 0 && self.turns == self.together() && rows * own * self.turns * self.lanes <= KEPT
    }

    /// The loads, by position, that values need and that are not in registers yet; the registers are declared.
    pub fn missing(&self, b: &mut Body<'_>, held: &mut Held, values: &[&Scalar]) -> Vec<usize> {
        if held.arrays.is_empty() {
            held.arrays = self.arrays(b);
            held.here = self.loads.iter().map(|(_, early)| early.is_some()).collect();
        }
        let mut missing = Vec::new();
        for (i, (load, _)) in self.loads.iter().enumerate() {
            let mut wanted = false;
            values.iter().for_each(|v| v.visit(&mut |part| wanted |= part == load));
            if wanted && !std::mem::replace(&mut held.here[i], true) {
                missing.push(i);
            }
        }
        missing
    }

    /// Starts the loads of a turn of a row that are missing; `turn` counts from where the arrays begin.
    pub fn load_turn(
        &self,
        b: &mut Body<'_>,
        (arrays, missing): (&[VarId], &[usize]),
        row: &Expr,
        (k, turn): (Expr, Expr),
    ) -> Result<(), String> {
        for &i in missing {
            self.load(b, &self.loads[i].0, arrays[i], (row, k.clone()), turn.clone())?;
        }
        Ok(())
    }

    /// Registers for the loads of the turns in flight; those of constants are there.
    fn arrays(&self, b: &mut Body<'_>) -> Vec<VarId> {
        let mut array = |(load, early): &(Scalar, Option<VarId>)| match (early, load) {
            (Some(var), _) => *var,
            (None, Scalar::Load(o, _)) => {
                let dtype = b.work.reads[o.index()].dtype;
                b.k.array("part_of_row", dtype, self.lanes * self.together(), None)
            }
            (None, _) => VarId::new(0),
        };
        self.loads.iter().map(&mut array).collect()
    }

    /// What was loaded for element e of a turn; `within` counts from where the arrays begin.
    pub fn loaded(
        &self,
        b: &Body<'_>,
        arrays: &[VarId],
        (turn, within): (&Expr, &Expr),
        e: &Expr,
    ) -> Vec<(Scalar, Expr)> {
        let value = |((load, early), array): (&(Scalar, Option<VarId>), &VarId)| {
            let turn = if early.is_some() { turn } else { within };
            let x = Expr::elem(*array, turn.clone() * i64::from(self.lanes) + e.clone());
            let half = matches!(load, Scalar::Load(o, _) if b.work.reads[o.index()].dtype.is_half());
            (load.clone(), if half { x.cast(weft_ir::dtype::DType::F32) } else { x })
        };
        self.loads.iter().zip(arrays).map(value).collect()
    }

    fn load(
        &self,
        b: &mut Body<'_>,
        load: &Scalar,
        dst: VarId,
        (row, k): (&Expr, Expr),
        turn: Expr,
    ) -> Result<(), String> {
        let Scalar::Load(o, index) = load else { return Err("what is loaded is no load".into()) };
        // The compiler may move a plain load of what never changes behind the wait.
        let constant = b.work.reads[o.index()].constant;
        let hint = if constant { CacheHint::Streaming } else { CacheHint::Default };
        let point = super::Point::at(vec![row.clone(), k]);
        let at: Result<Vec<Expr>, String> = index.iter().map(|i| b.lower(i, &point)).collect();
        let shape = b.work.reads[o.index()].shape.clone();
        let index = b.flat(&shape, &at?);
        let (mem, dst_at) = (b.reads[o.index()], turn * i64::from(self.lanes));
        b.k.push(Stmt::LoadVec { dst, dst_at, mem, index, lanes: self.lanes, hint });
        Ok(())
    }
}
