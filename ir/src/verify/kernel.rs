//! Verifier of kernel IR: types, scopes, access, widths, unrolling, convergence and the grid dependency.
//!
//! All faults are collected. What a program text cannot show (bounds of computed indices, races,
//! initialisation, divergence that depends on data) is left to the emulator.

mod check;
mod cluster;
mod fault;
mod fold;
mod rings;
mod statements;
mod types;
mod uniform;
mod warpgroup;

pub use fault::{Fault, FaultKind};
pub use types::{TypeError, expr_type};

use crate::kernel::{Kernel, Mem, Stmt};
use check::Verifier;
use uniform::Agreement;

/// What a kernel needs and uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Bytes of all shared arrays.
    pub shared_bytes: u32,
    /// Bytes of dynamic shared memory the launch must ask for (0: the arrays are static).
    pub dynamic_shared: u32,
    /// Uses `mma.sync`.
    pub mma: bool,
    /// Uses `wgmma`.
    pub wgmma: bool,
    /// Uses `ldmatrix`.
    pub ldmatrix: bool,
    /// Uses `cp.async`.
    pub cp_async: bool,
    /// Uses `griddepcontrol` (programmatic dependent launch).
    pub pdl: bool,
    /// Uses atomics.
    pub atomics: bool,
    /// Sets a graph's condition.
    pub condition: bool,
    /// Uses bulk copies or prefetches (`cp.async.bulk`).
    pub bulk: bool,
    /// Copies tiles of matrices (`cp.async.bulk.tensor`).
    pub tiles: bool,
    /// Its blocks form clusters.
    pub clusters: bool,
    /// Bytes of the widest vector access (0: none).
    pub max_vector_bytes: u32,
}

/// Checks a kernel; gives its facts, or every fault found.
pub fn verify(kernel: &Kernel) -> Result<Facts, Vec<Fault>> {
    let mut v = Verifier::new(kernel);
    v.header();
    v.block(&kernel.body, Agreement::Block, true);
    v.signals_end();
    v.rings_end();
    if v.faults.is_empty() { Ok(facts(kernel)) } else { Err(v.faults) }
}

fn facts(kernel: &Kernel) -> Facts {
    let mut f = Facts {
        shared_bytes: kernel.shared_layout().1,
        dynamic_shared: kernel.dynamic_shared(),
        clusters: kernel.cluster.is_some(),
        ..Facts::default()
    };
    let bytes = |mem: &Mem, lanes: &u32| kernel.mem_dtype(*mem).map_or(0, |d| d.size() as u32 * lanes);
    kernel.visit(&mut |s| match s {
        Stmt::Mma { .. } => f.mma = true,
        Stmt::Wgmma { .. } | Stmt::WgmmaFence | Stmt::WgmmaCommit | Stmt::WgmmaWait { .. } => f.wgmma = true,
        Stmt::LdMatrix { .. } => f.ldmatrix = true,
        Stmt::CpAsync { .. } | Stmt::CpAsyncCommit | Stmt::CpAsyncWait { .. } => f.cp_async = true,
        Stmt::GridDependencyWait | Stmt::GridDependencyLaunch => f.pdl = true,
        Stmt::AtomicAdd { .. } | Stmt::LastBlock { .. } => f.atomics = true,
        Stmt::SetCondition { .. } => f.condition = true,
        Stmt::PrefetchL2 { .. } => f.bulk = true,
        Stmt::FillStage { .. } => f.tiles = true,
        Stmt::LoadVec { mem, lanes, .. } | Stmt::StoreVec { mem, lanes, .. } => {
            f.max_vector_bytes = f.max_vector_bytes.max(bytes(mem, lanes));
        }
        Stmt::Comment(_)
        | Stmt::Let { .. }
        | Stmt::DeclareArray { .. }
        | Stmt::Assign { .. }
        | Stmt::AssignElem { .. }
        | Stmt::Store { .. }
        | Stmt::For { .. }
        | Stmt::If { .. }
        | Stmt::Barrier
        | Stmt::WarpBarrier
        | Stmt::Sleep { .. }
        | Stmt::AsyncProxyFence
        | Stmt::ClusterBarrier
        | Stmt::ExpectBytes { .. }
        | Stmt::Send { .. }
        | Stmt::AwaitBytes { .. }
        | Stmt::MakeRing { .. }
        | Stmt::AwaitStage { .. }
        | Stmt::Fence => {}
    });
    f
}
