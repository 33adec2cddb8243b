//! The model's configuration, normalised: one spelling, whatever the file's.
//!
//! [`ModelConfig`] is read from a Hugging Face `config.json` (older and newer spelling, see [`hf`]) or
//! from GGUF metadata (see [`gguf`]). Models read only this. A value that changes the result and is not
//! handled is a named error; so is a key that Weft does not know, unless its value is empty
//! ([`ModelConfig::unknown`]) or the user says to pass it over ([`ModelConfig::ignored`]).

mod activation;
mod composite;
mod experts;
mod families;
mod fields;
pub mod gguf;
mod harmless;
pub mod hf;
mod keys;
mod layers;
mod particular;
pub mod pooling;
mod quantization;
mod rope;
mod ropes;
mod spec;
mod unread;

pub use activation::Activation;
pub use experts::{Clamped, Experts, Groups, Latent, Scoring, Shared};
pub use quantization::Quantization;
pub use rope::{BOUNDED as BOUNDED_ROPE_TYPES, KINDS as ROPE_TYPES};
pub use rope::{Dynamic, Rope, RopeScaling};

use crate::error::{Error, Result};
use serde::Serialize;
use std::path::Path;
use weft_ir::dtype::DType;

/// The values of `model_type` that are supported.
pub const MODEL_TYPES: &[&str] = &[
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "phi3",
    "gpt2",
    "gpt_neox",
    "olmo2",
    "olmo3",
    "exaone4",
    "bloom",
    "falcon",
    "granite",
    "smollm3",
    "starcoder2",
    "stablelm",
    "phi",
    "cohere2",
    "glm4",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "gpt_oss",
    "deepseek_v3",
    "bert",
    "roberta",
    "xlm-roberta",
    "modernbert",
];

/// Largest value of any dimension in a config: keeps products of two in range everywhere.
const MAX_DIM: usize = 1 << 31;
/// Largest number of layers and heads, and width of a head: tables are made of them before any weight is
/// looked at.
const MAX_COUNT: usize = 1 << 16;

/// Configuration of a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelConfig {
    /// Family, as Hugging Face names it; one of [`MODEL_TYPES`].
    pub model_type: String,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Blocks behind the last that a file may hold, which draft tokens: they are not built.
    pub draft_layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Kind of the norms.
    pub norm: Norm,
    /// Added to the mean square (or variance) under the root.
    pub norm_eps: f64,
    /// Where the norms are, and what is summed.
    pub placement: Placement,
    /// Norm of queries and keys.
    pub qk_norm: QkNorm,
    /// Where positions enter.
    pub positions: PositionKind,
    /// Rotary position embedding; of no meaning where [`ModelConfig::positions`] is another kind.
    pub rope: Rope,
    /// Rotary position embedding of layers with [`LayerRope::Local`].
    pub local_rope: Option<Rope>,
    /// Each layer's attention: `layers` of them.
    pub attention: Vec<LayerAttention>,
    /// Scores are multiplied by this.
    pub attention_scale: f64,
    /// Scores s become c·tanh(s / c).
    pub attention_softcap: Option<f64>,
    /// Embeddings are multiplied by this.
    pub embedding_multiplier: f64,
    /// Results of attention and MLP are multiplied by this before they are added.
    pub residual_multiplier: f64,
    /// Logits are multiplied by this.
    pub logit_multiplier: f64,
    /// Logits s become c·tanh(s / c).
    pub logit_softcap: Option<f64>,
    /// Whether the residual is the norm's result, not its input (Bloom's
    /// `apply_residual_connection_post_layernorm`).
    pub residual_after_norm: bool,
    /// Positions that can be run: what the model was trained for, and no more than its rope scaling is
    /// implemented for.
    pub max_position: usize,
    /// Row of the table of learned positions that position 0 has.
    pub position_offset: usize,
    /// Rows of the table of token types (segments) that are embedded; 0 where there is none.
    pub type_vocab_size: usize,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether the projections of queries, keys and values have biases.
    pub attention_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub output_bias: bool,
    /// Whether the MLP's projections have biases.
    pub mlp_bias: bool,
    /// The MLP's activation.
    pub hidden_act: Activation,
    /// Mixture of experts in place of the MLP of some layers.
    pub experts: Option<Experts>,
    /// Latent attention in place of grouped-query attention.
    pub latent: Option<Latent>,
    /// Whether each head has a stored score that no key belongs to, in its softmax (Xiao et al. 2023).
    pub sinks: bool,
    /// Type that the weights are meant for, where the file says it.
    pub dtype: Option<DType>,
    /// How a safetensors checkpoint stores some of its weights in fewer bits. (In GGUF each tensor says it.)
    pub quantization: Option<Quantization>,
    /// Token that begins a text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a generation.
    pub eos_token_ids: Vec<u32>,
    /// Token that fills up a batch.
    pub pad_token_id: Option<u32>,
    /// Keys that Weft does not know, whose values are empty: worth a warning.
    pub unknown: Vec<String>,
    /// Keys that Weft does not know, which the user said to pass over.
    pub ignored: Vec<String>,
}

/// Kind of a norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Norm {
    /// RMSNorm (Zhang & Sennrich 2019): x / rms(x) · w.
    Rms,
    /// Gemma's: x / rms(x) · (1 + w).
    RmsPlusOne,
    /// LayerNorm (Ba et al. 2016): (x − mean) / std · w, + b where `bias` is set.
    Layer {
        /// Whether it has a bias.
        bias: bool,
    },
}

/// Where the norms of a block are, and what is summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Placement {
    /// x + f(norm(x)), attention then MLP.
    Pre,
    /// x + norm(f(x)), attention then MLP.
    Post,
    /// x + norm(f(norm(x))), attention then MLP.
    Sandwich,
    /// x + attention(norm(x)) + mlp(norm'(x)) (Wang & Komatsuzaki 2021).
    Parallel {
        /// 1: one norm for both; 2: one each.
        norms: u8,
    },
}

/// Norm of queries and keys (Dehghani et al. 2023), before they are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum QkNorm {
    /// None.
    None,
    /// Of each head, one weight for all heads.
    Head,
    /// Of each head, a weight for each.
    EachHead,
    /// Of the whole projection.
    Projection,
}

/// Where positions enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum PositionKind {
    /// Queries and keys are rotated.
    Rotary,
    /// A learned embedding is added to the token's.
    Learned,
    /// Scores are biased by distance (ALiBi, Press et al. 2022).
    Alibi,
    /// Falcon's: biases in bf16, by the key's position alone, and added before the scores are scaled.
    AlibiUnscaled,
}

/// What a layer's attention sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LayerAttention {
    /// Keys that a token sees, itself among them; `None`: all before it. In an encoder as many after it, too.
    pub window: Option<usize>,
    /// Rotation of its queries and keys.
    pub rope: LayerRope,
}

/// Rotation of a layer's queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum LayerRope {
    /// None.
    None,
    /// [`ModelConfig::rope`].
    Global,
    /// [`ModelConfig::local_rope`].
    Local,
}

impl ModelConfig {
    /// Whether the rows of queries and keys are stored for pairs of neighbours.
    pub fn interleaved(&self) -> bool {
        self.positions == PositionKind::Rotary && self.rope.interleaved
    }

    /// Longest context that gives the model's result, whatever the user asks for: positions are a table's
    /// rows, or the rope's scaling depends on the length.
    pub fn position_limit(&self) -> Option<usize> {
        self.position_bound().map(|_| self.max_position)
    }

    /// Why [`ModelConfig::position_limit`] is one.
    pub fn position_bound(&self) -> Option<&'static str> {
        let ropes = std::iter::once(&self.rope).chain(&self.local_rope);
        // A base that grows is of any length.
        let bounds = |d: &Dynamic| !matches!(d, Dynamic::Base { grows: true, .. });
        let dynamic = ropes.filter_map(|rope| rope.dynamic).find(bounds);
        match (self.positions, &self.rope.scaling, dynamic) {
            (PositionKind::Learned, ..) => Some("they are learned, one by one"),
            (PositionKind::Alibi | PositionKind::AlibiUnscaled, ..) => None,
            (PositionKind::Rotary, RopeScaling::LongRope { long: true, .. }, _) => {
                Some("rope_type longrope has factors for no more")
            }
            (PositionKind::Rotary, RopeScaling::LongRope { long: false, .. }, _) => {
                Some("in a longer context rope_type longrope takes other factors")
            }
            (PositionKind::Rotary, _, Some(Dynamic::Base { .. })) => {
                Some("in a longer context rope_type dynamic takes other bases")
            }
            (PositionKind::Rotary, _, Some(Dynamic::Chunks)) => Some(
                "a longer context is of several chunks (dual_chunk_attention_config), which Weft does not do",
            ),
            (PositionKind::Rotary, _, None) => None,
        }
    }

    /// Prepares for sequences of so many tokens. Where that is more than LongRoPE's original context, all positions take
    /// its long factors, in shorter sequences, too, as in vLLM and llama.cpp. (Hugging Face takes the short ones until a
    /// sequence is longer, and then computes its keys again.) A dynamic base follows the length of each sequence.
    pub fn reach(&mut self, tokens: usize) {
        for rope in std::iter::once(&mut self.rope).chain(&mut self.local_rope) {
            if let Some(Dynamic::Base { original, grows, .. }) = &mut rope.dynamic
                && tokens > *original
            {
                *grows = true;
            }
        }
        if let RopeScaling::LongRope { long_factor, long, extended_max_position, .. } = &mut self.rope.scaling
            && tokens > self.max_position
            && !long_factor.is_empty()
        {
            *long = true;
            self.max_position = self.max_position.max(*extended_max_position);
        }
    }

    /// Checks what must hold between the fields, whatever file they came from.
    fn check(&self, path: &Path) -> Result<()> {
        let dims = [
            ("vocab_size", self.vocab_size, MAX_DIM),
            ("hidden_size", self.hidden_size, MAX_DIM),
            ("intermediate_size", self.intermediate_size, MAX_DIM),
            ("num_hidden_layers", self.layers, MAX_COUNT),
            ("num_attention_heads", self.heads, MAX_COUNT),
            ("num_key_value_heads", self.kv_heads, MAX_COUNT),
            ("head_dim", self.head_dim, MAX_COUNT),
            ("max_position_embeddings", self.max_position, MAX_DIM),
        ];
        let wrong = |field: &str, problem: String| {
            Err(Error::malformed(path, field, problem, "correct the checkpoint's configuration"))
        };
        if self.type_vocab_size > MAX_DIM {
            return wrong("type_vocab_size", format!("{} is more than {MAX_DIM}", self.type_vocab_size));
        }
        for (field, value, most) in dims {
            if value == 0 || value > most {
                return wrong(field, format!("{value} is not between 1 and {most}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let problem = format!("{} does not divide the {} query heads", self.kv_heads, self.heads);
            return wrong("num_key_value_heads", problem);
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return wrong("rms_norm_eps", format!("{} is not a small positive number", self.norm_eps));
        }
        let numbers = [
            ("attention scale", Some(self.attention_scale)),
            ("embedding multiplier", Some(self.embedding_multiplier)),
            ("residual multiplier", Some(self.residual_multiplier)),
            ("logit scale", Some(self.logit_multiplier)),
            ("attn_logit_softcapping", self.attention_softcap),
            ("final_logit_softcapping", self.logit_softcap),
        ];
        for (field, number) in numbers {
            if let Some(x) = number.filter(|x| !(x.is_finite() && *x > 0.0)) {
                return wrong(field, format!("{x} is not a positive number"));
            }
        }
        if self.attention.iter().any(|a| a.window == Some(0)) {
            return wrong("sliding_window", "0 keys are visible".to_owned());
        }
        if self.positions == PositionKind::Rotary {
            self.rope.check(path)?;
            self.local_rope.as_ref().map_or(Ok(()), |r| r.check(path))?;
        }
        Ok(())
    }
}
