//! A decode step of a llama-like model as a plan made by hand, with everything fused that the works can hold:
//! five kernels a layer. What decode kernels are measured with, whatever the passes make of a graph.

use crate::synthetic::LlamaShape;
use std::collections::BTreeMap;
use weft_ir::dtype::{DType, Encoding};
use weft_ir::graph::{Input, Literal};
use weft_ir::ids::{BufferId, KernelId, OperandId};
use weft_ir::plan::{
    Attention, Body, Buffer, BufferKind, Compute, Dispatch, Entry, KernelSpec, Loop, MatMul, Operand, Pack,
    Plan, Role, Sample, Scalar, Schedule, ScheduleSource, Stage, Store, Work,
};
use weft_ir::scalar::{Binary, Compare, Reduce, Unary};
use weft_ir::shape::{Bindings, Dim, Sym};
use weft_ir::target::Target;
use weft_passes::{launch, memory_plan, schedule};

const TOKENS: Dim = Dim::Sym(Sym::Tokens);

/// Reads of a work: name, buffer.
type Reads<'a> = &'a [(&'a str, BufferId)];

struct Maker {
    buffers: Vec<Buffer>,
    works: Vec<Work>,
    dispatches: Vec<Dispatch>,
}

impl Maker {
    fn buffer(&mut self, name: &str, dtype: DType, shape: &[Dim], kind: BufferKind) -> BufferId {
        self.buffers.push(Buffer { name: name.into(), dtype, shape: shape.to_vec(), kind });
        BufferId::new(self.buffers.len() - 1)
    }

    fn temp(&mut self, name: &str, dtype: DType, width: usize) -> BufferId {
        self.buffer(name, dtype, &[TOKENS, Dim::Const(width)], BufferKind::Temp)
    }

    fn weight(&mut self, name: String, shape: &[usize]) -> BufferId {
        let dims: Vec<Dim> = shape.iter().map(|&n| Dim::Const(n)).collect();
        let encoding = Encoding::Plain(DType::BF16);
        let pack = Pack::Tensor { name: name.clone(), encoding, shape: shape.to_vec() };
        self.buffer(&name, DType::BF16, &dims, BufferKind::Weight(pack))
    }

    fn operand(&self, (name, id): (&str, BufferId)) -> Operand {
        let b = &self.buffers[id.index()];
        let constant = matches!(b.kind, BufferKind::Weight(_) | BufferKind::Literal(_));
        Operand { name: name.into(), dtype: b.dtype, shape: b.shape.clone(), constant }
    }

    fn dispatch(&mut self, name: &str, compute: Compute, reads: Reads, writes: Reads) {
        let operands = |list: Reads| list.iter().map(|&x| self.operand(x)).collect::<Vec<_>>();
        let work = Work {
            name: name.into(),
            compute,
            reads: operands(reads),
            writes: operands(writes),
            in_place: vec![],
            ops: vec![],
            rules: vec![],
        };
        let known = self.works.iter().position(|w| *w == work);
        let work = known.unwrap_or_else(|| {
            self.works.push(work);
            self.works.len() - 1
        });
        let ids = |list: Reads| list.iter().map(|x| x.1).collect();
        self.dispatches.push(Dispatch {
            work: work as u32,
            reads: ids(reads),
            writes: ids(writes),
            scope: name.into(),
        });
    }
}

fn at(c: u8) -> Scalar {
    Scalar::Coord(c)
}

fn int(n: usize) -> Scalar {
    Scalar::Int(n as i64)
}

fn load(o: usize, index: &[Scalar]) -> Scalar {
    Scalar::Load(OperandId::new(o), index.to_vec())
}

fn op(op: Binary, a: Scalar, b: Scalar) -> Scalar {
    Scalar::binary(op, a, b)
}

fn store(output: u8, index: &[Scalar], value: Scalar) -> Store {
    Store { output, index: index.to_vec(), value, guard: None }
}

/// Left operand, stage and row scale of a norm of operand 0 with the weight in operand 1.
fn norm(k: usize) -> (Scalar, Vec<Stage>, Scalar) {
    let x = || load(0, &[at(0), at(1)]);
    let stages = vec![Stage { op: Reduce::Sum, value: op(Binary::Mul, x(), x()) }];
    let mean = op(Binary::Div, Scalar::Reduced(0), Scalar::Float(k as f32));
    let scale = Scalar::unary(Unary::Rsqrt, op(Binary::Add, mean, Scalar::Float(1e-5)));
    (op(Binary::Mul, x(), load(1, &[at(1)])), stages, scale)
}

/// Stores of the merged projections: queries rotated, keys rotated into the cache, values into the cache.
fn projections(s: &LlamaShape, scale: Scalar) -> Vec<Store> {
    let half = s.head_dim / 2;
    let (q, kv) = (s.heads * half, s.kv_heads * half);
    let acc = |i| op(Binary::Mul, Scalar::Acc(i), scale.clone());
    let position = load(5, &[at(0)]);
    let mut stores = Vec::new();
    for (output, from, to) in [(0, 0, q), (1, q, q + kv), (2, q + kv, q + 2 * kv)] {
        let local = op(Binary::Sub, at(1), int(from));
        let (head, i) = (op(Binary::Div, local.clone(), int(half)), op(Binary::Rem, local, int(half)));
        let angle = |t| load(t, &[position.clone(), i.clone()]);
        let product = |a, t| op(Binary::Mul, acc(a), angle(t));
        let turned =
            [op(Binary::Sub, product(0, 3), product(1, 4)), op(Binary::Add, product(1, 3), product(0, 4))];
        let below = |n: usize| Scalar::Compare(Compare::Lt, Box::new(at(1)), Box::new(int(n)));
        let inside = op(Binary::And, Scalar::unary(Unary::Not, below(from)), below(to));
        let slot = load(6, &[at(0)]);
        let written = Scalar::Compare(Compare::Le, Box::new(int(0)), Box::new(slot.clone()));
        let (row, guard) =
            if output == 0 { (at(0), inside) } else { (slot, op(Binary::And, inside, written)) };
        for (part, value) in turned.into_iter().enumerate() {
            let value = if output == 2 { acc(part as u8) } else { value };
            let element = op(Binary::Add, i.clone(), int(part * half));
            let index = vec![row.clone(), head.clone(), element];
            stores.push(Store { output, index, value, guard: Some(guard.clone()) });
        }
    }
    stores
}

/// The plan of a decode step of `batch` sequences. `tweak` changes schedules: work, schedule.
pub fn decode_plan(
    s: &LlamaShape,
    target: &Target,
    (max_seq, batch): (usize, usize),
    tweak: &dyn Fn(&Work, &mut Schedule),
) -> Plan {
    let mut m = Maker { buffers: vec![], works: vec![], dispatches: vec![] };
    let input = |m: &mut Maker, name: &str, input, dtype, sym| {
        m.buffer(name, dtype, &[Dim::Sym(sym)], BufferKind::Input(input))
    };
    let ids = input(&mut m, "token_ids", Input::TokenIds, DType::I32, Sym::Tokens);
    let positions = input(&mut m, "positions", Input::Positions, DType::I32, Sym::Tokens);
    let sequences = input(&mut m, "sequences", Input::Sequences, DType::I32, Sym::Tokens);
    let slots = input(&mut m, "slots", Input::Slots, DType::I32, Sym::Tokens);
    let base = input(&mut m, "slot_base", Input::SlotBase, DType::I32, Sym::Seqs);
    let (d, half) = (s.hidden, s.head_dim / 2);
    let angle = |i: usize| (i / half) as f32 / 500_000f32.powf((i % half) as f32 / half as f32);
    let table = |f: fn(f32) -> f32| Literal::F32((0..max_seq * half).map(|i| f(angle(i))).collect());
    let flat = [Dim::Const(max_seq), Dim::Const(half)];
    let cos = m.buffer("cos", DType::F32, &flat, BufferKind::Literal(table(f32::cos)));
    let sin = m.buffer("sin", DType::F32, &flat, BufferKind::Literal(table(f32::sin)));
    let embed = m.weight("embed".into(), &[s.vocab, d]);
    let mut x = m.temp("x", DType::F32, d);
    let stores = vec![store(0, &[at(0), at(1)], load(1, &[load(0, &[at(0)]), at(1)]))];
    let lookup = Loop {
        domain: vec![TOKENS, Dim::Const(d)],
        reduced: None,
        stages: vec![],
        element_stores: stores,
        row_stores: vec![],
    };
    m.dispatch("embed", Compute::Loop(lookup), &[("ids", ids), ("w", embed)], &[("x", x)]);
    let product = |n, group, k, a, b, stages, stores| {
        Compute::MatMul(MatMul {
            m: TOKENS,
            n,
            group,
            k,
            a,
            b: OperandId::new(b),
            stages,
            row: None,
            stores,
            draw: None,
        })
    };
    let plain = || load(0, &[at(0), at(1)]);
    let residual =
        || vec![store(0, &[at(0), at(1)], op(Binary::Add, Scalar::Acc(0), load(2, &[at(0), at(1)])))];
    for layer in 0..s.layers {
        let name = |part: &str| format!("{layer}.{part}");
        let heads = |n: usize, first| [first, Dim::Const(n), Dim::Const(s.head_dim)];
        let state = |m: &mut Maker, part: &str| {
            let dims = heads(s.kv_heads, Dim::Sym(Sym::Slots));
            m.buffer(&name(part), DType::BF16, &dims, BufferKind::State(name(part)))
        };
        let (keys, values) = (state(&mut m, "keys"), state(&mut m, "values"));
        let q = m.buffer("q", DType::BF16, &heads(s.heads, TOKENS), BufferKind::Temp);
        let (wide, kv) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
        let w = m.weight(name("qkv"), &[wide + 2 * kv, d]);
        let gamma = m.weight(name("norm1"), &[d]);
        let (a, stages, scale) = norm(d);
        let stores = projections(s, scale);
        let qkv = product((wide + 2 * kv) / 2, 2, d, a, 2, stages, stores);
        let reads = [
            ("x", x),
            ("gamma", gamma),
            ("w", w),
            ("cos", cos),
            ("sin", sin),
            ("pos", positions),
            ("slots", slots),
        ];
        m.dispatch("qkv", qkv, &reads, &[("q", q), ("keys", keys), ("values", values)]);
        let mixed = m.temp("mixed", DType::BF16, wide);
        let column = op(Binary::Add, op(Binary::Mul, at(1), int(s.head_dim)), at(2));
        let attention = Attention {
            settled: false,
            tokens: TOKENS,
            kv_heads: s.kv_heads,
            group: s.heads / s.kv_heads,
            head_dim: s.head_dim,
            value_dim: s.head_dim,
            q: OperandId::new(0),
            keys: OperandId::new(1),
            values: OperandId::new(2),
            slot: op(Binary::Add, load(5, &[load(4, &[at(0)])]), at(1)),
            length: op(Binary::Add, load(3, &[at(0)]), Scalar::Int(1)),
            score: op(Binary::Mul, Scalar::Acc(0), Scalar::Float((s.head_dim as f32).powf(-0.5))),
            sink: None,
            window: None,
            prologue: None,
            projection: None,
            stores: vec![store(0, &[at(0), column], Scalar::Acc(0))],
        };
        let reads = [
            ("q", q),
            ("keys", keys),
            ("values", values),
            ("pos", positions),
            ("seq", sequences),
            ("base", base),
        ];
        m.dispatch("attention", Compute::Attention(attention), &reads, &[("out", mixed)]);
        let w = m.weight(name("o"), &[d, wide]);
        let y = m.temp("y", DType::F32, d);
        let o = product(d, 1, wide, plain(), 1, vec![], residual());
        m.dispatch("o_proj", o, &[("a", mixed), ("w", w), ("x", x)], &[("y", y)]);
        let w = m.weight(name("gate_up"), &[2 * s.intermediate, d]);
        let gamma = m.weight(name("norm2"), &[d]);
        let hidden = m.temp("hidden", DType::BF16, s.intermediate);
        let (a, stages, scale) = norm(d);
        let acc = |i| op(Binary::Mul, Scalar::Acc(i), scale.clone());
        let gated = op(Binary::Mul, Scalar::unary(Unary::Silu, acc(0)), acc(1));
        let up = product(s.intermediate, 2, d, a, 2, stages, vec![store(0, &[at(0), at(1)], gated)]);
        m.dispatch("gate_up", up, &[("x", y), ("gamma", gamma), ("w", w)], &[("out", hidden)]);
        let w = m.weight(name("down"), &[d, s.intermediate]);
        x = m.temp("x", DType::F32, d);
        let down = product(d, 1, s.intermediate, plain(), 1, vec![], residual());
        m.dispatch("down_proj", down, &[("a", hidden), ("w", w), ("x", y)], &[("y", x)]);
    }
    let gamma = m.weight("norm".into(), &[d]);
    let rows = Dim::Sym(Sym::Rows);
    let wide = [TOKENS, Dim::Const(s.vocab)];
    let logits = m.buffer("logits", DType::F32, &wide, BufferKind::Output("logits".into()));
    let (a, stages, scale) = norm(d);
    let stores = vec![store(0, &[at(0), at(1)], op(Binary::Mul, Scalar::Acc(0), scale))];
    let head = product(s.vocab, 1, d, a, 2, stages, stores);
    m.dispatch("head", head, &[("x", x), ("gamma", gamma), ("w", embed)], &[("logits", logits)]);
    let tokens = m.buffer("tokens", DType::I32, &[rows], BufferKind::Output("tokens".into()));
    let mut reads = vec![("logits", logits), ("position", positions)];
    for (name, i, dtype) in [
        ("temperature", Input::Temperature, DType::F32),
        ("top_k", Input::TopK, DType::I32),
        ("top_p", Input::TopP, DType::F32),
        ("min_p", Input::MinP, DType::F32),
        ("seed", Input::Seed, DType::U32),
    ] {
        reads.push((name, input(&mut m, name, i, dtype, Sym::Rows)));
    }
    m.dispatch("sample", Compute::Sample(Sample { rows, vocab: s.vocab }), &reads, &[("tokens", tokens)]);
    assemble(m, target, (max_seq, batch), tweak)
}

fn assemble(
    m: Maker,
    target: &Target,
    (max_seq, batch): (usize, usize),
    tweak: &dyn Fn(&Work, &mut Schedule),
) -> Plan {
    let bind = Bindings { tokens: batch, seqs: batch, rows: batch, context: max_seq, slots: batch * max_seq };
    let kernels = m.works.iter().enumerate().map(|(i, work)| {
        let (mut schedule, fallback) = schedule::choose(work, &bind, target);
        tweak(work, &mut schedule);
        let (grid, threads) = schedule::launch_shape(work, &schedule);
        let name = format!("{}_kernel", work.name);
        let programmatic = target.features.programmatic_launch;
        let scratch = schedule::scratch(work, &schedule);
        KernelSpec {
            name,
            work: i as u32,
            schedule,
            source: ScheduleSource::Estimated,
            grid,
            threads,
            scratch,
            programmatic,
            fallback,
        }
    });
    let kernels: Vec<KernelSpec> = kernels.collect();
    let scratch = |d: &Dispatch| kernels[d.work as usize].scratch.as_ref();
    let arena = memory_plan::run(&m.buffers, &m.dispatches, &bind, &scratch);
    let programmatic = vec![target.features.programmatic_launch; m.dispatches.len()];
    let launches = launch::run(&m.dispatches, &[&arena], &programmatic);
    let entry = Entry {
        name: format!("decode_{batch}"),
        role: Role::Decode,
        bind,
        body: 0,
        kernels: (0..m.works.len()).map(|i| (i as u32, KernelId::new(i))).collect::<BTreeMap<_, _>>(),
        arena: arena.placements,
        scratch: arena.scratch,
        arena_bytes: arena.bytes,
        unshared_bytes: arena.unshared_bytes,
    };
    Plan {
        target: target.name.into(),
        dtype: DType::BF16,
        opt_level: 2,
        max_seq,
        max_batch: batch,
        buffers: m.buffers,
        works: m.works,
        kernels,
        bodies: vec![Body { dispatches: m.dispatches, launches }],
        entries: vec![entry],
        generation: None,
    }
}
