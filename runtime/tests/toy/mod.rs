//! A hand-made model with everything a plan can have: rows of a table by token, a cache, a sum over the context, logits
//! by the same table, and sampling.
//!
//! logits[r] = table · Σ_{j ≤ position} table[token at j of the same sequence]

use std::collections::BTreeMap;

use weft_ir::dtype::{DType, Encoding};
use weft_ir::graph::{Graph, GraphBuilder, Input, Op, ValueType};
use weft_ir::ids::{BufferId, DispatchId, KernelId, OperandId};
use weft_ir::plan::{
    Body, Buffer, BufferKind, Compute, Dispatch, EdgeKind, Entry, Extent, KernelSpec, Launch, Loop, MatMul,
    Operand, Pack, Placement, Plan, Role, Sample, Scalar, Schedule, Stage, Store, Work,
};
use weft_ir::reference::StepInputs;
use weft_ir::scalar::{Binary, Compare, Reduce};
use weft_ir::shape::{Bindings, Dim, Shape, Sym};
use weft_runtime::exec::Executor;

pub const VOCAB: usize = 8;
pub const WIDTH: usize = 4;
pub const MAX_SEQ: usize = 16;
pub const MAX_BATCH: usize = 2;

/// Checkpoint: small integers, so that sums are exact in every order; the last rows are larger.
pub fn weights() -> BTreeMap<String, Vec<u8>> {
    let values = (0..VOCAB * WIDTH).map(|i| ((i * 7) % 5) as f32 - 2.0 + (i / WIDTH) as f32);
    BTreeMap::from([("table".to_owned(), values.flat_map(f32::to_le_bytes).collect())])
}

/// A step of one sequence's tokens from a position on, with logits of the last.
pub fn step(sequence: usize, from: usize, tokens: &[i32]) -> StepInputs {
    let n = tokens.len() as i32;
    let positions: Vec<i32> = (from as i32..from as i32 + n).collect();
    let base = (sequence * MAX_SEQ) as i32;
    StepInputs {
        token_ids: tokens.to_vec(),
        sequences: vec![sequence as i32; tokens.len()],
        slots: positions.iter().map(|p| base + p).collect(),
        positions,
        slot_base: (0..MAX_BATCH).map(|s| (s * MAX_SEQ) as i32).collect(),
        output_rows: vec![n - 1],
        temperature: vec![0.0],
        top_k: vec![0],
        top_p: vec![1.0],
        min_p: vec![0.0],
        seed: vec![7],
        ..StepInputs::default()
    }
}

/// Runs a prompt in two parts and three decode steps on each executor; logits and tokens of all steps.
pub fn generate(model: &mut dyn Executor, sequence: usize) -> (Vec<i32>, Vec<Vec<f32>>) {
    let (mut tokens, mut logits) = (Vec::new(), Vec::new());
    let mut first = step(sequence, 0, &[1, 4, 2]);
    for list in [&mut first.temperature, &mut first.top_p, &mut first.min_p] {
        list.clear();
    }
    first.output_rows.clear();
    first.top_k.clear();
    first.seed.clear();
    let out = model.step(Role::Prefill, &first, true).expect("a step");
    assert_eq!((out.tokens.len(), out.logits.len()), (0, 0));
    let mut out = model.step(Role::Prefill, &step(sequence, 3, &[3, 5]), true).expect("a step");
    for position in 5..8 {
        assert_eq!((out.tokens.len(), out.logits.len()), (1, VOCAB));
        let token = out.tokens[0];
        tokens.push(token);
        logits.push(out.logits);
        out = model.step(Role::Decode, &step(sequence, position, &[token]), true).expect("a step");
    }
    (tokens, logits)
}

fn dims(dims: &[Dim]) -> Shape {
    dims.to_vec()
}

const T: Dim = Dim::Sym(Sym::Tokens);
const R: Dim = Dim::Sym(Sym::Rows);
const W: Dim = Dim::Const(WIDTH);

/// What a decoder takes.
pub const INPUTS: &[Input] = Input::ALL.split_at(11).0;

/// Buffers by number.
const TABLE: u32 = 11;
const CACHE: u32 = 12;
const X: u32 = 13;
const H: u32 = 14;
const POSITION: u32 = 15;
const LOGITS: u32 = 16;
const TOKENS: u32 = 17;

fn buffers() -> Vec<Buffer> {
    let mut out: Vec<Buffer> = INPUTS
        .iter()
        .map(|i| {
            let ty = i.ty();
            let kind = BufferKind::Input(*i);
            Buffer { name: i.name().into(), dtype: ty.dtype(), shape: ty.shape, kind }
        })
        .collect();
    let mut add = |name: &str, dtype, shape: &[Dim], kind| {
        out.push(Buffer { name: name.into(), dtype, shape: dims(shape), kind });
    };
    let stored = Pack::Tensor {
        name: "table".into(),
        encoding: Encoding::Plain(DType::F32),
        shape: vec![VOCAB, WIDTH],
    };
    let table = Pack::Cast(DType::BF16, Box::new(stored));
    add("table", DType::BF16, &[Dim::Const(VOCAB), W], BufferKind::Weight(table));
    add("cache", DType::F32, &[Sym::Slots.into(), W], BufferKind::State("cache".into()));
    add("x", DType::F32, &[T, W], BufferKind::Temp);
    add("h", DType::F32, &[T, W], BufferKind::Temp);
    add("position", DType::I32, &[R], BufferKind::Temp);
    add("logits", DType::F32, &[R, Dim::Const(VOCAB)], BufferKind::Output("logits".into()));
    add("tokens", DType::I32, &[R], BufferKind::Output("tokens".into()));
    out
}

fn coord(i: u8) -> Scalar {
    Scalar::Coord(i)
}

fn load(operand: u32, at: &[Scalar]) -> Scalar {
    Scalar::Load(OperandId(operand), at.to_vec())
}

fn store(at: &[Scalar], value: Scalar, guard: Option<Scalar>) -> Store {
    Store { output: 0, index: at.to_vec(), value, guard }
}

/// A work's name, computation and buffers; threads of its only schedule, and its grid.
struct Part {
    name: &'static str,
    compute: Compute,
    reads: Vec<u32>,
    write: u32,
    grid: Vec<Dim>,
    after: Vec<u32>,
}

fn parts() -> Vec<Part> {
    let input = |i: Input| Input::ALL.iter().position(|x| *x == i).unwrap_or_default() as u32;
    let each = |domain: &[Dim], at: &[Scalar], value, guard| {
        Compute::Loop(Loop {
            domain: dims(domain),
            reduced: None,
            stages: Vec::new(),
            element_stores: vec![store(at, value, guard)],
            row_stores: Vec::new(),
        })
    };
    let two = [coord(0), coord(1)];
    let embed = each(&[T, W], &two, load(1, &[load(0, &[coord(0)]), coord(1)]), None);
    let slot = load(0, &[coord(0)]);
    let written = Scalar::Compare(Compare::Le, Box::new(Scalar::Int(0)), Box::new(slot.clone()));
    let keep = each(&[T, W], &[slot, coord(1)], load(1, &two), Some(written));
    // reads: positions, sequences, slot_base, cache
    let base = load(2, &[load(1, &[coord(0)])]);
    let seen = Scalar::Compare(Compare::Le, Box::new(coord(2)), Box::new(load(0, &[coord(0)])));
    let key = load(3, &[Scalar::binary(Binary::Add, base, coord(2)), coord(1)]);
    let value = Scalar::Select(Box::new(seen), Box::new(key), Box::new(Scalar::Float(0.0)));
    let sum = Compute::Loop(Loop {
        domain: dims(&[T, W]),
        reduced: Some(Sym::Context.into()),
        stages: vec![Stage { op: Reduce::Sum, value }],
        element_stores: Vec::new(),
        row_stores: vec![store(&two, Scalar::Reduced(0), None)],
    });
    let head = Compute::MatMul(MatMul {
        m: R,
        n: VOCAB,
        group: 1,
        k: WIDTH,
        a: load(0, &[load(1, &[coord(0)]), coord(1)]),
        b: OperandId(2),
        stages: vec![],
        row: None,
        draw: None,
        stores: vec![store(&two, Scalar::Acc(0), None)],
    });
    let position = each(&[R], &[coord(0)], load(0, &[load(1, &[coord(0)])]), None);
    let sample = Compute::Sample(Sample { rows: R, vocab: VOCAB });
    let part = |name, compute, reads: &[u32], write, grid: &[Dim], after: &[u32]| Part {
        name,
        compute,
        reads: reads.to_vec(),
        write,
        grid: grid.to_vec(),
        after: after.to_vec(),
    };
    let (ids, positions) = (input(Input::TokenIds), input(Input::Positions));
    let rows = input(Input::OutputRows);
    let mut drawn = vec![LOGITS, POSITION];
    drawn.extend([Input::Temperature, Input::TopK, Input::TopP, Input::MinP, Input::Seed].map(input));
    let context = [positions, input(Input::Sequences), input(Input::SlotBase), CACHE];
    vec![
        part("embed", embed, &[ids, TABLE], X, &[T, W], &[]),
        part("keep", keep, &[input(Input::Slots), X, CACHE], CACHE, &[T, W], &[0]),
        part("sum", sum, &context, H, &[T, W], &[1]),
        part("position", position, &[positions, rows], POSITION, &[R], &[]),
        part("head", head, &[H, rows, TABLE], LOGITS, &[R, Dim::Const(VOCAB)], &[2]),
        part("sample", sample, &drawn, TOKENS, &[R], &[3, 4]),
    ]
}

/// The plan, for a target.
pub fn plan(target: &str) -> Plan {
    let buffers = buffers();
    let parts = parts();
    let operand = |b: &u32| {
        let buffer = &buffers[*b as usize];
        let constant = matches!(buffer.kind, BufferKind::Weight(_));
        Operand { name: buffer.name.clone(), dtype: buffer.dtype, shape: buffer.shape.clone(), constant }
    };
    let works = parts.iter().map(|p| Work {
        name: p.name.into(),
        compute: p.compute.clone(),
        reads: p.reads.iter().map(operand).collect(),
        writes: vec![operand(&p.write)],
        in_place: if p.name == "keep" { vec![(0, OperandId(2))] } else { Vec::new() },
        ops: vec![p.name.into()],
        rules: Vec::new(),
    });
    let kernels = parts.iter().enumerate().map(|(i, p)| KernelSpec {
        name: format!("toy_{}", p.name),
        work: i as u32,
        schedule: Schedule::Elementwise { threads: 32 },
        source: Default::default(),
        grid: [Extent { dims: p.grid.clone(), per: 32 }, Extent::one(), Extent::one()],
        threads: 32,
        scratch: None,
        programmatic: true,
        fallback: None,
    });
    let dispatches = parts.iter().enumerate().map(|(i, p)| Dispatch {
        work: i as u32,
        reads: p.reads.iter().map(|b| BufferId(*b)).collect(),
        writes: vec![BufferId(p.write)],
        scope: format!("toy.{}", p.name),
    });
    let launches = parts.iter().enumerate().map(|(i, p)| Launch {
        dispatch: DispatchId::new(i),
        after: p.after.iter().map(|d| (DispatchId(*d), EdgeKind::Programmatic)).collect(),
    });
    let entry = |name: &str, role, tokens: usize, rows: usize| {
        let bind = Bindings { tokens, seqs: MAX_BATCH, rows, context: MAX_SEQ, slots: MAX_BATCH * MAX_SEQ };
        let temps = [X, H, POSITION].map(|b| (BufferId(b), buffers[b as usize].bytes(&bind)));
        let mut arena = Vec::new();
        let mut end: usize = 0;
        for (buffer, bytes) in temps {
            let offset = end.next_multiple_of(256);
            arena.push(Placement { buffer, offset, bytes });
            end = offset + bytes;
        }
        Entry {
            name: name.into(),
            role,
            bind,
            body: 0,
            kernels: (0..parts.len() as u32).map(|i| (i, KernelId(i))).collect(),
            arena,
            scratch: Default::default(),
            arena_bytes: end,
            unshared_bytes: end,
        }
    };
    Plan {
        target: target.into(),
        dtype: DType::F32,
        opt_level: 2,
        max_seq: MAX_SEQ,
        max_batch: MAX_BATCH,
        works: works.collect(),
        kernels: kernels.collect(),
        bodies: vec![Body { dispatches: dispatches.collect(), launches: launches.collect() }],
        entries: vec![
            entry("decode_2", Role::Decode, 2, 2),
            entry("decode_1", Role::Decode, 1, 1),
            entry("prefill_4", Role::Prefill, 4, MAX_BATCH),
            entry("prefill_16", Role::Prefill, 16, MAX_BATCH),
            entry("score_8", Role::Score, 8, 8),
        ],
        generation: None,
        buffers,
    }
}

/// The same model as a graph.
pub fn graph() -> Graph {
    let mut g = GraphBuilder::new();
    let stored = ValueType::plain(DType::F32, vec![Dim::Const(VOCAB), W]);
    let table = g.weight("table", stored);
    let table = g.cast(table, DType::BF16);
    let ids = g.input(Input::TokenIds);
    let x = g.gather(table, ids);
    let x = g.cast(x, DType::F32);
    let cache = g.state("cache", ValueType::plain(DType::F32, vec![Sym::Slots.into(), W]));
    let slots = g.input(Input::Slots);
    let cache = g.scatter(cache, x, slots);
    g.state_out("cache", cache);
    let (bases, sequences) = (g.input(Input::SlotBase), g.input(Input::Sequences));
    let base = g.gather(bases, sequences);
    let line = vec![T, Dim::Const(1)];
    let base = g.reshape(base, line.clone());
    let j = g.iota(1, vec![T, Sym::Context.into()]);
    let index = g.binary(Binary::Add, base, j);
    let keys = g.gather(cache, index);
    let positions = g.input(Input::Positions);
    let position = g.reshape(positions, line);
    let position = g.broadcast(position, vec![T, Sym::Context.into()]);
    let seen = g.compare(Compare::Le, j, position);
    let seen = g.reshape(seen, vec![T, Sym::Context.into(), Dim::Const(1)]);
    let seen = g.broadcast(seen, vec![T, Sym::Context.into(), W]);
    let zero = g.scalar_like(0.0, keys);
    let kept = g.select(seen, keys, zero);
    let kept = g.transpose(kept, &[0, 2, 1]);
    let sum = g.reduce(Reduce::Sum, kept);
    let h = g.reshape(sum, vec![T, W]);
    let rows = g.input(Input::OutputRows);
    let h = g.gather(h, rows);
    let wide = g.cast(table, DType::F32);
    let logits = g.matmul_t(h, wide, DType::F32);
    g.output("logits", logits);
    let position = g.gather(positions, rows);
    let mut drawn = vec![logits, position];
    let parameters = [Input::Temperature, Input::TopK, Input::TopP, Input::MinP, Input::Seed];
    drawn.extend(parameters.map(|p| g.input(p)));
    let tokens = g.add(Op::Sample, &drawn);
    g.output("tokens", tokens);
    g.finish().expect("a graph")
}
