//! Timing of parts of a step: kernels alone, variants of them, and chains of streaming kernels. Results mean nothing
//! after it: kernels run on whatever lies in their buffers, and states change. [`CudaModel::reset`] makes it usable
//! again.

use std::sync::Arc;

use weft_ir::ids::DispatchId;
use weft_ir::plan::{EdgeKind, SCRATCH_ALIGN, Scratch};
use weft_ir::reference::StepInputs;
use weft_ir::shape::Bindings;
use weft_ir::target::Target;

use super::super::bench::groups::spans;
use super::super::kernels::{self, Kernel};
use super::super::memory::bytes_text;
use super::super::nodes::{Arg, Node, What};
use super::{
    CudaModel, CudaOptions, Error, Event, GraphExec, KernelSource, LaunchMode, Region, Result, graphs, nodes,
};
use crate::sys::graph::{self, Graph, NodeHandle};
use crate::sys::memory::DeviceBuffer;
use crate::sys::module::{KernelArg, LaunchDims};

/// A kernel that takes the place of the plan's own while it is timed: the same work by another schedule.
#[derive(Debug)]
pub struct StandIn {
    kernel: [Kernel; 1],
    grid: [u32; 3],
    threads: u32,
    /// Addresses of its partial results and counters, in memory of its own.
    scratch: Vec<Arg>,
    /// That memory.
    _memory: Option<DeviceBuffer>,
}

/// What a stand-in is made of.
#[derive(Clone, Debug)]
pub struct StandInSource {
    /// Its source.
    pub source: KernelSource,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// What its blocks share.
    pub scratch: Option<Scratch>,
}

/// The size and scalar arguments of a launch of a streaming kernel, whose parameters are the data, a place for its
/// sums, the vectors to read, and the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamDims {
    /// Blocks along x.
    pub blocks: u32,
    /// Vectors.
    pub vectors: i32,
    /// Rounds.
    pub rounds: i32,
}

/// A streaming kernel, as code generation made it.
#[derive(Clone, Debug)]
pub struct StreamKernel {
    /// Its source.
    pub source: KernelSource,
    /// Threads of a block.
    pub threads: u32,
    /// The launch for so many bytes on so many multiprocessors.
    pub dims: fn(u64, u32) -> Option<StreamDims>,
    /// Bytes of the sums of a launch of so many blocks.
    pub sums_bytes: fn(u32) -> usize,
}

/// A chain of launches on the device.
#[derive(Debug)]
pub struct StreamChain {
    graph: GraphExec,
}

impl CudaModel {
    /// Changes how steps are launched; gives how they were.
    pub fn set_launch_mode(&mut self, mode: LaunchMode) -> LaunchMode {
        std::mem::replace(&mut self.launch, mode)
    }

    /// The GPU that it is on.
    pub fn gpu(&self) -> &crate::sys::driver::Device {
        self.context.device()
    }

    /// Compiles and loads kernels that may stand in for one of the plan in an entry of these bindings: the same
    /// parameters but for scratch. Those that do not compile, or need more than there is, are errors of their own.
    ///
    /// # Errors
    /// [`Error::Plan`] for a target that is not known.
    pub fn stand_ins(
        &self,
        wanted: &[StandInSource],
        bind: &Bindings,
        options: &CudaOptions,
    ) -> Result<Vec<Result<StandIn>>> {
        let sources: Vec<(&KernelSource, u32)> = wanted.iter().map(|w| (&w.source, w.threads)).collect();
        let kernels = kernels::kernels_alone(&self.context, &sources, self.target()?, options);
        let made = kernels.into_iter().zip(wanted).map(|(kernel, w)| {
            let kernel = [kernel?];
            let report = &kernel[0].loaded()?.report;
            if report.spill_stores + report.stack > 0 {
                let why = format!("its registers spill {} bytes", report.spill_stores.max(report.stack));
                return Err(Error::plan(format!("kernel {}", report.name), why));
            }
            let (scratch, memory) = self.own_scratch(w.scratch.as_ref(), bind)?;
            Ok(StandIn { kernel, grid: w.grid, threads: w.threads, scratch, _memory: memory })
        });
        Ok(made.collect())
    }

    /// Memory for a kernel's scratch, all zero, and the addresses in it in the order of the parameters.
    fn own_scratch(
        &self,
        scratch: Option<&Scratch>,
        bind: &Bindings,
    ) -> Result<(Vec<Arg>, Option<DeviceBuffer>)> {
        let Some(scratch) = scratch else { return Ok((Vec::new(), None)) };
        let (offsets, bytes) = scratch.layout(bind);
        let counters = bytes.next_multiple_of(SCRATCH_ALIGN);
        let all = counters + scratch.counter_bytes(bind);
        let memory = DeviceBuffer::alloc(&self.context, all)?;
        memory.fill_async(0, all, 0, &self.stream)?;
        self.stream.synchronize()?;
        let places = offsets.into_iter().chain([counters]);
        let addresses = places.map(|at| Ok(Arg::Address(memory.address_at(at)?)));
        Ok((addresses.collect::<Result<Vec<Arg>>>()?, Some(memory)))
    }

    fn target(&self) -> Result<&'static Target> {
        Target::parse(&self.plan.target).map_err(|why| Error::plan("target", why))
    }

    /// Runs a step of an entry up to a dispatch, so that its inputs are what they are in a step.
    ///
    /// # Errors
    /// As [`CudaModel::timing`].
    pub fn run_up_to(&mut self, entry: usize, inputs: &StepInputs, last: DispatchId) -> Result<()> {
        let all = self.nodes.get(entry).ok_or_else(|| nodes::no_entry(&self.plan, entry))?;
        let is_last = |n: &Node| matches!(&n.what, What::Kernel { dispatch, .. } if *dispatch == last);
        let end = all.iter().position(is_last).ok_or_else(|| no_dispatch(last))?;
        let graph = graphs::build(&self.context, &all[..=end], &self.memory, &graphs::all(&self.kernels))?;
        self.write_inputs(entry, inputs)?;
        graph.launch(&self.stream)?;
        self.stream.synchronize()?;
        self.busy = false;
        Ok(())
    }

    /// Times launches of an entry one behind the other, in one graph with the edges of a step: seconds a launch, one
    /// figure for each run after one that is not counted.
    ///
    /// # Errors
    /// [`Error::BadArgument`] for an entry or a dispatch that does not exist, [`Error::Cuda`].
    pub fn time_launches(
        &mut self,
        entry: usize,
        dispatches: &[DispatchId],
        stand_in: Option<&StandIn>,
        runs: usize,
    ) -> Result<Vec<f64>> {
        let all = self.nodes.get(entry).ok_or_else(|| nodes::no_entry(&self.plan, entry))?;
        let mut chain: Vec<Node> = Vec::with_capacity(dispatches.len());
        for wanted in dispatches {
            let is = |n: &&Node| matches!(&n.what, What::Kernel { dispatch, .. } if dispatch == wanted);
            let node = all.iter().find(is).ok_or_else(|| no_dispatch(*wanted))?;
            let mut what = node.what.clone();
            if let Some(s) = stand_in {
                self.stand_in_for(&mut what, entry, (0, s));
            }
            let after = chain.len().checked_sub(1).map(|before| (before, self.edge(*wanted, entry)));
            chain.push(Node { what, after: after.into_iter().collect() });
        }
        let kernels = stand_in.map_or(&self.kernels[..], |s| &s.kernel[..]);
        let graph = graphs::build(&self.context, &chain, &self.memory, &graphs::all(kernels))?;
        let launches = dispatches.len().max(1) as f64;
        (0..=runs).map(|_| Ok(self.time_graph(&graph, 1)? / launches)).skip(1).collect::<Result<Vec<f64>>>()
    }

    /// Times steps of an entry in which stand-ins take the places of some kernels, all launches of theirs: seconds a
    /// step, means over some steps' inputs, one figure for each run after one that is not counted, each over `launches`
    /// steps in a row.
    ///
    /// # Errors
    /// As [`CudaModel::time_launches`].
    pub fn time_step_with(
        &mut self,
        entry: usize,
        stand_ins: &[(&[DispatchId], &StandIn)],
        inputs: &[StepInputs],
        launches: usize,
        runs: usize,
    ) -> Result<Vec<f64>> {
        let all = self.nodes.get(entry).ok_or_else(|| nodes::no_entry(&self.plan, entry))?;
        let mut step = all.clone();
        let mut kernels = graphs::all(&self.kernels);
        for (dispatches, s) in stand_ins {
            let at = kernels.len();
            kernels.push(&s.kernel[0]);
            for node in &mut step {
                let is = matches!(&node.what, What::Kernel { dispatch, .. } if dispatches.contains(dispatch));
                if is {
                    self.stand_in_for(&mut node.what, entry, (at, s));
                }
            }
        }
        let graph = graphs::build(&self.context, &step, &self.memory, &kernels)?;
        let (mut means, steps) = (vec![0.0; runs], inputs.len().max(1) as f64);
        for inputs in inputs {
            self.write_inputs(entry, inputs)?;
            self.time_graph(&graph, launches)?;
            for mean in &mut means {
                *mean += self.time_graph(&graph, launches)? / steps;
            }
        }
        self.busy = false;
        Ok(means)
    }

    /// Makes a launch of a kernel one of a stand-in, which is the kernel of this number.
    fn stand_in_for(&self, what: &mut What, entry: usize, (at, s): (usize, &StandIn)) {
        if let What::Kernel { kernel, grid, threads, args, dispatch, .. } = what {
            (*kernel, *grid, *threads) = (at, s.grid, s.threads);
            args.truncate(self.plain_args(*dispatch, entry));
            args.extend(&s.scratch);
        }
    }

    /// Arguments of a dispatch before those of its kernel's scratch.
    fn plain_args(&self, dispatch: DispatchId, entry: usize) -> usize {
        let entry = self.plan.entries.get(entry);
        let body = entry.and_then(|e| self.plan.bodies.get(e.body as usize));
        let work = body.and_then(|b| b.dispatches.get(dispatch.index())).map(|d| d.work);
        let work = work.and_then(|w| self.plan.works.get(w as usize));
        work.map_or(0, |w| w.reads.len() + w.writes.len() + w.syms().len())
    }

    /// The edge between launches of a dispatch's kernel.
    fn edge(&self, dispatch: DispatchId, entry: usize) -> EdgeKind {
        let entry = self.plan.entries.get(entry);
        let body = entry.and_then(|e| self.plan.bodies.get(e.body as usize));
        let work = body.and_then(|b| b.dispatches.get(dispatch.index())).map(|d| d.work);
        let kernel = entry.zip(work).and_then(|(e, w)| e.kernels.get(&w));
        match kernel.and_then(|k| self.plan.kernels.get(k.index())) {
            Some(spec) if spec.programmatic => EdgeKind::Programmatic,
            _ => EdgeKind::Full,
        }
    }

    /// Seconds of a launch of a graph, over some in a row.
    fn time_graph(&self, graph: &GraphExec, launches: usize) -> Result<f64> {
        let (start, end) = (Event::new(&self.context)?, Event::new(&self.context)?);
        self.stream.record(&start)?;
        for _ in 0..launches {
            graph.launch(&self.stream)?;
        }
        self.stream.record(&end)?;
        end.synchronize()?;
        Ok(f64::from(end.milliseconds_since(&start)?) / 1e3 / launches.max(1) as f64)
    }

    /// Makes a chain that streams so many bytes in each launch, from memory of its own with a copy of the weights in
    /// it (zeros would cost less power), all launches from different places as far as free memory allows.
    ///
    /// # Errors
    /// [`Error::BadArgument`] where a launch alone needs more memory than is free; what NVRTC and the driver report.
    pub fn stream_chain(
        &self,
        stream: &StreamKernel,
        bytes: &[u64],
        options: &CudaOptions,
    ) -> Result<StreamChain> {
        let target = self.target()?;
        let kernel =
            kernels::kernels_alone(&self.context, &[(&stream.source, stream.threads)], target, options);
        let kernel =
            kernel.into_iter().next().ok_or_else(|| Error::bad("streaming chain", "no kernel"))??;
        let free = self.context.memory()?.free.saturating_sub(super::super::memory::RESERVE) / 256 * 256;
        let room = super::super::bench::groups::chain_memory(bytes).min(free);
        let fault = |why: String| Error::bad("streaming chain", why);
        let most = bytes.iter().copied().max().unwrap_or(0);
        let spans = spans(bytes, room).ok_or_else(|| {
            let (free, most) = (bytes_text(free), bytes_text(most));
            fault(format!(
                "{free} of GPU memory are free, and one launch streams {most}; give less --context"
            ))
        })?;
        let sms = self.gpu().sm_count;
        let dims = bytes.iter().map(|&b| {
            (stream.dims)(b, sms).ok_or_else(|| fault(format!("one launch streams {}", bytes_text(b))))
        });
        let dims = dims.collect::<Result<Vec<StreamDims>>>()?;
        let blocks = dims.iter().map(|d| d.blocks).max().unwrap_or(1);
        let data = Arc::new(self.copy_of_weights(room as usize)?);
        let sums = Arc::new(DeviceBuffer::alloc(&self.context, (stream.sums_bytes)(blocks))?);
        let mut graph = Graph::new(&self.context)?;
        graph.keep_alive(Arc::clone(&data));
        graph.keep_alive(Arc::clone(&sums));
        let kind = match target.features.programmatic_launch {
            true => graph::EdgeKind::Programmatic,
            false => graph::EdgeKind::Full,
        };
        let mut before: Option<NodeHandle> = None;
        for (span, d) in spans.iter().zip(&dims) {
            let args = [
                KernelArg::Ptr(data.address_at(span.offset as usize)?),
                KernelArg::Ptr(sums.address()),
                KernelArg::I32(d.vectors),
                KernelArg::I32(d.rounds),
            ];
            let after: Vec<(NodeHandle, graph::EdgeKind)> = before.iter().map(|b| (*b, kind)).collect();
            let dims = LaunchDims::linear(d.blocks, stream.threads);
            before = Some(graph.add_kernel_node(&kernel.loaded()?.function, dims, &args, &after)?);
        }
        let graph = graph.instantiate()?;
        graph.upload(&self.stream)?;
        Ok(StreamChain { graph })
    }

    /// Seconds of a chain, over some in a row, after one that is not counted.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn time_chain(&self, chain: &StreamChain, launches: usize) -> Result<f64> {
        self.time_graph(&chain.graph, 1)?;
        self.time_graph(&chain.graph, launches)
    }

    /// Memory that is filled with the weights, again and again.
    fn copy_of_weights(&self, bytes: usize) -> Result<DeviceBuffer> {
        let to = DeviceBuffer::alloc(&self.context, bytes)?;
        let from = self.memory.region(Region::Constants);
        if from.is_empty() {
            to.fill_async(0, bytes, 0x5a, &self.stream)?;
        }
        let mut at = 0;
        while at < bytes && !from.is_empty() {
            let len = from.len().min(bytes - at);
            to.copy_from_device_async(at, from, 0, len, &self.stream)?;
            at += len;
        }
        self.stream.synchronize()?;
        Ok(to)
    }
}

fn no_dispatch(id: DispatchId) -> Error {
    Error::bad(format!("dispatch {}", id.index()), "the entry does not launch it")
}
