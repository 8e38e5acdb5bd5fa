"""Writes ../fixtures/experts.safetensors: one department expert beside every feed-forward of the
checkpoint ../fixtures/llama, with the loss over a text and its gradients, computed in float64.

A layer's feed-forward becomes  y = shared(x) + sigmoid(router . x) * expert(x),  x being the
hidden state after the post-attention norm and expert(x) = down(silu(gate x) * up x).

Needs `pip install torch transformers`. Run checkpoints.py first, then: python experts.py
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn
from torch.nn.functional import cross_entropy, silu
from transformers import AutoModelForCausalLM

FIXTURES = Path(__file__).parent.parent / "fixtures"
WIDTH = 16
TEXT = "The pump of line 2 is stopped by the red switch. Check the valve every 12 weeks."


class WithExpert(nn.Module):
    def __init__(self, shared, hidden):
        super().__init__()
        self.shared = shared
        # Rounded to float32, in which they are stored.
        draw = lambda *shape: nn.Parameter(torch.randn(*shape).double() * 1.2 / shape[-1] ** 0.5)
        self.router = draw(hidden)
        self.gate = draw(WIDTH, hidden)
        self.up = draw(WIDTH, hidden)
        self.down = draw(hidden, WIDTH)

    def forward(self, x):
        expert = (silu(x @ self.gate.T) * (x @ self.up.T)) @ self.down.T
        return self.shared(x) + torch.sigmoid(x @ self.router)[..., None] * expert


def main():
    folder = FIXTURES / "llama"
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    )
    for parameter in model.parameters():
        parameter.requires_grad = False
    tokens = torch.tensor(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids)
    torch.manual_seed(11)
    parts = ["router", "gate", "up", "down"]
    for layer in model.model.layers:
        layer.mlp = WithExpert(layer.mlp, model.config.hidden_size)
        for part in parts:
            parameter = getattr(layer.mlp, part)
            parameter.data = parameter.data.float().double()

    logits = model(tokens[None]).logits[0]
    loss = cross_entropy(logits[:-1], tokens[1:])
    loss.backward()

    out = {
        "tokens": tokens.to(torch.int32),
        "loss": loss.detach().float().reshape(1),
        "log_probs": logits.detach().log_softmax(-1).float().contiguous(),
    }
    for i, layer in enumerate(model.model.layers):
        for part in parts:
            parameter = getattr(layer.mlp, part)
            out[f"layers.{i}.{part}"] = parameter.detach().float()
            out[f"grad.layers.{i}.{part}"] = parameter.grad.float()
    save_file(out, str(FIXTURES / "experts.safetensors"))
    print(len(tokens), "tokens, loss", loss.item())


main()
