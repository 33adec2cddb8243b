//! Models on a GPU, for tests that are skipped loudly where there is none.

use crate::fixture::Bytes;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use weft_frontend::checkpoint::Checkpoint;
use weft_ir::plan::Plan;
use weft_runtime::exec::{CudaModel, CudaOptions, KernelSource};
use weft_runtime::sys::driver::{Device, Driver};

/// The first GPU; `None` after saying so on standard error.
pub fn device() -> Option<Device> {
    let found = Driver::init().and_then(|d| d.device(0));
    found
        .map_err(|e| {
            // The harness hides what passing tests print, so this goes to standard error itself.
            let _ = writeln!(std::io::stderr(), "SKIPPED: no GPU ({e})");
        })
        .ok()
}

/// Loads a plan on the first GPU.
///
/// # Panics
/// When it does not load.
pub fn load(plan: &Arc<Plan>, checkpoint: &Checkpoint, full_edges: bool) -> CudaModel {
    load_with(plan, checkpoint, full_edges, None)
}

/// The same; with a seed, kernels have delays.
///
/// # Panics
/// When it does not load.
pub fn load_with(
    plan: &Arc<Plan>,
    checkpoint: &Checkpoint,
    full_edges: bool,
    delays: Option<u64>,
) -> CudaModel {
    let change = |kernel| match delays {
        Some(seed) => weft_codegen::delays::delayed(&kernel, seed),
        None => kernel,
    };
    let kernels = weft_codegen::emit_with(plan, &change).unwrap_or_else(|e| panic!("{e}"));
    let sources: Vec<KernelSource> = kernels
        .into_iter()
        .map(|k| KernelSource { name: k.name, source: k.source, dynamic_shared: k.dynamic_shared })
        .collect();
    let options =
        CudaOptions { nvrtc_dirs: vec![crate::nvrtc::folder()], full_edges, ..CudaOptions::default() };
    CudaModel::load(plan.clone(), &sources, &Bytes(checkpoint), &options, &|_| {})
        .unwrap_or_else(|e| panic!("{e}"))
}

/// The SmolLM2 checkpoint: `WEFT_SMOLLM2`, or where `cargo xtask demo` puts it; `None` after saying so.
pub fn smollm2() -> Option<Checkpoint> {
    let place = std::env::var_os("WEFT_SMOLLM2").map(PathBuf::from).unwrap_or_else(|| {
        let models = crate::fixture::root().join("..").join(".weft").join("models");
        models.join("smollm2-135m-instruct").join("SmolLM2-135M-Instruct.Q4_1.gguf")
    });
    if !place.exists() {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: {} is not there (`cargo xtask demo` fetches it; or set WEFT_SMOLLM2)",
            place.display()
        );
        return None;
    }
    Some(Checkpoint::open(&place).unwrap_or_else(|e| panic!("{e}")))
}
