//! Memory that a schedule needs besides the arrays of its work: partial results that blocks leave for the one
//! that arrives last (`Stmt::LastBlock` of kernel IR), and the counters at which they arrive.
//!
//! A kernel takes the addresses after its ordinary parameters: each array of partial results, then the counters.

use super::Extent;
use crate::dtype::DType;
use crate::ids::DispatchId;
use crate::shape::Bindings;
use serde::{Deserialize, Serialize};

/// Alignment of an array in its memory, in bytes: what a device allocation has.
pub const ALIGN: usize = 256;

/// An array of partial results.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Partials {
    /// Name of the kernel's parameter.
    pub name: String,
    /// Type of an element: f32 or i32.
    pub dtype: DType,
    /// Elements.
    pub elements: Extent,
}

/// What a kernel needs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Scratch {
    /// Partial results: in the arena while the dispatch runs, with any contents as it starts.
    pub partials: Vec<Partials>,
    /// Counters of blocks, u32: each dispatch has its own, all 0 as it starts and as it ends.
    pub counters: Extent,
}

impl Scratch {
    /// Byte offset of each array of partial results, multiples of [`ALIGN`], and the bytes of all.
    pub fn layout(&self, bind: &Bindings) -> (Vec<usize>, usize) {
        let mut end = 0usize;
        let offsets = self.partials.iter().map(|p| {
            let here = end.checked_next_multiple_of(ALIGN).unwrap_or(usize::MAX);
            end = here.saturating_add(p.elements.blocks(bind).saturating_mul(p.dtype.size()));
            here
        });
        (offsets.collect(), end)
    }

    /// Bytes of the counters.
    pub fn counter_bytes(&self, bind: &Bindings) -> usize {
        self.counters.blocks(bind).saturating_mul(DType::U32.size())
    }

    /// Bytes of all partial results.
    pub fn partial_bytes(&self, bind: &Bindings) -> usize {
        let bytes = |p: &Partials| p.elements.blocks(bind).saturating_mul(p.dtype.size());
        self.partials.iter().map(bytes).fold(0, usize::saturating_add)
    }
}

/// Where the scratch of a dispatch lies in an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScratchPlace {
    /// Dispatch of the entry's body.
    pub dispatch: DispatchId,
    /// Offset of the partial results in the arena in bytes, a multiple of [`ALIGN`].
    pub offset: usize,
    /// Bytes of the partial results.
    pub bytes: usize,
    /// Offset of the counters in their region in bytes, a multiple of [`ALIGN`].
    pub counters: usize,
}

/// Scratch of an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScratchPlaces {
    /// Places, by dispatch.
    pub places: Vec<ScratchPlace>,
    /// Bytes of the region of counters, which entries share: steps run one after the other.
    pub counter_bytes: usize,
}

impl ScratchPlaces {
    /// Whether no kernel of the entry needs any.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Place of a dispatch.
    pub fn of(&self, dispatch: usize) -> Option<&ScratchPlace> {
        self.places.iter().find(|p| p.dispatch.index() == dispatch)
    }
}
