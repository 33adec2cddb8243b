//! A plan on a GPU.

mod measure;

pub use measure::{StandIn, StandInSource, StreamChain, StreamDims, StreamKernel};

use std::sync::Arc;

use half::{bf16, f16};
use weft_ir::dtype::DType;
use weft_ir::graph::Input;
use weft_ir::ids::BufferId;
use weft_ir::plan::{BufferKind, Plan, Role};
use weft_ir::reference::{StepInputs, WeightBytes};

use super::bucket::{self, HIDDEN, LOGITS, TOKENS};
use super::check::{Bounds, Sizes, check};
use super::device_loop::Loops;
use super::generate::{Generate, OnToken, RowTokens, step_by_step};
use super::kernels::Kernel;
use super::load::{self, CudaOptions, KernelSource, LaunchMode, Memory, OnProgress};
use super::memory::{Layout, Region, output};
use super::nodes::{self, Node, What};
use super::report::{EntryReport, KernelReport, LoadReport};
use super::{Executor, Limits, StepOutput, graphs};
use crate::error::{Error, Result};
use crate::sys::context::Context;
use crate::sys::graph::GraphExec;
use crate::sys::stream::{Event, Stream};

/// A plan loaded on a GPU: its kernels, weights, states, and a graph for each entry that was used.
pub struct CudaModel {
    // Graphs are dropped first: they wait for the device.
    graphs: Vec<Option<GraphExec>>,
    pub(super) loops: Loops,
    nodes: Vec<Vec<Node>>,
    pub(super) plan: Arc<Plan>,
    pub(super) layout: Layout,
    pub(super) limits: Limits,
    pub(super) bounds: Bounds,
    pub(super) used: Vec<Input>,
    launch: LaunchMode,
    pub(super) kernels: Vec<Kernel>,
    pub(super) memory: Arc<Memory>,
    pub(super) stream: Stream,
    pub(super) context: Context,
    report: LoadReport,
    /// Whether a launch may be under way: after an error.
    pub(super) busy: bool,
    pub(super) full_edges: bool,
}

impl CudaModel {
    /// Loads a plan: checks the GPU and its memory, compiles the kernels (or takes them from the cache), and brings
    /// the weights to the device. States are zero.
    ///
    /// # Errors
    /// [`Error::WrongTarget`], [`Error::NotEnoughMemory`], [`Error::Plan`], [`Error::Weight`], and what the driver,
    /// NVRTC and the cache report.
    pub fn load(
        plan: Arc<Plan>,
        kernels: &[KernelSource],
        weights: &dyn WeightBytes,
        options: &CudaOptions,
        progress: &OnProgress<'_>,
    ) -> Result<CudaModel> {
        let loaded = load::load(&plan, kernels, weights, options, progress)?;
        let layout = loaded.layout;
        let nodes = (0..plan.entries.len()).map(|i| nodes::nodes(&plan, &layout, i, options.full_edges));
        Ok(CudaModel {
            graphs: plan.entries.iter().map(|_| None).collect(),
            nodes: nodes.collect::<Result<Vec<_>>>()?,
            limits: bucket::plan_limits(&plan)?,
            bounds: bucket::bounds(&plan)?,
            used: bucket::plan_inputs(&plan),
            launch: options.launch,
            layout,
            kernels: loaded.kernels,
            memory: loaded.memory,
            stream: loaded.stream,
            context: loaded.context,
            report: loaded.report,
            busy: false,
            full_edges: options.full_edges,
            loops: Loops::default(),
            plan,
        })
    }

    /// The plan.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// How it was loaded.
    pub fn load_report(&self) -> &LoadReport {
        &self.report
    }

    /// Its kernels, which are all loaded for it.
    ///
    /// # Errors
    /// [`Error::Plan`] for a kernel that cannot have its threads, [`Error::Cuda`].
    pub fn kernel_report(&self) -> Result<Vec<KernelReport>> {
        self.kernels.iter().map(|k| Ok(k.loaded()?.report.clone())).collect()
    }

    /// Its entries.
    pub fn entry_report(&self) -> Vec<EntryReport> {
        let entries = self.plan.entries.iter().zip(&self.nodes).zip(&self.graphs);
        entries
            .map(|((entry, nodes), graph)| {
                let (full_edges, programmatic_edges) = nodes::edges(nodes);
                EntryReport {
                    name: entry.name.clone(),
                    role: entry.role,
                    tokens: entry.bind.tokens,
                    rows: entry.bind.rows,
                    arena_bytes: entry.arena_bytes,
                    unshared_bytes: entry.unshared_bytes,
                    nodes: nodes.len(),
                    kernels: nodes.iter().filter(|n| matches!(n.what, What::Kernel { .. })).count(),
                    full_edges,
                    programmatic_edges,
                    built: graph.is_some(),
                }
            })
            .collect()
    }

    /// Builds the graphs of entries (positions in [`Plan::entries`]) ahead of their first use, and sends them to the
    /// device.
    ///
    /// # Errors
    /// [`Error::BadArgument`] for an entry that does not exist, [`Error::Cuda`].
    pub fn prepare(&mut self, entries: impl IntoIterator<Item = usize>) -> Result<()> {
        entries.into_iter().try_for_each(|entry| self.ready(entry))
    }

    /// Builds the loops of decode entries ahead of their first generation, and sends them to the device.
    ///
    /// # Errors
    /// [`Error::BadArgument`] for an entry that does not exist, [`Error::Loop`], [`Error::Cuda`].
    pub fn prepare_loops(&mut self, entries: impl IntoIterator<Item = usize>) -> Result<()> {
        entries.into_iter().try_for_each(|entry| self.ready_loop(entry))
    }

    /// Sets all states to zero, and the counters of blocks, which a step that was cut short may have left.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn reset(&mut self) -> Result<()> {
        for region in [Region::State, Region::Counters].map(|r| self.memory.region(r)) {
            if !region.is_empty() {
                region.fill_async(0, region.len(), 0, &self.stream)?;
            }
        }
        self.stream.synchronize()
    }

    /// Launches an entry's graph so many times in a row on the same inputs, after one launch that is not counted:
    /// milliseconds a launch. State rows of the step's slots are replaced.
    ///
    /// # Errors
    /// As [`Executor::step`]; [`Error::BadArgument`] for an entry that does not exist or does not hold the step.
    pub fn timing(&mut self, entry: usize, inputs: &StepInputs, launches: usize) -> Result<f32> {
        let of = self.plan.entries.get(entry).ok_or_else(|| nodes::no_entry(&self.plan, entry))?;
        let bind = of.bind;
        let sizes = check(of.role, inputs, &self.used, &self.bounds)?;
        if sizes.tokens > bind.tokens || sizes.rows > bind.rows || sizes.context > bind.context {
            return Err(Error::bad(
                "CudaModel::timing",
                format!("{sizes:?} is more than the entry's {bind:?}"),
            ));
        }
        let (start, end) = (Event::new(&self.context)?, Event::new(&self.context)?);
        self.write_inputs(entry, inputs)?;
        self.ready(entry)?;
        self.launch_graph(entry)?;
        self.stream.synchronize()?;
        self.stream.record(&start)?;
        for _ in 0..launches {
            self.launch_graph(entry)?;
        }
        self.stream.record(&end)?;
        end.synchronize()?;
        self.busy = false;
        Ok(end.milliseconds_since(&start)? / launches.max(1) as f32)
    }

    /// The bytes of a state, as stored.
    ///
    /// # Errors
    /// [`Error::BadArgument`] when there is none of this name, [`Error::Cuda`].
    pub fn state_bytes(&self, name: &str) -> Result<Vec<u8>> {
        let is = |kind: &BufferKind| matches!(kind, BufferKind::State(n) if n == name);
        let at = self.plan.buffers.iter().position(|b| is(&b.kind));
        let at = at.ok_or_else(|| Error::bad(format!("state {name:?}"), "the plan has none"))?;
        self.buffer_bytes(BufferId::new(at), 0)
    }

    /// The bytes of a buffer in an entry (a position in [`Plan::entries`]), as stored, with padding. Outputs and
    /// intermediate values are those of the last step, if that entry ran it; later values may lie where earlier ones
    /// were.
    ///
    /// # Errors
    /// [`Error::BadArgument`] when there is no such buffer or entry, [`Error::Cuda`].
    pub fn buffer_bytes(&self, id: BufferId, entry: usize) -> Result<Vec<u8>> {
        let buffer = self.plan.buffers.get(id.index());
        let buffer = buffer.ok_or_else(|| Error::bad(format!("buffer {id}"), "the plan has none"))?;
        let bind = &self.plan.entries.get(entry).ok_or_else(|| nodes::no_entry(&self.plan, entry))?.bind;
        let (region, offset) = self.layout.place(&self.plan, entry, id)?;
        let mut bytes = vec![0; buffer.bytes(bind)];
        self.stream.synchronize()?;
        self.memory.region(region).copy_to_host(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Builds the graph of an entry, unless it is there.
    fn ready(&mut self, entry: usize) -> Result<()> {
        let slot = self.graphs.get_mut(entry).ok_or_else(|| nodes::no_entry(&self.plan, entry))?;
        if slot.is_none() {
            let graph =
                graphs::build(&self.context, &self.nodes[entry], &self.memory, &graphs::all(&self.kernels))?;
            graph.upload(&self.stream)?;
            *slot = Some(graph);
        }
        Ok(())
    }

    fn launch_graph(&self, entry: usize) -> Result<()> {
        match self.graphs.get(entry) {
            Some(Some(graph)) => graph.launch(&self.stream),
            Some(None) | None => Err(Error::bad(format!("entry {entry}"), "its graph is not built")),
        }
    }

    /// Pads a step to an entry and puts it where the graph takes it from.
    pub(super) fn write_inputs(&mut self, entry: usize, inputs: &StepInputs) -> Result<()> {
        if self.busy {
            self.stream.synchronize()?;
        }
        self.busy = true;
        let padded = bucket::pad(inputs, &self.plan.entries[entry].bind);
        for &(input, offset, _) in &self.layout.inputs(entry).parts {
            self.memory.host_inputs.write(offset, bucket::input_bytes(&padded, input))?;
        }
        Ok(())
    }

    fn tokens(&self, rows: usize) -> Result<Vec<i32>> {
        if output(&self.plan, TOKENS).is_none() {
            return Ok(Vec::new());
        }
        let mut tokens = vec![0i32; rows];
        self.memory.host_tokens.read(0, bytemuck::cast_slice_mut(&mut tokens))?;
        Ok(tokens)
    }

    /// The first elements of a float output.
    fn floats(&self, name: &str, entry: usize, elements: usize) -> Result<Vec<f32>> {
        let found = output(&self.plan, name);
        let (id, buffer) = found.ok_or_else(|| Error::plan(format!("output {name}"), "there is none"))?;
        let (region, offset) = self.layout.place(&self.plan, entry, id)?;
        let from = self.memory.region(region);
        if buffer.dtype == DType::F32 {
            let mut out = vec![0f32; elements];
            from.copy_to_host(offset, bytemuck::cast_slice_mut(&mut out))?;
            return Ok(out);
        }
        let mut halves = vec![0u16; elements];
        from.copy_to_host(offset, bytemuck::cast_slice_mut(&mut halves))?;
        let is_f16 = buffer.dtype == DType::F16;
        let wide = |h: u16| if is_f16 { f16::from_bits(h).to_f32() } else { bf16::from_bits(h).to_f32() };
        Ok(halves.into_iter().map(wide).collect())
    }
}

impl Executor for CudaModel {
    fn step(&mut self, role: Role, inputs: &StepInputs, logits: bool) -> Result<StepOutput> {
        let sizes = check(role, inputs, &self.used, &self.bounds)?;
        let entry = bucket::choose(&self.plan, role, &sizes)?;
        self.write_inputs(entry, inputs)?;
        match self.launch {
            LaunchMode::Graph => {
                self.ready(entry)?;
                self.launch_graph(entry)?;
            }
            LaunchMode::Serial => {
                graphs::run_serially(&self.stream, &self.nodes[entry], &self.memory, &self.kernels)?;
            }
        }
        self.stream.synchronize().map_err(|e| e.for_kernel(&self.plan.entries[entry].name))?;
        self.busy = false;
        let mut out = StepOutput { tokens: self.tokens(sizes.rows)?, ..StepOutput::default() };
        if let Some(width) = self.limits.hidden {
            out.hidden = self.floats(HIDDEN, entry, sizes.tokens * width)?;
        }
        if let (true, Some(vocab)) = (logits, self.limits.vocab) {
            out.logits = self.floats(LOGITS, entry, sizes.rows * vocab)?;
        }
        Ok(out)
    }

    fn generate(&mut self, g: &Generate<'_>, on_token: &mut OnToken<'_>) -> Result<Vec<RowTokens>> {
        match self.launch {
            LaunchMode::Graph => self.generate_on_device(g, on_token),
            // One by one means each kernel of each step.
            LaunchMode::Serial => step_by_step(self, g, on_token),
        }
    }

    fn ready_for(&mut self, tokens: usize, rows: usize, loops: bool) -> Result<()> {
        if self.launch == LaunchMode::Serial {
            return Ok(());
        }
        let rows = rows.clamp(1, self.limits.max_batch);
        let tokens = tokens.clamp(rows, self.limits.prefill_tokens.max(rows));
        self.ready(bucket::choose(&self.plan, Role::Prefill, &Sizes { tokens, rows, context: 1 })?)?;
        let decode = bucket::choose(&self.plan, Role::Decode, &Sizes { tokens: rows, rows, context: 1 })?;
        if loops { self.ready_loop(decode) } else { self.ready(decode) }
    }

    fn limits(&self) -> Limits {
        self.limits.clone()
    }

    fn device(&self) -> String {
        self.report.device.clone()
    }

    fn load_report(&self) -> Option<&LoadReport> {
        Some(&self.report)
    }
}
