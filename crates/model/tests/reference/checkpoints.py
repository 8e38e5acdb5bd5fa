"""Writes small random checkpoints to ../fixtures/ with what transformers computes from them.

Needs `pip install torch transformers accelerate gguf`. Made with torch 2.15 and transformers 5.24.

Run: python checkpoints.py                     the random checkpoints
     python checkpoints.py smollm2 FILE.gguf   and smollm2.json, from SmolLM2-135M-Instruct Q4_1
     python checkpoints.py tokens FILE.gguf    and smollm2_tokens.json, from the same file
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GraniteMoeSharedConfig,
    GraniteMoeSharedForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

FIXTURES = Path(__file__).parent.parent / "fixtures"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCAB = 300
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Merges are learned from this, so a few common words are short.
TEXT = """The pump of line 2 is stopped by the red switch. The valve is opened by hand.
Check the oil of the pump every 12 weeks; check the valve every 24 weeks.
The operator calls the maintenance team when the pump is hot, and stops the line."""


def tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([TEXT], trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    ))
    return tokenizer


def randomise(model, seed):
    """Weights large enough that every part of the model shows in the output."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                # Gemma's norms hold the distance from 1.
                centre = 0 if name.endswith("bias") or "gemma" in model.config.model_type else 1
                parameter.copy_(centre + 0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * 1.5 / parameter.shape[-1] ** 0.5)


def write(name, model, tokens_of):
    folder = FIXTURES / name
    model.eval()
    model.save_pretrained(folder)
    for unneeded in ["README.md"]:
        (folder / unneeded).unlink(missing_ok=True)
    tokens_of.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[1],
        "eos_token": SPECIAL[2],
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }, indent=2) + "\n")
    tokens = torch.tensor(tokens_of.encode("The pump is hot: stop line 2.", add_special_tokens=False).ids)
    with torch.no_grad():
        logits = model(tokens[None]).logits[0]
    save_file(
        {"tokens": tokens.to(torch.int32), "log_probs": logits.float().log_softmax(-1).contiguous()},
        str(folder / "expected.safetensors"),
    )
    print(name, len(tokens), "tokens", sorted(p.name for p in folder.iterdir()))


SHAPE = dict(
    vocab_size=VOCAB, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5,
    bos_token_id=1, eos_token_id=2, pad_token_id=None, dtype="float32",
    rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
)


def llama(tied):
    config = LlamaConfig(**SHAPE, intermediate_size=64, tie_word_embeddings=tied)
    model = LlamaForCausalLM(config)
    randomise(model, 1 if tied else 2)
    return model


def granite():
    config = GraniteMoeSharedConfig(
        **SHAPE, intermediate_size=16, shared_intermediate_size=32, num_local_experts=3,
        num_experts_per_tok=2, attention_multiplier=8 ** -0.5, tie_word_embeddings=True,
    )
    model = GraniteMoeSharedForCausalLM(config)
    randomise(model, 3)
    with torch.no_grad():
        for layer in model.model.layers:
            # The null expert stands last.
            layer.block_sparse_moe.router.weight[-1] = 0
            layer.block_sparse_moe.experts.gate_up_proj[-1] = 0
            layer.block_sparse_moe.experts.down_proj[-1] = 0
    return model


def checkpoints():
    tokens = tokenizer()
    write("llama", llama(tied=True), tokens)
    write("llama_untied", llama(tied=False), tokens)
    write("granitemoeshared", granite(), tokens)
    path = FIXTURES / "granitemoeshared" / "config.json"
    config = json.loads(path.read_text())
    config["artel"] = {"experts": ["maintenance", "sales"]}
    path.write_text(json.dumps(config, indent=2) + "\n")


SMOL_TEXT = """A milling machine removes material with a rotating cutter. The operator sets the \
spindle speed, the feed rate and the depth of cut. When the tool is worn, the surface becomes rough \
and the cutting force rises. In 1952 the first numerically controlled machine was shown at MIT; it \
read its program from punched tape. Today the same commands, such as G1 X10.5 F200, are still used \
to move the table along a straight line. Before starting, check that the clamps are tight, that the \
coolant flows, and that nobody stands near the machine."""


def smollm2(path):
    tokenizer = smol_tokenizer(path)
    tokens = torch.tensor(tokenizer.encode(SMOL_TEXT).ids)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        log_probs = model(tokens[None]).logits[0].log_softmax(-1)
    top = {}
    for position in [0, 1, 20, 60, len(tokens) - 1]:
        values, ids = log_probs[position].topk(5)
        top[position] = [[i, round(v, 6)] for i, v in zip(ids.tolist(), values.tolist())]
    next_log_probs = log_probs[:-1].gather(1, tokens[1:, None])[:, 0]
    (FIXTURES / "smollm2.json").write_text(json.dumps({
        "text": SMOL_TEXT,
        "tokens": tokens.tolist(),
        "next_log_probs": [round(v, 6) for v in next_log_probs.tolist()],
        "top5": top,
    }, indent=1) + "\n")
    print("smollm2", len(tokens), "tokens, mean log-probability", next_log_probs.mean().item())


def smol_tokenizer(path):
    """The tokenizer of the file. transformers leaves the file's pre-tokenizer "smollm" unread and
    would split as GPT-2 does; SmolLM2's own tokenizer.json and llama.cpp split every digit."""
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).backend_tokenizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


TEXTS = [
    "Hello, world!",
    "",
    " ",
    "  leading and trailing  ",
    "line one\nline two\r\n\r\n\tindented\n",
    "don't we'll they've I'D SHOULDN'T",
    "G54 X123.45 Y-0.001 F1200 (rapid  10 mm)",
    "1234567890 12  34   56",
    "½ Ⅷ ³ ٤٢ 数字12",
    "Überprüfen Sie die Ölpumpe täglich.",
    "注意:在启动机器之前检查油位。",
    "Проверьте насос. Ελληνικά. עברית. العربية.",
    "👩‍🔧 🔧🔩 e\u0301 \u00e9 \ufeff\u200b",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>",
    "<repo_name><file_sep>x<|im_end",
    "def f(x):\n    return x**2  # square\n",
    "https://example.com/a?b=c&d=%20#e",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "!!!???...---===___***",
]


def tokens(path):
    tokenizer = smol_tokenizer(path)
    cases = []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        # Without the special tokens being found in the text.
        tokenizer.encode_special_tokens = True
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        tokenizer.encode_special_tokens = False
        cases.append({"text": text, "ids": ids, "plain": plain, "decoded": tokenizer.decode(ids)})
    out = "[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n"
    (FIXTURES / "smollm2_tokens.json").write_text(out)
    print("smollm2_tokens", len(cases), "texts")


if __name__ == "__main__":
    FIXTURES.mkdir(exist_ok=True)
    if sys.argv[1:2] == ["smollm2"]:
        smollm2(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["tokens"]:
        tokens(Path(sys.argv[2]))
    else:
        checkpoints()
