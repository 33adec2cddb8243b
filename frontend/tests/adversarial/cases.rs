//! The cases: a checkpoint that is whole but for one thing.

use crate::common::{GgufFile, V, fixture, safetensors, tiny_gguf};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A bad checkpoint.
pub struct Case {
    pub name: &'static str,
    /// What the error says.
    pub parts: &'static [&'static str],
    make: Box<dyn Fn(&Path) -> PathBuf>,
}

impl Case {
    /// Writes it; gives the path to open.
    pub fn write(&self, folder: &Path) -> PathBuf {
        (self.make)(folder)
    }
}

type Cases = Vec<Case>;

fn case(
    all: &mut Cases,
    name: &'static str,
    parts: &'static [&'static str],
    make: impl Fn(&Path) -> PathBuf + 'static,
) {
    all.push(Case { name, parts, make: Box::new(make) });
}

/// A whole folder: the tiny llama with a tokenizer and a template.
fn whole(folder: &Path) {
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("tiny/llama").join(file), folder.join(file)).unwrap();
    }
    write(folder, "tokenizer.json", tokenizer().to_string());
    write(folder, "tokenizer_config.json", json!({"chat_template": "{{ messages[0].content }}"}).to_string());
}

fn write(folder: &Path, file: &str, text: impl AsRef<[u8]>) {
    std::fs::write(folder.join(file), text).unwrap();
}

/// A file that is long and takes no room.
fn sparse(path: &Path, length: u64) {
    std::fs::File::create(path).unwrap().set_len(length).unwrap();
}

fn tokenizer() -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": "?", "fuse_unk": true, "byte_fallback": false,
            "vocab": {"?": 0, "a": 1, "b": 2, "ab": 3}, "merges": [["a", "b"]]},
    })
}

/// The folder with a file of this text instead.
fn with_file(
    all: &mut Cases,
    name: &'static str,
    parts: &'static [&'static str],
    file: &'static str,
    text: impl Fn() -> Vec<u8> + 'static,
) {
    case(all, name, parts, move |folder| {
        whole(folder);
        write(folder, file, text());
        folder.to_owned()
    });
}

/// The folder with a changed configuration; null removes a key.
fn with_config(all: &mut Cases, name: &'static str, parts: &'static [&'static str], changes: Value) {
    case(all, name, parts, move |folder| {
        whole(folder);
        let text = std::fs::read(folder.join("config.json")).unwrap();
        let mut config: Value = serde_json::from_slice(&text).unwrap();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        write(folder, "config.json", config.to_string());
        folder.to_owned()
    });
}

fn with_tokenizer(
    all: &mut Cases,
    name: &'static str,
    parts: &'static [&'static str],
    change: impl Fn(&mut Value) + 'static,
) {
    with_file(all, name, parts, "tokenizer.json", move || {
        let mut t = tokenizer();
        change(&mut t);
        t.to_string().into_bytes()
    });
}

fn with_template(
    all: &mut Cases,
    name: &'static str,
    parts: &'static [&'static str],
    template: impl Into<String>,
) {
    let template = template.into();
    with_file(all, name, parts, "chat_template.jinja", move || template.clone().into_bytes());
}

fn with_safetensors(
    all: &mut Cases,
    name: &'static str,
    parts: &'static [&'static str],
    bytes: impl Fn() -> Vec<u8> + 'static,
) {
    with_file(all, name, parts, "model.safetensors", bytes);
}

fn with_index(
    all: &mut Cases,
    name: &'static str,
    parts: &'static [&'static str],
    index: impl Fn() -> String + 'static,
) {
    case(all, name, parts, move |folder| {
        whole(folder);
        std::fs::rename(folder.join("model.safetensors"), folder.join("a.safetensors")).unwrap();
        write(folder, "model.safetensors.index.json", index());
        folder.to_owned()
    });
}

fn with_gguf(
    all: &mut Cases,
    name: &'static str,
    parts: &'static [&'static str],
    bytes: impl Fn() -> Vec<u8> + 'static,
) {
    case(all, name, parts, move |folder| {
        let path = folder.join("model.gguf");
        std::fs::write(&path, bytes()).unwrap();
        path
    });
}

fn with_key(
    all: &mut Cases,
    name: &'static str,
    parts: &'static [&'static str],
    key: &'static str,
    value: V,
) {
    with_gguf(all, name, parts, move || tiny_gguf().set(key, value.clone()).bytes());
}

/// All of them.
pub fn cases() -> Cases {
    let mut all = Vec::new();
    configs(&mut all);
    headers(&mut all);
    indices(&mut all);
    tokenizers(&mut all);
    templates(&mut all);
    ggufs(&mut all);
    all
}

fn configs(all: &mut Cases) {
    let c = "config.json";
    case(all, "config of a terabyte", &["config.json", "size", "at most"], |folder| {
        whole(folder);
        sparse(&folder.join("config.json"), 1 << 40);
        folder.to_owned()
    });
    case(all, "config is a pipe", &["config.json", "not a regular file"], |folder| {
        whole(folder);
        std::fs::remove_file(folder.join("config.json")).unwrap();
        let made = std::process::Command::new("mkfifo").arg(folder.join("config.json")).status().unwrap();
        assert!(made.success());
        folder.to_owned()
    });
    with_file(all, "config nested deep", &["config.json", "JSON", "recursion"], c, || {
        "[".repeat(1 << 20).into_bytes()
    });
    with_file(all, "config nested deep in an object", &["config.json", "recursion"], c, || {
        format!("{{\"x\": {}{}}}", "{\"a\":".repeat(100_000), "1").into_bytes()
    });
    with_file(all, "config of a million numbers", &["config.json", "model_type is missing"], c, || {
        format!("{{\"id2label\": [{}0]}}", "0,".repeat(2_000_000)).into_bytes()
    });
    with_file(all, "config with a key twice", &["config.json", "vocab_size", "twice"], c, || {
        b"{\"model_type\": \"llama\", \"vocab_size\": 8, \"vocab_size\": 256}".to_vec()
    });
    with_file(all, "config not UTF-8", &["config.json", "JSON"], c, || {
        b"{\"model_type\": \"\xC3\x28\"}".to_vec()
    });
    with_file(all, "config of zeros", &["config.json", "JSON"], c, || vec![0; 4096]);
    with_file(all, "config empty", &["config.json", "JSON", "EOF"], c, Vec::new);
    with_config(
        all,
        "layers without end",
        &["num_hidden_layers", "1 and 65536"],
        json!({"num_hidden_layers": u64::MAX}),
    );
    with_config(all, "as many layers as allowed", &["model.layers.2."], json!({"num_hidden_layers": 65536}));
    with_config(all, "negative layers", &["num_hidden_layers", "-2"], json!({"num_hidden_layers": -2}));
    with_config(all, "layers as a float", &["num_hidden_layers", "2.5"], json!({"num_hidden_layers": 2.5}));
    with_config(all, "heads of no width", &["head_dim", "0"], json!({"head_dim": 0}));
    with_config(
        all,
        "heads whose product overflows",
        &["num_attention_heads"],
        json!({"num_attention_heads": 1u64 << 62}),
    );
    with_config(all, "widths whose product overflows", &["hidden_size"], json!({"hidden_size": 1u64 << 40}));
    with_config(
        all,
        "largest allowed widths",
        &["shape"],
        json!({"hidden_size": 1u64 << 31, "intermediate_size": 1u64 << 31}),
    );
    with_config(all, "negative epsilon", &["rms_norm_eps", "-1"], json!({"rms_norm_eps": -1.0}));
    with_config(
        all,
        "a scaling by nothing",
        &["rope scaling factor"],
        json!({"rope_theta": 1e308, "rope_scaling": {"rope_type": "linear", "factor": 0}}),
    );
    with_config(
        all,
        "rope factor below zero",
        &["factor", "-8"],
        json!({"rope_scaling": {"rope_type": "linear", "factor": -8}}),
    );
    with_config(
        all,
        "a vocabulary that is not the embedding's",
        &["embed_tokens", "[256, 128]", "[999, 128]"],
        json!({"vocab_size": 999}),
    );
    with_config(
        all,
        "token ids beyond 32 bits",
        &["eos_token_id", "token id"],
        json!({"eos_token_id": [1u64 << 40]}),
    );
    with_config(
        all,
        "model_type of a megabyte",
        &["model_type", "…", "llama"],
        json!({"model_type": "x".repeat(1 << 20)}),
    );
    with_config(
        all,
        "layer_types of a million",
        &["layer_types"],
        json!({"model_type": "qwen2", "architectures": null, "layer_types": vec!["full_attention"; 100_000]}),
    );
    with_file(
        all,
        "generation config as a list",
        &["generation_config.json", "not an object"],
        "generation_config.json",
        || b"[1]".to_vec(),
    );
    with_file(
        all,
        "generation config with text for an id",
        &["generation_config.json", "eos_token_id"],
        "generation_config.json",
        || b"{\"eos_token_id\": \"</s>\"}".to_vec(),
    );
}

fn headers(all: &mut Cases) {
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

fn indices(all: &mut Cases) {
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

fn tokenizers(all: &mut Cases) {
    case(all, "tokenizer of a terabyte", &["tokenizer.json", "size", "at most"], |folder| {
        whole(folder);
        sparse(&folder.join("tokenizer.json"), 1 << 40);
        folder.to_owned()
    });
    const T: &str = "tokenizer.json";
    with_file(all, "tokenizer nested deep", &[T], T, || "[".repeat(1 << 20).into_bytes());
    with_file(all, "tokenizer not UTF-8", &[T], T, || b"{\"version\": \"\xFF\"}".to_vec());
    with_tokenizer(all, "a merge of no tokens", &[T, "out of vocabulary"], |v| {
        v["model"]["merges"] = json!([["a", "z"]])
    });
    with_tokenizer(all, "a merge into no token", &[T], |v| v["model"]["merges"] = json!([["b", "a"]]));
    with_tokenizer(all, "a merge of one", &[T], |v| v["model"]["merges"] = json!([["a"]]));
    with_tokenizer(all, "a merge as text without a space", &[T], |v| v["model"]["merges"] = json!(["ab"]));
    with_tokenizer(all, "an id below zero", &[T], |v| v["model"]["vocab"]["a"] = json!(-1));
    with_tokenizer(all, "an id beyond 32 bits", &[T], |v| v["model"]["vocab"]["a"] = json!(1u64 << 40));
    with_tokenizer(all, "an unknown model", &[T], |v| v["model"]["type"] = json!("Telepathy"));
    with_tokenizer(all, "no model", &[T], |v| v["model"] = Value::Null);
    with_tokenizer(all, "an unknown token that is none", &[T], |v| {
        v["model"]["unk_token"] = json!("nothing")
    });
    with_tokenizer(all, "a dropout above one", &[T], |v| v["model"]["dropout"] = json!(7.0));
    with_tokenizer(all, "an expression that is none", &[T], |v| {
        v["pre_tokenizer"] =
            json!({"type": "Split", "pattern": {"Regex": "((("}, "behavior": "Isolated", "invert": false});
    });
    with_tokenizer(all, "a template without its tokens", &[T], |v| {
        v["post_processor"] = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}], "pair": [], "special_tokens": {}});
    });
    with_tokenizer(all, "a character map that is none", &[T], |v| {
        v["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA/w=="});
    });
}

fn templates(all: &mut Cases) {
    const T: &str = "chat_template";
    with_template(
        all,
        "a loop in loops",
        &["chat_template.jinja", T, "fuel"],
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    );
    with_template(
        all,
        "a macro that calls itself",
        &["chat_template.jinja", T],
        "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    );
    with_template(
        all,
        "a string that doubles",
        &["chat_template.jinja", T, "memory"],
        "{% set ns = namespace(x='0123456789') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    );
    with_template(
        all,
        "a string that doubles by hand",
        &["chat_template.jinja", T, "memory"],
        format!("{{% set x = '0123456789' %}}{}{{{{ x }}}}", "{% set x = x + x %}".repeat(60)),
    );
    with_template(
        all,
        "a list of a hundred million",
        &["chat_template.jinja", T, "memory"],
        "{% set x = [1] * 100000000 %}{{ x | list | length }}",
    );
    with_template(
        all,
        "a string of a hundred million",
        &["chat_template.jinja", T],
        "{% for i in range(100) %}{{ 'x' * 90000000 }}{% endfor %}",
    );
    with_template(
        all,
        "output without end",
        &["chat_template.jinja", T],
        "{% for a in range(9999) %}{% for b in range(150) %}{{ 'some words to be written again and again, two hundred times over, until there is no more room for any of them in the memory' }}{% endfor %}{% endfor %}",
    );
    with_template(
        all,
        "constants that are computed without end",
        &["chat_template.jinja", T, "takes"],
        format!("{{{{ 'a' * 99999999{} }}}}", " * 1".repeat(100)),
    );
    with_template(
        all,
        "replacing that squares",
        &["chat_template.jinja", T, "memory"],
        "{% set x = 'a' * 100000 %}{{ x | replace('a', x) }}",
    );
    with_template(
        all,
        "values in values, without end",
        &["chat_template.jinja", T],
        "{% set ns = namespace(x=[]) %}{% for a in range(9999) %}{% for b in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}{% endfor %}{{ ns.x | tojson }}",
    );
    with_template(
        all,
        "values in values, written out",
        &["chat_template.jinja", T],
        "{% set ns = namespace(x=[1]) %}{% for a in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
    );
    with_template(
        all,
        "parentheses nested deep",
        &["chat_template.jinja", T],
        format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000)),
    );
    with_template(all, "blocks nested deep", &["chat_template.jinja", T], "{% if true %}".repeat(50_000));
    with_template(
        all,
        "a template of two megabytes",
        &["chat_template.jinja", T, "1048576"],
        "x".repeat(2 << 20),
    );
    with_template(
        all,
        "an exception of its own",
        &["chat_template.jinja", T, "Only assistants"],
        "{{ raise_exception('Only assistants') }}",
    );
    with_template(all, "a file to include", &["chat_template.jinja", T], "{% include '/etc/passwd' %}");
    with_template(all, "a division by zero", &["chat_template.jinja", T], "{{ 1 // 0 }}");
    with_file(all, "a template not UTF-8", &["chat_template.jinja", "UTF-8"], "chat_template.jinja", || {
        b"\xFF\xFE{{ x }}".to_vec()
    });
    with_file(
        all,
        "tokenizer settings nested deep",
        &["tokenizer_config.json", "recursion"],
        "tokenizer_config.json",
        || format!("{{\"x\": {}", "[".repeat(1 << 20)).into_bytes(),
    );
}

fn ggufs(all: &mut Cases) {
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
