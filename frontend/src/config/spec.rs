//! What is particular to a model family: names and defaults of its settings, as in transformers'
//! `configuration_*.py`, and what its modelling code fixes.

use super::families::SPECS;
use super::{Activation, Norm, Placement, PositionKind, QkNorm};

/// A family's settings.
#[derive(Clone, Copy)]
pub(super) struct Spec {
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// The class that is supported, as `architectures` names it.
    pub architecture: &'static str,
    /// Other classes that have the same model below a head that Weft leaves out.
    pub headed: &'static [&'static str],
    /// Kind of the norms.
    pub norm: Norm,
    /// Where the norms are.
    pub placement: Placement,
    /// Norm of queries and keys.
    pub qk_norm: QkNorm,
    /// Key and default of the norms' epsilon.
    pub eps: (&'static str, f64),
    /// Key and default of the activation.
    pub act: (&'static str, Activation),
    /// Where positions enter.
    pub positions: PositionKind,
    /// How the width of a head is known.
    pub head_dim: HeadDim,
    /// How the number of key heads is known.
    pub kv_heads: KvHeads,
    /// How the width of the MLP is known.
    pub mlp: MlpWidth,
    /// Which layers have a window.
    pub windows: Windows,
    /// Which layers have a rotary embedding.
    pub ropes: RopeLayers,
    /// Rotary base, where the file does not say.
    pub theta: f64,
    /// Rotary base of sliding-window layers where they have their own; `Some(None)`: by default the same.
    pub local_theta: Option<Option<f64>>,
    /// Default of the partial rotary factor, where it is read.
    pub partial_rotary: Option<f64>,
    /// Whether rotary pairs are neighbours.
    pub interleaved: bool,
    /// Whether `original_max_position_embeddings` stands outside the rope's object and rules.
    pub outer_original: bool,
    /// Whether the rope's keys are `rotary_pct` and `rotary_emb_base`.
    pub neox_names: bool,
    /// Biases: of queries, keys and values; of the attention's output; of the MLP.
    pub biases: [Bias; 3],
    /// Whether the head is the embedding, where the file does not say.
    pub tied: bool,
    /// Largest number of positions, where the file does not say.
    pub max_position: usize,
    /// Special tokens, where the file does not say: beginning, end.
    pub tokens: (Option<u32>, &'static [u32]),
}

/// A bias: by the family's code or by a key with a default.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Bias {
    Fixed(bool),
    Key(&'static str, bool),
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum HeadDim {
    /// `head_dim`, else hidden size over heads.
    KeyOrRatio,
    /// `head_dim`, else this.
    KeyOr(usize),
    /// Hidden size over heads, whatever else the file says.
    Ratio,
    /// `qk_rope_head_dim`, else this: the rotated part of a head of latent attention.
    Rotated(usize),
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum KvHeads {
    /// `num_key_value_heads`, else as many as query heads.
    KeyOrHeads,
    /// `num_key_value_heads`.
    Key,
    /// As many as query heads.
    Heads,
    /// By `new_decoder_architecture`, `multi_query` and `num_kv_heads`.
    Falcon,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum MlpWidth {
    /// `intermediate_size`.
    Key,
    /// This key, else four times the hidden size.
    KeyOrFour(&'static str),
    /// Four times the hidden size.
    Four,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Windows {
    /// None, and settings that ask for one are refused.
    None,
    /// `sliding_window` (with this default) on all layers.
    All(Option<usize>),
    /// Where `use_sliding_window` is set: `layer_types`, else layers from `max_window_layers` on.
    Used,
    /// `layer_types`, else all layers but every n-th.
    Pattern(usize),
    /// `layer_types`, else all layers but the first of every n.
    Cycle(usize),
    /// `layer_types`, else every other layer from the first; with this window by default.
    Alternate(usize),
    /// Where `use_sliding_window` is set: `layer_types`, else the layers without rope.
    NoRope,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum RopeLayers {
    /// All.
    All,
    /// Those with a window.
    Windowed {
        /// Whether all have it where the file gives no window.
        or_all: bool,
    },
    /// `no_rope_layers`, else all but every `no_rope_layer_interval`-th.
    Listed,
}

/// The family of a `model_type`.
pub(super) fn find(model_type: &str) -> Option<&'static Spec> {
    SPECS.iter().find(|s| s.model_type == model_type)
}
