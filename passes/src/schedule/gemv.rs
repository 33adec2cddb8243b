//! Schedules of skinny matrix products: how teams of threads share k and the rows of the right operand.
//!
//! Nothing but `rows`, whether the left operand fits shared memory, and when loads start follows from the number of rows,
//! so that a row's sums have the same order in every bucket whose products are streamed.

use super::ahead::{AHEAD, RowOf, halve, set_ahead};
use super::candidates::{Team, copied, legal, rounds_and_blocks, with_team};
use weft_ir::dtype::DType;
use weft_ir::plan::{Draw, Extent, MatMul, Partials, Schedule, Scratch, Work};
use weft_ir::shape::Dim;
use weft_ir::target::Target;

/// Columns of a team, where a point has one.
const COLUMNS: usize = 2;
/// Most warps of a block of a head, and fewest.
const WARPS: (usize, usize) = (8, 4);
/// Blocks of one kernel on an SM: two leave room for the blocks of the next kernel, which start their loads
/// early.
const BLOCKS: usize = 2;
/// Warps of a block where these even out what SMs have to do.
const EVEN: usize = 12;
/// Bytes of an SM that such blocks ask for ahead.
const AHEAD_EVEN: usize = 80 * 1024;
/// Fewest warps of a block that computes its left operand.
const COMPUTING: usize = 8;
/// Most loads of a row that a lane of such a block keeps in flight.
const WHOLE: usize = 8;
/// Most 16-byte loads of a lane whose block has all of an SM's share on its way.
const ALL: usize = 16;
/// Most 16-byte loads a lane keeps in flight: four registers each.
const IN_FLIGHT: usize = 9;
/// Most shared memory for the left operand.
const STAGED_BYTES: usize = 96 * 1024;

/// The schedule for a block of `rows` rows.
pub(super) fn schedule(work: &Work, m: &MatMul, rows: u32, target: &Target) -> Schedule {
    match m.draw {
        Some(_) => of_head(work, m, rows, target),
        None => of_layer(work, m, rows, target),
    }
}

/// Many warps with few loads each, the warps of a block sharing k: as fast as few warps with many loads in the middle
/// of a product, and faster at its beginning and end, which is most of a small one (measured on an H200).
fn of_layer(work: &Work, m: &MatMul, rows: u32, target: &Target) -> Schedule {
    let vectors = m.k / vector(work, m);
    let most = if m.group == 1 { COLUMNS } else { m.group };
    // Many rows of f32 take their registers for one column. It changes no sum, as the number of warps would: that one
    // follows from the shape alone.
    let half = work.reads[m.b.index()].dtype.is_half();
    let columns = if rows <= 4 || half { most } else { m.group };
    // Two vectors of a column for each lane, or more.
    let split = [4, 2].into_iter().find(|split| vectors >= 32 * split * 2).unwrap_or(1);
    let tasks = m.columns().div_ceil(most);
    let teams = tasks.div_ceil(target.profile.sms as usize) * split;
    // All SMs have a block.
    let warps = [16, 8, 4].into_iter().find(|warps| teams >= *warps && warps % split == 0).unwrap_or(4);
    let depth = depth(vectors.div_ceil(32 * split), IN_FLIGHT / columns);
    let mut team = Team { warps, lanes: 32, split, columns, depth, per_sm: BLOCKS };
    let computing = m.plain_left().is_none() && warps < COMPUTING && (32..=16 * WHOLE).contains(&vectors);
    let alone = if computing { None } else { one_block(m, vectors, target) };
    if computing {
        // Each block computes the left operand: few blocks of many threads, whose teams have all of a row in flight.
        // More rows take the registers of some of it.
        let most = if rows > 1 { 2 } else { WHOLE };
        team = Team { warps: COMPUTING, lanes: 16, split: 1, depth: vectors.div_ceil(16).min(most), ..team };
    }
    team = alone.unwrap_or(team);
    let even = alone.is_none() && m.stages.is_empty() && copied(work, m) && evens_out(&team, tasks, target);
    if even {
        team.warps = EVEN;
    }
    // Further rows take registers. Columns and loads in flight do not change the order of sums, nor does how many rows
    // a block takes; warps would. Fewer rows have room for all of the former again.
    let (mut rows, whole) = (rows, (team.depth, team.columns));
    loop {
        let mut schedule = with_team(work, m, rows, &team, target);
        if (alone.is_some() || even) && rows == 1 {
            halve(&mut schedule);
        }
        if even && rows == 1 {
            set_ahead(&mut schedule, &RowOf::product(work, m), AHEAD_EVEN, target);
        }
        let legal = legal(work, &schedule, target).is_ok();
        match (team.depth > 1, team.columns > m.group, rows > 1) {
            _ if legal => return schedule,
            (true, _, _) => team.depth -= 1,
            (_, true, _) => team.columns = m.group,
            (_, _, true) => {
                rows = rows.div_ceil(2);
                (team.depth, team.columns) = whole;
            }
            _ => return schedule,
        }
    }
}

/// Whether 12 warps a block, not 16, leave the SM with the most work a fifth less of it in as many rounds of several: 192
/// blocks are two for some of 132 SMs and one for others, 256 are two for nearly all. In a step the next kernel waits for the
/// slowest SM, so it is worth more there than alone. Measured for 3072 × 3072 (docs/performance.md, shapes that were never
/// tuned), where 8 warps, which take a round more, are no help; products whose blocks make their left operand are not
/// considered, since more blocks would make it more often.
fn evens_out(team: &Team, tasks: usize, target: &Target) -> bool {
    let most = |warps: usize| {
        let teams = warps / team.split;
        let (rounds, blocks) = rounds_and_blocks(tasks, teams, BLOCKS, target);
        (rounds, blocks.div_ceil(target.profile.sms as usize) * rounds * teams)
    };
    if team.warps != 16 || !EVEN.is_multiple_of(team.split) {
        return false;
    }
    let ((rounds, own), (of_even, even)) = (most(team.warps), most(EVEN));
    rounds > 1 && rounds == of_even && 5 * even <= 4 * own
}

/// One block an SM, of few warps, where they have all of its share of the weight on its way: each block makes the left
/// operand, and where that takes several passes over the row (a LayerNorm), the barriers between them hold up many warps
/// more than few. What it is made of comes before half of the weight, since what an SM asks for comes back in turn.
fn one_block(m: &MatMul, vectors: usize, target: &Target) -> Option<Team> {
    let (_, passes) = m.passes();
    let points = (m.columns() / m.group).div_ceil(target.profile.sms as usize);
    let columns = points.div_ceil(COMPUTING) * m.group;
    let depth = vectors.div_ceil(32);
    let fits = passes > 0 && columns * depth <= ALL;
    fits.then_some(Team { warps: COMPUTING, lanes: 32, split: 1, columns, depth, per_sm: BLOCKS })
}

/// Elements of a 16-byte load of the right operand (fewer where rows are not whole loads).
fn vector(work: &Work, m: &MatMul) -> usize {
    let most = 16 / work.reads[m.b.index()].dtype.size();
    (1..=most).rev().find(|v| v.is_power_of_two() && m.k.is_multiple_of(*v)).unwrap_or(1)
}

/// The head, whose stream is long: few warps with many loads.
fn of_head(work: &Work, m: &MatMul, rows: u32, target: &Target) -> Schedule {
    let vector = vector(work, m);
    let vectors = m.k / vector;
    let sms = target.profile.sms as usize;
    let columns = m.group;
    let tasks = m.columns().div_ceil(columns);
    // While the whole product is in flight at once, many lanes; else those that cover a row exactly.
    let small = tasks <= sms * BLOCKS * WARPS.0;
    let choices: &[usize] = if small { &[32] } else { &[32, 16, 8] };
    let (lanes, depth) = choices
        .iter()
        .map(|&lanes| (lanes, depth(vectors.div_ceil(lanes), IN_FLIGHT / columns)))
        .min_by_key(|&(lanes, depth)| vectors.next_multiple_of(lanes * depth))
        .unwrap_or((32, 1));
    let teams = |warps: usize| warps * 32 / lanes;
    let warps = if tasks.div_ceil(teams(WARPS.0)) < sms { WARPS.1 } else { WARPS.0 };
    // The same number of rounds for every team.
    let rounds = tasks.div_ceil(teams(warps) * sms * BLOCKS * WARPS.0 / warps).max(1);
    let blocks = tasks.div_ceil(teams(warps) * rounds).max(1);
    let plain = copied(work, m);
    let padded = m.k.next_multiple_of(vector * lanes * depth);
    // Two blocks fit on an SM.
    let room = STAGED_BYTES.min(target.shared_bytes as usize / 2 - 2048);
    let staged = rows as usize * padded * if plain { 2 } else { 4 } <= room;
    let mut schedule = Schedule::Gemv {
        rows,
        warps: warps as u32,
        lanes: lanes as u32,
        split: 1,
        columns: columns as u32,
        depth: depth as u32,
        blocks: blocks as u32,
        staged,
        resident: 1,
        behind: 0,
        ahead: 0,
        late: false,
    };
    set_ahead(&mut schedule, &RowOf::product(work, m), AHEAD, target);
    schedule
}

/// Vectors in flight of a lane that has `count` in all: few rounds, and few vectors past the end.
fn depth(count: usize, most: usize) -> usize {
    let cost = |d: &usize| count.next_multiple_of(*d) + count.div_ceil(*d);
    (1..=most.max(1)).rev().min_by_key(cost).unwrap_or(1)
}

/// What the blocks of a product that draws tokens leave for the last of them: the best of each block's columns,
/// for each row, and for penalties a copy of the logits.
pub(super) fn draw_scratch(m: &MatMul, draw: &Draw, rows: u32, blocks: u32) -> Scratch {
    let array = |name: &str, dtype: DType, per_row: usize| Partials {
        name: name.into(),
        dtype,
        elements: Extent { dims: vec![m.m, Dim::Const(per_row)], per: 1 },
    };
    let mut partials = vec![
        array("block_score", DType::F32, blocks as usize),
        array("block_token", DType::I32, blocks as usize),
    ];
    if draw.penalties.is_some() {
        partials.push(array("penalised", DType::F32, m.columns()));
    }
    Scratch { partials, counters: Extent { dims: vec![m.m], per: rows as usize } }
}
