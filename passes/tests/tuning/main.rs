//! Measured schedules: the database, what is taken from it for other shapes, and the loop that fills it, with times
//! and a clock of the tests' own.

mod candidates;
mod database;
mod runs;

use std::sync::Arc;
use weft_ir::dtype::DType;
use weft_ir::graph::parse;
use weft_ir::plan::{Compute, Plan, Role, Schedule, Work};
use weft_ir::shape::Bindings;
use weft_ir::target::Target;
use weft_passes::schedule::database::{Database, Key, Measured, Shape};
use weft_passes::{Options, compile};

fn target() -> &'static Target {
    Target::parse("sm_90").expect("sm_90")
}

/// A product of n columns and length k, of gathered rows.
fn linear(n: usize, k: usize) -> String {
    format!(
        "%0 = weight \"e\" -> bf16[100, {k}]\n%1 = input token_ids -> i32[tokens]\n\
         %2 = gather %0, %1 -> bf16[tokens, {k}]\n%3 = weight \"w\" -> bf16[{n}, {k}]\n\
         %4 = matmul.t %2, %3 -> bf16[tokens, {n}]\noutput \"y\" = %4\n"
    )
}

fn plan_with(text: &str, target: &'static Target, schedules: Database) -> Plan {
    let graph = parse(text).unwrap_or_else(|e| panic!("{e}"));
    let options = Options {
        target,
        dtype: DType::BF16,
        opt_level: 2,
        max_seq: 2048,
        max_batch: 8,
        selection: Default::default(),
        dump: false,
        schedules: Arc::new(schedules),
    };
    compile(&graph, options).unwrap_or_else(|e| panic!("{e}")).plan
}

/// The product of a plan, and what is bound in a decode step of so many tokens.
fn product(plan: &Plan, tokens: usize) -> (&Work, Bindings) {
    let entry =
        plan.entries.iter().find(|e| e.role == Role::Decode && e.bind.tokens == tokens).expect("an entry");
    let used = entry.kernels.keys().map(|w| &plan.works[*w as usize]);
    let work = used.into_iter().find(|w| matches!(w.compute, Compute::MatMul(_))).expect("a product");
    (work, entry.bind)
}

fn measured(schedule: Schedule) -> Measured {
    Measured { schedule, ns: 1000, estimated_ns: 1200, tried: 4, of: 9, context: 1024, step: None }
}

fn gemv_key(columns: usize, k: usize) -> Key {
    let shape = Shape::Gemv { columns, k, group: 1, computed: true };
    Key { target: "sm_90".into(), device: "H200".into(), dtype: DType::BF16, shape, longest: None }
}

/// A schedule that the estimate never makes: a team of two warps.
fn odd() -> Schedule {
    Schedule::Gemv {
        rows: 1,
        warps: 4,
        lanes: 32,
        split: 2,
        columns: 2,
        depth: 3,
        blocks: 100,
        staged: true,
        resident: 1,
        behind: 0,
        ahead: 0,
        late: false,
    }
}

fn database(entries: &[(Key, Schedule)]) -> Database {
    let mut out = Database::default();
    entries.iter().for_each(|(k, s)| out.insert(k.clone(), measured(s.clone())));
    out
}

/// The same with a projection of its outputs.
fn projecting(kv_heads: usize, group: usize, head_dim: usize, columns: usize) -> Work {
    use weft_ir::ids::OperandId;
    use weft_ir::plan::{AttentionProjection, Operand, Scalar};
    use weft_ir::shape::Dim;
    let mut work = attention(kv_heads, group, head_dim);
    let Compute::Attention(a) = &mut work.compute else { panic!("it is one") };
    let projection =
        AttentionProjection { weight: OperandId::new(work.reads.len()), columns, value: Scalar::Acc(0) };
    a.projection = Some(Box::new(projection));
    let shape = vec![Dim::Const(columns), Dim::Const(kv_heads * group * head_dim)];
    work.reads.push(Operand { name: "projection".into(), dtype: DType::BF16, shape, constant: true });
    work.writes[0].dtype = DType::F32;
    work.writes[0].shape = vec![work.writes[0].shape[0], Dim::Const(kv_heads), Dim::Const(columns)];
    work
}

/// Attention of some heads over a cache.
fn attention(kv_heads: usize, group: usize, head_dim: usize) -> Work {
    use weft_ir::ids::OperandId;
    use weft_ir::plan::{Attention, Operand, Scalar, Store};
    use weft_ir::scalar::Binary;
    use weft_ir::shape::{Dim, Sym};
    let c = |n: usize| Dim::Const(n);
    let operand =
        |name: &str, dtype, shape: Vec<Dim>| Operand { name: name.into(), dtype, shape, constant: false };
    let (tokens, slots) = (Dim::Sym(Sym::Tokens), Dim::Sym(Sym::Slots));
    let at = |i: u8| Scalar::Coord(i);
    let int = |o: usize| Scalar::Load(OperandId::new(o), vec![at(0)]);
    let value = Scalar::Acc(0);
    Work {
        name: "attention".into(),
        compute: Compute::Attention(Attention {
            settled: false,
            tokens,
            kv_heads,
            group,
            head_dim,
            value_dim: head_dim,
            q: OperandId::new(0),
            keys: OperandId::new(1),
            values: OperandId::new(2),
            slot: Scalar::binary(Binary::Add, int(3), at(1)),
            length: Scalar::binary(Binary::Add, int(4), Scalar::Int(1)),
            score: Scalar::Acc(0),
            sink: None,
            window: None,
            prologue: None,
            projection: None,
            stores: vec![Store { output: 0, index: vec![at(0), at(1), at(2)], value, guard: None }],
        }),
        reads: vec![
            operand("q", DType::BF16, vec![tokens, c(kv_heads * group), c(head_dim)]),
            operand("keys", DType::BF16, vec![slots, c(kv_heads), c(head_dim)]),
            operand("values", DType::BF16, vec![slots, c(kv_heads), c(head_dim)]),
            operand("base", DType::I32, vec![tokens]),
            operand("positions", DType::I32, vec![tokens]),
        ],
        writes: vec![operand("y", DType::BF16, vec![tokens, c(kv_heads * group), c(head_dim)])],
        in_place: Vec::new(),
        ops: vec!["attention".into()],
        rules: Vec::new(),
    }
}
