"""Writes ../fixtures/pieces.json and ../fixtures/splits.json: vocabularies of GGUF files, with the
tokens that sentencepiece, and llama.cpp, give for texts.

Needs `pip install sentencepiece gguf llama-cpp-python`. Made with sentencepiece 0.2.3, gguf 0.19 and
llama-cpp-python 0.3.36.

Run: python vocabularies.py
"""

import collections
import io
import json
import tempfile
from pathlib import Path

import gguf
import numpy as np
import sentencepiece

from llama_cpp import Llama

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
CORPUS = Path(__file__).resolve().parents[4] / "README.md"
TEXTS = [
    "Stop the pump of line 2, then wait 12 minutes.",
    "  Two spaces,   three; a tab\tand\n\na blank line\r\n  end ",
    "don't WE'LL I'm it's",
    "1234567 3.1415 2026-11-25 x1y22",
    "Störung 17 — wer hilft? Ça va, où ?",
    "中文字符 和 かな カナ 한국어 mixed",
    "fn main() { println!(\"{}\", a[i] += 1); } // e.g. http://x.y/z?q=1",
    "CamelCaseWord HTTPServer iPhone\u00e9\u0301",
    "🛑 stop 👍🏽!",
    "a",
    "x  \n  y\n",
]
MARKED = "<s>Stop</s> the pump<s>"
SPLITS = ["gpt-2", "smollm", "llama-bpe", "chatglm-bpe", "qwen2", "deepseek-llm", "deepseek-coder",
          "deepseek-v3", "gpt-4o", "tekken"]


def pieces():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.read_text().splitlines() * 2), model_writer=model,
        model_type="bpe", vocab_size=700, byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, split_digits=True,
        minloglevel=2)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    count = processor.vocab_size()
    kinds = [2 if processor.is_unknown(i) else 3 if processor.is_control(i)
             else 6 if processor.is_byte(i) else 1 for i in range(count)]
    found = dict(
        tokens=[processor.id_to_piece(i) for i in range(count)], types=kinds,
        scores=[processor.get_score(i) for i in range(count)], texts=TEXTS,
        ids=[processor.encode(TEXTS), [without_prefix(processor, text) for text in TEXTS]],
        marked=MARKED)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pieces.gguf"
        writer = vocabulary(path, "llama", found["tokens"], kinds)
        writer.add_token_scores(found["scores"])
        close(writer)
        other = Llama(str(path), vocab_only=True, verbose=False)
        for text, ids in zip(TEXTS, found["ids"][0]):
            theirs = other.tokenize(text.encode(), add_bos=False, special=False)
            assert theirs == ids, (text, theirs, ids)
        found["marked_ids"] = other.tokenize(MARKED.encode(), add_bos=False, special=True)
    write("pieces.json", found)


def without_prefix(processor, text):
    """The tokens of the text, no space before it."""
    # A line break is no piece of this vocabulary, so nothing is merged over it.
    newline = processor.piece_to_id("<0x0A>")
    ids = processor.encode("\n" + text)
    at = ids.index(newline)
    return ids[at + 1:]


def splits():
    """Merges that know no words, so that each split shows."""
    letters = byte_letters()
    words = ["".join(letters[byte] for byte in text.encode()) for text in TEXTS]
    tokens = list(letters.values())
    merges = []
    parts = [list(word) for word in words]
    while pairs := collections.Counter(pair for part in parts for pair in zip(part, part[1:])):
        pair = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(list(pair))
        if "".join(pair) not in tokens:
            tokens.append("".join(pair))
        parts = [merge(part, pair) for part in parts]
    types = [1] * len(tokens)
    ids = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in SPLITS:
            path = Path(folder) / f"{name}.gguf"
            writer = vocabulary(path, "gpt2", tokens, types)
            writer.add_tokenizer_pre(name)
            writer.add_token_merges([" ".join(merge) for merge in merges])
            close(writer)
            other = Llama(str(path), vocab_only=True, verbose=False)
            ids[name] = [other.tokenize(text.encode(), add_bos=False, special=False)
                         for text in TEXTS]
            back = [other.detokenize(list).decode() for list in ids[name]]
            assert back == TEXTS, (name, back)
    write("splits.json", dict(tokens=tokens, types=types, merges=merges, texts=TEXTS, ids=ids))


def merge(part, pair):
    out = []
    for letter in part:
        if out and (out[-1], letter) == pair:
            out[-1] = out[-1] + letter
            # What was just made is not merged again in this round.
            out.append(None)
        else:
            out.append(letter)
    return [letter for letter in out if letter is not None]


def byte_letters():
    """GPT-2's alphabet."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return {byte: chr(byte if byte in printable else next(others)) for byte in range(256)}


def vocabulary(path, model, tokens, types):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    return writer


def close(writer):
    writer.add_tensor("output_norm.weight", np.ones(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write(name, value):
    (FIXTURES / name).write_text(json.dumps(value, ensure_ascii=False) + "\n")


pieces()
splits()
