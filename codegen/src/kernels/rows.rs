//! Row reductions: a warp or a block for each row of the domain, striding along the reduced axis.

use super::rows_ahead::Ahead;
use super::warp::{Threads, block_reduce, combine, neutral, shuffle_reduce, threads};
use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::ids::SharedId;
use weft_ir::kernel::{Axis, Expr, Unroll};
use weft_ir::plan::{Loop, Stage};

/// Who works on a row.
struct Team {
    t: Threads,
    /// Index within the team.
    member: Expr,
    /// Members: 32, or the threads of the block.
    size: u32,
    /// Warps and scratch of a block-wide team.
    block: Option<(u32, SharedId)>,
}

/// One warp a row.
pub(super) fn warp_row(b: &mut Body<'_>, l: &Loop, warps: u32) -> Result<(), String> {
    b.launch_dependents();
    let t = threads(b);
    let row = Expr::BlockIdx(Axis::X) * i64::from(warps) + t.warp.clone();
    let row = b.k.let_("row", DType::I32, row);
    let rows = count(b, l)?;
    // Warps past the end repeat the last row without storing, so that shuffles stay whole.
    let inside = row.clone().lt(rows.clone());
    let row = b.k.let_("safe_row", DType::I32, row.min(rows - 1));
    let member = t.lane.clone();
    reduce_row(b, l, Team { t, member, size: 32, block: None }, row, Some(inside))
}

/// One block a row.
pub(super) fn block_row(b: &mut Body<'_>, l: &Loop, threads_: u32) -> Result<(), String> {
    let partial = b.k.shared("partial", DType::F32, threads_ / 32);
    b.launch_dependents();
    let t = threads(b);
    count(b, l)?;
    let team = Team { t, member: Expr::ThreadIdx, size: threads_, block: Some((threads_ / 32, partial)) };
    reduce_row(b, l, team, Expr::BlockIdx(Axis::X), None)
}

/// Number of rows.
fn count(b: &mut Body<'_>, l: &Loop) -> Result<Expr, String> {
    if b.max_elements(&l.domain) >= i32::MAX as usize - 64 {
        return Err(format!("{} rows are too many", b.max_elements(&l.domain)));
    }
    let extents: Vec<Expr> = l.domain.iter().map(|d| b.extent(*d)).collect();
    Ok(extents.into_iter().fold(Expr::int(1), |n, e| n * e))
}

fn reduce_row(b: &mut Body<'_>, l: &Loop, team: Team, row: Expr, inside: Option<Expr>) -> Result<(), String> {
    let reduced = l.reduced.ok_or("a row kernel needs a reduced axis")?;
    let extent = b.extent(reduced);
    let coords = b.unflatten(row, DType::I32, &l.domain);
    let mut point = Point::at(coords);
    let rows = Ahead::find(b, l);
    rows.bring(b, (&team.member, &point), Some(true))?;
    b.wait();
    rows.bring(b, (&team.member, &point), Some(false))?;
    let along = (team.member.clone(), extent, Expr::int(i64::from(team.size)));
    for (i, stage) in l.stages.iter().enumerate() {
        let value = stage_value(b, &team, stage, &along, &point, i)?;
        point.reduced.push(value);
    }
    let store = |b: &mut Body<'_>| -> Result<(), String> {
        if !l.element_stores.is_empty() {
            b.for_loop("c", along.clone(), Unroll::By(4), |b, c| {
                let mut p = point.clone();
                p.coords.push(c);
                b.stores(&l.element_stores, &p)
            })?;
        }
        if !l.row_stores.is_empty() {
            b.if_then(team.member.clone().eq_(Expr::int(0)), |b| b.stores(&l.row_stores, &point))?;
        }
        Ok(())
    };
    match inside {
        Some(cond) => b.if_then(cond, store),
        None => store(b),
    }
}

fn stage_value(
    b: &mut Body<'_>,
    team: &Team,
    stage: &Stage,
    along: &(Expr, Expr, Expr),
    point: &Point,
    i: usize,
) -> Result<Expr, String> {
    let name = format!("reduced{i}");
    let var = b.k.let_mut(&name, DType::F32, neutral(stage.op));
    b.for_loop("c", along.clone(), Unroll::By(4), |b, c| {
        let mut p = point.clone();
        p.coords.push(c);
        let value = b.lower(&stage.value, &p)?;
        b.k.assign(var, combine(stage.op, var.into(), value));
        Ok(())
    })?;
    match team.block {
        None => shuffle_reduce(b, var, stage.op, 1, 32),
        Some((warps, partial)) => block_reduce(b, &team.t, var, stage.op, (warps, partial), Unroll::Full)?,
    }
    Ok(var.into())
}
