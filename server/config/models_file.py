"""Reading a YAML file strictly: every value is checked against a table of fields, every complaint names its line."""

import difflib
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from engine.config import parse_memory, size_in_bytes
from engine.errors import ConfigError

Kind = Literal[
    "text", "texts", "words", "count", "limit", "integer", "number", "switch", "memory", "size", "list", "mapping"
]

_MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Field:
    """What a key may hold."""

    kind: Kind
    required: bool = False
    choices: tuple[str, ...] = ()
    secret: bool = False
    """No complaint repeats the value."""
    most: int | None = None
    """The largest count."""


@dataclass(frozen=True, slots=True)
class Section:
    """A checked mapping: its values, and where each key stands."""

    file: str
    values: dict[str, Any]
    lines: dict[str, int]
    first_line: int

    def line(self, key: str) -> int:
        """The line of a key, or of the whole section where the key is not given."""
        return self.lines.get(key, self.first_line)

    def error(self, key: str, message: str, *, hint: str | None = None) -> ConfigError:
        """An error at a key, to be raised."""
        return _error(self.file, self.line(key), message, hint)


def read_yaml(path: Path, *, option: str = "--models", needs: str = "`default` and `models`") -> yaml.Node:
    """The tree of a YAML file, with its positions. Raises `ConfigError` if it cannot be read or parsed.

    `option` is what names the file on the command line, `needs` what cannot be left out of it.
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ConfigError(f"{path.name} is larger than {_MAX_FILE_BYTES} bytes")
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}", hint=f"name another with {option} FILE"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name} is not UTF-8 text") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise _error(path.name, line, f"this is not YAML: {error.problem or error.context}", None) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path.name} is not YAML") from error
    if node is None:
        raise ConfigError(f"{path.name} is empty", hint=f"it needs {needs}")
    return node


def parse_mapping(node: yaml.Node, file: str, fields: dict[str, Field], what: str, *, secret: bool = False) -> Section:
    """Check a mapping against its fields. Raises `ConfigError` at the first key that is wrong.

    With `secret` a complaint does not repeat what stands in the mapping's place.
    """
    if not isinstance(node, yaml.MappingNode):
        given = "" if secret else f", {_given(node)}"
        raise _error(file, _line(node), f"{what} must be a mapping of keys to values{given}", None)
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        key, line = str(key_node.value), _line(key_node)
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1, cutoff=0.6)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(fields)}"
            raise _error(file, line, f"unknown key {key!r}", hint)
        if key in lines:
            raise _error(file, line, f"{key} is given twice, first in line {lines[key]}", None)
        values[key] = _value(value_node, file, key, fields[key])
        lines[key] = line
    for key, field in fields.items():
        if field.required and key not in values:
            raise _error(file, _line(node), f"{what} needs {key!r}", None)
    return Section(file, values, lines, _line(node))


def parse_list(section: Section, key: str) -> list[yaml.Node]:
    """The entries of a list, of which there must be one at least."""
    nodes: list[yaml.Node] = section.values[key]
    if not nodes:
        raise section.error(key, f"{key} must not be empty")
    return nodes


def _value(node: yaml.Node, file: str, key: str, field: Field) -> Any:
    if field.kind == "mapping":
        return node
    if field.kind == "words" and isinstance(node, yaml.ScalarNode):
        # YAML takes a bare `off` for a switch.
        return "off" if node.value == "off" else _scalar(node, file, key, Field("text"))
    if field.kind in ("list", "texts", "words"):
        if not isinstance(node, yaml.SequenceNode):
            raise _error(file, _line(node), f"{key} must be a list{'' if field.secret else f', {_given(node)}'}", None)
        if field.kind == "list":
            return node.value
        return [_scalar(item, file, key, Field("text", choices=field.choices)) for item in node.value]
    return _scalar(node, file, key, field)


def _scalar(node: yaml.Node, file: str, key: str, field: Field) -> str | float | bool:
    kind = node.tag.rpartition(":")[2] if isinstance(node, yaml.ScalarNode) else ""
    text = str(node.value)
    if field.kind == "text" and kind == "bool" and "true" in field.choices:
        return str(yaml.SafeLoader.bool_values[text.lower()]).lower()  # a switch that has more positions than two
    if field.kind == "text" and kind == "str" and text:
        if field.choices and text not in field.choices:
            close = difflib.get_close_matches(text, field.choices, n=1, cutoff=0.6)
            hint = f"did you mean {close[0]}?" if close else None
            raise _error(file, _line(node), f"{key} must be one of {', '.join(field.choices)}, got {text!r}", hint)
        return text
    if field.kind == "count" and kind == "int" and text.isdigit() and 0 < int(text) <= (field.most or int(text)):
        return int(text)
    if field.kind == "limit" and kind == "int" and text.isdigit() and len(text) <= 15:
        return int(text)
    if field.kind == "integer" and kind == "int" and re.fullmatch(r"-?\d{1,15}", text):
        return int(text)
    if field.kind == "number" and kind in ("int", "float") and re.fullmatch(r"\d*\.?\d+", text):
        return float(text)
    if field.kind == "switch" and kind == "bool":
        return bool(yaml.SafeLoader.bool_values[text.lower()])
    if field.kind in ("memory", "size"):
        with suppress(ConfigError):
            parse_memory(text) if field.kind == "memory" else size_in_bytes(text)
            return text
    given = "" if field.secret else f", {_given(node)}"
    expected = _EXPECTED[field.kind] if field.most is None else f"a whole number from 1 to {field.most}"
    raise _error(file, _line(node), f"{key} must be {expected}{given}", _type_hint(field, kind))


_EXPECTED = {
    "text": "text",
    "count": "a whole number of at least 1",
    "limit": "a whole number of at least 0",
    "integer": "a whole number",
    "number": "a number of at least 0",
    "switch": "true or false",
    "memory": "auto, a fraction between 0 and 1, or a size such as 4GiB",
    "size": "a size such as 5.2GB",
}


def _type_hint(field: Field, kind: str) -> str | None:
    return "put it in quotes" if field.kind == "text" and kind in ("int", "float", "bool", "timestamp") else None


def _given(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return f"got {node.value!r}" if node.value else "got nothing"
    return "got a list" if isinstance(node, yaml.SequenceNode) else "got a mapping"


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _error(file: str, line: int, message: str, hint: str | None) -> ConfigError:
    return ConfigError(f"{file}:{line}: {message}", hint=hint)
