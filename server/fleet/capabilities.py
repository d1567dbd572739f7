"""What can be asked of a model: the one place that says so."""

from typing import Any

from engine.config import EngineConfig
from engine.messages import EngineInfo
from server.prompt.tokenizer import ChatTokenizer


def capabilities(config: EngineConfig, info: EngineInfo, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """The `capabilities` of a loaded model in /v1/models.

    `structured_outputs` lists what constrains an answer: types of `response_format`, and the fields `choice` and
    `grammar`.
    """
    constraints = ["json_object", "json_schema", "json", "regex", "choice"]
    return {
        "input": ["text"] if info.images is None else ["text", "image"],
        "output": ["text"],
        "streaming": True,
        "logprobs": True,
        "tools": tokenizer.has_template,
        "structured_outputs": [*constraints, "grammar"] if config.constraints == "llguidance" else constraints,
        "reasoning": tokenizer.reasons,
    }
