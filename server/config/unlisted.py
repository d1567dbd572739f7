"""Models that models.yaml does not list: a directory, a .gguf file or a hub id, served as it is and named after itself.

    choose(["smollm2", "./Phi-4", "~/models/gemma.Q4_K_M.gguf", "Qwen/Qwen3-0.6B@main"], file)

A name or alias of the file always comes first. What looks like a source is one; anything else is a mistake in a name.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ConfigError
from engine.weights.sources import HUB_ID, describe, is_path
from server.config.settings import ModelsFile, ModelSpec

_HUB_FOLDER = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
"""How the hub's cache calls the folder of a repository."""
_SCHEMES = ("package://", "random://")


@dataclass(frozen=True, slots=True)
class Chosen:
    """The models of a command line. `said` has a line for each that models.yaml does not list."""

    specs: tuple[ModelSpec, ...]
    said: tuple[str, ...]


def choose(names: Iterable[str], file: ModelsFile | None) -> Chosen:
    """The models that names, aliases and sources stand for, each once; no file where there is none.

    Raises `ConfigError` for a name that is none of these, for files that are not there, and for two models that would
    have one name.
    """
    specs: dict[str, ModelSpec] = {}
    said: list[str] = []
    for given in names:
        spec = None if file is None else file.get(given)
        if spec is None:
            spec = _unlisted(given, file)
            said.append(f"{given} is not in models.yaml; it is served as it is, as {spec.name}{_doubt(given, file)}")
        for name in (spec.name, *spec.aliases):
            if (other := specs.setdefault(name, spec)) != spec:
                raise ConfigError(
                    f"{other.source} and {spec.source} would both be called {name}",
                    hint="give them names in models.yaml",
                )
    return Chosen(tuple(dict.fromkeys(specs.values())), tuple(said))


def _unlisted(given: str, file: ModelsFile | None) -> ModelSpec:
    repository, _, revision = given.partition("@")
    if given.startswith(_SCHEMES) or is_path(given):
        state = describe(given)
        if state.state == "missing":
            raise ConfigError(
                state.location, hint="give a directory of weights, a .gguf file, or a name of models.yaml"
            )
        return ModelSpec(name=_name_of(given), source=given)
    if HUB_ID.fullmatch(repository):
        return ModelSpec(name=repository, source=repository, revision=revision or None)
    if file is None:
        raise ConfigError(f"{given!r} is no directory, no .gguf file and no hub id, and there is no models.yaml here")
    raise file.unknown(given)


def _doubt(given: str, file: ModelsFile | None) -> str:
    """A hub id may be a misspelt name of the file."""
    hint = file.nearest(given) if file is not None and not is_path(given) and not given.startswith(_SCHEMES) else None
    return f" ({hint})" if hint else ""


def _name_of(source: str) -> str:
    """A name for files: what they are called, and as the hub calls them if they lie in its cache."""
    location = re.sub(r"^\w+://|\?.*$", "", source)
    path = Path(location).expanduser().resolve()
    for part in path.parts:
        if path.is_dir() and (folder := _HUB_FOLDER.fullmatch(part)):
            return f"{folder[1]}/{folder[2]}"
    stem = path.stem if path.suffix in (".gguf", ".json") else path.name
    return re.sub(r"[^\w.-]+", "-", stem, flags=re.ASCII).strip("-.") or "model"
