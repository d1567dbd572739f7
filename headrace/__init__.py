"""Headrace from Python, without a server: `from headrace import LLM`; docs/offline.md shows how.

In come conversations and prompts, out go answers in their order. It has no code of its own, that is in
`server.offline`.
"""

from engine.errors import ConfigError, HeadraceError, ModelLoadError
from server.offline.answers import Answer, Choice, Piece, ToolCall
from server.offline.llm import LLM
from server.offline.local import RefusedError

__all__ = [
    "LLM", "Answer", "Choice", "ConfigError", "HeadraceError", "ModelLoadError", "Piece", "RefusedError", "ToolCall",
]  # fmt: skip
