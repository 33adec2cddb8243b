//! Sampling behind a matrix product.
//!
//! Each lane keeps the best of the logits that it stores; the block joins them and leaves one (score, id) a
//! row in scratch. The block that arrives last joins the blocks' results: that is the token of a greedy row.
//! Where a row is drawn, it runs the passes of [`super::sampling`] over the stored logits.

use super::few::Few;
use super::penalize::{Copies, Past, copy_row};
use super::sampling::{Best, Request, Row, bin, cmp, pick};
use super::warp::Threads;
use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::ids::{OperandId, SharedId};
use weft_ir::kernel::{BinaryOp, CompareOp, Const, Expr, Mem, Stmt, Unroll};
use weft_ir::plan::{Draw, MatMul, Store};

/// The blocks that draw together, and what the lanes of one keep.
pub(super) struct Site {
    /// Rows of a block.
    pub rows: u32,
    pub warps: u32,
    /// Blocks along the columns, and which of them this one is.
    pub blocks: u32,
    pub block: Expr,
    /// Which block along the rows.
    pub row_block: Expr,
    /// Groups of lanes, each of which has `each` slots for every row.
    pub groups: u32,
    pub each: u32,
    /// Points, or turns of points, whose best a lane keeps apart.
    pub bests: u32,
}

/// What a kernel keeps for the draw.
pub(super) struct Drawing<'a> {
    m: &'a MatMul,
    draw: &'a Draw,
    store: &'a Store,
    site: Site,
    best: Vec<Best>,
    /// (score, id) of each slot.
    scores: SharedId,
    tokens: SharedId,
    /// For the passes over a row.
    partial: SharedId,
    few: Few,
}

impl<'a> Drawing<'a> {
    /// Declares what it takes; `None` where the product draws nothing.
    pub fn declare(b: &mut Body<'_>, m: &'a MatMul, site: Site) -> Result<Option<Drawing<'a>>, String> {
        let Some(draw) = &m.draw else { return Ok(None) };
        let store = m.stores.iter().find(|store| store.output == draw.logits);
        let store = store.ok_or("no store makes the logits")?;
        let slots = (site.groups * site.rows * site.each).max(site.warps);
        let scores = b.k.shared("best_score", DType::F32, slots);
        let tokens = b.k.shared("best_token", DType::I32, slots);
        let partial = b.k.shared("partial_result", DType::F32, site.warps);
        let few = Few::declare(b, site.warps * 32);
        let best = (0..site.bests).map(|_| Best::declare(b)).collect();
        Ok(Some(Drawing { m, draw, store, site, best, scores, tokens, partial, few }))
    }

    /// Takes the logit of a point that a lane stores in this turn.
    pub fn take(&self, b: &mut Body<'_>, turn: usize, at: &Point) -> Result<(), String> {
        let Some(best) = self.best.get(turn) else { return Err(format!("turn {turn} of a lane")) };
        let dtype = b.work.writes[usize::from(self.draw.logits)].dtype;
        let value = b.lower(&self.store.value, at)?;
        let value = if dtype.is_half() { value.cast(dtype).cast(DType::F32) } else { value };
        let value = b.k.let_("logit", DType::F32, value);
        let id = at.coords.get(1).cloned().ok_or("a point without a column")?;
        // What is no number wins against all others, and gives no token.
        let bad = cmp(CompareOp::Ne, value.clone(), value.clone());
        let score = bad.clone().select(Expr::float(f32::INFINITY), value);
        best.keep(b, score, bad.select(Expr::int(-1), id));
        Ok(())
    }

    /// Leaves a lane's best in its slot: (group · rows + row) · each + i.
    pub fn leave(&self, b: &mut Body<'_>, best: usize, slot: Expr) -> Result<(), String> {
        let best = self.best.get(best).ok_or_else(|| format!("best {best} of a lane"))?;
        let slot = b.k.let_("at", DType::I32, slot);
        b.k.store(Mem::Shared(self.scores), slot.clone(), best.score.into());
        b.k.store(Mem::Shared(self.tokens), slot, best.token.into());
        Ok(())
    }

    /// Joins the block's results once all lanes have left theirs, and in the last block all of them.
    pub fn finish(&self, b: &mut Body<'_>, t: &Threads, first_row: &Expr) -> Result<(), String> {
        b.k.push(Stmt::Barrier);
        let site = &self.site;
        let (rows, each) = (i64::from(site.rows), i64::from(site.each));
        let row = first_row.clone() + Expr::ThreadIdx;
        let mine = Expr::ThreadIdx.lt(Expr::int(rows)).and(row.clone().lt(b.extent(self.m.m)));
        b.if_then(mine, |b| {
            let best = Best::declare(b);
            let range = (Expr::int(0), Expr::int(i64::from(site.groups)), Expr::int(1));
            b.for_loop("other", range, Unroll::Never, |b, other| {
                b.unrolled("p", site.each, |b, p| {
                    let at = other * (rows * each) + Expr::ThreadIdx * each + p;
                    let at = b.k.let_("at", DType::I32, at);
                    let score = Expr::load(Mem::Shared(self.scores), at.clone());
                    best.keep(b, score, Expr::load(Mem::Shared(self.tokens), at));
                    Ok(())
                })
            })?;
            let place = row * i64::from(site.blocks) + site.block.clone();
            let place = b.k.let_("place", DType::I32, place);
            b.k.store(b.partials[0], place.clone(), best.score.into());
            b.k.store(b.partials[1], place, best.token.into());
            Ok(())
        })?;
        let last = b.last_block(site.row_block.clone(), Expr::uint(site.blocks))?;
        b.if_then(last, |b| {
            let range = (Expr::int(0), Expr::int(rows), Expr::int(1));
            b.for_loop("r", range, Unroll::Never, |b, r| {
                let row = b.k.let_("row", DType::I32, first_row.clone() + r);
                let inside = row.clone().lt(b.extent(self.m.m));
                b.if_then(inside, |b| self.row(b, t, &row))
            })
        })
    }

    /// The token of a row, by a whole block.
    fn row(&self, b: &mut Body<'_>, t: &Threads, row: &Expr) -> Result<(), String> {
        let s = &self.site;
        let threads = i64::from(s.warps) * 32;
        let best = Best::declare(b);
        let range = (Expr::ThreadIdx, Expr::int(i64::from(s.blocks)), Expr::int(threads));
        b.for_loop("block", range, Unroll::Never, |b, block| {
            let place = b.k.let_("place", DType::I32, row.clone() * i64::from(s.blocks) + block);
            let score = Expr::load(b.partials[0], place.clone());
            best.keep(b, score, Expr::load(b.partials[1], place));
            Ok(())
        })?;
        let shared = (self.scores, self.tokens);
        // The last round of another row may still be read.
        b.k.push(Stmt::Barrier);
        let best = best.join(b, (t, s.warps), shared)?;
        let token = b.k.let_mut("drawn", DType::I32, best.token.into());
        let at_row = |b: &mut Body<'_>, o: OperandId, name: &str| {
            let (value, dtype) = (b.load(o, std::slice::from_ref(row)), b.work.reads[o.index()].dtype);
            b.k.let_(name, dtype, value)
        };
        let temperature = at_row(b, self.draw.parameters[0], "temperature_of_row");
        let draws = b.k.let_("draws", DType::Bool, cmp(CompareOp::Gt, temperature.clone(), Expr::float(0.0)));
        let position = b.lower(&self.draw.position, &Point::at(vec![row.clone()]))?;
        let position = b.k.let_("position_of_row", DType::I32, position);
        let past = match &self.draw.penalties {
            None => None,
            Some(p) => {
                let base = b.lower(&p.base, &Point::at(vec![row.clone()]))?;
                let [prompt, repetition, presence] = p.parameters;
                Some(Past {
                    history: b.reads[p.history.index()],
                    base: b.k.let_("first_slot", DType::I32, base),
                    position: position.clone(),
                    prompt: at_row(b, prompt, "prompt_of_row"),
                    repetition: at_row(b, repetition, "repetition_of_row"),
                    presence: at_row(b, presence, "presence_of_row"),
                })
            }
        };
        let costs = past.as_ref().map_or(Expr::Const(Const::Bool(false)), Past::costs);
        let known = cmp(CompareOp::Ge, best.token.into(), Expr::int(0));
        let again = known.and(bin(BinaryOp::Or, draws.clone(), costs));
        let again = b.k.let_("again", DType::Bool, again);
        b.if_then(again, |b| {
            let r = self.passes(b, t, row, (&draws, temperature), past.as_ref())?;
            let [_, top_k, top_p, min_p, seed] =
                self.draw.parameters.map(|o| b.load(o, std::slice::from_ref(row)));
            let seed = b.k.let_("seed_of_row", DType::U32, seed);
            let request = Request { position, top_k, top_p, min_p, seed };
            let picked = pick(b, &r, &request, &draws, &self.few, shared)?;
            b.k.assign(token, picked);
            Ok(())
        })?;
        b.if_then(Expr::ThreadIdx.eq_(Expr::int(0)), |b| {
            b.k.store(b.writes[usize::from(self.draw.tokens)], row.clone(), token.into());
            Ok(())
        })
    }

    /// What the passes over a row go over: its stored logits, or a copy with the penalties over the temperature.
    fn passes(
        &self,
        b: &mut Body<'_>,
        t: &Threads,
        row: &Expr,
        (draws, temperature): (&Expr, Expr),
        past: Option<&Past>,
    ) -> Result<Row, String> {
        let output = usize::from(self.draw.logits);
        let (dtype, shape) = (b.work.writes[output].dtype, b.work.writes[output].shape.clone());
        let (vocab, threads) = (self.m.n as i64, self.site.warps * 32);
        let start = b.flat(&shape, &[row.clone(), Expr::int(0)]);
        let start = b.k.let_("start", b.index_type(&shape), start);
        let mut logits = b.writes[output];
        let divisor = draws.clone().select(temperature, Expr::float(1.0));
        let divisor = b.k.let_("divisor", DType::F32, divisor);
        let mut temperature = Some(divisor.clone());
        if let Some(past) = past {
            if dtype != DType::F32 || b.index_type(&shape) != DType::I32 {
                return Err(format!("penalties on {dtype} logits with wide indices"));
            }
            let copy = b.partials[2];
            let (from, to) = ((logits, start.clone()), (copy, start.clone()));
            copy_row(b, &Copies { from, to, vocab, threads, divisor: Some(divisor) }, past)?;
            b.k.push(Stmt::Barrier);
            (logits, temperature) = (copy, None);
        }
        let (t, partial) = (t.clone(), self.partial);
        Ok(Row { logits, dtype, shape, start, vocab, threads, temperature, t, partial })
    }
}
