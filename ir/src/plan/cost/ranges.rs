//! Ranges of coordinates, and how many values expressions take over them.

use crate::plan::Scalar;
use crate::scalar::{Binary, Compare};
use std::collections::BTreeSet;

/// Values `from..to` of each coordinate.
pub(super) type Ranges = Vec<(u64, u64)>;

pub(super) fn points(ranges: &Ranges) -> u64 {
    ranges.iter().map(|(from, to)| to.saturating_sub(*from)).fold(1, u64::saturating_mul)
}

/// Coordinates that expressions depend on.
pub(super) fn coordinates<'e>(all: impl Iterator<Item = &'e Scalar>) -> BTreeSet<u8> {
    let mut used = BTreeSet::new();
    all.for_each(|e| {
        e.visit(&mut |x| {
            if let Scalar::Coord(i) = x {
                used.insert(*i);
            }
        });
    });
    used
}

/// Points of the coordinates that expressions depend on.
pub(super) fn spread<'e>(all: impl Iterator<Item = &'e Scalar>, ranges: &Ranges) -> u64 {
    let used = coordinates(all);
    points(&used.iter().filter_map(|i| ranges.get(*i as usize).copied()).collect())
}

/// Most values that an index takes.
pub(super) fn distinct(e: &Scalar, ranges: &Ranges) -> u64 {
    match e {
        Scalar::Binary(Binary::Rem, a, n) => match **n {
            Scalar::Int(n) => distinct(a, ranges).min(n.max(0) as u64),
            _ => distinct(a, ranges),
        },
        Scalar::Binary(Binary::Div, a, n) => match **n {
            Scalar::Int(n) if n > 0 => distinct(a, ranges).div_ceil(n as u64),
            _ => distinct(a, ranges),
        },
        other => spread(std::iter::once(other), ranges),
    }
}

/// Narrows ranges to where a guard can hold: conjunctions of comparisons of a coordinate with a number.
pub(super) fn narrow(guard: &Scalar, ranges: &mut Ranges) {
    match guard {
        Scalar::Binary(Binary::And, a, b) => {
            narrow(a, ranges);
            narrow(b, ranges);
        }
        Scalar::Compare(op, a, b) => match (op, a.as_ref(), b.as_ref()) {
            (Compare::Le, Scalar::Int(n), Scalar::Coord(i)) => at_least(ranges, *i, *n),
            (Compare::Lt, Scalar::Int(n), Scalar::Coord(i)) => at_least(ranges, *i, n + 1),
            (Compare::Lt, Scalar::Coord(i), Scalar::Int(n)) => below(ranges, *i, *n),
            (Compare::Le, Scalar::Coord(i), Scalar::Int(n)) => below(ranges, *i, n + 1),
            _ => {}
        },
        _ => {}
    }
}

fn at_least(ranges: &mut Ranges, coordinate: u8, n: i64) {
    if let Some(r) = ranges.get_mut(coordinate as usize) {
        r.0 = r.0.max(n.max(0) as u64);
    }
}

fn below(ranges: &mut Ranges, coordinate: u8, n: i64) {
    if let Some(r) = ranges.get_mut(coordinate as usize) {
        r.1 = r.1.min(n.max(0) as u64);
    }
}
