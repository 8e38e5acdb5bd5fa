"""Loads exported models with transformers and llama.cpp and compares what they compute with the
fixtures. Needs `pip install torch transformers accelerate gguf`, and `pip install llama-cpp-python`,
in one environment or in two.

Run in the workspace: ARTEL_EXPORTS=/tmp/exports cargo test -p model --test it -- --ignored exports
then: python exports.py transformers /tmp/exports
      python exports.py llama.cpp /tmp/exports      compares with what the first left there
"""

import json
import sys
from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).parent.parent / "fixtures"
TEXT = "The pump is hot: stop line 2."
CHAT = [{"role": "user", "content": "Stop the pump."}]
JOINED = ["llama", "llama_untied", "granitemoeshared"]


def compare(what, found, expected, tolerance):
    off = np.abs(found - expected).max().item()
    print(f"{what}: largest difference {off:.2e}", flush=True)
    return off <= tolerance


def log_softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def with_transformers(name, folder, **options):
    """Log-probabilities of the text, and whether they are those of the fixture."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    expected = load_file(str(FIXTURES / name / "expected.safetensors"))
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    ids = tokenizer(TEXT, add_special_tokens=False).input_ids
    assert ids == expected["tokens"].tolist(), (name, ids)
    reference = AutoTokenizer.from_pretrained(FIXTURES / name)
    render = lambda t: t.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert render(tokenizer) == render(reference), name
    assert (tokenizer.bos_token, tokenizer.eos_token) == (reference.bos_token, reference.eos_token)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    with torch.no_grad():
        found = model(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()
    what = f"{name} in transformers {options or ''}"
    return found, compare(what, found, expected["log_probs"].numpy(), 1e-5)


def transformers(folder):
    good = True
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        config, fixture = (json.loads((f / path.name / "config.json").read_text())
                           for f in (folder, FIXTURES))
        found, same = with_transformers(path.name, path)
        # What GGUF cannot express was changed in both files.
        changed = any(
            config.get(key) != fixture[key] for key in ["norm_topk_prob", "query_pre_attn_scalar"]
            if key in fixture
        ) or path.name == "deepseek_v2"
        good &= same or changed
        np.save(folder / f"{path.name}.npy", found)
    for name in JOINED[:2]:
        good &= with_transformers(name, folder, gguf_file=f"{name}.gguf")[1]
    return good


def llama_cpp(folder):
    from llama_cpp import Llama

    good = True
    for path in sorted(folder.glob("*.gguf")):
        expected = np.load(folder / f"{path.name.split('.')[0]}.npy")
        if path.stem == "deepseek_v2":
            # llama.cpp takes only models of 26 or 27 layers for those that expand no queries.
            print(f"{path.name}: not loaded by llama.cpp")
            continue
        try:
            llama = Llama(
                str(path), n_ctx=256, logits_all=True, verbose=False, type_k=0, type_v=0,
                flash_attn=False,
            )
        except ValueError as error:
            print(path.name, error)
            good = False
            continue
        tokens = llama.tokenize(TEXT.encode(), add_bos=False, special=False)
        assert len(tokens) == len(expected), tokens
        assert llama.tokenize(b"<|im_end|>", add_bos=False, special=True) == [2]
        llama.eval(tokens)
        found = log_softmax(np.array(llama.scores[: len(tokens)], dtype=np.float64))
        # With q8_0, llama.cpp rounds weights and activations to 8 bits.
        good &= compare(f"{path.name} in llama.cpp", found, expected, 1 if "q8_0" in path.name else 2e-3)
    return good


if __name__ == "__main__":
    programs = {"transformers": transformers, "llama.cpp": llama_cpp}
    sys.exit(0 if programs[sys.argv[1]](Path(sys.argv[2])) else "not all agree")
