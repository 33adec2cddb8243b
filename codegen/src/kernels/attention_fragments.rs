//! Rows of the cache in the layout of `mma` fragments, as [`super::attention_group`] takes them: 16-byte loads straight
//! into registers.

use super::Body;
use super::attention_decode::Cache;
use super::attention_prologue::OwnKey;
use weft_ir::ids::{OperandId, VarId};
use weft_ir::kernel::{CacheHint, Expr, Mem, Stmt};

/// Keys of a tile.
pub(super) const KEYS: i64 = 16;
/// Elements of a load.
pub(super) const VECTOR: i64 = 8;
/// Words of a load.
pub(super) const WORDS: i64 = 4;

/// What a lane holds of the rows of one operand, in the layout of fragments.
pub(super) struct Side {
    pub operand: OperandId,
    /// Words [tile, part, row of the lane, word].
    pub words: VarId,
    /// Rows of a tile that the lane loads, and the name of the loop over them.
    pub rows: (&'static str, u32),
    /// Its first row in a tile, and how many follow each other before those 8 on.
    pub start: Expr,
    pub together: i64,
    /// Loads of a row.
    pub parts: u32,
    /// Elements from one to the next: those that the lanes of a row load together.
    pub elements: usize,
    /// Place of the lane among these.
    pub chunk: Expr,
}

impl Side {
    /// The key of the lane's i-th row of a tile.
    fn key(&self, tile: &Expr, i: Expr) -> Expr {
        tile.clone() + self.start.clone() + i.clone() % self.together + i / self.together * 8
    }

    /// Loads a row of the cache as the i-th of the lane's in the u-th tile.
    fn load_row(
        &self,
        b: &mut Body<'_>,
        cache: &Cache<'_>,
        slot: Expr,
        (u, i): (&Expr, &Expr),
        hint: CacheHint,
    ) -> Result<(), String> {
        let operand = self.operand.index();
        let (mem, shape) = (b.reads[operand], b.work.reads[operand].shape.clone());
        let chunk = self.chunk.clone() * VECTOR;
        let start = b.flat(&shape, &[slot, cache.kv_head.clone(), chunk]);
        b.unrolled("part", self.parts, |b, part| {
            let index = b.flat_offset(&shape, start, part.clone() * self.elements as i64);
            let row = (u.clone() * i64::from(self.parts) + part) * i64::from(self.rows.1) + i.clone();
            let (dst, dst_at, lanes) = (self.words, row * WORDS, VECTOR as u32);
            b.k.push(Stmt::LoadVec { dst, dst_at, mem, index, lanes, hint });
            Ok(())
        })
    }

    /// Loads the lane's rows of the u-th tile, from a key on; past `last`, that of it.
    pub fn load(
        &self,
        b: &mut Body<'_>,
        cache: &Cache<'_>,
        (tile, u): (&Expr, &Expr),
        (last, hint): (&Expr, CacheHint),
    ) -> Result<(), String> {
        let (name, rows) = self.rows;
        b.unrolled(name, rows, |b, i| {
            let slot = cache.slot(b, self.key(tile, i.clone()), last)?;
            self.load_row(b, cache, slot, (u, &i), hint)
        })
    }

    /// Takes the own key's row from shared memory where the lane has it in the u-th tile, or one behind it.
    pub fn take_own(&self, b: &mut Body<'_>, own: &OwnKey, (tile, u): (&Expr, &Expr)) -> Result<(), String> {
        let (name, rows) = self.rows;
        b.unrolled(name, rows, |b, i| {
            b.if_then(self.key(tile, i.clone()).ge(own.key.clone()), |b| {
                b.unrolled("part", self.parts, |b, part| {
                    let index = self.chunk.clone() * VECTOR + part.clone() * self.elements as i64;
                    let row = (u.clone() * i64::from(self.parts) + part) * i64::from(rows) + i.clone();
                    let (dst, dst_at, lanes) = (self.words, row * WORDS, VECTOR as u32);
                    let (mem, hint) = (Mem::Shared(own.row), CacheHint::Default);
                    b.k.push(Stmt::LoadVec { dst, dst_at, mem, index, lanes, hint });
                    Ok(())
                })
            })
        })
    }

    /// Loads a key's row where the lane has it in the u-th tile.
    pub fn load_one(
        &self,
        b: &mut Body<'_>,
        cache: &Cache<'_>,
        (tile, u): (&Expr, &Expr),
        (key, slot): (&Expr, &Expr),
    ) -> Result<(), String> {
        let (name, rows) = self.rows;
        b.unrolled(name, rows, |b, i| {
            b.if_then(self.key(tile, i.clone()).eq_(key.clone()), |b| {
                self.load_row(b, cache, slot.clone(), (u, &i), CacheHint::Default)
            })
        })
    }
}
