"""What can be asked of a model: the one place that says so."""

from typing import Any

from engine.messages import EngineInfo


def capabilities(info: EngineInfo) -> dict[str, Any]:
    """The `capabilities` of a loaded model in /v1/models.

    `structured_outputs` lists the types of `response_format` beside `text` that constrain an answer.
    """
    return {
        "input": ["text"],
        "output": ["text"],
        "streaming": True,
        "logprobs": True,
        "tools": False,
        "structured_outputs": [],
        "reasoning": False,
    }
