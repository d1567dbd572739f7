"""Answers of every kind, as a scripted model writes them, and the requests that get them."""

from dataclasses import dataclass, field
from typing import Any

from server.markup.formats import HERMES

MESSAGES: list[Any] = [{"role": "user", "content": "Weather?"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now", "description": "d", "parameters": {"type": "object"}}},
]
REASONING_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
WEATHER, NOW = HERMES.write("get_weather", '{"city": "Oslo 🤗"}'), HERMES.write("now", "{}")


@dataclass(frozen=True)
class Kind:
    """One kind of request, and what the model writes for each of two choices."""

    written: tuple[str, str]
    fields: dict[str, Any] = field(default_factory=dict)
    reasons: bool = False


KINDS = {
    "plain": Kind(("It rains, naïvely 🤗. ", "x")),
    "stop": Kind(("It rains STOP or not", "x"), {"stop": "STOP"}),
    "logprobs": Kind(("It rains STOP or not", "x"), {"stop": "STOP", "logprobs": True, "top_logprobs": 2}),
    "length": Kind(("It rains and rains", "x"), {"max_tokens": 2}),
    "two choices": Kind(("One 🤗", "Another"), {"n": 2}),
    "reasoning": Kind(("Let me\nsee.\n</think>\n\nIt rains.", "x"), {}, reasons=True),
    "one call": Kind((WEATHER, "x"), {"tools": TOOLS}),
    "two calls": Kind((f"{WEATHER}\n{NOW}", "x"), {"tools": TOOLS}),
    "text and call": Kind((f"I look.\n{WEATHER}", "x"), {"tools": TOOLS}),
    "reasoning and calls": Kind((f"Hm.\n</think>\n\n{WEATHER}\n{NOW}", "x"), {"tools": TOOLS}, reasons=True),
    "call cut off": Kind((WEATHER, "x"), {"tools": TOOLS, "max_tokens": 18}),
    "head cut off": Kind((WEATHER, "x"), {"tools": TOOLS, "max_tokens": 2}),
}
SEEDS = {name: seed for seed, name in enumerate(KINDS)}


def body(name: str) -> dict[str, Any]:
    """The fields of a request of this kind, beside model and stream."""
    return {"messages": MESSAGES, "seed": SEEDS[name], **KINDS[name].fields}
