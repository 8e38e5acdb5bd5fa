"""Writes small random checkpoints with a block that predicts the token after the next to ../fixtures/,
with the gradients of the loss of both predictions, as gradients.py does for models without.

transformers has no such block. Here it is its one-layer model, given what eh_proj makes of the embedding
and the hidden row in place of embeddings: that model's layer is the block's, its final norm shared_head.norm.

Needs what gradients.py needs. Run: python mtp.py
"""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
)

from checkpoints import FIXTURES, SHAPE, randomise, tokenizer, write
from families import LATENT, TINY
from gradients import TEXTS, count_loads, split

# Of the loss of the further token.
WEIGHT = 0.3


def glm4_moe_mtp(**changed):
    rope = {**SHAPE["rope_parameters"], "partial_rotary_factor": 1.0}
    config = Glm4MoeConfig(**{
        **TINY, "rope_parameters": rope, "head_dim": 8, "moe_intermediate_size": 8,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
        "first_k_dense_replace": 0, "use_qk_norm": True, "norm_topk_prob": True,
        "intermediate_size": 24, "num_nextn_predict_layers": 1, **changed,
    })
    return Glm4MoeForCausalLM(config)


def deepseek_v3_mtp(**changed):
    config = DeepseekV3Config(**{
        **TINY, **LATENT, "tie_word_embeddings": False, "q_lora_rank": 12, "n_shared_experts": 1,
        "routed_scaling_factor": 1.5, "norm_topk_prob": True, "num_nextn_predict_layers": 1, **changed,
    })
    return DeepseekV3ForCausalLM(config)


def renamed(name, layers):
    """A name of the one-layer model in the file; none for what the block shares."""
    if name == "model.norm.weight":
        return f"model.layers.{layers}.shared_head.norm.weight"
    if name.startswith("model.layers.0."):
        return name.replace("layers.0.", f"layers.{layers}.")
    return None


def stored(model):
    """The model's tensors as its files hold them."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")


def own_parts(seed):
    generator = torch.Generator().manual_seed(seed)
    hidden = TINY["hidden_size"]
    return {
        "enorm": 1 + 0.2 * torch.randn(hidden, generator=generator),
        "hnorm": 1 + 0.2 * torch.randn(hidden, generator=generator),
        "eh_proj": torch.randn(hidden, 2 * hidden, generator=generator) * 1.5 / (2 * hidden) ** 0.5,
    }


def make(build, seed):
    model, block = build(), build(num_hidden_layers=1, first_k_dense_replace=0)
    randomise(model, seed)
    randomise(block, seed + 1)
    experts = block.config.n_routed_experts
    block.model.layers[0].mlp.gate.e_score_correction_bias = torch.linspace(-0.2, 0.3, experts)
    write(build.__name__, model, tokenizer())
    layers = model.config.num_hidden_layers
    file = FIXTURES / build.__name__ / "model.safetensors"
    tensors = load_file(file)
    parts = own_parts(seed + 2)
    tensors |= {f"model.layers.{layers}.{name}.weight": part for name, part in parts.items()}
    for name, values in stored(block).items():
        if renamed(name, layers):
            tensors[renamed(name, layers)] = values
    save_file(tensors, file, {"format": "pt"})
    gradients(build.__name__, block, parts)


def norm(x, weight, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def gradients(name, block, parts):
    folder = FIXTURES / name
    # Reads the main model out of the file with the block, which it leaves out.
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    )
    block = block.double()
    for each in [model, block]:
        each.config._attn_implementation = "eager"
        each.config._experts_implementation = "eager"
    parts = {name: part.double().requires_grad_() for name, part in parts.items()}
    loads, further_loads = count_loads(model), count_loads(block)
    tokens = [torch.tensor(tokenizer().encode(text).ids) for text in TEXTS]
    labels, further_labels = (sum(len(t) - ahead for t in tokens) for ahead in [1, 2])
    eps = model.config.rms_norm_eps
    loss = further = 0
    for sequence in tokens:
        hidden = model.model(sequence[None]).last_hidden_state
        logits = model.lm_head(hidden)[0]
        loss = loss + cross_entropy(logits[:-1], sequence[1:], reduction="sum") / labels
        embedded = model.model.embed_tokens(sequence[None, 1:-1])
        pair = torch.cat([
            norm(embedded, parts["enorm"], eps), norm(hidden[:, :-2], parts["hnorm"], eps),
        ], dim=-1)
        out = block.model(inputs_embeds=pair @ parts["eh_proj"].T).last_hidden_state
        logits = model.lm_head(out)[0]
        further = further + cross_entropy(logits, sequence[2:], reduction="sum") / further_labels
    (loss + WEIGHT * further).backward()
    layers = model.config.num_hidden_layers
    out = {
        "tokens": torch.cat(tokens).to(torch.int32),
        "lengths": torch.tensor([len(t) for t in tokens], dtype=torch.int32),
        "loss": loss.detach().float().reshape(1),
        "mtp_loss": further.detach().float().reshape(1),
        "loads": torch.stack([*loads.values(), *further_loads.values()]).to(torch.int32),
    }
    for name, part in parts.items():
        out[f"model.layers.{layers}.{name}.weight"] = part.grad.float().contiguous()
    for name, parameter in model.named_parameters():
        out |= {n: v.float().contiguous() for n, v in split(name, parameter.grad).items()}
    for name, parameter in block.named_parameters():
        if renamed(name, layers):
            for part, values in split(name, parameter.grad).items():
                out[renamed(part, layers)] = values.float().contiguous()
    missing = {k for k in load_file(folder / "model.safetensors") if "bias" not in k} - out.keys()
    assert not missing, f"{folder}: no gradient for {sorted(missing)}"
    save_file(out, folder / "gradients.safetensors")
    print(folder.name, "losses", loss.item(), further.item())


if __name__ == "__main__":
    torch.set_num_threads(1)
    make(glm4_moe_mtp, 41)
    make(deepseek_v3_mtp, 51)
