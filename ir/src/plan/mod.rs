//! The plan: what `weft compile` decides.
//!
//! [`Work`]s say what is computed, [`KernelSpec`]s how (a schedule and a grid), a [`Body`] is the list of
//! dispatches of a step with its dependencies, and an [`Entry`] is one bucket: bindings of the symbols, the
//! kernel of each work, and the arena. Buffers are shared by all entries.

mod advance;
mod attention;
mod cost;
mod first_loads;
mod left;
mod routed;
mod scalar;
mod schedule;
mod scratch;
mod text;
mod work;

pub use advance::{Advance, Control, GeneratingBody, Generation};
pub use attention::{
    Attention, AttentionProjection, AttentionPrologue, CLUSTER_KEYS, MadeRow, PROJECTED_KEYS,
    ProjectionShare, SPLIT_KEYS,
};
pub use cost::{Bound, Cost, Estimate, StepCost, cost, kernel_cost, step_cost};
pub use first_loads::{FirstLoads, LoadPart};
pub use left::{TiledLeft, loads_along_k};
pub use routed::{Grouped, Grouping, Routed, Step, StepKind, Steps};
pub use scalar::Scalar;
pub use schedule::{EXCHANGED_BYTES, Extent, Grid, KernelSpec, Schedule, ScheduleSource};
pub use scratch::{ALIGN as SCRATCH_ALIGN, Partials, Scratch, ScratchPlace, ScratchPlaces};
pub use work::{
    Compute, Draw, DrawPenalties, Loop, MatMul, Operand, Penalize, RowEpilogue, Sample, Stage, Store, Work,
};

use crate::dtype::{DType, Encoding};
use crate::graph::{Input, Literal};
use crate::ids::{BufferId, DispatchId, KernelId};
use crate::shape::{Bindings, Shape};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Load-time expression that makes a weight buffer from checkpoint tensors; evaluated once, on the CPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Pack {
    /// A checkpoint tensor as stored.
    Tensor {
        /// Name in its file.
        name: String,
        /// Storage.
        encoding: Encoding,
        /// Shape.
        shape: Vec<usize>,
    },
    /// Plain f32 values of an encoded tensor.
    Decode(Box<Pack>),
    /// Plain f32 values of a checkpoint tensor of elements whose scales are another.
    Scaled {
        /// Name of the elements in their file.
        name: String,
        /// Storage of the elements: [`Encoding::Scaled`].
        encoding: Encoding,
        /// Shape of the elements.
        shape: Vec<usize>,
        /// Name of the scales in their file; their shape is [`Encoding::scales`] of the elements'.
        scales: String,
        /// Storage of the scales.
        scale_encoding: Encoding,
    },
    /// Same elements, other shape.
    Reshape(Vec<usize>, Box<Pack>),
    /// Axes permuted: result axis i is input axis `perm[i]`.
    Transpose(Vec<usize>, Box<Pack>),
    /// Elements `start..start+len` of an axis: (axis, start, len).
    Slice(usize, usize, usize, Box<Pack>),
    /// Joined along an axis.
    Concat(usize, Vec<Pack>),
    /// Rounded to a type.
    Cast(DType, Box<Pack>),
}

impl Pack {
    /// Names of the checkpoint tensors it is made of, in order.
    pub fn tensors(&self) -> Vec<&str> {
        match self {
            Pack::Tensor { name, .. } => vec![name],
            Pack::Scaled { name, scales, .. } => vec![name, scales],
            Pack::Decode(x)
            | Pack::Reshape(_, x)
            | Pack::Transpose(_, x)
            | Pack::Slice(_, _, _, x)
            | Pack::Cast(_, x) => x.tensors(),
            Pack::Concat(_, parts) => parts.iter().flat_map(Pack::tensors).collect(),
        }
    }
}

/// Where a buffer lives and what fills it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum BufferKind {
    /// Weights, made at load.
    Weight(Pack),
    /// Literal elements, uploaded at load.
    Literal(Literal),
    /// Step input, filled by the runtime before each step.
    Input(Input),
    /// State that persists between steps; zero at first.
    State(String),
    /// Result of the step.
    Output(String),
    /// Intermediate value, in the arena.
    Temp,
    /// What a generation needs beside the inputs of its steps.
    Control(Control),
}

/// An array that dispatches read and write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Buffer {
    /// Name for reports: scope and op.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Shape, row-major.
    pub shape: Shape,
    /// Where it lives.
    pub kind: BufferKind,
}

impl Buffer {
    /// Bytes under bindings.
    pub fn bytes(&self, bind: &Bindings) -> usize {
        bind.elements(&self.shape).saturating_mul(self.dtype.size())
    }
}

/// One kernel's work in a step: a work on buffers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dispatch {
    /// Position in [`Plan::works`].
    pub work: u32,
    /// Buffers read, in the work's order.
    pub reads: Vec<BufferId>,
    /// Buffers written, in the work's order.
    pub writes: Vec<BufferId>,
    /// Where in the model: `model.layers.0.mlp.gate_proj`.
    pub scope: String,
}

/// Kind of a dependency edge between launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum EdgeKind {
    /// The later launch starts when the earlier has completed.
    Full,
    /// The later launch may start earlier and waits inside (`griddepcontrol.wait`).
    Programmatic,
}

/// A launch: one graph node, with the launches it waits for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    /// Dispatch.
    pub dispatch: DispatchId,
    /// Launches (by their dispatch) this one depends on, transitively reduced.
    pub after: Vec<(DispatchId, EdgeKind)>,
}

/// The dispatches of a step in launch order, and their dependencies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Body {
    /// Dispatches in launch order.
    pub dispatches: Vec<Dispatch>,
    /// One launch for each dispatch, in the same order.
    pub launches: Vec<Launch>,
}

/// Purpose of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    /// One token a sequence.
    Decode,
    /// Many tokens; logits of the last one of each sequence.
    Prefill,
    /// Many tokens; logits of each.
    Score,
    /// Whole sequences of an encoder; hidden states of each token.
    Encode,
}

/// A buffer's place in the arena of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Buffer.
    pub buffer: BufferId,
    /// Offset in bytes, a multiple of 256.
    pub offset: usize,
    /// Bytes.
    pub bytes: usize,
}

/// One bucket of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Name: `decode_4`, `prefill_256`, `encode_64`.
    pub name: String,
    /// Purpose.
    pub role: Role,
    /// Values of the symbols: the most this bucket holds.
    pub bind: Bindings,
    /// Position in [`Plan::bodies`].
    pub body: u32,
    /// Kernel of each work that the body uses.
    pub kernels: BTreeMap<u32, KernelId>,
    /// Places of the temporaries.
    pub arena: Vec<Placement>,
    /// Places of what schedules need besides.
    #[serde(default, skip_serializing_if = "ScratchPlaces::is_empty")]
    pub scratch: ScratchPlaces,
    /// Size of the arena in bytes: its peak.
    pub arena_bytes: usize,
    /// Sum of the sizes of temporaries and scratch in bytes: what it would take without sharing.
    pub unshared_bytes: usize,
}

/// A compiled model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Name of the target GPU family: `sm_90`.
    pub target: String,
    /// Type of activations and weights.
    pub dtype: DType,
    /// 0: one kernel an op; 2: all fusions.
    pub opt_level: u8,
    /// Longest context of a sequence, in tokens.
    pub max_seq: usize,
    /// Most sequences of a step.
    pub max_batch: usize,
    /// Arrays.
    pub buffers: Vec<Buffer>,
    /// Distinct computations.
    pub works: Vec<Work>,
    /// Distinct kernels.
    pub kernels: Vec<KernelSpec>,
    /// Distinct step bodies.
    pub bodies: Vec<Body>,
    /// Buckets.
    pub entries: Vec<Entry>,
    /// How decode steps follow each other on the device; none where there is nothing to sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
}

impl Plan {
    /// Buffer of an id.
    ///
    /// # Panics
    /// When the id belongs to another plan (`verify::plan` excludes it).
    pub fn buffer(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.index()]
    }

    /// The plan with one of its entries (a position in [`Plan::entries`]) and the kernels of that alone; `None` where
    /// there is no such entry, or it names a kernel that is not there.
    pub fn only(&self, entry: usize) -> Option<Plan> {
        let mut entry = self.entries.get(entry)?.clone();
        let mut kernels = Vec::new();
        for id in entry.kernels.values_mut() {
            kernels.push(self.kernels.get(id.index())?.clone());
            *id = KernelId::new(kernels.len() - 1);
        }
        Some(Plan { kernels, entries: vec![entry], ..self.clone() })
    }
}
