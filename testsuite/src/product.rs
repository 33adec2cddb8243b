//! Plans of one matrix product, for tests of what fuses into it: each kernel on the emulator against the f64
//! reference, and through NVRTC without spills.

use crate::emulate::{Distance, Emulated};
use crate::nvrtc::{compile_all, load};
use crate::one_work::OneWork;
use std::collections::HashMap;
use weft_codegen::emulator::Order;
use weft_ir::dtype::{DType, Encoding};
use weft_ir::graph::{Input, Literal};
use weft_ir::ids::{BufferId, OperandId};
use weft_ir::plan::{
    Buffer, BufferKind, Compute, MatMul, Operand, Pack, Plan, Scalar, Schedule, Stage, Store, Work,
};
use weft_ir::reference::{StepInputs, WeightBytes};
use weft_ir::scalar::{Binary, Compare, Reduce, Unary};
use weft_ir::shape::{Bindings, Dim, Sym};
use weft_ir::target::Target;

/// The rows of the products.
pub const TOKENS: Dim = Dim::Sym(Sym::Tokens);

/// Arrays of a plan with one work.
#[derive(Default)]
pub struct Maker {
    buffers: Vec<Buffer>,
    reads: Vec<Operand>,
    writes: Vec<Operand>,
    bytes: HashMap<String, Vec<u8>>,
    /// Inputs of the step.
    pub inputs: StepInputs,
}

impl WeightBytes for Maker {
    fn bytes(&self, tensor: &str) -> Option<&[u8]> {
        self.bytes.get(tensor).map(Vec::as_slice)
    }
}

impl Maker {
    fn operand(&mut self, name: &str, dtype: DType, shape: Vec<Dim>, kind: BufferKind) -> Operand {
        let constant = matches!(kind, BufferKind::Literal(_)) || name.starts_with('w');
        self.buffers.push(Buffer { name: name.into(), dtype, shape: shape.clone(), kind });
        Operand { name: name.into(), dtype, shape, constant }
    }

    /// Values of about unit size; constant for the kernel when the name starts with a `w`.
    pub fn floats(&mut self, name: &str, dtype: DType, shape: &[usize], size: f32) -> OperandId {
        let n: usize = shape.iter().product();
        let mut seed = name.bytes().fold(n as u32 | 1, |s, b| s.wrapping_mul(31).wrapping_add(b.into()));
        let mut next = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((seed >> 8) as f32 / (1 << 23) as f32 - 1.0) * size
        };
        let bytes = (0..n).flat_map(|_| {
            let bits = next().to_bits();
            if dtype == DType::F32 { bits.to_le_bytes().to_vec() } else { bits.to_le_bytes()[2..].to_vec() }
        });
        self.bytes.insert(name.into(), bytes.collect());
        let pack = Pack::Tensor { name: name.into(), encoding: Encoding::Plain(dtype), shape: shape.into() };
        let dims = shape.iter().map(|&n| Dim::Const(n)).collect();
        let o = self.operand(name, dtype, dims, BufferKind::Weight(pack));
        self.reads.push(o);
        OperandId::new(self.reads.len() - 1)
    }

    /// Constant integers.
    pub fn ints(&mut self, name: &str, values: Vec<i32>) -> OperandId {
        let dims = vec![Dim::Const(values.len())];
        let o = self.operand(name, DType::I32, dims, BufferKind::Literal(Literal::I32(values)));
        self.reads.push(o);
        OperandId::new(self.reads.len() - 1)
    }

    /// A step input.
    pub fn input(&mut self, input: Input) -> OperandId {
        let ty = input.ty();
        let o = self.operand(input.name(), ty.dtype(), ty.shape, BufferKind::Input(input));
        self.reads.push(o);
        OperandId::new(self.reads.len() - 1)
    }

    /// An array that the product writes.
    pub fn write(&mut self, name: &str, dtype: DType, shape: Vec<Dim>, kind: BufferKind) {
        let o = self.operand(name, dtype, shape, kind);
        self.writes.push(o);
    }

    /// The plan for a bucket of some rows; `tweak` changes the schedule.
    ///
    /// # Panics
    /// When it is not valid.
    pub fn plan(&self, m: MatMul, rows: usize, tweak: &dyn Fn(&mut Schedule)) -> Plan {
        let target = Target::parse("sm_90").expect("sm_90");
        let bind = Bindings { tokens: rows, seqs: rows, rows, context: 64, slots: 64 };
        let find = |o: &Operand| self.buffers.iter().position(|b| b.name == o.name).map(BufferId::new);
        let buffers = |list: &[Operand]| list.iter().map(|o| find(o).expect("a buffer")).collect();
        let work = Work {
            name: "product".into(),
            compute: Compute::MatMul(m),
            reads: self.reads.clone(),
            writes: self.writes.clone(),
            in_place: vec![],
            ops: vec!["matmul".into()],
            rules: vec![],
        };
        let on = [buffers(&self.reads), buffers(&self.writes)];
        let buffers = self.buffers.clone();
        OneWork { work, buffers, on, bind, dtype: DType::BF16 }.plan(target, tweak)
    }

    /// The tokens that the product's kernel draws, on the emulator, whatever the order of its blocks.
    ///
    /// # Panics
    /// When it draws none, or its kernel faults.
    pub fn tokens(&self, m: &MatMul, rows: usize) -> Vec<i32> {
        self.drawn(m, rows).1
    }

    /// As [`Maker::tokens`], behind the logits that they were drawn from.
    ///
    /// # Panics
    /// As [`Maker::tokens`].
    pub fn drawn(&self, m: &MatMul, rows: usize) -> (Vec<f32>, Vec<i32>) {
        let plan = self.plan(m.clone(), rows, &|_| {});
        let [first, second] = [Order::Forward, Order::Backward].map(|order| {
            let mut emulated = Emulated::with_weights(&plan, self);
            emulated.order = order;
            emulated.run("step", &self.inputs).unwrap_or_else(|why| panic!("{why}"));
            (emulated.output("logits"), emulated.output_ids("tokens"))
        });
        let bits = |logits: &[f32]| logits.iter().map(|l| l.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&first.0), bits(&second.0), "the order of the blocks decides");
        assert_eq!(first.1, second.1, "the order of the blocks decides");
        first
    }

    /// Runs and compiles the product for a bucket of some rows.
    ///
    /// # Panics
    /// When its kernel is too far from the reference, or spills.
    pub fn check(&self, m: &MatMul, rows: usize, tweak: &dyn Fn(&mut Schedule)) {
        self.check_within(m, rows, 0, tweak);
    }

    /// As [`Maker::check`], where a thread may spill some bytes: without a bound of its own, ptxas spills a little to
    /// fit one more block on an SM, which is for `weft tune` to judge.
    ///
    /// # Panics
    /// When its kernel is too far from the reference, or spills more.
    pub fn check_within(&self, m: &MatMul, rows: usize, bytes: u32, tweak: &dyn Fn(&mut Schedule)) {
        let plan = self.plan(m.clone(), rows, tweak);
        let distances = Emulated::with_weights(&plan, self).step("step", &self.inputs);
        let far: Vec<&Distance> = distances.iter().filter(|d| !d.is_close()).collect();
        assert!(far.is_empty(), "{rows} rows, {:?}: {far:?}", plan.kernels[0].schedule);
        let Some(nvrtc) = load() else { return };
        let kernels = weft_codegen::emit(&plan).unwrap_or_else(|e| panic!("{e}"));
        for b in compile_all(&nvrtc, &kernels, "sm_90a") {
            let used = b.compiled.report.kernel(&b.name).expect("a report");
            let schedule = &plan.kernels[0].schedule;
            let spilled = [used.spill_stores, used.spill_loads, used.stack];
            assert!(
                spilled.iter().all(|s| *s <= bytes),
                "{rows} rows, {schedule:?}: {spilled:?} bytes spilled"
            );
        }
    }

    /// At each number of rows as scheduled, and with the parameters that a schedule may have.
    ///
    /// # Panics
    /// When a kernel is too far from the reference, or spills.
    pub fn check_all(make: &dyn Fn(usize) -> (Maker, MatMul)) {
        for rows in [1, 2, 3, 8, 24] {
            let (maker, m) = make(rows);
            maker.check(&m, rows, &|_| {});
        }
        let variants: [&dyn Fn(&mut Schedule); 4] = [
            // Warps of a block share k; a team takes several rounds.
            &|s| {
                if let Schedule::Gemv { warps, lanes, split, blocks, .. } = s {
                    (*warps, *lanes, *split, *blocks) = (4, 32, 4, 2);
                }
            },
            // The left operand where it is needed.
            &|s| {
                if let Schedule::Gemv { staged, warps, split, blocks, .. } = s {
                    (*staged, *warps, *split, *blocks) = (false, 2, 1, 3);
                }
            },
            // Two columns or groups at a time, one load in flight, the half of them behind the wait.
            &|s| {
                if let Schedule::Gemv { warps, lanes, split, columns, depth, blocks, behind, .. } = s {
                    (*behind, *columns) = (*columns, *columns * 2);
                    (*warps, *lanes, *split, *depth, *blocks) = (2, 16, 1, 1, 2);
                }
            },
            &|s| {
                if let Schedule::Gemv { warps, lanes, split, columns, depth, blocks, behind, .. } = s {
                    (*behind, *columns) = (*columns * 2, *columns * 2);
                    (*warps, *lanes, *split, *depth, *blocks) = (4, 32, 2, 2, 1);
                }
            },
        ];
        for (i, tweak) in variants.iter().enumerate() {
            let rows = [1, 3, 8, 2][i];
            let (maker, m) = make(rows);
            maker.check(&m, rows, tweak);
        }
    }
}

/// A coordinate.
pub fn at(c: u8) -> Scalar {
    Scalar::Coord(c)
}

/// An element of an operand.
pub fn load_at(o: OperandId, index: &[Scalar]) -> Scalar {
    Scalar::Load(o, index.to_vec())
}

/// A binary expression.
pub fn op(op: Binary, a: Scalar, b: Scalar) -> Scalar {
    Scalar::binary(op, a, b)
}

/// a < b.
pub fn less(a: Scalar, b: Scalar) -> Scalar {
    Scalar::Compare(Compare::Lt, Box::new(a), Box::new(b))
}

/// Not a.
pub fn not(a: Scalar) -> Scalar {
    Scalar::unary(Unary::Not, a)
}

/// A store.
pub fn store(output: u8, index: &[Scalar], value: Scalar, guard: Option<Scalar>) -> Store {
    Store { output, index: index.to_vec(), value, guard }
}

/// x·gamma with Σx², for a norm before a product: the left operand, the stage, and the row's scale.
pub fn norm(x: OperandId, gamma: OperandId, k: usize) -> (Scalar, Vec<Stage>, Scalar) {
    let e = || load_at(x, &[at(0), at(1)]);
    let a = op(Binary::Mul, e(), load_at(gamma, &[at(1)]));
    let stages = vec![Stage { op: Reduce::Sum, value: op(Binary::Mul, e(), e()) }];
    let mean = op(Binary::Div, Scalar::Reduced(0), Scalar::Float(k as f32));
    (a, stages, Scalar::unary(Unary::Rsqrt, op(Binary::Add, mean, Scalar::Float(1e-5))))
}

/// The same with a left operand that is rounded to bf16: what tiles on tensor cores compute.
pub fn rounded(m: MatMul) -> MatMul {
    MatMul { a: Scalar::Cast(DType::BF16, Box::new(m.a)), ..m }
}

/// x · wᵀ, [rows, k] · [n, k]ᵀ in bf16, stored as f32.
pub fn plain(n: usize, k: usize, rows: usize) -> (Maker, MatMul) {
    let mut mk = Maker::default();
    let x = mk.floats("x", DType::BF16, &[rows, k], 1.0);
    let b = mk.floats("w", DType::BF16, &[n, k], 0.2);
    mk.write("y", DType::F32, vec![TOKENS, Dim::Const(n)], BufferKind::Output("y".into()));
    let stores = vec![store(0, &[at(0), at(1)], Scalar::Acc(0), None)];
    let a = load_at(x, &[at(0), at(1)]);
    (mk, MatMul { m: TOKENS, n, group: 1, k, a, b, stages: vec![], row: None, stores, draw: None })
}

/// silu(gate) · up of stored rows, in bf16; rows of b alternate gate and up.
pub fn gated(n: usize, k: usize, rows: usize) -> (Maker, MatMul) {
    let (mut mk, m) = plain(2 * n, k, rows);
    mk.buffers.pop();
    mk.writes.pop();
    mk.write("y", DType::BF16, vec![TOKENS, Dim::Const(n)], BufferKind::Output("y".into()));
    let value = op(Binary::Mul, Scalar::unary(Unary::Silu, Scalar::Acc(0)), Scalar::Acc(1));
    let stores = vec![store(0, &[at(0), at(1)], value, None)];
    (mk, MatMul { n, group: 2, stores, ..m })
}

/// residual + x · wᵀ + bias, in f32, and the same in bf16.
pub fn residual(n: usize, k: usize, rows: usize) -> (Maker, MatMul) {
    let (mut mk, m) = plain(n, k, rows);
    let residual = load_at(mk.floats("residual", DType::F32, &[rows, n], 1.0), &[at(0), at(1)]);
    let bias = load_at(mk.floats("w_bias", DType::BF16, &[n], 1.0), &[at(1)]);
    mk.write("z", DType::BF16, vec![TOKENS, Dim::Const(n)], BufferKind::Output("z".into()));
    let value = op(Binary::Add, residual, op(Binary::Add, Scalar::Acc(0), bias));
    let stores = (0..2).map(|o| store(o, &[at(0), at(1)], value.clone(), None)).collect();
    (mk, MatMul { stores, ..m })
}

/// silu(gate) · up after a norm; rows of b alternate gate and up.
pub fn gated_after_norm(n: usize, k: usize, rows: usize) -> (Maker, MatMul) {
    let mut mk = Maker::default();
    let x = mk.floats("x", DType::F32, &[rows, k], 1.0);
    let gamma = mk.floats("w_norm", DType::BF16, &[k], 1.0);
    let b = mk.floats("w", DType::BF16, &[2 * n, k], 0.2);
    mk.write("y", DType::BF16, vec![TOKENS, Dim::Const(n)], BufferKind::Output("y".into()));
    let (a, stages, scale) = norm(x, gamma, k);
    let scaled = |i| op(Binary::Mul, Scalar::Acc(i), scale.clone());
    let value = op(Binary::Mul, Scalar::unary(Unary::Silu, scaled(0)), scaled(1));
    let stores = vec![store(0, &[at(0), at(1)], value, None)];
    (mk, MatMul { m: TOKENS, n, group: 2, k, a, b, stages, row: None, stores, draw: None })
}
