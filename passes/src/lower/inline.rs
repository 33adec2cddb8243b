//! From nodes to scalar expressions: what one element of a value is, down to values in memory.

use super::buffers::Buffers;
use super::forms::{Form, Forms};
use super::{Stop, forms, index};
use std::collections::{BTreeSet, HashMap};
use weft_ir::graph::{Graph, Literal, Op};
use weft_ir::ids::{BufferId, NodeId, OperandId};
use weft_ir::plan::{Operand, Scalar, Stage};
use weft_ir::scalar::{Binary, Reduce, Unary};
use weft_ir::shape::{Dim, Shape};

/// Makes the expressions of one work, and collects its operands, reductions and ops.
pub(super) struct Inliner<'a> {
    pub graph: &'a Graph,
    pub forms: &'a Forms,
    pub buffers: &'a mut Buffers,
    /// Extents of the coordinates (the reduced axis last, if there is one).
    pub domain: Shape,
    /// Rows of a loop with reductions: the first coordinates.
    pub rows: usize,
    /// Reduced extent.
    pub reduced: Option<Dim>,
    /// Whether the reductions are made beside a product, by each of its blocks: no exponentials then.
    pub beside_product: bool,
    pub stages: Vec<Stage>,
    pub operands: Vec<Operand>,
    pub reads: Vec<BufferId>,
    pub ops: Vec<NodeId>,
    /// Values that stand for something the work computes itself, and at which coordinates they are known.
    pub known: HashMap<NodeId, (Vec<Scalar>, Scalar)>,
    /// Values that the work computes even where it also stores them.
    pub inside: BTreeSet<NodeId>,
    /// Values that an earlier step of the same row holds.
    pub locals: HashMap<NodeId, u8>,
    stage_of: HashMap<NodeId, u8>,
}

impl<'a> Inliner<'a> {
    pub fn new(graph: &'a Graph, forms: &'a Forms, buffers: &'a mut Buffers, domain: Shape) -> Self {
        Inliner {
            graph,
            forms,
            buffers,
            rows: domain.len(),
            domain,
            reduced: None,
            beside_product: false,
            stages: Vec::new(),
            operands: Vec::new(),
            reads: Vec::new(),
            ops: Vec::new(),
            known: HashMap::new(),
            inside: BTreeSet::new(),
            locals: HashMap::new(),
            stage_of: HashMap::new(),
        }
    }

    /// The operand that reads a value in memory, with the value's own shape.
    pub fn operand(&mut self, id: NodeId) -> Result<OperandId, Stop> {
        let shape = self.graph.ty(id).shape.clone();
        self.operand_as(id, shape)
    }

    /// The operand that reads a value in memory as an array of another shape, of as many elements.
    pub fn operand_as(&mut self, id: NodeId, shape: Shape) -> Result<OperandId, Stop> {
        let buffer = self.buffers.of(self.graph, self.forms, id)?;
        let node = self.graph.node(id);
        let constant = self.buffers.is_constant(buffer);
        for (i, (o, b)) in self.operands.iter().zip(&self.reads).enumerate() {
            if *b == buffer && o.shape == shape {
                return Ok(OperandId::new(i));
            }
        }
        let name = self.buffers.operand_name(buffer);
        let operand = Operand { name, dtype: node.ty.dtype(), shape, constant };
        self.operands.push(operand);
        self.reads.push(buffer);
        Ok(OperandId::new(self.operands.len() - 1))
    }

    /// Element of a value at coordinates: loaded where it is in memory, else computed.
    pub fn value(&mut self, id: NodeId, at: &[Scalar]) -> Result<Scalar, Stop> {
        if let Some((known_at, value)) = self.known.get(&id)
            && known_at == at
        {
            return Ok(value.clone());
        }
        if let Some(&step) = self.locals.get(&id) {
            return self.local(id, step, at);
        }
        match self.forms.of[id.index()] {
            _ if self.inside.contains(&id) => self.define(id, at),
            Form::Weight | Form::Source | Form::Alias | Form::Root => {
                Ok(Scalar::Load(self.operand(id)?, at.to_vec()))
            }
            Form::Inline | Form::Covered => self.define(id, at),
            Form::LoadPart => Err(Stop::Fault(format!("{id} is made at load and has no step value"))),
        }
    }

    /// Element of an earlier step's result: of the same row.
    fn local(&self, id: NodeId, step: u8, at: &[Scalar]) -> Result<Scalar, Stop> {
        match at.split_first() {
            Some((Scalar::Coord(0), rest)) => Ok(Scalar::Local(step, rest.to_vec())),
            _ => Err(Stop::Fault(format!("{id} ({}) is used in other rows", self.graph.node(id).scope))),
        }
    }

    /// Element of a value at coordinates, computed from its inputs.
    pub fn define(&mut self, id: NodeId, at: &[Scalar]) -> Result<Scalar, Stop> {
        if !self.ops.contains(&id) {
            self.ops.push(id);
        }
        let node = self.graph.node(id);
        let input = |i: usize| node.inputs[i];
        match &node.op {
            Op::Constant { literal, .. } => match literal {
                Literal::F32(v) if v.len() == 1 => Ok(Scalar::Float(v[0])),
                Literal::I32(v) if v.len() == 1 => Ok(Scalar::Int(i64::from(v[0]))),
                _ => Ok(Scalar::Load(self.operand(id)?, at.to_vec())),
            },
            Op::Iota { axis, .. } => Ok(at[*axis].clone()),
            Op::Unary(op) => Ok(Scalar::unary(*op, self.value(input(0), at)?)),
            Op::Binary(op) => {
                let (a, b) = (self.value(input(0), at)?, self.value(input(1), at)?);
                let integer = !node.ty.dtype().is_float();
                Ok(match (op, integer) {
                    (Binary::Add, true) => index::add(a, b),
                    _ => Scalar::binary(*op, a, b),
                })
            }
            Op::Compare(op) => {
                let (a, b) = (self.value(input(0), at)?, self.value(input(1), at)?);
                Ok(Scalar::Compare(*op, Box::new(a), Box::new(b)))
            }
            Op::Select => {
                let c = self.value(input(0), at)?;
                let (a, b) = (self.value(input(1), at)?, self.value(input(2), at)?);
                Ok(Scalar::Select(Box::new(c), Box::new(a), Box::new(b)))
            }
            Op::Cast(to) => {
                let from = self.graph.ty(input(0)).dtype();
                let x = self.value(input(0), at)?;
                let both_float = from.is_float() && to.is_float();
                Ok(if both_float || from == *to { x } else { Scalar::Cast(*to, Box::new(x)) })
            }
            Op::Reshape(to) => {
                let from = &self.graph.ty(input(0)).shape;
                let inner = index::reshape(at, to, from, &self.domain);
                self.value(input(0), &inner)
            }
            Op::Transpose(perm) => {
                let mut inner = at.to_vec();
                for (i, &p) in perm.iter().enumerate() {
                    inner[p] = at[i].clone();
                }
                self.value(input(0), &inner)
            }
            Op::Broadcast(to) => {
                let from = &self.graph.ty(input(0)).shape;
                let repeated = |(d, to): (&Dim, &Dim)| *d == Dim::Const(1) && d != to;
                let inner: Vec<Scalar> = from
                    .iter()
                    .zip(to)
                    .zip(at)
                    .map(|(dims, x)| if repeated(dims) { Scalar::Int(0) } else { x.clone() })
                    .collect();
                self.value(input(0), &inner)
            }
            Op::Slice { axis, start, .. } => {
                let mut inner = at.to_vec();
                inner[*axis] = index::add(inner[*axis].clone(), Scalar::Int(*start as i64));
                self.value(input(0), &inner)
            }
            Op::Concat { axis } => self.concat(id, *axis, at),
            // Rows of a loop's reductions are its own: a table that is made with reductions has others.
            Op::Gather if self.is_reduced(input(0)) => Err(Stop::Materialise(input(0))),
            Op::Gather => {
                let rank = self.graph.ty(input(1)).shape.len();
                let row = self.value(input(1), &at[..rank])?;
                let inner: Vec<Scalar> = std::iter::once(row).chain(at[rank..].iter().cloned()).collect();
                self.value(input(0), &inner)
            }
            Op::Reduce(op) => self.reduction(id, *op, at),
            Op::Softmax => self.softmax(id, at),
            Op::Input(_)
            | Op::Weight { .. }
            | Op::State { .. }
            | Op::Decode
            | Op::MatMul { .. }
            | Op::TopK { .. }
            | Op::RoutedMatMul { .. }
            | Op::Scatter
            | Op::Penalize
            | Op::Sample => Err(Stop::Fault(format!(
                "{id} = {} ({}) has no scalar expression",
                node.op.name(),
                node.scope
            ))),
        }
    }

    /// Whether a value would be computed in place, with reductions.
    fn is_reduced(&self, id: NodeId) -> bool {
        self.forms.of[id.index()] == Form::Inline && forms::has_reduction(self.graph, self.forms, id)
    }

    fn concat(&mut self, id: NodeId, axis: usize, at: &[Scalar]) -> Result<Scalar, Stop> {
        let inputs = self.graph.node(id).inputs.clone();
        let mut parts = Vec::new();
        let mut start = 0i64;
        for &x in &inputs {
            let len = self.graph.ty(x).shape[axis].as_const().unwrap_or(0) as i64;
            let mut inner = at.to_vec();
            inner[axis] = index::add(inner[axis].clone(), Scalar::Int(-start));
            parts.push((start + len, self.value(x, &inner)?));
            start += len;
        }
        let mut parts = parts.into_iter().rev();
        let (_, mut out) = parts.next().ok_or_else(|| Stop::Fault(format!("{id}: concat of nothing")))?;
        for (end, value) in parts {
            let inside = Scalar::Compare(
                weft_ir::scalar::Compare::Lt,
                Box::new(at[axis].clone()),
                Box::new(Scalar::Int(end)),
            );
            out = Scalar::Select(Box::new(inside), Box::new(value), Box::new(out));
        }
        Ok(out)
    }

    /// Coordinates of the reduced input of `id`, when its rows are the rows of this loop.
    fn reduction_row(&mut self, id: NodeId, at: &[Scalar]) -> Result<Vec<Scalar>, Stop> {
        let shape = &self.graph.ty(self.graph.node(id).inputs[0]).shape;
        let (Some(extent), Some(reduced)) = (shape.last(), self.reduced) else {
            return Err(Stop::Materialise(id));
        };
        let rows = &shape[..shape.len() - 1];
        let fits = rows.len() == self.rows
            && rows == &self.domain[..self.rows]
            && *extent == reduced
            && at[..rows.len()].iter().enumerate().all(|(i, x)| {
                *x == Scalar::Coord(i as u8) || (rows[i] == Dim::Const(1) && *x == Scalar::Int(0))
            });
        if !fits {
            return Err(Stop::Materialise(id));
        }
        // The loop's own coordinates: 0 is the coordinate of an extent of 1.
        let mut row: Vec<Scalar> = (0..rows.len()).map(|i| Scalar::Coord(i as u8)).collect();
        row.push(Scalar::Coord(self.rows as u8));
        Ok(row)
    }

    fn reduction(&mut self, id: NodeId, op: Reduce, at: &[Scalar]) -> Result<Scalar, Stop> {
        let row = self.reduction_row(id, at)?;
        let input = self.graph.node(id).inputs[0];
        let stage = match self.stage_of.get(&id) {
            Some(&s) => s,
            None => {
                let value = self.along_reduced(|inl| inl.value(input, &row))?;
                let sum_or_max = if op == Reduce::Max { Reduce::Max } else { Reduce::Sum };
                self.stages.push(Stage { op: sum_or_max, value });
                let s = (self.stages.len() - 1) as u8;
                self.stage_of.insert(id, s);
                s
            }
        };
        let result = Scalar::Reduced(stage);
        Ok(match (op, self.reduced) {
            (Reduce::Mean, Some(Dim::Const(n))) => {
                Scalar::binary(Binary::Div, result, Scalar::Float(n as f32))
            }
            (Reduce::Mean, Some(Dim::Sym(s))) => {
                let n = Scalar::Cast(weft_ir::dtype::DType::F32, Box::new(Scalar::Dim(s)));
                Scalar::binary(Binary::Div, result, n)
            }
            _ => result,
        })
    }

    /// Runs with the reduced axis as the last coordinate.
    fn along_reduced<T>(&mut self, run: impl FnOnce(&mut Self) -> T) -> T {
        let rows = self.domain[..self.rows].iter().copied();
        let inner: Shape = rows.chain(self.reduced).collect();
        let outer = std::mem::replace(&mut self.domain, inner);
        let out = run(self);
        self.domain = outer;
        out
    }

    fn softmax(&mut self, id: NodeId, at: &[Scalar]) -> Result<Scalar, Stop> {
        if self.beside_product {
            return Err(Stop::Materialise(id));
        }
        let row = self.reduction_row(id, at)?;
        let input = self.graph.node(id).inputs[0];
        // Where all is −∞ the result is 0: a finite maximum and, as any other row has one e⁰, a sum of 1.
        let shifted = |x: Scalar, max: u8| {
            let max = Scalar::binary(Binary::Max, Scalar::Reduced(max), Scalar::Float(f32::MIN));
            Scalar::unary(Unary::Exp, Scalar::binary(Binary::Sub, x, max))
        };
        let max = match self.stage_of.get(&id) {
            Some(&s) => s,
            None => {
                let x = self.value(input, &row)?;
                self.stages.push(Stage { op: Reduce::Max, value: x.clone() });
                let max = (self.stages.len() - 1) as u8;
                self.stages.push(Stage { op: Reduce::Sum, value: shifted(x, max) });
                self.stage_of.insert(id, max);
                max
            }
        };
        let x = self.value(input, at)?;
        let sum = Scalar::binary(Binary::Max, Scalar::Reduced(max + 1), Scalar::Float(1.0));
        Ok(Scalar::binary(Binary::Div, shifted(x, max), sum))
    }
}
