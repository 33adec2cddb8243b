//! The end of a tile whose lanes have pairs of neighbouring columns: what follows each other in memory is loaded and stored
//! by one access of two elements.

use super::ahead::certain_loads;
use super::warp::Threads;
use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::ids::VarId;
use weft_ir::kernel::{CacheHint, Expr, Stmt};
use weft_ir::plan::{MatMul, Scalar, Store};
use weft_ir::shape::Dim;

/// Whether elements of neighbouring columns follow each other in an array, from an even place on.
fn paired(dtype: DType, shape: &[Dim], index: &[Scalar]) -> bool {
    let of_column = |s: &Scalar| {
        let mut found = false;
        s.visit(&mut |part| found |= *part == Scalar::Coord(1));
        found
    };
    let even = dtype.size() > 1 && matches!(shape.last(), Some(Dim::Const(n)) if n.is_multiple_of(2));
    match index.split_last() {
        Some((last, before)) => even && *last == Scalar::Coord(1) && !before.iter().any(of_column),
        None => false,
    }
}

/// Epilogue of fragments one beside the other: accumulator i of a fragment is row lane/4 + 8·(i/2), column
/// lane%4·2 + i%2. The points of a group of two are the halves of such a pair.
pub(super) fn store(
    b: &mut Body<'_>,
    m: &MatMul,
    t: &Threads,
    (acc, fragments): (VarId, u32),
    (row, column): (Expr, Expr),
    ragged: bool,
) -> Result<(), String> {
    let rows = b.extent(m.m);
    let row = b.k.let_("row", DType::I32, row + t.lane.clone() / 4);
    let column = b.k.let_("column", DType::I32, column + t.lane.clone() % 4 * 2);
    let columns = Expr::int(m.n as i64);
    let even = m.n.is_multiple_of(2);
    let group = m.group as i64;
    b.unrolled("half", 2, |b, half| {
        let r = b.k.let_("r", DType::I32, row.clone() + half.clone() * 8);
        b.if_then(r.clone().lt(rows.clone()), |b| {
            b.unrolled("ni", fragments, |b, ni| {
                let first = b.k.let_("first", DType::I32, ni.clone() * 4 + half.clone() * 2);
                let c = b.k.let_("c", DType::I32, (column.clone() + ni * 8) / group);
                let point = |i: i64| {
                    let acc = (0..group).map(|g| Expr::elem(acc, first.clone() + (i * group + g))).collect();
                    Point { coords: vec![r.clone(), c.clone() + i], acc, ..Point::default() }
                };
                let points: Vec<Point> = (0..2 / group).map(point).collect();
                let guarded =
                    |b: &mut Body<'_>,
                     first: &Point,
                     fill: &mut dyn FnMut(&mut Body<'_>) -> Result<(), String>| {
                        let inside = first.coords[1].clone().lt(columns.clone());
                        if ragged { b.if_then(inside, |b| fill(b)) } else { fill(b) }
                    };
                for s in &m.stores {
                    let of = &b.work.writes[s.output as usize];
                    match &points[..] {
                        [one, two] if even && s.guard.is_none() && paired(of.dtype, &of.shape, &s.index) => {
                            guarded(b, one, &mut |b| pair(b, s, [one, two]))?;
                        }
                        _ => {
                            for p in &points {
                                guarded(b, p, &mut |b| b.stores(std::slice::from_ref(s), p))?;
                            }
                        }
                    }
                }
                Ok(())
            })
        })
    })
}

/// A store at two neighbouring points, and the loads that it makes at both.
fn pair(b: &mut Body<'_>, s: &Store, points: [&Point; 2]) -> Result<(), String> {
    let (mut loaded, mut loads) = ([Vec::new(), Vec::new()], Vec::new());
    certain_loads(&s.value, &mut loads);
    for load in loads {
        let Scalar::Load(o, index) = &load else { continue };
        let operand = &b.work.reads[o.index()];
        if !paired(operand.dtype, &operand.shape, index) {
            continue;
        }
        let (shape, dtype) = (operand.shape.clone(), operand.dtype);
        let at: Result<Vec<Expr>, String> = index.iter().map(|i| b.lower(i, points[0])).collect();
        let (mem, index) = (b.reads[o.index()], b.flat(&shape, &at?));
        let dst = b.k.array("two", dtype, 2, None);
        b.k.push(Stmt::LoadVec { dst, dst_at: Expr::int(0), mem, index, lanes: 2, hint: CacheHint::Default });
        for (i, loaded) in (0..).zip(&mut loaded) {
            let value = Expr::elem(dst, Expr::int(i));
            loaded.push((load.clone(), if dtype.is_half() { value.cast(DType::F32) } else { value }));
        }
    }
    let operand = &b.work.writes[s.output as usize];
    let (shape, dtype) = (operand.shape.clone(), operand.dtype);
    let at: Result<Vec<Expr>, String> = s.index.iter().map(|i| b.lower(i, points[0])).collect();
    let index = b.flat(&shape, &at?);
    let src = b.k.array("pair", dtype, 2, None);
    for ((i, point), loaded) in (0..).zip(points).zip(loaded) {
        let value = b.lower(&s.value, &Point { loaded, ..point.clone() })?;
        let value = if dtype.is_half() { value.cast(dtype) } else { value };
        b.k.assign_elem(src, Expr::int(i), value);
    }
    let mem = b.writes[s.output as usize];
    b.k.push(Stmt::StoreVec { mem, index, src, src_at: Expr::int(0), lanes: 2 });
    Ok(())
}
