//! Families whose checkpoint is one of the variants, and encoders.

use crate::compare::{agree, agree_with, golden};
use crate::convert::{convert, tensors};
use weft_frontend::checkpoint::Checkpoint;
use weft_frontend::config::pooling::{Pooling, PoolingMode};
use weft_ir::dtype::DType;
use weft_runtime::exec::{CpuModel, CpuOptions};
use weft_testsuite::fixture::{Bytes, Fixture};
use weft_testsuite::gguf::{Meta, Names};

/// DeepSeek V3's metadata of a checkpoint, as newer converters write it.
fn of_deepseek(hf: &Checkpoint) -> Vec<(&'static str, Meta)> {
    let (c, size) = (hf.config(), |n: usize| Meta::Size(n as u32));
    let (l, e) = (c.latent.expect("latent attention"), c.experts.clone().expect("experts"));
    let groups = e.groups.expect("groups");
    let mut meta = vec![
        ("attention.head_count_kv", size(1)),
        ("attention.key_length", size(l.kv_rank + l.rotated)),
        ("attention.value_length", size(l.kv_rank)),
        ("attention.key_length_mla", size(l.plain + l.rotated)),
        ("attention.value_length_mla", size(l.value)),
        ("attention.kv_lora_rank", size(l.kv_rank)),
        ("expert_count", size(e.count)),
        ("expert_used_count", size(e.picks)),
        ("expert_feed_forward_length", size(e.width)),
        ("expert_shared_count", size(e.shared.expect("a shared expert").width / e.width)),
        ("expert_group_count", size(groups.count)),
        ("expert_group_used_count", size(groups.picks)),
        ("expert_weights_scale", Meta::Number(e.scale as f32)),
        ("expert_weights_norm", Meta::Flag(e.normalised)),
        ("expert_gating_func", size(2)),
        ("leading_dense_block_count", size(e.sparse.iter().filter(|s| !**s).count())),
    ];
    meta.extend(l.q_rank.map(|n| ("attention.q_lora_rank", size(n))));
    meta
}

/// As older converters wrote it: the heads' own sizes, and what makes keys and values in one tensor.
fn of_older_deepseek(hf: &Checkpoint) -> Vec<(&'static str, Meta)> {
    let (c, l) = (hf.config(), hf.config().latent.expect("latent attention"));
    let mut meta = of_deepseek(hf);
    meta.retain(|(key, _)| !key.ends_with("_mla"));
    for (key, value) in &mut meta {
        let size = match *key {
            "attention.head_count_kv" => c.heads,
            "attention.key_length" => l.plain + l.rotated,
            "attention.value_length" => l.value,
            _ => continue,
        };
        *value = Meta::Size(size as u32);
    }
    meta
}

fn variant(name: &str) -> Checkpoint {
    Fixture::at(weft_testsuite::fixture::folder().join("variants").join(name)).checkpoint
}

/// Latent attention, with its matrices of keys and values apart; queries narrow or not, YaRN.
#[test]
fn deepseek2() {
    let hf = Fixture::open("deepseek-v3").checkpoint;
    golden("deepseek-v3", "deepseek2", &of_deepseek(&hf));
    golden("deepseek-v3", "deepseek2", &of_older_deepseek(&hf));
    for name in ["deepseek-v3-no-q-rank", "deepseek-v3-groups"] {
        let hf = variant(name);
        agree(&hf, "deepseek2", &of_deepseek(&hf));
        agree(&hf, "deepseek2", &of_older_deepseek(&hf));
    }
    let yarn = [
        ("rope.scaling.type", Meta::Text("yarn")),
        ("rope.scaling.factor", Meta::Number(4.0)),
        ("rope.scaling.original_context_length", Meta::Size(16)),
        ("rope.scaling.yarn_log_multiplier", Meta::Number(0.1)),
    ];
    let of_yarn = variant("deepseek-v3-yarn");
    assert!(of_yarn.config().attention_scale > 1.2 / 4.0, "YaRN scales the scores");
    for meta in [of_deepseek(&of_yarn), of_older_deepseek(&of_yarn)] {
        agree(&of_yarn, "deepseek2", &[&meta[..], &yarn].concat());
    }
    // DeepSeek V2's scores; groups that do not divide the experts.
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("model.gguf");
    for (key, value) in [("expert_gating_func", 1), ("expert_group_count", 3)] {
        let mut meta = of_deepseek(&hf);
        meta.iter_mut().filter(|(k, _)| *k == key).for_each(|(_, v)| *v = Meta::Size(value));
        convert(&hf, "deepseek2", &meta, &[], &path);
        let Err(error) = Checkpoint::open(&path) else { panic!("{key} = {value} was read") };
        assert!(error.to_string().contains("deepseek2.expert_g"), "{error}");
    }
}

/// The row of the shared expert's gate is a vector, or a matrix.
#[test]
fn qwen2_moe() {
    let meta = [
        ("expert_count", Meta::Size(5)),
        ("expert_used_count", Meta::Size(2)),
        ("expert_feed_forward_length", Meta::Size(16)),
        ("expert_shared_feed_forward_length", Meta::Size(24)),
    ];
    let hf = variant("qwen2-moe");
    agree(&hf, "qwen2moe", &meta);
    let vectors: Vec<(String, Vec<f32>)> = tensors(&hf)
        .into_iter()
        .filter(|(name, _)| name.ends_with("shared_expert_gate.weight"))
        .map(|(name, (_, values))| (Names::of("qwen2_moe").get(&name), values))
        .collect();
    assert_eq!(vectors.len(), 2);
    let vectors: Vec<(&str, Vec<f32>)> = vectors.iter().map(|(n, v)| (n.as_str(), v.clone())).collect();
    agree_with(&hf, "qwen2moe", &meta, &vectors);
}

/// OLMo 3's files are OLMo 2's, with windows; layers with one are not scaled by YaRN. Without a list of layers every
/// fourth sees all.
#[test]
fn olmo3() {
    let windows = |n: u32, flags: &[bool]| {
        let list = Meta::Flags(flags.to_vec());
        [("attention.sliding_window", Meta::Size(n)), ("attention.sliding_window_pattern", list)]
    };
    let (plain, of_yarn) = (variant("olmo3"), variant("olmo3-yarn"));
    let listed = windows(5, &[true, true, true, false]);
    agree(&plain, "olmo2", &listed);
    agree(&plain, "olmo2", &listed[..1]);
    let yarn = [
        ("rope.scaling.type", Meta::Text("yarn")),
        ("rope.scaling.factor", Meta::Number(4.0)),
        ("rope.scaling.original_context_length", Meta::Size(16)),
    ];
    agree(&of_yarn, "olmo2", &[&windows(4, &[true, false])[..], &yarn].concat());
}

/// BERT and RoBERTa, whose vocabulary is another.
#[test]
fn bert() {
    for place in ["tiny/bert", "variants/bert-odd", "variants/roberta", "variants/xlm-roberta"] {
        let source = weft_testsuite::fixture::folder().join(place);
        let hf = Fixture::at(source.clone()).checkpoint;
        let dir = tempfile::tempdir().expect("folder");
        let meta = [("attention.causal", Meta::Flag(false)), ("pooling_type", Meta::Size(2))];
        let path = dir.path().join("model.gguf");
        convert(&hf, "bert", &meta, &[], &path);
        for file in ["golden.safetensors", "golden.json"] {
            std::fs::copy(source.join(file), dir.path().join(file)).expect("copies");
        }
        let fixture = Fixture::at(dir.path().to_owned());
        let gguf = &fixture.checkpoint;
        let c = gguf.config();
        assert_eq!(
            (c.type_vocab_size, c.max_position),
            (hf.config().type_vocab_size, hf.config().max_position)
        );
        assert!(c.unknown.is_empty(), "{:?}", c.unknown);
        let pooling = Pooling::of(gguf).unwrap_or_else(|e| panic!("{e}")).expect("the file says it");
        assert_eq!((pooling.mode, pooling.normalize), (PoolingMode::Cls, true));
        let graph = fixture.graph(DType::F32);
        assert_eq!(gguf.unused(&weft::model::used_tensors(&graph)), Vec::<String>::new());
        let options = CpuOptions { max_seq: 128, max_batch: 8, ..CpuOptions::default() };
        let mut model = CpuModel::graph(graph, &Bytes(gguf), &options).unwrap_or_else(|e| panic!("{e}"));
        let distance = weft_testsuite::encoder::tiny(&fixture, &mut model);
        assert!(distance <= 1e-4, "{place}: {distance}");
        // A decoder of the name, and a way of pooling that there is not.
        for (key, value) in [("attention.causal", Meta::Flag(true)), ("pooling_type", Meta::Size(4))] {
            let mut meta = meta.clone();
            meta.iter_mut().filter(|(k, _)| *k == key).for_each(|(_, v)| *v = value.clone());
            convert(&hf, "bert", &meta, &[], &path);
            let read = Checkpoint::open(&path).and_then(|c| Pooling::of(&c).map(|_| ()));
            let Err(error) = read else { panic!("{key} was read") };
            assert!(error.to_string().contains(&format!("bert.{key}")), "{error}");
        }
    }
}
