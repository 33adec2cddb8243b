//! Small plans with every kernel family, to run on a GPU under compute-sanitizer: models of odd sizes, and single works
//! with the tiles and the tuned schedules of large ones.

use crate::attention;
use crate::emulate::ragged;
use crate::kernel_families::{Covered, cover};
use crate::product::{
    Maker, at, gated, gated_after_norm, load_at, norm, op, plain, residual, rounded, store,
};
use crate::{fixture, product};
use serde_json::{Value, json};
use weft_frontend::checkpoint::Checkpoint;
use weft_frontend::synth;
use weft_ir::dtype::DType;
use weft_ir::graph::Graph;
use weft_ir::ids::KernelId;
use weft_ir::plan::{Buffer, BufferKind, MatMul, Plan, Scalar, Schedule};
use weft_ir::reference::{StepInputs, WeightBytes};
use weft_ir::scalar::Binary;
use weft_ir::shape::{Dim, Sym};
use weft_passes::Selection;
use weft_passes::schedule::database::{Database, Key, Measured, Shape};

/// The target of the plans: that of the shipped schedules.
pub const TARGET: &str = "sm_90";
/// Longest context of a fused model: two splits of the keys.
const CONTEXT: usize = 150;
/// Longest context of a model whose every intermediate is stored.
const SHORT: usize = 24;
/// Sequences.
const BATCH: usize = 3;

/// A made-up checkpoint, and its folder, which lives as long.
pub struct MadeUp {
    checkpoint: Checkpoint,
    /// Entries of the vocabulary.
    pub vocab: i32,
    #[allow(dead_code)]
    folder: tempfile::TempDir,
}

impl WeightBytes for MadeUp {
    fn bytes(&self, tensor: &str) -> Option<&[u8]> {
        self.checkpoint.bytes(tensor).ok()
    }
}

impl MadeUp {
    /// Its graph in bf16.
    ///
    /// # Panics
    /// When it does not build.
    pub fn graph(&self) -> Graph {
        weft_frontend::models::build(&self.checkpoint, DType::BF16).unwrap_or_else(|e| panic!("{e}"))
    }
}

/// A tiny model with other sizes, of random weights.
///
/// # Panics
/// When there is no such model, or it cannot have such sizes.
pub fn made_up(of: &str, sizes: &Value) -> MadeUp {
    let folder = tempfile::tempdir().expect("a folder");
    let config = fixture::folder().join("tiny").join(of).join("config.json");
    let text = std::fs::read_to_string(&config).unwrap_or_else(|e| panic!("{}: {e}", config.display()));
    let mut all: Value = serde_json::from_str(&text).expect("JSON");
    for (key, value) in sizes.as_object().expect("an object") {
        all[key] = value.clone();
    }
    let vocab = all["vocab_size"].as_u64().expect("a size") as i32;
    let config = folder.path().join("sizes.json");
    std::fs::write(&config, all.to_string()).expect("writes");
    let out = folder.path().join("model");
    let options = synth::Options {
        seed: 11,
        dtype: Some(DType::BF16),
        shard_size: synth::SHARD_SIZE,
        force: false,
        ignore: Vec::new(),
    };
    synth::synth(&config, &out, &options, &mut |_, _| {}).unwrap_or_else(|e| panic!("{of}: {e}"));
    let checkpoint = Checkpoint::open(&out).unwrap_or_else(|e| panic!("{of}: {e}"));
    MadeUp { checkpoint, vocab, folder }
}

/// A plan and the steps that it runs.
pub struct Case {
    /// What it is.
    pub name: String,
    /// The plan; each temporary has a place of its own, so that all are there after a step.
    pub plan: Plan,
    weights: Box<dyn WeightBytes + Send>,
    /// Entries and inputs, in order.
    pub steps: Vec<(String, StepInputs)>,
    /// Whether a generation runs behind them.
    pub loops: bool,
}

impl WeightBytes for Case {
    fn bytes(&self, tensor: &str) -> Option<&[u8]> {
        self.weights.bytes(tensor)
    }
}

impl Case {
    /// Adds the kernels that it launches.
    ///
    /// # Panics
    /// When a step has no entry.
    pub fn cover(&self, covered: &mut Covered) {
        for (name, _) in &self.steps {
            let entry = self.plan.entries.iter().find(|e| e.name == *name).expect("an entry");
            cover(covered, &self.plan, entry, self.loops && name.starts_with("decode"));
        }
    }
}

/// All cases.
///
/// # Panics
/// When one does not compile.
pub fn cases() -> Vec<Case> {
    let [(_, small), ..] = llamas();
    // Its kernels have more than three shapes each.
    let plain = |name, of, sizes, level| model(name, of, sizes, level, Database::default());
    let mut out = vec![plain("llama-ops", "llama", small, 0)];
    out.extend(llamas().into_iter().map(|(name, sizes)| plain(name, "llama", sizes, 2)));
    out.extend(others().into_iter().map(|(name, of, sizes)| plain(name, of, sizes, 2)));
    out.extend(normed_heads().into_iter().map(|(name, sizes, on)| model(name, "qwen3", sizes, 2, on)));
    out.extend(projected().into_iter().map(|(name, sizes, on)| model(name, "llama", sizes, 2, on)));
    out.extend(tiles());
    out.extend(attentions());
    out.extend(tuned());
    out
}

/// Heads without whole vectors and without tensor cores; a group for them; no group.
fn llamas() -> [(&'static str, Value); 3] {
    let sizes = |hidden: usize, (heads, kv, dim): (usize, usize, usize), inner: usize, vocab: usize| {
        json!({
            "hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": dim,
            "intermediate_size": inner, "vocab_size": vocab, "num_hidden_layers": 1,
        })
    };
    [
        ("llama-a", sizes(72, (6, 2, 20), 104, 301)),
        ("llama-b", sizes(136, (4, 1, 64), 88, 515)),
        ("llama-c", sizes(200, (5, 5, 16), 120, 1031)),
    ]
}

/// Norms of queries and keys, which attention makes: on tensor cores with a warp or two a block, so that the own key is
/// in a later round than the first; in clusters; by keys in blocks of fewer heads than share a key.
fn normed_heads() -> [(&'static str, Value, Database); 4] {
    let sizes = |hidden: usize, (heads, kv, dim): (usize, usize, usize)| {
        json!({
            "hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": dim,
            "intermediate_size": 56, "vocab_size": 97, "num_hidden_layers": 1, "layer_types": ["full_attention"],
        })
    };
    let on = |(kv_heads, group, head_dim), schedule| {
        let (value_dim, keys, made) = (head_dim, 256, true);
        one(Shape::AttentionRow { kv_heads, group, head_dim, value_dim, keys, made, projected: 0 }, schedule)
    };
    let group = |warps, heads, (splits, cluster), late| Schedule::AttentionGroup {
        warps,
        heads,
        depth: 1,
        splits,
        cluster,
        late,
    };
    let row = Schedule::AttentionRow { warps: 1, heads: 1, depth: 1, splits: 2, cluster: 1, late: false };
    [
        ("normed-a", sizes(72, (6, 2, 64)), on((2, 3, 64), group(1, 3, (1, 1), false))),
        ("normed-b", sizes(104, (4, 1, 128)), on((1, 4, 128), group(2, 4, (2, 1), false))),
        ("normed-c", sizes(88, (7, 1, 64)), on((1, 7, 64), group(3, 7, (2, 2), true))),
        ("normed-d", sizes(40, (4, 2, 36)), on((2, 2, 36), row)),
    ]
}

/// A database of one shape.
fn one(shape: Shape, schedule: Schedule) -> Database {
    let key = Key { target: TARGET.into(), device: "H200".into(), dtype: DType::BF16, shape, longest: None };
    let measured =
        Measured { schedule, ns: 1, estimated_ns: 1, tried: 1, of: 1, context: CONTEXT, step: None };
    let mut database = Database::default();
    database.insert(key, measured);
    database
}

/// Attention that projects its outputs, beside `llama-b`: columns that blocks do not share out evenly, in one turn or
/// several; keys in several rounds of a warp, so that blocks have none of a short context.
fn projected() -> [(&'static str, Value, Database); 3] {
    let sizes = |hidden: usize, (heads, kv, dim): (usize, usize, usize)| {
        json!({
            "hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": dim,
            "intermediate_size": 56, "vocab_size": 97, "num_hidden_layers": 1,
        })
    };
    let on = |(kv_heads, group, head_dim, projected), (warps, depth, splits, late)| {
        let (value_dim, keys, made, heads) = (head_dim, 256, false, group as u32);
        let shape = Shape::AttentionRow { kv_heads, group, head_dim, value_dim, keys, made, projected };
        one(shape, Schedule::AttentionGroup { warps, heads, depth, splits, cluster: splits, late })
    };
    [
        ("projected-a", sizes(90, (6, 2, 64)), on((2, 3, 64, 90), (1, 1, 2, true))),
        ("projected-b", sizes(104, (3, 3, 128)), on((3, 1, 128, 104), (2, 2, 2, false))),
        ("projected-c", sizes(58, (14, 2, 64)), on((2, 7, 64, 58), (3, 1, 2, true))),
    ]
}

/// Experts; LayerNorm, biases and learned positions; sinks and windows; latent attention.
fn others() -> [(&'static str, &'static str, Value); 6] {
    let experts =
        |hidden: usize, dim: usize, (experts, picks): (usize, usize), inner: usize, vocab: usize| {
            json!({
                "hidden_size": hidden, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": dim,
                "num_local_experts": experts, "num_experts_per_tok": picks, "moe_intermediate_size": inner,
                "vocab_size": vocab, "num_hidden_layers": 1,
            })
        };
    [
        ("experts-a", "qwen3-moe", experts(72, 24, (5, 2), 40, 97)),
        ("experts-b", "qwen3-moe", experts(104, 16, (9, 3), 56, 131)),
        ("experts-c", "qwen3-moe", experts(136, 40, (12, 4), 24, 203)),
        ("gpt2", "gpt2", json!({"n_embd": 120, "n_head": 5, "n_layer": 1, "vocab_size": 133})),
        (
            "sinks",
            "gpt-oss",
            json!({"hidden_size": 72, "intermediate_size": 56, "num_local_experts": 5, "vocab_size": 99}),
        ),
        (
            "latent",
            "deepseek-v3",
            json!({
                "hidden_size": 72, "intermediate_size": 88, "moe_intermediate_size": 40, "vocab_size": 101,
                "num_hidden_layers": 2,
            }),
        ),
    ]
}

/// A tiny model with other sizes: two prompts in a small step, at level 2 one in a large step as well, then a decode
/// step of one sequence, one of two and one of three, of which all but one are drawn; and a generation.
fn model(name: &str, of: &str, sizes: Value, level: u8, schedules: Database) -> Case {
    let made_up = made_up(of, &sizes);
    let vocab = made_up.vocab;
    let context = if level == 0 { SHORT } else { CONTEXT };
    let limits = (context, BATCH);
    let graph = made_up.graph();
    let made =
        fixture::compile_on(&graph, TARGET, DType::BF16, level, limits, Selection::default(), schedules);
    let plan = made.plan;
    let ids: Vec<i32> = (0..2 * context as i32).map(|i| (i * 37 + 5) % vocab).collect();
    let piece = |s: usize, start: usize, len: usize| (&ids[11 * s + start..][..len], start);
    let mut steps = vec![("prefill_16", vec![piece(0, 0, 9), piece(1, 0, 4)])];
    let mut lengths = [9, 4, 0];
    if level > 0 {
        steps.push(("prefill_256", vec![piece(0, 0, 133), piece(1, 4, 5), piece(2, 0, 3)]));
        lengths = [133, 9, 3];
    }
    steps.push(("decode_1", vec![piece(0, lengths[0], 1)]));
    lengths[0] += 1;
    steps.push(("decode_2", (0..2).map(|s| piece(s, lengths[s], 1)).collect()));
    lengths[..2].iter_mut().for_each(|n| *n += 1);
    steps.push(("decode_4", (0..BATCH).map(|s| piece(s, lengths[s], 1)).collect()));
    let names: Vec<&str> = steps.iter().map(|(name, _)| *name).collect();
    let plan = apart(keep(&plan, &names));
    let steps = steps.iter().map(|(name, pieces)| {
        let entry = plan.entries.iter().find(|e| e.name == *name).expect("an entry");
        let mut inputs = ragged(entry, pieces, context, entry.role == weft_ir::plan::Role::Decode);
        if matches!(*name, "decode_2" | "decode_4") {
            draw(&mut inputs);
        }
        ((*name).to_owned(), inputs)
    });
    let steps = steps.collect();
    Case { name: name.into(), plan, weights: Box::new(made_up), steps, loops: true }
}

/// Rows 1 and 2 are drawn: one with all filters and penalties, one with top-p alone.
fn draw(inputs: &mut StepInputs) {
    inputs.temperature[1] = 0.9;
    inputs.top_k[1] = 7;
    inputs.top_p[1] = 0.95;
    inputs.min_p[1] = 0.01;
    inputs.repetition_penalty[1] = 1.3;
    inputs.presence_penalty[1] = 0.4;
    inputs.prompt_lengths[1] = 4;
    if inputs.temperature.len() > 2 {
        inputs.temperature[2] = 1.2;
        inputs.top_p[2] = 0.8;
    }
    inputs.seed = (0..inputs.seed.len() as u32).map(|i| 77 + i).collect();
}

/// A plan with some of its entries, in this order, and their kernels alone.
fn keep(plan: &Plan, names: &[&str]) -> Plan {
    let mut kernels: Vec<usize> = Vec::new();
    let find = |name: &&str| plan.entries.iter().find(|e| e.name == *name).expect("an entry").clone();
    let mut entries: Vec<_> = names.iter().map(find).collect();
    for id in entries.iter_mut().flat_map(|e| e.kernels.values_mut()) {
        let known = kernels.iter().position(|k| *k == id.index());
        let at = known.unwrap_or_else(|| {
            kernels.push(id.index());
            kernels.len() - 1
        });
        *id = KernelId::new(at);
    }
    let kernels = kernels.into_iter().map(|k| plan.kernels[k].clone()).collect();
    Plan { kernels, entries, ..plan.clone() }
}

/// The plan with a place of its own for each temporary, behind the arena; and with an output that makes it a model's,
/// as the runtime wants it, where it has none.
fn apart(mut plan: Plan) -> Plan {
    for entry in &mut plan.entries {
        let mut end = entry.arena_bytes;
        for placement in &mut entry.arena {
            placement.offset = end.next_multiple_of(weft_ir::plan::SCRATCH_ALIGN);
            end = placement.offset + placement.bytes;
        }
        entry.arena_bytes = end;
        entry.unshared_bytes = entry.unshared_bytes.max(end);
    }
    let is =
        |b: &Buffer| matches!(&b.kind, BufferKind::Output(n) if n == "logits" || n == "last_hidden_state");
    if !plan.buffers.iter().any(is) {
        let name = "last_hidden_state".to_owned();
        let shape = vec![Dim::Sym(Sym::Tokens), Dim::Const(1)];
        plan.buffers.push(Buffer {
            name: name.clone(),
            dtype: DType::F32,
            shape,
            kind: BufferKind::Output(name),
        });
    }
    weft_ir::verify::plan::verify(&plan).unwrap_or_else(|f| panic!("{f:?}"));
    plan
}

fn of_product(name: String, (maker, m): (Maker, MatMul), rows: usize, schedule: Schedule) -> Case {
    let plan = apart(maker.plan(m, rows, &|s| s.clone_from(&schedule)));
    let steps = vec![("step".to_owned(), maker.inputs.clone())];
    Case { name, plan, weights: Box::new(maker), steps, loops: false }
}

fn of_attention(
    name: String,
    s: &attention::Shape,
    tokens: &[attention::Token],
    schedule: &Schedule,
) -> Case {
    let keys = tokens.iter().map(|t| t.1 as usize).max().unwrap_or(1).max(1024);
    let (plan, arrays) = attention::plan(s, tokens, keys, TARGET, &|chosen| chosen.clone_from(schedule));
    let steps = vec![("step".to_owned(), StepInputs::default())];
    Case { name, plan: apart(plan), weights: Box::new(arrays), steps, loops: false }
}

/// Every tile of the products of many rows, also behind a norm, and skinny products of odd lengths.
fn tiles() -> Vec<Case> {
    let gemm = |tile_m, tile_n, tile_k, [warps_m, warps_n, warps_k]: [u32; 3], stages| Schedule::Gemm {
        tile_m,
        tile_n,
        tile_k,
        warps_m,
        warps_n,
        warps_k,
        stages,
    };
    let tiled = [
        ((13, 37, 72), gemm(16, 16, 80, [1, 1, 5], 1)),
        ((11, 70, 264), gemm(16, 32, 128, [1, 1, 8], 3)),
        ((16, 301, 136), gemm(16, 64, 48, [1, 1, 3], 2)),
        ((16, 301, 136), gemm(16, 64, 128, [1, 4, 1], 3)),
        ((37, 150, 40), gemm(32, 64, 64, [2, 2, 1], 3)),
        ((100, 130, 72), gemm(64, 64, 64, [2, 2, 1], 3)),
        ((131, 150, 104), gemm(128, 128, 32, [2, 4, 1], 4)),
    ];
    let groups = |groups, tile_n, stages| Schedule::WarpgroupGemm { groups, tile_n, stages };
    let grouped = [
        ((70, 150, 104), groups(1, 128, 3)),
        ((131, 301, 264), groups(2, 256, 4)),
        ((200, 389, 72), groups(2, 192, 4)),
        ((67, 70, 136), groups(1, 64, 6)),
    ];
    let gemv = |rows, (warps, lanes, split), columns, depth, blocks, staged| Schedule::Gemv {
        rows,
        warps,
        lanes,
        split,
        columns,
        depth,
        blocks,
        staged,
        resident: 1,
        behind: 0,
        ahead: 0,
        late: false,
    };
    let skinny = [
        ((1, 37, 33), gemv(1, (4, 8, 1), 1, 2, 2, true)),
        ((3, 131, 72), gemv(4, (2, 16, 1), 2, 1, 3, false)),
        ((8, 19, 264), gemv(8, (4, 32, 2), 1, 1, 2, true)),
        ((5, 45, 1032), gemv(8, (4, 32, 4), 1, 2, 5, true)),
    ];
    let normed = [
        ((13, 37, 72), gemm(16, 16, 80, [1, 1, 5], 1)),
        ((11, 70, 264), gemm(16, 32, 128, [1, 1, 8], 3)),
        ((16, 301, 136), gemm(16, 128, 64, [1, 2, 4], 3)),
        ((37, 75, 40), gemm(32, 64, 64, [2, 2, 1], 3)),
        ((61, 130, 104), gemm(64, 128, 32, [2, 4, 1], 4)),
    ];
    let all = tiled.into_iter().chain(grouped).chain(skinny);
    let case = |((rows, n, k), schedule): ((usize, usize, usize), Schedule)| {
        of_product(format!("{rows}×{n}×{k} {schedule:?}"), plain(n, k, rows), rows, schedule)
    };
    let behind_norm = |((rows, n, k), schedule): ((usize, usize, usize), Schedule)| {
        let (maker, m) = gated_after_norm(n, k, rows);
        of_product(format!("norm {rows}×{n}×{k} {schedule:?}"), (maker, rounded(m)), rows, schedule)
    };
    let by_groups = ((131, 150, 264), groups(2, 128, 4));
    let of = |name: &str, make: fn(usize, usize, usize) -> (Maker, MatMul)| {
        let ((rows, n, k), schedule) = by_groups.clone();
        of_product(format!("{name} {rows}×{n}×{k} {schedule:?}"), make(n, k, rows), rows, schedule)
    };
    let by_groups = [of("gated", gated), of("residual", residual)];
    all.map(case).chain(normed.into_iter().map(behind_norm)).chain(by_groups).collect()
}

/// Attention of few tokens by keys and by tiles of keys, with and without splits; of many tokens by tiles.
fn attentions() -> Vec<Case> {
    let shape = |kv, group, dim| attention::Shape::new(kv, group, dim, DType::BF16);
    let few: [attention::Token; 3] = [(1, 1), (2, 70), (3, 301)];
    let settled = |s| attention::Shape { settled: true, ..s };
    let capped = |s| attention::Shape { cap: Some(20.0), window: Some(33), sink: true, ..s };
    let rows = |warps, heads, splits, cluster| Schedule::AttentionRow {
        warps,
        heads,
        depth: 2,
        splits,
        cluster,
        late: false,
    };
    let groups = |warps, heads, splits, cluster| Schedule::AttentionGroup {
        warps,
        heads,
        depth: 1,
        splits,
        cluster,
        late: false,
    };
    let projected = |s, projected| attention::Shape { projected, ..s };
    let row = |warps, heads, splits| rows(warps, heads, splits, 1);
    let group = |warps, heads, splits| groups(warps, heads, splits, 1);
    let tile = |stages| Schedule::AttentionTile { tile_q: 64, tile_k: 64, stages };
    let many = |n: i32| -> Vec<attention::Token> { (1..=n).map(|i| (1, i)).collect() };
    let mut out = Vec::new();
    let small = [
        (settled(shape(2, 3, 20)), row(4, 3, 1), row(2, 1, 3), rows(2, 3, 4, 4)),
        (capped(shape(1, 4, 40)), row(2, 2, 1), row(4, 4, 5), rows(4, 4, 8, 8)),
        (shape(3, 1, 72), row(8, 1, 1), row(4, 1, 2), rows(2, 1, 6, 2)),
        (settled(shape(2, 4, 64)), group(4, 4, 1), group(2, 2, 3), groups(5, 4, 8, 8)),
        (capped(shape(1, 3, 128)), group(2, 3, 1), group(4, 3, 5), groups(3, 3, 16, 8)),
        (shape(3, 7, 64), group(8, 7, 1), group(4, 7, 2), groups(2, 7, 4, 4)),
    ];
    for (s, one, shared, joined) in small {
        for schedule in [one, shared, joined] {
            out.push(of_attention(format!("{s:?} {schedule:?}"), &s, &few, &schedule));
        }
    }
    let projecting = [
        (settled(projected(shape(3, 3, 64), 90)), groups(2, 3, 8, 8)),
        (capped(projected(shape(1, 4, 128), 75)), groups(3, 4, 4, 4)),
        (projected(shape(2, 1, 64), 33), groups(1, 1, 2, 2)),
    ];
    for (s, schedule) in projecting {
        out.push(of_attention(format!("{s:?} {schedule:?}"), &s, &few, &schedule));
    }
    for (s, tokens) in
        [(shape(2, 2, 16), many(13)), (capped(shape(1, 3, 48)), many(37)), (shape(2, 1, 80), many(70))]
    {
        for stages in [2, 1] {
            let name = format!("{s:?} {} tokens, {stages} stages", tokens.len());
            out.push(of_attention(name, &s, &tokens, &tile(stages)));
        }
    }
    out
}

/// The product of a norm, without a group.
fn after_norm(n: usize, k: usize, rows: usize) -> (Maker, MatMul) {
    let mut mk = Maker::default();
    let x = mk.floats("x", DType::BF16, &[rows, k], 1.0);
    let gamma = mk.floats("w_norm", DType::BF16, &[k], 1.0);
    let b = mk.floats("w", DType::BF16, &[n, k], 0.2);
    let row = vec![product::TOKENS, Dim::Const(n)];
    mk.write("y", DType::BF16, row, BufferKind::Output("y".into()));
    let (a, stages, scale) = norm(x, gamma, k);
    let bias = mk.floats("w_bias", DType::BF16, &[n], 1.0);
    let value = op(Binary::Mul, Scalar::Acc(0), scale);
    let value = op(Binary::Add, value, load_at(bias, &[at(1)]));
    let stores = vec![store(0, &[at(0), at(1)], value, None)];
    (mk, MatMul { m: product::TOKENS, n, group: 1, k, a, b, stages, row: None, stores, draw: None })
}

/// The schedules that ship, on as few blocks, columns and keys as leave each a ragged end.
fn tuned() -> Vec<Case> {
    let shipped = Database::shipped().unwrap_or_else(|e| panic!("{e}"));
    let mut out = Vec::new();
    for (key, measured) in shipped.iter() {
        let name = format!("tuned {:?}{}", key.shape, key.within());
        let mut schedule = measured.schedule.clone();
        match (&key.shape, &mut schedule) {
            (
                Shape::Gemv { k, group, computed, .. },
                Schedule::Gemv { rows, warps, lanes, split, columns, depth, blocks, .. },
            ) => {
                *blocks = (*blocks).min(3);
                let teams = *warps * 32 / *lanes / *split;
                let wide = (*blocks * teams * *columns) as usize + group;
                let k = (8 * *lanes * *split * *depth + 24).min(*k as u32) as usize;
                let rows = *rows as usize;
                let made = match (group, computed) {
                    (2, _) => gated_after_norm(wide / 2, k, rows),
                    (_, true) => after_norm(wide, k, rows),
                    (_, false) => plain(wide, k, rows),
                };
                out.push(of_product(name, made, rows, schedule));
            }
            (Shape::AttentionRow { kv_heads, group, head_dim, value_dim, projected, .. }, schedule) => {
                let new = attention::Shape::new((*kv_heads).min(2), *group, *head_dim, key.dtype);
                let projected = (*projected).min(78);
                let s = attention::Shape { value_dim: *value_dim, settled: true, projected, ..new };
                out.push(of_attention(name, &s, &[(1, 1), (2, 70), (3, 301)], schedule));
            }
            (Shape::Gemv { .. }, other) => panic!("{name}: {other:?}"),
        }
    }
    out
}
