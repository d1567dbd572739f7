"""Which models a command line serves: those to be loaded at start, and those that come when they are asked for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from server.config.names import with_served_names
from server.config.settings import ModelsFile, ModelSpec
from server.config.unlisted import Chosen, choose


@dataclass(frozen=True, slots=True)
class Served:
    """The models of a server. The first is that of requests that name none; `said` are lines for the operator."""

    specs: tuple[ModelSpec, ...]
    said: tuple[str, ...]


def choose_served(
    names: Sequence[str], file: ModelsFile | None, *, called: Sequence[str] = (), only: bool = False
) -> Served:
    """The models that `names` stand for, which are loaded at start, and all others of the file, unless `only` these.

    Without names the file says what is loaded at start. With names its `startup` models are loaded on demand, since
    others were asked for; `pinned` ones stay pinned. `called` are further names of the only model that is loaded.
    Raises `ConfigError`.
    """
    if names:
        chosen = choose(names, file)
        chosen = Chosen(tuple(_at_start(spec) for spec in chosen.specs), chosen.said)
    else:
        assert file is not None, "without a file there are names"
        chosen = Chosen(file.at_startup, ())
    specs = with_served_names(chosen.specs, called)
    if file is None or only:
        return Served(specs, chosen.said)
    known = {spec.name for spec in chosen.specs}
    rest = [spec for spec in file.models if spec.name not in known]
    if names:
        rest = [replace(spec, load="on_demand") if spec.load == "startup" else spec for spec in rest]
    everything = (*specs, *_without_names_of(specs, rest))
    if not names:  # the default answers requests that name no model, be it loaded or not
        everything = tuple(sorted(everything, key=lambda spec: file.default not in (spec.name, *spec.aliases)))
    return Served(everything, chosen.said)


def _at_start(spec: ModelSpec) -> ModelSpec:
    return replace(spec, load="startup") if spec.load == "on_demand" else spec


def _without_names_of(specs: Iterable[ModelSpec], others: Iterable[ModelSpec]) -> list[ModelSpec]:
    """The others, without those whose name is taken by now, and without aliases that are."""
    taken = {name for spec in specs for name in (spec.name, *spec.aliases)}
    left = [spec for spec in others if spec.name not in taken]
    return [replace(spec, aliases=tuple(alias for alias in spec.aliases if alias not in taken)) for spec in left]
