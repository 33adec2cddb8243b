//! Emission of all kernels of a plan, in parallel and in the plan's order.

use crate::error::Error;
use crate::{cuda, kernels};
use rayon::prelude::*;
use weft_ir::kernel::Kernel;
use weft_ir::plan::{KernelSpec, Plan};
use weft_ir::verify;

/// Static shared memory a kernel can have; more is dynamic.
const STATIC_SHARED: u32 = 48 * 1024;

/// An emitted kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Emitted {
    /// Function name.
    pub name: String,
    /// Kernel IR.
    pub kernel: Kernel,
    /// CUDA C.
    pub source: String,
    /// Dynamic shared memory of a block in bytes; 0 when it is static.
    pub dynamic_shared: u32,
}

/// Builds, verifies and prints every kernel of a plan.
///
/// # Errors
/// The first kernel, in the plan's order, that could not be built.
pub fn emit(plan: &Plan) -> Result<Vec<Emitted>, Error> {
    emit_with(plan, &|kernel| kernel)
}

/// The same, each kernel changed before it is verified and printed ([`crate::delays`]).
///
/// # Errors
/// As [`emit`].
pub fn emit_with(plan: &Plan, change: &(dyn Fn(Kernel) -> Kernel + Sync)) -> Result<Vec<Emitted>, Error> {
    let one = |spec| emitted(spec, change(kernels::build(plan, spec)?));
    let emitted: Vec<Result<Emitted, Error>> = plan.kernels.par_iter().map(one).collect();
    emitted.into_iter().collect()
}

/// Builds, verifies and prints one kernel: one of a plan, or one that stands in for it with another schedule.
///
/// # Errors
/// As [`emit`].
pub fn emit_kernel(plan: &Plan, spec: &KernelSpec) -> Result<Emitted, Error> {
    emitted(spec, kernels::build(plan, spec)?)
}

/// Verifies and prints a kernel.
fn emitted(spec: &KernelSpec, kernel: Kernel) -> Result<Emitted, Error> {
    verify::kernel::verify(&kernel).map_err(|faults| Error::Invalid {
        kernel: spec.name.clone(),
        faults: faults.iter().map(|f| format!("  {f}")).collect::<Vec<_>>().join("\n"),
    })?;
    let source =
        cuda::write(&kernel).map_err(|e| Error::Write { kernel: spec.name.clone(), why: e.to_string() })?;
    let (_, shared) = kernel.shared_layout();
    let dynamic_shared = if shared > STATIC_SHARED { shared } else { 0 };
    Ok(Emitted { name: spec.name.clone(), kernel, source, dynamic_shared })
}
