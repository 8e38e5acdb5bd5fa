"""Writes ../fixtures/low_bits/: a small random Llama as a GGUF file whose matrices are of the formats
that no Python package writes, with what transformers computes from their values.

Needs `pip install torch transformers gguf`. Made with torch 2.15, transformers 5.24 and gguf 0.19.

Run: python low_bits.py
"""

from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

FOLDER = Path(__file__).parent.parent / "fixtures" / "low_bits"
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 32
CONFIG = dict(
    vocab_size=271, hidden_size=256, intermediate_size=256, num_hidden_layers=1,
    num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM,
    max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=True,
    rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
)
# Scales at their places in a block, so that weights are of the usual size.
SCALES = {
    Type.Q2_K: {80: 0.004, 82: 0.006}, Type.Q3_K: {108: 0.0015}, Type.IQ4_NL: {0: 0.001},
    Type.IQ4_XS: {0: 5e-5}, Type.MXFP4: {},
}
TYPES = {
    "token_embd": Type.Q2_K, "attn_q": Type.Q3_K, "attn_k": Type.IQ4_XS, "attn_v": Type.MXFP4,
    "attn_output": Type.IQ4_NL, "ffn_gate": Type.IQ4_XS, "ffn_up": Type.Q2_K,
    "ffn_down": Type.Q3_K,
}
NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def stored_name(name):
    name = name.removeprefix("model.").removesuffix(".weight")
    if name in ("embed_tokens", "norm"):
        return {"embed_tokens": "token_embd.weight", "norm": "output_norm.weight"}[name]
    _, layer, part = name.split(".", 2)
    return f"blk.{layer}.{NAMES[part]}.weight"


def blocks(random, type, rows, cols):
    length, size = GGML_QUANT_SIZES[type]
    out = random.integers(0, 256, (rows * cols // length, size), dtype=np.uint8)
    for at, scale in SCALES[type].items():
        scales = (scale * random.uniform(0.5, 1.5, len(out))).astype(np.float16)
        out[:, at:at + 2] = scales.view(np.uint8).reshape(-1, 2)
    if type == Type.MXFP4:
        out[:, 0] = random.integers(119, 123, len(out))
    return out.reshape(rows, -1)


def from_interleaved(values, head_dim):
    """Rows in the order that transformers has them."""
    rows, cols = values.shape
    pairs = values.reshape(rows // head_dim, head_dim // 2, 2, cols)
    return pairs.swapaxes(1, 2).reshape(rows, cols)


def main():
    FOLDER.mkdir(exist_ok=True)
    random = np.random.default_rng(11)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).eval()
    writer = gguf.GGUFWriter(FOLDER / "low_bits.gguf", "llama")
    metadata(writer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            stored = stored_name(name)
            if parameter.dim() == 1:
                values = 1 + 0.1 * random.normal(size=len(parameter)).astype(np.float32)
                writer.add_tensor(stored, values)
                parameter.copy_(torch.from_numpy(values))
                continue
            type = TYPES[stored.split(".")[-2]]
            data = blocks(random, type, *parameter.shape)
            writer.add_tensor(stored, data, raw_dtype=type)
            values = dequantize(data, type)
            if "q_proj" in name or "k_proj" in name:
                values = from_interleaved(values, HEAD_DIM)
            parameter.copy_(torch.from_numpy(values.copy()))
        tokens = torch.tensor([(7 * i * i + 3) % CONFIG["vocab_size"] for i in range(24)])
        logits = model(tokens[None]).logits[0]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(
        {"tokens": tokens.to(torch.int32), "log_probs": logits.log_softmax(-1).contiguous()},
        FOLDER / "expected.safetensors",
    )
    print("spread of logits", logits.std().item())


def metadata(writer):
    writer.add_context_length(CONFIG["max_position_embeddings"])
    writer.add_embedding_length(CONFIG["hidden_size"])
    writer.add_block_count(CONFIG["num_hidden_layers"])
    writer.add_feed_forward_length(CONFIG["intermediate_size"])
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(CONFIG["rms_norm_eps"])
    writer.add_rope_freq_base(10_000.0)
    writer.add_tokenizer_model("llama")
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"the pum", "he", "th", "the", "▁the"][: CONFIG["vocab_size"] - len(pieces)]
    writer.add_token_list(pieces)
    scores = [0.0] * 259 + [-float(index) for index in range(len(pieces) - 259)]
    writer.add_token_scores(scores)
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (len(pieces) - 259)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


main()
