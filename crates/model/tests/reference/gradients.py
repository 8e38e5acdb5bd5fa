"""Writes gradients.safetensors beside small checkpoints in ../fixtures/: the loss over two
sequences, its gradient with respect to every tensor, and how many tokens each expert got, computed
by transformers in float64. Makes the checkpoints of families.py, too.

Needs `pip install torch transformers accelerate gguf`. Made with torch 2.15 and transformers 5.24. Run checkpoints.py
first, then: python gradients.py [NAME …]
"""

import re
import sys

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from checkpoints import FIXTURES, randomise, tokenizer, write
from families import FAMILIES

TEXTS = [
    "The pump of line 2 is stopped by the red switch.",
    "Check the valve every 12 weeks, and the oil when the pump is hot.",
]


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


def in_granite(name):
    """The other way round: Granite's files name the stacked experts otherwise than the model."""
    for ours, theirs in [
        ("experts.gate_up_proj", "input_linear.weight"), ("experts.down_proj", "output_linear.weight"),
        ("router.weight", "router.layer.weight"),
    ]:
        name = name.replace(f"block_sparse_moe.{ours}", f"block_sparse_moe.{theirs}")
    return name


RENAMED = {"mixtral": in_mixtral, "granitemoe": in_granite}


def count_loads(model):
    """Collects how many tokens each expert of each layer gets."""
    loads = {}

    def count(module, inputs, output, name):
        _, _, chosen = output
        experts = module.weight.shape[0]
        loads[name] = loads.get(name, 0) + torch.bincount(chosen.flatten(), minlength=experts)

    for name, module in model.named_modules():
        if "topkrouter" in type(module).__name__.lower():
            module.register_forward_hook(lambda m, i, o, name=name: count(m, i, o, name))
    return loads


def gradients(folder):
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    )
    if hasattr(model.config, "_experts_implementation"):
        model.config._experts_implementation = "eager"
    loads = count_loads(model)
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
    if loads:
        out["loads"] = torch.stack(list(loads.values())).to(torch.int32)
    rename = RENAMED.get(model.config.model_type, lambda name: name)
    for name, parameter in model.named_parameters():
        for part, values in split(name, parameter.grad).items():
            out[rename(part)] = values.float().contiguous()
    with safe_open(folder / "model.safetensors", "pt") as file:
        missing = {k for k in file.keys() if "correction_bias" not in k} - out.keys()
    assert not missing, f"{folder}: no gradient for {sorted(missing)}"
    save_file(out, str(folder / "gradients.safetensors"))
    print(folder.name, labels, "labels, loss", total.item())


def main():
    torch.set_num_threads(1)
    tokens = tokenizer()
    only = sys.argv[1:]
    for seed, make in FAMILIES.items():
        if not only or make.__name__ in only:
            model = make()
            randomise(model, seed)
            write(make.__name__, model, tokens)
    for name in ["llama", "llama_untied", *(make.__name__ for make in FAMILIES.values())]:
        if not only or name in only:
            gradients(FIXTURES / name)


if __name__ == "__main__":
    main()
