//! Movement: reshapes, transposes, slices, concatenations and casts that undo or follow each other.

use super::{Rule, var};
use crate::eqsat::analysis::Block;
use crate::eqsat::build::{cast, dtype, find, op, reshape, shape, slice, transpose};
use crate::numerics::Numerics;
use egg::{Id, Subst};
use weft_ir::graph::Op;

/// What is moved to where it was.
pub const IDENTITY: Rule = Rule {
    name: "identity-movement",
    numerics: Numerics::Exact,
    needs: &[],
    summary: "a reshape, transpose, slice, broadcast or cast that changes nothing → its operand",
    patterns: &["(reshape ?x)", "(transpose ?x)", "(slice ?x)", "(broadcast ?x)", "(cast ?x)"],
    apply: |g, class, subst| {
        let x = var(subst, "?x")?;
        let straight = find(g, class, |op, c| match op {
            Op::Transpose(perm) => {
                (g.find(c[0]) == g.find(x)).then(|| perm.iter().enumerate().all(|(i, p)| i == *p))
            }
            _ => None,
        });
        let same = shape(g, class) == shape(g, x) && dtype(g, class) == dtype(g, x);
        (same && straight != Some(false)).then(|| vec![(class, x)])
    },
};

/// Two reshapes are one.
pub const RESHAPES: Rule = Rule {
    name: "join-reshapes",
    numerics: Numerics::Exact,
    needs: &[],
    summary: "reshape(reshape(x)) → reshape(x)",
    patterns: &["(reshape (reshape ?x))"],
    apply: |g, class, subst| {
        let to = shape(g, class);
        Some(vec![(class, reshape(g, var(subst, "?x")?, to))])
    },
};

/// Two transposes are one.
pub const TRANSPOSES: Rule = Rule {
    name: "join-transposes",
    numerics: Numerics::Exact,
    needs: &[],
    summary: "transpose(transpose(x, p), q) → transpose(x, p∘q)",
    patterns: &["(transpose (transpose ?x))"],
    apply: join_transposes,
};

/// Two slices of an axis are one.
pub const SLICES: Rule = Rule {
    name: "join-slices",
    numerics: Numerics::Exact,
    needs: &[],
    summary: "x[a..][b..] of one axis → x[a + b..]",
    patterns: &["(slice (slice ?x))"],
    apply: join_slices,
};

/// A slice of joined values is one of a part.
pub const SLICE_OF_CONCAT: Rule = Rule {
    name: "slice-of-concat",
    numerics: Numerics::Exact,
    needs: &[],
    summary: "a slice of concat(a, b, …) that lies in one part → a slice of that part",
    patterns: &["(slice ?x)"],
    apply: slice_of_concat,
};

/// Parts that are put together again.
pub const CONCAT_OF_SLICES: Rule = Rule {
    name: "concat-of-slices",
    numerics: Numerics::Exact,
    needs: &[],
    summary: "concat(x[..a], x[a..b], x[b..]) → x",
    patterns: &["(concat ?a ?b)", "(concat ?a ?b ?c)"],
    apply: concat_of_slices,
};

/// Widening and back.
pub const CASTS: Rule = Rule {
    name: "join-casts",
    numerics: Numerics::Exact,
    needs: &[],
    summary: "cast(cast(x, wider), t) → cast(x, t)",
    patterns: &["(cast (cast ?x))"],
    apply: |g, class, subst| {
        let x = var(subst, "?x")?;
        let middle = find(g, class, |op, c| match op {
            Op::Cast(_) => Some(dtype(g, c[0])),
            _ => None,
        })?;
        // Every 16-bit float is an f32.
        let wider = middle.is_float() && dtype(g, x).is_float() && middle.size() == 4;
        let to = dtype(g, class);
        wider.then(|| vec![(class, cast(g, x, to))])
    },
};

fn join_transposes(g: &mut Block, class: Id, subst: &Subst) -> Option<Vec<(Id, Id)>> {
    let x = var(subst, "?x")?;
    let (outer, inner) = find(g, class, |op, c| match op {
        Op::Transpose(q) => {
            let p = find(g, c[0], |op, c| match op {
                Op::Transpose(p) if g.find(c[0]) == g.find(x) => Some(p.clone()),
                _ => None,
            })?;
            Some((q.clone(), p))
        }
        _ => None,
    })?;
    let perm: Vec<usize> = outer.iter().map(|&i| inner[i]).collect();
    Some(vec![(class, transpose(g, x, &perm))])
}

fn join_slices(g: &mut Block, class: Id, subst: &Subst) -> Option<Vec<(Id, Id)>> {
    let x = var(subst, "?x")?;
    let (axis, start, len) = find(g, class, |op, c| match op {
        Op::Slice { axis, start, len } => {
            let before = find(g, c[0], |op, c| match op {
                Op::Slice { axis: a, start, .. } if a == axis && g.find(c[0]) == g.find(x) => Some(*start),
                _ => None,
            })?;
            Some((*axis, before + start, *len))
        }
        _ => None,
    })?;
    Some(vec![(class, slice(g, x, axis, start, len))])
}

fn slice_of_concat(g: &mut Block, class: Id, subst: &Subst) -> Option<Vec<(Id, Id)>> {
    let x = var(subst, "?x")?;
    let (axis, start, len) = find(g, class, |op, c| match op {
        Op::Slice { axis, start, len } if g.find(c[0]) == g.find(x) => Some((*axis, *start, *len)),
        _ => None,
    })?;
    let parts = find(g, x, |op, c| match op {
        Op::Concat { axis: a } if *a == axis => Some(c.to_vec()),
        _ => None,
    })?;
    let mut from = 0;
    for part in parts {
        let n = shape(g, part)[axis].as_const()?;
        if start >= from && start + len <= from + n {
            return Some(vec![(class, slice(g, part, axis, start - from, len))]);
        }
        from += n;
    }
    None
}

fn concat_of_slices(g: &mut Block, class: Id, _subst: &Subst) -> Option<Vec<(Id, Id)>> {
    let (axis, parts) = find(g, class, |op, c| match op {
        Op::Concat { axis } => Some((*axis, c.to_vec())),
        _ => None,
    })?;
    let of = |g: &Block, part: Id| {
        find(g, part, |op, c| match op {
            Op::Slice { axis: a, start, len } if *a == axis => Some((g.find(c[0]), *start, *len)),
            _ => None,
        })
    };
    let (x, ..) = of(g, parts[0])?;
    let mut next = 0;
    for part in parts {
        let (y, start, len) = of(g, part)?;
        if y != x || start != next {
            return None;
        }
        next += len;
    }
    (shape(g, x)[axis].as_const() == Some(next)).then(|| vec![(class, x)])
}

/// The value of a class that is one number everywhere.
pub(super) fn number(g: &Block, id: Id) -> Option<f32> {
    use weft_ir::graph::Literal;
    let literal = |id: Id| {
        find(g, id, |op, _| match op {
            Op::Constant { literal: Literal::F32(v), .. } if v.len() == 1 => Some(v[0]),
            _ => None,
        })
    };
    // One level: a class may be a broadcast of itself.
    let below = || {
        find(g, id, |op, c| match op {
            Op::Broadcast(_) => literal(c[0]),
            _ => None,
        })
    };
    literal(id).or_else(below)
}

/// A number, everywhere.
pub(super) fn filled(g: &mut Block, value: f32, like: Id) -> Id {
    use weft_ir::graph::Literal;
    use weft_ir::shape::Dim;
    let to = shape(g, like);
    let ones = vec![Dim::Const(1); to.len()];
    let one = op(g, Op::Constant { literal: Literal::F32(vec![value]), shape: ones }, &[]);
    crate::eqsat::build::broadcast(g, one, to)
}
