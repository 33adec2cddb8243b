//! Where the buffers of a plan lie in device memory, and how much memory that takes.

use std::fmt;

use serde::Serialize;
use weft_ir::graph::{Input, Literal};
use weft_ir::ids::BufferId;
use weft_ir::plan::{Buffer, BufferKind, Control, Entry, Plan, Role};

use super::nodes::Arg;
use crate::error::{Error, Result};

/// Alignment of a buffer in its region, in bytes: what a device allocation has.
pub const ALIGN: usize = 256;

/// Device memory kept for code and graphs, in bytes.
pub const RESERVE: u64 = 64 << 20;

/// Device memory that a plan needs, in bytes, by part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryNeed {
    /// Weights.
    pub weights: u64,
    /// Literals: tables of the model.
    pub literals: u64,
    /// State: the KV cache.
    pub state: u64,
    /// Intermediate values: the largest entry's arena.
    pub arena: u64,
    /// Counters at which blocks of a kernel arrive: of the entry with the most.
    pub counters: u64,
    /// Step inputs of the largest entry.
    pub inputs: u64,
    /// Outputs of the largest entry.
    pub outputs: u64,
    /// Kept for code and graphs.
    pub reserve: u64,
}

impl MemoryNeed {
    /// All parts.
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|p| p.1).sum()
    }

    fn parts(&self) -> [(&'static str, u64); 8] {
        [
            ("weights", self.weights),
            ("literals", self.literals),
            ("state (KV cache)", self.state),
            ("arena", self.arena),
            ("counters", self.counters),
            ("inputs", self.inputs),
            ("outputs", self.outputs),
            ("code and graphs", self.reserve),
        ]
    }
}

impl fmt::Display for MemoryNeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = self.parts();
        let text: Vec<String> = parts.iter().map(|(name, n)| format!("{name} {}", bytes_text(*n))).collect();
        f.write_str(&text.join(", "))
    }
}

/// A number of bytes for people: `1.5 GiB`.
pub fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A device allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Region {
    /// Weights and literals.
    Constants,
    /// States.
    State,
    /// Step inputs.
    Inputs,
    /// Intermediate values.
    Arena,
    /// Outputs.
    Outputs,
    /// Counters of blocks: zero between steps.
    Counters,
}

/// Where the buffers of a plan lie. Constants, states and outputs have one place; inputs and intermediate values
/// one for each entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// For each buffer, its offset, unless entries place it.
    fixed: Vec<Option<(Region, usize)>>,
    /// For each entry and buffer, its offset in the arena.
    arenas: Vec<Vec<Option<usize>>>,
    /// For each entry, offset and bytes of each input it uses, and the bytes of the block up to its last.
    inputs: Vec<InputBlock>,
    /// Bytes of weights and literals together.
    pub constants: usize,
    /// Figures.
    pub need: MemoryNeed,
}

/// Step inputs of an entry, one behind the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InputBlock {
    /// (input, offset, bytes).
    pub parts: Vec<(Input, usize, usize)>,
    /// Bytes in use.
    pub bytes: usize,
    /// What a generation needs beside the inputs: (control, offset, bytes), on the device behind the inputs, or in
    /// host memory that the device sees ([`Control::on_host`]).
    pub controls: Vec<(Control, usize, usize)>,
    /// Bytes of inputs and controls on the device.
    pub loop_bytes: usize,
    /// Bytes of the controls in host memory.
    pub mapped_bytes: usize,
}

impl Layout {
    /// Places the buffers of a plan.
    ///
    /// # Errors
    /// [`Error::Plan`] for a buffer whose figures do not fit its kind, or an intermediate value without a place.
    pub fn new(plan: &Plan) -> Result<Layout> {
        let mut fixed = vec![None; plan.buffers.len()];
        let mut need = MemoryNeed { reserve: RESERVE, ..MemoryNeed::default() };
        let (mut constants, mut state, mut outputs) = (0, 0, 0);
        for (place, buffer) in fixed.iter_mut().zip(&plan.buffers) {
            let bytes = buffer_bytes(plan, buffer)?;
            let (region, end, figure) = match &buffer.kind {
                BufferKind::Weight(_) => (Region::Constants, &mut constants, &mut need.weights),
                BufferKind::Literal(literal) => {
                    check_literal(buffer, literal, bytes)?;
                    (Region::Constants, &mut constants, &mut need.literals)
                }
                BufferKind::State(_) => (Region::State, &mut state, &mut need.state),
                BufferKind::Output(_) => (Region::Outputs, &mut outputs, &mut need.outputs),
                BufferKind::Input(input) => {
                    let ty = input.ty();
                    if buffer.dtype != ty.dtype() || buffer.shape != ty.shape {
                        return Err(at(buffer, format!("it is not of input {}'s type", input.name())));
                    }
                    continue;
                }
                BufferKind::Temp | BufferKind::Control(_) => continue,
            };
            *place = Some((region, *end));
            let taken = bytes.next_multiple_of(ALIGN);
            *end += taken;
            *figure += taken as u64;
        }
        let inputs: Vec<InputBlock> = plan.entries.iter().map(|e| input_block(plan, e)).collect();
        let arenas = plan.entries.iter().map(|e| arena(plan, e)).collect::<Result<Vec<_>>>()?;
        let most = |of: &dyn Fn(usize) -> usize| (0..plan.entries.len()).map(of).max().unwrap_or(0) as u64;
        need.inputs = most(&|i| inputs[i].loop_bytes);
        need.arena = most(&|i| plan.entries[i].arena_bytes);
        need.counters = most(&|i| plan.entries[i].scratch.counter_bytes);
        Ok(Layout { fixed, arenas, inputs, constants, need })
    }

    /// Where a buffer lies for an entry.
    ///
    /// # Errors
    /// [`Error::Plan`] when it has no place.
    pub fn place(&self, plan: &Plan, entry: usize, id: BufferId) -> Result<(Region, usize)> {
        let nowhere = || Error::plan(format!("buffer {id}"), "it has no place in memory");
        let buffer = plan.buffers.get(id.index()).ok_or_else(nowhere)?;
        let found = match &buffer.kind {
            BufferKind::Weight(_) | BufferKind::Literal(_) | BufferKind::State(_) | BufferKind::Output(_) => {
                self.fixed.get(id.index()).copied().flatten()
            }
            BufferKind::Input(input) => {
                let block = self.inputs.get(entry);
                let part = block.and_then(|b| b.parts.iter().find(|p| p.0 == *input));
                part.map(|p| (Region::Inputs, p.1))
            }
            BufferKind::Temp => {
                let offset = self.arenas.get(entry).and_then(|a| a.get(id.index()).copied().flatten());
                offset.map(|o| (Region::Arena, o))
            }
            BufferKind::Control(_) => None,
        };
        found.ok_or_else(nowhere)
    }

    /// Where a control of a generation lies for an entry.
    ///
    /// # Errors
    /// [`Error::Plan`] when it has no place.
    pub fn control(&self, entry: usize, control: Control) -> Result<Arg> {
        let found = self.inputs(entry).controls.iter().find(|c| c.0 == control);
        let nowhere = || Error::plan(format!("control {}", control.name()), "it has no place in memory");
        let offset = found.ok_or_else(nowhere)?.1;
        Ok(if control.on_host() { Arg::Mapped(offset) } else { Arg::Buffer(Region::Inputs, offset) })
    }

    /// Step inputs of an entry.
    pub fn inputs(&self, entry: usize) -> &InputBlock {
        const NONE: &InputBlock =
            &InputBlock { parts: Vec::new(), bytes: 0, controls: Vec::new(), loop_bytes: 0, mapped_bytes: 0 };
        self.inputs.get(entry).unwrap_or(NONE)
    }
}

/// The buffer of an output.
pub fn output<'a>(plan: &'a Plan, name: &str) -> Option<(BufferId, &'a Buffer)> {
    let is = |b: &Buffer| matches!(&b.kind, BufferKind::Output(n) if n == name);
    let at = plan.buffers.iter().position(is)?;
    Some((BufferId::new(at), &plan.buffers[at]))
}

fn at(buffer: &Buffer, why: impl Into<String>) -> Error {
    Error::plan(format!("buffer {:?}", buffer.name), why)
}

/// Bytes that a buffer takes in the entry where it is largest.
fn buffer_bytes(plan: &Plan, buffer: &Buffer) -> Result<usize> {
    let mut most = 0;
    for entry in &plan.entries {
        let extents = entry.bind.shape(&buffer.shape);
        let bytes = extents.iter().try_fold(buffer.dtype.size(), |n, &d| n.checked_mul(d));
        // Far above any memory, and far below where sums overflow.
        let bytes = bytes.filter(|&n| n < 1 << 48);
        most = most.max(bytes.ok_or_else(|| at(buffer, format!("{extents:?} is too large")))?);
    }
    Ok(most)
}

fn check_literal(buffer: &Buffer, literal: &Literal, bytes: usize) -> Result<()> {
    let len = match literal {
        Literal::F32(v) if buffer.dtype == weft_ir::dtype::DType::F32 => v.len(),
        Literal::I32(v) if buffer.dtype == weft_ir::dtype::DType::I32 => v.len(),
        Literal::F32(_) | Literal::I32(_) => {
            return Err(at(buffer, format!("its literal is not of type {}", buffer.dtype)));
        }
    };
    if len * 4 == bytes { Ok(()) } else { Err(at(buffer, format!("its literal has {len} elements"))) }
}

fn input_block(plan: &Plan, entry: &Entry) -> InputBlock {
    let mut block = InputBlock::default();
    for input in super::bucket::plan_inputs(plan) {
        let ty = input.ty();
        let (offset, bytes) =
            (block.bytes.next_multiple_of(ALIGN), entry.bind.elements(&ty.shape) * ty.dtype().size());
        block.parts.push((input, offset, bytes));
        block.bytes = offset + bytes;
    }
    block.loop_bytes = block.bytes;
    if plan.generation.is_some() && entry.role == Role::Decode {
        for control in Control::ALL {
            let end = if control.on_host() { &mut block.mapped_bytes } else { &mut block.loop_bytes };
            let elements = entry.bind.elements(&control.shape(plan.max_seq));
            let (offset, bytes) = (end.next_multiple_of(ALIGN), elements * control.dtype().size());
            *end = offset + bytes;
            block.controls.push((control, offset, bytes));
        }
    }
    block
}

fn arena(plan: &Plan, entry: &Entry) -> Result<Vec<Option<usize>>> {
    let mut offsets = vec![None; plan.buffers.len()];
    for p in &entry.arena {
        let fault = |why: &str| Error::plan(format!("entry {}, placement of {}", entry.name, p.buffer), why);
        let slot = offsets.get_mut(p.buffer.index()).ok_or_else(|| fault("the buffer does not exist"))?;
        if p.offset.checked_add(p.bytes).is_none_or(|end| end > entry.arena_bytes) {
            return Err(fault("it is not in the arena"));
        }
        if !p.offset.is_multiple_of(ALIGN) {
            return Err(fault("its offset is no multiple of 256"));
        }
        *slot = Some(p.offset);
    }
    Ok(offsets)
}
