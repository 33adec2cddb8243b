//! Every family that llama.cpp's converter writes and Weft builds: its GGUF file gives what its Hugging Face folder
//! gives, and the golden where there is one.

use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use weft_frontend::checkpoint::Checkpoint;
use weft_frontend::config::pooling::{Pooling, PoolingMode};
use weft_frontend::config::{LayerRope, Norm, PositionKind, QkNorm};
use weft_ir::decode::decode_f32;
use weft_ir::dtype::DType;
use weft_runtime::exec::{CpuModel, CpuOptions};
use weft_testsuite::fixture::{Bytes, Fixture, relative_rmse};
use weft_testsuite::gguf::{Meta, Names, Tensor, apart, permuted, transposed, write};
use weft_testsuite::golden::{ids, tiny};
use weft_testsuite::random::rng::Rng;

type Tensors = BTreeMap<String, Tensor>;

/// A Hugging Face folder's tensors.
fn tensors(checkpoint: &Checkpoint) -> Tensors {
    let read = |t: &weft_frontend::tensor::TensorInfo| {
        let mut values = vec![0.0; t.elements().expect("elements")];
        let bytes = checkpoint.bytes(&t.name).expect("bytes");
        decode_f32(t.encoding.expect("type"), bytes, &mut values).expect("decodes");
        (t.name.clone(), (t.shape.clone(), values))
    };
    checkpoint.tensors().map(read).collect()
}

/// Writes a checkpoint's tensors as the converter does.
fn convert(
    hf: &Checkpoint,
    arch: &'static str,
    more: &[(&str, Meta)],
    factors: &[(&str, Vec<f32>)],
    to: &Path,
) {
    let c = hf.config();
    let size = |n: usize| Meta::Size(n as u32);
    let layer_norm = matches!(c.norm, Norm::Layer { .. });
    let eps = if layer_norm { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" };
    let mut meta = vec![("general.architecture".to_owned(), Meta::Text(arch))];
    let sizes = [
        ("block_count", size(c.layers)),
        ("context_length", size(c.max_position)),
        ("embedding_length", size(c.hidden_size)),
        ("feed_forward_length", size(c.intermediate_size)),
        ("attention.head_count", size(c.heads)),
        ("attention.head_count_kv", size(c.kv_heads)),
        (eps, Meta::Number(c.norm_eps as f32)),
    ];
    let rotary = [
        ("rope.freq_base", Meta::Number(c.rope.theta as f32)),
        ("rope.dimension_count", size(c.rope.dim)),
        ("attention.key_length", size(c.head_dim)),
        ("attention.value_length", size(c.head_dim)),
    ];
    let rotary = rotary.into_iter().filter(|_| c.positions == PositionKind::Rotary);
    let own = more.iter().map(|(k, v)| (*k, v.clone()));
    let usual = sizes.into_iter().chain(rotary).filter(|(k, _)| more.iter().all(|(other, _)| other != k));
    meta.extend(usual.chain(own).map(|(k, v)| (format!("{arch}.{k}"), v)));
    // RoBERTa's files are BERT's.
    let names = Names::of(if arch == "bert" { "bert" } else { &c.model_type });
    let whole = more.iter().all(|(key, _)| *key != "attention.key_length_mla");
    let gemma = arch.starts_with("gemma");
    let mut out: BTreeMap<String, Tensor> = BTreeMap::new();
    let mut stacks: BTreeMap<String, Vec<(String, Tensor)>> = BTreeMap::new();
    for (name, mut t) in tensors(hf) {
        if gemma && name.ends_with("norm.weight") {
            t.1.iter_mut().for_each(|v| *v += 1.0);
        }
        // The metadata has no query_pre_attn_scalar; llama.cpp scales by the width of a head. The fixtures' own is 64
        // for heads of 32, so their queries are stored smaller by the root of a half.
        let queries = if c.qk_norm == QkNorm::None { "q_proj.weight" } else { "q_norm.weight" };
        if gemma && name.ends_with(queries) {
            t.1.iter_mut().for_each(|v| *v *= 0.5f32.sqrt());
        }
        if arch == "bert" && name.starts_with("pooler.") {
            continue;
        }
        if arch == "bert" && name.contains("position_embeddings") {
            let width = t.0[1];
            t.1.drain(..c.position_offset * width);
            t.0[0] = t.1.len() / width;
        }
        if arch == "deepseek2"
            && !(whole && name.contains("kv_b_proj"))
            && let Some(stored) = deepseek(&name, &t, hf)
        {
            out.extend(stored.into_iter().map(|(name, t)| (names.get(&name), t)));
            continue;
        }
        if arch == "gpt-oss"
            && let Some(stored) = gpt_oss(&name, &t)
        {
            out.extend(stored.into_iter().map(|(name, t)| (names.get(&name), t)));
            continue;
        }
        // StableLM's norms of heads are stacked.
        if let Some((stem, row)) = name.split_once(".norms.") {
            let row: usize = row.split('.').next().and_then(|n| n.parse().ok()).expect("a row");
            let stacked = out.entry(names.get(&format!("{stem}.weight"))).or_default();
            let d = t.1.len();
            stacked.1.resize(stacked.1.len().max((row + 1) * d), 0.0);
            stacked.1[row * d..(row + 1) * d].copy_from_slice(&t.1);
            stacked.0 = vec![stacked.1.len() / d, d];
            continue;
        }
        // Experts are stacked, one name for all (`Model.modify_tensors`).
        if let Some((stem, rest)) = name.split_once(".experts.") {
            let (_, part) = rest.split_once('.').expect("a part");
            stacks.entry(names.get(&format!("{stem}.experts.{part}"))).or_default().push((name.clone(), t));
            continue;
        }
        let (q, k) = (name.contains("q_proj"), name.contains("k_proj"));
        let t = match arch {
            "llama" | "mixtral" | "granite" | "smollm3" if q => permuted(&t, c.heads),
            "llama" | "granite" | "smollm3" if k => permuted(&t, c.kv_heads),
            "gpt2" if name.contains(".c_") && name.ends_with("weight") => transposed(&t),
            "gptneox" | "bloom" | "falcon" if name.contains("query_key_value") => {
                apart(&t, c.heads, c.kv_heads)
            }
            _ => t,
        };
        out.insert(names.get(&name), t);
    }
    for (name, all) in stacks {
        // Fewer than ten, so their names are in the order of their numbers.
        assert!(all.len() < 10);
        let shape = [&[all.len()], all[0].1.0.as_slice()].concat();
        out.insert(name, (shape, all.iter().flat_map(|(_, t)| t.1.clone()).collect()));
    }
    out.extend(factors.iter().map(|(n, v)| ((*n).to_owned(), (vec![v.len()], v.clone()))));
    write(to, &meta, &out.into_iter().collect::<Vec<_>>());
}

/// What the converter makes of DeepSeek's matrices of keys, which it turns, and of values, and of the routers' biases
/// (`DeepseekV2Model.modify_tensors`).
fn deepseek(name: &str, (_, values): &Tensor, hf: &Checkpoint) -> Option<Vec<(String, Tensor)>> {
    if let Some(stem) = name.strip_suffix("_bias") {
        return Some(vec![(format!("{stem}.bias"), (vec![values.len()], values.clone()))]);
    }
    let stem = name.strip_suffix("kv_b_proj.weight")?;
    let (heads, l) = (hf.config().heads, hf.config().latent.expect("latent attention"));
    let of = l.plain + l.value;
    let row = |h: usize, i: usize| values[(h * of + i) * l.kv_rank..][..l.kv_rank].to_vec();
    let turned = |h: usize| (0..l.kv_rank).flat_map(move |r| (0..l.plain).map(move |i| row(h, i)[r]));
    let keys = (0..heads).flat_map(turned).collect();
    let kept = |h: usize| (l.plain..of).flat_map(move |i| row(h, i));
    let values = (0..heads).flat_map(kept).collect();
    Some(vec![
        (format!("{stem}k_b_proj.weight"), (vec![heads, l.kv_rank, l.plain], keys)),
        (format!("{stem}v_b_proj.weight"), (vec![heads, l.value, l.kv_rank], values)),
    ])
}

/// What the converter makes of gpt-oss's experts (gate and up of even and odd columns, matrices turned) and sinks
/// (`GptOssModel.modify_tensors`).
fn gpt_oss(name: &str, (shape, values): &Tensor) -> Option<Vec<(String, Tensor)>> {
    if name.ends_with(".sinks") {
        return Some(vec![(format!("{name}.weight"), (shape.clone(), values.clone()))]);
    }
    let (stem, part) = name.split_once(".experts.")?;
    let is_bias = part.ends_with("_bias");
    let (matrix, kind) = (part.trim_end_matches("_bias"), if is_bias { "bias" } else { "weight" });
    let (experts, columns) = (shape[0], *shape.last().expect("columns"));
    let rows = values.len() / experts / columns;
    // Columns `from, from + step, …` of each expert as rows.
    let turned = |to: &str, from: usize, step: usize| {
        let of = |e: usize, c: usize| (0..rows).map(move |r| values[(e * rows + r) * columns + c]);
        let chosen = (0..experts).flat_map(|e| (from..columns).step_by(step).flat_map(move |c| of(e, c)));
        let mut shape = vec![experts, columns / step];
        if !is_bias {
            shape.push(rows);
        }
        (format!("{stem}.experts.{to}.{kind}"), (shape, chosen.collect()))
    };
    Some(match matrix {
        "gate_up_proj" => vec![turned("gate_proj", 0, 2), turned("up_proj", 1, 2)],
        other => vec![turned(other, 0, 1)],
    })
}

fn model(checkpoint: &Checkpoint) -> CpuModel {
    let options = CpuOptions { max_seq: 64, max_batch: 2, ..CpuOptions::default() };
    let graph = weft_frontend::models::build(checkpoint, DType::F32).unwrap_or_else(|e| panic!("{e}"));
    CpuModel::graph(graph, &Bytes(checkpoint), &options).unwrap_or_else(|e| panic!("{e}"))
}

fn logits(checkpoint: &Checkpoint) -> Vec<f32> {
    let rows = vec![(3..31).collect::<Vec<u32>>(), (20..48).rev().collect()];
    let input = weft::tensors::Input { ids: ids(rows), continued: None };
    let out = weft::score::score(&mut model(checkpoint), &input, 0, &mut |_, _| {});
    out.unwrap_or_else(|e| panic!("{e}")).logits
}

/// A folder and its GGUF file agree.
fn agree(hf: &Checkpoint, arch: &'static str, more: &[(&str, Meta)]) {
    agree_with(hf, arch, more, &[]);
}

/// With tensors of rope factors.
fn agree_with(hf: &Checkpoint, arch: &'static str, more: &[(&str, Meta)], factors: &[(&str, Vec<f32>)]) {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("model.gguf");
    convert(hf, arch, more, factors, &path);
    let gguf = Checkpoint::open(&path).unwrap_or_else(|e| panic!("{e}"));
    assert!(gguf.config().unknown.is_empty(), "{:?}", gguf.config().unknown);
    let graph = weft_frontend::models::build(&gguf, DType::F32).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(gguf.unused(&weft::model::used_tensors(&graph)), Vec::<String>::new());
    let (wanted, found) = (logits(hf), logits(&gguf));
    let distance = relative_rmse(&found, &wanted);
    assert!(wanted.iter().any(|&x| x.abs() > 0.01) && distance <= 2e-6, "{arch}: {distance}");
}

/// A tiny checkpoint with a golden: it gives that, too.
fn golden(name: &str, arch: &'static str, more: &[(&str, Meta)]) {
    let source = Fixture::open(name);
    agree(&source.checkpoint, arch, more);
    let dir = tempfile::tempdir().expect("folder");
    convert(&source.checkpoint, arch, more, &[], &dir.path().join("model.gguf"));
    let folder = weft_testsuite::fixture::folder().join("tiny").join(name);
    for file in ["golden.safetensors", "golden.json"] {
        std::fs::copy(folder.join(file), dir.path().join(file)).expect("copies");
    }
    let fixture = Fixture::open(dir.path().to_str().expect("a path"));
    let report = tiny(&fixture, &mut model(&fixture.checkpoint));
    assert!(report.logits <= 1e-4 && report.greedy_logits <= 1e-4, "{name}: {report:?}");
}

#[test]
fn families_with_a_golden() {
    let window = |n: u32| ("attention.sliding_window", Meta::Size(n));
    golden("llama", "llama", &[]);
    golden("qwen2", "qwen2", &[]);
    golden("qwen3", "qwen3", &[]);
    golden("gpt2", "gpt2", &[]);
    golden("gpt-neox", "gptneox", &[("use_parallel_residual", Meta::Flag(true))]);
    golden("bloom", "bloom", &[]);
    golden("falcon", "falcon", &[("tensor_data_layout", Meta::Text("jploski"))]);
    golden("olmo2", "olmo2", &[]);
    let experts = |n: u32| [("expert_count", Meta::Size(n)), ("expert_used_count", Meta::Size(2))];
    golden("mixtral", "llama", &experts(4));
    let width = ("expert_feed_forward_length", Meta::Size(48));
    golden("qwen3-moe", "qwen3moe", &[&experts(8)[..], &[width]].concat());
    let yarn = [
        ("rope.scaling.type", Meta::Text("yarn")),
        ("rope.scaling.factor", Meta::Number(32.0)),
        ("rope.scaling.original_context_length", Meta::Size(4096)),
        ("expert_feed_forward_length", Meta::Size(192)),
        // The fixture's context is shorter than what its scaling is for.
        ("context_length", Meta::Size(4096)),
        window(16),
    ];
    golden("gpt-oss", "gpt-oss", &[&experts(4)[..], &yarn].concat());
    let caps = [
        window(16),
        ("attn_logit_softcapping", Meta::Number(50.0)),
        ("final_logit_softcapping", Meta::Number(30.0)),
    ];
    golden("gemma2", "gemma2", &caps);
    let flags = Meta::Flags(vec![true, true, true, false]);
    golden("gemma3", "gemma3", &[window(16), ("attention.sliding_window_pattern", flags)]);
    golden("phi3", "phi3", &[window(0), ("rope.scaling.original_context_length", Meta::Size(4096))]);
}

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

/// A family without a golden: a configuration of width 64 with four heads of 16, and random tensors.
fn synthetic(
    model_type: &str,
    class: &str,
    settings: Value,
    named: &[(&str, &[usize])],
) -> (tempfile::TempDir, Checkpoint) {
    let mut config = json!({
        "model_type": model_type, "architectures": [class], "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 72,
        "max_position_embeddings": 64, "rope_theta": 10000.0, "tie_word_embeddings": false,
    });
    for (key, value) in settings.as_object().expect("settings") {
        config[key] = value.clone();
    }
    let mut data: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for (name, shape) in named {
        for name in (0..4).map(|layer| name.replace("N", &layer.to_string())) {
            let mut rng = Rng::named(7, &name);
            let norm = name.contains("norm") && name.ends_with("weight");
            let values = (0..shape.iter().product::<usize>()).map(|_| {
                let x = rng.signed() * 0.3;
                if norm { 1.0 + x } else { x }
            });
            let bytes = values.flat_map(|v: f32| v.to_le_bytes()).collect();
            data.insert(name, (shape.to_vec(), bytes));
        }
    }
    let dir = tempfile::tempdir().expect("folder");
    let view = |(n, (s, b))| (n, TensorView::new(Dtype::F32, Vec::clone(s), b).expect("a tensor"));
    let views: Vec<(&String, TensorView<'_>)> = data.iter().map(|(n, t)| view((n, (&t.0, &t.1)))).collect();
    serialize_to_file(views, None, &dir.path().join("model.safetensors")).expect("writes");
    std::fs::write(dir.path().join("config.json"), config.to_string()).expect("writes");
    let checkpoint = Checkpoint::open(dir.path()).unwrap_or_else(|e| panic!("{e}"));
    (dir, checkpoint)
}

type Shapes = Vec<(&'static str, &'static [usize])>;

const OUTER: [(&str, &[usize]); 2] = [("model.embed_tokens.weight", &[72, 64]), ("model.norm.weight", &[64])];
const HEAD: (&str, &[usize]) = ("lm_head.weight", &[72, 64]);
const ATTENTION: [(&str, &[usize]); 4] = [
    ("model.layers.N.self_attn.q_proj.weight", &[64, 64]),
    ("model.layers.N.self_attn.k_proj.weight", &[32, 64]),
    ("model.layers.N.self_attn.v_proj.weight", &[32, 64]),
    ("model.layers.N.self_attn.o_proj.weight", &[64, 64]),
];
const QKV_BIAS: [(&str, &[usize]); 3] = [
    ("model.layers.N.self_attn.q_proj.bias", &[64]),
    ("model.layers.N.self_attn.k_proj.bias", &[32]),
    ("model.layers.N.self_attn.v_proj.bias", &[32]),
];
const MLP: [(&str, &[usize]); 3] = [
    ("model.layers.N.mlp.gate_proj.weight", &[96, 64]),
    ("model.layers.N.mlp.up_proj.weight", &[96, 64]),
    ("model.layers.N.mlp.down_proj.weight", &[64, 96]),
];
const BEFORE: [(&str, &[usize]); 2] = [
    ("model.layers.N.input_layernorm.weight", &[64]),
    ("model.layers.N.post_attention_layernorm.weight", &[64]),
];
const BEFORE_BIAS: [(&str, &[usize]); 3] = [
    ("model.norm.bias", &[64]),
    ("model.layers.N.input_layernorm.bias", &[64]),
    ("model.layers.N.post_attention_layernorm.bias", &[64]),
];

#[test]
fn granite() {
    let shapes: Shapes = [&OUTER[..], &ATTENTION, &MLP, &BEFORE, &[HEAD]].concat();
    let settings = json!({
        "embedding_multiplier": 12.0, "residual_multiplier": 0.25, "attention_multiplier": 0.125, "logits_scaling": 8.0
    });
    let (_dir, hf) = synthetic("granite", "GraniteForCausalLM", settings, &shapes);
    let scales = [
        ("embedding_scale", Meta::Number(12.0)),
        ("residual_scale", Meta::Number(0.25)),
        ("attention.scale", Meta::Number(0.125)),
        ("logit_scale", Meta::Number(8.0)),
    ];
    agree(&hf, "granite", &scales);
}

#[test]
fn smollm3() {
    let shapes: Shapes = [&OUTER[..], &ATTENTION, &MLP, &BEFORE].concat();
    let settings = json!({"tie_word_embeddings": true, "no_rope_layer_interval": 4});
    let (_dir, hf) = synthetic("smollm3", "SmolLM3ForCausalLM", settings, &shapes);
    assert_eq!(hf.config().attention[3].rope, LayerRope::None);
    agree(&hf, "smollm3", &[]);
}

#[test]
fn starcoder2() {
    let mlp: [(&str, &[usize]); 5] = [
        ("model.layers.N.mlp.c_fc.weight", &[96, 64]),
        ("model.layers.N.mlp.c_fc.bias", &[96]),
        ("model.layers.N.mlp.c_proj.weight", &[64, 96]),
        ("model.layers.N.mlp.c_proj.bias", &[64]),
        ("model.layers.N.self_attn.o_proj.bias", &[64]),
    ];
    let shapes: Shapes = [&OUTER[..], &ATTENTION, &QKV_BIAS, &mlp, &BEFORE, &BEFORE_BIAS].concat();
    let settings = json!({"tie_word_embeddings": true, "norm_epsilon": 1e-5});
    let (_dir, hf) = synthetic("starcoder2", "Starcoder2ForCausalLM", settings, &shapes);
    agree(&hf, "starcoder2", &[]);
}

/// In sequence, and in parallel with norms of heads; the converter says that both are parallel.
#[test]
fn stablelm() {
    let shapes: Shapes = [&OUTER[..], &ATTENTION, &QKV_BIAS, &MLP, &BEFORE, &BEFORE_BIAS, &[HEAD]].concat();
    let settings = json!({"use_qkv_bias": true, "partial_rotary_factor": 0.25});
    let (_dir, hf) = synthetic("stablelm", "StableLmForCausalLM", settings, &shapes);
    let parallel = [("use_parallel_residual", Meta::Flag(true))];
    agree(&hf, "stablelm", &parallel);
    let heads: [(&str, &[usize]); 6] = [
        ("model.layers.N.self_attn.q_layernorm.norms.0.weight", &[16]),
        ("model.layers.N.self_attn.q_layernorm.norms.1.weight", &[16]),
        ("model.layers.N.self_attn.q_layernorm.norms.2.weight", &[16]),
        ("model.layers.N.self_attn.q_layernorm.norms.3.weight", &[16]),
        ("model.layers.N.self_attn.k_layernorm.norms.0.weight", &[16]),
        ("model.layers.N.self_attn.k_layernorm.norms.1.weight", &[16]),
    ];
    let shapes: Shapes =
        [&OUTER[..], &ATTENTION, &MLP, &BEFORE[..1], &BEFORE_BIAS[..2], &heads, &[HEAD]].concat();
    let settings =
        json!({"use_parallel_residual": true, "qk_layernorm": true, "partial_rotary_factor": 0.25});
    let (_dir, hf) = synthetic("stablelm", "StableLmForCausalLM", settings, &shapes);
    assert_eq!(hf.config().qk_norm, QkNorm::EachHead);
    agree(&hf, "stablelm", &parallel);
}

#[test]
fn phi2() {
    let of_its_own: [(&str, &[usize]); 14] = [
        ("model.embed_tokens.weight", &[72, 64]),
        ("model.final_layernorm.weight", &[64]),
        ("model.final_layernorm.bias", &[64]),
        ("lm_head.weight", &[72, 64]),
        ("lm_head.bias", &[72]),
        ("model.layers.N.input_layernorm.weight", &[64]),
        ("model.layers.N.input_layernorm.bias", &[64]),
        ("model.layers.N.self_attn.dense.weight", &[64, 64]),
        ("model.layers.N.self_attn.dense.bias", &[64]),
        ("model.layers.N.mlp.fc1.weight", &[96, 64]),
        ("model.layers.N.mlp.fc1.bias", &[96]),
        ("model.layers.N.mlp.fc2.weight", &[64, 96]),
        ("model.layers.N.mlp.fc2.bias", &[64]),
        ("model.layers.N.self_attn.q_proj.bias", &[64]),
    ];
    let shapes: Shapes = [&of_its_own[..], &ATTENTION[..3], &QKV_BIAS[1..]].concat();
    let (_dir, hf) = synthetic("phi", "PhiForCausalLM", json!({"partial_rotary_factor": 0.5}), &shapes);
    agree(&hf, "phi2", &[]);
}

#[test]
fn cohere2() {
    let shapes: Shapes = [&OUTER[..], &ATTENTION, &MLP, &BEFORE[..1]].concat();
    let settings = json!({"tie_word_embeddings": true, "logit_scale": 0.25, "sliding_window": 8});
    let (_dir, hf) = synthetic("cohere2", "Cohere2ForCausalLM", settings, &shapes);
    assert_eq!((hf.config().attention[0].window, hf.config().attention[3].window), (Some(8), None));
    agree(
        &hf,
        "cohere2",
        &[("logit_scale", Meta::Number(0.25)), ("attention.sliding_window", Meta::Size(8))],
    );
}

#[test]
fn glm4() {
    let of_its_own: [(&str, &[usize]); 4] = [
        ("model.layers.N.mlp.gate_up_proj.weight", &[192, 64]),
        ("model.layers.N.mlp.down_proj.weight", &[64, 96]),
        ("model.layers.N.post_self_attn_layernorm.weight", &[64]),
        ("model.layers.N.post_mlp_layernorm.weight", &[64]),
    ];
    let shapes: Shapes = [&OUTER[..], &ATTENTION, &QKV_BIAS, &BEFORE, &of_its_own, &[HEAD]].concat();
    let settings = json!({"head_dim": 16, "partial_rotary_factor": 0.5, "attention_bias": true});
    let (_dir, hf) = synthetic("glm4", "Glm4ForCausalLM", settings, &shapes);
    agree(&hf, "glm4", &[]);
}

/// With windows, by a pattern that the file lists, and without.
#[test]
fn exaone4() {
    let of_its_own: [(&str, &[usize]); 4] = [
        ("model.layers.N.post_attention_layernorm.weight", &[64]),
        ("model.layers.N.post_feedforward_layernorm.weight", &[64]),
        ("model.layers.N.self_attn.q_norm.weight", &[16]),
        ("model.layers.N.self_attn.k_norm.weight", &[16]),
    ];
    let shapes: Shapes = [&OUTER[..], &ATTENTION, &MLP, &of_its_own, &[HEAD]].concat();
    let kinds = json!(["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]);
    let settings = json!({"sliding_window": 8, "layer_types": kinds});
    let (_dir, hf) = synthetic("exaone4", "Exaone4ForCausalLM", settings, &shapes);
    let windows = [
        ("attention.sliding_window", Meta::Size(8)),
        ("attention.sliding_window_pattern", Meta::Flags(vec![true, false, true, true])),
    ];
    agree(&hf, "exaone4", &windows);
    let (_dir, hf) = synthetic("exaone4", "Exaone4ForCausalLM", json!({"sliding_window": null}), &shapes);
    assert_eq!(hf.config().attention[3].rope, LayerRope::Global);
    agree(&hf, "exaone4", &[]);
}

/// Llama 3's scaling, as one divisor a pair (`LlamaModel.generate_extra_tensors`).
#[test]
fn factors_of_llama3() {
    let hf = Fixture::open("llama-rope3-tied").checkpoint;
    let (factor, low, high, original, theta, d) = (8.0f64, 1.0, 4.0, 64.0, 500_000f64, 32);
    let divisor = |i: usize| {
        let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * i as f64 / f64::from(d));
        if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    let factors = (0..16).map(|i| divisor(i) as f32).collect();
    agree_with(&hf, "llama", &[], &[("rope_freqs.weight", factors)]);
}

#[test]
fn factors_of_longrope() {
    let own: [(&str, &[usize]); 4] = [
        ("model.layers.N.self_attn.qkv_proj.weight", &[128, 64]),
        ("model.layers.N.self_attn.o_proj.weight", &[64, 64]),
        ("model.layers.N.mlp.gate_up_proj.weight", &[192, 64]),
        ("model.layers.N.mlp.down_proj.weight", &[64, 96]),
    ];
    let shapes: Shapes = [&OUTER[..], &own, &BEFORE, &[HEAD]].concat();
    let (short, long) = ([1.0, 1.5, 2.0, 2.5], [2.0, 3.0, 4.0, 5.0]);
    let settings = json!({
        "original_max_position_embeddings": 32, "partial_rotary_factor": 0.5,
        "rope_scaling": {"rope_type": "longrope", "short_factor": short, "long_factor": long},
    });
    let (_dir, hf) = synthetic("phi3", "Phi3ForCausalLM", settings, &shapes);
    let meta = [
        ("rope.scaling.original_context_length", Meta::Size(32)),
        ("rope.scaling.attn_factor", Meta::Number((1.0 + 2f32.ln() / 32f32.ln()).sqrt())),
    ];
    // The folder's own context is already what its scaling is implemented for.
    let f32s = |list: [f32; 4]| list.to_vec();
    let factors = [("rope_factors_short.weight", f32s(short)), ("rope_factors_long.weight", f32s(long))];
    agree_with(&hf, "phi3", &meta, &factors);
}

#[test]
fn yarn() {
    let shapes: Shapes = [&OUTER[..], &ATTENTION, &MLP, &BEFORE, &[HEAD]].concat();
    let scaling = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16});
    let (_dir, hf) = synthetic("llama", "LlamaForCausalLM", json!({"rope_scaling": scaling}), &shapes);
    let meta = [
        ("rope.scaling.type", Meta::Text("yarn")),
        ("rope.scaling.factor", Meta::Number(4.0)),
        ("rope.scaling.original_context_length", Meta::Size(16)),
    ];
    agree(&hf, "llama", &meta);
}

/// What Gemma's metadata leaves to the code.
#[test]
fn gemma_configurations() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("model.gguf");
    for (arch, layers) in [("gemma2", 2u32), ("gemma3", 6)] {
        let size = |key: &str, n: u32| (format!("{arch}.{key}"), Meta::Size(n));
        let meta = [
            (
                "general.architecture".to_owned(),
                Meta::Text(if arch == "gemma2" { "gemma2" } else { "gemma3" }),
            ),
            size("block_count", layers),
            size("context_length", 64),
            size("embedding_length", 64),
            size("feed_forward_length", 96),
            size("attention.head_count", 2),
            size("attention.key_length", 16),
            size("attention.sliding_window", 8),
            (format!("{arch}.attention.layer_norm_rms_epsilon"), Meta::Number(1e-6)),
        ];
        write(&path, &meta, &[("token_embd.weight".to_owned(), (vec![8, 64], vec![0.0; 512]))]);
        let checkpoint = Checkpoint::open(&path).expect("opens");
        let c = checkpoint.config();
        assert_eq!((c.attention_scale, c.embedding_multiplier, c.norm), (0.25, 8.0, Norm::Rms));
        assert_eq!(c.attention[0].window, Some(8));
        assert_eq!(c.attention[layers as usize - 1].window, None);
        match arch {
            "gemma2" => assert_eq!((c.attention_softcap, c.logit_softcap), (Some(50.0), Some(30.0))),
            _ => {
                assert_eq!(c.attention[0].rope, LayerRope::Local);
                let local = c.local_rope.as_ref().map(|r| r.theta);
                assert_eq!((c.rope.theta, local, c.logit_softcap), (1e6, Some(10000.0), None));
            }
        }
    }
}
