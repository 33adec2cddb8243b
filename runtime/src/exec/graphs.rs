//! From the nodes of an entry to a CUDA graph, or to launches one by one.

use std::sync::Arc;

use weft_ir::plan::EdgeKind;

use super::kernels::{Kernel, LoadedKernel};
use super::load::Memory;
use super::memory::Region;
use super::nodes::{Arg, LoopNodes, Node, What};
use crate::error::{Error, Result};
use crate::sys::context::Context;
use crate::sys::graph::{self, ConditionHandle, Graph, GraphExec, NodeHandle};
use crate::sys::memory::PinnedBuffer;
use crate::sys::module::{KernelArg, LaunchDims};
use crate::sys::stream::Stream;

/// Kernels as graphs take them.
pub(super) fn all(kernels: &[Kernel]) -> Vec<&Kernel> {
    kernels.iter().collect()
}

/// Builds and instantiates the graph of an entry.
pub(super) fn build(
    context: &Context,
    nodes: &[Node],
    memory: &Arc<Memory>,
    kernels: &[&Kernel],
) -> Result<GraphExec> {
    let mut graph = Graph::new(context)?;
    graph.keep_alive(Arc::clone(memory));
    add(&mut graph, nodes, memory, kernels, None)?;
    graph.instantiate()
}

/// What the kernels of a loop share with the host and the graph.
struct Steering<'a> {
    mapped: &'a PinnedBuffer,
    condition: ConditionHandle,
}

/// Builds and instantiates the loop of an entry.
///
/// # Errors
/// [`Error::Loop`] where the driver refuses a condition or a loop.
pub(super) fn build_loop(
    context: &Context,
    nodes: &LoopNodes,
    memory: &Arc<Memory>,
    mapped: &Arc<PinnedBuffer>,
    kernels: &[&Kernel],
) -> Result<GraphExec> {
    let refused = |e: Error| Error::Loop { why: e.to_string() };
    let mut graph = Graph::new(context)?;
    graph.keep_alive(Arc::clone(memory));
    graph.keep_alive(Arc::clone(mapped));
    let before = add(&mut graph, &nodes.before, memory, kernels, None)?;
    // At least one step runs.
    let condition = graph.condition(1).map_err(refused)?;
    let after: Vec<(NodeHandle, graph::EdgeKind)> =
        before.last().map(|&n| (n, graph::EdgeKind::Full)).into_iter().collect();
    let (_, mut body) = graph.add_while(condition, &after).map_err(refused)?;
    add(&mut body, &nodes.body, memory, kernels, Some(&Steering { mapped, condition }))?;
    graph.instantiate().map_err(refused)
}

/// Adds nodes to a graph.
fn add(
    graph: &mut Graph,
    nodes: &[Node],
    memory: &Memory,
    kernels: &[&Kernel],
    steering: Option<&Steering<'_>>,
) -> Result<Vec<NodeHandle>> {
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
                let kernel = kernels.get(*kernel).ok_or_else(|| no_kernel(*kernel))?.loaded()?;
                let args = arguments(memory, args, steering)?;
                graph.add_kernel_node(&kernel.function, dims(kernel, *grid, *threads), &args, &after)?
            }
        };
        made.push(handle);
    }
    Ok(made)
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
                let kernel = kernels.get(*kernel).ok_or_else(|| no_kernel(*kernel))?.loaded()?;
                let args = arguments(memory, args, None)?;
                kernel.function.launch(stream, dims(kernel, *grid, *threads), &args)?;
                kernel.function.name()
            }
        };
        stream.synchronize().map_err(|e| e.for_kernel(name))?;
    }
    Ok(())
}

fn no_kernel(at: usize) -> Error {
    Error::plan(format!("kernel {at}"), "it does not exist")
}

fn dims(kernel: &LoadedKernel, grid: [u32; 3], threads: u32) -> LaunchDims {
    LaunchDims { grid, block: [threads, 1, 1], shared_bytes: kernel.dynamic_shared }
}

fn arguments(memory: &Memory, args: &[Arg], steering: Option<&Steering<'_>>) -> Result<Vec<KernelArg>> {
    let steered = || steering.ok_or_else(|| Error::bad("graph", "a kernel of a loop is in none"));
    let argument = |arg: &Arg| match arg {
        Arg::Mapped(offset) => {
            let mapped = steered()?.mapped;
            if *offset >= mapped.len() {
                return Err(Error::bad("graph", format!("byte {offset} is not in the loop's host memory")));
            }
            Ok(KernelArg::Ptr(mapped.device_address()? + *offset as u64))
        }
        Arg::Condition => Ok(steered()?.condition.arg()),
        Arg::Buffer(region, offset) => Ok(KernelArg::Ptr(memory.region(*region).address_at(*offset)?)),
        Arg::Matrix(region, offset, matrix) => {
            let buffer = memory.region(*region);
            Ok(KernelArg::Bytes(buffer.tensor_map(*offset, matrix)?))
        }
        Arg::Sym(value) => Ok(KernelArg::I32(*value)),
        Arg::Address(address) => Ok(KernelArg::Ptr(*address)),
    };
    args.iter().map(argument).collect()
}
