//! Decode kernels of public shapes that the shipped database does not have: what `weft compile` chooses for them, to be
//! compared with what `weft tune` finds.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use weft_frontend::checkpoint::Checkpoint;
use weft_frontend::models;
use weft_ir::dtype::DType;
use weft_ir::plan::{KernelSpec, Plan};
use weft_ir::reference::WeightBytes;
use weft_ir::target::Target;
use weft_passes::schedule::database::{Database, Shape, rounded};
use weft_passes::schedule::tune::{Task, tasks};
use weft_passes::{Options, Selection};
use weft_runtime::exec::bench::{PROMPT, Workload};

/// The step that is measured, as `weft tune --context 1024` does.
pub const WORK: Workload = Workload { batch: 1, context: 1024, tokens: 2, runs: 3, prompt: PROMPT };

/// Shapes of a model.
pub struct Unseen {
    /// The model.
    pub name: &'static str,
    /// Its public configuration; fewer layers where that leaves more weights than an L2 holds, and a small vocabulary,
    /// since the head is not among the shapes.
    pub config: Value,
    /// The shapes of its decode step that count.
    pub shapes: Vec<Shape>,
}

fn product(columns: usize, k: usize, group: usize, computed: bool) -> Shape {
    Shape::Gemv { columns, k, group, computed }
}

fn attention(kv_heads: usize, group: usize, head_dim: usize, made: bool) -> Shape {
    let keys = rounded(WORK.context + WORK.tokens);
    Shape::AttentionRow { kv_heads, group, head_dim, value_dim: head_dim, keys, made, projected: 0 }
}

/// Ten shapes that were never tuned: products with norms, biases, rotations, activations and residuals, and two
/// attentions. Whoever tunes one of them takes another here.
pub fn unseen() -> Vec<Unseen> {
    vec![
        Unseen {
            name: "Qwen2.5-0.5B",
            config: json!({
                "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
                "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768,
                "rms_norm_eps": 1e-6, "rope_theta": 1e6, "rope_scaling": null, "sliding_window": null,
                "use_sliding_window": false, "tie_word_embeddings": true, "vocab_size": 4096,
                "torch_dtype": "bfloat16",
            }),
            // Norm, bias, rotation and cache write; norm and SwiGLU; residual.
            shapes: vec![
                product(1152, 896, 2, true),
                product(9728, 896, 2, true),
                product(896, 4864, 1, false),
            ],
        },
        Unseen {
            name: "Llama-3.2-3B",
            config: json!({
                "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
                "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 8,
                "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128,
                "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
                "rope_scaling": null, "attention_bias": false, "mlp_bias": false,
                "tie_word_embeddings": true, "vocab_size": 4096, "torch_dtype": "bfloat16",
            }),
            // Residuals; a group of three.
            shapes: vec![
                product(3072, 3072, 1, false),
                product(3072, 8192, 1, false),
                attention(8, 3, 128, false),
            ],
        },
        Unseen {
            name: "Gemma-3-1B",
            config: json!({
                "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text",
                "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "intermediate_size": 6912,
                "num_hidden_layers": 12, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
                "max_position_embeddings": 32768, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6,
                "sliding_window": 512, "layer_types": vec!["full_attention"; 12],
                "rope_theta": 1e6, "rope_local_base_freq": 10000.0, "attention_bias": false,
                "tie_word_embeddings": true, "vocab_size": 4096, "torch_dtype": "bfloat16",
            }),
            // Norm and GELU; the largest heads, with norms and rotations.
            shapes: vec![product(13824, 1152, 2, true), attention(1, 4, 256, true)],
        },
        Unseen {
            name: "GPT-2 medium",
            config: json!({
                "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new",
                "n_embd": 1024, "n_head": 16, "n_inner": null, "n_layer": 16, "n_positions": 2048,
                "layer_norm_epsilon": 1e-5, "scale_attn_weights": true, "tie_word_embeddings": true,
                "vocab_size": 4096, "torch_dtype": "bfloat16",
            }),
            // LayerNorm, bias and GELU; bias and residual.
            shapes: vec![product(4096, 1024, 1, true), product(1024, 4096, 1, false)],
        },
    ]
}

impl Unseen {
    /// The model without weights.
    ///
    /// # Panics
    /// When the configuration is not one of a known family.
    pub fn checkpoint(&self) -> Checkpoint {
        let text = self.config.to_string();
        let found = Checkpoint::of_config(Path::new("config.json"), text.as_bytes(), DType::BF16, &[]);
        found.unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    /// The plan of a decode step of one sequence, as `weft compile` makes it with the shipped database.
    ///
    /// # Panics
    /// When it does not compile.
    pub fn plan(&self, target: &'static Target, shipped: &Arc<Database>) -> Plan {
        let graph = models::build(&self.checkpoint(), DType::BF16).unwrap_or_else(|e| panic!("{e}"));
        let options = Options {
            target,
            dtype: DType::BF16,
            opt_level: 2,
            max_seq: WORK.context + WORK.tokens,
            max_batch: WORK.batch,
            selection: Selection::default(),
            dump: false,
            schedules: shipped.clone(),
        };
        let plan = weft_passes::compile(&graph, options).unwrap_or_else(|e| panic!("{e}")).plan;
        let (at, _, _) = WORK.entry(&plan).unwrap_or_else(|e| panic!("{e}"));
        plan.only(at).expect("an entry")
    }

    /// The tasks of its shapes in that plan, each with the kernel that was chosen.
    ///
    /// # Panics
    /// When the plan has no kernel of a shape.
    pub fn tasks<'p>(&self, plan: &'p Plan, target: &Target) -> Vec<(Task, &'p KernelSpec)> {
        let entry = &plan.entries[0];
        let all = tasks(plan, entry, target, target.profile.name);
        let known: Vec<&Shape> = all.iter().map(|t| &t.key.shape).collect();
        let of = |shape: &Shape| {
            let found = all.iter().find(|t| t.key.shape == *shape);
            let task = found.unwrap_or_else(|| panic!("{}: no {shape:?} among {known:#?}", self.name));
            (task.clone(), &plan.kernels[entry.kernels[&task.work].index()])
        };
        self.shapes.iter().map(of).collect()
    }

    /// Random weights.
    ///
    /// # Panics
    /// When the configuration is not one of a known family.
    pub fn weights(&self) -> RandomWeights {
        RandomWeights::new(&self.checkpoint())
    }
}

/// Weights that are never zero, for times: every tensor is a part of one array, from a place of its own.
pub struct RandomWeights {
    bytes: Vec<u8>,
    /// Elements of each tensor, and where they begin.
    tensors: BTreeMap<String, (usize, usize)>,
}

impl RandomWeights {
    /// Those of a model, bf16.
    ///
    /// # Panics
    /// When the model does not build.
    pub fn new(checkpoint: &Checkpoint) -> RandomWeights {
        const PLACES: usize = 1 << 20;
        let asked = models::asked(checkpoint, DType::BF16).unwrap_or_else(|e| panic!("{e}"));
        let sizes: Vec<usize> = asked.iter().map(|a| a.shape.iter().product()).collect();
        let elements = sizes.iter().max().map_or(0, |most| most + PLACES);
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut bytes = Vec::with_capacity(elements * 2);
        for _ in 0..elements {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // About ±0.03, never zero.
            let value = ((state >> 40) as f32 / (1 << 23) as f32 - 0.999_999) * 0.03;
            bytes.extend_from_slice(&value.to_bits().to_le_bytes()[2..]);
        }
        let place = |i: usize| (i * 7919 * 64) % PLACES;
        let tensors = asked.into_iter().zip(sizes).enumerate();
        let tensors = tensors.map(|(i, (a, n))| (a.name, (n, place(i)))).collect();
        RandomWeights { bytes, tensors }
    }
}

impl WeightBytes for RandomWeights {
    fn bytes(&self, tensor: &str) -> Option<&[u8]> {
        let (elements, at) = self.tensors.get(tensor)?;
        self.bytes.get(2 * at..2 * (at + elements))
    }
}
