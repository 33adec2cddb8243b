//! What is fuzzed: each parser of untrusted bytes as a function that must return, whatever it is given.
//!
//! A target also checks what must hold of what was accepted, and panics where it does not.

use super::files;
use std::collections::BTreeMap;
use std::path::Path;
use weft_frontend::config::{gguf as gguf_config, hf};
use weft_frontend::gguf::Gguf;
use weft_frontend::safetensors::{SafetensorsSet, parse_index};
use weft_frontend::text::chat::{ChatTemplate, Message};
use weft_frontend::text::tokenizer::Tokenizer;
use weft_ir::decode::{Scales, decode_f32};
use weft_ir::dtype::{Coded, DType, Encoding};
use weft_ir::graph;
use weft_ir::plan::Plan;
use weft_ir::verify;

/// How inputs of a target are built, for mutations that keep some of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Bytes with numbers in them.
    Binary,
    /// Text.
    Text,
    /// A JSON value.
    Json,
    /// Eight bytes of length, JSON, data.
    Safetensors,
}

/// A parser to be fuzzed.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Name, also of its folder of seeds.
    pub name: &'static str,
    /// Form of its inputs.
    pub form: Form,
    /// The function.
    pub run: fn(&[u8]),
    /// Most memory that an input may take beyond what was in use before it, in MiB.
    pub memory: usize,
    /// Most seconds that an input may take.
    pub seconds: u64,
}

const USUAL: Target = Target { name: "", form: Form::Json, run: |_| (), memory: 64, seconds: 2 };

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "safetensors", form: Form::Safetensors, run: safetensors, ..USUAL },
    Target { name: "index", run: index, ..USUAL },
    Target { name: "config", run: config, ..USUAL },
    Target { name: "gguf", form: Form::Binary, run: gguf, ..USUAL },
    Target { name: "tokenizer", run: tokenizer, memory: 128, ..USUAL },
    Target { name: "template", form: Form::Text, run: template, memory: 256, seconds: 6 },
    Target { name: "graph", form: Form::Text, run: graph_text, ..USUAL },
    Target { name: "plan", form: Form::Text, run: plan, ..USUAL },
    Target { name: "encodings", form: Form::Binary, run: encodings, ..USUAL },
    Target { name: "pooling", run: files::pooling, ..USUAL },
    Target { name: "schedules", form: Form::Text, run: files::schedules, ..USUAL },
    Target { name: "manifest", run: files::manifest, ..USUAL },
    Target { name: "explain", run: files::explain, ..USUAL },
];

/// The target of a name.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|t| t.name == name)
}

fn safetensors(bytes: &[u8]) {
    let Ok(set) = SafetensorsSet::parse(Path::new("model.safetensors"), bytes.to_vec().into()) else {
        return;
    };
    for t in set.tensors() {
        if let (Ok(data), Some(e)) = (set.data(t), t.encoding) {
            assert_eq!(t.elements().and_then(|n| e.bytes(n)), Some(data.len()), "{t:?}");
        }
    }
}

fn index(bytes: &[u8]) {
    let Ok(map) = parse_index(Path::new("model.safetensors.index.json"), bytes) else { return };
    for shard in map.values() {
        assert!(!shard.contains('/') && **shard != *"..", "{shard:?} leaves the folder");
    }
}

fn config(bytes: &[u8]) {
    let Ok(c) = hf::parse(Path::new("config.json"), bytes, &[]) else { return };
    assert!(c.heads.is_multiple_of(c.kv_heads) && c.attention.len() == c.layers, "{c:?}");
    assert!(c.attention_scale.is_finite() && c.norm_eps.is_finite(), "{c:?}");
    let _ = c.position_limit();
}

fn gguf(bytes: &[u8]) {
    let Ok(file) = Gguf::parse(Path::new("model.gguf"), bytes.to_vec().into()) else { return };
    for t in file.tensors() {
        if let (Ok(data), Some(e)) = (file.data(t), t.encoding) {
            assert_eq!(t.elements().and_then(|n| e.bytes(n)), Some(data.len()), "{t:?}");
        }
    }
    for key in file.keys() {
        let _ = (file.strings(key), file.integers(key), file.floats(key), file.booleans(key));
        let _ = (file.number(key), file.unsigned(key), file.text(key), file.boolean(key));
    }
    if let Ok(c) = gguf_config::read(&file, &[]) {
        assert!(c.heads.is_multiple_of(c.kv_heads) && c.attention.len() == c.layers, "{c:?}");
    }
    if let Ok(t) = Tokenizer::from_gguf(&file) {
        use_tokenizer(&t);
    }
    if let Ok(Some(chat)) = ChatTemplate::from_gguf(&file) {
        let _ = chat.render(&[Message::new("user", "Hello")], true);
    }
}

fn tokenizer(bytes: &[u8]) {
    if let Ok(t) = Tokenizer::from_bytes(Path::new("tokenizer.json"), bytes) {
        use_tokenizer(&t);
    }
}

fn use_tokenizer(t: &Tokenizer) {
    for text in ["Hello, world! 12 3", "", "  é\u{1F980}\n<s></s> [CLS] ababa"] {
        let Ok(ids) = t.encode(text, true) else { continue };
        let _ = t.decode(&ids, false);
        let _ = t.decode(&ids, true);
    }
}

fn template(bytes: &[u8]) {
    let Ok(source) = std::str::from_utf8(bytes) else { return };
    let templates = BTreeMap::from([("default".to_owned(), source.to_owned())]);
    let special = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    let Ok(chat) = ChatTemplate::new(Path::new("chat_template.jinja"), templates, special) else { return };
    let turns = [("system", "Be brief."), ("user", "Hello {{ x }}"), ("assistant", "Hi."), ("user", "Bye")];
    let messages: Vec<Message> = turns.iter().map(|(role, text)| Message::new(*role, *text)).collect();
    let _ = chat.render(&messages, true);
}

fn graph_text(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(parsed) = graph::parse(text) else { return };
    let printed = parsed.to_string();
    let again = graph::parse(&printed).unwrap_or_else(|e| panic!("its own text is not read: {e}\n{printed}"));
    assert_eq!(again.to_string(), printed);
    let _ = verify::graph::verify(&parsed);
}

fn plan(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(parsed) = Plan::from_ron(text) else { return };
    let printed = parsed.to_ron().unwrap_or_else(|e| panic!("it is not written: {e}"));
    let again = Plan::from_ron(&printed).unwrap_or_else(|e| panic!("its own text is not read: {e}"));
    assert_eq!(again.to_ron().ok(), Some(printed));
    let _ = verify::plan::verify(&parsed);
}

/// The first bytes choose the encoding and a shape, the rest is decoded.
fn encodings(bytes: &[u8]) {
    let Some((&[kind, rows, columns, block], data)) = bytes.split_first_chunk::<4>() else { return };
    let plain = [DType::F32, DType::F16, DType::BF16, DType::I64, DType::Bool].map(Encoding::Plain);
    let fixed: Vec<Encoding> = Encoding::BLOCKS.into_iter().chain(plain).collect();
    let (rows, columns) = (usize::from(rows), usize::from(columns));
    if let Some(&e) = fixed.get(usize::from(kind)) {
        let (n, size) = e.block();
        // Lengths that fit, and those that do not.
        for elements in [data.len() / size * n, rows * columns] {
            let used = e.bytes(elements).filter(|&n| n <= data.len()).unwrap_or(data.len());
            let mut out = vec![0.0; elements];
            let done = decode_f32(e, &data[..used], &mut out);
            assert!(done.is_err() || e.bytes(elements) == Some(used));
        }
        return;
    }
    let of = if kind % 2 == 0 { Coded::E4M3 } else { Coded::E2M1 };
    let e = Encoding::Scaled { of, rows: u32::from(block & 15), columns: u32::from(block >> 4) };
    let shape = [rows, columns];
    let counted = e.scales(&shape).map_or(0, |s| s.iter().product());
    let (scales, rest) = data.split_at(counted.min(data.len()));
    let Ok(scales) = Scales::new(e, &shape, Encoding::E8M0, scales) else { return };
    let elements = rows * columns;
    for first in [0, columns, elements] {
        let mut out = vec![0.0; elements - first.min(elements)];
        let used = e.bytes(out.len()).unwrap_or(0).min(rest.len());
        let _ = scales.decode(first, &rest[..used], &mut out);
    }
}
