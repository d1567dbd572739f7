"""Constraints, tools, reasoning, stop strings, choices and streams in every combination, on real weights.

What each answer must be is not known here, as it is in tests/server/routes/test_answer_matrix.py; that it is valid is
judged.
"""

import asyncio
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from engine.cache import cache_dir
from tests.clocks import PATIENCE
from tests.server.routes.test_answer_matrix import put_together
from tests.serving import running_server, write_models

pytestmark = pytest.mark.slow

PLACE: Any = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
SWITCH: Any = {"oneOf": [{"const": "off"}, {"type": "array", "items": {"enum": [1, 2]}, "minItems": 1, "maxItems": 3}]}
SCHEMAS = {"get_weather": PLACE, "set_light": {"type": "object", "properties": {"to": SWITCH}, "required": ["to"],
                                               "additionalProperties": False}}  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in SCHEMAS.items()]
PATTERN = "(yes|no), [a-z ]{3,20}[.]"
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "schema": {"response_format": {"type": "json", "value": PLACE}},
    "regex": {"response_format": {"type": "regex", "value": PATTERN}},
    "auto": {"tools": TOOLS},
    "required": {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False},
    "named": {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "set_light"}}},
}
THINKING = 6
REASONING_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
STOP = "e"

CODER = cache_dir() / "models" / "Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf"


@contextmanager
def serving(work: Path, models: list[dict[str, Any]], seconds: float = 3 * PATIENCE) -> Iterator[str]:
    """The address of a server with these models, once they are loaded."""
    with running_server("--models", str(write_models(work, *models)), seconds=seconds) as address:
        yield address


@pytest.fixture(scope="module")
def url(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with the default model twice, the second time behind a template that opens reasoning."""
    work = tmp_path_factory.mktemp("matrix")
    shutil.copytree(smollm2_dir, work / "thinks", copy_function=shutil.copy)
    (work / "thinks" / "chat_template.jinja").write_text(REASONING_TEMPLATE, encoding="utf-8")
    common = {"load": "startup", "threads": 2, "context": 1024, "memory": "0.25GiB"}
    models = [{"name": "talks", "source": str(smollm2_dir), **common}]
    models.append({"name": "thinks", "source": str(work / "thinks"), **common})
    with serving(work, models) as address:
        yield address


@pytest.fixture(scope="module")
def coder_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a model that calls tools of its own accord, without its format's tags at times."""
    if not CODER.exists():
        pytest.skip(f"needs {CODER.name} in {CODER.parent}, where ../shared/fetch-models.py qwen-coder puts it")
    model = {"name": "codes", "source": str(CODER), "load": "startup", "context": 1024, "memory": "0.5GiB"}
    with serving(tmp_path_factory.mktemp("coder"), [model], 15 * PATIENCE) as address:
        yield address


def choices_of(answer: httpx.Response, n: int, stream: bool) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    if not stream:
        found: list[dict[str, Any]] = answer.json()["choices"]
        return found
    blocks = [block for block in answer.text.split("\n\n") if block and not block.startswith(":")]
    assert blocks.pop() == "data: [DONE]"
    return put_together([json.loads(block.removeprefix("data: ")) for block in blocks], n)


def judge(kind: str, choice: dict[str, Any], *, thinks: bool, stops: bool) -> None:
    """Assert what must be true of an answer whatever the model had in mind."""
    message, reason = choice["message"], choice["finish_reason"]
    content, calls = message["content"] or "", message.get("tool_calls", [])
    assert (message.get("reasoning") is not None) == thinks == (message.get("reasoning_content") is not None)
    assert "think>" not in content or kind in ("plain", "auto")
    assert not (stops and STOP in content)
    whole = reason != "length" and not (stops and not calls)
    for call in calls if reason != "length" else calls[:-1]:
        jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMAS[call["function"]["name"]])
    if kind == "schema" and whole:
        jsonschema.validate(json.loads(content), PLACE)
    if kind == "regex" and whole:
        assert re.fullmatch(PATTERN, content)
    if kind in ("required", "named"):
        assert not content and (reason == "length" or len(calls) == 1)
        assert kind == "required" or all(call["function"]["name"] == "set_light" for call in calls)
    assert kind in ("auto", "required", "named") or not calls
    if reason != "length":
        assert reason == ("tool_calls" if calls and kind != "named" else "stop")


COMBINATIONS = list(product((False, True), (0.0, 1.5), (1, 2), (False, True)))


def ask_all(url: str, **fields: Any) -> list[httpx.Response]:
    """The answers to all combinations of stream, temperature, n and stop strings."""

    async def ask(
        client: httpx.AsyncClient, seed: int, stream: bool, heat: float, n: int, stops: bool
    ) -> httpx.Response:
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
            "stream": stream, "temperature": heat, "n": n, "seed": seed, "max_tokens": 40, **fields,
        }  # fmt: skip
        return await client.post(f"{url}/v1/chat/completions", json=body | ({"stop": STOP} if stops else {}))

    async def together() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=10 * PATIENCE) as client:
            return await asyncio.gather(*(ask(client, seed, *case) for seed, case in enumerate(COMBINATIONS)))

    return asyncio.run(together())


@pytest.mark.timeout(600)
@pytest.mark.parametrize("thinks", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_combination_is_valid(url: str, kind: str, thinks: bool) -> None:
    limit = {"max_reasoning_tokens": THINKING} if thinks else {}
    answers = ask_all(url, model="thinks" if thinks else "talks", **KINDS[kind], **limit)
    for (stream, _, n, stops), answer in zip(COMBINATIONS, answers, strict=True):
        choices = choices_of(answer, n, stream)
        assert [choice["index"] for choice in choices] == list(range(n))
        for choice in choices:
            judge(kind, choice, thinks=thinks, stops=stops)
        if thinks and not stream:
            assert answer.json()["usage"]["completion_tokens_details"]["reasoning_tokens"] <= n * (THINKING + 6)


@pytest.mark.timeout(1800)  # converting and loading it takes minutes
@pytest.mark.parametrize("kind", KINDS)
def test_every_combination_is_valid_from_a_model_that_calls_tools(coder_url: str, kind: str) -> None:
    num_calls = 0
    for (stream, _, n, stops), answer in zip(COMBINATIONS, ask_all(coder_url, **KINDS[kind]), strict=True):
        for choice in choices_of(answer, n, stream):
            judge(kind, choice, thinks=False, stops=stops)
            num_calls += len(choice["message"].get("tool_calls", ()))
    assert (num_calls > 0) == (kind in ("auto", "required", "named"))
