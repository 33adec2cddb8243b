//! The database: its text, and what is taken from it for other shapes.

use crate::{attention, database, gemv_key, linear, odd, plan_with, product, projecting, target};
use weft_ir::dtype::DType;
use weft_ir::plan::{Plan, Role, Schedule, ScheduleSource, Work};
use weft_ir::shape::Bindings;
use weft_passes::schedule::database::{Database, Key, Measured, Shape, StepTimes};

/// A schedule that the estimate never makes: a team of two warps.
#[test]
fn the_text_reads_back_and_does_not_depend_on_the_order() {
    let attention = Shape::AttentionRow {
        kv_heads: 8,
        group: 4,
        head_dim: 128,
        value_dim: 128,
        keys: 1024,
        made: false,
        projected: 0,
    };
    let attention = Key { shape: attention, ..gemv_key(1, 1) };
    let row = Schedule::AttentionRow { warps: 8, heads: 2, depth: 2, splits: 1, cluster: 1, late: false };
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

/// Of a left operand that each block computes, one row alone is asked for ahead of the other loads.
#[test]
fn first_loads_are_shared_out_for_one_row() {
    let mut parted = odd();
    if let Schedule::Gemv { behind, .. } = &mut parted {
        *behind = 4;
    }
    let plan = plan_with(&linear(640, 576), target(), database(&[(gemv_key(640, 576), parted.clone())]));
    let found = |tokens: usize| {
        let entry = plan.entries.iter().find(|e| e.role == Role::Decode && e.bind.tokens == tokens);
        let kernels = entry.expect("an entry").kernels.values().map(|k| &plan.kernels[k.index()]);
        let measured = kernels.into_iter().find(|k| k.source == ScheduleSource::Measured);
        measured.expect("a kernel").schedule.clone()
    };
    assert_eq!(found(1), parted);
    let Schedule::Gemv { rows, behind, .. } = found(2) else { panic!() };
    assert_eq!((rows, behind), (2, 0));
}

/// A schedule that is slower alone than the estimate's won beside kernels that are no more (`weft tune --again`): the
/// output projection of Qwen3-4B kept one that took 6.9 µs, of 5.8. What is kept for its step has the steps' times. One
/// line of before these were kept is known: the attention of Llama-3.1-8B up to 1280 keys, which is slower alone by 2.8%
/// (docs/performance.md has the whole token).
#[test]
fn what_ships_is_not_slower_than_the_estimate() {
    let shipped = Database::shipped().expect("reads");
    let taken_for_its_step = Shape::AttentionRow {
        kv_heads: 8,
        group: 4,
        head_dim: 128,
        value_dim: 128,
        keys: 1280,
        made: false,
        projected: 0,
    };
    let is_slower = |m: &Measured| match m.step {
        Some(step) => step.ns > step.estimated_ns,
        None => m.ns as f64 > 1.02 * m.estimated_ns as f64,
    };
    let slower: Vec<_> = shipped.iter().filter(|(_, m)| is_slower(m)).collect();
    let unknown: Vec<_> = slower.iter().filter(|(key, _)| key.shape != taken_for_its_step).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert!(slower.iter().all(|(_, m)| (m.ns, m.estimated_ns) == (4188, 4075)), "{slower:?}");
}

/// Of lines for one product that of the plan's longest context is taken, else that for any, else the nearest.
#[test]
fn a_product_has_a_schedule_for_each_longest_context() {
    let wide = |of: u32| {
        let mut schedule = odd();
        if let Schedule::Gemv { warps, .. } = &mut schedule {
            *warps = of;
        }
        schedule
    };
    let within = |longest| Key { longest, ..gemv_key(640, 576) };
    let plan = plan_with(&linear(640, 576), target(), Database::default());
    let (work, bind) = product(&plan, 1);
    let found = |lines: &[(Option<usize>, u32)], context| {
        let lines: Vec<_> = lines.iter().map(|(longest, warps)| (within(*longest), wide(*warps))).collect();
        let (schedule, source) = database(&lines).find(work, &Bindings { context, ..bind }, target())?;
        let Schedule::Gemv { warps, .. } = schedule else { panic!() };
        Some((warps, source))
    };
    let all = [(None, 4), (Some(1280), 6), (Some(4096), 8)];
    assert_eq!(found(&all, 1280), Some((6, ScheduleSource::Measured)));
    assert_eq!(found(&all, 1270), Some((6, ScheduleSource::Measured)));
    assert_eq!(found(&all, 1281), Some((4, ScheduleSource::Measured)));
    assert_eq!(found(&all, 4000), Some((8, ScheduleSource::Measured)));
    // A shorter one is farther than one of as many times more.
    assert_eq!(found(&all[1..], 1400), Some((6, ScheduleSource::Neighbour)));
    assert_eq!(found(&all[1..], 2048), Some((8, ScheduleSource::Neighbour)));
    assert_eq!(found(&all[1..2], 131_072), Some((6, ScheduleSource::Neighbour)));
    // Its text is read again, and what is known is what compiling takes as measured.
    let lines: Vec<_> = all.iter().map(|(longest, warps)| (within(*longest), wide(*warps))).collect();
    let kept = database(&lines);
    assert_eq!(Database::parse(&kept.text().expect("text")), Ok(kept.clone()));
    let known = |d: &Database, n| d.known(&within(Some(n))).map(|m| m.schedule.clone());
    assert_eq!((known(&kept, 1280), known(&kept, 2048)), (Some(wide(6)), Some(wide(4))));
    assert_eq!(known(&database(&lines[1..]), 2048), None);
    let taken = |d: &Database, n| d.taken(&within(Some(n))).map(|m| m.schedule.clone());
    assert_eq!((taken(&kept, 2048), taken(&database(&lines[1..]), 2048)), (Some(wide(4)), Some(wide(8))));
    for (longest, why) in [
        ("9999999999999", "longest: 9999999999999, at most"),
        ("4000", "longest: 4000, only of a product, and as 4096"),
    ] {
        let text = kept.text().expect("text").replace("Some(4096)", &format!("Some({longest})"));
        let error = Database::parse(&text).expect_err(why);
        assert!(error.contains(why), "{error}");
    }
    let attention = Shape::AttentionRow {
        kv_heads: 1,
        group: 1,
        head_dim: 64,
        value_dim: 64,
        keys: 1280,
        made: false,
        projected: 0,
    };
    let of_attention = Key { shape: attention, ..within(Some(1280)) };
    let error =
        Database::parse(&database(&[(of_attention, odd())]).text().expect("text")).expect_err("attention");
    assert!(error.contains("only of a product"), "{error}");
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
        behind: 0,
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
    for entry in plan.entries.iter().filter(|e| e.role == Role::Decode && e.bind.tokens <= 2) {
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
    assert!(all.into_iter().any(Schedule::on_tensor_cores));
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
            behind: 0,
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
    let (near, far) = (gemv_key(700, 576), gemv_key(640, 768));
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
        gemv_key(640, 576 * 2),
        gemv_key(640 * 2, 576),
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
        behind: 0,
        ahead: 0,
        late: false,
    };
    assert_eq!(split_of(&[(near, broken), (gemv_key(900, 576), split(1))]), Some((1, N)));
}

/// What no kernel has is refused when it is read, before anything is divided by it.
#[test]
fn figures_that_no_kernel_has_are_named() {
    let text = database(&[(gemv_key(640, 576), odd())]).text().expect("text");
    for (name, wrong) in
        [("lanes", "0"), ("columns", "0"), ("depth", "4294967295"), ("blocks", "0"), ("split", "33")]
    {
        let at = text.rfind(&format!("{name}:")).expect(name) + name.len() + 1;
        let rest = text[at..].trim_start();
        let figure = rest.split([',', ')']).next().expect("a figure");
        let at = text.len() - rest.len();
        let changed = format!("{}{wrong}{}", &text[..at], &text[at + figure.len()..]);
        let error = Database::parse(&changed).expect_err(name);
        assert!(error.contains(&format!("{name}: {wrong}, from 1 to")), "{error}");
    }
    let changed = text.replacen("staged:", "behind: 99, staged:", 1);
    let error = Database::parse(&changed).expect_err("behind");
    assert!(error.contains("behind: 99 of"), "{error}");
}

#[test]
fn attention_is_found_by_its_heads() {
    let key = |keys| {
        let shape = Shape::AttentionRow {
            kv_heads: 2,
            group: 6,
            head_dim: 64,
            value_dim: 64,
            keys,
            made: false,
            projected: 0,
        };
        Key { shape, ..gemv_key(1, 1) }
    };
    let entries = database(&[(
        key(512),
        Schedule::AttentionRow { warps: 8, heads: 6, depth: 2, splits: 1, cluster: 1, late: false },
    )]);
    let work = attention(2, 4, 64);
    let bind = Bindings { tokens: 1, seqs: 8, rows: 1, context: 512, slots: 4096 };
    // Six heads a block of six; of four, four. Splits are those that were measured, while there are keys for them.
    let with = |splits| {
        Some((
            Schedule::AttentionRow { warps: 8, heads: 4, depth: 2, splits, cluster: 1, late: false },
            ScheduleSource::Neighbour,
        ))
    };
    assert_eq!(entries.find(&work, &bind, target()), with(1));
    // It was measured with 1024 keys: where there are many more, there are as many splits as fill the GPU.
    assert_eq!(entries.find(&work, &Bindings { context: 2048, ..bind }, target()), with(1));
    assert_eq!(entries.find(&work, &Bindings { context: 4096, ..bind }, target()), with(64));
    let many = database(&[(
        key(1024),
        Schedule::AttentionRow { warps: 8, heads: 6, depth: 2, splits: 16, cluster: 1, late: false },
    )]);
    assert_eq!(many.find(&work, &Bindings { context: 1024, ..bind }, target()), with(16));
    assert_eq!(many.find(&work, &bind, target()), with(8));
    // Of entries that differ in the context alone, the nearest.
    let mut both = many.clone();
    both.merge(database(&[(
        key(8192),
        Schedule::AttentionRow { warps: 4, heads: 6, depth: 2, splits: 64, cluster: 1, late: false },
    )]));
    let warps = |context| match both.find(&work, &Bindings { context, ..bind }, target()) {
        Some((Schedule::AttentionRow { warps, .. }, ScheduleSource::Neighbour)) => Some(warps),
        _ => None,
    };
    assert_eq!((warps(2048), warps(4096)), (Some(8), Some(4)));
    // What takes all keys of the longest context in a round is not taken for more of them where there is another.
    let mut rounds = many.clone();
    rounds.merge(database(&[(
        key(1280),
        Schedule::AttentionRow { warps: 4, heads: 6, depth: 2, splits: 64, cluster: 1, late: false },
    )]));
    let warps = |rounds: &Database, context| match rounds.find(
        &attention(2, 6, 64),
        &Bindings { context, ..bind },
        target(),
    ) {
        Some((Schedule::AttentionRow { warps, .. }, source)) => (warps, source),
        other => panic!("{other:?}"),
    };
    let (known, near) = (ScheduleSource::Measured, ScheduleSource::Neighbour);
    let found = [1024, 1272, 1280, 1290].map(|context| warps(&rounds, context));
    assert_eq!(found, [(8, known), (4, known), (4, known), (4, near)]);
    rounds.merge(database(&[(
        key(2048),
        Schedule::AttentionRow { warps: 2, heads: 6, depth: 2, splits: 16, cluster: 1, late: false },
    )]));
    assert_eq!(warps(&rounds, 1290), (2, near));
    // Many tokens are another matter.
    assert_eq!(entries.find(&work, &Bindings { tokens: 64, ..bind }, target()), None);
}

/// What projects takes over nothing of what does not, and is taken by one cluster whatever the keys.
#[test]
fn attention_that_projects_is_another_shape() {
    let key = |keys, projected| {
        let shape = Shape::AttentionRow {
            kv_heads: 3,
            group: 3,
            head_dim: 64,
            value_dim: 64,
            keys,
            made: false,
            projected,
        };
        Key { shape, ..gemv_key(1, 1) }
    };
    let group = |warps, splits, cluster| Schedule::AttentionGroup {
        warps,
        heads: 3,
        depth: 1,
        splits,
        cluster,
        late: true,
    };
    let entries = |projected| database(&[(key(1280, projected), group(12, 8, 8))]);
    let (work, apart) = (projecting(3, 3, 64, 576), attention(3, 3, 64));
    let bind = |context| Bindings { tokens: 1, seqs: 1, rows: 1, context, slots: 1 << 16 };
    let found = |work: &Work, projected, context| entries(projected).find(work, &bind(context), target());
    use ScheduleSource::{Measured as M, Neighbour as N};
    assert_eq!(found(&work, 576, 1280), Some((group(12, 8, 8), M)));
    assert_eq!(found(&work, 640, 1280), Some((group(12, 8, 8), N)));
    assert_eq!(found(&work, 0, 1280), None);
    assert_eq!(found(&apart, 576, 1280), None);
    // Splits do not follow the keys; where these are few, the cluster is smaller.
    assert_eq!(found(&work, 576, 8192), Some((group(12, 8, 8), N)));
    assert_eq!(found(&work, 576, 256), Some((group(12, 4, 4), N)));
}

/// The steps' times are kept where there are any, and read back.
#[test]
fn times_of_steps_are_kept() {
    let mut entries = database(&[(gemv_key(640, 576), odd())]);
    assert!(!entries.text().expect("text").contains("step:"));
    let known = entries.get(&gemv_key(640, 576)).expect("it is there").clone();
    let step = Some(StepTimes { ns: 247_371, estimated_ns: 253_988 });
    entries.insert(gemv_key(640, 576), Measured { step, ..known });
    let text = entries.text().expect("text");
    assert!(text.contains("step: Some((ns: 247371, estimated_ns: 253988))"), "{text}");
    assert_eq!(Database::parse(&text).expect("reads"), entries);
}
