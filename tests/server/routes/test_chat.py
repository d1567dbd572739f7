"""Chat completions over real HTTP, with the clients people use and with raw sockets."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from huggingface_hub import InferenceClient

from engine import request_stream
from server.edge.http_protocol import GuardedH11Protocol
from server.edge.limits import Limits
from tests.clocks import PATIENCE
from tests.server import patient
from tests.server.fakes import (
    FAST_POLICY,
    NEVER,
    RunningServer,
    Script,
    engine_config,
    running_server,
    wait_ready,
    wait_until,
)

MESSAGES: list[Any] = [{"role": "user", "content": "Tell me something."}]
TEXT = "The capital of France is Paris, as everybody knows."
ENDLESS_SEED = 77
"""With it the engine says `TEXT` and then stands still."""


@pytest.fixture(scope="module")
def words(smollm2_dir: Path) -> list[int]:
    """The token ids of `TEXT`."""
    from tokenizers import Tokenizer

    return list(Tokenizer.from_file(str(smollm2_dir / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids)


@pytest.fixture(scope="module")
def script(smollm2_dir: Path, words: list[int]) -> Script:
    return Script(
        model_dir=str(smollm2_dir), token_ids=words, eos_after=len(words), step_seconds=0.002,
        answers={ENDLESS_SEED: [words * 2]}, holds={ENDLESS_SEED: len(words)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, script: Script) -> Iterator[RunningServer]:
    with (
        pytest.MonkeyPatch.context() as patch,
        running_server(patch, tmp_path_factory.mktemp("chat"), script) as running,
    ):
        yield running


@pytest.fixture
def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def raw_request(**fields: Any) -> bytes:
    body = json.dumps({"messages": MESSAGES, **fields}).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )


def read_until(connection: socket.socket, marker: bytes) -> bytes:
    data = b""
    while marker not in data:
        chunk = connection.recv(65536)
        assert chunk, f"closed before {marker!r}: {data[-500:]!r}"
        data += chunk
    return data


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream, whose grammar is checked on the way."""
    blocks = text.split("\n\n")
    assert blocks[-1] == "" and blocks[-2] == "data: [DONE]"
    data = [block for block in blocks[:-2] if not block.startswith(":")]
    assert all(block.startswith("data: ") for block in data)
    return [json.loads(block.removeprefix("data: ")) for block in data]


def idle(server: RunningServer) -> bool:
    client = server.handle.client
    return client is not None and client.num_requests == 0 and server.server.admission.in_flight == 0


# ---- answers


def test_a_whole_answer(client: openai.OpenAI, words: list[int]) -> None:
    answer = client.chat.completions.create(model="fake", messages=MESSAGES)
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.completion_tokens == len(words) + 1
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.model == "fake" and answer.system_fingerprint


def test_a_streamed_answer(client: openai.OpenAI, words: list[int]) -> None:
    chunks = list(
        client.chat.completions.create(
            model="fake", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == TEXT
    roles = [chunk.choices[0].delta.role for chunk in chunks[:-1]]
    assert roles == ["assistant"] + [None] * (len(roles) - 1)
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1] if chunk.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(words) + 1
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_asynchronous_client_many_at_once(server: RunningServer) -> None:
    async def one(client: openai.AsyncOpenAI) -> str:
        stream = await client.chat.completions.create(model="fake", messages=MESSAGES, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def scenario() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client) for _ in range(24)))

    assert asyncio.run(scenario()) == [TEXT] * 24


def test_the_hugging_face_client(server: RunningServer) -> None:
    client = InferenceClient(base_url=f"{server.url}/v1")
    answer = client.chat.completions.create(model="fake", messages=MESSAGES, max_tokens=4)
    assert TEXT.startswith(answer.choices[0].message.content) and answer.choices[0].finish_reason == "length"
    stream = client.chat.completions.create(model="fake", messages=MESSAGES, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == TEXT


def test_choices_are_interleaved_under_their_indices(client: openai.OpenAI) -> None:
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(model="fake", messages=MESSAGES, n=3, seed=5, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert len(set(texts)) > 1 and all(texts)
    whole = client.chat.completions.create(model="fake", messages=MESSAGES, n=3, seed=5)
    assert [choice.message.content for choice in whole.choices] == texts


def test_stream_and_whole_agree_on_logprobs(client: openai.OpenAI, words: list[int]) -> None:
    options: dict[str, Any] = {"model": "fake", "messages": MESSAGES, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**options).choices[0].logprobs
    streamed = [
        entry
        for chunk in client.chat.completions.create(**options, stream=True)
        if chunk.choices[0].logprobs is not None
        for entry in chunk.choices[0].logprobs.content or []
    ]
    assert whole is not None and whole.content == streamed and len(streamed) == len(words)
    assert "".join(entry.token for entry in streamed) == TEXT
    assert all(len(entry.top_logprobs) == 2 for entry in streamed)


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_and_the_engine_s_work(server: RunningServer, stream: bool) -> None:
    before = len(server.events("abort"))
    body = {
        "messages": MESSAGES,
        "stop": [" Paris"],
        "seed": ENDLESS_SEED,
        "stream": stream,
        **({"stream_options": {"include_usage": True}} if stream else {}),
    }
    answer = patient.post(f"{server.url}/v1/chat/completions", json=body)
    if stream:
        events = events_of(answer.text)
        text = "".join(event["choices"][0]["delta"]["content"] for event in events[:-1])
        usage, reason = events[-1]["usage"], events[-2]["choices"][0]["finish_reason"]
    else:
        text = answer.json()["choices"][0]["message"]["content"]
        usage, reason = answer.json()["usage"], answer.json()["choices"][0]["finish_reason"]
    assert text == "The capital of France is" and reason == "stop"
    assert usage["completion_tokens"] == 6
    wait_until(lambda: len(server.events("abort")) > before)
    wait_until(lambda: idle(server))


def test_the_model_may_be_left_out_and_unknown_ones_are_404(server: RunningServer, client: openai.OpenAI) -> None:
    assert patient.post(f"{server.url}/v1/chat/completions", json={"messages": MESSAGES}).json()["model"] == "fake"
    for name in ("nope", "../etc", "a" * 500, "fake\n"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model=name, messages=MESSAGES)
        assert caught.value.code == "model_not_found" and caught.value.param == "model"


def test_models_are_described(client: openai.OpenAI, server: RunningServer) -> None:
    assert [model.id for model in client.models.list()] == ["fake"]
    model = client.models.retrieve("fake").model_dump()
    assert model["context_length"] == 8192 and model["state"] == "ready"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no/such/model")


def test_metrics_count_what_usage_said(server: RunningServer) -> None:
    def value(name: str) -> float:
        lines = patient.get(f"{server.url}/metrics").text.splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"headrace_{name}"))

    wait_until(lambda: idle(server))
    before = value("answered_completion_tokens_total")
    answer = patient.post(f"{server.url}/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 7})
    used = answer.json()["usage"]
    assert value("answered_completion_tokens_total") - before == used["completion_tokens"] == 7
    parts = patient.get(f"{server.url}/metrics").text
    states = {
        state: value(f'kv_blocks{{model="fake",state="{state}"}}') for state in ("free", "cached", "owned", "total")
    }
    assert states["free"] + states["cached"] + states["owned"] == states["total"] > 0
    series = len(parts.splitlines())
    patient.get(f"{server.url}/whatever/{'x' * 50}")
    assert len(patient.get(f"{server.url}/metrics").text.splitlines()) == series


# ---- clients that leave or dawdle


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("hold", [3, 0], ids=["in the middle", "before the first token"])
def test_a_client_that_leaves_is_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script, stream: bool, hold: int
) -> None:
    """By its leaving alone: the engine stands still, so there is nothing to write to it, nor is a comment due."""
    monkeypatch.setattr("server.routes.answering.KEEP_ALIVE_SECONDS", NEVER)
    held = Script(model_dir=script.model_dir, token_ids=script.token_ids, holds={-1: hold})
    with running_server(monkeypatch, tmp_path, held) as server:
        with server.connect() as connection:
            connection.sendall(raw_request(stream=stream))
            wait_until(lambda: server.events("add"))
            if stream and hold:
                read_until(connection, b"of")
            elif hold:
                wait_until(lambda: server.handle.client and server.handle.client.stats.generation_tokens == hold)
        wait_until(lambda: server.events("abort"))
        wait_until(lambda: idle(server))


def test_a_reader_that_never_reads_costs_no_memory_and_is_dropped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    """With the bound on what waits far away, it is the deadline for unread bytes that ends it."""
    monkeypatch.setattr(request_stream, "MAX_UNREAD_OUTPUTS", 10**9)
    endless = Script(model_dir=script.model_dir, token_ids=script.token_ids, context=10**7)
    with running_server(monkeypatch, tmp_path, endless) as server, socket.socket() as connection:
        monkeypatch.setattr(GuardedH11Protocol, "unread_seconds", 1.0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(raw_request(stream=True, max_tokens=10**7 - 100))
        wait_until(lambda: server.events("add"))
        wait_until(lambda: server.events("abort"))
        wait_until(lambda: idle(server))


# ---- faults of the engine


def test_a_refusal_by_the_engine_is_a_400(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    refusing = Script(model_dir=script.model_dir, token_ids=[1], error_after=0, error_param="logit_bias")
    with running_server(monkeypatch, tmp_path, refusing) as server:
        for stream in (False, True):
            answer = patient.post(f"{server.url}/v1/chat/completions", json={"messages": MESSAGES, "stream": stream})
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == "logit_bias"
        wait_until(lambda: idle(server))


def test_a_full_engine_is_a_503(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    full = Script(model_dir=script.model_dir, token_ids=[1], error_after=0, error_code="overloaded")
    with running_server(monkeypatch, tmp_path, full) as server:
        answer = patient.post(f"{server.url}/v1/chat/completions", json={"messages": MESSAGES})
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "overloaded"
        assert int(answer.headers["retry-after"]) > 0


def test_a_failure_in_the_middle_is_an_event_and_then_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    gate = tmp_path / "gate"
    failing = Script(
        model_dir=script.model_dir, token_ids=script.token_ids, error_after=3, holds={-1: 3}, gate=str(gate)
    )
    with running_server(monkeypatch, tmp_path, failing) as server:
        body = {"messages": MESSAGES, "stream": True, "n": 2}
        with patient.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer:
            assert answer.status_code == 200
            gate.touch()
            text = "".join(answer.iter_text())
        assert events_of(text)[-1]["error"]["message"] == "the scripted failure"
        whole = patient.post(f"{server.url}/v1/chat/completions", json={"messages": MESSAGES})
        assert whole.status_code == 500
        gate.unlink()
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        chunks = client.chat.completions.create(model="fake", messages=MESSAGES, stream=True)
        gate.touch()
        with pytest.raises(openai.APIError, match="scripted"):
            list(chunks)


def test_a_killed_engine_is_an_event_and_then_a_restart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    """The event comes as soon as the engine has ended, while limits to its silence are far away."""
    endless = Script(model_dir=script.model_dir, token_ids=script.token_ids, step_seconds=0.01, context=10**7)
    with running_server(monkeypatch, tmp_path, endless) as server, server.connect() as connection:
        connection.sendall(raw_request(stream=True, max_tokens=10**6))
        data = read_until(connection, b"capital")
        first = server.handle.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        data += read_until(connection, b"data: [DONE]\n\n")
        assert b'"code":"engine_died"' in data.replace(b": ", b":")
        meanwhile = patient.post(f"{server.url}/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 3})
        assert meanwhile.status_code in (200, 503)  # it has waited for the new engine, or came before that was needed
        wait_until(lambda: server.handle.supervision.restarts == 1)
        wait_ready(server.url)
        assert server.handle.pid != first
        again = patient.post(f"{server.url}/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 3})
        assert again.json()["choices"][0]["message"]["content"] == "The capital of"
        assert 'headrace_engine_restarts_total{model="fake"} 1' in patient.get(f"{server.url}/metrics").text


# ---- states of the server


def test_while_loading_the_server_answers_503_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    gate = tmp_path / "gate"
    slow = Script(model_dir=script.model_dir, token_ids=script.token_ids, holds_load=True, gate=str(gate))
    with running_server(monkeypatch, tmp_path, slow, ready=False, load_wait=0.0) as server:
        wait_until(lambda: server.handle.progress is not None)
        health = patient.get(f"{server.url}/health")
        assert health.status_code == 503 and health.json()["status"] == "loading" and "retry-after" in health.headers
        assert health.json()["progress"]["fake"]["stage"] == "reading weights"
        answer = patient.post(f"{server.url}/v1/chat/completions", json={"messages": MESSAGES})
        assert answer.status_code == 503 and "retry-after" in answer.headers
        assert answer.json()["error"]["code"] == "model_not_ready"
        assert patient.get(f"{server.url}/v1/models").json()["data"][0]["state"] == "loading"
        gate.touch()
        wait_ready(server.url)
        wait_until(lambda: "Headrace" in server.console.getvalue() and "curl" in server.console.getvalue())


def test_a_full_server_refuses_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    """It waits for nothing: not for a place, nor for the engine, which stands still meanwhile."""
    endless = Script(model_dir=script.model_dir, token_ids=script.token_ids, step_seconds=0.01, context=10**7)
    with (
        running_server(monkeypatch, tmp_path, endless, limits=Limits(max_requests=4)) as server,
        server.connect() as connection,
    ):
        connection.sendall(raw_request(stream=True, max_tokens=10**6, n=3))
        read_until(connection, b"capital")
        assert patient.post(f"{server.url}/v1/chat/completions", json={"messages": MESSAGES, "n": 2}).status_code == 503
        fits = patient.post(f"{server.url}/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 2})
        assert fits.status_code == 200
        pid = server.handle.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            refused = patient.post(f"{server.url}/v1/chat/completions", json={"messages": MESSAGES, "n": 2})
        finally:
            os.kill(pid, signal.SIGCONT)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
        assert sum(add["n"] for add in server.events("add")) == 4


def test_every_route_but_health_wants_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    with running_server(monkeypatch, tmp_path, script, api_keys=("first-key", "second-key")) as server:
        for method, path in (
            ("GET", "/v1/models"), ("GET", "/v1/models/fake"), ("POST", "/v1/chat/completions"), ("GET", "/metrics"),
            ("GET", "/openapi.json"), ("GET", "/nothing"), ("GET", "//health"), ("GET", "/health/"), ("OPTIONS", "/"),
        ):  # fmt: skip
            for value in (None, b"Bearer wrong", b"Bearer \xff\xfe", b"Basic first-key", b"Bearer " + b"x" * 10_000):
                headers = {} if value is None else {b"authorization": value}
                answer = patient.request(method, server.url + path, headers=headers)
                assert answer.status_code == 401, (method, path, value)
        assert patient.get(f"{server.url}/health").status_code == 200
        for key in ("first-key", "second-key"):
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)
            assert client.chat.completions.create(model="fake", messages=MESSAGES).choices[0].message.content == TEXT
        salts = [add["salt"] for add in server.events("add")]
        assert len(set(salts)) == 2 and all(salts)


def test_stopping_refuses_what_is_new_and_ends_what_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    endless = Script(model_dir=script.model_dir, token_ids=script.token_ids, step_seconds=0.01, context=10**7)
    with (
        running_server(monkeypatch, tmp_path, endless, drain_seconds=2 * NEVER) as server,
        server.connect() as connection,
    ):
        connection.sendall(raw_request(stream=True, max_tokens=10**6))
        read_until(connection, b"capital")
        server.loop.call_soon_threadsafe(server.server.stop)
        wait_until(lambda: server.server.admission.draining)
        assert patient.get(f"{server.url}/health").json()["status"] == "draining"
        assert patient.post(f"{server.url}/v1/chat/completions", json={"messages": MESSAGES}).status_code == 503
        server.pass_time(NEVER)
        for _ in range(5):  # what runs has its time
            assert b"[DONE]" not in read_until(connection, b"capital")
        server.pass_time(NEVER)
        read_until(connection, b"data: [DONE]\n\n")


def test_two_models_do_not_touch_each_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    models = (engine_config("org/one"), engine_config("two"))
    with running_server(monkeypatch, tmp_path, script, models=models, policy=FAST_POLICY) as server:
        victim = server.server.fleet.handles["two"].pid
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        assert client.chat.completions.create(model="org/one", messages=MESSAGES).choices[0].message.content == TEXT
        assert client.models.retrieve("org/one").id == "org/one"


def test_what_was_left_out_of_a_schema_is_said_before_anything_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    monkeypatch.setattr("server.routes.answering.KEEP_ALIVE_SECONDS", 0.1)
    gate = tmp_path / "gate"
    relaxed = Script(
        model_dir=script.model_dir, token_ids=script.token_ids, holds={5: 0}, gate=str(gate),
        relaxed=["/tools/0/function/parameters/unevaluatedItems", "/tools/1/function/parameters/$defs/\u00e9/not"],
    )  # fmt: skip
    expected = "/tools/0/function/parameters/unevaluatedItems, /tools/1/function/parameters/$defs/%C3%A9/not"
    with running_server(monkeypatch, tmp_path, relaxed) as server:
        url, body = f"{server.url}/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 4}
        for more in ({}, {"n": 2}, {"stream": True}):
            assert patient.post(url, json=body | more).headers["x-headrace-relaxed"] == expected
        with patient.stream("POST", url, json=body | {"stream": True, "seed": 5}) as answer:
            assert answer.headers["x-headrace-relaxed"] == expected
            pieces = answer.iter_text()
            first = next(pieces)  # with more of them, if nobody read for a while
            assert not first.replace(": keep-alive\n\n", "") and first
            gate.touch()
            assert "".join(pieces).endswith("data: [DONE]\n\n")
        metrics = patient.get(f"{server.url}/metrics").text.splitlines()
        assert "headrace_requests_relaxed_total 4.0" in metrics and "headrace_keywords_relaxed_total 8.0" in metrics


def test_silence_is_filled_with_comments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    monkeypatch.setattr("server.routes.answering.KEEP_ALIVE_SECONDS", 0.1)
    gate = tmp_path / "gate"
    held = Script(model_dir=script.model_dir, token_ids=script.token_ids, holds={-1: 2}, gate=str(gate))
    with running_server(monkeypatch, tmp_path, held) as server:
        body = {"messages": MESSAGES, "stream": True, "max_tokens": 4}
        text = ""
        with patient.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer:
            for piece in answer.iter_text():
                text += piece
                if text.count(": keep-alive\n\n") >= 4:
                    gate.touch()
        assert text.count(": keep-alive\n\n") >= 4
        assert "".join(event["choices"][0]["delta"]["content"] for event in events_of(text)) == "The capital of France"


def test_a_bad_request_does_not_touch_its_neighbours(server: RunningServer) -> None:
    bad: list[dict[str, Any]] = [
        {"temperature": 3},
        {"n": 0},
        {"max_tokens": 10**9},
        {"logit_bias": {"999999": 1}},
        {"messages": []},
        {"top_logprobs": 2},
        {"stop": [5]},
        {"response_format": {"type": "json", "value": "{"}},
        {"prompt_embeds": "x"},
    ]
    pid = server.handle.pid

    async def scenario() -> list[str]:
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:

            async def good() -> str:
                answer = await client.post("/v1/chat/completions", json={"messages": MESSAGES, "stream": True})
                return "".join(event["choices"][0]["delta"]["content"] for event in events_of(answer.text))

            async def refused(fields: dict[str, Any]) -> str:
                answer = await client.post("/v1/chat/completions", json={"messages": MESSAGES, **fields})
                assert answer.status_code == 400, fields
                return str(answer.json()["error"]["param"])

            neighbours = [asyncio.create_task(good()) for _ in range(4)]
            params = await asyncio.gather(*map(refused, bad))
            assert all(param.startswith(next(iter(fields))) for param, fields in zip(params, bad, strict=True)), params
            return list(await asyncio.gather(*neighbours))

    assert asyncio.run(scenario()) == [TEXT] * 4
    assert server.handle.pid == pid
