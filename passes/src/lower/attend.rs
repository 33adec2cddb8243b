//! The work of an attention's site.

use super::attention::AttentionSite;
use super::emit::{Emitter, Made, coords, finish};
use super::{Rule, Stop, index};
use weft_ir::graph::Input;
use weft_ir::ids::OperandId;
use weft_ir::plan::{Attention, BufferKind, Compute, Scalar, Store};
use weft_ir::scalar::{Binary, Compare};
use weft_ir::shape::{Dim, Shape, Sym};

impl Emitter<'_> {
    pub(super) fn attention(&mut self, site: &AttentionSite) -> Result<Made, Stop> {
        let shape = self.graph.ty(site.out).shape.clone();
        let known = |d: Dim| d.as_const().ok_or_else(|| Stop::Fault(format!("{}: symbolic head", site.out)));
        // Heads are counted over both axes; the keys say how many of them share one.
        let (heads, inner, value_dim) =
            (known(shape[1])? * known(shape[2])?, known(shape[2])?, known(shape[3])?);
        let keys = &self.graph.ty(site.keys).shape;
        let (kv_heads, head_dim) = (known(keys[1])?, known(keys[2])?);
        let group = heads / kv_heads.max(1);
        let write = self.write(site.out)?;
        let (context, decode) = (Dim::Sym(Sym::Context), self.forms.products.decode());
        let mut inl = self.inliner(vec![shape[0], Dim::Const(heads), context]);
        let queries = vec![shape[0], Dim::Const(heads), Dim::Const(head_dim)];
        let q = inl.operand_as(site.q, queries)?;
        let (keys, values) = (inl.operand(site.keys)?, inl.operand(site.values)?);
        inl.ops.extend(site.covered.iter().copied());
        inl.ops.push(site.out);
        let head = |domain: &Shape| index::div_rem(&Scalar::Coord(1), inner as i64, domain);
        let (outer, rest) = head(&inl.domain);
        let at = vec![Scalar::Coord(0), outer, rest, Scalar::Coord(2)];
        inl.known.insert(site.scores, (at.clone(), Scalar::Acc(0)));
        let masked = inl.value(site.masked, &at)?;
        let sink = site.sink.map(|s| {
            let mut at = at.clone();
            at[3] = Scalar::Int(0);
            inl.value(s, &at)
        });
        let sink = sink.transpose()?;
        let kinds: Vec<_> = inl.reads.iter().map(|b| inl.buffers.list[b.index()].kind.clone()).collect();
        let (length, score) = causal(masked, &kinds);
        let window = window(&score, &length);
        // A decode step has one token a sequence.
        let is_state = |o: OperandId| matches!(kinds.get(o.index()), Some(BufferKind::State(_)));
        let grows = matches!(&length, Scalar::Binary(Binary::Add, ..));
        let settled = decode && is_state(keys) && is_state(values) && grows;
        inl.domain = vec![shape[0], context];
        let slot = inside(inl.value(site.index, &coords(2))?, &length);
        inl.ops.sort_unstable();
        inl.ops.dedup();
        // The epilogue's coordinates are (t, head, element).
        let (outer, rest) = head(&vec![shape[0], Dim::Const(heads), Dim::Const(value_dim)]);
        let out = vec![Scalar::Coord(0), outer, rest, Scalar::Coord(2)];
        let stores = vec![Store { output: 0, index: out, value: Scalar::Acc(0), guard: None }];
        let (mut reads, ops) = finish(inl);
        for (operand, name) in [(q, "q"), (keys, "keys"), (values, "values")] {
            if let Some((o, _)) = reads.get_mut(operand.index()).filter(|(o, _)| o.name == "x") {
                o.name = name.into();
            }
        }
        let compute = Compute::Attention(Attention {
            settled,
            tokens: shape[0],
            kv_heads,
            group,
            head_dim,
            value_dim,
            q,
            keys,
            values,
            slot,
            length,
            score,
            sink,
            window,
            prologue: None,
            projection: None,
            stores,
        });
        let scope = self.graph.node(site.out).scope.clone();
        Ok(Made { compute, reads, writes: vec![write], ops, rules: vec![Rule::Attention], scope })
    }
}

/// Splits `select(j <= p, x, −∞)` for positions p, which are in the context, or for the least of p and the last key of
/// the token's sequence, into the number of keys p + 1 and the score x, and `select(j < n, x, −∞)` for lengths n of the
/// tokens' sequences into n and x; other masks stay in the score and all keys of the context are visited.
fn causal(masked: Scalar, reads: &[BufferKind]) -> (Scalar, Scalar) {
    if let Scalar::Select(c, x, hidden) = &masked
        && let Scalar::Compare(op, j, p) = c.as_ref()
        && **j == Scalar::Coord(2)
        && **hidden == Scalar::Float(f32::NEG_INFINITY)
    {
        let is = |o: &OperandId, input| reads.get(o.index()) == Some(&BufferKind::Input(input));
        let token = [Scalar::Coord(0)];
        let is_position = |e: &Scalar| match e {
            Scalar::Load(o, at) => is(o, Input::Positions) && at[..] == token,
            _ => false,
        };
        let is_length = |e: &Scalar| match e {
            Scalar::Load(o, at) if is(o, Input::Lengths) => match &at[..] {
                [Scalar::Load(s, at)] => is(s, Input::Sequences) && at[..] == token,
                _ => false,
            },
            _ => false,
        };
        let is_last = |e: &Scalar| match e {
            Scalar::Binary(Binary::Sub, n, one) => is_length(n) && **one == Scalar::Int(1),
            _ => false,
        };
        let in_sequence = |e: &Scalar| match e {
            Scalar::Binary(Binary::Min, a, b) => is_position(a) && is_last(b) || is_last(a) && is_position(b),
            _ => false,
        };
        match op {
            Compare::Le if is_position(p) || in_sequence(p) => {
                return (index::add((**p).clone(), Scalar::Int(1)), (**x).clone());
            }
            Compare::Lt if is_length(p) => return ((**p).clone(), (**x).clone()),
            Compare::Eq | Compare::Lt | Compare::Le => {}
        }
    }
    (Scalar::Dim(Sym::Context), masked)
}

/// The window of a score `select(p − j < w, x, −∞)` where a token has p + 1 keys: the last w are visible.
fn window(score: &Scalar, length: &Scalar) -> Option<usize> {
    if let Scalar::Select(c, _, hidden) = score
        && **hidden == Scalar::Float(f32::NEG_INFINITY)
        && let Scalar::Compare(Compare::Lt, behind, w) = c.as_ref()
        && let Scalar::Binary(Binary::Sub, p, j) = behind.as_ref()
        && **j == Scalar::Coord(2)
        && *length == index::add((**p).clone(), Scalar::Int(1))
        && let Scalar::Int(w) = **w
    {
        return i32::try_from(w).ok().and_then(|w| usize::try_from(w).ok()).filter(|w| *w > 0);
    }
    None
}

/// A slot expression where key j (Coord 1) is below `length`: `min(j, length − 1)` is j, and so is `min(j, e)` where
/// the length is `min(…, e) + 1`.
fn inside(slot: Scalar, length: &Scalar) -> Scalar {
    let bounds = |e: &Scalar| match length {
        Scalar::Binary(Binary::Add, least, one) if **one == Scalar::Int(1) => match least.as_ref() {
            Scalar::Binary(Binary::Min, a, b) => a.as_ref() == e || b.as_ref() == e,
            _ => false,
        },
        _ => false,
    };
    let last = |e: &Scalar| match e {
        Scalar::Binary(Binary::Sub, a, b) if a.as_ref() == length && **b == Scalar::Int(1) => true,
        _ => bounds(e),
    };
    if let Scalar::Binary(Binary::Min, a, b) = &slot
        && ((**a == Scalar::Coord(1) && last(b)) || (**b == Scalar::Coord(1) && last(a)))
    {
        return Scalar::Coord(1);
    }
    slot.map_children(&mut |part| inside(part.clone(), length))
}
