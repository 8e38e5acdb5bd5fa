"""Writes gradients.safetensors beside small checkpoints in ../fixtures/: the loss over two
sequences and its gradient with respect to every tensor, computed by transformers in float64. Makes
the checkpoints of models with experts of their own, too.

Needs `pip install torch transformers accelerate gguf`. Made with torch 2.15 and transformers 5.24. Run checkpoints.py
first, then: python gradients.py
"""

import json
import re

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from checkpoints import FIXTURES, SHAPE, randomise, tokenizer, write

TEXTS = [
    "The pump of line 2 is stopped by the red switch.",
    "Check the valve every 12 weeks, and the oil when the pump is hot.",
]
SMALL = {**SHAPE, "num_hidden_layers": 2, "tie_word_embeddings": False}


def mixtral():
    config = MixtralConfig(
        **SMALL, head_dim=8, intermediate_size=12, num_local_experts=5, num_experts_per_tok=2,
        sliding_window=None,
    )
    return MixtralForCausalLM(config)


def qwen3_moe():
    config = Qwen3MoeConfig(
        **SMALL, head_dim=8, moe_intermediate_size=12, num_experts=5, num_experts_per_tok=2,
        norm_topk_prob=False, intermediate_size=32,
    )
    return Qwen3MoeForCausalLM(config)


def glm4_moe():
    config = Glm4MoeConfig(
        **{**SMALL, "rope_parameters": {**SHAPE["rope_parameters"], "partial_rotary_factor": 1.0}},
        head_dim=8, moe_intermediate_size=12, n_routed_experts=5, num_experts_per_tok=2,
        n_shared_experts=1, first_k_dense_replace=0, use_qk_norm=True, norm_topk_prob=True,
        routed_scaling_factor=1.5, intermediate_size=32,
    )
    model = Glm4MoeForCausalLM(config)
    for i, layer in enumerate(model.model.layers):
        # Large enough to change which experts are chosen.
        layer.mlp.gate.e_score_correction_bias = torch.tensor([0.2, -0.1, 0.0, 0.3, -0.2]) * (1 - i)
    return model


def split(name, tensor):
    """A gradient under the names of the file, where each expert has a tensor of its own."""
    found = re.fullmatch(r"(.*\.)mlp\.experts\.(gate_up_proj|down_proj)", name)
    if not found:
        return {name: tensor}
    prefix, part = found.groups()
    parts = {}
    for expert, values in enumerate(tensor):
        if part == "down_proj":
            parts[f"{prefix}mlp.experts.{expert}.down_proj.weight"] = values
        else:
            gate, up = values.chunk(2)
            parts[f"{prefix}mlp.experts.{expert}.gate_proj.weight"] = gate
            parts[f"{prefix}mlp.experts.{expert}.up_proj.weight"] = up
    return parts


def in_mixtral(name):
    """Mixtral's files name its parts otherwise."""
    name = name.replace("mlp.gate.", "block_sparse_moe.gate.")
    for ours, theirs in [("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")]:
        name = name.replace(ours, theirs) if ".experts." in name else name
    return name.replace("mlp.experts", "block_sparse_moe.experts")


def gradients(folder):
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    )
    if hasattr(model.config, "_experts_implementation"):
        model.config._experts_implementation = "eager"
    tokens = [torch.tensor(tokenizer().encode(text).ids) for text in TEXTS]
    labels = sum(len(t) - 1 for t in tokens)
    total = 0
    for sequence in tokens:
        logits = model(sequence[None]).logits[0]
        total = total + cross_entropy(logits[:-1], sequence[1:], reduction="sum") / labels
    total.backward()
    out = {
        "tokens": torch.cat(tokens).to(torch.int32),
        "lengths": torch.tensor([len(t) for t in tokens], dtype=torch.int32),
        "loss": total.detach().float().reshape(1),
    }
    for name, parameter in model.named_parameters():
        for part, values in split(name, parameter.grad).items():
            part = in_mixtral(part) if model.config.model_type == "mixtral" else part
            out[part] = values.float().contiguous()
    with safe_open(folder / "model.safetensors", "pt") as file:
        missing = {k for k in file.keys() if "bias" not in k} - out.keys()
    assert not missing, f"{folder}: no gradient for {sorted(missing)}"
    save_file(out, str(folder / "gradients.safetensors"))
    print(folder.name, labels, "labels, loss", total.item())


def main():
    torch.set_num_threads(1)
    tokens = tokenizer()
    for seed, make in enumerate([mixtral, qwen3_moe, glm4_moe], 21):
        model = make()
        randomise(model, seed)
        write(make.__name__, model, tokens)
    for name in ["llama", "llama_untied", "mixtral", "qwen3_moe", "glm4_moe"]:
        gradients(FIXTURES / name)


if __name__ == "__main__":
    main()
