"""What can be asked of a model: the one place that says so."""

from typing import Any

from engine.config import EngineConfig
from server.prompt.tokenizer import ChatTokenizer


def capabilities(config: EngineConfig, tokenizer: ChatTokenizer, *, sees: bool = False) -> dict[str, Any]:
    """The `capabilities` of a loaded model in /v1/models; `sees` says that it takes images.

    `structured_outputs` lists what constrains an answer: types of `response_format`, and the fields `choice` and
    `grammar`.
    """
    constraints = ["json_object", "json_schema", "json", "regex", "choice"]
    return {
        "input": ["text", "image"] if sees else ["text"],
        "output": ["text"],
        "streaming": True,
        "logprobs": True,
        "tools": tokenizer.prompts.has_template,
        "structured_outputs": [*constraints, "grammar"] if config.constraints == "llguidance" else constraints,
        "reasoning": tokenizer.prompts.reasons,
    }
