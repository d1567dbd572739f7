"""The file of `--keys`: who may ask, for what, and how much.

    keys:
      - name: alice
        sha256: 0f4c...     # of the key; `headrace keys new alice` makes both
        rights: [use, metrics]
        models: [smollm2, "Qwen/*"]
        requests_per_minute: 60
        tokens_per_minute: 20000
        concurrent_answers: 4

The file holds no key, and no complaint about it repeats what stands where one might have been put by mistake.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import yaml

from engine.errors import ConfigError
from server.config.models_file import Field, Section, parse_mapping, read_yaml

Right = Literal["use", "admin", "metrics"]
ALL_RIGHTS: frozenset[Right] = frozenset(get_args(Right))
USE_ONLY: frozenset[Right] = frozenset({"use"})
NAME = re.compile(r"\w[\w.@:/+-]{0,63}")
"""What a key may be called: it stands in the log, so it has no spaces, quotes or control characters."""
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_OF_NOTHING = hashlib.sha256(b"").digest()
_FILE_FIELDS = {"keys": Field("list", required=True, secret=True)}
_KEY_FIELDS = {
    "name": Field("text", required=True),
    "sha256": Field("text", required=True, secret=True),
    "rights": Field("texts", choices=get_args(Right)),
    "models": Field("texts"),
    "requests_per_minute": Field("limit"),
    "tokens_per_minute": Field("limit"),
    "concurrent_answers": Field("limit"),
    "weight": Field("number"),
    "lowest_priority": Field("integer"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyEntry:
    """One key of the file. A limit of None is none; one of 0 lets nothing pass."""

    name: str
    digest: bytes
    """SHA-256 of the key."""
    rights: frozenset[Right] = USE_ONLY
    """`admin` includes the others."""
    models: tuple[str, ...] | None = None
    """Names, aliases and patterns (`*`, `?`, `[...]`) of the models that it may use; None for all."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Of prompts and answers together."""
    concurrent_answers: int | None = None
    weight: float = 1.0
    """Its share of a model that several keys wait for."""
    lowest_priority: int | None = None
    """The lowest `priority`, which is the most urgent, that its requests may ask for; None for any."""


def load_keys_file(path: Path) -> tuple[KeyEntry, ...]:
    """Read and check the file. Raises `ConfigError` for whatever is wrong, with the line."""
    tree = read_yaml(path, option="--keys", needs="`keys`, a list that may be empty: []")
    top = parse_mapping(tree, path.name, _FILE_FIELDS, "the file", secret=True)
    nodes: list[yaml.Node] = top.values["keys"]
    sections = [parse_mapping(node, path.name, _KEY_FIELDS, "a key", secret=True) for node in nodes]
    entries = tuple(_entry(section) for section in sections)
    names: dict[str, Section] = {}
    digests: dict[bytes, Section] = {}
    for entry, section in zip(entries, sections, strict=True):
        if (other := names.setdefault(entry.name, section)) is not section:
            raise section.error("name", f"the name {entry.name!r} is taken by line {other.line('name')} already")
        if (other := digests.setdefault(entry.digest, section)) is not section:
            raise section.error("sha256", f"{entry.name} has the key of line {other.line('sha256')}; each has its own")
    return entries


def _entry(section: Section) -> KeyEntry:
    values = dict(section.values)
    if not NAME.fullmatch(values["name"]):
        raise section.error(
            "name", "a name is at most 64 letters, digits and . _ @ : / + -, and begins with a letter or digit"
        )
    text = values.pop("sha256")
    digest = bytes.fromhex(text) if _DIGEST.fullmatch(text) else _OF_NOTHING
    if digest == _OF_NOTHING:
        raise section.error(
            "sha256", "sha256 must be the SHA-256 of the key, 64 hex digits", hint="headrace keys new NAME prints it"
        )
    if values.get("weight", 1.0) <= 0:
        raise section.error("weight", f"weight must be more than 0, got {values['weight']:g}")
    if "rights" in values:
        values["rights"] = frozenset(values["rights"])
    if "models" in values:
        values["models"] = tuple(values["models"])
    return KeyEntry(digest=digest, **values)


def check_name(name: str) -> str:
    """A name for a key. Raises `ConfigError`."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            "a key's name is at most 64 letters, digits and . _ @ : / + -, and begins with a letter or digit"
        )
    return name
