//! Statements of kernel IR.

use super::{Expr, Mem};
use crate::dtype::DType;
use crate::ids::{ParamId, RingId, SharedId, SignalId, VarId};
use serde::{Deserialize, Serialize};

/// What a loop asks of the compiler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unroll {
    /// `#pragma unroll`: bounds are constants, register arrays may be indexed by the variable.
    Full,
    /// `#pragma unroll N`.
    By(u32),
    /// `#pragma unroll 1`.
    Never,
}

/// Cache behaviour of a vector load from global memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheHint {
    /// `ld.global`.
    Default,
    /// `ld.global.L1::no_allocate`: constant data that is read once (weights). Not `.nc`, which lets ptxas move the
    /// load behind `griddepcontrol.wait`.
    Streaming,
    /// `ld.global.L1::no_allocate`: data of earlier steps, read once.
    Settled,
}

/// How many 8×8 matrices an `ldmatrix` loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MatrixCount {
    /// `.x1`.
    X1,
    /// `.x2`.
    X2,
    /// `.x4`.
    X4,
}

impl MatrixCount {
    /// Matrices, and 32-bit registers a lane receives.
    pub fn count(self) -> u32 {
        match self {
            MatrixCount::X1 => 1,
            MatrixCount::X2 => 2,
            MatrixCount::X4 => 4,
        }
    }
}

/// The copy of a tile of a matrix to swizzled rows ([`Stmt::Wgmma`]) in shared memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TileCopy {
    /// Array of swizzled rows.
    pub to: SharedId,
    /// Its row that the tile begins at, a multiple of 8.
    pub to_row: Expr,
    /// A parameter of kind [`super::ParamKind::Matrix`], which says how many rows the tile has.
    pub from: Mem,
    /// First row of the tile in the matrix, i32.
    pub row: Expr,
    /// First column, i32.
    pub column: Expr,
}

/// A statement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Stmt {
    /// A line of explanation.
    Comment(String),
    /// Declares a scalar variable (not reassigned when `mutable` is false) with its value.
    Let {
        /// Variable declared here and visible to the end of the enclosing block.
        var: VarId,
        /// Initial value.
        value: Expr,
        /// Whether an `Assign` follows.
        mutable: bool,
    },
    /// Declares a register array, every element set to `init`, or uninitialised.
    DeclareArray {
        /// The array.
        var: VarId,
        /// Value of every element.
        init: Option<Expr>,
    },
    /// Assigns a mutable scalar variable.
    Assign {
        /// Variable.
        var: VarId,
        /// New value.
        value: Expr,
    },
    /// Assigns an element of a register array.
    AssignElem {
        /// Array.
        var: VarId,
        /// Element.
        index: Expr,
        /// New value.
        value: Expr,
    },
    /// Stores one element to memory.
    Store {
        /// Array.
        mem: Mem,
        /// Element.
        index: Expr,
        /// Value, of the array's type.
        value: Expr,
    },
    /// Loads `lanes` consecutive elements with one access of 4, 8 or 16 bytes (naturally aligned) into
    /// a register array of the same type.
    LoadVec {
        /// Register array.
        dst: VarId,
        /// First element of the register array.
        dst_at: Expr,
        /// Array.
        mem: Mem,
        /// First element in memory; a multiple of `lanes`.
        index: Expr,
        /// Elements.
        lanes: u32,
        /// Cache behaviour (global memory only).
        hint: CacheHint,
    },
    /// Stores `lanes` consecutive elements of a register array with one access of 4, 8 or 16 bytes.
    StoreVec {
        /// Array.
        mem: Mem,
        /// First element in memory; a multiple of `lanes`.
        index: Expr,
        /// Register array of the same type.
        src: VarId,
        /// First element of the register array.
        src_at: Expr,
        /// Elements.
        lanes: u32,
    },
    /// `cp.async.bulk.prefetch.L2.global`: one thread has consecutive elements brought to the L2 cache. Nothing waits
    /// for them, no value is seen and none changes: data that an earlier kernel still writes may be asked for.
    PrefetchL2 {
        /// Array (global).
        mem: Mem,
        /// First element, 16-byte aligned.
        index: Expr,
        /// Elements: whole pieces of 16 bytes.
        elements: u32,
    },
    /// `for (int var = start; var < end; var += step)`.
    For {
        /// i32 loop variable.
        var: VarId,
        /// First value.
        start: Expr,
        /// Bound, exclusive.
        end: Expr,
        /// Positive step.
        step: Expr,
        /// Unrolling.
        unroll: Unroll,
        /// Body.
        body: Vec<Stmt>,
    },
    /// Conditional.
    If {
        /// Condition.
        cond: Expr,
        /// Taken when true.
        then: Vec<Stmt>,
        /// Taken when false.
        otherwise: Vec<Stmt>,
    },
    /// `__syncthreads()`: every thread of the block reaches it.
    Barrier,
    /// `__syncwarp()`.
    WarpBarrier,
    /// `griddepcontrol.wait`: the grids this one depends on have completed and their writes are visible.
    GridDependencyWait,
    /// `griddepcontrol.launch_dependents`.
    GridDependencyLaunch,
    /// `mma.sync.aligned.m16n8k16.row.col.f32.{f16,bf16}.{f16,bf16}.f32`: acc += A·B, by a whole warp.
    Mma {
        /// Type of A and B (f16 or bf16).
        dtype: DType,
        /// f32 array, four elements from `acc_at`.
        acc: VarId,
        /// First accumulator element.
        acc_at: Expr,
        /// u32 array, four elements from `a_at`.
        a: VarId,
        /// First A register.
        a_at: Expr,
        /// u32 array, two elements from `b_at`.
        b: VarId,
        /// First B register.
        b_at: Expr,
    },
    /// `wgmma.mma_async.sync.aligned.m64nNk16.f32.{f16,bf16}.{f16,bf16}`: acc += A·Bᵀ by four neighbouring warps, in the
    /// background ([`Stmt::WgmmaWait`]). Both operands are 16 elements of rows in shared memory that follow each other,
    /// 64 of A and `columns` of B; a row has 64 elements (128 bytes), and its 16-byte piece p lies at place
    /// p ^ (row % 8) (PTX ISA, *Asynchronous Warpgroup Level Matrix Instructions*: K-major, 128-byte swizzling).
    /// Accumulator 4·j + i of a lane of warp w: row 16·w + lane/4 + 8·(i/2), column 8·j + lane%4·2 + i%2.
    Wgmma {
        /// Type of A and B (f16 or bf16).
        dtype: DType,
        /// f32 array of `columns` / 2 accumulators.
        acc: VarId,
        /// Rows of B: a multiple of 8 up to 256.
        columns: u32,
        /// Array of swizzled rows with A.
        a: SharedId,
        /// Element that A's first row begins at, a multiple of eight rows: the same for the four warps.
        a_at: Expr,
        /// Array of swizzled rows with B.
        b: SharedId,
        /// The same of B.
        b_at: Expr,
        /// Elements of both along k before the first: a multiple of 16 within the row.
        k: u32,
    },
    /// `wgmma.fence.sync.aligned`: registers that were written before are seen by the products behind it.
    WgmmaFence,
    /// `wgmma.commit_group.sync.aligned`.
    WgmmaCommit,
    /// `wgmma.wait_group.sync.aligned pending`: the accumulators of all but the last groups are there.
    WgmmaWait {
        /// Groups that may still be in flight.
        pending: u32,
        /// The array, which is used behind a wait for all groups.
        acc: VarId,
    },
    /// `fence.proxy.async.shared::cta`: what the thread knows to be in shared memory is seen by [`Stmt::Wgmma`], by other
    /// threads' behind a barrier.
    AsyncProxyFence,
    /// `ldmatrix.sync.aligned.m8n8.xN[.trans].shared.b16` by a whole warp: lane `8·i + r` gives the
    /// address of row `r` of matrix `i` (8 elements of 16 bits, 16-byte aligned).
    LdMatrix {
        /// u32 array.
        dst: VarId,
        /// First register.
        dst_at: Expr,
        /// Shared array of a 16-bit type.
        shared: SharedId,
        /// Element at which this lane's row starts.
        index: Expr,
        /// Matrices.
        count: MatrixCount,
        /// Transposed.
        transpose: bool,
    },
    /// `cp.async.cg.shared.global` (16 bytes) or `.ca` (4, 8): an asynchronous copy.
    CpAsync {
        /// Destination array.
        shared: SharedId,
        /// First destination element.
        shared_index: Expr,
        /// Source array (global).
        global: Mem,
        /// First source element; not read when `valid` is false.
        global_index: Expr,
        /// Bytes: 4, 8 or 16.
        bytes: u32,
        /// When false the destination is filled with zeros (source size 0).
        valid: Option<Expr>,
    },
    /// `cp.async.commit_group`.
    CpAsyncCommit,
    /// `cp.async.wait_group pending`.
    CpAsyncWait {
        /// Groups that may still be in flight.
        pending: u32,
    },
    /// `atomicAdd` on an i32 or u32 element of global or shared memory; the old value goes to `old`.
    AtomicAdd {
        /// Array.
        mem: Mem,
        /// Element.
        index: Expr,
        /// Addend.
        value: Expr,
        /// Scalar variable declared by this statement.
        old: Option<VarId>,
    },
    /// `__threadfence()`.
    Fence,
    /// `__nanosleep`: the thread waits about so long, at most a millisecond. Only tests use it, to change when
    /// blocks and kernels run.
    Sleep {
        /// Nanoseconds, u32.
        nanoseconds: Expr,
    },
    /// The block arrives at a counter that `expected` blocks of the grid share; `last` says, to every thread of
    /// the block, whether all others have arrived before. Every thread of the block reaches it.
    ///
    /// What the blocks stored to global memory before they arrived is visible to all threads of the last one
    /// behind it: a block barrier and a fence before, a fence and a block barrier after one wrapping increment
    /// (`atomicInc`). The counter is 0 before the first arrival and again after the last, so that the next launch
    /// finds it as this one did. A counter takes part once in a launch.
    LastBlock {
        /// Global array of u32 with the counter, used for nothing else.
        counter: Mem,
        /// Element; the same for all threads of the block.
        index: Expr,
        /// Blocks that arrive, u32, at least 1; the same for all threads of all these blocks.
        expected: Expr,
        /// Bool variable declared by this statement.
        last: VarId,
    },
    /// `barrier.cluster`: all threads of all blocks of the cluster arrive, and wait for each other. At the top of the
    /// kernel's body.
    ClusterBarrier,
    /// Makes one of the block's signals (an `mbarrier`): it is complete once so many bytes were sent to it. The first
    /// thread does it, and a [`Stmt::ClusterBarrier`] follows before any block sends. Every thread of the block
    /// reaches it, once in a launch.
    ExpectBytes {
        /// The signal.
        signal: SignalId,
        /// Bytes, i32; 0 where nothing will be sent. The same for all threads of the block.
        bytes: Expr,
    },
    /// `st.async.shared::cluster` (4, 8 or 16 bytes): stores consecutive elements of a register array into the shared
    /// memory of a block of the cluster, and counts their bytes at that block's signal. A block does not end before all
    /// that is sent to it has arrived ([`Stmt::AwaitBytes`]).
    Send {
        /// Array, of the receiving block.
        to: SharedId,
        /// First element; a multiple of `lanes`.
        index: Expr,
        /// Register array of the same type, of 32 bits.
        src: VarId,
        /// First element of the register array.
        src_at: Expr,
        /// Elements.
        lanes: u32,
        /// Number of the receiving block in the cluster: its `blockIdx.z` modulo the cluster's size.
        rank: Expr,
        /// The receiving block's signal.
        signal: SignalId,
    },
    /// Waits until the signal is complete (`mbarrier.try_wait`): the thread sees all that was sent. At the top of the
    /// kernel's body, behind a [`Stmt::ClusterBarrier`].
    AwaitBytes {
        /// The signal.
        signal: SignalId,
    },
    /// Makes the stages of a ring (`mbarrier.init`). The first thread does it, and a [`Stmt::Barrier`] follows before a
    /// stage is filled or awaited. Every thread of the block reaches it, once in a launch, at the top of the kernel's body.
    MakeRing {
        /// The ring.
        ring: RingId,
    },
    /// Starts copies of tiles that fill a stage (`cp.async.bulk.tensor`). The first thread does it; every thread of the
    /// block reaches it. What all threads did with the stage before lies behind a block barrier, and the last filling
    /// was awaited. Rows and columns past the end of a matrix are filled with zeros.
    FillStage {
        /// The ring.
        ring: RingId,
        /// Stage, i32; the same for all threads, as all expressions of the tiles.
        stage: Expr,
        /// Bytes of the filling that begins here; 0 where this goes on with one that began.
        bytes: u32,
        /// Tiles.
        tiles: Vec<TileCopy>,
    },
    /// Waits until a stage is filled (`mbarrier.try_wait.parity`): the thread, and what it starts ([`Stmt::Wgmma`]), see
    /// all of its tiles. Every thread of the block reaches it; no block ends before what it filled was awaited.
    AwaitStage {
        /// The ring.
        ring: RingId,
        /// Stage, i32, the same for all threads.
        stage: Expr,
        /// Fillings of this stage before, i32, the same for all threads.
        round: Expr,
    },
    /// `cudaGraphSetConditional(condition, value)`: what steers the loop that the kernel runs in. One thread of the
    /// grid does it.
    SetCondition {
        /// A parameter of kind [`super::ParamKind::Condition`].
        condition: ParamId,
        /// u32: 0 ends the loop.
        value: Expr,
    },
}

impl Stmt {
    /// Expressions that the statement itself evaluates (not those of nested statements).
    pub fn exprs(&self) -> Vec<&Expr> {
        match self {
            Stmt::Comment(_)
            | Stmt::Barrier
            | Stmt::WarpBarrier
            | Stmt::GridDependencyWait
            | Stmt::GridDependencyLaunch
            | Stmt::CpAsyncCommit
            | Stmt::CpAsyncWait { pending: _ }
            | Stmt::WgmmaFence
            | Stmt::WgmmaCommit
            | Stmt::WgmmaWait { pending: _, acc: _ }
            | Stmt::AsyncProxyFence
            | Stmt::Fence
            | Stmt::ClusterBarrier
            | Stmt::MakeRing { ring: _ }
            | Stmt::AwaitBytes { signal: _ } => Vec::new(),
            Stmt::Let { var: _, value, mutable: _ }
            | Stmt::Assign { var: _, value }
            | Stmt::SetCondition { condition: _, value } => vec![value],
            Stmt::DeclareArray { var: _, init } => init.iter().collect(),
            Stmt::AssignElem { var: _, index, value } | Stmt::Store { mem: _, index, value } => {
                vec![index, value]
            }
            Stmt::LoadVec { dst: _, dst_at: at, mem: _, index, lanes: _, hint: _ }
            | Stmt::StoreVec { mem: _, index, src: _, src_at: at, lanes: _ } => vec![at, index],
            Stmt::PrefetchL2 { mem: _, index, elements: _ } => vec![index],
            Stmt::For { var: _, start, end, step, unroll: _, body: _ } => vec![start, end, step],
            Stmt::If { cond, then: _, otherwise: _ } => vec![cond],
            Stmt::Mma { dtype: _, acc: _, acc_at, a: _, a_at, b: _, b_at } => vec![acc_at, a_at, b_at],
            Stmt::Wgmma { dtype: _, acc: _, columns: _, a: _, a_at, b: _, b_at, k: _ } => vec![a_at, b_at],
            Stmt::LdMatrix { dst: _, dst_at, shared: _, index, count: _, transpose: _ } => {
                vec![dst_at, index]
            }
            Stmt::CpAsync { shared: _, shared_index, global: _, global_index, bytes: _, valid } => {
                [shared_index, global_index].into_iter().chain(valid).collect()
            }
            Stmt::AtomicAdd { mem: _, index, value, old: _ } => vec![index, value],
            Stmt::LastBlock { counter: _, index, expected, last: _ } => vec![index, expected],
            Stmt::Sleep { nanoseconds } => vec![nanoseconds],
            Stmt::ExpectBytes { signal: _, bytes } => vec![bytes],
            Stmt::FillStage { ring: _, stage, bytes: _, tiles } => {
                let of_tiles = tiles.iter().flat_map(|t| [&t.to_row, &t.row, &t.column]);
                [stage].into_iter().chain(of_tiles).collect()
            }
            Stmt::AwaitStage { ring: _, stage, round } => vec![stage, round],
            Stmt::Send { to: _, index, src: _, src_at, lanes: _, rank, signal: _ } => {
                vec![index, src_at, rank]
            }
        }
    }

    /// Nested blocks of a statement.
    pub fn blocks(&self) -> Vec<&[Stmt]> {
        match self {
            Stmt::For { var: _, start: _, end: _, step: _, unroll: _, body } => vec![body],
            Stmt::If { cond: _, then, otherwise } => vec![then, otherwise],
            Stmt::Comment(_)
            | Stmt::Let { .. }
            | Stmt::DeclareArray { .. }
            | Stmt::Assign { .. }
            | Stmt::AssignElem { .. }
            | Stmt::Store { .. }
            | Stmt::LoadVec { .. }
            | Stmt::StoreVec { .. }
            | Stmt::PrefetchL2 { .. }
            | Stmt::Barrier
            | Stmt::WarpBarrier
            | Stmt::GridDependencyWait
            | Stmt::GridDependencyLaunch
            | Stmt::Mma { .. }
            | Stmt::Wgmma { .. }
            | Stmt::WgmmaFence
            | Stmt::WgmmaCommit
            | Stmt::WgmmaWait { .. }
            | Stmt::AsyncProxyFence
            | Stmt::LdMatrix { .. }
            | Stmt::CpAsync { .. }
            | Stmt::CpAsyncCommit
            | Stmt::CpAsyncWait { .. }
            | Stmt::AtomicAdd { .. }
            | Stmt::LastBlock { .. }
            | Stmt::Sleep { .. }
            | Stmt::Fence
            | Stmt::ClusterBarrier
            | Stmt::ExpectBytes { .. }
            | Stmt::Send { .. }
            | Stmt::AwaitBytes { .. }
            | Stmt::MakeRing { .. }
            | Stmt::FillStage { .. }
            | Stmt::AwaitStage { .. }
            | Stmt::SetCondition { .. } => Vec::new(),
        }
    }

    /// Calls `f` on this statement and then on all nested ones, in program order.
    pub fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Stmt)) {
        f(self);
        self.blocks().into_iter().flatten().for_each(|s| s.visit(f));
    }
}
