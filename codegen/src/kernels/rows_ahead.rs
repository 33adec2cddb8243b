//! What rows are made of behind a reduction (a norm's weights, a rotation's cosines and sines): its rows
//! are asked for before, and come to L2 while the kernel waits and reduces. Weights of other layers pushed them out.

use super::{Body, Point};
use weft_ir::ids::OperandId;
use weft_ir::kernel::{Expr, Stmt};
use weft_ir::plan::{Loop, Scalar};
use weft_ir::shape::Dim;

/// Most bytes of a row that are asked for.
const MOST: usize = 4096;

/// Rows of arrays that the stores read and the reductions do not.
pub(super) struct Ahead {
    rows: Vec<(OperandId, Vec<Scalar>)>,
}

impl Ahead {
    /// The rows that lie at one place for all elements of a token, in whole 16-byte pieces. None where the kernel does
    /// not wait itself: it would start no earlier.
    pub fn find(b: &Body<'_>, l: &Loop) -> Ahead {
        let (stages, stores) = (l.stages.iter().map(|s| &s.value), l.element_stores.iter().map(|s| &s.value));
        match l.domain.first() {
            Some(first) => Ahead::of(b, stages, stores, *first),
            None => Ahead { rows: Vec::new() },
        }
    }

    /// The same of any reductions and values behind them; `first` is the extent of their first coordinate.
    pub fn of<'e>(
        b: &Body<'_>,
        stages: impl Iterator<Item = &'e Scalar>,
        values: impl Iterator<Item = &'e Scalar>,
        first: Dim,
    ) -> Ahead {
        let mut rows: Vec<(OperandId, Vec<Scalar>)> = Vec::new();
        if !b.spec.programmatic {
            return Ahead { rows };
        }
        let mut reduced = Vec::new();
        stages.for_each(|value| {
            value.visit(&mut |s| {
                if let Scalar::Load(o, _) = s {
                    reduced.push(*o);
                }
            });
        });
        values.for_each(|value| {
            value.visit(&mut |s| {
                let Scalar::Load(o, index) = s else { return };
                let Some((_, leading)) = index.split_last() else { return };
                let row = (*o, leading.to_vec());
                if !reduced.contains(o) && !rows.contains(&row) && whole(b, first, *o, leading) {
                    rows.push(row);
                }
            });
        });
        Ahead { rows }
    }

    /// Asks for the rows that are constant, or for the others, or for all; one thread does.
    pub fn bring(
        &self,
        b: &mut Body<'_>,
        (member, point): (&Expr, &Point),
        constant: Option<bool>,
    ) -> Result<(), String> {
        let of = |o: &OperandId| constant.is_none_or(|c| b.work.reads[o.index()].constant == c);
        let rows: Vec<_> = self.rows.iter().filter(|(o, _)| of(o)).collect();
        if rows.is_empty() {
            return Ok(());
        }
        b.k.comment(match constant {
            Some(true) | None => "What is read behind the reduction comes to L2 meanwhile.",
            Some(false) => "So does what earlier kernels wrote.",
        });
        b.if_then(member.clone().eq_(Expr::int(0)), |b| {
            for (o, leading) in rows {
                let at: Result<Vec<Expr>, String> = leading.iter().map(|s| b.lower(s, point)).collect();
                let mut at = at?;
                at.push(Expr::int(0));
                let shape = b.work.reads[o.index()].shape.clone();
                let index = b.flat(&shape, &at);
                let elements = shape.last().and_then(|d| d.as_const()).unwrap_or(0) as u32;
                b.k.push(Stmt::PrefetchL2 { mem: b.reads[o.index()], index, elements });
            }
            Ok(())
        })
    }
}

/// Whether a row is there for every token: it is the first or the token's own along each axis.
fn whole(b: &Body<'_>, first: Dim, o: OperandId, leading: &[Scalar]) -> bool {
    let operand = &b.work.reads[o.index()];
    let bytes = operand.shape.last().and_then(|d| d.as_const()).unwrap_or(0) * operand.dtype.size();
    let place = |(s, d): (&Scalar, &Dim)| match s {
        Scalar::Coord(0) => first == *d,
        s => *s == Scalar::Int(0),
    };
    (16..=MOST).contains(&bytes) && bytes.is_multiple_of(16) && leading.iter().zip(&operand.shape).all(place)
}
