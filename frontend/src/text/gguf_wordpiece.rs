//! WordPiece vocabularies in GGUF files (`tokenizer.ggml.model = "bert"`) as a `tokenizer.json`.
//!
//! WordPiece (Schuster & Nakajima 2012) takes the longest token that a word begins with, then the longest that the rest
//! goes on with. Hugging Face marks the tokens that go on with `##`, llama.cpp's converter those that begin with `▁`;
//! tokens in square brackets stay as they are. Files do not say whether text is put in lower case (and loses its
//! accents): it is where no token has an upper-case letter, since none of the others could be met.

use super::gguf_vocab::{REMEDY, added_tokens, tokens, vocabulary};
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use serde_json::{Map, Value, json};

/// Begins a token that begins a word.
const BEGIN: char = '\u{2581}';
/// Hugging Face's mark of a token that goes on with a word.
const GO_ON: &str = "##";
/// Longest word that is looked at, in characters (BERT's code).
const MAX_WORD: usize = 100;

/// The file's vocabulary in the form of a `tokenizer.json`.
///
/// # Errors
/// [`Error::MissingField`] or [`Error::Malformed`], naming the key.
pub(super) fn tokenizer_json(file: &Gguf) -> Result<Value> {
    let tokens = tokens(file)?;
    vocabulary(file, &tokens)?;
    let vocab: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, t)| (spelled(t), id.into())).collect();
    // Newer files call the first token of a text the beginning, older ones the class.
    let first = special(file, &tokens, &["tokenizer.ggml.cls_token_id", "tokenizer.ggml.bos_token_id"])?;
    let last = special(file, &tokens, &["tokenizer.ggml.seperator_token_id", "tokenizer.ggml.eos_token_id"])?;
    let unknown = special(file, &tokens, &["tokenizer.ggml.unknown_token_id"])?;
    let lower = !tokens.iter().any(|t| !is_bracketed(t) && t.chars().any(char::is_uppercase));
    let piece = |(text, _): &(String, u64), kind: u32| json!({"SpecialToken": {"id": text, "type_id": kind}});
    let part = |name: &str, kind: u32| json!({"Sequence": {"id": name, "type_id": kind}});
    let known =
        |(text, id): &(String, u64)| (text.clone(), json!({"id": text, "ids": [id], "tokens": [text]}));
    let both: Map<String, Value> = [known(&first), known(&last)].into_iter().collect();
    let single = [piece(&first, 0), part("A", 0), piece(&last, 0)];
    let pair: Vec<Value> = single.iter().cloned().chain([part("B", 1), piece(&last, 1)]).collect();
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(file, &tokens)?,
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
            "lowercase": lower,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing", "single": single, "pair": pair,
            "special_tokens": both,
        },
        "decoder": {"type": "WordPiece", "prefix": GO_ON, "cleanup": true},
        "model": {
            "type": "WordPiece", "unk_token": unknown.0, "continuing_subword_prefix": GO_ON,
            "max_input_chars_per_word": MAX_WORD, "vocab": vocab,
        },
    }))
}

fn is_bracketed(token: &str) -> bool {
    token.starts_with('[') && token.ends_with(']')
}

/// A token as Hugging Face spells it.
fn spelled(token: &str) -> String {
    match token.strip_prefix(BEGIN) {
        Some(begins) => begins.to_owned(),
        None if is_bracketed(token) => token.to_owned(),
        None => format!("{GO_ON}{token}"),
    }
}

/// The text and id of a special token, by the first of these keys that the file has.
fn special(file: &Gguf, tokens: &[String], keys: &[&str]) -> Result<(String, u64)> {
    for key in keys {
        let Some(id) = file.unsigned(key)? else { continue };
        let token = usize::try_from(id).ok().and_then(|i| tokens.get(i));
        let token = token.ok_or_else(|| {
            Error::damaged(file.path(), *key, format!("{id} is not one of the {} tokens", tokens.len()))
        })?;
        return Ok((spelled(token), id));
    }
    Err(Error::missing(file.path(), keys.first().copied().unwrap_or_default(), REMEDY))
}
