"""Clients of every kind against Artel's server. Called by `load`.

Before the load each question is asked alone; under load its answer must be the same to the last
character, as every question has a seed. Needs nothing but Python.
"""

import argparse
import asyncio
import collections
import json
import random
import signal
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from subprocess import PIPE, Popen
from urllib.parse import urlsplit

from models import models

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
WORDS = "pump valve press belt oil filter motor sensor pressure line stop start".split()


class Server:
    def __init__(self, program, args):
        self.log = tempfile.TemporaryFile()
        command = [program, "serve", "--model", str(args.model or models()[0]), "--listen", "127.0.0.1:0"]
        self.process = Popen([*command, "--threads", str(args.threads)], stdout=PIPE, stderr=self.log, text=True)
        self.port = urlsplit(self.process.stdout.readline().strip()).port
        if self.port is None:
            self.log.seek(0)
            sys.exit(f"the server does not start:\n{self.log.read().decode()}")

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return answer.read().decode()

    def metric(self, name):
        lines = [line.split() for line in self.get("/metrics").splitlines()]
        return next(float(value) for found, value in (line for line in lines if len(line) == 2) if found == name)

    def resident(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) * 1024

    def open_files(self):
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


class Connection:
    """One HTTP/1.1 exchange, so plain that everything can be done wrong."""

    def __init__(self, port):
        self.port = port

    async def __aenter__(self):
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        return self

    async def __aexit__(self, *_):
        self.writer.close()

    async def send(self, raw):
        self.writer.write(raw)
        await self.writer.drain()

    async def post(self, path, body, headers=()):
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", "connection: close",
                 "content-type: application/json", f"content-length: {len(raw)}", *headers]
        await self.send("\r\n".join(lines).encode() + b"\r\n\r\n")
        await self.send(raw)

    async def head(self):
        status = int((await self.reader.readline()).split()[1])
        headers = {}
        while line := (await self.reader.readline()).strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return status, headers

    async def parts(self, headers):
        """The body in the parts in which it comes."""
        if headers.get("transfer-encoding") != "chunked":
            yield await self.reader.read()
            return
        while size := int(await self.reader.readline(), 16):
            yield await self.reader.readexactly(size)
            await self.reader.readexactly(2)

    async def whole(self):
        status, headers = await self.head()
        return status, headers, b"".join([part async for part in self.parts(headers)])


def questions(count, tokens):
    """Requests with seeds: free ones, penalised ones, JSON, calls of tools, several choices."""
    draw = random.Random(1)
    schema = {"type": "object", "properties": {"on": {"type": "boolean"}, "part": {"enum": WORDS}},
              "required": ["on", "part"], "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "look", "parameters": schema}}
    kinds = [
        {},
        {"top_p": 0.9, "min_p": 0.01, "frequency_penalty": 0.4},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
        {"repetition_penalty": 1.3, "top_k": 30, "n": 2},
        {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False},
    ]
    for number in range(count):
        words = " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 12)))
        body = {"seed": number, "max_tokens": draw.randint(8, tokens), **kinds[number % len(kinds)]}
        if number % 7 == 6:
            yield TEXT, {"prompt": words, "seed": number, "max_tokens": tokens, "logprobs": 1}
        else:
            yield CHAT, {"messages": [{"role": "user", "content": words}], **body}


def said(answer):
    """What is compared: texts and calls of the choices, without ids."""
    def one(choice):
        message = choice.get("message") or {}
        calls = [call["function"] for call in message.get("tool_calls") or []]
        return choice.get("text"), message.get("content"), calls, choice["finish_reason"]
    return [one(choice) for choice in answer["choices"]]


def assembled(data):
    """The same of a streamed answer."""
    choices = collections.defaultdict(lambda: {"text": None, "message": {"content": None, "tool_calls": []}})
    for line in data.decode().splitlines():
        if not line.startswith("data: {"):
            continue
        part = json.loads(line[6:])
        if "error" in part:
            raise RuntimeError(part["error"]["message"])
        for piece in part["choices"]:
            choice = choices[piece["index"]]
            if "text" in piece:
                choice["text"] = (choice["text"] or "") + piece["text"]
            delta = piece.get("delta", {})
            if delta.get("content"):
                choice["message"]["content"] = (choice["message"]["content"] or "") + delta["content"]
            for call in delta.get("tool_calls", []):
                if "id" in call:
                    choice["message"]["tool_calls"].append({"function": call["function"]})
                else:
                    choice["message"]["tool_calls"][-1]["function"]["arguments"] += call["function"]["arguments"]
            choice["finish_reason"] = piece["finish_reason"]
    for choice in choices.values():
        if not choice["message"]["tool_calls"] and choice["text"] is None:
            choice["message"]["content"] = choice["message"]["content"] or ""
    return said({"choices": [choices[index] for index in sorted(choices)]})


class Load:
    def __init__(self, server, args):
        self.server, self.args, self.counts, self.wrong = server, args, collections.Counter(), []
        self.asked, self.alone = list(questions(40, args.tokens)), []

    def check(self, right, what):
        if not right:
            self.wrong.append(what)

    async def ask(self, number, stream=False, pause=0.0):
        """A question's answer; none where the server has no room."""
        path, body = self.asked[number]
        async with Connection(self.server.port) as connection:
            await connection.post(path, {**body, "stream": True} if stream else body)
            status, headers = await connection.head()
            data = b""
            async for part in connection.parts(headers):
                data += part
                if pause:
                    await asyncio.sleep(random.random() * pause)
        if status == 429:
            self.check("retry-after" in headers, "429 without Retry-After")
            return None
        if status != 200:
            raise RuntimeError(f"{status} {data[:200]}")
        return assembled(data) if stream else said(json.loads(data))

    async def answer(self, number, **how):
        answer = await self.ask(number, **how)
        self.counts["no room (429)" if answer is None else "answered"] += 1
        self.check(answer in (None, self.alone[number]), f"question {number}: {answer} is not {self.alone[number]}")

    async def cancel(self, number):
        path, body = self.asked[number]
        async with Connection(self.server.port) as connection:
            await connection.post(path, {**body, "stream": True, "max_tokens": 200})
            for _ in range(random.randint(0, 12)):
                if not await connection.reader.readline():
                    break
            if random.random() < 0.5:
                # Without a word, as when a cable is pulled.
                connection.writer.transport.abort()
        self.counts["left early"] += 1

    async def refused(self):
        """Something wrong, and the status it must have."""
        message = [{"role": "user", "content": "x"}]
        chat = {"messages": message}
        deep = b'{"messages":' + b"[" * 5000
        path, body, expected = random.choice([
            (CHAT, b"{" * 20, 400), (CHAT, deep, 400), (CHAT, b"\xff\xfe", 400), (CHAT, b"", 400),
            (CHAT, {**chat, "temprature": 1}, 400), (CHAT, {**chat, "temperature": "hot"}, 400),
            (CHAT, {**chat, "top_p": 7}, 400), (CHAT, {"messages": []}, 400), (CHAT, {**chat, "model": "gpt-9"}, 404),
            (CHAT, {"messages": [{"role": "user", "content": "word " * 20_000}]}, 400),
            (CHAT, {**chat, "guided_regex": "("}, 400), (CHAT, {**chat, "tool_choice": "required"}, 400),
            (TEXT, {"prompt": [10**6]}, 400), (TEXT, {"prompt": "x", "best_of": 9}, 400),
            (CHAT, {**chat, "experts": ["alchemy"]}, 400), ("/v1/nothing", {}, 404), ("/health", {}, 405),
        ])
        async with Connection(self.server.port) as connection:
            await connection.post(path, body)
            status, _, data = await connection.whole()
        self.check(status == expected, f"{path} {str(body)[:80]}: {status} instead of {expected}")
        self.check(b'"error"' in data, f"{path} {str(body)[:80]}: no error in {data[:80]}")
        self.counts["refused"] += 1

    async def oversize(self):
        async with Connection(self.server.port) as connection:
            try:
                await connection.post(CHAT, b" " * (5 << 20))
            except ConnectionError:
                pass  # It has answered before it has read all.
            try:
                status, _, _ = await connection.whole()
                self.check(status == 413, f"too large a body: {status} instead of 413")
            except (ConnectionError, IndexError):
                self.counts["too large, cut off"] += 1
        self.counts["too large"] += 1

    async def broken(self):
        """What is no HTTP, or ends within a head or a body."""
        async with Connection(self.server.port) as connection:
            await connection.send(random.choice([
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"GET / HTTP/9.9\r\n\r\n", b"POST " + b"/" * 70000,
                b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{",
                b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
                b"GET /metrics HTTP/1.1\r\nhost: local", b"",
            ]))
            await asyncio.sleep(random.random())
        self.counts["broken off"] += 1

    async def client(self, end):
        while time.monotonic() < end:
            number, kind = random.randrange(len(self.asked)), random.random()
            try:
                if kind < 0.30:
                    await self.answer(number)
                elif kind < 0.55:
                    await self.answer(number, stream=True)
                elif kind < 0.65:
                    await self.answer(number, stream=True, pause=0.5)
                elif kind < 0.80:
                    await self.cancel(number)
                elif kind < 0.92:
                    await self.refused()
                elif kind < 0.95:
                    await self.oversize()
                else:
                    await self.broken()
            except Exception as error:
                self.check(False, f"{type(error).__name__}: {error}")
            if self.server.process.poll() is not None:
                sys.exit("the server has ended")

    async def run(self):
        for number in range(len(self.asked)):
            self.alone.append(await self.ask(number))
        # Once with everybody, so that what is allocated once is.
        await asyncio.gather(*(self.client(time.monotonic() + 3) for _ in range(self.args.clients)))
        await self.idle()
        before, files = self.server.resident(), self.server.open_files()
        end = time.monotonic() + self.args.seconds
        await asyncio.gather(*(self.client(end) for _ in range(self.args.clients)))
        await self.idle()
        for number in range(len(self.asked)):
            self.check(await self.ask(number) == self.alone[number], f"question {number}: another answer afterwards")
        await self.idle()
        self.check_memory(before, files)

    async def idle(self):
        for _ in range(600):
            health = json.loads(self.server.get("/health"))
            if health["running"] == 0 and health["queued"] == 0:
                return
            await asyncio.sleep(0.1)
        self.check(False, f"a minute after the last client there is still work: {health}")

    def check_memory(self, before, files):
        running = self.server.metric("artel_kv_running_bytes")
        kept, limit = (self.server.metric(f"artel_kv_{name}_bytes") for name in ("prefix", "limit"))
        after, open_files = self.server.resident(), self.server.open_files()
        print(f"memory: {before / 1e6:.0f} MB before, {after / 1e6:.0f} MB after; the ledger holds"
              f" {running / 1e6:.1f} MB for requests and {kept / 1e6:.1f} MB of prompts, of {limit / 1e6:.0f} MB;"
              f" open files: {files} before, {open_files} after")
        self.check(running == 0, f"{running} bytes are set aside for no request")
        # What malloc keeps for the next request is not given back at once.
        self.check(after < before + 64e6, "the process has grown by more than 64 MB")
        self.check(open_files < files + 20, "files stay open")


def main():
    parser = argparse.ArgumentParser(prog="bench/load", description=__doc__.splitlines()[0])
    parser.add_argument("artel", help="the program")
    parser.add_argument("--model", type=Path, help="a GGUF file or a folder [default: the first of models.py]")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--tokens", type=int, default=48, help="most tokens of an answer")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    server = Server(args.artel, args)
    load = Load(server, args)
    try:
        asyncio.run(load.run())
        server.process.send_signal(signal.SIGTERM)
        load.check(server.process.wait(timeout=60) == 0, "the server did not end as it should")
    finally:
        server.process.kill()
    print(f"{args.clients} clients, {args.seconds:.0f} s:", ", ".join(f"{n} {what}" for what, n in sorted(load.counts.items())))
    for what, times in collections.Counter(load.wrong).most_common(20):
        print(f"WRONG, {times} times: {what}")
    print(f"{len(load.wrong)} wrong")
    sys.exit(bool(load.wrong))


main()
