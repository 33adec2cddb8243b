//! Chat templates of public models, rendered byte for byte as transformers renders them.
//!
//! `testsuite/fixtures/templates`: the templates, conversations, and what `testsuite/goldens/templates.py` made of them.

mod common;

use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use weft_frontend::text::chat::ChatTemplate;

/// A template, those of its conversations, and why.
type Otherwise = (&'static str, fn(&str) -> bool, &'static str);

/// Templates and conversations whose result is not transformers', and why: the list must stay true.
const OTHERWISE: &[Otherwise] = &[
    ("cohereforai-c4ai-command-r-plus-tool-use", without_tools, "it fails: None is iterated"),
    ("nousresearch-hermes-2-pro-llama-3-8b-tool-use", without_tools, "it fails: None is iterated"),
    ("llama-cpp-deepseek-r1", with_tools, "it fails: a generator is not JSON"),
    ("meetkai-functionary-medium-v3.1", with_tools, "text added to `safe` text is escaped for HTML"),
];

fn with_tools(case: &str) -> bool {
    case.starts_with("tool")
}

fn without_tools(case: &str) -> bool {
    !with_tools(case)
}

fn folder() -> PathBuf {
    common::fixture("templates")
}

fn json(path: &Path) -> Map<String, Value> {
    let text = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn open(path: &Path) -> Result<ChatTemplate, String> {
    let source = String::from_utf8(std::fs::read(path).unwrap()).unwrap();
    let special =
        [("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"), ("pad_token", "<pad>")];
    let special = special.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let template = ChatTemplate::new(path, [("default".to_owned(), source)].into(), special);
    Ok(template.map_err(|e| e.to_string())?.at(jiff::civil::date(2025, 3, 7).at(9, 5, 2, 0)))
}

/// What is wrong with a text or an error, if anything.
fn judge(got: Result<String, String>, expected: &Value) -> Option<String> {
    match (got, expected) {
        (Ok(got), Value::String(text)) if got == *text => None,
        (Ok(got), Value::String(text)) => {
            let same = got.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
            let near = |s: &str| {
                let bytes = &s.as_bytes()[same.saturating_sub(40)..(same + 80).min(s.len())];
                String::from_utf8_lossy(bytes).into_owned()
            };
            Some(format!("at byte {same}: {:?}, expected {:?}", near(&got), near(text)))
        }
        (Ok(got), _) => Some(format!("{got:?}, expected the error {expected}")),
        (Err(error), Value::String(_)) => Some(error),
        (Err(error), _) => {
            // The template's own words are kept; those of Python are Python's.
            let own = expected["kind"] == "TemplateError";
            let words = expected["error"].as_str().unwrap();
            (own && !error.contains(words)).then(|| format!("{error:?} is not {words:?}"))
        }
    }
}

#[test]
fn templates_render_as_transformers_renders_them() {
    let folder = folder();
    let conversations = json(&folder.join("conversations.json"));
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "jinja"));
    paths.sort();
    assert!(paths.len() > 80, "{} templates", paths.len());
    let mut faults = Vec::new();
    for path in &paths {
        let name = path.file_stem().unwrap().to_string_lossy();
        let expected = json(&folder.join("expected").join(format!("{name}.json")));
        assert_eq!(expected.len(), conversations.len(), "{name}");
        for (case, variables) in &conversations {
            let render = |t: ChatTemplate| {
                t.render_named("default", variables.as_object().unwrap()).map_err(|e| e.to_string())
            };
            let fault = judge(open(path).and_then(render), &expected[case]);
            let otherwise = OTHERWISE.iter().find(|(template, of, _)| *template == name && of(case));
            match (fault, otherwise) {
                (None, None) | (Some(_), Some(_)) => {}
                (Some(fault), None) => faults.push(format!("{name}, {case}: {fault}")),
                (None, Some((.., why))) => faults.push(format!("{name}, {case}: no longer true: {why}")),
            }
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}
