"""Artel against PyTorch at training a whole model, in turn, in one run. Called by `train-dense` and
`train-moe`.

Both sides begin with the same weights, see the same batches and move by AdamW at the same constant
rate, clipped alike; weights and optimiser states are f32 on both. A figure is the median over the steps of all
rounds. The last line is Artel's tokens a second divided by those of the fastest PyTorch variant.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig

SHAPE = dict(
    vocab_size=8192, hidden_size=384, num_hidden_layers=6, num_attention_heads=6,
    num_key_value_heads=6, head_dim=64, intermediate_size=1024, max_position_embeddings=256,
    rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    pad_token_id=None, use_cache=False, dtype="float32",
)
MOE = dict(
    num_experts=32, num_experts_per_tok=4, moe_intermediate_size=256, norm_topk_prob=True,
    output_router_logits=False,
)
RATE, DECAY, CLIP = 1e-3, 0.1, 1.0
EXPERTS = ["eager", "batched_mm", "grouped_mm"]


def batches(steps, sequences, tokens):
    """Text-like: each token leads to one of four others, the first of them most often."""
    torch.manual_seed(7)
    vocab = SHAPE["vocab_size"]
    after = torch.randint(vocab, (vocab, 4))
    out = []
    for _ in range(steps):
        rows = [torch.randint(vocab, (sequences,))]
        for _ in range(tokens - 1):
            which = torch.multinomial(torch.tensor([0.6, 0.2, 0.1, 0.1]), sequences, True)
            rows.append(after[rows[-1], which])
        out.append(torch.stack(rows, 1))
    return out


class Torch:
    """One way to train in PyTorch."""

    def __init__(self, folder, name, dtype, compiled, experts):
        self.name, self.dtype = name, dtype
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa",
            **({"experts_implementation": experts} if experts else {}),
        )
        self.model = model.train()
        matrices = [p for p in model.parameters() if p.dim() > 1]
        others = [p for p in model.parameters() if p.dim() == 1]
        groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=1e-8, fused=True)
        self.forward = torch.compile(self.loss) if compiled else self.loss

    def loss(self, tokens):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == "bf16"):
            logits = self.model(tokens).logits
        return torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten()
        )

    def step(self, tokens):
        """Loss, and seconds."""
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.forward(tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        return loss.item(), time.perf_counter() - start


def artel(program, folder, threads, steps):
    """Losses, and tokens a second."""
    command = [program, "bench", "train", "--model", folder, "--batches", folder / "batches.jsonl",
               "--steps", steps, "--learning-rate", RATE, "--threads", threads]
    run = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True)
    lines = run.stdout.splitlines()
    print(lines[-2], flush=True)
    return [float(loss) for loss in lines[0].split()[1:]], float(lines[-1].split()[1])


def variants(what, only):
    """Every way that PyTorch is tried in: name, type, compiled, experts."""
    for compiled, dtype in itertools.product([False, True], ["f32", "bf16"]):
        for experts in EXPERTS if what == "moe" else [None]:
            parts = ["compile" if compiled else "no compile", dtype, *filter(None, [experts])]
            name = " ".join(parts)
            if not only or name in only:
                yield name, dtype, compiled, experts


def batched_memory(tokens):
    """What is to say if the weights that `batched_mm` copies for each token do not fit, or None."""
    each = 3 * MOE["moe_intermediate_size"] * SHAPE["hidden_size"] * 4
    need = SHAPE["num_hidden_layers"] * tokens * MOE["num_experts_per_tok"] * each
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if need > free:
        return f"copies weights for each token, {need / 1e9:.0f} GB of {free / 1e9:.0f} GB free"
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["dense", "moe"])
    parser.add_argument("artel", help="the program")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="steps of a round")
    parser.add_argument("--curve", type=int, default=40, help="steps of the loss curves")
    parser.add_argument("--only", action="append", help="a variant by name, as it is printed")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        compare(args, Path(folder))


def compare(args, folder):
    torch.manual_seed(1)
    config = LlamaConfig(**SHAPE) if args.what == "dense" else Qwen3MoeConfig(**SHAPE, **MOE)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    data = batches(args.curve, 8, 256)
    with open(folder / "batches.jsonl", "w") as file:
        file.writelines(json.dumps(step.tolist()) + "\n" for step in data)

    sides = {}
    for name, dtype, compiled, experts in variants(args.what, args.only):
        if experts == "batched_mm" and (missing := batched_memory(data[0].numel())):
            print(f"{name}: does not run: {missing}", flush=True)
            continue
        try:
            side = Torch(folder, name, dtype, compiled, experts)
            # Compiling happens in the first steps, which do not count.
            losses = [side.step(data[step])[0] for step in range(2)]
            sides[name] = (side, [])
            print(f"{name}: ready, losses {losses[0]:.4f} {losses[1]:.4f}", flush=True)
        except Exception as error:
            print(f"{name}: does not run: {str(error).splitlines()[0][:120]}", flush=True)
    ours, position = [], 2
    for _ in range(args.rounds):
        ours.append(artel(args.artel, folder, args.threads, args.steps + 2)[1])
        for side, times in sides.values():
            for step in range(args.steps):
                times.append(side.step(data[(position + step) % len(data)])[1])
        position += args.steps

    tokens = data[0].numel()
    rates = {name: tokens / statistics.median(times) for name, (_, times) in sides.items()}
    ours = statistics.median(ours)
    for name, rate in sorted(rates.items(), key=lambda item: item[1]):
        print(f"PyTorch {name}: {rate:.0f} tokens/s")
    print(f"artel: {ours:.0f} tokens/s")
    curve(args, folder, data)
    print(f"ratio {ours / max(rates.values()):.3f}")


def curve(args, folder, data):
    """The losses of both sides on the same batches; PyTorch in f32, and in bf16."""
    sides = {"artel": artel(args.artel, folder, args.threads, len(data))[0]}
    for dtype in ["f32", "bf16"]:
        side = Torch(folder, dtype, dtype, False, "grouped_mm" if args.what == "moe" else None)
        sides[f"PyTorch {dtype}"] = [side.step(step)[0] for step in data]
    shown = [0, *range(len(data) // 8 - 1, len(data), max(len(data) // 8, 1))]
    for name, losses in sides.items():
        print(f"loss, {name}: " + " ".join(f"{losses[i]:.3f}" for i in shown))
    exact = sides["PyTorch f32"]
    for name in ["artel", "PyTorch bf16"]:
        largest = max(abs(a - b) for a, b in zip(sides[name], exact))
        print(f"largest difference to PyTorch f32, {name}: {largest:.4f} nats")


if __name__ == "__main__":
    main()
