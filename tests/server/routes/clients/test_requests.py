"""What agents, frameworks and SDKs send is answered, and so are their next turns, made of what we streamed.

Each file of `requests` has bodies as one client's public code puts them together, and how that client sends an answer
back: its content, the fields it adds, the form of its tool results.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.markup.formats import HERMES
from server.prompt.tokenizer import ChatTokenizer
from server.protocol.errors import ApiError
from server.protocol.request import parse_chat_request
from tests.server import patient
from tests.server.fakes import RunningServer, Script, running_server

FILES = {
    path.stem: json.loads(path.read_text()) for path in sorted((Path(__file__).parent / "requests").glob("*.json"))
}
BODIES = [(name, number) for name, sent in FILES.items() for number in range(len(sent["requests"]))]


def tools_of(body: dict[str, Any]) -> list[str]:
    functions = [tool["function"] for tool in body.get("tools") or ()] + (body.get("functions") or [])
    return [function["name"] for function in functions]


TOOLS = sorted({name for sent in FILES.values() for body in sent["requests"] for name in tools_of(body)})
"""The model calls a tool with the seed of its place here, and 100."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, smollm2_dir: Path) -> Iterator[RunningServer]:
    """A model with room for what agents ask for."""
    tokenizer = ChatTokenizer.load(smollm2_dir)
    words = tokenizer.encode("Done.", allow_special=False)
    calls = {
        100 + place: [tokenizer.encode(HERMES.write(name, "{}"), allow_special=False)]
        for place, name in enumerate(TOOLS)
    }
    script = Script(model_dir=str(smollm2_dir), token_ids=words, eos_after=len(words), answers=calls, context=200_000)
    with (
        pytest.MonkeyPatch.context() as patch,
        running_server(patch, tmp_path_factory.mktemp("requests"), script) as running,
    ):
        yield running


def post(server: RunningServer, body: dict[str, Any]) -> str:
    answer = patient.post(f"{server.url}/v1/chat/completions", json=body)
    assert answer.status_code == 200, (body, answer.text)
    return answer.text


def test_every_client_is_there() -> None:
    assert set(FILES) == {
        "aider", "cline", "codex-chat", "continue", "langchain", "litellm", "llamaindex", "open-webui", "opencode",
        "vercel-ai-sdk", "zed",
    }  # fmt: skip


@pytest.mark.parametrize(("name", "number"), BODIES)
def test_what_they_send_is_answered(name: str, number: int, server: RunningServer) -> None:
    body = FILES[name]["requests"][number]
    text = post(server, body)
    assert ("data: [DONE]" in text) == bool(body.get("stream"))


@pytest.mark.parametrize(
    ("name", "number"), [case for case in BODIES if FILES[case[0]]["requests"][case[1]].get("tools")]
)
def test_their_next_turn_is_answered(name: str, number: int, server: RunningServer) -> None:
    """The model calls a tool, the client puts the stream together, and sends it back with the tool's result."""
    body = FILES[name]["requests"][number]
    called = tools_of(body)[0]
    seed = 100 + TOOLS.index(called)
    text = post(server, body | {"stream": True, "seed": seed, "max_tokens": None, "max_completion_tokens": None})
    message = put_together([json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")])
    assert [call["function"]["name"] for call in message["tool_calls"]] == [called]
    turn = [sent_back(message, FILES[name]["sends_back"]), *results(message, FILES[name]["sends_back"])]
    post(server, body | {"messages": [*body["messages"], *turn], "tool_choice": None})


def put_together(events: list[dict[str, Any]]) -> dict[str, Any]:
    """As most of them do: texts by concatenation, calls by index."""
    message: dict[str, Any] = {"role": None, "content": "", "tool_calls": []}
    for delta in (choice["delta"] for event in events for choice in event["choices"]):
        message["role"] = message["role"] or delta.get("role")
        message["content"] += delta.get("content") or ""
        for call in delta.get("tool_calls", ()):
            if call["index"] == len(message["tool_calls"]):
                message["tool_calls"].append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
            into = message["tool_calls"][call["index"]]
            into["id"] += call.get("id") or ""
            for key in ("name", "arguments"):
                into["function"][key] += call["function"].get(key) or ""
    assert message["role"] == "assistant"
    return message


def sent_back(message: dict[str, Any], how: dict[str, Any]) -> dict[str, Any]:
    content = {"null": None, "empty": "", "as it is": message["content"]}[how["content"]]
    reasoning = {how["reasoning"]: "I thought."} if "reasoning" in how else {}
    return {**message, "content": content, **reasoning, **how.get("fields", {})}


def results(message: dict[str, Any], how: dict[str, Any]) -> list[dict[str, Any]]:
    content: Any = [{"type": "text", "text": "fine"}] if how.get("tool_parts") else "fine"
    return [
        {"role": "tool", "tool_call_id": call["id"], "content": content}
        | ({"name": call["function"]["name"]} if how.get("tool_name") else {})
        for call in message["tool_calls"]
    ]


def test_the_bodies_would_be_refused_if_they_were_wrong() -> None:
    """Strictness has not been lost on the way."""
    for sent in FILES.values():
        for body in sent["requests"]:
            for wrong in ({"nonsense": 1}, {"temperature": 9}, {"messages": [*body["messages"], {"role": "robot"}]}):
                with pytest.raises(ApiError):
                    parse_chat_request(json.dumps({**body, **wrong}).encode())
