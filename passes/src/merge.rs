//! What passes share that make one work of several: the arrays of all, works that are there already, and those that
//! nothing dispatches any more.

use crate::lower::{Lowered, Placed};
use weft_ir::ids::{BufferId, NodeId, OperandId};
use weft_ir::plan::{Dispatch, Operand, Scalar, Work};

/// Most arrays of a merged work.
pub(crate) const OPERANDS: usize = 24;
/// Why works stay apart whose arrays are more.
pub(crate) const TOO_LARGE: &str = "one work of all has too many arrays";

/// A body that a pass changes: its dispatches, the works they are of, and the nodes of each.
pub(crate) struct Step {
    pub dispatches: Vec<Dispatch>,
    pub works: Vec<Work>,
    pub nodes: Vec<Vec<NodeId>>,
}

impl Step {
    /// A copy of a body, where there is such a one.
    pub fn of(lowered: &Lowered, body: usize, placed: &Placed) -> Option<Step> {
        let dispatches = lowered.bodies.get(body)?.clone();
        Some(Step { dispatches, works: lowered.works.clone(), nodes: placed.dispatches.clone() })
    }

    /// Puts it in the body's place; works that nothing dispatches any more go.
    pub fn put(self, lowered: &mut Lowered, body: usize, placed: &mut Placed) {
        placed.dispatches = self.nodes;
        lowered.works = self.works;
        lowered.bodies[body] = self.dispatches;
        drop_unused(lowered);
    }
}

/// Whether neither of two dispatches needs what the other writes, nor writes what it writes or needs: they may change
/// places.
pub(crate) fn apart(a: &Dispatch, b: &Dispatch) -> bool {
    let common = |a: &[BufferId], b: &[BufferId]| a.iter().any(|x| b.contains(x));
    !common(&a.writes, &b.reads) && !common(&a.writes, &b.writes) && !common(&a.reads, &b.writes)
}

/// Arrays that a merged work reads, and their buffers; what several of its parts read is one.
pub(crate) struct Arrays {
    list: Vec<(Operand, BufferId)>,
}

impl Arrays {
    /// Those of a dispatch, at their places.
    pub fn of(work: &Work, d: &Dispatch) -> Arrays {
        Arrays { list: pairs(&work.reads, &d.reads) }
    }

    /// Adds those of another dispatch: for each of its operands, which it is of the merged work.
    pub fn join(&mut self, work: &Work, d: &Dispatch) -> Vec<OperandId> {
        pairs(&work.reads, &d.reads)
            .into_iter()
            .map(|(operand, buffer)| self.place(operand, buffer))
            .collect()
    }

    /// The place of an array, a new one where it has none yet.
    pub fn place(&mut self, operand: Operand, buffer: BufferId) -> OperandId {
        let same = |(o, x): &(Operand, BufferId)| {
            *x == buffer && (o.dtype, &o.shape) == (operand.dtype, &operand.shape)
        };
        let at = self.list.iter().position(same).unwrap_or_else(|| {
            self.list.push((operand, buffer));
            self.list.len() - 1
        });
        OperandId::new(at)
    }

    /// Puts another array in the place of one.
    pub fn replace(&mut self, at: OperandId, array: (Operand, BufferId)) {
        if let Some(place) = self.list.get_mut(at.index()) {
            *place = array;
        }
    }

    /// Gives an array another name.
    pub fn rename(&mut self, at: OperandId, name: &str) {
        if let Some((operand, _)) = self.list.get_mut(at.index()) {
            operand.name = name.into();
        }
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn parts(self) -> (Vec<Operand>, Vec<BufferId>) {
        self.list.into_iter().unzip()
    }
}

/// Operands with their buffers.
pub(crate) fn pairs(operands: &[Operand], buffers: &[BufferId]) -> Vec<(Operand, BufferId)> {
    operands.iter().cloned().zip(buffers.iter().copied()).collect()
}

/// An expression on the operands of a merged work.
pub(crate) fn on(e: &Scalar, operands: &[OperandId]) -> Scalar {
    match e {
        Scalar::Load(o, at) => {
            Scalar::Load(operands[o.index()], at.iter().map(|i| on(i, operands)).collect())
        }
        other => other.map_children(&mut |part| on(part, operands)),
    }
}

/// Rules and ops of some works and of the pass that merges them, in order.
pub(crate) fn origins(parts: &[&Work], pass: &str) -> (Vec<String>, Vec<String>) {
    let mut rules: Vec<String> = Vec::new();
    for rule in parts.iter().flat_map(|w| &w.rules).chain([&pass.to_string()]) {
        if !rules.contains(rule) {
            rules.push(rule.clone());
        }
    }
    (parts.iter().flat_map(|w| w.ops.iter().cloned()).collect(), rules)
}

/// Number of a work: that of an equal one of this body or another's, or a new one.
pub(crate) fn numbered(works: &mut Vec<Work>, made: Work) -> u32 {
    let alike = |w: &Work| made == Work { name: made.name.clone(), ..w.clone() };
    let work = works.iter().position(alike).unwrap_or_else(|| {
        works.push(made);
        works.len() - 1
    });
    work as u32
}

/// A name of its own for a work: the names of two of its parts, where they differ.
pub(crate) fn unique_name(works: &[Work], a: &Work, b: &Work) -> String {
    let plain =
        |w: &Work| w.name.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('_').to_string();
    let base = if plain(a) == plain(b) { plain(a) } else { format!("{}_{}", a.name, b.name) };
    let taken = |name: &str| works.iter().any(|w| w.name == name);
    let numbered = (2..).map(|i| format!("{base}_{i}"));
    std::iter::once(base.clone()).chain(numbered).find(|n| !taken(n)).unwrap_or(base)
}

/// Removes works that no body dispatches any more.
fn drop_unused(lowered: &mut Lowered) {
    let mut used = vec![false; lowered.works.len()];
    lowered.bodies.iter().flatten().for_each(|d| used[d.work as usize] = true);
    let mut next = 0;
    let moved: Vec<u32> = used
        .iter()
        .map(|used| {
            let here = next;
            next += u32::from(*used);
            here
        })
        .collect();
    let mut at = used.iter();
    lowered.works.retain(|_| at.next().copied().unwrap_or(true));
    lowered.bodies.iter_mut().flatten().for_each(|d| d.work = moved[d.work as usize]);
}
