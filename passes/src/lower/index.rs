//! Index arithmetic of lowering: integer expressions kept short by what is known of their ranges.
//!
//! Reshapes turn coordinates into a flat index and back; most of the divisions that this gives cancel,
//! because a coordinate is smaller than its extent.

use std::collections::HashMap;
use weft_ir::plan::Scalar;
use weft_ir::scalar::Binary;
use weft_ir::shape::{Dim, Shape};

/// Extents of the coordinates of a domain: `Coord(i) < domain[i]`.
pub type Domain = [Dim];

/// Sum, with equal terms joined and the constant last, so that equal indices look equal.
pub fn add(a: Scalar, b: Scalar) -> Scalar {
    let mut all = Vec::new();
    terms(&a, 1, &mut all);
    terms(&b, 1, &mut all);
    let mut joined: Vec<(i64, Scalar)> = Vec::new();
    let mut constant = 0;
    for (c, e) in all {
        match joined.iter_mut().find(|(_, other)| *other == e) {
            _ if e == Scalar::Int(1) => constant += c,
            Some((sum, _)) => *sum += c,
            None => joined.push((c, e)),
        }
    }
    let parts = joined.into_iter().filter(|(c, _)| *c != 0).map(|(c, e)| scale(e, c));
    let constant = (constant != 0).then_some(Scalar::Int(constant));
    parts.chain(constant).reduce(|s, e| Scalar::binary(Binary::Add, s, e)).unwrap_or(Scalar::Int(0))
}

/// Product with a constant.
pub fn scale(a: Scalar, by: i64) -> Scalar {
    match (&a, by) {
        (_, 0) => Scalar::Int(0),
        (_, 1) => a,
        (Scalar::Int(x), _) => Scalar::Int(x * by),
        _ => Scalar::binary(Binary::Mul, a, Scalar::Int(by)),
    }
}

/// Largest value of a non-negative index expression, if it is known.
pub fn max_value(e: &Scalar, domain: &Domain) -> Option<i64> {
    match e {
        Scalar::Int(v) if *v >= 0 => Some(*v),
        Scalar::Coord(c) => domain.get(*c as usize)?.as_const().map(|n| n as i64 - 1),
        Scalar::Binary(op, a, b) => {
            let (x, y) = (max_value(a, domain), max_value(b, domain));
            match (op, b.as_ref()) {
                (Binary::Add, _) => x?.checked_add(y?),
                (Binary::Mul, _) => x?.checked_mul(y?),
                (Binary::Div, Scalar::Int(c)) if *c > 0 => Some(x? / c),
                (Binary::Rem, Scalar::Int(c)) if *c > 0 => Some(x.map_or(c - 1, |x| x.min(c - 1))),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Terms (coefficient, expression) of a sum; the constant is a term of `Int(1)`.
fn terms(e: &Scalar, factor: i64, out: &mut Vec<(i64, Scalar)>) {
    match e {
        Scalar::Int(v) => out.push((factor * v, Scalar::Int(1))),
        Scalar::Binary(Binary::Add, a, b) => {
            terms(a, factor, out);
            terms(b, factor, out);
        }
        Scalar::Binary(Binary::Mul, a, b) => match (a.as_ref(), b.as_ref()) {
            (_, Scalar::Int(c)) => terms(a, factor * c, out),
            (Scalar::Int(c), _) => terms(b, factor * c, out),
            _ => out.push((factor, e.clone())),
        },
        _ => out.push((factor, e.clone())),
    }
}

fn sum(parts: Vec<(i64, Scalar)>) -> Scalar {
    parts.into_iter().fold(Scalar::Int(0), |s, (c, e)| add(s, scale(e, c)))
}

/// (quotient, remainder) of an index by a positive constant.
pub fn div_rem(e: &Scalar, by: i64, domain: &Domain) -> (Scalar, Scalar) {
    if by == 1 {
        return (e.clone(), Scalar::Int(0));
    }
    let mut all = Vec::new();
    terms(e, 1, &mut all);
    // The constant is split by floor division, so that a shifted index stays non-negative in its range.
    let is_constant = |e: &Scalar| *e == Scalar::Int(1);
    let constant: i64 = all.iter().filter(|(_, e)| is_constant(e)).map(|(c, _)| c).sum();
    all.retain(|(_, e)| !is_constant(e));
    let (whole, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|(c, _)| c % by == 0);
    let quotient = sum(whole.into_iter().map(|(c, e)| (c / by, e)).collect());
    let quotient = add(quotient, Scalar::Int(constant.div_euclid(by)));
    let rest = add(sum(rest), Scalar::Int(constant.rem_euclid(by)));
    if max_value(&rest, domain).is_some_and(|m| m < by) {
        return (quotient, rest);
    }
    let more = Scalar::binary(Binary::Div, rest.clone(), Scalar::Int(by));
    (add(quotient, more), Scalar::binary(Binary::Rem, rest, Scalar::Int(by)))
}

/// Coordinates in a shape `from` at coordinates `at` of a shape `to`, both holding the same elements in
/// row-major order. Symbolic extents stand in both, in the same order, with equal constant runs between.
pub fn reshape(at: &[Scalar], to: &[Dim], from: &[Dim], domain: &Domain) -> Vec<Scalar> {
    let runs = |shape: &[Dim]| -> Vec<(usize, usize)> {
        let mut out = Vec::new();
        let mut start = 0;
        for (i, d) in shape.iter().enumerate() {
            if d.as_const().is_none() {
                out.push((start, i));
                start = i + 1;
            }
        }
        out.push((start, shape.len()));
        out
    };
    let mut result = Vec::with_capacity(from.len());
    let (to_runs, from_runs) = (runs(to), runs(from));
    for (run, (&(ts, te), &(fs, fe))) in to_runs.iter().zip(&from_runs).enumerate() {
        if run > 0 {
            result.push(at[ts - 1].clone());
        }
        if to[ts..te] == from[fs..fe] {
            result.extend_from_slice(&at[ts..te]);
            continue;
        }
        let extent = |d: &Dim| d.as_const().unwrap_or(1) as i64;
        let mut flat = Scalar::Int(0);
        for (x, d) in at[ts..te].iter().zip(&to[ts..te]) {
            flat = add(scale(flat, extent(d)), x.clone());
        }
        let mut coords = Vec::new();
        for d in from[fs..fe].iter().rev() {
            let (q, r) = div_rem(&flat, extent(d), domain);
            coords.push(if extent(d) == 1 { Scalar::Int(0) } else { r });
            flat = q;
        }
        result.extend(coords.into_iter().rev());
    }
    result
}

/// Results of [`reshape`]: layers ask for the same over and over.
#[derive(Debug, Default)]
pub struct Reshapes {
    /// By the two shapes and the domain.
    known: HashMap<[Shape; 3], Vec<Reshape>>,
}

/// Coordinates, and what they become.
#[derive(Debug)]
struct Reshape {
    at: Vec<Scalar>,
    made: Vec<Scalar>,
}

impl Reshapes {
    /// See [`reshape`].
    pub fn of(&mut self, at: &[Scalar], to: &Shape, from: &Shape, domain: &Shape) -> Vec<Scalar> {
        let known = self.known.entry([to.clone(), from.clone(), domain.clone()]).or_default();
        if let Some(reshape) = known.iter().find(|r| r.at == at) {
            return reshape.made.clone();
        }
        let made = reshape(at, to, from, domain);
        known.push(Reshape { at: at.to_vec(), made: made.clone() });
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_ir::shape::Sym;

    #[test]
    fn heads_split_and_join_without_division() {
        let (t, h, d) = (Dim::Sym(Sym::Tokens), Dim::Const(9), Dim::Const(64));
        let domain = [t, h, d];
        let coords = [Scalar::Coord(0), Scalar::Coord(1), Scalar::Coord(2)];
        let flat = reshape(&coords, &domain, &[t, Dim::Const(576)], &domain);
        let expected = add(scale(Scalar::Coord(1), 64), Scalar::Coord(2));
        assert_eq!(flat, [Scalar::Coord(0), expected]);
        let back = reshape(&flat, &[t, Dim::Const(576)], &domain, &domain);
        assert_eq!(back, coords);
    }

    #[test]
    fn divisions_stay_where_ranges_do_not_help() {
        let domain = [Dim::Const(6), Dim::Const(4)];
        let split = reshape(&[Scalar::Coord(0)], &[Dim::Const(6)], &[Dim::Const(2), Dim::Const(3)], &domain);
        assert_eq!(split[1], Scalar::binary(Binary::Rem, Scalar::Coord(0), Scalar::Int(3)));
        assert_eq!(max_value(&split[0], &domain), Some(1));
    }
}
