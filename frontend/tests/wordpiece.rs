//! WordPiece vocabularies in GGUF files give what transformers' BertTokenizer gives (`goldens/wordpiece_vocab.py`).

mod common;

use common::{GgufFile, V, fixture};
use serde_json::Value;
use weft_frontend::checkpoint::Checkpoint;
use weft_frontend::error::Result;
use weft_frontend::text::tokenizer::Tokenizer;

fn golden(kind: &str) -> Value {
    let text = std::fs::read(fixture("text/wordpiece.json")).unwrap();
    let all: Value = serde_json::from_slice(&text).unwrap();
    all[kind].clone()
}

fn ids(v: &Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
}

fn tokens(golden: &Value) -> Vec<String> {
    golden["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap().to_owned()).collect()
}

/// What the tokenizer needs of a model with the vocabulary.
fn file(golden: &Value) -> GgufFile {
    let tokens = tokens(golden);
    let id = |name: &str| V::U32(golden["special"][name].as_u64().unwrap() as u32);
    let rows = tokens.len();
    GgufFile::default()
        .set("general.architecture", "bert")
        .set("bert.block_count", V::U32(1))
        .set("bert.context_length", V::U32(64))
        .set("bert.embedding_length", V::U32(4))
        .set("bert.feed_forward_length", V::U32(8))
        .set("bert.attention.head_count", V::U32(2))
        .set("bert.attention.layer_norm_epsilon", V::F32(1e-12))
        .set("bert.attention.causal", V::Bool(false))
        .set("tokenizer.ggml.token_type_count", V::U32(2))
        .set("tokenizer.ggml.model", "bert")
        .set("tokenizer.ggml.tokens", V::Strs(tokens))
        .set(
            "tokenizer.ggml.token_type",
            V::I32s(ids(&golden["types"]).into_iter().map(|t| t as i32).collect()),
        )
        .set("tokenizer.ggml.unknown_token_id", id("[UNK]"))
        .set("tokenizer.ggml.bos_token_id", id("[CLS]"))
        .set("tokenizer.ggml.seperator_token_id", id("[SEP]"))
        .set("tokenizer.ggml.padding_token_id", id("[PAD]"))
        .tensor("token_embd.weight", &[rows, 4], 0, vec![0; rows * 16])
        .tensor("token_types.weight", &[2, 4], 0, vec![0; 32])
}

fn open(file: &GgufFile) -> Result<Tokenizer> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    file.write(&path);
    Tokenizer::open(&Checkpoint::open(&path)?)
}

#[test]
fn ids_are_transformers() {
    for kind in ["lower", "cased"] {
        let golden = golden(kind);
        let t = open(&file(&golden)).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() > 20);
        for case in cases {
            let (text, wanted) = (case["text"].as_str().unwrap(), ids(&case["ids"]));
            let found = t.encode(text, true).unwrap();
            let spelled = |ids: &[u32]| ids.iter().filter_map(|&i| t.token_text(i)).collect::<Vec<_>>();
            assert_eq!(found, wanted, "{kind} {text:?}: {:?} for {:?}", spelled(&found), spelled(&wanted));
            assert_eq!(t.encode(text, false).unwrap(), wanted[1..wanted.len() - 1]);
        }
    }
}

#[test]
fn vocabularies_that_do_not_fit_are_named() {
    let golden = golden("lower");
    let bad = |change: &dyn Fn(GgufFile) -> GgufFile, parts: &[&str]| {
        let text = open(&change(file(&golden))).unwrap_err().to_string();
        for part in ["model.gguf"].iter().chain(parts) {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
    };
    let key = |k: &str| format!("tokenizer.ggml.{k}");
    let mut twice = tokens(&golden);
    twice[300] = twice[301].clone();
    bad(&|f| f.without(&key("seperator_token_id")), &["seperator_token_id is missing", "tokenizer.json"]);
    bad(&|f| f.without(&key("bos_token_id")), &["cls_token_id is missing"]);
    bad(&|f| f.set(&key("cls_token_id"), V::U32(5000)), &["cls_token_id", "5000 is not one of the"]);
    bad(&|f| f.set(&key("tokens"), V::Strs(twice.clone())), &["is both token 300 and token 301"]);
    bad(&|f| f.set(&key("token_type"), V::I32s(vec![1; 5])), &["token_type", "5 types for"]);
    bad(&|f| f.set(&key("token_type_count"), V::U32(3)), &["token_type_count", "3 types", "2 rows"]);
    // RoBERTa's and XLM-RoBERTa's.
    for other in ["gpt2", "t5", "llama"] {
        bad(&|f| f.set(&key("model"), other), &["tokenizer.ggml.model", other, "bert", "tokenizer.json"]);
    }
}
