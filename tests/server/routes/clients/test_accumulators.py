"""What clients put together of a stream is the message of the whole answer, whatever kind it is of.

openai-python and huggingface_hub are always here. LangChain and LiteLLM run under the Python of HEADRACE_CLIENTS,
openai-node and the Vercel AI SDK in its `node_modules`; `make compat-clients` installs them and runs these tests.
"""

import json
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest
from huggingface_hub import InferenceClient

from tests.clocks import PATIENCE
from tests.places import ROOT
from tests.server import patient
from tests.server.routes.clients.conftest import Servers
from tests.server.routes.clients.kinds import KINDS, MESSAGES, body

CLIENTS = Path(os.environ.get("HEADRACE_CLIENTS", ROOT / ".clients"))
HERE = Path(__file__).parent

Message = dict[str, Any]
Run = Callable[[list[dict[str, Any]]], list[Message]]
"""From requests (`url`, `body`) to what was put together, or `{"error": ...}`."""


def openai_python(requests: list[dict[str, Any]]) -> list[Message]:
    return [caught(lambda request=request: one_of_openai(request["url"], request["body"])) for request in requests]


def one_of_openai(url: str, fields: dict[str, Any]) -> Message:
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    with client.chat.completions.stream(model="fake", stream_options={"include_usage": True}, **fields) as stream:
        # It judges what it has put together, which is there all the same.
        with suppress(openai.LengthFinishReasonError):
            stream.until_done()
        whole: Any = stream.current_completion_snapshot
    choice = whole.choices[0]
    return {
        "content": choice.message.content,
        "contents": [choice.message.content for choice in whole.choices],
        "reasoning": getattr(choice.message, "reasoning_content", None),
        "calls": [(c.function.name, c.function.arguments, c.id) for c in choice.message.tool_calls or ()],
        "finish": [choice.finish_reason for choice in whole.choices],
        "tokens": whole.usage.completion_tokens,
        "spelt": "".join(e.token for e in choice.logprobs.content or ()) if choice.logprobs else None,
        "role": choice.message.role,
        "sent back": choice.message.model_dump(),
    }


def hugging_face(requests: list[dict[str, Any]]) -> list[Message]:
    return [caught(lambda request=request: one_of_hugging_face(**request)) for request in requests]


def one_of_hugging_face(url: str, body: dict[str, Any]) -> Message:
    """It puts nothing together itself; so does its user, as its documentation does, by concatenation."""
    client = InferenceClient(base_url=url, api_key="none")
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}, **body}
    options["stop"] = [options["stop"]] if "stop" in options else None
    made: Message = {"contents": [""] * body.get("n", 1), "reasoning": "", "finish": [], "role": None}
    calls: list[list[str]] = []
    for chunk in client.chat.completions.create(**options):
        made["tokens"] = chunk.usage and chunk.usage.completion_tokens
        for choice in chunk.choices:
            delta = choice.delta
            made["role"] = made["role"] or delta.role
            made["contents"][choice.index] += delta.content or ""
            made["reasoning"] += delta.reasoning or ""
            made["finish"] += [choice.finish_reason] if choice.finish_reason else []
            for call in delta.tool_calls or ():
                if call.index == len(calls):
                    calls.append([str(call.function.name), "", call.id])
                calls[call.index][1] += call.function.arguments
    return made | {"calls": calls, "content": made["contents"][0]}


def caught(run: Callable[[], Message]) -> Message:
    try:
        return run()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def elsewhere(*command: str | Path) -> Run:
    """A client in a process of its own."""

    def run(requests: list[dict[str, Any]]) -> list[Message]:
        done = subprocess.run(
            [str(part) for part in command], input=json.dumps(requests), capture_output=True, text=True,
            timeout=4 * PATIENCE, env={**os.environ, "CLIENTS_DIR": str(CLIENTS)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        made: list[Message] = json.loads(done.stdout.splitlines()[-1])
        return made

    return run


PYTHON = CLIENTS / "venv" / "bin" / "python"


def in_python(name: str, module: str) -> Any:
    there = any((CLIENTS / "venv").glob(f"lib/python3*/site-packages/{module}"))
    mark = pytest.mark.skipif(not there, reason=f"{module} is not in .clients/venv: make compat-clients installs it")
    return pytest.param(elsewhere(PYTHON, HERE / "python_clients.py", name), id=name, marks=mark)


def in_node(name: str, package: str) -> Any:
    there = (CLIENTS / "node_modules" / package).is_dir()
    mark = pytest.mark.skipif(not there, reason=f"{package} is not in .clients: make compat-clients installs it")
    return pytest.param(elsewhere("node", HERE / "node_clients.mjs", name), id=f"{name} in node", marks=mark)


EVERY_CLIENT = [
    pytest.param(openai_python, id="openai"),
    pytest.param(hugging_face, id="huggingface_hub"),
    in_python("langchain", "langchain_openai"),
    in_python("litellm", "litellm"),
    in_node("openai", "openai"),
    in_node("vercel", "@ai-sdk/openai-compatible"),
]
NAMES_OF_REASONS = {"tool_calls": "tool-calls"}
"""The Vercel AI SDK's own words."""
KNOW_ONE_CHOICE = ("langchain", "litellm", "vercel in node")
"""What is put together of several choices has them mixed, or is the first alone."""


def whole_answer(servers: Servers, name: str) -> dict[str, Any]:
    answer = patient.post(f"{servers.of(name).url}/v1/chat/completions", json=body(name))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize("client", EVERY_CLIENT)
def test_what_is_put_together_is_the_whole_answer(
    client: Run, servers: Servers, request: pytest.FixtureRequest
) -> None:
    is_single = request.node.callspec.id in KNOW_ONE_CHOICE
    kinds = [name for name in KINDS if not (is_single and name == "two choices")]
    requests = [{"url": f"{servers.of(name).url}/v1", "body": body(name)} for name in kinds]
    for name, made in zip(kinds, client(requests), strict=True):
        compare(name, made, whole_answer(servers, name))


def test_of_openai_s_client_it_is_so_to_the_null(servers: Servers) -> None:
    """Where others write an empty text for none, or none for an empty one."""
    for name in KINDS:
        (made,) = openai_python([{"url": f"{servers.of(name).url}/v1", "body": body(name)}])
        assert made["content"] == whole_answer(servers, name)["choices"][0]["message"]["content"], name


def compare(name: str, made: Message, whole: dict[str, Any]) -> None:
    choice = whole["choices"][0]
    message = choice["message"]
    assert "error" not in made, (name, made)
    contents = [choice["message"]["content"] or "" for choice in whole["choices"]]
    assert [content or "" for content in made.get("contents", [made["content"]])] == contents, name
    if "reasoning" in made:
        assert (made["reasoning"] or "") == message.get("reasoning", ""), name
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())]
    if name != "call cut off":  # what is no JSON yet, some leave out
        assert [(called, json.loads(given)) for called, given, _ in made["calls"]] == [
            (called, json.loads(given)) for called, given in calls
        ], name
    elif made["calls"]:
        assert [call[0] for call in made["calls"]] == [call[0] for call in calls]
    ids = [call[2] for call in made["calls"]]
    assert len(set(ids)) == len(ids) and all(one.startswith("call_") and len(one) == 29 for one in ids), name
    reasons = {choice["finish_reason"], NAMES_OF_REASONS.get(choice["finish_reason"])}
    assert set(made["finish"]) <= reasons and made["finish"], name
    assert made["role"] == "assistant" and made["tokens"] == whole["usage"]["completion_tokens"], name
    if made.get("spelt") is not None and choice["logprobs"] is not None:
        assert made["spelt"] == message["content"], name


@pytest.mark.parametrize("client", EVERY_CLIENT)
def test_what_was_put_together_is_taken_back(client: Run, servers: Servers) -> None:
    """As it is, with all that the library has added to it, and the results of its calls."""
    for name in ("plain", "two calls", "reasoning and calls", "call cut off"):
        (made,) = client([{"url": f"{servers.of(name).url}/v1", "body": body(name)}])
        calls = [{"id": i, "type": "function", "function": {"name": n, "arguments": a}} for n, a, i in made["calls"]]
        by_hand = {"role": "assistant", "content": made["content"], **({"tool_calls": calls} if calls else {})}
        results = [{"role": "tool", "tool_call_id": call["id"], "content": "4 degrees"} for call in calls]
        for message in (by_hand, made.get("sent back", by_hand)):
            messages = [*MESSAGES, message, *results, *MESSAGES]
            fields = {"messages": messages, "tools": KINDS["one call"].fields["tools"]}
            answer = patient.post(f"{servers.of(name).url}/v1/chat/completions", json=fields)
            assert answer.status_code == 200, (name, message, answer.text)


@pytest.mark.parametrize("client", EVERY_CLIENT)
def test_a_failure_in_the_middle_is_a_failure(client: Run, servers: Servers) -> None:
    """Nobody takes half an answer for a whole one."""
    (made,) = client([{"url": f"{servers.failing.url}/v1", "body": body("plain")}])
    assert "scripted failure" in made.get("error", "") or made.get("finish") in ([None], ["error"], []), made
