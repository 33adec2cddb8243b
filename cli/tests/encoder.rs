//! Encoders on the CPU through the binary: golden hidden states, rows of different lengths, bundles, embeddings,
//! and what is refused.

mod common;

use common::{Run, command, finish, fixture, longs, read_floats, read_longs, relative_rmse, write};
use safetensors::{Dtype, SafeTensors};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn forward(dir: &Path, model: &Path, input: &Path, more: &[&str]) -> Run {
    let mut command = command(dir);
    command.arg("forward").arg(model).arg("--input").arg(input);
    command.args(["--output", "out.safetensors", "--device", "cpu"]).args(more);
    finish(&mut command)
}

/// The hidden states of an output where the mask is 1, and its shape; 0 elsewhere.
fn kept(file: &[u8], mask: &[i64]) -> (Vec<f32>, Vec<usize>) {
    let (values, shape) = read_floats(file, "last_hidden_state");
    let rows = values.chunks(shape[2]).zip(mask);
    (rows.filter(|(_, m)| **m == 1).flat_map(|(row, _)| row.to_vec()).collect(), shape)
}

#[test]
fn hidden_states_are_the_golden_ones_at_every_level() {
    let dir = folder();
    let path = fixture("tiny/bert/golden.safetensors");
    let golden = fs::read(&path).expect("reads");
    let mask = read_longs(&golden, "attention_mask").0;
    assert!(mask.contains(&0), "rows of different lengths");
    let (expected, shape) = kept(&golden, &mask);
    let check = || {
        let out = fs::read(dir.path().join("out.safetensors")).expect("reads");
        let (got, got_shape) = kept(&out, &mask);
        assert_eq!(got_shape, shape);
        let error = relative_rmse(&got, &expected);
        assert!(error <= 1e-4, "relative rmse {error:e}");
        let all = read_floats(&out, "last_hidden_state").0;
        let hidden = all.chunks(shape[2]).zip(&mask).filter(|(_, m)| **m == 0);
        assert!(hidden.flat_map(|(row, _)| row).all(|&x| x == 0.0), "0 where the mask is");
    };
    for level in ["0", "1", "2"] {
        let run = forward(dir.path(), &fixture("tiny/bert"), &path, &["--opt-level", level]);
        run.ok();
        assert!(run.stderr.contains("CPU reference (f32"), "{}", run.stderr);
        check();
    }
    for level in ["0", "2"] {
        let args = ["--target", "sm_90", "--no-check", "-o", "b", "--opt-level", level];
        let mut compile = command(dir.path());
        let run = finish(compile.arg("compile").arg(fixture("tiny/bert")).args(args));
        assert!(run.ok().contains("encode_256"), "{}", run.stdout);
        assert!(!run.stderr.contains("warning"), "{}", run.stderr);
        forward(dir.path(), &dir.path().join("b"), &path, &[]).ok();
        check();
    }
}

#[test]
fn rows_do_not_see_each_other() {
    // 11 rows of lengths from 0 to 100, padded on either side: more than a bundle's batch of 8.
    let dir = folder();
    let input = dir.path().join("in.safetensors");
    let (rows, len) = (11usize, 100usize);
    let lengths: Vec<usize> = (0..rows).map(|r| r * 10).collect();
    let ids: Vec<i64> = (0..rows * len).map(|i| ((i * 37 + i / 7) % 256) as i64).collect();
    let seen = |r: usize, t: usize| if r.is_multiple_of(2) { t < lengths[r] } else { t >= len - lengths[r] };
    let mask: Vec<i64> = (0..rows * len).map(|i| i64::from(seen(i / len, i % len))).collect();
    let types: Vec<i64> = (0..rows * len).map(|i| i64::from(i % len > 30)).collect();
    let given = |range: std::ops::Range<usize>| {
        let shape = [range.len(), len];
        let part = |all: &[i64]| longs(&all[range.start * len..range.end * len]);
        write(
            &input,
            &[
                ("input_ids", Dtype::I64, &shape, part(&ids)),
                ("attention_mask", Dtype::I64, &shape, part(&mask)),
                ("token_type_ids", Dtype::I64, &shape, part(&types)),
            ],
        );
    };
    let mut bundle = command(dir.path());
    bundle.arg("compile").arg(fixture("tiny/bert")).args(["--target", "sm_90", "--no-check", "-o", "b"]);
    finish(&mut bundle).ok();
    let out = dir.path().join("out.safetensors");
    for model in [fixture("tiny/bert"), dir.path().join("b")] {
        given(0..rows);
        forward(dir.path(), &model, &input, &[]).ok();
        let all = kept(&fs::read(&out).expect("reads"), &mask).0;
        let first: usize = lengths[..7].iter().sum();
        given(7..8);
        forward(dir.path(), &model, &input, &[]).ok();
        let one = kept(&fs::read(&out).expect("reads"), &mask[7 * len..8 * len]).0;
        assert_eq!(one.len(), lengths[7] * 128);
        let error = relative_rmse(&all[first * 128..][..one.len()], &one);
        assert!(error <= 1e-6, "{error:e}");
    }
}

#[test]
fn padding_on_the_left_changes_nothing() {
    let dir = folder();
    let (input, out) = (dir.path().join("in.safetensors"), dir.path().join("out.safetensors"));
    // RoBERTa counts tokens, ModernBERT's positions are relative, in its windows too.
    for name in ["variants/roberta", "variants/modernbert"] {
        let run = |padding: [usize; 2]| {
            let pad = |n: usize, x: i64| vec![x; n];
            let row =
                |x: i64, tokens: &[i64]| [pad(padding[0], x), tokens.to_vec(), pad(padding[1], x)].concat();
            let ids = row(1, &[5, 9, 17, 33, 65, 7, 11, 13, 19, 23]);
            let mask = row(0, &[1; 10]);
            let shape = [1, ids.len()];
            let tensors = [
                ("input_ids", Dtype::I64, &shape[..], longs(&ids)),
                ("attention_mask", Dtype::I64, &shape[..], longs(&mask)),
            ];
            write(&input, &tensors);
            forward(dir.path(), &fixture(name), &input, &[]).ok();
            kept(&fs::read(&out).expect("reads"), &mask).0
        };
        let plain = run([0, 0]);
        assert_eq!(plain.len(), 10 * 32);
        for padding in [[0, 3], [6, 0], [2, 1]] {
            let error = relative_rmse(&run(padding), &plain);
            assert!(error < 1e-5, "{name} {padding:?}: {error:e}");
        }
    }
}

/// BERT's tokens stay at their columns, whatever its bundle was asked to be for.
#[test]
fn an_encoder_is_one_for_every_task() {
    let dir = folder();
    let (input, out) = (dir.path().join("in.safetensors"), dir.path().join("out.safetensors"));
    let mask = [0, 0, 1, 1, 1, 1];
    let shape = [1, 6];
    write(
        &input,
        &[
            ("input_ids", Dtype::I64, &shape, longs(&[0, 0, 5, 9, 17, 33])),
            ("attention_mask", Dtype::I64, &shape, longs(&mask)),
        ],
    );
    let [generate, embed] = ["generate", "embed"].map(|task| {
        let mut compile = command(dir.path());
        compile.arg("compile").arg(fixture("tiny/bert")).args(["--target", "sm_90", "--no-check"]);
        finish(compile.args(["--task", task, "-o", task])).ok();
        forward(dir.path(), &dir.path().join(task), &input, &[]).ok();
        fs::read(&out).expect("reads")
    });
    assert!(generate == embed);
}

/// The tiny bert with sentence-transformers' files, and a tokenizer of words.
fn embedder(dir: &Path, pooling: &str, modules: &[&str]) -> PathBuf {
    let model = dir.join("model");
    fs::create_dir_all(&model).expect("makes");
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixture("tiny/bert").join(file), model.join(file)).expect("copies");
    }
    sentence_transformers(model, pooling, modules)
}

/// Puts sentence-transformers' files and a tokenizer of words beside a model.
fn sentence_transformers(model: PathBuf, pooling: &str, modules: &[&str]) -> PathBuf {
    fs::create_dir_all(model.join("1_Pooling")).expect("makes");
    let list: Vec<serde_json::Value> = modules
        .iter()
        .enumerate()
        .map(|(i, kind)| {
            let path = if *kind == "Pooling" { "1_Pooling" } else { "" };
            serde_json::json!({"idx": i, "name": i.to_string(), "path": path, "type": format!("st.models.{kind}")})
        })
        .collect();
    let put = |name: &str, value: serde_json::Value| {
        fs::write(model.join(name), value.to_string()).expect("writes");
    };
    put("modules.json", list.into());
    put("1_Pooling/config.json", serde_json::json!({"word_embedding_dimension": 128, pooling: true}));
    put("sentence_bert_config.json", serde_json::json!({"max_seq_length": 6, "do_lower_case": true}));
    let special = |id: u32, content: &str| {
        serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let one = |id: &str| serde_json::json!({"SpecialToken": {"id": id, "type_id": 0}});
    let text = serde_json::json!({"Sequence": {"id": "A", "type_id": 0}});
    put(
        "tokenizer.json",
        serde_json::json!({
            "version": "1.0",
            "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
            "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                "pad_type_id": 0, "pad_token": "[PAD]"},
            "added_tokens": [special(1, "[CLS]"), special(2, "[SEP]")],
            "normalizer": null,
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [one("[CLS]"), text, one("[SEP]")],
                "pair": [one("[CLS]"), text, one("[SEP]")],
                "special_tokens": {
                    "[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]},
                    "[SEP]": {"id": "[SEP]", "ids": [2], "tokens": ["[SEP]"]},
                },
            },
            "decoder": null,
            "model": {"type": "WordLevel", "unk_token": "[UNK]",
                "vocab": {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "blue": 4, "green": 5, "red": 6}},
        }),
    );
    model
}

fn embed(dir: &Path, model: &Path, texts: &[&str]) -> serde_json::Value {
    let mut command = command(dir);
    command.arg("embed").arg(model).args(texts).args(["--device", "cpu", "--json"]);
    serde_json::from_str(finish(&mut command).ok()).expect("JSON")
}

fn values(json: &serde_json::Value, i: usize) -> Vec<f32> {
    let list = json["embeddings"][i]["embedding"].as_array().expect("a list");
    list.iter().map(|x| x.as_f64().expect("a number") as f32).collect()
}

#[test]
fn texts_are_pooled_as_configured() {
    let dir = folder();
    let model = embedder(dir.path(), "pooling_mode_mean_tokens", &["Transformer", "Pooling", "Normalize"]);
    let out = embed(dir.path(), &model, &["red GREEN", "blue"]);
    assert_eq!((&out["dimensions"], &out["pooling"]["mode"]), (&128.into(), &"Mean".into()));
    assert_eq!((&out["embeddings"][0]["tokens"], &out["embeddings"][1]["tokens"]), (&4.into(), &3.into()));
    let mean = values(&out, 0);
    let length: f32 = mean.iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-5, "{length}");

    // The same from hidden states: [CLS] red green [SEP].
    let input = dir.path().join("in.safetensors");
    write(&input, &[("input_ids", Dtype::I64, &[1, 4], longs(&[1, 6, 5, 2]))]);
    forward(dir.path(), &model, &input, &[]).ok();
    let hidden =
        read_floats(&fs::read(dir.path().join("out.safetensors")).expect("reads"), "last_hidden_state").0;
    let sum: Vec<f32> = (0..128).map(|i| hidden.iter().skip(i).step_by(128).sum()).collect();
    let norm = sum.iter().map(|x| x * x).sum::<f32>().sqrt();
    let expected: Vec<f32> = sum.iter().map(|x| x / norm).collect();
    assert!(relative_rmse(&mean, &expected) < 1e-5);

    let model = embedder(dir.path(), "pooling_mode_cls_token", &["Transformer", "Pooling"]);
    let cls = values(&embed(dir.path(), &model, &["red green"]), 0);
    assert!(relative_rmse(&cls, &hidden[..128]) < 1e-5);
    let model = embedder(dir.path(), "pooling_mode_lasttoken", &["Transformer", "Pooling"]);
    let last = values(&embed(dir.path(), &model, &["red green"]), 0);
    assert!(relative_rmse(&last, &hidden[3 * 128..]) < 1e-5);
    let model = embedder(dir.path(), "pooling_mode_max_tokens", &["Transformer", "Pooling"]);
    let max = values(&embed(dir.path(), &model, &["red green"]), 0);
    assert!(max.iter().zip(&cls).all(|(m, c)| m >= c));

    // The default prompt is put before a text, and its case is the text's.
    let prompts = model.join("config_sentence_transformers.json");
    fs::write(&prompts, r#"{"default_prompt_name": "q", "prompts": {"q": "RED "}}"#).expect("writes");
    let prompted = embed(dir.path(), &model, &["green"]);
    assert_eq!(
        (&prompted["pooling"]["prompt"], &prompted["embeddings"][0]["text"]),
        (&"RED ".into(), &"green".into())
    );
    assert_eq!(values(&prompted, 0), max);
    fs::remove_file(&prompts).expect("removes");

    // Lines of stdin; what is longer than the model takes is cut off, and said.
    let mut command = command(dir.path());
    command.arg("embed").arg(&model).args(["--device", "cpu"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    let mut stdin = child.stdin.take().expect("stdin");
    stdin.write_all(b"red green\nred red red red red red red\n").expect("writes");
    drop(stdin);
    let done = child.wait_with_output().expect("ends");
    let (text, said) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success() && said.contains("1 texts were cut off at 6 tokens"), "{said}");
    let first: Vec<f32> =
        text.lines().next().expect("a line").split(' ').map(|x| x.parse().expect("a number")).collect();
    assert_eq!((text.lines().count(), first), (2, max));
}

#[test]
fn what_does_not_fit_an_encoder_is_named() {
    let dir = folder();
    let model = embedder(dir.path(), "pooling_mode_weightedmean_tokens", &["Transformer", "Pooling"]);
    let run = |args: &[&str], model: &Path| {
        let mut command = command(dir.path());
        command.arg(args[0]).arg(model).args(&args[1..]).args(["--device", "cpu"]);
        finish(&mut command)
    };
    run(&["run", "hello"], &model).fails(2, &["bert is an encoder", "weft embed"]);
    run(&["embed", "hello"], &model).fails(2, &["1_Pooling/config.json", "pooling_mode_weightedmean_tokens"]);
    let model = embedder(dir.path(), "pooling_mode_mean_tokens", &["Transformer", "Pooling", "Dense"]);
    run(&["embed", "hello"], &model).fails(2, &["modules.json", "st.models.Dense"]);
    run(&["embed"], &fixture("tiny/bert")).fails(2, &["tokenizer.json"]);
    let input = dir.path().join("in.safetensors");
    type Tensor<'a> = (&'a str, Dtype, &'a [usize], Vec<u8>);
    let refused = |more: &[Tensor<'_>], options: &[&str], says: &[&str]| {
        let ids: Tensor<'_> = ("input_ids", Dtype::I64, &[1, 3], longs(&[1, 2, 3]));
        write(&input, &[&[ids], more].concat());
        forward(dir.path(), &fixture("tiny/bert"), &input, options).fails(2, says);
    };
    let mask = |values: &[i64]| -> Tensor<'_> { ("attention_mask", Dtype::I64, &[1, 3], longs(values)) };
    refused(&[mask(&[1, 2, 0])], &[], &["attention_mask", "row 0, token 1: neither 0 nor 1"]);
    let narrow: Tensor<'_> = ("attention_mask", Dtype::I64, &[1, 2], longs(&[1, 1]));
    refused(&[narrow], &[], &["attention_mask", "[1, 2]", "[1, 3]"]);
    let types: Tensor<'_> = ("token_type_ids", Dtype::I64, &[1, 3], longs(&[0, 1, 2]));
    refused(&[types], &[], &["token_type_ids", "id 2 is outside the token types, 0..2"]);
    let continued: Tensor<'_> = ("continue_ids", Dtype::I64, &[1, 1], longs(&[1]));
    refused(&[continued], &[], &["continue_ids", "leave it out"]);
    refused(&[], &["--max-new-tokens", "2"], &["--max-new-tokens", "encoder"]);
    refused(&[], &["--max-seq", "2"], &["3 tokens do not fit in --max-seq 2"]);
    refused(&[], &["--max-seq", "257"], &["--max-seq 257", "256"]);
    let long = longs(&[7; 300]);
    write(&input, &[("input_ids", Dtype::I64, &[1, 300], long)]);
    forward(dir.path(), &fixture("tiny/bert"), &input, &[]).fails(2, &["input_ids", "256 positions"]);
}

#[test]
fn minilm_embeds_as_sentence_transformers_does() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.weft/models/all-minilm-l6-v2");
    if !model.join("model.safetensors").exists() {
        // The harness hides what passing tests print, so this goes to standard error itself.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: {} is not there (`cargo xtask test` fetches it)",
            model.display()
        );
        return;
    }
    let dir = folder();
    let golden = fs::read(fixture("text/all-minilm-l6-v2.json")).expect("reads");
    let golden: Vec<serde_json::Value> = serde_json::from_slice(&golden).expect("JSON");
    let texts: Vec<&str> = golden.iter().map(|g| g["text"].as_str().expect("text")).collect();
    let out = embed(dir.path(), &model, &texts);
    for (i, g) in golden.iter().enumerate() {
        assert_eq!(out["embeddings"][i]["tokens"], g["input_ids"].as_array().expect("ids").len());
        let expected: Vec<f32> = g["embedding"]
            .as_array()
            .expect("list")
            .iter()
            .map(|x| x.as_f64().expect("number") as f32)
            .collect();
        let error = relative_rmse(&values(&out, i), &expected);
        assert!(error < 1e-4, "{}: {error:e}", texts[i]);
    }
}

/// The tiny qwen3 as sentence-transformers save decoders: without a head, and without `model.` before the names.
fn decoder(dir: &Path) -> PathBuf {
    let model = dir.join("decoder");
    fs::create_dir_all(&model).expect("makes");
    fs::copy(fixture("tiny/qwen3").join("config.json"), model.join("config.json")).expect("copies");
    let bytes = fs::read(fixture("tiny/qwen3").join("model.safetensors")).expect("reads");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let all = file.tensors();
    let bare = all.iter().filter_map(|(name, t)| Some((name.strip_prefix("model.")?, t)));
    let tensors: Vec<_> = bare.map(|(name, t)| (name, t.dtype(), t.shape(), t.data().to_vec())).collect();
    write(&model.join("model.safetensors"), &tensors);
    sentence_transformers(model, "pooling_mode_lasttoken", &["Transformer", "Pooling", "Normalize"])
}

#[test]
fn decoders_embed_texts() {
    let dir = folder();
    let model = decoder(dir.path());
    let prompts = model.join("config_sentence_transformers.json");
    let text = r#"{"default_prompt_name": null, "prompts": {"query": "red ", "document": ""}}"#;
    fs::write(&prompts, text).expect("writes");
    let out = embed(dir.path(), &model, &["green blue", "red green blue"]);
    assert_eq!(out["pooling"]["mode"], "LastToken");
    let run = |args: &[&str]| {
        let mut command = command(dir.path());
        finish(command.args(args))
    };
    let decoder = model.to_str().expect("a path");

    // A prompt by its name is put before the text.
    let queries =
        run(&["embed", decoder, "green blue", "--device", "cpu", "--json", "--prompt-name", "query"]);
    let queries: serde_json::Value = serde_json::from_str(queries.ok()).expect("JSON");
    assert_eq!(values(&queries, 0), values(&out, 1));
    assert_ne!(values(&queries, 0), values(&out, 0));
    let unknown = run(&["embed", decoder, "green", "--device", "cpu", "--prompt-name", "passage"]);
    assert!(unknown.stderr.contains("--prompt-name passage: the checkpoint's prompts are document, query"));

    // A bundle for it, and the last token's state of the plain decoder with its names as they were.
    let compile = |model: &str, to: &str, task: &str| {
        run(&["compile", model, "--target", "sm_90", "--no-check", "--task", task, "-o", to])
    };
    let bundled = compile(decoder, "b", "embed");
    assert!(bundled.ok().contains("encode_256"), "{}", bundled.stdout);
    assert!(!bundled.stderr.contains("warning"), "{}", bundled.stderr);
    let bundle = embed(dir.path(), &dir.path().join("b"), &["green blue"]);
    assert!(relative_rmse(&values(&bundle, 0), &values(&out, 0)) < 1e-5);
    let plain = fixture("tiny/qwen3");
    compile(plain.to_str().expect("a path"), "p", "embed").ok();
    let input = dir.path().join("in.safetensors");
    // [CLS] green blue [SEP], padded on the left.
    write(
        &input,
        &[
            ("input_ids", Dtype::I64, &[1, 6], longs(&[0, 0, 1, 5, 4, 2])),
            ("attention_mask", Dtype::I64, &[1, 6], longs(&[0, 0, 1, 1, 1, 1])),
        ],
    );
    forward(dir.path(), &dir.path().join("p"), &input, &[]).ok();
    let hidden = fs::read(dir.path().join("out.safetensors")).expect("reads");
    let (hidden, shape) = read_floats(&hidden, "last_hidden_state");
    let last = &hidden[5 * shape[2]..];
    let norm = last.iter().map(|x| x * x).sum::<f32>().sqrt();
    let expected: Vec<f32> = last.iter().map(|x| x / norm).collect();
    assert!(relative_rmse(&values(&out, 0), &expected) < 1e-5);

    // What was compiled for one is refused by the other, with what to do.
    let answers = run(&["run", "b", "green", "--device", "cpu"]);
    assert!(answers.stderr.contains("compiled for hidden states"), "{}", answers.stderr);
    compile(decoder, "g", "generate").ok();
    let generates = run(&["embed", "g", "green", "--device", "cpu"]);
    assert!(generates.stderr.contains("compiled to generate"), "{}", generates.stderr);
    assert!(generates.stderr.contains("--task embed"), "{}", generates.stderr);
}
