//! Stored tensors that a model's builder does not read: an error where they are of the model's own modules, unless the
//! user says to pass them over; nothing but a warning where they are another part's.

mod common;

use common::{V, fixture, tiny_gguf};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize_to_file};
use std::path::Path;
use weft_frontend::checkpoint::Checkpoint;
use weft_frontend::error::Error;
use weft_frontend::models;
use weft_ir::dtype::{DType, Encoding};
use weft_ir::graph::Op;

/// A fixture with more tensors, of these shapes, and a change of its configuration's text.
fn with(dir: &Path, name: &str, more: &[(&str, &[usize])], change: (&str, &str)) {
    let c = Checkpoint::open(fixture(name)).expect("opens");
    let zeros = vec![0; 1 << 12];
    let stored = c.tensors().map(|t| {
        let dtype = match t.encoding {
            Some(Encoding::Plain(DType::F32)) => Dtype::F32,
            Some(Encoding::Plain(DType::BF16)) => Dtype::BF16,
            other => panic!("{other:?}"),
        };
        let bytes = c.bytes(&t.name).expect("bytes");
        (t.name.as_str(), TensorView::new(dtype, t.shape.clone(), bytes).expect("fits"))
    });
    let more = more.iter().map(|(name, shape)| {
        let bytes = &zeros[..2 * shape.iter().product::<usize>()];
        (*name, TensorView::new(Dtype::BF16, shape.to_vec(), bytes).expect("fits"))
    });
    let all: Vec<(&str, TensorView<'_>)> = stored.chain(more).collect();
    serialize_to_file(all, None, &dir.join("model.safetensors")).expect("writes");
    let config = std::fs::read_to_string(fixture(name).join("config.json")).expect("reads");
    let changed = config.replacen(change.0, change.1, 1);
    assert!(change.0 == change.1 || changed != config, "{change:?}");
    std::fs::write(dir.join("config.json"), changed).expect("writes");
}

/// Builds a model; the tensors that are worth a warning.
fn build(path: &Path, ignored: &[&str]) -> Result<Vec<String>, Error> {
    let ignored: Vec<String> = ignored.iter().map(ToString::to_string).collect();
    let c = Checkpoint::open(path)?.ignoring_tensors(&ignored);
    let graph = models::build(&c, DType::BF16)?;
    let read = graph.nodes.iter().filter_map(|n| match &n.op {
        Op::Weight { tensor, .. } => Some(tensor.clone()),
        _ => None,
    });
    Ok(c.unused(&read.collect::<Vec<_>>()))
}

const UNCHANGED: (&str, &str) = ("", "");

#[track_caller]
fn refused(error: &Error, parts: &[&str]) {
    assert!(matches!(error, Error::UnreadTensor { .. }), "{error}");
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[test]
fn of_the_models_own_modules_they_are_errors() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (family, name) in [
        // A module that is read.
        ("llama", "model.layers.0.self_attn.q_proj.bias"),
        ("llama", "model.norm.bias"),
        ("llama", "lm_head.scale"),
        // A module of a layer.
        ("llama", "model.layers.1.self_attn.q_norm.weight"),
        ("llama", "model.layers.1.adapter.down.weight"),
        ("bert", "encoder.layer.1.crossattention.self.query.weight"),
        // A layer behind the last.
        ("llama", "model.layers.2.mlp.up_proj.weight"),
        ("gpt2", "transformer.h.7.ln_1.weight"),
        // A module beside those that are read.
        ("llama", "model.embedding_norm.weight"),
        // A bias where others have a mask.
        ("gpt2", "transformer.h.0.attn.bias"),
    ] {
        with(dir.path(), &format!("tiny/{family}"), &[(name, &[8])], UNCHANGED);
        let error = build(dir.path(), &[]).expect_err("accepted");
        let option = format!("--ignore-tensor {name}");
        refused(&error, &["model.safetensors: tensor ", name, "does not read", &option]);
        for prefix in [name, &name[..name.len() - 3]] {
            assert_eq!(build(dir.path(), &[prefix]).expect("passed over"), [name], "{family}");
        }
    }
}

#[test]
fn of_other_parts_they_are_left_out() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (family, name) in [
        ("llama", "vision_tower.layers.0.norm.weight"),
        ("llama", "model.vision_tower.layers.0.norm.weight"),
        ("llama", "score.weight"),
        ("llama", "mtp.layers.0.norm.weight"),
        ("bert", "cls.predictions.bias"),
        ("bert", "classifier.weight"),
        ("deepseek-v3", "model.layers.3.eh_proj.weight"),
    ] {
        with(dir.path(), &format!("tiny/{family}"), &[(name, &[8])], UNCHANGED);
        assert_eq!(build(dir.path(), &[]).expect("built"), [name], "{family}");
        let error = build(dir.path(), &[name]).expect_err("accepted").to_string();
        assert!(error.contains(name) && error.contains("leave the option out"), "{error}");
    }
}

#[test]
fn what_the_configuration_says_is_no_warning() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (family, name, shape) in [
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq", &[16_usize] as &[usize]),
        ("llama", "model.rotary_emb.inv_freq", &[16]),
        ("llama-rope3-tied", "lm_head.weight", &[8, 8]),
        ("gpt2", "transformer.h.0.attn.bias", &[1, 1, 8, 8]),
        ("gpt2", "transformer.h.0.attn.masked_bias", &[]),
        ("gpt-neox", "gpt_neox.layers.0.attention.bias", &[1, 1, 8, 8]),
        ("gpt-neox", "gpt_neox.layers.0.attention.masked_bias", &[]),
        ("gpt-neox", "gpt_neox.layers.0.attention.rotary_emb.inv_freq", &[4]),
        ("bert", "embeddings.position_ids", &[1, 8]),
    ] {
        with(dir.path(), &format!("tiny/{family}"), &[(name, shape)], UNCHANGED);
        assert_eq!(build(dir.path(), &[]).expect("built"), Vec::<String>::new(), "{family}: {name}");
    }
}

/// As many layers behind the last draft as the configuration says; of DeepSeek V3, which does not always say it, one.
#[test]
fn layers_that_draft_are_left_out() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let names = ["model.layers.3.eh_proj.weight", "model.layers.4.eh_proj.weight"];
    let more: Vec<(&str, &[usize])> = names.iter().map(|name| (*name, &[8_usize] as &[usize])).collect();
    let key = "\"num_nextn_predict_layers\": 1";
    for (value, left) in [("0", Some(&names[..])), ("1", Some(&names[1..])), ("2", None)] {
        let change = key.replace('1', value);
        with(dir.path(), "tiny/deepseek-v3", &more, (key, &change));
        match (build(dir.path(), &[]), left) {
            (Ok(warned), None) => assert_eq!(warned, names),
            (Err(error), Some(left)) => {
                refused(&error, left);
                assert_eq!(error.to_string().contains(names[0]), left.contains(&names[0]), "{error}");
            }
            (other, _) => panic!("{value}: {other:?}"),
        }
    }
    with(dir.path(), "tiny/deepseek-v3", &more, (key, "\"_name_or_path\": \"\""));
    refused(&build(dir.path(), &[]).expect_err("accepted"), &["tensor model.layers.4.eh_proj.weight"]);
}

#[test]
fn an_error_names_some_of_many() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let names: Vec<String> = (0..9).map(|i| format!("model.layers.0.self_attn.warp_{i}.weight")).collect();
    let more: Vec<(&str, &[usize])> =
        names.iter().map(|name| (name.as_str(), &[8_usize] as &[usize])).collect();
    with(dir.path(), "tiny/llama", &more, UNCHANGED);
    let error = build(dir.path(), &[]).expect_err("accepted");
    refused(
        &error,
        &["tensors model.layers.0.self_attn.warp_0.weight, ", "warp_3.weight and 5 more", "begin with"],
    );
    assert!(!error.to_string().contains("warp_4"), "{error}");
    assert_eq!(build(dir.path(), &["model.layers.0.self_attn.warp_"]).expect("passed over").len(), 9);
    refused(&build(dir.path(), &[&names[7]]).expect_err("eight are left"), &["and 4 more"]);
    let error = build(dir.path(), &["model.layers.0.self_attn.q_proj"]).expect_err("it is read").to_string();
    assert!(error.contains("leave the option out"), "{error}");
}

#[test]
fn of_a_gguf_file_they_are_judged_alike() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("model.gguf");
    let write = |name: &str| tiny_gguf().tensor(name, &[8], 0, vec![0; 32]).write(&path);
    for name in ["blk.1.attn_q.bias", "blk.0.attn_sinks.weight", "blk.9.attn_norm.weight", "output_norm.bias"]
    {
        write(name);
        refused(&build(&path, &[]).expect_err("accepted"), &["model.gguf: tensor ", name, "--ignore-tensor"]);
        assert_eq!(build(&path, &[name]).expect("passed over"), [name]);
    }
    for (name, warned) in
        [("mm.0.weight", true), ("v.blk.0.ln1.weight", true), ("blk.0.attn_rot_embd", false)]
    {
        write(name);
        let expected: &[&str] = if warned { &[name] } else { &[] };
        assert_eq!(build(&path, &[]).expect("built"), expected);
    }
    tiny_gguf().set("llama.vision.block_count", V::U32(1)).write(&path);
    assert_eq!(build(&path, &[]).expect("built"), Vec::<String>::new());
}
