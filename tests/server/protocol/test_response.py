"""The response shapes, held against Hugging Face's schemas and OpenAI's own types."""

import json
from typing import Any

import pytest
from jsonschema import Draft7Validator
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from server.protocol.response import Choice, ChunkEncoder, chat_completion, encode_json, new_completion_id, usage
from tests.clocks import cpu_seconds
from tests.places import SHARED
from tests.server.texts import needs_spec

LOGPROBS = [
    {
        "token": "é",
        "logprob": -0.5,
        "bytes": [195, 169],
        "top_logprobs": [{"token": "é", "logprob": -0.5, "bytes": [195, 169]}],
    }
]


def completion(logprobs: list[dict[str, Any]] | None) -> dict[str, Any]:
    return chat_completion(
        completion_id=new_completion_id(),
        created=1_700_000_000,
        model="m",
        system_fingerprint="fp_1",
        choices=[
            Choice(index=0, content="é", finish_reason="stop", logprobs=logprobs),
            Choice(index=1, content="", finish_reason="length", logprobs=logprobs),
        ],
        usage=usage(10, 2, 8),
    )


def encoder(**options: Any) -> ChunkEncoder:
    return ChunkEncoder(completion_id="chatcmpl-1", model='m"\n', system_fingerprint="fp_1", created=1, **options)


def chunks(include_usage: bool = False, continuous_usage: bool = False) -> list[bytes]:
    chunk = encoder(include_usage=include_usage, continuous_usage=continuous_usage)
    counts = usage(3, 1)
    made = [
        chunk.role(0, counts),
        chunk.text(0, 'q"\\\n\x00é🤗', LOGPROBS, counts),
        chunk.text(1, "b", usage=counts),
        chunk.finish(0, "stop", counts),
    ]
    return [*made, chunk.usage(usage(3, 7, 2))] if include_usage else made


def schema_of(name: str) -> Draft7Validator:
    return Draft7Validator(json.loads((SHARED / "spec" / f"hf-chat-completion-{name}.json").read_text()))


@needs_spec
@pytest.mark.parametrize("logprobs", [None, LOGPROBS, []])
def test_a_completion_satisfies_the_hugging_face_schema(logprobs: list[dict[str, Any]] | None) -> None:
    answer = json.loads(encode_json(completion(logprobs)))
    if logprobs is None:
        # The schema says "nullable", which is OpenAPI's word; to JSON Schema null is no object.
        for choice in answer["choices"]:
            assert choice.pop("logprobs") is None
    schema_of("output").validate(answer)


@needs_spec
@pytest.mark.parametrize("include_usage", [False, True])
def test_chunks_satisfy_the_hugging_face_schema(include_usage: bool) -> None:
    for data in chunks(include_usage):
        chunk = json.loads(data)
        for holder in (chunk, *chunk["choices"]):
            for nullable in ("usage", "logprobs", "finish_reason"):
                if nullable in holder and holder[nullable] is None:
                    del holder[nullable]
        for choice in chunk["choices"]:
            # It asks for a role in every delta; here it is in a choice's first, as with OpenAI.
            choice["delta"].setdefault("role", "assistant")
        schema_of("stream_output").validate(chunk)


def test_a_completion_is_openais() -> None:
    for logprobs in (None, LOGPROBS):
        parsed = ChatCompletion.model_validate_json(encode_json(completion(logprobs)), strict=True)
        assert parsed.choices[0].message.content == "é"
        assert parsed.usage is not None and parsed.usage.prompt_tokens_details is not None
        assert parsed.usage.prompt_tokens_details.cached_tokens == 8
        assert parsed.usage.total_tokens == 12


@pytest.mark.parametrize("include_usage", [False, True])
def test_chunks_are_openais(include_usage: bool) -> None:
    parsed = [ChatCompletionChunk.model_validate_json(data, strict=True) for data in chunks(include_usage)]
    assert parsed[1].choices[0].delta.content == 'q"\\\n\x00é🤗'
    assert parsed[1].choices[0].logprobs is not None
    assert parsed[2].choices[0].index == 1
    assert parsed[3].choices[0].finish_reason == "stop"
    assert {chunk.model for chunk in parsed} == {'m"\n'}
    assert [choice.delta.role for chunk in parsed for choice in chunk.choices] == ["assistant", None, None, None]


def test_usage_is_absent_or_null_or_counted() -> None:
    assert all("usage" not in json.loads(data) for data in chunks())
    *others, last = [json.loads(data) for data in chunks(include_usage=True)]
    assert all(chunk["usage"] is None for chunk in others)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 7
    *others, last = [json.loads(data) for data in chunks(include_usage=True, continuous_usage=True)]
    assert all(chunk["usage"]["completion_tokens"] == 1 for chunk in others)
    assert all(json.loads(data)["usage"]["total_tokens"] > 0 for data in chunks(continuous_usage=True)[:-1])


def test_ids_differ() -> None:
    assert len({new_completion_id() for _ in range(1000)}) == 1000


def test_a_chunk_costs_less_than_its_json() -> None:
    """Tens of thousands a second on a core: json.dumps takes several times as long."""
    chunk = encoder(include_usage=True)
    content = json.loads(chunk.text(0, " hello"))
    encoding = cpu_seconds(lambda: [chunk.text(0, " hello") for _ in range(10_000)])
    assert encoding < cpu_seconds(lambda: [json.dumps(content) for _ in range(10_000)])
