//! A whole generation as one launch: a CUDA graph that copies the inputs and then runs a conditional WHILE node,
//! whose body is a decode step and the plan's advance.

use std::sync::Arc;

use weft_ir::generation::{EMPTY, MAX_STOP_TOKENS};
use weft_ir::plan::{Control, Plan, Role};

use super::bucket;
use super::check::{Sizes, check};
use super::cuda::CudaModel;
use super::generate::{Account, Generate, OnToken, RowTokens, Stream, follow};
use super::memory::InputBlock;
use super::{graphs, nodes};
use crate::error::{Error, Result};
use crate::sys::driver::{CudaVersion, Driver};
use crate::sys::graph::GraphExec;
use crate::sys::memory::PinnedBuffer;

/// The CUDA version from which graphs have conditional nodes.
const CONDITIONAL_NODES: CudaVersion = CudaVersion { major: 12, minor: 4 };

/// The loops of a model: for each entry a graph, once it was used, and the host memory that they share.
#[derive(Default)]
pub(super) struct Loops {
    // Dropped first: they wait for the device.
    graphs: Vec<Option<GraphExec>>,
    mapped: Option<Arc<PinnedBuffer>>,
}

/// Fails where the driver has no conditional nodes.
///
/// # Errors
/// [`Error::Loop`].
pub fn check_driver(version: CudaVersion) -> Result<()> {
    if version >= CONDITIONAL_NODES {
        return Ok(());
    }
    let why = format!(
        "it takes conditional graph nodes, which CUDA {CONDITIONAL_NODES} has, and the driver has {version}"
    );
    Err(Error::Loop { why })
}

/// Fails for a plan whose rules the device cannot check: a token or position that would be outside a table.
fn check_plan(plan: &Plan, model: &CudaModel) -> Result<()> {
    let fault = |why: String| Err(Error::Loop { why });
    if plan.generation.is_none() {
        return fault("the plan has no generation section".into());
    }
    let (vocab, bounds) = (model.limits.vocab.unwrap_or(0), &model.bounds);
    if vocab > bounds.vocab {
        let rows = bounds.vocab;
        return fault(format!("the model has logits of {vocab} tokens, and embeddings of {rows}"));
    }
    if bounds.positions < plan.max_seq {
        let (rows, most) = (bounds.positions, plan.max_seq);
        return fault(format!("the model has {rows} positions, and the plan's contexts have up to {most}"));
    }
    Ok(())
}

impl CudaModel {
    /// Runs a generation as one launch.
    pub(super) fn generate_on_device(
        &mut self,
        g: &Generate<'_>,
        on_token: &mut OnToken<'_>,
    ) -> Result<Vec<RowTokens>> {
        let plan = Arc::clone(&self.plan);
        let sizes = check(Role::Decode, g.first, &self.used, &self.bounds)?;
        check_plan(&plan, self)?;
        check_driver(Driver::init()?.cuda_version())?;
        let mut account = Account::new(g, plan.max_seq)?;
        let (steps, context) = account.reach();
        let entry = bucket::choose(&plan, Role::Decode, &Sizes { context, ..sizes })?;
        self.ready_loop(entry)?;
        self.write_inputs(entry, g.first)?;
        let rows = plan.entries[entry].bind.rows;
        self.write_controls(entry, &account, steps * rows)?;
        let name = &plan.entries[entry].name;
        let (graph, mapped) = match (self.loops.graphs.get(entry), &self.loops.mapped) {
            (Some(Some(graph)), Some(mapped)) => (graph, mapped),
            _ => return Err(Error::bad(format!("loop of {name}"), "it is not built")),
        };
        graph.launch(&self.stream)?;
        let watch = Watch { model: self, mapped, block: self.layout.inputs(entry), rows };
        let followed = follow(&watch, &mut account, on_token);
        if followed.is_err() {
            // What is left of the loop ends with its next step.
            (0..rows).try_for_each(|row| watch.cancel(row))?;
        }
        let done = self.stream.synchronize();
        followed.and(done).map_err(|e| e.for_kernel(&format!("loop of {name}")))?;
        self.busy = false;
        Ok(account.finish())
    }

    /// Builds the loop of an entry, unless it is there.
    pub(super) fn ready_loop(&mut self, entry: usize) -> Result<()> {
        let plan = &self.plan;
        if self.loops.mapped.is_none() {
            let most = (0..plan.entries.len()).map(|e| self.layout.inputs(e).mapped_bytes).max().unwrap_or(0);
            self.loops.mapped = Some(Arc::new(PinnedBuffer::alloc_mapped(&self.context, most)?));
        }
        self.loops.graphs.resize_with(plan.entries.len(), || None);
        let slot = self.loops.graphs.get_mut(entry).ok_or_else(|| nodes::no_entry(plan, entry))?;
        if let (None, Some(mapped)) = (&slot, &self.loops.mapped) {
            let nodes = nodes::loop_nodes(plan, &self.layout, entry, self.full_edges)?;
            let graph =
                graphs::build_loop(&self.context, &nodes, &self.memory, mapped, &graphs::all(&self.kernels))?;
            graph.upload(&self.stream)?;
            *slot = Some(graph);
        }
        Ok(())
    }

    /// Puts what the loop needs beside the inputs where its graph takes it from, and empties so many words of the
    /// stream.
    fn write_controls(&self, entry: usize, account: &Account, stream: usize) -> Result<()> {
        let Some(mapped) = &self.loops.mapped else { return Ok(()) };
        for &(control, offset, bytes) in &self.layout.inputs(entry).controls {
            let mut words = match control {
                Control::Remaining => account.remaining().to_vec(),
                Control::StopTokens => {
                    let stop = account.stop_tokens();
                    let mut words = vec![stop.len() as i32];
                    words.extend(&stop[..stop.len().min(MAX_STOP_TOKENS)]);
                    words
                }
                Control::Step | Control::Cancel => Vec::new(),
                Control::Stream => vec![EMPTY; stream],
            };
            if control != Control::Stream {
                words.resize(bytes / 4, 0);
            }
            let to = if control.on_host() { mapped.as_ref() } else { &self.memory.host_inputs };
            to.write(offset, bytemuck::cast_slice(&words))?;
        }
        Ok(())
    }
}

/// A loop that runs.
struct Watch<'a> {
    model: &'a CudaModel,
    mapped: &'a PinnedBuffer,
    block: &'a InputBlock,
    rows: usize,
}

impl Watch<'_> {
    fn at(&self, control: Control, word: usize) -> Result<usize> {
        let found = self.block.controls.iter().find(|c| c.0 == control);
        let found = found.ok_or_else(|| Error::Loop { why: format!("it has no {}", control.name()) });
        Ok(found?.1 + 4 * word)
    }
}

impl Stream for Watch<'_> {
    fn token(&self, step: usize, row: usize) -> Result<i32> {
        Ok(self.mapped.load_u32(self.at(Control::Stream, step * self.rows + row)?)? as i32)
    }

    fn cancel(&self, row: usize) -> Result<()> {
        self.mapped.store_u32(self.at(Control::Cancel, row)?, 1)
    }

    fn is_done(&self) -> Result<bool> {
        self.model.stream.is_idle()
    }
}
