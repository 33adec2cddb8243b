//! Matrix products with all that fuses into them, one kernel a plan: merged outputs, norms, gated
//! activations, rotations with cache writes. Each kernel on the emulator against the f64 reference, and
//! through NVRTC without spills.

use std::collections::{BTreeMap, HashMap};
use weft_ir::dtype::{DType, Encoding};
use weft_ir::graph::Literal;
use weft_ir::ids::{BufferId, DispatchId, KernelId, OperandId};
use weft_ir::plan::{
    Body, Buffer, BufferKind, Compute, Dispatch, Entry, KernelSpec, Launch, MatMul, Operand, Pack, Plan,
    Role, Scalar, Schedule, Stage, Store, Work,
};
use weft_ir::reference::{StepInputs, WeightBytes};
use weft_ir::scalar::{Binary, Compare, Reduce, Unary};
use weft_ir::shape::{Bindings, Dim, Sym};
use weft_ir::target::Target;
use weft_passes::schedule;
use weft_testsuite::emulate::{Distance, Emulated};
use weft_testsuite::nvrtc::{compile_all, load};

const TOKENS: Dim = Dim::Sym(Sym::Tokens);

/// Arrays of a plan with one work.
#[derive(Default)]
struct Maker {
    buffers: Vec<Buffer>,
    reads: Vec<Operand>,
    writes: Vec<Operand>,
    bytes: HashMap<String, Vec<u8>>,
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
    fn floats(&mut self, name: &str, dtype: DType, shape: &[usize], size: f32) -> OperandId {
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

    fn ints(&mut self, name: &str, values: Vec<i32>) -> OperandId {
        let dims = vec![Dim::Const(values.len())];
        let o = self.operand(name, DType::I32, dims, BufferKind::Literal(Literal::I32(values)));
        self.reads.push(o);
        OperandId::new(self.reads.len() - 1)
    }

    fn write(&mut self, name: &str, dtype: DType, shape: Vec<Dim>, kind: BufferKind) {
        let o = self.operand(name, dtype, shape, kind);
        self.writes.push(o);
    }

    /// The plan for a bucket of some rows; `tweak` changes the schedule.
    fn plan(&self, m: MatMul, rows: usize, tweak: &dyn Fn(&mut Schedule)) -> Plan {
        let target = Target::parse("sm_90").expect("sm_90");
        let bind = Bindings { tokens: rows, seqs: rows, rows, context: 64, slots: 64 };
        let find = |o: &Operand| self.buffers.iter().position(|b| b.name == o.name).map(BufferId::new);
        let buffers = |list: &[Operand]| list.iter().map(|o| find(o).expect("a buffer")).collect();
        let dispatch = Dispatch {
            work: 0,
            reads: buffers(&self.reads),
            writes: buffers(&self.writes),
            scope: "test".into(),
        };
        let work = Work {
            name: "product".into(),
            compute: Compute::MatMul(m),
            reads: self.reads.clone(),
            writes: self.writes.clone(),
            in_place: vec![],
            ops: vec!["matmul".into()],
            rules: vec![],
        };
        let (mut schedule, fallback) = schedule::choose(&work, &bind, target);
        tweak(&mut schedule);
        let (grid, threads) = schedule::launch_shape(&work, &schedule);
        let name = "product_test".into();
        let kernel = KernelSpec { name, work: 0, schedule, grid, threads, programmatic: true, fallback };
        let launches = vec![Launch { dispatch: DispatchId::new(0), after: vec![] }];
        let plan = Plan {
            target: target.name.into(),
            dtype: DType::BF16,
            opt_level: 2,
            max_seq: 64,
            max_batch: rows,
            buffers: self.buffers.clone(),
            works: vec![work],
            kernels: vec![kernel],
            bodies: vec![Body { dispatches: vec![dispatch], launches }],
            entries: vec![Entry {
                name: "step".into(),
                role: Role::Decode,
                bind,
                body: 0,
                kernels: BTreeMap::from([(0, KernelId::new(0))]),
                arena: vec![],
                arena_bytes: 0,
                unshared_bytes: 0,
            }],
        };
        weft_ir::verify::plan::verify(&plan).unwrap_or_else(|f| panic!("{f:?}"));
        assert_eq!(Plan::from_ron(&plan.to_ron().expect("RON")).expect("a plan"), plan);
        plan
    }

    fn check(&self, m: &MatMul, rows: usize, tweak: &dyn Fn(&mut Schedule)) {
        let plan = self.plan(m.clone(), rows, tweak);
        let distances = Emulated::with_weights(&plan, self).step("step", &StepInputs::default());
        let far: Vec<&Distance> = distances.iter().filter(|d| !d.is_close()).collect();
        assert!(far.is_empty(), "{rows} rows, {:?}: {far:?}", plan.kernels[0].schedule);
        let Some(nvrtc) = load() else { return };
        let kernels = weft_codegen::emit(&plan).unwrap_or_else(|e| panic!("{e}"));
        for b in compile_all(&nvrtc, &kernels, "sm_90a") {
            let used = b.compiled.report.kernel(&b.name).expect("a report");
            let schedule = &plan.kernels[0].schedule;
            assert_eq!(
                (used.spill_stores, used.spill_loads, used.stack),
                (0, 0, 0),
                "{rows} rows, {schedule:?}"
            );
        }
    }

    /// At each number of rows as scheduled, and with the parameters that a schedule may have.
    fn check_all(make: &dyn Fn(usize) -> (Maker, MatMul)) {
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
                if let Schedule::Gemv { staged, warps, blocks, .. } = s {
                    (*staged, *warps, *blocks) = (false, 2, 3);
                }
            },
            // Two columns or groups at a time, one load in flight.
            &|s| {
                if let Schedule::Gemv { warps, lanes, columns, depth, blocks, .. } = s {
                    (*warps, *lanes, *columns, *depth, *blocks) = (2, 16, *columns * 2, 1, 2);
                }
            },
            &|s| {
                if let Schedule::Gemv { warps, lanes, split, columns, depth, blocks, .. } = s {
                    (*warps, *lanes, *split, *columns, *depth, *blocks) = (4, 32, 2, *columns * 2, 2, 1);
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

fn at(c: u8) -> Scalar {
    Scalar::Coord(c)
}

fn load_at(o: OperandId, index: &[Scalar]) -> Scalar {
    Scalar::Load(o, index.to_vec())
}

fn op(op: Binary, a: Scalar, b: Scalar) -> Scalar {
    Scalar::binary(op, a, b)
}

fn less(a: Scalar, b: Scalar) -> Scalar {
    Scalar::Compare(Compare::Lt, Box::new(a), Box::new(b))
}

fn not(a: Scalar) -> Scalar {
    Scalar::unary(Unary::Not, a)
}

fn store(output: u8, index: &[Scalar], value: Scalar, guard: Option<Scalar>) -> Store {
    Store { output, index: index.to_vec(), value, guard }
}

/// x·gamma with Σx², for a norm before a product: the left operand, the stage, and the row's scale.
fn norm(x: OperandId, gamma: OperandId, k: usize) -> (Scalar, Vec<Stage>, Scalar) {
    let e = || load_at(x, &[at(0), at(1)]);
    let a = op(Binary::Mul, e(), load_at(gamma, &[at(1)]));
    let stages = vec![Stage { op: Reduce::Sum, value: op(Binary::Mul, e(), e()) }];
    let mean = op(Binary::Div, Scalar::Reduced(0), Scalar::Float(k as f32));
    (a, stages, Scalar::unary(Unary::Rsqrt, op(Binary::Add, mean, Scalar::Float(1e-5))))
}

#[test]
fn plain() {
    for (n, k) in [(37, 80), (16, 576), (5, 33), (70, 1032)] {
        Maker::check_all(&|rows| {
            let mut mk = Maker::default();
            let x = mk.floats("x", DType::BF16, &[rows, k], 1.0);
            let b = mk.floats("w", DType::BF16, &[n, k], 0.2);
            mk.write("y", DType::F32, vec![TOKENS, Dim::Const(n)], BufferKind::Output("y".into()));
            let stores = vec![store(0, &[at(0), at(1)], Scalar::Acc(0), None)];
            let a = load_at(x, &[at(0), at(1)]);
            (mk, MatMul { m: TOKENS, n, group: 1, k, a, b, stages: vec![], stores })
        });
    }
}

#[test]
fn f32_operands() {
    let (n, k) = (19, 100);
    Maker::check_all(&|rows| {
        let mut mk = Maker::default();
        let x = mk.floats("x", DType::F32, &[rows, k], 1.0);
        let b = mk.floats("w", DType::F32, &[n, k], 0.2);
        mk.write("y", DType::F32, vec![TOKENS, Dim::Const(n)], BufferKind::Output("y".into()));
        let stores = vec![store(0, &[at(0), at(1)], Scalar::Acc(0), None)];
        let a = load_at(x, &[at(0), at(1)]);
        (mk, MatMul { m: TOKENS, n, group: 1, k, a, b, stages: vec![], stores })
    });
}

/// Rows of b alternate gate and up.
#[test]
fn gated_activation_after_a_norm() {
    let (n, k) = (21, 136);
    Maker::check_all(&|rows| {
        let mut mk = Maker::default();
        let x = mk.floats("x", DType::F32, &[rows, k], 1.0);
        let gamma = mk.floats("w_norm", DType::BF16, &[k], 1.0);
        let b = mk.floats("w", DType::BF16, &[2 * n, k], 0.2);
        mk.write("y", DType::BF16, vec![TOKENS, Dim::Const(n)], BufferKind::Output("y".into()));
        let (a, stages, scale) = norm(x, gamma, k);
        let scaled = |i| op(Binary::Mul, Scalar::Acc(i), scale.clone());
        let value = op(Binary::Mul, Scalar::unary(Unary::Silu, scaled(0)), scaled(1));
        let stores = vec![store(0, &[at(0), at(1)], value, None)];
        (mk, MatMul { m: TOKENS, n, group: 2, k, a, b, stages, stores })
    });
}

/// A plain left operand with a group: what the tensor-core kernel takes too.
#[test]
fn gated_activation() {
    let (n, k) = (27, 64);
    Maker::check_all(&|rows| {
        let mut mk = Maker::default();
        let x = mk.floats("x", DType::BF16, &[rows, k], 1.0);
        let b = mk.floats("w", DType::BF16, &[2 * n, k], 0.2);
        mk.write("y", DType::BF16, vec![TOKENS, Dim::Const(n)], BufferKind::Output("y".into()));
        let value = op(Binary::Mul, Scalar::unary(Unary::Silu, Scalar::Acc(0)), Scalar::Acc(1));
        let stores = vec![store(0, &[at(0), at(1)], value, None)];
        let a = load_at(x, &[at(0), at(1)]);
        (mk, MatMul { m: TOKENS, n, group: 2, k, a, b, stages: vec![], stores })
    });
}

/// Queries, keys and values in one product: rows of a head alternate element i and i + half, which a
/// rotation mixes; keys and values go to the slots of their tokens.
#[test]
fn merged_projections_with_rotation_and_cache_write() {
    let (heads, kv_heads, half, k, slots) = (3, 1, 4, 72, 64);
    let (q, kv) = (heads * half, kv_heads * half);
    let n = q + 2 * kv;
    for normed in [true, false] {
        Maker::check_all(&|rows| {
            let mut mk = Maker::default();
            let x = mk.floats("x", DType::BF16, &[rows, k], 1.0);
            let gamma = mk.floats("w_norm", DType::BF16, &[k], 1.0);
            let b = mk.floats("w", DType::BF16, &[2 * n, k], 0.2);
            let cos = mk.floats("w_cos", DType::F32, &[64, half], 1.0);
            let sin = mk.floats("w_sin", DType::F32, &[64, half], 1.0);
            // The last token is padding: its slot is negative.
            let slot =
                mk.ints("slots", (0..rows).map(|r| if r == 4 { -1 } else { 3 * r as i32 % 64 }).collect());
            let shape = |heads: usize, first| vec![first, Dim::Const(heads), Dim::Const(2 * half)];
            mk.write("q", DType::BF16, shape(heads, TOKENS), BufferKind::Output("q".into()));
            for name in ["keys", "values"] {
                let dims = shape(kv_heads, Dim::Const(slots));
                mk.write(name, DType::BF16, dims, BufferKind::State(name.into()));
            }
            let (a, stages, scale) = norm(x, gamma, k);
            let (a, stages) = if normed { (a, stages) } else { (load_at(x, &[at(0), at(1)]), vec![]) };
            let acc =
                |i| if normed { op(Binary::Mul, Scalar::Acc(i), scale.clone()) } else { Scalar::Acc(i) };
            let int = |n: usize| Scalar::Int(n as i64);
            let position = load_at(slot, &[at(0)]);
            let position = op(Binary::Max, position, int(0));
            let mut stores = Vec::new();
            let parts = [(0, 0, q), (1, q, q + kv), (2, q + kv, n)];
            for (output, from, to) in parts {
                let local = op(Binary::Sub, at(1), int(from));
                let (head, i) =
                    (op(Binary::Div, local.clone(), int(half)), op(Binary::Rem, local, int(half)));
                let angle = |t| load_at(t, &[position.clone(), i.clone()]);
                let turned = [
                    op(Binary::Sub, op(Binary::Mul, acc(0), angle(cos)), op(Binary::Mul, acc(1), angle(sin))),
                    op(Binary::Add, op(Binary::Mul, acc(1), angle(cos)), op(Binary::Mul, acc(0), angle(sin))),
                ];
                let inside = op(Binary::And, not(less(at(1), int(from))), less(at(1), int(to)));
                let slot = load_at(slot, &[at(0)]);
                let written = not(less(slot.clone(), int(0)));
                let (row, guard) = match output {
                    0 => (at(0), inside),
                    _ => (slot, op(Binary::And, inside, written)),
                };
                for (part, value) in turned.into_iter().enumerate() {
                    let value = if output == 2 { acc(part as u8) } else { value };
                    let element = op(Binary::Add, i.clone(), int(part * half));
                    stores.push(store(
                        output,
                        &[row.clone(), head.clone(), element],
                        value,
                        Some(guard.clone()),
                    ));
                }
            }
            (mk, MatMul { m: TOKENS, n, group: 2, k, a, b, stages, stores })
        });
    }
}

#[test]
fn expressions_that_see_too_much_are_faults() {
    let mut mk = Maker::default();
    let x = mk.floats("x", DType::BF16, &[1, 8], 1.0);
    let b = mk.floats("w", DType::BF16, &[4, 8], 1.0);
    mk.write("y", DType::F32, vec![TOKENS, Dim::Const(4)], BufferKind::Output("y".into()));
    let a = load_at(x, &[at(0), at(1)]);
    let stores = vec![store(0, &[at(0), at(1)], Scalar::Acc(0), None)];
    let good = MatMul { m: TOKENS, n: 4, group: 1, k: 8, a, b, stages: vec![], stores };
    let plan = mk.plan(good.clone(), 1, &|_| {});
    let fault = |m: MatMul| {
        let mut plan = plan.clone();
        plan.works[0].compute = Compute::MatMul(m);
        let faults = weft_ir::verify::plan::verify(&plan).expect_err("a fault");
        faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    let mut m = good.clone();
    m.stores[0].value = Scalar::Acc(1);
    assert!(fault(m).contains("accumulator 1 of 1"));
    let mut m = good.clone();
    m.stores[0].value = Scalar::Reduced(0);
    assert!(fault(m).contains("stage 0 of 0"));
    let mut m = good.clone();
    m.stages = vec![Stage { op: Reduce::Sum, value: Scalar::Float(1.0) }];
    m.a = Scalar::Reduced(0);
    assert!(fault(m).contains("stage 0 of 0"));
    assert!(fault(MatMul { group: 2, ..good }).contains("right operand"));
}
