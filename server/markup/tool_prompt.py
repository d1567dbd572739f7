"""Tools in words, for models whose chat template does not read them.

The system text then ends with an introduction, which a request may replace (`tool_prompt`), the tools as JSON, and how
a call is to be written. Tool turns of earlier messages become text in the same form.
"""

import json
from collections.abc import Sequence
from typing import Any

from server.markup.formats import CallFormat

DEFAULT_TOOL_PROMPT = "You may call one or more functions to help with the user's request."


def tools_text(form: CallFormat, tools: Sequence[dict[str, Any]], tool_prompt: str | None = None) -> str:
    """What the system text says of the tools. `tools` are OpenAI's tool objects."""
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    example = form.write("<function-name>", "<arguments-as-a-json-object>")
    return (
        f"{tool_prompt or DEFAULT_TOOL_PROMPT}\n\n"
        f"The functions are described within <tools></tools>:\n<tools>\n{listed}\n</tools>\n\n"
        f"To call a function, write its name and its arguments in exactly this form:\n{example}"
    )


def response_text(content: str) -> str:
    """The answer of a tool, as a user's turn shows it."""
    return f"<tool_response>\n{content}\n</tool_response>"
