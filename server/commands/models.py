"""`headrace models`: of every known model, whether it is ready, what it takes, its size, whether it fits, where it is.

Reads no network and imports no torch, so that it answers at once.
"""

import argparse
import sys
from pathlib import Path
from typing import TextIO

import psutil

from engine.errors import ConfigError
from engine.sizing.split import check_ranks
from engine.weights.random_model import shipped_config
from engine.weights.seeing import is_of_images, takes_images
from engine.weights.sources import SourceState, describe, told_config
from server.commands.fits import print_fits
from server.commands.table import readable_size, write_table
from server.config.settings import ModelsFile, ModelSpec, default_models_file, load_models_file
from server.fleet.devices import gpu_memories
from server.fleet.gpus import GPUS, parse_gpus

_SUITABLE_SHARE = 0.9
"""Of a machine's memory, what weights may take at most and still leave room for a KV cache."""
_GGUF_GROWTH = 3.4
"""bf16 weights per byte of a four-bit GGUF file: 16 bits for about 4.7."""


def add_models_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand; its handler is `run`, in the namespace's `handler`."""
    parser = subparsers.add_parser(
        "models",
        help="list the known models",
        description="List the known models: state, inputs, size, whether they fit here, and where their weights are.",
    )
    parser.add_argument("--models", metavar="FILE", type=Path, help="the file that names the models [models.yaml]")
    parser.add_argument(
        "--gpu", metavar="[Nx]GPU",
        help=f"what of them fits on this kind of GPU, or on several, with how much context and how fast at most, "
        f"instead: h200, 8xh200; of {', '.join(GPUS)}",
    )  # fmt: skip
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table; the exit code. Raises `ConfigError` if the file is wrong."""
    file = load_models_file(arguments.models or default_models_file())
    if arguments.gpu is not None:
        print_fits(file, parse_gpus(arguments.gpu), sys.stdout)
    else:
        print_models(file, sys.stdout)
    return 0


def print_models(file: ModelsFile, out: TextIO) -> None:
    """Write the table of a file's models to `out`."""
    gpu = gpu_memory()
    rows: list[tuple[str, ...]] = [("MODEL", "STATE", "INPUTS", "SIZE", "FITS", "WEIGHTS")]
    rows += [_row(spec, is_default=spec.name == file.default, gpu=gpu) for spec in file.models]
    write_table(rows, out)
    total = psutil.virtual_memory().total
    place = f"{readable_size(gpu)} of GPU memory" if gpu else f"{readable_size(total)} of memory, no GPU"
    out.write(f"\nThis machine has {place}. The default is marked with *; serve others with: headrace serve MODEL...\n")


def _row(spec: ModelSpec, *, is_default: bool, gpu: int | None) -> tuple[str, ...]:
    state, refusal = describe(spec.source, spec.revision), _refusal(spec)
    name = " = ".join((spec.name, *spec.aliases))
    size = state.size_bytes or spec.size
    return (
        ("* " if is_default else "  ") + name,
        "refused" if refusal else state.state,
        ", ".join(_inputs(state, spec)),
        readable_size(size) if size else "-",
        _fits(state, size, spec, gpu),
        refusal or state.location,
    )


def _refusal(spec: ModelSpec) -> str | None:
    """Why a model will not be loaded as the file has it, though its weights may be here."""
    try:
        check_ranks(spec.engine_config())
    except ConfigError as error:
        return f"{error.message}; {error.hint}"
    return None


def _inputs(state: SourceState, spec: ModelSpec) -> tuple[str, ...]:
    """What a model takes, by its configuration where that is here, else as the file says."""
    if state.directory is not None:
        return ("text", "image") if takes_images(state.directory) else ("text",)
    if state.kind == "gguf":
        return ("text",)
    told = told_config(spec.source, spec.revision) or shipped_config(spec.source) or {}
    return ("text", "image") if is_of_images(told) else spec.inputs


def _fits(state: SourceState, size: int | None, spec: ModelSpec, gpu: int | None) -> str:
    """Whether the weights leave room for anything else, on the GPU if there is one and the model may use it."""
    if size is None:
        return "-"
    needed = size * _GGUF_GROWTH if state.kind == "gguf" else size
    if gpu and spec.device != "cpu" and needed <= gpu * _SUITABLE_SHARE:
        return "yes"
    if needed > psutil.virtual_memory().total * _SUITABLE_SHARE or (gpu and spec.device != "cpu"):
        return "no"
    return "yes" if spec.device in ("auto", "cpu") else "no"


def gpu_memory() -> int | None:
    """Bytes of the first NVIDIA GPU, or None where there is none or its driver does not answer."""
    found = gpu_memories()
    return found[0].total if found else None
