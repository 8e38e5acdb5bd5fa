"""Writes ../fixtures/gemma3/: a small random Gemma 3 as a GGUF file of Q8_0, with what transformers
computes from the same values.

Needs `pip install torch transformers gguf`. Made with torch 2.15, transformers 5.24 and gguf 0.19.

Run: python gemma3.py
"""

from pathlib import Path

import gguf
import torch
from gguf.quants import dequantize, quantize
from safetensors.torch import save_file
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

FOLDER = Path(__file__).parent.parent / "fixtures" / "gemma3"
Q8_0 = gguf.GGMLQuantizationType.Q8_0
PIECES = "▁ t h e p u m i s o th he the pu um mp pump ▁the is it in on ▁pump ▁is".split(" ")
WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
TYPES = [3, 3, 3, 2, *[6] * 256, *[1] * len(PIECES)]
# Better pieces have higher scores; longer ones stand later here and are better.
SCORES = [0.0] * 260 + [float(len(piece)) - 100 for piece in PIECES]
CONFIG = dict(
    vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=7,
    num_attention_heads=4, num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16,
    max_position_embeddings=128, sliding_window=8, rms_norm_eps=1e-6,
    bos_token_id=2, eos_token_id=1, pad_token_id=0,
    rope_parameters={
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
    },
)
NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
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


def main():
    FOLDER.mkdir(exist_ok=True)
    torch.manual_seed(5)
    model = Gemma3ForCausalLM(Gemma3TextConfig(**CONFIG)).eval()
    assert model.config.layer_types.count("full_attention") == 1, model.config.layer_types
    writer = gguf.GGUFWriter(FOLDER / "gemma3.gguf", "gemma3")
    metadata(writer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(0.2 * torch.randn_like(parameter))
                # Files hold the factor itself, the model its distance from 1.
                writer.add_tensor(stored_name(name), 1 + parameter.numpy())
                continue
            values = torch.randn_like(parameter) * 1.5 / parameter.shape[-1] ** 0.5
            if name == "model.embed_tokens.weight":
                values /= 4
            blocks = quantize(values.numpy(), Q8_0)
            parameter.copy_(torch.from_numpy(dequantize(blocks, Q8_0)))
            writer.add_tensor(stored_name(name), blocks, raw_dtype=Q8_0)
        # More tokens than a window holds, so that the layers differ.
        tokens = torch.tensor([2] + [(7 * i * i + 3) % len(WORDS) for i in range(29)])
        logits = model(tokens[None]).logits[0]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(
        {"tokens": tokens.to(torch.int32), "log_probs": logits.log_softmax(-1).contiguous()},
        FOLDER / "expected.safetensors",
    )


def metadata(writer):
    writer.add_context_length(CONFIG["max_position_embeddings"])
    writer.add_embedding_length(CONFIG["hidden_size"])
    writer.add_block_count(CONFIG["num_hidden_layers"])
    writer.add_feed_forward_length(CONFIG["intermediate_size"])
    writer.add_head_count(CONFIG["num_attention_heads"])
    writer.add_head_count_kv(CONFIG["num_key_value_heads"])
    writer.add_key_length(CONFIG["head_dim"])
    writer.add_value_length(CONFIG["head_dim"])
    writer.add_layer_norm_rms_eps(CONFIG["rms_norm_eps"])
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_sliding_window(CONFIG["sliding_window"])
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(WORDS)
    writer.add_token_scores(SCORES)
    writer.add_token_types(TYPES)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_add_space_prefix(False)


main()
