//! Epilogues: what a linear layer's accumulators become before anything is stored.
//!
//! Starting at the product, values are followed forward: each is known at some coordinates as a function
//! of the point of the product that makes it. A point has `group` accumulators, neighbouring columns, so
//! that gate and up, or the two elements that a rotation mixes, meet at one point. Slices keep part of the
//! points, concatenations join several, a state write ends the way. A value that is needed in memory
//! anyway is a border: what follows it loads it.

use super::draw::{self, DrawChain};
use super::index::{self, Reshapes};
use super::row_region::{self, RowChain};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use weft_ir::graph::{Graph, Op};
use weft_ir::ids::NodeId;
use weft_ir::plan::Scalar;
use weft_ir::scalar::Binary;
use weft_ir::shape::{Dim, Shape};

/// Elements of a value that points `from..to` know.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// Coordinates in the value, in terms of Coord 0 = m and Coord 1 = point.
    pub at: Vec<Scalar>,
    /// First point.
    pub from: i64,
    /// Last point + 1.
    pub to: i64,
    /// Where it comes from.
    pub origin: Origin,
}

/// How a value's elements are made from others of the region.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Origin {
    /// The product's accumulator of this number.
    Accumulator(u8),
    /// The same element, moved: of this value, at this position of its list.
    Moved(NodeId, usize),
    /// Computed from the inputs' elements at the same position of their lists.
    Computed,
}

/// The epilogue of one linear layer.
#[derive(Clone, Debug)]
pub struct Region {
    /// The product.
    pub product: NodeId,
    /// Accumulators of a point.
    pub group: usize,
    /// What is known of each value inside, the product first.
    pub known: BTreeMap<NodeId, Vec<Known>>,
    /// What follows over whole rows.
    pub row: Option<RowChain>,
    /// The sampling that takes its rows; its tokens are the last output.
    pub draw: Option<DrawChain>,
    /// Values that are stored, in order.
    pub outputs: Vec<NodeId>,
}

impl Region {
    /// All values inside.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        let row = self.row.iter().flat_map(|r| &r.inside);
        self.known.keys().chain(row).copied().chain(self.draw.iter().flat_map(DrawChain::nodes))
    }

    /// Whether a value has the product's own elements, each known at the product's own coordinates.
    pub fn is_whole(&self, graph: &Graph, id: NodeId) -> bool {
        let row = &graph.ty(self.product).shape;
        let Some([Known { at, from: 0, to, .. }]) = self.known.get(&id).map(Vec::as_slice) else {
            return false;
        };
        let own = at[..] == [Scalar::Coord(0), Scalar::Coord(1)];
        own && graph.ty(id).shape == *row && row.get(1).and_then(|d| d.as_const()) == Some(*to as usize)
    }

    /// Number of values that need no memory.
    fn saved(&self) -> usize {
        self.nodes().count() - self.outputs.len()
    }
}

/// What a region may not take.
pub struct Limits<'a> {
    /// Uses of each node.
    pub users: &'a [Vec<NodeId>],
    /// Values that must be in memory.
    pub kept: &'a HashSet<NodeId>,
    /// Of these, values that nothing may be computed with before they are.
    pub forced: &'a HashSet<NodeId>,
    /// Nodes that belong to other works.
    pub taken: &'a HashSet<NodeId>,
    /// Whether a block makes whole rows of this product.
    pub rows: bool,
    /// Whether a product may sample from the rows that it makes.
    pub draws: bool,
}

/// The largest epilogue of a product.
pub fn find(graph: &Graph, product: NodeId, limits: &Limits<'_>, reshapes: &mut Reshapes) -> Region {
    let mut single = with_group(graph, product, 1, limits, reshapes);
    if limits.rows {
        row_region::extend(graph, &mut single, limits);
    }
    let even = graph.ty(product).shape.get(1).and_then(|d| d.as_const()).is_some_and(|n| n % 2 == 0);
    let double = even.then(|| with_group(graph, product, 2, limits, reshapes));
    let mut region = match double {
        Some(double) if double.saved() > single.saved() => double,
        _ => single,
    };
    if limits.draws {
        draw::extend(graph, &mut region, limits);
    }
    region
}

fn with_group(
    graph: &Graph,
    product: NodeId,
    group: usize,
    limits: &Limits<'_>,
    reshapes: &mut Reshapes,
) -> Region {
    let columns = graph.ty(product).shape[1].as_const().unwrap_or(0);
    let points = (columns / group) as i64;
    let domain: Shape = vec![graph.ty(product).shape[0], Dim::Const(points as usize)];
    let first = (0..group)
        .map(|c| {
            let column = index::add(index::scale(Scalar::Coord(1), group as i64), Scalar::Int(c as i64));
            Known {
                at: vec![Scalar::Coord(0), column],
                from: 0,
                to: points,
                origin: Origin::Accumulator(c as u8),
            }
        })
        .collect();
    let mut known = BTreeMap::from([(product, first)]);
    // Nodes are in topological order, so the next one has its inputs behind it.
    let mut next: BTreeSet<NodeId> = limits.users[product.index()].iter().copied().collect();
    while let Some(id) = next.pop_first() {
        if limits.taken.contains(&id) {
            continue;
        }
        if let Some(k) = follow(graph, id, &known, (product, &domain), reshapes) {
            known.insert(id, k);
            next.extend(&limits.users[id.index()]);
        }
    }
    let mut region = Region { product, group, known, row: None, draw: None, outputs: Vec::new() };
    prune(graph, &mut region, limits);
    region
}

/// What is known of a node, from what is known of its inputs.
fn follow(
    graph: &Graph,
    id: NodeId,
    known: &BTreeMap<NodeId, Vec<Known>>,
    (product, domain): (NodeId, &Shape),
    reshapes: &mut Reshapes,
) -> Option<Vec<Known>> {
    let node = graph.node(id);
    let of = |i: usize| known.get(&node.inputs[i]);
    // What comes from elsewhere must not wait for the product.
    let outside = |x: &NodeId| !known.contains_key(x) && *x > product && graph.depends(*x, product);
    if node.inputs.iter().any(outside) {
        return None;
    }
    let map = |f: &mut dyn FnMut(&Known) -> Option<Option<Known>>| -> Option<Vec<Known>> {
        let mut some = Vec::new();
        for (i, k) in of(0)?.iter().enumerate() {
            some.extend(f(k)?.map(|k| Known { origin: Origin::Moved(node.inputs[0], i), ..k }));
        }
        (!some.is_empty()).then_some(some)
    };
    let moved = |k: &Known, at: Vec<Scalar>| Some(Some(Known { at, ..k.clone() }));
    match &node.op {
        Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select | Op::Cast(_) => {
            let mut inside = node.inputs.iter().filter_map(|x| known.get(x));
            let first = inside.next()?;
            let same = |a: &[Known], b: &[Known]| {
                a.len() == b.len()
                    && a.iter().zip(b).all(|(x, y)| x.at == y.at && x.from == y.from && x.to == y.to)
            };
            let computed = |k: &Known| Known { origin: Origin::Computed, ..k.clone() };
            inside.all(|other| same(first, other)).then(|| first.iter().map(computed).collect())
        }
        Op::Reshape(to) => {
            let from = &graph.ty(node.inputs[0]).shape;
            map(&mut |k| moved(k, reshapes.of(&k.at, from, to, domain)))
        }
        Op::Transpose(perm) => map(&mut |k| moved(k, perm.iter().map(|&p| k.at[p].clone()).collect())),
        Op::Slice { axis, start, len } => map(&mut |k| slice(k, *axis, *start as i64, *len as i64)),
        Op::Concat { axis } => {
            let mut all = Vec::new();
            let mut start = 0;
            for x in &node.inputs {
                for (i, k) in known.get(x)?.iter().enumerate() {
                    let mut at = k.at.clone();
                    at[*axis] = index::add(at[*axis].clone(), Scalar::Int(start));
                    all.push(Known { at, origin: Origin::Moved(*x, i), ..k.clone() });
                }
                start += graph.ty(*x).shape[*axis].as_const()? as i64;
            }
            Some(all)
        }
        Op::Scatter if known.contains_key(&node.inputs[1]) && !known.contains_key(&node.inputs[0]) => {
            // One write of a state in a work: what reads the version between two writes has no place else.
            if !matches!(graph.node(node.inputs[0]).op, Op::State { .. }) {
                return None;
            }
            let rows = of(1)?;
            let moved =
                |(i, k): (usize, &Known)| Known { origin: Origin::Moved(node.inputs[1], i), ..k.clone() };
            let in_rows = rows.iter().all(|k| k.at[0] == Scalar::Coord(0));
            in_rows.then(|| rows.iter().enumerate().map(moved).collect())
        }
        Op::Scatter
        | Op::Input(_)
        | Op::Weight { .. }
        | Op::Constant { .. }
        | Op::Iota { .. }
        | Op::State { .. }
        | Op::Decode
        | Op::Broadcast(_)
        | Op::Reduce(_)
        | Op::Softmax
        | Op::TopK { .. }
        | Op::RoutedMatMul { .. }
        | Op::MatMul { .. }
        | Op::Gather
        | Op::Penalize
        | Op::Sample => None,
    }
}

/// The part of known elements that a slice keeps: `None` when the border cannot be told, `Some(None)` when
/// it keeps none.
fn slice(k: &Known, axis: usize, start: i64, len: i64) -> Option<Option<Known>> {
    let e = &k.at[axis];
    let (low, high) = range(e, k.from, k.to)?;
    let end = start + len;
    let mut kept = k.clone();
    if high < start || low >= end {
        return Some(None);
    }
    if low < start || high >= end {
        // e = factor · point + offset: the points inside are an interval.
        let (factor, offset) = affine(e)?;
        if factor <= 0 {
            return None;
        }
        let ceil = |x: i64| x.div_euclid(factor) + i64::from(x.rem_euclid(factor) != 0);
        kept.from = k.from.max(ceil(start - offset));
        kept.to = k.to.min(ceil(end - offset));
        if kept.from >= kept.to {
            return Some(None);
        }
    }
    kept.at[axis] = index::add(e.clone(), Scalar::Int(-start));
    Some(Some(kept))
}

/// (factor, offset) of an expression factor · Coord 1 + offset.
fn affine(e: &Scalar) -> Option<(i64, i64)> {
    match e {
        Scalar::Coord(1) => Some((1, 0)),
        Scalar::Int(v) => Some((0, *v)),
        Scalar::Binary(Binary::Add, a, b) => {
            let ((f, o), (g, p)) = (affine(a)?, affine(b)?);
            Some((f + g, o + p))
        }
        Scalar::Binary(Binary::Mul, a, b) => match (affine(a)?, affine(b)?) {
            ((f, o), (0, c)) | ((0, c), (f, o)) => Some((f * c, o * c)),
            _ => None,
        },
        _ => None,
    }
}

/// Least and largest value of an index expression of the point, for points `from..to`.
fn range(e: &Scalar, from: i64, to: i64) -> Option<(i64, i64)> {
    match e {
        Scalar::Int(v) => Some((*v, *v)),
        Scalar::Coord(1) => Some((from, to - 1)),
        Scalar::Binary(op, a, b) => {
            let ((al, ah), (bl, bh)) = (range(a, from, to)?, range(b, from, to)?);
            match op {
                Binary::Add => Some((al + bl, ah + bh)),
                Binary::Mul if al >= 0 && bl >= 0 => Some((al * bl, ah * bh)),
                Binary::Mul if bl == bh && bl >= 0 => Some((al * bl, ah * bl)),
                Binary::Div if bl == bh && bl > 0 && al >= 0 => Some((al / bl, ah / bl)),
                Binary::Rem if bl == bh && bl > 0 && al >= 0 => {
                    let whole = al / bl == ah / bl;
                    Some(if whole { (al % bl, ah % bl) } else { (0, bl - 1) })
                }
                _ => None,
            }
        }
        _ => None,
    }
}

/// Makes values with users elsewhere borders, and drops what would follow them.
fn prune(graph: &Graph, region: &mut Region, limits: &Limits<'_>) {
    // What sums squares makes them itself, of the value that is stored.
    let squares: Vec<NodeId> =
        region.known.keys().copied().filter(|id| is_square(graph, limits, *id)).collect();
    for id in squares {
        remove(region, limits.users, id);
    }
    loop {
        let mut border = None;
        let mut outputs = Vec::new();
        for &id in region.known.keys() {
            let users = &limits.users[id.index()];
            let inside = |u: &NodeId| region.known.contains_key(u);
            let stored = limits.kept.contains(&id) || users.is_empty() || !users.iter().all(inside);
            if stored && users.iter().any(inside) {
                border = Some(id);
                break;
            }
            if stored {
                outputs.push(id);
            }
        }
        let Some(border) = border else {
            // Every element of a stored value has its point; a state is written in part.
            let partial = outputs.iter().copied().find(|&o| !covers(graph, region, o));
            match partial {
                Some(o) if o != region.product => remove(region, limits.users, o),
                _ => {
                    region.outputs = outputs;
                    return;
                }
            }
            continue;
        };
        let following: Vec<NodeId> =
            limits.users[border.index()].iter().copied().filter(|u| region.known.contains_key(u)).collect();
        for u in following {
            remove(region, limits.users, u);
        }
    }
}

/// Whether a value is the square of another, and only reductions, which no region takes, use it.
fn is_square(graph: &Graph, limits: &Limits<'_>, id: NodeId) -> bool {
    let node = graph.node(id);
    let reduced = |u: &NodeId| matches!(graph.node(*u).op, Op::Reduce(_));
    let squared = matches!(node.op, Op::Binary(Binary::Mul)) && node.inputs[0] == node.inputs[1];
    squared && !limits.kept.contains(&id) && limits.users[id.index()].iter().all(reduced)
}

fn remove(region: &mut Region, users: &[Vec<NodeId>], id: NodeId) {
    if region.known.remove(&id).is_some() {
        for u in &users[id.index()] {
            remove(region, users, *u);
        }
    }
}

/// Whether the points make every element of a row of a value.
fn covers(graph: &Graph, region: &Region, id: NodeId) -> bool {
    let node = graph.node(id);
    let value = if matches!(node.op, Op::Scatter) { node.inputs[1] } else { id };
    let wanted: usize = graph.ty(value).shape.iter().skip(1).filter_map(|d| d.as_const()).product();
    let made: i64 = region.known[&id].iter().map(|k| k.to - k.from).sum();
    made == wanted as i64
}
