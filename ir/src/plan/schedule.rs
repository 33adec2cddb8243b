//! How a work is done: the kernel family, its tiles, and the launch grid. Chosen by `passes::schedule`.

use super::{Compute, Scratch, Work};
use crate::shape::{Bindings, Dim};
use serde::{Deserialize, Serialize};

/// Bytes of shared memory of a [`Schedule::WarpgroupGemm`] besides its stages, for each group: where lanes exchange columns.
pub const EXCHANGED_BYTES: u32 = 8 * 1024;

/// Kernel family and its parameters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Schedule {
    /// One thread an element of the domain.
    Elementwise {
        /// Threads of a block.
        threads: u32,
    },
    /// One warp a row of the domain; lanes stride along the reduced axis.
    WarpRow {
        /// Warps of a block.
        warps: u32,
    },
    /// One block a row of the domain; threads stride along the reduced axis.
    BlockRow {
        /// Threads of a block.
        threads: u32,
    },
    /// Skinny matrix product: teams of threads stream rows of b and keep `rows` accumulators for each.
    Gemv {
        /// Rows of a a block takes (the bucket's m); further rows take other blocks.
        rows: u32,
        /// Warps of a block.
        warps: u32,
        /// Lanes of a team: a power of two up to 32.
        lanes: u32,
        /// Warps of a team: more than one only with 32 lanes.
        split: u32,
        /// Rows of b a team takes at a time: whole groups.
        columns: u32,
        /// 16-byte loads of each of these rows that a lane keeps in flight.
        depth: u32,
        /// Blocks along the rows of b; teams take further rows in turn.
        blocks: u32,
        /// Whether the left operand lies in shared memory.
        staged: bool,
        /// Blocks that an SM is to hold at once: a thread has no more registers than that allows.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        resident: u32,
        /// How many of a lane's first loads (by step of k, then by column) start behind those of the left operand rather
        /// than before the block waits for what it depends on.
        #[serde(default, skip_serializing_if = "is_zero")]
        behind: u32,
        /// Bytes of each row of b, behind those that are loaded before, which a block has brought to L2 before it
        /// waits for what it depends on: whole pieces of 16; at most what a row has left is taken.
        #[serde(default, skip_serializing_if = "is_zero")]
        ahead: u32,
        /// Whether its dependents may start only when it has waited itself, rather than at once: their loads then take
        /// nothing from its own.
        #[serde(default, skip_serializing_if = "is_false")]
        late: bool,
    },
    /// Tiled matrix product on tensor cores (`mma.sync`), operands staged through shared memory by
    /// `cp.async`.
    Gemm {
        /// Rows of a block's tile.
        tile_m: u32,
        /// Columns of a block's tile.
        tile_n: u32,
        /// Depth of a stage.
        tile_k: u32,
        /// Warps along m.
        warps_m: u32,
        /// Warps along n.
        warps_n: u32,
        /// Warps that share a stage's k, and join their sums in their order.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        warps_k: u32,
        /// Stages in flight.
        stages: u32,
    },
    /// Tiled matrix product whose tiles are multiplied out of shared memory by groups of four warps (`wgmma`); stages of
    /// 64 along k.
    WarpgroupGemm {
        /// Groups of four warps, each of which has 64 rows of the tile.
        groups: u32,
        /// Columns of a tile.
        tile_n: u32,
        /// Stages in flight, at least 2.
        stages: u32,
    },
    /// Attention: one block a token, some query heads of a key head, and a share of the keys; warps split these.
    AttentionRow {
        /// Warps of a block.
        warps: u32,
        /// Query heads of a block; divides the group.
        heads: u32,
        /// Keys of a lane whose loads are in flight together.
        depth: u32,
        /// Blocks that may share the keys of a token; how many do follows its number of keys, on the device.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        splits: u32,
        /// Blocks of a cluster, of which there are whole ones: up to so many join their results through shared memory,
        /// where that is as many as a token's keys need.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        cluster: u32,
        /// Whether its dependents may start only when it has waited itself: what they stream then takes nothing from
        /// the kernels before.
        #[serde(default, skip_serializing_if = "is_false")]
        late: bool,
    },
    /// The same on tensor cores: a warp takes 16 keys and all heads of the block at a time.
    AttentionGroup {
        /// Warps of a block.
        warps: u32,
        /// Query heads of a block, at most 8; divides the group.
        heads: u32,
        /// Tiles of 16 keys of a warp whose loads are in flight together.
        depth: u32,
        /// Blocks that may share the keys of a token.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        splits: u32,
        /// Blocks of a cluster.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        cluster: u32,
        /// Whether its dependents may start only when it has waited itself: what they stream then takes nothing from
        /// the kernels before.
        #[serde(default, skip_serializing_if = "is_false")]
        late: bool,
    },
    /// Attention on tensor cores: one block a tile of tokens and a query head.
    AttentionTile {
        /// Tokens of a tile: 16 for each warp.
        tile_q: u32,
        /// Keys of a step.
        tile_k: u32,
        /// Tiles of keys and values in shared memory: with two, one is copied while the other is used.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        stages: u32,
    },
    /// Steps on each row: one block a row, results of the steps in shared memory.
    RowSteps {
        /// Threads of a block.
        threads: u32,
    },
    /// Products with chosen matrices, pair by pair: warps stream rows of the chosen matrix.
    RoutedGemv {
        /// Warps of a block.
        warps: u32,
        /// Rows of each weight that a warp takes at a time.
        columns: u32,
    },
    /// Products with chosen matrices on tensor cores: a block takes tiles of one matrix's pairs, found by the
    /// offsets that a grouping made on the device.
    RoutedGemm {
        /// Pairs of a block's tile.
        tile_m: u32,
        /// Columns of a block's tile, of each weight.
        tile_n: u32,
        /// Depth of a stage.
        tile_k: u32,
        /// Warps along m.
        warps_m: u32,
        /// Warps along n.
        warps_n: u32,
        /// Stages in flight.
        stages: u32,
        /// Blocks that share a matrix's pairs.
        split: u32,
    },
    /// Pairs by their matrix: one block a matrix.
    GroupPairs {
        /// Threads of a block.
        threads: u32,
    },
    /// From a decode step to the next: one block, a thread a row.
    AdvanceRows {
        /// Threads of the block.
        threads: u32,
    },
    /// Penalties or sampling: one block a row of logits.
    SampleRow {
        /// Threads of a block.
        threads: u32,
    },
}

impl Schedule {
    /// Whether products run on tensor cores.
    pub fn on_tensor_cores(&self) -> bool {
        match self {
            Schedule::Gemm { .. }
            | Schedule::WarpgroupGemm { .. }
            | Schedule::RoutedGemm { .. }
            | Schedule::AttentionGroup { .. }
            | Schedule::AttentionTile { .. } => true,
            Schedule::Elementwise { .. }
            | Schedule::WarpRow { .. }
            | Schedule::BlockRow { .. }
            | Schedule::Gemv { .. }
            | Schedule::AttentionRow { .. }
            | Schedule::RowSteps { .. }
            | Schedule::RoutedGemv { .. }
            | Schedule::GroupPairs { .. }
            | Schedule::AdvanceRows { .. }
            | Schedule::SampleRow { .. } => false,
        }
    }
}

fn one() -> u32 {
    1
}

fn is_false(b: &bool) -> bool {
    !*b
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

fn is_one(n: &u32) -> bool {
    *n == 1
}

/// Number of blocks along a grid axis, or of elements of scratch: ⌈∏ dims / per⌉.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Extent {
    /// Factors.
    pub dims: Vec<Dim>,
    /// Elements a block takes.
    pub per: usize,
}

impl Extent {
    /// One block.
    pub fn one() -> Extent {
        Extent { dims: Vec::new(), per: 1 }
    }

    /// Blocks under bindings.
    pub fn blocks(&self, bind: &Bindings) -> usize {
        bind.elements(&self.dims).div_ceil(self.per)
    }
}

/// Launch grid: x, y, z.
pub type Grid = [Extent; 3];

/// Where a schedule comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleSource {
    /// Chosen from shape and target by estimate.
    #[default]
    Estimated,
    /// The fastest that was measured for its shape.
    Measured,
    /// The fastest that was measured for the nearest shape, scaled, or for another longest context.
    Neighbour,
}

impl ScheduleSource {
    /// Lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            ScheduleSource::Estimated => "estimated",
            ScheduleSource::Measured => "measured",
            ScheduleSource::Neighbour => "neighbour",
        }
    }

    /// Whether it is what needs no word.
    pub fn is_estimated(&self) -> bool {
        *self == ScheduleSource::Estimated
    }
}

impl KernelSpec {
    /// Rows of the tiles that are copied of a read (position in the work's `reads`), where these are copied by a tensor map
    /// and the array is a matrix for it: its last axis by all others.
    pub fn tile_rows(&self, work: &Work, read: usize) -> Option<u32> {
        let (Schedule::WarpgroupGemm { groups, tile_n, .. }, Compute::MatMul(m)) =
            (&self.schedule, &work.compute)
        else {
            return None;
        };
        if m.b.index() == read {
            Some(*tile_n)
        } else {
            m.plain_left().is_some_and(|x| x.index() == read).then_some(64 * groups)
        }
    }
}

/// A kernel: a work with a schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelSpec {
    /// Name of the function and of its file; a C identifier, unique in the plan.
    pub name: String,
    /// Position in `Plan::works`.
    pub work: u32,
    /// How.
    pub schedule: Schedule,
    /// Whether the schedule was measured or estimated.
    #[serde(default, skip_serializing_if = "ScheduleSource::is_estimated")]
    pub source: ScheduleSource,
    /// Blocks.
    pub grid: Grid,
    /// Threads of a block.
    pub threads: u32,
    /// Memory that its blocks share to join their results.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch: Option<Scratch>,
    /// Whether it waits for its dependencies itself (`griddepcontrol`).
    pub programmatic: bool,
    /// Why the schedule is not the fast one for this kind of work, where it is not.
    pub fallback: Option<String>,
}
