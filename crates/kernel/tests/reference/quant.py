"""Writes tests/fixtures/quant/: blocks with the values that GGML's reference gives for them, and
values with the blocks it makes of them. Needs `pip install numpy gguf`.

Run: python tests/reference/quant.py (in crates/kernel)
"""

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

FOLDER = Path(__file__).parent.parent / "fixtures" / "quant"
BLOCKS = 5
# Where a block of the format keeps its f16 scales: random bytes there could be infinite.
SCALES = {
    Type.Q8_0: [0], Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2],
    Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208], Type.BF16: [], Type.F16: [],
}
LATER = {
    Type.Q2_K: [80, 82], Type.Q3_K: [108], Type.IQ4_NL: [0], Type.IQ4_XS: [0], Type.MXFP4: [],
}


def write_blocks(random, formats):
    for type, scales in formats.items():
        length, size = GGML_QUANT_SIZES[type]
        if type in (Type.F16, Type.BF16):
            values = random.normal(0, 1, 64).astype(np.float32)
            blocks = (values.astype(np.float16).view(np.uint8) if type == Type.F16
                      else quantize(values.reshape(1, -1), type))
            out = dequantize(blocks.reshape(1, -1), type)
        else:
            blocks = random.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
            for at in scales:
                # The last block's scale is subnormal in f16.
                scale = random.normal(0, 0.05, BLOCKS)
                scale[-1] = 3e-6
                blocks[:, at:at + 2] = scale.astype(np.float16).view(np.uint8).reshape(-1, 2)
            if type == Type.MXFP4:
                # Exponents of two; after the usual ones the least, and nearly the largest.
                blocks[:, 0] = [122, 124, 121, 123, 0]
                blocks = np.concatenate([blocks, blocks[:1]])
                blocks[-1, 0] = 251
            out = dequantize(blocks, type)
        name = type.name.lower()
        (FOLDER / f"{name}.blocks").write_bytes(blocks.tobytes())
        (FOLDER / f"{name}.values").write_bytes(out.astype("<f4").tobytes())


def main():
    random = np.random.default_rng(7)
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_blocks(random, SCALES)
    values = random.normal(0, 0.5, (4, 64)).astype(np.float32)
    values[0, :32] = 0
    values[1, 0] = -31.5
    values[2, 5], values[2, 9] = 2, -2  # equal extremes: the first decides the sign of the scale
    values[3, :32] *= 1e-6
    (FOLDER / "input.values").write_bytes(values.astype("<f4").tobytes())
    for type in (Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0):
        (FOLDER / f"{type.name.lower()}.written").write_bytes(quantize(values, type).tobytes())
    write_blocks(random, LATER)


main()
