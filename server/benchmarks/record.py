"""What a measurement must say about itself to be worth keeping: when, where, with what, and how it was started."""

import datetime
import importlib.metadata
import json
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from server.commit import known_commit

COMMAND = "server.commands.cli"
"""The module that is `headrace`."""
PACKAGES = ("headrace", "torch", "triton", "transformers", "tokenizers", "uvicorn", "pyzmq", "msgspec")


def circumstances() -> dict[str, Any]:
    """Date, command line, commit, versions and machine, as plain data for JSON."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([*_program(), *map(without_folders, sys.argv[1:])]),
        "commit": known_commit() or "unknown",
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """The processor, the cores this process may use, memory, GPUs, and how busy the machine was already."""
    return {
        "cpu": _cpu_model(),
        "gpus": _gpu_names(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def percentile(values: list[float], percent: float) -> float:
    """Nearest rank: the smallest value that at least `percent` % of all do not exceed; 0 of no values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else 0.0


def write_json(path: str, value: dict[str, Any]) -> None:
    """Write a result, making its directory if need be."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, padded so that it reads well in a terminal too."""
    widths = [max(2, *(len(row[i]) for row in [header, *rows])) for i in range(len(header))]
    lines = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in [header, *rows]]
    rule = ["-" * (width - 1) + ":" for width in widths]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def _program() -> list[str]:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        name = Path(sys.argv[0]).name
        return [name] if not name.endswith(".py") else ["python", name]
    name = spec.name.removesuffix(".__main__")
    return ["headrace"] if name == COMMAND else ["python", "-m", name]


def without_folders(text: str) -> str:
    """An argument without the folders of this machine."""
    return Path(text).name if Path(text).is_absolute() else text


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu_names() -> list[str]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    try:
        query = [command, "--query-gpu=name", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.strip().splitlines()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
