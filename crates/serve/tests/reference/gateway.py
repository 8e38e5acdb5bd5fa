"""Two replicas behind the gateway `smg`, one of which is killed while clients ask.

    python gateway.py PATH-OF-ARTEL [POLICY-OF-THE-GATEWAY [MODEL]]

Needs the Python package `smg`. The busier replica is killed (with the policy `cache_aware` the only one that is
busy, as all questions begin alike; the default is `round_robin`). Before, while and after a replica is killed (SIGKILL), every question must
get the answer that it gets from a replica alone; only what the killed one was answering may fail, and only
until the gateway has noticed. Exits with 1 where something is wrong.
"""

import collections
import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

program = sys.argv[1]
fixture = Path(__file__).parents[3] / "model/tests/fixtures/granitemoeshared"
policy = sys.argv[2] if len(sys.argv) > 2 else "round_robin"
model = sys.argv[3] if len(sys.argv) > 3 else str(fixture)
QUESTIONS = 200


def start_replica():
    command = [program, "serve", "--model", model, "--listen", "127.0.0.1:0", "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return process, process.stdout.readline().strip()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def get(url):
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read().decode()


def ask(url, name, number):
    """An answer's text, or what went wrong."""
    body = {"model": name, "messages": [{"role": "user", "content": f"Question {number}: is the pump on?"}],
            "max_tokens": 100, "temperature": 1.0, "seed": number}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(),
                                     {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["choices"][0]["message"]["content"]
    except (urllib.error.HTTPError, OSError) as error:
        return error


def round_of(url, name, expected, while_asking=None):
    """All questions at once, eight at a time: how many were answered rightly, and what went wrong."""
    counts = collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        asked = {pool.submit(ask, url, name, number): number for number in expected}
        for index, done in enumerate(concurrent.futures.as_completed(asked)):
            if while_asking and index == len(expected) // 4:
                while_asking()
            answer, right = done.result(), expected[asked[done]]
            counts["right" if answer == right else str(answer) if isinstance(answer, Exception) else "ANOTHER'S"] += 1
    return counts


def answered_by(replica):
    lines = get(f"{replica}/metrics").splitlines()
    mine = 'artel_requests_total{endpoint="/v1/chat/completions",status="200"}'
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith(mine))


def main():
    (first, first_url), (second, second_url) = start_replica(), start_replica()
    name = json.loads(get(f"{first_url}/v1/models"))["data"][0]["id"]
    expected = {number: ask(first_url, name, number) for number in range(QUESTIONS)}
    again = {number: ask(second_url, name, number) for number in range(QUESTIONS)}
    wrong = [] if expected == again else ["the replicas do not answer alike"]
    port = free_port()
    log = tempfile.TemporaryFile()
    command = [str(Path(sys.executable).parent / "smg"), "launch", "--host", "127.0.0.1", "--port", str(port),
               "--worker-urls", first_url, second_url, "--policy", policy, "--backend", "vllm",
               "--model-path", str(Path(model).resolve()), "--prometheus-port", str(free_port()),
               "--health-check-interval-secs", "1", "--health-failure-threshold", "1"]
    gateway = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            if not isinstance(ask(url, name, 0), Exception):
                break
            time.sleep(0.2)
        before = round_of(url, name, expected)
        shares = [answered_by(url) - QUESTIONS for url in (first_url, second_url)]
        busier, other = (first, second) if shares[0] >= shares[1] else (second, first)
        during = round_of(url, name, expected, lambda: busier.send_signal(signal.SIGKILL))
        time.sleep(3)
        after = round_of(url, name, expected)
        print("with two replicas:  ", dict(before), f"(answered by each: {shares})")
        print("while one is killed:", dict(during))
        print("with the other one: ", dict(after))
        wrong += [f"{what}: {counts}" for what, counts in (("before", before), ("after", after)) if set(counts) != {"right"}]
        if during["ANOTHER'S"] or during["right"] < QUESTIONS * 0.8:
            wrong.append(f"during: {during}")
        other.send_signal(signal.SIGTERM)
        if other.wait(timeout=60) != 0:
            wrong.append("a replica did not end as it should")
    finally:
        for process in (gateway, first, second):
            process.kill()
    if wrong:
        log.seek(0)
        print("WRONG:", "; ".join(wrong), "\n", log.read().decode()[-3000:])
    sys.exit(bool(wrong))


main()
