"""Writes a mixture model of random weights, to measure with: the shape of Granite 3.0 1B-A400M
(32 experts of width 512, 8 for each token, 1.3 billion weights), in Q4_K.

Run: python moe_model.py FILE.gguf TOKENIZER.gguf     the tokenizer is copied from another file

What the weights are changes neither the work nor the bytes; their sizes are those of a trained
model, so that numbers stay finite and each token finds its own experts.
"""

import random
import struct
import sys
from array import array

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 24, 1024, 16, 8, 64
EXPERTS, TOP_K, WIDTH = 32, 8, 512
F32, Q4_K = 0, 12
UINT32, FLOAT32, STRING, ARRAY = 4, 6, 8, 9
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
ALIGNMENT = 32


def text(value):
    value = value.encode()
    return struct.pack("<Q", len(value)) + value


class Reader:
    """The metadata of a GGUF file, as they are stored."""

    def __init__(self, path):
        self.file = open(path, "rb")
        magic, _, _, count = struct.unpack("<4sIQQ", self.file.read(24))
        assert magic == b"GGUF", f"{path} is no GGUF file"
        self.entries = dict(self.entry() for _ in range(count))

    def number(self, form):
        return struct.unpack("<" + form, self.file.read(struct.calcsize(form)))[0]

    def entry(self):
        key = self.file.read(self.number("Q")).decode()
        kind = self.number("I")
        start = self.file.tell()
        self.skip(kind)
        end = self.file.tell()
        self.file.seek(start)
        return key, struct.pack("<I", kind) + self.file.read(end - start)

    def skip(self, kind):
        if kind == STRING:
            self.file.seek(self.number("Q"), 1)
        elif kind == ARRAY:
            kind, count = self.number("I"), self.number("Q")
            if kind != STRING:
                self.file.seek(count * SIZES[kind], 1)
                return
            for _ in range(count):
                self.skip(kind)
        else:
            self.file.seek(SIZES[kind], 1)


def metadata(tokenizer, vocab):
    entries = {key: value for key, value in tokenizer.entries.items() if key.startswith("tokenizer.")}
    number = lambda value: struct.pack("<II", UINT32, value)
    real = lambda value: struct.pack("<If", FLOAT32, value)
    entries["general.architecture"] = struct.pack("<I", STRING) + text("granitemoe")
    shape = {
        "block_count": LAYERS, "context_length": 4096, "embedding_length": HIDDEN,
        "feed_forward_length": WIDTH, "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS, "rope.dimension_count": HEAD_DIM,
        "expert_count": EXPERTS, "expert_used_count": TOP_K, "vocab_size": vocab,
    }
    scales = {
        "attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 10000.0, "logit_scale": 1.0,
        "residual_scale": 1.0, "embedding_scale": 1.0, "attention.scale": HEAD_DIM**-0.5,
    }
    entries |= {f"granitemoe.{key}": number(value) for key, value in shape.items()}
    entries |= {f"granitemoe.{key}": real(value) for key, value in scales.items()}
    return entries


def tensors(vocab):
    """Name, shape (the row's length first), type."""
    kv = KV_HEADS * HEAD_DIM
    yield "token_embd.weight", (HIDDEN, vocab), Q4_K
    yield "output_norm.weight", (HIDDEN,), F32
    for layer in range(LAYERS):
        for name, shape, kind in [
            ("attn_norm", (HIDDEN,), F32),
            ("attn_q", (HIDDEN, HEADS * HEAD_DIM), Q4_K),
            ("attn_k", (HIDDEN, kv), Q4_K),
            ("attn_v", (HIDDEN, kv), Q4_K),
            ("attn_output", (HEADS * HEAD_DIM, HIDDEN), Q4_K),
            ("ffn_norm", (HIDDEN,), F32),
            ("ffn_gate_inp", (HIDDEN, EXPERTS), F32),
            ("ffn_gate_exps", (HIDDEN, WIDTH, EXPERTS), Q4_K),
            ("ffn_up_exps", (HIDDEN, WIDTH, EXPERTS), Q4_K),
            ("ffn_down_exps", (WIDTH, HIDDEN, EXPERTS), Q4_K),
        ]:
            yield f"blk.{layer}.{name}.weight", shape, kind


def product(shape):
    count = 1
    for size in shape:
        count *= size
    return count


class Values:
    """Blocks of Q4_K, `scale · (q - 7.5)` with random q, of which every tensor takes a part."""

    COUNT = 1 << 16

    def __init__(self):
        self.random = random.Random(1)
        # All sub-blocks have the scale and the minimum 32, of 6 bits each.
        head = struct.pack("<ee", 1.4e-4, 7.5 * 1.4e-4) + bytes([160] * 8 + [0] * 4)
        self.blocks = b"".join(head + self.random.randbytes(128) for _ in range(self.COUNT))

    def quantised(self, values):
        left, parts = values // 256 * 144, []
        while left > 0:
            start = self.random.randrange(self.COUNT) * 144
            parts.append(self.blocks[start : start + left])
            left -= len(parts[-1])
        return b"".join(parts)

    def plain(self, name, values):
        if "norm" in name:
            return array("f", [1.0] * values).tobytes()
        return array("f", (self.random.gauss(0, 0.05) for _ in range(values))).tobytes()


def write(path, tokenizer):
    tokenizer = Reader(tokenizer)
    # An array of strings: its kind, that of its entries, their number.
    vocab = struct.unpack("<Q", tokenizer.entries["tokenizer.ggml.tokens"][8:16])[0]
    entries, infos = metadata(tokenizer, vocab), list(tensors(vocab))
    with open(path, "wb") as out:
        out.write(struct.pack("<4sIQQ", b"GGUF", 3, len(infos), len(entries)))
        for key, value in entries.items():
            out.write(text(key) + value)
        offset = 0
        for name, shape, kind in infos:
            out.write(text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
            out.write(struct.pack("<IQ", kind, offset))
            size = product(shape) * 4 if kind == F32 else product(shape) // 256 * 144
            offset += -(-size // ALIGNMENT) * ALIGNMENT
        values = Values()
        for name, shape, kind in infos:
            out.write(bytes(-out.tell() % ALIGNMENT))
            count = product(shape)
            out.write(values.plain(name, count) if kind == F32 else values.quantised(count))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    write(sys.argv[1], sys.argv[2])
