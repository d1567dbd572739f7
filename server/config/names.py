"""The names that models answer to: aliases, with `*` for any text, and `--served-name`."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from engine.errors import ConfigError
from server.config.settings import ModelSpec

ANY = "*"


class ModelNames:
    """Aliases of models. An alias without `*` goes before all others, and of those the one with the longest text."""

    def __init__(self, aliases: Mapping[str, str], models: Iterable[str] = ()) -> None:
        """`aliases` has a model's full name for each; `models` are the full names of those that need have none."""
        self._names: dict[str, list[str]] = {full: [full] for full in (*models, *aliases.values())}
        for alias, full in aliases.items():
            self._names[full].append(alias)
        self._meant: dict[str, frozenset[str]] = {}
        self._exact = {alias: name for alias, name in aliases.items() if ANY not in alias}
        patterns = sorted((alias for alias in aliases if ANY in alias), key=lambda alias: -len(alias.replace(ANY, "")))
        self._patterns = [(_pattern(alias), aliases[alias]) for alias in patterns]

    def full(self, name: str) -> str | None:
        """The full name of the model that an alias stands for, None where it is none."""
        if (known := self._exact.get(name)) is not None:
            return known
        return next((full for pattern, full in self._patterns if pattern.fullmatch(name)), None)

    def meant_by(self, entry: str) -> frozenset[str]:
        """The full names of the models that a key may use with this entry among its `models`.

        An entry is a name, an alias, or a pattern (`*`, `?`, `[...]`) of either, aliases with `*` as they are written.
        One that matches none means what a request under that name would get, by an alias with `*`: only then, since
        an alias of any text would else give each key its model.
        """
        # Asked for with every request of such a key. What is remembered are entries of the operator's file.
        if (known := self._meant.get(entry)) is None:
            known = self._meant[entry] = self._find_meant(entry)
        return known

    def _find_meant(self, entry: str) -> frozenset[str]:
        written = frozenset(
            full for full, names in self._names.items() if any(fnmatchcase(name, entry) for name in names)
        )
        full = self.full(entry)
        return written or frozenset(() if full is None else (full,))


def with_served_names(specs: Sequence[ModelSpec], names: Sequence[str]) -> tuple[ModelSpec, ...]:
    """The models, the only one of them under other names: the first without `*` is what it is called from now on.

    It answers to its former names too. Raises `ConfigError` where there are several models to give the names to.
    """
    if not names:
        return tuple(specs)
    if len(specs) != 1:
        raise ConfigError(
            f"--served-name names one model, and {len(specs)} are to be served",
            hint="give each its aliases in models.yaml",
        )
    (spec,) = specs
    called = next((name for name in names if ANY not in name), spec.name)
    aliases = dict.fromkeys((spec.name, *spec.aliases, *names))
    return (dataclasses.replace(spec, name=called, aliases=tuple(alias for alias in aliases if alias != called)),)


def _pattern(alias: str) -> re.Pattern[str]:
    # Text between two stars is looked for without going back, so that no name takes long.
    first, *others = alias.split(ANY)
    middle = "".join(f"(?>.*?{re.escape(text)})" for text in others[:-1])
    return re.compile(f"{re.escape(first)}{middle}.*{re.escape(others[-1])}", re.DOTALL)
