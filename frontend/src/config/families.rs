//! The table of families: each as it differs from Llama.

use super::spec::{Bias, HeadDim, KvHeads, MlpWidth, RopeLayers, Spec, Windows};
use super::{Activation, Norm, Placement, PositionKind, QkNorm};

/// Llama, from which others differ.
const LLAMA: Spec = Spec {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    headed: &[],
    norm: Norm::Rms,
    placement: Placement::Pre,
    qk_norm: QkNorm::None,
    eps: ("rms_norm_eps", 1e-6),
    act: ("hidden_act", Activation::Silu),
    positions: PositionKind::Rotary,
    head_dim: HeadDim::KeyOrRatio,
    kv_heads: KvHeads::KeyOrHeads,
    mlp: MlpWidth::Key,
    windows: Windows::None,
    ropes: RopeLayers::All,
    theta: 10000.0,
    local_theta: None,
    partial_rotary: None,
    interleaved: false,
    outer_original: false,
    neox_names: false,
    biases: [
        Bias::Key("attention_bias", false),
        Bias::Key("attention_bias", false),
        Bias::Key("mlp_bias", false),
    ],
    tied: false,
    max_position: 2048,
    tokens: (Some(1), &[2]),
};

const NO_BIAS: [Bias; 3] = [Bias::Fixed(false); 3];
const ATTENTION_BIAS: [Bias; 3] =
    [Bias::Key("attention_bias", false), Bias::Key("attention_bias", false), Bias::Fixed(false)];
const LAYER: Norm = Norm::Layer { bias: true };

const GEMMA2: Spec = Spec {
    model_type: "gemma2",
    architecture: "Gemma2ForCausalLM",
    norm: Norm::RmsPlusOne,
    placement: Placement::Sandwich,
    act: ("hidden_activation", Activation::GeluTanh),
    head_dim: HeadDim::KeyOr(256),
    kv_heads: KvHeads::Key,
    windows: Windows::Pattern(2),
    biases: ATTENTION_BIAS,
    tied: true,
    max_position: 8192,
    tokens: (Some(2), &[1]),
    ..LLAMA
};

const OLMO2: Spec = Spec {
    model_type: "olmo2",
    architecture: "Olmo2ForCausalLM",
    placement: Placement::Post,
    qk_norm: QkNorm::Projection,
    eps: ("rms_norm_eps", 1e-5),
    biases: ATTENTION_BIAS,
    tokens: (None, &[50279]),
    ..LLAMA
};

const QWEN2: Spec = Spec {
    model_type: "qwen2",
    architecture: "Qwen2ForCausalLM",
    kv_heads: KvHeads::Key,
    windows: Windows::Used,
    biases: [Bias::Fixed(true), Bias::Fixed(false), Bias::Fixed(false)],
    max_position: 32768,
    tokens: (None, &[]),
    ..LLAMA
};

const GPT2: Spec = Spec {
    model_type: "gpt2",
    architecture: "GPT2LMHeadModel",
    norm: LAYER,
    eps: ("layer_norm_epsilon", 1e-5),
    act: ("activation_function", Activation::GeluTanh),
    positions: PositionKind::Learned,
    head_dim: HeadDim::Ratio,
    kv_heads: KvHeads::Heads,
    mlp: MlpWidth::KeyOrFour("n_inner"),
    biases: [Bias::Fixed(true); 3],
    tied: true,
    max_position: 1024,
    tokens: (Some(50256), &[50256]),
    ..LLAMA
};

const COHERE2: Spec = Spec {
    model_type: "cohere2",
    architecture: "Cohere2ForCausalLM",
    norm: Norm::Layer { bias: false },
    placement: Placement::Parallel { norms: 1 },
    eps: ("layer_norm_eps", 1e-5),
    head_dim: HeadDim::Ratio,
    windows: Windows::Pattern(4),
    ropes: RopeLayers::Windowed { or_all: false },
    interleaved: true,
    biases: ATTENTION_BIAS,
    tied: true,
    max_position: 8192,
    tokens: (Some(5), &[255001]),
    ..LLAMA
};

const BERT: Spec = Spec {
    model_type: "bert",
    architecture: "BertModel",
    headed: &[
        "BertForMaskedLM",
        "BertForNextSentencePrediction",
        "BertForPreTraining",
        "BertForQuestionAnswering",
        "BertForSequenceClassification",
        "BertForTokenClassification",
    ],
    eps: ("layer_norm_eps", 1e-12),
    act: ("hidden_act", Activation::Gelu),
    mlp: MlpWidth::Key,
    max_position: 512,
    tokens: (None, &[]),
    ..GPT2
};

const ROBERTA: Spec = Spec {
    model_type: "roberta",
    architecture: "RobertaModel",
    headed: &[
        "RobertaForMaskedLM",
        "RobertaForMultipleChoice",
        "RobertaForQuestionAnswering",
        "RobertaForSequenceClassification",
        "RobertaForTokenClassification",
    ],
    ..BERT
};

/// All families.
pub(super) const SPECS: &[Spec] = &[
    LLAMA,
    Spec {
        model_type: "mistral",
        architecture: "MistralForCausalLM",
        kv_heads: KvHeads::Key,
        windows: Windows::All(Some(4096)),
        biases: NO_BIAS,
        max_position: 131_072,
        ..LLAMA
    },
    QWEN2,
    Spec {
        model_type: "qwen3",
        architecture: "Qwen3ForCausalLM",
        qk_norm: QkNorm::Head,
        head_dim: HeadDim::KeyOr(128),
        biases: ATTENTION_BIAS,
        ..QWEN2
    },
    GEMMA2,
    Spec {
        model_type: "gemma3_text",
        architecture: "Gemma3ForCausalLM",
        qk_norm: QkNorm::Head,
        windows: Windows::Pattern(6),
        theta: 1e6,
        local_theta: Some(Some(10000.0)),
        max_position: 131_072,
        ..GEMMA2
    },
    Spec {
        model_type: "phi3",
        architecture: "Phi3ForCausalLM",
        eps: ("rms_norm_eps", 1e-5),
        windows: Windows::All(None),
        partial_rotary: Some(1.0),
        outer_original: true,
        biases: NO_BIAS,
        max_position: 4096,
        tokens: (Some(1), &[32000]),
        ..LLAMA
    },
    GPT2,
    Spec {
        model_type: "gpt_neox",
        architecture: "GPTNeoXForCausalLM",
        norm: LAYER,
        placement: Placement::Parallel { norms: 2 },
        eps: ("layer_norm_eps", 1e-5),
        act: ("hidden_act", Activation::Gelu),
        head_dim: HeadDim::Ratio,
        kv_heads: KvHeads::Heads,
        partial_rotary: Some(0.25),
        neox_names: true,
        biases: [Bias::Key("attention_bias", true), Bias::Key("attention_bias", true), Bias::Fixed(true)],
        tokens: (Some(0), &[2]),
        ..LLAMA
    },
    OLMO2,
    Spec {
        model_type: "olmo3",
        architecture: "Olmo3ForCausalLM",
        windows: Windows::Pattern(4),
        theta: 500_000.0,
        local_theta: Some(None),
        ..OLMO2
    },
    Spec {
        model_type: "exaone4",
        architecture: "Exaone4ForCausalLM",
        placement: Placement::Post,
        qk_norm: QkNorm::Head,
        eps: ("rms_norm_eps", 1e-5),
        kv_heads: KvHeads::Key,
        windows: Windows::Pattern(4),
        ropes: RopeLayers::Windowed { or_all: true },
        biases: NO_BIAS,
        tokens: (Some(0), &[2]),
        ..LLAMA
    },
    Spec {
        model_type: "bloom",
        architecture: "BloomForCausalLM",
        act: ("hidden_act", Activation::GeluTanh),
        positions: PositionKind::Alibi,
        mlp: MlpWidth::Four,
        max_position: 2048,
        tokens: (Some(1), &[2]),
        ..GPT2
    },
    Spec {
        model_type: "falcon",
        architecture: "FalconForCausalLM",
        act: ("activation", Activation::Gelu),
        positions: PositionKind::Rotary,
        kv_heads: KvHeads::Falcon,
        mlp: MlpWidth::KeyOrFour("ffn_hidden_size"),
        biases: [Bias::Key("bias", false); 3],
        max_position: 2048,
        tokens: (Some(11), &[11]),
        ..GPT2
    },
    Spec { model_type: "granite", architecture: "GraniteForCausalLM", ..LLAMA },
    Spec {
        model_type: "smollm3",
        architecture: "SmolLM3ForCausalLM",
        kv_heads: KvHeads::Key,
        windows: Windows::NoRope,
        ropes: RopeLayers::Listed,
        theta: 2e6,
        tied: true,
        max_position: 32768,
        tokens: (Some(128_000), &[128_001]),
        ..LLAMA
    },
    Spec {
        model_type: "starcoder2",
        architecture: "Starcoder2ForCausalLM",
        norm: LAYER,
        eps: ("norm_epsilon", 1e-5),
        act: ("hidden_act", Activation::GeluTanh),
        kv_heads: KvHeads::Key,
        windows: Windows::All(None),
        biases: [Bias::Key("use_bias", true); 3],
        tied: true,
        max_position: 4096,
        tokens: (Some(50256), &[50256]),
        ..LLAMA
    },
    Spec {
        model_type: "stablelm",
        architecture: "StableLmForCausalLM",
        norm: LAYER,
        eps: ("layer_norm_eps", 1e-5),
        head_dim: HeadDim::Ratio,
        kv_heads: KvHeads::Key,
        partial_rotary: Some(0.25),
        biases: [Bias::Key("use_qkv_bias", false), Bias::Fixed(false), Bias::Fixed(false)],
        max_position: 4096,
        tokens: (Some(0), &[0]),
        ..LLAMA
    },
    Spec {
        model_type: "phi",
        architecture: "PhiForCausalLM",
        norm: LAYER,
        placement: Placement::Parallel { norms: 1 },
        eps: ("layer_norm_eps", 1e-5),
        act: ("hidden_act", Activation::GeluTanh),
        partial_rotary: Some(0.5),
        biases: [Bias::Fixed(true); 3],
        ..LLAMA
    },
    COHERE2,
    Spec {
        model_type: "glm4",
        architecture: "Glm4ForCausalLM",
        placement: Placement::Sandwich,
        eps: ("rms_norm_eps", 1.5625e-7),
        head_dim: HeadDim::KeyOr(128),
        kv_heads: KvHeads::Key,
        partial_rotary: Some(0.5),
        interleaved: true,
        biases: [Bias::Key("attention_bias", true), Bias::Fixed(false), Bias::Fixed(false)],
        max_position: 131_072,
        tokens: (None, &[151_329, 151_336, 151_338]),
        ..LLAMA
    },
    Spec {
        model_type: "mixtral",
        architecture: "MixtralForCausalLM",
        eps: ("rms_norm_eps", 1e-5),
        kv_heads: KvHeads::Key,
        windows: Windows::All(None),
        theta: 1e6,
        biases: NO_BIAS,
        max_position: 131_072,
        ..LLAMA
    },
    Spec {
        model_type: "qwen2_moe",
        architecture: "Qwen2MoeForCausalLM",
        windows: Windows::None,
        biases: [Bias::Key("qkv_bias", true), Bias::Fixed(false), Bias::Fixed(false)],
        ..QWEN2
    },
    Spec {
        model_type: "qwen3_moe",
        architecture: "Qwen3MoeForCausalLM",
        qk_norm: QkNorm::Head,
        windows: Windows::None,
        biases: ATTENTION_BIAS,
        ..QWEN2
    },
    Spec {
        model_type: "gpt_oss",
        architecture: "GptOssForCausalLM",
        eps: ("rms_norm_eps", 1e-5),
        head_dim: HeadDim::KeyOr(64),
        kv_heads: KvHeads::Key,
        windows: Windows::Alternate(128),
        theta: 150_000.0,
        biases: [Bias::Key("attention_bias", true), Bias::Key("attention_bias", true), Bias::Fixed(true)],
        max_position: 131_072,
        tokens: (None, &[]),
        ..LLAMA
    },
    Spec {
        model_type: "deepseek_v3",
        architecture: "DeepseekV3ForCausalLM",
        head_dim: HeadDim::Rotated(64),
        interleaved: true,
        biases: ATTENTION_BIAS,
        max_position: 4096,
        tokens: (Some(0), &[1]),
        ..LLAMA
    },
    BERT,
    ROBERTA,
    Spec {
        model_type: "xlm-roberta",
        architecture: "XLMRobertaModel",
        headed: &[
            "XLMRobertaForMaskedLM",
            "XLMRobertaForMultipleChoice",
            "XLMRobertaForQuestionAnswering",
            "XLMRobertaForSequenceClassification",
            "XLMRobertaForTokenClassification",
        ],
        ..ROBERTA
    },
    Spec {
        model_type: "modernbert",
        architecture: "ModernBertModel",
        headed: &[
            "ModernBertForMaskedLM",
            "ModernBertForMultipleChoice",
            "ModernBertForQuestionAnswering",
            "ModernBertForSequenceClassification",
            "ModernBertForTokenClassification",
        ],
        eps: ("norm_eps", 1e-5),
        act: ("hidden_activation", Activation::Gelu),
        positions: PositionKind::Rotary,
        windows: Windows::Cycle(3),
        theta: 160_000.0,
        local_theta: Some(Some(10000.0)),
        biases: [
            Bias::Key("attention_bias", false),
            Bias::Key("attention_bias", false),
            Bias::Key("mlp_bias", false),
        ],
        max_position: 8192,
        ..BERT
    },
];

impl Spec {
    /// Whether `architectures` may name this class.
    pub fn is_architecture(&self, class: &str) -> bool {
        std::iter::once(&self.architecture).chain(self.headed).any(|known| known.eq_ignore_ascii_case(class))
    }
}
