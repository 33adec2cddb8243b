//! The loop that measures, with times and a clock of the tests' own.

use crate::{database, gemv_key, linear, odd, plan_with, product, target};
use weft_ir::plan::Schedule;
use weft_ir::shape::Bindings;
use weft_passes::schedule::database::{Database, Key, Measured, StepTimes, key};
use weft_passes::schedule::tune::{Outcome, Settings, Task, TaskReport, Timer, tasks, tune};

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
    Schedule::AttentionRow { warps, heads, depth: 1, splits: 1, cluster: 1, late: false }
}

fn task(name: &str, columns: usize, candidates: Vec<Schedule>) -> Task {
    Task { key: gemv_key(columns, 64), work: 0, name: name.into(), candidates, chosen: 1, stays: false }
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
    // Those of four warps are near enough to be looked at in a step, and the estimate's is in any case; the two are as
    // fast, so they are timed again, beside the estimate's; what is kept is there for later steps.
    assert_eq!(timer.prepared, 4 + 3 + 3 + 1);
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
    let candidates = vec![row(12, 1), row(15, 1), row(10, 1), row(11, 2), row(13, 1), row(2, 7)];
    let tasks =
        [task("a", 1, candidates), task("b", 2, vec![row(6, 1), row(5, 1)]), task("c", 3, vec![row(9, 1)])];
    let (mut database, mut timer) = (Database::default(), Steps::new(1.0, more_warps_are_faster));
    let settings = Settings { budget: 1000.0, context: 64, again: false };
    let saved = &mut |_: &Database, _, _| Ok::<(), ()>(());
    let reports = tune(&tasks, &mut database, &settings, &mut timer, saved).expect("saves");
    // The fastest alone first, and with what earlier tasks kept; the best and the estimate's again, in turns, where they
    // are two.
    let mut timed: Vec<(Schedule, usize)> =
        [row(10, 1), row(11, 2), row(12, 1), row(13, 1)].map(|s| (s, 0)).to_vec();
    for _ in 0..3 {
        timed.extend([(row(12, 1), 0), (row(13, 1), 0)]);
    }
    timed.extend([(row(5, 1), 1), (row(6, 1), 1)]);
    assert_eq!(timer.timed, timed);
    // What decided, beside what the estimate's step took.
    let step = |n| database.get(&gemv_key(n, 64)).and_then(|m| m.step);
    let ns = |warps: f64| (1e9 / warps).round() as u64;
    assert_eq!(step(1), Some(StepTimes { ns: ns(13.0), estimated_ns: ns(12.0) }));
    assert_eq!((step(2), step(3)), (None, None));
    // A task with one candidate has nothing to choose.
    let kept = [("a", row(13, 1)), ("b", row(6, 1)), ("c", row(9, 1))];
    assert_eq!(timer.kept, kept.map(|(name, s)| (name.to_owned(), s)));
    // What is noted is the time of a launch alone, of the estimate's too.
    let noted =
        |n| database.get(&gemv_key(n, 64)).map(|m| (m.schedule.clone(), m.ns, m.estimated_ns, m.tried));
    assert_eq!(noted(1), Some((row(13, 1), 13_000, 12_000, 5)));
    assert_eq!(noted(2), Some((row(6, 1), 6000, 6000, 2)));
    let why: Vec<(Schedule, &str)> =
        reports[0].failures.iter().map(|(s, why)| (s.clone(), why.as_str())).collect();
    assert_eq!(why, [(row(2, 7), "it does not launch"), (row(11, 2), "no room in a step")]);
}

/// However slow it is alone, so that no step becomes slower by tuning.
#[test]
fn what_was_chosen_before_is_timed_in_a_step() {
    let candidates = vec![row(30, 1), row(20, 1), row(10, 1), row(40, 1)];
    let tasks = [Task { chosen: 2, ..task("a", 1, candidates) }];
    let (mut database, mut timer) = (Database::default(), Steps::new(1.0, more_warps_are_faster));
    let known =
        Measured { schedule: row(25, 1), ns: 1, estimated_ns: 1, tried: 1, of: 1, context: 64, step: None };
    database.insert(gemv_key(1, 64), known);
    let settings = Settings { budget: 1000.0, context: 64, again: true };
    let saved = &mut |_: &Database, _, _| Ok::<(), ()>(());
    tune(&tasks, &mut database, &settings, &mut timer, saved).expect("saves");
    let timed: Vec<Schedule> = timer.timed.iter().map(|(s, _)| s.clone()).collect();
    assert_eq!(timed, [row(20, 1), row(25, 1), row(30, 1), row(10, 1)]);
    // What the file has stands beside what is timed until then.
    assert_eq!(timer.kept, [row(25, 1), row(30, 1)].map(|s| ("a".to_owned(), s)));
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

/// A product's line for any longest context is known for each, stands beside what is timed, and stays when one for a plan's
/// own is measured (`--again`), among whose candidates it is.
#[test]
fn a_line_for_any_longest_context_stays() {
    let within = |longest| Key { longest, ..gemv_key(1, 64) };
    let own = Task { key: within(Some(1280)), ..task("a", 1, vec![row(6, 1), row(9, 1)]) };
    let mut database = database(&[(gemv_key(1, 64), row(4, 1)), (within(Some(4096)), row(3, 1))]);
    let mut timer = Steps::new(1.0, more_warps_are_faster);
    let saved = &mut |_: &Database, _, _| Ok::<(), ()>(());
    let settings = Settings { budget: 1000.0, context: 64, again: false };
    let all = std::slice::from_ref(&own);
    let reports = tune(all, &mut database, &settings, &mut timer, saved).expect("saves");
    assert_eq!((&reports[0].outcome, database.len()), (&Outcome::Known, 2));
    assert_eq!(timer.kept, [("a".to_owned(), row(4, 1))]);
    let again = Settings { again: true, ..settings };
    let reports = tune(all, &mut database, &again, &mut timer, saved).expect("saves");
    assert!(matches!(reports[0].outcome, Outcome::Tuned(_)), "{reports:?}");
    assert!(timer.timed.iter().any(|(s, _)| *s == row(4, 1)), "{:?}", timer.timed);
    let kept = |longest| database.get(&within(longest)).map(|m| m.schedule.clone());
    assert_eq!(kept(None), Some(row(4, 1)));
    assert_eq!(kept(Some(4096)), Some(row(3, 1)));
    assert!(kept(Some(1280)).is_some());
}

#[test]
fn time_for_steps_is_left_and_ends_too() {
    let many: Vec<Schedule> = (1..=40).map(|w| row(141 - w, 1)).collect();
    let (mut database, mut timer) = (Database::default(), Steps::new(1.0, more_warps_are_faster));
    let settings = Settings { budget: 10.0, context: 64, again: false };
    let saved = &mut |_: &Database, _, _| Ok::<(), ()>(());
    tune(&[task("a", 1, many)], &mut database, &settings, &mut timer, saved).expect("saves");
    // Four of ten seconds alone, from the estimate's 140 warps down to 137; two in steps, from the fastest up; then what
    // is beside the best, each alone and in a step.
    let alone: Vec<&Schedule> = timer.alone.calls.iter().map(|(_, s)| s).collect();
    let expected: Vec<Schedule> = [140, 139, 138, 137, 136, 135].map(|w| row(w, 1)).to_vec();
    assert_eq!(alone, expected.iter().collect::<Vec<_>>());
    let timed: Vec<&Schedule> = timer.timed.iter().map(|(s, _)| s).collect();
    let expected: Vec<Schedule> = [137, 138, 136, 135].map(|w| row(w, 1)).to_vec();
    assert_eq!(timed, expected.iter().collect::<Vec<_>>());
    assert_eq!(timer.kept, [("a".to_owned(), row(138, 1))]);
    assert!(timer.alone.clock <= 10.0);
}

/// What is not to be measured is only there for the steps of the others, as it is in the database; what is neither is
/// reported so.
#[test]
fn what_stays_stands_beside_what_is_timed() {
    let stays = |t: Task| Task { stays: true, ..t };
    let tasks = [
        task("a", 1, vec![row(6, 1), row(5, 1)]),
        stays(task("b", 2, vec![row(9, 1)])),
        stays(task("c", 3, vec![row(9, 1)])),
    ];
    let mut database = database(&[(gemv_key(2, 64), row(7, 1))]);
    let mut timer = Steps::new(1.0, more_warps_are_faster);
    let settings = Settings { budget: 1000.0, context: 64, again: true };
    let saved = &mut |_: &Database, _, _| Ok::<(), ()>(());
    let reports = tune(&tasks, &mut database, &settings, &mut timer, saved).expect("saves");
    assert!(matches!(reports[0].outcome, Outcome::Tuned(_)), "{:?}", reports[0]);
    assert_eq!([&reports[1].outcome, &reports[2].outcome], [&Outcome::Known, &Outcome::Left]);
    assert_eq!(timer.timed[0], (row(5, 1), 1));
    assert_eq!(timer.kept, [("b", row(7, 1)), ("a", row(6, 1))].map(|(name, s)| (name.to_owned(), s)));
    assert_eq!(database.len(), 2);
}

/// A schedule of one row is not that of two.
#[test]
fn what_was_measured_with_other_rows_does_not_stand_beside() {
    let mut two = odd();
    if let Schedule::Gemv { rows, .. } = &mut two {
        *rows = 2;
    }
    let tasks = [Task { stays: true, ..task("a", 1, vec![two]) }];
    let mut database = database(&[(gemv_key(1, 64), odd())]);
    let mut timer = Steps::new(1.0, more_warps_are_faster);
    let settings = Settings { budget: 10.0, context: 64, again: false };
    let saved = &mut |_: &Database, _, _| Ok::<(), ()>(());
    tune(&tasks, &mut database, &settings, &mut timer, saved).expect("saves");
    assert!(timer.kept.is_empty(), "{:?}", timer.kept);
}

/// Steps whose times vary: the first of each schedule, and those that follow.
struct Lucky {
    clock: f64,
    seen: Vec<Schedule>,
    kept: Option<Schedule>,
}

impl Timer for Lucky {
    fn elapsed(&self) -> f64 {
        self.clock
    }

    fn prepare(&mut self, _: &Task, _: &[Schedule]) {}

    fn time(&mut self, _: &Task, _: &Schedule) -> Result<Vec<f64>, String> {
        self.clock += 1.0;
        Ok(vec![1e-6])
    }

    fn time_in_step(&mut self, _: &Task, schedule: &Schedule) -> Result<Vec<f64>, String> {
        self.clock += 1.0;
        let Schedule::AttentionRow { warps, .. } = schedule else { return Err("another family".into()) };
        let first = !self.seen.contains(schedule);
        self.seen.push(schedule.clone());
        // Three warps are the luckiest at first, and two the fastest.
        Ok(match (warps, first) {
            (3, true) => vec![0.998],
            (2, _) => vec![1.0],
            _ => vec![1.004],
        })
    }

    fn keep(&mut self, _: &Task, schedule: &Schedule) {
        self.kept = Some(schedule.clone());
    }
}

#[test]
fn those_that_are_as_fast_are_timed_again() {
    let tasks = [task("a", 1, vec![row(1, 1), row(2, 1), row(3, 1), row(4, 1)])];
    let settings = Settings { budget: 1000.0, context: 64, again: false };
    let (mut database, saved) = (Database::default(), &mut |_: &Database, _, _| Ok::<(), ()>(()));
    let mut timer = Lucky { clock: 0.0, seen: Vec::new(), kept: None };
    let reports = tune(&tasks, &mut database, &settings, &mut timer, saved).expect("saves");
    assert_eq!(timer.kept, Some(row(2, 1)));
    assert_eq!(database.get(&gemv_key(1, 64)).map(|m| m.schedule.clone()), Some(row(2, 1)));
    // Each once, and again with the times of three turns.
    assert_eq!((timer.seen.len(), reports[0].finalists.len()), (4 + 3 * 4, 4 + 4));
}

/// What is one choice beside the best is timed with its prefetches and trigger, and what is beside that if it is better.
#[test]
fn the_search_goes_on_beside_the_best() {
    fn deep_narrow_and_late(s: &Schedule) -> Result<Vec<f64>, String> {
        let Schedule::Gemv { columns, depth, ahead, late, .. } = s else {
            return Err("another family".into());
        };
        Ok(vec![
            f64::from(*columns) - f64::from(*depth) + f64::from(u8::from(!late)) + f64::from(*ahead) + 40.0,
        ])
    }
    let with = |n: u32, deep: u32| {
        let mut s = odd();
        if let Schedule::Gemv { columns, depth, .. } = &mut s {
            (*columns, *depth) = (n, deep);
        }
        s
    };
    // The time for kernels alone ends with those that do not run; the last differs from the first in both.
    let mut candidates = vec![with(8, 1)];
    candidates.extend((0..24).map(|w| row(w, 7)));
    candidates.extend([with(4, 3), with(4, 1), with(2, 2), with(4, 2), with(2, 3)]);
    let tasks = [Task { key: gemv_key(1, 65_536), ..task("a", 1, candidates) }];
    let mut timer = Steps::new(1.0, deep_narrow_and_late);
    fn alike(s: &Schedule) -> Result<Vec<f64>, String> {
        if matches!(s, Schedule::Gemv { .. }) { Ok(vec![1e-6]) } else { Err("it does not launch".into()) }
    }
    timer.alone.time = alike;
    let settings = Settings { budget: 60.0, context: 64, again: false };
    let saved = &mut |_: &Database, _, _| Ok::<(), ()>(());
    let mut database = Database::default();
    tune(&tasks, &mut database, &settings, &mut timer, saved).expect("saves");
    let kept = timer.kept[0].1.clone();
    let Schedule::Gemv { columns, depth, late, .. } = kept else { panic!("{kept:?}") };
    assert_eq!((columns, depth, late), (2, 3, true), "{:?}", timer.timed);
    let steps = timer.timed.len();
    let tried = database.get(&gemv_key(1, 65_536)).map_or(0, |m| m.tried);
    assert!((2..steps).contains(&tried), "{tried} of {steps}");
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
    let behind = |s: &Schedule| matches!(s, Schedule::Gemv { behind, .. } if *behind > 0);
    assert!(timer.timed.iter().any(|(s, _)| behind(s)), "{:?}", timer.timed);
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
    // Four alone, two in steps, and two beside the best, each alone and in a step.
    assert_eq!(reports.iter().map(tried).collect::<Vec<_>>(), [6, 6, 6]);
    assert_eq!((timer.calls.len(), timer.clock), (30, 30.0));
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
    // 12 alone, down to 29 µs, and six in steps; then each alone and in a step, but for the tenth in which those that are
    // as fast would be timed again: none is.
    assert_eq!((tried(&reports[2]), again.calls.len()), (12 + 5, 28));
    assert!(again.calls.iter().all(|(name, _)| name == "c"));
}

#[test]
fn known_shapes_are_measured_again_when_asked_and_faults_of_the_file_end_it() {
    let tasks = [task("a", 1, vec![row(4, 1)]), task("b", 2, vec![row(4, 1)])];
    let mut database = database(&[(gemv_key(1, 64), row(9, 1))]);
    let settings = Settings { budget: 20.0, context: 64, again: true };
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
    let (work, bind) = product(&plan, 1);
    let expected = Some(Key { longest: Some(bind.context), ..gemv_key(640, 576) });
    assert_eq!(Some(&all[0].key), expected.as_ref());
    assert_eq!(key(work, &bind, target(), "H200"), expected);
    // The same in every decode bucket, so that a row's sums have one order.
    assert_eq!(key(work, &Bindings { tokens: 8, ..bind }, target(), "H200"), expected);
}
