//! Kernels on a GPU, each compared with the reference on the inputs that it had there.

use crate::emulate::{Distance, Emulated};
use crate::kernel_cases::Case;
use std::collections::BTreeSet;
use std::sync::Arc;
use weft_codegen::emulator::Buffer;
use weft_ir::dtype::DType;
use weft_ir::ids::{BufferId, DispatchId};
use weft_ir::plan::BufferKind;
use weft_ir::reference::StepInputs;
use weft_runtime::exec::{CudaModel, CudaOptions, KernelSource};

/// Units in the last place that an f32 result may be away in any case: CUDA's functions of f32 (`expf`, `rsqrtf`, `tanhf`,
/// `sinf`) are good to 1 to 4, the host's to less (CUDA C++ Programming Guide, mathematical functions), and tensor cores
/// truncate where the host rounds. What is wrong is further away.
const F32_ULPS: f64 = 16.0;

impl Emulated<'_> {
    /// How far each kernel of a step was from the reference, where a device left these bytes in the buffers that the
    /// step writes: all values must still be there. The inputs are padded to the entry.
    ///
    /// # Panics
    /// When there is no such entry.
    pub fn compare(
        &mut self,
        entry: &str,
        inputs: &StepInputs,
        left: &dyn Fn(BufferId) -> Vec<u8>,
    ) -> Vec<Distance> {
        let plan = self.plan;
        let entry = plan.entries.iter().find(|e| e.name == entry).unwrap_or_else(|| panic!("no {entry}"));
        self.prepare(entry, inputs);
        let body = entry.body as usize;
        let dispatches = &plan.bodies[body].dispatches;
        let touched: BTreeSet<BufferId> =
            dispatches.iter().flat_map(|d| d.reads.iter().chain(&d.writes)).copied().collect();
        for b in touched {
            let made = match plan.buffer(b).kind {
                BufferKind::State(_) | BufferKind::Output(_) | BufferKind::Temp => true,
                BufferKind::Weight(_)
                | BufferKind::Literal(_)
                | BufferKind::Input(_)
                | BufferKind::Control(_) => false,
            };
            if made {
                self.memory.buffers[self.at[b.index()]] = Buffer::new(plan.buffer(b).dtype, left(b));
            }
        }
        let mut distances = Vec::new();
        for (i, d) in dispatches.iter().enumerate() {
            let kernel = &plan.kernels[entry.kernels[&d.work].index()].name;
            let expected = self.expect(&self.oracle, (body, i), &entry.bind);
            let rounded = self.expect(&self.rounded, (body, i), &entry.bind);
            for ((&b, expected), rounded) in d.writes.iter().zip(&expected).zip(&rounded) {
                let name = format!("{kernel} ({}) → {}", d.scope, plan.buffer(b).name);
                let mut distance = self.distance(name, b, expected, rounded);
                if plan.buffer(b).dtype == DType::F32 {
                    distance.ulp *= F32_ULPS;
                }
                distances.push(distance);
            }
        }
        distances
    }

    /// The bytes of a buffer as the last step left it.
    pub fn left(&self, b: BufferId) -> Vec<u8> {
        self.memory.buffers[self.at[b.index()]].bytes.clone()
    }
}

/// Loads a case on the first GPU.
///
/// # Errors
/// Why it does not load.
pub fn load(case: &Case) -> Result<CudaModel, String> {
    let kernels = weft_codegen::emit(&case.plan).map_err(|e| e.to_string())?;
    let source = |k: weft_codegen::Emitted| KernelSource {
        name: k.name,
        source: k.source,
        dynamic_shared: k.dynamic_shared,
    };
    let sources: Vec<KernelSource> = kernels.into_iter().map(source).collect();
    let options = CudaOptions { nvrtc_dirs: vec![crate::nvrtc::folder()], ..CudaOptions::default() };
    CudaModel::load(Arc::new(case.plan.clone()), &sources, case, &options, &|_| {}).map_err(|e| e.to_string())
}

/// Runs a case's steps there, and compares each kernel.
///
/// # Errors
/// What the device reports.
///
/// # Panics
/// When a step has no entry.
pub fn run(case: &Case, model: &mut CudaModel) -> Result<Vec<Distance>, String> {
    let mut reference = Emulated::try_with_weights(&case.plan, case)?;
    let mut distances = Vec::new();
    for (name, inputs) in &case.steps {
        let entry = case.plan.entries.iter().position(|e| e.name == *name).expect("an entry");
        let dispatches = case.plan.bodies[case.plan.entries[entry].body as usize].dispatches.len();
        let last = DispatchId::new(dispatches - 1);
        let place = |e: weft_runtime::Error| format!("{name}: {e}");
        model.run_up_to(entry, inputs, last).map_err(place)?;
        let left = |b| model.buffer_bytes(b, entry).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        distances.extend(reference.compare(name, inputs, &left));
    }
    Ok(distances)
}
