//! Tiny checkpoints written as llama.cpp's converter writes them (`convert_hf_to_gguf.py`): names, metadata, and norms
//! of Gemma with one added. They give the golden.

use std::path::Path;
use weft_frontend::config::{LayerRope, Norm, QkNorm};
use weft_ir::decode::decode_f32;
use weft_ir::dtype::DType;
use weft_runtime::exec::{CpuModel, CpuOptions};
use weft_testsuite::fixture::{Bytes, Fixture};
use weft_testsuite::golden::tiny;

/// A metadata value.
enum Meta {
    Text(&'static str),
    Size(u32),
    Number(f32),
}

/// Writes a GGUF file of f32 tensors.
fn write(path: &Path, meta: &[(String, Meta)], tensors: &[(String, Vec<usize>, Vec<f32>)]) {
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((meta.len() as u64).to_le_bytes());
    let text = |out: &mut Vec<u8>, s: &str| {
        out.extend((s.len() as u64).to_le_bytes());
        out.extend(s.as_bytes());
    };
    for (key, value) in meta {
        text(&mut out, key);
        match value {
            Meta::Size(n) => out.extend([4u32.to_le_bytes(), n.to_le_bytes()].concat()),
            Meta::Number(x) => out.extend([6u32.to_le_bytes(), x.to_le_bytes()].concat()),
            Meta::Text(s) => {
                out.extend(8u32.to_le_bytes());
                text(&mut out, s);
            }
        }
    }
    let mut at = 0u64;
    for (name, shape, values) in tensors {
        text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&d| out.extend((d as u64).to_le_bytes()));
        out.extend(0u32.to_le_bytes());
        out.extend(at.to_le_bytes());
        at = (at + 4 * values.len() as u64).next_multiple_of(32);
    }
    for (.., values) in tensors {
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    }
    std::fs::write(path, out).expect("writes");
}

/// The GGUF name of a tensor.
fn gguf_name(name: &str, gemma: bool) -> String {
    let after_attention = if gemma { "post_attention_norm" } else { "ffn_norm" };
    let parts = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", after_attention),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    parts.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

fn check(name: &str, arch: &'static str, more: &[(&str, Meta)]) {
    let source = Fixture::open(name);
    let c = source.checkpoint.config();
    let gemma = arch.starts_with("gemma");
    let size = |n: usize| Meta::Size(n as u32);
    let mut meta = vec![("general.architecture".to_owned(), Meta::Text(arch))];
    let sizes = [
        ("block_count", size(c.layers)),
        ("context_length", size(c.max_position)),
        ("embedding_length", size(c.hidden_size)),
        ("feed_forward_length", size(c.intermediate_size)),
        ("attention.head_count", size(c.heads)),
        ("attention.head_count_kv", size(c.kv_heads)),
        ("attention.key_length", size(c.head_dim)),
        ("attention.value_length", size(c.head_dim)),
        ("attention.layer_norm_rms_epsilon", Meta::Number(c.norm_eps as f32)),
        ("rope.freq_base", Meta::Number(c.rope.theta as f32)),
    ];
    meta.extend(sizes.into_iter().map(|(key, value)| (format!("{arch}.{key}"), value)));
    for (key, value) in more {
        let value = match value {
            Meta::Text(s) => Meta::Text(s),
            Meta::Size(n) => Meta::Size(*n),
            Meta::Number(x) => Meta::Number(*x),
        };
        meta.push((format!("{arch}.{key}"), value));
    }
    let tensors: Vec<(String, Vec<usize>, Vec<f32>)> = source
        .checkpoint
        .tensors()
        .map(|t| {
            let mut values = vec![0.0; t.elements().expect("elements")];
            let bytes = source.checkpoint.bytes(&t.name).expect("bytes");
            decode_f32(t.encoding.expect("type"), bytes, &mut values).expect("decodes");
            if gemma && t.name.ends_with("norm.weight") {
                values.iter_mut().for_each(|v| *v += 1.0);
            }
            if gemma && t.name.ends_with("self_attn.q_proj.weight") && c.qk_norm == QkNorm::None {
                values.iter_mut().for_each(|v| *v *= 0.5f32.sqrt());
            }
            if gemma && t.name.ends_with("q_norm.weight") {
                values.iter_mut().for_each(|v| *v *= 0.5f32.sqrt());
            }
            (gguf_name(&t.name, gemma), t.shape.clone(), values)
        })
        .collect();
    let dir = tempfile::tempdir().expect("folder");
    write(&dir.path().join("model.gguf"), &meta, &tensors);
    let folder = weft_testsuite::fixture::folder().join("tiny").join(name);
    for file in ["golden.safetensors", "golden.json"] {
        std::fs::copy(folder.join(file), dir.path().join(file)).expect("copies");
    }
    let fixture = Fixture::open(dir.path().to_str().expect("a path"));
    let unknown = &fixture.checkpoint.config().unknown;
    assert!(unknown.is_empty(), "{unknown:?}");
    let options = CpuOptions { max_seq: 64, max_batch: 2, ..CpuOptions::default() };
    let weights = Bytes(&fixture.checkpoint);
    let mut model = CpuModel::graph(fixture.graph(DType::F32), &weights, &options).expect("loads");
    let report = tiny(&fixture, &mut model);
    assert!(report.logits <= 1e-4 && report.greedy_logits <= 1e-4, "{name}: {report:?}");
}

#[test]
fn qwen2() {
    check("qwen2", "qwen2", &[]);
}

#[test]
fn qwen3() {
    check("qwen3", "qwen3", &[]);
}

/// The metadata has no `query_pre_attn_scalar`; llama.cpp scales by the width of a head. The fixture's own is 64 for
/// heads of 32, so its queries are stored smaller by the root of a half.
#[test]
fn gemma2() {
    let caps = [
        ("attention.sliding_window", Meta::Size(16)),
        ("attn_logit_softcapping", Meta::Number(50.0)),
        ("final_logit_softcapping", Meta::Number(30.0)),
    ];
    check("gemma2", "gemma2", &caps);
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
        write(&path, &meta, &[("token_embd.weight".to_owned(), vec![8, 64], vec![0.0; 512])]);
        let checkpoint = weft_frontend::checkpoint::Checkpoint::open(&path).expect("opens");
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
