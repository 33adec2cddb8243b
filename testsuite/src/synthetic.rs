//! Checkpoints of a public shape without weights: headers and a sparse file, or a configuration alone, for what only
//! compiles.

use std::io::Write;
use std::path::Path;
use weft_frontend::checkpoint::Checkpoint;
use weft_ir::dtype::DType;
use weft_ir::graph::Graph;

/// Graph of a shape of `peers/shapes` with some layers, in bf16.
///
/// # Panics
/// When there is no such shape, or it does not build.
pub fn shape(name: &str, layers: usize) -> Graph {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/shapes").join(name).join("config.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    config["num_hidden_layers"] = layers.into();
    let shape = Checkpoint::of_config(&path, config.to_string().as_bytes(), DType::BF16, &[]);
    let shape = shape.unwrap_or_else(|e| panic!("{e}"));
    weft_frontend::models::build(&shape, DType::BF16).unwrap_or_else(|e| panic!("{e}"))
}

/// Graph of DeepSeek-V3's shape (its public `config.json`, but for the FP8) with the first layers only, of which
/// three are dense; bf16.
///
/// # Panics
/// When it does not build.
pub fn deepseek_v3(layers: usize) -> Graph {
    let config = serde_json::json!({
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "attention_bias": false,
        "first_k_dense_replace": 3,
        "hidden_act": "silu",
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "kv_lora_rank": 512,
        "max_position_embeddings": 163840,
        "moe_intermediate_size": 2048,
        "moe_layer_freq": 1,
        "n_group": 8,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "norm_topk_prob": true,
        "num_attention_heads": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": layers,
        "num_key_value_heads": 128,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 40,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096,
            "type": "yarn",
        },
        "rope_theta": 10000,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": false,
        "topk_group": 4,
        "topk_method": "noaux_tc",
        "v_head_dim": 128,
        "vocab_size": 129_280,
    });
    of_config(&config)
}

/// Graph of all-MiniLM-L6-v2's shape (its public `config.json`), bf16.
///
/// # Panics
/// When it does not build.
pub fn minilm() -> Graph {
    let config = serde_json::json!({
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": 384,
        "intermediate_size": 1536,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "num_attention_heads": 12,
        "num_hidden_layers": 6,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "type_vocab_size": 2,
        "vocab_size": 30522,
    });
    of_config(&config)
}

/// Graph of a configuration, bf16.
fn of_config(config: &serde_json::Value) -> Graph {
    let path = Path::new("config.json");
    let shape = Checkpoint::of_config(path, config.to_string().as_bytes(), DType::BF16, &[]);
    let shape = shape.unwrap_or_else(|e| panic!("{e}"));
    weft_frontend::models::build(&shape, DType::BF16).unwrap_or_else(|e| panic!("{e}"))
}

/// Sizes of a llama-like model.
#[derive(Clone, Copy, Debug)]
pub struct LlamaShape {
    /// Layers.
    pub layers: usize,
    /// Hidden size.
    pub hidden: usize,
    /// Size between the MLP's projections.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// Whether the head is the embedding table.
    pub tied: bool,
}

/// SmolLM2-135M-Instruct.
pub const SMOLLM2: LlamaShape = LlamaShape {
    layers: 30,
    hidden: 576,
    intermediate: 1536,
    heads: 9,
    kv_heads: 3,
    head_dim: 64,
    vocab: 49152,
    tied: true,
};

/// Llama-3.2-1B.
pub const LLAMA_1B: LlamaShape = LlamaShape {
    layers: 16,
    hidden: 2048,
    intermediate: 8192,
    heads: 32,
    kv_heads: 8,
    head_dim: 64,
    vocab: 128256,
    tied: true,
};

/// Llama-3.1-8B.
pub const LLAMA_8B: LlamaShape = LlamaShape {
    layers: 32,
    hidden: 4096,
    intermediate: 14336,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    vocab: 128256,
    tied: false,
};

impl LlamaShape {
    /// Names and shapes of the tensors.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (h, q, kv) = (self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut all = vec![("model.embed_tokens.weight".to_string(), vec![self.vocab, h])];
        for layer in 0..self.layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            all.extend([
                (name("input_layernorm"), vec![h]),
                (name("self_attn.q_proj"), vec![q, h]),
                (name("self_attn.k_proj"), vec![kv, h]),
                (name("self_attn.v_proj"), vec![kv, h]),
                (name("self_attn.o_proj"), vec![h, q]),
                (name("post_attention_layernorm"), vec![h]),
                (name("mlp.gate_proj"), vec![self.intermediate, h]),
                (name("mlp.up_proj"), vec![self.intermediate, h]),
                (name("mlp.down_proj"), vec![h, self.intermediate]),
            ]);
        }
        all.push(("model.norm.weight".to_string(), vec![h]));
        if !self.tied {
            all.push(("lm_head.weight".to_string(), vec![self.vocab, h]));
        }
        all
    }

    /// Writes config.json and a sparse bf16 model.safetensors to a folder.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, folder: &Path) -> std::io::Result<()> {
        let config = serde_json::json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 100000.0,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": self.tied,
            "torch_dtype": "bfloat16",
        });
        std::fs::write(folder.join("config.json"), config.to_string())?;
        let mut header = serde_json::Map::new();
        let mut at = 0usize;
        for (name, shape) in self.tensors() {
            let bytes = 2 * shape.iter().product::<usize>();
            let entry =
                serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, at + bytes]});
            header.insert(name, entry);
            at += bytes;
        }
        let mut text = serde_json::to_string(&header)?;
        while text.len() % 8 != 0 {
            text.push(' ');
        }
        let mut file = std::fs::File::create(folder.join("model.safetensors"))?;
        file.write_all(&(text.len() as u64).to_le_bytes())?;
        file.write_all(text.as_bytes())?;
        file.set_len((8 + text.len() + at) as u64)
    }
}
