//! What holds for attention: its window, the rows that its prologue makes, and the projection behind it.

use crate::ids::OperandId;
use crate::plan::{
    Attention, AttentionProjection, AttentionPrologue, MadeRow, Scalar, Schedule, Store, Work,
};
use crate::shape::Dim;

/// Adds what is wrong with an attention.
pub(super) fn attention(a: &Attention, work: &Work, faults: &mut Vec<String>) {
    if a.window == Some(0) {
        faults.push("a window without keys".into());
    }
    if let Some(p) = &a.prologue {
        prologue(p, a, work, faults);
    }
    if let Some(p) = &a.projection {
        projection(p, a, work, faults);
    }
}

/// Why a kernel of an attention cannot have this schedule.
pub(super) fn schedule(a: &Attention, schedule: &Schedule) -> Option<&'static str> {
    if a.prologue.is_some() && matches!(schedule, Schedule::AttentionTile { .. }) {
        return Some("only attention of single tokens makes its rows");
    }
    a.projection.as_ref()?;
    let whole = match schedule {
        Schedule::AttentionGroup { heads, splits, cluster, .. } => {
            *heads as usize == a.group && splits == cluster && *cluster > 1
        }
        _ => false,
    };
    (!whole).then_some(
        "only a cluster on tensor cores that has all keys and query heads of a head of keys projects",
    )
}

fn projection(p: &AttentionProjection, a: &Attention, work: &Work, faults: &mut Vec<String>) {
    let k = a.kv_heads.checked_mul(a.group).and_then(|heads| heads.checked_mul(a.value_dim));
    let shape = k.map(|k| [Dim::Const(p.columns), Dim::Const(k)]);
    let weight = work.reads.get(p.weight.index());
    if weight.is_none_or(|w| !w.dtype.is_float() || shape.is_none_or(|s| w.shape != s)) {
        faults.push("the weight of a projection is no array of floats [columns, heads · elements]".into());
    }
    if weight.is_some_and(|w| !w.constant) {
        faults.push("the weight of a projection is asked for before it is known".into());
    }
    let addends = [a.tokens, Dim::Const(a.kv_heads), Dim::Const(p.columns)];
    let stored = |s: &Store| work.writes.get(usize::from(s.output)).is_some_and(|w| w.shape == addends);
    if !a.stores.iter().all(stored) {
        faults.push("a projection stores no array [tokens, heads of keys, columns]".into());
    }
    p.value.visit(&mut |e| match e {
        Scalar::Acc(i) if *i > 0 => faults.push(format!("accumulator {i} of an attention")),
        Scalar::Reduced(i) => faults.push(format!("stage {i} of an attention")),
        _ => {}
    });
}

/// Most elements of a row that a prologue makes: a lane of a warp holds every 32nd.
const LONGEST: usize = 1024;

fn prologue(p: &AttentionPrologue, a: &Attention, work: &Work, faults: &mut Vec<String>) {
    if !(1..=LONGEST).contains(&a.head_dim) {
        faults.push(format!("a prologue makes rows of {} elements, not of 1 to {LONGEST}", a.head_dim));
    }
    let row = Dim::Const(a.head_dim);
    let queries = a.kv_heads.checked_mul(a.group).map(|heads| [a.tokens, Dim::Const(heads), row]);
    let shape = |o: OperandId| work.reads.get(o.index()).map_or(&[][..], |o| &o.shape);
    if queries.is_none_or(|q| shape(a.q) != q)
        || shape(a.keys).get(1..) != Some(&[Dim::Const(a.kv_heads), row])
    {
        faults.push("a prologue makes other rows than those of queries and keys".into());
    }
    if !p.dtype.is_float() {
        faults.push(format!("queries of type {}", p.dtype));
    }
    if !a.settled || !a.sequential_slots() {
        faults.push("a prologue makes the last key of a token, but the others are not there before".into());
    }
    if a.keys == a.values {
        faults.push("a prologue makes keys, but values are their first elements".into());
    }
    let keys = work.reads.get(a.keys.index());
    let kept = work.writes.get(usize::from(p.keep.output));
    let alike = keys.zip(kept).is_some_and(|(r, w)| (r.dtype, &r.shape) == (w.dtype, &w.shape));
    if !alike || !work.in_place.contains(&(p.keep.output, a.keys)) {
        faults.push("a prologue keeps its keys in another array than that of keys".into());
    }
    made(&p.query, "queries", faults);
    made(&p.key, "keys", faults);
}

/// Stages see those before them, elements all of them, and neither has an accumulator.
fn made(row: &MadeRow, what: &str, faults: &mut Vec<String>) {
    for (known, e) in row.scalars().enumerate() {
        e.visit(&mut |e| match e {
            Scalar::Acc(i) => faults.push(format!("accumulator {i} in a row of {what}")),
            Scalar::Reduced(i) if usize::from(*i) >= known => {
                faults.push(format!("stage {i} of {known} is not known in a row of {what}"));
            }
            _ => {}
        });
    }
}
