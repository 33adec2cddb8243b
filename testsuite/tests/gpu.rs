//! Right answers on the GPU: tiny checkpoints and SmolLM2 against Hugging Face, bit for bit repeatable.
//! Skipped loudly where there is no GPU. `cargo test -p weft-testsuite --test gpu`

use std::sync::Arc;
use weft::batch::{Piece, step};
use weft_frontend::checkpoint::Checkpoint;
use weft_ir::dtype::DType;
use weft_ir::plan::{Plan, Role};
use weft_ir::sampling::{Params, Penalties};
use weft_runtime::exec::Executor;
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

fn piece(sequence: usize, start: usize, ids: &[u32]) -> Piece<'_> {
    Piece { sequence, start, ids, params: Params::GREEDY, penalties: Penalties::NONE, prompt: 0 }
}

/// Logits of a prefill of sequence 0 and of a decode step after it, with others in the same steps.
fn two_steps(model: &mut dyn Executor, ids: &[u32], others: &[&[u32]]) -> Vec<u32> {
    let mut bits = Vec::new();
    let prompt = ids.len() - 1;
    let mut pieces = vec![piece(0, 0, &ids[..prompt])];
    pieces.extend(others.iter().enumerate().map(|(i, o)| piece(i + 1, 0, &o[..o.len() - 1])));
    let vocab = model.limits().vocab.expect("a decoder");
    for (role, pieces) in [
        (Role::Prefill, pieces),
        (Role::Decode, {
            let mut last = vec![piece(0, prompt, &ids[prompt..])];
            last.extend(others.iter().enumerate().map(|(i, o)| piece(i + 1, o.len() - 1, &o[o.len() - 1..])));
            last
        }),
    ] {
        let out = step(model, role, &pieces, true).unwrap_or_else(|e| panic!("{e}"));
        bits.extend(out.logits[..vocab].iter().map(|l| l.to_bits()));
    }
    bits
}

#[test]
fn logits_repeat_bit_for_bit_whatever_else_is_in_the_batch() {
    let fixture = Fixture::open("llama");
    let rows = fixture.golden_ids("input_ids");
    let row = |r: usize, n: usize| -> Vec<u32> {
        rows.values[r * rows.shape[1]..][..n].iter().map(|&v| v as u32).collect()
    };
    for opt_level in [0, 2] {
        let Some(plan) = plan(&fixture.checkpoint, DType::BF16, opt_level, (96, 4)) else { return };
        let mut model = gpu::load(&plan, &fixture.checkpoint, false);
        let ids = row(0, 25);
        // All fall in the buckets prefill_64 and decode_4.
        let companies: [Vec<Vec<u32>>; 3] = [
            vec![row(1, 13), row(1, 9), row(1, 7)],
            vec![row(0, 7), row(1, 13), row(0, 9)],
            vec![row(1, 3), row(1, 17), row(0, 14)],
        ];
        let mut first = None;
        for round in 0..21 {
            let others: Vec<&[u32]> = companies[round % 3].iter().map(Vec::as_slice).collect();
            let bits = two_steps(&mut model, &ids, &others);
            let same = first.get_or_insert_with(|| bits.clone());
            assert!(*same == bits, "level {opt_level}, round {round}: other bits");
        }
        // Without overlapping launches the bits are the same.
        let mut full = gpu::load(&plan, &fixture.checkpoint, true);
        let others: Vec<&[u32]> = companies[0].iter().map(Vec::as_slice).collect();
        assert!(first == Some(two_steps(&mut full, &ids, &others)), "level {opt_level}: full edges differ");
    }
}

/// Kernels that overlap compute what they do one after the other, whenever their blocks run.
#[test]
fn delays_change_no_bit() {
    let fixture = Fixture::open("llama");
    let rows = fixture.golden_ids("input_ids");
    let row = |r: usize, n: usize| -> Vec<u32> {
        rows.values[r * rows.shape[1]..][..n].iter().map(|&v| v as u32).collect()
    };
    let Some(plan) = plan(&fixture.checkpoint, DType::BF16, 2, (96, 4)) else { return };
    let (ids, others) = (row(0, 25), [row(1, 13), row(1, 9), row(1, 7)]);
    let others: Vec<&[u32]> = others.iter().map(Vec::as_slice).collect();
    let mut full = gpu::load(&plan, &fixture.checkpoint, true);
    let wanted = two_steps(&mut full, &ids, &others);
    for seed in 0..20 {
        let mut model = gpu::load_with(&plan, &fixture.checkpoint, false, Some(seed));
        for round in 0..5 {
            let bits = two_steps(&mut model, &ids, &others);
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
