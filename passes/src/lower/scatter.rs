//! State writes, and concatenations that are stored part by part.

use super::emit::{Emitter, Made, finish, in_row};
use super::forms::Form;
use super::inline::Inliner;
use super::{Rule, Stop, index};
use weft_ir::graph::Op;
use weft_ir::ids::NodeId;
use weft_ir::plan::{Compute, Loop, Scalar, Store};
use weft_ir::scalar::{Binary, Compare};
use weft_ir::shape::{Dim, Shape};

impl Emitter<'_> {
    /// A state write: computed rows stored at the slots of their tokens.
    pub(super) fn scatter(&mut self, id: NodeId) -> Result<Made, Stop> {
        let node = self.graph.node(id);
        let (rows, shape) = (node.inputs[1], self.graph.ty(node.inputs[1]).shape.clone());
        let inline = self.forms.of[rows.index()] == Form::Inline;
        let extent = if inline { self.reduction_below(rows) } else { None };
        let write = self.write(id)?;
        // The domain, the reduced extent, and whether parts of the rows are stored each by itself.
        let (domain, reduced, apart) = match (extent, shape.split_last()) {
            (Some((extent, _)), Some((last, rows))) if *last == extent => {
                (rows.to_vec(), Some(extent), false)
            }
            (Some((extent, below)), _) => match self.rows_of(&shape, below) {
                Some(domain) => (domain, Some(extent), false),
                None => {
                    let domain = self.rows_of_parts(rows, extent, below).ok_or(Stop::Materialise(below))?;
                    (domain, Some(extent), true)
                }
            },
            (None, _) => (shape.clone(), None, false),
        };
        let points = domain.len();
        // Axes of one element may be left out of the domain.
        let mut next = 0u8;
        let mut at: Vec<Scalar> = shape.iter().map(|d| place(*d, &domain, &mut next)).collect();
        let mut inl = self.inliner(domain.iter().copied().chain(reduced).collect());
        inl.rows = points;
        inl.reduced = reduced;
        inl.ops.push(id);
        if !apart {
            at = in_row(&domain, reduced, &shape);
        } else if let Some(last) = at.last_mut() {
            *last = Scalar::Coord(points as u8);
        }
        let slot = inl.value(node.inputs[2], &at[..1])?;
        let mut element_stores = match apart {
            true => parts(&mut inl, rows, &at)?,
            false => vec![Store { output: 0, index: at.clone(), value: inl.value(rows, &at)?, guard: None }],
        };
        for s in &mut element_stores {
            let used = Scalar::Compare(Compare::Le, Box::new(Scalar::Int(0)), Box::new(slot.clone()));
            s.guard = Some(match s.guard.take() {
                Some(inside) => Scalar::binary(Binary::And, used, inside),
                None => used,
            });
            s.index[0] = slot.clone();
        }
        let stages = std::mem::take(&mut inl.stages);
        let (reads, ops) = finish(inl);
        let mut rules = if self.is_group(&ops) { vec![Rule::PointwiseGroup] } else { vec![] };
        if !stages.is_empty() {
            rules.push(Rule::RowReduction);
        }
        let compute = Compute::Loop(Loop { domain, reduced, stages, element_stores, row_stores: vec![] });
        Ok(Made { compute, reads, writes: vec![write], ops, rules, scope: node.scope.clone() })
    }

    /// The rows of a loop along `extent` that stores a concatenation part by part: those of the reduction `below`,
    /// where the rows are the same but for axes of one element.
    fn rows_of_parts(&self, rows: NodeId, extent: Dim, below: NodeId) -> Option<Shape> {
        let node = self.graph.node(rows);
        let longest = extent.as_const()?;
        let last = node.ty.shape.len().checked_sub(1)?;
        let fits = |x: &NodeId| {
            let n = self.graph.ty(*x).shape.get(last).and_then(|d| d.as_const());
            n.is_some_and(|n| n <= longest)
        };
        let parted = matches!(node.op, Op::Concat { axis } if axis == last) && node.inputs.iter().all(fits);
        let (_, domain) = self.graph.ty(self.graph.node(below).inputs[0]).shape.split_last()?;
        let whole =
            |shape: &[Dim]| -> Shape { shape.iter().copied().filter(|d| *d != Dim::Const(1)).collect() };
        let same = domain.iter().all(|d| *d != Dim::Const(1)) && whole(&node.ty.shape[..last]) == domain;
        (parted && same).then(|| domain.to_vec())
    }
}

/// Coordinate of an axis: the domain's next, or 0 where the axis has one element.
fn place(d: Dim, domain: &Shape, next: &mut u8) -> Scalar {
    if d == Dim::Const(1) || usize::from(*next) >= domain.len() {
        return Scalar::Int(0);
    }
    *next += 1;
    Scalar::Coord(*next - 1)
}

/// Stores of a concatenation along the last axis, part by part: at the coordinates of a part that begins at 0, where
/// the part has such an element. The last coordinate runs over the longest part.
pub(super) fn parts(inl: &mut Inliner<'_>, id: NodeId, at: &[Scalar]) -> Result<Vec<Store>, Stop> {
    let (graph, last) = (inl.graph, at.len().saturating_sub(1));
    let node = graph.node(id);
    let length = |x: &NodeId| graph.ty(*x).shape.get(last).and_then(|d| d.as_const()).unwrap_or(0) as i64;
    let longest = node.inputs.iter().map(length).max().unwrap_or(0);
    inl.ops.push(id);
    let (mut stores, mut start) = (Vec::new(), 0);
    for x in &node.inputs {
        let n = length(x);
        let mut index = at.to_vec();
        index[last] = index::add(at[last].clone(), Scalar::Int(start));
        let inside = || Scalar::Compare(Compare::Lt, Box::new(at[last].clone()), Box::new(Scalar::Int(n)));
        let guard = (n < longest).then(inside);
        stores.push(Store { output: 0, index, value: inl.value(*x, at)?, guard });
        start += n;
    }
    Ok(stores)
}
