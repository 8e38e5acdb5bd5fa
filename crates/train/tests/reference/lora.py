"""Writes ../fixtures/lora: an adapter that PEFT made beside the model crate's llama checkpoint, with
random A and B, and beside it reference.safetensors: logits of two sequences, their loss, and its
gradient with respect to A and B, computed in float64.

With `check BASE ADAPTER MERGED` it compares an adapter that `artel tune` wrote, which PEFT puts beside
BASE, with the model that has it merged.

Needs `pip install torch transformers peft`. Made with torch 2.15, transformers 5.24 and peft 0.21.
"""

import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
BASE = HERE / "../../../model/tests/fixtures/llama"
FIXTURE = HERE / "../fixtures/lora"
LENGTHS = [23, 17]


def sequences(vocab):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, vocab, (length,), generator=generator) for length in LENGTHS]


def make():
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    config = LoraConfig(
        r=3, lora_alpha=7.5, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"],
        task_type="CAUSAL_LM", init_lora_weights=False,
    )
    model = get_peft_model(base, config)
    model.peft_config["default"].base_model_name_or_path = "llama"
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.2)
    model.save_pretrained(FIXTURE)
    (FIXTURE / "README.md").unlink(missing_ok=True)
    model.double()
    tokens = sequences(base.config.vocab_size)
    logits = [model(t[None]).logits[0] for t in tokens]
    labels = sum(LENGTHS) - len(LENGTHS)
    loss = sum(cross_entropy(l[:-1], t[1:], reduction="sum") for l, t in zip(logits, tokens)) / labels
    loss.backward()
    tensors = {
        name.replace(".default", ""): parameter.grad.float().contiguous()
        for name, parameter in model.named_parameters() if "lora_" in name
    }
    tensors["tokens"] = torch.cat(tokens).float()
    tensors["logits"] = torch.cat(logits).float().detach().contiguous()
    tensors["loss"] = loss.float().detach().reshape(1)
    save_file(tensors, FIXTURE / "reference.safetensors")


def check(base, adapter, merged):
    load = lambda path: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()
    tuned = PeftModel.from_pretrained(load(base), adapter).double().eval()
    plain, whole = load(base), load(merged)
    with torch.no_grad():
        for tokens in sequences(plain.config.vocab_size):
            found, expected, before = (m(tokens[None]).logits for m in (whole, tuned, plain))
            print(
                f"adapter and merged model differ by {(found - expected).abs().max():.2e},",
                f"adapter and base by {(expected - before).abs().max():.2e}",
            )


check(*sys.argv[2:]) if sys.argv[1:2] == ["check"] else make()
