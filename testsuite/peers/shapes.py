"""Shapes of decoders that torch_decoder.py can stand for: by name, or read from a config.json."""
import json
import os

MODELS = {
    'smollm2-135m': dict(L=30, D=576, H=9, KV=3, hd=64, I=1536, V=49152, tie=True, qknorm=False),
    'llama-3.2-1b': dict(L=16, D=2048, H=32, KV=8, hd=64, I=8192, V=128256, tie=True, qknorm=False),
    'qwen3-4b':     dict(L=36, D=2560, H=32, KV=8, hd=128, I=9728, V=151936, tie=True, qknorm=True),
    'llama-3.1-8b': dict(L=32, D=4096, H=32, KV=8, hd=128, I=14336, V=128256, tie=False, qknorm=False),
}
# Families whose decode step is the same list of ops, with or without norms of queries and keys.
QKNORM = {'llama': False, 'mistral': False, 'qwen3': True}


def config_path(what):
    """The config.json that `what` names: the file itself, or the one in a folder."""
    return os.path.join(what, 'config.json') if os.path.isdir(what) else what


def shape(what):
    """Name and shape of a named model, a config.json, or a folder with one. ValueError says what does not fit."""
    if what in MODELS:
        return what, MODELS[what]
    path = config_path(what)
    if not os.path.isfile(path):
        raise ValueError(f'{what}: neither a config.json nor one of {", ".join(MODELS)}')
    with open(path) as f:
        try:
            c = json.load(f)
        except json.JSONDecodeError as e:
            raise ValueError(f'{path}: not JSON: {e}') from None
    kind = c.get('model_type')
    if kind not in QKNORM:
        raise ValueError(f'{path}: model_type {kind!r}: the PyTorch decoder stands for {", ".join(QKNORM)}')

    def number(key, default=None):
        value = c.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or value < 1:
            raise ValueError(f'{path}: {key}: {value!r} is not a number from 1')
        return value
    D, H = number('hidden_size'), number('num_attention_heads')
    name = os.path.basename(os.path.dirname(os.path.abspath(path)))
    return name, dict(
        L=number('num_hidden_layers'), D=D, H=H, KV=number('num_key_value_heads', H), hd=number('head_dim', D // H),
        I=number('intermediate_size'), V=number('vocab_size'), tie=bool(c.get('tie_word_embeddings', False)),
        qknorm=QKNORM[kind])
