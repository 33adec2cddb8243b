"""Small seeds for the fuzzer: testsuite/fuzz/corpus (plans are written by `tests/fuzz.rs`).

    pip install gguf==0.19.0 numpy safetensors tokenizers==0.23.3
    python fuzz_corpus.py ../fuzz/corpus
"""

import json
import sys
from pathlib import Path

import numpy as np
from gguf import ExpertGatingFuncType, GGMLQuantizationType, GGUFWriter, PoolingType, RopeScalingType, TokenType
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

TEMPLATES = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "turns": "{{ bos_token }}{%- if messages[0].role == 'system' -%}{% set sys = messages[0].content | trim %}{%- set rest ="
    " messages[1:] -%}{%- else -%}{% set rest = messages %}{%- endif %}{% for m in rest %}{% if (m.role == 'user') !="
    " (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}[{{ loop.index }}/{{ loop.length }}]"
    " {{ m.content }}{% if not loop.last %}{{ '\\n' * 2 }}{% endif %}{% endfor %}",
    "names": "{% set ns = namespace(found=false, n=0) %}{% for m in messages[::-1] %}{% if not ns.found and m.role in ['user',"
    " 'tool'] %}{% set ns.found = true %}{% set ns.n = ns.n + m.content | length %}{% endif %}{% endfor %}{{ ns.n }}"
    "{{ messages | tojson(indent=2) }}{{ tools is defined and tools }}{{ messages | map(attribute='role') | join(', ') }}",
    "macros": "{% macro part(m, deep=0) %}{% if deep < 3 %}{{ part(m, deep + 1) }}{% endif %}{{ m.content.split(' ')[0].strip()"
    " | upper }}{% endmacro %}{% for m in messages %}{% generation %}{{ part(m) }}{% endgeneration %}{% endfor %}"
    "{{ strftime_now('%d %b %Y') }}{% set x %}a{{ 1 + 2 }}b{% endset %}{{ x ~ 'c' | replace('c', x) }}{{ {'a': 1}.items() }}",
    "tests": "{# note #}{{- 'x' if messages is sequence else 'y' }}{% for k, v in {'a': [1, 2], 'b': none}.items() if v %}{{ k }}"
    "{{ v | first }}{% else %}none{% endfor %}{{ range(3) | list }}{{ 7 // 2 }}{{ 2 ** 3 }}{{ -1.5 | abs }}{{ 'a' 'b' }}",
}


def tokenizers(out):
    byte = pre_tokenizers.ByteLevel.alphabet()
    vocab = {c: i for i, c in enumerate(sorted(byte)[:60])}
    vocab |= {"ab": 60, "he": 61, "Ġw": 62}
    bpe = Tokenizer(models.BPE(vocab | {"a": 63, "b": 64, "h": 65, "e": 66, "Ġ": 67, "w": 68}, [("a", "b"), ("h", "e"), ("Ġ", "w")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(["<s>", "</s>"])
    bpe.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 69), ("</s>", 70)])
    fallback = Tokenizer(
        models.BPE({"<unk>": 0, "▁": 1, "a": 2, "b": 3, "▁a": 4, "<0x0A>": 5}, [("▁", "a")], unk_token="<unk>", byte_fallback=True)
    )
    fallback.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fallback.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    piece = Tokenizer(models.WordPiece({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "hello": 3, "##lo": 4, "hel": 5}, unk_token="[UNK]"))
    piece.normalizer = normalizers.BertNormalizer()
    piece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    piece.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    piece.decoder = decoders.WordPiece()
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁a", -1.5), ("b", -2.0), ("▁", -3.0), ("ab", -2.5)], 0, False))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    split = Tokenizer(models.WordLevel({"?": 0, "a": 1, "1": 2}, unk_token="?"))
    split.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(" ?\\p{L}+|\\p{N}", "isolated"), pre_tokenizers.Digits(True)])
    for name, t in [("bytes", bpe), ("fallback", fallback), ("wordpiece", piece), ("unigram", unigram), ("words", split)]:
        (out / "tokenizer" / f"{name}.json").write_text(t.to_str())


def ggufs(out):
    def file(name, arch, spm, more=(), words=False):
        w = GGUFWriter(out / "gguf" / name, arch)
        w.add_block_count(1)
        w.add_context_length(64)
        w.add_embedding_length(32)
        w.add_feed_forward_length(64)
        w.add_head_count(2)
        w.add_head_count_kv(1)
        w.add_layer_norm_rms_eps(1e-5)
        w.add_layer_norm_eps(1e-5)
        w.add_rope_freq_base(10000.0)
        for add in more:
            add(w)
        tokens = ["<unk>", "<s>", "</s>", "<0x0A>", "a", "b", "ab", "▁", "▁a"] if spm else ["a", "b", "ab", "Ġ", "Ġa", "<s>", "</s>", "c", "d"]
        types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE] + [TokenType.NORMAL] * 5
        if words:
            tokens = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "▁a", "b", "ab", "▁ab", "▁!"]
            types = [TokenType.CONTROL] * 4 + [TokenType.NORMAL] * 5
        w.add_tokenizer_model("bert" if words else "llama" if spm else "gpt2")
        w.add_token_list(tokens)
        w.add_token_types(types if spm or words else [TokenType.NORMAL] * 5 + [TokenType.CONTROL] * 2 + [TokenType.USER_DEFINED] * 2)
        if words:
            w.add_unk_token_id(3)
        elif spm:
            w.add_token_scores([0.0] * 4 + [-1.0, -2.0, -3.0, -4.0, -5.0])
        else:
            w.add_tokenizer_pre("smollm")
            w.add_token_merges(["a b", "Ġ a"])
        w.add_bos_token_id(1)
        w.add_eos_token_id(2)
        w.add_chat_template("{{ messages[0]['content'] }}")
        w.add_tensor("token_embd.weight", np.ones((9, 32), np.float16))
        w.add_tensor("blk.0.attn_q.weight", np.zeros((32, 18), np.uint8), raw_dtype=GGMLQuantizationType.Q4_0)
        w.add_tensor("output_norm.weight", np.ones(32, np.float32))
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()

    file("llama.gguf", "llama", True)
    file("qwen3.gguf", "qwen3", False)
    file("gemma3.gguf", "gemma3", True, [lambda w: w.add_sliding_window(8), lambda w: w.add_sliding_window_pattern([True])])
    file("phi3.gguf", "phi3", True, [lambda w: w.add_tensor("rope_factors_short.weight", np.ones(8, np.float32))])
    file("yarn.gguf", "granite", False, [
        lambda w: w.add_string("granite.rope.scaling.type", "yarn"), lambda w: w.add_rope_scaling_factor(4.0),
        lambda w: w.add_rope_scaling_orig_ctx_len(16), lambda w: w.add_embedding_scale(2.0)])  # fmt: skip
    file("bert.gguf", "bert", False, [
        lambda w: w.add_causal_attention(False), lambda w: w.add_token_type_count(2),
        lambda w: w.add_tensor("token_types.weight", np.ones((2, 32), np.float32)),
        lambda w: w.add_pooling_type(PoolingType.MEAN)], True)  # fmt: skip
    experts = [lambda w: w.add_expert_count(4), lambda w: w.add_expert_used_count(2),
               lambda w: w.add_expert_feed_forward_length(16)]
    file("qwen2moe.gguf", "qwen2moe", False, experts + [lambda w: w.add_expert_shared_feed_forward_length(24)])
    file("deepseek2.gguf", "deepseek2", False, experts + [
        lambda w: w.add_kv_lora_rank(16), lambda w: w.add_q_lora_rank(16), lambda w: w.add_key_length(24),
        lambda w: w.add_value_length(16), lambda w: w.add_key_length_mla(24), lambda w: w.add_value_length_mla(16),
        lambda w: w.add_rope_dimension_count(8), lambda w: w.add_expert_gating_func(ExpertGatingFuncType.SIGMOID),
        lambda w: w.add_expert_group_count(2), lambda w: w.add_expert_group_used_count(1),
        lambda w: w.add_rope_scaling_type(RopeScalingType.YARN), lambda w: w.add_rope_scaling_factor(4.0),
        lambda w: w.add_rope_scaling_orig_ctx_len(16), lambda w: w.add_rope_scaling_yarn_log_mul(0.1)])  # fmt: skip


def beside(out):
    """The files beside a checkpoint and in a bundle; schedules are written by `tests/fuzz.rs`."""

    def module(i, kind, path):
        return {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}

    modes = {f"pooling_mode_{mode}": False for mode in ["cls_token", "max_tokens", "mean_sqrt_len_tokens"]}
    three = [module(0, "Transformer", ""), module(1, "Pooling", "1_Pooling"), module(2, "Normalize", "2_Normalize")]
    for name, files in {
        "mean": {"modules.json": three, "1_Pooling/config.json": {"word_embedding_dimension": 384, "pooling_mode_mean_tokens": True} | modes,
                 "sentence_bert_config.json": {"max_seq_length": 256, "do_lower_case": False}},
        "named": {"modules.json": three[:2], "1_Pooling/config.json": {"pooling_mode": "lasttoken", "include_prompt": True}},
        "cls": {"modules.json": [three[0], module(1, "Pooling", "pool/")], "pool/config.json": modes | {"pooling_mode_cls_token": True},
                "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": True}},
        "texts": {"modules.json": json.dumps([three[0], module(1, "Pooling", "")]), "config.json": '{"pooling_mode": "max"}'},
    }.items():  # fmt: skip
        (out / "pooling" / f"{name}.json").write_text(json.dumps(files))
    manifest = {
        "version": 1, "weft": "0.1.0", "target": "sm_90", "model_type": "llama", "checkpoint": "/models/llama",
        "sources": [{"path": "/models/llama/model.safetensors", "bytes": 1234}], "vocab_size": 256, "eos_token_ids": [2],
        "kernels": [{"name": f"{k}_gemv", "file": f"kernels/{k}_gemv.cu", "dynamic_shared": n} for k, n in [("qkv_proj", 0), ("o_proj", 49152)]],
    }  # fmt: skip
    (out / "manifest" / "two.json").write_text(json.dumps(manifest))
    op = {"text": "%9 = gather %8, %1 -> bf16[tokens, 64] @\"embed\"", "scope": "embed", "built": 3, "weights": ["embed.weight"]}
    work = {
        "work": "embed", "ops": [op, op | {"built": None, "weights": []}], "lowering": ["pointwise-group"],
        "sites": [{"body": 0, "dispatch": 1, "scope": "embed", "built": [3, 4], "made": 1, "weights": ["embed.weight"]}],
        "fusions": [{"rule": "elementwise", "numerics": "exact"}],
        "rewrites": [{"rule": "merge-linears", "numerics": "exact", "site": "layers.0", "before": "%1", "after": "%2"}],
        "alternatives": [{"what": "apart", "cost_s": 1.5e-6, "chosen_cost_s": 1e-6}],
    }  # fmt: skip
    (out / "explain" / "one.json").write_text(json.dumps({"version": 1, "works": [work, work | {"work": "other", "sites": []}]}))
    (out / "manifest" / "none.json").write_text(json.dumps(manifest | {"sources": [], "kernels": [], "eos_token_ids": []}))


def main(out):
    for name in ["safetensors", "index", "config", "gguf", "tokenizer", "template", "plan", "pooling", "manifest", "explain"]:
        (out / name).mkdir(parents=True, exist_ok=True)
    for name, text in TEMPLATES.items():
        (out / "template" / f"{name}.jinja").write_text(text)
    a = {"w": np.ones((2, 3), np.float32), "model.x": np.zeros(4, np.float16), "ids": np.arange(3)}
    save_file(a, out / "safetensors" / "three.safetensors", {"format": "pt"})
    save_file({"one": np.ones((), np.uint8)}, out / "safetensors" / "one.safetensors")
    save_file({"empty": np.ones((0, 5), np.int32)}, out / "safetensors" / "empty.safetensors")
    index = {"metadata": {"total_size": 12}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (out / "index" / "two.json").write_text(json.dumps(index))
    (out / "index" / "one.json").write_text(json.dumps({"weight_map": {"lm_head.weight": "x.safetensors"}}))
    base = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
            "vocab_size": 72, "max_position_embeddings": 64}  # fmt: skip
    for family, more in {
        "granite": {"embedding_multiplier": 12.0, "logits_scaling": 8.0}, "smollm3": {"no_rope_layers": [1, 1, 1, 0]},
        "starcoder2": {"norm_type": "layer_norm"}, "stablelm": {"partial_rotary_factor": 0.25, "use_parallel_residual": True},
        "phi": {"partial_rotary_factor": 0.5}, "cohere2": {"sliding_window": 8, "logit_scale": 0.25},
        "glm4": {"head_dim": 16}, "exaone4": {"sliding_window": 8, "sliding_window_pattern": 4},
        "olmo3": {"layer_types": ["sliding_attention"] * 3 + ["full_attention"], "sliding_window": 8},
        "phi3": {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}},
        "qwen3": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
        "llama": {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
                  "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                   "original_max_position_embeddings": 64}},
    }.items():  # fmt: skip
        (out / "config" / f"{family}.json").write_text(json.dumps({"model_type": family} | base | more))
    tokenizers(out)
    ggufs(out)
    beside(out)


main(Path(sys.argv[1]))
