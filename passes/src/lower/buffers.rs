//! Buffers of the plan: one for each value in memory, made when it is first named.

use super::Stop;
use super::forms::{Form, Forms};
use std::collections::HashMap;
use weft_ir::dtype::DType;
use weft_ir::graph::{Graph, Op};
use weft_ir::ids::{BufferId, NodeId};
use weft_ir::plan::{Buffer, BufferKind, Pack};
use weft_ir::shape::{Dim, Shape};

/// The buffers so far.
#[derive(Debug)]
pub(super) struct Buffers {
    pub list: Vec<Buffer>,
    of: HashMap<NodeId, BufferId>,
    /// Of those that bodies share, all that have a tensor, state or output of this name in common.
    shared: HashMap<String, Vec<usize>>,
}

impl Buffers {
    /// Begins with the buffers of other bodies.
    pub fn new(list: Vec<Buffer>) -> Buffers {
        let mut shared: HashMap<String, Vec<usize>> = HashMap::new();
        for (i, buffer) in list.iter().enumerate().filter(|(_, b)| b.kind != BufferKind::Temp) {
            shared.entry(source(&buffer.kind)).or_default().push(i);
        }
        Buffers { list, of: HashMap::new(), shared }
    }

    /// Buffer of a value in memory.
    pub fn of(&mut self, graph: &Graph, forms: &Forms, id: NodeId) -> Result<BufferId, Stop> {
        if let Some(&b) = self.of.get(&id) {
            return Ok(b);
        }
        let node = graph.node(id);
        let same_as = |i: usize| node.inputs[i];
        let made = match (forms.of[id.index()], &node.op) {
            // A view, and a state after a write, are the buffer they view or write.
            (Form::Alias, _) | (Form::Root, Op::Scatter) => self.of(graph, forms, same_as(0))?,
            (Form::Weight, _) => {
                let pack = pack(graph, id)?;
                self.push(graph, id, BufferKind::Weight(pack), format!("{}.weight", node.scope))
            }
            (Form::Source, Op::Input(i)) => self.push(graph, id, BufferKind::Input(*i), i.name().into()),
            (Form::Source, Op::State { name, .. }) => {
                self.push(graph, id, BufferKind::State(name.clone()), name.clone())
            }
            (Form::Source, Op::Constant { literal, .. }) => {
                let name = format!("{}.table", node.scope);
                self.push(graph, id, BufferKind::Literal(literal.clone()), name)
            }
            (Form::Root, _) => {
                let output = graph.outputs.iter().find(|o| o.value == id);
                let kind = output.map_or(BufferKind::Temp, |o| BufferKind::Output(o.name.clone()));
                let name = output.map_or(format!("{}.{}", node.scope, node.op.name()), |o| o.name.clone());
                self.push(graph, id, kind, name)
            }
            (Form::Inline, Op::Constant { literal, .. }) => {
                let name = format!("{}.table", node.scope);
                self.push(graph, id, BufferKind::Literal(literal.clone()), name)
            }
            (Form::LoadPart | Form::Inline | Form::Covered | Form::Source, _) => {
                return Err(Stop::Materialise(id));
            }
        };
        self.of.insert(id, made);
        Ok(made)
    }

    /// Adds a buffer; what outlives a step, or is not computed by it, is shared with the other bodies.
    fn push(&mut self, graph: &Graph, id: NodeId, kind: BufferKind, name: String) -> BufferId {
        let ty = graph.ty(id);
        if kind != BufferKind::Temp {
            let alike = self.shared.entry(source(&kind)).or_default();
            let same = |&&i: &&usize| self.list[i].kind == kind && self.list[i].shape == ty.shape;
            if let Some(&i) = alike.iter().find(same) {
                return BufferId::new(i);
            }
            alike.push(self.list.len());
        }
        self.list.push(Buffer { name, dtype: ty.dtype(), shape: ty.shape.clone(), kind });
        BufferId::new(self.list.len() - 1)
    }

    /// A temporary that no value of the graph is.
    pub fn temp(&mut self, name: String, dtype: DType, shape: Shape) -> BufferId {
        self.list.push(Buffer { name, dtype, shape, kind: BufferKind::Temp });
        BufferId::new(self.list.len() - 1)
    }

    /// Whether a buffer never changes while a step runs: the advance writes inputs behind all that reads them, and
    /// the next step begins when it is done.
    pub fn is_constant(&self, id: BufferId) -> bool {
        matches!(
            self.list[id.index()].kind,
            BufferKind::Weight(_) | BufferKind::Literal(_) | BufferKind::Input(_)
        )
    }

    /// Name of a kernel parameter for a buffer: of its kind, not its layer, so that layers share kernels.
    pub fn operand_name(&self, id: BufferId) -> String {
        match &self.list[id.index()].kind {
            BufferKind::Weight(_) => "weight".into(),
            BufferKind::Literal(_) => "table".into(),
            BufferKind::Input(i) => i.name().into(),
            BufferKind::State(name) => format!("{}_cache", name.rsplit('.').next().unwrap_or("state")),
            BufferKind::Output(name) => name.clone(),
            BufferKind::Temp => "x".into(),
            BufferKind::Control(c) => c.name().into(),
        }
    }
}

/// What a buffer is filled from: equal kinds have equal sources.
fn source(kind: &BufferKind) -> String {
    match kind {
        BufferKind::Weight(pack) => pack.tensors().first().copied().unwrap_or_default().into(),
        BufferKind::Literal(_) => "a literal".into(),
        BufferKind::Input(i) => i.name().into(),
        BufferKind::State(name) | BufferKind::Output(name) => name.clone(),
        BufferKind::Temp => String::new(),
        BufferKind::Control(c) => c.name().into(),
    }
}

/// The load-time expression of a weight.
fn pack(graph: &Graph, id: NodeId) -> Result<Pack, Stop> {
    let node = graph.node(id);
    let extents = |shape: &[Dim]| -> Result<Vec<usize>, Stop> {
        let known: Option<Vec<usize>> = shape.iter().map(|d| d.as_const()).collect();
        known.ok_or_else(|| Stop::Fault(format!("{id} ({}): a weight has a symbolic extent", node.scope)))
    };
    let inner = |i: usize| pack(graph, node.inputs[i]).map(Box::new);
    Ok(match &node.op {
        Op::Weight { tensor, ty } => {
            Pack::Tensor { name: tensor.clone(), encoding: ty.encoding, shape: extents(&ty.shape)? }
        }
        Op::Decode => {
            match node.inputs.get(1).map(|&s| (&graph.node(node.inputs[0]).op, &graph.node(s).op)) {
                None => Pack::Decode(inner(0)?),
                Some((Op::Weight { tensor, ty }, Op::Weight { tensor: scales, ty: scale })) => Pack::Scaled {
                    name: tensor.clone(),
                    encoding: ty.encoding,
                    shape: extents(&ty.shape)?,
                    scales: scales.clone(),
                    scale_encoding: scale.encoding,
                },
                Some(_) => return Err(Stop::Fault(format!("{id}: only stored elements have stored scales"))),
            }
        }
        Op::Reshape(shape) => Pack::Reshape(extents(shape)?, inner(0)?),
        Op::Transpose(perm) => Pack::Transpose(perm.clone(), inner(0)?),
        Op::Slice { axis, start, len } => Pack::Slice(*axis, *start, *len, inner(0)?),
        Op::Concat { axis } => {
            let parts: Result<Vec<Pack>, Stop> = node.inputs.iter().map(|&i| pack(graph, i)).collect();
            Pack::Concat(*axis, parts?)
        }
        Op::Cast(d) => Pack::Cast(*d, inner(0)?),
        _ => return Err(Stop::Fault(format!("{id} = {} cannot be done at load", node.op.name()))),
    })
}
