"""Writes tests/fixtures/fit/: rows like those of weight matrices, importances of their columns, and
the error of GGML's own quantisers on them, with and without these importances.

Needs `pip install numpy gguf llama-cpp-python` (of the last, libggml-base).

Run: python tests/reference/fit.py (in crates/kernel)
"""

import ctypes
import importlib.util
import json
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize

FOLDER = Path(__file__).parent.parent / "fixtures" / "fit"
ROWS, COLS = 6, 512
TYPES = [Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q4_K, Type.Q5_K, Type.Q6_K,
         Type.IQ4_NL, Type.IQ4_XS]


def library():
    # Not imported, which would load the whole engine.
    found = importlib.util.find_spec("llama_cpp").submodule_search_locations[0]
    ggml = ctypes.CDLL(str(Path(found) / "lib" / "libggml-base.so"))
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    return ggml


def errors(ggml, type, values, importance):
    """Sum of squares, and the same weighted with the importance."""
    length, size = GGML_QUANT_SIZES[type]
    out = np.zeros((ROWS, COLS // length * size), dtype=np.uint8)
    floats = ctypes.POINTER(ctypes.c_float)
    weights = importance.ctypes.data_as(floats) if importance is not None else None
    ggml.ggml_quantize_chunk(
        ctypes.c_int(type), values.ctypes.data_as(floats), out.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(0), ctypes.c_int64(ROWS), ctypes.c_int64(COLS), weights)
    lost = (dequantize(out, type).astype(np.float64) - values) ** 2
    return lost.sum() if importance is None else (lost * importance).sum()


def main():
    random = np.random.default_rng(3)
    FOLDER.mkdir(parents=True, exist_ok=True)
    # Bell-shaped, some rows with the heavy tails that trained weights have.
    values = random.standard_t(5, (ROWS, COLS)) * random.uniform(0.01, 0.08, (ROWS, 1))
    values[0] = random.normal(0, 0.05, COLS)
    values[1] += 0.02
    values = values.astype(np.float32)
    importance = random.lognormal(0, 1.2, COLS).astype(np.float32)
    ggml = library()
    found = {
        type.name.lower(): [errors(ggml, type, values, None), errors(ggml, type, values, importance)]
        for type in TYPES
    }
    (FOLDER / "rows.values").write_bytes(values.astype("<f4").tobytes())
    (FOLDER / "importance.values").write_bytes(importance.astype("<f4").tobytes())
    lines = [f"{name} {plain:.6e} {weighted:.6e}" for name, (plain, weighted) in found.items()]
    (FOLDER / "errors.txt").write_text("\n".join(lines) + "\n")
    print(json.dumps(found, indent=1))


main()
