//! Execution, as far as it needs no GPU.

mod toy;

use std::collections::BTreeMap;
use std::sync::Arc;

use half::{bf16, f16};
use weft_ir::dtype::{DType, Encoding};
use weft_ir::graph::Input;
use weft_ir::ids::DispatchId;
use weft_ir::plan::{
    BufferKind, EdgeKind, Extent, Pack, Partials, Plan, Role, Scratch, ScratchPlace, ScratchPlaces,
};
use weft_ir::reference::{Precision, StepInputs};
use weft_ir::shape::{Dim, Sym};
use weft_runtime::Error;
use weft_runtime::exec::bucket::{self, bounds, choose, pad, plan_inputs, plan_limits};
use weft_runtime::exec::check::{Sizes, check as check_role};
use weft_runtime::exec::memory::{ALIGN, Layout, MemoryNeed, RESERVE, Region, bytes_text};
use weft_runtime::exec::nodes::{Arg, What, edges, nodes};
use weft_runtime::exec::pack::{Packed, Way};
use weft_runtime::exec::{CpuModel, CpuOptions, Executor, check_memory, check_plan};

fn plan() -> Plan {
    toy::plan("sm_90")
}

fn sizes(tokens: usize, rows: usize, context: usize) -> Sizes {
    Sizes { tokens, rows, context }
}

fn text<T>(result: Result<T, Error>) -> String {
    result.err().map(|e| e.to_string()).expect("an error")
}

#[test]
fn the_toy_is_a_valid_plan() {
    check_plan(&plan()).expect("valid");
    let limits = plan_limits(&plan()).expect("limits");
    assert_eq!((limits.prefill_tokens, limits.score_tokens, limits.vocab), (16, 8, Some(toy::VOCAB)));
}

#[test]
fn the_smallest_bucket_that_holds_a_step_is_chosen() {
    let plan = plan();
    let name = |role, tokens, rows| {
        let at = choose(&plan, role, &sizes(tokens, rows, 5)).expect("a bucket");
        plan.entries[at].name.clone()
    };
    assert_eq!(name(Role::Decode, 1, 1), "decode_1");
    assert_eq!(name(Role::Decode, 2, 2), "decode_2");
    assert_eq!(name(Role::Prefill, 1, 0), "prefill_4");
    assert_eq!(name(Role::Prefill, 5, 2), "prefill_16");
    assert_eq!(name(Role::Score, 8, 8), "score_8");
}

#[test]
fn a_step_that_no_bucket_holds_is_named() {
    let mut plan = plan();
    let error = text(choose(&plan, Role::Decode, &sizes(3, 3, 5)));
    assert!(error.contains("no decode bucket holds 3 tokens with 3 output rows"), "{error}");
    assert!(error.contains("decode_2 (2 tokens, 2 rows)") && error.contains("--max-batch"), "{error}");
    assert!(!error.contains("prefill"), "{error}");
    plan.entries.retain(|e| e.role != Role::Score);
    let error = text(choose(&plan, Role::Score, &sizes(1, 1, 5)));
    assert!(error.contains("prefill_16") && error.contains("decode_1"), "{error}");
}

#[test]
fn padding_writes_nothing_and_samples_greedily() {
    let plan = plan();
    let bind = plan.entries[3].bind;
    let padded = pad(&toy::step(1, 3, &[5, 6]), &bind);
    assert_eq!(padded.token_ids[..4], [5, 6, 0, 0]);
    assert_eq!(padded.positions[..4], [3, 4, 0, 0]);
    assert_eq!(padded.sequences[..4], [1, 1, 0, 0]);
    assert_eq!(padded.slots[..4], [19, 20, -1, -1]);
    assert_eq!((padded.slots.len(), padded.slot_base.len(), padded.output_rows.len()), (16, 2, 2));
    assert_eq!(padded.output_rows, [1, 0]);
    assert_eq!(
        (&padded.temperature[..], &padded.top_p[..], &padded.seed[..]),
        (&[0.0, 0.0][..], &[1.0, 1.0][..], &[7, 0][..])
    );
    for input in Input::ALL {
        let bytes = bind.elements(&input.ty().shape) * input.ty().dtype().size();
        assert_eq!(bucket::input_bytes(&padded, input).len(), bytes, "{}", input.name());
    }
}

#[test]
fn inputs_out_of_range_are_named() {
    let plan = plan();
    let (used, bounds) = (plan_inputs(&plan), bounds(&plan).expect("bounds"));
    assert_eq!(used, toy::INPUTS);
    let good = toy::step(1, 3, &[5, 6]);
    let check = |s: &StepInputs, used: &[Input], bounds: &_| check_role(Role::Prefill, s, used, bounds);
    assert_eq!(check(&good, &used, &bounds).expect("good"), sizes(2, 1, 5));
    // In a decode step the second token would attend to what the first one writes; padding writes nothing.
    let error = text(check_role(Role::Decode, &good, &used, &bounds));
    assert!(error.contains("sequences: element 1 is the sequence of the one before it"), "{error}");
    let mut padded = good.clone();
    padded.slots[1] = -1;
    check_role(Role::Decode, &padded, &used, &bounds).expect("good");
    type Change = fn(&mut StepInputs);
    let cases: [(&str, Change); 17] = [
        ("token_ids: the step has no tokens", |s| s.token_ids.clear()),
        ("token_ids: element 1 is 8, outside 0..8", |s| s.token_ids[1] = 8),
        ("token_ids: element 0 is -1", |s| s.token_ids[0] = -1),
        ("positions: it has 1 elements, and the step 2: one for each token", |s| s.positions.truncate(1)),
        ("positions: element 1 is 16, outside 0..16", |s| s.positions[1] = 16),
        ("sequences: element 1 is 2, outside 0..2", |s| s.sequences[1] = 2),
        ("sequences: element 1 is less", |s| s.sequences[1] = 0),
        ("slots: element 0 is -2, outside -1..32", |s| s.slots[0] = -2),
        ("slots: element 1 is 32", |s| s.slots[1] = 32),
        ("slots: two tokens write to slot 19", |s| s.slots[1] = 19),
        ("slot_base: element 1 is 17: its 16 slots", |s| s.slot_base[1] = 17),
        ("slot_base: element 0 is -1", |s| s.slot_base[0] = -1),
        ("slot_base: it has 3 elements; 1 to 2", |s| s.slot_base.push(0)),
        ("output_rows: element 0 is 2, outside 0..2", |s| s.output_rows[0] = 2),
        ("top_p: it has 0 elements, and the step 1: one for each output row", |s| s.top_p.clear()),
        ("temperature: element 0 is not a number", |s| s.temperature[0] = f32::NAN),
        ("seed: it has 2 elements", |s| s.seed.push(1)),
    ];
    for (wanted, change) in cases {
        let mut step = good.clone();
        change(&mut step);
        let error = text(check(&step, &used, &bounds));
        assert!(error.contains(wanted), "{error} lacks {wanted}");
    }
    // Unused inputs are not looked at.
    let mut step = good.clone();
    step.top_p.clear();
    let fewer: Vec<Input> = used.iter().copied().filter(|i| *i != Input::TopP).collect();
    check(&step, &fewer, &bounds).expect("good");
    // Of rotations that depend on the length.
    let more = [&used[..], &[Input::Prompts]].concat();
    for (prompts, wanted) in [
        (vec![], "prompts: it has 0 elements, and the step 2: one for each token"),
        (vec![16, 17], "prompts: element 1 is 17, outside 0..17"),
        (vec![-1, 16], "prompts: element 0 is -1"),
    ] {
        let error = text(check(&StepInputs { prompts, ..good.clone() }, &more, &bounds));
        assert!(error.contains(wanted), "{error} lacks {wanted}");
    }
    check(&StepInputs { prompts: vec![5, 0], ..good }, &more, &bounds).expect("good");
}

#[test]
fn memory_is_counted_by_part_and_refused_with_figures() {
    let plan = plan();
    let layout = Layout::new(&plan).expect("a layout");
    let need = layout.need;
    // table 8·4·2 bytes; cache 32·4·4; logits 8·8·4 and tokens 8·4; each rounded up to 256.
    assert_eq!((need.weights, need.literals, need.state, need.outputs), (256, 0, 512, 512));
    assert_eq!(need.arena as usize, plan.entries.iter().map(|e| e.arena_bytes).max().expect("entries"));
    // 11 inputs, each at a multiple of 256; the last has 8 seeds in the scoring bucket.
    assert_eq!(need.inputs, 10 * 256 + 8 * 4);
    assert_eq!(need.reserve, RESERVE);
    assert_eq!(layout.inputs(1).bytes, 10 * 256 + 4);
    check_memory("GPU", &need, need.total()).expect("enough");
    let error = text(check_memory("GPU", &need, need.total() - 1));
    for part in
        ["GPU has 64.0 MiB free", "weights 256 B", "state (KV cache) 512 B", "--max-seq", "--max-batch"]
    {
        assert!(error.contains(part), "{error} lacks {part}");
    }
    assert_eq!(bytes_text(3 << 29), "1.5 GiB");
    assert_eq!(MemoryNeed::default().total(), 0);
}

#[test]
fn misfits_of_a_plan_are_named() {
    let mut bad = plan();
    bad.entries[0].arena[0].offset = 8;
    assert!(text(Layout::new(&bad)).contains("decode_2, placement of b13: its offset"));
    let mut bad = plan();
    bad.kernels[2].grid[1].dims = vec![weft_ir::shape::Dim::Const(70_000)];
    let layout = Layout::new(&bad).expect("a layout");
    assert!(text(nodes(&bad, &layout, 0, false)).contains("kernel toy_sum: 70000 blocks along axis 1"));
    let mut bad = plan();
    bad.bodies[0].launches[4].after.clear();
    assert!(text(check_plan(&bad)).contains("no path"));
    let mut bad = plan();
    bad.buffers.retain(|b| b.kind != BufferKind::Output("tokens".into()));
    assert!(text(check_plan(&bad)).contains("does not exist"));
    assert!(text(nodes(&plan(), &Layout::new(&plan()).expect("a layout"), 9, false)).contains("decode_1"));
}

#[test]
fn an_entry_becomes_nodes_with_typed_edges() {
    let plan = plan();
    let layout = Layout::new(&plan).expect("a layout");
    let list = nodes(&plan, &layout, 3, false).expect("nodes");
    assert_eq!(list.len(), 8);
    assert_eq!(list[0].what, What::Inputs(10 * 256 + 2 * 4));
    // Launches without predecessors wait for the inputs, fully; others keep their edges.
    assert_eq!(list[1].after, [(0, EdgeKind::Full)]);
    assert_eq!(list[4].after, [(0, EdgeKind::Full)]);
    assert_eq!(list[3].after, [(2, EdgeKind::Programmatic)]);
    assert_eq!(list[7].after, [(6, EdgeKind::Full)]);
    assert_eq!(list[7].what, What::Tokens(256, 8));
    assert_eq!(edges(&list), (3, 5));
    let What::Kernel { grid, threads, args, kernel, .. } = &list[3].what else { panic!("a kernel") };
    assert_eq!((*kernel, *grid, *threads), (2, [2, 1, 1], 32));
    let (h, positions) = (plan.entries[3].arena[1].offset, ALIGN);
    assert_eq!(args[0], Arg::Buffer(Region::Inputs, positions));
    assert_eq!(
        args[3..],
        [Arg::Buffer(Region::State, 0), Arg::Buffer(Region::Arena, h), Arg::Sym(16), Arg::Sym(16)]
    );
    let full = nodes(&plan, &layout, 3, true).expect("nodes");
    assert_eq!(edges(&full), (8, 0));
    // A kernel that does not wait by itself is waited for fully.
    let mut slow = plan.clone();
    slow.kernels[1].programmatic = false;
    assert_eq!(edges(&nodes(&slow, &layout, 3, false).expect("nodes")), (5, 3));
}

/// The toy with a kernel whose blocks join: each entry has 3 f32 a token, 5 i32, and a counter a token.
fn joining() -> Plan {
    let mut plan = plan();
    let of =
        |name: &str, dtype, dims| Partials { name: name.into(), dtype, elements: Extent { dims, per: 1 } };
    let tokens = Dim::Sym(Sym::Tokens);
    let partials = vec![
        of("sums", DType::F32, vec![tokens, Dim::Const(3)]),
        of("picks", DType::I32, vec![Dim::Const(5)]),
    ];
    let counters = Extent { dims: vec![tokens], per: 1 };
    plan.kernels[2].scratch = Some(Scratch { partials, counters });
    for e in &mut plan.entries {
        let offset = e.arena_bytes.next_multiple_of(ALIGN);
        let place = ScratchPlace { dispatch: DispatchId(2), offset, bytes: ALIGN + 20, counters: ALIGN };
        e.scratch = ScratchPlaces { places: vec![place], counter_bytes: 2 * ALIGN };
        e.arena_bytes = offset + ALIGN + 20;
    }
    plan
}

#[test]
fn scratch_comes_behind_the_other_arguments() {
    let plan = joining();
    check_plan(&plan).expect("valid");
    let layout = Layout::new(&plan).expect("a layout");
    assert_eq!(layout.need.counters, 2 * ALIGN as u64);
    assert_eq!(
        layout.need.arena as usize,
        plan.entries.iter().map(|e| e.arena_bytes).max().expect("entries")
    );
    let plain = nodes(&self::plan(), &layout, 3, false).expect("nodes");
    for (node, plain) in nodes(&plan, &layout, 3, false).expect("nodes").iter().zip(&plain) {
        let (What::Kernel { args, dispatch, .. }, What::Kernel { args: before, .. }) =
            (&node.what, &plain.what)
        else {
            continue;
        };
        let own = &args[before.len()..];
        assert_eq!(args[..before.len()], before[..]);
        let first = plan.entries[3].scratch.places[0].offset;
        match dispatch.index() {
            2 => assert_eq!(
                own,
                [
                    Arg::Buffer(Region::Arena, first),
                    Arg::Buffer(Region::Arena, first + ALIGN),
                    Arg::Buffer(Region::Counters, ALIGN)
                ]
            ),
            _ => assert!(own.is_empty()),
        }
    }
    let text = plan.to_ron().expect("RON");
    assert_eq!(Plan::from_ron(&text).expect("a plan"), plan);
    assert!(
        text.contains("scratch: (places:[(dispatch:2,") || text.contains("scratch: (places: [(dispatch: 2")
    );
    assert!(!self::plan().to_ron().expect("RON").contains("scratch"), "plans without it are as before");
}

#[test]
fn misplaced_scratch_is_named() {
    let fault = |change: &dyn Fn(&mut Plan)| {
        let mut bad = joining();
        change(&mut bad);
        text(check_plan(&bad))
    };
    let has = |wanted: &str, change: &dyn Fn(&mut Plan)| {
        let error = fault(change);
        assert!(error.contains(wanted), "{error} lacks {wanted}");
    };
    has("the scratch of dispatch 2 has no place", &|p| p.entries[0].scratch.places.clear());
    has("the scratch of dispatch 2 has no place", &|p| p.entries[0].scratch.places[0].bytes = 8);
    has("the scratch of dispatch 2 has no place", &|p| p.entries[0].scratch.places[0].offset += 1);
    has("the scratch of dispatch 2 has no place", &|p| p.entries[0].scratch.counter_bytes = ALIGN);
    has("live in the same memory", &|p| p.entries[0].scratch.places[0].offset = 0);
    has("must be f32 or i32", &|p| {
        p.kernels[2].scratch.iter_mut().for_each(|s| s.partials[0].dtype = DType::BF16);
    });
    has("divided by 0", &|p| p.kernels[2].scratch.iter_mut().for_each(|s| s.counters.per = 0));
    has("dispatches 2 and 4 share counters", &|p| {
        p.kernels[4].scratch = p.kernels[2].scratch.clone();
        for e in &mut p.entries {
            let offset = e.arena_bytes.next_multiple_of(ALIGN);
            let place = ScratchPlace { dispatch: DispatchId(4), offset, ..e.scratch.places[0] };
            e.scratch.places.push(place);
            e.arena_bytes = offset + place.bytes;
        }
    });
}

fn tensor(name: &str, encoding: Encoding, shape: &[usize]) -> Pack {
    Pack::Tensor { name: name.into(), encoding, shape: shape.to_vec() }
}

/// Checkpoint tensors of several types, with numbers that round differently to f16 and bf16, and ties.
fn stored() -> BTreeMap<String, Vec<u8>> {
    let value =
        |i: usize| (i as f32 - 300.0) * 0.123_456 + if i.is_multiple_of(7) { 1.0 + 1.0 / 256.0 } else { 0.0 };
    let values = || (0..640).map(value);
    let q8 = (0..20u16).flat_map(|b| {
        let scale = f16::from_f32(0.01 * f32::from(b + 1)).to_le_bytes();
        scale.into_iter().chain((0..32u16).map(move |i| (i * 9 + b) as u8))
    });
    BTreeMap::from([
        ("f32".to_owned(), values().flat_map(f32::to_le_bytes).collect()),
        ("f16".to_owned(), values().flat_map(|v| f16::from_f32(v).to_le_bytes()).collect()),
        ("bf16".to_owned(), values().flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect()),
        ("q8".to_owned(), q8.collect()),
        ("ids".to_owned(), (0..6i32).flat_map(i32::to_le_bytes).collect()),
        ("long".to_owned(), (0..6i64).flat_map(i64::to_le_bytes).collect()),
    ])
}

#[test]
fn every_way_of_packing_gives_the_same_bytes() {
    let weights = stored();
    let plain = |d: DType| tensor(d.name(), Encoding::Plain(d), &[20, 32]);
    let q8 = || Pack::Decode(Box::new(tensor("q8", Encoding::Q8_0, &[20, 32])));
    let cast = |d, p| Pack::Cast(d, Box::new(p));
    let reshape = |s: &[usize], p| Pack::Reshape(s.to_vec(), Box::new(p));
    let slice = |axis, start, len, p| Pack::Slice(axis, start, len, Box::new(p));
    let transpose = |perm: &[usize], p| Pack::Transpose(perm.to_vec(), Box::new(p));
    let (bf, f16, f32) = (DType::BF16, DType::F16, DType::F32);
    let both = |p: Pack| Pack::Concat(0, vec![p.clone(), p]);
    let cases = [
        (Way::Copied, bf, plain(bf)),
        (Way::Copied, f32, reshape(&[640], plain(f32))),
        (Way::Copied, bf, cast(bf, cast(f32, plain(bf)))),
        (Way::Copied, bf, slice(0, 3, 5, Pack::Concat(0, vec![plain(bf), plain(bf)]))),
        (Way::Copied, bf, slice(1, 7, 50, reshape(&[1, 640], plain(bf)))),
        (Way::Copied, f16, Pack::Concat(0, vec![slice(0, 1, 2, plain(f16)), slice(0, 7, 9, plain(f16))])),
        (Way::Converted, bf, plain(f32)),
        (Way::Converted, f16, plain(f32)),
        (Way::Converted, f32, plain(f16)),
        (Way::Converted, f16, cast(bf, plain(f32))),
        (Way::Converted, bf, cast(f16, plain(bf))),
        (Way::Converted, bf, cast(bf, q8())),
        (Way::Converted, f32, slice(0, 5, 9, q8())),
        (Way::Converted, bf, Pack::Concat(0, vec![plain(bf), cast(bf, q8()), plain(f32)])),
        (
            Way::Converted,
            bf,
            Pack::Concat(0, vec![slice(0, 3, 15, reshape(&[640], plain(bf))), reshape(&[640], q8())]),
        ),
        (Way::Moved, f32, slice(0, 5, 40, reshape(&[640], q8()))),
        // Rows of two matrices in turn, halves of heads in turn: gate and up, rotary pairs.
        (Way::Copied, bf, reshape(&[40, 32], transpose(&[1, 0, 2], reshape(&[2, 20, 32], both(plain(bf)))))),
        (Way::Copied, f32, transpose(&[0, 2, 1, 3], reshape(&[2, 2, 5, 32], plain(f32)))),
        (Way::Converted, bf, cast(bf, transpose(&[0, 2, 1, 3], reshape(&[2, 2, 5, 32], q8())))),
        (
            Way::Converted,
            bf,
            slice(0, 1, 3, transpose(&[1, 0, 2], reshape(&[4, 5, 32], cast(f16, plain(f32))))),
        ),
        (Way::Copied, f16, transpose(&[0, 1], plain(f16))),
        (Way::Moved, bf, transpose(&[1, 0, 2], reshape(&[20, 2, 16], plain(bf)))),
        (Way::Moved, bf, transpose(&[1, 0], plain(bf))),
        (Way::Moved, bf, Pack::Concat(1, vec![plain(bf), plain(bf)])),
        (
            Way::Converted,
            bf,
            reshape(&[640], transpose(&[0, 2, 1, 3], reshape(&[2, 5, 2, 32], cast(f16, plain(f32))))),
        ),
        (Way::Moved, f16, slice(1, 1, 9, plain(f32))),
    ];
    for (i, (way, dtype, pack)) in cases.into_iter().enumerate() {
        let slow = Packed::moved("w", &pack, dtype, &weights).expect("packs");
        let elements = slow.len() / dtype.size();
        let fast = Packed::new("w", &pack, dtype, elements, &weights).expect("packs");
        assert_eq!(fast.way(), way, "case {i}");
        let (fast_bytes, slow_bytes) = (fast.to_vec().expect("bytes"), slow.to_vec().expect("bytes"));
        assert_eq!(fast_bytes, slow_bytes, "case {i}");
        // In parts that begin and end anywhere.
        let mut parts = Vec::new();
        while parts.len() < fast.len() {
            let n = (37 * dtype.size()).min(fast.len() - parts.len());
            let mut part = vec![0; n];
            fast.write(parts.len(), &mut part).expect("a part");
            parts.extend(part);
        }
        assert_eq!(parts, fast_bytes, "case {i} in parts");
    }
}

#[test]
fn packing_rounds_to_nearest_even() {
    let bytes = |v: &[f32]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    // Halfway between neighbours of bf16 (8 bits): to the even one.
    let weights = BTreeMap::from([("t".to_owned(), bytes(&[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -0.0]))]);
    let pack = tensor("t", Encoding::Plain(DType::F32), &[3]);
    let packed = Packed::new("t", &pack, DType::BF16, 3, &weights).expect("packs").to_vec().expect("bytes");
    let wanted: Vec<u8> =
        [1.0, 1.0 + 4.0 / 256.0, -0.0].iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
    assert_eq!(packed, wanted);
}

#[test]
fn integers_are_kept_or_narrowed() {
    let weights = stored();
    let ids = tensor("ids", Encoding::Plain(DType::I32), &[6]);
    let packed = Packed::new("ids", &ids, DType::I32, 6, &weights).expect("packs");
    assert_eq!((packed.way(), packed.to_vec().expect("bytes")), (Way::Copied, weights["ids"].clone()));
    let long = tensor("long", Encoding::Plain(DType::I64), &[6]);
    let packed = Packed::new("long", &long, DType::I32, 6, &weights).expect("packs");
    assert_eq!((packed.way(), packed.to_vec().expect("bytes")), (Way::Moved, weights["ids"].clone()));
    assert!(text(Packed::new("long", &long, DType::U32, 6, &weights)).contains("weight \"long\""));
}

#[test]
fn weights_that_do_not_fit_are_named() {
    let weights = stored();
    let bf = |shape: &[usize]| tensor("bf16", Encoding::Plain(DType::BF16), shape);
    let new = |pack: &Pack, n| text(Packed::new("w", pack, DType::BF16, n, &weights));
    assert!(new(&tensor("absent", Encoding::Q8_0, &[32]), 32).contains("no tensor \"absent\""));
    assert!(new(&bf(&[20, 33]), 660).contains("1280 bytes, not those of bf16 [20, 33]"));
    assert!(new(&bf(&[20, 32]), 641).contains("make [20, 32], and it has 641 elements"));
    assert!(new(&Pack::Slice(0, 15, 6, Box::new(bf(&[20, 32]))), 192).contains("15+6 is outside axis 0"));
    assert!(new(&Pack::Reshape(vec![7], Box::new(bf(&[20, 32]))), 7).contains("cannot be reshaped"));
}

#[test]
fn the_graph_and_the_plan_agree_at_every_precision() {
    let weights = toy::weights();
    let mut all = Vec::new();
    for precision in [Precision::F32, Precision::F64, Precision::Rounded] {
        let options =
            CpuOptions { max_seq: toy::MAX_SEQ, max_batch: toy::MAX_BATCH, step_tokens: 16, precision };
        let mut graph = CpuModel::graph(toy::graph(), &weights, &options).expect("a model");
        let mut plan = CpuModel::plan(Arc::new(plan()), &weights, precision).expect("a model");
        assert_eq!((graph.slot_base(1), plan.slot_base(1)), (16, 16));
        assert!(plan.device().starts_with("CPU reference (f"), "{}", plan.device());
        for model in [&mut graph, &mut plan] {
            let result = toy::generate(model, 1);
            // Another sequence does not see it; after a reset all is as before.
            assert_eq!(toy::generate(model, 0), result);
            let state = model.state("cache").expect("a state");
            assert_eq!(state.len(), 32 * toy::WIDTH);
            model.reset();
            assert!(model.state("cache").expect("a state").iter().all(|&v| v == 0.0));
            assert_eq!(toy::generate(model, 1), result);
            all.push(result);
        }
    }
    assert!(all.windows(2).all(|w| w[0] == w[1]), "{all:?}");
    // By hand: the logits after the prompt.
    let table = |t: usize, i: usize| ((t * 4 + i) * 7 % 5) as f32 - 2.0 + t as f32;
    let sum: Vec<f32> = (0..4).map(|i| [1, 4, 2, 3, 5].iter().map(|&t| table(t, i)).sum()).collect();
    let wanted: Vec<f32> = (0..8).map(|v| (0..4).map(|i| table(v, i) * sum[i]).sum()).collect();
    assert_eq!(all[0].1[0], wanted);
}

#[test]
fn cpu_steps_are_checked_as_on_the_gpu() {
    let weights = toy::weights();
    let mut model = CpuModel::plan(Arc::new(plan()), &weights, Precision::F32).expect("a model");
    let mut three = toy::step(0, 0, &[1, 2, 3]);
    let error = text(model.step(Role::Decode, &three, false));
    assert!(error.contains("a decode step has one token each"), "{error}");
    three.slots[1..].fill(-1);
    let error = text(model.step(Role::Decode, &three, false));
    assert!(error.contains("no decode bucket holds 3 tokens"), "{error}");
    let error = text(model.step(Role::Prefill, &toy::step(0, 0, &[1, 9]), false));
    assert!(error.contains("token_ids: element 1 is 9"), "{error}");
    let options = CpuOptions { max_seq: 16, max_batch: 2, step_tokens: 2, precision: Precision::F32 };
    let mut model = CpuModel::graph(toy::graph(), &weights, &options).expect("a model");
    let error = text(model.step(Role::Prefill, &toy::step(0, 0, &[1, 2, 3]), false));
    assert!(error.contains("prefill (2 tokens)"), "{error}");
    let error = text(CpuModel::graph(toy::graph(), &BTreeMap::new(), &options));
    assert!(error.contains("CPU reference") && error.contains("table"), "{error}");
    let nothing = CpuOptions { max_seq: usize::MAX, ..options };
    assert!(text(CpuModel::graph(toy::graph(), &weights, &nothing)).contains("slots"));
}
