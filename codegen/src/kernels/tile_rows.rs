//! The end of a tile that groups of four warps multiplied (`Stmt::Wgmma`): a warp's sums go through shared memory, so
//! that a lane has four neighbouring columns of a row and not two, and eight lanes a row's 32.
//!
//! What a pass of 32 columns loads is on its way while the pass before is stored. Where the points of a lane read or write places
//! that follow each other ([`Run`]), they do so with one access.

use super::ahead::certain_loads;
use super::neighbours::{Run, always_inside};
use super::warp::Threads;
use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::ids::{SharedId, VarId};
use weft_ir::kernel::{CacheHint, Expr, Mem, Stmt};
use weft_ir::plan::{EXCHANGED_BYTES, MatMul, Scalar, Store};

/// Rows of a warp, and columns of a pass.
const ROWS: i64 = 16;
const COLUMNS: i64 = 32;
/// Columns of a lane in a pass, lanes of a row, and rows of a warp at once.
const OF_LANE: i64 = 4;
const LANES: i64 = COLUMNS / OF_LANE;
const AT_ONCE: i64 = 32 / LANES;

/// Registers of what a pass loads ahead, at most; what is beyond is loaded where it is used.
const MOST_AHEAD: i64 = 32;
/// Passes over a lane's rows.
const STEPS: u32 = (ROWS / AT_ONCE) as u32;

const _: () = assert!(4 * (ROWS * COLUMNS) as u32 * 4 == EXCHANGED_BYTES);

/// A load that is made ahead, and where its values are.
struct Ahead {
    load: Scalar,
    values: VarId,
    /// Values of a row: one for each point, or one for all.
    each: i64,
}

/// Where the warp's sums are, and where its lanes have them.
struct Exchange {
    shared: SharedId,
    /// First element of the warp.
    own: Expr,
    lane: Expr,
}

impl Exchange {
    /// Element of a row and column of a pass; eight columns each are exchanged by row, since lanes of several rows store
    /// at once.
    fn at(&self, row: Expr, column: Expr) -> Expr {
        self.own.clone() + row.clone() * COLUMNS + column.xor(row % (COLUMNS / 8) * 8)
    }
}

/// The epilogue of a warp's 16 rows from `row` on and `fragments` of eight columns from `column` on; accumulator i of a
/// fragment is row lane/4 + 8·(i/2), column lane%4·2 + i%2.
pub(super) fn store(
    b: &mut Body<'_>,
    m: &MatMul,
    t: &Threads,
    (acc, fragments): (VarId, u32),
    (row, column): (Expr, Expr),
    ragged: bool,
) -> Result<(), String> {
    let warps = b.spec.threads / 32;
    let shared = b.k.shared("exchange", DType::F32, warps * (ROWS * COLUMNS) as u32);
    let own = b.k.let_("own_sums", DType::I32, t.warp.clone() * (ROWS * COLUMNS));
    let x = Exchange { shared, own, lane: t.lane.clone() };
    let (group, lane) = (m.group as i64, t.lane.clone());
    let run = Run { width: OF_LANE / group };
    let lane_row = b.k.let_("lane_row", DType::I32, lane.clone() / LANES);
    let lane_column = b.k.let_("lane_column", DType::I32, lane % LANES * OF_LANE);
    let lanes = Lanes { row: b.k.let_("row", DType::I32, row + lane_row.clone()), ragged, run };
    let loads = loads_ahead(b, m, run);
    let passes = i64::from(fragments) * 8 / COLUMNS;
    let column_of = |b: &mut Body<'_>, pass: i64| {
        let c = (column.clone() + lane_column.clone() + pass * COLUMNS) / group;
        b.k.let_("c", DType::I32, c)
    };
    let mut c = column_of(b, 0);
    let mut ahead = lanes.load(b, m, &loads, &c)?;
    for pass in 0..passes {
        leave(b, &x, acc, pass)?;
        b.k.push(Stmt::WarpBarrier);
        let (here, loaded) = (c.clone(), ahead);
        (c, ahead) = match pass + 1 {
            next if next < passes => {
                let c = column_of(b, next);
                let ahead = lanes.load(b, m, &loads, &c)?;
                (c, ahead)
            }
            _ => (here.clone(), Vec::new()),
        };
        b.unrolled("i", STEPS, |b, i| {
            let r = lanes.row_of(b, &i);
            let inside = lanes.inside(b, m, &r, &here);
            b.if_then(inside, |b| {
                let sums = b.k.array("sums", DType::F32, OF_LANE as u32, None);
                let index = x.at(lane_row.clone() + i.clone() * AT_ONCE, lane_column.clone());
                let (mem, lanes) = (Mem::Shared(x.shared), OF_LANE as u32);
                let (dst_at, hint) = (Expr::int(0), CacheHint::Default);
                b.k.push(Stmt::LoadVec { dst: sums, dst_at, mem, index, lanes, hint });
                let points: Vec<Point> = (0..run.width)
                    .map(|p| Point {
                        coords: vec![r.clone(), here.clone() + p],
                        acc: (0..group).map(|g| Expr::elem(sums, Expr::int(p * group + g))).collect(),
                        loaded: loaded.iter().map(|a| (a.load.clone(), value(b, a, &i, p))).collect(),
                        ..Point::default()
                    })
                    .collect();
                if run.of_whole(m) {
                    return m.stores.iter().try_for_each(|s| store_run(b, s, run, &points));
                }
                points.iter().try_for_each(|p| {
                    let inside = p.coords[1].clone().lt(Expr::int(m.n as i64));
                    b.if_then(inside, |b| b.stores(&m.stores, p))
                })
            })
        })?;
        if pass + 1 < passes {
            b.k.push(Stmt::WarpBarrier);
        }
    }
    Ok(())
}

/// The points of the lanes.
struct Lanes {
    /// First row of the lane.
    row: Expr,
    /// Whether columns of a tile may be none of the result's.
    ragged: bool,
    run: Run,
}

impl Lanes {
    fn row_of(&self, b: &mut Body<'_>, i: &Expr) -> Expr {
        b.k.let_("r", DType::I32, self.row.clone() + i.clone() * AT_ONCE)
    }

    fn inside(&self, b: &Body<'_>, m: &MatMul, r: &Expr, c: &Expr) -> Expr {
        let row = r.clone().lt(b.extent(m.m));
        if self.ragged { row.and(c.clone().lt(Expr::int(m.n as i64))) } else { row }
    }

    /// Starts the loads of a pass, whose points begin at column `c`.
    fn load(
        &self,
        b: &mut Body<'_>,
        m: &MatMul,
        loads: &[(Scalar, i64)],
        c: &Expr,
    ) -> Result<Vec<Ahead>, String> {
        let ahead: Vec<Ahead> = loads.iter().map(|(load, each)| declare(b, load, *each)).collect();
        if !ahead.is_empty() {
            b.unrolled("i", STEPS, |b, i| {
                let r = self.row_of(b, &i);
                let at = Point::at(vec![r.clone(), c.clone()]);
                let inside = self.inside(b, m, &r, c);
                b.if_then(inside, |b| ahead.iter().try_for_each(|a| load_ahead(b, a, self.run, &i, &at)))
            })?;
        }
        Ok(ahead)
    }
}

/// The warp leaves the sums of a pass.
fn leave(b: &mut Body<'_>, x: &Exchange, acc: VarId, pass: i64) -> Result<(), String> {
    b.unrolled("half", 2, |b, half| {
        b.unrolled("ni", (COLUMNS / 8) as u32, |b, ni| {
            let row = x.lane.clone() / 4 + half.clone() * 8;
            let index = x.at(row, ni.clone() * 8 + x.lane.clone() % 4 * 2);
            let src_at = (ni + pass * COLUMNS / 8) * 4 + half * 2;
            b.k.push(Stmt::StoreVec { mem: Mem::Shared(x.shared), index, src: acc, src_at, lanes: 2 });
            Ok(())
        })
    })
}

/// The loads that are made ahead, and how many values each has in a row: those that are in their array at every point, and
/// read one place for all points or places that follow each other.
fn loads_ahead(b: &Body<'_>, m: &MatMul, run: Run) -> Vec<(Scalar, i64)> {
    let mut loads = Vec::new();
    for s in &m.stores {
        s.guard.iter().chain([&s.value]).chain(&s.index).for_each(|part| certain_loads(part, &mut loads));
    }
    let each = |load: Scalar| {
        let Scalar::Load(o, index) = &load else { return None };
        let of = &b.work.reads[o.index()];
        if !always_inside(m, &of.shape, index) {
            None
        } else if run.same(&load) {
            Some((load, 1))
        } else {
            run.of_whole(m).then(|| run.one_access(of, index))?.then_some((load, run.width))
        }
    };
    let mut registers = 0;
    let fits = |(_, each): &(Scalar, i64)| {
        registers += each * i64::from(STEPS);
        registers <= MOST_AHEAD
    };
    loads.into_iter().filter_map(each).take_while(fits).collect()
}

/// Registers for a load of all rows of a pass.
fn declare(b: &mut Body<'_>, load: &Scalar, each: i64) -> Ahead {
    let dtype = match load {
        Scalar::Load(o, _) => b.work.reads[o.index()].dtype,
        _ => DType::F32,
    };
    let values = b.k.array("ahead", dtype, each as u32 * STEPS, None);
    Ahead { load: load.clone(), values, each }
}

fn load_ahead(b: &mut Body<'_>, a: &Ahead, run: Run, i: &Expr, at: &Point) -> Result<(), String> {
    let Scalar::Load(o, index) = &a.load else { return Err("a load made ahead is none".into()) };
    let places: Result<Vec<Expr>, String> = index.iter().map(|s| b.lower(s, at)).collect();
    let index = b.flat(&b.work.reads[o.index()].shape, &places?);
    let (mem, dst, dst_at) = (b.reads[o.index()], a.values, i.clone() * a.each);
    if a.each == run.width {
        let lanes = run.width as u32;
        b.k.push(Stmt::LoadVec { dst, dst_at, mem, index, lanes, hint: CacheHint::Default });
    } else {
        b.k.assign_elem(dst, dst_at, Expr::load(mem, index));
    }
    Ok(())
}

/// What point `p` of row `i` has of it.
fn value(b: &Body<'_>, a: &Ahead, i: &Expr, p: i64) -> Expr {
    let value = Expr::elem(a.values, i.clone() * a.each + p.min(a.each - 1));
    let half = matches!(&a.load, Scalar::Load(o, _) if b.work.reads[o.index()].dtype.is_half());
    if half { value.cast(DType::F32) } else { value }
}

/// A store at the points of a lane: with one access where their places follow each other and all are stored or none.
fn store_run(b: &mut Body<'_>, s: &Store, run: Run, points: &[Point]) -> Result<(), String> {
    let of = &b.work.writes[s.output as usize];
    let together = s.guard.as_ref().is_none_or(|g| run.same(g)) && run.one_access(of, &s.index);
    if !together {
        return points.iter().try_for_each(|p| b.stores(std::slice::from_ref(s), p));
    }
    let taken = s.guard.as_ref().map(|g| b.lower(g, &points[0])).transpose()?;
    let (shape, dtype) = (of.shape.clone(), of.dtype);
    let fill = |b: &mut Body<'_>| {
        let src = b.k.array("run", dtype, run.width as u32, None);
        for (i, point) in (0..).zip(points) {
            let value = b.lower(&s.value, point)?;
            let value = if dtype.is_half() { value.cast(dtype) } else { value };
            b.k.assign_elem(src, Expr::int(i), value);
        }
        let places: Result<Vec<Expr>, String> = s.index.iter().map(|i| b.lower(i, &points[0])).collect();
        let (mem, index) = (b.writes[s.output as usize], b.flat(&shape, &places?));
        b.k.push(Stmt::StoreVec { mem, index, src, src_at: Expr::int(0), lanes: run.width as u32 });
        Ok(())
    };
    match taken {
        Some(taken) => b.if_then(taken, fill),
        None => fill(b),
    }
}
