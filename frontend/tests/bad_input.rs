//! Bad files: each is a named error that says where and what, never a panic.

mod common;

use common::{GgufFile, V, fixture, safetensors, tiny_gguf};
use std::path::Path;
use weft_frontend::checkpoint::Checkpoint;
use weft_frontend::config::hf;
use weft_frontend::error::Error;
use weft_frontend::gguf::Gguf;
use weft_frontend::safetensors::SafetensorsSet;
use weft_frontend::text::chat::ChatTemplate;
use weft_frontend::text::tokenizer::Tokenizer;

/// Asserts that the error's text holds all of these.
#[track_caller]
fn says(error: Error, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
    assert!(text.contains(error.path().to_str().unwrap()), "the file is not named: {text}");
}

/// Opens bytes as a safetensors file.
#[track_caller]
fn bad_safetensors(bytes: &[u8], parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, bytes).unwrap();
    says(SafetensorsSet::open_file(&path).unwrap_err(), parts);
}

/// Opens bytes as a GGUF checkpoint.
#[track_caller]
fn bad_gguf(bytes: &[u8], parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    says(Checkpoint::open(&path).unwrap_err(), parts);
}

#[track_caller]
fn bad_config(change: &[(&str, serde_json::Value)], parts: &[&str]) {
    let mut config = llama_config();
    for (key, value) in change {
        config.insert((*key).to_owned(), value.clone());
    }
    let text = serde_json::to_vec(&config).unwrap();
    says(hf::parse(Path::new("some/config.json"), &text, &[]).unwrap_err(), parts);
}

fn llama_config() -> serde_json::Map<String, serde_json::Value> {
    serde_json::from_slice(&std::fs::read(fixture("tiny/llama/config.json")).unwrap()).unwrap()
}

#[test]
fn safetensors_lengths() {
    bad_safetensors(b"", &["empty"]);
    bad_safetensors(&[1, 2, 3], &["header length", "only 3 bytes"]);
    bad_safetensors(&[0xFF; 64], &["header length", "at most 100000000"]);
    let mut long = 99_000_000u64.to_le_bytes().to_vec();
    long.extend(b"{}");
    bad_safetensors(&long, &["header length", "99000000 bytes declared in a file of 10"]);
    let whole = std::fs::read(fixture("tiny/llama/model.safetensors")).unwrap();
    bad_safetensors(&whole[..whole.len() - 1], &["do not cover"]);
    bad_safetensors(&whole[..100], &["header length"]);
}

#[test]
fn safetensors_headers() {
    bad_safetensors(&safetensors("not json", 0), &["header"]);
    bad_safetensors(&safetensors("[1, 2]", 0), &["header"]);
    let mut not_utf8 = safetensors("{\"ab\":1}", 0);
    not_utf8[10] = 0xFF;
    bad_safetensors(&not_utf8, &["header"]);
    let entry = |name: &str, dtype: &str, shape: &str, from: u64, to: u64| {
        format!("\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{from},{to}]}}")
    };
    let one = |e: String, data| safetensors(&format!("{{{e}}}"), data);
    bad_safetensors(&one(entry("w", "F32", "[4]", 0, 12), 12), &["\"w\"", "do not hold"]);
    bad_safetensors(&one(entry("w", "F32", "[2]", 8, 0), 8), &["\"w\""]);
    bad_safetensors(&one(entry("w", "F99", "[2]", 0, 8), 8), &["\"w\"", "F99"]);
    bad_safetensors(&one(entry("w", "F32", "[-1]", 0, 8), 8), &["\"w\""]);
    let huge = "[4294967296,4294967296,4294967296]";
    bad_safetensors(&one(entry("w", "F32", huge, 0, 8), 8), &["\"w\"", "overflows"]);
    bad_safetensors(&one("\"w\":{\"dtype\":\"F32\",\"shape\":[2]}".into(), 8), &["\"w\"", "data_offsets"]);
    let overlap = format!("{},{}", entry("a", "F32", "[2]", 0, 8), entry("b", "F32", "[2]", 4, 12));
    bad_safetensors(&one(overlap, 12), &["\"b\"", "overlap"]);
    let twice = format!("{},{}", entry("a", "F32", "[2]", 0, 8), entry("a", "F32", "[2]", 0, 8));
    bad_safetensors(&one(twice, 8), &["\"a\"", "twice"]);
}

#[test]
fn an_unread_type_is_an_error_only_when_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let header = r#"{"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"BF16","shape":[1],"data_offsets":[2,4]}}"#;
    std::fs::write(&path, safetensors(header, 4)).unwrap();
    let set = SafetensorsSet::open_file(&path).unwrap();
    assert_eq!(set.data(set.tensor("b").unwrap()).unwrap().len(), 2);
    says(set.data(set.tensor("a").unwrap()).unwrap_err(), &["\"a\"", "F8_E4M3", "supported: f32"]);
}

#[test]
fn safetensors_indexes() {
    let folder = tempfile::tempdir().unwrap();
    let index = folder.path().join("model.safetensors.index.json");
    let open = |text: &str| {
        std::fs::write(&index, text).unwrap();
        SafetensorsSet::open_index(&index).unwrap_err()
    };
    says(open("{"), &["weight_map"]);
    says(open("{}"), &["weight_map"]);
    says(open(r#"{"weight_map":{}}"#), &["lists no tensors"]);
    says(open(r#"{"weight_map":{"a":"../x.safetensors"}}"#), &["plain file name"]);
    says(open(r#"{"weight_map":{"a":"/etc/passwd"}}"#), &["plain file name"]);
    says(open(r#"{"weight_map":{"a":"gone.safetensors"}}"#), &["cannot open"]);
    let header = r#"{"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    std::fs::write(folder.path().join("one.safetensors"), safetensors(header, 4)).unwrap();
    std::fs::write(folder.path().join("two.safetensors"), safetensors(header, 4)).unwrap();
    says(open(r#"{"weight_map":{"a":"one.safetensors"}}"#), &["\"a\"", "is not in"]);
    says(open(r#"{"weight_map":{"b":"one.safetensors","c":"two.safetensors"}}"#), &["\"b\"", "is also in"]);
}

#[test]
fn gguf_headers() {
    bad_gguf(b"GG", &["magic"]);
    bad_gguf(b"GGML\x03\0\0\0", &["magic", "GGUF"]);
    bad_gguf(b"GGUF\x01\0\0\0", &["version = 1", "2 and 3"]);
    bad_gguf(b"GGUF\0\0\0\x03", &["version"]);
    let huge = GgufFile { tensor_count: Some(u64::MAX), ..tiny_gguf() };
    bad_gguf(&huge.bytes(), &["tensor count", "18446744073709551615"]);
    let huge = GgufFile { kv_count: Some(1 << 40), ..tiny_gguf() };
    bad_gguf(&huge.bytes(), &["metadata count"]);
    let short = GgufFile { kv_count: Some(tiny_gguf().kv.len() as u64 + 1), ..tiny_gguf() };
    assert!(matches!(gguf_error(&short.bytes()), Error::Malformed { .. }));
}

fn gguf_error(bytes: &[u8]) -> Error {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    Checkpoint::open(&path).unwrap_err()
}

#[test]
fn gguf_metadata() {
    let long = V::Raw(8, u64::MAX.to_le_bytes().to_vec());
    bad_gguf(&tiny_gguf().set("general.name", long).bytes(), &["general.name", "more than the rest"]);
    let array = V::Raw(9, [4u32.to_le_bytes().to_vec(), (1u64 << 60).to_le_bytes().to_vec()].concat());
    bad_gguf(&tiny_gguf().set("some.array", array).bytes(), &["some.array"]);
    let kind = V::Raw(9, [99u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()].concat());
    bad_gguf(&tiny_gguf().set("some.array", kind).bytes(), &["some.array", "element type 99"]);
    let nested: Vec<u8> =
        (0..100).flat_map(|_| [9u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()].concat()).collect();
    bad_gguf(&tiny_gguf().set("some.array", V::Raw(9, nested)).bytes(), &["some.array", "nested"]);
    bad_gguf(&tiny_gguf().set("x", V::Raw(77, vec![])).bytes(), &["x", "value type 77"]);
    bad_gguf(&tiny_gguf().set("x", V::Raw(7, vec![2])).bytes(), &["bool stored as 2"]);
    let not_utf8 = V::Raw(8, [1u64.to_le_bytes().to_vec(), vec![0xFF]].concat());
    bad_gguf(&tiny_gguf().set("x", not_utf8).bytes(), &["not UTF-8"]);
    bad_gguf(&tiny_gguf().set("general.alignment", V::U32(0)).bytes(), &["general.alignment"]);
    bad_gguf(&tiny_gguf().set("general.alignment", V::U32(33)).bytes(), &["power of two"]);
    let mut twice = tiny_gguf();
    twice.kv.push(("llama.block_count".into(), V::U32(1)));
    bad_gguf(&twice.bytes(), &["llama.block_count", "twice"]);
    let text = tiny_gguf().set("llama.block_count", "two");
    bad_gguf(&text.bytes(), &["llama.block_count", "not a non-negative integer"]);
}

#[test]
fn gguf_tensors() {
    let mut far = tiny_gguf();
    far.offsets = vec![(3, 1 << 40)];
    bad_gguf(&far.bytes(), &["blk.0.attn_k.weight", "outside the file"]);
    far.offsets = vec![(3, u64::MAX - 31)];
    bad_gguf(&far.bytes(), &["blk.0.attn_k.weight", "outside the file"]);
    far.offsets = vec![(3, 32)];
    bad_gguf(&far.bytes(), &["overlaps tensor"]);
    far.offsets = vec![(3, 33)];
    bad_gguf(&far.bytes(), &["not a multiple of 32"]);
    let wide = tiny_gguf().tensor("x", &[1, 1, 1, 1, 1], 0, vec![0; 4]);
    bad_gguf(&wide.bytes(), &["\"x\"", "5 dimensions"]);
    let huge = tiny_gguf().tensor("x", &[1 << 40, 1 << 40], 0, vec![0; 4]);
    bad_gguf(&huge.bytes(), &["\"x\"", "overflows"]);
    let ragged = tiny_gguf().tensor("x", &[32, 31], 3, vec![0; 640]);
    bad_gguf(&ragged.bytes(), &["\"x\"", "blocks of q4_1"]);
    let twice = tiny_gguf().tensor("output_norm.weight", &[64], 0, vec![0; 256]);
    bad_gguf(&twice.bytes(), &["output_norm.weight", "twice"]);
    let whole = tiny_gguf().bytes();
    bad_gguf(&whole[..whole.len() - 1], &["output_norm.weight", "outside the file"]);
}

#[test]
fn gguf_unread_types_and_missing_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    tiny_gguf()
        .without("blk.0.attn_q.weight")
        .tensor("blk.0.attn_q.weight", &[64, 64], 16, vec![0; 64])
        .write(&path);
    let c = Checkpoint::open(&path).unwrap();
    let q = "model.layers.0.self_attn.q_proj.weight";
    says(c.source(q).unwrap_err(), &["blk.0.attn_q.weight", "IQ2_XXS", "q4_0, q4_1, q5_0"]);
    says(c.bytes("blk.0.attn_q.weight").unwrap_err(), &["IQ2_XXS"]);
    says(
        c.source("model.layers.7.mlp.up_proj.weight").unwrap_err(),
        &["model.layers.7.mlp.up_proj.weight", "blk.7.ffn_up.weight", "blk.0.ffn_up.weight"],
    );
    says(c.source("transformer.wte").unwrap_err(), &["no tensor \"transformer.wte\""]);
    says(c.bytes("nothing").unwrap_err(), &["no tensor \"nothing\""]);
    let few =
        tiny_gguf().without("blk.0.attn_q.weight").tensor("blk.0.attn_q.weight", &[32, 64], 0, vec![0; 8192]);
    few.write(&folder.path().join("few.gguf"));
    let c = Checkpoint::open(folder.path().join("few.gguf")).unwrap();
    says(c.source(q).unwrap_err(), &["32 rows are not 2 heads of 32"]);
}

#[test]
fn gguf_configurations() {
    let with = |key: &str, value: V| tiny_gguf().set(key, value).bytes();
    bad_gguf(&tiny_gguf().without("general.architecture").bytes(), &["general.architecture", "llama"]);
    bad_gguf(&with("general.architecture", "mamba".into()), &["mamba", "supported: llama"]);
    bad_gguf(&tiny_gguf().without("llama.block_count").bytes(), &["llama.block_count is missing"]);
    bad_gguf(&tiny_gguf().without("token_embd.weight").bytes(), &["token_embd.weight"]);
    bad_gguf(&with("llama.rope.scaling.type", "spiral".into()), &["llama.rope.scaling.type", "yarn"]);
    bad_gguf(&with("llama.rope.scaling.type", "linear".into()), &["llama.rope.scaling.factor"]);
    bad_gguf(&with("llama.expert_count", V::U32(8)), &["llama.expert_used_count is missing"]);
    bad_gguf(&with("llama.attention.sliding_window", V::U32(64)), &["sliding_window"]);
    bad_gguf(&with("llama.attention.causal", V::Bool(false)), &["attention.causal"]);
    bad_gguf(&with("llama.rope.dimension_count", V::U32(16)), &["rope.dimension_count = 16"]);
    bad_gguf(&with("llama.attention.head_count_kv", V::U32(0)), &["num_key_value_heads"]);
    bad_gguf(&with("llama.attention.head_count", V::U32(0)), &["key_length"]);
    bad_gguf(&with("llama.attention.head_count_kv", V::I32s(vec![1, 2])), &["head_count_kv", "every layer"]);
    bad_gguf(&with("llama.vocab_size", V::U32(9)), &["llama.vocab_size", "262 rows"]);
    bad_gguf(&with("llama.rope.freq_base", V::F32(f32::NAN)), &["rope_theta"]);
    let factors = tiny_gguf().tensor("rope_freqs.weight", &[7], 0, vec![0; 28]);
    bad_gguf(&factors.bytes(), &["rope factors", "7 factors for 16 pairs"]);
}

#[test]
fn gguf_vocabularies() {
    let open = |file: GgufFile| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        file.write(&path);
        Tokenizer::open(&Checkpoint::open(&path).unwrap()).unwrap_err()
    };
    says(open(tiny_gguf().set("tokenizer.ggml.model", "t5")), &["tokenizer.ggml.model = t5", "gpt2"]);
    says(
        open(tiny_gguf().set("tokenizer.ggml.pre", "martian")),
        &["martian", "smollm", "llama-bpe", "qwen2"],
    );
    says(
        open(tiny_gguf().without("tokenizer.ggml.pre")),
        &["tokenizer.ggml.pre is missing", "tokenizer.json"],
    );
    says(open(tiny_gguf().without("tokenizer.ggml.merges")), &["tokenizer.ggml.merges is missing"]);
    let merges = |m: &str| tiny_gguf().set("tokenizer.ggml.merges", V::Strs(vec![m.to_owned()]));
    says(open(merges("nospace")), &["tokenizer.ggml.merges", "nospace"]);
    says(open(merges("h zzz")), &["tokenizer.ggml"]);
    says(open(tiny_gguf().set("tokenizer.ggml.token_type", V::I32s(vec![1]))), &["1 types for 262 tokens"]);
    let bos = tiny_gguf().set("tokenizer.ggml.add_bos_token", V::Bool(true));
    says(open(bos.clone().set("tokenizer.ggml.bos_token_id", V::U32(999))), &["bos_token_id", "999"]);
    says(open(bos.without("tokenizer.ggml.bos_token_id")), &["bos_token_id is missing"]);
    let mut tokens = common::byte_alphabet();
    tokens.resize(262, "a".to_owned());
    says(open(tiny_gguf().set("tokenizer.ggml.tokens", V::Strs(tokens))), &["both token"]);
}

#[test]
fn configs() {
    use serde_json::json;
    bad_config(&[("model_type", json!("mamba"))], &["model_type = mamba", "supported: llama"]);
    bad_config(&[("model_type", json!(null))], &["model_type is missing"]);
    bad_config(&[("hidden_size", json!("big"))], &["hidden_size", "not a non-negative integer"]);
    bad_config(&[("hidden_size", json!(null))], &["hidden_size is missing"]);
    bad_config(&[("hidden_size", json!(1e300))], &["hidden_size"]);
    bad_config(&[("vocab_size", json!(0))], &["vocab_size", "between 1 and"]);
    bad_config(&[("vocab_size", json!(u64::MAX))], &["vocab_size"]);
    bad_config(&[("num_key_value_heads", json!(3))], &["num_key_value_heads", "does not divide"]);
    bad_config(&[("num_attention_heads", json!(0)), ("head_dim", json!(null))], &["head_dim"]);
    bad_config(&[("head_dim", json!(33))], &["head_dim", "odd"]);
    bad_config(&[("hidden_act", json!("mish"))], &["hidden_act = mish", "silu", "gelu"]);
    bad_config(&[("torch_dtype", json!("int4"))], &["dtype = int4", "bfloat16"]);
    bad_config(&[("sliding_window", json!(4096))], &["sliding_window = 4096"]);
    bad_config(&[("logits_scaling", json!(8.0))], &["logits_scaling = 8.0"]);
    bad_config(&[("attention_multiplier", json!(0.1))], &["attention_multiplier"]);
    bad_config(&[("quantization_config", json!({"bits": 4}))], &["quantization_config"]);
    bad_config(&[("rope_interleaved", json!(true))], &["rope_interleaved = true"]);
    bad_config(&[("architectures", json!(["LlamaModel"]))], &["architectures", "LlamaForCausalLM"]);
    bad_config(&[("eos_token_id", json!("two"))], &["eos_token_id", "token id"]);
    bad_config(&[("rms_norm_eps", json!(-1.0))], &["rms_norm_eps"]);
    let rope = |value| [("rope_scaling", value)];
    bad_config(&rope(json!({"type": "spiral", "factor": 2.0})), &["rope_scaling.rope_type = spiral"]);
    bad_config(&rope(json!({"rope_type": "proportional"})), &["proportional", "default, linear", "llama3"]);
    bad_config(&rope(json!({"rope_type": "linear"})), &["rope_scaling.factor is missing"]);
    bad_config(&rope(json!({"rope_type": "linear", "factor": 0.0})), &["factor"]);
    bad_config(&rope(json!({"rope_type": "llama3", "factor": 8.0})), &["low_freq_factor is missing"]);
    bad_config(&rope(json!("linear")), &["rope_scaling", "not an object"]);
    bad_config(&rope(json!({"type": "default", "mscale": 2})), &["rope_scaling.mscale"]);
    let new = |value| [("rope_theta", json!(null)), ("rope_parameters", value)];
    bad_config(
        &new(json!({"rope_type": "default", "partial_rotary_factor": 0.5})),
        &["partial_rotary_factor = 0.5"],
    );
    bad_config(&[("rope_parameters", json!({"rope_theta": 5.0}))], &["rope_theta", "contradicts"]);
    let path = Path::new("some/config.json");
    says(hf::parse(path, b"{\"a\": ", &[]).unwrap_err(), &["JSON"]);
    says(hf::parse(path, b"[]", &[]).unwrap_err(), &["not an object"]);
    says(hf::parse(path, b"\xFF\xFE", &[]).unwrap_err(), &["JSON"]);
}

#[test]
fn places_without_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    says(Checkpoint::open(folder.path().join("gone")).unwrap_err(), &["cannot open"]);
    says(Checkpoint::open(folder.path()).unwrap_err(), &["a folder without weights", "config.json"]);
    let text = folder.path().join("notes.txt");
    std::fs::write(&text, "hello").unwrap();
    says(Checkpoint::open(&text).unwrap_err(), &["another ending", ".gguf"]);
    let weights = folder.path().join("model.safetensors");
    std::fs::copy(fixture("tiny/llama/model.safetensors"), &weights).unwrap();
    says(Checkpoint::open(folder.path()).unwrap_err(), &["config.json", "same folder"]);
    std::fs::remove_file(&weights).unwrap();
    tiny_gguf().write(&folder.path().join("a.gguf"));
    tiny_gguf().write(&folder.path().join("b.gguf"));
    says(Checkpoint::open(folder.path()).unwrap_err(), &["2 .gguf files"]);
    says(Tokenizer::open_folder(folder.path()).unwrap_err(), &["tokenizer.json", "is missing"]);
    let json = folder.path().join("tokenizer.json");
    std::fs::write(&json, "{\"version\": \"1.0\"}").unwrap();
    says(Tokenizer::from_file(&json).unwrap_err(), &["tokenizer.json"]);
    let settings = folder.path().join("tokenizer_config.json");
    for (text, part) in [
        ("{", "JSON"),
        ("{\"chat_template\": 3}", "neither text nor a list"),
        ("{\"chat_template\": [{\"name\": \"x\"}]}", "an entry that is not"),
        ("{\"chat_template\": \"{% if %}\"}", "syntax error"),
    ] {
        std::fs::write(&settings, text).unwrap();
        says(ChatTemplate::open_folder(folder.path()).unwrap_err(), &[part]);
    }
}

/// Every cut and many single-byte changes of small files: an answer or an error, never a panic.
#[test]
fn damaged_files_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F16","shape":[2,2],"data_offsets":[0,8]},"b":{"dtype":"I64","shape":[1],"data_offsets":[8,16]}}"#;
    let safe = safetensors(header, 16);
    let mut file = common::vocabulary(GgufFile::default());
    file.kv.retain(|(k, _)| !k.ends_with(".tokens") && !k.ends_with(".token_type"));
    let gguf = file.tensor("token_embd.weight", &[4, 32], 2, vec![1; 72]).bytes();
    for (name, whole) in [("x.safetensors", &safe), ("x.gguf", &gguf)] {
        let path = folder.path().join(name);
        let open = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            if name.ends_with(".gguf") {
                if let Ok(file) = Gguf::open(&path) {
                    for key in file.keys() {
                        let _ = (file.strings(key), file.integers(key), file.number(key));
                    }
                    for t in file.tensors() {
                        let _ = file.data(t);
                    }
                }
            } else if let Ok(set) = SafetensorsSet::open_file(&path) {
                for t in set.tensors() {
                    let _ = set.data(t);
                }
            }
        };
        for end in 0..whole.len() {
            open(&whole[..end]);
        }
        for at in 0..whole.len() {
            for value in [0x00, 0x01, 0x7F, 0xFF, whole[at] ^ 0x10] {
                let mut changed = whole.clone();
                changed[at] = value;
                open(&changed);
            }
        }
    }
}
