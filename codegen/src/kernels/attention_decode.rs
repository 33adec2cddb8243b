//! Attention of one token: a block for some query heads of one key head, its warps splitting the keys.
//!
//! For decode, where keys are read once and arithmetic is little. There the kernel's time is that of a few loads
//! after one another, so the first keys and values (keys alone, where rows are made: [`super::attention_prologue`])
//! are loaded while the kernels before this one still run. What the warps make of them is a [`Reader`]'s:
//! [`super::attention_row`] takes keys one by one, [`super::attention_group`] on tensor cores.
//! [`super::attention_join`] joins their states.

use super::attention_cluster::Exchange;
use super::attention_group::Tiles;
use super::attention_join::{Place, Split, Warps, join_splits, join_warps};
use super::attention_projection::Projection;
use super::attention_prologue::{OwnKey, Prologue};
use super::attention_row::Rows;
use super::warp::{Threads, threads};
use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::ids::SharedId;
use weft_ir::kernel::{Axis, CacheHint, Expr, Stmt};
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
    /// The token's own key, where it is made here and not yet in the cache.
    pub own: Option<OwnKey>,
}

impl<'e> Cache<'e> {
    fn declare(
        b: &mut Body<'_>,
        a: &'e Attention,
        place: &Place,
        (first, end): (Expr, Expr),
        own: Option<OwnKey>,
    ) -> Result<Cache<'e>, String> {
        let kv_head = b.k.let_("kv_head", DType::I32, place.first_head.clone() / a.group as i64);
        let base = match a.slot_base() {
            Some(base) => {
                let base = b.lower(base, &Point::at(vec![place.token.clone()]))?;
                Some(b.k.let_("base", DType::I32, base))
            }
            None => None,
        };
        Ok(Cache { a, token: place.token.clone(), first, end, kv_head, base, own })
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

    /// Last key of the share whose row is in the cache.
    pub fn last_stored(&self) -> Expr {
        match &self.own {
            Some(own) => self.end.clone().min(own.key.clone()) - 1,
            None => self.last(),
        }
    }

    /// Whether a round, with the first key behind it, has the own key, made here.
    pub fn takes_own(&self, behind: Expr) -> Option<(&OwnKey, Expr)> {
        self.own.as_ref().map(|own| (own, own.key.clone().lt(behind)))
    }

    /// Rounds of so many keys that the share takes.
    pub fn rounds(&self, b: &mut Body<'_>, step: i64) -> Expr {
        let rounds = (self.end.clone() - self.first.clone() + (step - 1)) / step;
        b.k.let_("rounds", DType::I32, rounds)
    }
}

/// What readers have of a block: its place, the rows that it makes, and what is not there yet of the first keys.
pub(super) struct Attended<'f, 'e> {
    pub place: &'f Place,
    t: &'f Threads,
    block: &'f Block,
    prologue: Option<&'f Prologue<'e>>,
    /// Whether the share has the token's own key.
    owns: Expr,
    /// Rounds, where dependents start when the loads of the last are on their way.
    trigger: Option<Expr>,
    /// Loads the rest of the first keys and values.
    fresh: &'f mut dyn FnMut(&mut Body<'_>) -> Result<(), String>,
}

/// What a block with late dependents does that may have several rounds: what the projection behind it would stream
/// holds up the keys of every round that is not on its way yet, so it starts when the last is.
pub(super) struct Trigger(Option<Expr>);

impl Trigger {
    /// Behind the loads of the round after this one.
    pub fn loaded(&self, b: &mut Body<'_>, round: Expr) -> Result<(), String> {
        let Some(rounds) = &self.0 else { return Ok(()) };
        b.if_then((round + 2).ge(rounds.clone()), |b| {
            b.launch_dependents();
            Ok(())
        })
    }
}

/// A block's queries.
pub(super) enum Queries {
    /// Those of the array.
    Stored,
    /// In shared memory: of this type, so many elements from one to the next.
    Made(SharedId, DType, i64),
}

impl Attended<'_, '_> {
    /// Where the queries are: makes them where attention does so itself, and loads what is not there yet of the first
    /// keys. What a block asks for comes back in turn, so the values are behind what rows are made of.
    pub fn queries(&mut self, b: &mut Body<'_>, kv_head: &Expr) -> Result<Queries, String> {
        let Some(prologue) = self.prologue else { return Ok(Queries::Stored) };
        prologue.make(b, (self.t, self.block), (self.place, kv_head), self.owns.clone())?;
        (self.fresh)(b)?;
        b.k.push(Stmt::Barrier);
        let (shared, dtype, pitch) = prologue.queries();
        Ok(Queries::Made(shared, dtype, pitch))
    }

    /// Rounds of a share, and what lets dependents start where it is told behind the loads of each round.
    pub fn rounds(&self, b: &mut Body<'_>, cache: &Cache<'_>, step: i64) -> (Expr, Trigger) {
        match &self.trigger {
            Some(rounds) => (rounds.clone(), Trigger(Some(rounds.clone()))),
            None => (cache.rounds(b, step), Trigger(None)),
        }
    }

    /// Loads what is not there yet of the first keys, behind the queries of an array.
    pub fn fresh(&mut self, b: &mut Body<'_>) -> Result<(), String> {
        match self.prologue {
            Some(_) => Ok(()),
            None => (self.fresh)(b),
        }
    }
}

/// What is loaded of some keys.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Both,
    Keys,
    Values,
}

impl Wanted {
    pub fn keys(self) -> bool {
        self != Wanted::Values
    }

    pub fn values(self) -> bool {
        self != Wanted::Keys
    }
}

/// How the warps of a block read keys and values, and what they make of them.
pub(super) trait Reader {
    /// Loads what is wanted of the first keys; past `last`, that of it.
    fn load_first(
        &self,
        b: &mut Body<'_>,
        wanted: Wanted,
        last: &Expr,
        hint: CacheHint,
    ) -> Result<(), String>;

    /// Loads one key and its value, if it is among the first.
    fn load_one(&self, b: &mut Body<'_>, key: &Expr) -> Result<(), String>;

    /// Leaves each warp's softmax state in shared memory, behind a barrier. A round's keys and values are loaded
    /// during the round before; the own key, where it is made here, comes from shared memory as its round begins.
    fn attend(&self, b: &mut Body<'_>, of: Attended<'_, '_>, to: &Warps) -> Result<(), String>;
}

/// Attention of a token, on tensor cores or not.
pub(super) fn build(b: &mut Body<'_>, a: &Attention, block: Block, tensor_cores: bool) -> Result<(), String> {
    let possible = (1..=32).contains(&block.warps)
        && (1..=1024).contains(&block.heads)
        && (1..=64).contains(&block.depth);
    if !possible {
        return Err(format!("{} warps, {} heads, {} keys at a time", block.warps, block.heads, block.depth));
    }
    let states = Warps::declare(b, a, &block);
    let exchange = Exchange::declare(b, a, &block)?;
    let mut prologue = Prologue::declare(b, a, &block);
    let mut projection = Projection::declare(b, a, &block)?;
    if !block.late {
        b.launch_dependents();
    }
    let early = a.settled && a.sequential_slots();
    if prologue.is_some() && !early {
        return Err("a prologue makes the last key, but the others are not there before".into());
    }
    if !early {
        b.wait();
        if block.late {
            b.launch_dependents();
        }
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
    let own = b.k.let_("own", DType::I32, length.clone() - 1);
    let cache = Cache::declare(b, a, &place, share, prologue.as_ref().map(|p| p.own_key(own.clone())))?;
    let longest = b.plan.entries.iter().map(|e| a.visible(e.bind.context)).max().unwrap_or(0) as i64;
    let several = early && block.late && b.spec.programmatic && Split::most_steps(&block, step, longest) > 1;
    let trigger = several.then(|| cache.rounds(b, step));
    let reader: Box<dyn Reader + '_> = match tensor_cores {
        true => Box::new(Tiles::declare(b, cache, block, &t)),
        false => Box::new(Rows::declare(b, cache, block, &t)),
    };
    let (first, end) = (cache_first.clone(), cache_end.clone());
    // Whether earlier steps wrote keys of the share.
    let settled = first.lt(own.clone());
    if early {
        b.k.comment("Earlier steps wrote all keys but the token's own: their loads start before the wait.");
        let last = end.clone().min(own.clone()) - 1;
        b.if_then(settled.clone(), |b| {
            let last = b.k.let_("last_settled", DType::I32, last);
            // What a block asks for comes back in turn: values would hold up what rows are made of.
            let wanted = if prologue.is_some() { Wanted::Keys } else { Wanted::Both };
            reader.load_first(b, wanted, &last, CacheHint::Settled)
        })?;
    }
    if let Some(prologue) = &mut prologue {
        prologue.ask(b, &place)?;
    }
    if let Some(projection) = &mut projection {
        projection.load(b)?;
    }
    if let (Some(exchange), Some(split)) = (&exchange, &split) {
        exchange.open(b, &block, split);
    }
    if early {
        b.wait();
        let now = |b: &mut Body<'_>| {
            b.launch_dependents();
            Ok(())
        };
        match (&trigger, block.late) {
            (Some(rounds), _) => b.if_then(rounds.clone().lt(Expr::int(2)), now)?,
            (None, true) => now(b)?,
            (None, false) => {}
        }
    }
    let made = prologue.is_some();
    let last = cache_end.clone() - 1;
    let all = |b: &mut Body<'_>, wanted| reader.load_first(b, wanted, &last, CacheHint::Default);
    let owns = end.ge(length.clone());
    let mut fresh = |b: &mut Body<'_>| match (early, made) {
        (_, true) => all(b, Wanted::Values),
        (true, false) => b.if_then(owns.clone(), |b| {
            b.if_else(settled.clone(), |b| reader.load_one(b, &own), |b| all(b, Wanted::Both))
        }),
        (false, false) => all(b, Wanted::Both),
    };
    let attended = Attended {
        place: &place,
        t: &t,
        block: &block,
        prologue: prologue.as_ref(),
        owns: owns.clone(),
        trigger,
        fresh: &mut fresh,
    };
    let Some(split) = &split else {
        reader.attend(b, attended, &states)?;
        return join_warps(b, a, &block, &place, &states);
    };
    b.if_then(split.has_keys(), |b| {
        reader.attend(b, attended, &states)?;
        join_splits(b, (a, &block), &place, &states, split, exchange.as_ref())
    })?;
    match &exchange {
        Some(exchange) => exchange.finish(b, (a, &block), &place, split, (projection.as_ref(), &t)),
        None => Ok(()),
    }
}
