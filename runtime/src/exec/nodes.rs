//! The graph nodes of an entry, as data: what runs, on which memory, after what. Needs no GPU.

use weft_ir::ids::DispatchId;
use weft_ir::plan::{Body, BufferKind, Compute, Dispatch, EdgeKind, Entry, KernelSpec, Plan};

use super::bucket::TOKENS;
use super::memory::{Layout, Region, output};
use crate::error::{Error, Result};
use crate::sys::tensor_map::Matrix;

/// Most blocks along x, y and z.
const MAX_GRID: [usize; 3] = [i32::MAX as usize, 65535, 65535];

/// An argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// Address of a buffer, of partial results or of counters.
    Buffer(Region, usize),
    /// A matrix of a buffer, of which tiles are copied.
    Matrix(Region, usize, Matrix),
    /// Value of a symbol.
    Sym(i32),
    /// Address in the host memory that a loop shares with the device: offset.
    Mapped(usize),
    /// The loop's condition.
    Condition,
    /// An address on the device, of memory that no plan has.
    Address(u64),
}

/// What a node does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Copies so many bytes of step inputs to the device.
    Inputs(usize),
    /// Runs a kernel.
    Kernel {
        /// Dispatch of the body; its number of dispatches for the advance.
        dispatch: DispatchId,
        /// Position in [`Plan::kernels`].
        kernel: usize,
        /// Blocks in x, y, z.
        grid: [u32; 3],
        /// Threads of a block.
        threads: u32,
        /// Reads, writes, symbols, scratch; of an advance also the condition.
        args: Vec<Arg>,
    },
    /// Copies the sampled tokens to the host: offset in the outputs, bytes.
    Tokens(usize, usize),
}

/// A node, after earlier ones (positions in the list).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it does.
    pub what: What,
    /// What it waits for.
    pub after: Vec<(usize, EdgeKind)>,
}

/// The nodes of an entry, each after those it waits for.
///
/// The copy of the inputs comes first; launches that wait for no other wait for it, and so all others do,
/// transitively: a kernel that waits by itself (`griddepcontrol.wait`) completes after those it waits for.
/// The copy of the sampled tokens comes last.
///
/// # Errors
/// [`Error::Plan`] for what does not fit together.
pub fn nodes(plan: &Plan, layout: &Layout, entry: usize, full_edges: bool) -> Result<Vec<Node>> {
    let spot = entry;
    let entry = plan.entries.get(spot).ok_or_else(|| no_entry(plan, spot))?;
    let fault = |why: &str| Error::plan(format!("entry {}", entry.name), why);
    let body = plan.bodies.get(entry.body as usize).ok_or_else(|| fault("its body does not exist"))?;
    if body.launches.len() != body.dispatches.len() {
        return Err(fault("its body has not one launch for each dispatch"));
    }
    let mut out = copy_of_inputs(layout.inputs(spot).bytes);
    let first = out.len();
    out.extend(launches(plan, layout, spot, body, (first, full_edges))?);
    if let Some((id, buffer)) = output(plan, TOKENS)
        && let Some(writer) = body.dispatches.iter().rposition(|d| d.writes.contains(&id))
    {
        let what = What::Tokens(layout.place(plan, spot, id)?.1, buffer.bytes(&entry.bind));
        out.push(Node { what, after: vec![(first + writer, EdgeKind::Full)] });
    }
    Ok(out)
}

/// The nodes of a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoopNodes {
    /// What runs once, one behind the other; the loop comes after the last.
    pub before: Vec<Node>,
    /// What runs again and again. Its first kernels wait for nothing: iterations follow each other.
    pub body: Vec<Node>,
}

/// The nodes of a generation by a decode entry: a copy of the inputs and controls, and a loop over the entry's
/// kernels and the advance.
///
/// # Errors
/// [`Error::Plan`] for what does not fit together, [`Error::Loop`] for a plan or an entry without generations.
pub fn loop_nodes(plan: &Plan, layout: &Layout, entry: usize, full_edges: bool) -> Result<LoopNodes> {
    let spot = entry;
    let entry = plan.entries.get(spot).ok_or_else(|| no_entry(plan, spot))?;
    let none = || Error::Loop { why: format!("entry {} of the plan has no generations", entry.name) };
    let g = plan.generation.as_ref().ok_or_else(none)?;
    let waits_for = g.after(entry.body).ok_or_else(none)?;
    let fault = |why: &str| Error::plan(format!("generation by {}", entry.name), why);
    let body = plan.bodies.get(entry.body as usize).ok_or_else(|| fault("its body does not exist"))?;
    let mut out = launches(plan, layout, spot, body, (0, full_edges))?;
    let (kernel, spec) = kernel_of(plan, entry, &g.advance)?;
    let mut after = Vec::with_capacity(waits_for.len());
    for &(before, kind) in waits_for {
        let dispatch = body.dispatches.get(before.index()).ok_or_else(|| fault("it waits for no launch"))?;
        let waits = spec.programmatic && kernel_of(plan, entry, dispatch)?.1.programmatic;
        let kind = if full_edges || !waits { EdgeKind::Full } else { kind };
        after.push((before.index(), kind));
    }
    let what = What::Kernel {
        dispatch: DispatchId::new(body.dispatches.len()),
        kernel,
        grid: grid(entry, spec)?,
        threads: spec.threads,
        args: args(plan, layout, spot, (&g.advance, body.dispatches.len()), spec)?,
    };
    out.push(Node { what, after });
    Ok(LoopNodes { before: copy_of_inputs(layout.inputs(spot).loop_bytes), body: out })
}

fn copy_of_inputs(bytes: usize) -> Vec<Node> {
    let copy = Node { what: What::Inputs(bytes), after: Vec::new() };
    if bytes > 0 { vec![copy] } else { Vec::new() }
}

/// The kernels of a body, behind `first` nodes that those which wait for no other kernel wait for.
fn launches(
    plan: &Plan,
    layout: &Layout,
    spot: usize,
    body: &Body,
    (first, full_edges): (usize, bool),
) -> Result<Vec<Node>> {
    let entry = &plan.entries[spot];
    let fault = |why: &str| Error::plan(format!("entry {}", entry.name), why);
    if body.launches.len() != body.dispatches.len() {
        return Err(fault("its body has not one launch for each dispatch"));
    }
    let mut out = Vec::with_capacity(body.launches.len() + 2);
    for (at, launch) in body.launches.iter().enumerate() {
        if launch.dispatch.index() != at || launch.after.iter().any(|(d, _)| d.index() >= at) {
            return Err(fault(&format!("launch {at} is out of order")));
        }
        let dispatch = &body.dispatches[at];
        let (kernel, spec) = kernel_of(plan, entry, dispatch)?;
        let mut after: Vec<(usize, EdgeKind)> = Vec::with_capacity(launch.after.len().max(1));
        for &(before, kind) in &launch.after {
            let earlier = kernel_of(plan, entry, &body.dispatches[before.index()])?.1;
            let waits = spec.programmatic && earlier.programmatic;
            let kind = if full_edges || !waits { EdgeKind::Full } else { kind };
            after.push((first + before.index(), kind));
        }
        if after.is_empty() {
            after.extend((0..first).map(|i| (i, EdgeKind::Full)));
        }
        let what = What::Kernel {
            dispatch: launch.dispatch,
            kernel,
            grid: grid(entry, spec)?,
            threads: spec.threads,
            args: args(plan, layout, spot, (dispatch, at), spec)?,
        };
        out.push(Node { what, after });
    }
    Ok(out)
}

/// Edges between nodes: (full, programmatic).
pub fn edges(nodes: &[Node]) -> (usize, usize) {
    let all = nodes.iter().flat_map(|n| &n.after);
    let programmatic = all.clone().filter(|e| e.1 == EdgeKind::Programmatic).count();
    (all.count() - programmatic, programmatic)
}

pub(super) fn no_entry(plan: &Plan, at: usize) -> Error {
    let names: Vec<&str> = plan.entries.iter().map(|e| e.name.as_str()).collect();
    Error::bad(format!("entry {at}"), format!("the plan has {}: {}", names.len(), names.join(", ")))
}

fn kernel_of<'a>(plan: &'a Plan, entry: &Entry, dispatch: &Dispatch) -> Result<(usize, &'a KernelSpec)> {
    let id = entry.kernels.get(&dispatch.work).map(|k| k.index());
    let found = id.and_then(|k| Some((k, plan.kernels.get(k)?)));
    found.ok_or_else(|| {
        Error::plan(format!("entry {}", entry.name), format!("{} has no kernel", dispatch.scope))
    })
}

fn grid(entry: &Entry, spec: &KernelSpec) -> Result<[u32; 3]> {
    let mut grid = [1; 3];
    for (axis, (blocks, extent)) in grid.iter_mut().zip(&spec.grid).enumerate() {
        let fault = |why: String| Error::plan(format!("entry {}, kernel {}", entry.name, spec.name), why);
        if extent.per == 0 {
            return Err(fault(format!("axis {axis} of its grid gives 0 elements to a block")));
        }
        let n = extent.blocks(&entry.bind);
        if n == 0 || n > MAX_GRID[axis] {
            return Err(fault(format!("{n} blocks along axis {axis}; 1 to {} are possible", MAX_GRID[axis])));
        }
        *blocks = n as u32;
    }
    Ok(grid)
}

/// Arguments in the order of the kernel's parameters: reads, writes, symbols, partial results, counters, and a
/// condition where one is set. The dispatch comes with its place in its body.
fn args(
    plan: &Plan,
    layout: &Layout,
    entry: usize,
    (dispatch, at): (&Dispatch, usize),
    spec: &KernelSpec,
) -> Result<Vec<Arg>> {
    let fault = |why: String| Error::plan(format!("dispatch {at} ({})", dispatch.scope), why);
    let work = plan.works.get(dispatch.work as usize);
    let work = work.ok_or_else(|| fault("its work does not exist".into()))?;
    let mut args = Vec::new();
    for (i, &buffer) in dispatch.reads.iter().chain(&dispatch.writes).enumerate() {
        if let (Some(tile_rows), Some(read)) = (spec.tile_rows(work, i), work.reads.get(i)) {
            let (region, offset) = layout.place(plan, entry, buffer)?;
            let columns = read.shape.last().map_or(1, |d| plan.entries[entry].bind.elements(&[*d]));
            let rows = plan.entries[entry].bind.elements(&read.shape) / columns.max(1);
            args.push(Arg::Matrix(region, offset, Matrix { dtype: read.dtype, rows, columns, tile_rows }));
            continue;
        }
        args.push(match plan.buffers.get(buffer.index()).map(|b| &b.kind) {
            Some(BufferKind::Control(control)) => layout.control(entry, *control)?,
            _ => {
                let (region, offset) = layout.place(plan, entry, buffer)?;
                Arg::Buffer(region, offset)
            }
        });
    }
    for sym in work.syms() {
        let value = plan.entries[entry].bind.get(sym);
        let value =
            i32::try_from(value).map_err(|_| fault(format!("{} = {value} is beyond 32 bits", sym.name())))?;
        args.push(Arg::Sym(value));
    }
    if matches!(work.compute, Compute::Advance(_)) {
        args.push(Arg::Condition);
    }
    if let Some(scratch) = &spec.scratch {
        let entry = &plan.entries[entry];
        let place = entry.scratch.of(at).ok_or_else(|| fault("its scratch has no place".into()))?;
        let (offsets, bytes) = scratch.layout(&entry.bind);
        let counters = scratch.counter_bytes(&entry.bind).checked_add(place.counters);
        let fits = |end: Option<usize>, of: usize| end.is_some_and(|end| end <= of);
        if bytes > place.bytes
            || !fits(place.offset.checked_add(place.bytes), entry.arena_bytes)
            || !fits(counters, entry.scratch.counter_bytes)
        {
            return Err(fault("its scratch is not where it fits".into()));
        }
        args.extend(offsets.iter().map(|o| Arg::Buffer(Region::Arena, place.offset + o)));
        args.push(Arg::Buffer(Region::Counters, place.counters));
    }
    Ok(args)
}
