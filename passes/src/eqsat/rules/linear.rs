//! Linear layers: merging those that share an input, and pairing rows that an epilogue combines.

use super::{Rule, var};
use crate::eqsat::analysis::Block;
use crate::eqsat::build::{
    dtype, extents, find, linear, op, reshape, reshape_const, shape, slice, transpose,
};
use crate::eqsat::language::Kind;
use crate::numerics::Numerics;
use egg::{Id, Subst};
use std::collections::BTreeSet;
use weft_ir::graph::Op;
use weft_ir::scalar::Binary;
use weft_ir::shape::Dim;

/// Several linear layers of one input are one, whose weight is theirs joined: QKV, gate and up.
pub const MERGE_SHARED_INPUT: Rule = Rule {
    name: "merge-linears",
    numerics: Numerics::Exact,
    needs: &[],
    summary: "x·Aᵀ, x·Bᵀ, … → slices of x·[A; B; …]ᵀ",
    patterns: &["(matmul.t ?x ?w)"],
    apply: merge,
};

/// The rows of a head that rotary positions combine, i and i + r/2 of r rotated ones, become neighbours.
pub const PAIR_ROTARY_HALVES: Rule = Rule {
    name: "pair-rotary-halves",
    numerics: Numerics::Exact,
    needs: &[],
    summary: "[t, heads, d] of x·Wᵀ (+ b), its first r used by halves → the same of x·W'ᵀ, rows i and i + r/2 of a \
              head adjacent",
    patterns: &["(reshape ?y)"],
    apply: pair_halves,
};

/// The rows of gate and up that a gated activation combines become neighbours.
pub const PAIR_GATED: Rule = Rule {
    name: "pair-gate-up",
    numerics: Numerics::Exact,
    needs: &["merge-linears"],
    summary: "f(x·Aᵀ)·g(x·Bᵀ) → the same of columns of x·[A₀; B₀; A₁; B₁; …]ᵀ",
    patterns: &["(mul ?a ?b)"],
    apply: pair_gated,
};

/// Linear layers of an input that no rule has replaced yet: (class, weight), by class.
fn linears_of(g: &Block, x: Id) -> Vec<(Id, Id)> {
    let x = g.find(x);
    let routers = router_logits(g);
    let mut found: Vec<(Id, Id)> = Vec::new();
    for class in g.classes() {
        let own = class.nodes.iter().find_map(|n| match n.as_op()? {
            Op::MatMul { transpose_b: true, .. } if g.find(n.children[0]) == x => Some(n.children[1]),
            _ => None,
        });
        let replaced =
            class.nodes.iter().any(|n| matches!(n.as_op(), Some(Op::Reshape(_) | Op::Slice { .. })));
        if let (Some(w), false) = (own, replaced)
            && g[w].data.load
            && class.data.ty.shape.len() == 2
            && !routers.contains(&class.id)
        {
            found.push((class.id, w));
        }
    }
    // In the order of the checkpoint's weights: q, k, v; gate, up.
    found.sort_by_key(|(class, w)| (first_leaf(g, *w), *class));
    found
}

/// Products that a choice of the largest is made from: a router's kernel computes them itself.
fn router_logits(g: &Block) -> BTreeSet<Id> {
    let mut todo: Vec<Id> = Vec::new();
    for n in g.classes().flat_map(|c| &c.nodes) {
        if let Some(Op::TopK { .. }) = n.as_op() {
            todo.extend(n.children.iter().map(|c| g.find(*c)));
        }
    }
    let (mut seen, mut found) = (BTreeSet::new(), BTreeSet::new());
    while let Some(id) = todo.pop() {
        if !seen.insert(id) {
            continue;
        }
        for n in &g[id].nodes {
            match n.as_op() {
                Some(Op::MatMul { .. }) => {
                    found.insert(id);
                }
                // A choice of groups comes before that of experts.
                Some(
                    Op::Unary(_)
                    | Op::Binary(_)
                    | Op::Softmax
                    | Op::Cast(_)
                    | Op::Reshape(_)
                    | Op::Select
                    | Op::Broadcast(_)
                    | Op::Slice { .. },
                ) => todo.extend(n.children.iter().map(|c| g.find(*c))),
                _ => {}
            }
        }
    }
    found
}

/// Smallest leaf that a load-time value is made from. A class may be made from itself (a permutation and back), so each
/// is looked at once.
fn first_leaf(g: &Block, id: Id) -> u32 {
    let (mut seen, mut open, mut first) = (BTreeSet::new(), vec![id], u32::MAX);
    while let Some(id) = open.pop() {
        if !seen.insert(g.find(id)) {
            continue;
        }
        for n in &g[id].nodes {
            match &n.kind {
                Kind::Leaf { index, .. } => first = first.min(*index),
                Kind::Op(_) | Kind::Any => open.extend(&n.children),
            }
        }
    }
    first
}

fn merge(g: &mut Block, class: Id, subst: &Subst) -> Option<Vec<(Id, Id)>> {
    let x = var(subst, "?x")?;
    let out = dtype(g, class);
    let mut parts = linears_of(g, x);
    parts.retain(|(c, _)| dtype(g, *c) == out);
    if parts.len() < 2 {
        return None;
    }
    let rows: Option<Vec<usize>> = parts.iter().map(|(_, w)| Some(extents(g, *w)?[0])).collect();
    let rows = rows?;
    let mut weights: Vec<Id> = parts.iter().map(|(_, w)| *w).collect();
    // Epilogues that take columns by twos need an even number of them: the last row once more, which nothing reads.
    if let (Some(&w), Some(&n), 1) = (weights.last(), rows.last(), rows.iter().sum::<usize>() % 2) {
        weights.push(slice(g, w, 0, n - 1, 1));
    }
    let merged = op(g, Op::Concat { axis: 0 }, &weights);
    let y = linear(g, x, merged, out);
    let mut start = 0;
    let mut equal = Vec::new();
    for ((class, _), len) in parts.into_iter().zip(rows) {
        equal.push((class, op(g, Op::Slice { axis: 1, start, len }, &[y])));
        start += len;
    }
    Some(equal)
}

fn pair_halves(g: &mut Block, class: Id, subst: &Subst) -> Option<Vec<(Id, Id)>> {
    let [t, Dim::Const(heads), Dim::Const(d)] = shape(g, class)[..] else { return None };
    let half = rotary_half(g, class)?;
    let (y, x, w) = projection(g, var(subst, "?y")?)?;
    let &[n, k] = &extents(g, w)?[..] else { return None };
    if n != heads * d {
        return None;
    }
    // Pairs of all heads first, then what is not rotated.
    let (turned, kept) = (2 * half, d - 2 * half);
    let by_head = reshape_const(g, w, &[heads, d, k]);
    let pairs = slice(g, by_head, 1, 0, turned);
    let pairs = reshape_const(g, pairs, &[heads, 2, half, k]);
    let pairs = transpose(g, pairs, &[0, 2, 1, 3]);
    let mut paired = reshape_const(g, pairs, &[heads * turned, k]);
    if kept > 0 {
        let rest = slice(g, by_head, 1, turned, kept);
        let rest = reshape_const(g, rest, &[heads * kept, k]);
        paired = op(g, Op::Concat { axis: 0 }, &[paired, rest]);
    }
    let out = dtype(g, y);
    let z = linear(g, x, paired, out);
    let of = |n: &[usize]| std::iter::once(t).chain(n.iter().map(|&n| Dim::Const(n))).collect();
    let pairs = slice(g, z, 1, 0, heads * turned);
    let pairs = reshape(g, pairs, of(&[heads, half, 2]));
    let pairs = transpose(g, pairs, &[0, 1, 3, 2]);
    let mut halves = reshape(g, pairs, of(&[heads, turned]));
    if kept > 0 {
        let rest = slice(g, z, 1, heads * turned, n - heads * turned);
        let rest = reshape(g, rest, of(&[heads, kept]));
        halves = op(g, Op::Concat { axis: 2 }, &[halves, rest]);
    }
    Some(vec![(y, reshape(g, halves, of(&[n])))])
}

/// A product [t, n] with a weight that a class is: it, its input and the weight.
fn product(g: &Block, id: Id) -> Option<(Id, Id, Id)> {
    let own = find(g, id, |op, c| match op {
        Op::MatMul { transpose_b: true, .. } if g[c[1]].data.load && shape(g, id).len() == 2 => {
            Some((c[0], c[1]))
        }
        _ => None,
    })?;
    Some((g.find(id), own.0, own.1))
}

/// A product with a weight, its input and the weight, that a class is, with or without a bias.
fn projection(g: &Block, id: Id) -> Option<(Id, Id, Id)> {
    product(g, id).or_else(|| {
        let operands = find(g, id, |op, c| match op {
            Op::Binary(Binary::Add) => Some([c[0], c[1]]),
            _ => None,
        })?;
        let is_bias = |id: Id| find(g, id, |op, _| matches!(op, Op::Broadcast(_)).then_some(())).is_some();
        match operands {
            [y, b] if is_bias(b) => product(g, y),
            [b, y] if is_bias(b) => product(g, y),
            _ => None,
        }
    })
}

/// Half the rotated part of the last axis of `class` [t, heads, d], when it is taken by its halves.
fn rotary_half(g: &Block, class: Id) -> Option<usize> {
    let class = g.find(class);
    let taken: BTreeSet<(usize, usize)> = g
        .classes()
        .flat_map(|c| &c.nodes)
        .filter_map(|n| match n.as_op() {
            Some(Op::Slice { axis: 2, start, len }) if g.find(n.children[0]) == class => Some((*start, *len)),
            _ => None,
        })
        .collect();
    taken.iter().find(|(start, half)| *start == 0 && taken.contains(&(*half, *half))).map(|(_, half)| *half)
}

/// The only product with a weight that elementwise ops make a class of, with scalars and values made at load (a bias).
fn only_product(g: &Block, id: Id) -> Option<(Id, Id, Id)> {
    let mut found: Option<(Id, Id, Id)> = None;
    let mut todo = vec![(g.find(id), 0)];
    while let Some((class, depth)) = todo.pop() {
        if let Some(own) = product(g, class) {
            if found.is_some_and(|other| other.0 != own.0) {
                return None;
            }
            found = Some(own);
            continue;
        }
        let operands = find(g, class, |op, c| match op {
            Op::Unary(_) | Op::Binary(_) => Some(c.to_vec()),
            Op::Broadcast(_) if is_scalar(g, c[0]) || g[c[0]].data.load => Some(Vec::new()),
            _ => None,
        })?;
        if depth == 12 {
            return None;
        }
        todo.extend(operands.iter().map(|c| (g.find(*c), depth + 1)));
    }
    found
}

/// Whether a class has one element.
fn is_scalar(g: &Block, id: Id) -> bool {
    shape(g, id).iter().all(|d| d.as_const() == Some(1))
}

fn pair_gated(g: &mut Block, _class: Id, subst: &Subst) -> Option<Vec<(Id, Id)>> {
    let (gate, up) = (only_product(g, var(subst, "?a")?)?, only_product(g, var(subst, "?b")?)?);
    // In the order of the checkpoint's weights.
    let mut both = [gate, up];
    both.sort_by_key(|(class, _, w)| (first_leaf(g, *w), *class));
    let [(first, x, a), (second, other, b)] = both;
    let [t, Dim::Const(n)] = shape(g, first)[..] else { return None };
    let &[_, k] = &extents(g, a)?[..] else { return None };
    let out = dtype(g, first);
    let alike = g.find(x) == g.find(other) && shape(g, first) == shape(g, second) && out == dtype(g, second);
    if first == second || !alike {
        return None;
    }
    let joined = op(g, Op::Concat { axis: 0 }, &[a, b]);
    let paired = reshape_const(g, joined, &[2, n, k]);
    let paired = transpose(g, paired, &[1, 0, 2]);
    let paired = reshape_const(g, paired, &[2 * n, k]);
    let z = linear(g, x, paired, out);
    let z = reshape(g, z, vec![t, Dim::Const(n), Dim::Const(2)]);
    let z = transpose(g, z, &[0, 2, 1]);
    let z = reshape(g, z, vec![t, Dim::Const(2 * n)]);
    Some(vec![(first, slice(g, z, 1, 0, n)), (second, slice(g, z, 1, n, n))])
}
