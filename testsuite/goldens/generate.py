#!/usr/bin/env python3
"""Makes tiny random checkpoints with golden outputs, in the layout of testsuite/fixtures/tiny (see fixtures' README).

    pip install torch transformers==5.17.0 safetensors
    python generate.py OUT [NAME…]

For each variant: OUT/NAME/{config.json, model.safetensors, golden.safetensors, golden.json}. Weights are random, stored
in bf16; the golden is computed by transformers in float32 from the stored values, with eager attention and without a
KV cache. `hf_16bit` is how far transformers' own bf16 run is from it: the yardstick of a 16-bit run.

Not yet run where it was written: there was no CPU build of torch to install.
"""

import argparse
import json
import math
import pathlib

import torch
import transformers
from safetensors.torch import load_file, save_file

BASE = dict(vocab_size=256, hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2)
ROPE = dict(rope_type="default", rope_theta=10000.0)


def rope(kind, **more):
    """Rope parameters of a kind."""
    return dict(ROPE, rope_type=kind, **more)


def sliding(*flags):
    """Layer types from flags: whether a layer slides."""
    return ["sliding_attention" if f else "full_attention" for f in flags]


LONG = dict(short_factor=[1.0 + 0.05 * i for i in range(16)], long_factor=[1.0 + 0.5 * i for i in range(16)])
GPT2 = dict(vocab_size=256, n_embd=128, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2)
BLOOM = dict(vocab_size=256, hidden_size=128, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2, pad_token_id=0)
FALCON = dict(vocab_size=256, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, bos_token_id=1,
              eos_token_id=2, rope_parameters=ROPE)

# name: (model_type, settings, spelling)
VARIANTS = {
    "llama-linear": ("llama", dict(rope_parameters=rope("linear", factor=4.0)), "new"),
    "llama-yarn": ("llama", dict(rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=16)), "old"),
    "llama-dynamic": ("llama", dict(rope_parameters=rope("dynamic", factor=2.0)), "new"),
    "llama-biases": ("llama", dict(attention_bias=True, mlp_bias=True, rope_parameters=ROPE), "old"),
    "llama-odd": ("llama", dict(hidden_size=120, intermediate_size=200, num_attention_heads=6, num_key_value_heads=3,
                                head_dim=20, vocab_size=251, rope_parameters=ROPE), "new"),
    "llama-mqa-tied": ("llama", dict(num_key_value_heads=1, tie_word_embeddings=True, rope_parameters=ROPE), "old"),
    "llama-relu2": ("llama", dict(hidden_act="relu2", rope_parameters=ROPE), "new"),
    "mistral-window-5": ("mistral", dict(sliding_window=5, head_dim=32, rope_parameters=ROPE), "old"),
    "qwen2-window": ("qwen2", dict(use_sliding_window=True, sliding_window=9, max_window_layers=1,
                                   rope_parameters=ROPE), "new"),
    "qwen3-tied": ("qwen3", dict(head_dim=48, tie_word_embeddings=True, rope_parameters=ROPE), "old"),
    "gemma2-odd": ("gemma2", dict(head_dim=24, query_pre_attn_scalar=20, sliding_window=7, num_hidden_layers=3,
                                  rope_parameters=ROPE), "new"),
    "gemma3-pattern": ("gemma3_text", dict(head_dim=32, query_pre_attn_scalar=32, sliding_window=6,
                                           num_hidden_layers=4, layer_types=sliding(1, 0, 1, 0)), "new"),
    "phi3-longrope": ("phi3", dict(original_max_position_embeddings=128, rope_parameters=rope("longrope", **LONG)),
                      "new"),
    "phi3-window-partial": ("phi3", dict(sliding_window=11, rope_parameters=dict(ROPE, partial_rotary_factor=0.5)),
                            "new"),
    "gpt2-relu-untied": ("gpt2", dict(GPT2, activation_function="relu", n_inner=96, tie_word_embeddings=False), "new"),
    "gpt-neox-sequential": ("gpt_neox", dict(use_parallel_residual=False, attention_bias=False, tie_word_embeddings=True,
                                             rope_parameters=dict(ROPE, partial_rotary_factor=0.5)), "new"),
    "olmo2-mha": ("olmo2", dict(num_key_value_heads=4, rope_parameters=ROPE), "old"),
    "bloom-odd-heads": ("bloom", dict(BLOOM, n_head=6, hidden_size=96), "new"),
    "bloom-after-norm": ("bloom", dict(BLOOM, apply_residual_connection_post_layernorm=True), "new"),
    "falcon-mqa": ("falcon", dict(FALCON, multi_query=True, parallel_attn=True, bias=True), "new"),
    "falcon-sequential": ("falcon", dict(FALCON, multi_query=False, parallel_attn=False), "new"),
    "falcon-one-norm": ("falcon", dict(FALCON, new_decoder_architecture=True, num_kv_heads=2,
                                       num_ln_in_parallel_attn=1), "new"),
    "granite": ("granite", dict(embedding_multiplier=12.0, residual_multiplier=0.22, attention_multiplier=0.05,
                                logits_scaling=4.0, rope_parameters=ROPE), "new"),
    "smollm3": ("smollm3", dict(num_hidden_layers=4, no_rope_layer_interval=2, rope_parameters=ROPE), "new"),
    "starcoder2": ("starcoder2", dict(sliding_window=13, rope_parameters=ROPE), "new"),
    "stablelm": ("stablelm", dict(use_qkv_bias=True, rope_parameters=dict(ROPE, partial_rotary_factor=0.25)), "old"),
    "stablelm-qk-parallel": ("stablelm", dict(qk_layernorm=True, use_parallel_residual=True,
                                              rope_parameters=dict(ROPE, partial_rotary_factor=0.5)), "new"),
    "phi": ("phi", dict(rope_parameters=dict(ROPE, partial_rotary_factor=0.5)), "new"),
    "phi-qk": ("phi", dict(qk_layernorm=True, rope_parameters=dict(ROPE, partial_rotary_factor=0.5)), "new"),
    "cohere2": ("cohere2", dict(num_hidden_layers=4, sliding_window=8, logit_scale=0.5, rope_parameters=ROPE), "new"),
    "glm4": ("glm4", dict(head_dim=32, rope_parameters=dict(ROPE, partial_rotary_factor=0.5)), "new"),
    "exaone4": ("exaone4", dict(num_hidden_layers=4, sliding_window=8, rope_parameters=ROPE), "new"),
    "exaone4-full": ("exaone4", dict(sliding_window=None, layer_types=sliding(0, 0), rope_parameters=ROPE), "new"),
    "olmo3": ("olmo3", dict(num_hidden_layers=4, sliding_window=8), "new"),
}


def randomise(model, seed):
    """Random weights of a size that gives logits with clear winners; norms near one, biases not zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.dim() == 1:
            centre = 0.0 if name.endswith("bias") or "gemma" in model.config.model_type else 1.0
            p.data = centre + 0.1 * noise
        else:
            p.data = noise * (1.0 if "emb" in name or "wte" in name else 1.5 / math.sqrt(p.shape[-1]))


def old_spelling(config):
    """The spelling before transformers 5: rope_theta, rope_scaling, torch_dtype."""
    parameters = dict(config.pop("rope_parameters"))
    config["rope_theta"] = parameters.pop("rope_theta")
    partial = parameters.pop("partial_rotary_factor", None)
    if partial is not None:
        config["partial_rotary_factor"] = partial
    config["rope_scaling"] = None if parameters.get("rope_type") == "default" else parameters
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.44.0"


@torch.no_grad()
def run(model, ids, steps):
    """Logits of the ids, and a greedy continuation with its logits, without a cache."""
    logits = model(ids, use_cache=False).logits.float()
    tokens, rows = [], []
    now = ids
    for _ in range(steps):
        last = model(now, use_cache=False).logits[:, -1].float()
        token = last.argmax(-1, keepdim=True)
        rows.append(last)
        tokens.append(token)
        now = torch.cat([now, token], 1)
    return logits, torch.cat(tokens, 1), torch.stack(rows, 1)


def make(out, name, seed):
    """Writes one variant."""
    model_type, settings, spelling = VARIANTS[name]
    common = {} if model_type in ("gpt2", "bloom", "falcon") else BASE
    config = transformers.AutoConfig.for_model(model_type, **{**common, **settings})
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    randomise(model, seed)
    model.tie_weights()
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    text = json.loads((folder / "config.json").read_text())
    if spelling == "old":
        old_spelling(text)
    (folder / "config.json").write_text(json.dumps(text, indent=1, sort_keys=True) + "\n")

    # What was stored, as a user loads it.
    load = lambda dtype: transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager").eval()
    ids = torch.randint(3, settings.get("vocab_size", 256), (2, 40), generator=torch.Generator().manual_seed(seed + 1))
    logits, greedy_ids, greedy_logits = run(load(torch.float32), ids, 24)
    half = load(torch.bfloat16)
    with torch.no_grad():
        rounded = half(ids, use_cache=False).logits.float()
    error = ((rounded - logits).norm() / logits.norm()).item()
    p, q = logits.double().log_softmax(-1), rounded.double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).mean().item()
    best = greedy_logits.topk(2, -1).values
    save_file(dict(input_ids=ids, logits=logits, greedy_ids=greedy_ids, greedy_logits=greedy_logits.contiguous()),
              folder / "golden.safetensors")
    golden = dict(reference=f"transformers {transformers.__version__}, float32, eager attention",
                  hf_16bit=dict(dtype="bfloat16", rel_rmse=error, mean_kl=kl),
                  min_greedy_margin=(best[..., 0] - best[..., 1]).min().item())
    (folder / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
    size = sum(t.numel() for t in load_file(folder / "model.safetensors").values())
    print(f"{name}: {size} weights, 16-bit distance {error:.2e}, margin {golden['min_greedy_margin']:.3f}")


def main():
    """Makes the variants that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("names", nargs="*", help="; ".join(VARIANTS))
    args = parser.parse_args()
    torch.manual_seed(0)
    for name in args.names or VARIANTS:
        make(args.out, name, seed=sum(name.encode()))


if __name__ == "__main__":
    main()
