//! Independent loops of a step of few tokens that could run at the same time become one kernel.
//!
//! Before: works and the dispatches of a body. After: fewer of both; what is computed, and its rounding, is the same.
//! Tests: `passes/tests/siblings.rs`.
//!
//! A step of few tokens is a chain of launches, each of which costs about what a small loop computes in. Loops over
//! the same points become one loop with the stores of both: the two halves of a rotation's table. Loops whose
//! last parallel extents differ become one over both extents, of which each takes its part: the norms of queries and
//! of keys.

use crate::fusion::{Contract, Miss};
use crate::lower::{Lowered, Placed};
use crate::merge::{self, Arrays, OPERANDS, Step, TOO_LARGE, apart, pairs};
use crate::numerics::{Numerics, Selection};
use std::collections::BTreeSet;
use weft_ir::ids::{BufferId, OperandId};
use weft_ir::plan::{Compute, Dispatch, Loop, Operand, Scalar, Stage, Store, Work};
use weft_ir::scalar::{Binary, Compare};
use weft_ir::shape::Dim;

/// Name, as in `--disable`.
pub const NAME: &str = "sibling-loops";
/// What it does to the numbers.
pub const NUMERICS: Numerics = Numerics::Exact;
/// What it does, for the generated page.
pub const SUMMARY: &str = "independent loops of a decode or short step over the same points, or over points that differ \
                           in one extent, are one kernel";

/// Merges what it can in a body. The contract's sites are loops that can follow an earlier one; where merging is off,
/// they are found and left.
pub fn run(lowered: &mut Lowered, body: usize, placed: &mut Placed, selection: &Selection) -> Contract {
    let enabled = selection.allows(NAME, NUMERICS);
    let mut contract = Contract::empty(NAME, NUMERICS, enabled);
    let Some(mut after) = Step::of(lowered, body, placed) else { return contract };
    let merged = after.merge();
    contract.candidates = merged.len();
    if !enabled {
        let off = merged.into_iter().map(|scope| Miss { scope, why: selection.why_off(NAME) });
        contract.misses = off.collect();
        return contract;
    }
    contract.matched = merged.len();
    contract.misses = after.too_large().map(|scope| Miss { scope, why: TOO_LARGE.into() }).collect();
    contract.candidates += contract.misses.len();
    if contract.matched > 0 {
        after.put(lowered, body, placed);
    }
    contract
}

/// The contract of a body whose loops stay apart: one whose steps are not of few tokens.
pub fn nowhere(selection: &Selection) -> Contract {
    Contract::empty(NAME, NUMERICS, selection.allows(NAME, NUMERICS))
}

impl Step {
    /// Merges what it can: the places of the loops that follow others now.
    fn merge(&mut self) -> Vec<String> {
        let mut scopes = Vec::new();
        let mut i = 0;
        while i < self.dispatches.len() {
            let Some((j, both)) = self.pairs(i).find_map(|(j, both)| Some((j, both.ok()?))) else {
                i += 1;
                continue;
            };
            let removed = self.dispatches.remove(j);
            let nodes = self.nodes.remove(j);
            self.nodes[i].extend(nodes);
            self.nodes[i].sort_unstable();
            let parts = (self.dispatches[i].work, removed.work);
            let scope = self.dispatches[i].scope.clone();
            self.dispatches[i] = both.dispatch(&mut self.works, parts, &scope);
            scopes.push(removed.scope);
        }
        scopes
    }

    /// Later loops whose points allow it to be one with loop i.
    fn pairs(&self, i: usize) -> impl Iterator<Item = (usize, Result<Merged, TooLarge>)> {
        let all = siblings(&self.dispatches, &self.works, i);
        all.filter_map(move |j| Some((j, merged(&self.works, &self.dispatches[i], &self.dispatches[j])?)))
    }

    /// Places of loops that could follow an earlier one, but for the number of arrays.
    fn too_large(&self) -> impl Iterator<Item = String> {
        let later = |i| self.pairs(i).map(|(j, _)| j);
        let loops: BTreeSet<usize> = (0..self.dispatches.len()).flat_map(later).collect();
        loops.into_iter().map(|j| self.dispatches[j].scope.clone())
    }
}

/// Later loops that do not depend on dispatch i or on any between, nor these on them.
fn siblings<'a>(all: &'a [Dispatch], works: &'a [Work], i: usize) -> impl Iterator<Item = usize> + 'a {
    let is_loop = |d: &Dispatch| matches!(works[d.work as usize].compute, Compute::Loop(_));
    let end = if is_loop(&all[i]) { all.len() } else { 0 };
    // What a loop depends on is mostly right before it.
    (i + 1..end).filter(move |&j| is_loop(&all[j]) && all[i..j].iter().rev().all(|d| apart(d, &all[j])))
}

/// Both loops have more arrays than a work takes.
struct TooLarge;

/// A merged work and the buffers of its arrays.
struct Merged {
    compute: Loop,
    reads: Arrays,
    writes: Vec<(Operand, BufferId)>,
    in_place: Vec<(u8, OperandId)>,
}

/// The loops of two dispatches as one, where their extents allow it.
fn merged(works: &[Work], a: &Dispatch, b: &Dispatch) -> Option<Result<Merged, TooLarge>> {
    let (wa, wb) = (&works[a.work as usize], &works[b.work as usize]);
    let (Compute::Loop(la), Compute::Loop(lb)) = (&wa.compute, &wb.compute) else { return None };
    if la.reduced != lb.reduced {
        return None;
    }
    let mut reads = Arrays::of(wa, a);
    let operands = reads.join(wb, b);
    let mut writes = pairs(&wa.writes, &a.writes);
    let first_write = writes.len() as u8;
    writes.extend(pairs(&wb.writes, &b.writes));
    let second = Second { operands: &operands, first_write, ..Second::default() };
    let compute = if la.domain == lb.domain { together(la, lb, second) } else { end_to_end(la, lb, second)? };
    if reads.len() + writes.len() > OPERANDS {
        return Some(Err(TooLarge));
    }
    let moved = wb.in_place.iter().map(|(w, r)| (w + first_write, operands[r.index()]));
    let in_place = wa.in_place.iter().copied().chain(moved).collect();
    Some(Ok(Merged { compute, reads, writes, in_place }))
}

/// How the expressions of the second loop are moved.
#[derive(Clone, Copy, Default)]
struct Second<'a> {
    /// Its operands among those of both.
    operands: &'a [OperandId],
    /// Its first output.
    first_write: u8,
    /// Its first stage.
    first_stage: u8,
    /// The coordinate that counts on from the first loop's, and where it begins.
    moved: Option<(u8, i64)>,
}

impl Second<'_> {
    fn expr(&self, e: &Scalar) -> Scalar {
        match e {
            Scalar::Load(o, at) => {
                let at = at.iter().map(|i| self.expr(i)).collect();
                Scalar::Load(self.operands[o.index()], at)
            }
            Scalar::Reduced(i) => Scalar::Reduced(i + self.first_stage),
            Scalar::Coord(axis) => match self.moved {
                Some((moved, by)) if moved == *axis => {
                    Scalar::binary(Binary::Sub, e.clone(), Scalar::Int(by))
                }
                Some(_) | None => e.clone(),
            },
            other => other.map_children(&mut |part| self.expr(part)),
        }
    }

    fn stores(&self, stores: &[Store], part: Option<&Scalar>) -> Vec<Store> {
        let moved = stores.iter().map(|s| Store {
            output: s.output + self.first_write,
            index: s.index.iter().map(|i| self.expr(i)).collect(),
            value: self.expr(&s.value),
            guard: s.guard.as_ref().map(|g| self.expr(g)),
        });
        guarded(moved, part)
    }
}

/// Stores that are made in a part of the points.
fn guarded(stores: impl Iterator<Item = Store>, part: Option<&Scalar>) -> Vec<Store> {
    let with = |s: Store| {
        let guard = match (part, s.guard) {
            (Some(part), Some(g)) => Some(Scalar::binary(Binary::And, part.clone(), g)),
            (part, g) => part.cloned().or(g),
        };
        Store { guard, ..s }
    };
    stores.map(with).collect()
}

/// Two loops over the same points.
fn together(a: &Loop, b: &Loop, second: Second<'_>) -> Loop {
    let second = Second { first_stage: a.stages.len() as u8, ..second };
    let stages = b.stages.iter().map(|s| Stage { op: s.op, value: second.expr(&s.value) });
    let join = |x: &[Store], y: &[Store]| x.iter().cloned().chain(second.stores(y, None)).collect::<Vec<_>>();
    Loop {
        domain: a.domain.clone(),
        reduced: a.reduced,
        stages: a.stages.iter().cloned().chain(stages).collect(),
        element_stores: join(&a.element_stores, &b.element_stores),
        row_stores: join(&a.row_stores, &b.row_stores),
    }
}

/// Two loops whose domains differ in their last extent: the second's points follow the first's.
fn end_to_end(a: &Loop, b: &Loop, second: Second<'_>) -> Option<Loop> {
    let ((last, outer), (other_last, other)) = (a.domain.split_last()?, b.domain.split_last()?);
    let (Dim::Const(n), Dim::Const(m)) = (*last, *other_last) else { return None };
    let alike = a.stages.len() == b.stages.len() && a.stages.iter().zip(&b.stages).all(|(x, y)| x.op == y.op);
    if outer != other || !alike {
        return None;
    }
    let axis = outer.len() as u8;
    let bound = Scalar::Int(n as i64);
    let compare = |op, x, y| Scalar::Compare(op, Box::new(x), Box::new(y));
    let first_part = compare(Compare::Lt, Scalar::Coord(axis), bound.clone());
    let second_part = compare(Compare::Le, bound, Scalar::Coord(axis));
    let second = Second { moved: Some((axis, n as i64)), ..second };
    let stages = a.stages.iter().zip(&b.stages).map(|(x, y)| {
        let values = [x.value.clone(), second.expr(&y.value)].map(Box::new);
        let [first, other] = values;
        Stage { op: x.op, value: Scalar::Select(Box::new(first_part.clone()), first, other) }
    });
    let stages = stages.collect();
    let join = |x: &[Store], y: &[Store]| {
        let first = guarded(x.iter().cloned(), Some(&first_part));
        first.into_iter().chain(second.stores(y, Some(&second_part))).collect::<Vec<_>>()
    };
    Some(Loop {
        domain: outer.iter().copied().chain([Dim::Const(n + m)]).collect(),
        reduced: a.reduced,
        stages,
        element_stores: join(&a.element_stores, &b.element_stores),
        row_stores: join(&a.row_stores, &b.row_stores),
    })
}

impl Merged {
    /// Its dispatch; the work is that of an equal pair, of this body or another's, or a new one.
    fn dispatch(self, works: &mut Vec<Work>, (a, b): (u32, u32), scope: &str) -> Dispatch {
        let (reads, read_buffers) = self.reads.parts();
        let (writes, write_buffers): (Vec<_>, Vec<_>) = self.writes.into_iter().unzip();
        let compute = Compute::Loop(self.compute);
        let (wa, wb) = (&works[a as usize], &works[b as usize]);
        let (ops, rules) = merge::origins(&[wa, wb], NAME);
        let name = merge::unique_name(works, wa, wb);
        let made = Work { name, compute, reads, writes, in_place: self.in_place, ops, rules };
        let work = merge::numbered(works, made);
        Dispatch { work, reads: read_buffers, writes: write_buffers, scope: scope.into() }
    }
}
