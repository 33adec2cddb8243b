//! Right answers of encoders on the GPU, bit for bit repeatable. Skipped loudly where there is no GPU.
//! `cargo test -p weft-testsuite --test gpu_encoder`

use std::sync::Arc;
use weft::encode::{Sequence, encode};
use weft_frontend::checkpoint::Checkpoint;
use weft_ir::dtype::DType;
use weft_runtime::exec::CudaModel;
use weft_testsuite::embed::{distance, embedder};
use weft_testsuite::encoder::{golden_rows, minilm, minilm_cosines, tiny};
use weft_testsuite::fixture::{Fixture, compile};
use weft_testsuite::gpu;

fn load(checkpoint: &Checkpoint, dtype: DType, opt_level: u8, full_edges: bool) -> Option<CudaModel> {
    let device = gpu::device()?;
    let graph = weft_frontend::models::build(checkpoint, dtype).unwrap_or_else(|e| panic!("{e}"));
    let plan = compile(&graph, &device.arch(), dtype, opt_level, (128, 8));
    Some(gpu::load(&Arc::new(plan), checkpoint, full_edges))
}

#[test]
fn tiny_bert() {
    let fixture = Fixture::open("bert");
    let hf = fixture.golden_json()["hf_16bit"]["rel_rmse"].as_f64().expect("hf_16bit");
    for opt_level in [0, 1, 2] {
        for (dtype, most) in [(DType::BF16, 1.5 * hf), (DType::F32, 1e-4)] {
            let Some(mut model) = load(&fixture.checkpoint, dtype, opt_level, false) else { return };
            let distance = tiny(&fixture, &mut model);
            println!("bert level {opt_level} in {dtype}: {distance}, at most {most}");
            assert!(distance <= most, "level {opt_level} in {dtype}: {distance}, at most {most}");
        }
    }
}

/// Within the bounds of logits.
#[test]
fn decoders_that_embed() {
    for (name, times) in
        [("qwen3", 1.5), ("mistral-sliding", 1.5), ("bloom", 1.5), ("gpt-oss", 2.0), ("deepseek-v3", 2.0)]
    {
        let fixture = Fixture::open(name);
        let checkpoint = embedder(&fixture);
        let hf = fixture.golden_json()["hf_16bit"]["rel_rmse"].as_f64().expect("hf_16bit");
        for opt_level in [0, 2] {
            for (dtype, most) in [(DType::BF16, times * hf), (DType::F32, 1e-4)] {
                let Some(mut model) = load(&checkpoint, dtype, opt_level, false) else { return };
                let distance = distance(&fixture, &checkpoint, &mut model);
                println!("{name} level {opt_level} in {dtype}: {distance}, at most {most}");
                assert!(distance <= most, "{name} level {opt_level} in {dtype}: {distance}, at most {most}");
            }
        }
    }
}

#[test]
fn minilm_embeddings() {
    let Some(checkpoint) = minilm() else { return };
    for opt_level in [0, 2] {
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            let Some(mut model) = load(&checkpoint, dtype, opt_level, false) else { return };
            let cosines = minilm_cosines(&checkpoint, &mut model);
            println!("MiniLM level {opt_level} in {dtype}: {cosines:?}");
            assert!(cosines.iter().all(|&c| c >= 0.9999), "level {opt_level} in {dtype}: {cosines:?}");
        }
    }
}

#[test]
fn hidden_states_repeat_bit_for_bit_whatever_else_is_in_the_step() {
    let fixture = Fixture::open("bert");
    let rows: Vec<Sequence> = golden_rows(&fixture).into_iter().map(|(s, _)| s).collect();
    let short = |n: usize| Sequence::plain(rows[1].ids[..n].to_vec());
    for opt_level in [0, 2] {
        let Some(mut model) = load(&fixture.checkpoint, DType::BF16, opt_level, false) else { return };
        let Some(mut full) = load(&fixture.checkpoint, DType::BF16, opt_level, true) else { return };
        let bits = |model: &mut CudaModel, others: &[usize]| -> Vec<u32> {
            // The sequence in question is the last, so that it lies elsewhere each time.
            let mut all: Vec<Sequence> = others.iter().map(|&n| short(n)).collect();
            all.push(rows[0].clone());
            let out = encode(model, &all, &mut |_, _| {}).unwrap_or_else(|e| panic!("{e}"));
            out.last().expect("one").iter().map(|x| x.to_bits()).collect()
        };
        // All fall in the bucket encode_64.
        let companies: [&[usize]; 4] = [&[], &[7, 3], &[20], &[1, 1, 15, 4]];
        let first = bits(&mut model, companies[0]);
        for round in 0..20 {
            assert!(bits(&mut model, companies[round % 4]) == first, "level {opt_level}, round {round}");
        }
        assert!(bits(&mut full, companies[1]) == first, "level {opt_level}: full edges differ");
    }
}
