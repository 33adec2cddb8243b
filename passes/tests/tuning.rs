//! Measured schedules: the database, what is taken from it for other shapes, and the loop that fills it, with times
//! and a clock of the tests' own.

use std::sync::Arc;
use weft_ir::dtype::DType;
use weft_ir::graph::parse;
use weft_ir::plan::{Compute, Plan, Role, Schedule, ScheduleSource, Work};
use weft_ir::shape::Bindings;
use weft_ir::target::{TARGETS, Target};
use weft_passes::schedule::candidates::{candidates, legal};
use weft_passes::schedule::database::{Database, Key, Measured, Shape, key};
use weft_passes::schedule::tune::{Outcome, Settings, Task, TaskReport, Timer, tasks, tune};
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
    Measured { schedule, ns: 1000, estimated_ns: 1200, tried: 4, of: 9, context: 1024 }
}

fn gemv_key(columns: usize, k: usize) -> Key {
    let shape = Shape::Gemv { columns, k, group: 1, computed: true };
    Key { target: "sm_90".into(), device: "H200".into(), dtype: DType::BF16, shape }
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
        ahead: 0,
        late: false,
    }
}

fn database(entries: &[(Key, Schedule)]) -> Database {
    let mut out = Database::default();
    entries.iter().for_each(|(k, s)| out.insert(k.clone(), measured(s.clone())));
    out
}

#[test]
fn the_text_reads_back_and_does_not_depend_on_the_order() {
    let attention = Shape::AttentionRow { kv_heads: 8, group: 4, head_dim: 128, value_dim: 128, keys: 1024 };
    let attention = Key { shape: attention, ..gemv_key(1, 1) };
    let row = Schedule::AttentionRow { warps: 8, heads: 2, depth: 2, splits: 1 };
    let (a, b) = ((gemv_key(640, 576), odd()), (attention, row));
    let one = database(&[a.clone(), b.clone()]);
    let text = one.text().expect("text");
    assert_eq!(text, database(&[b, a]).text().expect("text"));
    assert_eq!(Database::parse(&text), Ok(one.clone()));
    let lines: Vec<&str> = text.lines().filter(|l| l.starts_with("  (")).collect();
    assert_eq!(lines.len(), one.len());
    assert!(lines[0].contains("shape: Gemv(columns: 640, k: 576"), "{text}");
    assert!(text.starts_with("// ") && !text.contains("Empty"), "{text}");
}

#[test]
fn damaged_texts_say_where() {
    let good = database(&[(gemv_key(640, 576), odd())]).text().expect("text");
    let line = good.lines().find(|l| l.starts_with("  (")).expect("a line");
    let twice = good.replace(line, &format!("{line}\n{line}"));
    assert!(Database::parse(&twice).expect_err("twice").contains("two lines for H200"));
    let wrong = good.replace("warps", "wraps");
    let why = Database::parse(&wrong).expect_err("a field");
    assert!(why.contains("warps") && why.starts_with(|c: char| c.is_ascii_digit()), "{why}");
    assert!(Database::parse("[").is_err());
}

#[test]
fn what_ships_reads_and_is_legal() {
    let shipped = Database::shipped().expect("reads");
    assert_eq!(Database::parse(&shipped.text().expect("text")), Ok(shipped));
}

#[test]
fn merging_takes_the_newer() {
    let newer = Schedule::Gemv {
        rows: 1,
        warps: 8,
        lanes: 32,
        split: 1,
        columns: 1,
        depth: 2,
        blocks: 9,
        staged: true,
        resident: 1,
        ahead: 0,
        late: false,
    };
    let mut all = database(&[(gemv_key(640, 576), odd()), (gemv_key(1, 8), odd())]);
    all.merge(database(&[(gemv_key(640, 576), newer.clone()), (gemv_key(2, 8), odd())]));
    assert_eq!(all.len(), 3);
    assert_eq!(all.get(&gemv_key(640, 576)).map(|m| m.schedule.clone()), Some(newer));
}

#[test]
fn compiling_takes_what_was_measured_and_says_so() {
    let plain = plan_with(&linear(640, 576), target(), Database::default());
    assert!(plain.kernels.iter().all(|k| k.source == ScheduleSource::Estimated));
    let plan = plan_with(&linear(640, 576), target(), database(&[(gemv_key(640, 576), odd())]));
    let sources: Vec<ScheduleSource> = plan.kernels.iter().map(|k| k.source).collect();
    assert!(sources.contains(&ScheduleSource::Measured) && sources.contains(&ScheduleSource::Estimated));
    for entry in plan.entries.iter().filter(|e| e.role == Role::Decode) {
        let kernel = entry.kernels.values().map(|k| &plan.kernels[k.index()]);
        let kernel = kernel.into_iter().find(|k| k.source == ScheduleSource::Measured).expect("a kernel");
        let Schedule::Gemv { rows, warps, lanes, split, columns, .. } = kernel.schedule else { panic!() };
        assert_eq!((rows as usize, warps, lanes, split), (entry.bind.tokens, 4, 32, 2), "{}", entry.name);
        assert_eq!(columns, 2);
        if rows == 1 {
            assert_eq!(kernel.schedule, odd());
        }
    }
    // Other steps keep their families.
    let prefill = plan.entries.iter().rfind(|e| e.role == Role::Prefill).expect("an entry");
    let all = prefill.kernels.values().map(|k| &plan.kernels[k.index()].schedule);
    assert!(all.into_iter().any(|s| matches!(s, Schedule::Gemm { .. })));
    assert_eq!(Plan::from_ron(&plan.to_ron().expect("RON")).expect("a plan"), plan);
}

#[test]
fn the_nearest_shape_of_the_same_kind_is_taken() {
    let plan = plan_with(&linear(640, 576), target(), Database::default());
    let (work, bind) = product(&plan, 1);
    let split = |n| match odd() {
        Schedule::Gemv {
            rows, warps, lanes, columns, depth, blocks, staged, resident, ahead, late, ..
        } => Schedule::Gemv {
            rows,
            warps,
            lanes,
            split: n,
            columns,
            depth,
            blocks,
            staged,
            resident,
            ahead,
            late,
        },
        other => other,
    };
    let found = |entries: &[(Key, Schedule)]| database(entries).find(work, &bind, target());
    let split_of = |entries: &[(Key, Schedule)]| match found(entries) {
        Some((Schedule::Gemv { split, .. }, source)) => Some((split, source)),
        _ => None,
    };
    let (near, far) = (gemv_key(700, 576), gemv_key(640, 1152));
    use ScheduleSource::{Measured as M, Neighbour as N};
    assert_eq!(split_of(&[(near.clone(), split(1)), (far.clone(), split(4))]), Some((1, N)));
    assert_eq!(split_of(&[(far.clone(), split(4))]), Some((4, N)));
    assert_eq!(split_of(&[(near.clone(), split(1)), (gemv_key(640, 576), split(2))]), Some((2, M)));
    // Another type, group, prologue or target, or a shape out of reach, is no neighbour.
    let others = [
        Key { dtype: DType::F16, ..near.clone() },
        Key { target: "sm_100".into(), ..near.clone() },
        Key { shape: Shape::Gemv { columns: 700, k: 576, group: 2, computed: true }, ..near.clone() },
        Key { shape: Shape::Gemv { columns: 700, k: 576, group: 1, computed: false }, ..near.clone() },
        gemv_key(640 * 4, 576 * 4),
    ];
    for key in others {
        assert_eq!(found(&[(key.clone(), odd())]), None, "{key:?}");
    }
    // Another GPU of the family only where there is nothing of its usual one.
    let foreign = Key { device: "H100".into(), ..gemv_key(640, 576) };
    assert_eq!(split_of(&[(foreign.clone(), split(4))]), Some((4, M)));
    assert_eq!(split_of(&[(foreign, split(4)), (far, split(2))]), Some((2, N)));
    // A neighbour that is not legal here is passed over for the next.
    let broken = Schedule::Gemv {
        rows: 1,
        warps: 4,
        lanes: 16,
        split: 2,
        columns: 1,
        depth: 1,
        blocks: 1,
        staged: true,
        resident: 1,
        ahead: 0,
        late: false,
    };
    assert_eq!(split_of(&[(near, broken), (gemv_key(900, 576), split(1))]), Some((1, N)));
}

#[test]
fn attention_is_found_by_its_heads() {
    let key = |keys| {
        let shape = Shape::AttentionRow { kv_heads: 2, group: 6, head_dim: 64, value_dim: 64, keys };
        Key { shape, ..gemv_key(1, 1) }
    };
    let entries = database(&[(key(512), Schedule::AttentionRow { warps: 8, heads: 6, depth: 2, splits: 1 })]);
    let work = attention(2, 4, 64);
    let bind = Bindings { tokens: 1, seqs: 8, rows: 1, context: 512, slots: 4096 };
    // Six heads a block of six; of four, four. Splits are those that were measured, while there are keys for them.
    let with = |splits| {
        Some((Schedule::AttentionRow { warps: 8, heads: 4, depth: 2, splits }, ScheduleSource::Neighbour))
    };
    assert_eq!(entries.find(&work, &bind, target()), with(1));
    // It was measured with 1024 keys: where there are many more, there are as many splits as fill the GPU.
    assert_eq!(entries.find(&work, &Bindings { context: 2048, ..bind }, target()), with(1));
    assert_eq!(entries.find(&work, &Bindings { context: 4096, ..bind }, target()), with(64));
    let many = database(&[(key(1024), Schedule::AttentionRow { warps: 8, heads: 6, depth: 2, splits: 16 })]);
    assert_eq!(many.find(&work, &Bindings { context: 1024, ..bind }, target()), with(16));
    assert_eq!(many.find(&work, &bind, target()), with(8));
    // Of entries that differ in the context alone, the nearest.
    let mut both = many.clone();
    both.merge(database(&[(key(8192), Schedule::AttentionRow { warps: 4, heads: 6, depth: 2, splits: 64 })]));
    let warps = |context| match both.find(&work, &Bindings { context, ..bind }, target()) {
        Some((Schedule::AttentionRow { warps, .. }, ScheduleSource::Neighbour)) => Some(warps),
        _ => None,
    };
    assert_eq!((warps(2048), warps(4096)), (Some(8), Some(4)));
    // Many tokens are another matter.
    assert_eq!(entries.find(&work, &Bindings { tokens: 64, ..bind }, target()), None);
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

#[test]
fn candidates_are_legal_distinct_and_begin_with_the_estimate() {
    for target in TARGETS {
        for (n, k) in [(640, 576), (8192, 2048), (100, 33), (128_256, 2048), (4096, 14336)] {
            let plan = plan_with(&linear(n, k), target, Database::default());
            for tokens in [1, 8] {
                let (work, bind) = product(&plan, tokens);
                let all = candidates(work, &bind, target);
                assert!(all.len() > 20, "{n}×{k}: {}", all.len());
                assert_eq!(all[0], weft_passes::schedule::choose(work, &bind, target).0);
                for (i, s) in all.iter().enumerate().skip(1) {
                    legal(work, s, target).unwrap_or_else(|why| panic!("{n}×{k}: {s:?}: {why}"));
                    assert!(!all[..i].contains(s));
                }
                for s in &all {
                    let Schedule::Gemv { rows, blocks, .. } = s else { panic!("{s:?}") };
                    // A block takes fewer rows where their registers would be too many.
                    let rows_fit = (tokens.min(2)..=tokens).contains(&(*rows as usize));
                    assert!(rows_fit && *blocks <= 4 * target.profile.sms, "{n}×{k}: {s:?}");
                }
            }
        }
        let work = attention(8, 4, 128);
        let bind = Bindings { tokens: 2, seqs: 8, rows: 2, context: 512, slots: 4096 };
        let all = candidates(&work, &bind, target);
        assert!(all.len() > 10);
        assert!(all.iter().any(|s| matches!(s, Schedule::AttentionRow { heads: 4, .. })));
        assert!(candidates(&work, &Bindings { tokens: 64, ..bind }, target).is_empty());
    }
}

#[test]
fn what_is_not_legal_says_why() {
    let plan = plan_with(&linear(640, 576), target(), Database::default());
    let (work, _) = product(&plan, 1);
    let says = |s: Schedule, what: &str| {
        let why = legal(work, &s, target()).expect_err(what);
        assert!(why.contains(what), "{why}");
    };
    let gemv = |warps, lanes, split, columns, depth| Schedule::Gemv {
        rows: 1,
        warps,
        lanes,
        split,
        columns,
        depth,
        blocks: 1,
        staged: true,
        resident: 1,
        ahead: 0,
        late: false,
    };
    says(gemv(4, 16, 2, 1, 1), "teams of 16 lanes × 2");
    says(gemv(4, 32, 3, 1, 1), "teams");
    says(gemv(4, 32, 1, 8, 9), "registers");
    says(gemv(40, 32, 1, 1, 1), "warps");
    let five_of_16_warps = match gemv(16, 32, 1, 1, 1) {
        Schedule::Gemv { rows, warps, lanes, split, columns, depth, blocks, staged, .. } => Schedule::Gemv {
            rows,
            warps,
            lanes,
            split,
            columns,
            depth,
            blocks,
            staged,
            resident: 5,
            ahead: 0,
            late: false,
        },
        other => other,
    };
    says(five_of_16_warps, "5 blocks of 16 warps on an SM");
    says(Schedule::AttentionRow { warps: 4, heads: 1, depth: 1, splits: 1 }, "another family");
}

/// Times by schedule, on a clock that each measurement moves.
struct Recorded {
    clock: f64,
    /// Seconds that a measurement takes of the budget.
    each: f64,
    time: fn(&Schedule) -> Result<Vec<f64>, String>,
    calls: Vec<(String, Schedule)>,
    prepared: usize,
}

impl Recorded {
    fn new(each: f64, time: fn(&Schedule) -> Result<Vec<f64>, String>) -> Recorded {
        Recorded { clock: 0.0, each, time, calls: Vec::new(), prepared: 0 }
    }
}

impl Timer for Recorded {
    fn elapsed(&self) -> f64 {
        self.clock
    }

    fn prepare(&mut self, _: &Task, schedules: &[Schedule]) {
        self.prepared += schedules.len();
    }

    fn time(&mut self, task: &Task, schedule: &Schedule) -> Result<Vec<f64>, String> {
        self.clock += self.each;
        self.calls.push((task.name.clone(), schedule.clone()));
        (self.time)(schedule)
    }
}

fn row(warps: u32, heads: u32) -> Schedule {
    Schedule::AttentionRow { warps, heads, depth: 1, splits: 1 }
}

fn task(name: &str, columns: usize, candidates: Vec<Schedule>) -> Task {
    Task { key: gemv_key(columns, 64), work: 0, name: name.into(), candidates }
}

fn run(tasks: &[Task], database: &mut Database, budget: f64, timer: &mut Recorded) -> Vec<TaskReport> {
    let settings = Settings { budget, context: 64, again: false };
    let saved = &mut |_: &Database, _, _| Ok::<(), ()>(());
    tune(tasks, database, &settings, timer, saved).expect("saves")
}

/// Microseconds are the warps; samples come in any order.
fn by_warps(s: &Schedule) -> Result<Vec<f64>, String> {
    let Schedule::AttentionRow { warps, heads, .. } = s else { return Err("another family".into()) };
    match heads {
        7 => Err("it does not launch".into()),
        8 => Ok(Vec::new()),
        9 => Ok(vec![f64::NAN]),
        _ => {
            let t = f64::from(*warps) * 1e-6;
            Ok(vec![t * 50.0, t, t * 0.9])
        }
    }
}

#[test]
fn the_lowest_median_wins_and_the_first_of_equals() {
    let candidates = vec![row(8, 1), row(4, 1), row(4, 2), row(16, 1)];
    let (mut database, mut timer) = (Database::default(), Recorded::new(1.0, by_warps));
    let reports = run(&[task("a", 1, candidates)], &mut database, 100.0, &mut timer);
    let kept = database.get(&gemv_key(1, 64)).expect("kept");
    assert_eq!(kept.schedule, row(4, 1));
    assert_eq!((kept.ns, kept.estimated_ns, kept.tried, kept.of, kept.context), (4000, 8000, 4, 4, 64));
    assert_eq!(reports[0].outcome, Outcome::Tuned(kept.clone()));
    // Those of four warps are near enough to be looked at in a step; what is kept is there for later steps.
    assert_eq!(timer.prepared, 4 + 2 + 1);
}

/// Launches take as long as [`by_warps`] says; steps take another time.
struct Steps {
    alone: Recorded,
    step: fn(&Schedule) -> Result<Vec<f64>, String>,
    /// What was timed in a step, beside what was kept by then.
    timed: Vec<(Schedule, usize)>,
    kept: Vec<(String, Schedule)>,
}

impl Steps {
    fn new(each: f64, step: fn(&Schedule) -> Result<Vec<f64>, String>) -> Steps {
        Steps { alone: Recorded::new(each, by_warps), step, timed: Vec::new(), kept: Vec::new() }
    }
}

impl Timer for Steps {
    fn elapsed(&self) -> f64 {
        self.alone.clock
    }

    fn prepare(&mut self, task: &Task, schedules: &[Schedule]) {
        self.alone.prepare(task, schedules);
    }

    fn time(&mut self, task: &Task, schedule: &Schedule) -> Result<Vec<f64>, String> {
        self.alone.time(task, schedule)
    }

    fn time_in_step(&mut self, _: &Task, schedule: &Schedule) -> Result<Vec<f64>, String> {
        self.alone.clock += self.alone.each;
        self.timed.push((schedule.clone(), self.kept.len()));
        (self.step)(schedule)
    }

    fn keep(&mut self, task: &Task, schedule: &Schedule) {
        self.kept.push((task.name.clone(), schedule.clone()));
    }
}

/// The more warps, the faster the step; with two heads it does not run.
fn more_warps_are_faster(s: &Schedule) -> Result<Vec<f64>, String> {
    match s {
        Schedule::AttentionRow { heads: 2, .. } => Err("no room in a step".into()),
        Schedule::AttentionRow { warps, .. } => Ok(vec![1.0 / f64::from(*warps)]),
        _ => Err("another family".into()),
    }
}

#[test]
fn the_finalist_with_the_fastest_step_wins() {
    // 15 µs is more than 1.4 times the fastest: it is not looked at in a step, where it would win.
    let candidates = vec![row(15, 1), row(12, 1), row(10, 1), row(11, 2), row(13, 1), row(2, 7)];
    let tasks =
        [task("a", 1, candidates), task("b", 2, vec![row(6, 1), row(5, 1)]), task("c", 3, vec![row(9, 1)])];
    let (mut database, mut timer) = (Database::default(), Steps::new(1.0, more_warps_are_faster));
    let settings = Settings { budget: 1000.0, context: 64, again: false };
    let saved = &mut |_: &Database, _, _| Ok::<(), ()>(());
    let reports = tune(&tasks, &mut database, &settings, &mut timer, saved).expect("saves");
    // The fastest alone first, and with what earlier tasks kept.
    let timed: Vec<(Schedule, usize)> = vec![
        (row(10, 1), 0),
        (row(11, 2), 0),
        (row(12, 1), 0),
        (row(13, 1), 0),
        (row(5, 1), 1),
        (row(6, 1), 1),
    ];
    assert_eq!(timer.timed, timed);
    // A task with one candidate has nothing to choose.
    let kept = [("a", row(13, 1)), ("b", row(6, 1)), ("c", row(9, 1))];
    assert_eq!(timer.kept, kept.map(|(name, s)| (name.to_owned(), s)));
    // What is noted is the time of a launch alone, of the estimate's too.
    let noted =
        |n| database.get(&gemv_key(n, 64)).map(|m| (m.schedule.clone(), m.ns, m.estimated_ns, m.tried));
    assert_eq!(noted(1), Some((row(13, 1), 13_000, 15_000, 5)));
    assert_eq!(noted(2), Some((row(6, 1), 6000, 6000, 2)));
    let why: Vec<(Schedule, &str)> =
        reports[0].failures.iter().map(|(s, why)| (s.clone(), why.as_str())).collect();
    assert_eq!(why, [(row(2, 7), "it does not launch"), (row(11, 2), "no room in a step")]);
}

#[test]
fn without_a_step_that_runs_the_fastest_alone_is_kept() {
    let tasks = [task("a", 1, vec![row(6, 2), row(5, 2)])];
    let (mut database, mut timer) = (Database::default(), Steps::new(1.0, more_warps_are_faster));
    let settings = Settings { budget: 1000.0, context: 64, again: false };
    let saved = &mut |_: &Database, _, _| Ok::<(), ()>(());
    tune(&tasks, &mut database, &settings, &mut timer, saved).expect("saves");
    assert_eq!(timer.timed.len(), 2);
    assert_eq!(timer.kept, [("a".to_owned(), row(5, 2))]);
    assert_eq!(database.get(&gemv_key(1, 64)).map(|m| (m.schedule.clone(), m.ns)), Some((row(5, 2), 5000)));
}

#[test]
fn time_for_steps_is_left_and_ends_too() {
    let many: Vec<Schedule> = (1..=40).map(|w| row(141 - w, 1)).collect();
    let (mut database, mut timer) = (Database::default(), Steps::new(1.0, more_warps_are_faster));
    let settings = Settings { budget: 10.0, context: 64, again: false };
    let saved = &mut |_: &Database, _, _| Ok::<(), ()>(());
    tune(&[task("a", 1, many)], &mut database, &settings, &mut timer, saved).expect("saves");
    // Five of ten seconds alone, from the estimate's 140 warps down to 136; then in steps, from the fastest up.
    assert_eq!(timer.alone.calls.len(), 5);
    assert_eq!(
        timer.timed.iter().map(|(s, _)| s.clone()).collect::<Vec<_>>(),
        (136..140).map(|w| row(w, 1)).collect::<Vec<_>>()
    );
    assert_eq!(timer.kept, [("a".to_owned(), row(139, 1))]);
    assert!(timer.alone.clock <= 10.0);
}

/// What a product's blocks prefetch, and when dependents start, is chosen by steps of the fastest.
#[test]
fn prefetches_are_refined_in_steps() {
    let of = |s: &Schedule| match s {
        Schedule::Gemv { ahead, late, .. } => (*ahead, *late),
        other => panic!("{other:?}"),
    };
    fn best_is_late_with_some(s: &Schedule) -> Result<Vec<f64>, String> {
        let Schedule::Gemv { ahead, late, .. } = s else { return Err("another family".into()) };
        Ok(vec![1.0 + (f64::from(*ahead) - 20_000.0).abs() / 1e4 + if *late { 0.0 } else { 1.0 }])
    }
    let tasks = [Task { key: gemv_key(1, 65_536), ..task("a", 1, vec![odd()]) }];
    let mut timer = Steps::new(1.0, best_is_late_with_some);
    timer.alone.time = |_| Ok(vec![1e-6]);
    let mut database = Database::default();
    let settings = Settings { budget: 1000.0, context: 64, again: false };
    let saved = &mut |_: &Database, _, _| Ok::<(), ()>(());
    tune(&tasks, &mut database, &settings, &mut timer, saved).expect("saves");
    let timed: Vec<(u32, bool)> = timer.timed.iter().map(|(s, _)| of(s)).collect();
    let (some, late) = of(&timer.kept[0].1);
    assert!(late && some > 0 && timed.contains(&(some, false)), "{timed:?}");
    let least =
        timed.iter().map(|(ahead, _)| (f64::from(*ahead) - 20_000.0).abs()).fold(f64::INFINITY, f64::min);
    assert_eq!((f64::from(some) - 20_000.0).abs(), least);
    let kept = database.get(&gemv_key(1, 65_536)).map(|m| of(&m.schedule));
    assert_eq!(kept, Some((some, late)));
}

#[test]
fn candidates_that_fail_are_reported_and_passed_over() {
    let candidates = vec![row(2, 7), row(8, 1), row(1, 8), row(1, 9), row(6, 1)];
    let (mut database, mut timer) = (Database::default(), Recorded::new(1.0, by_warps));
    let tasks = [task("a", 1, candidates), task("b", 2, vec![row(1, 7)])];
    let reports = run(&tasks, &mut database, 100.0, &mut timer);
    assert_eq!(
        database.get(&gemv_key(1, 64)).map(|m| (m.schedule.clone(), m.estimated_ns, m.tried)),
        Some((row(6, 1), 0, 2))
    );
    let why: Vec<&str> = reports[0].failures.iter().map(|(_, why)| why.as_str()).collect();
    assert_eq!(why, ["it does not launch", "no time was measured", "no time was measured"]);
    assert_eq!(reports[1].outcome, Outcome::Failed);
    assert_eq!(database.len(), 1);
}

#[test]
fn the_budget_is_shared_and_what_is_known_is_not_measured_again() {
    let many = || (1..=40).map(|w| row(41 - w, 1)).collect::<Vec<_>>();
    let tasks = [task("a", 1, many()), task("b", 2, many()), task("c", 3, many())];
    let (mut database, mut timer) = (Database::default(), Recorded::new(1.0, by_warps));
    let reports = run(&tasks, &mut database, 30.0, &mut timer);
    let tried = |r: &TaskReport| match &r.outcome {
        Outcome::Tuned(m) => m.tried,
        _ => 0,
    };
    assert_eq!(reports.iter().map(tried).collect::<Vec<_>>(), [5, 6, 6]);
    assert_eq!((timer.calls.len(), timer.clock), (29, 29.0));
    // Of the last ten seconds nothing was left for others.
    let (mut second, mut late) = (Database::default(), Recorded::new(20.0, by_warps));
    let reports = run(&tasks, &mut second, 30.0, &mut late);
    let outcomes: Vec<bool> = reports.iter().map(|r| r.outcome == Outcome::NotReached).collect();
    assert_eq!(outcomes, [false, false, true]);
    assert_eq!(second.len(), 2);
    // Again: what is there is skipped, and all the time is the rest's.
    let mut again = Recorded::new(1.0, by_warps);
    let reports = run(&tasks, &mut second, 30.0, &mut again);
    assert_eq!(reports[0].outcome, Outcome::Known);
    // 15 alone, down to 26 µs; the eleven of up to 1.4 times that in steps.
    assert_eq!((tried(&reports[2]), again.calls.len()), (15, 15 + 11));
    assert!(again.calls.iter().all(|(name, _)| name == "c"));
}

#[test]
fn known_shapes_are_measured_again_when_asked_and_faults_of_the_file_end_it() {
    let tasks = [task("a", 1, vec![row(4, 1)]), task("b", 2, vec![row(4, 1)])];
    let mut database = database(&[(gemv_key(1, 64), row(9, 1))]);
    let settings = Settings { budget: 10.0, context: 64, again: true };
    let mut timer = Recorded::new(1.0, by_warps);
    let mut told = Vec::new();
    let mut saved = |d: &Database, done: usize, all: usize| {
        told.push((d.len(), done, all));
        if told.len() < 2 { Ok(()) } else { Err("the disk is full") }
    };
    let end = tune(&tasks, &mut database, &settings, &mut timer, &mut saved);
    assert_eq!(end, Err("the disk is full"));
    assert_eq!(told, [(1, 1, 2), (2, 2, 2)]);
    assert_eq!(database.get(&gemv_key(1, 64)).map(|m| m.schedule.clone()), Some(row(4, 1)));
}

#[test]
fn a_plan_has_one_task_for_each_shape() {
    let plan = plan_with(&linear(640, 576), target(), Database::default());
    let entry = plan.entries.iter().find(|e| e.name == "decode_1").expect("an entry");
    let all = tasks(&plan, entry, target(), "H200");
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].key, gemv_key(640, 576));
    let (work, bind) = product(&plan, 1);
    assert_eq!(key(work, &bind, target(), "H200"), Some(gemv_key(640, 576)));
    // The same in every decode bucket, so that a row's sums have one order.
    assert_eq!(key(work, &Bindings { tokens: 8, ..bind }, target(), "H200"), Some(gemv_key(640, 576)));
}
