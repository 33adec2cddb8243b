//! Attention of one token: a block for some query heads of one key head, its warps splitting the keys.
//!
//! For decode, where keys are read once and arithmetic is little. There the kernel's time is that of a few loads
//! after one another, so the first keys and values are loaded while the kernels before this one still run. What the
//! warps make of them is a [`Reader`]'s: [`super::attention_row`] takes keys one by one, [`super::attention_group`]
//! on tensor cores. [`super::attention_join`] joins their states.

use super::attention_cluster::Exchange;
use super::attention_group::Tiles;
use super::attention_join::{Place, Split, Warps, join_splits, join_warps};
use super::attention_row::Rows;
use super::warp::threads;
use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::kernel::{Axis, CacheHint, Expr};
use weft_ir::plan::Attention;

/// A maximum below any score, finite so that differences are defined.
pub(super) const NO_SCORE: f32 = -1.0e30;

/// Sizes of a block.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub warps: i64,
    pub heads: u32,
    /// Keys of a lane (or tiles of a warp) whose loads are in flight together.
    pub depth: u32,
    /// Blocks that share a token's keys.
    pub splits: u32,
    /// Blocks of a cluster.
    pub cluster: u32,
    /// Whether dependents start behind the wait.
    pub late: bool,
}

/// The keys that a token sees: `first .. end`.
pub(super) struct Seen {
    pub first: Expr,
    pub end: Expr,
    pub count: Expr,
}

impl Seen {
    /// Those of a token's `length`: all, or the last of a window.
    fn declare(b: &mut Body<'_>, a: &Attention, length: &Expr) -> Seen {
        let Some(window) = a.window else {
            return Seen { first: Expr::int(0), end: length.clone(), count: length.clone() };
        };
        let count = b.k.let_("visible", DType::I32, length.clone().min(Expr::int(window as i64)));
        let first = b.k.let_("oldest", DType::I32, length.clone() - count.clone());
        Seen { first, end: length.clone(), count }
    }
}

/// Where the keys of a share of a token's keys are.
pub(super) struct Cache<'e> {
    pub a: &'e Attention,
    token: Expr,
    /// First key of the share, and its end.
    pub first: Expr,
    pub end: Expr,
    pub kv_head: Expr,
    /// Where the keys of a token follow each other, their base is the same for all.
    base: Option<Expr>,
}

impl<'e> Cache<'e> {
    fn declare(
        b: &mut Body<'_>,
        a: &'e Attention,
        place: &Place,
        (first, end): (Expr, Expr),
    ) -> Result<Cache<'e>, String> {
        let kv_head = b.k.let_("kv_head", DType::I32, place.first_head.clone() / a.group as i64);
        let base = match a.slot_base() {
            Some(base) => {
                let base = b.lower(base, &Point::at(vec![place.token.clone()]))?;
                Some(b.k.let_("base", DType::I32, base))
            }
            None => None,
        };
        Ok(Cache { a, token: place.token.clone(), first, end, kv_head, base })
    }

    /// Slot of a key; past the last, that of the last.
    pub fn slot(&self, b: &mut Body<'_>, key: Expr, last: &Expr) -> Result<Expr, String> {
        let safe = b.k.let_("safe_key", DType::I32, key.min(last.clone()));
        self.slot_of(b, safe)
    }

    /// Slot of a key of the token.
    pub fn slot_of(&self, b: &mut Body<'_>, key: Expr) -> Result<Expr, String> {
        let slot = match &self.base {
            Some(base) => base.clone() + key,
            None => b.lower(&self.a.slot, &Point::at(vec![self.token.clone(), key]))?,
        };
        Ok(b.k.let_("slot", DType::I32, slot))
    }

    /// Last key of the share.
    pub fn last(&self) -> Expr {
        self.end.clone() - 1
    }

    /// Rounds of so many keys that the share takes.
    pub fn rounds(&self, b: &mut Body<'_>, step: i64) -> Expr {
        let rounds = (self.end.clone() - self.first.clone() + (step - 1)) / step;
        b.k.let_("rounds", DType::I32, rounds)
    }
}

/// Loads what is not there yet of the first keys.
pub(super) type Fresh<'f> = dyn FnMut(&mut Body<'_>) -> Result<(), String> + 'f;

/// How the warps of a block read keys and values, and what they make of them.
pub(super) trait Reader {
    /// Loads the first keys and their values; past `last`, those of it.
    fn load_first(&self, b: &mut Body<'_>, last: &Expr, hint: CacheHint) -> Result<(), String>;

    /// Loads one key and its value, if it is among the first.
    fn load_one(&self, b: &mut Body<'_>, key: &Expr) -> Result<(), String>;

    /// Leaves each warp's softmax state in shared memory, behind a barrier. A round's keys and values are loaded
    /// during the round before; `fresh` loads the rest of the first.
    fn attend(
        &self,
        b: &mut Body<'_>,
        place: &Place,
        fresh: &mut Fresh<'_>,
        to: &Warps,
    ) -> Result<(), String>;
}

/// Attention of a token, on tensor cores or not.
pub(super) fn build(b: &mut Body<'_>, a: &Attention, block: Block, tensor_cores: bool) -> Result<(), String> {
    let states = Warps::declare(b, a, &block);
    let exchange = Exchange::declare(b, a, &block)?;
    if !block.late {
        b.launch_dependents();
    }
    let early = a.settled && a.sequential_slots();
    let wait = |b: &mut Body<'_>| {
        b.wait();
        if block.late {
            b.launch_dependents();
        }
    };
    if !early {
        wait(b);
    }
    let t = threads(b);
    let token = b.k.let_("token", DType::I32, Expr::BlockIdx(Axis::X));
    let first_head = Expr::BlockIdx(Axis::Y) * i64::from(block.heads);
    let first_head = b.k.let_("first_head", DType::I32, first_head);
    let place = Place { token: token.clone(), first_head };
    let length = b.lower(&a.length, &Point::at(vec![token]))?;
    let length = b.k.let_("length", DType::I32, length);
    let step = if tensor_cores { Tiles::step(&block) } else { Rows::step(a, &block) };
    let seen = Seen::declare(b, a, &length);
    let split = (block.splits > 1).then(|| Split::new(b, &block, step, &seen));
    let share = match &split {
        Some(split) => (split.first.clone(), split.end.clone()),
        None => (seen.first, seen.end),
    };
    let (cache_first, cache_end) = share.clone();
    let cache = Cache::declare(b, a, &place, share)?;
    let reader: Box<dyn Reader + '_> = match tensor_cores {
        true => Box::new(Tiles::declare(b, cache, block, &t)),
        false => Box::new(Rows::declare(b, cache, block, &t)),
    };
    let own = b.k.let_("own", DType::I32, length.clone() - 1);
    let (first, end) = (cache_first.clone(), cache_end.clone());
    // Whether earlier steps wrote keys of the share.
    let settled = first.lt(own.clone());
    if early {
        b.k.comment("Earlier steps wrote all keys but the token's own: their loads start before the wait.");
        let last = end.clone().min(own.clone()) - 1;
        b.if_then(settled.clone(), |b| {
            let last = b.k.let_("last_settled", DType::I32, last);
            reader.load_first(b, &last, CacheHint::Settled)
        })?;
    }
    if let (Some(exchange), Some(split)) = (&exchange, &split) {
        exchange.open(b, &block, split);
    }
    if early {
        wait(b);
    }
    let all = |b: &mut Body<'_>| reader.load_first(b, &(cache_end.clone() - 1), CacheHint::Default);
    let mut fresh = |b: &mut Body<'_>| match early {
        true => b.if_then(end.clone().ge(length.clone()), |b| {
            b.if_else(settled.clone(), |b| reader.load_one(b, &own), all)
        }),
        false => all(b),
    };
    let Some(split) = &split else {
        reader.attend(b, &place, &mut fresh, &states)?;
        return join_warps(b, a, &block, &place, &states);
    };
    b.if_then(split.has_keys(), |b| {
        reader.attend(b, &place, &mut fresh, &states)?;
        join_splits(b, (a, &block), &place, &states, split, exchange.as_ref())
    })?;
    match &exchange {
        Some(exchange) => exchange.finish(b, (a, &block), &place, split),
        None => Ok(()),
    }
}
