//! The real model: SmolLM2-135M-Instruct as a Q4_1 GGUF file, against what Hugging Face computed from it.
//! Skipped, with a line on stderr, where the file is not there (see `common::smollm2`).

mod common;

use serde::Deserialize;
use weft_frontend::checkpoint::{Checkpoint, Layout};
use weft_frontend::config::RopeScaling;
use weft_frontend::convert::convert;
use weft_frontend::text::chat::{ChatTemplate, Message};
use weft_frontend::text::stream::StreamDecoder;
use weft_frontend::text::tokenizer::Tokenizer;
use weft_ir::decode::decode_f32;
use weft_ir::dtype::{DType, Encoding};

#[derive(Deserialize)]
struct Case {
    prompt: String,
    chat_text: String,
    input_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
    greedy_text: String,
}

fn cases() -> Vec<Case> {
    let text = std::fs::read(common::fixture("text/smollm2-135m-instruct.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// Token ids, templates and text of a checkpoint against the fixture.
fn check_text(c: &Checkpoint) {
    let tokenizer = Tokenizer::open(c).unwrap();
    let chat = ChatTemplate::open(c).unwrap().unwrap();
    assert_eq!(tokenizer.vocab_size(), 49152);
    assert_eq!(chat.special_token("eos_token"), Some("<|im_end|>"));
    for case in cases() {
        let text = chat.render(&[Message::new("user", &case.prompt)], true).unwrap();
        assert_eq!(text, case.chat_text);
        assert_eq!(tokenizer.encode(&text, false).unwrap(), case.input_ids);
        assert_eq!(tokenizer.encode(&text, true).unwrap(), case.input_ids);
        assert_eq!(tokenizer.decode(&case.input_ids, false).unwrap(), text);
        assert_eq!(tokenizer.decode(&case.greedy_ids, true).unwrap().trim(), case.greedy_text.trim());
        let mut stream = StreamDecoder::new(&tokenizer, true, vec![]);
        let mut pieces: String = case.greedy_ids.iter().map(|&id| stream.push(id).unwrap().text).collect();
        pieces.push_str(&stream.finish().unwrap().text);
        assert_eq!(pieces, tokenizer.decode(&case.greedy_ids, true).unwrap());
    }
}

#[test]
fn configuration_and_tensors() {
    let Some(path) = common::smollm2() else { return };
    let c = Checkpoint::open(&path).unwrap();
    let config = c.config();
    let shape = (config.layers, config.heads, config.kv_heads, config.head_dim, config.hidden_size);
    assert_eq!(shape, (30, 9, 3, 64, 576));
    assert_eq!((config.vocab_size, config.intermediate_size, config.max_position), (49152, 1536, 8192));
    assert_eq!((config.norm_eps, config.rope.theta), (1e-5, 100000.0));
    assert_eq!(config.rope.scaling, RopeScaling::None);
    assert!(config.tie_word_embeddings && !config.attention_bias && !config.mlp_bias);
    assert_eq!((config.bos_token_id, config.eos_token_ids.as_slice()), (Some(1), &[2][..]));
    assert!(config.unknown.is_empty(), "{:?}", config.unknown);

    let q = c.source("model.layers.29.self_attn.q_proj.weight").unwrap();
    assert_eq!(
        (q.shape.as_slice(), q.encoding, q.layout),
        (&[576, 576][..], Encoding::Q4_1, Layout::Interleaved { heads: 9 })
    );
    let down = c.source("model.layers.0.mlp.down_proj.weight").unwrap();
    assert_eq!((down.shape.as_slice(), down.layout), (&[576, 1536][..], Layout::Same));
    assert_eq!(c.source("model.embed_tokens.weight").unwrap().encoding, Encoding::Q8_0);
    assert!(!c.has("lm_head.weight"));
    let norm = c.source("model.norm.weight").unwrap();
    let mut values = vec![0.0; 576];
    decode_f32(norm.encoding, c.bytes(&norm.tensor).unwrap(), &mut values).unwrap();
    assert!(values.iter().all(|v| v.is_finite() && v.abs() < 100.0));
    let all: Vec<String> = c.tensors().map(|t| t.name.clone()).collect();
    assert_eq!(all.len(), 272);
    assert!(c.unused(&all).is_empty());
}

#[test]
fn the_ggufs_own_vocabulary_gives_hugging_faces_ids() {
    let Some(path) = common::smollm2() else { return };
    let c = Checkpoint::open(&path).unwrap();
    check_text(&c);
    let tokenizer = Tokenizer::open(&c).unwrap();
    let text = "In 2024, naïve café 日本語 🏳️‍🌈  isn't\t1234\n\n ok<|im_end|>x";
    let ids = tokenizer.encode(text, false).unwrap();
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    assert!(ids.contains(&2), "a special token in the text is one token");
    for digit in ["1", "2", "3", "4"] {
        assert!(ids.contains(&tokenizer.token_id(digit).unwrap()), "digits stand alone");
    }
    let mut stream = StreamDecoder::new(&tokenizer, false, vec![]);
    let mut out = String::new();
    for id in ids {
        let piece = stream.push(id).unwrap().text;
        assert!(!piece.contains('\u{FFFD}'));
        out.push_str(&piece);
    }
    assert_eq!(out + &stream.finish().unwrap().text, text);
}

#[test]
fn the_converted_folder_is_the_same_model() {
    let Some(path) = common::smollm2() else { return };
    let gguf = Checkpoint::open(&path).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("hf");
    let mut seen = Vec::new();
    let summary = convert(&gguf, &out, DType::BF16, &mut |done, total| seen.push((done, total))).unwrap();
    assert_eq!(summary.tensors, 272);
    assert_eq!(summary.bytes, 2 * summary.parameters);
    assert_eq!(seen.len(), 272);
    assert_eq!(seen.last(), Some(&(summary.bytes, summary.bytes)));
    let hf = Checkpoint::open(&out).unwrap();
    check_text(&hf);
    let (mut a, b) = (gguf.config().clone(), hf.config().clone());
    a.dtype = b.dtype;
    assert_eq!(a, b);
    assert_eq!(hf.config().dtype, Some(DType::BF16));
    for name in ["model.embed_tokens.weight", "model.layers.7.mlp.up_proj.weight"] {
        let (x, y) = (gguf.source(name).unwrap(), hf.source(name).unwrap());
        assert_eq!(x.shape, y.shape);
        let n = x.shape.iter().product();
        let (mut from, mut to) = (vec![0.0; n], vec![0.0; n]);
        decode_f32(x.encoding, gguf.bytes(&x.tensor).unwrap(), &mut from).unwrap();
        decode_f32(y.encoding, hf.bytes(&y.tensor).unwrap(), &mut to).unwrap();
        assert!(from.iter().zip(&to).all(|(a, b)| (a - b).abs() <= a.abs() / 256.0));
    }
}
