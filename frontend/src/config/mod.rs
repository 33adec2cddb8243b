//! The model's configuration, normalised: one spelling, whatever the file's.
//!
//! [`ModelConfig`] is read from a Hugging Face `config.json` (older and newer spelling, see [`hf`]) or
//! from GGUF metadata (see [`gguf`]). Models read only this. A value that changes the result and is not
//! handled is a named error; keys that Weft does not know are listed in [`ModelConfig::unknown`].

mod fields;
pub mod gguf;
pub mod hf;
mod keys;

use crate::error::{Error, Result};
use serde::Serialize;
use std::path::Path;
use weft_ir::dtype::DType;

/// The values of `model_type` that are supported.
pub const MODEL_TYPES: &[&str] = &["llama"];

/// Largest value of any dimension in a config: keeps products of two in range everywhere.
const MAX_DIM: usize = 1 << 31;

/// Configuration of a decoder.
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
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Added to the mean square under the root.
    pub rms_norm_eps: f64,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Positions that the model was trained for.
    pub max_position: usize,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether the four attention projections have biases.
    pub attention_bias: bool,
    /// Whether the three MLP projections have biases.
    pub mlp_bias: bool,
    /// The MLP's activation.
    pub hidden_act: Activation,
    /// Type that the weights are meant for, where the file says it.
    pub dtype: Option<DType>,
    /// Token that begins a text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a generation.
    pub eos_token_ids: Vec<u32>,
    /// Token that fills up a batch.
    pub pad_token_id: Option<u32>,
    /// Keys with a value that Weft does not know: worth a warning.
    pub unknown: Vec<String>,
}

/// Rotary position embedding over the whole head: pair `i` of `head_dim / 2` turns by
/// `position · theta^(−2i / head_dim)`, changed by the scaling.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rope {
    /// Base.
    pub theta: f64,
    /// Change of the frequencies.
    pub scaling: RopeScaling,
}

/// Change of the rotary frequencies (`transformers/modeling_rope_utils.py`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum RopeScaling {
    /// As they are.
    None,
    /// Divided by the factor.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3: long wavelengths divided by the factor, short ones kept, a blend between.
    Llama3 {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// Wavelengths above `original_max_position / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Positions before the extension.
        original_max_position: usize,
    },
    /// Divided by one explicit factor for each pair, `head_dim / 2` of them (GGUF `rope_freqs.weight`).
    Factors(Vec<f32>),
}

/// Activation of the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
}

impl Activation {
    /// The activation of this Hugging Face name.
    pub fn parse(name: &str) -> Option<Activation> {
        match name {
            "silu" | "swish" => Some(Activation::Silu),
            _ => None,
        }
    }

    /// Its Hugging Face name.
    pub fn name(self) -> &'static str {
        match self {
            Activation::Silu => "silu",
        }
    }
}

impl ModelConfig {
    /// Checks what must hold between the fields, whatever file they came from.
    fn check(&self, path: &Path) -> Result<()> {
        let dims = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.layers),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position),
        ];
        let wrong = |field: &str, problem: String| {
            Err(Error::malformed(path, field, problem, "correct the checkpoint's configuration"))
        };
        for (field, value) in dims {
            if value == 0 || value > MAX_DIM {
                return wrong(field, format!("{value} is not between 1 and {MAX_DIM}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let problem = format!("{} does not divide the {} query heads", self.kv_heads, self.heads);
            return wrong("num_key_value_heads", problem);
        }
        if !self.head_dim.is_multiple_of(2) {
            return wrong("head_dim", format!("{} is odd: rotary embedding turns pairs", self.head_dim));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            return wrong("rms_norm_eps", format!("{} is not a small positive number", self.rms_norm_eps));
        }
        if !(self.rope.theta.is_finite() && self.rope.theta > 0.0) {
            return wrong("rope_theta", format!("{} is not a positive number", self.rope.theta));
        }
        let ok = |f: f64| f.is_finite() && f > 0.0;
        match &self.rope.scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } if ok(*factor) => {}
            RopeScaling::Linear { factor } => {
                return wrong("rope scaling factor", format!("{factor} is not a positive number"));
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
                if !(ok(*factor) && ok(*low_freq_factor) && *high_freq_factor > *low_freq_factor)
                    || *original_max_position == 0
                {
                    let problem = "llama3 needs factor > 0, 0 < low_freq_factor < high_freq_factor and \
                                   original_max_position_embeddings > 0";
                    return wrong("rope scaling", problem.to_owned());
                }
            }
            RopeScaling::Factors(factors) => {
                if factors.len() != self.head_dim / 2 || !factors.iter().all(|&f| ok(f64::from(f))) {
                    let problem = format!(
                        "{} factors for {} pairs, or one that is not a positive number",
                        factors.len(),
                        self.head_dim / 2
                    );
                    return wrong("rope factors", problem);
                }
            }
        }
        Ok(())
    }
}
