//! A row that a warp makes of loads and reductions along it: lane l has the elements l, l + 32, …

use super::ahead::certain_loads;
use super::warp::{combine, neutral, shuffle_reduce};
use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::kernel::Expr;
use weft_ir::plan::{MadeRow, Scalar};
use weft_ir::scalar::{Binary, Compare};

/// Lanes of a warp, which take neighbouring elements.
const LANES: usize = 32;

/// An element of a row that a lane has.
struct Element {
    point: Point,
    stages: Vec<Scalar>,
    value: Scalar,
    /// Whether it is one, where lanes are more than elements are left.
    inside: Option<Expr>,
}

/// Makes the row of `length` elements at a token and head, and puts each: its number along the row, and its value. All
/// reads are on their way before the first reduction.
pub(super) fn make(
    b: &mut Body<'_>,
    row: &MadeRow,
    length: usize,
    (lane, at): (&Expr, &[Expr]),
    put: &mut dyn FnMut(&mut Body<'_>, Expr, Expr) -> Result<(), String>,
) -> Result<(), String> {
    let elements = read(b, row, length, (lane, at))?;
    let mut reduced: Vec<Expr> = Vec::new();
    let at = |e: &Element, reduced: &[Expr]| Point { reduced: reduced.to_vec(), ..e.point.clone() };
    for (i, stage) in row.stages.iter().enumerate() {
        let sum = b.k.let_mut("reduced", DType::F32, neutral(stage.op));
        for e in &elements {
            let value = b.lower(&e.stages[i], &at(e, &reduced))?;
            let value = match &e.inside {
                Some(inside) => inside.clone().select(value, neutral(stage.op)),
                None => value,
            };
            b.k.assign(sum, combine(stage.op, sum.into(), value));
        }
        shuffle_reduce(b, sum, stage.op, 1, LANES as i64);
        reduced.push(sum.into());
    }
    for e in &elements {
        let point = at(e, &reduced);
        let c = e.point.coords.last().cloned().unwrap_or(Expr::int(0));
        let element = |b: &mut Body<'_>| {
            let value = b.lower(&e.value, &point)?;
            put(b, c, value)
        };
        match &e.inside {
            Some(inside) => b.if_then(inside.clone(), element)?,
            None => element(b)?,
        }
    }
    Ok(())
}

/// Reads what a lane's elements are made of; what several of them need is read once.
fn read(
    b: &mut Body<'_>,
    row: &MadeRow,
    length: usize,
    (lane, at): (&Expr, &[Expr]),
) -> Result<Vec<Element>, String> {
    let mut elements = Vec::new();
    let mut known: Vec<(Scalar, Expr)> = Vec::new();
    for first in (0..length).step_by(LANES) {
        let last = (first + LANES).min(length) - 1;
        let inside = (first + LANES > length).then(|| {
            let inside = lane.clone().lt(Expr::int((length - first) as i64));
            b.k.let_("inside", DType::Bool, inside)
        });
        let c = lane.clone() + first as i64;
        // Lanes past the end repeat the last element.
        let c = if inside.is_some() { c.min(Expr::int(last as i64)) } else { c };
        let of = |e: &Scalar| resolved(e, first as i64, last as i64);
        let stages: Vec<Scalar> = row.stages.iter().map(|s| of(&s.value)).collect();
        let value = of(&row.value);
        let mut wanted = Vec::new();
        stages.iter().chain([&value]).for_each(|e| certain_loads(e, &mut wanted));
        let mut point = Point::at(at.iter().cloned().chain([c]).collect());
        for load in wanted {
            // Not where lanes repeat an element.
            let place = of_lane(&load, first as i64);
            let same = known.iter().find(|(x, _)| inside.is_none() && *x == place);
            let read = match same {
                Some((_, read)) => read.clone(),
                None => {
                    let dtype = if b.is_float(&load) { DType::F32 } else { DType::I32 };
                    let read = b.lower(&load, &Point::at(point.coords.clone()))?;
                    b.k.let_("read", dtype, read)
                }
            };
            if inside.is_none() && same.is_none() {
                known.push((place, read.clone()));
            }
            point.loaded.push((load, read));
        }
        elements.push(Element { point, stages, value, inside });
    }
    Ok(elements)
}

/// A load of the element `first` + lane, Coord 2, in terms of the lane: equal ones are the same element in every lane.
fn of_lane(e: &Scalar, first: i64) -> Scalar {
    let plus = |by: i64| Scalar::binary(Binary::Add, Scalar::Coord(2), Scalar::Int(by));
    match e {
        Scalar::Coord(2) => plus(first),
        Scalar::Binary(Binary::Add, a, b) => {
            let (a, b) = (of_lane(a, first), of_lane(b, first));
            let sum = match (&a, &b) {
                (Scalar::Binary(Binary::Add, lane, x), Scalar::Int(y)) if **lane == Scalar::Coord(2) => {
                    match **x {
                        Scalar::Int(x) => x.checked_add(*y),
                        _ => None,
                    }
                }
                _ => None,
            };
            sum.map_or_else(|| Scalar::binary(Binary::Add, a, b), plus)
        }
        other => other.map_children(&mut |part| of_lane(part, first)),
    }
}

/// An expression of elements `first ..= last` alone (Coord 2): choices between their number and a constant that fall out
/// alike for all of them are made, so that their loads are certain.
fn resolved(e: &Scalar, first: i64, last: i64) -> Scalar {
    let all = |c: &Scalar| {
        let Scalar::Compare(op, a, b) = c else { return None };
        let range = |e: &Scalar| match e {
            Scalar::Coord(2) => Some((first, last)),
            Scalar::Int(v) => Some((*v, *v)),
            _ => None,
        };
        let ((low, high), (other_low, other_high)) = (range(a)?, range(b)?);
        match op {
            Compare::Lt if high < other_low => Some(true),
            Compare::Lt if low >= other_high => Some(false),
            Compare::Le if high <= other_low => Some(true),
            Compare::Le if low > other_high => Some(false),
            Compare::Lt | Compare::Le | Compare::Eq => None,
        }
    };
    match e {
        Scalar::Select(c, a, b) => match all(c) {
            Some(true) => resolved(a, first, last),
            Some(false) => resolved(b, first, last),
            None => e.map_children(&mut |part| resolved(part, first, last)),
        },
        _ => e.map_children(&mut |part| resolved(part, first, last)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_ir::ids::OperandId;

    /// Elements l + 64 and (l + 32) + 32 are one, l + 96 − 64 and l + 32, too; l and l + 32 are not.
    #[test]
    fn what_two_elements_read_is_one() {
        let load = |by: i64| {
            let at = Scalar::binary(Binary::Add, Scalar::Coord(2), Scalar::Int(by));
            Scalar::Load(OperandId::new(0), vec![Scalar::Coord(0), at])
        };
        assert_eq!(of_lane(&load(64), 0), of_lane(&load(32), 32));
        assert_eq!(of_lane(&load(-64), 96), of_lane(&load(0), 32));
        assert_ne!(of_lane(&load(0), 0), of_lane(&load(0), 32));
        // An element that all lanes read is not that of the first.
        let all = Scalar::Load(OperandId::new(0), vec![Scalar::Coord(0), Scalar::Int(32)]);
        assert_ne!(of_lane(&all, 32), of_lane(&load(0), 32));
        assert_ne!(of_lane(&all, 0), of_lane(&load(32), 0));
        assert_ne!(of_lane(&load(i64::MAX), 32), of_lane(&load(0), 0));
    }

    /// `Coord 2 < 32 ? a : b` of the elements below 32, from 32 on, and on both sides.
    #[test]
    fn choices_that_fall_out_alike_are_made() {
        let choice = |op| {
            let c = Scalar::Compare(op, Box::new(Scalar::Coord(2)), Box::new(Scalar::Int(32)));
            Scalar::Select(Box::new(c), Box::new(Scalar::Float(1.0)), Box::new(Scalar::Float(2.0)))
        };
        let lt = choice(Compare::Lt);
        assert_eq!(resolved(&lt, 0, 31), Scalar::Float(1.0));
        assert_eq!(resolved(&lt, 32, 63), Scalar::Float(2.0));
        assert_eq!(resolved(&lt, 31, 32), lt);
        let le = choice(Compare::Le);
        assert_eq!(resolved(&le, 1, 32), Scalar::Float(1.0));
        assert_eq!(resolved(&le, 32, 33), le);
        assert_eq!(resolved(&le, 33, 33), Scalar::Float(2.0));
        assert_eq!(resolved(&choice(Compare::Eq), 32, 32), choice(Compare::Eq));
    }
}
