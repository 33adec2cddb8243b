//! Latent attention (DeepSeek-AI 2024): keys and values that are products of cached rows are not expanded; the
//! matrices go to the other side of attention's products.
//!
//! Both are associativity, and a gather of rows that commutes with a product of each row: with L the cached
//! rows, q · (L·Wᵀ)ᵀ = (q·W) · Lᵀ and P · (L·Wᵀ) = (P·L) · Wᵀ, for each head. What is gathered is then one row for
//! all heads. Which side is cheaper is for the cost model to say. What is rounded to the stored type differs: keys and
//! values before, q·W and P·L after.

use super::{Rule, var};
use crate::eqsat::analysis::Block;
use crate::eqsat::build::{broadcast, dtype, find, op, reshape, shape, slice, transpose};
use crate::numerics::Numerics;
use egg::Id;
use weft_ir::graph::Op;
use weft_ir::shape::Dim;

/// Queries take the matrices of keys, the result those of values.
pub const ABSORB: Rule = Rule {
    name: "absorb-latent",
    numerics: Numerics::ChangesPrecision,
    needs: &[],
    summary: "q·(L·Wᵀ)ᵀ → (q·W)·Lᵀ and P·(L·Wᵀ) → (P·L)·Wᵀ for keys and values that are products of cached rows \
              L, one matrix a head; elements of keys that all heads share stay beside",
    patterns: &["(matmul.t ?q (transpose (gather ?k ?i)))", "(matmul ?p (transpose (gather ?v ?i)))"],
    apply: |g, class, subst| match var(subst, "?q") {
        Some(q) => absorb_keys(g, class, q, [var(subst, "?k")?, var(subst, "?i")?]),
        None => absorb_values(g, class, var(subst, "?p")?, [var(subst, "?v")?, var(subst, "?i")?]),
    },
};

/// Rows of heads `[slots, heads, n]` that are products of narrower rows.
struct Expanded {
    /// The narrow rows, `[slots, 1, rank]`.
    rows: Id,
    /// A matrix for each head, `[heads, n, rank]`, made at load.
    weight: Id,
    /// Elements of a row.
    rank: usize,
}

/// Extents `[t, heads, 1, last]` of one query a head, and of the index `[t, context]`.
struct Heads {
    t: Dim,
    context: Dim,
    heads: usize,
}

fn absorb_keys(g: &mut Block, class: Id, q: Id, [k, i]: [Id; 2]) -> Option<Vec<(Id, Id)>> {
    let h = heads(g, class, q, k, i)?;
    if !by_head(g, class, k, i) {
        return None;
    }
    let (e, shared) = match expanded(g, k) {
        Some(e) => (e, None),
        None => {
            let parts = find(g, k, |op, c| match (op, c) {
                (Op::Concat { axis: 2 }, &[own, shared]) => Some((own, shared)),
                _ => None,
            })?;
            let shared = find(g, parts.1, |op, c| match op {
                Op::Broadcast(_) if shape(g, c[0])[1] == Dim::Const(1) => Some(c[0]),
                _ => None,
            })?;
            (expanded(g, parts.0)?, Some(shared))
        }
    };
    let [_, Dim::Const(n), _] = shape(g, e.weight)[..] else { return None };
    let beside = shared.map_or(Some(0), |s| shape(g, s)[2].as_const())?;
    let rows = match shared {
        Some(s) => joined(g, e.rows, s),
        None => e.rows,
    };
    let q = reshape(g, q, h.of(&[h.heads, n + beside]));
    let own = slice(g, q, 2, 0, n);
    let turned = transpose(g, e.weight, &[0, 2, 1]);
    let own = routed(g, own, turned, &h);
    let narrow = match beside {
        0 => own,
        _ => {
            let rest = slice(g, q, 2, n, beside);
            op(g, Op::Concat { axis: 2 }, &[own, rest])
        }
    };
    let narrow = reshape(g, narrow, h.of(&[h.heads, 1, e.rank + beside]));
    let keys = for_all_heads(g, rows, i, &h, e.rank + beside);
    let out = dtype(g, class);
    Some(vec![(class, op(g, Op::MatMul { transpose_b: true, out }, &[narrow, keys]))])
}

fn absorb_values(g: &mut Block, class: Id, p: Id, [v, i]: [Id; 2]) -> Option<Vec<(Id, Id)>> {
    let h = heads(g, class, p, v, i)?;
    let e = expanded(g, v)?;
    if !by_head(g, class, v, i) {
        return None;
    }
    let (out, to) = (dtype(g, class), shape(g, class));
    if dtype(g, e.weight) != out {
        return None;
    }
    let rows = for_all_heads(g, e.rows, i, &h, e.rank);
    let sum = op(g, Op::MatMul { transpose_b: false, out }, &[p, rows]);
    let sum = reshape(g, sum, h.of(&[h.heads, e.rank]));
    let y = routed(g, sum, e.weight, &h);
    Some(vec![(class, reshape(g, y, to))])
}

impl Heads {
    fn of(&self, rest: &[usize]) -> Vec<Dim> {
        std::iter::once(self.t).chain(rest.iter().map(|&n| Dim::Const(n))).collect()
    }
}

/// Sizes of an attention's product `class` with rows of `rows` [slots, heads, n] at `index` [t, context], where each
/// head has its own rows and one left row.
fn heads(g: &Block, class: Id, left: Id, rows: Id, index: Id) -> Option<Heads> {
    let ([t, Dim::Const(heads), Dim::Const(1), _], [_, Dim::Const(own), Dim::Const(_)], [tokens, context]) =
        (&shape(g, left)[..], &shape(g, rows)[..], &shape(g, index)[..])
    else {
        return None;
    };
    let fits = heads == own && t == tokens && shape(g, class).len() == 4;
    fits.then_some(Heads { t: *t, context: *context, heads: *heads })
}

/// Whether the right operand of `class` is transpose(gather(rows, index), [0, 2, 1, 3]): heads before keys.
fn by_head(g: &Block, class: Id, rows: Id, index: Id) -> bool {
    let is_read = |id: Id| {
        find(g, id, |op, c| match op {
            Op::Gather if g.find(c[0]) == g.find(rows) && g.find(c[1]) == g.find(index) => Some(()),
            _ => None,
        })
    };
    let turned = |id: Id| {
        find(g, id, |op, c| match op {
            Op::Transpose(perm) if perm[..] == [0, 2, 1, 3] => is_read(c[0]),
            _ => None,
        })
    };
    let product = find(g, class, |op, c| match op {
        Op::MatMul { .. } => turned(c[1]),
        _ => None,
    });
    product.is_some()
}

/// Rows [slots, heads, n] that are a product with a weight [heads · n, rank].
fn expanded(g: &mut Block, id: Id) -> Option<Expanded> {
    let [slots, Dim::Const(heads), Dim::Const(n)] = shape(g, id)[..] else { return None };
    let product = |id: Id| {
        find(g, id, |op, c| match op {
            Op::MatMul { transpose_b: true, .. } if g[c[1]].data.load => Some((c[0], c[1])),
            _ => None,
        })
    };
    let rounded = |id: Id| {
        let below = find(g, id, |op, c| match op {
            Op::Cast(_) => product(c[0]),
            _ => None,
        });
        product(id).or(below)
    };
    let (x, w) = find(g, id, |op, c| match op {
        Op::Reshape(_) => rounded(c[0]),
        _ => None,
    })?;
    let (&[rows, Dim::Const(rank)], &[Dim::Const(all), _]) = (&shape(g, x)[..], &shape(g, w)[..]) else {
        return None;
    };
    if rows != slots || all != heads * n {
        return None;
    }
    let rows = reshape(g, x, vec![slots, Dim::Const(1), Dim::Const(rank)]);
    let weight = reshape(g, w, [heads, n, rank].map(Dim::Const).to_vec());
    Some(Expanded { rows, weight, rank })
}

/// Rows beside each other: the value that both are slices of, where they are all of it.
fn joined(g: &mut Block, a: Id, b: Id) -> Id {
    let part = |id: Id| {
        find(g, id, |op, c| match op {
            Op::Slice { axis: 2, start, len } => Some((g.find(c[0]), *start, *len)),
            _ => None,
        })
    };
    let whole = part(a).zip(part(b)).and_then(|((x, from, n), (y, start, m))| {
        let all = shape(g, x)[2] == Dim::Const(n + m);
        (x == y && from == 0 && start == n && all).then_some(x)
    });
    whole.unwrap_or_else(|| op(g, Op::Concat { axis: 2 }, &[a, b]))
}

/// x [t, heads, k] by the matrix [heads, n, k] of its head.
fn routed(g: &mut Block, x: Id, weight: Id, h: &Heads) -> Id {
    let index = op(g, Op::Iota { axis: 1, shape: h.of(&[h.heads]) }, &[]);
    let out = dtype(g, x);
    op(g, Op::RoutedMatMul { out }, &[x, weight, index])
}

/// Rows [slots, 1, n] at an index, the same for every head: [t, heads, context, n].
fn for_all_heads(g: &mut Block, rows: Id, index: Id, h: &Heads, n: usize) -> Id {
    let read = op(g, Op::Gather, &[rows, index]);
    let read = transpose(g, read, &[0, 2, 1, 3]);
    broadcast(g, read, vec![h.t, Dim::Const(h.heads), h.context, Dim::Const(n)])
}
