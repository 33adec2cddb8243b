//! Kernel IR: one CUDA kernel as typed statements and expressions.
//!
//! There is no raw-text node: every intrinsic is one PTX instruction or CUDA builtin, so a kernel can be
//! printed (`weft-codegen`'s writer), verified ([`crate::verify::kernel`]) and executed on the CPU
//! (`weft-codegen`'s emulator). Builders construct it with [`build::KernelBuilder`].
//!
//! Conventions:
//! - blocks and grids are one-dimensional in threads (`threads`), up to three-dimensional in blocks;
//! - an index into memory counts elements of the array's type, never bytes;
//! - a register array is indexed by expressions that are constant once `Unroll::Full` loops are unrolled;
//! - arithmetic on floats happens in `f32`; 16-bit types are only loaded, stored, packed and cast.

pub mod build;
mod expr;
mod stmt;

pub use expr::{Axis, BinaryOp, CompareOp, Const, Expr, MathFn, ShuffleMode, UnaryOp};
pub use stmt::{CacheHint, MatrixCount, Stmt, TileCopy, Unroll};

use crate::dtype::DType;
use crate::ids::{ParamId, RingId, SharedId, SignalId, VarId};
use serde::{Deserialize, Serialize};

/// One kernel: what becomes one `extern "C" __global__` function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    /// Name of the function; a C identifier, unique in a plan.
    pub name: String,
    /// Lines of the header comment: sources, rules, bytes, flops, bound, schedule.
    pub doc: Vec<String>,
    /// Parameters in launch order.
    pub params: Vec<Param>,
    /// Shared-memory arrays; [`Kernel::shared_layout`] gives their byte offsets.
    pub shared: Vec<SharedArray>,
    /// Names of the block's signals ([`Stmt::ExpectBytes`]), eight bytes of shared memory each.
    pub signals: Vec<String>,
    /// Rings of stages that tiles are copied to ([`Stmt::FillStage`]).
    pub rings: Vec<Ring>,
    /// Register variables and arrays.
    pub vars: Vec<Var>,
    /// Threads of a block; a multiple of 32, at most 1024.
    pub threads: u32,
    /// Blocks that should fit on one SM (second argument of `__launch_bounds__`).
    pub min_blocks: Option<u32>,
    /// Blocks of a cluster, if there are clusters: neighbours along z, which run at the same time and send each other
    /// data ([`Stmt::Send`]). Divides the grid's z; at most [`MAX_CLUSTER`].
    pub cluster: Option<u32>,
    /// Statements.
    pub body: Vec<Stmt>,
}

/// Most blocks of a cluster that every GPU with clusters can run (CUDA C++ Programming Guide, "Thread Block Clusters").
pub const MAX_CLUSTER: u32 = 8;

/// Alignment of shared arrays whose rows of 128 bytes are swizzled ([`Stmt::Wgmma`]): the pattern repeats every eight rows,
/// and counts them by address.
pub const SWIZZLED: u32 = 1024;

/// Elements of 16 bits of a swizzled row.
pub const SWIZZLED_ROW: u32 = 64;

/// Bytes of shared memory that a kernel may declare statically; beyond, the launch sets the size.
pub const STATIC_SHARED_LIMIT: u32 = 48 * 1024;

/// A kernel parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Param {
    /// Name hint; the writer's `Namer` makes it a unique identifier.
    pub name: String,
    /// What it is.
    pub kind: ParamKind,
}

/// What a kernel parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ParamKind {
    /// Pointer to global memory.
    Pointer {
        /// Element type.
        dtype: DType,
        /// How the kernel uses it.
        access: Access,
    },
    /// A matrix in global memory, row-major, of which tiles are copied ([`Stmt::FillStage`]): a tensor map
    /// (`CUtensorMap`, 128 bytes by value) of two dimensions, whose tiles are swizzled rows.
    Matrix {
        /// Element type, f16 or bf16.
        dtype: DType,
        /// How the kernel uses it: [`Access::Constant`] or [`Access::Read`].
        access: Access,
        /// Elements of a row of the matrix.
        columns: u32,
        /// Rows of a tile, at most 256; a tile has [`SWIZZLED_ROW`] columns.
        rows: u32,
    },
    /// Scalar passed by value.
    Scalar(DType),
    /// Handle of a graph's condition (`cudaGraphConditionalHandle`), for [`Stmt::SetCondition`].
    Condition,
}

/// How a kernel uses a global array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Access {
    /// Never written while the plan runs (weights): may be read before the dependency wait.
    Constant,
    /// Read only in this kernel.
    Read,
    /// Read only; elements that no kernel of the step has written may be read before the dependency wait (the
    /// cache of earlier steps).
    Settled,
    /// Written only.
    Write,
    /// Read and written.
    ReadWrite,
    /// Host memory that the host may write at any time: volatile, and no kernel writes it, so it may be read
    /// before the dependency wait.
    FromHost,
    /// Host memory that the host may read at any time: volatile, written only, a word at a time. The host sees
    /// each word whole, but words in no particular order.
    ToHost,
}

/// An array in shared memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedArray {
    /// Name hint.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Elements.
    pub len: u32,
    /// Alignment in bytes: 16, or [`SWIZZLED`] for what `wgmma` reads.
    pub align: u32,
}

/// A ring of stages in shared memory: for each an `mbarrier`, which completes when all tiles of a filling are there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    /// Name hint.
    pub name: String,
    /// Stages, eight bytes of shared memory each.
    pub stages: u32,
}

/// A register variable, or a register array when `len` is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Var {
    /// Name hint.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Elements of a register array; `None` for a scalar.
    pub len: Option<u32>,
}

/// A memory operand: an array in global or shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mem {
    /// The array a pointer parameter points to.
    Global(ParamId),
    /// A shared-memory array.
    Shared(SharedId),
}

impl Kernel {
    /// Byte offset of every shared array, then the total (each rounded up to 16 bytes, and to what the next one is
    /// aligned to). Signals lie elsewhere.
    pub fn shared_layout(&self) -> (Vec<u32>, u32) {
        let mut at = 0u32;
        let offsets = self
            .shared
            .iter()
            .map(|s| {
                let here = at.next_multiple_of(s.align.max(16));
                at = here + (s.len * s.dtype.size() as u32).next_multiple_of(16);
                here
            })
            .collect();
        (offsets, at)
    }

    /// What the shared arrays are aligned to, in bytes.
    pub fn shared_align(&self) -> u32 {
        self.shared.iter().map(|s| s.align).fold(16, u32::max)
    }

    /// Bytes of dynamic shared memory that a launch must ask for: 0 while the arrays fit
    /// [`STATIC_SHARED_LIMIT`], their total otherwise.
    pub fn dynamic_shared(&self) -> u32 {
        let (_, total) = self.shared_layout();
        if total > STATIC_SHARED_LIMIT { total } else { 0 }
    }

    /// Calls `f` on every statement, in program order; a statement's position in this order is the
    /// number that verifier and emulator report.
    pub fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Stmt)) {
        self.body.iter().for_each(|s| s.visit(f));
    }

    /// The statement of a number.
    pub fn statement(&self, number: usize) -> Option<&Stmt> {
        let (mut at, mut found) = (0, None);
        self.visit(&mut |s| {
            if at == number {
                found = Some(s);
            }
            at += 1;
        });
        found
    }

    /// Element type of a memory operand; `None` when it names a scalar parameter or nothing.
    pub fn mem_dtype(&self, mem: Mem) -> Option<DType> {
        match mem {
            Mem::Global(p) => match self.params.get(p.index())?.kind {
                ParamKind::Pointer { dtype, .. } | ParamKind::Matrix { dtype, .. } => Some(dtype),
                ParamKind::Scalar(_) | ParamKind::Condition => None,
            },
            Mem::Shared(s) => Some(self.shared.get(s.index())?.dtype),
        }
    }

    /// The variable of an id.
    pub fn var(&self, v: VarId) -> Option<&Var> {
        self.vars.get(v.index())
    }

    /// Name of a signal.
    pub fn signal(&self, s: SignalId) -> Option<&str> {
        self.signals.get(s.index()).map(String::as_str)
    }

    /// The ring of an id.
    pub fn ring(&self, r: RingId) -> Option<&Ring> {
        self.rings.get(r.index())
    }

    /// The shared array of an id.
    pub fn shared_array(&self, s: SharedId) -> Option<&SharedArray> {
        self.shared.get(s.index())
    }
}
