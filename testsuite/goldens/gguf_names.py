"""Names of tensors in GGUF files by the `gguf` package's own map: testsuite/fixtures/gguf/names.json.

    pip install gguf==0.19.0
    python gguf_names.py ../fixtures/gguf/names.json
"""

import json
import sys

from gguf import MODEL_ARCH, get_tensor_name_map

LLAMA = [
    "input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
    "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
]  # fmt: skip
OUTER = ["model.embed_tokens", "model.norm", "lm_head"]
POST = ["post_attention_layernorm", "post_feedforward_layernorm", "self_attn.q_norm", "self_attn.k_norm"]
NEOX = ["input_layernorm", "post_attention_layernorm", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]
HF = "model.layers.{}."

# Family: architecture, stem of a block, parts of a block, other tensors.
FAMILIES = {
    "llama": ("LLAMA", HF, LLAMA, OUTER),
    "qwen2": ("QWEN2", HF, LLAMA, OUTER),
    "qwen3": ("QWEN3", HF, LLAMA + ["self_attn.q_norm", "self_attn.k_norm"], OUTER),
    "gemma2": ("GEMMA2", HF, LLAMA + ["pre_feedforward_layernorm", "post_feedforward_layernorm"], OUTER[:2]),
    "gemma3_text": ("GEMMA3", HF, LLAMA + POST[1:] + ["pre_feedforward_layernorm"], OUTER[:2]),
    "mixtral": ("LLAMA", HF, LLAMA[:6] + [f"block_sparse_moe.{p}" for p in ["gate", "experts.w1", "experts.w2", "experts.w3"]],
                OUTER),
    "qwen3_moe": ("QWEN3MOE", HF, LLAMA[:6] + POST[2:] + [f"mlp.{p}" for p in ["gate", "experts.gate_proj",
                  "experts.up_proj", "experts.down_proj"]], OUTER),
    "qwen2_moe": ("QWEN2MOE", HF, LLAMA[:6] + ["mlp.gate", "mlp.shared_expert_gate"] + [f"mlp.{e}.{p}_proj" for e in
                  ["experts", "shared_expert"] for p in ["gate", "up", "down"]], OUTER),
    "gpt_oss": ("GPT_OSS", HF, LLAMA[:6] + ["self_attn.sinks", "mlp.router"] + [f"mlp.experts.{p}_proj" for p in
                ["gate", "up", "down"]], OUTER),
    "deepseek_v3": ("DEEPSEEK2", HF, LLAMA[:2] + [f"self_attn.{p}" for p in ["q_proj", "q_a_proj", "q_a_layernorm",
                    "q_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "k_b_proj", "v_b_proj", "o_proj"]]
                    + LLAMA[6:] + ["mlp.gate"] + [f"mlp.{e}.{p}_proj" for e in ["experts", "shared_experts"]
                    for p in ["gate", "up", "down"]] + ["mlp.gate.e_score_correction"], OUTER),
    "granite": ("GRANITE", HF, LLAMA, OUTER),
    "smollm3": ("SMOLLM3", HF, LLAMA, OUTER),
    "olmo2": ("OLMO2", HF, LLAMA[2:] + POST, OUTER),
    "olmo3": ("OLMO2", HF, LLAMA[2:] + POST, OUTER),
    "exaone4": ("EXAONE4", HF, LLAMA[2:] + POST, OUTER),
    "starcoder2": ("STARCODER2", HF, LLAMA[:6] + ["mlp.c_fc", "mlp.c_proj"], OUTER),
    "stablelm": ("STABLELM", HF, LLAMA + ["self_attn.q_layernorm", "self_attn.k_layernorm"], OUTER),
    "cohere2": ("COHERE2", HF, [n for n in LLAMA if "post" not in n], OUTER[:2]),
    "glm4": ("GLM4", HF, [n for n in LLAMA if "gate" not in n and "up" not in n]
             + ["post_self_attn_layernorm", "post_mlp_layernorm", "mlp.gate_up_proj"], OUTER),
    "phi3": ("PHI3", HF, LLAMA[:2] + ["self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"], OUTER),
    "phi": ("PHI2", HF, ["input_layernorm"] + LLAMA[2:5] + ["self_attn.dense", "mlp.fc1", "mlp.fc2"],
            ["model.embed_tokens", "model.final_layernorm", "lm_head"]),
    "gpt2": ("GPT2", "transformer.h.{}.", ["ln_1", "ln_2", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
             ["transformer.wte", "transformer.wpe", "transformer.ln_f"]),
    "gpt_neox": ("GPTNEOX", "gpt_neox.layers.{}.", NEOX + ["attention.query_key_value", "attention.dense"],
                 ["gpt_neox.embed_in", "gpt_neox.final_layer_norm", "embed_out"]),
    "falcon": ("FALCON", "transformer.h.{}.", ["input_layernorm", "ln_attn", "ln_mlp", "self_attention.query_key_value",
               "self_attention.dense"] + NEOX[2:], ["transformer.word_embeddings", "transformer.ln_f", "lm_head"]),
    "bloom": ("BLOOM", "transformer.h.{}.", NEOX + ["self_attention.query_key_value", "self_attention.dense"],
              ["transformer.word_embeddings", "transformer.word_embeddings_layernorm", "transformer.ln_f"]),
    "bert": ("BERT", "encoder.layer.{}.", [f"attention.self.{p}" for p in ["query", "key", "value"]]
             + [f"{p}.{q}" for p in ["attention.output", "output"] for q in ["dense", "LayerNorm"]] + ["intermediate.dense"],
             [f"embeddings.{p}" for p in ["word_embeddings", "token_type_embeddings", "position_embeddings", "LayerNorm"]]),
}  # fmt: skip


def main(path):
    out = {}
    for family, (arch, stem, parts, outer) in FAMILIES.items():
        names = get_tensor_name_map(getattr(MODEL_ARCH, arch), 1)
        out[family] = {}
        for hf in outer + [stem.format(0) + p for p in parts]:
            # The converter takes this away from BLOOM's names before it looks them up.
            asked = hf.removeprefix("transformer.") if family == "bloom" else hf
            out[family][hf] = names.get_name(asked)
            assert out[family][hf], (family, hf)
    with open(path, "w") as f:
        json.dump(out, f, indent=0)
        f.write("\n")


main(sys.argv[1])
