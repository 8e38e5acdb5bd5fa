"""Artel against llama.cpp, in turn, in one run. Called by `decode` and `prefill`.

Both sides read the same number of tokens and take the likeliest token; a figure is the median over
the rounds. The last line is Artel's figure divided by llama.cpp's, the lowest over the models.
"""

import argparse
import ctypes
import statistics
import subprocess
import time

import llama_cpp as llama
import numpy

from models import mixture, models


class Llama:
    """A model in llama.cpp, with nothing between it and the clock but ctypes."""

    def __init__(self, path, threads):
        self.model = llama.llama_model_load_from_file(
            str(path).encode(), llama.llama_model_default_params()
        )
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = 1024, 512, 512
        params.n_threads = params.n_threads_batch = threads
        self.context = llama.llama_init_from_model(self.model, params)
        vocab = llama.llama_model_get_vocab(self.model)
        self.vocab = llama.llama_vocab_n_tokens(vocab)

    def clear(self):
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)

    def step(self, tokens):
        """Reads the tokens; the likeliest next one."""
        array = (llama.llama_token * len(tokens))(*tokens)
        if llama.llama_decode(self.context, llama.llama_batch_get_one(array, len(tokens))) != 0:
            raise RuntimeError("llama_decode failed")
        logits = llama.llama_get_logits_ith(self.context, -1)
        return int(numpy.ctypeslib.as_array(logits, shape=(self.vocab,)).argmax())

    def decode(self, prompt, count):
        """Tokens a second, by the median token."""
        self.clear()
        token = self.step([100 + i % 50 for i in range(prompt)])
        times = []
        for _ in range(count):
            start = time.perf_counter()
            token = self.step([token])
            times.append(time.perf_counter() - start)
        return 1 / statistics.median(times)

    def prefill(self, prompt, repeats):
        """Tokens a second, by the median of the repeats."""
        tokens, times = [100 + i % 50 for i in range(prompt)], []
        for _ in range(repeats + 1):
            self.clear()
            start = time.perf_counter()
            self.step(tokens)
            times.append(time.perf_counter() - start)
        return prompt / statistics.median(times[1:])


def artel(program, what, model, threads, *arguments):
    """The figure that `artel bench` prints last."""
    command = [program, "bench", what, str(model), "--threads", str(threads), *map(str, arguments)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(run.stdout.splitlines()[-1].split()[1])


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def silent(level, text, data):
    pass


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["decode", "prefill"])
    parser.add_argument("artel", help="the program")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, help="tokens of the prompt [default: 32 or 512]")
    parser.add_argument("--tokens", type=int, default=128, help="tokens to write")
    args = parser.parse_args()
    llama.llama_log_set(silent, ctypes.c_void_p(0))
    llama.llama_backend_init()
    lowest = float("inf")
    for model in [*models(), mixture()]:
        prompt = args.prompt or (32 if args.what == "decode" else 512)
        if args.what == "decode":
            count = ["--tokens", args.tokens]
        else:
            count = ["--rounds", 3]
        peer = Llama(model, args.threads)
        ours, theirs = [], []
        for _ in range(args.rounds):
            ours.append(artel(args.artel, args.what, model, args.threads, "--prompt", prompt, *count))
            theirs.append(getattr(peer, args.what)(prompt, count[1]))
        ours, theirs = statistics.median(ours), statistics.median(theirs)
        lowest = min(lowest, ours / theirs)
        print(f"{model.name}: artel {ours:.1f} tokens/s, llama.cpp {theirs:.1f}: {ours / theirs:.2f}",
              flush=True)
    print(f"ratio {lowest:.3f}")


main()
