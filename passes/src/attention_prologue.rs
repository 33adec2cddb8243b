//! Norms and rotations of a decode step's queries and keys become a part of its attention.
//!
//! Before: works and the dispatches of a body. After: two loops fewer for each attention whose queries and own keys
//! were made by loops of a row a head; the roundings are the same. Tests: `testsuite/tests/prologue.rs`.
//!
//! A decode step's attention reads one row of each query head and one new key, so each of its blocks can make what it
//! needs of them. A kernel for that costs a launch and a round trip of the rows: of a layer of Qwen3-4B on an H200
//! 2.7 µs, of which 1.7 pass while keys come (docs/performance.md).

use crate::fusion::{Contract, Miss};
use crate::lower::{Lowered, Placed};
use crate::merge::{self, Arrays, OPERANDS, TOO_LARGE, pairs};
use crate::numerics::{Numerics, Selection};
use weft_ir::ids::{BufferId, OperandId};
use weft_ir::plan::{
    Attention, AttentionPrologue, Buffer, BufferKind, Compute, Dispatch, Loop, MadeRow, Operand, Scalar,
    Stage, Store, Work,
};
use weft_ir::scalar::Binary;
use weft_ir::shape::Dim;

/// Name, as in `--disable`.
pub const NAME: &str = "attention-prologue";
/// What it does to the numbers.
pub const NUMERICS: Numerics = Numerics::Reassociates;
/// What it does, for the generated page.
pub const SUMMARY: &str = "a decode step's attention makes its queries and its own key itself, norms and rotations of a \
                           row a head, and keeps the key";

/// Makes what it can in a body. The contract's sites are attentions whose queries a loop of a row a head makes; where
/// the pass is off, they are found and left.
pub fn run(lowered: &mut Lowered, body: usize, placed: &mut Placed, selection: &Selection) -> Contract {
    let enabled = selection.allows(NAME, NUMERICS);
    let mut contract = Contract::empty(NAME, NUMERICS, enabled);
    let Some(step) = merge::Step::of(lowered, body, placed) else { return contract };
    let mut step = Step { buffers: &lowered.buffers, body: step };
    let mut i = 0;
    while i < step.body.dispatches.len() {
        let Some(query) = step.query(i) else {
            i += 1;
            continue;
        };
        contract.candidates += 1;
        let scope = step.body.dispatches[i].scope.clone();
        let miss = |why: String| contract.misses.push(Miss { scope, why });
        match step.site(i, query) {
            Ok(_) if !enabled => miss(selection.why_off(NAME)),
            Ok(site) => {
                contract.matched += 1;
                step.make(site);
                // Both loops were before it.
                i -= 2;
            }
            Err(why) => miss(why.into()),
        }
        i += 1;
    }
    if contract.matched > 0 {
        let Step { body: after, .. } = step;
        after.put(lowered, body, placed);
    }
    contract
}

/// A body, and the buffers of all.
struct Step<'a> {
    buffers: &'a [Buffer],
    body: merge::Step,
}

/// An attention and the loops that make its rows: positions of dispatches, and the work of all three.
struct Site {
    attention: usize,
    loops: [usize; 2],
    dispatch: Dispatch,
    work: Work,
}

impl Step<'_> {
    fn work(&self, i: usize) -> &Work {
        &self.body.works[self.body.dispatches[i].work as usize]
    }

    /// The last dispatch before one that writes a buffer.
    fn writer(&self, before: usize, buffer: BufferId) -> Option<usize> {
        (0..before).rev().find(|j| self.body.dispatches[*j].writes.contains(&buffer))
    }

    /// The loop that makes the queries of an attention, a row a head.
    fn query(&self, i: usize) -> Option<usize> {
        let a = attention(self.work(i))?;
        let query = self.writer(i, self.body.dispatches[i].reads[a.q.index()])?;
        let rows = (a.kv_heads * a.group, a.head_dim);
        rows_of(self.work(query), a.tokens, rows).map(|_| query)
    }

    /// The work of an attention and of the loops that make its rows.
    ///
    /// # Errors
    /// Why there is none.
    fn site(&self, i: usize, query: usize) -> Result<Site, &'static str> {
        let a = attention(self.work(i)).ok_or("it is no attention of settled keys")?;
        let d = &self.body.dispatches[i];
        let [queries, cached] = [a.q, a.keys].map(|o| d.reads[o.index()]);
        let key = self.writer(i, cached).ok_or("no kernel of the step makes its keys")?;
        let (made_query, made_key) = (self.work(query), self.work(key));
        let rows = |w, heads| rows_of(w, a.tokens, (heads, a.head_dim));
        let of_query = rows(made_query, a.kv_heads * a.group).ok_or("its queries are no rows of heads")?;
        let of_key = rows(made_key, a.kv_heads).ok_or("its keys are not made as rows of heads")?;
        let (query_store, key_store) = (&of_query.element_stores[0], &of_key.element_stores[0]);
        if query_store.guard.is_some() || query_store.index != coords(0) {
            return Err("its queries are not stored as rows of heads");
        }
        if key_store.index[1..] != coords(1) {
            return Err("its keys are not stored as rows of heads");
        }
        let is_temp = |b: &BufferId| self.buffers.get(b.index()).is_some_and(|b| b.kind == BufferKind::Temp);
        let readers = self.body.dispatches.iter().filter(|d| d.reads.contains(&queries)).count();
        if !is_temp(&queries) || readers != 1 {
            return Err("its queries are used elsewhere too");
        }
        if !self.movable(query, i) || !self.movable(key, i) {
            return Err("a kernel between needs what they make, or makes what they need");
        }
        let source = self
            .source(query, a, a.kv_heads * a.group)
            .ok_or("its queries are made of no array of rows of heads")?;
        let mut reads = Arrays::of(self.work(i), d);
        // What queries are made of takes their place.
        let rows = Operand { name: "q_rows".into(), ..made_query.reads[source.index()].clone() };
        reads.replace(a.q, (rows, self.body.dispatches[query].reads[source.index()]));
        let query_operands = reads.join(made_query, &self.body.dispatches[query]);
        let key_operands = reads.join(made_key, &self.body.dispatches[key]);
        if let Some(rows) = self.source(key, a, a.kv_heads) {
            reads.rename(key_operands[rows.index()], "k_rows");
        }
        let mut writes = pairs(&self.work(i).writes, &d.writes);
        let output = writes.len() as u8;
        writes.extend(pairs(&made_key.writes, &self.body.dispatches[key].writes));
        if reads.len() + writes.len() > OPERANDS {
            return Err(TOO_LARGE);
        }
        let query_type = made_query.writes[usize::from(query_store.output)].dtype;
        let kept = |e: &Scalar| merge::on(e, &key_operands);
        let prologue = AttentionPrologue {
            query: made_row(of_query, query_store, &query_operands),
            key: made_row(of_key, key_store, &key_operands),
            dtype: query_type,
            keep: Store {
                output,
                index: key_store.index.iter().map(kept).collect(),
                value: Scalar::Acc(0),
                guard: key_store.guard.as_ref().map(kept),
            },
        };
        let compute = Compute::Attention(Attention { prologue: Some(prologue), ..a.clone() });
        let (ops, rules) = merge::origins(&[made_query, made_key, self.work(i)], NAME);
        let name = merge::unique_name(&self.body.works, made_query, self.work(i));
        let in_place = vec![(output, a.keys)];
        let (reads, read_buffers) = reads.parts();
        let (writes, write_buffers) = writes.into_iter().unzip();
        Ok(Site {
            attention: i,
            loops: [query, key],
            dispatch: Dispatch {
                work: 0,
                reads: read_buffers,
                writes: write_buffers,
                scope: d.scope.clone(),
            },
            work: Work { name, compute, reads, writes, in_place, ops, rules },
        })
    }

    /// Whether dispatch j may run as late as i: none between them needs what it writes, or writes what it reads.
    fn movable(&self, j: usize, i: usize) -> bool {
        let all = &self.body.dispatches;
        all[j + 1..i].iter().all(|between| merge::apart(between, &all[j]))
    }

    /// The operand that a loop makes rows of so many heads of: rows that the step computed.
    fn source(&self, made: usize, a: &Attention, heads: usize) -> Option<OperandId> {
        let shape = [a.tokens, Dim::Const(heads), Dim::Const(a.head_dim)];
        let of = |o: &Operand| !o.constant && o.shape == shape;
        self.work(made).reads.iter().position(of).map(OperandId::new)
    }

    /// Puts the work of all three in the place of the attention, and takes the loops out.
    fn make(&mut self, site: Site) {
        let work = merge::numbered(&mut self.body.works, site.work);
        self.body.dispatches[site.attention] = Dispatch { work, ..site.dispatch };
        let [query, key] = site.loops;
        for j in [query.max(key), query.min(key)] {
            self.body.dispatches.remove(j);
            let moved = self.body.nodes.remove(j);
            // Those behind a removed one have moved up by now.
            let at = site.attention - usize::from(j == query.min(key)) - 1;
            self.body.nodes[at].extend(moved);
            self.body.nodes[at].sort_unstable();
        }
    }
}

/// An attention that may have a prologue: its other keys are there before, and values are rows of their own.
fn attention(w: &Work) -> Option<&Attention> {
    match &w.compute {
        Compute::Attention(a)
            if a.settled
                && a.sequential_slots()
                && a.prologue.is_none()
                && a.keys != a.values
                && sees_its_own(&a.length) =>
        {
            Some(a)
        }
        _ => None,
    }
}

/// Whether a length is that of a token's position and one more: the last key is its own.
fn sees_its_own(length: &Scalar) -> bool {
    let Scalar::Binary(Binary::Add, position, one) = length else { return false };
    let of_token = matches!(position.as_ref(), Scalar::Load(_, at) if at[..] == [Scalar::Coord(0)]);
    of_token && **one == Scalar::Int(1)
}

/// A loop that makes one array of rows, one a token and head, with reductions along them.
fn rows_of(w: &Work, tokens: Dim, (heads, length): (usize, usize)) -> Option<&Loop> {
    let Compute::Loop(l) = &w.compute else { return None };
    let [store] = &l.element_stores[..] else { return None };
    let fits = l.domain[..] == [tokens, Dim::Const(heads)]
        && l.reduced == Some(Dim::Const(length))
        && l.row_stores.is_empty()
        && w.writes.len() == 1
        && store.index.len() == 3;
    fits.then_some(l)
}

/// The coordinates of a row's element from an axis on.
fn coords(from: u8) -> Vec<Scalar> {
    (from..3).map(Scalar::Coord).collect()
}

fn made_row(l: &Loop, store: &Store, operands: &[OperandId]) -> MadeRow {
    let on = |e: &Scalar| merge::on(e, operands);
    let stages = l.stages.iter().map(|s| Stage { op: s.op, value: on(&s.value) });
    MadeRow { stages: stages.collect(), value: on(&store.value) }
}
