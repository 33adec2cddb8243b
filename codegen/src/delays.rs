//! Delays in kernels, for tests: blocks sleep at several places, each for its own time, so that kernels which
//! overlap do so in other ways. What a plan computes must not change.

use weft_ir::dtype::DType;
use weft_ir::kernel::{Axis, Expr, Kernel, Stmt};

/// Longest delay, in nanoseconds.
const LONGEST: i64 = 30_000;

/// Parts of a kernel's statements that a delay may come before, besides its start, the trigger and the wait.
const PLACES: u64 = 3;

/// The kernel with delays; the same seed gives the same kernel. Names and parameters stay.
///
/// Delays are between statements of the outermost block, which all threads of a block reach, and behind triggers and waits
/// wherever they are.
pub fn delayed(kernel: &Kernel, seed: u64) -> Kernel {
    let mut random = Random(seed ^ kernel.name.bytes().fold(0xcbf2_9ce4_8422_2325, step));
    let many = kernel.body.len() as u64;
    let chosen: Vec<u64> = (0..PLACES).map(|_| random.next() % many.max(1)).collect();
    let mut body = vec![sleep(&mut random)];
    for (i, statement) in kernel.body.iter().enumerate() {
        if chosen.contains(&(i as u64)) {
            body.push(sleep(&mut random));
        }
        behind_triggers(statement, &mut random, &mut body);
    }
    Kernel { body, ..kernel.clone() }
}

/// Adds a statement, with delays behind the triggers and waits in it.
fn behind_triggers(statement: &Stmt, random: &mut Random, to: &mut Vec<Stmt>) {
    let mut inside = |body: &[Stmt]| {
        let mut out = Vec::with_capacity(body.len());
        body.iter().for_each(|s| behind_triggers(s, random, &mut out));
        out
    };
    match statement {
        Stmt::If { cond, then, otherwise } => {
            let (then, otherwise) = (inside(then), inside(otherwise));
            to.push(Stmt::If { cond: cond.clone(), then, otherwise });
        }
        Stmt::For { var, start, end, step, unroll, body } => to.push(Stmt::For {
            var: *var,
            start: start.clone(),
            end: end.clone(),
            step: step.clone(),
            unroll: *unroll,
            body: inside(body),
        }),
        Stmt::GridDependencyLaunch | Stmt::GridDependencyWait => {
            to.push(statement.clone());
            to.push(sleep(random));
        }
        _ => to.push(statement.clone()),
    }
}

/// A delay that differs from block to block.
fn sleep(random: &mut Random) -> Stmt {
    let mut number = |below: i64| (random.next() % below as u64) as i64;
    let blocks = Expr::BlockIdx(Axis::X) * number(977) + Expr::BlockIdx(Axis::Y) * number(1291);
    // Below 2^31 for the largest grids.
    let nanoseconds = (blocks % LONGEST + number(LONGEST)) % LONGEST;
    Stmt::Sleep { nanoseconds: nanoseconds.cast(DType::U32) }
}

/// FNV-1a.
fn step(hash: u64, byte: u8) -> u64 {
    (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
}

/// SplitMix64 (Steele et al. 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
