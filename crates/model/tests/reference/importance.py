"""Writes ../fixtures/importance.gguf: sums of squares as llama.cpp's `llama-imatrix` stores them.

Needs `pip install gguf`. Made with gguf 0.19.

Run: python importance.py
"""

from pathlib import Path

import gguf
import numpy as np

FIXTURES = Path(__file__).parent.parent / "fixtures"


def main():
    random = np.random.default_rng(1)
    writer = gguf.GGUFWriter(FIXTURES / "importance.gguf", "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["text.txt"])
    writer.add_uint32("imatrix.chunk_count", 2)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, parts in [("blk.0.attn_q.weight", 1), ("blk.0.ffn_down_exps.weight", 3)]:
        sums = random.lognormal(0, 1, (parts, 32)).astype(np.float32)
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", np.full((parts, 1), 1024, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
