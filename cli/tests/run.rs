//! `weft convert` and `weft run` on the CPU, with a tiny GGUF model that has a vocabulary.

mod common;
#[path = "../../frontend/tests/common/mod.rs"]
mod gguf;

use common::{Run, command, finish, fixture, weft};

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

/// A folder with `tiny.gguf`.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    gguf::tiny_gguf().write(&dir.path().join("tiny.gguf"));
    dir
}

fn run(dir: &Path, args: &[&str]) -> Run {
    weft(dir, ["run", "--device", "cpu"].iter().chain(args))
}

#[test]
fn convert_writes_a_folder_that_answers_alike() {
    let dir = folder();
    let converted = weft(dir.path(), ["convert", "tiny.gguf", "-o", "hf"]);
    for text in ["hf", "11 tensors"] {
        assert!(converted.ok().contains(text), "{text}: {}", converted.stdout);
    }
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        assert!(dir.path().join("hf").join(file).is_file(), "{file}");
    }
    weft(dir.path(), ["convert", "tiny.gguf", "-o", "hf"]).fails(2, &["hf", "already exists"]);
    let prompt = ["hello world", "--max-new-tokens", "20"];
    let from = |model: &str, level: &str| {
        run(dir.path(), &[&[model, "--opt-level", level], &prompt[..]].concat()).ok().to_owned()
    };
    let text = from("tiny.gguf", "2");
    assert!(!text.trim().is_empty());
    assert_eq!(text, from("hf", "2"));
    assert_eq!(text, from("hf", "0"));
    weft(dir.path(), ["compile", "hf", "--target", "sm_90", "--no-check"]).ok();
    let bundle = run(dir.path(), &["hf.weft", prompt[0], prompt[1], prompt[2], "--json"]);
    let json: serde_json::Value = serde_json::from_str(bundle.ok()).expect("JSON");
    assert_eq!(json["answers"][0]["text"].as_str().map(str::trim_end), Some(text.trim_end()));
}

#[test]
fn answers_of_a_batch_are_those_of_each_prompt() {
    let dir = folder();
    let prompts =
        ["hello", "a longer prompt than the others", "we", "hell", "x", "yy", "zzz", "he", "ninth", "tenth"];
    let settings = ["--json", "--max-new-tokens", "12", "--temperature", "0.8", "--top-k", "40"];
    let batch = run(dir.path(), &[&["tiny.gguf"], &prompts[..], &settings[..]].concat());
    let batch: serde_json::Value = serde_json::from_str(batch.ok()).expect("JSON");
    let answers = batch["answers"].as_array().expect("answers");
    assert_eq!(answers.len(), prompts.len());
    for (i, (prompt, answer)) in prompts.iter().zip(answers).enumerate() {
        assert_eq!(answer["prompt"], *prompt);
        // Prompt i of a batch draws with seed + i.
        let seed = i.to_string();
        let one = run(dir.path(), &[&["tiny.gguf", prompt, "--seed", &seed], &settings[..]].concat());
        let one: serde_json::Value = serde_json::from_str(one.ok()).expect("JSON");
        assert_eq!(one["answers"][0]["token_ids"], answer["token_ids"], "{prompt}");
    }
    let text = run(dir.path(), &["tiny.gguf", "one", "two", "--max-new-tokens", "3"]);
    assert!(text.ok().contains("==> one\n") && text.stdout.contains("\n==> two\n"), "{}", text.stdout);
}

#[test]
fn seeds_repeat_and_differ() {
    let dir = folder();
    let with = |seed: &str| {
        let args = ["tiny.gguf", "hello", "--temperature", "1.5", "--seed", seed, "--max-new-tokens", "30"];
        run(dir.path(), &args).ok().to_owned()
    };
    assert_eq!(with("7"), with("7"));
    assert_ne!(with("7"), with("8"));
}

/// Penalties too large to overcome: no token of the answer comes twice, and with the repetition penalty none of
/// the prompt's comes at all.
#[test]
fn penalties_keep_tokens_from_coming_again() {
    let dir = folder();
    let ids = |more: &[&str]| -> Vec<i64> {
        let settings = ["tiny.gguf", "hello hello", "--json", "--max-new-tokens", "30"];
        let run = run(dir.path(), &[&settings[..], more].concat());
        let json: serde_json::Value = serde_json::from_str(run.ok()).expect("JSON");
        serde_json::from_value(json["answers"][0]["token_ids"].clone()).expect("ids")
    };
    let distinct = |ids: &[i64]| ids.iter().collect::<std::collections::BTreeSet<_>>().len() == ids.len();
    let plain = ids(&[]);
    assert!(!distinct(&plain), "{plain:?}");
    assert_eq!(plain, ids(&["--repetition-penalty", "1", "--presence-penalty", "0"]));
    for level in ["0", "2"] {
        let presence = ids(&["--presence-penalty", "1000", "--opt-level", level]);
        assert!(distinct(&presence), "{presence:?}");
        let drawn = ids(&["--presence-penalty", "1000", "--temperature", "2", "--opt-level", level]);
        assert!(distinct(&drawn), "{drawn:?}");
    }
    let both = ["--repetition-penalty", "1.3", "--presence-penalty", "-0.5"];
    let levels = ["0", "2"].map(|level| ids(&[&both[..], &["--opt-level", level]].concat()));
    assert!(levels[0] == levels[1] && levels[0] != plain, "{levels:?}");
    run(dir.path(), &["tiny.gguf", "x", "--repetition-penalty", "0"]).fails(2, &["give a number above 0"]);
}

#[test]
fn answers_end_at_stop_strings_and_limits() {
    let dir = folder();
    let json = |more: &[&str]| -> serde_json::Value {
        let run = run(dir.path(), &[&["tiny.gguf", "hello", "--json"], more].concat());
        serde_json::from_str(run.ok()).expect("JSON")
    };
    let whole = json(&["--max-new-tokens", "40"]);
    assert_eq!(whole["answers"][0]["finish"], "length");
    assert_eq!(whole["answers"][0]["token_ids"].as_array().map(Vec::len), Some(40));
    let text = whole["answers"][0]["text"].as_str().expect("text");
    let plain: Vec<char> = text.chars().collect();
    let stop: String = plain[5..7].iter().collect();
    let stopped = json(&["--max-new-tokens", "40", "--stop", &stop]);
    assert_eq!(stopped["answers"][0]["finish"], "stop_string");
    let before = text.find(&stop).expect("it is there");
    assert_eq!(stopped["answers"][0]["text"].as_str(), Some(&text[..before]));
    // 5 prompt tokens or fewer, and a context of 8.
    let full = json(&["--max-seq", "8"]);
    assert_eq!(full["answers"][0]["finish"], "context_full");
    let made = full["answers"][0]["token_ids"].as_array().expect("ids").len() as u64;
    assert_eq!(full["answers"][0]["prompt_tokens"].as_u64().expect("a count") + made, 9);
}

/// On the CPU both run step by step; the option's values, and answers that end in every way, are alike.
#[test]
fn every_launch_gives_the_same_answers() {
    let dir = folder();
    let prompts = ["hello", "a longer prompt than the others", "we"];
    let answers = |more: &[&str]| -> serde_json::Value {
        let run = run(dir.path(), &[&["tiny.gguf", "--json"], &prompts[..], more].concat());
        let json: serde_json::Value = serde_json::from_str(run.ok()).expect("JSON");
        json["answers"].clone()
    };
    let whole = answers(&["--max-new-tokens", "24"]);
    let text = whole[1]["text"].as_str().expect("text");
    let stop: String = text.chars().skip(4).take(3).collect();
    for settings in [
        vec!["--max-new-tokens", "24"],
        vec!["--max-new-tokens", "1"],
        vec!["--max-new-tokens", "24", "--temperature", "0.9", "--top-k", "20", "--seed", "3"],
        vec!["--max-new-tokens", "24", "--stop", &stop],
        vec!["--max-seq", "40", "--max-new-tokens", "200"],
    ] {
        let by_default = answers(&settings);
        for launch in ["loop", "step"] {
            let same = answers(&[&settings[..], &["--launch", launch]].concat());
            assert_eq!(same, by_default, "{launch} {settings:?}");
        }
        if settings.contains(&"--stop") {
            assert_eq!(by_default[1]["finish"], "stop_string");
            let before = text.find(&stop).expect("it is there");
            assert_eq!(by_default[1]["text"].as_str(), Some(&text[..before]));
        }
    }
    run(dir.path(), &["tiny.gguf", "hello", "--launch", "graph"]).fails(2, &["--launch", "loop, step"]);
    let help = weft(dir.path(), ["run", "--help"]);
    for text in ["loop:", "step:", "All in one launch", "conditional graph nodes"] {
        assert!(help.ok().contains(text), "{text}: {}", help.stdout);
    }
}

#[test]
fn a_prompt_comes_from_stdin() {
    let dir = folder();
    let mut command = command(dir.path());
    command.args(["run", "tiny.gguf", "--device", "cpu", "--max-new-tokens", "5"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    child.stdin.take().expect("a pipe").write_all(b"hello\n").expect("writes");
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success());
    let argument = run(dir.path(), &["tiny.gguf", "hello", "--max-new-tokens", "5"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), argument.ok());
    run(dir.path(), &["tiny.gguf"]).fails(2, &["no prompt", "stdin is empty"]);
}

#[test]
fn stdout_has_the_answer_and_stderr_the_rest() {
    let dir = folder();
    let answered = run(dir.path(), &["tiny.gguf", "hello", "--max-new-tokens", "5"]);
    answered.ok();
    for text in ["device: CPU reference", "tokens/s", "first token after"] {
        assert!(answered.stderr.contains(text), "{text}: {}", answered.stderr);
        assert!(!answered.stdout.contains(text));
    }
}

#[test]
fn what_a_model_lacks_is_named() {
    let dir = folder();
    let llama = fixture("tiny/llama").display().to_string();
    run(dir.path(), &[&llama, "hello"]).fails(2, &["tokenizer.json", "missing"]);
    run(dir.path(), &["tiny.gguf", "hello", "--chat"]).fails(2, &["no chat template", "--chat", "leave"]);
    run(dir.path(), &["tiny.gguf", "hello", "--system", "Be brief."])
        .fails(2, &["no chat template", "--system"]);
    run(dir.path(), &["tiny.gguf", "", "--no-chat"]).fails(2, &["prompt 1", "no tokens"]);
    run(dir.path(), &["tiny.gguf", "much too long", "--max-seq", "4"])
        .fails(2, &["prompt 1", "do not fit in --max-seq 4", "raise --max-seq"]);
}

#[test]
fn a_chat_template_is_applied() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:";
    gguf::tiny_gguf().set("tokenizer.chat_template", template).write(&dir.path().join("tiny.gguf"));
    let ids = |args: &[&str]| -> serde_json::Value {
        let run = run(dir.path(), &[&["tiny.gguf", "--json", "--max-new-tokens", "8"], args].concat());
        let json: serde_json::Value = serde_json::from_str(run.ok()).expect("JSON");
        json["answers"][0]["token_ids"].clone()
    };
    let plain = ids(&["user: hello\nassistant:", "--no-chat"]);
    assert_eq!(ids(&["hello"]), plain);
    assert_eq!(ids(&["hello", "--chat"]), plain);
    assert_ne!(ids(&["hello", "--no-chat"]), plain);
    let with_system = ids(&["system: s\nuser: hello\nassistant:", "--no-chat"]);
    assert_eq!(ids(&["hello", "--system", "s"]), with_system);
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let dir = folder();
    // Without NVRTC no GPU can be used.
    let auto = |device: &str| {
        let mut command = command(dir.path());
        command.env("WEFT_NVRTC", dir.path().join("nowhere"));
        finish(command.args(["run", "tiny.gguf", "hello", "--max-new-tokens", "2", "--device", device]))
    };
    auto("cuda").fails(1, &["--device cuda:"]);
    let run = auto("auto");
    run.ok();
    assert!(run.stderr.contains("CPU reference in f32, since no GPU can be used:"), "{}", run.stderr);
}
