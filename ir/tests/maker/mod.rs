//! Plans made by hand.

use weft_ir::dtype::{DType, Encoding};
use weft_ir::graph::Input;
use weft_ir::ids::{BufferId, OperandId};
use weft_ir::plan::*;
use weft_ir::scalar::Binary;
use weft_ir::shape::{Bindings, Dim, Shape, Sym};

pub const BIND: Bindings = Bindings { tokens: 3, seqs: 1, rows: 1, context: 8, slots: 6 };

pub fn shape(dims: &[Dim]) -> Shape {
    dims.to_vec()
}

pub fn c(n: usize) -> Dim {
    Dim::Const(n)
}

pub const TOKENS: Dim = Dim::Sym(Sym::Tokens);
pub const SLOTS: Dim = Dim::Sym(Sym::Slots);

pub fn at(axis: u8) -> Scalar {
    Scalar::Coord(axis)
}

pub fn load_at(operand: u32, index: &[Scalar]) -> Scalar {
    Scalar::Load(OperandId(operand), index.to_vec())
}

pub fn op(op: Binary, a: Scalar, b: Scalar) -> Scalar {
    Scalar::binary(op, a, b)
}

pub fn store(output: u8, index: &[Scalar], value: Scalar) -> Store {
    Store { output, index: index.to_vec(), value, guard: None }
}

pub fn elementwise(domain: &[Dim], stores: Vec<Store>) -> Compute {
    Compute::Loop(Loop {
        domain: shape(domain),
        reduced: None,
        stages: Vec::new(),
        element_stores: stores,
        row_stores: Vec::new(),
    })
}

/// Attention over operands 0 to 2 with scores q·k, two query heads for each head of keys; its length is one more than
/// operand 3 says for a token, and it stores the result as output 0.
pub fn attention(kv_heads: usize, head_dim: usize, value_dim: usize, slot: Scalar) -> Attention {
    Attention {
        settled: false,
        tokens: TOKENS,
        kv_heads,
        group: 2,
        head_dim,
        value_dim,
        q: OperandId(0),
        keys: OperandId(1),
        values: OperandId(2),
        slot,
        length: op(Binary::Add, load_at(3, &[at(0)]), Scalar::Int(1)),
        score: Scalar::Acc(0),
        sink: None,
        window: None,
        prologue: None,
        projection: None,
        stores: vec![store(0, &[at(0), at(1), at(2)], Scalar::Acc(0))],
    }
}

/// A plan under construction: buffers, and works with one dispatch each.
pub struct Maker {
    pub plan: Plan,
    pub dispatches: Vec<Dispatch>,
}

impl Maker {
    pub fn new() -> Maker {
        let plan = Plan {
            target: "sm_90".into(),
            dtype: DType::F32,
            opt_level: 2,
            max_seq: 8,
            max_batch: 1,
            buffers: Vec::new(),
            works: Vec::new(),
            kernels: Vec::new(),
            bodies: Vec::new(),
            entries: Vec::new(),
            generation: None,
        };
        Maker { plan, dispatches: Vec::new() }
    }

    pub fn buffer(&mut self, dtype: DType, dims: &[Dim], kind: BufferKind) -> BufferId {
        let name = format!("buffer {}", self.plan.buffers.len());
        self.plan.buffers.push(Buffer { name, dtype, shape: shape(dims), kind });
        BufferId(self.plan.buffers.len() as u32 - 1)
    }

    pub fn output(&mut self, dtype: DType, dims: &[Dim], name: &str) -> BufferId {
        self.buffer(dtype, dims, BufferKind::Output(name.into()))
    }

    pub fn input(&mut self, input: Input) -> BufferId {
        let ty = input.ty();
        self.buffer(ty.dtype(), &ty.shape, BufferKind::Input(input))
    }

    pub fn weight(&mut self, name: &str, dims: &[usize]) -> BufferId {
        let pack =
            Pack::Tensor { name: name.into(), encoding: Encoding::Plain(DType::F32), shape: dims.to_vec() };
        let dims: Vec<Dim> = dims.iter().map(|&n| c(n)).collect();
        self.buffer(DType::F32, &dims, BufferKind::Weight(pack))
    }

    pub fn dispatch(&mut self, compute: Compute, reads: &[BufferId], writes: &[BufferId]) {
        let operand = |b: &BufferId| {
            let buffer = self.plan.buffer(*b);
            let constant = matches!(buffer.kind, BufferKind::Weight(_) | BufferKind::Literal(_));
            Operand { name: buffer.name.clone(), dtype: buffer.dtype, shape: buffer.shape.clone(), constant }
        };
        let work = Work {
            name: format!("work_{}", self.plan.works.len()),
            compute,
            reads: reads.iter().map(operand).collect(),
            writes: writes.iter().map(operand).collect(),
            in_place: Vec::new(),
            ops: Vec::new(),
            rules: Vec::new(),
        };
        let d = Dispatch {
            work: self.plan.works.len() as u32,
            reads: reads.to_vec(),
            writes: writes.to_vec(),
            scope: "model.test".into(),
        };
        self.plan.works.push(work);
        self.dispatches.push(d);
    }

    pub fn plan(mut self) -> Plan {
        self.plan.bodies.push(Body { dispatches: self.dispatches, launches: Vec::new() });
        self.plan
    }
}
