//! Rings of stages that tiles are copied to: what their statements ask for, and their order as far as the text shows it.

use super::check::{Use, Verifier};
use super::fault::FaultKind;
use super::uniform::Agreement;
use crate::dtype::DType;
use crate::ids::RingId;
use crate::kernel::{Expr, Kernel, Mem, ParamKind, SWIZZLED, SWIZZLED_ROW, TileCopy};

/// Most stages of a ring.
const MAX_STAGES: u32 = 16;
/// Most rows of a tile (CUDA driver API, `cuTensorMapEncodeTiled`: boxDim).
const MAX_ROWS: u32 = 256;

/// What was seen of a ring.
#[derive(Clone, Copy, Default)]
struct Seen {
    made: bool,
    filled: bool,
    awaited: bool,
}

/// What was seen of the rings of a kernel.
pub(super) struct Rings(Vec<Seen>);

impl Rings {
    pub fn new(kernel: &Kernel) -> Rings {
        Rings(vec![Seen::default(); kernel.rings.len()])
    }
}

impl Verifier<'_> {
    pub(super) fn rings_header(&mut self) {
        for ring in &self.kernel.rings {
            if !(1..=MAX_STAGES).contains(&ring.stages) {
                let (name, stages) = (&ring.name, ring.stages);
                self.fault(FaultKind::Header(format!(
                    "ring `{name}` of {stages} stages, must be 1 to {MAX_STAGES}"
                )));
            }
        }
        for param in &self.kernel.params {
            let ParamKind::Matrix { dtype, access: _, columns, rows } = param.kind else { continue };
            let whole = columns > 0 && columns.is_multiple_of(8);
            if !dtype.is_half() || !whole || rows == 0 || rows > MAX_ROWS || !rows.is_multiple_of(8) {
                self.fault(FaultKind::Header(format!(
                    "matrix `{}` of {dtype} with {columns} columns in tiles of {rows} rows: 16-bit floats, columns and rows \
                     of whole eights and at most {MAX_ROWS} rows are possible",
                    param.name
                )));
            }
        }
    }

    /// A use of a ring that was made.
    fn ring(&mut self, ring: RingId, mark: impl FnOnce(&mut Seen)) {
        let name = self.kernel.ring(ring).map_or_else(|| ring.to_string(), |r| r.name.clone());
        match self.rings.0.get_mut(ring.index()) {
            None => self.type_fault(format!("no {ring}")),
            Some(seen) => {
                mark(seen);
                if !seen.made {
                    self.fault(FaultKind::Signal(format!("`{name}` is used before it is made")));
                }
            }
        }
    }

    /// An i32 that all threads of the block agree on.
    fn of_block(&mut self, e: &Expr, agreement: Agreement, what: &'static str) {
        self.typed(e, agreement, DType::I32, what);
        if self.uniformity.of(e) > Agreement::Block {
            self.fault(FaultKind::Disagreement(what));
        }
    }

    pub(super) fn make_ring(&mut self, ring: RingId, top: bool) {
        if !top {
            self.fault(FaultKind::ConditionalCluster("making of a ring"));
        }
        let again = self.rings.0.get(ring.index()).is_some_and(|seen| seen.made);
        if again {
            self.fault(FaultKind::Signal(format!("{ring} is made twice")));
        }
        self.ring(ring, |seen| seen.made = true);
    }

    pub(super) fn fill_stage(
        &mut self,
        ring: RingId,
        stage: &Expr,
        bytes: u32,
        tiles: &[TileCopy],
        agreement: Agreement,
    ) {
        self.collective("filling of a stage", agreement, Agreement::Block);
        self.of_block(stage, agreement, "stage of a ring");
        self.ring(ring, |seen| seen.filled = true);
        let mut all = 0;
        for tile in tiles {
            self.of_block(&tile.to_row, agreement, "place of a tile in shared memory");
            self.of_block(&tile.row, agreement, "row of a tile");
            self.of_block(&tile.column, agreement, "column of a tile");
            self.touch(tile.from, Use::Tile, None);
            let rows = match tile.from {
                Mem::Global(p) => match self.kernel.params.get(p.index()).map(|p| p.kind) {
                    Some(ParamKind::Matrix { rows, .. }) => rows,
                    _ => continue,
                },
                Mem::Shared(_) => {
                    self.type_fault("a tile of shared memory");
                    continue;
                }
            };
            let first = tile.to_row.clone() * i64::from(SWIZZLED_ROW);
            self.touch(Mem::Shared(tile.to), Use::Write, Some((&first, rows * SWIZZLED_ROW)));
            let Some(array) = self.kernel.shared_array(tile.to) else { continue };
            let dtype = self.kernel.mem_dtype(tile.from);
            if Some(array.dtype) != dtype || array.align != SWIZZLED {
                let (name, align, of) = (&array.name, array.align, array.dtype);
                self.type_fault(format!(
                    "a tile of {dtype:?} in `{name}` of {of}, aligned to {align} bytes, must be {SWIZZLED}"
                ));
            }
            all += rows * SWIZZLED_ROW * array.dtype.size() as u32;
        }
        if tiles.is_empty() || (bytes > 0 && bytes < all) {
            self.type_fault(format!("a filling of {bytes} bytes with tiles of {all}"));
        }
    }

    pub(super) fn await_stage(&mut self, ring: RingId, stage: &Expr, round: &Expr, agreement: Agreement) {
        self.collective("wait for a stage", agreement, Agreement::Block);
        self.of_block(stage, agreement, "stage of a ring");
        self.of_block(round, agreement, "round of a ring");
        self.ring(ring, |seen| seen.awaited = true);
    }

    /// At the end of the kernel: a block that did not wait for its tiles may be gone when they arrive.
    pub(super) fn rings_end(&mut self) {
        let left = |(_, seen): &(usize, &Seen)| seen.filled != seen.awaited;
        let left: Vec<usize> = self.rings.0.iter().enumerate().filter(left).map(|(i, _)| i).collect();
        for i in left {
            let name = self.kernel.rings[i].name.clone();
            self.fault(FaultKind::Signal(format!("`{name}` is filled or awaited, but not both")));
        }
    }
}
