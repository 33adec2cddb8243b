//! Names and layouts of the tensors in GGUF files, family by family, against Hugging Face's.
//!
//! Names: `gguf-py/gguf/constants.py` and `tensor_mapping.py` of llama.cpp; layouts: what its `convert_hf_to_gguf.py`
//! changes as it writes.

use crate::config::ModelConfig;

/// How a stored tensor lies against the Hugging Face tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// As it is.
    Same,
    /// Rows permuted for interleaved rotary embedding: within each of the heads, the stored rows are ordered (pair,
    /// half), that is `stored = hf.reshape(heads, 2, head_dim / 2, in).swapaxes(1, 2)`.
    Interleaved {
        /// Heads.
        heads: usize,
    },
    /// The last two axes swapped: GPT-2's matrices; experts of gpt-oss in MXFP4.
    Swapped,
    /// Rows of all queries, then of all keys, then of all values, which Hugging Face groups by key head.
    Parts {
        /// Query heads.
        heads: usize,
        /// Key heads.
        kv_heads: usize,
    },
    /// One of the outermost axis of the stored tensor: a row of a matrix, an expert's matrix.
    Row(usize),
    /// A matrix of one row, of which a file may hold a vector.
    OneRow,
}

/// The names of a family.
struct Names {
    /// What stands before a block's number.
    block: &'static str,
    /// Pairs of names of the tensors outside the blocks, in Hugging Face's and GGUF's spelling.
    outer: &'static [(&'static str, &'static str)],
    /// Pairs of names of the tensors of one block: the family's own, which come first.
    own: &'static [(&'static str, &'static str)],
    /// Pairs that families share.
    parts: &'static [(&'static str, &'static str)],
}

const LLAMA: Names = Names {
    block: "model.layers.",
    outer: &[("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")],
    own: &[],
    parts: &[
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ],
};

const GEMMA: Names = Names {
    own: &[
        ("post_attention_layernorm", "post_attention_norm"),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
    ],
    ..LLAMA
};

const PHI3: Names =
    Names { own: &[("self_attn.qkv_proj", "attn_qkv"), ("mlp.gate_up_proj", "ffn_up")], ..LLAMA };

const PHI: Names = Names {
    outer: &[
        ("model.embed_tokens", "token_embd"),
        ("model.final_layernorm", "output_norm"),
        ("lm_head", "output"),
    ],
    own: &[("self_attn.dense", "attn_output"), ("mlp.fc1", "ffn_up"), ("mlp.fc2", "ffn_down")],
    ..LLAMA
};

const STARCODER2: Names = Names { own: &[("mlp.c_fc", "ffn_up"), ("mlp.c_proj", "ffn_down")], ..LLAMA };

const MIXTRAL: Names = Names { own: &[("block_sparse_moe.gate", "ffn_gate_inp")], ..LLAMA };

const QWEN_MOE: Names = Names { own: &[("mlp.gate", "ffn_gate_inp")], ..LLAMA };

const QWEN2_MOE: Names = Names {
    own: &[
        ("mlp.gate", "ffn_gate_inp"),
        ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
        ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
        ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
        ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
    ],
    ..LLAMA
};

/// Gate and up of gpt-oss are one tensor in Hugging Face's files and two in these, which have names that Hugging Face
/// gives to experts of other families.
const GPT_OSS: Names = Names {
    own: &[
        ("post_attention_layernorm", "post_attention_norm"),
        ("mlp.router", "ffn_gate_inp"),
        ("mlp.experts.gate_proj", "ffn_gate_exps"),
        ("mlp.experts.up_proj", "ffn_up_exps"),
        ("mlp.experts.down_proj", "ffn_down_exps"),
        ("self_attn.sinks", "attn_sinks"),
    ],
    ..LLAMA
};

/// What makes keys and values of the narrow value is one tensor in Hugging Face's files and in older ones of these.
const DEEPSEEK: Names = Names {
    own: &[
        ("self_attn.q_a_proj", "attn_q_a"),
        ("self_attn.q_a_layernorm", "attn_q_a_norm"),
        ("self_attn.q_b_proj", "attn_q_b"),
        ("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"),
        ("self_attn.kv_a_layernorm", "attn_kv_a_norm"),
        ("self_attn.kv_b_proj", "attn_kv_b"),
        ("self_attn.k_b_proj", "attn_k_b"),
        ("self_attn.v_b_proj", "attn_v_b"),
        ("mlp.gate", "ffn_gate_inp"),
        ("mlp.gate.e_score_correction_bias", "exp_probs_b"),
        ("mlp.shared_experts.gate_proj", "ffn_gate_shexp"),
        ("mlp.shared_experts.up_proj", "ffn_up_shexp"),
        ("mlp.shared_experts.down_proj", "ffn_down_shexp"),
    ],
    ..LLAMA
};

/// Tensors whose names have no kind in Hugging Face's files, and the kind that they have in these.
const BARE: &[(&str, &str)] = &[("self_attn.sinks", "weight"), ("mlp.gate.e_score_correction_bias", "bias")];

const BERT: Names = Names {
    block: "encoder.layer.",
    outer: &[
        ("embeddings.word_embeddings", "token_embd"),
        ("embeddings.token_type_embeddings", "token_types"),
        ("embeddings.position_embeddings", "position_embd"),
        ("embeddings.LayerNorm", "token_embd_norm"),
    ],
    own: &[],
    parts: &[
        ("attention.self.query", "attn_q"),
        ("attention.self.key", "attn_k"),
        ("attention.self.value", "attn_v"),
        ("attention.output.dense", "attn_output"),
        ("attention.output.LayerNorm", "attn_output_norm"),
        ("intermediate.dense", "ffn_up"),
        ("output.dense", "ffn_down"),
        ("output.LayerNorm", "layer_output_norm"),
    ],
};

const GLM4: Names = Names {
    own: &[
        ("post_self_attn_layernorm", "post_attention_norm"),
        ("post_mlp_layernorm", "post_ffw_norm"),
        ("mlp.gate_up_proj", "ffn_up"),
    ],
    ..LLAMA
};

const GPT2: Names = Names {
    block: "transformer.h.",
    outer: &[
        ("transformer.wte", "token_embd"),
        ("transformer.wpe", "position_embd"),
        ("transformer.ln_f", "output_norm"),
        ("lm_head", "output"),
    ],
    own: &[],
    parts: &[
        ("ln_1", "attn_norm"),
        ("ln_2", "ffn_norm"),
        ("attn.c_attn", "attn_qkv"),
        ("attn.c_proj", "attn_output"),
        ("mlp.c_fc", "ffn_up"),
        ("mlp.c_proj", "ffn_down"),
    ],
};

const GPT_NEOX: Names = Names {
    block: "gpt_neox.layers.",
    outer: &[
        ("gpt_neox.embed_in", "token_embd"),
        ("gpt_neox.final_layer_norm", "output_norm"),
        ("embed_out", "output"),
    ],
    own: &[("attention.query_key_value", "attn_qkv"), ("attention.dense", "attn_output")],
    parts: &[
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("mlp.dense_h_to_4h", "ffn_up"),
        ("mlp.dense_4h_to_h", "ffn_down"),
    ],
};

const FALCON: Names = Names {
    block: "transformer.h.",
    outer: &[
        ("transformer.word_embeddings", "token_embd"),
        ("transformer.ln_f", "output_norm"),
        ("lm_head", "output"),
    ],
    own: &[
        ("self_attention.query_key_value", "attn_qkv"),
        ("self_attention.dense", "attn_output"),
        ("ln_attn", "attn_norm_2"),
        ("ln_mlp", "attn_norm"),
    ],
    ..GPT_NEOX
};

const BLOOM: Names = Names {
    outer: &[
        ("transformer.word_embeddings", "token_embd"),
        ("transformer.word_embeddings_layernorm", "token_embd_norm"),
        ("transformer.ln_f", "output_norm"),
        ("lm_head", "output"),
    ],
    own: &[("self_attention.query_key_value", "attn_qkv"), ("self_attention.dense", "attn_output")],
    ..FALCON
};

/// Names of a family that GGUF files hold.
fn names(model_type: &str) -> &'static Names {
    match model_type {
        // Exaone 4 and OLMo 2 have no norms before attention and MLP, so Gemma's names are theirs, too.
        "gemma2" | "gemma3_text" | "olmo2" | "olmo3" | "exaone4" => &GEMMA,
        "phi3" => &PHI3,
        "mixtral" => &MIXTRAL,
        "qwen3_moe" => &QWEN_MOE,
        "qwen2_moe" => &QWEN2_MOE,
        "gpt_oss" => &GPT_OSS,
        "deepseek_v3" => &DEEPSEEK,
        "phi" => &PHI,
        "starcoder2" => &STARCODER2,
        "glm4" => &GLM4,
        "gpt2" => &GPT2,
        "gpt_neox" => &GPT_NEOX,
        "falcon" => &FALCON,
        "bloom" => &BLOOM,
        "bert" => &BERT,
        _ => &LLAMA,
    }
}

/// Tensors that are one of several in a file's: what stands before and after their number, and the name of all. The
/// norms of queries and keys that StableLM has for each head; experts.
fn numbered(model_type: &str) -> &'static [(&'static str, &'static str, &'static str)] {
    match model_type {
        "stablelm" => &[
            ("self_attn.q_layernorm.norms.", "", "attn_q_norm"),
            ("self_attn.k_layernorm.norms.", "", "attn_k_norm"),
        ],
        "mixtral" => &[
            ("block_sparse_moe.experts.", ".w1", "ffn_gate_exps"),
            ("block_sparse_moe.experts.", ".w3", "ffn_up_exps"),
            ("block_sparse_moe.experts.", ".w2", "ffn_down_exps"),
        ],
        "qwen2_moe" | "qwen3_moe" | "deepseek_v3" => &[
            ("mlp.experts.", ".gate_proj", "ffn_gate_exps"),
            ("mlp.experts.", ".up_proj", "ffn_up_exps"),
            ("mlp.experts.", ".down_proj", "ffn_down_exps"),
        ],
        _ => &[],
    }
}

/// The GGUF name of a Hugging Face name of a family.
pub fn gguf_name(model_type: &str, hf_name: &str) -> Option<String> {
    let (stem, kind) = match BARE.iter().find(|(name, _)| hf_name.ends_with(name)) {
        Some((_, kind)) => (hf_name, *kind),
        None => hf_name.rsplit_once('.')?,
    };
    if kind != "weight" && kind != "bias" {
        return None;
    }
    let names = names(model_type);
    if let Some((_, name)) = names.outer.iter().find(|(hf, _)| *hf == stem) {
        return Some(format!("{name}.{kind}"));
    }
    let (layer, part) = stem.strip_prefix(names.block)?.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    let pair = names.own.iter().chain(names.parts).find(|(hf, _)| *hf == part);
    let name = match (pair, one_of(model_type, part)) {
        (Some((_, name)), _) => *name,
        (None, Some((name, _))) => name,
        (None, None) => return None,
    };
    Some(format!("blk.{layer}.{name}.{kind}"))
}

/// The Hugging Face name of a GGUF name of a family.
pub fn hf_name(model_type: &str, gguf_name: &str) -> Option<String> {
    let (stem, kind) = gguf_name.rsplit_once('.')?;
    if kind != "weight" && kind != "bias" {
        return None;
    }
    let names = names(model_type);
    if let Some((name, _)) = names.outer.iter().find(|(_, gguf)| *gguf == stem) {
        return Some(format!("{name}.{kind}"));
    }
    let (layer, part) = stem.strip_prefix("blk.")?.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    let (name, _) = names.own.iter().chain(names.parts).find(|(_, gguf)| *gguf == part)?;
    if BARE.iter().any(|(bare, _)| bare == name) {
        return Some(format!("{}{layer}.{name}", names.block));
    }
    Some(format!("{}{layer}.{name}.{kind}", names.block))
}

/// The tensor of several, and which of them it is.
fn one_of(model_type: &str, part: &str) -> Option<(&'static str, usize)> {
    numbered(model_type).iter().find_map(|(before, after, gguf)| {
        Some((*gguf, part.strip_prefix(before)?.strip_suffix(after)?.parse().ok()?))
    })
}

/// How the tensor of a Hugging Face name lies in a GGUF file.
pub fn layout(config: &ModelConfig, hf_name: &str) -> Layout {
    let (heads, kv_heads) = (config.heads, config.kv_heads);
    let has = |part: &str| hf_name.contains(part);
    match config.model_type.as_str() {
        "llama" | "mixtral" | "granite" | "smollm3" if has(".self_attn.q_proj.") => {
            Layout::Interleaved { heads }
        }
        "llama" | "mixtral" | "granite" | "smollm3" if has(".self_attn.k_proj.") => {
            Layout::Interleaved { heads: kv_heads }
        }
        "qwen2_moe" if has(".shared_expert_gate.") => Layout::OneRow,
        "gpt2" if has(".c_") && hf_name.ends_with(".weight") => Layout::Swapped,
        "gpt_neox" | "bloom" | "falcon" if has(".query_key_value.") => Layout::Parts { heads, kv_heads },
        family => {
            let part = hf_name.rsplit_once('.').and_then(|(stem, _)| {
                let (_, part) = stem.strip_prefix(LLAMA.block)?.split_once('.')?;
                one_of(family, part)
            });
            part.map_or(Layout::Same, |(_, row)| Layout::Row(row))
        }
    }
}
