//! From the nodes of an entry to a CUDA graph, or to launches one by one.

use std::sync::Arc;

use weft_ir::plan::EdgeKind;

use super::load::{Kernel, Memory};
use super::memory::Region;
use super::nodes::{Arg, Node, What};
use crate::error::{Error, Result};
use crate::sys::context::Context;
use crate::sys::graph::{self, Graph, GraphExec, NodeHandle};
use crate::sys::module::{KernelArg, LaunchDims};
use crate::sys::stream::Stream;

/// Builds and instantiates the graph of an entry.
pub(super) fn build(
    context: &Context,
    nodes: &[Node],
    memory: &Arc<Memory>,
    kernels: &[Kernel],
) -> Result<GraphExec> {
    let mut graph = Graph::new(context)?;
    graph.keep_alive(Arc::clone(memory));
    let mut made: Vec<NodeHandle> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let after = |(n, kind): &(usize, EdgeKind)| {
            let kind = match kind {
                EdgeKind::Full => graph::EdgeKind::Full,
                EdgeKind::Programmatic => graph::EdgeKind::Programmatic,
            };
            Ok((*made.get(*n).ok_or_else(|| Error::bad("graph", "a node waits for a later one"))?, kind))
        };
        let after = node.after.iter().map(after).collect::<Result<Vec<_>>>()?;
        let full: Vec<NodeHandle> = after.iter().map(|a| a.0).collect();
        let handle = match &node.what {
            What::Inputs(bytes) => {
                let to = (memory.region(Region::Inputs), 0);
                graph.add_copy_from_pinned(to, (&memory.host_inputs, 0), *bytes, &full)?
            }
            What::Tokens(offset, bytes) => {
                let from = (memory.region(Region::Outputs), *offset);
                graph.add_copy_to_pinned((&memory.host_tokens, 0), from, *bytes, &full)?
            }
            What::Kernel { kernel, grid, threads, args, .. } => {
                let kernel = kernel_at(kernels, *kernel)?;
                let args = arguments(memory, args)?;
                graph.add_kernel_node(&kernel.function, dims(kernel, *grid, *threads), &args, &after)?
            }
        };
        made.push(handle);
    }
    graph.instantiate()
}

/// Runs the nodes one by one; an error names the kernel after which it showed.
pub(super) fn run_serially(
    stream: &Stream,
    nodes: &[Node],
    memory: &Memory,
    kernels: &[Kernel],
) -> Result<()> {
    for node in nodes {
        let name = match &node.what {
            What::Inputs(bytes) => {
                let to = memory.region(Region::Inputs);
                to.copy_from_pinned_async(0, &memory.host_inputs, 0, *bytes, stream)?;
                "copy of the step's inputs"
            }
            What::Tokens(offset, bytes) => {
                let from = memory.region(Region::Outputs);
                from.copy_to_pinned_async(*offset, &memory.host_tokens, 0, *bytes, stream)?;
                "copy of the sampled tokens"
            }
            What::Kernel { kernel, grid, threads, args, .. } => {
                let kernel = kernel_at(kernels, *kernel)?;
                let args = arguments(memory, args)?;
                kernel.function.launch(stream, dims(kernel, *grid, *threads), &args)?;
                kernel.function.name()
            }
        };
        stream.synchronize().map_err(|e| e.for_kernel(name))?;
    }
    Ok(())
}

fn kernel_at(kernels: &[Kernel], at: usize) -> Result<&Kernel> {
    kernels.get(at).ok_or_else(|| Error::plan(format!("kernel {at}"), "it does not exist"))
}

fn dims(kernel: &Kernel, grid: [u32; 3], threads: u32) -> LaunchDims {
    LaunchDims { grid, block: [threads, 1, 1], shared_bytes: kernel.dynamic_shared }
}

fn arguments(memory: &Memory, args: &[Arg]) -> Result<Vec<KernelArg>> {
    let argument = |arg: &Arg| match arg {
        Arg::Buffer(region, offset) => Ok(KernelArg::Ptr(memory.region(*region).address_at(*offset)?)),
        Arg::Sym(value) => Ok(KernelArg::I32(*value)),
    };
    args.iter().map(argument).collect()
}
