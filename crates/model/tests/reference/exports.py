"""Loads exported models with transformers and llama.cpp and compares what they compute with the
fixtures. Needs `pip install torch transformers accelerate gguf xllamacpp`.

Run in the workspace: ARTEL_EXPORTS=/tmp/exports cargo test -p model --test it -- --ignored exports
then: python exports.py /tmp/exports
"""

import json
import sys
import urllib.request
from pathlib import Path

import torch
from gguf import GGUFReader
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

FIXTURES = Path(__file__).parent.parent / "fixtures"
TEXT = "The pump is hot: stop line 2."
CHAT = [{"role": "user", "content": "Stop the pump."}]


def compare(what, found, expected, tolerance):
    off = (found - expected).abs().max().item()
    print(f"{what}: largest difference {off:.2e}")
    assert off <= tolerance, what


def with_transformers(name, folder, expected, **options):
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    ids = tokenizer(TEXT, add_special_tokens=False).input_ids
    assert ids == expected["tokens"].tolist(), (name, ids)
    reference = AutoTokenizer.from_pretrained(FIXTURES / name)
    render = lambda t: t.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert render(tokenizer) == render(reference), name
    assert (tokenizer.bos_token, tokenizer.eos_token) == (reference.bos_token, reference.eos_token)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    compare(f"{name} in transformers {options}", logits.log_softmax(-1), expected["log_probs"], 1e-5)


def with_llama_cpp(path, expected, tolerance):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 256
    params.warmup = False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)

    def post(route, body):
        request = urllib.request.Request(
            server.listening_address + route, json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        return json.load(urllib.request.urlopen(request))

    tokens = post("/tokenize", {"content": TEXT, "add_special": False})["tokens"]
    assert tokens == expected["tokens"].tolist(), tokens
    special = post("/tokenize", {"content": "<|im_end|>", "parse_special": True})["tokens"]
    assert special == [2], special
    # The server gives no probabilities where the likeliest token ends the answer.
    for end in range(len(tokens), 0, -1):
        answer = post("/completion", {
            "prompt": tokens[:end], "n_predict": 1, "n_probs": 300, "temperature": 0,
        })
        if "completion_probabilities" in answer:
            break
    top = answer["completion_probabilities"][0]["top_logprobs"]
    found = torch.tensor([entry["logprob"] for entry in top])
    expected = expected["log_probs"][end - 1][[entry["id"] for entry in top]]
    compare(f"{path.name} in llama.cpp after {end} tokens", found, expected, tolerance)


def main():
    folder = Path(sys.argv[1])
    for name in ["llama", "llama_untied", "granitemoeshared"]:
        expected = load_file(str(FIXTURES / name / "expected.safetensors"))
        with_transformers(name, folder / name, expected)
        for suffix in ["gguf", "q8_0.gguf"]:
            path = folder / f"{name}.{suffix}"
            reader = GGUFReader(path)
            print(path.name, len(reader.tensors), "tensors", len(reader.fields), "fields")
            # With q8_0, llama.cpp rounds weights and activations to 8 bits.
            with_llama_cpp(path, expected, 0.5 if "q8_0" in suffix else 2e-3)
        if name != "granitemoeshared":
            with_transformers(name, folder, expected, gguf_file=f"{name}.gguf")


main()
