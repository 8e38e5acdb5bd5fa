"""Artel's server against llama_cpp.server, in turn, in one run. Called by `serve`.

Both are given the same prompts by the same clients, each of which asks one question after the
other, and stream answers of equal length; figures are medians over the rounds.
"""

import argparse
import http.client
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from urllib.parse import urlsplit

from models import models

# Single tokens in most vocabularies; what they say does not change the work.
WORDS = (
    " the of and to in is for that on with as are by from at an be this which or was it not"
    " have new more can all time will when water line work state first part place year system"
).split()


# Tokens that end an answer, in one vocabulary or another.
ENDS = ["<|im_end|>", "<|endoftext|>", "<eos>", "<end_of_turn>", "</s>"]


class Server:
    """A server's process, reached over loopback."""

    def __init__(self, name, command, environment=None, port=None):
        self.name, self.log = name, tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env={**os.environ, **(environment or {})},
        )
        # Artel says where it listens, and takes a free port.
        self.port = port or urlsplit(self.process.stdout.readline().strip()).port
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.1)
        self.log.seek(0)
        sys.exit(f"{name} does not serve:\n{self.log.read().decode()}")

    def stop(self):
        self.process.terminate()
        self.process.wait()

    def tokens(self, text):
        """The text's tokens. Artel's alone: both have one vocabulary."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request("POST", "/tokenize", json.dumps({"content": text}))
        return json.loads(connection.getresponse().read())["tokens"]

    def complete(self, model, prompt, tokens, ends):
        """Streams an answer; seconds to its first token, and what the answer reports of the
        prompt's tokens."""
        body = {
            "model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True,
            # The answer must not end before its length.
            "logit_bias": {str(end): -100 for end in ends},
        }
        if self.name == "artel":
            body["stream_options"] = {"include_usage": True}
        start = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{self.name}: {response.status} {response.read().decode()}")
        first, usage, written = None, None, 0
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            if first is None:
                first = time.perf_counter() - start
            written += 1
            if b'"usage":{' in line:
                usage = json.loads(line[6:])["usage"]
        connection.close()
        if written < tokens * 0.8:
            raise RuntimeError(f"{self.name}: the answer had {written} parts for {tokens} tokens")
        return first, usage


class Prompts:
    """Texts of so many tokens; no two begin alike."""

    def __init__(self, artel):
        self.artel, self.random = artel, random.Random(1)
        ends = map(artel.tokens, ENDS)
        self.ends = [tokens[0] for tokens in ends if len(tokens) == 1]

    def text(self, tokens, beginning=""):
        words = beginning or self.random.choice(WORDS)
        while (missing := tokens - len(self.artel.tokens(words))) > 0:
            words += "".join(" " + self.random.choice(WORDS) for _ in range(missing))
        return words


def load(server, model, prompts, clients, tokens, ends):
    """Each client asks its share of the prompts; seconds in all, and those to each first token."""
    shares, firsts, failures = [prompts[i::clients] for i in range(clients)], [], []

    def client(share):
        try:
            for prompt in share:
                firsts.append(server.complete(model, prompt, tokens, ends)[0])
        except Exception as failure:
            failures.append(failure)

    threads = [threading.Thread(target=client, args=(share,)) for share in shares]
    start = time.perf_counter()
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    if failures:
        raise failures[0]
    return time.perf_counter() - start, firsts


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(args, path):
    """Artel's server, and the peer's unless Artel is measured alone."""
    threads = str(args.threads)
    ours = Server(
        "artel",
        [args.artel, "serve", "--model", str(path), "--listen", "127.0.0.1:0", "--threads", threads],
    )
    if args.alone:
        return [ours]
    port = free_port()
    theirs = Server(
        "llama_cpp.server",
        [sys.executable, "-m", "llama_cpp.server", "--model", str(path), "--host", "127.0.0.1",
         "--port", str(port), "--n_ctx", "2048", "--n_batch", "512", "--n_threads", threads,
         "--n_threads_batch", threads, "--interrupt_requests", "False", "--verbose", "False"],
        port=port,
    )
    return [ours, theirs]


def compare(servers, name, prompts, args, clients):
    """The servers under the same load: the tokens a second of each."""
    requests = max(16, clients)
    speeds, firsts = [[] for _ in servers], [[] for _ in servers]
    for _ in range(args.rounds):
        texts = [prompts.text(args.prompt) for _ in range(requests)]
        for side, server in enumerate(servers):
            seconds, waited = load(server, name, texts, clients, args.tokens, prompts.ends)
            speeds[side].append(requests * (args.prompt + args.tokens) / seconds)
            firsts[side] += waited
    speeds = [statistics.median(speed) for speed in speeds]
    for server, speed, waited in zip(servers, speeds, firsts):
        print(f"{name}, {clients} clients, {server.name}: {speed:.0f} tokens/s, first token after"
              f" {statistics.median(waited):.2f} s, p95 {percentile(waited, 0.95):.2f} s", flush=True)
    return speeds


def shared_prefix(server, name, prompts):
    """The time to the first token of prompts that begin with the same 1,000 tokens."""
    beginning = prompts.text(1000)
    asks = [prompts.text(1030, beginning) for _ in range(5)]
    (first, _), *later = [server.complete(name, text, 8, prompts.ends) for text in asks]
    reused = statistics.median(u["prompt_tokens_details"]["cached_tokens"] for _, u in later)
    seconds = statistics.median(seconds for seconds, _ in later)
    print(f"{name}, prompts that share 1,000 of 1,030 tokens: first token after {first:.3f} s, of"
          f" later ones after {seconds:.3f} s, {reused:.0f} tokens reused", flush=True)


def main():
    parser = argparse.ArgumentParser(prog="bench/serve", description=__doc__.splitlines()[0])
    parser.add_argument("artel", help="the program")
    parser.add_argument("models", nargs="*", help="GGUF files [default: those of models.py]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=256, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--clients", type=int, nargs="*", default=[8, 32],
                        help="the first gives the ratio")
    parser.add_argument("--alone", action="store_true", help="measure Artel only: no ratio")
    args = parser.parse_intermixed_args()
    lowest = float("inf")
    for path in args.models or models():
        servers = start(args, path)
        prompts, name = Prompts(servers[0]), os.path.basename(path)
        try:
            for server in servers:
                # Once before, so that weights and memory are there.
                server.complete(name, prompts.text(args.prompt), 8, prompts.ends)
            speeds = [compare(servers, name, prompts, args, clients) for clients in args.clients]
            shared_prefix(servers[0], name, prompts)
        finally:
            [server.stop() for server in servers]
        lowest = min(lowest, speeds[0][0] / speeds[0][-1])
    if not args.alone:
        print(f"ratio {lowest:.3f}")


main()
