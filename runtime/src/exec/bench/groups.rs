//! What a step is made of: the launches of each kernel, their bytes, and the chain that streams as many.

use weft_ir::ids::{DispatchId, KernelId};
use weft_ir::plan::{Body, BufferKind, Cost, Dispatch, Entry, Plan, cost};
use weft_ir::shape::Bindings;

use crate::error::{Error, Result};

/// Launches of one kernel in a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Kernel.
    pub kernel: KernelId,
    /// Its work.
    pub work: u32,
    /// Place in the model of the first launch.
    pub scope: String,
    /// Its launches.
    pub dispatches: Vec<DispatchId>,
    /// What one launch moves and computes.
    pub cost: Cost,
    /// Whether it reads integers that an earlier kernel of the step made. They may be indices, so it must run on
    /// what the step left for it, and cannot take turns over buffers that later kernels have overwritten.
    pub reads_made_integers: bool,
}

/// The body of an entry.
pub(super) fn body<'a>(plan: &'a Plan, entry: &Entry) -> Result<&'a Body> {
    let found = plan.bodies.get(entry.body as usize);
    found.ok_or_else(|| Error::plan(format!("entry {}", entry.name), "its body does not exist"))
}

/// The kernels of a step, in the order of their first launches.
///
/// # Errors
/// [`Error::Plan`] for a dispatch without work or kernel.
pub fn groups(plan: &Plan, entry: &Entry, bind: &Bindings) -> Result<Vec<Group>> {
    let mut out: Vec<Group> = Vec::new();
    for (i, d) in body(plan, entry)?.dispatches.iter().enumerate() {
        let id = DispatchId::new(i);
        if let Some(group) = out.iter_mut().find(|g| g.work == d.work) {
            group.dispatches.push(id);
            continue;
        }
        let fault = |why: &str| Error::plan(format!("entry {}, dispatch {i}", entry.name), why);
        let work = plan.works.get(d.work as usize).ok_or_else(|| fault("its work does not exist"))?;
        let kernel = entry.kernels.get(&d.work).ok_or_else(|| fault("it has no kernel"))?;
        out.push(Group {
            kernel: *kernel,
            work: d.work,
            scope: d.scope.clone(),
            dispatches: vec![id],
            cost: cost(work, bind),
            reads_made_integers: reads_made_integers(plan, d),
        });
    }
    Ok(out)
}

fn reads_made_integers(plan: &Plan, d: &Dispatch) -> bool {
    d.reads.iter().filter_map(|b| plan.buffers.get(b.index())).any(|b| {
        let made = match &b.kind {
            BufferKind::Temp | BufferKind::Output(_) => true,
            BufferKind::Weight(_)
            | BufferKind::Literal(_)
            | BufferKind::Input(_)
            | BufferKind::State(_)
            | BufferKind::Control(_) => false,
        };
        made && !b.dtype.is_float()
    })
}

/// Bytes of each launch of a step, in launch order.
pub fn launch_bytes(groups: &[Group]) -> Vec<u64> {
    let count = groups.iter().map(|g| g.dispatches.len()).sum();
    let mut out = vec![0; count];
    for g in groups {
        for d in &g.dispatches {
            if let Some(bytes) = out.get_mut(d.index()) {
                *bytes = g.cost.bytes();
            }
        }
    }
    out
}

/// A range of the memory that a chain streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte; a multiple of 256.
    pub offset: u64,
    /// Bytes; the kernel reads whole vectors.
    pub bytes: u64,
}

/// Where each launch of a chain reads, in so much memory: one range behind the other, as the weights of a model lie,
/// and from the start again where the memory ends. `None` when a launch alone needs more.
pub fn spans(bytes: &[u64], room: u64) -> Option<Vec<Span>> {
    let mut at = 0;
    let mut span = |&bytes: &u64| {
        let taken = bytes.max(1).checked_next_multiple_of(super::ALIGN)?;
        if taken > room {
            return None;
        }
        if at + taken > room {
            at = 0;
        }
        let offset = at;
        at += taken;
        Some(Span { offset, bytes })
    };
    bytes.iter().map(&mut span).collect()
}

/// Memory that a chain would like: all its ranges behind each other.
pub fn chain_memory(bytes: &[u64]) -> u64 {
    bytes.iter().map(|b| b.max(&1).next_multiple_of(super::ALIGN)).fold(0, u64::saturating_add)
}

/// The launches that a kernel is timed alone by: all of its launches in turn, as often as makes about `nodes`, or,
/// where `turns` is false, its last again and again.
pub fn repeated(dispatches: &[DispatchId], turns: bool, nodes: usize) -> Vec<DispatchId> {
    let all = match (turns, dispatches.last()) {
        (false, Some(last)) => std::slice::from_ref(last),
        _ => dispatches,
    };
    let times = nodes.div_ceil(all.len().max(1)).max(1);
    all.iter().copied().cycle().take(all.len() * times).collect()
}

#[cfg(test)]
mod tests {
    use super::{Span, chain_memory, repeated, spans};
    use weft_ir::ids::DispatchId;

    #[test]
    fn a_chain_lies_one_behind_the_other_and_starts_again() {
        let at = |offset, bytes| Span { offset, bytes };
        let bytes = [100, 0, 300];
        assert_eq!(chain_memory(&bytes), 1024);
        assert_eq!(spans(&bytes, 1024), Some(vec![at(0, 100), at(256, 0), at(512, 300)]));
        assert_eq!(spans(&bytes, 1023), Some(vec![at(0, 100), at(256, 0), at(0, 300)]));
        assert_eq!(spans(&bytes, 511), None);
        assert_eq!(spans(&[], 0), Some(Vec::new()));
    }

    #[test]
    fn kernels_take_turns_over_their_launches() {
        let ids = |list: &[usize]| list.iter().map(|&i| DispatchId::new(i)).collect::<Vec<_>>();
        assert_eq!(repeated(&ids(&[1, 4]), true, 5), ids(&[1, 4, 1, 4, 1, 4]));
        assert_eq!(repeated(&ids(&[1, 4]), false, 3), ids(&[4, 4, 4]));
        assert_eq!(repeated(&ids(&[2]), true, 1), ids(&[2]));
        assert_eq!(repeated(&ids(&[2, 3]), true, 1), ids(&[2, 3]));
        assert!(repeated(&[], true, 4).is_empty());
    }
}
