//! Families without a golden, as random tensors of a small configuration.

use crate::compare::agree;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use weft_frontend::checkpoint::Checkpoint;
use weft_frontend::config::{LayerRope, QkNorm};
use weft_testsuite::gguf::Meta;
use weft_testsuite::random::rng::Rng;

/// A family without a golden: a configuration of width 64 with four heads of 16, and random tensors.
pub fn synthetic(
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

pub type Shapes = Vec<(&'static str, &'static [usize])>;

pub const OUTER: [(&str, &[usize]); 2] =
    [("model.embed_tokens.weight", &[72, 64]), ("model.norm.weight", &[64])];
pub const HEAD: (&str, &[usize]) = ("lm_head.weight", &[72, 64]);
pub const ATTENTION: [(&str, &[usize]); 4] = [
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
pub const MLP: [(&str, &[usize]); 3] = [
    ("model.layers.N.mlp.gate_proj.weight", &[96, 64]),
    ("model.layers.N.mlp.up_proj.weight", &[96, 64]),
    ("model.layers.N.mlp.down_proj.weight", &[64, 96]),
];
pub const BEFORE: [(&str, &[usize]); 2] = [
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
