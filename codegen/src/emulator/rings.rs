//! Rings of stages: tiles that are copied to shared memory in the background.
//!
//! A tile is there when its stage is awaited, and not before: until then its rows may not be used, and what was done with
//! them before lies behind a block barrier. Tiles come by the proxy that `wgmma` reads by, so no fence shows them to it.

use super::fault::{FaultKind, Step, raise};
use super::machine::{Copy, Machine};
use super::program::{Node, Tile};
use super::race::Mode;
use super::value;
use weft_ir::kernel::SWIZZLED_ROW;

/// Elements of a piece of a swizzled row, and of the row.
const PIECE: i64 = 8;
const PITCH: i64 = SWIZZLED_ROW as i64;

/// A stage of a ring.
#[derive(Clone, Debug, Default)]
struct Stage {
    /// Fillings that were awaited.
    rounds: i64,
    /// Bytes of the filling that began.
    expected: Option<u32>,
    /// Copies of its tiles.
    copies: Vec<Copy>,
}

/// The rings of a block; a ring has no stages until it is made.
#[derive(Clone, Debug, Default)]
pub(super) struct Rings(Vec<Vec<Stage>>);

impl Rings {
    pub(super) fn new(rings: usize) -> Rings {
        Rings(vec![Vec::new(); rings])
    }
}

impl Machine<'_> {
    fn all_threads(&self, active: &[u32], what: &'static str) -> Step<()> {
        if active.len() == self.threads {
            return Ok(());
        }
        let arrived = active.len() as u32;
        raise(active.first().copied().unwrap_or(0), FaultKind::DivergentCollective { what, arrived })
    }

    /// A value that all threads have.
    fn agreed(&mut self, node: &Node, active: &[u32]) -> Step<i64> {
        let values = self.eval(node, active)?;
        let first = values[active[0] as usize];
        if let Some(thread) = active.iter().find(|t| values[**t as usize] != first) {
            let why = "threads of a block differ on a stage or a tile";
            return raise(*thread, FaultKind::Invalid(why.into()));
        }
        self.give(values);
        Ok(value::int_of(node.dtype, first))
    }

    fn stage(&mut self, ring: usize, stage: i64) -> Step<&mut Stage> {
        let name = self.kernel.rings[ring].name.clone();
        let stages = &mut self.rings.0[ring];
        let len = stages.len() as u64;
        match usize::try_from(stage).ok().and_then(|i| stages.get_mut(i)) {
            Some(found) => Ok(found),
            None => raise(0, FaultKind::OutOfBounds { array: name, index: stage, len }),
        }
    }

    pub(super) fn make_ring(&mut self, ring: usize, active: &[u32]) -> Step<()> {
        self.all_threads(active, "making of a ring")?;
        let stages = self.kernel.rings[ring].stages as usize;
        self.rings.0[ring] = vec![Stage::default(); stages];
        Ok(())
    }

    pub(super) fn fill_stage(
        &mut self,
        (ring, stage): (usize, &Node),
        bytes: u32,
        tiles: &[Tile],
        active: &[u32],
    ) -> Step<()> {
        self.all_threads(active, "filling of a stage")?;
        let at = self.agreed(stage, active)?;
        let begun = self.stage(ring, at)?.expected.is_some();
        if begun == (bytes > 0) {
            let why = if begun {
                "a stage is filled again before it was awaited"
            } else {
                "a filling goes on that did not begin"
            };
            return raise(0, FaultKind::Invalid(why.into()));
        }
        if bytes > 0 {
            self.stage(ring, at)?.expected = Some(bytes);
        }
        for tile in tiles {
            let [to_row, row, column] =
                [&tile.to_row, &tile.row, &tile.column].map(|n| self.agreed(n, active));
            let copies = self.tile(tile, (to_row?, row?, column?))?;
            self.stage(ring, at)?.copies.extend(copies);
        }
        Ok(())
    }

    /// The copies of a tile, 16 bytes each.
    fn tile(&mut self, tile: &Tile, (to_row, row, column): (i64, i64, i64)) -> Step<Vec<Copy>> {
        if to_row % 8 != 0 || row < 0 || column < 0 {
            let why = format!("a tile of row {row} and column {column} to row {to_row} of shared memory");
            return raise(0, FaultKind::Invalid(why));
        }
        let (width, size) = (i64::from(tile.columns), self.array(tile.from)?.size);
        let region = self.array(tile.from)?.region;
        let height = (self.regions[region].bytes.len() / size) as i64 / width;
        let seen = self.warpgroups.seen(0);
        let mut copies = Vec::new();
        for r in 0..i64::from(tile.rows) {
            for piece in 0..PITCH / PIECE {
                let place = (to_row + r) * PITCH + (piece ^ ((to_row + r) % 8)) * PIECE;
                let to = self.touch(tile.to, place, PIECE as usize, 0, Mode::Write)?;
                let at = column + piece * PIECE;
                let from = match row + r < height && at < width {
                    true => {
                        let index = (row + r) * width + at;
                        Some(self.touch(tile.from, index, PIECE as usize, 0, Mode::Read)?)
                    }
                    false => None,
                };
                if let Some(shadow) = &mut self.shadows[to.0] {
                    (0..PIECE as usize).for_each(|e| shadow.launch(to.1 / size + e));
                }
                copies.push(Copy { to, from, bytes: PIECE as usize * size, size });
            }
        }
        self.warpgroups.set_seen(0, seen);
        Ok(copies)
    }

    pub(super) fn await_stage(
        &mut self,
        (ring, stage): (usize, &Node),
        round: &Node,
        active: &[u32],
    ) -> Step<()> {
        self.all_threads(active, "wait for a stage")?;
        let (at, round) = (self.agreed(stage, active)?, self.agreed(round, active)?);
        let found = self.stage(ring, at)?;
        let arrived: usize = found.copies.iter().map(|c| c.bytes).sum();
        let (expected, rounds) = (found.expected.take(), found.rounds);
        let copies = std::mem::take(&mut found.copies);
        found.rounds += 1;
        if expected.map(|e| e as usize) != Some(arrived) || round != rounds {
            let signal = format!("{}[{at}]", self.kernel.rings[ring].name);
            if round != rounds {
                let why = format!("`{signal}` is awaited in round {round}, and {rounds} were before");
                return raise(0, FaultKind::Invalid(why));
            }
            let (expected, sent) = (i64::from(expected.unwrap_or(0)), arrived as i64);
            return raise(0, FaultKind::SignalBytes { signal, expected, sent });
        }
        for copy in copies {
            let (region, offset) = copy.to;
            for at in (0..copy.bytes).step_by(copy.size) {
                let bits = copy.from.map_or(0, |(r, o)| self.regions[r].get(o + at, copy.size));
                self.regions[region].set(offset + at, copy.size, bits);
                if let Some(shadow) = &mut self.shadows[region] {
                    shadow.arrive((offset + at) / copy.size);
                }
            }
        }
        Ok(())
    }

    /// At the end of a block no tile is on its way.
    pub(super) fn no_tiles(&self) -> Step<()> {
        match self.rings.0.iter().flatten().any(|s| s.expected.is_some()) {
            false => Ok(()),
            true => raise(0, FaultKind::Invalid("tiles on their way as the block ends".into())),
        }
    }
}
