//! The runs of a tile of tokens: those of one sequence, behind one another, which see the same keys.
//!
//! Each row looks at all rows of the tile by itself, so that no loop waits for what it loaded before: the first row of a
//! run knows how many runs there are before it, and the longest context of those that follow it.

use super::Body;
use super::attention_tile::Tile;
use weft_ir::dtype::DType;
use weft_ir::ids::SharedId;
use weft_ir::kernel::{BinaryOp, CompareOp, Expr, Mem, Unroll};

/// Rows that are looked at together.
const TOGETHER: u32 = 16;

/// Shared arrays of a tile's runs.
pub(super) struct Runs {
    /// First row of each run, and the end of the tile behind the last.
    first: SharedId,
    /// Longest context of a run.
    longest: SharedId,
    /// Shortest context of a run, where a window hides keys.
    shortest: Option<SharedId>,
    /// How many there are.
    count: SharedId,
}

/// A run of rows.
pub(super) struct Run {
    /// Its first row, and the one behind its last.
    pub rows: (Expr, Expr),
    /// Slot base of its keys.
    pub base: Expr,
    /// First key of the first tile that one of its tokens sees.
    pub oldest: Expr,
    /// Its longest context.
    pub longest: Expr,
}

fn shared(array: SharedId, at: Expr) -> Expr {
    Expr::load(Mem::Shared(array), at)
}

/// Whether a row's keys are others than those of the row before.
fn differs(tile: &Tile, row: &Expr) -> Expr {
    let before = (row.clone() - 1).max(Expr::int(0));
    Expr::cmp(CompareOp::Ne, shared(tile.base, before), shared(tile.base, row.clone()))
}

impl Runs {
    /// Declares the shared arrays.
    pub fn declare(b: &mut Body<'_>, rows: u32, windowed: bool) -> Runs {
        let mut array = |name, length| b.k.shared(name, DType::I32, length);
        Runs {
            first: array("run_first", rows + 1),
            longest: array("run_longest", rows),
            shortest: windowed.then(|| array("run_shortest", rows)),
            count: array("run_count", 1),
        }
    }

    /// Finds the runs, once the tile's slot bases and lengths are there; they are there behind the next barrier.
    pub fn find(&self, b: &mut Body<'_>, tile: &Tile) -> Result<(), String> {
        let rows = i64::from(tile.q);
        b.k.comment("Runs of tokens that see the same keys.");
        b.if_then(Expr::ThreadIdx.lt(Expr::int(rows)), |b| {
            let own = b.k.let_("own_row", DType::I32, Expr::ThreadIdx);
            let zero = || Expr::int(0);
            let before = b.k.let_mut("runs_before", DType::I32, zero());
            let ended = b.k.let_mut("ended", DType::I32, zero());
            let longest = b.k.let_mut("longest", DType::I32, zero());
            let none = Expr::int(i64::from(i32::MAX));
            let shortest = self.shortest.map(|s| (s, b.k.let_mut("shortest", DType::I32, none)));
            let range = (zero(), Expr::int(rows), Expr::int(1));
            b.for_loop("r", range, Unroll::By(TOGETHER), |b, r| {
                let starts = differs(tile, &r).select(Expr::int(1), zero());
                let starts = b.k.let_("starts", DType::I32, starts);
                let later = own.clone().lt(r.clone());
                let up_to = later.clone().select(zero(), starts.clone());
                b.k.assign(before, Expr::Var(before) + up_to);
                b.k.assign(ended, Expr::Var(ended).max(later.select(starts, zero())));
                let length = b.k.let_("length", DType::I32, shared(tile.length, r.clone()));
                let of_run = r.ge(own.clone()).and(Expr::Var(ended).eq_(zero()));
                let of_run = of_run.select(length.clone(), zero());
                let of_run = b.k.let_("of_run", DType::I32, of_run);
                b.k.assign(longest, Expr::Var(longest).max(of_run.clone()));
                if let Some((_, shortest)) = shortest {
                    // Rows past the last token have no keys.
                    let shorter = Expr::Var(shortest).min(of_run.clone());
                    b.k.assign(shortest, zero().lt(of_run).select(shorter, shortest.into()));
                }
                Ok(())
            })?;
            let (first, differs) = (own.clone().eq_(zero()), differs(tile, &own));
            b.if_then(Expr::Binary(BinaryOp::Or, Box::new(first), Box::new(differs)), |b| {
                b.k.store(Mem::Shared(self.first), before.into(), own.clone());
                b.k.store(Mem::Shared(self.longest), before.into(), longest.into());
                if let Some((array, shortest)) = shortest {
                    b.k.store(Mem::Shared(array), before.into(), shortest.into());
                }
                Ok(())
            })?;
            b.if_then(own.eq_(Expr::int(rows - 1)), |b| {
                let count = b.k.let_("count", DType::I32, Expr::Var(before) + 1);
                b.k.store(Mem::Shared(self.first), count.clone(), Expr::int(rows));
                b.k.store(Mem::Shared(self.count), zero(), count);
                Ok(())
            })
        })
    }

    /// Visits each run. Tiles of keys begin where they do without a `window`, so that a token's sums have one order
    /// whatever else is in its run: tiles that it does not see change nothing.
    pub fn each(
        &self,
        b: &mut Body<'_>,
        tile: &Tile,
        window: Option<usize>,
        visit: impl FnOnce(&mut Body<'_>, &Run) -> Result<(), String>,
    ) -> Result<(), String> {
        let runs = b.k.let_("runs", DType::I32, shared(self.count, Expr::int(0)));
        b.for_loop("run", (Expr::int(0), runs, Expr::int(1)), Unroll::Never, |b, run| {
            let first = b.k.let_("run_begin", DType::I32, shared(self.first, run.clone()));
            let end = b.k.let_("run_end", DType::I32, shared(self.first, run.clone() + 1));
            let base = b.k.let_("run_base", DType::I32, shared(tile.base, first.clone()));
            let longest = b.k.let_("longest_of_run", DType::I32, shared(self.longest, run.clone()));
            let oldest = match (self.shortest, window) {
                (Some(shortest), Some(window)) => {
                    let oldest = (shared(shortest, run) - window as i64).max(Expr::int(0));
                    let keys = i64::from(tile.k);
                    b.k.let_("oldest", DType::I32, oldest / keys * keys)
                }
                _ => Expr::int(0),
            };
            visit(b, &Run { rows: (first, end), base, oldest, longest })
        })
    }
}
