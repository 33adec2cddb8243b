//! SentencePiece vocabularies in GGUF files give what the `sentencepiece` package gives (`goldens/sentencepiece_vocab.py`).

mod common;

use common::{GgufFile, V, fixture, tiny_gguf};
use serde_json::Value;
use weft_frontend::checkpoint::Checkpoint;
use weft_frontend::error::Result;
use weft_frontend::text::stream::StreamDecoder;
use weft_frontend::text::tokenizer::Tokenizer;

fn golden(kind: &str) -> Value {
    let text = std::fs::read(fixture("text/sentencepiece.json")).unwrap();
    let all: Value = serde_json::from_slice(&text).unwrap();
    all[kind].clone()
}

fn ids(v: &Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
}

/// A tiny model with the vocabulary.
fn file(golden: &Value, prefix: bool) -> GgufFile {
    let list = |key: &str| golden[key].as_array().unwrap().clone();
    let tokens: Vec<String> = list("tokens").iter().map(|t| t.as_str().unwrap().to_owned()).collect();
    let rows = tokens.len();
    let id = |key: &str| V::U32(golden[key].as_u64().unwrap() as u32);
    tiny_gguf()
        .without("token_embd.weight")
        .without("tokenizer.ggml.merges")
        .without("tokenizer.ggml.pre")
        .tensor("token_embd.weight", &[rows, 64], 0, vec![0; rows * 256])
        .set("tokenizer.ggml.model", "llama")
        .set("tokenizer.ggml.tokens", V::Strs(tokens))
        .set(
            "tokenizer.ggml.scores",
            V::F32s(list("scores").iter().map(|s| s.as_f64().unwrap() as f32).collect()),
        )
        .set(
            "tokenizer.ggml.token_type",
            V::I32s(ids(&golden["types"]).into_iter().map(|t| t as i32).collect()),
        )
        .set("tokenizer.ggml.bos_token_id", id("bos"))
        .set("tokenizer.ggml.eos_token_id", id("eos"))
        .set("tokenizer.ggml.add_space_prefix", V::Bool(prefix))
}

fn open(file: &GgufFile) -> Result<Tokenizer> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    file.write(&path);
    Tokenizer::open(&Checkpoint::open(&path).unwrap())
}

#[test]
fn ids_and_text_are_sentencepieces() {
    for (kind, prefix) in [("llama", true), ("gemma", false)] {
        let golden = golden(kind);
        let t = open(&file(&golden, prefix)).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() > 20);
        for case in cases {
            let text = case["text"].as_str().unwrap();
            let wanted = ids(&case["ids"]);
            let found = t.encode(text, false).unwrap();
            let spelled = |ids: &[u32]| ids.iter().filter_map(|&i| t.token_text(i)).collect::<Vec<_>>();
            assert_eq!(found, wanted, "{kind} {text:?}: {:?} for {:?}", spelled(&found), spelled(&wanted));
            assert_eq!(t.encode(text, true).unwrap(), [&[1], wanted.as_slice()].concat());
        }
        for case in golden["decoded"].as_array().unwrap() {
            let (list, text) = (ids(&case["ids"]), case["text"].as_str().unwrap());
            assert_eq!(t.decode(&list, true).unwrap(), text, "{kind}");
            let mut stream = StreamDecoder::new(&t, true, Vec::new());
            let mut out: String = list.iter().map(|&id| stream.push(id).unwrap().text).collect();
            out += &stream.finish().unwrap().text;
            assert_eq!(out, text, "{kind}, as a stream");
        }
    }
}

#[test]
fn vocabularies_that_do_not_fit_are_named() {
    let golden = golden("llama");
    let bad = |change: &dyn Fn(GgufFile) -> GgufFile, parts: &[&str]| {
        let text = open(&change(file(&golden, true))).unwrap_err().to_string();
        for part in ["model.gguf"].iter().chain(parts) {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
    };
    let key = |k: &str| format!("tokenizer.ggml.{k}");
    let n = golden["tokens"].as_array().unwrap().len();
    let strings = |change: &dyn Fn(&mut Vec<String>)| {
        let mut t: Vec<String> =
            golden["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap().to_owned()).collect();
        change(&mut t);
        V::Strs(t)
    };
    bad(&|f| f.without(&key("scores")), &["tokenizer.ggml.scores is missing", "tokenizer.json"]);
    bad(&|f| f.without(&key("token_type")), &["token_type is missing"]);
    bad(&|f| f.set(&key("scores"), V::F32s(vec![0.0; 3])), &["scores", "3 scores for 900 tokens"]);
    bad(&|f| f.set(&key("scores"), V::I32s(vec![0; n])), &["scores", "float32"]);
    bad(&|f| f.set(&key("scores"), V::F32s(vec![f32::NAN; n])), &["scores", "token 0 is NaN"]);
    bad(&|f| f.set(&key("token_type"), V::I32s(vec![1; 5])), &["token_type", "5 types for 900 tokens"]);
    bad(
        &|f| f.set(&key("tokens"), strings(&|t| t[300] = t[301].clone())),
        &["is both token 300 and token 301"],
    );
    bad(&|f| f.set(&key("tokens"), strings(&|t| t[300] = "y".repeat(600))), &["token 300 has 600 bytes"]);
    bad(&|f| f.set(&key("bos_token_id"), V::U32(5000)), &["bos_token_id", "5000 is not one of the 900"]);
    bad(&|f| f.set(&key("remove_extra_whitespaces"), V::Bool(true)), &["remove_extra_whitespaces"]);
    for other in ["t5", "rwkv", "plamo2", "none", "no_vocab"] {
        bad(
            &|f| f.set(&key("model"), other),
            &["tokenizer.ggml.model", other, "SentencePiece", "tokenizer.json"],
        );
    }
}
