//! Shape and type inference: the type of an op's result, or why its inputs do not fit.

use super::op::{Literal, Op, ValueType, const_elements};
use crate::dtype::{DType, Encoding};
use crate::scalar::{Binary, Unary};
use crate::shape::{Dim, Shape, Sym, shape_text};

/// Type of the result of `op` on inputs of these types; an error says what does not fit.
pub fn infer(op: &Op, inputs: &[&ValueType]) -> Result<ValueType, String> {
    if let Some(n) = op.arity()
        && n != inputs.len()
    {
        return Err(format!("{} takes {n} inputs, got {}", op.name(), inputs.len()));
    }
    let encoded_ok = matches!(op, Op::Decode);
    if let Some(t) = inputs.iter().find(|t| !t.is_plain() && !encoded_ok) {
        return Err(format!("{} takes plain values, got {}: decode it first", op.name(), t.encoding));
    }
    match op {
        Op::Input(i) => Ok(i.ty()),
        Op::Weight { ty, .. } | Op::State { ty, .. } => Ok(ty.clone()),
        Op::Constant { literal, shape } => {
            let (dtype, len) = match literal {
                Literal::F32(v) => (DType::F32, v.len()),
                Literal::I32(v) => (DType::I32, v.len()),
            };
            if const_elements(shape) != Some(len) {
                return Err(format!("{len} literal elements do not fill shape {}", shape_text(shape)));
            }
            Ok(ValueType::plain(dtype, shape.clone()))
        }
        Op::Iota { axis, shape } => {
            axis_of(shape, *axis)?;
            Ok(ValueType::plain(DType::I32, shape.clone()))
        }
        Op::Decode => decode(inputs),
        Op::Unary(u) => unary(*u, inputs[0]),
        Op::Binary(b) => {
            equal(inputs)?;
            let d = inputs[0].dtype();
            let ok = match b {
                Binary::And | Binary::Or => d == DType::Bool,
                Binary::Rem => !d.is_float() && d != DType::Bool,
                Binary::Pow => d.is_float(),
                Binary::Add | Binary::Sub | Binary::Mul | Binary::Div | Binary::Min | Binary::Max => {
                    d != DType::Bool
                }
            };
            if ok { Ok(inputs[0].clone()) } else { Err(format!("{} does not take {d}", b.name())) }
        }
        Op::Compare(_) => {
            equal(inputs)?;
            Ok(ValueType::plain(DType::Bool, inputs[0].shape.clone()))
        }
        Op::Select => {
            equal(&inputs[1..])?;
            if inputs[0].dtype() != DType::Bool || inputs[0].shape != inputs[1].shape {
                return Err(format!("select: condition {} does not fit", text(inputs[0])));
            }
            Ok(inputs[1].clone())
        }
        Op::Cast(d) => Ok(ValueType::plain(*d, inputs[0].shape.clone())),
        Op::Reshape(shape) => reshape(inputs[0], shape),
        Op::Transpose(perm) => {
            let mut seen = perm.clone();
            seen.sort_unstable();
            if seen != (0..inputs[0].shape.len()).collect::<Vec<_>>() {
                return Err(format!("transpose: {perm:?} does not permute {}", text(inputs[0])));
            }
            let shape = perm.iter().map(|&p| inputs[0].shape[p]).collect();
            Ok(ValueType::plain(inputs[0].dtype(), shape))
        }
        Op::Broadcast(shape) => {
            let from = &inputs[0].shape;
            let fits = from.len() == shape.len()
                && from.iter().zip(shape).all(|(a, b)| a == b || *a == Dim::Const(1));
            if fits {
                Ok(ValueType::plain(inputs[0].dtype(), shape.clone()))
            } else {
                Err(format!("broadcast: {} does not extend to {}", text(inputs[0]), shape_text(shape)))
            }
        }
        Op::Slice { axis, start, len } => {
            let extent = const_axis(inputs[0], *axis)?;
            if start.checked_add(*len).is_none_or(|end| end > extent) || *len == 0 {
                return Err(format!("slice: {start}+{len} is outside axis {axis} of {}", text(inputs[0])));
            }
            let mut shape = inputs[0].shape.clone();
            shape[*axis] = Dim::Const(*len);
            Ok(ValueType::plain(inputs[0].dtype(), shape))
        }
        Op::Concat { axis } => concat(inputs, *axis),
        Op::Reduce(_) => {
            let mut shape = inputs[0].shape.clone();
            let last = shape.last_mut().ok_or("reduce: a scalar has no axis")?;
            *last = Dim::Const(1);
            if !inputs[0].dtype().is_float() {
                return Err(format!("{} does not take {}", op.name(), text(inputs[0])));
            }
            Ok(ValueType::plain(DType::F32, shape))
        }
        Op::Softmax => {
            if !inputs[0].dtype().is_float() || inputs[0].shape.is_empty() {
                return Err(format!("softmax does not take {}", text(inputs[0])));
            }
            Ok(inputs[0].clone())
        }
        Op::MatMul { transpose_b, out } => matmul(inputs[0], inputs[1], *transpose_b, *out),
        Op::TopK { k } => {
            let n = const_axis(inputs[0], inputs[0].shape.len().wrapping_sub(1))?;
            if !inputs[0].dtype().is_float() || *k == 0 || *k > n {
                return Err(format!("top_k: {k} of {}", text(inputs[0])));
            }
            let mut shape = inputs[0].shape.clone();
            if let Some(last) = shape.last_mut() {
                *last = Dim::Const(*k);
            }
            Ok(ValueType::plain(DType::I32, shape))
        }
        Op::RoutedMatMul { out } => routed(inputs[0], inputs[1], inputs[2], *out),
        Op::Gather => {
            if inputs[1].dtype() != DType::I32 || inputs[0].shape.is_empty() {
                return Err(format!("gather: {} does not index {}", text(inputs[1]), text(inputs[0])));
            }
            let shape = inputs[1].shape.iter().chain(&inputs[0].shape[1..]).copied().collect();
            Ok(ValueType::plain(inputs[0].dtype(), shape))
        }
        Op::Scatter => {
            let [state, rows, index] = [inputs[0], inputs[1], inputs[2]];
            let fits = index.dtype() == DType::I32
                && index.shape.len() == 1
                && rows.shape.first() == index.shape.first()
                && !state.shape.is_empty()
                && rows.shape[1..] == state.shape[1..]
                && rows.dtype() == state.dtype();
            if fits {
                Ok(state.clone())
            } else {
                Err(format!("scatter: {} at {} does not fit {}", text(rows), text(index), text(state)))
            }
        }
        Op::Penalize => {
            let (rows, words) = ([Dim::Sym(Sym::Rows)], [DType::I32, DType::I32, DType::I32]);
            let (logits, history, parameters) = (inputs[0], inputs[1], &inputs[2..]);
            if logits.dtype() != DType::F32 || logits.shape.len() != 2 || logits.shape[..1] != rows {
                return Err(format!("penalize: expected f32 [rows, …], got {}", text(logits)));
            }
            if history.dtype() != DType::I32 || history.shape.len() != 1 {
                return Err(format!("penalize: expected a list of i32, got {}", text(history)));
            }
            for (t, d) in parameters.iter().zip(words.into_iter().chain([DType::F32, DType::F32])) {
                if t.dtype() != d || t.shape != rows {
                    return Err(format!("penalize: expected {d} [rows], got {}", text(t)));
                }
            }
            Ok(logits.clone())
        }
        Op::Sample => {
            let row = [Dim::Sym(Sym::Rows)];
            let dtypes = [DType::F32, DType::I32, DType::F32, DType::I32, DType::F32, DType::F32, DType::U32];
            for (t, d) in inputs.iter().zip(dtypes) {
                if t.dtype() != d || t.shape.first() != row.first() {
                    return Err(format!("sample: expected {d} [rows, …], got {}", text(t)));
                }
            }
            Ok(ValueType::plain(DType::I32, row.to_vec()))
        }
    }
}

/// Type as text: `bf16[tokens, 576]`.
pub fn text(t: &ValueType) -> String {
    format!("{}{}", t.encoding, shape_text(&t.shape))
}

fn unary(u: Unary, x: &ValueType) -> Result<ValueType, String> {
    let d = x.dtype();
    let ok = match u {
        Unary::Not => d == DType::Bool,
        Unary::Neg | Unary::Abs => d.is_float() || d == DType::I32,
        _ => d.is_float(),
    };
    if ok { Ok(x.clone()) } else { Err(format!("{} does not take {d}", u.name())) }
}

fn equal(inputs: &[&ValueType]) -> Result<(), String> {
    match inputs.iter().find(|t| **t != inputs[0]) {
        Some(t) => Err(format!("operands differ: {} and {}", text(inputs[0]), text(t))),
        None => Ok(()),
    }
}

fn axis_of(shape: &[Dim], axis: usize) -> Result<Dim, String> {
    shape.get(axis).copied().ok_or_else(|| format!("no axis {axis} in {}", shape_text(shape)))
}

fn const_axis(x: &ValueType, axis: usize) -> Result<usize, String> {
    axis_of(&x.shape, axis)?.as_const().ok_or_else(|| format!("axis {axis} of {} is symbolic", text(x)))
}

/// An encoded value, and the scales that its encoding says.
fn decode(inputs: &[&ValueType]) -> Result<ValueType, String> {
    let (x, scales) = match inputs {
        [x] => (x, None),
        [x, scales] => (x, Some(scales)),
        _ => return Err(format!("decode takes a value and perhaps scales, got {} inputs", inputs.len())),
    };
    let scaled = matches!(x.encoding, Encoding::Scaled { .. });
    let shape: Option<Vec<usize>> = x.shape.iter().map(|d| d.as_const()).collect();
    match (scales, shape.and_then(|s| x.encoding.scales(&s))) {
        (None, _) if !scaled => Ok(ValueType::plain(DType::F32, x.shape.clone())),
        (Some(s), Some(wanted))
            if s.dtype().is_float()
                && s.shape.iter().map(|d| d.as_const()).eq(wanted.iter().map(|&n| Some(n))) =>
        {
            Ok(ValueType::plain(DType::F32, x.shape.clone()))
        }
        (None, _) => Err(format!("decode: {} needs its scales", text(x))),
        (Some(s), _) => Err(format!("decode: {} does not hold the scales of {}", text(s), text(x))),
    }
}

fn reshape(x: &ValueType, to: &Shape) -> Result<ValueType, String> {
    // Symbolic extents must appear in both shapes at equal flat positions; everything else is counted.
    let split = |s: &[Dim]| {
        let mut runs = vec![1usize];
        let mut syms = Vec::new();
        for d in s {
            match d {
                Dim::Const(n) => {
                    if let Some(r) = runs.last_mut() {
                        *r = r.saturating_mul(*n);
                    }
                }
                Dim::Sym(s) => {
                    syms.push(*s);
                    runs.push(1);
                }
            }
        }
        (runs, syms)
    };
    if split(&x.shape) == split(to) {
        Ok(ValueType { encoding: Encoding::Plain(x.dtype()), shape: to.clone() })
    } else {
        Err(format!("reshape: {} has other elements than {}", text(x), shape_text(to)))
    }
}

fn concat(inputs: &[&ValueType], axis: usize) -> Result<ValueType, String> {
    let first = *inputs.first().ok_or("concat of nothing")?;
    let mut total = 0;
    for t in inputs {
        total += const_axis(t, axis)?;
        let same_rest = t.shape.len() == first.shape.len()
            && t.dtype() == first.dtype()
            && t.shape.iter().zip(&first.shape).enumerate().all(|(i, (a, b))| i == axis || a == b);
        if !same_rest {
            return Err(format!("concat: {} and {} differ", text(first), text(t)));
        }
    }
    let mut shape = first.shape.clone();
    shape[axis] = Dim::Const(total);
    Ok(ValueType::plain(first.dtype(), shape))
}

fn matmul(a: &ValueType, b: &ValueType, transpose_b: bool, out: DType) -> Result<ValueType, String> {
    let misfit = || Err(format!("matmul: {} and {} do not fit", text(a), text(b)));
    let rank = a.shape.len();
    if rank < 2 || b.shape.len() != rank || a.dtype() != b.dtype() || !a.dtype().is_float() || !out.is_float()
    {
        return misfit();
    }
    let (batch_a, ends_a) = a.shape.split_at(rank - 2);
    let (batch_b, ends_b) = b.shape.split_at(rank - 2);
    let (k, n) = if transpose_b { (ends_b[1], ends_b[0]) } else { (ends_b[0], ends_b[1]) };
    if batch_a != batch_b || ends_a[1] != k {
        return misfit();
    }
    let shape = batch_a.iter().copied().chain([ends_a[0], n]).collect();
    Ok(ValueType::plain(out, shape))
}

fn routed(a: &ValueType, b: &ValueType, index: &ValueType, out: DType) -> Result<ValueType, String> {
    let fits = match (&a.shape[..], &b.shape[..], &index.shape[..]) {
        ([t, rows, i], [_, n, k], [tokens, picks]) => {
            let rows = rows == picks || *rows == Dim::Const(1);
            let fits = rows && t == tokens && i == k && picks.as_const().is_some() && n.as_const().is_some();
            fits && a.dtype() == b.dtype() && a.dtype().is_float() && index.dtype() == DType::I32
        }
        _ => false,
    };
    if !fits || !out.is_float() {
        let (a, b, index) = (text(a), text(b), text(index));
        return Err(format!("routed_matmul: {a}, {b} and {index} do not fit"));
    }
    let shape = vec![index.shape[0], index.shape[1], b.shape[1]];
    Ok(ValueType::plain(out, shape))
}
