//! Rows that attention of one token makes itself: norms and rotations of its queries and of the token's own key.
//!
//! A warp makes a row; rows go to shared memory, rounded as an array would be. A kernel of their own would cost a launch
//! and a round trip of the rows. Every block makes the queries of its heads; those that take the token's own key make
//! that, and the first of its query heads keeps it in the cache. No block reads that row of the cache: so the array may
//! be read before the wait, and written, as two parameters that do not overlap.

use super::ahead::certain_loads;
use super::attention_decode::Block;
use super::attention_join::Place;
use super::made_row;
use super::rows_ahead::Ahead;
use super::warp::Threads;
use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::ids::SharedId;
use weft_ir::kernel::{Expr, Mem, Unroll};
use weft_ir::plan::{Attention, AttentionPrologue, Scalar};

/// What a prologue makes, in shared memory.
pub(super) struct Prologue<'e> {
    a: &'e Attention,
    made: &'e AttentionPrologue,
    queries: SharedId,
    key: SharedId,
    /// Constants that say where the own key is kept, loaded before the wait.
    kept: Vec<(Scalar, Expr)>,
}

/// The token's own key.
pub(super) struct OwnKey {
    /// Its number, the last of the token's.
    pub key: Expr,
    /// Its row, of the type of the array of keys.
    pub row: SharedId,
}

/// Elements of a query in shared memory: rows of a tile's heads lie in other banks.
fn pitch(a: &Attention, dtype: DType) -> usize {
    a.head_dim + 16 / dtype.size()
}

impl<'e> Prologue<'e> {
    pub fn declare(b: &mut Body<'_>, a: &'e Attention, block: &Block) -> Option<Prologue<'e>> {
        let made = a.prologue.as_ref()?;
        let queries = block.heads * pitch(a, made.dtype) as u32;
        let queries = b.k.shared("queries", made.dtype, queries);
        let key = b.k.shared("own_key", b.work.reads[a.keys.index()].dtype, a.head_dim as u32);
        Some(Prologue { a, made, queries, key, kept: Vec::new() })
    }

    pub fn own_key(&self, key: Expr) -> OwnKey {
        OwnKey { key, row: self.key }
    }

    /// A head's query in shared memory, and elements from one to the next.
    pub fn queries(&self) -> (SharedId, DType, i64) {
        (self.queries, self.made.dtype, pitch(self.a, self.made.dtype) as i64)
    }

    /// Loads where the own key is kept, and asks for what rows are made of but the queries and keys themselves, before
    /// the wait: other layers' weights pushed it out. What an earlier kernel may still write comes to L2 like any other.
    pub fn ask(&mut self, b: &mut Body<'_>, place: &Place) -> Result<(), String> {
        let mut loads = Vec::new();
        let keep = &self.made.keep;
        keep.guard.iter().chain(&keep.index).for_each(|e| certain_loads(e, &mut loads));
        let token = Point::at(vec![place.token.clone()]);
        loads.retain(|load| b.is_constant(load) && of_token(load));
        for load in loads {
            let dtype = if b.is_float(&load) { DType::F32 } else { DType::I32 };
            let value = b.lower(&load, &token)?;
            let value = b.k.let_("kept", dtype, value);
            self.kept.push((load, value));
        }
        let rows = [&self.made.query, &self.made.key];
        let stages = rows.iter().flat_map(|r| &r.stages).map(|s| &s.value);
        let rows = Ahead::of(b, stages, rows.iter().map(|r| &r.value), self.a.tokens);
        rows.bring(b, (&Expr::ThreadIdx, &token), None)
    }

    /// Makes the rows in shared memory: the queries of the block's heads, and where `owns` holds the own key of
    /// `kv_head`. They are there behind a barrier.
    pub fn make(
        &self,
        b: &mut Body<'_>,
        (t, block): (&Threads, &Block),
        (place, kv_head): (&Place, &Expr),
        owns: Expr,
    ) -> Result<(), String> {
        b.k.comment("Norms and rotations of the queries and of the token's own key, a warp a row.");
        let (heads, warps) = (i64::from(block.heads), block.warps);
        let query = |b: &mut Body<'_>, h: Expr| self.put_query(b, (t, place), h);
        if heads <= warps {
            b.if_then(t.warp.clone().lt(Expr::int(heads)), |b| query(b, t.warp.clone()))?;
        } else {
            let along = (t.warp.clone(), Expr::int(heads), Expr::int(warps));
            b.for_loop("h", along, Unroll::Never, query)?;
        }
        let mine = owns.and(t.warp.clone().eq_(Expr::int(heads % warps)));
        b.if_then(mine, |b| self.put_key(b, (t, place), kv_head, heads))
    }

    fn put_query(&self, b: &mut Body<'_>, (t, place): (&Threads, &Place), h: Expr) -> Result<(), String> {
        let dtype = self.made.dtype;
        let pitch = pitch(self.a, dtype) as i64;
        let at = [place.token.clone(), place.first_head.clone() + h.clone()];
        made_row::make(b, &self.made.query, self.a.head_dim, (&t.lane, &at), &mut |b, c, value| {
            let value = if dtype.is_half() { value.cast(dtype) } else { value };
            b.k.store(Mem::Shared(self.queries), h.clone() * pitch + c, value);
            Ok(())
        })
    }

    /// Puts the own key into shared memory. Of the blocks that share its head, that of the first query heads keeps it.
    fn put_key(
        &self,
        b: &mut Body<'_>,
        (t, place): (&Threads, &Place),
        kv_head: &Expr,
        heads: i64,
    ) -> Result<(), String> {
        let (group, dtype) = (self.a.group as i64, b.work.reads[self.a.keys.index()].dtype);
        let keeper = (place.first_head.clone() % group).eq_(Expr::int(0));
        let keep = |b: &mut Body<'_>, point: &Point| b.stores(std::slice::from_ref(&self.made.keep), point);
        let at = [place.token.clone(), kv_head.clone()];
        made_row::make(b, &self.made.key, self.a.head_dim, (&t.lane, &at), &mut |b, c, value| {
            let value = b.k.let_("own_value", DType::F32, value);
            let stored = if dtype.is_half() { value.clone().cast(dtype) } else { value.clone() };
            b.k.store(Mem::Shared(self.key), c.clone(), stored);
            let point = Point::with_acc(at.iter().cloned().chain([c]).collect(), value);
            let point = Point { loaded: self.kept.clone(), ..point };
            match heads < group {
                true => b.if_then(keeper.clone(), |b| keep(b, &point)),
                false => keep(b, &point),
            }
        })
    }
}

/// Whether an expression has no coordinate but the token.
fn of_token(e: &Scalar) -> bool {
    let mut of_token = true;
    e.visit(&mut |e| of_token &= !matches!(e, Scalar::Coord(c) if *c > 0));
    of_token
}
