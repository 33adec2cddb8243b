//! What of each family's variations is supported: what `weft models` says.

/// The variations of a family that is supported.
pub fn note(model_type: &str) -> Option<&'static str> {
    Some(match model_type {
        "llama" => "RMSNorm, grouped queries, gated MLP; attention_bias, mlp_bias; no sliding window",
        "mistral" => "a sliding window in all layers, or none; also the text part of mistral3",
        "qwen2" => "biases of queries, keys and values; windows by use_sliding_window and layer_types",
        "qwen3" => "norms of query and key heads; attention_bias; windows as qwen2",
        "gemma2" => "norms before and after (1 + w), soft-caps, scaled embeddings, windows by layer",
        "gemma3_text" => {
            "as gemma2, with norms of query and key heads and another rope in layers with windows; text alone, causal; also the text part of gemma3"
        }
        "phi3" => "merged projections, partial rotary, LongRoPE, a sliding window",
        "gpt2" => "learned positions, LayerNorm, scale_attn_weights; no scale_attn_by_inverse_layer_idx",
        "gpt_neox" => "parallel or sequential residual, partial rotary, attention_bias",
        "olmo2" => "norms behind attention and MLP, and of whole queries and keys; attention_bias",
        "olmo3" => "as olmo2, with windows by layer; scaled rope in the others alone",
        "exaone4" => {
            "norms behind attention and MLP, and of heads; windows by layer, with rope in these alone"
        }
        "bloom" => "ALiBi, a norm of the embedding, apply_residual_connection_post_layernorm",
        "falcon" => {
            "both decoders, one or two norms (the older one: one), parallel or sequential, rope or ALiBi, bias"
        }
        "granite" => {
            "multipliers of embedding, residual, attention and logits; attention_bias, mlp_bias; no sliding window"
        }
        "smollm3" => "layers without rope; windows by layer",
        "starcoder2" => "LayerNorm, plain MLP, use_bias, a sliding window; norm_type layer_norm alone",
        "stablelm" => {
            "LayerNorm, partial rotary, parallel or sequential residual, norms of heads, use_qkv_bias"
        }
        "phi" => "parallel attention and MLP, partial rotary, biases, norms of heads",
        "cohere2" => {
            "parallel attention and MLP, LayerNorm without bias, rope in layers with windows alone, logit_scale"
        }
        "glm4" => "norms before and after, partial rotary of neighbours, merged gate and up, attention_bias",
        "mixtral" => "softmax router, weights normalised over the chosen experts; a sliding window",
        "qwen2_moe" => {
            "softmax router, weights normalised or not; dense layers by decoder_sparse_step and mlp_only_layers; \
             shared expert with gate; no sliding window"
        }
        "qwen3_moe" => {
            "softmax router, weights normalised or not; dense layers by decoder_sparse_step and mlp_only_layers; \
             norms of query and key heads; no shared expert, no sliding window"
        }
        "gpt_oss" => "attention sinks, YaRN, alternating windows, expert biases, limited SwiGLU",
        "deepseek_v3" => {
            "latent attention with latent cache; sigmoid router with correction bias and groups, shared experts, \
             dense first layers; no multi-token prediction"
        }
        "bert" => {
            "absolute positions, token types; heads of other tasks are left out; no decoder, no cross-attention"
        }
        "roberta" | "xlm-roberta" => {
            "positions behind the padding's; heads of other tasks are left out; no cross-attention"
        }
        "modernbert" => {
            "windows by layer with a rope of their own, gated MLP, biases; heads of other tasks are left out"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::note;
    use crate::models::{ENCODERS, FAMILIES};

    #[test]
    fn every_family_says_what_is_supported() {
        let silent: Vec<&str> =
            FAMILIES.iter().chain(ENCODERS).map(|f| f.model_type).filter(|m| note(m).is_none()).collect();
        assert!(silent.is_empty(), "{silent:?}");
    }
}
