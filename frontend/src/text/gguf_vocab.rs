//! A `tokenizer.json` made from the vocabulary in a GGUF file.
//!
//! SentencePiece's vocabularies (`tokenizer.ggml.model = "llama"`) are in [`super::gguf_spm`], WordPiece's (`"bert"`) in
//! [`super::gguf_wordpiece`].
//!
//! Byte-pair vocabularies (`tokenizer.ggml.model = "gpt2"`) hold tokens, merges and token types; how text
//! is cut before merging is only named (`tokenizer.ggml.pre`). The expressions of each name are those of
//! llama.cpp's `src/llama-vocab.cpp`, or the Hugging Face form that they were taken from.

use crate::error::{Error, Result};
use crate::gguf::Gguf;
use serde_json::{Value, json};
use std::collections::HashMap;

/// Llama 3's expression.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's: single digits.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// GPT-2's expression.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
/// BLOOM's: words and their space.
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
/// Mistral's Tekken: words change with the case of their letters.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// GPT-4o's: as Tekken's, with the endings of English verbs and digits by three.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How one kind of vocabulary cuts text before merging.
struct Pre {
    /// Names in `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    /// The pre-tokenizer in `tokenizer.json` form.
    split: fn() -> Value,
    /// Whether text is brought to Unicode NFC first.
    nfc: bool,
    /// Whether a piece that is a token is taken whole, without merging.
    ignore_merges: bool,
    /// Whether texts begin with the bos token where the file does not say.
    add_bos: bool,
}

const PRES: &[Pre] = &[
    Pre {
        names: &["default"],
        split: || split_then_bytes(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"]),
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
    Pre {
        names: &["gpt-2", "phi-2", "olmo", "mpt", "exaone4", "roberta-bpe", "gigachat", "trillion"],
        split: || byte_level(true),
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
    Pre {
        names: &["smollm", "starcoder", "refact", "codeshell", "command-r", "exaone", "minerva-7b"],
        split: || {
            let digits = json!({"type": "Digits", "individual_digits": true});
            json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]})
        },
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3"],
        split: || split_then_bytes(&[LLAMA3]),
        nfc: false,
        ignore_merges: true,
        add_bos: true,
    },
    Pre {
        names: &["qwen2", "deepseek-r1-qwen"],
        split: || split_then_bytes(&[QWEN2]),
        nfc: true,
        ignore_merges: false,
        add_bos: false,
    },
    Pre {
        names: &["stablelm2", "hunyuan", "megrez"],
        split: || split_then_bytes(&[QWEN2]),
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
    Pre {
        names: &["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"],
        split: || split_then_bytes(&[LLAMA3]),
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
    Pre {
        names: &["falcon"],
        split: || split_then_bytes(&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"]),
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
    Pre {
        names: &["bloom", "poro-chat", "gpt3-finnish"],
        split: || split_then_bytes(&[BLOOM]),
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
    Pre {
        names: &["tekken"],
        split: || split_then_bytes(&[TEKKEN]),
        nfc: false,
        ignore_merges: true,
        add_bos: true,
    },
    Pre {
        names: &["gpt-4o", "llama4", "kanana2"],
        split: || split_then_bytes(&[GPT4O]),
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
];

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

fn split(regex: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
}

/// Cut by these expressions, one after the other.
fn split_then_bytes(expressions: &[&str]) -> Value {
    let cuts: Vec<Value> = expressions.iter().map(|r| split(r)).chain([byte_level(false)]).collect();
    json!({"type": "Sequence", "pretokenizers": cuts})
}

/// Remedy of all that cannot be read from the file.
pub(super) const REMEDY: &str = "use the model's own tokenizer.json (Tokenizer::from_file)";

/// The file's vocabulary in the form of a `tokenizer.json`.
///
/// # Errors
/// [`Error::Unsupported`] for another kind of vocabulary or an unknown `tokenizer.ggml.pre`;
/// [`Error::MissingField`] or [`Error::Malformed`] naming the key.
pub(crate) fn tokenizer_json(file: &Gguf) -> Result<Value> {
    let path = file.path();
    let missing = |key: &str| Error::missing(path, key, REMEDY);
    let model = file.text("tokenizer.ggml.model")?.ok_or_else(|| missing("tokenizer.ggml.model"))?;
    // RoBERTa's files have BERT's architecture and a byte-level vocabulary, and do not say what its texts end with.
    let encoder = file.text("general.architecture")? == Some("bert");
    match model {
        "bert" => super::gguf_wordpiece::tokenizer_json(file),
        other if encoder => {
            let supported =
                format!("bert (WordPiece) for this architecture; for other vocabularies {REMEDY}");
            Err(Error::unsupported(path, "tokenizer.ggml.model", other, supported))
        }
        "gpt2" => byte_level_json(file),
        "llama" => super::gguf_spm::tokenizer_json(file),
        other => {
            let supported = format!(
                "gpt2 (byte-level BPE), llama (SentencePiece BPE), bert (WordPiece); for other vocabularies {REMEDY}"
            );
            Err(Error::unsupported(path, "tokenizer.ggml.model", other, supported))
        }
    }
}

/// A byte-level vocabulary.
fn byte_level_json(file: &Gguf) -> Result<Value> {
    let path = file.path();
    let missing = |key: &str| Error::missing(path, key, REMEDY);
    let pre_name = file.text("tokenizer.ggml.pre")?.ok_or_else(|| missing("tokenizer.ggml.pre"))?;
    let Some(pre) = PRES.iter().find(|p| p.names.contains(&pre_name)) else {
        let known: Vec<&str> = PRES.iter().flat_map(|p| p.names).copied().collect();
        let supported = format!("{}; for others {REMEDY}", known.join(", "));
        return Err(Error::unsupported(path, "tokenizer.ggml.pre", pre_name, supported));
    };
    let tokens = tokens(file)?;
    let merges = file.strings("tokenizer.ggml.merges")?.ok_or_else(|| missing("tokenizer.ggml.merges"))?;
    let vocab = vocabulary(file, &tokens)?;
    let mut pairs = Vec::with_capacity(merges.len());
    for merge in &merges {
        // A token may itself begin with a space, so the first is not looked at.
        let space = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(i, _)| i);
        let Some((left, right)) = space.and_then(|i| Some((merge.get(..i)?, merge.get(i + 1..)?))) else {
            let problem = format!("{merge:?} is not two tokens with a space between");
            return Err(Error::damaged(path, "tokenizer.ggml.merges", problem));
        };
        pairs.push(json!([left, right]));
    }
    let added = added_tokens(file, &tokens)?;
    let wants_bos = file.boolean("tokenizer.ggml.add_bos_token")?.unwrap_or(pre.add_bos);
    let wants_eos = file.boolean("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let ends = Ends::read(file, &tokens, wants_bos, wants_eos)?;
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": if pre.nfc { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": (pre.split)(),
        "post_processor": ends.post_processor().unwrap_or_else(|| byte_level(true)),
        "decoder": byte_level(true),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": pre.ignore_merges,
            "vocab": vocab,
            "merges": pairs,
        },
    }))
}

/// The tokens, by id.
pub(super) fn tokens(file: &Gguf) -> Result<Vec<String>> {
    let tokens = file.strings("tokenizer.ggml.tokens")?;
    tokens.ok_or_else(|| Error::missing(file.path(), "tokenizer.ggml.tokens", REMEDY))
}

/// The ids of tokens, which must differ.
pub(super) fn vocabulary<'a>(file: &Gguf, tokens: &'a [String]) -> Result<HashMap<&'a str, usize>> {
    let mut vocab = HashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if let Some(first) = vocab.insert(token.as_str(), id) {
            let problem = format!("{token:?} is both token {first} and token {id}");
            return Err(Error::damaged(file.path(), "tokenizer.ggml.tokens", problem));
        }
    }
    Ok(vocab)
}

/// Each token's type; `None` where the file does not say.
pub(super) fn types(file: &Gguf, tokens: &[String]) -> Result<Option<Vec<i64>>> {
    let Some(types) = file.integers("tokenizer.ggml.token_type")? else { return Ok(None) };
    if types.len() != tokens.len() {
        let problem = format!("{} types for {} tokens", types.len(), tokens.len());
        return Err(Error::damaged(file.path(), "tokenizer.ggml.token_type", problem));
    }
    Ok(Some(types))
}

/// Control tokens (ggml token type 3) are special; user-defined ones (4) are matched whole, but shown.
pub(super) fn added_tokens(file: &Gguf, tokens: &[String]) -> Result<Vec<Value>> {
    let Some(types) = types(file, tokens)? else { return Ok(Vec::new()) };
    // llama.cpp lets these of Phi 3 take the space behind them.
    let phi3 = file.text("general.architecture")? == Some("phi3");
    let wide = |token: &str| phi3 && !["<unk>", "<s>", "<|endoftext|>"].contains(&token);
    let of_interest = types.iter().zip(tokens).enumerate().filter(|(_, (kind, _))| matches!(kind, 3 | 4));
    Ok(of_interest
        .map(|(id, (kind, token))| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": *kind == 3 && wide(token), "normalized": false, "special": *kind == 3,
            })
        })
        .collect())
}

/// A special token that is to be added to every text: its text and id.
fn special(file: &Gguf, tokens: &[String], key: &str, wanted: bool) -> Result<Option<(String, u64)>> {
    if !wanted {
        return Ok(None);
    }
    let id = file.unsigned(key)?.ok_or_else(|| {
        Error::missing(file.path(), key, "the file says that the token is added to every text")
    })?;
    let token = usize::try_from(id).ok().and_then(|i| tokens.get(i));
    let token = token.ok_or_else(|| {
        Error::damaged(file.path(), key, format!("{id} is not one of the {} tokens", tokens.len()))
    })?;
    Ok(Some((token.clone(), id)))
}

/// The tokens that every text begins and ends with.
pub(super) struct Ends {
    bos: Option<(String, u64)>,
    eos: Option<(String, u64)>,
}

impl Ends {
    pub(super) fn read(file: &Gguf, tokens: &[String], bos: bool, eos: bool) -> Result<Ends> {
        Ok(Ends {
            bos: special(file, tokens, "tokenizer.ggml.bos_token_id", bos)?,
            eos: special(file, tokens, "tokenizer.ggml.eos_token_id", eos)?,
        })
    }

    /// Adds them; `None` where there is none.
    pub(super) fn post_processor(&self) -> Option<Value> {
        let Ends { bos, eos } = self;
        if bos.is_none() && eos.is_none() {
            return None;
        }
        let piece = |t: &(String, u64), kind: u32| json!({"SpecialToken": {"id": t.0, "type_id": kind}});
        let part = |name: &str, kind: u32| {
            let mut out: Vec<Value> = bos.iter().map(|t| piece(t, kind)).collect();
            out.push(json!({"Sequence": {"id": name, "type_id": kind}}));
            out.extend(eos.iter().map(|t| piece(t, kind)));
            out
        };
        let special: serde_json::Map<String, Value> = bos
            .iter()
            .chain(eos)
            .map(|(text, id)| (text.clone(), json!({"id": text, "ids": [id], "tokens": [text]})))
            .collect();
        let pair: Vec<Value> = part("A", 0).into_iter().chain(part("B", 1)).collect();
        Some(json!({
            "type": "TemplateProcessing", "single": part("A", 0), "pair": pair, "special_tokens": special
        }))
    }
}
