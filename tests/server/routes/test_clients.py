"""The clients people use, as they are used, and their own ideas of what an answer is."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import BadRequestError
from jsonschema import Draft7Validator
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from server.protocol.shapes import ChatCompletionChunkShape, ChatCompletionShape
from tests.places import SHARED
from tests.server import patient
from tests.server.fakes import RunningServer, Script, running_server
from tests.server.texts import needs_spec

MESSAGES: list[Any] = [{"role": "user", "content": "Tell me something."}]
TEXT = "The capital of France is Paris, as everybody knows. 🤗 é"
EVERYTHING: dict[str, Any] = {
    "n": 2, "seed": 3, "logprobs": True, "top_logprobs": 2, "stop": ["everybody", "🤗"], "temperature": 0.5,
    "max_tokens": 40, "top_p": 0.9, "frequency_penalty": 0.1, "presence_penalty": 0.1,
}  # fmt: skip
STREAMED = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, smollm2_dir: Path) -> Iterator[RunningServer]:
    from tokenizers import Tokenizer

    words = Tokenizer.from_file(str(smollm2_dir / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids
    script = Script(model_dir=str(smollm2_dir), token_ids=list(words), eos_after=len(words))
    with (
        pytest.MonkeyPatch.context() as patch,
        running_server(patch, tmp_path_factory.mktemp("clients"), script) as running,
    ):
        yield running


def chunks_of(server: RunningServer, **fields: Any) -> list[bytes]:
    answer = patient.post(f"{server.url}/v1/chat/completions", json={"messages": MESSAGES, **STREAMED, **fields})
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
    events = answer.content.split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    return [event.removeprefix(b"data: ") for event in events[:-2] if event.startswith(b"data: ")]


def whole(server: RunningServer, **fields: Any) -> bytes:
    answer = patient.post(f"{server.url}/v1/chat/completions", json={"messages": MESSAGES, **fields})
    assert answer.status_code == 200
    return answer.content


CASES: list[dict[str, Any]] = [{}, EVERYTHING, {"logprobs": True}, {"stop": "France"}, {"n": 3, "max_tokens": 2}]


@pytest.mark.parametrize("fields", CASES)
def test_answers_are_what_openai_and_we_say(server: RunningServer, fields: dict[str, Any]) -> None:
    data = whole(server, **fields)
    ours = ChatCompletionShape.model_validate_json(data)
    theirs = ChatCompletion.model_validate_json(data, strict=True)
    assert [choice.index for choice in theirs.choices] == list(range(fields.get("n", 1)))
    assert len(ours.choices) == len(theirs.choices)
    for piece in chunks_of(server, **fields):
        ChatCompletionChunkShape.model_validate_json(piece)
        ChatCompletionChunk.model_validate_json(piece, strict=True)


def nullable(schema: Any) -> Any:
    """OpenAPI's `nullable` in JSON Schema's words."""
    if isinstance(schema, list):
        return [nullable(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: nullable(value) for key, value in schema.items() if key != "nullable"}
    return {"anyOf": [plain, {"type": "null"}]} if schema.get("nullable") is True else plain


def hugging_face_schema(name: str) -> Draft7Validator:
    """The schema; of a stream, without what it asks for in every delta and OpenAI's streams have in the first alone."""
    schema = nullable(json.loads((SHARED / "spec" / f"hf-chat-completion-{name}.json").read_text()))
    for part, fields in (
        ("TextMessage", ["role"]),
        ("ToolCallDelta", ["role"]),
        ("DeltaToolCall", ["id", "type"]),
    ):
        shape = schema["$defs"].get(f"ChatCompletionStreamOutput{part}", {"required": []})
        shape["required"] = [name for name in shape["required"] if name not in fields]
    return Draft7Validator(schema)


@needs_spec
@pytest.mark.parametrize("fields", CASES)
def test_requests_and_answers_are_what_hugging_face_says(server: RunningServer, fields: dict[str, Any]) -> None:
    as_listed = {**fields, **({"stop": [fields["stop"]]} if isinstance(fields.get("stop"), str) else {})}
    hugging_face_schema("input").validate({"messages": MESSAGES, **as_listed})
    hugging_face_schema("output").validate(json.loads(whole(server, **as_listed)))
    for options in (STREAMED, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}):
        for piece in chunks_of(server, **{**as_listed, "stream_options": None, **options}):
            hugging_face_schema("stream_output").validate(json.loads(piece))


def test_stream_and_whole_agree_in_everything(server: RunningServer) -> None:
    answer = json.loads(whole(server, **EVERYTHING))
    chunks = [json.loads(piece) for piece in chunks_of(server, **EVERYTHING)]
    for choice in answer["choices"]:
        pieces = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(piece["delta"]["content"] for piece in pieces) == choice["message"]["content"]
        assert [piece["finish_reason"] for piece in pieces if piece["finish_reason"]] == [choice["finish_reason"]]
        entries = [entry for piece in pieces if piece["logprobs"] for entry in piece["logprobs"]["content"]]
        assert entries == choice["logprobs"]["content"] and entries
    assert chunks[-1]["usage"] == answer["usage"]
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)


def test_openais_stream_helper(server: RunningServer) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    options: dict[str, Any] = {"model": "fake", "messages": MESSAGES, "logprobs": True, "top_logprobs": 1}
    with client.chat.completions.stream(**options, stream_options={"include_usage": True}) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert final.choices[0].message.content == TEXT and final.choices[0].finish_reason == "stop"
    assert final.usage is not None and final.usage.completion_tokens > 0
    assert {"chunk", "content.delta", "content.done", "logprobs.content.delta", "logprobs.content.done"} <= set(kinds)

    async def asynchronous() -> str:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            async with client.chat.completions.stream(model="fake", messages=MESSAGES, n=2) as stream:
                async for _ in stream:
                    pass
                completion = await stream.get_final_completion()
            return str([choice.message.content for choice in completion.choices])

    assert asyncio.run(asynchronous()) == str([TEXT, TEXT])


def test_openais_with_raw_response_has_the_request_id(server: RunningServer) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    raw = client.chat.completions.with_raw_response.create(model="fake", messages=MESSAGES, **EVERYTHING)
    assert raw.headers["x-request-id"] and raw.parse()._request_id == raw.headers["x-request-id"]


FORMS = ("base_url", "model")


def options_of(server: RunningServer, form: str) -> dict[str, Any]:
    return {"base_url": f"{server.url}/v1"} if form == "base_url" else {"model": f"{server.url}/v1"}


@pytest.mark.parametrize("form", FORMS)
def test_the_hugging_face_client_by_address(server: RunningServer, form: str) -> None:
    client = InferenceClient(**options_of(server, form))
    answer = client.chat_completion(MESSAGES, **EVERYTHING)
    assert [choice.index for choice in answer.choices] == [0, 1] and answer.system_fingerprint
    assert answer.choices[0].logprobs is not None and answer.choices[0].logprobs.content[0].top_logprobs
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    stream = list(client.chat_completion(MESSAGES, stream=True, stream_options={"include_usage": True}))  # type: ignore[arg-type]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == TEXT
    assert stream[-1].usage is not None and stream[-1].usage.completion_tokens > 0
    with pytest.raises(BadRequestError, match="temperature"):
        client.chat_completion(MESSAGES, temperature=7)


@pytest.mark.parametrize("form", FORMS)
def test_the_asynchronous_hugging_face_client_by_address(server: RunningServer, form: str) -> None:
    async def talk() -> tuple[str, str]:
        client = AsyncInferenceClient(**options_of(server, form))
        answer = await client.chat_completion(MESSAGES)
        stream = await client.chat.completions.create(messages=MESSAGES, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return str(answer.choices[0].message.content), "".join(pieces)

    assert asyncio.run(talk()) == (TEXT, TEXT)


def snippets() -> list[str]:
    """The Python code on the page that defines the contract."""
    if not (SHARED / "spec").is_dir():
        return []
    page = (SHARED / "spec" / "chat-completion-page.txt").read_text()
    return re.findall(r"^from huggingface_hub import .*?^print\(.*?\)$", page, re.DOTALL | re.MULTILINE)


@needs_spec
@pytest.mark.parametrize("number", [0, 1], ids=["text", "image"])
def test_the_snippets_of_the_page(number: int, server: RunningServer) -> None:
    """As they stand but for the address and the model's name."""
    code = snippets()[number]
    code, providers = re.subn(r'provider="[\w-]+"', f'base_url="{server.url}/v1"', code)
    code, models = re.subn(r'model="[^"]+"', 'model="fake"', code)
    assert providers == models == 1
    scope: dict[str, Any] = {}
    try:
        exec(compile(code, "snippet", "exec"), scope)
    except BadRequestError as error:
        # The fake model reads text only, and an image is refused by its place.
        assert number == 1 and "messages[0].content[1]" in str(error)
        return
    assert scope["completion"].choices[0].message.content == TEXT
