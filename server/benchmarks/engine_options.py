"""The options of commands that load a model by themselves."""

import argparse
import dataclasses
from pathlib import Path
from typing import get_args

from engine.config import Activations, Dtype, EngineConfig, KvDtype, Quantization
from server.benchmarks.amounts import count
from server.offline.local import find_spec

SETTINGS = (
    "dtype",
    "quantization",
    "kv_dtype",
    "activations",
    "device",
    "tensor_parallel",
    "context",
    "memory",
    "threads",
)


def add_engine(parser: argparse.ArgumentParser) -> None:
    """The options that `config_of` reads."""
    which = parser.add_argument_group("which model, and how it runs")
    which.add_argument(
        "model", nargs="?", metavar="MODEL",
        help="a name of models.yaml, a directory, a .gguf file, a hub id or random://ARCHITECTURE [its default]",
    )  # fmt: skip
    which.add_argument("--models", metavar="FILE", type=Path, help="the file that names the models [models.yaml]")
    add_settings(which)


def add_settings(which: "argparse._ArgumentGroup") -> None:
    """The options that `configured` reads."""
    which.add_argument("--dtype", choices=get_args(Dtype), help="number format of weights and arithmetic")
    which.add_argument("--quantization", choices=get_args(Quantization), help="of the weights: as they are, or FP8")
    which.add_argument("--kv-dtype", choices=get_args(KvDtype), help="of the KV cache: the model's, or FP8")
    which.add_argument("--activations", choices=get_args(Activations), help="beside a GGUF file's own weights on a CPU")
    which.add_argument("--device", help="auto, cpu, cuda or cuda:N")
    which.add_argument("--tensor-parallel", type=count, metavar="N", help="GPUs that share the model")
    which.add_argument("--context", type=count, metavar="TOKENS", help="longest prompt plus answer")
    which.add_argument("--memory", help="KV cache: auto, a fraction such as 0.5, or a size such as 4GiB")
    which.add_argument("--threads", type=count, help="CPU threads of the engine")


def config_of(options: argparse.Namespace, *, max_num_seqs: int = 0) -> EngineConfig:
    """What the options say, without a prefix cache. Raises `ConfigError`."""
    if options.model and options.model.startswith("random://"):
        base = EngineConfig(name=options.model.removeprefix("random://"), source=options.model)
    else:
        base = find_spec(options.model, options.models).engine_config()
    config = configured(base, options)
    return dataclasses.replace(config, prefix_cache=False, max_num_seqs=max_num_seqs or config.max_num_seqs)


def configured(base: EngineConfig, options: argparse.Namespace) -> EngineConfig:
    """What the options say, in place of what a configuration does."""
    given = {name: getattr(options, name) for name in SETTINGS if getattr(options, name) is not None}
    return dataclasses.replace(base, **given)
