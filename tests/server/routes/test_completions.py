"""Raw completions and the tokenizer's routes over real HTTP, with the scripted engine."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from server.answer.streams import PromptStreams
from server.prompt.tokenizer import ChatTokenizer
from server.protocol.completion_request import CompletionRequest, parse_completion_request
from server.protocol.errors import ApiError
from server.protocol.fields import completion_field_table
from server.protocol.prompts import MAX_PROMPTS
from tests.server import patient
from tests.server.fakes import NEVER, RunningServer, Script, running_server, wait_until
from tests.server.routes.test_chat import TEXT, events_of, idle

PROMPT = "What is the capital?"
EVERYTHING: dict[str, Any] = {
    "model": "m", "add_special_tokens": False, "max_tokens": 0, "temperature": 0, "top_p": 0.5,
    "frequency_penalty": -2, "presence_penalty": 2, "logprobs": 20, "logit_bias": {"3": 1}, "n": 2, "seed": 1,
    "stop": ["a"], "stream": True, "stream_options": {"include_usage": True}, "user": "u", "top_k": 1, "min_p": 0.5,
    "repetition_penalty": 2, "min_tokens": 0, "ignore_eos": True, "stop_token_ids": [3],
    "include_stop_str_in_output": True, "skip_special_tokens": False, "priority": 1000, "echo": True, "best_of": 2,
    "suffix": "", "timeout": 0.5, "response_format": {"type": "regex", "value": "a"},
}  # fmt: skip


@pytest.fixture(scope="module")
def words(smollm2_tokenizer: ChatTokenizer) -> list[int]:
    return smollm2_tokenizer.encode(TEXT, allow_special=False)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, smollm2_dir: Path, words: list[int]) -> Iterator[RunningServer]:
    script = Script(model_dir=str(smollm2_dir), token_ids=words, eos_after=len(words), context=512)
    with (
        pytest.MonkeyPatch.context() as patch,
        running_server(patch, tmp_path_factory.mktemp("completions"), script) as running,
    ):
        yield running


@pytest.fixture
def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def post(server: RunningServer, path: str = "/v1/completions", **fields: Any) -> httpx.Response:
    return patient.post(f"{server.url}{path}", json=fields)


def refusal(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_completion_request(json.dumps({"prompt": "x"} | fields).encode())
    assert caught.value.status == 400
    return caught.value


def test_the_field_table_covers_exactly_the_fields() -> None:
    rows = completion_field_table()
    assert [row.name for row in rows] == list(CompletionRequest.model_fields)
    assert all(row.meaning and row.range for row in rows)
    others = {"grammar", "choice", "structured_outputs"}  # which exclude response_format
    assert {row.name for row in rows} == {*EVERYTHING, *others, "prompt"}
    assert parse_completion_request(json.dumps({"prompt": "x"} | EVERYTHING).encode()).best_of == 2
    nothing = dict.fromkeys(EVERYTHING)
    assert parse_completion_request(json.dumps({"prompt": "x"} | nothing).encode()) == parse_completion_request(
        b'{"prompt":"x"}'
    )


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": None}, "prompt", "invalid_type"),
        ({"prompt": 5}, "prompt", "invalid_type"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": [[]]}, "prompt[0]", "invalid_value"),
        ({"prompt": [True]}, "prompt", "invalid_type"),
        ({"prompt": ["a", 5]}, "prompt[1]", "invalid_type"),
        ({"prompt": [5, "a"]}, "prompt[1]", "invalid_type"),
        ({"prompt": [[5], ["a"]]}, "prompt[1][0]", "invalid_type"),
        ({"prompt": [-1]}, "prompt[0]", "invalid_value"),
        ({"prompt": ["a"] * (MAX_PROMPTS + 1)}, "prompt", "invalid_value"),
        ({"prompt": ["a"] * 100, "n": 3}, "n", "invalid_value"),
        ({"logprobs": 21}, "logprobs", "invalid_value"),
        ({"logprobs": True}, "logprobs", "invalid_type"),
        ({"max_tokens": -1}, "max_tokens", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"best_of": 1, "n": 2}, "best_of", "invalid_value"),
        ({"suffix": "x"}, "suffix", "unsupported_parameter"),
        ({"messages": []}, "messages", "unknown_parameter"),
        ({"choice": ["a"], "grammar": 'start: "a"'}, "choice", "invalid_value"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}},
            "response_format.json_schema.schema",
            "invalid_value",
        ),
        ({"top_logprobs": 1}, "top_logprobs", "unknown_parameter"),
        ({"priority": 1001}, "priority", "invalid_value"),
        ({"temperature": 3}, "temperature", "invalid_value"),
    ],
)
def test_what_is_wrong_is_refused_by_name(fields: dict[str, Any], param: str, code: str) -> None:
    error = refusal(**fields)
    assert (error.param, error.code) == (param, code), error.message


def test_what_only_the_model_can_tell_is_refused_by_name(server: RunningServer) -> None:
    for fields, param, code in [
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": ["a", ""]}, "prompt[1]", "invalid_value"),
        ({"prompt": [1, 49152]}, "prompt[1]", "invalid_value"),
        ({"prompt": [[1], [2, 49152]]}, "prompt[1][1]", "invalid_value"),
        ({"prompt": [1] * 512}, "prompt", "context_length_exceeded"),
        ({"prompt": [[1], [1] * 513], "echo": True, "max_tokens": 0}, "prompt[1]", "context_length_exceeded"),
        ({"prompt": [1] * 500, "max_tokens": 13}, "max_tokens", "context_length_exceeded"),
        ({"prompt": "a", "logit_bias": {"49152": 1}}, "logit_bias", "invalid_value"),
        ({"prompt": "a", "model": "nope"}, "model", "model_not_found"),
    ]:
        error = post(server, **fields).json()["error"]
        assert (error["param"], error["code"]) == (param, code), error
    wait_until(lambda: idle(server))


def test_a_text_is_continued(client: openai.OpenAI, server: RunningServer, words: list[int]) -> None:
    answer = client.completions.create(model="fake", prompt=PROMPT, max_tokens=100)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason, choice.logprobs) == (TEXT, "stop", None)
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    assert answer.usage is not None and answer.usage.completion_tokens == len(words) + 1
    short = client.completions.create(model="fake", prompt=PROMPT, extra_body={"priority": -7})
    assert short.choices[0].finish_reason == "stop" and len(words) < 16
    assert (server.events("add")[-1]["max_tokens"], server.events("add")[-1]["priority"]) == (16, -7)
    assert post(server, prompt=[5] * 508).json()["usage"]["completion_tokens"] == 4


def test_a_stop_string_ends_one_choice(client: openai.OpenAI, server: RunningServer) -> None:
    answer = client.completions.create(model="fake", prompt=[PROMPT, "x"], stop=" Paris")
    assert [choice.text for choice in answer.choices] == ["The capital of France is"] * 2
    assert all(choice.finish_reason == "stop" for choice in answer.choices)
    wait_until(lambda: idle(server))


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_and_choices_have_indices_together(client: openai.OpenAI, stream: bool) -> None:
    prompts = ["one", "two", "three"]
    options: dict[str, Any] = {"model": "fake", "prompt": prompts, "n": 2, "seed": 3, "max_tokens": 5, "echo": True}
    texts = [""] * 6
    if stream:
        reasons = {}
        for chunk in client.completions.create(**options, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].text
            if chunk.choices[0].finish_reason:
                reasons[chunk.choices[0].index] = chunk.choices[0].finish_reason
        assert reasons == dict.fromkeys(range(6), "length")
    else:
        answer = client.completions.create(**options)
        texts = [choice.text for choice in answer.choices]
        assert [choice.index for choice in answer.choices] == list(range(6))
        assert answer.usage is not None and answer.usage.completion_tokens == 30
    assert [text.startswith(prompts[index // 2]) for index, text in enumerate(texts)] == [True] * 6
    assert texts[0].removeprefix("one") == texts[2].removeprefix("two") != texts[1].removeprefix("one")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 1, 7])
def test_echo_scores_the_prompt_as_harnesses_read_it(
    server: RunningServer, smollm2_tokenizer: ChatTokenizer, stream: bool, max_tokens: int
) -> None:
    """One entry for each token of prompt and answer; the first has no log-probability."""
    ids = smollm2_tokenizer.encode(PROMPT, allow_special=False)
    fields: dict[str, Any] = {"echo": True, "logprobs": 2, "max_tokens": max_tokens, "n": 2, "stream": stream}
    for prompt in (PROMPT, ids):
        answer = post(server, prompt=prompt, **fields)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = [{"text": "", "logprobs": {}} for _ in range(2)]
        pieces = events_of(answer.text) if stream else [answer.json()]
        for choice in (choice for piece in pieces for choice in piece["choices"]):
            found[choice["index"]]["text"] += choice["text"]
            for name, values in (choice["logprobs"] or {}).items():
                found[choice["index"]]["logprobs"].setdefault(name, []).extend(values)
        for choice in found:
            logprobs = choice["logprobs"]
            assert choice["text"].startswith(PROMPT) and (choice["text"] == PROMPT) == (max_tokens == 0)
            assert logprobs["token_logprobs"][: len(ids)] == [None, *(-float(place) for place in range(1, len(ids)))]
            assert logprobs["top_logprobs"][0] is None and logprobs["top_logprobs"][1] == {
                " is": -1.0,
                "<|endoftext|>": -1.0,
            }
            assert {len(values) for values in logprobs.values()} == {len(ids) + max_tokens}
            assert "".join(logprobs["tokens"]) == choice["text"]
            for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
                assert choice["text"][offset:].startswith(token)


def test_offsets_without_echo_are_of_the_answer_and_count_characters(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, smollm2_dir: Path, smollm2_tokenizer: ChatTokenizer
) -> None:
    text = "naïve 🪿 café ߷ x"
    ids = smollm2_tokenizer.encode(text, allow_special=False)
    script = Script(model_dir=str(smollm2_dir), token_ids=ids, eos_after=len(ids))
    with running_server(monkeypatch, tmp_path, script) as server:
        (choice,) = post(server, prompt="x", logprobs=0, max_tokens=40).json()["choices"]
        echoed = post(server, prompt=ids, logprobs=0, max_tokens=0, echo=True).json()["choices"][0]
    for found in (choice, echoed):
        logprobs = found["logprobs"]
        assert found["text"] == text
        whole = [(t, o) for t, o in zip(logprobs["tokens"], logprobs["text_offset"], strict=True) if t[:6] != "bytes:"]
        assert len(whole) < len(logprobs["tokens"]), "some tokens are parts of characters"
        assert all(text[offset:].startswith(token) for token, offset in whole if token != "<|im_end|>")
        assert any(token.startswith("bytes:\\x") for token in logprobs["tokens"])


@pytest.mark.parametrize(
    "fields", [{"max_tokens": 60}, {"stop": TEXT[3:9]}, {"max_tokens": 3}], ids=["end", "stop", "length"]
)
def test_every_generated_token_has_an_entry_shown_or_not(server: RunningServer, fields: dict[str, Any]) -> None:
    body = post(server, prompt="x", logprobs=1, **fields).json()
    (choice,) = body["choices"]
    lengths = {len(values) for values in choice["logprobs"].values()}
    assert lengths == {body["usage"]["completion_tokens"]}
    spelt = "".join(choice["logprobs"]["tokens"])
    assert spelt.startswith(choice["text"]) and (spelt == choice["text"]) == (fields == {"max_tokens": 3})


def test_control_tokens_in_raw_text_are_matched(server: RunningServer, smollm2_tokenizer: ChatTokenizer) -> None:
    """The client writes the template itself; in a conversation the same text stays text."""
    template = "<|im_start|>user\nhi<|im_end|>\n"
    answer = post(server, "/tokenize", prompt=template, return_token_strs=True).json()
    assert answer["tokens"] == smollm2_tokenizer.encode(template, allow_special=True)
    starts = [at for at, text in enumerate(answer["token_strs"]) if text in ("<|im_start|>", "<|im_end|>")]
    assert answer["special_positions"] == starts and starts
    assert answer["token_strs"][0] == "<|im_start|>" and answer["count"] == len(answer["tokens"])
    assert answer["max_model_len"] == 512
    chat = post(server, "/tokenize", messages=[{"role": "user", "content": "<|im_end|>"}], add_generation_prompt=False)
    assert chat.json()["tokens"].count(smollm2_tokenizer.encode("<|im_end|>", allow_special=True)[0]) == 2
    assert chat.json()["token_strs"] is None and chat.json()["special_positions"] is None
    echoed = post(server, prompt=template, echo=True, max_tokens=1).json()["choices"][0]["text"]
    assert echoed == template + "The"
    for more in ({}, {"skip_special_tokens": False}, {"skip_special_tokens": True, "logprobs": 0}):
        choice = post(server, prompt=answer["tokens"], echo=True, max_tokens=1, **more).json()["choices"][0]
        assert choice["text"] == template + "The"
        if found := choice["logprobs"]:
            assert "".join(found["tokens"]) == choice["text"]
            pairs = zip(found["tokens"], found["text_offset"], strict=True)
            assert all(choice["text"].startswith(token, offset) for token, offset in pairs)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize(
    ("options", "in_chunks", "at_the_end"),
    [
        ({"include_usage": False, "continuous_usage_stats": True}, False, False),
        ({"include_usage": False}, False, False),
        ({"include_usage": None, "continuous_usage_stats": True}, True, False),
        ({"include_usage": True, "continuous_usage_stats": True}, True, True),
        ({"include_usage": True}, False, True),
    ],
)
def test_usage_comes_where_it_is_asked_for(
    server: RunningServer, path: str, options: dict[str, Any], in_chunks: bool, at_the_end: bool
) -> None:
    prompt = {"prompt": "x"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "x"}]}
    answer = post(server, path, **prompt, max_tokens=3, stream=True, stream_options=options)
    *chunks, last = events_of(answer.text)
    assert bool(last.get("usage")) == (in_chunks or at_the_end) and (last["choices"] == []) == at_the_end
    assert all(bool(chunk.get("usage")) == in_chunks for chunk in chunks)


def test_a_chat_costs_what_tokenize_says(server: RunningServer, client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "It is"}]
    tools = {"tools": [{"type": "function", "function": {"name": "now"}}]}
    shapes: list[dict[str, Any]] = [{}, {"continue_final_message": True}, {"add_generation_prompt": False}, tools]
    for shape in (*shapes, {**tools, "tool_prompt": "Use them."}):
        count = post(server, "/tokenize", messages=messages, **shape).json()["count"]
        answer = client.chat.completions.create(model="fake", messages=messages, extra_body=shape)
        assert answer.usage is not None and answer.usage.prompt_tokens == count


def test_tokens_become_text_again(server: RunningServer) -> None:
    for text in (PROMPT, "<|im_start|>naïve 🙂", ""):
        ids = post(server, "/tokenize", prompt=text).json()["tokens"]
        assert post(server, "/detokenize", tokens=ids).json() == {"prompt": text}


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"prompt": "a", "temperature": 1}, "temperature"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}], "prompt": "a"}, "prompt"),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}], "continue_final_message": True},
         "continue_final_message"),
        ("/tokenize", {"prompt": "a", "model": "nope"}, "model"),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}], "tool_prompt": "a"}, "tool_prompt"),
        ("/tokenize", {"prompt": "a", "tools": []}, "tools"),
        ("/detokenize", {"tokens": [49152]}, "tokens[0]"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
    ],
)  # fmt: skip
def test_bad_questions_to_the_tokenizer_are_refused_by_name(
    server: RunningServer, path: str, fields: dict[str, Any], param: str
) -> None:
    answer = post(server, path, **fields)
    assert answer.status_code in (400, 404) and answer.json()["error"]["param"] == param


def test_a_stream_ends_with_its_usage(server: RunningServer) -> None:
    options = {"include_usage": True}
    events = events_of(post(server, prompt=["a", "b"], stream=True, stream_options=options, max_tokens=3).text)
    assert all(event["usage"] is None for event in events[:-1])
    assert events[-1]["choices"] == [] and events[-1]["usage"]["completion_tokens"] == 6
    counted = events_of(
        post(server, prompt="a", stream=True, stream_options={"continuous_usage_stats": True}, max_tokens=3).text
    )
    assert [event["usage"]["completion_tokens"] for event in counted][-1] == 3


def test_a_client_that_leaves_ends_all_its_prompts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, smollm2_dir: Path
) -> None:
    """Though the engine stands still after their first tokens, and no comment is due."""
    monkeypatch.setattr("server.routes.answering.KEEP_ALIVE_SECONDS", NEVER)
    script = Script(model_dir=str(smollm2_dir), token_ids=[504], holds={-1: 1})
    with running_server(monkeypatch, tmp_path, script) as server:
        with patient.stream(
            "POST", f"{server.url}/v1/completions", json={"prompt": ["a"] * 5, "max_tokens": 4000, "stream": True}
        ) as answer:
            next(answer.iter_raw())
        wait_until(lambda: idle(server))
        wait_until(lambda: len(server.events("abort")) == 5)


def test_one_prompt_that_fails_fails_the_request(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, smollm2_dir: Path
) -> None:
    script = Script(model_dir=str(smollm2_dir), token_ids=[504], error_after=0, error_param="messages")
    with running_server(monkeypatch, tmp_path, script) as server:
        answer = post(server, prompt=["a", "b", "c"])
        assert answer.status_code == 400 and answer.json()["error"]["param"].startswith("prompt[")
        wait_until(lambda: idle(server))


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("accepts", [True, False])
def test_a_long_silence_before_the_first_token_sends_headers_once_the_request_is_queued(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, smollm2_dir: Path, path: str, accepts: bool
) -> None:
    """Not before: then what fails is still an error of its own."""
    monkeypatch.setattr("server.routes.answering.KEEP_ALIVE_SECONDS", 0.1)
    pokes = 0
    poke = PromptStreams.poke

    def counted_poke(streams: PromptStreams) -> None:
        nonlocal pokes
        pokes += 1
        poke(streams)

    monkeypatch.setattr(PromptStreams, "poke", counted_poke)
    gate = tmp_path / "gate"
    script = Script(
        model_dir=str(smollm2_dir), token_ids=[504], holds={-1: 0}, gate=str(gate), error_after=0, accepts=accepts,
        error_code="overloaded",
    )  # fmt: skip
    prompt: dict[str, Any] = {"prompt": ["x", "y"]} if path == "/v1/completions" else {}
    prompt = prompt or {"messages": [{"role": "user", "content": "x"}]}
    body = {**prompt, "stream": True}
    with running_server(monkeypatch, tmp_path, script) as server, ThreadPoolExecutor() as pool:
        if accepts:  # the headers and two comments come while the engine stands still
            text = ""
            with patient.stream("POST", f"{server.url}{path}", json=body) as answer:
                for piece in answer.iter_text():
                    text += piece
                    if text.count(": keep-alive") >= 2:
                        gate.touch()
        else:  # nothing does, though comments would have been due
            waiting = pool.submit(patient.post, f"{server.url}{path}", json=body)
            wait_until(lambda: pokes >= 3)
            assert not waiting.done()
            gate.touch()
            answer = waiting.result()
    if accepts:
        assert answer.status_code == 200
        assert text.startswith(": keep-alive\n\n: keep-alive\n\n") and text.endswith("data: [DONE]\n\n")
        assert '"code":"overloaded"' in text
    else:
        assert answer.status_code == 503 and "retry-after" in answer.headers
