//! Checkpoints of both formats: configuration, tensors by name, and conversion.

mod common;

use common::{V, fixture, tiny_gguf};
use half::bf16;
use std::collections::BTreeMap;
use std::path::Path;
use weft_frontend::checkpoint::{Checkpoint, Layout, Source};
use weft_frontend::config::{Activation, RopeScaling, hf};
use weft_frontend::convert::convert;
use weft_frontend::error::Error;
use weft_frontend::gguf::names::{gguf_name, hf_name};
use weft_frontend::text::tokenizer::Tokenizer;
use weft_ir::decode::decode_f32;
use weft_ir::dtype::{DType, Encoding};

fn values(c: &Checkpoint, s: &Source) -> Vec<f32> {
    let mut out = vec![0.0; s.shape.iter().product()];
    decode_f32(s.encoding, c.bytes(&s.tensor).unwrap(), &mut out).unwrap();
    out
}

#[test]
fn the_tiny_llama_opens_by_folder_and_by_file() {
    for path in [fixture("tiny/llama"), fixture("tiny/llama/model.safetensors")] {
        let c = Checkpoint::open(path).unwrap();
        let config = c.config();
        assert_eq!((config.vocab_size, config.hidden_size, config.intermediate_size), (256, 128, 192));
        assert_eq!((config.layers, config.heads, config.kv_heads, config.head_dim), (2, 4, 2, 32));
        assert_eq!((config.norm_eps, config.rope.theta), (1e-6, 10000.0));
        assert_eq!(config.rope.scaling, RopeScaling::None);
        assert_eq!((config.hidden_act, config.dtype), (Activation::Silu, Some(DType::BF16)));
        assert_eq!((config.bos_token_id, config.pad_token_id), (Some(1), Some(0)));
        assert_eq!(config.eos_token_ids, [2]);
        assert!(config.unknown.is_empty(), "{:?}", config.unknown);
        let q = c.source("model.layers.1.self_attn.q_proj.weight").unwrap();
        assert_eq!(q.tensor, "model.layers.1.self_attn.q_proj.weight");
        assert_eq!((q.shape.as_slice(), q.encoding), (&[128, 128][..], Encoding::Plain(DType::BF16)));
        assert_eq!(q.layout, Layout::Same);
        assert_eq!(c.bytes(&q.tensor).unwrap().len(), 128 * 128 * 2);
        assert!(c.has("lm_head.weight") && !c.has("model.layers.2.mlp.up_proj.weight"));
        assert!(c.source("model.layers.2.mlp.up_proj.weight").is_err());
        let used: Vec<String> =
            c.tensors().map(|t| t.name.clone()).filter(|n| n != "lm_head.weight").collect();
        assert_eq!(c.unused(&used), ["lm_head.weight"]);
    }
}

#[test]
fn llama_3_rope_and_tied_embeddings() {
    let c = Checkpoint::open(fixture("tiny/llama-rope3-tied")).unwrap();
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position: 64,
    };
    assert_eq!((c.config().rope.theta, &c.config().rope.scaling), (500000.0, &llama3));
    assert!(c.config().tie_word_embeddings && !c.has("lm_head.weight"));
}

#[test]
fn both_spellings_say_the_same() {
    let path = Path::new("config.json");
    let dims = r#""model_type":"llama","vocab_size":8,"hidden_size":8,"intermediate_size":8,"num_hidden_layers":1,"num_attention_heads":2"#;
    let parse = |rest: &str| hf::parse(path, format!("{{{dims}{rest}}}").as_bytes(), &[]).unwrap();
    let old = parse(
        r#","rope_theta":5e5,"rope_scaling":{"type":"linear","factor":4.0},"torch_dtype":"torch.float16","eos_token_id":[3,4]"#,
    );
    let new = parse(
        r#","rope_parameters":{"rope_theta":5e5,"rope_type":"linear","factor":4.0},"dtype":"float16","eos_token_id":[3,4]"#,
    );
    assert_eq!(old, new);
    assert_eq!(old.rope.scaling, RopeScaling::Linear { factor: 4.0 });
    assert_eq!((old.eos_token_ids.as_slice(), old.head_dim, old.kv_heads), (&[3, 4][..], 4, 2));
    let plain = parse("");
    assert_eq!((plain.rope.theta, plain.norm_eps, plain.max_position), (10000.0, 1e-6, 2048));
    assert_eq!((plain.bos_token_id, plain.eos_token_ids.as_slice()), (Some(1), &[2][..]));
    let odd = parse(r#","pad_token_id":-1,"bos_token_id":null,"frobnicate":[],"also":null,"off":{}"#);
    assert_eq!((odd.pad_token_id, odd.bos_token_id), (None, None));
    assert_eq!(odd.unknown, ["frobnicate", "off"]);
}

#[test]
fn generation_config_overrides_the_special_tokens() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("tiny/llama").join(name), folder.path().join(name)).unwrap();
    }
    std::fs::write(
        folder.path().join("generation_config.json"),
        r#"{"eos_token_id":[7,9],"temperature":0.6}"#,
    )
    .unwrap();
    let c = Checkpoint::open(folder.path()).unwrap();
    assert_eq!((c.config().eos_token_ids.as_slice(), c.config().bos_token_id), (&[7, 9][..], Some(1)));
}

#[test]
fn shards_are_one_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let whole = Checkpoint::open(fixture("tiny/llama")).unwrap();
    std::fs::copy(fixture("tiny/llama/config.json"), folder.path().join("config.json")).unwrap();
    let mut shards: [Vec<(&str, safetensors::tensor::TensorView)>; 2] = [vec![], vec![]];
    let mut map = BTreeMap::new();
    for (i, t) in whole.tensors().enumerate() {
        let data = whole.bytes(&t.name).unwrap();
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, t.shape.clone(), data).unwrap();
        shards[i % 2].push((&t.name, view));
        map.insert(t.name.clone(), format!("part-{}.safetensors", i % 2));
    }
    for (i, shard) in shards.into_iter().enumerate() {
        let path = folder.path().join(format!("part-{i}.safetensors"));
        safetensors::serialize_to_file(shard, None, &path).unwrap();
    }
    let index = folder.path().join("model.safetensors.index.json");
    std::fs::write(&index, serde_json::json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    for path in [folder.path(), index.as_path()] {
        let c = Checkpoint::open(path).unwrap();
        assert_eq!(c.files().len(), 2);
        for t in whole.tensors() {
            assert_eq!(c.bytes(&t.name).unwrap(), whole.bytes(&t.name).unwrap());
        }
    }
}

#[test]
fn names_map_both_ways() {
    let file = tiny_gguf();
    for (name, ..) in &file.tensors {
        let hf = hf_name("llama", name).unwrap();
        assert_eq!(gguf_name("llama", &hf).as_ref(), Some(name));
    }
    assert_eq!(gguf_name("llama", "lm_head.weight").as_deref(), Some("output.weight"));
    assert_eq!(
        gguf_name("llama", "model.layers.12.self_attn.q_proj.bias").as_deref(),
        Some("blk.12.attn_q.bias")
    );
    for name in ["model.layers.x.mlp.up_proj.weight", "model.layers.1.other.weight", "weight", ""] {
        assert_eq!(gguf_name("llama", name), None);
        assert_eq!(hf_name("llama", name), None);
    }
}

#[test]
fn gguf_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    tiny_gguf()
        .set("tokenizer.ggml.eot_token_id", V::U32(260))
        .set("llama.something", V::from(""))
        .write(&path);
    let c = Checkpoint::open(folder.path()).unwrap();
    assert_eq!((c.config().norm_eps, c.config().head_dim, c.config().kv_heads), (1e-5, 32, 1));
    assert_eq!(
        (c.config().eos_token_ids.as_slice(), c.config().unknown.as_slice()),
        (&[261, 260][..], &["llama.something".to_owned()][..])
    );
    assert!(c.config().tie_word_embeddings);
    let rope = |file: common::GgufFile| {
        file.write(&path);
        Checkpoint::open(&path).unwrap().config().rope.scaling.clone()
    };
    let linear =
        tiny_gguf().set("llama.rope.scaling.type", "linear").set("llama.rope.scaling.factor", V::F32(2.0));
    assert_eq!(rope(linear), RopeScaling::Linear { factor: 2.0 });
    let factors: Vec<u8> = (1..17).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let expected = RopeScaling::Factors((1..17).map(|i| i as f32).collect());
    assert_eq!(rope(tiny_gguf().tensor("rope_freqs.weight", &[16], 0, factors)), expected);
    let c = Checkpoint::open(&path).unwrap();
    let out = folder.path().join("out");
    let refused = convert(&c, &out, DType::F32, &mut |_, _| {}).unwrap_err();
    assert!(refused.to_string().contains("rope_freqs.weight"), "{refused}");
    assert!(!out.exists());
}

/// Writes the tiny llama as llama.cpp's converter would, and gets back the very same weights.
#[test]
fn conversion_undoes_the_permutation() {
    let hf = Checkpoint::open(fixture("tiny/llama")).unwrap();
    let config = hf.config();
    let mut file = tiny_gguf();
    file.tensors.clear();
    for (key, value) in [
        ("llama.block_count", config.layers),
        ("llama.embedding_length", config.hidden_size),
        ("llama.feed_forward_length", config.intermediate_size),
        ("llama.attention.head_count", config.heads),
        ("llama.attention.head_count_kv", config.kv_heads),
    ] {
        file = file.set(key, V::U32(value as u32));
    }
    let mut tokens = common::byte_alphabet();
    file = file.set("tokenizer.ggml.merges", V::Strs(vec![])).without("tokenizer.ggml.token_type");
    tokens.truncate(256);
    file = file.set("tokenizer.ggml.tokens", V::Strs(tokens));
    for t in hf.tensors() {
        let mut bytes = hf.bytes(&t.name).unwrap().to_vec();
        let heads = match t.name.as_str() {
            n if n.contains("q_proj") => Some(config.heads),
            n if n.contains("k_proj") => Some(config.kv_heads),
            _ => None,
        };
        if let Some(heads) = heads {
            // hf.reshape(heads, 2, n / 2, in).swapaxes(1, 2)
            let (n, row) = (t.shape[0] / heads, t.shape[1] * 2);
            let rows: Vec<Vec<u8>> = bytes.chunks(row).map(<[u8]>::to_vec).collect();
            bytes = Vec::new();
            for head in 0..heads {
                for pair in 0..n / 2 {
                    for half in 0..2 {
                        bytes.extend(&rows[head * n + half * (n / 2) + pair]);
                    }
                }
            }
        }
        file = file.tensor(&gguf_name("llama", &t.name).unwrap(), &t.shape, 30, bytes);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    file.write(&path);
    let gguf = Checkpoint::open(&path).unwrap();
    assert_eq!(
        gguf.source("model.layers.0.self_attn.k_proj.weight").unwrap().layout,
        Layout::Interleaved { heads: 2 }
    );

    for (dtype, name) in [(DType::BF16, "bf16"), (DType::F32, "f32"), (DType::F16, "f16")] {
        let out = folder.path().join(name);
        let summary = convert(&gguf, &out, dtype, &mut |_, _| {}).unwrap();
        assert_eq!(summary.files.len(), 5);
        assert!(summary.files.iter().all(|f| f.is_file()));
        let again = Checkpoint::open(&out).unwrap();
        assert_eq!(again.config().dtype, Some(dtype));
        assert_eq!(again.tensors().count(), hf.tensors().count());
        for t in hf.tensors() {
            let (a, b) = (hf.source(&t.name).unwrap(), again.source(&t.name).unwrap());
            assert_eq!((&a.shape, Encoding::Plain(dtype)), (&b.shape, b.encoding));
            let (a, b) = (values(&hf, &a), values(&again, &b));
            let exact = dtype != DType::F16;
            assert!(
                a.iter().zip(&b).all(|(x, y)| if exact { x == y } else { (x - y).abs() < 1e-3 }),
                "{}",
                t.name
            );
        }
        assert!(matches!(convert(&gguf, &out, dtype, &mut |_, _| {}), Err(Error::Exists { .. })));
    }
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 4, "no partial folder is left");
}

#[test]
fn conversion_takes_quantised_vectors_and_matrices() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let block = |d: f32, n: usize| {
        let mut one = half::f16::from_f32(d).to_le_bytes().to_vec();
        one.extend((0..32).map(|j| j as u8));
        one.repeat(n)
    };
    tiny_gguf()
        .without("output_norm.weight")
        .tensor("output_norm.weight", &[64], 8, block(0.5, 2))
        .without("blk.0.attn_k.weight")
        .tensor("blk.0.attn_k.weight", &[32, 64], 8, block(2.0, 64))
        .write(&path);
    let out = folder.path().join("out");
    convert(&Checkpoint::open(&path).unwrap(), &out, DType::F32, &mut |_, _| {}).unwrap();
    let c = Checkpoint::open(&out).unwrap();
    let norm = values(&c, &c.source("model.norm.weight").unwrap());
    assert!(norm.iter().enumerate().all(|(i, &v)| v == 0.5 * (i % 32) as f32));
    let k = values(&c, &c.source("model.layers.0.self_attn.k_proj.weight").unwrap());
    assert!(k.iter().enumerate().all(|(i, &v)| v == 2.0 * (i % 32) as f32));
}

#[test]
fn conversion_refuses_what_would_be_lost() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let out = folder.path().join("out");
    let refused = |file: common::GgufFile, dtype: DType| {
        file.write(&path);
        let error = convert(&Checkpoint::open(&path).unwrap(), &out, dtype, &mut |_, _| {}).unwrap_err();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
        error.to_string()
    };
    let big = bf16::from_f32(1e6).to_le_bytes().repeat(64);
    let wide = tiny_gguf().without("output_norm.weight").tensor("output_norm.weight", &[64], 30, big);
    let text = refused(wide, DType::F16);
    assert!(text.contains("model.norm.weight") && text.contains("65504"), "{text}");
    let text = refused(tiny_gguf().tensor("mystery", &[1], 0, vec![0; 4]), DType::F32);
    assert!(text.contains("\"mystery\""), "{text}");
    let text = refused(tiny_gguf().tensor("blk.0.attn_q.bias", &[64], 16, vec![0; 84]), DType::F32);
    assert!(text.contains("IQ2_XXS"), "{text}");
    let text = refused(tiny_gguf(), DType::I32);
    assert!(text.contains("f32, f16, bf16"), "{text}");
    let text = refused(tiny_gguf().set("tokenizer.ggml.pre", "martian"), DType::F32);
    assert!(text.contains("martian"), "{text}");
    let hf = Checkpoint::open(fixture("tiny/llama")).unwrap();
    assert!(convert(&hf, &out, DType::F32, &mut |_, _| {}).unwrap_err().to_string().contains("GGUF"));
}

#[test]
fn a_saved_tokenizer_reads_back() {
    let folder = tempfile::tempdir().unwrap();
    tiny_gguf().write(&folder.path().join("model.gguf"));
    let a = Tokenizer::open(&Checkpoint::open(folder.path()).unwrap()).unwrap();
    a.save(&folder.path().join("tokenizer.json")).unwrap();
    let b = Tokenizer::open_folder(folder.path()).unwrap();
    for text in ["hello world", "", "42 wells</s>", "日本"] {
        assert_eq!(a.encode(text, true).unwrap(), b.encode(text, true).unwrap());
    }
}
