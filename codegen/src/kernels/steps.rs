//! Steps on rows: one block a row; each step's result lies in shared memory for those after it.
//!
//! Elements of a map go to threads, reductions to warps. The largest values are found by rank: an element's
//! place is the number of elements before it, each counted by one thread, so there is no order of arrival.

use super::warp::{Threads, combine, neutral, shuffle_reduce, threads, vector_lanes};
use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::ids::{OperandId, SharedId};
use weft_ir::kernel::{Axis, BinaryOp, CacheHint, CompareOp, Expr, Mem, Stmt, Unroll};
use weft_ir::plan::{Scalar, Step, StepKind, Steps};
use weft_ir::scalar::Reduce;
use weft_ir::shape::{Dim, Shape};

/// Rows of a product's right operand that a warp takes at a time.
const ROWS: u32 = 4;

/// The block at its row.
struct Place {
    t: Threads,
    threads: u32,
    row: Expr,
}

pub(super) fn build(b: &mut Body<'_>, s: &Steps, block: u32) -> Result<(), String> {
    let shared: Vec<SharedId> = s
        .steps
        .iter()
        .enumerate()
        .map(|(i, step)| b.k.shared(&format!("step{i}"), step.dtype, step.elements() as u32))
        .collect();
    let scratch = |kind: &StepKind, step: &Step| match kind {
        StepKind::TopK { extent, .. } => (step.elements() / step.shape.last().unwrap_or(&1)) * extent,
        StepKind::Product { k, .. } => *k,
        StepKind::Map(_) | StepKind::Reduce { .. } => 0,
    };
    let scratch = s.steps.iter().map(|step| scratch(&step.kind, step)).max().unwrap_or(0);
    let scratch = (scratch > 0).then(|| b.k.shared("scratch", DType::F32, scratch as u32));
    b.wait_for_dependencies();
    let t = threads(b);
    let row = b.k.let_("row", DType::I32, Expr::BlockIdx(Axis::X));
    let p = Place { t, threads: block, row };
    for (i, (step, &to)) in s.steps.iter().zip(&shared).enumerate() {
        let name = match &step.kind {
            StepKind::Map(_) => "map",
            StepKind::Reduce { op, .. } => op.name(),
            StepKind::Product { .. } => "product",
            StepKind::TopK { .. } => "largest",
        };
        b.k.comment(format!("Step {i}: {name} {:?}", step.shape));
        match (&step.kind, scratch) {
            (StepKind::Map(value), _) => map(b, &p, step, to, value)?,
            (StepKind::Reduce { op, extent, value }, _) => reduce(b, &p, step, to, (*op, *extent, value))?,
            (StepKind::Product { k, a, b: right }, Some(x)) => {
                product(b, &p, step, (to, x), (*k, a, *right))?
            }
            (StepKind::TopK { extent, value }, Some(x)) => largest(b, &p, step, (to, x), (*extent, value))?,
            (StepKind::Product { .. } | StepKind::TopK { .. }, None) => return Err("no scratch".into()),
        }
        b.k.push(Stmt::Barrier);
        b.locals.push((to, step.dtype, step.shape.clone()));
    }
    Ok(())
}

fn dims(shape: &[usize]) -> Shape {
    shape.iter().map(|&n| Dim::Const(n)).collect()
}

/// Stores element i of a step's result.
fn keep(b: &mut Body<'_>, p: &Place, step: &Step, to: SharedId, i: Expr, value: Expr) {
    let value = b.k.let_("value", step.dtype, value);
    b.k.store(Mem::Shared(to), i.clone(), value.clone());
    let Some(output) = step.output.map(usize::from) else { return };
    let dtype = b.work.writes[output].dtype;
    let shape = [b.work.writes[output].shape[0], Dim::Const(step.elements())];
    let index = b.flat(&shape, &[p.row.clone(), i]);
    let value = if dtype.is_half() { value.cast(dtype) } else { value };
    b.k.store(b.writes[output], index, value);
}

fn map(b: &mut Body<'_>, p: &Place, step: &Step, to: SharedId, value: &Scalar) -> Result<(), String> {
    let along = (Expr::ThreadIdx, Expr::int(step.elements() as i64), Expr::int(p.threads.into()));
    b.for_loop("i", along, Unroll::Never, |b, i| {
        let mut coords = vec![p.row.clone()];
        coords.extend(b.unflatten(i.clone(), DType::I32, &dims(&step.shape)));
        let value = b.lower(value, &Point::at(coords))?;
        keep(b, p, step, to, i, value);
        Ok(())
    })
}

fn reduce(
    b: &mut Body<'_>,
    p: &Place,
    step: &Step,
    to: SharedId,
    (op, extent, value): (Reduce, usize, &Scalar),
) -> Result<(), String> {
    let warps = i64::from(p.threads / 32);
    let along = (p.t.warp.clone(), Expr::int(step.elements() as i64), Expr::int(warps));
    b.for_loop("i", along, Unroll::Never, |b, i| {
        let mut coords = vec![p.row.clone()];
        coords.extend(b.unflatten(i.clone(), DType::I32, &dims(&step.shape)));
        let sum = b.k.let_mut("reduced", DType::F32, neutral(op));
        let range = (p.t.lane.clone(), Expr::int(extent as i64), Expr::int(32));
        b.for_loop("c", range, Unroll::By(4), |b, c| {
            let mut at = coords.clone();
            at.push(c);
            let value = b.lower(value, &Point::at(at))?;
            b.k.assign(sum, combine(op, sum.into(), value));
            Ok(())
        })?;
        shuffle_reduce(b, sum, op, 1, 32);
        b.if_then(p.t.lane.clone().eq_(Expr::int(0)), |b| {
            let sum = Expr::Var(sum);
            let value = if op == Reduce::Mean { sum / Expr::float(extent as f32) } else { sum };
            keep(b, p, step, to, i, value);
            Ok(())
        })
    })
}

fn largest(
    b: &mut Body<'_>,
    p: &Place,
    step: &Step,
    (to, scratch): (SharedId, SharedId),
    (extent, value): (usize, &Scalar),
) -> Result<(), String> {
    let (n, k) = (extent as i64, step.shape.last().copied().unwrap_or(1) as i64);
    let all = step.elements() as i64 / k * n;
    let mut from = step.shape.clone();
    if let Some(last) = from.last_mut() {
        *last = extent;
    }
    let along = (Expr::ThreadIdx, Expr::int(all), Expr::int(p.threads.into()));
    b.for_loop("i", along.clone(), Unroll::Never, |b, i| {
        let mut coords = vec![p.row.clone()];
        coords.extend(b.unflatten(i.clone(), DType::I32, &dims(&from)));
        let value = b.lower(value, &Point::at(coords))?;
        let value = b.k.let_("value", DType::F32, value);
        let number = value.clone().eq_(value.clone());
        b.k.store(Mem::Shared(scratch), i, number.select(value, Expr::float(f32::NEG_INFINITY)));
        Ok(())
    })?;
    b.k.push(Stmt::Barrier);
    b.for_loop("i", along, Unroll::Never, |b, i| {
        let mine = b.k.let_("mine", DType::F32, Expr::load(Mem::Shared(scratch), i.clone()));
        let first = b.k.let_("first", DType::I32, i.clone() / n * n);
        let place = b.k.let_("place", DType::I32, i.clone() % n);
        let rank = b.k.let_mut("rank", DType::I32, Expr::int(0));
        b.for_loop("j", (Expr::int(0), Expr::int(n), Expr::int(1)), Unroll::By(8), |b, j| {
            let other =
                b.k.let_("other", DType::F32, Expr::load(Mem::Shared(scratch), first.clone() + j.clone()));
            let larger = Expr::cmp(CompareOp::Gt, other.clone(), mine.clone());
            let before = other.eq_(mine.clone()).and(j.lt(place.clone()));
            let before = Expr::Binary(BinaryOp::Or, Box::new(larger), Box::new(before));
            b.k.assign(rank, Expr::Var(rank) + before.select(Expr::int(1), Expr::int(0)));
            Ok(())
        })?;
        b.if_then(Expr::Var(rank).lt(Expr::int(k)), |b| {
            keep(b, p, step, to, i / n * k + Expr::Var(rank), place.clone());
            Ok(())
        })
    })
}

fn product(
    b: &mut Body<'_>,
    p: &Place,
    step: &Step,
    (to, x): (SharedId, SharedId),
    (k, a, right): (usize, &Scalar, OperandId),
) -> Result<(), String> {
    let along = (Expr::ThreadIdx, Expr::int(k as i64), Expr::int(p.threads.into()));
    b.for_loop("k", along, Unroll::By(4), |b, k| {
        let value = b.lower(a, &Point::at(vec![p.row.clone(), k.clone()]))?;
        b.k.store(Mem::Shared(x), k, value);
        Ok(())
    })?;
    b.k.push(Stmt::Barrier);
    let (n, warps) = (step.elements() as i64, p.threads / 32);
    let rows = ROWS.min((n as u32).div_ceil(warps)).max(1);
    let dtype = b.work.reads[right.index()].dtype;
    let (mem, shape) = (b.reads[right.index()], b.work.reads[right.index()].shape.clone());
    let vector = vector_lanes(dtype, k);
    let along = (p.t.warp.clone() * i64::from(rows), Expr::int(n), Expr::int(i64::from(warps * rows)));
    b.for_loop("first", along, Unroll::Never, |b, first| {
        let sums = b.k.array("sums", DType::F32, rows, Some(Expr::float(0.0)));
        let rests = b.k.array("rests", DType::F32, rows, Some(Expr::float(0.0)));
        let along =
            (p.t.lane.clone() * i64::from(vector), Expr::int(k as i64), Expr::int(i64::from(32 * vector)));
        b.for_loop("k", along, Unroll::By(2), |b, at| {
            let w = b.k.array("w", dtype, rows * vector, None);
            b.unrolled("r", rows, |b, r| {
                // Rows past the end repeat the last one and are not stored.
                let row = (first.clone() + r.clone()).min(Expr::int(n - 1));
                let index = b.flat(&shape, &[row, at.clone()]);
                load_vector(b, w, r * i64::from(vector), (mem, index, vector));
                Ok(())
            })?;
            b.unrolled("e", vector, |b, e| {
                let x = b.k.let_("x", DType::F32, Expr::load(Mem::Shared(x), at + e.clone()));
                b.unrolled("r", rows, |b, r| {
                    let w = Expr::elem(w, r.clone() * i64::from(vector) + e);
                    let w = if dtype.is_half() { w.cast(DType::F32) } else { w };
                    let product = b.k.let_("product", DType::F32, x * w);
                    let (sum, rest) = two_sum(b, Expr::elem(sums, r.clone()), product);
                    b.k.assign_elem(sums, r.clone(), sum);
                    b.k.assign_elem(rests, r.clone(), Expr::elem(rests, r) + rest);
                    Ok(())
                })
            })
        })?;
        b.unrolled("r", rows, |b, r| {
            let sum = b.k.let_mut("sum", DType::F32, Expr::elem(sums, r.clone()));
            let rest = b.k.let_mut("rest", DType::F32, Expr::elem(rests, r.clone()));
            for mask in [16, 8, 4, 2, 1] {
                let other = b.k.let_("other", DType::F32, Expr::Var(sum).shuffle_xor(mask));
                let (total, lost) = two_sum(b, sum.into(), other);
                let rests = Expr::Var(rest) + Expr::Var(rest).shuffle_xor(mask);
                b.k.assign(rest, rests + lost);
                b.k.assign(sum, total);
            }
            let i = b.k.let_("i", DType::I32, first + r);
            let mine = p.t.lane.clone().eq_(Expr::int(0)).and(i.clone().lt(Expr::int(n)));
            b.if_then(mine, |b| {
                keep(b, p, step, to, i, Expr::Var(sum) + Expr::Var(rest));
                Ok(())
            })
        })
    })
}

/// a + b rounded, and what the rounding lost (Knuth's two-sum): logits decide between experts, so they are summed
/// as if in twice the precision.
fn two_sum(b: &mut Body<'_>, x: Expr, y: Expr) -> (Expr, Expr) {
    let x = b.k.let_("a", DType::F32, x);
    let sum = b.k.let_("total", DType::F32, x.clone() + y.clone());
    let second = b.k.let_("second", DType::F32, sum.clone() - x.clone());
    let lost = (x - (sum.clone() - second.clone())) + (y - second);
    (sum, b.k.let_("lost", DType::F32, lost))
}

/// Loads consecutive elements into a register array, with one access where there is more than one.
pub(super) fn load_vector(
    b: &mut Body<'_>,
    dst: weft_ir::ids::VarId,
    dst_at: Expr,
    (mem, index, lanes): (Mem, Expr, u32),
) {
    if lanes == 1 {
        b.k.assign_elem(dst, dst_at, Expr::load(mem, index));
    } else {
        b.k.push(Stmt::LoadVec { dst, dst_at, mem, index, lanes, hint: CacheHint::Default });
    }
}
