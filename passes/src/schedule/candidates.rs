//! Legal schedules of the decode families, the likely ones first: what `weft tune` measures, and what a schedule
//! from the database must be to be taken for another shape.
//!
//! *Legal* is what the kernel builders accept, and what the registers and the shared memory of the target hold by
//! an estimate (ptxas has the last word; a candidate that does not run is reported and passed over).

use super::ahead::{AHEAD, RowOf, set_ahead};
use super::attention::{
    GROUP_HEADS, clustered, clusters, group_heads, groups, most_splits, splits, starts_late,
};
use super::{ALONE, GEMV_ROWS, choose};
use weft_ir::dtype::DType;
use weft_ir::kernel::MAX_CLUSTER;
use weft_ir::plan::{Attention, Compute, FirstLoads, MatMul, ProjectionShare, Schedule, Work};
use weft_ir::shape::Bindings;
use weft_ir::target::Target;

/// Registers of a thread that candidates may take by estimate, of 255.
const REGISTERS: usize = 200;
/// Registers by estimate that the compiler still fits into 8 without spilling.
const SQUEEZED: usize = 9;
/// Bytes that an SM should have in flight: a few microseconds of its share of the bandwidth.
const IN_FLIGHT: usize = 64 * 1024;
/// Warps of a block that candidates have. Those that are no powers of two share rows out evenly where others do not
/// (2560 over 132 SMs), or k (9728 = 19 · 512).
const WARPS: [usize; 9] = [8, 4, 16, 10, 20, 5, 12, 19, 14];
/// Columns of a team, in points: many where all warps of a block share k, whose sums are joined together.
const COLUMNS: [usize; 6] = [1, 2, 4, 5, 8, 10];
/// How much less likely than the best a candidate may be, in thousandths of the work.
const UNLIKELY: u64 = 600;

/// Schedules of a work's family in a decode bucket, the one that the estimate chooses first; empty for works of
/// other families.
pub fn candidates(work: &Work, bind: &Bindings, target: &Target) -> Vec<Schedule> {
    let (first, _) = choose(work, bind, target);
    let others = match (&work.compute, &first) {
        (Compute::MatMul(m), Schedule::Gemv { rows, .. }) => gemv(work, m, *rows, target),
        (Compute::Attention(a), Schedule::AttentionRow { .. } | Schedule::AttentionGroup { .. })
            if few(a, bind) =>
        {
            attention(work, a, bind, target)
        }
        _ => return Vec::new(),
    };
    let mut out = vec![first];
    for schedule in others {
        if !out.contains(&schedule) {
            out.push(schedule);
        }
    }
    out
}

/// Whether an attention has so few tokens that keys are what it reads.
pub(super) fn few(a: &Attention, bind: &Bindings) -> bool {
    a.tokens.eval(bind) <= ALONE
}

/// What a team of a skinny product is, before blocks are counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Team {
    pub warps: usize,
    pub lanes: usize,
    pub split: usize,
    pub columns: usize,
    pub depth: usize,
    /// Blocks on an SM.
    pub per_sm: usize,
}

/// Elements of a 16-byte load of the right operand (fewer where rows are not whole loads).
fn vector(dtype: DType, k: usize) -> usize {
    let most = (16 / dtype.size()).max(1);
    (1..=most).rev().find(|v| v.is_power_of_two() && k.is_multiple_of(*v)).unwrap_or(1)
}

/// k up to whole loads of all lanes.
fn padded(m: &MatMul, dtype: DType, t: &Team) -> usize {
    m.k.next_multiple_of(vector(dtype, m.k) * t.lanes * t.split * t.depth)
}

/// The schedule of such teams: as many blocks as give every team the same number of rounds, the left operand in
/// shared memory where two blocks have room for it.
pub(super) fn with_team(work: &Work, m: &MatMul, rows: u32, t: &Team, target: &Target) -> Schedule {
    let dtype = work.reads[m.b.index()].dtype;
    let teams = (t.warps * 32 / t.lanes / t.split).max(1);
    let tasks = m.columns().div_ceil(t.columns).max(1);
    let (_, blocks) = rounds_and_blocks(tasks, teams, t.per_sm.max(1), target);
    let staged =
        rows as usize * padded(m, dtype, t) * left_size(work, m) <= target.shared_bytes as usize / 2 - 2048;
    let wanted = blocks.div_ceil(target.profile.sms as usize).max(1);
    let registers = registers(work, m, rows as usize, staged, t);
    // What further rows take is known too roughly to bound it.
    let wanted = if rows > 1 { 1 } else { wanted };
    let resident = (1..=wanted).rev().find(|n| holds(t.warps * 32 * n, registers, target)).unwrap_or(1);
    let mut schedule = Schedule::Gemv {
        rows,
        warps: t.warps as u32,
        lanes: t.lanes as u32,
        split: t.split as u32,
        columns: t.columns as u32,
        depth: t.depth as u32,
        blocks: blocks as u32,
        staged,
        resident: resident as u32,
        behind: 0,
        ahead: 0,
        late: false,
    };
    set_ahead(&mut schedule, &RowOf::product(work, m), AHEAD, target);
    schedule
}

/// Rounds in which so many blocks an SM, of so many teams, take the tasks, and the fewest blocks that do it in as many.
pub(super) fn rounds_and_blocks(
    tasks: usize,
    teams: usize,
    per_sm: usize,
    target: &Target,
) -> (usize, usize) {
    let rounds = tasks.div_ceil(teams * per_sm * target.profile.sms as usize);
    (rounds, tasks.div_ceil(teams * rounds))
}

/// Whether an SM holds so many threads of so many registers.
fn holds(threads: usize, registers: usize, target: &Target) -> bool {
    threads <= target.threads as usize && registers <= target.registers as usize / threads.max(1)
}

/// Registers of a thread, by estimate: loads in flight, sums, a vector of the left operand (of each row, where it is
/// not in shared memory), addresses, and what the epilogue takes.
fn registers(work: &Work, m: &MatMul, rows: usize, staged: bool, t: &Team) -> usize {
    let dtype = work.reads[m.b.index()].dtype;
    let vector = vector(dtype, m.k);
    let loads = t.columns * t.depth * (vector * dtype.size()).div_ceil(4);
    let left = if staged { vector } else { rows * (vector + vector / 2) };
    let padded = padded(m, dtype, t);
    // Addresses of what is loaded next, and bounds.
    let next = if padded > vector * t.lanes * t.split * t.depth { 5 } else { 0 };
    let bounds = if padded > m.k { 5 } else { 0 };
    let draw = if m.draw.is_some() { 32 } else { 0 };
    loads + rows * t.columns + left + 2 * t.columns + 18 + next + bounds + draw + 8 * (rows - 1)
}

/// Registers that the compiler takes beside [`registers`] where it finds no loop over k: it loads the left operand of
/// further rows and vectors together (measured: 8 rows by 3 vectors take 50 more than by 2 in a loop).
fn hoisted(work: &Work, m: &MatMul, rows: usize, staged: bool, t: &Team) -> usize {
    let vector = vector(work.reads[m.b.index()].dtype, m.k);
    let one_chunk = padded(m, work.reads[m.b.index()].dtype, t) == vector * t.lanes * t.split * t.depth;
    if staged && one_chunk && rows > 1 { (2 * t.depth - 1) * vector } else { 0 }
}

/// Bytes of an element of the left operand in shared memory.
fn left_size(work: &Work, m: &MatMul) -> usize {
    if copied(work, m) { 2 } else { 4 }
}

/// Whether the left operand goes to shared memory as it is stored, in 16 bits.
pub(super) fn copied(work: &Work, m: &MatMul) -> bool {
    m.plain_left().is_some_and(|o| work.reads[o.index()].dtype.is_half())
}

fn gemv(work: &Work, m: &MatMul, rows: u32, target: &Target) -> Vec<Schedule> {
    let dtype = work.reads[m.b.index()].dtype;
    let mut found: Vec<(u64, Schedule)> = Vec::new();
    for warps in WARPS.iter().copied().filter(|w| m.draw.is_none() || w.is_power_of_two()) {
        let shared = (2..=warps).filter(|s| warps.is_multiple_of(*s)).map(|s| (32, s));
        for (lanes, split) in [(32, 1), (16, 1), (8, 1)].into_iter().chain(shared) {
            for columns in COLUMNS.map(|c| c * m.group) {
                for (depth, per_sm) in (1..=9).flat_map(|d| [2, 1, 4].map(|p| (d, p))) {
                    let team = Team { warps, lanes, split, columns, depth, per_sm };
                    let schedule = with_team(work, m, rows, &team, target);
                    for schedule in more_resident(work, m, schedule, target) {
                        if legal(work, &schedule, target).is_ok() {
                            let flight = (per_sm * warps * 32 * columns * depth * 16) as f64;
                            let flight = (flight / IN_FLIGHT as f64).log2().abs();
                            let (past, uneven) = waste(m, dtype, &team, &schedule, target);
                            // Loads past the end are of bytes that are near.
                            let likely = flight / 8.0 + past / 4.0 + uneven;
                            found.push(((likely * 1e3) as u64, schedule));
                        }
                    }
                }
            }
        }
    }
    let least = found.iter().map(|f| f.0).min().unwrap_or(0);
    found.retain(|f| f.0 <= least + UNLIKELY);
    found.sort_by_key(|f| f.0);
    found.into_iter().map(|(_, s)| s).collect()
}

/// A schedule, and the same with fewer registers for one block more on an SM.
fn more_resident(work: &Work, m: &MatMul, schedule: Schedule, target: &Target) -> Vec<Schedule> {
    let mut more = schedule.clone();
    if let Schedule::Gemv { resident, .. } = &mut more {
        *resident += 1;
    }
    set_ahead(&mut more, &RowOf::product(work, m), AHEAD, target);
    vec![schedule, more]
}

/// Loads past the end of rows, and what the SM with the most columns has beyond its share, both relative to the work
/// itself.
fn waste(m: &MatMul, dtype: DType, t: &Team, schedule: &Schedule, target: &Target) -> (f64, f64) {
    let Schedule::Gemv { blocks, .. } = schedule else { return (f64::INFINITY, f64::INFINITY) };
    let (blocks, sms) = (*blocks as usize, target.profile.sms as usize);
    let teams = (t.warps * 32 / t.lanes / t.split).max(1);
    let rounds = m.columns().div_ceil(t.columns).div_ceil(teams * blocks);
    let busiest = blocks.div_ceil(sms) * teams * rounds * t.columns;
    let beyond = |done: usize, needed: usize| done as f64 / needed.max(1) as f64 - 1.0;
    (beyond(padded(m, dtype, t), m.k), beyond(busiest * sms.min(blocks), m.columns()))
}

fn attention(work: &Work, a: &Attention, bind: &Bindings, target: &Target) -> Vec<Schedule> {
    // Splits follow the bucket's context and the blocks that there are, in clusters and alone.
    let shares = |heads: usize| {
        let (usual, most) = (splits(a, (heads, 1), bind, target), most_splits(a, bind) as u32);
        let all = [usual, most, usual / 2, usual / 4, usual * 2].map(|s| s.clamp(1, most));
        if a.projection.is_some() {
            return [MAX_CLUSTER, 4, 2].map(|s| (s.min(most), s.min(most))).to_vec();
        }
        let joined = all.map(|s| clustered(a, s, target)).into_iter();
        joined.chain(all.map(|s| (s, 1))).collect::<Vec<_>>()
    };
    let grouped = group_heads(a);
    let groups = shares(grouped).into_iter().flat_map(|(splits, cluster)| {
        let heads = grouped as u32;
        [9, 8, 10, 5, 4, 2, 3, 16].into_iter().flat_map(move |warps| {
            [1, 2, 3, 4].map(|depth| Schedule::AttentionGroup {
                warps,
                heads,
                depth,
                splits,
                cluster,
                late: starts_late(cluster),
            })
        })
    });
    let heads = (1..=a.group.min(8)).filter(|h| a.group.is_multiple_of(*h));
    let rows = heads.flat_map(|heads| {
        let each = move |(splits, cluster)| {
            let heads = heads as u32;
            [8, 4, 16, 2].into_iter().flat_map(move |warps| {
                [4, 2, 1].map(|depth| Schedule::AttentionRow {
                    warps,
                    heads,
                    depth,
                    splits,
                    cluster,
                    late: starts_late(cluster),
                })
            })
        };
        shares(heads).into_iter().flat_map(each)
    });
    let mut out: Vec<Schedule> = Vec::new();
    for schedule in groups.chain(rows) {
        if !out.contains(&schedule) && legal(work, &schedule, target).is_ok() {
            out.push(schedule);
        }
    }
    out
}

/// Whether a schedule of a decode family can be built for a work, and fits the target by estimate.
///
/// # Errors
/// Why not.
pub fn legal(work: &Work, schedule: &Schedule, target: &Target) -> Result<(), String> {
    match (&work.compute, schedule) {
        (
            Compute::MatMul(m),
            Schedule::Gemv {
                rows,
                warps,
                lanes,
                split,
                columns,
                depth,
                blocks,
                staged,
                resident,
                behind,
                ahead,
                late: _,
            },
        ) => {
            let team = Team {
                warps: *warps as usize,
                lanes: *lanes as usize,
                split: *split as usize,
                columns: *columns as usize,
                depth: *depth as usize,
                per_sm: 1,
            };
            let threads = warps * 32 * resident.max(&1);
            need(threads <= target.threads, || format!("{resident} blocks of {warps} warps on an SM"))?;
            if *resident > 1 {
                // The compiler is told how many registers are left, and makes do with somewhat fewer than by estimate.
                let about = registers(work, m, *rows as usize, *staged, &team);
                let most = target.registers / threads / 8 * 8;
                need(about <= most as usize * SQUEEZED / 8, || {
                    format!("about {about} registers a thread, of {most} for {resident} blocks on an SM")
                })?;
            }
            FirstLoads::new(*columns, *depth, *behind)?;
            let bulk = *ahead == 0 || target.features.tma && RowOf::product(work, m).pieces().is_some();
            need(bulk, || format!("{ahead} bytes ahead of rows that cannot be prefetched in bulk"))?;
            legal_gemv(work, m, (*rows as usize, *blocks as usize, *staged), &team, target)
        }
        (Compute::Attention(a), Schedule::AttentionRow { warps, heads, depth, splits, cluster, late: _ }) => {
            legal_cluster(a, (*splits, *cluster), target)?;
            need(a.projection.is_none(), || "only blocks on tensor cores project".into())?;
            legal_row(work, a, (*warps as usize, *heads as usize, *depth as usize), target)
        }
        (
            Compute::Attention(a),
            Schedule::AttentionGroup { warps, heads, depth, splits, cluster, late: _ },
        ) => {
            legal_cluster(a, (*splits, *cluster), target)?;
            let held = projected(work, a, (*warps, *heads), (*splits, *cluster))?;
            legal_group(work, a, (*warps as usize, *heads as usize, *depth as usize), held, target)
        }
        (_, other) => Err(format!("{other:?} is of another family")),
    }
}

/// Splits are whole clusters, which the target has.
fn legal_cluster(a: &Attention, (splits, cluster): (u32, u32), target: &Target) -> Result<(), String> {
    need(cluster == 1 || clusters(a, cluster, target), || format!("clusters of {cluster} blocks"))?;
    need(cluster > 0 && splits.is_multiple_of(cluster), || format!("{splits} splits by {cluster}"))
}

/// Registers of a thread for its part of a projection's weight; none without one.
///
/// # Errors
/// Why the block cannot project.
fn projected(
    work: &Work,
    a: &Attention,
    (warps, heads): (u32, u32),
    (splits, cluster): (u32, u32),
) -> Result<usize, String> {
    let Some(p) = &a.projection else { return Ok(0) };
    let whole = cluster > 1 && splits == cluster && heads as usize == a.group;
    need(whole, || "no cluster has all keys and query heads of a head of keys".into())?;
    let dtype = work.reads[p.weight.index()].dtype;
    let share = ProjectionShare::new(a, p, (dtype, cluster as usize, warps as usize))?;
    Ok((share.held() * dtype.size()).div_ceil(4))
}

fn need(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

/// Threads and registers of a block, and its shared memory, fit.
fn fits(warps: usize, registers: usize, shared: usize, target: &Target) -> Result<(), String> {
    need((1..=32).contains(&warps), || format!("{warps} warps"))?;
    let most = REGISTERS.min(target.registers as usize / (warps * 32));
    need(registers <= most, || format!("about {registers} registers a thread, of {most}"))?;
    let room = target.shared_bytes as usize;
    need(shared <= room, || format!("{shared} bytes of shared memory, of {room}"))
}

fn legal_gemv(
    work: &Work,
    m: &MatMul,
    (rows, blocks, staged): (usize, usize, bool),
    t: &Team,
    target: &Target,
) -> Result<(), String> {
    need(m.row.is_none(), || "the product makes whole rows".into())?;
    let team = t.lanes.is_power_of_two() && t.lanes <= 32 && t.split >= 1 && (t.lanes == 32 || t.split == 1);
    need(team && t.warps.is_multiple_of(t.split), || format!("teams of {} lanes × {}", t.lanes, t.split))?;
    let whole = t.columns >= 1 && t.columns.is_multiple_of(m.group.max(1));
    need(whole, || format!("{} columns in groups of {}", t.columns, m.group))?;
    need(t.depth >= 1 && blocks >= 1, || "nothing in flight".into())?;
    need((1..=GEMV_ROWS).contains(&rows), || format!("{rows} rows"))?;
    let dtype = work.reads[m.b.index()].dtype;
    let registers = registers(work, m, rows, staged, t) + hoisted(work, m, rows, staged, t);
    let left = if staged { rows * padded(m, dtype, t) * left_size(work, m) } else { 0 };
    let partial = if t.split > 1 { 2 * t.warps * rows * t.columns * 4 } else { 0 };
    let stages = m.stages.len() * rows * t.warps * 4;
    // A draw joins the best of each team's points.
    let points = t.warps * 32 / t.lanes / t.split * rows * t.columns / m.group.max(1);
    let draw = if m.draw.is_some() { points.max(t.warps) * 8 + t.warps * 4 } else { 0 };
    fits(t.warps, registers, left + partial + stages + draw + 64, target)
}

fn legal_group(
    work: &Work,
    a: &Attention,
    (warps, heads, depth): (usize, usize, usize),
    held: usize,
    target: &Target,
) -> Result<(), String> {
    groups(work, a, target)?;
    need(heads <= GROUP_HEADS, || format!("{heads} heads of a tile of {GROUP_HEADS}"))?;
    // Tiles of keys and values, queries, sums, scores, and addresses.
    let registers =
        depth * (a.head_dim + a.value_dim) / 4 + a.head_dim / 8 + a.value_dim / 4 + depth * 4 + 40 + held;
    // What the blocks of a cluster send one of them: parts of one value, or whole ones and what they become.
    let value = heads * a.value_dim * 4;
    let received = if a.projection.is_some() { (MAX_CLUSTER as usize + 1) * value } else { value };
    legal_decode(a, (warps, heads, depth), (registers, received), target)
}

fn legal_row(
    work: &Work,
    a: &Attention,
    (warps, heads, depth): (usize, usize, usize),
    target: &Target,
) -> Result<(), String> {
    let slices = (a.head_dim + a.value_dim) / a.row_lanes();
    let size = work.reads[a.keys.index()].dtype.size();
    let registers = heads * (slices + 2) + (depth * slices * size).div_ceil(4) + depth + 40;
    legal_decode(a, (warps, heads, depth), (registers, heads * a.value_dim * 4), target)
}

/// What decode attention needs however its keys are taken: whole parts of a group, and room for the warps' states.
fn legal_decode(
    a: &Attention,
    (warps, heads, depth): (usize, usize, usize),
    (registers, received): (usize, usize),
    target: &Target,
) -> Result<(), String> {
    need(heads >= 1 && a.group.is_multiple_of(heads), || format!("{heads} heads of a group of {}", a.group))?;
    need(depth >= 1, || "nothing in flight".into())?;
    // The states of the block's warps, and what the blocks of a cluster send it.
    let state = heads * (a.value_dim + 2) * 4;
    fits(warps, registers, warps * state + received + (MAX_CLUSTER as usize + 1) * heads * 8 + 64, target)
}
