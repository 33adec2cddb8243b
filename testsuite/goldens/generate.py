#!/usr/bin/env python3
"""Makes tiny random checkpoints with golden outputs, in the layout of testsuite/fixtures (see its README).

    pip install torch transformers==5.23.0 safetensors
    python generate.py OUT [NAME…]

For each variant of `variants.py`: OUT/NAME/{config.json, model.safetensors, golden.safetensors, golden.json}; for a
configuration that is refused config.json and refused.json. Weights
are random, stored in bf16; the golden is computed by transformers in float32 from the stored values, with eager
attention and without a KV cache (with one where the rope is dynamic: cached keys keep the rotation that they were stored
with, so the continuation depends on it). `hf_16bit` is how far transformers' own bf16 run is from it: the yardstick of a
16-bit run. A golden in which a router is at a near tie could not judge one, because either choice is right there and
the other expert's result is far off: weights are drawn until no router is, or the clearest of many draws is taken.
"""

import argparse
import contextlib
import json
import math
import pathlib

import torch
import transformers
from safetensors.torch import load_file, save_file

from variants import DECODERS, ENCODERS, MOE, REFUSED, SIZE

# Tokens of a row, and of its greedy continuation.
LENGTH, STEPS = 13, 6
# By how much the last expert that is chosen beats the first that is not, at least, in the router's rounding noise: rms
# of the difference between the scores in bf16 and in float32.
CLEAR, TRIES = 4.0, 500


def randomise(model, seed):
    """Random weights of a size that gives logits with clear winners; norms near one, biases not zero."""
    generator = torch.Generator().manual_seed(seed)
    router_bias = [(n, b) for n, b in model.named_buffers() if n.endswith("e_score_correction_bias")]
    for name, p in [*model.named_parameters(), *router_bias]:
        noise = torch.randn(p.shape, generator=generator)
        if p.dim() == 1:
            plain = name.endswith("bias") or "gemma" in model.config.model_type
            p.data = (0.0 if plain else 1.0) + (0.3 if name.endswith("bias") else 0.1) * noise
        elif name.endswith("_bias"):
            p.data = 0.3 * noise
        else:
            p.data = noise * (1.0 if "emb" in name or "wte" in name else 1.5 / math.sqrt(p.shape[-1]))


def old_spelling(config, oldest):
    """The spelling before transformers 5: rope_theta, rope_scaling, torch_dtype; `oldest`: "type" for "rope_type"."""
    parameters = config.pop("rope_parameters", None)
    if parameters and "full_attention" in parameters:
        local = parameters["sliding_attention"]
        parameters = parameters["full_attention"]
        if config["model_type"] == "modernbert":
            config["global_rope_theta"], config["local_rope_theta"] = parameters["rope_theta"], local["rope_theta"]
            parameters = None
            every = config.pop("layer_types").index("full_attention", 1)
            config["global_attn_every_n_layers"] = every
        else:
            config["rope_local_base_freq"] = local["rope_theta"]
    if parameters:
        parameters = dict(parameters)
        theta, partial = parameters.pop("rope_theta"), parameters.pop("partial_rotary_factor", None)
        neox = config["model_type"] == "gpt_neox"
        config["rotary_emb_base" if neox else "rope_theta"] = theta
        if partial is not None:
            config["rotary_pct" if neox else "partial_rotary_factor"] = partial
        if oldest:
            parameters["type"] = parameters.pop("rope_type")
        config["rope_scaling"] = None if parameters.get("rope_type") == "default" else parameters
    # Files of then did not list the layers' types.
    if config["model_type"] in ("qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3"):
        config.pop("layer_types", None)
    if config["model_type"] == "gemma3_text":
        config["sliding_window_pattern"] = config.pop("_sliding_window_pattern", 6)
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.44.0"


def configure(model_type, settings, shared):
    """The configuration of a variant; a setting of None with a value in `shared` leaves the key out."""
    left_out = {k for k, v in settings.items() if v is None and k in shared}
    given = {k: v for k, v in {**shared, **settings}.items() if k not in left_out}
    return transformers.AutoConfig.for_model(model_type, **given)


def store(folder, model, spelling):
    """Saves a checkpoint, in bf16."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    text = json.loads((folder / "config.json").read_text())
    if spelling != "new":
        old_spelling(text, spelling == "oldest")
    (folder / "config.json").write_text(json.dumps(text, indent=1, sort_keys=True) + "\n")


def rel(a, b):
    """Relative rmse."""
    return ((a - b).norm() / b.norm()).item()


def report(folder, more, distance, attention="eager"):
    """Writes golden.json."""
    reference = f"transformers {transformers.__version__}, float32, {attention} attention"
    golden = dict(reference=reference, hf_16bit=dict(dtype="bfloat16", rel_rmse=distance, **more.pop("hf", {})), **more)
    (folder / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
    size = sum(t.numel() for t in load_file(folder / "model.safetensors").values())
    print(f"{folder.name}: {size} weights, 16-bit distance {distance:.2e} {more}", flush=True)


@torch.no_grad()
def run(model, ids, steps):
    """Logits of the ids, and a greedy continuation with its logits, without a cache unless the rope is dynamic."""
    cached = (getattr(model.config, "rope_parameters", None) or {}).get("rope_type") == "dynamic"
    logits = model(ids, use_cache=False).logits.float()
    tokens, rows = [], []
    now, cache = ids, None
    for _ in range(steps):
        out = model(now, use_cache=cached, past_key_values=cache)
        last, cache = out.logits[:, -1].float(), out.past_key_values
        token = last.argmax(-1, keepdim=True)
        rows.append(last)
        tokens.append(token)
        now = token if cached else torch.cat([now, token], 1)
    return logits, torch.cat(tokens, 1), torch.stack(rows, 1)


class Chosen(tuple):
    """What torch.topk gives; says when somebody looks at the indices, and not at the values alone."""

    values = property(lambda self: self[0])
    indices = property(lambda self: self[1])

    def __getitem__(self, i):
        return tuple(self)[1] if i == 1 else super().__getitem__(i)

    def __iter__(self):
        self.looked_at()
        return super().__iter__()


@contextlib.contextmanager
def choices(seen):
    """Appends each choice of torch.topk whose indices are used: scores, how many are taken."""
    function, method = torch.topk, torch.Tensor.topk

    def record(choose):
        def chosen(scores, k, *args, **named):
            found = Chosen(choose(scores, k, *args, **named))
            found.looked_at = lambda: seen.append((scores.float(), k))
            return found
        return chosen

    torch.topk, torch.Tensor.topk = record(function), record(method)
    try:
        yield
    finally:
        torch.topk, torch.Tensor.topk = function, method


@torch.no_grad()
def clearness(exact, rounded, ids):
    """The narrowest choice of any router, in its rounding noise; 0 where bf16 chooses others, None without a router."""
    seen = [], []
    for model, list_ in zip((exact, rounded), seen):
        with choices(list_):
            model(ids, use_cache=False)
    least = None
    for (scores, k), (noisy, _) in zip(*seen):
        if k < scores.shape[-1]:
            best, noisy_best = scores.topk(k + 1, -1).values, scores.gather(-1, noisy.topk(k, -1).indices)
            if (noisy_best.sort(-1).values != best[..., :k].sort(-1).values).any():
                return 0.0
            margin = (best[..., k - 1] - best[..., k]).min() / (scores - noisy).pow(2).mean().sqrt()
            least = min(least or math.inf, margin.item())
    return least


@torch.no_grad()
def decoder(folder, seed, model_type, settings, spelling):
    """Writes a decoder."""
    # Falcon's eager attention adds ALiBi's biases twice, once within the mask; its default does not.
    attention = "sdpa" if settings.get("alibi") else "eager"
    own_size = model_type in ("gpt2", "bloom", "falcon")
    config = configure(model_type, settings, {} if own_size else SIZE)

    # What was stored, as a user loads it.
    def load(dtype):
        loaded, found = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention, output_loading_info=True)
        lost = {k: v for k, v in found.items() if v}
        assert not lost, f"{folder.name}: {lost}"
        return loaded.eval()

    generator = torch.Generator().manual_seed(seed + 1)
    ids = torch.randint(3, config.vocab_size, (2, LENGTH), generator=generator)

    def draw(attempt):
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        randomise(model, seed + 1000 * attempt)
        model.tie_weights()
        store(folder, model, spelling)
        exact, in_bf16 = load(torch.float32), load(torch.bfloat16)
        outputs = run(exact, ids, STEPS)
        return clearness(exact, in_bf16, torch.cat([ids, outputs[1]], 1)), outputs, in_bf16

    clearest = -1.0, 0
    for attempt in range(TRIES):
        clear, *_ = draw(attempt)
        clearest = max(clearest, (clear or 0.0, -attempt))
        if clear is None or clear >= CLEAR:
            break
    clear, (logits, greedy_ids, greedy_logits), in_bf16 = draw(-clearest[1])
    assert logits.isfinite().all() and greedy_logits.isfinite().all(), folder.name
    rounded = in_bf16(ids, use_cache=False).logits.float()
    p, q = logits.double().log_softmax(-1), rounded.double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).mean().item()
    best = greedy_logits.topk(2, -1).values
    save_file(dict(input_ids=ids, logits=logits, greedy_ids=greedy_ids, greedy_logits=greedy_logits.contiguous()),
              folder / "golden.safetensors")
    margin = (best[..., 0] - best[..., 1]).min().item()
    more = dict(hf=dict(mean_kl=kl), min_greedy_margin=margin)
    if clear is not None:
        more["router_margin_in_noise"] = clear
    report(folder, more, rel(rounded, logits), attention)


@torch.no_grad()
def encoder(folder, seed, model_type, settings, spelling, kind):
    """Writes an encoder: rows of different lengths, padded on the right."""
    config = configure(model_type, settings, SIZE)
    classes = dict(Model=transformers.AutoModel, ForMaskedLM=transformers.AutoModelForMaskedLM,
                   ForSequenceClassification=transformers.AutoModelForSequenceClassification)
    model = classes[kind].from_config(config, attn_implementation="eager")
    randomise(model, seed)
    model.tie_weights()
    store(folder, model, spelling)
    generator = torch.Generator().manual_seed(seed + 1)
    ids = torch.randint(3, config.vocab_size, (2, 2 * LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, LENGTH + 3:] = 0
    ids[mask == 0] = config.pad_token_id

    def hidden(dtype):
        loaded = transformers.AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
        return loaded(ids, attention_mask=mask).last_hidden_state.float()

    golden = hidden(torch.float32)
    assert golden.isfinite().all(), folder.name
    save_file(dict(input_ids=ids, attention_mask=mask, last_hidden_state=golden.contiguous()),
              folder / "golden.safetensors")
    report(folder, {}, rel(hidden(torch.bfloat16)[mask == 1], golden[mask == 1]))


def refused(folder, base, changes, field):
    """Writes a configuration that is not supported, and what the error names: the field and its value."""
    folder.mkdir(parents=True, exist_ok=True)
    text = dict(json.loads((folder.parent / base / "config.json").read_text()), **changes)
    (folder / "config.json").write_text(json.dumps(text, indent=1, sort_keys=True) + "\n")
    value = changes[field]
    while isinstance(value, list):
        value = value[0]
    expected = dict(field=field, value=value if isinstance(value, str) else json.dumps(value))
    (folder / "refused.json").write_text(json.dumps(expected, indent=1) + "\n")


def main():
    """Makes the variants that are named, or all."""
    every = {**DECODERS, **MOE, **ENCODERS, **REFUSED}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("names", nargs="*", help="; ".join(every))
    args = parser.parse_args()
    torch.manual_seed(0)
    for name in args.names or every:
        if name in REFUSED:
            refused(args.out / name, *every[name])
        else:
            make = encoder if name in ENCODERS else decoder
            make(args.out / name, sum(name.encode()), *every[name])


if __name__ == "__main__":
    main()
