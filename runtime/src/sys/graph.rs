//! Graphs built node by node, with typed edges, and their executable form.
//!
//! A *programmatic* edge lets a kernel start while its predecessor still runs: it begins when every block of the
//! predecessor has executed `griddepcontrol.launch_dependents` or ended, and must execute `griddepcontrol.wait`
//! before it touches what the predecessor writes.

use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys as cu;

use super::check;
use super::context::Context;
use super::module::{Function, KernelArg, LaunchDims};
use super::stream::Stream;
use crate::error::{Error, Result};

/// How a node waits for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EdgeKind {
    /// Until the other is done and its memory is visible.
    Full,
    /// Programmatic dependent launch, from kernel to kernel: the waiting is done by `griddepcontrol.wait`.
    Programmatic,
}

/// A node of one graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeHandle {
    graph: u64,
    index: usize,
}

/// A value that steers a conditional node; kernels set it through its `u64` form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConditionHandle {
    graph: u64,
    raw: u64,
}

impl ConditionHandle {
    /// The kernel argument by which device code sets the condition (`cudaGraphSetConditional`).
    pub fn arg(self) -> KernelArg {
        KernelArg::U64(self.raw)
    }
}

/// A graph under construction.
#[derive(Debug)]
pub struct Graph {
    pub(super) raw: cu::CUgraph,
    id: u64,
    nodes: Vec<Node>,
    owner: Arc<Owner>,
    pub(super) context: Context,
}

// SAFETY: the driver's graph objects are not bound to a thread; building takes `&mut self`, so calls never overlap.
// A body graph is used by its own calls only, never through its parent's.
unsafe impl Send for Graph {}

#[derive(Debug)]
struct Node {
    raw: cu::CUgraphNode,
    label: String,
    is_kernel: bool,
}

/// The outermost graph, destroyed when it and the bodies inside it are dropped, and what its nodes use.
#[derive(Debug)]
struct Owner {
    raw: cu::CUgraph,
    context: Context,
    kept: Mutex<Vec<Arc<dyn Kept>>>,
}

// SAFETY: the handle is only destroyed, by the last owner.
unsafe impl Send for Owner {}
// SAFETY: as above; what is kept is behind a lock.
unsafe impl Sync for Owner {}

/// Anything a graph keeps alive.
pub(super) trait Kept: Any + Send + Sync + std::fmt::Debug {}
impl<T: Any + Send + Sync + std::fmt::Debug> Kept for T {}

impl Graph {
    /// Makes an empty graph.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn new(context: &Context) -> Result<Graph> {
        context.bind()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: a context is current; writes one handle; the flags must be 0.
        check(unsafe { call!(cuGraphCreate(&mut raw, 0)) })?;
        let owner = Arc::new(Owner { raw, context: context.clone(), kept: Mutex::default() });
        Ok(Self::wrap(raw, owner, context))
    }

    fn wrap(raw: cu::CUgraph, owner: Arc<Owner>, context: &Context) -> Graph {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Graph { raw, id, nodes: Vec::new(), owner, context: context.clone() }
    }

    /// How many nodes it has, those in bodies not counted.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// True when it has no node.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Adds a kernel. The arguments are copied; the kernel's module stays loaded as long as the graph.
    ///
    /// # Errors
    /// [`Error::BadArgument`] for arguments that do not fit the kernel, a node of another graph, or a programmatic
    /// edge from a node that is no kernel; [`Error::Cuda`].
    pub fn add_kernel_node(
        &mut self,
        function: &Function,
        dims: LaunchDims,
        args: &[KernelArg],
        deps: &[(NodeHandle, EdgeKind)],
    ) -> Result<NodeHandle> {
        if !self.context.same(function.context()) {
            return Err(Error::bad(
                format!("kernel node `{}`", function.name()),
                "it is loaded in another context",
            ));
        }
        let mut pointers = function.argument_pointers(args)?;
        let ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]) = (dims.grid, dims.block);
        let mut params = zeroed_params(cu::CUgraphNodeType::CU_GRAPH_NODE_TYPE_KERNEL);
        params.__bindgen_anon_1.kernel = cu::CUDA_KERNEL_NODE_PARAMS_v3 {
            func: function.raw(),
            gridDimX: grid_x,
            gridDimY: grid_y,
            gridDimZ: grid_z,
            blockDimX: block_x,
            blockDimY: block_y,
            blockDimZ: block_z,
            sharedMemBytes: dims.shared_bytes,
            kernelParams: pointers.as_mut_ptr(),
            extra: std::ptr::null_mut(),
            kern: std::ptr::null_mut(),
            ctx: std::ptr::null_mut(),
        };
        let node = self.add_node(function.name(), &mut params, true, deps)?;
        self.keep(&function.module);
        Ok(node)
    }

    /// Makes a condition that is `initial` at the start of every launch of this graph.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn condition(&mut self, initial: u32) -> Result<ConditionHandle> {
        self.context.bind()?;
        let mut raw = 0;
        let flags = cu::CU_GRAPH_COND_ASSIGN_DEFAULT;
        // SAFETY: graph and context live; writes one handle.
        check(unsafe {
            call!(cuGraphConditionalHandleCreate(&mut raw, self.raw, self.context.raw(), initial, flags))
        })?;
        Ok(ConditionHandle { graph: self.id, raw })
    }

    /// Adds a loop: while the condition is not 0, its body runs. Kernels in the body (or before it) set the
    /// condition. The body is filled after this call and before the graph is instantiated.
    ///
    /// # Errors
    /// [`Error::BadArgument`] for a condition of another graph, [`Error::Cuda`].
    pub fn add_while(
        &mut self,
        condition: ConditionHandle,
        deps: &[(NodeHandle, EdgeKind)],
    ) -> Result<(NodeHandle, Graph)> {
        if condition.graph != self.id {
            return Err(Error::bad("Graph::add_while", "the condition belongs to another graph"));
        }
        let mut params = zeroed_params(cu::CUgraphNodeType::CU_GRAPH_NODE_TYPE_CONDITIONAL);
        params.__bindgen_anon_1.conditional = cu::CUDA_CONDITIONAL_NODE_PARAMS {
            handle: condition.raw,
            type_: cu::CUgraphConditionalNodeType::CU_GRAPH_COND_TYPE_WHILE,
            size: 1,
            phGraph_out: std::ptr::null_mut(),
            ctx: self.context.raw(),
        };
        let node = self.add_node("while", &mut params, false, deps)?;
        // SAFETY: the call succeeded for a conditional node, so the driver set this field to an array of `size`
        // graphs, which it owns and keeps as long as the node.
        let body = unsafe {
            let bodies = params.__bindgen_anon_1.conditional.phGraph_out;
            if bodies.is_null() {
                return Err(Error::bad("Graph::add_while", "the driver returned no body"));
            }
            *bodies
        };
        Ok((node, Self::wrap(body, Arc::clone(&self.owner), &self.context)))
    }

    /// Keeps a value (a buffer that kernels use) alive as long as this graph and everything instantiated from it.
    pub fn keep_alive<T: Any + Send + Sync + std::fmt::Debug>(&mut self, value: Arc<T>) {
        self.keep(&value);
    }

    /// Makes the executable form. The graph may be dropped after, or changed and instantiated again.
    ///
    /// # Errors
    /// [`Error::BadArgument`] for a body (instantiate the outermost graph); [`Error::Cuda`] with the node the
    /// driver refused.
    pub fn instantiate(&self) -> Result<GraphExec> {
        if self.raw != self.owner.raw {
            return Err(Error::bad(
                "Graph::instantiate",
                "this is a loop's body: instantiate the outermost graph",
            ));
        }
        self.context.bind()?;
        let mut params = cu::CUDA_GRAPH_INSTANTIATE_PARAMS {
            flags: 0,
            hUploadStream: std::ptr::null_mut(),
            hErrNode_out: std::ptr::null_mut(),
            result_out: cu::CUgraphInstantiateResult::CUDA_GRAPH_INSTANTIATE_SUCCESS,
        };
        let mut raw = std::ptr::null_mut();
        // SAFETY: the graph lives; writes one handle and the result fields.
        check(unsafe { call!(cuGraphInstantiateWithParams(&mut raw, self.raw, &mut params)) }).map_err(
            |error| {
                let node = self.nodes.iter().position(|node| node.raw == params.hErrNode_out);
                match node {
                    Some(index) => error.for_kernel(&format!("{} (node {index})", self.nodes[index].label)),
                    None => error,
                }
            },
        )?;
        let kept = self.owner.kept.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(GraphExec { raw, context: self.context.clone(), nodes: self.nodes.len(), _kept: kept })
    }

    fn add_node(
        &mut self,
        label: &str,
        params: &mut cu::CUgraphNodeParams,
        is_kernel: bool,
        deps: &[(NodeHandle, EdgeKind)],
    ) -> Result<NodeHandle> {
        let mut nodes = Vec::with_capacity(deps.len());
        let mut edges = Vec::with_capacity(deps.len());
        for &(handle, kind) in deps {
            let node = self.node(handle)?;
            if kind == EdgeKind::Programmatic && !(is_kernel && node.is_kernel) {
                let what = format!("programmatic edge from `{}` to `{label}`", node.label);
                return Err(Error::bad(what, "only kernels can be joined so"));
            }
            nodes.push(node.raw);
            edges.push(edge_data(kind));
        }
        self.context.bind()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: `nodes` and `edges` have the same length; the parameters, and the arguments they point at, outlive
        // the call, which copies them.
        check(unsafe {
            call!(cuGraphAddNode_v2(&mut raw, self.raw, nodes.as_ptr(), edges.as_ptr(), nodes.len(), params))
        })
        .map_err(|error| error.for_kernel(label))?;
        Ok(self.push(raw, label, is_kernel))
    }

    pub(super) fn push(&mut self, raw: cu::CUgraphNode, label: &str, is_kernel: bool) -> NodeHandle {
        self.nodes.push(Node { raw, label: label.to_owned(), is_kernel });
        NodeHandle { graph: self.id, index: self.nodes.len() - 1 }
    }

    fn node(&self, handle: NodeHandle) -> Result<&Node> {
        let node = self.nodes.get(handle.index).filter(|_| handle.graph == self.id);
        node.ok_or_else(|| Error::bad("graph dependency", "the node belongs to another graph"))
    }

    pub(super) fn raw_nodes(&self, handles: &[NodeHandle]) -> Result<Vec<cu::CUgraphNode>> {
        handles.iter().map(|&handle| Ok(self.node(handle)?.raw)).collect()
    }

    pub(super) fn keep<T: Kept>(&self, value: &Arc<T>) {
        let value: Arc<dyn Kept> = value.clone();
        let mut kept = self.owner.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // Nodes of one module follow each other: this keeps the list short without searching it.
        if !kept.last().is_some_and(|last| Arc::ptr_eq(last, &value)) {
            kept.push(value);
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: made in `Graph::new`, destroyed once; bodies are owned by it and hold this owner.
        let _ = check(unsafe { call!(cuGraphDestroy(self.raw)) });
    }
}

/// A graph ready to launch. It and what it keeps alive are freed when it is dropped, after its launches are done.
#[derive(Debug)]
pub struct GraphExec {
    raw: cu::CUgraphExec,
    context: Context,
    nodes: usize,
    _kept: Vec<Arc<dyn Kept>>,
}

// SAFETY: not bound to a thread; not `Sync`, since one executable graph must not be launched from two threads at once.
unsafe impl Send for GraphExec {}

impl GraphExec {
    /// Launches it on a stream; launches of one executable graph follow each other.
    ///
    /// # Errors
    /// [`Error::Cuda`], also for an error that earlier work left behind.
    pub fn launch(&self, stream: &Stream) -> Result<()> {
        self.context.bind()?;
        // SAFETY: both handles live through the call; what the nodes use is kept alive by `self`.
        check(unsafe { call!(cuGraphLaunch(self.raw, stream.raw())) })
    }

    /// Sends it to the device ahead of its first launch, which is then as fast as the others.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn upload(&self, stream: &Stream) -> Result<()> {
        self.context.bind()?;
        // SAFETY: both handles live through the call.
        check(unsafe { call!(cuGraphUpload(self.raw, stream.raw())) })
    }

    /// How many nodes the outermost graph had.
    pub fn nodes(&self) -> usize {
        self.nodes
    }
}

impl Drop for GraphExec {
    fn drop(&mut self) {
        // Launches may still run; errors cannot be returned from here.
        let _ = self.context.synchronize();
        // SAFETY: made in `instantiate`, destroyed once, and the device is done with it.
        let _ = check(unsafe { call!(cuGraphExecDestroy(self.raw)) });
    }
}

fn edge_data(kind: EdgeKind) -> cu::CUgraphEdgeData {
    let (from_port, type_) = match kind {
        EdgeKind::Full => (
            cu::CU_GRAPH_KERNEL_NODE_PORT_DEFAULT,
            cu::CUgraphDependencyType::CU_GRAPH_DEPENDENCY_TYPE_DEFAULT,
        ),
        EdgeKind::Programmatic => (
            cu::CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC,
            cu::CUgraphDependencyType::CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC,
        ),
    };
    cu::CUgraphEdgeData { from_port: from_port as u8, to_port: 0, type_: type_ as u8, reserved: [0; 5] }
}

fn zeroed_params(type_: cu::CUgraphNodeType) -> cu::CUgraphNodeParams {
    // SAFETY: plain C data whose every field may be zero (the enum's zero is the kernel node type); the driver asks
    // for unused bytes to be zero.
    let mut params: cu::CUgraphNodeParams = unsafe { std::mem::zeroed() };
    params.type_ = type_;
    params
}
