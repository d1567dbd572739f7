"""The text files beside a model's weights that say how to talk to it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ModelLoadError

MAX_FILE_BYTES = 256 * 1024 * 1024
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class ChatFiles:
    """What tokenizer_config.json and the template files hold."""

    special_tokens: Mapping[str, str]
    """`bos_token` and the like to their text."""
    templates: Mapping[str, str]
    """Chat templates by name, `default` among them unless the model has none."""


def read_chat_files(directory: Path) -> ChatFiles:
    """Read what lies beside the weights. Raises `ModelLoadError` for what is missing, too large or malformed."""
    if not (directory / "tokenizer.json").is_file():
        raise ModelLoadError(
            "the model has no tokenizer.json",
            hint="convert its tokenizer with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)",
        )
    config = _read_json(directory / "tokenizer_config.json")
    legacy = _read_json(directory / "special_tokens_map.json")
    special = {name: _token_content(legacy.get(name), config.get(name)) for name in _SPECIAL_NAMES}
    return ChatFiles(
        special_tokens={name: content for name, content in special.items() if content is not None},
        templates=_read_templates(directory, config),
    )


def _read_templates(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """A file of its own goes before the one in the configuration, which may hold several by name."""
    template_file = directory / "chat_template.jinja"
    if template_file.is_file():
        return {"default": _read_text(template_file)}
    found = _read_json(directory / "chat_template.json").get("chat_template", config.get("chat_template"))
    if isinstance(found, str):
        return {"default": found}
    if isinstance(found, list):
        try:
            named = {str(entry["name"]): str(entry["template"]) for entry in found}
        except (TypeError, KeyError):
            raise ModelLoadError("chat_template in tokenizer_config.json must list names and templates") from None
        return {"default": next(iter(named.values())), **named} if named else {}
    return {}


def _token_content(*candidates: Any) -> str | None:
    """The last given candidate's text; a token is written as a string or as an object with `content`."""
    for candidate in reversed(candidates):
        content = candidate.get("content") if isinstance(candidate, dict) else candidate
        if isinstance(content, str):
            return content
    return None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path.name} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path.name} must hold an object")
    return value


def _read_text(path: Path) -> str:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ModelLoadError(f"{path.name} is larger than {MAX_FILE_BYTES} bytes")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{path.name} cannot be read: {error}") from None
