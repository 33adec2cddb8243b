//! Attention of one token on tensor cores: the query heads of a key head together, sixteen keys at a time.
//!
//! A warp multiplies tiles of 16 keys with up to 8 heads (`mma.m16n8k16`): scores [key, head] = K · Qᵀ, then
//! out [element, head] += Vᵀ · weights. Rows of the cache are read with 16-byte loads straight into fragments: which
//! element of a row stands at which place of a fragment does not matter, as long as both operands agree. Weights go
//! from the accumulator's layout to that of an operand by shuffles, and are rounded to the cache's type.
//! Reads, splits and joins are those of [`super::attention_decode`].

use super::attention_decode::{Attended, Block, Cache, NO_SCORE, Queries, Reader, Wanted};
use super::attention_fragments::{KEYS, Side, VECTOR, WORDS};
use super::attention_join::{Place, Warps};
use super::warp::{Threads, combine};
use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::ids::VarId;
use weft_ir::kernel::{BinaryOp, CacheHint, Const, Expr, MathFn, Mem, ShuffleMode, Stmt, Unroll};
use weft_ir::scalar::Reduce;

/// Elements of a key that the four lanes of a row load together, and of a value that the eight of a column do.
const KEY_PART: usize = 32;
const VALUE_PART: usize = 64;

/// What a lane holds of some tiles of keys and values: row `lane / 4` and column `lane % 4` of fragments.
pub(super) struct Tiles<'e> {
    cache: Cache<'e>,
    dtype: DType,
    block: Block,
    heads: i64,
    row: Expr,
    column: Expr,
    warp: Expr,
    /// First key of the warp's first tile.
    first: Expr,
    /// Keys `row` and those 8 on.
    keys: Side,
    /// Values of keys 2·column, 2·column + 1, and of those 8 on.
    values: Side,
}

impl<'e> Tiles<'e> {
    /// Keys that a block takes at a time.
    pub fn step(block: &Block) -> i64 {
        block.warps * KEYS * i64::from(block.depth)
    }

    pub fn declare(b: &mut Body<'_>, cache: Cache<'e>, block: Block, t: &Threads) -> Tiles<'e> {
        let a = cache.a;
        let dtype = b.work.reads[a.keys.index()].dtype;
        let (key_parts, value_parts) = ((a.head_dim / KEY_PART) as u32, (a.value_dim / VALUE_PART) as u32);
        let row = b.k.let_("row", DType::I32, t.lane.clone() / 4);
        let column = b.k.let_("column", DType::I32, t.lane.clone() % 4);
        let first = b.k.let_("first_key", DType::I32, cache.first.clone() + t.warp.clone() * KEYS);
        let mut words = |name: &str, rows: u32, parts: u32| {
            b.k.array(name, DType::U32, block.depth * parts * rows * WORDS as u32, None)
        };
        let keys = Side {
            operand: a.keys,
            words: words("key", 2, key_parts),
            rows: ("half", 2),
            start: row.clone(),
            together: 1,
            parts: key_parts,
            elements: KEY_PART,
            chunk: column.clone(),
        };
        let values = Side {
            operand: a.values,
            words: words("value", 4, value_parts),
            rows: ("i", 4),
            start: column.clone() * 2,
            together: 2,
            parts: value_parts,
            elements: VALUE_PART,
            chunk: row.clone(),
        };
        let (heads, warp) = (i64::from(block.heads), t.warp.clone());
        Tiles { cache, dtype, block, heads, row, column, warp, first, keys, values }
    }

    /// Loads the warp's tiles of keys or values from a key on; past `last`, that of it.
    fn load(&self, b: &mut Body<'_>, side: &Side, first: &Expr, last: Expr) -> Result<(), String> {
        b.unrolled("u", self.block.depth, |b, u| {
            let tile = b.k.let_("tile", DType::I32, self.tile(first, &u));
            side.load(b, &self.cache, (&tile, &u), (&last, CacheHint::Default))
        })
    }

    /// First key of a warp's tile.
    fn tile(&self, first: &Expr, u: &Expr) -> Expr {
        first.clone() + u.clone() * (self.block.warps * KEYS)
    }

    /// The queries as operands: head `row`, elements as the keys have them; zero where the block has no such head.
    fn load_queries(&self, b: &mut Body<'_>, place: &Place, from: &Queries) -> Result<VarId, String> {
        let zero = Expr::Const(Const::U32(0));
        let q = b.k.array("q_words", DType::U32, self.keys.parts * WORDS as u32, Some(zero));
        let operand = self.cache.a.q.index();
        let shape = b.work.reads[operand].shape.clone();
        b.if_then(self.row.clone().lt(Expr::int(self.heads)), |b| {
            let chunk = self.column.clone() * VECTOR;
            let (mem, start) = match from {
                Queries::Stored => {
                    let head = place.first_head.clone() + self.row.clone();
                    (b.reads[operand], b.flat(&shape, &[place.token.clone(), head, chunk]))
                }
                Queries::Made(shared, _, pitch) => (Mem::Shared(*shared), self.row.clone() * *pitch + chunk),
            };
            b.unrolled("part", self.keys.parts, |b, part| {
                let part_at = part.clone() * KEY_PART as i64;
                let index = match from {
                    Queries::Stored => b.flat_offset(&shape, start, part_at),
                    Queries::Made(..) => start + part_at,
                };
                let (dst_at, lanes, hint) = (part * WORDS, VECTOR as u32, CacheHint::Default);
                b.k.push(Stmt::LoadVec { dst: q, dst_at, mem, index, lanes, hint });
                Ok(())
            })
        })?;
        Ok(q)
    }

    /// Scores of a tile: keys `row` and `row + 8`, heads 2·column and 2·column + 1. Two sums, so that a multiplication
    /// does not wait for the one before.
    fn scores(&self, b: &mut Body<'_>, q: VarId, (u, scores): (&Expr, VarId)) -> Result<(), String> {
        let sums = b.k.array("sums", DType::F32, 8, Some(Expr::float(0.0)));
        b.unrolled("part", self.keys.parts, |b, part| {
            let raw = (u.clone() * i64::from(self.keys.parts) + part.clone()) * (2 * WORDS);
            b.unrolled("w", 2, |b, w| {
                let fragment = b.k.array("k_frag", DType::U32, 4, None);
                b.unrolled("i", 4, |b, i| {
                    let word = i.clone() % 2 * WORDS + w.clone() * 2 + i.clone() / 2;
                    b.k.assign_elem(fragment, i, Expr::elem(self.keys.words, raw.clone() + word));
                    Ok(())
                })?;
                b.k.push(Stmt::Mma {
                    dtype: self.dtype,
                    acc: sums,
                    acc_at: w.clone() * 4,
                    a: fragment,
                    a_at: Expr::int(0),
                    b: q,
                    b_at: part * WORDS + w * 2,
                });
                Ok(())
            })
        })?;
        b.unrolled("i", 4, |b, i| {
            let sum = Expr::elem(sums, i.clone()) + Expr::elem(sums, i.clone() + 4);
            b.k.assign_elem(scores, u.clone() * 4 + i, sum);
            Ok(())
        })
    }

    /// Scores with what modifies them; none past the end.
    fn modify(&self, b: &mut Body<'_>, place: &Place, first: &Expr, scores: VarId) -> Result<(), String> {
        b.unrolled("u", self.block.depth, |b, u| {
            b.unrolled("i", 4, |b, i| {
                let key = self.tile(first, &u) + self.row.clone() + i.clone() / 2 * 8;
                let key = b.k.let_("key_at", DType::I32, key);
                let head = (self.column.clone() * 2 + i.clone() % 2).min(Expr::int(self.heads - 1));
                let safe = key.clone().min(self.cache.end.clone() - 1);
                let coords = vec![place.token.clone(), place.first_head.clone() + head, safe];
                let at = u.clone() * 4 + i;
                let acc = Expr::elem(scores, at.clone());
                let score = b.lower(&self.cache.a.score, &Point::with_acc(coords, acc))?;
                let inside = key.lt(self.cache.end.clone());
                b.k.assign_elem(scores, at, inside.select(score, Expr::float(f32::NEG_INFINITY)));
                Ok(())
            })
        })
    }

    /// Online softmax of the lane's two heads; scores become weights. All lanes of a head have its maximum, and each
    /// its own part of the sum.
    fn softmax(&self, b: &mut Body<'_>, s: &State, scores: VarId) -> Result<(), String> {
        // Shuffles of both heads are in flight together.
        let bests = b.k.array("new_best", DType::F32, 2, None);
        let of = |u: Expr, half: Expr, h: &Expr| u * 4 + half * 2 + h.clone();
        b.unrolled("h", 2, |b, h| {
            b.k.assign_elem(bests, h.clone(), Expr::elem(s.max, h.clone()));
            b.unrolled("u", self.block.depth, |b, u| {
                b.unrolled("half", 2, |b, half| {
                    let score = Expr::elem(scores, of(u, half, &h));
                    b.k.assign_elem(bests, h.clone(), Expr::elem(bests, h).max(score));
                    Ok(())
                })
            })
        })?;
        of_both_heads(b, bests, Reduce::Max)?;
        b.unrolled("h", 2, |b, h| {
            let old = Expr::elem(s.max, h.clone());
            let best = b.k.let_("best_of_head", DType::F32, Expr::elem(bests, h.clone()));
            let scale = Expr::math(MathFn::Exp, old - best.clone());
            let scale = b.k.let_("scale", DType::F32, scale);
            b.k.assign_elem(s.max, h.clone(), best.clone());
            let sum = Expr::elem(s.sum, h.clone()) * scale.clone();
            let sum = b.k.let_mut("sum", DType::F32, sum);
            b.unrolled("u", self.block.depth, |b, u| {
                b.unrolled("half", 2, |b, half| {
                    let at = of(u, half, &h);
                    let weight = Expr::math(MathFn::Exp, Expr::elem(scores, at.clone()) - best.clone());
                    b.k.assign_elem(scores, at.clone(), weight);
                    b.k.assign(sum, Expr::Var(sum) + Expr::elem(scores, at));
                    Ok(())
                })
            })?;
            b.k.assign_elem(s.sum, h.clone(), sum.into());
            b.unrolled("d", self.values.parts * 8, |b, d| {
                let at = d * 2 + h;
                b.k.assign_elem(s.out, at.clone(), Expr::elem(s.out, at) * scale);
                Ok(())
            })
        })
    }

    /// The weights of a tile as an operand: head `row`, keys 2·column and 2·column + 1, then those 8 on.
    fn weights(&self, b: &mut Body<'_>, u: &Expr, scores: VarId) -> Result<VarId, String> {
        let fragment = b.k.array("w_frag", DType::U32, 2, None);
        b.unrolled("half", 2, |b, half| {
            let at = u.clone() * 4 + half.clone() * 2;
            let pair = [Expr::elem(scores, at.clone()), Expr::elem(scores, at + 1)].map(Box::new);
            let [low, high] = pair;
            let pair = b.k.let_("pair", DType::U32, Expr::Pack2(self.dtype, low, high));
            let from = |key: i64| (self.column.clone() * 2 + key) * 4 + self.row.clone() / 2;
            let [first, second] = [0, 1].map(|key| {
                let moved = Expr::Shuffle(ShuffleMode::Index, Box::new(pair.clone()), Box::new(from(key)));
                b.k.let_("moved", DType::U32, moved)
            });
            let even = (self.row.clone() % 2).eq_(Expr::int(0));
            let word = even.select(low_halves(&first, &second), high_halves(&first, &second));
            b.k.assign_elem(fragment, half, word);
            Ok(())
        })?;
        Ok(fragment)
    }

    /// out += values · weights of a tile.
    fn add_values(&self, b: &mut Body<'_>, s: &State, u: &Expr, weights: VarId) -> Result<(), String> {
        b.unrolled("part", self.values.parts, |b, part| {
            let raw = (u.clone() * i64::from(self.values.parts) + part.clone()) * (4 * WORDS);
            b.unrolled("w", WORDS as u32, |b, w| {
                let fragment = b.k.array("v_frag", DType::U32, 4, None);
                b.unrolled("i", 2, |b, i| {
                    let word = |key: i64| {
                        let at = (i.clone() * 2 + key) * WORDS + w.clone();
                        Expr::elem(self.values.words, raw.clone() + at)
                    };
                    let (first, second) = (word(0), word(1));
                    b.k.assign_elem(fragment, i.clone() * 2, low_halves(&first, &second));
                    b.k.assign_elem(fragment, i * 2 + 1, high_halves(&first, &second));
                    Ok(())
                })?;
                b.k.push(Stmt::Mma {
                    dtype: self.dtype,
                    acc: s.out,
                    acc_at: (part * WORDS + w) * 4,
                    a: fragment,
                    a_at: Expr::int(0),
                    b: weights,
                    b_at: Expr::int(0),
                });
                Ok(())
            })
        })
    }

    /// Writes the warp's state to shared memory.
    fn publish(&self, b: &mut Body<'_>, s: &State, to: &Warps) -> Result<(), String> {
        let dim = self.cache.a.value_dim as i64;
        of_both_heads(b, s.sum, Reduce::Sum)?;
        b.unrolled("h", 2, |b, h| {
            let head = b.k.let_("head", DType::I32, self.column.clone() * 2 + h.clone());
            b.if_then(head.clone().lt(Expr::int(self.heads)), |b| {
                let to_row = b.k.let_("to_row", DType::I32, self.warp.clone() * self.heads + head);
                b.if_then(self.row.clone().eq_(Expr::int(0)), |b| {
                    b.k.store(Mem::Shared(to.max), to_row.clone(), Expr::elem(s.max, h.clone()));
                    b.k.store(Mem::Shared(to.sum), to_row.clone(), Expr::elem(s.sum, h.clone()));
                    Ok(())
                })?;
                b.unrolled("part", self.values.parts, |b, part| {
                    let out = b.k.array("out_of_head", DType::F32, VECTOR as u32, None);
                    b.unrolled("e", VECTOR as u32, |b, e| {
                        let value = Expr::elem(s.out, (part.clone() * VECTOR + e.clone()) * 2 + h);
                        b.k.assign_elem(out, e, value);
                        Ok(())
                    })?;
                    let first = part * VALUE_PART as i64 + self.row.clone() * VECTOR;
                    b.unrolled("e", VECTOR as u32 / 4, |b, e| {
                        let (src_at, lanes, mem) = (e * 4, 4, Mem::Shared(to.out));
                        let index = to_row * dim + first + src_at.clone();
                        b.k.push(Stmt::StoreVec { mem, index, src: out, src_at, lanes });
                        Ok(())
                    })
                })
            })
        })
    }
}

/// Reduces the values of a lane's two heads over the lanes that have these, all of which get the results.
fn of_both_heads(b: &mut Body<'_>, values: VarId, op: Reduce) -> Result<(), String> {
    for mask in [16, 8, 4] {
        b.unrolled("h", 2, |b, h| {
            let value = Expr::elem(values, h.clone());
            b.k.assign_elem(values, h, combine(op, value.clone(), value.shuffle_xor(mask)));
            Ok(())
        })?;
    }
    Ok(())
}

/// Running state of the online softmax: for each of the lane's two heads, and elements of the values by them.
struct State {
    max: VarId,
    sum: VarId,
    /// [part, element of eight, head].
    out: VarId,
}

impl Reader for Tiles<'_> {
    fn load_first(
        &self,
        b: &mut Body<'_>,
        wanted: Wanted,
        last: &Expr,
        hint: CacheHint,
    ) -> Result<(), String> {
        b.unrolled("u", self.block.depth, |b, u| {
            let tile = b.k.let_("tile", DType::I32, self.tile(&self.first, &u));
            if wanted.keys() {
                self.keys.load(b, &self.cache, (&tile, &u), (last, hint))?;
            }
            if wanted.values() {
                self.values.load(b, &self.cache, (&tile, &u), (last, hint))?;
            }
            Ok(())
        })
    }

    fn load_one(&self, b: &mut Body<'_>, key: &Expr) -> Result<(), String> {
        let slot = self.cache.slot_of(b, key.clone())?;
        b.unrolled("u", self.block.depth, |b, u| {
            let tile = b.k.let_("tile", DType::I32, self.tile(&self.first, &u));
            let inside = key.clone().ge(tile.clone()).and(key.clone().lt(tile.clone() + KEYS));
            b.if_then(inside, |b| {
                self.keys.load_one(b, &self.cache, (&tile, &u), (key, &slot))?;
                self.values.load_one(b, &self.cache, (&tile, &u), (key, &slot))
            })
        })
    }

    fn attend(&self, b: &mut Body<'_>, mut of: Attended<'_, '_>, to: &Warps) -> Result<(), String> {
        let queries = of.queries(b, &self.cache.kv_head)?;
        let q = self.load_queries(b, of.place, &queries)?;
        of.fresh(b)?;
        let place = of.place;
        let state = State {
            max: b.k.array("best", DType::F32, 2, Some(Expr::float(NO_SCORE))),
            sum: b.k.array("total", DType::F32, 2, Some(Expr::float(0.0))),
            out: b.k.array("out_acc", DType::F32, self.values.parts * 16, Some(Expr::float(0.0))),
        };
        let step = Tiles::step(&self.block);
        let (rounds, trigger) = of.rounds(b, &self.cache, step);
        b.for_loop("round", (Expr::int(0), rounds.clone(), Expr::int(1)), Unroll::Never, |b, round| {
            let first = b.k.let_("first", DType::I32, self.first.clone() + round.clone() * step);
            let more = b.k.let_("more", DType::Bool, (round.clone() + 1).lt(rounds));
            let next = b.k.let_("next", DType::I32, first.clone() + step);
            let behind = self.cache.first.clone() + (round.clone() + 1) * step;
            if let Some((own, here)) = self.cache.takes_own(behind) {
                b.if_then(here, |b| {
                    b.unrolled("u", self.block.depth, |b, u| {
                        let tile = b.k.let_("tile", DType::I32, self.tile(&first, &u));
                        self.keys.take_own(b, own, (&tile, &u))
                    })
                })?;
            }
            let scores = b.k.array("scores", DType::F32, self.block.depth * 4, None);
            b.unrolled("u", self.block.depth, |b, u| self.scores(b, q, (&u, scores)))?;
            b.if_then(more.clone(), |b| self.load(b, &self.keys, &next, self.cache.last_stored()))?;
            self.modify(b, place, &first, scores)?;
            self.softmax(b, &state, scores)?;
            b.unrolled("u", self.block.depth, |b, u| {
                let weights = self.weights(b, &u, scores)?;
                self.add_values(b, &state, &u, weights)
            })?;
            b.if_then(more, |b| {
                self.load(b, &self.values, &next, self.cache.last())?;
                trigger.loaded(b, round)
            })
        })?;
        self.publish(b, &state, to)?;
        b.k.push(Stmt::Barrier);
        Ok(())
    }
}

fn bits(op: BinaryOp, a: Expr, b: Expr) -> Expr {
    Expr::Binary(op, Box::new(a), Box::new(b))
}

fn word(v: u32) -> Expr {
    Expr::Const(Const::U32(v))
}

/// The low halves of two words in one.
fn low_halves(first: &Expr, second: &Expr) -> Expr {
    let low = bits(BinaryOp::And, first.clone(), word(0xffff));
    bits(BinaryOp::Or, low, bits(BinaryOp::Shl, second.clone(), word(16)))
}

/// The high halves of two words in one.
fn high_halves(first: &Expr, second: &Expr) -> Expr {
    let low = bits(BinaryOp::Shr, first.clone(), word(16));
    bits(BinaryOp::Or, low, bits(BinaryOp::And, second.clone(), word(0xffff_0000)))
}
