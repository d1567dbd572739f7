"""Why a model is not there, in words for whoever asks over HTTP: without the paths that operators are told."""

import re

from server.fleet.handle import EngineHandle

MAX_CHARS = 300
_PATH = re.compile(r"(?<![\w.~-])(?:~|\.{1,2})?/(?:[^\s/:'\"`,;()]+/)*([^\s/:'\"`,;()]*)")
"""A path that begins at the root, a home or here; its last part is the group."""
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{4,}\b")


def public_reason(handle: EngineHandle) -> str:
    """A model's error in one line; its source is called so, other files by their names.

    What a file of the model made it say is shown in terminals too, so nothing that could steer one is left in.
    """
    if handle.error is None:
        return ""
    text = " ".join(handle.error.message.split()).removeprefix(f"{handle.name} cannot be loaded: ")
    text = text.replace(handle.config.source, "its source")
    text = _ADDRESS.sub("0x...", _PATH.sub(lambda found: found[1] or "a file", text))
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= MAX_CHARS else f"{text[: MAX_CHARS - 3]}..."
