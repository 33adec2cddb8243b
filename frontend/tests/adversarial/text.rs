//! Tokenizers and chat templates.

use super::{Cases, case, sparse, whole, with_file, with_template, with_tokenizer};
use serde_json::{Value, json};
pub(super) fn tokenizers(all: &mut Cases) {
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

pub(super) fn templates(all: &mut Cases) {
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
