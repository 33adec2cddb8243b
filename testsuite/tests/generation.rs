//! The advance kernel on the emulator against its definition, in many states, with all of the emulator's checks;
//! whole generations as the device's loop runs them against step by step; and the loop's graph.

use weft::batch::{Piece, inputs, step};
use weft_codegen::emulator::{Arg, Buffer, Launch, Memory, run};
use weft_frontend::checkpoint::Checkpoint;
use weft_ir::dtype::DType;
use weft_ir::generation::{EMPTY, End, Rows, Rules, advance, goes_on};
use weft_ir::kernel::Kernel;
use weft_ir::plan::{EdgeKind, Plan, Role};
use weft_ir::sampling::{Params, Penalties};
use weft_runtime::exec::memory::{Layout, Region};
use weft_runtime::exec::nodes::{Arg as NodeArg, What, loop_nodes, nodes};
use weft_runtime::exec::{Generate, Next, RowTokens, step_by_step};
use weft_testsuite::emulate::Emulated;
use weft_testsuite::fixture::{Fixture, compile, folder};
use weft_testsuite::generation::{Controls, EmulatedModel, stop_words};
use weft_testsuite::random::rng::Rng;

const MAX_SEQ: usize = 12;

fn words(memory: &mut Memory, values: &[i32]) -> usize {
    memory.add(Buffer::new(DType::I32, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
}

/// A state of a generation.
#[derive(Clone, Debug)]
struct State {
    tokens: Vec<i32>,
    stop: Vec<i32>,
    cancel: Vec<i32>,
    ids: Vec<i32>,
    positions: Vec<i32>,
    slots: Vec<i32>,
    remaining: Vec<i32>,
    step: i32,
}

/// Few values, so that ends of every kind, and several at once, are frequent.
fn random(rng: &mut Rng, rows: usize) -> State {
    let mut each = |f: &dyn Fn(&mut Rng) -> i32| (0..rows).map(|_| f(rng)).collect::<Vec<i32>>();
    let remaining = each(&|r| r.below(4) as i32);
    let tokens = each(&|r| if r.chance(8) { -1 } else { r.below(9) as i32 });
    let cancel = each(&|r| if r.chance(12) { r.pick(&[1, -1, i32::MIN]) } else { 0 });
    let positions = each(&|r| r.below(MAX_SEQ) as i32);
    let ids = each(&|r| r.below(9) as i32);
    // Rows that ended are padding.
    let live =
        |v: Vec<i32>, or: i32| v.iter().zip(&remaining).map(|(&v, &n)| if n > 0 { v } else { or }).collect();
    let slots = (0..rows).map(|i| (i * MAX_SEQ) as i32 + positions[i]).collect::<Vec<i32>>();
    let (ids, positions, slots) = (live(ids, 0), live(positions, 0), live(slots, -1));
    let most = rng.pick(&[0, 1, 2, 5, 63]);
    let stop = (0..most).map(|_| if most == 63 { 100 + rng.below(9) as i32 } else { rng.below(30) as i32 });
    let stop = stop.collect();
    State { tokens, stop, cancel, ids, positions, slots, remaining, step: rng.below(MAX_SEQ) as i32 }
}

/// Runs the kernel on a state; what it leaves, the stream and the condition.
fn on_emulator(kernel: &Kernel, s: &State) -> (State, Vec<i32>, u32) {
    let rows = s.tokens.len();
    let mut memory = Memory::new();
    let stream = vec![EMPTY; MAX_SEQ * rows];
    let step = [s.step];
    let stop = stop_words(&s.stop);
    let all: [&[i32]; 9] =
        [&s.tokens, &stop, &s.cancel, &s.ids, &s.positions, &s.slots, &s.remaining, &step, &stream];
    let at = all.map(|values| words(&mut memory, values));
    let condition = memory.uninitialised(DType::U32, 1);
    let args = at.iter().map(|&i| Arg::Buffer(i)).chain([Arg::i32(rows as i32), Arg::Buffer(condition)]);
    let launch = Launch { grid: [1; 3], args: args.collect() };
    run(kernel, &launch, &mut memory).unwrap_or_else(|f| panic!("{f}: {s:?}"));
    let read = |i: usize| -> Vec<i32> {
        memory.read_ints(at[i]).into_iter().map(|v| v.expect("written") as i32).collect()
    };
    let after = State {
        ids: read(3),
        positions: read(4),
        slots: read(5),
        remaining: read(6),
        step: read(7)[0],
        ..s.clone()
    };
    assert_eq!((read(0), read(1), read(2)), (s.tokens.clone(), stop, s.cancel.clone()), "inputs changed");
    let set = memory.read_ints(condition)[0].expect("the condition is set");
    (after, read(8), set as u32)
}

#[test]
fn the_advance_kernel_is_its_definition() {
    let graph = Fixture::open("llama").graph(DType::BF16);
    let mut rng = Rng::named(3, "advance");
    let mut kinds = std::collections::BTreeSet::new();
    for (target, limit) in [("sm_90", 8), ("sm_80", 2)] {
        let plan = compile(&graph, target, DType::BF16, 2, (MAX_SEQ, limit));
        let kernels = weft_codegen::emit(&plan).unwrap_or_else(|e| panic!("{e}"));
        let work = plan.generation.as_ref().expect("a generation").advance.work;
        for entry in plan.entries.iter().filter(|e| e.role == Role::Decode) {
            let kernel = &kernels[entry.kernels[&work].index()].kernel;
            for _ in 0..400 {
                let before = random(&mut rng, entry.bind.rows);
                let (after, stream, condition) = on_emulator(kernel, &before);
                let mut wanted = before.clone();
                let mut rows = Rows {
                    token_ids: &mut wanted.ids,
                    positions: &mut wanted.positions,
                    slots: &mut wanted.slots,
                    remaining: &mut wanted.remaining,
                };
                let rules = Rules { stop_tokens: &before.stop, context: MAX_SEQ };
                let shown = advance(&mut rows, &before.tokens, &before.cancel, &rules);
                for r in (0..shown.len()).filter(|&r| before.remaining[r] > 0) {
                    let end = rules.end(before.tokens[r], before.positions[r], before.remaining[r]);
                    kinds.insert(format!("{end:?} {}", before.cancel[r] != 0));
                }
                let from = before.step as usize * shown.len();
                let mut line = vec![EMPTY; MAX_SEQ * shown.len()];
                line[from..from + shown.len()].copy_from_slice(&shown);
                assert_eq!(stream, line, "{before:?}");
                let state =
                    |s: &State| (s.ids.clone(), s.positions.clone(), s.slots.clone(), s.remaining.clone());
                assert_eq!(state(&after), state(&wanted), "{before:?}");
                assert_eq!(after.step, before.step + 1);
                assert_eq!(condition != 0, goes_on(&wanted.remaining), "{before:?}");
            }
        }
    }
    assert_eq!(kinds.len(), 10, "not every end was met: {kinds:?}");
}

/// A generation: what each row is drawn by, and when rows end.
struct Case {
    params: Vec<Params>,
    limits: Vec<usize>,
    stop_tokens: Vec<u32>,
    /// Row that the host ends, and after which of its tokens.
    cut: Option<(usize, usize)>,
}

/// Prompts of some lengths through prefill, and the first decode step.
fn begin(
    model: &mut EmulatedModel<'_>,
    ids: &[Vec<u32>],
    params: &[Params],
) -> weft_ir::reference::StepInputs {
    // Penalties look at the tokens so far, which the device keeps.
    let cost = |params: &Params| match params.temperature > 0.0 {
        true => Penalties { repetition: 1.3, presence: 0.4 },
        false => Penalties::NONE,
    };
    fn piece(sequence: usize, start: usize, ids: &[u32], of: (Params, Penalties, usize)) -> Piece<'_> {
        Piece { sequence, start, ids, params: of.0, penalties: of.1, prompt: of.2 }
    }
    let of = |i: usize| (params[i], cost(&params[i]), ids[i].len());
    let pieces: Vec<Piece<'_>> = (0..ids.len()).map(|i| piece(i, 0, &ids[i], of(i))).collect();
    let first = step(model, Role::Prefill, &pieces, false).unwrap_or_else(|e| panic!("{e}")).tokens;
    let last: Vec<u32> = first.iter().map(|&t| t as u32).collect();
    let pieces: Vec<Piece<'_>> =
        (0..ids.len()).map(|i| piece(i, ids[i].len(), &last[i..=i], of(i))).collect();
    inputs(model, Role::Decode, &pieces)
}

/// Both ways to run a generation give the same tokens; gives what became of the rows.
fn both(plan: &Plan, checkpoint: &Checkpoint, ids: &[Vec<u32>], case: &Case) -> Vec<RowTokens> {
    let model = || EmulatedModel { run: Emulated::new(plan, checkpoint) };
    let cuts = |row: usize, made: usize| case.cut.is_some_and(|(r, n)| r == row && made >= n);
    let mut stepped = model();
    let first = begin(&mut stepped, ids, &case.params);
    let g = Generate { first: &first, limits: &case.limits, stop_tokens: &case.stop_tokens };
    let mut made = vec![0; ids.len()];
    let mut on_token = |row: usize, _: u32| {
        made[row] += 1;
        if cuts(row, made[row]) { Next::EndRow } else { Next::Go }
    };
    let rows = step_by_step(&mut stepped, &g, &mut on_token).unwrap_or_else(|e| panic!("{e}"));

    let mut looped = model();
    assert_eq!(begin(&mut looped, ids, &case.params), first);
    let (entry, padded) = looped.entry(Role::Decode, &first).unwrap_or_else(|e| panic!("{e}"));
    let width = entry.bind.rows;
    let mut remaining: Vec<i32> = case.limits.iter().map(|&n| n as i32).collect();
    remaining.resize(width, 0);
    let stop_tokens = case.stop_tokens.iter().map(|&t| t as i32).collect();
    // The host is late: its word arrives two steps after the token that made it end the row.
    let late = |step: usize| (0..width).map(|r| i32::from(step >= 2 && cuts(r, step - 1))).collect();
    let stream = looped.run.generate(&entry, &padded, &Controls { remaining, stop_tokens }, &mut { late });
    for (r, row) in rows.iter().enumerate() {
        let all: Vec<u32> =
            stream.chunks(width).map(|line| line[r]).take_while(|t| *t != EMPTY).map(|t| t as u32).collect();
        match row.end {
            End::Cancelled => assert_eq!(all[..row.tokens.len()], row.tokens, "row {r}"),
            _ => assert_eq!(all, row.tokens, "row {r}"),
        }
    }
    assert!(stream.chunks(width).all(|line| line[ids.len()..].iter().all(|t| *t == EMPTY)), "padding");
    rows
}

/// Greedy and drawn, alone and in company, with rows that end at different times and in every way.
#[test]
fn a_loop_makes_the_tokens_of_steps() {
    const CONTEXT: usize = 14;
    let fixture = Fixture::open("llama");
    let rows = fixture.golden_ids("input_ids");
    let row = |r: usize, n: usize| -> Vec<u32> {
        rows.values[r * rows.shape[1]..][..n].iter().map(|&v| v as u32).collect()
    };
    let prompts = [row(0, 4), row(1, 8), row(0, 3)];
    let drawn = |seed| Params { temperature: 0.9, top_k: 40, top_p: 0.95, min_p: 0.01, seed };
    let graph = fixture.graph(DType::BF16);
    let mut ends = std::collections::HashSet::new();
    for (batch, level) in [(1, 2), (3, 2), (3, 0)] {
        let plan = compile(&graph, "sm_90", DType::BF16, level, (CONTEXT, batch));
        let ids = &prompts[..batch];
        let limits = [4, 100, 5][..batch].to_vec();
        let case =
            |params: Vec<Params>, stop_tokens, cut| Case { params, limits: limits.clone(), stop_tokens, cut };
        let greedy = vec![Params::GREEDY; batch];
        let whole = both(&plan, &fixture.checkpoint, ids, &case(greedy.clone(), vec![], None));
        ends.extend(whole.iter().map(|r| r.end));
        if level == 0 {
            continue;
        }
        let draws = (0..batch as u32).map(|i| drawn(5 + i)).collect::<Vec<_>>();
        let other = both(&plan, &fixture.checkpoint, ids, &case(draws.clone(), vec![], None));
        assert_ne!(whole, other);
        let last = batch - 1;
        let stop = other[last].tokens[2];
        let stopped = both(&plan, &fixture.checkpoint, ids, &case(draws, vec![7777, stop], None));
        assert_eq!((stopped[last].end, stopped[last].tokens.last()), (End::StopToken, Some(&stop)));
        let cut = both(&plan, &fixture.checkpoint, ids, &case(greedy, vec![], Some((0, 3))));
        assert_eq!((cut[0].end, &cut[0].tokens[..]), (End::Cancelled, &whole[0].tokens[..3]));
        assert_eq!(cut[1..], whole[1..], "the others go on");
        ends.extend(stopped.iter().chain(&cut).map(|r| r.end));
    }
    assert_eq!(ends.len(), 4, "{ends:?}");
}

/// Rows of a dynamic rope reach its original context at different steps: each rotates by its own length.
#[test]
fn a_base_that_grows_follows_each_row() {
    let fixture = Fixture::at(folder().join("variants").join("llama-dynamic-decode"));
    let rows = fixture.golden_ids("input_ids");
    let row = |r: usize, n: usize| -> Vec<u32> {
        rows.values[r * rows.shape[1]..][..n].iter().map(|&v| v as u32).collect()
    };
    let plan = compile(&fixture.graph(DType::BF16), "sm_90", DType::BF16, 2, (24, 2));
    let case = |limits| Case { params: vec![Params::GREEDY; 2], limits, stop_tokens: vec![], cut: None };
    let made = both(&plan, &fixture.checkpoint, &[row(0, 13), row(1, 5)], &case(vec![8, 14]));
    assert_eq!((made[0].tokens.len(), made[1].tokens.len()), (8, 14));
}

/// What the loop's graph holds: the step's kernels without the copies, then the advance.
#[test]
fn the_loop_is_a_copy_and_a_body() {
    let graph = Fixture::open("llama").graph(DType::BF16);
    let plan = compile(&graph, "sm_90", DType::BF16, 2, (96, 3));
    let layout = Layout::new(&plan).expect("a layout");
    let mut text = String::new();
    for (i, entry) in plan.entries.iter().enumerate() {
        if entry.role != Role::Decode {
            let error = loop_nodes(&plan, &layout, i, false).expect_err("no generation").to_string();
            assert!(error.contains("--launch step"), "{error}");
            continue;
        }
        let made = loop_nodes(&plan, &layout, i, false).expect("nodes");
        let step = nodes(&plan, &layout, i, false).expect("nodes");
        assert_eq!(made.body.len() + 1, step.len(), "copies of inputs and tokens, and an advance");
        let name = |what: &What| match what {
            What::Inputs(bytes) => format!("copy of {bytes} bytes"),
            What::Kernel { kernel, grid, threads, .. } => {
                format!("{} {grid:?} × {threads}", plan.kernels[*kernel].name)
            }
            What::Tokens(..) => "copy of tokens".into(),
        };
        text += &format!("{}\n", entry.name);
        for node in &made.before {
            text += &format!("  {}\n", name(&node.what));
        }
        text += "  while\n";
        for (n, node) in made.body.iter().enumerate() {
            let after: Vec<String> = node.after.iter().map(|(i, kind)| format!("{i} {kind:?}")).collect();
            text += &format!("    {n}: {} after [{}]\n", name(&node.what), after.join(", "));
        }
        let Some(What::Kernel { args, .. }) = made.body.last().map(|n| &n.what) else { panic!("an advance") };
        text += &format!("    {args:?}\n");
        let mapped = layout.inputs(i).mapped_bytes;
        let in_host = |a: &&NodeArg| matches!(a, NodeArg::Mapped(at) if *at < mapped);
        assert_eq!(args.iter().filter(in_host).count(), 2);
        assert!(args.iter().all(|a| !matches!(a, NodeArg::Buffer(Region::Arena | Region::State, _))));
        let full = loop_nodes(&plan, &layout, i, true).expect("nodes");
        assert!(full.body.iter().flat_map(|n| &n.after).all(|(_, kind)| *kind == EdgeKind::Full));
    }
    insta::assert_snapshot!(text);
}

#[test]
fn the_advance_reads_well() {
    let plan = compile(&Fixture::open("llama").graph(DType::BF16), "sm_90", DType::BF16, 2, (96, 1));
    let kernels = weft_codegen::emit(&plan).unwrap_or_else(|e| panic!("{e}"));
    let advance = kernels.iter().find(|k| k.name.starts_with("advance")).expect("a kernel");
    insta::assert_snapshot!(advance.source);
}
