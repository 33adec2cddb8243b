//! Tokenizers built from GGUF vocabularies, streams of pieces, and chat templates.

mod common;

use common::{GgufFile, V, tiny_gguf};
use serde_json::{Map, Value, json};
use std::path::Path;
use weft_frontend::checkpoint::Checkpoint;
use weft_frontend::error::Error;
use weft_frontend::text::chat::{ChatTemplate, Message};
use weft_frontend::text::stream::StreamDecoder;
use weft_frontend::text::tokenizer::Tokenizer;

fn tokenizer_of(file: GgufFile) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    file.write(&path);
    Tokenizer::open(&Checkpoint::open(&path).unwrap()).unwrap()
}

fn tokenizer() -> Tokenizer {
    tokenizer_of(tiny_gguf())
}

/// The tokens of a text as the vocabulary spells them.
fn spelled(t: &Tokenizer, text: &str) -> Vec<String> {
    t.encode(text, false).unwrap().into_iter().map(|id| t.token_text(id).unwrap()).collect()
}

#[test]
fn merges_and_special_tokens() {
    let t = tokenizer();
    assert_eq!(spelled(&t, "hello wow"), ["hell", "o", "Ġw", "o", "w"]);
    assert_eq!(spelled(&t, "12 3"), ["1", "2", "Ġ", "3"]);
    assert_eq!(t.encode("a</s>b", false).unwrap(), [97, 261, 98]);
    assert_eq!(t.decode(&[97, 261, 98], true).unwrap(), "ab");
    assert_eq!(t.decode(&[97, 261, 98], false).unwrap(), "a</s>b");
    assert_eq!((t.vocab_size(), t.token_id("<s>"), t.token_text(999)), (262, Some(260), None));
    let unknown = t.decode(&[97, 999], true).unwrap_err();
    assert!(matches!(&unknown, Error::Text { problem, .. } if problem.contains("999")), "{unknown}");
}

#[test]
fn bos_and_eos_are_added_where_the_file_says_so() {
    let both = tiny_gguf()
        .set("tokenizer.ggml.add_bos_token", V::Bool(true))
        .set("tokenizer.ggml.add_eos_token", V::Bool(true));
    let t = tokenizer_of(both);
    assert_eq!(t.encode("hell", true).unwrap(), [260, 258, 261]);
    assert_eq!(t.encode("hell", false).unwrap(), [258]);
    let llama3 = tokenizer_of(tiny_gguf().set("tokenizer.ggml.pre", "llama-bpe"));
    assert_eq!(llama3.encode("hell", true).unwrap(), [260, 258]);
}

#[test]
fn pre_tokenizers_cut_numbers_in_their_own_way() {
    let with = |pre: &str, merges: &[&str]| {
        let mut tokens = common::byte_alphabet();
        tokens.extend(
            ["11", "111", "1111", "a", "</s>", "<s>"].map(|t| if t == "a" { "zz" } else { t }.to_owned()),
        );
        let merges = merges.iter().map(|m| (*m).to_owned()).collect();
        tokenizer_of(
            tiny_gguf()
                .set("tokenizer.ggml.tokens", V::Strs(tokens))
                .set("tokenizer.ggml.merges", V::Strs(merges))
                .set("tokenizer.ggml.pre", pre),
        )
    };
    let merges = ["1 1", "11 1", "11 11"];
    assert_eq!(spelled(&with("gpt-2", &merges), "1111"), ["1111"]);
    assert_eq!(spelled(&with("smollm", &merges), "1111"), ["1", "1", "1", "1"]);
    assert_eq!(spelled(&with("qwen2", &merges), "1111"), ["1", "1", "1", "1"]);
    assert_eq!(spelled(&with("llama-bpe", &merges), "1111"), ["111", "1"]);
    assert_eq!(spelled(&with("default", &merges), "1111"), ["111", "1"]);
    assert_eq!(spelled(&with("falcon", &merges), "1111"), ["111", "1"]);
    assert_eq!(spelled(&with("tekken", &merges), "1111"), ["1", "1", "1", "1"]);
    assert_eq!(spelled(&with("gpt-4o", &merges), "1111"), ["111", "1"]);
    assert_eq!(spelled(&with("bloom", &merges), "1111"), ["1111"]);
    assert_eq!(spelled(&with("command-r", &merges), "1111"), ["1", "1", "1", "1"]);
    assert_eq!(spelled(&with("glm4", &merges), "1111"), ["111", "1"]);
    // Llama 3 takes a piece that is a token whole, even where merges do not lead to it.
    assert_eq!(spelled(&with("llama-bpe", &[]), "111"), ["111"]);
    // Qwen 2 composes first: e and an accent become é (two bytes).
    assert_eq!(with("qwen2", &merges).encode("e\u{301}", false).unwrap(), [0xC3, 0xA9]);
    assert_eq!(with("gpt-2", &merges).encode("e\u{301}", false).unwrap(), [0x65, 0xCC, 0x81]);
}

/// Pieces of a stream of tokens, and what finishing adds.
fn pieces(ids: &[u32], stops: &[&str]) -> (Vec<String>, String, Option<String>) {
    let mut stream = StreamDecoder::new(&tokenizer(), true, stops.iter().map(|s| (*s).to_owned()).collect());
    let mut out = Vec::new();
    for &id in ids {
        out.push(stream.push(id).unwrap().text);
    }
    let last = stream.finish().unwrap();
    (out, last.text, last.stopped)
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

#[test]
fn characters_come_whole() {
    let (out, last, _) = pieces(&bytes("a🦀é"), &[]);
    assert_eq!(out, ["a", "", "", "", "🦀", "", "é"]);
    assert_eq!(last, "");
    let family = "👩‍👩‍👧 ok 日本語";
    let (out, last, _) = pieces(&bytes(family), &[]);
    assert_eq!(out.concat() + &last, family);
    assert!(out.iter().all(|p| !p.contains('\u{FFFD}')));
}

#[test]
fn broken_characters_come_as_replacements() {
    let (out, last, _) = pieces(&[0xF0, 0x9F], &[]);
    assert_eq!((out.concat().as_str(), last.as_str()), ("", "\u{FFFD}"));
    let (out, last, _) = pieces(&[0xF0, 0x9F, 97, 98], &[]);
    assert_eq!((out.concat().as_str(), last.as_str()), ("\u{FFFD}ab", ""));
    let noise = vec![0xFF; 1000];
    let (out, last, _) = pieces(&noise, &[]);
    assert_eq!(out.concat() + &last, "\u{FFFD}".repeat(1000));
    let mixed: Vec<u32> = noise.iter().copied().chain(bytes("end")).collect();
    let (out, last, _) = pieces(&mixed, &[]);
    assert_eq!(out.concat() + &last, "\u{FFFD}".repeat(1000) + "end");
}

#[test]
fn stop_strings_end_the_text_wherever_tokens_break() {
    // hell|o|Ġw|o|w: the stop string begins in the first token and ends in the third.
    let ids = tokenizer().encode("hello wow", false).unwrap();
    let (out, last, stopped) = pieces(&ids, &["lo w"]);
    assert_eq!(out, ["hel", "", "", "", ""]);
    assert_eq!((last.as_str(), stopped.as_deref()), ("", Some("lo w")));
    // What looked like a stop string and was none comes out.
    let (out, last, stopped) = pieces(&ids, &["lo x"]);
    assert_eq!(out, ["hel", "", "lo w", "o", "w"]);
    assert_eq!((last.as_str(), stopped), ("", None));
    // What may still become one is held to the end.
    let (out, last, stopped) = pieces(&ids, &["wow!"]);
    assert_eq!((out.concat().as_str(), last.as_str(), stopped), ("hello ", "wow", None));
    // The first in the text wins; of those at one place the longest.
    let (out, _, stopped) = pieces(&ids, &["wow", "ll", "llo"]);
    assert_eq!((out.concat().as_str(), stopped.as_deref()), ("he", Some("ll")));
    // A stop string of characters that are split over tokens.
    let (out, last, stopped) = pieces(&bytes("x🦀🦀y"), &["🦀🦀"]);
    assert_eq!((out.concat() + &last, stopped.as_deref()), ("x".to_owned(), Some("🦀🦀")));
    let (out, last, stopped) = pieces(&bytes("x🦀y"), &["🦀🦀", ""]);
    assert_eq!((out.concat() + &last, stopped), ("x🦀y".to_owned(), None));
}

#[test]
fn special_tokens_do_not_show_in_a_stream() {
    let (out, last, _) = pieces(&[260, 258, 261, 111], &[]);
    assert_eq!((out, last.as_str()), (["", "hell", "", "o"].map(String::from).to_vec(), ""));
}

fn template(source: &str) -> Result<ChatTemplate, Error> {
    let special = [("bos_token".to_owned(), "<s>".to_owned())].into();
    ChatTemplate::new(
        Path::new("chat_template.jinja"),
        [("default".to_owned(), source.to_owned())].into(),
        special,
    )
}

fn render(source: &str) -> String {
    let messages = [Message::new("system", " be <brief> "), Message::new("user", "héllo")];
    template(source).unwrap().render(&messages, true).unwrap()
}

#[test]
fn templates_render_as_transformers_does() {
    let blocks = "{%- for m in messages %}\n  {% if m.role == 'user' %}\n[{{ m['content'] }}]\n  {% endif %}\n{% endfor %}\n";
    assert_eq!(render(blocks), "[héllo]\n");
    assert_eq!(render("{{ bos_token + messages[0].content.strip() | upper }}"), "<s>BE <BRIEF>");
    assert_eq!(render("{{ messages[1]['role'].startswith('us') }}{{ 'a,b'.split(',')[1] }}"), "Trueb");
    assert_eq!(render("{% if add_generation_prompt and not tools %}go{% endif %}"), "go");
    assert_eq!(render("{{ messages[1] | tojson }}"), r#"{"role": "user", "content": "héllo"}"#);
    assert_eq!(render("{{ [1, 'a<b', none, true] | tojson }}"), r#"[1, "a<b", null, true]"#);
    assert_eq!(render("{{ [1] | tojson(indent=2) }}"), "[\n  1\n]");
    assert_eq!(render("{{ ['é'] | tojson(ensure_ascii=True) }}"), "[\"\\u00e9\"]");
    assert_eq!(render("{{ {'b': 1, 'a': [2]} | tojson(separators=(',', ':')) }}"), r#"{"b":1,"a":[2]}"#);
    assert_eq!(render("{{ {'b': 1, 'a': 2} | tojson(sort_keys=True) }}"), r#"{"a": 2, "b": 1}"#);
    assert_eq!(
        render("{{ tools is iterable }}{{ nothing is iterable }}{{ nothing | length }}"),
        "FalseTrue0"
    );
    assert_eq!(render("{% raw %}\n{{ x {% endraw %}\n\r\ny"), "\n{{ x \ny");
    assert_eq!(
        render("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}"),
        "user"
    );
    assert_eq!(render("{%- generation -%} x {%- endgeneration -%}y"), "xy");
    assert_eq!(
        render(
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
        ),
        "2"
    );
    let year: u32 = render("{{ strftime_now('%Y') }}").parse().unwrap();
    assert!(year > 2020);
}

#[test]
fn templates_fail_with_their_own_words() {
    let fails = |source: &str| template(source).unwrap().render(&[], false).unwrap_err().to_string();
    assert!(fails("{{ raise_exception('roles must alternate') }}").contains("roles must alternate"));
    assert!(fails("{{ messages[0].role.x }}").contains("chat_template"));
    assert!(fails("{{ strftime_now('%!') }}").contains("strftime_now"));
    assert!(fails("{{ 1 | tojson(cls=2) }}").contains("cls"));
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}";
    assert!(fails(endless).contains("chat_template"));
    assert!(template("{% if %}").unwrap_err().to_string().contains("syntax error"));
    let unnamed = template("x").unwrap().render_named("tool_use", &Map::new()).unwrap_err().to_string();
    assert!(unnamed.contains("tool_use") && unnamed.contains("default"), "{unnamed}");
}

#[test]
fn templates_of_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    assert!(ChatTemplate::open_folder(folder.path()).unwrap().is_none());
    let settings = json!({
        "bos_token": {"content": "<B>", "lstrip": false},
        "eos_token": "<E>",
        "chat_template": [
            {"name": "default", "template": "{{ bos_token }}1{{ eos_token }}"},
            {"name": "tool_use", "template": "{{ tools | tojson }}"},
        ],
    });
    std::fs::write(folder.path().join("tokenizer_config.json"), settings.to_string()).unwrap();
    let t = ChatTemplate::open_folder(folder.path()).unwrap().unwrap();
    assert_eq!(t.render(&[], false).unwrap(), "<B>1<E>");
    let tools = [("tools".to_owned(), json!([{"name": "f"}]))].into_iter().collect();
    assert_eq!(t.render_named("tool_use", &tools).unwrap(), r#"[{"name": "f"}]"#);
    std::fs::write(folder.path().join("chat_template.jinja"), "{{ bos_token }}2\n").unwrap();
    let t = ChatTemplate::open_folder(folder.path()).unwrap().unwrap();
    assert_eq!(t.render(&[], false).unwrap(), "<B>2");
    // Newer folders: other templates beside it.
    let more = folder.path().join("additional_chat_templates");
    std::fs::create_dir(&more).unwrap();
    std::fs::write(more.join("rag.jinja"), "{{ documents is none }}").unwrap();
    let t = ChatTemplate::open_folder(folder.path()).unwrap().unwrap();
    assert_eq!(t.names().collect::<Vec<_>>(), ["default", "rag"]);
    assert_eq!(t.render_named("rag", &Map::new()).unwrap(), "True");
    // Older ones: a file of its own, and the tokens in another.
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, value: Value| std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    put("tokenizer_config.json", json!({"eos_token": "<E>"}));
    put("special_tokens_map.json", json!({"eos_token": "<F>", "cls_token": {"content": "<C>"}}));
    put("chat_template.json", json!({"chat_template": "{{ cls_token }}3{{ eos_token }}"}));
    let t = ChatTemplate::open_folder(folder.path()).unwrap().unwrap();
    assert_eq!(t.render(&[], false).unwrap(), "<C>3<E>");
}

#[test]
fn templates_of_a_gguf_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    tiny_gguf().write(&path);
    assert!(ChatTemplate::open(&Checkpoint::open(&path).unwrap()).unwrap().is_none());
    tiny_gguf()
        .set("tokenizer.chat_template", "{{ bos_token }}!")
        .set("tokenizer.chat_template.tool_use", "T")
        .write(&path);
    let t = ChatTemplate::open(&Checkpoint::open(&path).unwrap()).unwrap().unwrap();
    assert_eq!(t.render(&[], true).unwrap(), "<s>!");
    assert_eq!(t.names().collect::<Vec<_>>(), ["default", "tool_use"]);
}
