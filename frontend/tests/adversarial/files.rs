//! Files of weights: headers, indices and GGUF files.

use super::{Cases, case, sparse, whole, with_gguf, with_index, with_key, with_safetensors};
use crate::common::{GgufFile, V, safetensors, tiny_gguf};
use serde_json::json;
pub(super) fn headers(all: &mut Cases) {
    with_safetensors(all, "header longer than the file", &["model.safetensors", "header length"], || {
        u64::MAX.to_le_bytes().to_vec()
    });
    case(all, "header of ninety megabytes of nothing", &["header length", "16777216"], |folder| {
        whole(folder);
        let path = folder.join("model.safetensors");
        std::fs::write(&path, (90_000_000u64).to_le_bytes()).unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100_000_000).unwrap();
        folder.to_owned()
    });
    with_safetensors(all, "header nested deep", &["model.safetensors", "header"], || {
        safetensors(&"[".repeat(1 << 20), 0)
    });
    with_safetensors(all, "header of a hundred thousand tensors", &["no tensor"], || {
        let entries: Vec<String> = (0..100_000)
            .map(|i| format!("\"t{i}\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}"))
            .collect();
        safetensors(&format!("{{{}}}", entries.join(",")), 0)
    });
    with_safetensors(all, "header of a shape of a million", &["model.safetensors", "tensor \"a\""], || {
        safetensors(
            &format!(
                "{{\"a\":{{\"dtype\":\"U8\",\"shape\":[{}1],\"data_offsets\":[0,2]}}}}",
                "1,".repeat(500_000)
            ),
            1,
        )
    });
    with_safetensors(all, "shape that overflows", &["tensor \"a\"", "overflows"], || {
        safetensors(r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,2],"data_offsets":[0,0]}}"#, 0)
    });
    with_safetensors(all, "shape that overflows by its type", &["tensor \"a\""], || {
        safetensors(r#"{"a":{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0]}}"#, 0)
    });
    with_safetensors(all, "offsets that overlap", &["tensor \"b\"", "overlap"], || {
        safetensors(
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
            12,
        )
    });
    with_safetensors(all, "offsets that run backwards", &["tensor \"a\""], || {
        safetensors(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8)
    });
    with_safetensors(all, "offsets below zero", &["tensor \"a\""], || {
        safetensors(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}}"#, 8)
    });
    with_safetensors(all, "header not UTF-8", &["model.safetensors", "header"], || {
        let mut bytes = safetensors(r#"{"aa":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8);
        bytes[10] = 0xFF;
        bytes
    });
    with_safetensors(all, "a tensor twice", &["tensor \"a\"", "twice"], || {
        safetensors(
            r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#,
            0,
        )
    });
    with_safetensors(all, "an unknown type", &["tensor \"a\""], || {
        safetensors(r#"{"a":{"dtype":"F13","shape":[2],"data_offsets":[0,8]}}"#, 8)
    });
    with_safetensors(all, "an empty file", &["model.safetensors", "empty"], Vec::new);
}

pub(super) fn indices(all: &mut Cases) {
    let to = |shard: &str| json!({"weight_map": {"x": shard}}).to_string();
    for (name, parts, shard) in [
        ("index with a way out", &["weight_map", "../a.safetensors"][..], "../a.safetensors"),
        ("index with an absolute way", &["weight_map", "/etc/passwd"][..], "/etc/passwd"),
        ("index with a folder", &["weight_map", "sub/a.safetensors"][..], "sub/a.safetensors"),
        ("index with no name", &["weight_map", "plain file name"][..], ""),
        ("index with a dot", &["weight_map", "plain file name"][..], "."),
        (
            "index that names itself",
            &["model.safetensors.index.json", "header"][..],
            "model.safetensors.index.json",
        ),
        ("index with a NUL", &["open"][..], "a\0.safetensors"),
        ("index of a shard that is not there", &["b.safetensors", "No such file"][..], "b.safetensors"),
        ("index of a tensor that is not there", &["weight_map", "tensor \"x\""][..], "a.safetensors"),
    ] {
        with_index(all, name, parts, move || to(shard));
    }
    with_index(all, "index with a tensor twice", &["weight_map", "twice"], || {
        r#"{"weight_map": {"x": "a.safetensors", "x": "a.safetensors"}}"#.to_owned()
    });
    with_index(all, "index of half a million tensors", &["weight_map", "tensor \"t0\""], || {
        let entries: Vec<String> = (0..500_000).map(|i| format!("\"t{i}\":\"a.safetensors\"")).collect();
        format!("{{\"weight_map\": {{{}}}}}", entries.join(","))
    });
    with_index(all, "index without a map", &["weight_map"], || "{\"metadata\": {}}".to_owned());
    with_index(all, "index of numbers", &["weight_map"], || "{\"weight_map\": {\"x\": 3}}".to_owned());
    case(all, "index of a terabyte", &["model.safetensors.index.json", "size"], |folder| {
        whole(folder);
        std::fs::remove_file(folder.join("model.safetensors")).unwrap();
        sparse(&folder.join("model.safetensors.index.json"), 1 << 40);
        folder.to_owned()
    });
}

pub(super) fn ggufs(all: &mut Cases) {
    let huge = |kind: u32, n: u64| V::Raw(9, [&kind.to_le_bytes()[..], &n.to_le_bytes()].concat());
    with_key(
        all,
        "an array of 2^60",
        &["model.gguf", "tokenizer.ggml.tokens", "rest of the file"],
        "tokenizer.ggml.tokens",
        huge(8, 1 << 60),
    );
    with_key(all, "an array of 2^63 bytes", &["model.gguf", "x.y"], "x.y", huge(0, 1 << 63));
    with_key(all, "arrays in arrays in arrays", &["model.gguf", "nested deeper"], "x.y", {
        let mut inner = [9u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()].concat();
        inner = inner.repeat(1000);
        V::Raw(9, inner)
    });
    with_key(all, "alignment 0", &["general.alignment", "power of two"], "general.alignment", V::U32(0));
    with_key(all, "alignment 3", &["general.alignment", "power of two"], "general.alignment", V::U32(3));
    with_key(all, "alignment 2^31", &["general.alignment"], "general.alignment", V::U32(1 << 31));
    with_key(
        all,
        "epsilon that is no number",
        &["eps", "NaN"],
        "llama.attention.layer_norm_rms_epsilon",
        V::F32(f32::NAN),
    );
    with_key(all, "theta below zero", &["rope_theta"], "llama.rope.freq_base", V::F32(-1.0));
    with_key(all, "infinite rope scaling", &["factor"], "llama.rope.scaling.factor", V::F32(f32::INFINITY));
    with_key(all, "no heads", &["attention.key_length"], "llama.attention.head_count", V::U32(0));
    with_key(all, "no key heads", &["num_key_value_heads"], "llama.attention.head_count_kv", V::U32(0));
    with_key(
        all,
        "blocks without end",
        &["llama.block_count", "65536"],
        "llama.block_count",
        V::U32(u32::MAX),
    );
    with_key(all, "as many blocks as allowed", &["blk.1."], "llama.block_count", V::U32(65536));
    with_key(all, "blocks as text", &["llama.block_count"], "llama.block_count", V::Str("one".into()));
    with_key(all, "a width of nothing", &["hidden_size"], "llama.embedding_length", V::U32(0));
    with_key(all, "a bool stored as 7", &["x.y", "bool stored as 7"], "x.y", V::Raw(7, vec![7]));
    with_key(all, "an unknown value type", &["x.y", "unknown value type 99"], "x.y", V::Raw(99, vec![0; 8]));
    with_key(
        all,
        "text not UTF-8",
        &["general.name", "UTF-8"],
        "general.name",
        V::Raw(8, [&2u64.to_le_bytes()[..], b"\xC3\x28"].concat()),
    );
    with_key(
        all,
        "text of 2^60",
        &["general.name"],
        "general.name",
        V::Raw(8, (1u64 << 60).to_le_bytes().to_vec()),
    );
    with_key(
        all,
        "a merge without a space",
        &["tokenizer.ggml.merges", "nospace"],
        "tokenizer.ggml.merges",
        V::Strs(vec!["nospace".into()]),
    );
    with_key(
        all,
        "a merge of no tokens in GGUF",
        &["model.gguf", "tokenizer"],
        "tokenizer.ggml.merges",
        V::Strs(vec!["zz qq".into()]),
    );
    with_key(
        all,
        "fewer tokens than rows",
        &["tokenizer.ggml.tokens", "3 tokens", "262 rows"],
        "tokenizer.ggml.tokens",
        V::Strs(vec!["a".into(), "b".into(), "c".into()]),
    );
    with_gguf(all, "a key twice", &["model.gguf", "twice"], || {
        let mut file = tiny_gguf();
        file.kv.push(("llama.block_count".into(), V::U32(2)));
        file.bytes()
    });
    with_gguf(all, "a tensor twice in GGUF", &["blk.0.attn_q.weight", "twice"], || {
        tiny_gguf().tensor("blk.0.attn_q.weight", &[64, 64], 0, vec![0; 16384]).bytes()
    });
    with_gguf(all, "tensors without end", &["tensor count"], || {
        GgufFile { tensor_count: Some(u64::MAX), ..tiny_gguf() }.bytes()
    });
    with_gguf(all, "keys without end", &["metadata count"], || {
        GgufFile { kv_count: Some(1 << 60), ..tiny_gguf() }.bytes()
    });
    with_gguf(all, "a hundred thousand keys", &["metadata count", "65536"], || {
        let mut file = tiny_gguf();
        file.kv.extend((0..100_000).map(|i| (format!("k{i}"), V::Bool(true))));
        file.bytes()
    });
    with_gguf(all, "tensors that overlap", &["overlaps tensor"], || {
        GgufFile { offsets: vec![(1, 0)], ..tiny_gguf() }.bytes()
    });
    with_gguf(all, "an offset at the end of numbers", &["outside the file"], || {
        GgufFile { offsets: vec![(1, u64::MAX - 31)], ..tiny_gguf() }.bytes()
    });
    with_gguf(all, "an offset that is not aligned", &["not a multiple"], || {
        GgufFile { offsets: vec![(1, 7)], ..tiny_gguf() }.bytes()
    });
    with_gguf(all, "dimensions that overflow", &["tensor \"big\"", "overflows"], || {
        tiny_gguf().tensor("big", &[1 << 40, 1 << 40], 0, vec![0; 4]).bytes()
    });
    with_gguf(all, "a dimension of nothing", &["blk.0.attn_q.weight"], || {
        tiny_gguf()
            .without("blk.0.attn_q.weight")
            .tensor("blk.0.attn_q.weight", &[0, 64], 0, Vec::new())
            .bytes()
    });
    with_gguf(all, "an embedding of nothing", &["token_embd.weight", "0 rows"], || {
        tiny_gguf().without("token_embd.weight").tensor("token_embd.weight", &[0, 0], 0, Vec::new()).bytes()
    });
    with_gguf(all, "a hundred dimensions", &["tensor \"x\"", "at most 4"], || {
        tiny_gguf().tensor("x", &[1; 100], 0, vec![0; 4]).bytes()
    });
    with_gguf(all, "a block that is cut", &["does not fill blocks of q4_k"], || {
        tiny_gguf().tensor("x", &[100], 12, vec![0; 144]).bytes()
    });
    with_gguf(all, "bytes of another order", &["version"], || {
        let mut bytes = tiny_gguf().bytes();
        bytes[4..8].copy_from_slice(&3u32.to_be_bytes());
        bytes
    });
}
