"""Text Generation Inference's interface over real HTTP, with the scripted engine and huggingface_hub's client."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient

from server.protocol.errors import ApiError
from server.protocol.generate_request import read_generate_request
from server.protocol.generate_shapes import GeneratedArrayShape, GeneratedEventShape, GeneratedShape
from tests.server import patient
from tests.server.fakes import RunningServer, Script, running_server, wait_until
from tests.server.routes.test_chat import TEXT, idle

PROMPT = "What is the capital?"


@pytest.fixture(scope="module")
def words(smollm2_dir: Path) -> list[int]:
    """The token ids of `TEXT`."""
    from tokenizers import Tokenizer

    return list(Tokenizer.from_file(str(smollm2_dir / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, smollm2_dir: Path, words: list[int]) -> Iterator[RunningServer]:
    script = Script(model_dir=str(smollm2_dir), token_ids=words, eos_after=len(words), context=512)
    with (
        pytest.MonkeyPatch.context() as patch,
        running_server(patch, tmp_path_factory.mktemp("generate"), script, api_keys=("key",)) as running,
    ):
        yield running


@pytest.fixture
def client(server: RunningServer) -> InferenceClient:
    return InferenceClient(server.url, token="key")


def post(server: RunningServer, path: str, **body: Any) -> httpx.Response:
    return patient.post(f"{server.url}{path}", json=body, headers={"authorization": "Bearer key"})


def events(answer: httpx.Response) -> list[GeneratedEventShape]:
    """The events of a stream, which must all be of the interface's shape."""
    blocks = answer.text.split("\n\n")
    assert blocks.pop() == "" and all(block.startswith("data: ") for block in blocks)
    return [GeneratedEventShape.model_validate(json.loads(block.removeprefix("data: "))) for block in blocks]


def test_a_text_is_continued(server: RunningServer, client: InferenceClient, words: list[int]) -> None:
    assert client.text_generation(PROMPT) == TEXT
    assert server.events("add")[-1]["max_tokens"] == 100
    answer = client.text_generation(PROMPT, details=True, seed=0, return_full_text=True, temperature=0.5)
    assert answer.generated_text == PROMPT + TEXT and answer.details is not None
    assert (answer.details.finish_reason, answer.details.generated_tokens) == ("eos_token", len(words) + 1)
    assert answer.details.seed == 0
    assert "".join(token.text for token in answer.details.tokens) == TEXT
    assert [token.id for token in answer.details.tokens[:-1]] == words and answer.details.tokens[-1].special
    whole = post(server, "/generate", inputs=PROMPT, stream=True).json()
    assert GeneratedShape.model_validate(whole).details is None and whole["generated_text"] == TEXT
    (only,) = GeneratedArrayShape.model_validate(post(server, "/", inputs=PROMPT).json()).root
    assert only.generated_text == TEXT
    wait_until(lambda: idle(server))


@pytest.mark.parametrize("path", ["/generate_stream", "/"])
def test_an_event_for_each_token(server: RunningServer, words: list[int], path: str) -> None:
    found = events(post(server, path, inputs=PROMPT, stream=True))
    *before, last = found
    assert "".join(event.token.text for event in found) == TEXT == last.generated_text
    assert [event.index for event in found] == list(range(1, len(words) + 2))
    assert all(event.generated_text is event.details is None for event in before)
    assert last.details is not None and last.details.finish_reason == "eos_token" and last.token.special


def test_ends_are_told_apart_and_stop_strings_shown(server: RunningServer, client: InferenceClient) -> None:
    shown = "The capital of France is Paris"
    assert client.text_generation(PROMPT, stop=["is Par", "is Paris"]) == shown.removesuffix("is")
    found = list(client.text_generation(PROMPT, stop=[" Paris"], details=True, stream=True))
    assert found[-1].generated_text == shown == "".join(event.token.text for event in found)
    assert found[-1].details.finish_reason == "stop_sequence"
    short = client.text_generation(PROMPT, max_new_tokens=3, details=True)
    assert short.details.finish_reason == "length" and len(short.details.tokens) == 3
    assert "".join(client.text_generation(PROMPT, stream=True)) == TEXT

    async def all_of_it() -> str:
        async with AsyncInferenceClient(server.url, token="key") as many:
            return "".join([piece async for piece in await many.text_generation(PROMPT, stream=True)])

    assert asyncio.run(all_of_it()) == TEXT


def test_tokens_are_drawn_where_an_option_says_how() -> None:
    for parameters, temperature in [
        ({}, 0), ({"temperature": 1}, 0), ({"top_p": 1, "top_k": 0}, 0), ({"do_sample": False, "seed": 3}, 0),
        ({"do_sample": True}, None), ({"top_k": 5}, None), ({"top_p": 0.5}, None), ({"temperature": 0.7}, 0.7),
    ]:  # fmt: skip
        found, _ = read_generate_request(json.dumps({"inputs": "x", "parameters": parameters}).encode())
        assert found.temperature == temperature, parameters


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "inputs", "missing_required_parameter"),
        ({"inputs": ["a"]}, "inputs", "invalid_type"),
        ({"inputs": "a", "parameters": {"max_new_tokens": 0}}, "parameters.max_new_tokens", "invalid_value"),
        ({"inputs": "a", "parameters": {"max_tokens": 5}}, "parameters.max_tokens", "unknown_parameter"),
        ({"inputs": "a", "parameters": {"best_of": 2}}, "parameters.best_of", "unsupported_parameter"),
        ({"inputs": "a", "parameters": {"truncate": 9}}, "parameters.truncate", "unsupported_parameter"),
        ({"inputs": "a", "parameters": {"watermark": True}}, "parameters.watermark", "unsupported_parameter"),
        ({"inputs": "a", "parameters": {"top_n_tokens": 2}}, "parameters.top_n_tokens", "unsupported_parameter"),
        ({"inputs": "a", "parameters": {"grammar": {"type": "regex"}}}, "parameters.grammar", "invalid_value"),
        ({"inputs": "a", "parameters": {"grammar": {"type": "json", "value": "{"}}}, "parameters.grammar.value", None),
    ],
)
def test_what_is_wrong_is_refused_by_name(body: dict[str, Any], param: str, code: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        read_generate_request(json.dumps(body).encode())
    assert caught.value.status == 400 and caught.value.param == param, caught.value.message
    assert code is None or caught.value.code == code


def test_what_asks_for_nothing_is_taken() -> None:
    parameters = {
        "best_of": 1, "typical_p": 1, "watermark": False, "decoder_input_details": False, "top_n_tokens": 0,
        "adapter_id": None, "truncate": None, "details": False, "return_full_text": False, "grammar": None,
    }  # fmt: skip
    body = json.dumps({"inputs": "x", "parameters": parameters}).encode()
    assert read_generate_request(body) == read_generate_request(b'{"inputs": "x"}')
    nothing = b'{"inputs": "x", "parameters": null, "stream": null, "model": null}'
    assert read_generate_request(nothing) == read_generate_request(b'{"inputs": "x"}')


def test_numbers_of_a_grammar_are_exact() -> None:
    body = b'{"inputs": "x", "parameters": {"grammar": {"type": "json", "value": {"const": 12345678901234567890.25}}}}'
    constraint = read_generate_request(body)[0].constraint()
    assert constraint is not None and constraint.source == '{"const":12345678901234567890.25}'
    assert constraint.param == "parameters.grammar.value"


def test_what_only_the_model_can_tell_has_this_interface_s_names(server: RunningServer) -> None:
    for fields, param in [
        ({"inputs": ""}, "inputs"),
        ({"inputs": "a " * 600}, "inputs"),
        ({"inputs": "a", "parameters": {"max_new_tokens": 600}}, "parameters.max_new_tokens"),
        ({"inputs": "a", "model": "nope"}, "model"),
    ]:
        for path in ("/generate", "/generate_stream", "/"):
            answer = post(server, path, **fields)
            assert answer.status_code in (400, 404) and answer.json()["error"]["param"] == param, answer.text
    wait_until(lambda: idle(server))


def test_the_page_at_the_root_is_open_and_asking_there_needs_a_key(server: RunningServer) -> None:
    assert patient.get(f"{server.url}/").status_code == 200
    assert patient.post(f"{server.url}/", json={"inputs": "a"}).status_code == 401
