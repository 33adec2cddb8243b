//! Families and spellings without a golden of their own: checkpoints derived from those with one, so that the result is
//! the same by arithmetic (a multiplier taken out of a weight by a power of two), or by two builders.

use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use weft_frontend::checkpoint::Checkpoint;
use weft_ir::decode::decode_f32;
use weft_ir::dtype::DType;
use weft_runtime::exec::{CpuModel, CpuOptions};
use weft_testsuite::fixture::{Bytes, Fixture, folder, relative_rmse};
use weft_testsuite::golden::{ids, tiny};

/// A tensor: extents and values.
type Tensor = (Vec<usize>, Vec<f32>);

/// A checkpoint that is changed and written.
struct Draft {
    config: serde_json::Map<String, Value>,
    tensors: BTreeMap<String, Tensor>,
}

impl Draft {
    fn of(name: &str) -> Draft {
        let fixture = Fixture::open(name);
        let text = std::fs::read(folder().join("tiny").join(name).join("config.json")).expect("reads");
        let read = |t: &weft_frontend::tensor::TensorInfo| {
            let mut values = vec![0.0; t.elements().expect("elements")];
            let bytes = fixture.checkpoint.bytes(&t.name).expect("bytes");
            decode_f32(t.encoding.expect("type"), bytes, &mut values).expect("decodes");
            (t.name.clone(), (t.shape.clone(), values))
        };
        let tensors = fixture.checkpoint.tensors().map(read).collect();
        Draft { config: serde_json::from_slice(&text).expect("JSON"), tensors }
    }

    /// As another family, with changes to the configuration; null removes a key.
    fn set(mut self, changes: &[(&str, Value)]) -> Draft {
        for (key, value) in changes {
            match value {
                Value::Null => self.config.remove(*key),
                value => self.config.insert((*key).to_owned(), value.clone()),
            };
        }
        self
    }

    fn scale(mut self, part: &str, by: f32) -> Draft {
        let named = self.tensors.iter_mut().filter(|(n, _)| n.contains(part));
        named.for_each(|(_, (_, values))| values.iter_mut().for_each(|v| *v *= by));
        self
    }

    /// Without the tensors of a module.
    fn without(self, module: &str) -> Draft {
        self.rename(|n| (!n.contains(module)).then(|| n.to_owned()))
    }

    /// Other names; `None` leaves a tensor out.
    fn rename(mut self, f: impl Fn(&str) -> Option<String>) -> Draft {
        let all = std::mem::take(&mut self.tensors);
        self.tensors = all.into_iter().filter_map(|(n, t)| Some((f(&n)?, t))).collect();
        self
    }

    fn write(&self, to: &Path) {
        let bytes: BTreeMap<&String, Vec<u8>> = self
            .tensors
            .iter()
            .map(|(n, (_, v))| (n, v.iter().flat_map(|x| x.to_le_bytes()).collect()))
            .collect();
        let view =
            |n: &String| TensorView::new(Dtype::F32, self.tensors[n].0.clone(), &bytes[n]).expect("view");
        let views: Vec<(&String, TensorView<'_>)> = bytes.keys().map(|n| (*n, view(n))).collect();
        serialize_to_file(views, None, &to.join("model.safetensors")).expect("writes");
        std::fs::write(to.join("config.json"), Value::from(self.config.clone()).to_string()).expect("writes");
    }

    /// Opens it with the golden of a fixture.
    fn fixture(&self, golden: &str) -> (tempfile::TempDir, Fixture) {
        let dir = tempfile::tempdir().expect("folder");
        self.write(dir.path());
        for file in ["golden.safetensors", "golden.json"] {
            std::fs::copy(folder().join("tiny").join(golden).join(file), dir.path().join(file))
                .expect("copies");
        }
        let opened = Fixture::open(dir.path().to_str().expect("a path"));
        (dir, opened)
    }

    /// Checks that it gives the golden of a fixture.
    fn gives(&self, golden: &str) {
        let (_dir, fixture) = self.fixture(golden);
        let report = tiny(&fixture, &mut model(&fixture));
        assert!(report.logits <= 1e-4 && report.greedy_logits <= 1e-4, "{report:?}");
    }

    /// Checks that it gives what another gives (and that this is not `golden`'s result, where it should not be).
    fn agrees(&self, other: &Draft, golden: &str) {
        let logits = |draft: &Draft| {
            let (_dir, fixture) = draft.fixture(golden);
            let input = fixture.golden_ids("input_ids");
            let rows = input.values.chunks(input.shape[1]).map(|r| r.iter().map(|&v| v as u32).collect());
            let request = weft::tensors::Input { ids: ids(rows.collect()), continued: None };
            let out = weft::score::score(&mut model(&fixture), &request, 0, &mut |_, _| {});
            out.unwrap_or_else(|e| panic!("{e}")).logits
        };
        let distance = relative_rmse(&logits(self), &logits(other));
        assert!(distance <= 1e-4, "{distance}");
    }
}

fn model(fixture: &Fixture) -> CpuModel {
    let options = CpuOptions { max_seq: 64, max_batch: 2, ..CpuOptions::default() };
    let weights = Bytes(&fixture.checkpoint);
    CpuModel::graph(fixture.graph(DType::F32), &weights, &options).unwrap_or_else(|e| panic!("{e}"))
}

fn family(model_type: &str, class: &str) -> Vec<(&'static str, Value)> {
    vec![("model_type", json!(model_type)), ("architectures", json!([class]))]
}

#[test]
fn granite_is_llama_with_multipliers() {
    let multipliers = [
        ("embedding_multiplier", json!(2.0)),
        ("residual_multiplier", json!(0.25)),
        ("attention_multiplier", json!(0.17677669529663687)),
        ("logits_scaling", json!(8.0)),
    ];
    let draft = Draft::of("llama").set(&family("granite", "GraniteForCausalLM")).set(&multipliers);
    let draft = draft.scale("embed_tokens", 0.5).scale("o_proj", 4.0).scale("down_proj", 4.0);
    draft.scale("lm_head", 8.0).gives("llama");
}

#[test]
fn smollm3_without_layers_without_rope_is_llama() {
    let draft = Draft::of("llama").set(&family("smollm3", "SmolLM3ForCausalLM"));
    draft.set(&[("no_rope_layers", json!([1, 1]))]).gives("llama");
}

#[test]
fn olmo3_without_windows_is_olmo2() {
    let full = json!(["full_attention", "full_attention"]);
    Draft::of("olmo2").set(&family("olmo3", "Olmo3ForCausalLM")).set(&[("layer_types", full)]).gives("olmo2");
}

#[test]
fn gemma3_in_the_older_spelling() {
    let older = [
        ("rope_parameters", Value::Null),
        ("layer_types", Value::Null),
        ("_sliding_window_pattern", Value::Null),
        ("sliding_window_pattern", json!(4)),
        ("rope_theta", json!(1e6)),
        ("rope_local_base_freq", json!(10000.0)),
    ];
    Draft::of("gemma3").set(&older).gives("gemma3");
}

#[test]
fn gpt_neox_in_the_older_spelling() {
    let older =
        [("rope_parameters", Value::Null), ("rotary_pct", json!(0.25)), ("rotary_emb_base", json!(10000))];
    Draft::of("gpt-neox").set(&older).gives("gpt-neox");
}

#[test]
fn names_without_their_module() {
    let bare = |n: &str| Some(n.trim_start_matches("transformer.").to_owned());
    Draft::of("gpt2").rename(bare).gives("gpt2");
    Draft::of("bloom").rename(bare).gives("bloom");
}

/// Rows of heads of width `d`, halves first, as pairs of neighbours.
fn as_pairs((shape, values): &Tensor, d: usize) -> Tensor {
    let inner = values.len() / shape[0];
    let from = |row: usize| row / d * d + (row % d) / 2 + (row % 2) * (d / 2);
    let rows = (0..shape[0]).flat_map(|row| values[from(row) * inner..][..inner].to_vec());
    (shape.clone(), rows.collect())
}

/// GLM-4 takes pairs of neighbours, and gate and up in one; Gemma 2 stores norms as w for 1 + w, and scales embeddings.
#[test]
fn glm4_is_a_gemma_without_caps_and_windows() {
    let full = json!(["full_attention", "full_attention"]);
    let mut gemma = Draft::of("gemma2").set(&[("layer_types", full), ("query_pre_attn_scalar", json!(32))]);
    for cap in ["attn_logit_softcapping", "final_logit_softcapping"] {
        gemma.config.insert(cap.to_owned(), Value::Null);
    }
    let mut glm = Draft::of("gemma2").set(&family("glm4", "Glm4ForCausalLM")).set(&[
        ("rope_parameters", json!({"rope_theta": 10000.0, "partial_rotary_factor": 1.0})),
        ("hidden_act", json!("gelu_pytorch_tanh")),
        ("hidden_activation", Value::Null),
        ("tie_word_embeddings", json!(false)),
        ("layer_types", Value::Null),
        ("sliding_window", Value::Null),
        ("query_pre_attn_scalar", Value::Null),
        ("attn_logit_softcapping", Value::Null),
        ("final_logit_softcapping", Value::Null),
    ]);
    let embedding = glm.tensors["model.embed_tokens.weight"].clone();
    glm = glm.scale("embed_tokens", 128f32.sqrt());
    glm.tensors.insert("lm_head.weight".to_owned(), embedding);
    for (name, (_, values)) in &mut glm.tensors {
        if name.contains("norm") {
            values.iter_mut().for_each(|v| *v += 1.0);
        }
    }
    for layer in 0..2 {
        let part = |n: &str| format!("model.layers.{layer}.{n}.weight");
        let mut take = |n: &str| glm.tensors.remove(&part(n)).expect("a tensor");
        let (gate, up) = (take("mlp.gate_proj"), take("mlp.up_proj"));
        let both = (vec![2 * gate.0[0], gate.0[1]], [gate.1, up.1].concat());
        let after = take("post_attention_layernorm");
        let (before_mlp, after_mlp) = (take("pre_feedforward_layernorm"), take("post_feedforward_layernorm"));
        let (q, k) = (take("self_attn.q_proj"), take("self_attn.k_proj"));
        let new = [
            ("mlp.gate_up_proj", both),
            ("post_self_attn_layernorm", after),
            ("post_attention_layernorm", before_mlp),
            ("post_mlp_layernorm", after_mlp),
            ("self_attn.q_proj", as_pairs(&q, 32)),
            ("self_attn.k_proj", as_pairs(&k, 32)),
        ];
        glm.tensors.extend(new.map(|(n, t)| (part(n), t)));
    }
    glm.agrees(&gemma, "gemma2");
}

/// Cohere 2 takes pairs of neighbours and has rope where it has windows; here they hold everything.
#[test]
fn cohere2_is_a_parallel_stablelm() {
    let mut stable = Draft::of("llama").set(&family("stablelm", "StableLmForCausalLM")).set(&[
        ("rms_norm_eps", Value::Null),
        ("use_parallel_residual", json!(true)),
        ("partial_rotary_factor", json!(1.0)),
        ("layer_norm_eps", json!(1e-5)),
    ]);
    let mut cohere = Draft::of("llama").set(&family("cohere2", "Cohere2ForCausalLM")).set(&[
        ("rms_norm_eps", Value::Null),
        ("logit_scale", json!(1.0)),
        ("sliding_window", json!(64)),
        ("layer_types", json!(["sliding_attention", "sliding_attention"])),
    ]);
    let norms = ["model.layers.0.input_layernorm", "model.layers.1.input_layernorm", "model.norm"];
    for norm in norms {
        stable.tensors.insert(format!("{norm}.bias"), (vec![128], vec![0.0; 128]));
    }
    for (name, tensor) in &mut cohere.tensors {
        if name.contains("q_proj") || name.contains("k_proj") {
            *tensor = as_pairs(tensor, 32);
        }
    }
    let one_norm = |draft: Draft| draft.without("post_attention_layernorm");
    one_norm(stable).agrees(&one_norm(cohere), "llama");
}

/// GPT-NeoX's tensors by Llama's names, with queries, keys and values apart.
fn apart(draft: Draft, names: &[(&str, &str)]) -> Draft {
    let mut out = Draft { config: draft.config, tensors: BTreeMap::new() };
    for (name, (shape, values)) in draft.tensors {
        let mut new = name.replace("gpt_neox.", "model.");
        for (from, to) in names {
            new = new.replace(from, to);
        }
        if !name.contains("query_key_value") {
            out.tensors.insert(new, (shape, values));
            continue;
        }
        // [heads, 3, d, …]
        let (heads, inner) = (4, values.len() / shape[0]);
        let d = shape[0] / heads / 3;
        for (i, part) in ["q_proj", "k_proj", "v_proj"].into_iter().enumerate() {
            let rows = (0..heads).flat_map(|h| {
                let at = (h * 3 + i) * d * inner;
                values[at..at + d * inner].to_vec()
            });
            let mut of = shape.clone();
            of[0] /= 3;
            out.tensors.insert(new.replace("query_key_value", part), (of, rows.collect()));
        }
    }
    out
}

#[test]
fn starcoder2_is_a_sequential_neox_with_whole_rotation() {
    let rope = json!({"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0});
    let neox =
        Draft::of("gpt-neox").set(&[("rope_parameters", rope), ("use_parallel_residual", json!(false))]);
    let names = [
        ("embed_in", "embed_tokens"),
        ("embed_out", "lm_head"),
        ("final_layer_norm", "norm"),
        (".attention.", ".self_attn."),
        ("self_attn.dense", "self_attn.o_proj"),
        ("dense_h_to_4h", "c_fc"),
        ("dense_4h_to_h", "c_proj"),
    ];
    let star = apart(
        Draft::of("gpt-neox").set(&family("starcoder2", "Starcoder2ForCausalLM")).set(&[
            ("rope_parameters", Value::Null),
            ("use_parallel_residual", Value::Null),
            ("attention_bias", Value::Null),
            ("layer_norm_eps", Value::Null),
            ("num_key_value_heads", json!(4)),
        ]),
        &names,
    );
    star.agrees(&neox, "gpt-neox");
}

#[test]
fn phi_is_a_neox_with_one_norm_for_both() {
    let same = |mut draft: Draft| {
        for layer in 0..2 {
            for kind in ["weight", "bias"] {
                let name = |n: &str| format!("gpt_neox.layers.{layer}.{n}.{kind}");
                let one = draft.tensors[&name("input_layernorm")].clone();
                draft.tensors.insert(name("post_attention_layernorm"), one);
            }
        }
        draft
    };
    let neox = same(Draft::of("gpt-neox"));
    let names = [
        ("embed_in", "embed_tokens"),
        ("embed_out", "lm_head"),
        ("final_layer_norm", "final_layernorm"),
        (".attention.", ".self_attn."),
        ("dense_h_to_4h", "fc1"),
        ("dense_4h_to_h", "fc2"),
    ];
    let rope = json!({"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25});
    let phi = same(Draft::of("gpt-neox")).set(&family("phi", "PhiForCausalLM")).set(&[
        ("rope_parameters", rope),
        ("use_parallel_residual", Value::Null),
        ("attention_bias", Value::Null),
    ]);
    apart(phi.without("post_attention_layernorm"), &names).agrees(&neox, "gpt-neox");
}

/// Qwen 2 with experts, of which there is one, equal to the shared one, whose gate is σ(0): 1.5 times the MLP.
#[test]
fn qwen2_moe_of_one_expert_is_a_scaled_qwen2() {
    let dense = |draft: Draft| draft.scale("layers.0.mlp.down_proj", 1.5);
    let mut moe = Draft::of("qwen2").set(&family("qwen2_moe", "Qwen2MoeForCausalLM")).set(&[
        ("num_experts", json!(1)),
        ("num_experts_per_tok", json!(1)),
        ("norm_topk_prob", json!(false)),
        ("mlp_only_layers", json!([1])),
    ]);
    let width = moe.config["intermediate_size"].clone();
    for key in ["moe_intermediate_size", "shared_expert_intermediate_size"] {
        moe.config.insert(key.to_owned(), width.clone());
    }
    let hidden = moe.tensors["model.norm.weight"].0[0];
    let mlp = "model.layers.0.mlp";
    for part in ["gate_proj", "up_proj", "down_proj"] {
        let tensor = moe.tensors.remove(&format!("{mlp}.{part}.weight")).expect("a tensor");
        moe.tensors.insert(format!("{mlp}.experts.0.{part}.weight"), tensor.clone());
        moe.tensors.insert(format!("{mlp}.shared_expert.{part}.weight"), tensor);
    }
    for part in ["gate", "shared_expert_gate"] {
        moe.tensors.insert(format!("{mlp}.{part}.weight"), (vec![1, hidden], vec![0.0; hidden]));
    }
    moe.agrees(&dense(Draft::of("qwen2")), "qwen2");
}

/// Weights of a softmax over all experts that are not divided by their sum: of all experts they sum to 1 anyway.
#[test]
fn weights_of_all_experts_need_no_division() {
    let all = |normalised: bool| {
        Draft::of("qwen3-moe")
            .set(&[("num_experts_per_tok", json!(8)), ("norm_topk_prob", json!(normalised))])
    };
    all(false).agrees(&all(true), "qwen3-moe");
}

/// gpt-oss without a rope in its file has its class's.
#[test]
fn gpt_oss_without_rope_settings() {
    Draft::of("gpt-oss").set(&[("rope_parameters", Value::Null)]).gives("gpt-oss");
}

/// Rotary pairs of latent attention as halves rather than neighbours.
#[test]
fn deepseek_with_rotary_halves() {
    let mut draft = Draft::of("deepseek-v3").set(&[("rope_interleave", json!(false))]);
    // Row `at + i` of a head of `of` rows becomes row `at + 2i` or, of the second half, `at + 2(i − d/2) + 1`.
    let split = |(shape, values): &Tensor, of: usize, at: usize, d: usize| -> Tensor {
        let inner = values.len() / shape[0];
        let from = |row: usize| match (row % of).checked_sub(at) {
            Some(i) if i < d => row - i + if i < d / 2 { 2 * i } else { 2 * (i - d / 2) + 1 },
            _ => row,
        };
        let rows = (0..shape[0]).flat_map(|row| values[from(row) * inner..][..inner].to_vec());
        (shape.clone(), rows.collect())
    };
    for (name, tensor) in &mut draft.tensors {
        if name.contains("q_b_proj") {
            *tensor = split(tensor, 48, 32, 16);
        } else if name.contains("kv_a_proj") {
            *tensor = split(tensor, 80, 64, 16);
        }
    }
    draft.gives("deepseek-v3");
}

/// Beyond the original context LongRoPE's long factors are those of a rope whose short ones they are.
#[test]
fn longrope_in_a_longer_context() {
    let (original, whole) = (32, 64);
    let stretch = (1.0 + 2f64.ln() / f64::from(original).ln()).sqrt();
    let place = folder().join("variants").join("phi3-longrope");
    let text = std::fs::read_to_string(place.join("config.json")).expect("reads");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(config["original_max_position_embeddings"], original);
    let rope = config["rope_parameters"].as_object_mut().expect("a rope");
    let long = rope["long_factor"].clone();
    for (key, value) in [
        ("short_factor", long),
        ("attention_factor", json!(stretch)),
        ("original_max_position_embeddings", json!(whole)),
    ] {
        rope.insert(key.into(), value);
    }
    config["original_max_position_embeddings"] = json!(whole);
    let dir = tempfile::tempdir().expect("folder");
    std::fs::write(dir.path().join("config.json"), config.to_string()).expect("writes");
    std::fs::copy(place.join("model.safetensors"), dir.path().join("model.safetensors")).expect("copies");

    let open = |path: &Path| Checkpoint::open(path).unwrap_or_else(|e| panic!("{e}"));
    let logits = |checkpoint: &Checkpoint, tokens: u32| {
        let options = CpuOptions { max_seq: whole as usize, max_batch: 1, ..CpuOptions::default() };
        let graph = weft_frontend::models::build(checkpoint, DType::F32).unwrap_or_else(|e| panic!("{e}"));
        let model = CpuModel::graph(graph, &Bytes(checkpoint), &options);
        let request = weft::tensors::Input { ids: ids(vec![(3..3 + tokens).collect()]), continued: None };
        let mut model = model.unwrap_or_else(|e| panic!("{e}"));
        let out = weft::score::score(&mut model, &request, 0, &mut |_, _| {});
        out.unwrap_or_else(|e| panic!("{e}")).logits
    };
    let (short, long) = (open(&place), open(&place).reaching(whole as usize));
    assert_eq!((short.config().max_position, long.config().max_position), (32, 64));
    let (found, wanted) = (logits(&long, 50), logits(&open(dir.path()), 50));
    let distance = relative_rmse(&found, &wanted);
    assert!(distance <= 1e-6, "{distance}");
    assert!(relative_rmse(&logits(&short, 30), &logits(&long, 30)) > 1e-3, "the factors differ");
}

/// Models of texts and images: their text parts give what these give alone, by the names of older and of newer files.
#[test]
fn text_parts_of_models_of_images() {
    for (golden, family, class) in [
        ("gemma3", "gemma3", "Gemma3ForConditionalGeneration"),
        ("mistral-sliding", "mistral3", "Mistral3ForConditionalGeneration"),
    ] {
        let alone = Draft::of(golden);
        let mut text = alone.config.clone();
        text.remove("architectures");
        let tokens = text.insert("eos_token_id".into(), json!(7));
        let whole = json!({
            "model_type": family, "architectures": [class], "text_config": text, "vision_config": {"depth": 3},
            "image_token_index": 5, "eos_token_id": tokens, "torch_dtype": "bfloat16", "initializer_range": 0.5,
        });
        for newer in [false, true] {
            let name = |n: &str| match n.strip_prefix("model.") {
                Some(inner) if newer => Some(format!("model.language_model.{inner}")),
                None if newer => Some(n.to_owned()),
                _ => Some(format!("language_model.{n}")),
            };
            let mut draft = Draft::of(golden).rename(name);
            draft.config = whole.as_object().expect("settings").clone();
            let sight = if newer { "model.vision_tower.patch.weight" } else { "vision_tower.patch.weight" };
            draft.tensors.insert(sight.into(), (vec![2, 2], vec![0.5; 4]));
            draft.gives(golden);
            let (_dir, fixture) = draft.fixture(golden);
            assert_eq!(json!(fixture.checkpoint.config().eos_token_ids), json!([tokens]));
        }
    }
}
