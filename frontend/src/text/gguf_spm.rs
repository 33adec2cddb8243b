//! SentencePiece's BPE vocabularies in GGUF files (`tokenizer.ggml.model = "llama"`: Llama 2, Mistral, Phi 3, Gemma) as a
//! `tokenizer.json`.
//!
//! SentencePiece (Kudo & Richardson 2018) merges, over and over, the two neighbours whose joined token has the highest
//! score. So every cut of a token into two tokens is a merge, and its rank that of the token's score: byte-pair
//! encoding (Sennrich et al. 2016) with these merges does the same, but where different tokens have one score. Spaces
//! are `▁`, and one stands before each piece of text unless `add_space_prefix` says otherwise; characters without a
//! token are bytes (`<0x0A>`).

use super::gguf_vocab::{Ends, REMEDY, added_tokens, tokens, types, vocabulary};
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use serde_json::{Value, json};
use std::collections::HashMap;

/// Space in tokens.
const SPACE: &str = "\u{2581}";
/// Longest token that is taken apart, in bytes: SentencePiece's own limit is 16 characters.
const MAX_TOKEN: usize = 512;

/// Types of tokens (`enum llama_token_type`).
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const USER_DEFINED: i64 = 4;

/// The file's vocabulary in the form of a `tokenizer.json`.
///
/// # Errors
/// [`Error::MissingField`], [`Error::Unsupported`] or [`Error::Malformed`], naming the key.
pub(super) fn tokenizer_json(file: &Gguf) -> Result<Value> {
    let path = file.path();
    let tokens = tokens(file)?;
    let vocab = vocabulary(file, &tokens)?;
    let types = types(file, &tokens)?;
    let types = types.ok_or_else(|| Error::missing(path, "tokenizer.ggml.token_type", REMEDY))?;
    let scores = file.floats("tokenizer.ggml.scores")?;
    let scores = scores.ok_or_else(|| Error::missing(path, "tokenizer.ggml.scores", REMEDY))?;
    if scores.len() != tokens.len() {
        let problem = format!("{} scores for {} tokens", scores.len(), tokens.len());
        return Err(Error::damaged(path, "tokenizer.ggml.scores", problem));
    }
    if let Some(id) = scores.iter().position(|s| s.is_nan()) {
        return Err(Error::damaged(path, "tokenizer.ggml.scores", format!("that of token {id} is NaN")));
    }
    if file.boolean("tokenizer.ggml.remove_extra_whitespaces")? == Some(true) {
        let supported = format!("absent or false; for such vocabularies {REMEDY}");
        return Err(Error::unsupported(path, "tokenizer.ggml.remove_extra_whitespaces", true, supported));
    }
    let prefix = file.boolean("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let bos = file.boolean("tokenizer.ggml.add_bos_token")?.unwrap_or(true);
    let eos = file.boolean("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let ends = Ends::read(file, &tokens, bos, eos)?;
    let merges = merges(file, &tokens, &vocab, &types, &scores)?;
    let unknown = match file.unsigned("tokenizer.ggml.unknown_token_id")? {
        Some(id) => usize::try_from(id).ok(),
        None => types.iter().position(|&t| t == UNKNOWN),
    };
    let unknown = unknown.and_then(|id| tokens.get(id));

    let replace =
        |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let mut normalizers = vec![replace(" ", SPACE)];
    let mut decoders = vec![replace(SPACE, " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(file, &tokens)?,
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": ends.post_processor(),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": merges,
        },
    }))
}

/// Every cut of a token into two, the best first: by the token's score, then by ids.
fn merges<'a>(
    file: &Gguf,
    tokens: &'a [String],
    vocab: &HashMap<&'a str, usize>,
    types: &[i64],
    scores: &[f32],
) -> Result<Vec<[&'a str; 2]>> {
    let takes_part = |id: usize| matches!(types.get(id), Some(&NORMAL | &USER_DEFINED));
    // Lengths that tokens have: a cut into other lengths need not be looked up.
    let mut lengths = [false; MAX_TOKEN + 1];
    for (id, token) in tokens.iter().enumerate().filter(|(id, _)| takes_part(*id)) {
        let Some(length) = lengths.get_mut(token.len()) else {
            let problem = format!("token {id} has {} bytes, at most {MAX_TOKEN} allowed", token.len());
            return Err(Error::damaged(file.path(), "tokenizer.ggml.tokens", problem));
        };
        *length = true;
    }
    let mut found = Vec::new();
    for (id, token) in tokens.iter().enumerate().filter(|(id, _)| takes_part(*id)) {
        for (at, _) in token.char_indices().skip(1) {
            if !lengths[at] || !lengths[token.len() - at] {
                continue;
            }
            let (left, right) = token.split_at(at);
            if let (Some(&l), Some(&r)) = (vocab.get(left), vocab.get(right))
                && takes_part(l)
                && takes_part(r)
            {
                found.push((scores[id], id, l, r));
            }
        }
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| (a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
    Ok(found.iter().map(|(_, _, l, r)| [tokens[*l].as_str(), tokens[*r].as_str()]).collect())
}
