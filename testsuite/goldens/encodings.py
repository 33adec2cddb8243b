"""Random blocks of every encoding with the values that the `gguf` package (and, for E4M3 and E2M1, `ml_dtypes`) decodes
them to: testsuite/fixtures/encodings/golden.safetensors.

    pip install gguf==0.19.0 ml_dtypes==0.6.0 numpy safetensors
    python encodings.py ../fixtures/encodings/golden.safetensors
"""

import sys

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType, GGML_QUANT_SIZES
from gguf.quants import dequantize
from safetensors.numpy import save_file

KINDS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4"]
# Where a block holds f16 numbers: random bits there would be NaN too often.
HALVES = {"Q2_K": [80, 82], "Q3_K": [108], "Q6_K": [208], "MXFP4": []}
PAIRS = ["Q4_1", "Q5_1", "Q4_K", "Q5_K"]


def main(path):
    rng = np.random.default_rng(20250701)
    out = {}
    for kind in KINDS:
        q = GGMLQuantizationType[kind]
        elements, size = GGML_QUANT_SIZES[q]
        blocks = 2048 // elements
        data = rng.integers(0, 256, (blocks, size), dtype=np.uint8)
        for at in HALVES.get(kind, [0, 2] if kind in PAIRS else [0]):
            halves = rng.standard_normal(blocks).astype(np.float16)
            halves[0] = 6e-8  # below f16's normal numbers
            halves[1] = -65504
            data[:, at : at + 2] = halves.view(np.uint8).reshape(blocks, 2)
        if kind == "MXFP4":
            data[:, 0] = np.concatenate([[0, 1, 2, 3, 126, 127, 254], rng.integers(90, 160, blocks - 7)])
        name = kind.lower()
        out[f"{name}.bytes"] = data.reshape(-1)
        with np.errstate(over="ignore"):
            out[f"{name}.values"] = dequantize(data, q).reshape(-1).astype(np.float32)
    # Elements with scales of their own: 3 x 5 x 10 in blocks of 2 x 4, and 7 x 64 in blocks of 1 x 32.
    codes = rng.integers(0, 256, (3, 5, 10), dtype=np.uint8)
    scales = rng.standard_normal((3, 3, 3)).astype(np.float32)
    spread = np.repeat(np.repeat(scales, 2, axis=1), 4, axis=2)[:, :5, :10]
    out["e4m3_2x4.bytes"] = codes.reshape(-1)
    out["e4m3_2x4.scales"] = scales.reshape(-1).view(np.uint8)
    out["e4m3_2x4.values"] = (codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * spread).reshape(-1)
    codes = rng.integers(0, 256, (7, 32), dtype=np.uint8)
    nibbles = np.stack([codes & 15, codes >> 4], axis=-1).reshape(7, 64)
    exponents = rng.integers(1, 255, (7, 2), dtype=np.uint8)
    with np.errstate(over="ignore"):
        factors = np.ldexp(np.float32(1), exponents.astype(np.int32) - 127).astype(np.float32)
        values = nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float32) * np.repeat(factors, 32, axis=1)
    out["e2m1_1x32.bytes"] = codes.reshape(-1)
    out["e2m1_1x32.scales"] = exponents.reshape(-1)
    out["e2m1_1x32.values"] = values.reshape(-1)
    # Every code once.
    every = np.arange(256, dtype=np.uint8)
    out["e4m3.every"] = every.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    out["e8m0.every"] = every.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    save_file(out, path)


main(sys.argv[1])
