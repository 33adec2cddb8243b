//! Rope type dynamic beyond its original context: it is the plain rope of a larger base, which only the sequence itself
//! decides. (`variants.rs` compares it with Hugging Face.)

use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use weft::batch::{Piece, step};
use weft_frontend::checkpoint::{Checkpoint, Task};
use weft_frontend::config::{Dynamic, ModelConfig};
use weft_frontend::models::build;
use weft_ir::dtype::DType;
use weft_ir::graph::{Graph, Input, Op};
use weft_ir::plan::Role;
use weft_ir::reference::Precision;
use weft_runtime::exec::{CpuModel, CpuOptions, Executor};
use weft_testsuite::embed::distance;
use weft_testsuite::fixture::{Bytes, Fixture, compile, folder, relative_rmse};

const MAX_SEQ: usize = 32;

fn fixture(name: &str) -> Fixture {
    Fixture::at(folder().join("variants").join(name))
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path).unwrap_or_else(|e| panic!("{e}"))
}

fn graph(checkpoint: &Checkpoint) -> Graph {
    build(checkpoint, DType::F32).unwrap_or_else(|e| panic!("{e}"))
}

fn model(checkpoint: &Checkpoint) -> CpuModel {
    let options = CpuOptions { max_seq: MAX_SEQ, max_batch: 2, ..CpuOptions::default() };
    CpuModel::graph(graph(checkpoint), &Bytes(checkpoint), &options).unwrap_or_else(|e| panic!("{e}"))
}

fn ids(fixture: &Fixture, row: usize) -> Vec<u32> {
    let all = fixture.golden_ids("input_ids");
    all.values[row * all.shape[1]..][..all.shape[1]].iter().map(|&v| v as u32).collect()
}

/// Logits behind the last token of a step's first piece.
fn logits(model: &mut CpuModel, pieces: &[Piece<'_>]) -> Vec<f32> {
    let out = step(model, Role::Prefill, pieces, true).unwrap_or_else(|e| panic!("{e}"));
    let vocab = out.logits.len() / pieces.len();
    out.logits[..vocab].to_vec()
}

/// Tokens of a prompt of so many, from a position on.
fn piece(sequence: usize, start: usize, ids: &[u32], prompt: usize) -> Piece<'_> {
    Piece { prompt, ..Piece::greedy(sequence, start, ids) }
}

/// transformers' formula, in f64.
fn base(theta: f64, factor: f64, original: f64, length: f64, dim: f64) -> f64 {
    theta * (factor * length / original - (factor - 1.0)).powf(dim / (dim - 2.0))
}

#[test]
fn a_prompt_has_the_plain_rope_of_its_lengths_base() {
    let dynamic = fixture("llama-dynamic-prompt");
    for tokens in [6, 8, 9, 13] {
        let text = std::fs::read_to_string(dynamic.folder().join("config.json")).expect("reads");
        let mut config: Value = serde_json::from_str(&text).expect("JSON");
        let grown = base(10000.0, 2.0, 8.0, tokens.max(8) as f64, 8.0);
        for (key, value) in [
            ("rope_scaling", json!(null)),
            ("rope_theta", json!(grown)),
            ("max_position_embeddings", json!(64)),
        ] {
            config[key] = value;
        }
        let dir = tempfile::tempdir().expect("folder");
        std::fs::write(dir.path().join("config.json"), config.to_string()).expect("writes");
        std::fs::copy(dynamic.folder().join("model.safetensors"), dir.path().join("model.safetensors"))
            .expect("copies");
        let all = ids(&dynamic, 0);
        let of =
            |checkpoint: &Checkpoint| logits(&mut model(checkpoint), &[piece(0, 0, &all[..tokens], tokens)]);
        let distance = relative_rmse(&of(&dynamic.checkpoint), &of(&open(dir.path())));
        assert!(distance <= 2e-6, "{tokens} tokens: {distance}");
    }
}

/// The base is the whole prompt's in each of its steps, with whatever else is in them.
#[test]
fn neither_steps_nor_companions_change_it() {
    let dynamic = fixture("llama-dynamic-prompt");
    let (own, other) = (ids(&dynamic, 0), ids(&dynamic, 1));
    let whole = logits(&mut model(&dynamic.checkpoint), &[piece(0, 0, &own, own.len())]);
    let cut = |told: [usize; 2], company: usize| {
        let mut model = model(&dynamic.checkpoint);
        logits(&mut model, &[piece(0, 0, &own[..5], told[0]), piece(1, 0, &other[..company], company)]);
        logits(&mut model, &[piece(0, 5, &own[5..], told[1])])
    };
    for company in [2, 11] {
        let distance = relative_rmse(&cut([own.len(); 2], company), &whole);
        assert!(distance <= 1e-6, "{company} tokens beside: {distance}");
    }
    // A second turn leaves the keys of the first as they are.
    assert!(relative_rmse(&cut([5, own.len()], 2), &whole) > 1e-3);
}

/// Texts of one step have a base each.
#[test]
fn embeddings_have_their_texts_base() {
    for name in ["llama-dynamic-prompt", "phi-dynamic"] {
        let fixture = fixture(name);
        let checkpoint = open(fixture.folder()).for_task(Task::Embed).reaching(MAX_SEQ);
        let mut plain = model(&checkpoint);
        let plan = Arc::new(compile(&graph(&checkpoint), "sm_90", DType::F32, 2, (MAX_SEQ, 2)));
        let mut fused = CpuModel::plan(plan, &Bytes(&checkpoint), Precision::F32).expect("a model");
        for (level, model) in [(0, &mut plain as &mut dyn Executor), (2, &mut fused)] {
            let far = distance(&fixture, &checkpoint, model);
            assert!(far <= 1e-4, "{name} at level {level}: {far}");
        }
    }
}

/// Within the original context the model is the plain rope's, and asks for nothing more.
#[test]
fn only_longer_contexts_need_prompts() {
    let open = || open(fixture("llama-dynamic-decode").folder());
    let asks =
        |checkpoint: &Checkpoint| graph(checkpoint).nodes.iter().any(|n| n.op == Op::Input(Input::Prompts));
    let grows = |c: &ModelConfig| matches!(c.rope.dynamic, Some(Dynamic::Base { grows: true, .. }));
    for (tokens, longer) in [(16, false), (17, true)] {
        let checkpoint = open().reaching(tokens);
        let config = checkpoint.config();
        assert_eq!((asks(&checkpoint), grows(config)), (longer, longer), "{tokens} tokens");
        assert_eq!(config.position_limit(), (!longer).then_some(16));
    }
}
