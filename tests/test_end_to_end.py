"""The whole server as an operator starts it: real command, real engine process, the default model on the CPU."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import jsonschema
import openai
import psutil
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from pydantic import BaseModel, Field

from server.commands import cli
from tests.clocks import PATIENCE
from tests.places import ROOT
from tests.server import patient
from tests.server.fakes import wait_until
from tests.serving import address_of

pytestmark = pytest.mark.timeout(600)

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]


@dataclass
class Running:
    """The command and where it listens."""

    process: "subprocess.Popen[bytes]"
    url: str

    def engine(self) -> psutil.Process:
        """The engine process that is there now."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if "engine.process" in child.cmdline())

    def is_ready(self) -> bool:
        """Whether /health says so."""
        assert self.process.poll() is None, "the server has ended"
        try:
            return patient.get(f"{self.url}/health").status_code == 200
        except httpx.TransportError:
            return False

    def metric(self, name: str) -> float:
        """The value of the first series that starts like this."""
        lines = patient.get(f"{self.url}/metrics").text.splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"headrace_{name}"))

    def owned_blocks(self) -> float:
        """KV blocks that belong to a running sequence."""
        return self.metric(f'kv_blocks{{model="{MODEL}",state="owned"}}')


@pytest.fixture(scope="module")
def server(smollm2_dir: Path) -> Iterator[Running]:
    command = [
        sys.executable,
        "-m",
        "server.commands.cli",
        "serve",
        "smollm2",
        "--port",
        "0",
        "--context",
        "2048",
    ]
    process = subprocess.Popen([*command, "--memory", "0.25GiB"], cwd=ROOT)
    try:
        running = Running(process, address_of(process))
        wait_until(running.is_ready, 3 * PATIENCE)
        yield running
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.fixture
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, question: str = "", **options: Any) -> str:
    messages: list[Any] = [{"role": "user", "content": question}] if question else QUESTION
    answer = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, **options)
    return str(answer.choices[0].message.content)


def test_it_knows_the_capital_of_france(server: Running, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="smollm2", messages=QUESTION, temperature=0)
    assert "Paris" in str(answer.choices[0].message.content) and answer.choices[0].finish_reason == "stop"
    streamed = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    hugging_face = InferenceClient(base_url=f"{server.url}/v1").chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0
    )
    assert text == answer.choices[0].message.content == hugging_face.choices[0].message.content


def test_what_the_prefix_cache_holds_is_told_before_it_is_asked(server: Running, client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "Name the days of the week, the months, and the seasons. " * 4}]

    def held(**fields: Any) -> Any:
        body = {"messages": messages, "return_cached_tokens": True} | fields
        return patient.post(f"{server.url}/tokenize", json=body).json()["cached_tokens"]

    def found(**fields: Any) -> int:
        answer = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=1, **fields)
        return int(answer.usage.prompt_tokens_details.cached_tokens)  # type: ignore[union-attr, arg-type]

    before = held()
    assert found() == before
    after = held()
    assert after > before + 32 and found() == after == held()
    assert held(prompt_cache_key="mine") == 0
    assert found(prompt_cache_key="mine") == 0 and held(prompt_cache_key="mine") == after
    assert held(return_cached_tokens=False) is None


def test_many_at_once_answer_as_one_does(server: Running, client: openai.OpenAI) -> None:
    questions = [f"Count from {number} to {number + 3}." for number in range(6)]

    async def all_at_once() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as many:
            answers = await asyncio.gather(
                *(
                    many.chat.completions.create(
                        model=MODEL,
                        messages=[{"role": "user", "content": question}],
                        seed=1,
                        max_tokens=8,
                        temperature=0,
                    )
                    for question in questions
                )
            )
        return [str(answer.choices[0].message.content) for answer in answers]

    together = asyncio.run(all_at_once())
    alone = [ask(client, question, max_tokens=8) for question in questions]
    # In bf16 the shape of a batch may turn a near tie; most must agree, and all must be answers.
    assert sum(a == b for a, b in zip(together, alone, strict=True)) >= 4 and all(together)


def test_seeded_choices_come_again(client: openai.OpenAI) -> None:
    def choices() -> list[str | None]:
        answer = client.chat.completions.create(
            model=MODEL, messages=QUESTION, n=3, seed=11, max_tokens=12, temperature=1
        )
        return [choice.message.content for choice in answer.choices]

    choices()  # in bf16 a prompt found in the prefix cache may round another way than one computed whole
    first = choices()
    assert first == choices() and len(set(first)) > 1


def test_stop_strings_and_limits_are_told_apart(client: openai.OpenAI) -> None:
    full = ask(client)
    stopped = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, stop=[" is"])
    assert stopped.choices[0].message.content == full.partition(" is")[0]
    assert stopped.choices[0].finish_reason == "stop"
    limited = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=2)
    assert limited.choices[0].finish_reason == "length"
    assert limited.usage is not None and limited.usage.completion_tokens == 2
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "word " * 3000)
    assert caught.value.code == "context_length_exceeded" and "2048" in str(caught.value)


def test_raw_prompts_are_continued_and_scored(server: Running, client: openai.OpenAI) -> None:
    """What a text's tokens were said to be likely by when they were generated, they are when they come back."""
    prompt = "The capital of France is"
    said = client.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=6, logprobs=2).choices[0]
    assert "Paris" in said.text and said.logprobs is not None and said.logprobs.token_logprobs is not None
    texts = [prompt + said.text, f"{prompt} banana"]
    scored, other = client.completions.create(
        model=MODEL, prompt=texts, echo=True, logprobs=0, max_tokens=0, extra_body={"priority": -1}
    ).choices
    for text, choice in zip(texts, (scored, other), strict=True):
        ids = patient.post(f"{server.url}/tokenize", json={"prompt": text}).json()["tokens"]
        assert choice.text == text and choice.finish_reason == "length"
        assert choice.logprobs is not None and choice.logprobs.tokens is not None
        assert "".join(choice.logprobs.tokens) == text and len(choice.logprobs.tokens) == len(ids)
    assert scored.logprobs is not None and scored.logprobs.token_logprobs is not None
    again = scored.logprobs.token_logprobs[-len(said.logprobs.token_logprobs) :]
    assert again == pytest.approx(said.logprobs.token_logprobs, abs=0.2)  # bf16
    assert other.logprobs is not None and other.logprobs.token_logprobs is not None
    assert other.logprobs.token_logprobs[-1] < again[0] - 2


def test_a_client_that_leaves_gives_its_blocks_back(server: Running, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    wait_until(lambda: server.owned_blocks() > 0)
    engine = server.engine()
    engine.suspend()  # in the middle of a step, or between two
    try:
        left = server.metric("requests_disconnected_total")
        stream.close()
        wait_until(lambda: server.metric("requests_disconnected_total") > left)
        steps = server.metric("engine_steps_total")
    finally:
        engine.resume()
    wait_until(lambda: server.owned_blocks() == 0)
    assert server.metric("engine_steps_total") - steps <= 2


WEATHER: Any = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "days": {"type": "integer", "minimum": 1}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "get_weather", "description": "Tells it.", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "get_time", "parameters": {"enum": [{"zone": "UTC"}, {}]}}},
]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_time"}}])
def test_calls_are_valid_however_wildly_the_model_samples(client: openai.OpenAI, choice: Any) -> None:
    options: dict[str, Any] = {"tools": TOOLS, "tool_choice": choice, "temperature": 1.8, "seed": 1, "n": 4}
    options |= {"model": MODEL, "messages": QUESTION, "parallel_tool_calls": False, "max_tokens": 120}
    answer = client.chat.completions.create(**options)
    for one in answer.choices:
        assert one.finish_reason == ("tool_calls" if choice == "required" else "stop")
        assert one.message.content is None and one.message.tool_calls is not None
        [call] = one.message.tool_calls
        arguments = json.loads(call.function.arguments)
        if choice == "required" and call.function.name == "get_weather":
            jsonschema.validate(arguments, WEATHER)
        else:
            assert call.function.name == "get_time" and arguments in ({"zone": "UTC"}, {})
    streamed = ["" for _ in range(4)]
    for chunk in client.chat.completions.create(**options, stream=True):
        for piece in chunk.choices[0].delta.tool_calls or ():
            streamed[chunk.choices[0].index] += piece.function.arguments
    assert streamed == [one.message.tool_calls[0].function.arguments for one in answer.choices]


def test_a_free_answer_with_tools_and_a_conversation_with_calls(client: openai.OpenAI) -> None:
    free = client.chat.completions.create(model=MODEL, messages=QUESTION, tools=TOOLS, temperature=0, max_tokens=60)
    assert free.choices[0].message.content or free.choices[0].message.tool_calls
    called = client.chat.completions.create(model=MODEL, messages=QUESTION, tools=TOOLS, tool_choice="required", n=2)
    message = called.choices[1].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "18 degrees"} for call in message.tool_calls or ()]
    history: list[Any] = [*QUESTION, message, *results]
    assert client.chat.completions.create(model=MODEL, messages=history, tools=TOOLS, max_tokens=5).choices


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"response_format": {"type": "regex", "value": "(yes|no), [a-z ]{2,20}"}}, "(yes|no), [a-z ]{2,20}"),
        ({"choice": ["Lyon", "Paris"]}, "Lyon|Paris"),
        ({"grammar": "start: word word\nword: /[a-z]{2,5} /"}, "([a-z]{2,5} ){2}"),
        ({"response_format": {"type": "json", "value": {"enum": [{"a": 1}]}}}, r'\{\s*"a":\s*1\s*\}'),
    ],
)
def test_constraints_hold(client: openai.OpenAI, fields: dict[str, Any], pattern: str) -> None:
    assert re.fullmatch(pattern, ask(client, extra_body=fields, max_tokens=60))
    with pytest.raises(openai.BadRequestError, match="response_format"):
        ask(client, extra_body={"response_format": {"type": "regex", "value": "("}})


CHOICES = [{"items": {"enum": ["a", "b"]}}, {}]
"""Beside these nobody knows beforehand which items are evaluated."""
TAG_ITEMS = {"type": "array", "prefixItems": [{"enum": ["a", "b"]}], "maxItems": 1, "anyOf": CHOICES}
TAGS = {
    "type": "object",
    "properties": {"tags": {**TAG_ITEMS, "unevaluatedItems": False}},
    "required": ["tags"],
}


def fields_with(schema: Any, kind: str, strict: bool | None) -> dict[str, Any]:
    """A request's fields with a schema in the place that `kind` names."""
    said = {} if strict is None else {"strict": strict}
    if kind == "json_schema":
        return {"response_format": {"type": kind, "json_schema": {"name": "x", "schema": schema, **said}}}
    if kind == "json":
        return {"response_format": {"type": kind, "value": schema}}
    choice = {"type": "function", "function": {"name": "tag"}} if kind == "named" else kind
    return {"tools": [{"type": "function", "function": {"name": "tag", "parameters": schema, **said}}],
            "tool_choice": choice}  # fmt: skip


@pytest.mark.parametrize("kind", ["json_schema", "json", "auto", "required", "named"])
def test_what_cannot_be_followed_is_left_out_and_named_unless_it_is_strict(server: Running, kind: str) -> None:
    def post(**fields: Any) -> httpx.Response:
        body = {"messages": QUESTION, "max_tokens": 40, "temperature": 0, **fields}
        return patient.post(f"{server.url}/v1/chat/completions", json=body)

    refusals = [fields_with(TAGS, kind, True)]
    place = "response_format/json_schema/schema" if kind == "json_schema" else "tools/0/function/parameters"
    if kind == "json":
        refusals, place = [fields_with(TAGS, kind, None)], ""
    for fields in refusals:
        refused = post(**fields)
        assert refused.status_code == 400 and "x-headrace-relaxed" not in refused.headers
        assert "at /properties/tags/unevaluatedItems: 'unevaluatedItems'" in refused.json()["error"]["message"]
    for strict in (None, False) if place else ():
        before = server.metric("requests_relaxed_total")
        answers = [post(**fields_with(TAGS, kind, strict), stream=stream) for stream in (False, True)]
        for answer in answers:
            assert answer.status_code == 200
            assert answer.headers["x-headrace-relaxed"] == f"/{place}/properties/tags/unevaluatedItems"
        assert server.metric("requests_relaxed_total") == before + 2
        if kind != "auto":
            message = answers[0].json()["choices"][0]["message"]
            text = message["content"] or message["tool_calls"][0]["function"]["arguments"]
            jsonschema.validate(json.loads(text), {**TAGS, "properties": {"tags": {"items": {"enum": ["a", "b"]}}}})
    nulls = {"type": "object", "properties": {"a": {"enum": [1], "items": None}}, "required": None, "enum": None}
    for strict in (None, True):
        answer = post(**fields_with(nulls, kind, strict))
        assert answer.status_code == 200 and "x-headrace-relaxed" not in answer.headers


@pytest.mark.slow
class City(BaseModel):
    """What Outlines is asked for."""

    name: Annotated[str, Field(pattern="^[A-Z][a-z]{2,9}$")]
    rank: Annotated[int, Field(ge=1, le=9)]


def test_outlines_drives_the_server(server: Running, client: openai.OpenAI) -> None:
    """By each of its ways to a server that this one speaks, with each kind of type it has for them."""
    outlines = pytest.importorskip("outlines", reason="the extra headrace[outlines] is not installed")
    types = pytest.importorskip("outlines.types", reason="the extra headrace[outlines] is not installed")
    vllm, tgi = outlines.from_vllm(client, MODEL), outlines.from_tgi(InferenceClient(server.url))
    for model in (outlines.from_openai(client, MODEL), vllm, tgi):
        limit = {"max_new_tokens": 60} if model is tgi else {"max_tokens": 60}
        assert 1 <= City.model_validate_json(model("A large city: ", City, **limit)).rank <= 9
        assert City.model_validate_json("".join(model.stream("A large city: ", City, **limit)))
    for model in (vllm, tgi):
        assert model("Hot or cold? ", Literal["hot", "cold"]) in ("hot", "cold")
        assert re.fullmatch("[0-9]{3}-[0-9]{4}", model("Call ", types.Regex("[0-9]{3}-[0-9]{4}")))
    assert vllm("Sum: ", types.CFG('start: NUMBER "+" NUMBER\nNUMBER: /[1-9]{2}/')).count("+") == 1

    async def asynchronously() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as many:
            for model in (outlines.from_openai(many, MODEL), outlines.from_vllm(many, MODEL)):
                assert City.model_validate_json(await model("A city: ", City, max_tokens=60))
        async with AsyncInferenceClient(server.url) as many:
            pieces = outlines.from_tgi(many).stream("A city: ", City, max_new_tokens=60)
            assert City.model_validate_json("".join([piece async for piece in pieces]))

    asyncio.run(asynchronously())


def test_every_field_of_the_contract_is_honoured_or_refused_by_name(server: Running, tmp_path: Path) -> None:
    """By the rules that docs/conformance.md shows, which know nothing of this server."""
    report = tmp_path / "report.json"
    assert cli.main(["bench", "conformance", "--url", server.url, "--model", MODEL, "--json", str(report)]) == 0
    found = {(one["field"], one["use"]): one["verdict"] for one in json.loads(report.read_text())["checks"]}
    assert {use for use, verdict in found.items() if verdict != "honoured"} == {("messages.image_url", "an image")}


SHOWN = [
    (page, language, body)
    for page in ("README.md", "docs/tools.md", "docs/performance.md")
    for language, body in re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)
    if "127.0.0.1:8000" in body and "Qwen2.5-VL" not in body  # whose own test is test_readme_images
]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "language", "body"), SHOWN, ids=[f"{page} {kind}" for page, kind, _ in SHOWN])
def test_the_examples_of_the_documentation_run_as_they_stand(
    server: Running, page: str, language: str, body: str
) -> None:
    if "import outlines" in body:
        pytest.importorskip("outlines", reason="the extra headrace[outlines] is not installed")
    program = {"python": [sys.executable, "-c"], "sh": ["sh", "-ec"]}[language]
    text = body.replace("http://127.0.0.1:8000", server.url)
    done = subprocess.run([*program, text], cwd=ROOT, capture_output=True, text=True, timeout=3 * PATIENCE)
    assert done.returncode == 0 and '"error"' not in done.stdout, f"{page}: {done.stdout}{done.stderr}"
    assert done.stdout.strip() or ("print" not in body and language == "python")


def test_a_killed_engine_comes_back(server: Running, client: openai.OpenAI) -> None:
    before = ask(client)
    engine = server.engine()
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    iterator = iter(stream)
    next(iterator)
    engine.kill()
    with pytest.raises(openai.APIError, match="ended unexpectedly"):
        list(iterator)
    assert not server.is_ready(), "told only when another engine was there"
    wait_until(lambda: server.is_ready() and server.engine().pid != engine.pid, 3 * PATIENCE)
    assert ask(client) == before


def test_the_end_leaves_no_process(server: Running) -> None:
    engine = server.engine()
    os.kill(server.process.pid, signal.SIGTERM)
    assert server.process.wait(PATIENCE) == 0
    wait_until(lambda: not engine.is_running())
