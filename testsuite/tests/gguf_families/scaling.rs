//! Factors of scaled rope, and what Gemma's metadata leaves to the code.

use crate::compare::{agree, agree_with};
use crate::synthetic::{ATTENTION, BEFORE, HEAD, MLP, OUTER, Shapes, synthetic};
use serde_json::json;
use weft_frontend::checkpoint::Checkpoint;
use weft_frontend::config::{LayerRope, Norm};
use weft_testsuite::fixture::Fixture;
use weft_testsuite::gguf::{Meta, write};

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
    // Beyond the original context both take the long factors.
    let hf = hf.reaching(64);
    assert_eq!(hf.config().max_position, 64);
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
