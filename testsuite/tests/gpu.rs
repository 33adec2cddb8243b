//! Right answers on the GPU: tiny checkpoints and SmolLM2 against Hugging Face, bit for bit repeatable.
//! Skipped loudly where there is no GPU. `cargo test -p weft-testsuite --test gpu`

use std::sync::Arc;
use weft::batch::{Piece, inputs, step};
use weft_frontend::checkpoint::Checkpoint;
use weft_ir::dtype::DType;
use weft_ir::generation::End;
use weft_ir::plan::{Plan, Role};
use weft_ir::sampling::{Params, Penalties};
use weft_runtime::exec::{Executor, Generate, Next, RowTokens, step_by_step};
use weft_testsuite::companions::{Companions, MODELS};
use weft_testsuite::fixture::{Fixture, compile};
use weft_testsuite::{golden, gpu};

fn plan(checkpoint: &Checkpoint, dtype: DType, opt_level: u8, limits: (usize, usize)) -> Option<Arc<Plan>> {
    let device = gpu::device()?;
    let graph = weft_frontend::models::build(checkpoint, dtype).unwrap_or_else(|e| panic!("{e}"));
    Some(Arc::new(compile(&graph, &device.arch(), dtype, opt_level, limits)))
}

fn tiny(name: &str) {
    let fixture = Fixture::open(name);
    for opt_level in [0, 1, 2] {
        let Some(plan) = plan(&fixture.checkpoint, DType::BF16, opt_level, (96, 4)) else { return };
        let mut model = gpu::load(&plan, &fixture.checkpoint, false);
        let report = golden::tiny(&fixture, &mut model);
        println!("{name} level {opt_level}: {report:?}");
        let most = 1.5 * report.hf_16bit;
        assert!(report.logits <= most && report.greedy_logits <= most, "level {opt_level}: {report:?}");
        assert_eq!(report.outside_top5, 0, "level {opt_level}: {report:?}");
    }
}

#[test]
fn tiny_llama() {
    tiny("llama");
}

#[test]
fn tiny_llama_rope3_tied() {
    tiny("llama-rope3-tied");
}

#[test]
fn tiny_llama_in_f32() {
    let fixture = Fixture::open("llama");
    let Some(plan) = plan(&fixture.checkpoint, DType::F32, 2, (96, 4)) else { return };
    let report = golden::tiny(&fixture, &mut gpu::load(&plan, &fixture.checkpoint, false));
    println!("llama f32: {report:?}");
    assert!(report.logits <= 1e-4 && report.greedy_logits <= 1e-4, "{report:?}");
    assert_eq!(report.wrong_tokens, 0, "{report:?}");
}

/// Each prompt at the highest level; at level 0, whose every intermediate is rounded, all four together (one
/// prompt of 64 tokens is within noise of the bound).
#[test]
fn smollm2() {
    let Some(checkpoint) = gpu::smollm2() else { return };
    for opt_level in [0, 2] {
        let Some(plan) = plan(&checkpoint, DType::BF16, opt_level, (512, 2)) else { return };
        let report = golden::smollm2(&mut gpu::load(&plan, &checkpoint, false));
        println!("SmolLM2 level {opt_level}: {report:?}");
        let (ours, hf) = (&report.mean_abs_dlogprob, &report.hf_bf16);
        let sum = |v: &[f64]| v.iter().sum::<f64>();
        assert!(sum(ours) <= 1.5 * sum(hf), "level {opt_level}: {report:?}");
        let each = ours.iter().zip(hf).all(|(ours, hf)| *ours <= 1.5 * hf);
        assert!(each || opt_level == 0, "level {opt_level}: {report:?}");
        assert_eq!(report.outside_top5, 0, "level {opt_level}: {report:?}");
    }
}

#[test]
fn logits_repeat_bit_for_bit_whatever_else_is_in_the_batch() {
    for (name, opt_level) in MODELS {
        let fixture = Fixture::open(name);
        let Some(plan) = plan(&fixture.checkpoint, DType::BF16, opt_level, (96, 4)) else { return };
        let companions = Companions::of(&fixture);
        hundred_runs(&format!("{name}, level {opt_level}"), &plan, &fixture.checkpoint, &companions);
    }
}

/// The same of the real model, if it is there.
#[test]
fn logits_of_smollm2_repeat_bit_for_bit() {
    let Some(checkpoint) = gpu::smollm2() else { return };
    let Some(plan) = plan(&checkpoint, DType::BF16, 2, (512, 4)) else { return };
    let row = |r: usize, n: usize| (0..n).map(|i| ((1000 + 777 * r + 37 * i) % 49_000) as u32).collect();
    hundred_runs("SmolLM2", &plan, &checkpoint, &Companions::new(row));
}

/// The bits of a sequence in 100 runs in which companies take turns, and once with full edges.
fn hundred_runs(what: &str, plan: &Arc<Plan>, checkpoint: &Checkpoint, companions: &Companions) {
    let start = std::time::Instant::now();
    let mut model = gpu::load(plan, checkpoint, false);
    let first = companions.round(&mut model, 0);
    assert!(first.iter().any(|bits| f32::from_bits(*bits) != 0.0), "{what}: all logits are 0");
    for round in 1..100 {
        assert!(first == companions.round(&mut model, round), "{what}, round {round}: other bits");
    }
    // Without overlapping launches the bits are the same.
    let mut full = gpu::load(plan, checkpoint, true);
    assert!(first == companions.round(&mut full, 0), "{what}: full edges differ");
    println!("{what}: the same {} logits in 100 runs, {:?}", first.len(), start.elapsed());
}

/// Kernels that overlap compute what they do one after the other, whenever their blocks run.
#[test]
fn delays_change_no_bit() {
    let fixture = Fixture::open("llama");
    let Some(plan) = plan(&fixture.checkpoint, DType::BF16, 2, (96, 4)) else { return };
    let companions = Companions::of(&fixture);
    let wanted = companions.round(&mut gpu::load(&plan, &fixture.checkpoint, true), 0);
    for seed in 0..20 {
        let mut model = gpu::load_with(&plan, &fixture.checkpoint, false, Some(seed));
        for round in 0..5 {
            let bits = companions.round(&mut model, 0);
            assert!(bits == wanted, "delays of seed {seed}, round {round}: other bits");
        }
    }
}

#[test]
fn sampling_matches_its_definition() {
    let fixture = Fixture::open("llama");
    let Some(plan) = plan(&fixture.checkpoint, DType::BF16, 2, (96, 4)) else { return };
    let mut model = gpu::load(&plan, &fixture.checkpoint, false);
    let rows = fixture.golden_ids("input_ids");
    let ids: Vec<u32> = rows.values[..20].iter().map(|&v| v as u32).collect();
    let vocab = model.limits().vocab.expect("a decoder");
    let variants = [
        Params { temperature: 1.0, ..Params::GREEDY },
        Params { temperature: 0.7, top_k: 5, ..Params::GREEDY },
        Params { temperature: 1.3, top_p: 0.8, ..Params::GREEDY },
        Params { temperature: 1.0, min_p: 0.1, ..Params::GREEDY },
        Params { temperature: 0.9, top_k: 40, top_p: 0.9, min_p: 0.02, seed: 0 },
        Params::GREEDY,
    ];
    let (mut same, mut all) = (0, 0);
    for base in variants {
        for seed in 0..40 {
            let params = Params { seed, ..base };
            let piece =
                Piece { sequence: 0, start: 0, ids: &ids, params, penalties: Penalties::NONE, prompt: 0 };
            let out = step(&mut model, Role::Score, &[piece], true).unwrap_or_else(|e| panic!("{e}"));
            for (t, &token) in out.tokens.iter().enumerate() {
                let logits = &out.logits[t * vocab..][..vocab];
                let expected = weft_ir::sampling::sample_row(logits, t as i32, &params);
                all += 1;
                same += usize::from(token == expected);
            }
        }
    }
    // The device's logarithms and sums may round a tie or a threshold the other way, rarely.
    println!("sampling: {same} of {all} as defined");
    assert!(same * 1000 >= all * 998, "{same} of {all}");
}

/// What is told and what comes of a generation behind prompts: in one launch, or step by step.
fn generated(
    model: &mut dyn Executor,
    prompts: &[Vec<u32>],
    (params, limits, stop_tokens): (&[Params], &[usize], &[u32]),
    in_one_launch: bool,
    next: &dyn Fn(usize, usize) -> Next,
) -> (Vec<(usize, u32)>, Vec<RowTokens>) {
    // Drawn rows have penalties, which look at the tokens so far.
    fn of(sequence: usize, start: usize, ids: &[u32], params: Params, prompt: usize) -> Piece<'_> {
        let penalties = match params.temperature > 0.0 {
            true => Penalties { repetition: 1.3, presence: 0.4 },
            false => Penalties::NONE,
        };
        Piece { sequence, start, ids, params, penalties, prompt }
    }
    let pieces: Vec<Piece<'_>> =
        (0..prompts.len()).map(|i| of(i, 0, &prompts[i], params[i], prompts[i].len())).collect();
    let made = step(model, Role::Prefill, &pieces, false).unwrap_or_else(|e| panic!("{e}")).tokens;
    let last: Vec<u32> = made.iter().map(|&t| t as u32).collect();
    let pieces: Vec<Piece<'_>> = (0..prompts.len())
        .map(|i| of(i, prompts[i].len(), &last[i..=i], params[i], prompts[i].len()))
        .collect();
    let first = inputs(model, Role::Decode, &pieces);
    let g = Generate { first: &first, limits, stop_tokens };
    let (mut told, mut counts) = (Vec::new(), vec![0; prompts.len()]);
    let mut on_token = |row: usize, id: u32| {
        told.push((row, id));
        counts[row] += 1;
        next(row, counts[row])
    };
    let rows = match in_one_launch {
        true => model.generate(&g, &mut on_token),
        false => step_by_step(model, &g, &mut on_token),
    };
    (told, rows.unwrap_or_else(|e| panic!("{e}")))
}

/// A whole generation in one launch makes the tokens of steps, bit for bit: greedy and drawn, one row and three
/// that end at different times, with programmatic edges and with full ones, 100 times.
#[test]
fn one_launch_makes_the_tokens_of_steps() {
    let fixture = Fixture::open("llama");
    let rows = fixture.golden_ids("input_ids");
    let row = |r: usize, n: usize| -> Vec<u32> {
        rows.values[r * rows.shape[1]..][..n].iter().map(|&v| v as u32).collect()
    };
    let prompts = [row(0, 5), row(1, 9), row(0, 3)];
    let drawn = |seed| Params { temperature: 0.9, top_k: 40, top_p: 0.95, min_p: 0.01, seed };
    let go: &dyn Fn(usize, usize) -> Next = &|_, _| Next::Go;
    for opt_level in [0, 2] {
        let Some(plan) = plan(&fixture.checkpoint, DType::BF16, opt_level, (96, 3)) else { return };
        let mut model = gpu::load(&plan, &fixture.checkpoint, false);
        let mut full = gpu::load(&plan, &fixture.checkpoint, true);
        for batch in [1, 3] {
            let (prompts, limits) = (&prompts[..batch], &[40, 200, 11][..batch]);
            for params in [vec![Params::GREEDY; batch], (0..batch as u32).map(drawn).collect()] {
                let case = (&params[..], limits, &[][..]);
                let steps = generated(&mut model, prompts, case, false, go);
                assert_eq!(steps.1[0].end, End::Length);
                if batch == 3 {
                    assert_eq!(steps.1[1].end, End::ContextFull);
                }
                for round in 0..100 {
                    let looped = generated(&mut model, prompts, case, true, go);
                    assert!(looped == steps, "level {opt_level}, batch {batch}, round {round}");
                }
                let looped = generated(&mut full, prompts, case, true, go);
                assert!(looped == steps, "level {opt_level}, batch {batch}: full edges differ");
                let stop = steps.1[batch - 1].tokens[4];
                let case = (&params[..], limits, &[stop, 123_456][..]);
                let steps = generated(&mut model, prompts, case, false, go);
                assert_eq!(steps.1[batch - 1].end, End::StopToken);
                assert!(generated(&mut model, prompts, case, true, go) == steps, "stop tokens");
            }
        }
    }
}

/// Rows that the host ends, and generations that it ends whole, leave no trace in later ones.
#[test]
fn a_launch_is_cancelled_from_the_host() {
    let fixture = Fixture::open("llama");
    let Some(plan) = plan(&fixture.checkpoint, DType::BF16, 2, (2048, 3)) else { return };
    let mut model = gpu::load(&plan, &fixture.checkpoint, false);
    let rows = fixture.golden_ids("input_ids");
    let ids =
        |r: usize| rows.values[r * rows.shape[1]..][..7].iter().map(|&v| v as u32).collect::<Vec<u32>>();
    let prompts = [ids(0), ids(1), ids(0)];
    let params = [Params { temperature: 1.0, ..Params::GREEDY }; 3];
    let case = (&params[..], &[1500, 1500, 60][..], &[][..]);
    let cuts: [&dyn Fn(usize, usize) -> Next; 2] =
        [&|row, made| if row < 2 && made == 30 { Next::EndRow } else { Next::Go }, &|row, made| {
            if row == 1 && made == 20 { Next::EndAll } else { Next::Go }
        }];
    for cut in cuts {
        let steps = generated(&mut model, &prompts, case, false, cut);
        let start = std::time::Instant::now();
        for _ in 0..20 {
            assert!(generated(&mut model, &prompts, case, true, cut) == steps);
        }
        println!("20 generations that were cut: {:?}", start.elapsed());
    }
}

/// The real model, if it is there: 256 greedy tokens, and how long both ways take.
#[test]
fn one_launch_makes_the_tokens_of_steps_on_smollm2() {
    let Some(checkpoint) = gpu::smollm2() else { return };
    let Some(plan) = plan(&checkpoint, DType::BF16, 2, (512, 1)) else { return };
    let mut model = gpu::load(&plan, &checkpoint, false);
    let prompt = vec![(0..34).map(|i| 1000 + 37 * i).collect::<Vec<u32>>()];
    let case = (&[Params::GREEDY][..], &[256][..], &[][..]);
    let mut times = [Vec::new(), Vec::new()];
    let mut first = None;
    for _ in 0..5 {
        for (looped, times) in [false, true].into_iter().zip(&mut times) {
            let start = std::time::Instant::now();
            let made = generated(&mut model, &prompt, case, looped, &|_, _| Next::Go);
            times.push(start.elapsed().as_secs_f64() * 1e3 / 256.0);
            assert!(*first.get_or_insert_with(|| made.clone()) == made, "other tokens");
        }
    }
    println!(
        "SmolLM2, ms a token with the prompt: step by step {:?}, in one launch {:?}",
        times[0], times[1]
    );
}
